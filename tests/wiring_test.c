// tests/wiring_test.c - from the command line to the arithmetic: does each option of the recipe reach the
// operation that it is meant for, and nothing else?
//
// Other tests hold every operation against its formula. None of them would notice a trainer that
// calls a sound operation with the wrong number: a smoothing of 0, the learning rate of another
// epoch. So this test runs ./train on a few images that it makes itself, with --trace and
// --keep-every 1, and then does each step once more, without train.c: it reads from the trace which
// images were mixed and how, loads the state kept before the step, calls the operations of device.h
// with the numbers of its own command line, and compares what comes out with the trace and with the
// state kept after the step.
//
//     trace: index, partner, crop, flip, lambda --.
//     step-(k-1): weights, momentum, statistics --+--> mix, forward, loss, backward, SGD --> step-k
//     this file: lr, momentum, decay, smoothing --'                 `--> loss, correct of the trace
//
// Each step starts from a kept state, because training is chaotic: a difference in the last bit is
// one in the second digit some steps later. Both sides call the same functions of the same device,
// whose bits do not depend on the number of threads, so the tolerance is 0. One run is on the
// device `reference`; the others are on `cpu`, which has other convolutions and is faster.
//
// What the trace says must itself be right: order, crops, flips, partners and lambdas are drawn
// here again as random.h and cifar.h define them. Then one option is changed at a time, and the
// table `changes` says at which step each quantity must begin to differ, or that it must not. A run
// resumed in the middle of an epoch is put to the same test.
//
//     make build/gcc/tests/wiring_test && build/gcc/tests/wiring_test [TRAIN]
#define _XOPEN_SOURCE 700 // realpath
#include "../reference/reference.h"
#include "wiring.h"

// -- What each step works on ---------------------------------------------------------------------------

// The trace has nine digits of lambda and of the rate: enough for a float.
static void check_draws(const trial *t) {
  const recipe *r = &t->asked;
  int wrong[8] = {0};
  for (int k = 1; k <= t->steps; k++) {
    const record drawn = draw_step(r, k), *seen = &t->record[k];
    wrong[0] += seen->epoch != drawn.epoch || seen->step != k || seen->count != drawn.count;
    wrong[1] += !same_images(seen, &drawn);
    wrong[2] += !same_crops(seen, &drawn);
    wrong[3] += !same_partners(seen, &drawn);
    wrong[4] += (float)seen->lambda != (float)drawn.lambda;
    wrong[5] += (float)seen->rate != (float)drawn.rate;
    wrong[6] += seen->momentum != r->momentum || seen->weight_decay != r->weight_decay ||
                seen->smoothing != r->smoothing;
    wrong[7] += seen->in_bf16 != (t->network.device->activation_bytes == sizeof(uint16_t));
  }
  check(t->steps == r->epochs * steps_an_epoch(r) && t->epochs == r->epochs,
        "%s: %d steps in %d epochs", r->name, r->epochs * steps_an_epoch(r), r->epochs);
  check(!wrong[0], "%s: each step in its epoch, with a batch's images or what is left", r->name);
  check(!wrong[1], "%s: the images, in the order that seed and epoch give", r->name);
  check(!wrong[2], "%s: crops and flips", r->name);
  check(!wrong[3], "%s: partners", r->name);
  check(!wrong[4], "%s: lambda", r->name);
  check(!wrong[5], "%s: learning rate, times gamma from each milestone on", r->name);
  check(!wrong[6], "%s: momentum, weight decay and smoothing, as the trace says of each step",
        r->name);
  check(!wrong[7], "%s: activations in bf16, where the device has them so", r->name);
}

// Over all steps: every image once an epoch, every corner, both flips.
static void check_coverage(const trial *t) {
  int seen[MOST_EPOCHS][TRAIN] = {{0}}, corner[2][9] = {{0}}, flips[2] = {0}, missing = 0;
  for (int k = 1; k <= t->steps; k++)
    for (int b = 0; b < t->record[k].count; b++) {
      const sample *s = &t->record[k].samples[b];
      seen[t->record[k].epoch][s->image]++;
      corner[0][s->crop_y]++, corner[1][s->crop_x]++, flips[s->flip]++;
    }
  for (int e = 0; e < t->epochs; e++)
    for (int i = 0; i < t->asked.train_images; i++) missing += seen[e][i] != 1;
  for (int i = 0; i < 9; i++) missing += !corner[0][i] + !corner[1][i];
  check(!missing && flips[0] && flips[1], "%s: each image once an epoch; all corners, both flips",
        t->asked.name);
}

