// run/checkpoint.c - the network and the optimiser in and out of safetensors files. checkpoint.h says
// which files there are and why nothing saved is lost.
#include "checkpoint.h"

#include "files.h"
#include <string.h>

enum { TENSORS = PARAMETERS + STATISTICS + UNITS };
static const int64_t MOST_BATCHES = 1LL << 53; // beyond it, other programs' doubles skip some

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
static tensor describe_tensor(const parameter *t, const char *name, const float *data) {
  tensor result = {.name = name,
                   .dtype = "F32",
                   .rank = t->rank,
                   .bytes = t->count * sizeof(float),
                   .data = (const uint8_t *)data};
  const int order[4] = {0, t->rank == 4 ? 3 : 1, 1, 2}; // [K][R][S][C] -> [K][C][R][S]
  for (int i = 0; i < t->rank; i++) result.shape[i] = t->dims[order[i]];
  return result;
}

static void counter_name(char *name, size_t room, const parameter *running_mean) {
  const int module = (int)(strlen(running_mean->name) - strlen(".running_mean"));
  snprintf(name, room, "%.*s.num_batches_tracked", module, running_mean->name);
}

// -- Precisions ------------------------------------------------------------------------------------

// What a file's weights may be: ours first.
static const char *const precisions[] = {"F32", "F16", "BF16", "F64"};
enum { PRECISIONS = sizeof precisions / sizeof *precisions };

static bool precision_is_known(const char *dtype) {
  for (int i = 0; i < PRECISIONS; i++)
    if (!strcmp(dtype, precisions[i])) return true;
  return false;
}

// -- Saving ------------------------------------------------------------------------------------------

// What goes into a file: a list of tensors, their names, and their numbers in the file's order.
typedef struct {
  int count;
  size_t filled; // of the floats
  tensor tensors[TENSORS];
  char names[TENSORS][TENSOR_NAME];
  float floats[];
} listing;

static listing *make_listing(size_t floats, const char *path, error *e) {
  return allocate_or_fail(sizeof(listing) + floats * sizeof(float), path, e);
}

// Device arrays to the file's order: adds the tensors of `list`, whose numbers are `memory`.
static bool append(listing *l, const device *d, const parameter *list, int count, size_t size,
                   const real *memory, const char *prefix, const char *path, error *e) {
  real *host = allocate_or_fail(size * sizeof(real), path, e);
  if (!host) return false;
  d->download(host, memory, size * sizeof(real));
  for (int i = 0; i < count; i++) {
    float *floats = l->floats + l->filled + list[i].offset;
    char *name = l->names[l->count];
    snprintf(name, TENSOR_NAME, "%s%s", prefix, list[i].name);
    reorder(&list[i], host + list[i].offset, floats, true);
    l->tensors[l->count++] = describe_tensor(&list[i], name, floats);
  }
  l->filled += size;
  free(host);
  return true;
}

static void append_counters(listing *l, const network *n) {
  for (int i = 0; i < UNITS; i++) {
    char *name = l->names[l->count];
    counter_name(name, TENSOR_NAME, &n->statistics_list[2 * i]);
    l->tensors[l->count++] = (tensor){.name = name,
                                      .dtype = "I64",
                                      .bytes = sizeof n->batches_tracked,
                                      .data = (const uint8_t *)&n->batches_tracked};
  }
}

static bool write_weights(const network *n, const char *path, uint64_t *file_fingerprint,
                          error *e) {
  const parameters *p = &n->parameters;
  const metadata format = {"format", "pt"}; // what PyTorch's own files say
  listing *l = make_listing(p->count + n->statistics_size, path, e);
  bool ok = l && append(l, n->device, p->list, PARAMETERS, p->count, p->weight, "", path, e) &&
            append(l, n->device, n->statistics_list, STATISTICS, n->statistics_size, n->statistics,
                   "", path, e);
  if (ok) {
    append_counters(l, n);
    ok = safetensors_write(path, l->tensors, l->count, &format, 1, file_fingerprint, e);
  }
  free(l);
  return ok;
}

