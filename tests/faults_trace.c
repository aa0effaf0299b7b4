// tests/faults_trace.c - a program under ptrace(2), with one of its calls struck; faults.h, faults.c.
//
// A seccomp filter in the program stops it at the calls that touch files, and at those only: there the
// tracer may change the call's registers. A number of -1 makes the kernel leave the call out, and what
// the tracer put into the result register is what the program gets (seccomp(2), SECCOMP_RET_TRACE).
#define _GNU_SOURCE
#include "faults.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SECONDS = 20, NOT_TRACED = 126, FILE_NUMBER = -1 };

// The calls, and which argument is the path; FILE_NUMBER: the first is an open file's number.
static const struct {
  long number;
  kind_of_call kind;
  int path;
  const char *name;
} known[] = {{SYS_openat, OPEN, 1, "open"},
             {SYS_open, OPEN, 0, "open"},
             {SYS_creat, OPEN, 0, "open"},
             {SYS_read, READ, FILE_NUMBER, "read"},
             {SYS_pread64, READ, FILE_NUMBER, "read"},
             {SYS_write, WRITE, FILE_NUMBER, "write"},
             {SYS_pwrite64, WRITE, FILE_NUMBER, "write"},
             {SYS_fsync, SYNC, FILE_NUMBER, "fsync"},
             {SYS_fdatasync, SYNC, FILE_NUMBER, "fsync"},
             {SYS_rename, RENAME, 0, "rename"},
             {SYS_renameat, RENAME, 1, "rename"},
             {SYS_renameat2, RENAME, 1, "rename"},
             {SYS_close, CLOSE, FILE_NUMBER, "close"},
             {SYS_mkdir, MAKE, 0, "mkdir"},
             {SYS_mkdirat, MAKE, 1, "mkdir"},
             {SYS_truncate, CUT, 0, "truncate"},
             {SYS_ftruncate, CUT, FILE_NUMBER, "ftruncate"},
             {SYS_unlink, REMOVE, 0, "unlink"},
             {SYS_unlinkat, REMOVE, 1, "unlink"},
             {SYS_rmdir, REMOVE, 0, "rmdir"},
             {SYS_newfstatat, LOOK, 1, "stat"},
             {SYS_stat, LOOK, 0, "stat"},
             {SYS_lstat, LOOK, 0, "lstat"},
             {SYS_fstat, LOOK, FILE_NUMBER, "fstat"},
             {SYS_statx, LOOK, 1, "stat"},
             {SYS_access, LOOK, 0, "access"},
             {SYS_faccessat, LOOK, 1, "access"},
             {SYS_faccessat2, LOOK, 1, "access"},
             {SYS_readlink, LOOK, 0, "readlink"},
             {SYS_readlinkat, LOOK, 1, "readlink"},
             {SYS_lseek, SEEK, FILE_NUMBER, "lseek"},
             {SYS_flock, LOCK, FILE_NUMBER, "flock"},
             {SYS_fcntl, LOCK, FILE_NUMBER, "lock"},
             {SYS_link, LINK, 0, "link"},
             {SYS_linkat, LINK, 1, "link"},
             {SYS_symlink, LINK, 1, "symlink"},
             {SYS_symlinkat, LINK, 2, "symlink"},
             {SYS_getdents64, LIST, FILE_NUMBER, "list"},
             {FAULTS_ALLOCATION, ALLOCATE, 0, "allocate"},
             {FAULTS_BEGIN, FILE_CALL, 0, "begin"}};
enum { KNOWN = sizeof known / sizeof *known };

// -- The program's side --------------------------------------------------------------------------------

static bool install_filter(void) {
  struct sock_filter code[2 * KNOWN + 2];
  unsigned short n = 0;
  code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                                           (uint32_t)offsetof(struct seccomp_data, nr));
  for (int i = 0; i < KNOWN; i++) {
    code[n++] =
        (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)known[i].number, 0, 1);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
  }
  code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  const struct sock_fprog program = {n, code};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static void redirect(const char *path, int flags, int number) {
  const int handle = open(path, flags, 0666);
  if (handle < 0 || dup2(handle, number) < 0) _exit(NOT_TRACED + 1);
  close(handle);
}

// Addresses are the same each time (where the system allows that), so that a walk can name them.
static void become(char *const arguments[], const char *directory, const char *library) {
  if (chdir(directory) != 0) _exit(NOT_TRACED + 1);
  redirect("/dev/null", O_RDONLY, 0);
  redirect("out", O_WRONLY | O_CREAT | O_TRUNC, 1);
  redirect("err", O_WRONLY | O_CREAT | O_TRUNC, 2);
  personality(ADDR_NO_RANDOMIZE);
  setenv("LD_PRELOAD", library, 1);
  setenv("OMP_WAIT_POLICY", "passive", 1); // or train would start itself again, to set it
  if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) _exit(NOT_TRACED);
  raise(SIGSTOP);
  if (!install_filter()) _exit(NOT_TRACED);
  execv(arguments[0], arguments);
  _exit(NOT_TRACED + 1);
}

