// tests/inspect_test.c - is what a run says of its network so? Which tensor has a bad value, how much memory
// the network takes, and how much arithmetic an image.
//
// Who looks for the reason of a NaN has the name of a tensor to go by. The memory decides whether a batch is
// refused before anything is allocated. The arithmetic stands in the plan, and makes the hours of the whole
// recipe.
//
//     make build/gcc/tests/inspect_test && build/gcc/tests/inspect_test
#include "../run/inspect.h"
#include "check.h"
#include <string.h>

// -- Names -----------------------------------------------------------------------------------------

typedef struct {
  char conv[32], norm[32];
} module_names;

static module_names
    names[UNITS]; // PyTorch's, in its order: a block's shortcut behind its other two

static void list_names(void) {
  int count = 0;
  names[count++] = (module_names){"conv1", "bn1"};
  for (int stage = 1; stage <= 4; stage++)
    for (int j = 0; j < 2; j++) {
      for (int k = 1; k <= 2; k++, count++) {
        snprintf(names[count].conv, sizeof names->conv, "layer%d.%d.conv%d", stage, j, k);
        snprintf(names[count].norm, sizeof names->norm, "layer%d.%d.bn%d", stage, j, k);
      }
      if (stage == 1 || j == 1) continue;
      snprintf(names[count].conv, sizeof names->conv, "layer%d.%d.shortcut.0", stage, j);
      snprintf(names[count++].norm, sizeof names->norm, "layer%d.%d.shortcut.1", stage, j);
    }
}

// -- Bad values ------------------------------------------------------------------------------------

enum { WIDTH = 8, BATCH = 2, MOST = 1 << 16, SITES = 2 + PARAMETERS + STATISTICS };

// A tensor, and what it has to be called.
typedef struct {
  char name[120];
  void *data;
  activation_shape shape;
  bool activations; // or reals, whatever the device makes of activations
} site;

static site sites[SITES]; // in the order in which they have to be looked at
static int site_count;

// Where a tensor has its one bad value.
typedef enum { FIRST, LAST, NOWHERE } place;

static void put(const device *d, const site *s, place where) {
  static real host[MOST];
  const size_t count = activation_count(s->shape);
  real *at = where == LAST ? host + count - 1 : host;
  if (where != NOWHERE) *at = where == LAST ? -INFINITY : NAN;
  if (s->activations)
    d->upload_activations(s->data, host, s->shape);
  else
    d->upload(s->data, host, count * sizeof *host);
  *at = 0;
}

static site *add_site(void *data, activation_shape shape, bool activations) {
  site *s = &sites[site_count++];
  *s = (site){.data = data, .shape = shape, .activations = activations};
  return s;
}

static site *add_reals(real *flat, const parameter *p) {
  return add_site(flat + p->offset, (activation_shape){1, 1, (int)p->count}, false);
}

// What is saved: the weights, then the running statistics.
static void list_tensors(const network *n) {
  static const char *const kinds[] = {"weight", "weight", "bias"};
  site_count = 0;
  for (int i = 0; i < PARAMETERS; i++) {
    const module_names *m = &names[i / 3];
    const char *module = i >= 3 * UNITS ? "linear" : i % 3 ? m->norm : m->conv;
    site *s = add_reals(n->parameters.weight, &n->parameter_list[i]);
    snprintf(s->name, sizeof s->name, "%s.%s", module, i == PARAMETERS - 1 ? "bias" : kinds[i % 3]);
  }
  for (int i = 0; i < STATISTICS; i++) {
    site *s = add_reals(n->statistics, &n->statistics_list[i]);
    snprintf(s->name, sizeof s->name, "%s.running_%s", names[i / 2].norm, i % 2 ? "var" : "mean");
  }
}

// What a unit stores. What it leaves out nobody may look at: that is a bad value for good.
static void list_unit(const network *n, int i) {
  const unit *u = &n->units[i];
  const activation_shape shape = unit_output_shape(u, BATCH);
  site *s = add_site(u->z, shape, true);
  snprintf(s->name, sizeof s->name, "the output of %s%s", names[i].conv,
           u->x_from ? " or of the norm below it" : "");
  s = add_site(u->y, shape, true);
  snprintf(s->name, sizeof s->name, "the output of %s%s", names[i].norm,
           u->residual_from ? " or of the norm that is added to it" : "");
  if (!u->y_left_out) return;
  put(n->device, s, FIRST);
  site_count--;
}

// What a step computes, in its order.
static void list_activations(const network *n) {
  const activation_shape input = {BATCH, IMAGE_SIDE * IMAGE_SIDE, IMAGE_CHANNELS};
  site_count = 0;
  strcpy(add_site(n->input, input, true)->name, "the input");
  list_unit(n, 0);
  for (int k = 0; k < BLOCKS; k++) {
    list_unit(n, n->blocks[k].a);
    if (n->blocks[k].shortcut >= 0) list_unit(n, n->blocks[k].shortcut);
    list_unit(n, n->blocks[k].b);
  }
  strcpy(add_site(n->logits, (activation_shape){BATCH, 1, CLASSES}, false)->name, "the logits");
}

