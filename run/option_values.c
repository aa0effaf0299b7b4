// run/option_values.c - the values of options: read from text, held against their limits, written as
// text that reads back as the same value, and named in a message about one that is not possible.
#define _DEFAULT_SOURCE // strsep
#include "option_values.h"

#include "device.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <string.h>

// -- Reading -------------------------------------------------------------------------------------

static bool within_limits(const option *p, double x) {
  if (p->rule == ZERO_OR_FROM && x == 0) return true;
  if (p->rule == ABOVE && x == p->least) return false;
  if (p->rule == BELOW && x == p->most) return false;
  if (p->rule == MULTIPLE_OF_8 && fmod(x, 8) != 0) return false;
  return x >= p->least && x <= p->most;
}

// The whole of `text` as a number within p's limits.
static bool parse_number(const option *p, const char *text, double *number) {
  char *end;
  errno = 0;
  *number = strtod(text, &end);
  if (isspace((unsigned char)*text) || end == text || *end || errno) return false;
  return isfinite(*number) && within_limits(p, *number);
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

// Room for it, and no control character, with which a message about this file would not be one line.
static bool parse_path(const option *p, const char *text, char *path) {
  if (!*text || strlen(text) >= p->room) return false;
  for (const char *c = text; *c; c++)
    if (iscntrl((unsigned char)*c)) return false;
  strcpy(path, text);
  return true;
}

bool option_parse(const option *p, const char *text, options *o) {
  void *field = (char *)o + p->offset;
  switch (p->kind) {
  case PATH:
    return parse_path(p, text, field);
  case DEVICE:
    return device_name_is_known(text) && parse_path(p, text, field);
  case WHOLE:
    return parse_whole(p, text, field);
  case NUMBER:
    return parse_number(p, text, field);
  case SEED:
    return parse_seed(text, field);
  case LIST:
    return parse_list(p, text, o);
  case FLAG:
    *(bool *)field = true;
    return true;
  case PRESET:
    break;
  }
  return false;
}

// -- Writing -------------------------------------------------------------------------------------

// As few digits as it takes to read back the same number.
static void print_number(double number, char *text, size_t room) {
  for (int digits = 6; digits <= 17; digits++) {
    snprintf(text, room, "%.*g", digits, number);
    if (strtod(text, NULL) == number) return;
  }
}

void option_print(const option *p, const options *o, char *text, size_t room) {
  const void *field = (const char *)o + p->offset;
  text[0] = 0;
  if (p->kind == WHOLE) snprintf(text, room, "%d", *(const int *)field);
  if (p->kind == NUMBER) print_number(*(const double *)field, text, room);
  if (p->kind == SEED) snprintf(text, room, "%llu", (unsigned long long)*(const uint64_t *)field);
  if (p->kind != LIST) return;
  if (o->milestone_count == 0) snprintf(text, room, "none");
  for (int i = 0; i < o->milestone_count; i++)
    snprintf(text + strlen(text), room - strlen(text), "%s%d", i ? "," : "", o->milestones[i]);
}

static void print_limits(const option *p, char *text, size_t room) {
  const double least = p->least, most = p->most;
  const char *what = p->kind == WHOLE ? "whole number" : "number";
  switch (p->rule) {
  case FROM_TO:
    snprintf(text, room, "a %s from %g to %g", what, least, most);
    return;
  case ABOVE:
    snprintf(text, room, "a %s above %g and up to %g", what, least, most);
    return;
  case BELOW:
    snprintf(text, room, "a %s from %g to below %g", what, least, most);
    return;
  case ZERO_OR_FROM:
    snprintf(text, room, "0 or a %s from %g to %g", what, least, most);
    return;
  case MULTIPLE_OF_8:
    snprintf(text, room, "a multiple of 8 from %g to %g", least, most);
    return;
  }
}

void option_print_possible(const option *p, char *text, size_t room) {
  switch (p->kind) {
  case PATH:
    snprintf(text, room, "a path of at most %zu bytes, no control characters,", p->room - 1);
    return;
  case DEVICE:
    snprintf(text, room, OPTION_DEVICES);
    return;
  case WHOLE:
  case NUMBER:
    print_limits(p, text, room);
    return;
  case SEED:
    snprintf(text, room, "a whole number from 0 to %llu", (unsigned long long)UINT64_MAX);
    return;
  case LIST:
    snprintf(text, room, "none or a list of at most %d rising epochs, as 50,100,", MILESTONES);
    return;
  case PRESET:
    snprintf(text, room, OPTION_PRESETS);
    return;
  case FLAG:
    snprintf(text, room, "--%s without a value", p->name);
    return;
  }
}