// -- The steps once more ----------------------------------------------------------------------------

// What the run adds up in an epoch, from here; `images` so far.
typedef struct {
  double loss, correct;
  int images;
} sums;

static step_result compose_step(trial *t, int k) {
  network *n = &t->network;
  const recipe *r = &t->asked;
  const record *seen = &t->record[k];
  const step_values values = {.lambda = (float)seen->lambda,
                              .learning_rate = (float)draw_step(r, k).rate};
  step_result result;
  put_state(n, &t->state[k - 1]);
  reference_mix_images(seen->count, n->input, images[0], seen->samples, &values);
  network_forward(n, seen->count, true);
  reference_cross_entropy(seen->count, (float)r->smoothing, n->dlogits, &result, n->logits, labels,
                          seen->samples, &values);
  network_backward(n);
  reference_sgd_update(&n->parameters, &values, (float)r->momentum, (float)r->weight_decay);
  return result;
}

// What the resume file of step k says of the epoch so far.
static bool same_position(const trial *t, int k, const sums *so_far) {
  char name[64];
  safetensors file;
  error e;
  snprintf(name, sizeof name, "run/step-%06d.resume.safetensors", k);
  if (!safetensors_read(scratch_path(name), &file, &e)) give_up(name, e.text);
  const struct {
    const char *key;
    double value;
  } said[] = {{"epoch", t->record[k].epoch},
              {"step_in_epoch", (k - 1) % steps_an_epoch(&t->asked) + 1},
              {"step", k},
              {"images", so_far->images},
              {"loss", so_far->loss},
              {"correct", so_far->correct}};
  bool good = true;
  for (int i = 0; i < 6; i++) {
    const char *text = safetensors_value(&file, said[i].key);
    good &= text && strtod(text, NULL) == said[i].value;
  }
  safetensors_free(&file);
  return good;
}

// One number of an epoch's line: in the trace to the last digits but for the order of additions in
// double, in the log with nine digits.
static void check_number(const trial *t, int epoch, const char *key, double expected) {
  const double size = fabs(expected) + 1e-300; // which may be 0
  check_error(fabs(number_of(t->of_epoch[epoch], key) - expected) / size, 1e-13,
              "%s: epoch %d, %s in the trace", t->asked.name, epoch, key);
  check_error(fabs(logged(epoch, key) - expected) / size, 5e-9, "%s: epoch %d, %s in the log",
              t->asked.name, epoch, key);
}

// After step k, the last of its epoch: the test set with the running statistics, neither cropped nor
// mixed; the training criterion.
static void check_epoch(trial *t, int k, const sums *trained) {
  network *n = &t->network;
  const int epoch = t->record[k].epoch;
  const double rate = draw_step(&t->asked, k).rate;
  const step_values values = {.lambda = 1};
  step_result tested;
  sample samples[TEST];
  for (int b = 0; b < TEST; b++)
    samples[b] = (sample){.image = TRAIN + b, .partner = b, .crop_y = 4, .crop_x = 4};
  put_state(n, &t->state[k]);
  reference_mix_images(TEST, n->input, images[0], samples, &values);
  network_forward(n, TEST, false);
  reference_cross_entropy(TEST, (float)t->asked.smoothing, NULL, &tested, n->logits, labels,
                          samples, &values);
  check_number(t, epoch, "train_loss", trained->loss / trained->images);
  check_number(t, epoch, "train_accuracy", trained->correct / trained->images);
  check_number(t, epoch, "test_loss", tested.loss / TEST);
  check_number(t, epoch, "test_accuracy", tested.correct / TEST);
  reference_cross_entropy(TEST, 0, NULL, &tested, n->logits, labels, samples, &values);
  const double nll = tested.loss / TEST;
  check_error(fabs(logged(epoch, "test_nll") - nll) / nll, 5e-9,
              "%s: epoch %d, test_nll in the log", t->asked.name, epoch);
  check_error(fabs(logged(epoch, "lr") - rate) / rate, 5e-9, "%s: epoch %d, lr in the log",
              t->asked.name, epoch);
}

