// train.c - the recipe: from the command line to a trained network.
//
//     for each epoch:
//         shuffle the training images
//         for each batch: crop, flip, mix -> forward -> loss -> backward -> SGD       (train_step)
//         test, report, save
//
// The numbers of the recipe are run/options.c's defaults; what an operation computes stands in
// device.h; which layer follows which, in network.h. This file holds them together. What surrounds
// the loop is in run/: setting up, testing, saving, reporting (run/trainer.h).
//
// A run can be stopped at any step and resumed as if it had not been: everything random is a
// function of seed, epoch and step (run/random.h), and everything else that a step depends on is in
// the checkpoint.
//
// Checked by `make check`: single steps against what the reference's operations give
// (tests/wiring_test.c), and whole runs (tests/train_test.sh).
//
//     ./train --help
#include "run/checkpoint.h"
#include "run/process.h"
#include "run/schedule.h"
#include "run/trainer.h"

#include <math.h>
#include <omp.h>
#include <string.h>

// -- One step -------------------------------------------------------------------------------------

// What the host decides about step `number` of the epoch: images, crops, flips, partners, lambda.
static void draw_batch(const trainer *t, drawn_batch *batch, int number) {
  const options *o = &t->options;
  const int epoch = t->at.epoch;
  batch->learning_rate = learning_rate_of(o, epoch);
  batch->count = cifar_training_batch(batch->samples, t->order, t->data.train_count, o->batch,
                                      o->seed, epoch, number);
  batch->lambda = mixup_draw(batch->count, batch->samples, o->mixup_alpha, o->seed, epoch, number);
}

// What the device does in a step, from numbers of images to changed weights.
static void step_operations(void *of) {
  trainer *t = of;
  const options *o = &t->options;
  const device *d = t->device;
  network *n = &t->network;
  d->mix_images(t->count, n->input, t->images, t->samples, t->step);
  network_forward(n, t->count, true);
  d->cross_entropy(t->count, (float)o->smoothing, n->dlogits, t->results, n->logits, t->labels,
                   t->samples, t->step);
  network_backward(n);
  d->sgd_update(&n->parameters, t->step, (float)o->momentum, (float)o->weight_decay);
}

// One step of training. Nothing here waits for a device that works on its own: its loss is read later,
// in read_results.
static void train_step(trainer *t) {
  drawn_batch *b = &t->queue[t->queued];
  draw_batch(t, b, t->at.step_in_epoch + t->queued + 1);
  send_step(t, b->samples, b->count, b->lambda, b->learning_rate, t->queued);
  do_operations(t, step_operations, b->count);
  t->network.batches_tracked++;
  t->queued++;
}

// -- What the steps gave --------------------------------------------------------------------------

// Which tensor is to blame? Not the weights: the bad gradient has already changed them. So the search
// goes through the activations of the last forward pass, in the order in which they were computed.
// Where the device went on, `later` steps before this result was read, all of them are bad by now.
static bool fail_bad_loss(const trainer *t, double loss, int later, error *e) {
  char where[160] = "where from is not known any more, but with --keep-every 1 would be";
  const char *tensor = later ? NULL : network_bad_activation(&t->network);
  if (!later)
    snprintf(where, sizeof where, "the first tensor with a bad value is %s",
             tensor ? tensor : "the loss itself");
  return fail(e, "the loss is %g at epoch %d, step %lld; %s; try a smaller --lr (it was %g)%s",
              loss, t->at.epoch, (long long)t->at.step + 1, where,
              learning_rate_of(&t->options, t->at.epoch),
              t->saved ? ". The last checkpoint stays as it is" : "");
}

// Reads the results of all queued steps; the position moves on by as many. False, with a line in e,
// for a loss that is not finite.
static bool read_results(trainer *t, error *e) {
  position *at = &t->at;
  step_result results[MOST_QUEUED];
  const int steps = t->queued;
  if (!steps) return true;
  t->queued = 0;
  t->device->download(results, t->results, (size_t)steps * sizeof *results);
  const double now = clock_seconds();
  at->seconds += now - t->read_until;
  t->read_until = now;
  for (int i = 0; i < steps; i++) {
    if (!isfinite(results[i].loss)) return fail_bad_loss(t, results[i].loss, steps - 1 - i, e);
    at->step_in_epoch++;
    at->step++;
    at->images += t->queue[i].count;
    at->loss += results[i].loss;
    at->correct += results[i].correct;
    if (!report_step(&t->report, &t->options, &t->data, at, &t->queue[i], &results[i], e))
      return fail_also(e, t->saved ? "; --resume goes on from the last checkpoint"
                                   : "; nothing was saved before it");
  }
  return true;
}

// --keep-every: saves the state after every so many steps.
static bool keep_step(trainer *t, error *e) {
  char name[40];
  const int every = t->options.keep_every;
  if (!every || (t->at.step + t->queued) % every) return true;
  if (!read_results(t, e)) return false;
  snprintf(name, sizeof name, KEPT_NAME "%06lld", (long long)t->at.step);
  return save_as(t, name, e);
}

// -- The loop ---------------------------------------------------------------------------------------

