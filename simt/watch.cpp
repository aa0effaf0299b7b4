// simt/watch.cpp - the memory of the simulated GPU, and what its threads do to it.
//
// Kernels compiled with g++ -fsanitize=thread call a hook before each access to memory:
// __tsan_read4(address) and its like. That is meant for the compiler's own thread sanitizer; here,
// the hooks are ours. Each byte of device and shared memory has a `history`: who wrote it last, who
// read it last, and when. Of two accesses to a byte, one of them a write, by two threads of
//     launches of two branches:      a race, if no edge of the recording lies between (recording.cpp)
//     different blocks of a launch:  a race, unless both are atomic, or one block told the other
//     one block:                     a race, if no barrier lies between them
//     one warp:                      a race, if neither a barrier nor a __syncwarp does.
// order.cpp knows what lies between. Shuffles and the tensor cores' operations make lanes wait for each
// other's registers; the CUDA manual does not promise that they order memory, so here they do not.
//
// Static __shared__ arrays lie side by side, so an index that runs from one into the next meets memory of the
// GPU's. -fsanitize=bounds calls one more hook where an index is beyond its array's end. What neither sees: a
// pointer that walks from one such array into the next, until that reads what nobody wrote, or races.
//
// What the accesses cost, in requests and bank conflicts, is counted in cost.cpp.
#include "inside.h"

#include <link.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum deed { READ, WRITE, ATOMIC };

struct history {                    // times as in order.cpp
  uint64_t write, read, other_read; // an earlier one, by another thread than `read`
  uint16_t write_place, read_place, other_place;
  bool in_flight, atomic; // is a cp.async's target; was written by an atomic operation
};

struct piece { // of memory
  uint8_t *start, *end;
  history *past; // if simt_watching
  bool shared;
};

// -- Memory ---------------------------------------------------------------------------------------

// All device memory: first the block's dynamic shared memory, then what simt_allocate gave away,
// each followed by a page that must not be touched, so that also a kernel that is not watched is
// stopped.
enum : size_t { MAX_SHARED = 227 << 10, ARENA = 16ull << 30, FIRST = 5 * PAGE };
static uint8_t *arena;
static size_t arena_used = FIRST;
static piece *piece_at; // [ARENA / PAGE]: what a page belongs to
static int pieces;
static piece dynamic_shared, static_shared; // static: this program's thread-local variables
static uint8_t *saved;                      // what they are when no kernel runs
static size_t load_address;                 // of the program
bool simt_watching;                         // some kernel calls our hooks

uint8_t *simt_map(size_t bytes, bool usable) {
  void *memory = mmap(NULL, bytes, usable ? PROT_READ | PROT_WRITE : PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) simt_report("no memory for the simulator itself (%zu bytes)", bytes);
  return (uint8_t *)memory;
}

void simt_usable(void *memory, size_t bytes, bool usable) {
  if (!usable) madvise(memory, bytes, MADV_DONTNEED);
  if (mprotect(memory, bytes, usable ? PROT_READ | PROT_WRITE : PROT_NONE))
    simt_report("no memory for the simulator itself (mprotect)");
}

static piece new_piece(uint8_t *start, size_t bytes, bool shared) {
  const size_t size = (bytes + 1) * sizeof(history);
  return {start, start + bytes, simt_watching ? (history *)simt_map(size, true) : NULL, shared};
}

static void crashed(int) {
  if (simt_now.thread)
    simt_report("out of bounds, or its stack is full; watched, the kernel has a line");
  signal(SIGSEGV, SIG_DFL);
}

// The first object that the loader lists is the program itself.
static int find_program(struct dl_phdr_info *info, size_t, void *) {
  load_address = info->dlpi_addr;
  for (int i = 0; i < info->dlpi_phnum; i++)
    if (info->dlpi_phdr[i].p_type == PT_TLS && info->dlpi_tls_data)
      static_shared = new_piece((uint8_t *)info->dlpi_tls_data, info->dlpi_phdr[i].p_memsz, true);
  return 1;
}