static void check_steps(trial *t) {
  const network *n = &t->network;
  const char *name = t->asked.name;
  int wrong[6] = {0};
  sums so_far = {0, 0, 0};
  for (int k = 1; k <= t->steps; k++) {
    const record *seen = &t->record[k];
    const step_result result = compose_step(t, k);
    wrong[0] += seen->loss != result.loss / seen->count;
    wrong[1] += seen->correct != result.correct;
    wrong[2] += !same(n->parameters.momentum, t->state[k].momentum, n->parameters.count);
    wrong[3] += !same(n->parameters.weight, t->state[k].weight, n->parameters.count);
    wrong[4] += !same(n->statistics, t->state[k].statistics, n->statistics_size) ||
                t->state[k].batches != t->state[k - 1].batches + 1;
    so_far.loss += result.loss;
    so_far.correct += result.correct;
    so_far.images += seen->count;
    wrong[5] += !same_position(t, k, &so_far);
    if (k % steps_an_epoch(&t->asked)) continue;
    check_epoch(t, k, &so_far);
    so_far = (sums){0, 0, 0};
  }
  check(!wrong[0], "%s: the loss of each step", name);
  check(!wrong[1], "%s: the right answers of each step", name);
  check(!wrong[2], "%s: the momentum after each step", name);
  check(!wrong[3], "%s: the weights after each step", name);
  check(!wrong[4], "%s: the running statistics after each step", name);
  check(!wrong[5], "%s: the sums of the epoch in each resume file", name);
}

// -- A whole run ------------------------------------------------------------------------------------

// The state before the first step: the seed's weights, or those of --init with a momentum of zero.
static state first_state(network *n, const recipe *r) {
  network_initialise(n, r->seed);
  state s = copy_state(n);
  if (!r->init) return s;
  const char *path = scratch_path(r->init);
  free(s.weight), free(s.statistics);
  s.weight = read_tensors(path, "", n->parameters.list, PARAMETERS, n->parameters.count);
  s.statistics = read_tensors(path, "", n->statistics_list, STATISTICS, n->statistics_size);
  s.batches = read_batches(path);
  return s;
}

static trial *run_trial(const recipe *r) {
  const bool plain = !strcmp(r->device, "reference");
  trial *t = allocate(sizeof *t);
  error e;
  t->asked = *r;
  run_recipe(r);
  read_trace(t);
  if (!network_create(&t->network, plain ? &reference_device : cpu_device(), r->width, BATCH_ROOM,
                      &e))
    give_up(r->name, e.text);
  t->state[0] = first_state(&t->network, r);
  for (int k = 1; k <= t->steps; k++) {
    char name[40];
    snprintf(name, sizeof name, "step-%06d", k);
    t->state[k] = read_state(&t->network, name);
  }
  check_draws(t);
  check_steps(t);
  state last = read_state(&t->network, "resnet18_cifar10");
  check(same_state(&t->network, &last, &t->state[t->steps]), "%s: its checkpoint is the last state",
        r->name);
  free_state(&last);
  return t;
}

// The first line of the trace, with which replay.py repeats the run.
static void check_heading(const trial *t) {
  const recipe *r = &t->asked;
  const struct {
    const char *key;
    double value;
  } said[] = {{"seed", r->seed},
              {"width", r->width},
              {"batch", r->batch},
              {"train_images", r->train_images},
              {"test_images", TEST}};
  for (size_t i = 0; i < sizeof said / sizeof *said; i++)
    check(number_of(t->heading, said[i].key) == said[i].value, "%s: the trace's heading has %s %g",
          r->name, said[i].key, said[i].value);
}

// -- One option changed ------------------------------------------------------------------------------

