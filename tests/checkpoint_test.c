// tests/checkpoint_test.c - that a checkpoint gives back what was saved, in PyTorch's names and layout; and
// that nothing but a checkpoint of this network is loaded, whatever somebody may hand in. What
// becomes of a checkpoint when a save is interrupted is crash_test.c's matter, and what becomes of a
// file that is no safetensors file at all, safetensors_test.c's.
//
//     make build/gcc/tests/checkpoint_test && build/gcc/tests/checkpoint_test
#define _POSIX_C_SOURCE 200809L
#include "precisions.h"
#include "states.h"

// -- What is in the files -----------------------------------------------------------------------------

static void test_round_trip(void) {
  error e = {""};
  safetensors resume;
  check(save(&a, &e), "a state is saved %s", e.text);
  spoil(&victim);
  check(checkpoint_load(&victim, scratch_path(WEIGHTS), NULL, &e) && same_weights(&victim, &a),
        "weights, statistics and the counter come back to the bit %s", e.text);
  check(refreshed == 1, "and the device's rounded copies are made again");
  check(all_spoiled(victim.parameters.momentum, victim.parameters.count * sizeof(real)),
        "momentum stays as it was");
  check(state_found(&e) == 'a' && refreshed == 2, "resumed: momentum comes back too");
  if (!check(checkpoint_read_resume(scratch_directory, &resume, &e), "the metadata %s", e.text))
    return;
  check(resume.metadata_count == 3 && !strcmp(safetensors_value(&resume, "lr"), "0.1"),
        "is what was given, and the weights' fingerprint");
  safetensors_free(&resume);
}

typedef struct {
  const char *name, *dtype;
  int rank, shape[4];
} expected_tensor;

// As PyTorch prints {k: v.shape for k, v in net.state_dict().items()} for width 8, in part.
static const expected_tensor expected[] = {
    {"conv1.weight", "F32", 4, {8, 3, 3, 3}},
    {"bn1.weight", "F32", 1, {8}},
    {"bn1.running_mean", "F32", 1, {8}},
    {"bn1.num_batches_tracked", "I64", 0, {0}},
    {"layer1.0.conv1.weight", "F32", 4, {8, 8, 3, 3}},
    {"layer1.1.bn2.bias", "F32", 1, {8}},
    {"layer2.0.conv1.weight", "F32", 4, {16, 8, 3, 3}},
    {"layer2.0.shortcut.0.weight", "F32", 4, {16, 8, 1, 1}},
    {"layer2.0.shortcut.1.running_var", "F32", 1, {16}},
    {"layer2.0.shortcut.1.num_batches_tracked", "I64", 0, {0}},
    {"layer3.1.conv2.weight", "F32", 4, {32, 32, 3, 3}},
    {"layer4.0.shortcut.0.weight", "F32", 4, {64, 32, 1, 1}},
    {"layer4.1.bn2.running_var", "F32", 1, {64}},
    {"linear.weight", "F32", 2, {10, 64}},
    {"linear.bias", "F32", 1, {10}},
};

static bool matches(const tensor *t, const expected_tensor *wanted) {
  bool same = t && t->rank == wanted->rank && !strcmp(t->dtype, wanted->dtype);
  for (int i = 0; same && i < wanted->rank; i++) same = t->shape[i] == wanted->shape[i];
  return same;
}

// Is w[k][r][s][c] in memory the file's [k][c][r][s]?
static bool is_transposed(const parameter *p, const real *memory, const tensor *t) {
  const int *d = p->dims;
  const real *w = memory + p->offset;
  for (int k = 0; k < d[0]; k++)
    for (int r = 0; r < d[1]; r++)
      for (int s = 0; s < d[2]; s++)
        for (int c = 0; c < d[3]; c++, w++) {
          const size_t at = ((size_t)(k * d[3] + c) * d[1] + r) * d[2] + s;
          if (memcmp(t->data + at * sizeof(float), w, sizeof *w)) return false;
        }
  return true;
}

