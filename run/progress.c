// run/progress.c - the position of a run, to and from a checkpoint's metadata; see run/progress.h.
#include "progress.h"

#include <inttypes.h>

int position_to_metadata(const position *at, metadata *values) {
  const struct {
    const char *key;
    double number; // exact: all counts here are far below 2^53
  } fields[POSITION_VALUES] = {{"epoch", at->epoch},       {"step_in_epoch", at->step_in_epoch},
                               {"step", (double)at->step}, {"images", (double)at->images},
                               {"loss", at->loss},         {"correct", at->correct},
                               {"seconds", at->seconds}};
  for (int i = 0; i < POSITION_VALUES; i++) {
    snprintf(values[i].key, sizeof values[i].key, "%s", fields[i].key);
    snprintf(values[i].value, sizeof values[i].value, "%.17g", fields[i].number);
  }
  return POSITION_VALUES;
}

bool position_from_metadata(position *at, const safetensors *resume, error *e) {
  const struct {
    const char *key, *format;
    void *value;
  } fields[POSITION_VALUES] = {
      {"epoch", "%d", &at->epoch},     {"step_in_epoch", "%d", &at->step_in_epoch},
      {"step", "%" SCNd64, &at->step}, {"images", "%" SCNd64, &at->images},
      {"loss", "%lf", &at->loss},      {"correct", "%lf", &at->correct},
      {"seconds", "%lf", &at->seconds}};
  for (int i = 0; i < POSITION_VALUES; i++) {
    const char *text = safetensors_value(resume, fields[i].key);
    if (!text || sscanf(text, fields[i].format, fields[i].value) != 1)
      return fail(e, "the resume file does not say \"%s\"; it is damaged", fields[i].key);
  }
  if (at->epoch >= 0 && at->step_in_epoch >= 0 && at->step >= at->step_in_epoch &&
      at->images >= 0 && at->images <= INT32_MAX && at->step_in_epoch <= at->images)
    return true;
  return fail(e, "the resume file names a step that cannot be; it is damaged");
}
