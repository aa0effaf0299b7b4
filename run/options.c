// run/options.c - the command line as one table: each option's name, kind, limits, place in the struct
// and line of help stand together, and parsing, help and the settings kept in a checkpoint are
// loops over it.
#define _DEFAULT_SOURCE // strsep
#include "options.h"

#include "device.h"

#include <errno.h>
#include <math.h>
#include <string.h>

typedef enum { TEXT, WHOLE, NUMBER, SEED, LIST, FLAG, PRESET } kind;
typedef enum { PROCESS, CHANGEABLE, FIXED } role; // of this process, or kept with a run

typedef struct {
  const char *name;
  kind kind;
  role role;
  size_t offset; // of its field in options
  size_t room;   // of a TEXT
  double least, most;
  const char *value; // how the help names its value
  const char *help;
} option;

#define FIELD(name) offsetof(options, name)
#define PLACE(name) FIELD(name), sizeof(((options *)0)->name)

static const option table[] = {
    {"preset", PRESET, PROCESS, 0, 0, 0, 0, "recipe|quick",
     "recipe: as published; quick: width 16, 4 epochs [recipe]"},
    {"data", TEXT, PROCESS, PLACE(data), 0, 0, "DIR",
     "CIFAR-10's binary files [data/cifar-10-batches-bin]"},
    {"device", TEXT, PROCESS, PLACE(device), 0, 0, "NAME",
     "auto, cuda, cpu, reference or simt [auto]"},
    {"epochs", WHOLE, CHANGEABLE, PLACE(epochs), 1, 100000, "N", "[150]"},
    {"batch", WHOLE, FIXED, PLACE(batch), 1, 65536, "N", "images a step [128]"},
    {"lr", NUMBER, CHANGEABLE, PLACE(lr), 0, 1e30, "X", "learning rate [0.1]"},
    {"momentum", NUMBER, CHANGEABLE, PLACE(momentum), 0, 1, "X", "[0.9]"},
    {"weight-decay", NUMBER, CHANGEABLE, PLACE(weight_decay), 0, 1e6, "X", "[0.0002]"},
    {"milestones", LIST, CHANGEABLE, PLACE(milestones), 0, 100000, "A,B,..",
     "epochs, from 0, where lr drops, or none [50,100]"},
    {"gamma", NUMBER, CHANGEABLE, PLACE(gamma), 0, 1e6, "X", "factor of a drop [0.1]"},
    {"mixup-alpha", NUMBER, CHANGEABLE, PLACE(mixup_alpha), 0, 1e6, "X",
     "lambda ~ Beta(X, X); 0 turns mixup off [1]"},
    {"smoothing", NUMBER, CHANGEABLE, PLACE(smoothing), 0, 1, "X",
     "share of a label spread over the other classes [0.1]"},
    {"width", WHOLE, FIXED, PLACE(width), 8, 1024, "N",
     "channels of the first stage, a multiple of 8 [64]"},
    {"seed", SEED, FIXED, PLACE(seed), 0, 0, "N", "of every random number [1]"},
    {"threads", WHOLE, PROCESS, PLACE(threads), 0, 1024, "N", "[0: one a processor]"},
    {"train-images", WHOLE, FIXED, PLACE(train_images), 0, 1e9, "N", "only the first N [0: all]"},
    {"test-images", WHOLE, FIXED, PLACE(test_images), 0, 1e9, "N", "only the first N [0: all]"},
    {"checkpoint", TEXT, PROCESS, PLACE(checkpoint), 0, 0, "DIR",
     "where the run is saved after each epoch [checkpoint]"},
    {"resume", FLAG, PROCESS, PLACE(resume), 0, 0, "",
     "go on with the run saved there; --init is then left aside"},
    {"init", TEXT, PROCESS, PLACE(init), 0, 0, "FILE",
     "start from the weights of a safetensors file with PyTorch's names"},
    {"eval", TEXT, PROCESS, PLACE(eval), 0, 0, "FILE",
     "only test the weights of such a file: loss, accuracy, each class"},
    {"log", TEXT, PROCESS, PLACE(log), 0, 0, "FILE.csv", "a row an epoch"},
    {"trace", TEXT, PROCESS, PLACE(trace), 0, 0, "FILE",
     "all that another program needs to replay the run, a line of JSON a step"},
    {"keep-every", WHOLE, PROCESS, PLACE(keep_every), 0, 1e9, "N",
     "also keep the state after every N steps, as DIR/step-NNNNNN, replacing earlier ones"},
    {"plan", FLAG, PROCESS, PLACE(plan), 0, 0, "",
     "print layers, parameters, FLOPs, memory, and exit"},
    {"help", FLAG, PROCESS, PLACE(help), 0, 0, "", "print this, and exit"},
};
enum { TABLE_SIZE = sizeof table / sizeof *table };