static void test_layout(void) {
  safetensors weights, resume;
  error e = {""};
  int wrong = 0;
  if (!check(safetensors_read(scratch_path(WEIGHTS), &weights, &e) &&
                 safetensors_read(scratch_path(RESUME), &resume, &e),
             "both files are safetensors files %s", e.text))
    return;
  for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
    wrong += !matches(safetensors_find(&weights, expected[i].name), &expected[i]);
  check(wrong == 0, "names, dtypes and shapes are PyTorch's (%d wrong)", wrong);
  check(weights.tensor_count == TENSORS && resume.tensor_count == PARAMETERS,
        "%d tensors, and a momentum for each of %d parameters", TENSORS, PARAMETERS);
  check(!strcmp(safetensors_value(&weights, "format"), "pt"), "\"format\" is \"pt\"");
  for (int i = 0; i < PARAMETERS; i++) {
    const parameter *p = &a.parameter_list[i];
    char name[60];
    snprintf(name, sizeof name, "momentum.%s", p->name);
    const tensor *w = safetensors_find(&weights, p->name), *v = safetensors_find(&resume, name);
    if (!w || !v || w->bytes != p->count * sizeof(float) || v->bytes != w->bytes)
      wrong++;
    else if (p->rank == 4) // the others lie in memory as they do in the file
      wrong +=
          !is_transposed(p, a.parameters.weight, w) || !is_transposed(p, a.parameters.momentum, v);
    else
      wrong += memcmp(w->data, a.parameters.weight + p->offset, w->bytes) != 0;
  }
  check(wrong == 0, "w[k][r][s][c] stands at [k][c][r][s] (%d tensors wrong)", wrong);
  safetensors_free(&weights);
  safetensors_free(&resume);
}

// Another program's way to write the same: tensors and keys in another order, metadata between
// them, spaces everywhere.
static void test_other_order(void) {
  safetensors s;
  error e = {""};
  char *header, name[] = "other.safetensors";
  size_t length, offset = 0;
  if (!safetensors_read(scratch_path(WEIGHTS), &s, &e)) return (void)check(false, "%s", e.text);
  FILE *file = fopen(scratch_path(name), "wb"), *out = open_memstream(&header, &length);
  fprintf(out, " {\n");
  for (int i = 0; i < s.tensor_count; i++) {
    const int j = i * 7 % s.tensor_count; // 7 has no divisor in common with 122
    const tensor *t = &s.tensors[j];
    if (i == 50) fprintf(out, "\t\"__metadata__\" : { \"by\" : \"another program\" } ,\r\n");
    fprintf(out, "\"%s\" : { \"data_offsets\" : [ %zu , %zu ] , \"shape\" : [", t->name, offset,
            offset + t->bytes);
    for (int k = 0; k < t->rank; k++) fprintf(out, "%s %d", k ? " ," : "", (int)t->shape[k]);
    fprintf(out, " ] , \"dtype\":\"%s\" }%s\n", t->dtype, i + 1 < s.tensor_count ? "," : "} ");
    offset += t->bytes;
  }
  fclose(out);
  for (int i = 0; i < 8; i++) fputc((int)(length >> (8 * i) & 255), file);
  fwrite(header, 1, length, file);
  for (int i = 0; i < s.tensor_count; i++) {
    const tensor *t = &s.tensors[i * 7 % s.tensor_count];
    fwrite(t->data, 1, t->bytes, file);
  }
  fclose(file);
  free(header);
  safetensors_free(&s);
  spoil(&victim);
  check(checkpoint_load(&victim, scratch_path(name), NULL, &e) && same_weights(&victim, &a),
        "tensors and keys in another order, metadata between, spaces: the same %s", e.text);
}

// -- Other precisions, and what else a file may hold ---------------------------------------------------

