// run/checkpoint.c - the network and the optimiser in and out of safetensors files. checkpoint.h says
// which files there are and why nothing saved is lost.
#include "checkpoint.h"

#include "files.h"
#include <errno.h>
#include <string.h>

enum { TENSORS = PARAMETERS + STATISTICS + UNITS };

// -- Layouts -------------------------------------------------------------------------------------

// Memory order [K][R][S][C] to PyTorch's [K][C][R][S], or back.
static void reorder(const parameter *t, real *memory, float *file, bool to_file) {
  const size_t filters = t->dims[0], taps = (size_t)t->dims[1] * t->dims[2], channels = t->dims[3];
  if (t->rank < 4) {
    for (size_t i = 0; i < t->count; i++)
      if (to_file)
        file[i] = (float)memory[i];
      else
        memory[i] = file[i];
    return;
  }
  for (size_t k = 0; k < filters; k++)
    for (size_t tap = 0; tap < taps; tap++)
      for (size_t c = 0; c < channels; c++) {
        real *inside = &memory[(k * taps + tap) * channels + c];
        float *outside = &file[(k * channels + c) * taps + tap];
        if (to_file)
          *outside = (float)*inside;
        else
          *inside = *outside;
      }
}

// The description of a parameter's tensor in a file; its shape there is PyTorch's.
static tensor describe_tensor(const parameter *t, const char *prefix, const float *data) {
  tensor result = {.dtype = "F32",
                   .rank = t->rank,
                   .bytes = t->count * sizeof(float),
                   .data = (const uint8_t *)data};
  snprintf(result.name, sizeof result.name, "%s%s", prefix, t->name);
  const int order[4] = {0, t->rank == 4 ? 3 : 1, 1, 2}; // [K][R][S][C] -> [K][C][R][S]
  for (int i = 0; i < t->rank; i++) result.shape[i] = t->dims[order[i]];
  return result;
}

static void counter_name(char *name, size_t room, const parameter *running_mean) {
  const int module = (int)(strlen(running_mean->name) - strlen(".running_mean"));
  snprintf(name, room, "%.*s.num_batches_tracked", module, running_mean->name);
}

// -- Saving ------------------------------------------------------------------------------------------

// Device arrays to the file's order: `list` tensors from `memory`, appended to tensors and floats.
static void append(const device *d, const parameter *list, int count, size_t size,
                   const real *memory, const char *prefix, tensor *tensors, float *floats) {
  real *host = allocate(size * sizeof(real));
  d->download(host, memory, size * sizeof(real));
  for (int i = 0; i < count; i++) {
    reorder(&list[i], host + list[i].offset, floats + list[i].offset, true);
    tensors[i] = describe_tensor(&list[i], prefix, floats + list[i].offset);
  }
  free(host);
}

static bool write_weights(const network *n, const char *path, uint64_t *file_fingerprint,
                          error *e) {
  const parameters *p = &n->parameters;
  tensor *tensors = allocate(TENSORS * sizeof *tensors);
  float *floats = allocate((p->count + n->statistics_size) * sizeof *floats);
  append(n->device, p->list, PARAMETERS, p->count, p->weight, "", tensors, floats);
  append(n->device, n->statistics_list, STATISTICS, n->statistics_size, n->statistics, "",
         tensors + PARAMETERS, floats + p->count);
  for (int i = 0; i < UNITS; i++) {
    tensor *counter = &tensors[PARAMETERS + STATISTICS + i];
    *counter = (tensor){.dtype = "I64",
                        .bytes = sizeof n->batches_tracked,
                        .data = (const uint8_t *)&n->batches_tracked};
    counter_name(counter->name, sizeof counter->name, &n->statistics_list[2 * i]);
  }
  const metadata format = {"format", "pt"}; // what PyTorch's own files say
  const bool ok = safetensors_write(path, tensors, TENSORS, &format, 1, file_fingerprint, e);
  free(floats);
  free(tensors);
  return ok;
}

static bool write_resume(const network *n, const char *path, uint64_t weights_fingerprint,
                         const metadata *state, int state_count, error *e) {
  const parameters *p = &n->parameters;
  tensor *tensors = allocate(PARAMETERS * sizeof *tensors);
  float *floats = allocate(p->count * sizeof *floats);
  metadata *all = allocate((state_count + 1) * sizeof *all);
  append(n->device, p->list, PARAMETERS, p->count, p->momentum, "momentum.", tensors, floats);
  memcpy(all, state, state_count * sizeof *all);
  snprintf(all[state_count].key, sizeof all->key, "weights");
  snprintf(all[state_count].value, sizeof all->value, "%016llx",
           (unsigned long long)weights_fingerprint);
  const bool ok = safetensors_write(path, tensors, PARAMETERS, all, state_count + 1, NULL, e);
  free(all);
  free(floats);
  free(tensors);
  return ok;
}

