// run/trainer.h - all that a run of ./train holds, and what happens around its loop, which is train.c.
//
//     set_up.c     before the first step: the data on the device, the network, memory that suffices
//     resume.c     saving, and going on with what was saved
//     evaluate.c   the test images: after each epoch, and for --eval
#ifndef TRAINER_H
#define TRAINER_H

#include "inspect.h"
#include "network.h"
#include "options.h"
#include "progress.h"
#include "report.h"

// How many steps the device may be told to do before their results are read. A GPU works through its
// queue while the CPU prepares the next steps; each question would wait until the queue is empty.
enum { MOST_QUEUED = 50 };

// Operations that the device has recorded: with the full batch and the short last one, in training and in
// testing.
enum { MOST_RECORDED = 4 };
typedef struct {
  void (*operations)(void *trainer);
  int count; // images
  recording *of;
} recorded;

// All of a run. position, score and drawn_batch: where it is, how good, what the host drew for a step (progress.h);
// report: what it prints and logs (report.h).
typedef struct {
  options options;
  const device *device;
  dataset data;
  network network;
  position at;
  report report;
  score last_score; // of the last epoch's test
  bool saved;       // has this process saved a checkpoint, or resumed one?
  bool done;        // it came to its end, and was not stopped

  int32_t *order;                 // [train_count]: the images in the order of this epoch
  sample *test_samples;           // [batch]
  drawn_batch queue[MOST_QUEUED]; // steps whose results are still with the device
  int queued;                     // how many of them
  int queue_length;               // how many there may be; 1 on a device that computes at once
  double read_until;              // clock_seconds() when the last results were read

  int count; // images of the batch at work
  recorded recorded[MOST_RECORDED];
  int recorded_count;

  // Device memory.
  uint8_t *images, *labels; // the whole data set: [N][3][32][32] and [N]
  sample *samples;          // [batch]
  step_values *step;        // of the step that is queued next
  step_result *results; // [2 queue_length]: a slot for each queued step; testing uses both halves
} trainer;

// -- set_up.c ------------------------------------------------------------------------------------

// Reads the data, allocates all memory, draws the initial weights, and prints what the run works
// with. False, with a line in e, for data that cannot be read or a batch that does not fit.
bool trainer_set_up(trainer *t, error *e);
void trainer_free(trainer *t);

// --init and --eval name a file of weights: unless --width was given, the width is the file's.
bool take_width_from(const char *path, options *o, error *e);

// Sends what changes from step to step to the device: a few KB. The step's result will go to `slot`.
void send_step(trainer *t, const sample *samples, int count, float lambda, double learning_rate,
               int slot);

// Does operations(t) on the `count` images that send_step has sent. A device that can record them does so the
// first time, and from then on starts what it recorded. So they must be the same calls each time: what
// they depend on, besides t->count, has to lie in the device's memory, or must not change in a run.
void do_operations(trainer *t, void (*operations)(void *trainer), int count);

// -- resume.c ------------------------------------------------------------------------------------

// Saves the network and the position under `name` in the checkpoint directory. Weights that are not
// finite are never saved: false, with a line in e, and what was saved before stays.
bool save_as(trainer *t, const char *name, error *e);

// --init and --eval: the weights of a file. False, with a line in e, unless all of them are finite.
bool load_weights(trainer *t, const char *path, error *e);

// A new run's: moves an earlier run's checkpoints out of its way, and says so. Before the first step, so
// that the files which stand together are of one run; and before report_begin does it with log and trace:
// a run killed between the two must not leave a checkpoint from which --resume would go on without its log.
bool clear_the_way(trainer *t, error *e);

// The run's checkpoint.
bool save_run(trainer *t, error *e);

// Claims the checkpoint directory, and takes over the saved settings and position: before the set-up,
// which they decide.
bool read_resume(trainer *t, safetensors *resume, error *e);

// Takes over the saved weights and momentum: after it. False unless the data is the same.
bool resume_run(trainer *t, const safetensors *resume, error *e);

// -- evaluate.c ----------------------------------------------------------------------------------

// All test images, with the running statistics, neither augmented nor mixed. Where the process is to
// stop (run/process.h) the score is of fewer images than there are.
score score_test_set(trainer *t);

// --eval: loads the weights and prints negative log likelihood, training criterion, accuracy,
// confidence, calibration error, and each class's accuracy: of the test images, or with --eval-train of
// the training images. --bins writes the bins to a file, --log all figures as a row of one.
bool evaluate(trainer *t, error *e);

#endif