enum { ORDER, CROPS, PARTNERS, LAMBDA, RATE, LOSS, MOMENTUM, WEIGHTS, QUANTITIES };
static const char *const quantity_names[QUANTITIES] = {
    "the order", "crops and flips", "partners",     "lambda",
    "the rate",  "the loss",        "the momentum", "the weights"};

static const recipe base = {.name = "base",
                            .device = "cpu",
                            .seed = 5,
                            .width = 8,
                            .batch = 7,
                            .epochs = 2,
                            .train_images = 12,
                            .milestones = {1},
                            .lr = 1 / 19.0, // more digits than a few
                            .momentum = 0.7,
                            .weight_decay = 0.01,
                            .gamma = 0.5,
                            .alpha = 0.4,
                            .smoothing = 0.2};

// The first step at which each quantity differs from the base run's; 0: none. Steps 1 and 2 are
// epoch 0, steps 3 and 4 are epoch 1. Thus a new learning rate first moves the weights; the next
// step's loss and gradient follow, and with it the momentum.
typedef struct {
  const char *name;
  int first[QUANTITIES];
} change;

static const change changes[] = {
    {"another --lr", {0, 0, 0, 0, 1, 2, 2, 1}},
    {"another --momentum", {0, 0, 0, 0, 0, 3, 2, 2}},
    {"another --weight-decay", {0, 0, 0, 0, 0, 2, 1, 1}},
    {"another --gamma", {0, 0, 0, 0, 3, 4, 4, 3}},
    {"another --milestones", {0, 0, 0, 0, 3, 4, 4, 3}},
    {"another --mixup-alpha", {0, 0, 0, 1, 0, 1, 1, 1}},
    {"--mixup-alpha 0", {0, 0, 1, 1, 0, 1, 1, 1}},
    {"--smoothing 0", {0, 0, 0, 0, 0, 1, 1, 1}},
    {"another --batch", {1, 1, 1, 3, 3, 1, 1, 1}}, // epoch 0 has a third step
    {"another --seed", {1, 1, 1, 1, 0, 1, 1, 1}},
    {"another --width", {0, 0, 0, 0, 0, 1, 1, 1}},
    {"--init", {0, 0, 0, 0, 0, 1, 1, 1}},
};
enum { CHANGES = sizeof changes / sizeof *changes };

static recipe changed(int i) {
  recipe all[CHANGES];
  for (int j = 0; j < CHANGES; j++) all[j] = base;
  all[0].lr = 0.02;
  all[1].momentum = 0.95;
  all[2].weight_decay = 0.2;
  all[3].gamma = 0.3;
  all[4].milestones[0] = 2;
  all[5].alpha = 3;
  all[6].alpha = 0;
  all[7].smoothing = 0;
  all[8].batch = 5;
  all[9].seed = 6;
  all[10].width = 16;
  all[11].init = "weights";
  all[i].name = changes[i].name;
  return all[i];
}

static bool differs(const trial *a, const trial *b, int k, int quantity) {
  const record *r = &a->record[k], *s = &b->record[k];
  const size_t count = a->network.parameters.count;
  const bool same_size = count == b->network.parameters.count;
  switch (quantity) {
  case ORDER:
    return !same_images(r, s);
  case CROPS:
    return !same_crops(r, s);
  case PARTNERS:
    return !same_partners(r, s);
  case LAMBDA:
    return r->lambda != s->lambda;
  case RATE:
    return r->rate != s->rate;
  case LOSS:
    return r->loss != s->loss;
  case MOMENTUM:
    return !same_size || !same(a->state[k].momentum, b->state[k].momentum, count);
  default:
    return !same_size || !same(a->state[k].weight, b->state[k].weight, count);
  }
}

static void check_change(const trial *t, const trial *of_base, const change *c) {
  for (int q = 0; q < QUANTITIES; q++) {
    int first = 0;
    for (int k = of_base->steps; k >= 1; k--)
      if (differs(t, of_base, k, q)) first = k;
    check(first == c->first[q], "%s changes %s at step %d, expected %d", c->name, quantity_names[q],
          first, c->first[q]);
  }
}

