// run/options.c - the command line as one table: each option's name, kind, limits, place in the struct
// and line of help stand together, and parsing, help and the settings kept in a checkpoint are
// loops over it. What a value may be, and how it is read, is in run/option_values.c.
#include "options.h"

#include "network.h"
#include "option_values.h"

#include <string.h>

#define PLACE(name) offsetof(options, name), sizeof(((options *)0)->name)
#define NO_LIMITS FROM_TO, 0, 0

// Ordered by group, as the help prints them.
static const option table[] = {
    {"preset", THE_RUN, PRESET, PROCESS, 0, 0, NO_LIMITS, "recipe|quick",
     "recipe: as published; quick: width 16, 4 epochs [recipe]"},
    {"device", THE_RUN, DEVICE, PROCESS, PLACE(device), NO_LIMITS, "NAME",
     OPTION_DEVICES " [auto]"},
    {"threads", THE_RUN, WHOLE, PROCESS, PLACE(threads), FROM_TO, 0, 1024, "N",
     "that share the CPU's work [0: one a processor]"},
    {"resume", THE_RUN, FLAG, PROCESS, PLACE(resume), NO_LIMITS, "",
     "go on with the run saved in --checkpoint; --init is then left aside"},
    {"help", THE_RUN, FLAG, PROCESS, PLACE(help), NO_LIMITS, "",
     "print this, and exit; so does -h"},
    {"epochs", THE_RECIPE, WHOLE, CHANGEABLE, PLACE(epochs), FROM_TO, 1, 100000, "N",
     "passes over the training images [150]"},
    {"batch", THE_RECIPE, WHOLE, FIXED, PLACE(batch), FROM_TO, 1, MOST_BATCH, "N",
     "images a step [128]"},
    {"lr", THE_RECIPE, NUMBER, CHANGEABLE, PLACE(lr), ABOVE, 0, 1e30, "X", "learning rate [0.1]"},
    {"momentum", THE_RECIPE, NUMBER, CHANGEABLE, PLACE(momentum), BELOW, 0, 1, "X", "[0.9]"},
    {"weight-decay", THE_RECIPE, NUMBER, CHANGEABLE, PLACE(weight_decay), FROM_TO, 0, 1e6, "X",
     "[0.0002]"},
    {"milestones", THE_RECIPE, LIST, CHANGEABLE, PLACE(milestones), FROM_TO, 0, 100000, "A,B,..",
     "epochs, from 0, where lr drops, or none [50,100]"},
    {"gamma", THE_RECIPE, NUMBER, CHANGEABLE, PLACE(gamma), FROM_TO, 0, 1e6, "X",
     "factor of a drop [0.1]"},
    {"mixup-alpha", THE_RECIPE, NUMBER, CHANGEABLE, PLACE(mixup_alpha), ZERO_OR_FROM, 1e-6, 1e6,
     "X", "lambda ~ Beta(X, X); 0 turns mixup off [1]"},
    {"smoothing", THE_RECIPE, NUMBER, CHANGEABLE, PLACE(smoothing), BELOW, 0, 1, "X",
     "share of a label spread over the other classes [0.1]"},
    {"width", THE_RECIPE, WHOLE, FIXED, PLACE(width), MULTIPLE_OF_8, 8, MOST_WIDTH, "N",
     "channels of the first stage, a multiple of 8 [64]"},
    {"seed", THE_RECIPE, SEED, FIXED, PLACE(seed), NO_LIMITS, "N", "of every random number [1]"},
    {"train-images", THE_RECIPE, WHOLE, FIXED, PLACE(train_images), FROM_TO, 0, 1e9, "N",
     "only the first N [0: all]"},
    {"test-images", THE_RECIPE, WHOLE, FIXED, PLACE(test_images), FROM_TO, 0, 1e9, "N",
     "only the first N [0: all]"},
    {"data", FILES, PATH, PROCESS, PLACE(data), NO_LIMITS, "DIR",
     "CIFAR-10's binary files [data/cifar-10-batches-bin]"},
    {"checkpoint", FILES, PATH, PROCESS, PLACE(checkpoint), NO_LIMITS, "DIR",
     "where the run is saved after each epoch [checkpoint]"},
    {"init", FILES, PATH, PROCESS, PLACE(init), NO_LIMITS, "FILE",
     "start from the weights of a safetensors file with PyTorch's names"},
    {"log", FILES, PATH, PROCESS, PLACE(log), NO_LIMITS, "FILE.csv",
     "a row an epoch; with --eval a row of its figures"},
    {"eval", INSIDE, PATH, PROCESS, PLACE(eval), NO_LIMITS, "FILE",
     "only test the weights of a safetensors file: loss, accuracy, confidence, each class"},
    {"eval-train", INSIDE, FLAG, PROCESS, PLACE(eval_train), NO_LIMITS, "",
     "with --eval: on the training images, neither cropped nor flipped nor mixed"},
    {"bins", INSIDE, PATH, PROCESS, PLACE(bins), NO_LIMITS, "FILE.csv",
     "with --eval: each confidence bin's count, confidence and accuracy"},
    {"trace", INSIDE, PATH, PROCESS, PLACE(trace), NO_LIMITS, "FILE",
     "all that another program needs to replay the run, a line of JSON a step"},
    {"keep-every", INSIDE, WHOLE, PROCESS, PLACE(keep_every), FROM_TO, 0, 1e9, "N",
     "also keep the state after every N steps, as step-NNNNNN in --checkpoint's DIR, replacing "
     "earlier ones"},
    {"plan", INSIDE, FLAG, PROCESS, PLACE(plan), NO_LIMITS, "",
     "print layers, parameters, FLOPs, memory, and exit"},
};
enum { TABLE_SIZE = sizeof table / sizeof *table };
_Static_assert(TABLE_SIZE <= 64, "options.given has a bit for each");

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