static void test_precisions(const safetensors *s) {
  static const struct {
    const char *dtype;
    size_t bytes;
    int rest;
  } kinds[] = {{"F16", 2, 0}, {"BF16", 2, 7}, {"F64", 8, 1}};
  for (int i = 0; i < 3; i++) {
    char said[400] = "", line[100];
    error e = {""};
    FILE *out = fmemopen(said, sizeof said, "w");
    write_precision(s, kinds[i].dtype, kinds[i].bytes, kinds[i].rest);
    spoil(&victim);
    const bool ok = checkpoint_load(&victim, scratch_path(bad), out, &e);
    fclose(out);
    check(ok && has_numbers(&victim, kinds[i].dtype) && victim.batches_tracked == a.batches_tracked,
          "weights of %s are converted, number by number %s", kinds[i].dtype, e.text);
    snprintf(line, sizeof line, ": 102 tensors converted from %s to F32\n", kinds[i].dtype);
    check(strstr(said, line), "and a line says so");
    snprintf(line, sizeof line, "left aside, because this network does not have them: %d of",
             kinds[i].rest);
    check((strstr(said, line) != NULL) == (kinds[i].rest > 0), "%d others are left aside",
          kinds[i].rest);
  }
}

// -- What is not loaded --------------------------------------------------------------------------------

// checkpoint_load refuses the file and touches neither the network nor the file.
static void expect_load_refused(const char *what, const char *name, const char *phrase) {
  const uint64_t before = fingerprint_of(name);
  error e = {""};
  spoil(&victim);
  check_refused(checkpoint_load(&victim, scratch_path(name), NULL, &e), &e, what,
                scratch_path(name), phrase);
  if (!is_spoiled(&victim) || fingerprint_of(name) != before)
    check(false, "%s: the network or the file changed", what);
}

// A checkpoint of which one tensor is something else.
typedef struct {
  const char *what, *tensor;
  const char *name, *dtype; // what it is instead
  int rank, shape[4];
  size_t bytes;
  const char *phrase;
} change;

static const change changes[] = {
    {"whole numbers", "conv1.weight", "conv1.weight", "I32", 4, {8, 3, 3, 3}, 864, "dtype I32"},
    {"eight bits", "linear.bias", "linear.bias", "F8_E4M3", 1, {10}, 10, "F8_E4M3, expected F32"},
    {"complex numbers", "linear.bias", "linear.bias", "C64", 1, {10}, 80, "C64, expected F32"},
    {"a float counter",
     "bn1.num_batches_tracked",
     "bn1.num_batches_tracked",
     "F32",
     0,
     {0},
     4,
     "dtype F32, expected I64"},
    {"our layout",
     "layer2.0.conv1.weight",
     "layer2.0.conv1.weight",
     "F32",
     4,
     {16, 3, 3, 8},
     4608,
     "has shape ["},
    {"a filter too few",
     "conv1.weight",
     "conv1.weight",
     "F32",
     4,
     {7, 3, 3, 3},
     756,
     "has shape [7, 3, 3, 3], expected [8, 3, 3, 3]; does --width agree?"},
    {"no filters", "conv1.weight", "conv1.weight", "F32", 4, {0, 3, 3, 3}, 0, "has shape ["},
    {"a 1x1 kernel",
     "conv1.weight",
     "conv1.weight",
     "F32",
     4,
     {8, 3, 1, 1},
     96,
     "has shape [8, 3, 1, 1], expected [8, 3, 3, 3]"},
    {"a flat weight", "conv1.weight", "conv1.weight", "F32", 1, {216}, 864, "has shape ["},
    {"a dimension of 1 too many",
     "bn1.bias",
     "bn1.bias",
     "F32",
     2,
     {8, 1},
     32,
     "has shape [8, 1], expected [8]"},
    {"a dimension of 0 too many", "bn1.bias", "bn1.bias", "F32", 2, {8, 0}, 0, "has shape ["},
    {"no counter",
     "bn1.num_batches_tracked",
     "bn1.num_batches_tracked",
     "I64",
     1,
     {0},
     0,
     "has shape ["},
    {"a counter in brackets",
     "bn1.num_batches_tracked",
     "bn1.num_batches_tracked",
     "I64",
     1,
     {1},
     8,
     "has shape ["},
    {"a statistic of another width",
     "bn1.running_var",
     "bn1.running_var",
     "F32",
     1,
     {16},
     64,
     "does --width agree?"},
    {"a prefix, as DataParallel writes",
     "conv1.weight",
     "module.conv1.weight",
     "F32",
     4,
     {8, 3, 3, 3},
     864,
     "has no tensor conv1.weight"},
    {"a statistic by another name",
     "layer4.1.bn2.running_var",
     "layer4.1.bn3.running_var",
     "F32",
     1,
     {64},
     256,
     "has no tensor layer4.1.bn2.running_var"},
    {"a counter by another name",
     "layer4.1.bn2.num_batches_tracked",
     "epoch",
     "I64",
     0,
     {0},
     8,
     "has no tensor layer4.1.bn2.num_batches_tracked"},
};