// The recipe as published, and the defaults of everything else.
static const options recipe = {.seed = 1,
                               .width = 64,
                               .batch = 128,
                               .epochs = 150,
                               .lr = 0.1,
                               .momentum = 0.9,
                               .weight_decay = 2e-4,
                               .milestones = {50, 100},
                               .milestone_count = 2,
                               .gamma = 0.1,
                               .mixup_alpha = 1,
                               .smoothing = 0.1,
                               .data = "data/cifar-10-batches-bin",
                               .device = "auto",
                               .checkpoint = "checkpoint"};

static void *field(options *o, const option *p) {
  return (char *)o + p->offset;
}

static const option *find_option(const char *name) {
  for (int i = 0; i < TABLE_SIZE; i++)
    if (!strcmp(table[i].name, name)) return &table[i];
  return NULL;
}

bool options_given(const options *o, const char *name) {
  return o->given >> (find_option(name) - table) & 1;
}

// -- Values --------------------------------------------------------------------------------------

// The whole of `text` as a number within p's limits.
static bool parse_number(const option *p, const char *text, double *number) {
  char *end;
  errno = 0;
  *number = strtod(text, &end);
  return end != text && !*end && isfinite(*number) && !errno && *number >= p->least &&
         *number <= p->most;
}

static bool parse_whole(const option *p, const char *text, int *number) {
  double value;
  if (!parse_number(p, text, &value) || value != floor(value)) return false;
  *number = (int)value;
  return true;
}

static bool parse_seed(const char *text, uint64_t *seed) {
  char *end;
  errno = 0;
  *seed = strtoull(text, &end, 10);
  return *text >= '0' && *text <= '9' && !*end && !errno;
}

// "50,100", each larger than the one before, or "none".
static bool parse_list(const option *p, const char *text, options *o) {
  char copy[METADATA_VALUE];
  o->milestone_count = 0;
  if (!strcmp(text, "none")) return true;
  if (!*text || strlen(text) >= sizeof copy || text[strlen(text) - 1] == ',') return false;
  strcpy(copy, text);
  char *rest = copy;
  for (char *one; (one = strsep(&rest, ","));) {
    const int i = o->milestone_count;
    if (i == MILESTONES || !parse_whole(p, one, &o->milestones[i])) return false;
    if (i > 0 && o->milestones[i] <= o->milestones[i - 1]) return false;
    o->milestone_count++;
  }
  return true;
}

// "seed" is what the recipe was called once. Of two presets on one command line the later one holds.
static bool apply_preset(const char *name, options *o) {
  const bool quick = !strcmp(name, "quick");
  if (!quick && strcmp(name, "recipe") && strcmp(name, "seed")) return false;
  o->width = quick ? 16 : recipe.width;
  o->epochs = quick ? 4 : recipe.epochs;
  o->milestone_count = quick ? -1 : recipe.milestone_count;
  return true;
}

static bool parse_value(const option *p, const char *text, options *o) {
  switch (p->kind) {
  case TEXT:
    if (!*text || strlen(text) >= p->room) return false;
    strcpy(field(o, p), text);
    return true;
  case WHOLE:
    return parse_whole(p, text, field(o, p));
  case NUMBER:
    return parse_number(p, text, field(o, p));
  case SEED:
    return parse_seed(text, field(o, p));
  case LIST:
    return parse_list(p, text, o);
  case PRESET:
    return apply_preset(text, o);
  case FLAG:
    *(bool *)field(o, p) = true;
    return true;
  }
  return false;
}

// As few digits as it takes to read back the same number.
static void print_number(double number, char *text, size_t room) {
  for (int digits = 6; digits <= 17; digits++) {
    snprintf(text, room, "%.*g", digits, number);
    if (strtod(text, NULL) == number) return;
  }
}

// The value as parse_value would read it back.
static void print_value(const option *p, options *o, char *text, size_t room) {
  text[0] = 0;
  if (p->kind == WHOLE) snprintf(text, room, "%d", *(int *)field(o, p));
  if (p->kind == NUMBER) print_number(*(double *)field(o, p), text, room);
  if (p->kind == SEED) snprintf(text, room, "%llu", (unsigned long long)*(uint64_t *)field(o, p));
  if (p->kind != LIST) return;
  if (o->milestone_count == 0) snprintf(text, room, "none");
  for (int i = 0; i < o->milestone_count; i++)
    snprintf(text + strlen(text), room - strlen(text), "%s%d", i ? "," : "", o->milestones[i]);
}

// -- The command line -------------------------------------------------------------------------------