// A test that is not finite is as bad as a loss that is not. The weights can be finite all the same: so
// large that the logits overflow. And a running variance that is infinite makes zeros of its layer's
// output, and a test loss that looks sound: hence the look at the statistics.
static bool test_is_finite(const trainer *t, const score *test, int epoch, error *e) {
  const char *stays = t->saved ? ". The last checkpoint stays as it is" : "";
  const char *bad = network_bad_tensor(&t->network);
  if (bad)
    return fail(e, "%s is not finite after epoch %d; try a smaller --lr (it was %g)%s", bad, epoch,
                learning_rate_of(&t->options, epoch), stays);
  if (isfinite(test->loss) && isfinite(test->nll)) return true;
  return fail(e,
              "the test loss is %g after epoch %d, with weights that are finite: the logits "
              "overflow; try a smaller --lr (it was %g)%s",
              isfinite(test->loss) ? test->nll : test->loss, epoch,
              learning_rate_of(&t->options, epoch), stays);
}

// The epoch's lines could not be written. The state after its last step can still be saved: a run
// resumed from there tests once more and writes the lines.
static bool fail_unwritten(trainer *t, error *e) {
  error unused;
  return fail_also(e, save_run(t, &unused)
                          ? "; the run is saved: --resume writes the lines and goes on"
                          : "; nor could the run be saved");
}

static bool train_epoch(trainer *t, error *e) {
  const int batch = t->options.batch, steps = (t->data.train_count + batch - 1) / batch;
  cifar_shuffle(t->order, t->data.train_count, t->options.seed, t->at.epoch);
  t->read_until = clock_seconds();
  while (t->at.step_in_epoch + t->queued < steps && !process_is_to_stop()) {
    train_step(t);
    if (t->queued == t->queue_length && !read_results(t, e)) return false;
    if (!keep_step(t, e)) return false;
  }
  if (!read_results(t, e)) return false;
  if (t->at.step_in_epoch < steps) return true; // stopped
  const score test = score_test_set(t);
  if (test.images < t->data.test_count) return true; // stopped: a resumed run tests again
  if (!test_is_finite(t, &test, t->at.epoch, e)) return false;
  t->last_score = test;
  if (!report_epoch(&t->report, &t->options, &t->data, &t->at, &test, e))
    return fail_unwritten(t, e);
  t->at = (position){.epoch = t->at.epoch + 1, .step = t->at.step};
  return save_run(t, e);
}

static bool train(trainer *t, error *e) {
  const options *o = &t->options;
  report_recipe(o);
  while (t->at.epoch < o->epochs && !process_is_to_stop())
    if (!train_epoch(t, e)) return false;
  if (t->at.epoch >= o->epochs) {
    if (!t->last_score.images) t->last_score = score_test_set(t); // resumed at its end
    t->done = t->last_score.images == t->data.test_count;
    if (!t->done) return true;
    if (!test_is_finite(t, &t->last_score, o->epochs - 1, e)) return false;
    report_done(&t->report, o, &t->data, &t->at, &t->last_score, &t->network);
    return true;
  }
  if (t->at.step_in_epoch && !save_run(t, e)) return false;
  report_stopped(&t->report, o, &t->at);
  return true;
}

// -- From the command line to the loop --------------------------------------------------------------

// Everything up to the first step: settings, data, network, weights.
static bool prepare(trainer *t, error *e) {
  options *o = &t->options;
  safetensors resume = {0};
  bool ok;
  if (o->resume)
    ok = read_resume(t, &resume, e) && trainer_set_up(t, e) && resume_run(t, &resume, e);
  else
    ok = take_width_from(o->eval, o, e) && take_width_from(o->init, o, e) && trainer_set_up(t, e) &&
         (!o->init[0] || load_weights(t, o->init, e)) &&
         (o->eval[0] || checkpoint_claim(o->checkpoint, e));
  safetensors_free(&resume);
  return ok;
}

static bool run(trainer *t, error *e) {
  const options *o = &t->options;
  if (!process_has_threads(omp_get_max_threads(), e)) return false;
  if (!strcmp(o->device, "auto") && !strncmp(t->device->name, "cpu", 3))
    printf("no GPU can be used: using the CPU; --device cuda says why%s\n",
           t->device->name[3] ? "" : ", --device cpu-bf16 why not AMX");
  if (!prepare(t, e)) return false;
  if (o->eval[0]) return evaluate(t, e);
  process_catch_signals();
  if (!report_find(&t->report, o, e)) return false;
  const bool ok = clear_the_way(t, e) &&
                  report_begin(&t->report, o, &t->data, t->device, &t->at, e) && train(t, e);
  report_close(&t->report);
  return ok;
}

static bool print_plan(const trainer *t, error *e) {
  network planned;
  if (!network_describe(&planned, t->device, t->options.width, t->options.batch, e)) return false;
  network_print_plan(&planned, stdout);
  return true;
}

int main(int argc, char **argv) {
  static trainer t; // zeroes
  error e;
  options *o = &t.options;
  process_begin(argv);
  if (!options_parse(argc, argv, o, &e)) {
    fprintf(stderr, "train: %s\n", e.text);
    return 2;
  }
  if (o->help) {
    options_print_help(stdout);
    return process_end(true);
  }
  t.device = device_by_name(o->device, &e);
  if (!t.device) {
    fprintf(stderr, "train: --device %s: %s\n", o->device, e.text);
    return 1;
  }
  if (o->threads) omp_set_num_threads(o->threads);
  const bool ok = o->plan ? print_plan(&t, &e) : run(&t, &e);
  fflush(stdout); // the line on stderr comes last
  if (!ok) fprintf(stderr, "train: %s\n", e.text);
  trainer_free(&t);
  return ok ? process_end(t.done || o->plan || o->eval[0]) : 1;
}