static void test_changed_tensors(const safetensors *s) {
  static const uint8_t zeros[8192];
  tensor list[TENSORS];
  for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
    const change *c = &changes[i];
    memcpy(list, s->tensors, sizeof list);
    for (int j = 0; j < TENSORS; j++) {
      if (strcmp(list[j].name, c->tensor)) continue;
      list[j] = (tensor){c->name, c->dtype, .rank = c->rank, .bytes = c->bytes, .data = zeros};
      for (int k = 0; k < c->rank; k++) list[j].shape[k] = c->shape[k];
    }
    write_bad(list, TENSORS);
    expect_load_refused(c->what, bad, c->phrase);
  }
}

static void test_counters(const safetensors *s) {
  static const int64_t counts[] = {-1, ((int64_t)1 << 53) + 1, INT64_MAX};
  tensor list[TENSORS];
  for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
    memcpy(list, s->tensors, sizeof list);
    for (int j = 0; j < TENSORS; j++)
      if (!strcmp(list[j].name, "layer4.1.bn2.num_batches_tracked"))
        list[j].data = (const uint8_t *)&counts[i];
    write_bad(list, TENSORS);
    expect_load_refused("a counter that is no count", bad, "is no count of batches");
  }
}

static void test_missing_and_extra(const safetensors *s) {
  tensor list[TENSORS + 1];
  memcpy(list, s->tensors, TENSORS * sizeof *list);
  list[TENSORS] = (tensor){.name = "fc.bias", .dtype = "F32", .data = s->file, .bytes = 4};
  write_bad(list, TENSORS + 1);
  expect_load_refused("a tensor too many", bad, "has 123 tensors, expected 122");
  list[TENSORS].dtype = "BF16", list[TENSORS].bytes = 2;
  write_bad(list, TENSORS + 1);
  expect_load_refused("a tensor of half precision too many", bad, "has 123 tensors, expected 122");
  for (int i = 0; i < 4; i++) { // lies at the place of each in turn: the last one moves there
    const int missing = (int)random_below(&numbers, TENSORS);
    char phrase[2 * TENSOR_NAME];
    memcpy(list, s->tensors, TENSORS * sizeof *list);
    snprintf(phrase, sizeof phrase, "has no tensor %s,", list[missing].name);
    list[missing] = list[TENSORS - 1];
    if (missing == TENSORS - 1) continue;
    write_bad(list, TENSORS - 1);
    expect_load_refused("a tensor too few", bad, phrase);
  }
  write_bad(list, 0);
  expect_load_refused("no tensors", bad, "has no tensor conv1.weight");
}

static void test_damaged_files(const safetensors *s) {
  uint8_t *bytes = allocate(s->file_bytes + 1);
  memcpy(bytes, s->file, s->file_bytes);
  const struct {
    const char *what;
    size_t size;
  } cuts[] = {{"an empty checkpoint", 0},
              {"a checkpoint cut in its header", 1000},
              {"a checkpoint cut in its data", s->file_bytes / 2},
              {"a checkpoint a byte short", s->file_bytes - 1},
              {"a checkpoint with a byte too many", s->file_bytes + 1}};
  for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
    scratch_write(scratch_path(bad), bytes, cuts[i].size);
    expect_load_refused(cuts[i].what, bad, "damaged");
  }
  free(bytes);
  remove(scratch_path(bad));
  expect_load_refused("a checkpoint that is not there", bad, "No such file");
  expect_load_refused("a resume file as weights", RESUME, "has no tensor conv1.weight");
}

