// run/report.h - what a run says: lines on the screen, a row an epoch in a CSV file, and a trace from
// which another program can replay every step.
//
// The CSV's columns: epoch (from 0), lr, train_loss, train_accuracy, test_loss, test_accuracy,
// test_nll, seconds, data (cifar10, stand-in or unknown). Accuracies go from 0 to 1. The losses are
// the recipe's criterion, against smoothed labels; test_nll is the same with smoothing 0.
//
// The trace is a line of JSON for the run, for each step, and for each epoch; see report.c. Its
// steps count from 1 over the whole run, its epochs from 0. Each step has the settings it was done with,
// since a resumed run may change them.
#ifndef REPORT_H
#define REPORT_H

#include "cifar.h"
#include "log_files.h"
#include "network.h"
#include "options.h"
#include "progress.h"

typedef struct {
  log_file log, trace;  // without a stream where not asked for; log.written and trace.written: kept
                        // with the checkpoint, and to be there before report_find
  const device *device; // on which this process trains
  int columns;          // of the terminal; 0: the screen is none, so no progress line is kept
  bool progress_shown;
  double begun;       // when this process began to train, in clock_seconds(), and
  int64_t begun_step; // at which step
  int64_t images;     // that it has trained on since
} report;

double clock_seconds(void); // seconds on a clock that only goes forward

// cifar10, stand-in or unknown: as a log names its data.
const char *report_kind_of_data(const dataset *data);

// Looks at the log and the trace, and opens them (run/log_files.h). False, with a line in e and both as
// they were, if one of them is refused.
bool report_find(report *r, const options *o, error *e);

// Behind it, and behind clear_the_way (run/trainer.h): moves an earlier run's log and trace aside, or goes
// on with this run's, and writes their first lines. False, with a line in e, if that is not possible.
bool report_begin(report *r, const options *o, const dataset *data, const device *device,
                  const position *at, error *e);
void report_close(report *r);

// Has every line so far reach the disk. Before a checkpoint is saved: a run resumed from it goes on
// behind these lines, and writes none of them again.
bool report_sync(report *r, error *e);

// Before the first step: the settings of the recipe, in a line.
void report_recipe(const options *o);

// After a step. `result` is the batch's sums. False, with a line in e, if its line could not be
// written: no state from this step on may then be saved, for the trace would lack the line for ever.
bool report_step(report *r, const options *o, const dataset *data, const position *at,
                 const drawn_batch *batch, const step_result *result, error *e);

// After an epoch, `at` still naming it. False, with a line in e, if its lines could not be written.
bool report_epoch(report *r, const options *o, const dataset *data, const position *at,
                  const score *test, error *e);

// After the last epoch: the result, and what one might do next; n: the network, for an estimate of
// the whole recipe's time from the speed of this process.
void report_done(report *r, const options *o, const dataset *data, const position *at,
                 const score *test, const network *n);

// After a signal: where the run stands, and how to go on.
void report_stopped(report *r, const options *o, const position *at);

#endif
