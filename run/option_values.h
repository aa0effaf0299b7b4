// run/option_values.h - one option of the command line: its name, the values that it takes, and how
// such a value is read and written. run/options.c holds the table of all options and walks over it.
//
// Checked by `make check` (tests/train_test.sh: what is refused, and with which words).
#ifndef OPTION_VALUES_H
#define OPTION_VALUES_H

#include "options.h"

typedef enum { PATH, DEVICE, WHOLE, NUMBER, SEED, LIST, FLAG, PRESET } option_kind;

// Which numbers from `least` to `most` are possible: ABOVE leaves the least one out, BELOW the most.
typedef enum { FROM_TO, ABOVE, BELOW, ZERO_OR_FROM, MULTIPLE_OF_8 } option_rule;

typedef struct {
  const char *name;                                  // without dashes
  enum { THE_RUN, THE_RECIPE, FILES, INSIDE } group; // under whose heading the help has it
  option_kind kind;
  enum { PROCESS, CHANGEABLE, FIXED } role; // of this process, or kept with a run
  size_t offset;                            // of its field in options
  size_t room;                              // of a PATH or DEVICE, in bytes
  option_rule rule;                         // of a WHOLE, of a NUMBER, and of each number of a LIST
  double least, most;
  const char *value; // how the help names its value
  const char *help;
} option;

#define OPTION_DEVICES "auto, cuda, cpu, cpu-bf16, reference or simt"
#define OPTION_PRESETS "recipe or quick"

// Puts the value that `text` stands for into the option's field of o. False where it stands for none,
// or for one outside the limits; the field may then hold anything. A PRESET has no field: false.
bool option_parse(const option *p, const char *text, options *o);

// The option's value in o, as option_parse reads it back. Of kinds that a checkpoint keeps: WHOLE,
// NUMBER, SEED and LIST; of the others nothing.
void option_print(const option *p, const options *o, char *text, size_t room);

// What option_parse takes, for a message: "a number from 0 to below 1".
void option_print_possible(const option *p, char *text, size_t room);

#endif