const options *options_recipe(void) {
  return &recipe;
}

// The option whose name these are, `length` bytes.
static const option *find_option(const char *name, size_t length) {
  for (int i = 0; i < TABLE_SIZE; i++)
    if (strlen(table[i].name) == length && !memcmp(table[i].name, name, length)) return &table[i];
  return NULL;
}

bool options_given(const options *o, const char *name) {
  return o->given >> (find_option(name, strlen(name)) - table) & 1;
}

bool options_set(options *o, const char *name, const char *value) {
  options changed = *o;
  if (!option_parse(find_option(name, strlen(name)), value, &changed)) return false;
  *o = changed;
  return true;
}

// -- Mistakes --------------------------------------------------------------------------------------

// What a user typed, as a message repeats it: at most `length` bytes of it and 60.
typedef struct {
  char text[64];
} quotation;

static quotation quote(const char *typed, size_t length) {
  quotation q = {"\"\""}; // of nothing
  const size_t most = sizeof q.text - 4;
  size_t count = length < most ? length : most;
  while (count < length && count > 0 && ((unsigned char)typed[count] & 0xC0) == 0x80)
    count--; // not in the middle of a letter of UTF-8
  if (length)
    snprintf(q.text, sizeof q.text, "%.*s%s", (int)count, typed, count < length ? "..." : "");
  return q;
}

enum { LONGEST_NAME = 24 }; // that is compared with the table's

// How many letters have to be changed, added, left out or swapped with the next to make the one name
// of the other: the distance of Damerau (CACM 7(3), 1964, "A technique for computer detection and
// correction of spelling errors"). d[i][j] is that of the first i letters and the first j.
static int distance(const char *a, size_t a_length, const char *b, size_t b_length) {
  int d[LONGEST_NAME + 1][LONGEST_NAME + 1];
  for (size_t i = 0; i <= a_length; i++)
    for (size_t j = 0; j <= b_length; j++) {
      if (i == 0 || j == 0) {
        d[i][j] = (int)(i + j);
        continue;
      }
      int least = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
      if (least > d[i - 1][j] + 1) least = d[i - 1][j] + 1;
      if (least > d[i][j - 1] + 1) least = d[i][j - 1] + 1;
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
          least > d[i - 2][j - 2] + 1)
        least = d[i - 2][j - 2] + 1;
      d[i][j] = least;
    }
  return d[a_length][b_length];
}

// The option that was probably meant, or NULL. In a name of 4 letters or more two may be wrong, in a
// long one a third of them; of a shorter one, one.
static const option *nearest_option(const char *name, size_t length) {
  const option *nearest = NULL;
  int least = length < 4 ? 2 : length < 9 ? 3 : (int)length / 3 + 1; // less than this
  if (length > LONGEST_NAME) return NULL;
  for (int i = 0; i < TABLE_SIZE; i++) {
    const int d = distance(name, length, table[i].name, strlen(table[i].name));
    if (d >= least) continue;
    nearest = &table[i];
    least = d;
  }
  return nearest;
}

