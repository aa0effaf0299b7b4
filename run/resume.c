// run/resume.c - saving a run, and going on with one that was saved; see run/trainer.h.
//
// Everything random is a function of seed, epoch and step (run/random.h). So a checkpoint need only
// hold the weights, the momentum, the settings and the position; the run that goes on from it takes
// the same steps, to the same bits, as if it had never stopped.
//
// Checked by `make check` (tests/train_test.sh): runs interrupted, killed and resumed.
#include "trainer.h"

#include "checkpoint.h"
#include "files.h"
#include <inttypes.h>
#include <string.h>

// A resumed run has to see the same data, and to go on with its own log and trace: these fingerprints are
// kept with the checkpoint. A run that is resumed without a log keeps the one of the log it had.
static const char data_key[] = "data", log_key[] = "log", trace_key[] = "trace";
static const char kind_key[] = "kind_of_data"; // for the line that says which data is missing
enum { FURTHER_VALUES = 4 };

static metadata text_to_metadata(const char *key, const char *text) {
  metadata m;
  snprintf(m.key, sizeof m.key, "%s", key);
  snprintf(m.value, sizeof m.value, "%s", text);
  return m;
}

static metadata fingerprint_to_metadata(const char *key, uint64_t value) {
  char text[17];
  snprintf(text, sizeof text, "%016" PRIx64, value);
  return text_to_metadata(key, text);
}

// 0: the file says nothing of it.
static uint64_t fingerprint_from_metadata(const safetensors *resume, const char *key) {
  uint64_t value = 0;
  const char *text = safetensors_value(resume, key);
  return text && sscanf(text, "%16" SCNx64, &value) == 1 ? value : 0;
}

bool load_weights(trainer *t, const char *path, error *e) {
  if (!checkpoint_load(&t->network, path, stdout, e)) return false;
  const char *bad = network_bad_tensor(&t->network);
  return !bad || fail(e, "%s: %s is not finite", path, bad);
}

bool save_as(trainer *t, const char *name, error *e) {
  metadata state[SAVED_OPTIONS + POSITION_VALUES + FURTHER_VALUES];
  const char *bad = network_bad_tensor(&t->network);
  if (bad)
    return fail(e, "%s is not finite after step %lld: not saved%s; try a smaller --lr", bad,
                (long long)t->at.step, t->saved ? ", the last checkpoint stays as it is" : "");
  if (!report_sync(&t->report, e)) return false; // before the state that says they are written
  int count = options_to_metadata(&t->options, state);
  count += position_to_metadata(&t->at, state + count);
  state[count++] = fingerprint_to_metadata(data_key, t->data.fingerprint);
  state[count++] = fingerprint_to_metadata(log_key, t->report.log.written);
  state[count++] = fingerprint_to_metadata(trace_key, t->report.trace.written);
  state[count++] = text_to_metadata(kind_key, report_kind_of_data(&t->data));
  return checkpoint_save(&t->network, t->options.checkpoint, name, state, count, e);
}

bool clear_the_way(trainer *t, error *e) {
  int number = 0;
  if (t->options.resume) return true;
  if (!checkpoint_set_aside(t->options.checkpoint, &number, e)) return false;
  if (number)
    printf("%s held an earlier run's checkpoint: its files now end in .%d\n", t->options.checkpoint,
           number);
  return true;
}

bool save_run(trainer *t, error *e) {
  if (!save_as(t, CHECKPOINT_NAME, e)) return false;
  t->saved = true;
  return true;
}

// The weights already contain the steps of an unfinished epoch. A smaller --epochs would end the run at once, and it
// would report whole epochs only.
static bool is_not_beyond_its_end(const trainer *t, error *e) {
  const position *at = &t->at;
  return at->epoch < t->options.epochs || at->step_in_epoch == 0 ||
         fail(e,
              "--epochs %d: the run was saved after step %d of its epoch %d (the first is 0); give "
              "at least %d",
              t->options.epochs, at->step_in_epoch, at->epoch, at->epoch + 1);
}

// As far through its epoch as it says, with these images and this batch.
static bool is_within_its_epoch(const trainer *t, error *e) {
  const position *at = &t->at;
  const int64_t images = t->data.train_count, done = (int64_t)at->step_in_epoch * t->options.batch;
  return (done < images + t->options.batch && at->images == (done < images ? done : images)) ||
         fail(e, "the resume file names a step that cannot be; it is damaged");
}

bool read_resume(trainer *t, safetensors *resume, error *e) {
  const char *directory = t->options.checkpoint;
  // Where there is no directory, none is made: checkpoint_read_resume says that nothing is there.
  return (!file_exists(directory) || checkpoint_claim(directory, e)) &&
         checkpoint_read_resume(directory, resume, e) &&
         options_from_metadata(&t->options, resume, stdout, e) &&
         position_from_metadata(&t->at, resume, e) && is_not_beyond_its_end(t, e);
}

bool resume_run(trainer *t, const safetensors *resume, error *e) {
  if (fingerprint_from_metadata(resume, data_key) != t->data.fingerprint) {
    const char *kind = safetensors_value(resume, kind_key);
    return fail(e,
                "%s: %s data, and not the same that this run was begun with%s%s; give its --data",
                t->options.data, report_kind_of_data(&t->data), kind ? ", which is " : "",
                kind ? kind : "");
  }
  if (!is_within_its_epoch(t, e) ||
      !checkpoint_resume(&t->network, t->options.checkpoint, resume, e))
    return false;
  t->saved = true;
  t->report.log.written = fingerprint_from_metadata(resume, log_key);
  t->report.trace.written = fingerprint_from_metadata(resume, trace_key);
  printf("resumed    after step %lld, ", (long long)t->at.step);
  if (t->at.epoch < t->options.epochs)
    printf("in epoch %d of 0 to %d\n", t->at.epoch, t->options.epochs - 1);
  else
    printf("with all %d epochs complete; --epochs N goes on\n", t->at.epoch);
  return true;
}
