// run/process.h - the process around a run, and what the system may do to it: streams that are closed,
// signals, threads that cannot be had.
//
//     SIGINT, SIGTERM, SIGHUP   Ctrl-C, kill, a terminal that is closed: the loop stops after its step, or
//                               after its batch of test images, and saves; exit status 128 + signal. A
//                               second one of its kind ends the process at once: what comes after the
//                               last checkpoint is then lost, and nothing before it.
//     SIGPIPE                   nobody reads standard output any more (`./train | head`): the same, and
//                               not a word, as other programs do
//     SIGXFSZ                   ignored: a file beyond `ulimit -f` is a failed write (EFBIG), with its line
//
// A signal that whoever started this process has ignored stays ignored: nohup does so with SIGHUP.
//
// Checked by `make check` (tests/train_test.sh).
#ifndef PROCESS_H
#define PROCESS_H

#include "error.h"

// First of all in main(): opens what is closed of descriptors 0, 1 and 2, so that no file of ours
// gets such a number and then the messages; and starts the program once more with sleeping threads.
void process_begin(char **argv);

// OpenMP ends the process with a message of its own when the system refuses it a thread. So they are
// asked for beforehand: false, with a line in e, unless so many can be had at a time.
bool process_has_threads(int threads, error *e);

// From here on the first of these signals only asks the loop to stop.
void process_catch_signals(void);

// Has a signal come, or is there no room for what is printed?
bool process_is_to_stop(void);

// The exit status of a process that has done what it could: 0 where it came to its end, else that
// of the signal. Standard output that could not be written is a failure, with a line.
int process_end(bool came_to_its_end);

#endif
