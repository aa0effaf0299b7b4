// tools/pictures.c - makes the pictures of the course: `make pictures` calls it for each of them.
//
//     pictures mixed --data DIR -o mixed.png
//     pictures filters --weights FILE -o filters.png
//     pictures reliability plain=bins.csv mixup=bins.csv -o reliability.svg
//
// What each shows is in course/pictures/README.md, how it is drawn in tools/draw_*.c. Learning curves
// have a program of their own, tools/plot.c.
#include "pictures.h"

#include <string.h>

static const struct {
  const char *name;
  draw_picture *draw;
  bool data, weights, arguments; // what it needs
} table[] = {
    {"mixed", draw_mixed, true, false, false},
    {"crops", draw_crops, true, false, false},
    {"targets", draw_targets, false, false, false},
    {"beta", draw_beta, false, false, false},
    {"schedule", draw_schedule, false, false, false},
    {"registers", draw_registers, false, false, false},
    {"winograd", draw_winograd, false, false, false},
    {"filters", draw_filters, false, true, false},
    {"mistakes", draw_mistakes, true, true, false},
    {"reliability", draw_reliability, false, false, true},
    {"roofline", draw_roofline, false, false, true},
};
enum { PICTURES = sizeof table / sizeof *table };

static bool parse(int argc, char **argv, picture_request *r) {
  const char *const *arguments = (const char *const *)argv + 2;
  *r = (picture_request){.arguments = arguments};
  for (int i = 2; i < argc; i++) {
    const char **value = !strcmp(argv[i], "--data")      ? &r->data
                         : !strcmp(argv[i], "--weights") ? &r->weights
                         : !strcmp(argv[i], "-o")        ? &r->out
                                                         : NULL;
    if (!value)
      argv[2 + r->argument_count++] = argv[i]; // never behind the one that was read
    else if (i + 1 < argc)
      *value = argv[++i];
    else
      return false;
  }
  return r->out;
}

static int usage(void) {
  fprintf(stderr, "usage: pictures NAME [--data DIR] [--weights FILE] [NAME=FILE ..] -o FILE\n"
                  "where NAME is");
  for (int i = 0; i < PICTURES; i++)
    fprintf(stderr, "%s %s%s%s%s", i ? "," : "", table[i].name, table[i].data ? " --data" : "",
            table[i].weights ? " --weights" : "", table[i].arguments ? " NAME=FILE .." : "");
  fprintf(stderr, "\n");
  return 2;
}

int main(int argc, char **argv) {
  picture_request r;
  error e;
  if (argc < 2 || !parse(argc, argv, &r)) return usage();
  for (int i = 0; i < PICTURES; i++) {
    if (strcmp(argv[1], table[i].name)) continue;
    if (table[i].data != !!r.data || table[i].weights != !!r.weights ||
        table[i].arguments != (r.argument_count > 0))
      return usage();
    if (table[i].draw(&r, &e)) return 0;
    fprintf(stderr, "pictures: %s\n", e.text);
    return 1;
  }
  return usage();
}