// One pass over the arguments; the first looks only at --preset, the second at all others.
static bool parse_arguments(int argc, char **argv, bool presets, options *o, error *e) {
  for (int i = 1; i < argc; i++) {
    const option *p = strncmp(argv[i], "--", 2) ? NULL : find_option(argv[i] + 2);
    if (!p) return fail(e, "unknown option %s; --help lists them", argv[i]);
    const char *value = "";
    if (p->kind != FLAG) {
      if (++i == argc)
        return fail(e, "--%s needs a value, %s; --help says more", p->name, p->value);
      value = argv[i];
    }
    if ((p->kind == PRESET) != presets) continue;
    o->given |= (uint64_t)1 << (p - table);
    if (parse_value(p, value, o)) continue;
    if (p->kind == WHOLE || p->kind == NUMBER)
      return fail(e, "--%s %s: not possible; a %s from %g to %g is", p->name, value,
                  p->kind == WHOLE ? "whole number" : "number", p->least, p->most);
    return fail(e, "--%s %s: not possible; --help says what is", p->name, value);
  }
  return true;
}

static bool check(const options *o, error *e) {
  if (o->width % 8) return fail(e, "--width %d: not possible; a multiple of 8 is", o->width);
  if (!device_name_is_known(o->device))
    return fail(e,
                "--device %s: there is none of this name; auto, cuda, cpu, reference and simt are",
                o->device);
  if (o->eval[0] && (o->resume || o->init[0]))
    return fail(e, "--eval excludes --resume and --init");
  if (o->lr == 0) return fail(e, "--lr 0: not possible; a number above 0 is");
  if (o->mixup_alpha > 0 && o->mixup_alpha < 1e-6)
    return fail(e, "--mixup-alpha %g: not possible; 0 or a number from 1e-6 is", o->mixup_alpha);
  if (o->smoothing == 1 || o->momentum == 1)
    return fail(e, "--smoothing 1 and --momentum 1: not possible; a number below 1 is");
  return true;
}

bool options_parse(int argc, char **argv, options *o, error *e) {
  *o = recipe;
  if (!parse_arguments(argc, argv, true, o, e) || !parse_arguments(argc, argv, false, o, e))
    return false;
  if (o->milestone_count < 0) {
    o->milestone_count = 0;
    for (int third = 1; third <= 2; third++) {
      const int epoch = (third * o->epochs + 2) / 3; // rounded up
      if (epoch > 0 && (!o->milestone_count || epoch > o->milestones[o->milestone_count - 1]))
        o->milestones[o->milestone_count++] = epoch;
    }
  }
  return check(o, e);
}

void options_print_help(FILE *out) {
  fprintf(out, "train - ResNet-18 on CIFAR-10 with mixup and label smoothing\n\n");
  for (int i = 0; i < TABLE_SIZE; i++) {
    char left[64];
    snprintf(left, sizeof left, "--%s %s", table[i].name, table[i].value);
    fprintf(out, "  %-24s %s\n", left, table[i].help);
  }
  fprintf(out,
          "\nA run that is interrupted (Ctrl-C) saves itself; the same command with --resume goes "
          "on at the same step.\n");
}

// -- Settings in a checkpoint -------------------------------------------------------------------------

int options_to_metadata(const options *o, metadata *settings) {
  options copy = *o;
  int count = 0;
  for (int i = 0; i < TABLE_SIZE; i++) {
    if (table[i].role == PROCESS) continue;
    metadata *m = &settings[count++];
    snprintf(m->key, sizeof m->key, "%s", table[i].name);
    print_value(&table[i], &copy, m->value, sizeof m->value);
  }
  return count;
}

bool options_from_metadata(options *o, const safetensors *resume, FILE *out, error *e) {
  for (int i = 0; i < TABLE_SIZE; i++) {
    const option *p = &table[i];
    if (p->role == PROCESS) continue;
    const char *saved = safetensors_value(resume, p->name);
    if (!saved) return fail(e, "the resume file does not say --%s; it is damaged", p->name);
    if (o->given >> i & 1) {
      char now[METADATA_VALUE];
      print_value(p, o, now, sizeof now);
      if (!strcmp(now, saved)) continue;
      if (p->role == FIXED)
        return fail(e, "--%s %s: the run was begun with %s, which cannot change in its middle",
                    p->name, now, saved);
      fprintf(out, "--%s %s from here on; the run was begun with %s\n", p->name, now, saved);
    } else if (!parse_value(p, saved, o)) {
      return fail(e, "the resume file says --%s %s, which is not possible; it is damaged", p->name,
                  saved);
    }
  }
  return check(o, e);
}

double options_learning_rate(const options *o, int epoch) {
  double rate = o->lr;
  for (int i = 0; i < o->milestone_count; i++)
    if (epoch >= o->milestones[i]) rate *= o->gamma;
  return rate;
}