typedef struct {
  char weights[4096], new_weights[4096], resume[4096], new_resume[4096];
} file_names;

static file_names names_in(const char *directory, const char *name) {
  file_names f;
  snprintf(f.weights, sizeof f.weights, "%s/%s.safetensors", directory, name);
  snprintf(f.resume, sizeof f.resume, "%s/%s.resume.safetensors", directory, name);
  snprintf(f.new_weights, sizeof f.new_weights, "%s/%s.safetensors.new", directory, name);
  snprintf(f.new_resume, sizeof f.new_resume, "%s/%s.resume.safetensors.new", directory, name);
  return f;
}

bool checkpoint_save(const network *n, const char *directory, const char *name,
                     const metadata *state, int state_count, error *e) {
  const file_names f = names_in(directory, name);
  uint64_t weights_fingerprint;
  if (!directory_make(directory, e)) return false;
  if (!write_weights(n, f.new_weights, &weights_fingerprint, e)) return false;
  if (!write_resume(n, f.new_resume, weights_fingerprint, state, state_count, e)) {
    remove(f.new_weights);
    return false;
  }
  if (!file_replace(f.new_resume, f.resume, e)) {
    // Had the resume file got its name, it would need the new weights.
    if (remove(f.new_resume) == 0) remove(f.new_weights);
    return false;
  }
  return file_replace(f.new_weights, f.weights, e);
}

// -- Loading ---------------------------------------------------------------------------------------

// Finds the tensor that `wanted` describes; false, with a line, if it is not there as described.
static bool find(const safetensors *s, const char *path, const tensor *wanted, const tensor **found,
                 error *e) {
  *found = safetensors_find(s, wanted->name);
  if (!*found)
    return fail(e, "%s: has no tensor %s, so it is not a checkpoint of this network", path,
                wanted->name);
  const tensor *t = *found;
  if (strcmp(t->dtype, wanted->dtype))
    return fail(e, "%s: %s has dtype %s, expected %s", path, t->name, t->dtype, wanted->dtype);
  bool same = t->rank == wanted->rank;
  for (int i = 0; same && i < t->rank; i++) same = t->shape[i] == wanted->shape[i];
  if (same) return true;
  return fail(e,
              "%s: %s has another shape than here (its first dimension is %lld, expected %lld); "
              "does --width agree?",
              path, t->name, t->rank ? (long long)t->shape[0] : 0,
              wanted->rank ? (long long)wanted->shape[0] : 0);
}

// Tensors of `list` from the file into `host`, which has the device array's order.
static bool extract(const safetensors *s, const char *path, const parameter *list, int count,
                    const char *prefix, real *host, error *e) {
  for (int i = 0; i < count; i++) {
    const tensor *t, wanted = describe_tensor(&list[i], prefix, NULL);
    if (!find(s, path, &wanted, &t, e)) return false;
    float *floats = allocate(t->bytes); // a copy, because the file's bytes may not be aligned
    memcpy(floats, t->data, t->bytes);
    reorder(&list[i], host + list[i].offset, floats, false);
    free(floats);
  }
  return true;
}

static bool extract_counters(const safetensors *s, const char *path, const network *n,
                             int64_t *batches_tracked, error *e) {
  for (int i = 0; i < UNITS; i++) {
    tensor wanted = {.dtype = "I64", .rank = 0};
    const tensor *t;
    counter_name(wanted.name, sizeof wanted.name, &n->statistics_list[2 * i]);
    if (!find(s, path, &wanted, &t, e)) return false;
    memcpy(batches_tracked, t->data, sizeof *batches_tracked); // all norms count the same batches
  }
  return true;
}

// Everything is read and checked before anything in the network changes.
static bool load_weights(network *n, const safetensors *s, const char *path, error *e) {
  parameters *p = &n->parameters;
  real *weights = allocate(p->count * sizeof(real));
  real *statistics = allocate(n->statistics_size * sizeof(real));
  int64_t batches_tracked;
  const bool ok =
      extract(s, path, p->list, PARAMETERS, "", weights, e) &&
      extract(s, path, n->statistics_list, STATISTICS, "", statistics, e) &&
      extract_counters(s, path, n, &batches_tracked, e) &&
      (s->tensor_count == TENSORS ||
       fail(e, "%s: has %d tensors, expected %d, so it is not a checkpoint of this network", path,
            s->tensor_count, TENSORS));
  if (ok) {
    n->device->upload(p->weight, weights, p->count * sizeof(real));
    n->device->upload(n->statistics, statistics, n->statistics_size * sizeof(real));
    n->device->refresh_rounded_weights(p);
    n->batches_tracked = batches_tracked;
  }
  free(weights);
  free(statistics);
  return ok;
}