// -- What a call is about ------------------------------------------------------------------------------

static unsigned long long argument(const struct user_regs_struct *r, int i) {
  const unsigned long long all[] = {r->rdi, r->rsi, r->rdx, r->r10};
  return all[i];
}

static void read_text(pid_t pid, unsigned long long address, char *text, size_t room) {
  const struct iovec here = {text, room - 1}, there = {(void *)(uintptr_t)address, room - 1};
  text[0] = 0;
  const ssize_t got = process_vm_readv(pid, &here, 1, &there, 1, 0);
  text[got > 0 ? got : 0] = 0;
}

// The name behind a file's number, without the directory that the program works in.
static void name_of(pid_t pid, int number, char *text, size_t room) {
  char link[64], directory[4096];
  snprintf(link, sizeof link, "/proc/%d/cwd", (int)pid);
  const ssize_t length = readlink(link, directory, sizeof directory);
  snprintf(link, sizeof link, "/proc/%d/fd/%d", (int)pid, number);
  const ssize_t got = readlink(link, text, room - 1);
  text[got > 0 ? got : 0] = 0;
  if (length > 0 && got > length && !strncmp(text, directory, (size_t)length))
    memmove(text, text + length + 1, (size_t)(got - length));
}

// "train+0x1234": addr2line -e train 0x1234 has the line.
static void place_of(pid_t pid, unsigned long long address, char *text, size_t room) {
  char path[64], line[4500], file[4096];
  unsigned long long first, end, offset;
  snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
  FILE *maps = fopen(path, "r");
  text[0] = 0;
  while (maps && fgets(line, sizeof line, maps)) {
    if (sscanf(line, "%llx-%llx %*s %llx %*s %*s %4095[^\n]", &first, &end, &offset, file) != 4)
      continue;
    if (address < first || address >= end) continue;
    const char *slash = strrchr(file, '/');
    snprintf(text, room, "%.60s+0x%llx", slash ? slash + 1 : file, address - first + offset - 1);
  }
  if (maps) fclose(maps);
}

static void describe_call(pid_t pid, const struct user_regs_struct *r, int which, char words[240]) {
  char subject[180];
  const kind_of_call kind = known[which].kind;
  const int path = known[which].path;
  if (kind == ALLOCATE)
    place_of(pid, r->rsi, subject, sizeof subject);
  else if (path != FILE_NUMBER)
    read_text(pid, argument(r, path), subject, sizeof subject);
  if (kind != ALLOCATE && (path == FILE_NUMBER || !subject[0])) // stat("") is of an open file, too
    name_of(pid, (int)r->rdi, subject, sizeof subject);
  if (kind == ALLOCATE || kind == READ || kind == WRITE)
    snprintf(words, 240, "%s %llu bytes: %s", known[which].name, kind == ALLOCATE ? r->rdi : r->rdx,
             subject);
  else
    snprintf(words, 240, "%s: %s", known[which].name, subject);
}

// -- The tracer's side -----------------------------------------------------------------------------------

typedef struct {
  pid_t pid; // the one that is stopped
  int at;
  const strike *with;
  bool describe, disk_is_full;
  unsigned long long whole; // HALF: how many bytes the program meant to read or write
  outcome *out;
} tracer;

static void leave_out(tracer *t, struct user_regs_struct *r, int error) {
  r->orig_rax = (unsigned long long)-1;
  r->rax = (unsigned long long)-error;
  ptrace(PTRACE_SETREGS, t->pid, NULL, r);
}

// The program is about to make the call that is to be struck. Returns how it goes on: up to the next
// call, or (PTRACE_SYSCALL) to the end of this one.
static int strike_now(tracer *t, struct user_regs_struct *r) {
  const strike *s = t->with;
  t->out->struck = true;
  t->disk_is_full = s->manner == FULL_DISK;
  if (s->manner == SIGNAL || s->manner == FAIL_AND_SIGNAL) kill(t->pid, s->signal);
  if (s->manner == FAIL || s->manner == FULL_DISK || s->manner == FAIL_AND_SIGNAL)
    leave_out(t, r, s->error);
  if (s->manner == HALF || s->manner == TORN) {
    t->whole = r->rdx;
    r->rdx = (r->rdx + 1) / 2;
    ptrace(PTRACE_SETREGS, t->pid, NULL, r);
  }
  return s->manner == HALF || s->manner == TORN || s->manner == FAIL_WHEN_DONE ? PTRACE_SYSCALL
                                                                               : PTRACE_CONT;
}

