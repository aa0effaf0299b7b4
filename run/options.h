// run/options.h - the command line of train: every setting of a run, its default and its limits.
#ifndef OPTIONS_H
#define OPTIONS_H

#include "error.h"
#include "safetensors.h"
#include <stdint.h>

enum { PATH_ROOM = 2048, MILESTONES = 16 };

typedef struct {
  // The recipe. These belong to a run and are kept with its checkpoint.
  uint64_t seed;
  int width;
  int batch;
  int epochs;
  double lr;
  double momentum;
  double weight_decay;
  int milestones[MILESTONES]; // epochs (counted from 0) from which lr is multiplied by gamma
  int milestone_count;        // -1 until settled: with --preset quick, at 1/3 and 2/3 of the epochs
  double gamma;
  double mixup_alpha; // 0: no mixup
  double smoothing;
  int train_images, test_images; // the first N of each; 0: all

  // Where and how this process works.
  char data[PATH_ROOM];
  char device[32];
  int threads; // 0: as many as there are processors
  char checkpoint[PATH_ROOM];
  bool resume;
  char init[PATH_ROOM];
  char eval[PATH_ROOM];
  bool eval_train;      // only with eval: on the training images
  char bins[PATH_ROOM]; // only with eval: where the confidence bins go, as CSV
  char log[PATH_ROOM];
  char trace[PATH_ROOM];
  int keep_every; // 0: never
  bool plan;
  bool help;

  uint64_t given; // a bit for each option that was on the command line, by its place in the table
} options;

// Defaults, then --preset, then the other options; of an option given twice the later value holds.
// Values are written --name VALUE or --name=VALUE. False, with a line in e, for an option that does
// not exist (with the one that was probably meant), a value that is not one or lies outside its
// limits, options that exclude or need each other, or one that promises what --plan or --eval does not do
// (a seed or a data set does not). The line repeats at most 60 bytes of what was typed.
bool options_parse(int argc, char **argv, options *o, error *e);

// The recipe as published: the defaults.
const options *options_recipe(void);

// All options in groups, with their defaults, in lines of at most 80 columns.
void options_print_help(FILE *out);

// Was this option ("width", without dashes) on the command line?
bool options_given(const options *o, const char *name);

// Gives an option a value, as the command line would: false, if the option does not take such a value.
bool options_set(options *o, const char *name, const char *value);

// The recipe's settings as text, to be kept with a checkpoint. Returns how many: SAVED_OPTIONS.
enum { SAVED_OPTIONS = 13 };
int options_to_metadata(const options *o, metadata *settings);

// Takes over the settings of the run that is resumed. An option given on the command line stands,
// with a line of notice to `out` where it changes the run; but batch, width, seed and the number of
// images cannot change in the middle of a run: false, with a line in e. What --preset would set is not
// taken, and its own line says so; a width that it would change is refused.
bool options_from_metadata(options *o, const safetensors *resume, FILE *out, error *e);

#endif
