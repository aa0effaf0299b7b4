// cpu-bf16/amx.c - the product of blocks by AMX's tiles, and whether this process may use them.
//
// Three have to agree: the processor has them (CPUID, leaf 7: EDX bit 24, AMX-TILE, and bit 22,
// AMX-BF16); the kernel saves them when it changes between programs (XCR0 bits 17 and 18); and the
// process has asked for them, because saving takes 8 KB a thread: arch_prctl(ARCH_REQ_XCOMP_PERM),
// Linux 5.16 and later, Documentation/arch/x86/xstate.rst.
#define _DEFAULT_SOURCE // syscall
#include "run/error.h"

#if defined __x86_64__ && defined __linux__

#define TILES_AMX
#include "product.h"

#include <cpuid.h>
#include <errno.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

// What LDTILECFG reads: palette 1, and for each tile its rows and their bytes. A constant in memory:
// GCC 12 does not know that the instruction reads more than the first 8 bytes.
static const struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} shapes = {.palette = 1,
            .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
            .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

WITH_TILES static void open_tiles(void) {
  _tile_loadconfig(&shapes);
}

WITH_TILES static void close_tiles(void) {
  _tile_release();
}

const multiplier amx_multiplier = {"AMX tiles", open_tiles, close_tiles, block_product};

static bool has_amx(void) {
  enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX_BF16) && (d & AMX_TILE);
}

// The kernel's part: XGETBV is there (CPUID, leaf 1: ECX bit 27), and XCR0 has both bits of tiles.
static bool are_saved(void) {
  enum { TILE_BITS = 3 << 17, OSXSAVE = 1 << 27 };
  unsigned a, b, c, d, low, high;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE)) return false;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & TILE_BITS) == TILE_BITS;
}

bool amx_permitted(error *e) {
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
  struct utsname kernel = {.release = "?"};
  uname(&kernel);
  if (!has_amx()) return fail(e, "this processor has no AMX");
  if (!are_saved())
    return fail(e, "this processor has AMX, but Linux %s does not provide for it", kernel.release);
  if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA))
    return fail(e, "this processor has AMX, but Linux %s refuses it: %s", kernel.release,
                strerror(errno));
  return true;
}

#else

bool amx_permitted(error *e) {
  return fail(e, "this processor has no AMX");
}

#endif