// All sites have a bad value, and are mended one after another: the next one has to be named each time.
static void test_sites(const network *n, const char *look(const network *), const char *what,
                       place where) {
  int wrong = 0;
  char first[300] = "";
  for (int i = 0; i < site_count; i++) put(n->device, &sites[i], where);
  for (int i = 0; i <= site_count; i++) {
    const char *said = look(n), *name = i < site_count ? sites[i].name : NULL;
    const bool right = said && name ? !strcmp(said, name) : !said && !name;
    if (!right && !wrong++)
      snprintf(first, sizeof first, ", \"%s\" for \"%s\"", said ? said : "none",
               name ? name : "none");
    if (name) put(n->device, &sites[i], NOWHERE);
  }
  check(!wrong, "%s: of %d %s, bad in the %s place, each is named (%d wrong%s)", n->device->name,
        site_count, what, where == FIRST ? "first" : "last", wrong, first);
}

static void test_bad_values(const device *d) {
  network n;
  error e;
  if (!network_create(&n, d, WIDTH, BATCH, &e)) exit(1);
  n.batch = BATCH;
  for (place where = FIRST; where <= LAST; where++) {
    list_tensors(&n);
    test_sites(&n, network_bad_tensor, "weights and running statistics", where);
    list_activations(&n);
    test_sites(&n, network_bad_activation, "activations", where);
  }
  network_free(&n);
}

// -- Memory ----------------------------------------------------------------------------------------

static size_t taken;

static void *count_bytes(size_t bytes) {
  taken += bytes;
  return &taken; // nobody will write there
}

static void release_nothing(void *memory) {
  (void)memory;
}

// What network_create takes for so many images.
static size_t bytes_taken(const device *d, int width, int batch, network *n) {
  error e;
  taken = 0;
  if (!network_create(n, d, width, batch, &e)) exit(1);
  network_free(n);
  return taken;
}

// A batch that does not fill its last block is counted as if it did.
static void test_bytes(device d, const char *name) {
  static const int widths[] = {8, 24, 64}, batches[] = {1, 2, 31, 32, 33, 100, 128};
  int wrong = 0;
  d.allocate = count_bytes;
  d.release = release_nothing;
  for (int i = 0; i < 3; i++)
    for (int j = 0; j < 7; j++) {
      const int batch = batches[j], whole = (batch + d.block - 1) / d.block * d.block;
      network n, more;
      const size_t takes = bytes_taken(&d, widths[i], batch, &n);
      const size_t takes_whole = bytes_taken(&d, widths[i], whole, &more);
      const size_t a_block_more = bytes_taken(&d, widths[i], whole + d.block, &more) - takes_whole;
      wrong += network_bytes(&n) != takes_whole || takes > takes_whole ||
               network_bytes_per_image(&n) * d.block != a_block_more;
    }
  check(!wrong, "memory, %s: what is said is what is taken (%d wrong)", name, wrong);
}

static void test_memory(void) {
  static const fusions masks = {.keeps_masks = true};
  for (int i = 0; i < 8; i++) {
    device d = reference_device;
    char name[80];
    d.block = i & 1 ? 32 : 1;
    d.fused = i & 2 ? &masks : NULL;
    d.rounded_weight_bytes = i & 4 ? 2 : 0;
    d.activation_bytes = i & 4 ? 2 : sizeof(real);
    snprintf(name, sizeof name, "blocks of %d, activations of %zu bytes%s", d.block,
             d.activation_bytes, d.fused ? ", masks" : "");
    test_bytes(d, name);
  }
}

// -- Arithmetic ------------------------------------------------------------------------------------

// Multiplications of an image, each with an addition, by the table at the top of network.h.
static double products(double width) {
  double sum = 32 * 32 * width * 9 * 3;      // the stem
  sum += 4 * (32 * 32 * width * 9 * width);  // stage 1
  for (int stage = 2; stage <= 4; stage++) { // three 3x3; a 3x3 and a shortcut that halve the side
    const double side = 64 >> stage, out = width * (1 << (stage - 1)), in = out / 2;
    sum += side * side * out * (3 * 9 * out + 9 * in + in);
  }
  return sum + 10 * 8 * width; // the linear layer
}

static void test_flops(void) {
  network n;
  error e;
  bool same = true;
  for (int width = 8; width <= 64; width += 8) {
    if (!network_describe(&n, &reference_device, width, 1, &e)) exit(1);
    same = same && network_flops(&n) == 2 * products(width);
  }
  check(same, "FLOPs of an image: two for each product of its convolutions and its linear layer");
  check(network_flops(&n) == 2 * 555422720.0, "at width 64: 2 times 0.56 10^9, as is often quoted");
}

int main(void) {
  static const char *const devices[] = {"reference", "cpu-bf16", "simt", "cuda"};
  list_names();
  for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
    error e;
    const device *d = device_by_name(devices[i], &e);
    if (!d) continue; // where there is no GPU
    test_bad_values(d);
    test_bytes(*d, d->name);
  }
  test_memory();
  test_flops();
  return check_summary();
}