// The base run, gone on with from its step 3, in the middle of epoch 1: the state kept there takes
// the checkpoint's name. All settings come from it, and all that comes out has to be as before.
static void test_resume(const trial *of_base) {
  char text[] = "--data . --checkpoint run --trace trace --log log --keep-every 1 --device cpu "
                "--resume";
  trial t = *of_base;
  t.asked.name = "resumed";
  t.steps = t.epochs = 0;
  copy_file("run/step-000003.safetensors", "run/resnet18_cifar10.safetensors");
  copy_file("run/step-000003.resume.safetensors", "run/resnet18_cifar10.resume.safetensors");
  remove(scratch_path("run/step-000004.safetensors"));
  if (!run_program(text)) give_up("resumed", "./train failed");
  read_trace(&t);
  t.state[4] = read_state(&t.network, "step-000004");
  check_draws(&t);
  check_steps(&t);
  free_state(&t.state[4]);
}

static void test_changes(void) {
  trial *of_base = run_trial(&base);
  copy_file("run/resnet18_cifar10.safetensors", "weights");
  test_resume(of_base);
  for (int i = 0; i < CHANGES; i++) {
    const recipe r = changed(i);
    trial *t = run_trial(&r);
    check_change(t, of_base, &changes[i]);
    free_trial(t);
  }
  free_trial(of_base);
}

// What one epoch cannot show of the defaults, in the resume file of the run before.
static void check_settings(void) {
  safetensors file;
  error e;
  if (!safetensors_read(scratch_path("run/resnet18_cifar10.resume.safetensors"), &file, &e))
    give_up("defaults", e.text);
  const char *milestones = safetensors_value(&file, "milestones");
  const char *gamma = safetensors_value(&file, "gamma");
  check(milestones && !strcmp(milestones, "50,100") && gamma && !strcmp(gamma, "0.1"),
        "defaults: a tenth from epoch 50, a hundredth from 100");
  safetensors_free(&file);
}

// Every option away from its default, and no two alike, on the reference; then the defaults, and
// those of --preset quick.
static void test_recipes(void) {
  static const recipe all_given = {.name = "all given",
                                   .device = "reference",
                                   .seed = 11,
                                   .width = 8,
                                   .batch = 8,
                                   .epochs = 3,
                                   .train_images = 20,
                                   .milestones = {1, 2},
                                   .lr = 0.03,
                                   .momentum = 0.8,
                                   .weight_decay = 0.01,
                                   .gamma = 0.5,
                                   .alpha = 0.4,
                                   .smoothing = 0.2};
  recipe defaults = {.name = "defaults",
                     .device = "cpu",
                     .given = "--width 8 --epochs 1 --train-images 12",
                     .seed = 1,
                     .width = 8,
                     .batch = 128,
                     .epochs = 1,
                     .train_images = 12,
                     .milestones = {50, 100},
                     .lr = 0.1,
                     .momentum = 0.9,
                     .weight_decay = 2e-4,
                     .gamma = 0.1,
                     .alpha = 1,
                     .smoothing = 0.1};
  recipe quick = defaults;
  quick.name = quick.given = "--preset quick --train-images 12";
  quick.width = 16, quick.epochs = 4, quick.milestones[0] = 2, quick.milestones[1] = 3;
  trial *t = run_trial(&all_given);
  check_heading(t);
  check_coverage(t);
  free_trial(t);
  t = run_trial(&defaults);
  check_heading(t);
  check_settings();
  free_trial(t);
  free_trial(run_trial(&quick));
}

// The program beside this one's directory: build/gcc/train for build/gcc/tests/wiring_test.
static const char *find_train(const char *own_path) {
  char path[4096];
  const char *slash = strrchr(own_path, '/');
  snprintf(path, sizeof path, "%.*s../train", slash ? (int)(slash + 1 - own_path) : 0, own_path);
  return realpath(path, NULL);
}

int main(int argc, char **argv) {
  stream = random_open(check_seed("wiring_test"), RANDOM_TEST, 0, 0);
  train = argc > 1 ? realpath(argv[1], NULL) : find_train(argv[0]);
  if (!train) give_up("wiring_test", "finds no train beside its directory; its path may be given");
  scratch_make();
  write_data();
  test_recipes();
  test_changes();
  scratch_remove();
  return check_summary();
}