// `argument` is no option. It may be one with a letter wrong, or without its two dashes.
static bool fail_unknown(const char *argument, error *e) {
  const char *name = argument + strspn(argument, "-");
  const size_t length = strcspn(name, "=");
  const option *meant = nearest_option(name, length);
  if (!meant)
    return fail(e, "unknown option %s; --help lists them", quote(argument, strlen(argument)).text);
  return fail(e, "unknown option %s; did you mean --%s?",
              quote(argument, (size_t)(name - argument) + length).text, meant->name);
}

static bool fail_impossible(const option *p, const char *value, error *e) {
  char possible[128];
  option_print_possible(p, possible, sizeof possible);
  return fail(e, "--%s %s: not possible; %s is", p->name, quote(value, strlen(value)).text,
              possible);
}

// -- The command line -------------------------------------------------------------------------------

// "seed" is what the recipe was called once. Of two presets on one command line the later one holds.
static bool apply_preset(const char *name, options *o) {
  const bool quick = !strcmp(name, "quick");
  if (!quick && strcmp(name, "recipe") && strcmp(name, "seed")) return false;
  o->width = quick ? 16 : recipe.width;
  o->epochs = quick ? 4 : recipe.epochs;
  o->milestone_count = quick ? -1 : recipe.milestone_count;
  return true;
}

// Has somebody forgotten a value? Then what stands in its place may be the next option.
static bool is_option(const char *argument) {
  return !strncmp(argument, "--", 2) && find_option(argument + 2, strlen(argument + 2));
}

// Reads "--name VALUE", "--name=VALUE" or "--name", which begin at argv[*i], and leaves *i at the last
// argument that belongs to them. The value of a flag is "".
static bool read_argument(int argc, char **argv, int *i, const option **p, const char **value,
                          error *e) {
  const char *argument = argv[*i], *equals = strchr(argument, '=');
  if (!strcmp(argument, "-h")) argument = "--help";
  const size_t length = equals ? (size_t)(equals - argument) : strlen(argument);
  *p = strncmp(argument, "--", 2) ? NULL : find_option(argument + 2, length - 2);
  if (!*p) return fail_unknown(argument, e);
  *value = "";
  if ((*p)->kind == FLAG)
    return !equals || fail(e, "--%s takes no value: leave %s away", (*p)->name,
                           quote(equals, strlen(equals)).text);
  if (equals)
    *value = equals + 1;
  else if (*i + 1 < argc)
    *value = argv[++*i];
  if (!equals && is_option(*value))
    return fail(e, "--%s needs a value, %s, and %s is an option; --%s=%s would take it for one",
                (*p)->name, (*p)->value, *value, (*p)->name, *value);
  if (**value) return true;
  return fail(e, "--%s needs a value, %s; --help says more", (*p)->name, (*p)->value);
}

// One pass over the arguments; the first looks only at --preset, the second at all others.
static bool parse_arguments(int argc, char **argv, bool presets, options *o, error *e) {
  for (int i = 1; i < argc; i++) {
    const option *p = NULL;
    const char *value = NULL;
    if (!read_argument(argc, argv, &i, &p, &value, e)) return false;
    if ((p->kind == PRESET) != presets) continue;
    o->given |= (uint64_t)1 << (p - table);
    if (p->kind == PRESET ? !apply_preset(value, o) : !option_parse(p, value, o))
      return fail_impossible(p, value, e);
  }
  return true;
}

// Options that would be left aside in silence: of `names`, the first that is on the command line.
static bool check_without(const options *o, const char *what, const char *const *names, error *e) {
  for (; *names; names++)
    if (options_given(o, *names)) return fail(e, "%s: leave --%s away", what, *names);
  return true;
}