static bool write_resume(const network *n, const char *path, uint64_t weights_fingerprint,
                         const metadata *state, int state_count, error *e) {
  const parameters *p = &n->parameters;
  metadata *all = allocate_or_fail((state_count + 1) * sizeof *all, path, e);
  listing *l = all ? make_listing(p->count, path, e) : NULL;
  bool ok =
      l && append(l, n->device, p->list, PARAMETERS, p->count, p->momentum, "momentum.", path, e);
  if (ok) {
    memcpy(all, state, state_count * sizeof *all);
    snprintf(all[state_count].key, sizeof all->key, "weights");
    snprintf(all[state_count].value, sizeof all->value, "%016llx",
             (unsigned long long)weights_fingerprint);
    ok = safetensors_write(path, l->tensors, l->count, all, state_count + 1, NULL, e);
  }
  free(l);
  free(all);
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
  // The new weights are on the disk, and now their new name is: they are all there is once the resume file
  // is replaced.
  if (!file_sync_name(f.new_weights, e)) {
    remove(f.new_weights);
    remove(f.new_resume);
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

// A file that tensors are taken from.
typedef struct {
  const safetensors *s;
  const char *path;
  bool convert; // may its numbers be of another precision than F32?
} source;

enum { SHAPE_ROOM = TENSOR_RANK * 24 };

// [64, 3, 3, 3]; of more dimensions than safetensors.h keeps, the first.
static const char *print_shape(const tensor *t, char text[SHAPE_ROOM]) {
  int length = snprintf(text, SHAPE_ROOM, "[");
  for (int i = 0; i < t->rank && i < TENSOR_RANK; i++)
    length += snprintf(text + length, (size_t)(SHAPE_ROOM - length), "%s%lld", i ? ", " : "",
                       (long long)t->shape[i]);
  snprintf(text + length, (size_t)(SHAPE_ROOM - length), t->rank > TENSOR_RANK ? ", ..]" : "]");
  return text;
}

// Finds the tensor that `wanted` describes; false, with a line, if it is not there as described.
static bool find(const source *from, const tensor *wanted, const tensor **found, error *e) {
  const char *path = from->path;
  const tensor *t = *found = safetensors_find(from->s, wanted->name);
  if (!t)
    return fail(e, "%s: has no tensor %s, so it is not a checkpoint of this network", path,
                wanted->name);
  const bool converted =
      from->convert && !strcmp(wanted->dtype, "F32") && precision_is_known(t->dtype);
  if (!converted && strcmp(t->dtype, wanted->dtype))
    return fail(e, "%s: %s has dtype %s, expected %s", path, t->name, t->dtype, wanted->dtype);
  bool same = t->rank == wanted->rank;
  for (int i = 0; same && i < t->rank; i++) same = t->shape[i] == wanted->shape[i];
  if (same) return true;
  char shape[SHAPE_ROOM], expected[SHAPE_ROOM];
  const bool width = t->rank && wanted->rank && t->shape[0] != wanted->shape[0];
  return fail(e, "%s: %s has shape %s, expected %s%s", path, t->name, print_shape(t, shape),
              print_shape(wanted, expected), width ? "; does --width agree?" : "");
}

// Tensors of `list` from the file into `host`, which has the device array's order.
static bool extract(const source *from, const parameter *list, int count, const char *prefix,
                    real *host, error *e) {
  for (int i = 0; i < count; i++) {
    char name[TENSOR_NAME];
    snprintf(name, sizeof name, "%s%s", prefix, list[i].name);
    const tensor *t, wanted = describe_tensor(&list[i], name, NULL);
    if (!find(from, &wanted, &t, e)) return false;
    float *floats = allocate(wanted.bytes);
    safetensors_to_floats(t, floats, list[i].count);
    reorder(&list[i], host + list[i].offset, floats, false);
    free(floats);
  }
  return true;
}

static bool extract_counters(const source *from, const network *n, int64_t *batches_tracked,
                             error *e) {
  for (int i = 0; i < UNITS; i++) {
    char name[TENSOR_NAME];
    const tensor *t, wanted = {.name = name, .dtype = "I64", .rank = 0};
    counter_name(name, sizeof name, &n->statistics_list[2 * i]);
    if (!find(from, &wanted, &t, e)) return false;
    memcpy(batches_tracked, t->data, sizeof *batches_tracked); // all norms count the same batches
    if (*batches_tracked < 0 || *batches_tracked > MOST_BATCHES)
      return fail(e, "%s: %s is %lld, which is no count of batches", from->path, name,
                  (long long)*batches_tracked);
  }
  return true;
}

static int count_of(const safetensors *s, const char *dtype) {
  int count = 0;
  for (int i = 0; i < s->tensor_count; i++) count += !strcmp(s->tensors[i].dtype, dtype);
  return count;
}

// What a file has beyond this network's tensors, all of which were found in it. Numbers that could be
// weights belong to another network, a deeper one perhaps. Anything else, an index or a mask, is left
// aside.
static bool check_rest(const source *from, FILE *out, error *e) {
  const safetensors *s = from->s;
  int floats = 0;
  for (int i = 0; i < PRECISIONS; i++) floats += count_of(s, precisions[i]);
  if (floats > PARAMETERS + STATISTICS)
    return fail(e, "%s: has %d tensors, expected %d, so it is not a checkpoint of this network",
                from->path, s->tensor_count, TENSORS);
  if (!out) return true;
  for (int i = 1; i < PRECISIONS; i++)
    if (count_of(s, precisions[i]))
      fprintf(out, "%s: %d tensors converted from %s to F32\n", from->path,
              count_of(s, precisions[i]), precisions[i]);
  if (s->tensor_count > TENSORS)
    fprintf(out, "%s: left aside, because this network does not have them: %d of %d tensors\n",
            from->path, s->tensor_count - TENSORS, s->tensor_count);
  return true;
}

int checkpoint_width(const safetensors *weights) {
  const tensor *stem = safetensors_find(weights, "conv1.weight");
  return stem && stem->rank == 4 && stem->shape[0] <= MOST_WIDTH ? (int)stem->shape[0] : 0;
}

// Everything is read and checked before anything in the network changes.
static bool load_weights(network *n, const source *from, FILE *out, error *e) {
  parameters *p = &n->parameters;
  real *weights = allocate(p->count * sizeof(real));
  real *statistics = allocate(n->statistics_size * sizeof(real));
  int64_t batches_tracked;
  const bool ok = extract(from, p->list, PARAMETERS, "", weights, e) &&
                  extract(from, n->statistics_list, STATISTICS, "", statistics, e) &&
                  extract_counters(from, n, &batches_tracked, e) && check_rest(from, out, e);
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

bool checkpoint_load(network *n, const char *path, FILE *out, error *e) {
  safetensors s;
  if (!safetensors_read(path, &s, e)) return false;
  const source from = {.s = &s, .path = path, .convert = true};
  const bool ok = load_weights(n, &from, out, e);
  safetensors_free(&s);
  return ok;
}

bool checkpoint_read_resume(const char *directory, safetensors *resume, error *e) {
  const file_names f = names_in(directory, CHECKPOINT_NAME);
  if (!file_exists(f.resume))
    return fail(e, "%s: not there, so there is nothing to resume; leave out --resume to start anew",
                f.resume);
  if (!safetensors_read(f.resume, resume, e)) return false;
  if (safetensors_value(resume, "weights")) return true;
  fail(e, "%s: does not say which weights belong to it, so it is not a resume file", f.resume);
  safetensors_free(resume);
  return false;
}

// Is this the fingerprint that a resume file wants of the weights beside it?
static bool is_wanted(uint64_t actual, const char *wanted) {
  char text[17];
  snprintf(text, sizeof text, "%016llx", (unsigned long long)actual);
  return !strcmp(text, wanted);
}

// Whether the weights of a resume file are there under this name: *found. False, with a line in e, where
// the file is there and cannot be read.
static bool look_for(const char *path, const char *wanted, bool *found, error *e) {
  uint64_t actual;
  size_t size;
  *found = false;
  if (!file_exists(path)) return true;
  if (!file_fingerprint(path, &actual, &size, e)) return false;
  *found = is_wanted(actual, wanted);
  return true;
}

bool checkpoint_setting_beside(const char *weights_path, const char *key,
                               char value[METADATA_VALUE]) {
  static const char ending[] = ".safetensors";
  const size_t length = strlen(weights_path), stem = length - strlen(ending);
  char path[4200];
  safetensors resume;
  error unused; // no resume file, or not this one: there is no setting
  if (length <= strlen(ending) || strcmp(weights_path + stem, ending)) return false;
  snprintf(path, sizeof path, "%.*s.resume%s", (int)stem, weights_path, ending);
  if (!file_exists(path) || !safetensors_read(path, &resume, &unused)) return false;
  const char *wanted = safetensors_value(&resume, "weights");
  const char *setting = safetensors_value(&resume, key);
  bool found = false;
  if (wanted && setting && strlen(setting) < METADATA_VALUE)
    look_for(weights_path, wanted, &found, &unused);
  if (found) snprintf(value, METADATA_VALUE, "%s", setting);
  safetensors_free(&resume);
  return found;
}

bool checkpoint_resume(network *n, const char *directory, const safetensors *resume, error *e) {
  const file_names f = names_in(directory, CHECKPOINT_NAME);
  parameters *p = &n->parameters;
  safetensors weights;
  if (!safetensors_read(f.weights, &weights, e)) return false;
  const source of_momentum = {.s = resume, .path = f.resume};
  const source of_weights = {.s = &weights, .path = f.weights};
  const uint64_t actual = fingerprint(FINGERPRINT_OF_NOTHING, weights.file, weights.file_bytes);
  real *momentum = allocate(p->count * sizeof(real));
  const bool ok = (is_wanted(actual, safetensors_value(resume, "weights")) ||
                   fail(e,
                        "%s: these are not the weights that the resume file beside it was saved "
                        "with",
                        f.weights)) &&
                  extract(&of_momentum, p->list, PARAMETERS, "momentum.", momentum, e) &&
                  load_weights(n, &of_weights, NULL, e);
  if (ok) n->device->upload(p->momentum, momentum, p->count * sizeof(real));
  free(momentum);
  safetensors_free(&weights);
  return ok;
}

// -- Out of a new run's way, and what a crash left half done -----------------------------------------

// Of a run's last state, or of one that --keep-every kept: step-000123.
static bool is_of_a_checkpoint(const char *file) {
  size_t stem = strlen(CHECKPOINT_NAME);
  if (strncmp(file, CHECKPOINT_NAME, stem)) {
    stem = strlen(KEPT_NAME);
    if (strncmp(file, KEPT_NAME, stem)) return false;
    stem += strspn(file + stem, "0123456789");
  }
  return !strcmp(file + stem, ".safetensors") || !strcmp(file + stem, ".resume.safetensors");
}

bool checkpoint_owns(const char *file) {
  char saved[256]; // the longest name that a file can have
  const size_t length = strlen(file);
  const bool unfinished = length > 4 && !strcmp(file + length - 4, ".new");
  snprintf(saved, sizeof saved, "%.*s", (int)(unfinished ? length - 4 : length), file);
  return is_of_a_checkpoint(saved) || !strcmp(file, ".lock");
}

bool checkpoint_set_aside(const char *directory, int *number, error *e) {
  file_list list;
  const bool ok = files_list(directory, is_of_a_checkpoint, &list, e) &&
                  files_set_aside((const char *const *)list.paths, list.count, number, e);
  files_list_free(&list);
  return ok;
}

// A crash in checkpoint_set_aside, which moves the weights first, left them alone under .K, and the
// resume file, which has their fingerprint, where it was: they go back to it. There may be gaps before K:
// a number can be taken by a kept step alone.
static bool undo_set_aside(const file_names *f, const char *wanted, error *e) {
  char weights[4200], resume[4200];
  bool found = false;
  for (int k = 1; k <= MOST_ASIDE; k++) { // a disk that fails always would give no other end
    snprintf(weights, sizeof weights, "%s.%d", f->weights, k);
    snprintf(resume, sizeof resume, "%s.%d", f->resume, k);
    if (!file_exists(resume) && !look_for(weights, wanted, &found, e)) return false;
    if (found) return file_replace(weights, f->weights, e);
  }
  return true;
}

static bool bring_together(const file_names *f, const char *wanted, error *e) {
  bool found;
  if (!look_for(f->weights, wanted, &found, e)) return false;
  if (found) return true;
  if (!look_for(f->new_weights, wanted, &found, e)) return false;
  if (found) return file_replace(f->new_weights, f->weights, e);
  return file_exists(f->weights) || undo_set_aside(f, wanted, e);
}

bool checkpoint_repair(const char *directory, error *e) {
  const file_names f = names_in(directory, CHECKPOINT_NAME);
  safetensors resume;
  size_t size;
  if (!file_exists(f.resume)) return true;
  uint8_t *bytes = file_read(f.resume, &size, e);
  if (!bytes) return false;
  // Damaged: it is in nobody's way, unless what the next save would write over may be its weights.
  if (!safetensors_parse(bytes, size, f.resume, &resume, e))
    return !file_exists(f.new_weights) ||
           fail_also(e, "; %s may have its weights: move both away", f.new_weights);
  const char *wanted = safetensors_value(&resume, "weights");
  const bool ok = !wanted || bring_together(&f, wanted, e);
  safetensors_free(&resume);
  return ok;
}

bool checkpoint_claim(const char *directory, error *e) {
  return directory_make(directory, e) && directory_claim(directory, e) &&
         checkpoint_repair(directory, e);
}