// A checkpoint of a network of width 16, alone in the directory.
static void test_other_width(void) {
  network wide;
  error e = {""};
  make_state(&wide, 16);
  check(save(&wide, &e), "a network of width 16 is saved %s", e.text);
  expect_load_refused("weights of another width", WEIGHTS,
                      "expected [8, 3, 3, 3]; does --width agree?");
  spoil(&victim);
  check_refused(state_found(&e) != '!', &e, "a resume of another width", scratch_path(RESUME),
                "does --width agree?");
  check(is_spoiled(&victim), "and the network is as it was");
  network_free(&wide);
}

static void test_loading(void) {
  safetensors s;
  error e = {""};
  if (!check(safetensors_read(scratch_path(WEIGHTS), &s, &e), "the checkpoint %s", e.text)) return;
  test_precisions(&s);
  test_changed_tensors(&s);
  test_counters(&s);
  test_missing_and_extra(&s);
  test_damaged_files(&s);
  safetensors_free(&s);
}

// -- What is not resumed -------------------------------------------------------------------------------

static void expect_resume_refused(const char *what, const char *name, const char *phrase) {
  const uint64_t weights = fingerprint_of(WEIGHTS), resume = fingerprint_of(RESUME);
  error e;
  safetensors s = {0};
  spoil(&victim);
  const bool ok = checkpoint_read_resume(scratch_directory, &s, &e) &&
                  checkpoint_resume(&victim, scratch_directory, &s, &e);
  check_refused(ok, &e, what, scratch_path(name), phrase);
  safetensors_free(&s);
  if (!is_spoiled(&victim) || fingerprint_of(WEIGHTS) != weights ||
      fingerprint_of(RESUME) != resume)
    check(false, "%s: the network or a file changed", what);
}

// The resume file of state a with `metadata_count` of its three metadata, and with another name and dtype
// for the momentum of the stem.
static void write_resume(const char *name, const char *dtype, int metadata_count) {
  safetensors s;
  error e;
  metadata m[3];
  if (!save(&a, &e) || !safetensors_read(scratch_path(RESUME), &s, &e)) return;
  for (int i = 0; i < 3; i++) { // sorted by key: the weights' fingerprint is the last
    snprintf(m[i].key, sizeof m[i].key, "%s", s.metadata[i].key);
    snprintf(m[i].value, sizeof m[i].value, "%s", s.metadata[i].value);
  }
  for (int i = 0; i < s.tensor_count; i++) {
    tensor *t = &s.tensors[i];
    if (strcmp(t->name, "momentum.conv1.weight")) continue;
    t->name = name;
    if (!strcmp(dtype, "F16")) t->bytes /= 2;
    t->dtype = dtype;
  }
  safetensors_write(scratch_path(RESUME), s.tensors, s.tensor_count, m, metadata_count, NULL, &e);
  safetensors_free(&s);
}

static void test_resuming(void) {
  error e = {""};
  scratch_empty(scratch_directory);
  expect_resume_refused("a directory without a checkpoint", RESUME, "nothing to resume");
  check(save(&a, &e) && rename(scratch_path(WEIGHTS), scratch_path("weights of a")) == 0 &&
            save(&b, &e) && rename(scratch_path("weights of a"), scratch_path(WEIGHTS)) == 0,
        "weights of a, resume file of b %s", e.text);
  expect_resume_refused("weights of another time", WEIGHTS, "not the weights");
  remove(scratch_path(WEIGHTS));
  expect_resume_refused("a resume file without weights", WEIGHTS, "No such file");
  write_resume("momentum.conv1.weight", "F32", 2);
  expect_resume_refused("a resume file that names no weights", RESUME, "not a resume file");
  write_resume("momentum.conv1", "F32", 3);
  expect_resume_refused("a momentum by another name", RESUME,
                        "has no tensor momentum.conv1.weight");
  write_resume("momentum.conv1.weight", "F16", 3);
  expect_resume_refused("a momentum of half precision", RESUME, "dtype F16, expected F32");
  check(save(&a, &e) && truncate(scratch_path(RESUME), 5000) == 0, "a resume file cut %s", e.text);
  expect_resume_refused("a resume file cut short", RESUME, "damaged");
  check(save(&a, &e) && truncate(scratch_path(WEIGHTS), 5000) == 0, "weights cut %s", e.text);
  expect_resume_refused("weights cut short", WEIGHTS, "damaged");
}

