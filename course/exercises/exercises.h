// course/exercises/exercises.h - ten exercises: what they share. course/exercises.md says how to
// work with them.
//
// Each exercise is a file N_name.cu with something left to fill in. All have one signature: the file
// defines a function that launches the kernel, and that is given,
//
//     void run_N(const task *t)
//
// `make exercise N=3` compiles the file for the simulated GPU and calls run_3 with several tasks,
// whole ones and ragged ones (whose sizes are no multiple of anything). The inputs and what has to
// come out are in tasks.h, the comparing and the counting is in exercises.c.
#ifndef EXERCISES_H
#define EXERCISES_H

#include "device.h"

enum { EXERCISES = 10, MOST_INPUTS = 6, MOST_OUTPUTS = 3 };

// What a kernel is to work on. Pointers are to the GPU's memory, each a multiple of 16 bytes. An
// exercise says which of these it uses, and for what.
typedef struct {
  int rows, columns, depth;
  conv_shape conv;
  float smoothing, momentum, weight_decay;
  const void *in[MOST_INPUTS];
  void *out[MOST_OUTPUTS];
} task;

typedef void run_function(const task *t);

// The run_N of one device, numbers 1 to 10 at [0] to [9]. NULL: that file is not in this program.
typedef struct {
  run_function *yours[EXERCISES], *ours[EXERCISES];
} exercise_table;

// What a kernel has cost so far, of the simulated memories and tensor cores.
typedef struct {
  double sectors;    // of 32 bytes, from and to global memory
  double wavefronts; // turns of shared memory
  double least;      // of them, without bank conflicts
  double requests;   // loads and stores of a warp, from and to both memories
  double products;   // mma instructions of a warp
  int copies;        // cp.async of a thread that were under way at once, as note_copies saw it
  int accesses;      // of the busiest thread of a block to memory: they come one after another
} exercise_cost;

#ifdef __cplusplus
extern "C" {
#endif
const exercise_table *simt_exercises(void);
const exercise_table *cuda_exercises(void);
exercise_cost simt_exercise_cost(const char *kernel);
#ifdef __cplusplus
}

#include <math.h>

#include "gpu/tile.h" // bf16, launch, copy_async, load_matrices, mma_16x8x16

// Your run_N is in namespace exercise, ours in namespace solution: a program holds both.
namespace GPU {

// Exercise 8 calls it while a line is used; the simulator looks how many copies are on their way.
#ifdef __CUDACC__
static inline __device__ void note_copies() {}
#else
void note_copies();
#endif

} // namespace GPU
#endif

#endif