bool checkpoint_load(network *n, const char *path, error *e) {
  safetensors s;
  if (!safetensors_read(path, &s, e)) return false;
  const bool ok = load_weights(n, &s, path, e);
  safetensors_free(&s);
  return ok;
}

bool checkpoint_read_resume(const char *directory, safetensors *resume, error *e) {
  const file_names f = names_in(directory, CHECKPOINT_NAME);
  if (!file_exists(f.resume) && (errno == ENOENT || errno == ENOTDIR))
    return fail(e, "%s: not there, so there is nothing to resume; leave out --resume to start anew",
                f.resume);
  if (!safetensors_read(f.resume, resume, e)) return false;
  if (safetensors_value(resume, "weights")) return true;
  fail(e, "%s: does not say which weights belong to it, so it is not a resume file", f.resume);
  safetensors_free(resume);
  return false;
}

// Reads `path` if its fingerprint is the one wanted.
static bool read_matching(const char *path, const char *wanted, safetensors *s, error *e) {
  char actual[17];
  if (!safetensors_read(path, s, e)) return false;
  snprintf(actual, sizeof actual, "%016llx",
           (unsigned long long)fingerprint(FINGERPRINT_OF_NOTHING, s->file, s->file_bytes));
  if (!strcmp(actual, wanted)) return true;
  safetensors_free(s);
  return fail(e, "%s: these are not the weights that the resume file beside it was saved with",
              path);
}

// The weights that belong to a resume file. A crash between the two renames of checkpoint_save left
// them as .new: then the second rename is made up for.
static bool read_weights_of(const safetensors *resume, const file_names *f, safetensors *weights,
                            error *e) {
  const char *wanted = safetensors_value(resume, "weights");
  error unused;
  if (read_matching(f->weights, wanted, weights, e)) return true;
  if (!read_matching(f->new_weights, wanted, weights, &unused)) return false;
  if (file_replace(f->new_weights, f->weights, e)) return true;
  safetensors_free(weights);
  return false;
}

bool checkpoint_setting_beside(const char *weights_path, const char *key,
                               char value[METADATA_VALUE]) {
  static const char ending[] = ".safetensors";
  const size_t length = strlen(weights_path), stem = length - strlen(ending);
  char path[4200];
  safetensors resume, weights;
  error unused; // no resume file, or not this one: there is no setting
  if (length <= strlen(ending) || strcmp(weights_path + stem, ending)) return false;
  snprintf(path, sizeof path, "%.*s.resume%s", (int)stem, weights_path, ending);
  if (!file_exists(path) || !safetensors_read(path, &resume, &unused)) return false;
  const char *wanted = safetensors_value(&resume, "weights");
  const char *setting = safetensors_value(&resume, key);
  const bool found = wanted && setting && read_matching(weights_path, wanted, &weights, &unused);
  if (found) {
    snprintf(value, METADATA_VALUE, "%s", setting);
    safetensors_free(&weights);
  }
  safetensors_free(&resume);
  return found;
}

bool checkpoint_resume(network *n, const char *directory, const safetensors *resume, error *e) {
  const file_names f = names_in(directory, CHECKPOINT_NAME);
  parameters *p = &n->parameters;
  safetensors weights;
  if (!read_weights_of(resume, &f, &weights, e)) return false;
  real *momentum = allocate(p->count * sizeof(real));
  const bool ok = extract(resume, f.resume, p->list, PARAMETERS, "momentum.", momentum, e) &&
                  load_weights(n, &weights, f.weights, e);
  if (ok) n->device->upload(p->momentum, momentum, p->count * sizeof(real));
  free(momentum);
  safetensors_free(&weights);
  return ok;
}

bool checkpoint_set_aside(const char *directory, int *number, error *e) {
  const file_names f = names_in(directory, CHECKPOINT_NAME);
  const char *const paths[] = {f.weights, f.resume};
  safetensors resume, weights;
  error unused; // damaged files are moved as they are
  if (checkpoint_read_resume(directory, &resume, &unused)) {
    if (read_weights_of(&resume, &f, &weights, &unused)) safetensors_free(&weights);
    safetensors_free(&resume);
  }
  return files_set_aside(paths, 2, number, e);
}