// -- Out of a new run's way ------------------------------------------------------------------------------

// Sets aside a checkpoint of `n`, and finds it under names ending in .`number`.
static void expect_aside(const network *n, int number, const char *what) {
  char weights[100], resume[100];
  int given = -1;
  error e = {""};
  snprintf(weights, sizeof weights, "%s.%d", WEIGHTS, number);
  snprintf(resume, sizeof resume, "%s.%d", RESUME, number);
  bool ok = save(n, &e);
  const uint64_t of_weights = fingerprint_of(WEIGHTS), of_resume = fingerprint_of(RESUME);
  ok = ok && checkpoint_set_aside(scratch_directory, &given, &e);
  check(ok && given == number && !file_exists(scratch_path(WEIGHTS)) &&
            !file_exists(scratch_path(RESUME)) && fingerprint_of(weights) == of_weights &&
            fingerprint_of(resume) == of_resume,
        "set aside: %s: as .%d %s", what, given, e.text);
}

static void test_set_aside(void) {
  error e = {""};
  int number = -1;
  scratch_empty(scratch_directory);
  check(checkpoint_set_aside(scratch_directory, &number, &e) && number == 0,
        "set aside: nothing, where there is nothing");
  expect_aside(&a, 1, "the first");
  expect_aside(&b, 2, "the second");
  scratch_write(scratch_path(RESUME ".3"), "", 0);
  expect_aside(&a, 4, "past a number that only one name has");
  remove(scratch_path(WEIGHTS ".1"));
  expect_aside(&b, 5, "past a number that the other has");
  check(checkpoint_set_aside(scratch_directory, &number, &e) && number == 0,
        "set aside: nothing, once all is away");
}

// The steps that --keep-every kept go with the last state; what has only a name like theirs stays.
static void test_kept_steps_set_aside(void) {
  static const char *const moved[] = {WEIGHTS, RESUME, KEPT_NAME "000002.safetensors",
                                      KEPT_NAME "000002.resume.safetensors",
                                      KEPT_NAME "1234567.safetensors"};
  static const char *const stay[] = {KEPT_NAME "000002.safetensors.1", KEPT_NAME "mine.safetensors",
                                     KEPT_NAME "000002", "notes.safetensors"};
  enum { MOVED = sizeof moved / sizeof *moved, STAY = sizeof stay / sizeof *stay };
  error e = {""};
  int number = -1, right = 0;
  scratch_empty(scratch_directory);
  for (int i = 0; i < MOVED; i++) scratch_write(scratch_path(moved[i]), &i, sizeof i);
  for (int i = 0; i < STAY; i++) scratch_write(scratch_path(stay[i]), &i, sizeof i);
  const bool ok = checkpoint_set_aside(scratch_directory, &number, &e);
  for (int i = 0; i < MOVED; i++) {
    char aside[100];
    snprintf(aside, sizeof aside, "%s.2", moved[i]); // .1 is taken, by one of them
    right += !file_exists(scratch_path(moved[i])) && file_exists(scratch_path(aside));
  }
  for (int i = 0; i < STAY; i++) right += file_exists(scratch_path(stay[i]));
  check(ok && number == 2 && right == MOVED + STAY, "set aside: kept steps too, as .%d %s", number,
        e.text);
}

int main(void) {
  make_states("checkpoint_test");
  scratch_make();
  test_round_trip();
  test_layout();
  test_other_order();
  test_loading();
  test_other_width();
  test_resuming();
  test_set_aside();
  test_kept_steps_set_aside();
  scratch_remove();
  free_states();
  return check_summary();
}