// The end of a call that strike_now let happen.
static void finish_call(tracer *t) {
  struct user_regs_struct r;
  if (t->with->manner == TORN) kill(t->pid, SIGKILL);
  if (ptrace(PTRACE_GETREGS, t->pid, NULL, &r) != 0) return;
  if (t->with->manner == FAIL_WHEN_DONE)
    r.rax = (unsigned long long)-t->with->error;
  else
    r.rdx = t->whole; // a system call leaves this register as it was
  ptrace(PTRACE_SETREGS, t->pid, NULL, &r);
}

static bool is_lock(const struct user_regs_struct *r) {
  const int command = (int)r->rsi;
  return command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK ||
         command == F_OFD_SETLKW;
}

// The program is about to make a call of the filter's.
static int meet_call(tracer *t) {
  struct user_regs_struct r;
  outcome *o = t->out;
  int which = 0;
  if (ptrace(PTRACE_GETREGS, t->pid, NULL, &r) != 0) return PTRACE_CONT;
  while (which < KNOWN - 1 && known[which].number != (long)r.orig_rax) which++;
  if (r.orig_rax == FAULTS_BEGIN) o->begun = true;
  if (r.orig_rax == FAULTS_BEGIN || r.orig_rax == FAULTS_ALLOCATION) leave_out(t, &r, 0);
  if (!o->begun || r.orig_rax == FAULTS_BEGIN || which == KNOWN - 1) return PTRACE_CONT;
  if (r.orig_rax == SYS_fcntl && !is_lock(&r)) return PTRACE_CONT;
  if (o->calls % 256 == 0) o->walk = realloc(o->walk, (size_t)(o->calls + 256) * sizeof *o->walk);
  if (!o->walk) abort();
  call *c = &o->walk[o->calls++];
  *c = (call){.kind = known[which].kind};
  if (t->describe) describe_call(t->pid, &r, which, c->words);
  if (o->calls == t->at) return strike_now(t, &r);
  if (t->disk_is_full && c->kind == WRITE && r.rdi != 2) leave_out(t, &r, t->with->error);
  return PTRACE_CONT;
}

// A stop of the program, and how it goes on.
static void meet_stop(tracer *t, int status) {
  int go = PTRACE_CONT, signal = WSTOPSIG(status);
  if (status >> 16) { // an event: a call, an exec, a thread
    if (status >> 8 == (SIGTRAP | PTRACE_EVENT_SECCOMP << 8)) go = meet_call(t);
    signal = 0;
  } else if (signal == (SIGTRAP | 0x80)) {
    finish_call(t);
    signal = 0;
  } else if (signal == SIGSTOP) { // a new thread's beginning
    signal = 0;
  }
  ptrace(go, t->pid, NULL, (void *)(intptr_t)signal);
}

static void wake_up(int signal) {
  (void)signal; // so that waitpid returns
}

static void set_timer(int seconds) {
  const struct itimerval timer = {{1, 0}, {seconds, 0}}, off = {{0, 0}, {0, 0}};
  struct sigaction action = {.sa_handler = wake_up};
  sigaction(SIGALRM, &action, NULL);
  setitimer(ITIMER_REAL, seconds ? &timer : &off, NULL);
}

outcome run_struck(char *const arguments[], const char *directory, const char *library, int at,
                   const strike *with, bool describe) {
  outcome o = {0};
  int status = 0;
  const pid_t child = fork();
  if (child == 0) become(arguments, directory, library);
  tracer t = {.at = at, .with = with, .describe = describe, .out = &o};
  set_timer(SECONDS);
  if (child > 0 && waitpid(child, &status, 0) == child && WIFSTOPPED(status)) {
    ptrace(PTRACE_SETOPTIONS, child, NULL,
           PTRACE_O_TRACESECCOMP | PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEEXEC |
               PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_EXITKILL);
    ptrace(PTRACE_CONT, child, NULL, NULL);
    for (bool ended = false; !ended;) {
      t.pid = waitpid(-1, &status, __WALL);
      ended = (t.pid < 0 && errno != EINTR) ||
              (t.pid == child && (WIFEXITED(status) || WIFSIGNALED(status)));
      if (t.pid < 0 && errno == EINTR) {
        o.hung = true;
        kill(child, SIGKILL);
      }
      if (t.pid > 0 && WIFSTOPPED(status)) meet_stop(&t, status);
    }
  }
  set_timer(0);
  o.status = status;
  o.forbidden = !o.begun && WIFEXITED(status) && WEXITSTATUS(status) == NOT_TRACED;
  return o;
}
