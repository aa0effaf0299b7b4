// run/progress.c - the position of a run, to and from a checkpoint's metadata; see run/progress.h.
#include "progress.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

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
      {"epoch", "%9d%n", &at->epoch},         {"step_in_epoch", "%9d%n", &at->step_in_epoch},
      {"step", "%15" SCNd64 "%n", &at->step}, {"images", "%15" SCNd64 "%n", &at->images},
      {"loss", "%lf%n", &at->loss},           {"correct", "%lf%n", &at->correct},
      {"seconds", "%lf%n", &at->seconds}};
  for (int i = 0; i < POSITION_VALUES; i++) {
    const char *text = safetensors_value(resume, fields[i].key);
    int length = 0;
    if (!text || sscanf(text, fields[i].format, fields[i].value, &length) != 1 ||
        (size_t)length != strlen(text))
      return fail(e, "the resume file does not say \"%s\"; it is damaged", fields[i].key);
  }
  if (at->epoch >= 0 && at->step_in_epoch >= 0 && at->step >= at->step_in_epoch &&
      at->images >= 0 && at->images <= INT32_MAX && at->step_in_epoch <= at->images &&
      isfinite(at->loss) && isfinite(at->correct) && at->correct >= 0 &&
      at->correct <=
          (double)at->images * (1 + 1e-6) && // lambda and 1 - lambda are rounded to floats
      isfinite(at->seconds) &&
      at->seconds >= 0)
    return true;
  return fail(e, "the resume file names a step that cannot be; it is damaged");
}