static void open_arena() {
  static uint8_t handler_stack[PAGE];
  const stack_t stack = {handler_stack, 0, PAGE};
  struct sigaction crash = {};
  if (arena) return;
  arena = simt_map(ARENA, false);
  simt_usable(arena, FIRST - PAGE, true);
  piece_at = (piece *)simt_map(ARENA / PAGE * sizeof *piece_at, true);
  dynamic_shared = new_piece(arena, FIRST, true);
  dl_iterate_phdr(find_program, NULL);
  saved = simt_map(static_shared.end - static_shared.start + 1, true);
  crash.sa_handler = crashed;
  crash.sa_flags = SA_ONSTACK;
  sigaltstack(&stack, NULL);
  sigaction(SIGSEGV, &crash, NULL);
}

static size_t round_up(size_t bytes, size_t to) {
  return (bytes + to - 1) / to * to;
}

// What CUDA refuses while a stream is captured.
static void expect_no_recording() {
  if (simt_launches == NOTE_LAUNCHES)
    simt_report("is allocated or released while launches are recorded");
}

void *simt_allocate(size_t bytes) {
  expect_no_recording();
  open_arena();
  const size_t room = round_up(bytes + !bytes, PAGE), first = arena_used / PAGE;
  if (bytes > ARENA || arena_used + room + PAGE > ARENA) return NULL;
  uint8_t *start = arena + arena_used + room - round_up(bytes, 64); // it ends where the page does
  simt_usable(arena + arena_used, room, true);
  memset(start, 0xff, bytes);
  piece_at[first] = new_piece(start, bytes, false);
  for (size_t i = 1; i <= room / PAGE; i++) piece_at[first + i] = piece_at[first];
  arena_used += room + PAGE;
  pieces++;
  return start;
}

// No address is given away twice, so that a use after release is found, until all is released.
void simt_release(void *memory) {
  if (!memory) return;
  expect_no_recording();
  const size_t page = ((uint8_t *)memory - arena) / PAGE;
  const piece p = page < ARENA / PAGE ? piece_at[page] : piece();
  if (p.start != memory) simt_report("%p is released, but not allocated", memory);
  for (size_t i = page; piece_at[i].start == memory; i++) {
    piece_at[i] = piece();
    simt_usable(arena + i * PAGE, PAGE, false);
  }
  if (p.past) munmap(p.past, (p.end - p.start + 1) * sizeof(history));
  if (!--pieces) arena_used = FIRST;
}

unsigned char *simt_dynamic_shared() {
  return dynamic_shared.start;
}

// The piece of the GPU's memory that an address belongs to. NULL: not the GPU's, but allowed, as the thread's
// stack and the program's constants are. An empty piece: not allowed.
static inline const piece *piece_of(const uint8_t *a) {
  static const piece none = {};
  extern const uint8_t __executable_start[], _end[]; // the program, with its constants
  const size_t offset = (uintptr_t)a - (uintptr_t)arena;
  if (offset < FIRST) return &dynamic_shared;
  if (offset < ARENA) return &piece_at[offset / PAGE];
  if (a >= static_shared.start && a < static_shared.end) return &static_shared;
  const size_t depth = (uintptr_t)a - (uintptr_t)simt_stack(simt_now.thread->number);
  return depth < PAGE || (a >= __executable_start && a < _end) ? NULL : &none;
}

// -- Reports, with the line in the source ---------------------------------------------------------

const char *simt_text(const char *format, ...) {
  static char text[16][500];
  static int turn;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text[turn = (turn + 1) % 16], sizeof text[0], format, arguments);
  va_end(arguments);
  return text[turn];
}

const char *simt_thread_name(int number) {
  const unsigned i = (unsigned)number, x = blockDim.x, y = blockDim.y;
  if (y * blockDim.z == 1) return simt_text("thread %u", i);
  return simt_text("thread %u (%u, %u, %u)", i, i % x, i / x % y, i / (x * y));
}

void simt_report(const char *format, ...) {
  va_list arguments;
  fflush(stdout);
  fprintf(stderr, "simt: %s", simt_now.kernel ? simt_now.kernel : "device memory");
  if (simt_now.thread)
    fprintf(stderr, ", block (%u, %u, %u), %s", blockIdx.x, blockIdx.y, blockIdx.z,
            simt_thread_name(simt_now.thread->number));
  fputs(": ", stderr);
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(1);
}

