// checkpoint_test.c - that a checkpoint gives back what was saved, in PyTorch's names and layout; and
// that nothing but a checkpoint of this network is loaded, whatever somebody may hand in. What
// becomes of a checkpoint when a save is interrupted is crash_test.c's matter, and what becomes of a
// file that is no safetensors file at all, safetensors_test.c's.
//
//     make build/gcc/tests/checkpoint_test && build/gcc/tests/checkpoint_test
#define _POSIX_C_SOURCE 200809L
#include "states.h"

enum { TENSORS = 122 }; // 62 parameters, 40 running statistics, 20 counters

// -- What is in the files -----------------------------------------------------------------------------

static void test_round_trip(void) {
  error e = {""};
  safetensors resume;
  check(save(&a, &e), "a state is saved %s", e.text);
  spoil(&victim);
  check(checkpoint_load(&victim, scratch_path(WEIGHTS), &e) && same_weights(&victim, &a),
        "weights, statistics and the counter come back to the bit %s", e.text);
  check(refreshed == 1, "and the device's compute copies are made again");
  check(all_spoiled(victim.parameters.momentum, victim.parameters.count * sizeof(real)),
        "momentum stays as it was");
  check(state_found(&e) == 'a' && refreshed == 2, "resumed: momentum comes back too");
  if (!check(checkpoint_read_resume(directory, &resume, &e), "the metadata %s", e.text)) return;
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
      wrong += !is_transposed(p, a.parameters.weight, w) ||
               !is_transposed(p, a.parameters.momentum, v);
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
  check(checkpoint_load(&victim, scratch_path(name), &e) && same_weights(&victim, &a),
        "tensors and keys in another order, metadata between, spaces: the same %s", e.text);
}

// -- What is not loaded --------------------------------------------------------------------------------

// checkpoint_load refuses the file and touches neither the network nor the file.
static void expect_load_refused(const char *what, const char *name, const char *phrase) {
  const uint64_t before = fingerprint_of(name);
  error e = {""};
  spoil(&victim);
  check_refused(checkpoint_load(&victim, scratch_path(name), &e), &e, what, scratch_path(name),
                phrase);
  if (!is_spoiled(&victim) || fingerprint_of(name) != before)
    check(false, "%s: the network or the file changed", what);
}

static const char bad[] = "bad.safetensors";

// The checkpoint with one tensor changed; `data` is where its bytes are taken from, if not NULL.
static void expect_tensor_refused(const char *what, const safetensors *s, const char *name,
                                  tensor changed, const char *phrase) {
  tensor list[TENSORS + 1];
  error e;
  memcpy(list, s->tensors, TENSORS * sizeof *list);
  for (int i = 0; i < TENSORS; i++)
    if (!strcmp(list[i].name, name)) list[i] = changed;
  if (check(safetensors_write(scratch_path(bad), list, TENSORS, NULL, 0, NULL, &e), "%s", what))
    expect_load_refused(what, bad, phrase);
}

static void test_changed_tensors(const safetensors *s) {
  static const uint8_t zeros[8 * 8 * 3 * 3 * 3];
  const tensor *stem = safetensors_find(s, "conv1.weight"), *bias = safetensors_find(s, "bn1.bias"),
               *counter = safetensors_find(s, "layer2.0.bn1.num_batches_tracked");
}
