// run/progress.h - what a run carries from step to step besides the network: the batch it drew, how
// far it has come, and how good the network is by now. How far it has come is kept with the
// checkpoint, so that a resumed run's log and trace go on where the interrupted run's ended.
//
// Epochs count from 0, as in the recipe's schedule and in its notebook (README.md); steps count from 1.
#ifndef PROGRESS_H
#define PROGRESS_H

#include "cifar.h"
#include "safetensors.h"

// All that the host decides about one step of training.
typedef struct {
  int count;            // images in the batch; an epoch's last batch may be smaller
  float lambda;         // mixup's weight of each image itself; 1 - lambda is its partner's
  double learning_rate; // of the step
  sample *samples;      // [count]: which images, how cropped, flipped and paired
} drawn_batch;

// How far a run has come.
typedef struct {
  int epoch;            // the one under way: as many are complete
  int step_in_epoch;    // steps done in it
  int64_t step;         // steps done in the whole run
  int64_t images;       // images seen in this epoch
  double loss, correct; // sums over them
  double seconds;       // spent on training in this epoch
} position;

// How the network does on the test images: means over them.
typedef struct {
  double loss;     // the criterion of training: against smoothed labels
  double nll;      // negative log likelihood: the same with smoothing 0, - log p[true class]
  double accuracy; // 0 to 1
  int correct;     // of `images`
  int images;      // 0: not known yet
} score;

// The position as text, to be kept with a checkpoint. Returns how many: POSITION_VALUES.
enum { POSITION_VALUES = 7 };
int position_to_metadata(const position *at, metadata *values);

// False, with a line in e, unless the file holds all of them and they can be true.
bool position_from_metadata(position *at, const safetensors *resume, error *e);

#endif
