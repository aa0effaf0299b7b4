// run/process.c - see run/process.h.
#define _GNU_SOURCE // prctl's header; sigaction
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

// -- The beginning -------------------------------------------------------------------------------

// open() takes the lowest number that is free. Without /dev/null not a word could be said about it.
static void open_missing_streams(void) {
  for (int i = STDIN_FILENO; i <= STDERR_FILENO; i++)
    if (fcntl(i, F_GETFD) < 0 && open("/dev/null", O_RDWR) != i) _exit(1);
}

// OpenMP's threads wait for each other several hundred times a step. By default they do so by running
// in circles, and where another process wants the processor too, every wait then costs a whole turn
// of the scheduler: ten times slower was seen. Asleep, they cost nothing. The OpenMP library reads
// this setting before main() begins, hence the second start: of the file that this process runs,
// whatever argv[0] says. It is listed (top, pkill) under the name of that link then, unless renamed.
static void have_threads_sleep(char **argv) {
  if (getenv("OMP_WAIT_POLICY"))
    prctl(PR_SET_NAME, "train");
  else if (setenv("OMP_WAIT_POLICY", "passive", 1) == 0)
    execv("/proc/self/exe", argv); // returns only where that is not possible; then all goes on
}

void process_begin(char **argv) {
  open_missing_streams();
  signal(SIGXFSZ, SIG_IGN);
  have_threads_sleep(argv);
}

// -- Threads -------------------------------------------------------------------------------------

static pthread_mutex_t until_all_are_there = PTHREAD_MUTEX_INITIALIZER;

static void *wait_for_the_others(void *unused) {
  pthread_mutex_lock(&until_all_are_there);
  pthread_mutex_unlock(&until_all_are_there);
  return unused;
}

bool process_has_threads(int threads, error *e) {
  pthread_t *started = allocate((size_t)threads * sizeof *started);
  int count = 1, why = 0; // this one is there
  pthread_mutex_lock(&until_all_are_there);
  while (count < threads && !why) {
    why = pthread_create(&started[count], NULL, wait_for_the_others, NULL);
    count += !why;
  }
  pthread_mutex_unlock(&until_all_are_there);
  for (int i = 1; i < count; i++) pthread_join(started[i], NULL);
  free(started);
  return !why || fail(e, "%d threads: the system gives %d: %s; ask for fewer with --threads",
                      threads, count, strerror(why));
}

// -- Signals -------------------------------------------------------------------------------------

static volatile sig_atomic_t stop_signal; // the first that came

static void ask_to_stop(int signal) {
  if (!stop_signal) stop_signal = signal;
}

// SA_RESTART: a write that a signal interrupts goes on. SA_RESETHAND: the second one ends the process;
// but each write to a broken pipe brings another SIGPIPE, and saving comes after the first.
void process_catch_signals(void) {
  static const int caught[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
  for (size_t i = 0; i < sizeof caught / sizeof *caught; i++) {
    struct sigaction action = {.sa_handler = ask_to_stop, .sa_flags = SA_RESTART}, before;
    if (caught[i] != SIGPIPE) action.sa_flags |= (int)SA_RESETHAND;
    sigemptyset(&action.sa_mask);
    if (sigaction(caught[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
      sigaction(caught[i], &action, NULL);
  }
}

bool process_is_to_stop(void) {
  return stop_signal != 0 || ferror(stdout);
}

// -- The end -------------------------------------------------------------------------------------

int process_end(bool came_to_its_end) {
  const bool written = fflush(stdout) == 0 && !ferror(stdout);
  if (stop_signal == SIGPIPE) return 128 + SIGPIPE;
  if (!written) {
    fprintf(stderr, "train: standard output: could not be written: disk full?\n");
    return 1;
  }
  return stop_signal && !came_to_its_end ? 128 + stop_signal : 0;
}
