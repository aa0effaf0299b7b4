// run/devices.c - the choice of a device by its name.
#include "device.h"

#include "error.h"
#include <string.h>

bool device_name_is_known(const char *name) {
  static const char *const known[] = {"auto",       "cpu",  "cpu-bf16",   "reference", "simt",
                                      "simt-plain", "cuda", "cuda-plain", NULL};
  for (int i = 0; known[i]; i++)
    if (!strcmp(name, known[i])) return true;
  return false;
}

#ifndef HAVE_CUDA
static const device *no_cuda(error *e) {
  fail(e, "this program was built without CUDA: install the CUDA Toolkit, or say where its nvcc is "
          "(make NVCC=..), and build again");
  return NULL;
}
#define cuda_device(plain, e) no_cuda(e)
#endif

const device *device_by_name(const char *name, error *e) {
  bool fast;
  if (!strcmp(name, "cpu-bf16")) return cpu_bf16_device(&fast);
  if (!strcmp(name, "reference")) return &reference_device;
  if (!strcmp(name, "cpu")) return cpu_device();
  if (!strcmp(name, "simt")) return simt_device(false);
  if (!strcmp(name, "simt-plain")) return simt_device(true);
  if (!strcmp(name, "cuda") || !strcmp(name, "cuda-plain")) return cuda_device(name[4], e);
  const device *gpu = cuda_device(false, e); // auto: where there is none, why does not matter
  if (gpu) return gpu;
  const device *bf16 = cpu_bf16_device(&fast);
  return fast ? bf16 : cpu_device();
}
