// run/report.h - what a run says: lines on the screen, a row an epoch in a CSV file, and a trace from
// which another program can replay every step.
//
// The CSV's columns: epoch (from 0), lr, train_loss, train_accuracy, test_loss, test_accuracy
// (accuracies from 0 to 1), seconds, data (cifar10, stand-in or unknown).
//
// The trace is a line of JSON for the run, for each step, and for each epoch; see report.c. Its
// steps count from 1 over the whole run, its epochs from 0.
#ifndef REPORT_H
#define REPORT_H

#include "cifar.h"
#include "options.h"

// How far a run has come. All of it is kept with the checkpoint.
typedef struct {
  int epoch;            // the one under way, from 0: as many are complete
  int step_in_epoch;    // steps done in it
  int64_t step;         // steps done in the whole run
  int64_t images;       // images seen in this epoch
  double loss, correct; // sums over them
  double seconds;       // spent on training in this epoch
} position;

typedef struct {
  double loss;     // mean
  double accuracy; // 0 to 1
  int correct;     // of `images`
  int images;
} score;

typedef struct {
  FILE *csv, *trace; // NULL where not asked for
  bool terminal;     // is the screen one? Then a progress line is kept up to date
  bool progress_shown;
  double begun;       // when this process began to train, and
  int64_t begun_step; // at which step
} report;

double clock_seconds(void); // seconds on a clock that only goes forward

// Opens the log and the trace. For a new run, earlier files of these names are set aside (.1, .2,
// ..); a resumed run cuts off what came after its checkpoint and appends.
bool report_open(report *r, const options *o, const dataset *data, const char *device,
                 const position *at, error *e);
bool report_close(report *r, error *e);

// After a step. `loss` and `correct` are the batch's sums, `rate` its learning rate.
void report_step(report *r, const options *o, const dataset *data, const position *at,
                 const sample *samples, int count, float lambda, double rate, double loss,
                 double correct);

// After an epoch, `at` still naming it.
void report_epoch(report *r, const options *o, const dataset *data, const position *at,
                  const score *test);

#endif