static bool check(const options *o, error *e) {
  static const char *const of_a_run[] = {
      "resume",   "init",         "trace",      "checkpoint", "keep-every",  "epochs", "lr",
      "momentum", "weight-decay", "milestones", "gamma",      "mixup-alpha", NULL};
  static const char *const of_files[] = {"eval", "init",       "resume",     "log", "trace",
                                         "bins", "checkpoint", "keep-every", NULL};
  if (o->plan && !check_without(o, "--plan only prints the network", of_files, e)) return false;
  if (o->eval[0] && !check_without(o, "--eval only tests the weights of its file", of_a_run, e))
    return false;
  if (o->eval_train && !o->eval[0])
    return fail(e, "--eval-train needs --eval FILE: it says on which images to test that file");
  if (o->bins[0] && !o->eval[0])
    return fail(e,
                "--bins needs --eval FILE: it writes what the test of that file's weights gives");
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

// A line of the help: the option, and what it does in lines that end by column 80.
static void print_option(const option *p, FILE *out) {
  enum { INDENT = 26, ROOM = 80 - INDENT };
  char left[64];
  snprintf(left, sizeof left, "--%s %s", p->name, p->value);
  fprintf(out, "  %-*s", INDENT - 2, left);
  const char *rest = p->help;
  while (strlen(rest) > ROOM) {
    int cut = ROOM;
    while (rest[cut] != ' ') cut--; // no word of the table is as long as that
    fprintf(out, "%.*s\n%*s", cut, rest, INDENT, "");
    rest += cut + 1;
  }
  fprintf(out, "%s\n", rest);
}

void options_print_help(FILE *out) {
  static const char *const heading[] = {[THE_RUN] = "The run",
                                        [THE_RECIPE] = "The recipe",
                                        [FILES] = "Files",
                                        [INSIDE] = "Looking inside"};
  fprintf(out, "train - ResNet-18 on CIFAR-10 with mixup and label smoothing\n\n"
               "A value is written --name VALUE or --name=VALUE; [brackets] hold the default.\n");
  for (int i = 0; i < TABLE_SIZE; i++) {
    if (i == 0 || table[i].group != table[i - 1].group)
      fprintf(out, "\n%s\n", heading[table[i].group]);
    print_option(&table[i], out);
  }
  fprintf(out, "\nA run that is interrupted (Ctrl-C) saves itself; the same command with --resume\n"
               "goes on at the same step. A second Ctrl-C ends it at once: what came after its\n"
               "last save is then lost.\n");
}

// -- Settings in a checkpoint -------------------------------------------------------------------------

int options_to_metadata(const options *o, metadata *settings) {
  int count = 0;
  for (int i = 0; i < TABLE_SIZE; i++) {
    if (table[i].role == PROCESS) continue;
    if (count == SAVED_OPTIONS) abort(); // the table has grown, and options.h does not know
    metadata *m = &settings[count++];
    snprintf(m->key, sizeof m->key, "%s", table[i].name);
    option_print(&table[i], o, m->value, sizeof m->value);
  }
  return count;
}

// Which options a preset sets. They say what was meant, as one that is given does, but the run keeps
// its own, unless that cannot be.
static bool preset_sets(const options *o, const option *p) {
  return options_given(o, "preset") &&
         (p->offset == offsetof(options, width) || p->offset == offsetof(options, epochs) ||
          p->offset == offsetof(options, milestones));
}

bool options_from_metadata(options *o, const safetensors *resume, FILE *out, error *e) {
  for (int i = 0; i < TABLE_SIZE; i++) {
    const option *p = &table[i];
    char now[METADATA_VALUE];
    if (p->role == PROCESS) continue;
    const char *saved = safetensors_value(resume, p->name);
    if (!saved) return fail(e, "the resume file does not say --%s; it is damaged", p->name);
    option_print(p, o, now, sizeof now);
    const bool given = o->given >> i & 1, preset = !given && preset_sets(o, p);
    const bool differs = (given || preset) && strcmp(now, saved);
    if (differs && p->role == FIXED)
      return fail(e, "%s--%s %s: the run was begun with %s, which cannot change in its middle",
                  preset ? "--preset sets " : "", p->name, now, quote(saved, strlen(saved)).text);
    error line = {
        0}; // not an error, but on one line and escaped as one: the file may hold anything
    if (differs && given)
      fail(&line, "--%s %s from here on; the run was begun with %s", p->name, now,
           quote(saved, strlen(saved)).text);
    if (differs && preset)
      fail(&line, "--%s %s, with which the run was begun, stays; this command line would set %s",
           p->name, quote(saved, strlen(saved)).text, now);
    if (*line.text) fprintf(out, "%s\n", line.text);
    if (!given && !option_parse(p, saved, o))
      return fail(e, "the resume file says --%s %s, which is not possible; it is damaged", p->name,
                  quote(saved, strlen(saved)).text);
  }
  return true; // check() asks about the command line alone
}