// A site that a hook made has line 0, and its return address for a file: addr2line finds the line
// in the -g part of the program; for an inlined function, also the lines that call it.
const char *simt_name_of(site where) {
  if (where.line) return simt_text("%s:%d", where.file, where.line);
  const size_t address = (uintptr_t)where.file - 1 - load_address;
  const char *name = "", *link = "";
  char line[300];
  FILE *tool =
      popen(simt_text("addr2line -s -i -e /proc/%d/exe 0x%zx 2>&1", getpid(), address), "r");
  while (tool && fgets(line, sizeof line, tool) && line[0] != '?') {
    line[strcspn(line, " \n")] = 0;
    name = simt_text("%s%s%s", name, link, line);
    link = " called from ";
  }
  if (tool && !pclose(tool) && *name) return name;
  return simt_text("address 0x%zx (no line: is addr2line, of binutils, there?)", address);
}

// -- Races, and other misuse ----------------------------------------------------------------------

static struct { // the access that is looked at
  deed kind;
  const piece *in;
  site where;
} current;

// Is the access that happened then certain to be over for the current thread?
static inline bool is_over(uint64_t then) {
  const simt_clock *c = &simt_clock_now;
  const int me = simt_now.thread->number, other = then % MAX_THREADS;
  if (then < c->block_began && current.in->shared) return true;
  if (then < c->launch_began) return !c->replaying || simt_launch_is_over(then);
  if (then < c->block_began) return simt_block_told(then);
  return then < c->barrier_passed || other == me ||
         (other / WARP == me / WARP && then < c->seen[me][other % WARP]);
}

static const char *const did[] = {"read", "written", "changed atomically"};

// Whose time that is. (Blocks of another launch may have another shape.)
static const char *thread_at(uint64_t then) {
  const int thread = then % MAX_THREADS;
  if (then < simt_clock_now.launch_began)
    return simt_text("thread %d of %s, on the other branch", thread, simt_launch_at(then));
  return simt_text("%s%s", simt_thread_name(thread),
                   then < simt_clock_now.block_began ? " of another block" : "");
}

static inline void order(uint64_t then, int place, deed before) {
  if (is_over(then)) return;
  simt_report("race in %s memory: %s at %s, and %s by %s at %s, with nothing between",
              current.in->shared ? "shared" : "global", did[current.kind],
              simt_name_of(current.where), did[before], thread_at(then),
              simt_name_of(simt_site_of(place)));
}

// One byte of an access.
static inline void touch(history *h, int place) {
  const uint64_t time = simt_clock_now.now[simt_now.thread->number];
  if (h->in_flight)
    simt_report("a copy in flight: %s at %s, before %s has waited for the cp.async at %s",
                did[current.kind], simt_name_of(current.where),
                simt_thread_name(h->write % MAX_THREADS),
                simt_name_of(simt_site_of(h->write_place)));
  if (current.kind != WRITE && current.in->shared && h->write < simt_clock_now.block_began)
    simt_report("uninitialised shared memory: read at %s; a store is missing, or a barrier between "
                "it and this",
                simt_name_of(current.where));
  if (!h->atomic || current.kind != ATOMIC)
    order(h->write, h->write_place, h->atomic ? ATOMIC : WRITE);
  if (current.kind == READ) {
    const bool another =
        h->read % MAX_THREADS != time % MAX_THREADS || h->read < simt_clock_now.block_began;
    if (another && is_over(h->other_read)) {
      h->other_read = h->read;
      h->other_place = h->read_place;
    }
    h->read = time;
    h->read_place = place;
  } else {
    order(h->read, h->read_place, READ);
    order(h->other_read, h->other_place, READ);
    h->write = time;
    h->write_place = place;
    h->atomic = current.kind == ATOMIC;
  }
}

// aligned: it is one access of the hardware's. Returns the memory's history.
static history *watch(const void *address, size_t bytes, deed kind, site where,
                      bool aligned = true) {
  const uint8_t *a = (const uint8_t *)address;
  const piece *p = piece_of(a);
  if (!p) return NULL;
  current = {kind, p, where};
  if (a < p->start || a > p->end || bytes > (size_t)(p->end - a))
    simt_report("out of bounds: %zu bytes %s at %s, %s", bytes, did[kind], simt_name_of(where),
                !p->start
                    ? "in no memory of the GPU's"
                    : simt_text("%td behind the start of %td bytes of %s memory", a - p->start,
                                p->end - p->start, p->shared ? "shared" : "global"));
  if (aligned && (uintptr_t)a % bytes)
    simt_report("misaligned: %zu bytes %s at %s", bytes, did[kind], simt_name_of(where));
  history *h = p->past + (a - p->start);
  const int place = simt_count_access(where, p->shared, kind != READ, aligned ? bytes : 0, a);
  if (simt_on_launch) return NULL;
  for (size_t i = 0; i < bytes; i++) touch(h + i, place);
  return h;
}

