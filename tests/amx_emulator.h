// tests/amx_emulator.h - AMX on a processor that has none: carries out each tile instruction of the
// program when the processor refuses it, so that the very bytes that the compiler made are checked.
//
// An instruction that a processor does not know makes the kernel send SIGILL, with the registers at
// that place. The handler here reads the instruction (Intel's manual, volume 2, "Instruction
// Format" and the tile instructions' own pages), does to tiles in memory what the manual says, and
// goes on behind it. 28 microseconds an instruction: for small shapes.
//
//     C4  R X B map | W vvvv L pp | opcode | mod reg rm | scale index base | displacement
//
//     map 2, opcode 49    LDTILECFG (pp 0, memory), TILERELEASE (pp 0, register), TILEZERO (pp 3)
//                   4B    TILELOADD (pp 3), TILESTORED (pp 2)
//                   5C    TDPBF16PS (pp 2): reg += rm x vvvv
#ifndef AMX_EMULATOR_H
#define AMX_EMULATOR_H

#if defined __x86_64__ && defined __linux__

#include <emmintrin.h>
#include <math.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

typedef struct {
  bool configured;
  uint8_t rows[8];
  uint16_t row_bytes[8];
  uint8_t data[8][16][64];
} tile_state;

static _Thread_local tile_state emulated;
static atomic_long emulated_products; // of all threads

__attribute__((noreturn)) static void refuse_instruction(const char *why) {
  char line[80];
  const int length = snprintf(line, sizeof line, "FAIL %s\n", why);
  _exit(write(2, line, (size_t)length) == length ? 3 : 4);
}

static int64_t register_of(const greg_t *registers, int number) {
  static const int at[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                           REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return registers[at[number]];
}

typedef struct {
  int opcode, pp, vvvv, reg, rm;
  bool in_memory, has_index;
  int64_t address, stride, end; // the operand's; the stride is the index register's; the next one's
} instruction;

static int64_t displacement(const uint8_t *p, int bytes) {
  int32_t four;
  memcpy(&four, p, sizeof four);
  return bytes == 4 ? four : bytes == 1 ? (int8_t)*p : 0;
}

static instruction decode(const greg_t *registers) {
  const uint8_t *p = (const uint8_t *)registers[REG_RIP];
  if (p[0] != 0xC4 || (p[1] & 0x1F) != 2) refuse_instruction("not a tile instruction");
  instruction i = {.opcode = p[3], .pp = p[2] & 3, .vvvv = ~p[2] >> 3 & 15};
  const int mod = p[4] >> 6, extend_base = p[1] & 0x20 ? 0 : 8, extend_index = p[1] & 0x40 ? 0 : 8;
  i.reg = p[4] >> 3 & 7;
  i.rm = p[4] & 7;
  i.in_memory = mod != 3;
  const uint8_t *next = p + 5;
  if (i.in_memory) {
    int base = i.rm;
    if (i.rm == 4) {
      const int index = (*next >> 3 & 7) + extend_index;
      i.has_index = index != 4;
      if (i.has_index) i.stride = register_of(registers, index) * (1 << (*next >> 6));
      base = *next++ & 7;
    }
    int bytes = mod == 1 ? 1 : mod == 2 ? 4 : 0;
    const bool no_base = mod == 0 && base == 5;
    if (no_base) bytes = 4;
    i.address = displacement(next, bytes);
    next += bytes;
    if (no_base && i.rm == 5) i.address += (int64_t)next; // relative to the next instruction
    if (!no_base) i.address += register_of(registers, base + extend_base);
  }
  i.end = (int64_t)next;
  return i;
}

// TDPBF16PS as the manual has it, with the processor's own flushing of denormals (MXCSR's bits DAZ
// and FTZ), which is what the manual's pseudocode asks for; where a sum is then rounded to is
// MXCSR's usual nearest.
__attribute__((noinline)) static void emulate_product(int dst, int a, int b) {
  tile_state *t = &emulated;
  for (int m = 0; m < t->rows[dst]; m++) {
    float sums[32] = {0}, result[16];
    for (int k = 0; k < t->row_bytes[a] / 4; k++)
      for (int n = 0; n < t->row_bytes[dst] / 2; n++) {
        uint8_t left[4] = {0}, right[4] = {0};
        float x, y;
        memcpy(left + 2, &t->data[a][m][4 * k + 2 * (n % 2)], 2);
        memcpy(right + 2, &t->data[b][k][2 * n], 2);
        memcpy(&x, left, 4);
        memcpy(&y, right, 4);
        sums[n] = fmaf(x, y, sums[n]);
      }
    memcpy(result, t->data[dst][m], sizeof result);
    for (int n = 0; n < t->row_bytes[dst] / 4; n++) result[n] += sums[2 * n] + sums[2 * n + 1];
    memcpy(t->data[dst][m], result, sizeof result);
  }
  emulated_products++;
}

static void configure_tiles(const uint8_t *memory) {
  if (memory[0] != 1) refuse_instruction("LDTILECFG: a palette other than 1");
  memset(&emulated.data, 0, sizeof emulated.data);
  for (int i = 0; i < 8; i++) {
    memcpy(&emulated.row_bytes[i], memory + 16 + 2 * i, 2);
    emulated.rows[i] = memory[48 + i];
    if (emulated.row_bytes[i] > 64 || emulated.rows[i] > 16) refuse_instruction("LDTILECFG: size");
  }
  emulated.configured = true;
}

static void move_tile(const instruction *i, bool store) {
  if (!i->has_index) refuse_instruction("a tile's rows without a stride");
  for (int row = 0; row < emulated.rows[i->reg]; row++) {
    uint8_t *memory = (uint8_t *)(i->address + row * i->stride);
    if (store)
      memcpy(memory, emulated.data[i->reg][row], emulated.row_bytes[i->reg]);
    else
      memcpy(emulated.data[i->reg][row], memory, emulated.row_bytes[i->reg]);
  }
}

static void emulate(int signal, siginfo_t *info, void *context) {
  (void)signal, (void)info;
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const instruction i = decode(registers);
  const bool configures = i.opcode == 0x49 && i.pp == 0;
  _mm_setcsr(0x1F80 | 0x8040); // no exceptions, to nearest, FTZ, DAZ; the kernel restores it after
  if (!configures && !emulated.configured) refuse_instruction("a tile before LDTILECFG");
  if (configures && i.in_memory)
    configure_tiles((const uint8_t *)i.address);
  else if (configures)
    emulated.configured = false;
  else if (i.opcode == 0x49 && i.pp == 3 && !i.in_memory)
    memset(emulated.data[i.reg], 0, sizeof emulated.data[0]);
  else if (i.opcode == 0x4B && (i.pp == 2 || i.pp == 3) && i.in_memory)
    move_tile(&i, i.pp == 2);
  else if (i.opcode == 0x5C && i.pp == 2 && !i.in_memory)
    emulate_product(i.reg, i.rm, i.vvvv);
  else
    refuse_instruction("an unknown tile instruction");
  registers[REG_RIP] = i.end;
}

static void emulate_amx(void) {
  struct sigaction action = {.sa_sigaction = emulate, .sa_flags = SA_SIGINFO};
  if (sigaction(SIGILL, &action, NULL)) abort();
}

#endif
#endif
