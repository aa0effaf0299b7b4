// tests/states.h - two random states of a network, for the tests of checkpoints, and what they need to see
// that a state came back to the bit.
#ifndef STATES_H
#define STATES_H

#include "../run/checkpoint.h"
#include "../run/files.h"
#include "check.h"
#include "scratch.h"

enum { WIDTH = 8 };

#define WEIGHTS CHECKPOINT_NAME ".safetensors"
#define RESUME CHECKPOINT_NAME ".resume.safetensors"

static random_stream numbers;
static network a, b, victim; // two states to save, and the network that they are loaded into
static device counting;      // the reference device, counting refresh_rounded_weights
static int refreshed;

static inline void count_refresh(const parameters *p) {
  refreshed++;
  reference_device.refresh_rounded_weights(p);
}

// Normal numbers, and a few that a detour through text or arithmetic would not bring back.
static inline void draw(real *values, size_t count) {
  static const real special[] = {-0.0f, 1e-45f, 3.4028235e38f, INFINITY};
  for (size_t i = 0; i < count; i++) values[i] = (real)random_normal(&numbers);
  for (size_t i = 0; i < 4; i++) values[random_below(&numbers, (uint32_t)count)] = special[i];
}

static inline void make_state(network *n, int width) {
  error e;
  if (!network_create(n, &counting, width, 1, &e)) {
    fprintf(stderr, "%s\n", e.text);
    exit(1);
  }
  draw(n->parameters.weight, n->parameters.count);
  draw(n->parameters.momentum, n->parameters.count);
  draw(n->statistics, n->statistics_size);
  n->batches_tracked = (int64_t)random_bits(&numbers) << 16;
}

static inline void make_states(const char *test) {
  numbers = random_open(check_seed(test), RANDOM_TEST, 0, 0);
  counting = reference_device;
  counting.refresh_rounded_weights = count_refresh;
  make_state(&a, WIDTH);
  make_state(&b, WIDTH);
  make_state(&victim, WIDTH);
}

static inline void free_states(void) {
  network_free(&a);
  network_free(&b);
  network_free(&victim);
}

static inline bool same_weights(const network *n, const network *m) {
  return !memcmp(n->parameters.weight, m->parameters.weight, n->parameters.count * sizeof(real)) &&
         !memcmp(n->statistics, m->statistics, n->statistics_size * sizeof(real)) &&
         n->batches_tracked == m->batches_tracked;
}

static inline bool same_momentum(const network *n, const network *m) {
  return !memcmp(n->parameters.momentum, m->parameters.momentum,
                 n->parameters.count * sizeof(real));
}

// Neither state: every byte 0xA5.
static inline void spoil(network *n) {
  memset(n->parameters.weight, 0xA5, n->parameters.count * sizeof(real));
  memset(n->parameters.momentum, 0xA5, n->parameters.count * sizeof(real));
  memset(n->statistics, 0xA5, n->statistics_size * sizeof(real));
  memset(&n->batches_tracked, 0xA5, sizeof n->batches_tracked);
}

static inline bool all_spoiled(const void *bytes, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (((const uint8_t *)bytes)[i] != 0xA5) return false;
  return true;
}

static inline bool is_spoiled(const network *n) {
  return all_spoiled(n->parameters.weight, n->parameters.count * sizeof(real)) &&
         all_spoiled(n->parameters.momentum, n->parameters.count * sizeof(real)) &&
         all_spoiled(n->statistics, n->statistics_size * sizeof(real)) &&
         all_spoiled(&n->batches_tracked, sizeof n->batches_tracked);
}

// Saves a or b, and which of them it is.
static inline bool save_in(const char *directory, const network *n, error *e) {
  const metadata state[] = {{"lr", "0.1"}, {"state", {n == &a ? 'a' : 'b'}}};
  return checkpoint_save(n, directory, CHECKPOINT_NAME, state, 2, e);
}

static inline bool save(const network *n, error *e) {
  return save_in(scratch_directory, n, e);
}

// What a resumed run would find: 'a' or 'b', one of the states to the bit; '-', nothing to resume;
// '!', anything else, with a line in e.
static inline char state_found(error *e) {
  safetensors resume;
  spoil(&victim);
  e->text[0] = 0;
  if (!checkpoint_repair(scratch_directory, e)) return '!';
  if (!file_exists(scratch_path(RESUME))) return '-';
  if (!checkpoint_read_resume(scratch_directory, &resume, e)) return '!';
  const char *state = safetensors_value(&resume, "state");
  const network *wanted = state && *state == 'a' ? &a : &b;
  const bool ok = checkpoint_resume(&victim, scratch_directory, &resume, e) &&
                  ((same_weights(&victim, wanted) && same_momentum(&victim, wanted)) ||
                   fail(e, "a mixture of two states"));
  safetensors_free(&resume);
  if (ok) e->text[0] = 0;
  return !ok ? '!' : wanted == &a ? 'a' : 'b';
}

// Of a file's bytes; 0 where it cannot be read.
static inline uint64_t fingerprint_of(const char *name) {
  size_t size;
  error e;
  uint8_t *bytes = file_read(scratch_path(name), &size, &e);
  const uint64_t result = bytes ? fingerprint(FINGERPRINT_OF_NOTHING, bytes, size) : 0;
  free(bytes);
  return result;
}

#endif