// -- Who calls it: the compiler's hooks, and the operations of simt.cpp ---------------------------

#define HOOK(name, ...)                                                                            \
  extern "C" void __tsan_##name {                                                                  \
    const site where = {(const char *)__builtin_return_address(0), 0};                             \
    if (simt_now.thread && simt_watching) watch(a, __VA_ARGS__);                                   \
  }
#define HOOKS(bytes)                                                                               \
  HOOK(read##bytes(void *a), bytes, READ, where)                                                   \
  HOOK(write##bytes(void *a), bytes, WRITE, where)                                                 \
  HOOK(unaligned_read##bytes(void *a), bytes, READ, where, false)                                  \
  HOOK(unaligned_write##bytes(void *a), bytes, WRITE, where, false)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
HOOK(read_range(void *a, size_t bytes), bytes, READ, where, false)
HOOK(write_range(void *a, size_t bytes), bytes, WRITE, where, false)
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() { // before main, if any file was compiled with hooks
  simt_watching = true;
}

// Of -fsanitize=bounds. Its library's source (LLVM's ubsan_handlers.h, ubsan_value.h) has the layout: a place in the
// source, which our hooks find by themselves, then the array's type, whose name stands behind two numbers of 16
// bits. Weak: where a sanitizer's own library is linked, its handler will do.
struct bounds_of_array {
  const char *file;
  uint32_t line, column;
  const char *array_type, *index_type;
};

extern "C" __attribute__((weak)) void
__ubsan_handle_out_of_bounds_abort(const bounds_of_array *bounds, uintptr_t index) {
  simt_report("out of bounds: index %td of an array of type %s at %s", (ptrdiff_t)index,
              bounds->array_type + 4, simt_name_of({(const char *)__builtin_return_address(0), 0}));
}

void *simt_bytes(const void *a, size_t bytes, bool write) {
  const site where = {(const char *)__builtin_return_address(0), 0};
  if (simt_now.thread && simt_watching) watch(a, bytes, write ? WRITE : READ, where, false);
  return (void *)a;
}

void simt_atomic(void *address, size_t bytes, site where) {
  if (!simt_watching) return;
  watch(address, bytes, ATOMIC, where);
  simt_order_atomic(address);
}

void simt_watch_ldmatrix(const void *row, site where) {
  if (simt_watching) watch(row, 16, READ, where);
}

void simt_watch_copy_begins(const simt_copy *copy, site where) {
  if (!simt_watching) return;
  if (copy->from) watch(copy->from, 16, READ, where);
  history *h = watch(copy->to, 16, WRITE, where);
  for (int i = 0; h && i < 16; i++) h[i].in_flight = true;
}

void simt_watch_copy_lands(const simt_copy *copy) {
  const piece *p = piece_of(copy->to);
  for (int i = 0; simt_watching && !simt_on_launch && i < 16; i++) {
    history *h = p->past + (copy->to - p->start) + i;
    h->in_flight = false;
    h->write = simt_clock_now.now[simt_now.thread->number];
  }
}

void simt_memory_opens(size_t bytes) {
  open_arena();
  if (bytes > MAX_SHARED) simt_report("%zu bytes of shared memory a block are too many", bytes);
  dynamic_shared.start = arena + FIRST - PAGE - round_up(bytes, 128);
  dynamic_shared.end = dynamic_shared.start + bytes;
  memcpy(saved, static_shared.start, static_shared.end - static_shared.start);
  simt_order_launch();
}

void simt_memory_closes() {
  memcpy(static_shared.start, saved, static_shared.end - static_shared.start);
}

void simt_block_starts() {
  memset(dynamic_shared.start, 0xff, dynamic_shared.end - dynamic_shared.start);
  memset(static_shared.start, 0xff, static_shared.end - static_shared.start);
  simt_order_block();
  simt_count_block();
}
