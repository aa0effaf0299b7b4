// run/checkpoint.h - a run on the disk: its weights, and what going on with it needs besides.
//
//     DIR/resnet18_cifar10.safetensors          the weights and running statistics, under PyTorch's
//                                               names and in its layout [Cout][Cin][R][S]
//     DIR/resnet18_cifar10.resume.safetensors   momentum.<parameter>, and as metadata: settings,
//                                               epoch, step, sums of the epoch so far
//
// The first opens in PyTorch as it is:
//
//     net.load_state_dict(safetensors.torch.load_file("resnet18_cifar10.safetensors"), strict=True)
//
// Nothing that was saved is ever lost. Both files are written under other names (.new), reach the
// disk, and only then take the place of the old ones. Two renames are not one, so the resume file
// carries the fingerprint of the weights that belong to it; where a crash came between the two, the
// weights are still there as .new, and the next start finishes what was begun (checkpoint_repair).
//
// A new run moves an earlier one's pairs out of its way, to names ending in .1, .2, ..: two renames
// again. Where a crash came between these, the weights stand alone under .K, and the next start moves
// them back. (Those of a kept step stay there: no run goes on from them.)
//
// One run saves in a directory at a time. DIR/.lock sees to that (directory_claim in files.h).
//
// Checked by `make check`: tests/checkpoint_test.c (round trip, layout, files of every wrong kind) and
// tests/crash_test.c (a full disk, kill -9 at each moment of a save).
#ifndef CHECKPOINT_H
#define CHECKPOINT_H

#include "network.h"
#include "safetensors.h"

#define CHECKPOINT_NAME "resnet18_cifar10"
#define KEPT_NAME "step-" // and the step's number, at least six digits: --keep-every's

// How wide a network these weights are of, by their first layer; 0: of none.
int checkpoint_width(const safetensors *weights);

// Puts the weights of a file into the network; momentum stays. False, with a line in e and the
// network as it was, unless the file holds this network's tensors in its shapes, as F32, F16, BF16 or
// F64 (num_batches_tracked as I64), and no others of such dtypes. A line to `out` says what was
// converted to F32, and how many tensors of other dtypes were left aside.
bool checkpoint_load(network *n, const char *path, FILE *out, error *e);

// Writes DIR/NAME.safetensors and DIR/NAME.resume.safetensors. `state` becomes the second file's
// metadata. False, with a line in e, when that fails, even without memory: the previous state is intact
// then and nothing half written is left; or, where only the last names could not be made sure, the new
// state is there, which checkpoint_repair brings together.
bool checkpoint_save(const network *n, const char *directory, const char *name,
                     const metadata *state, int state_count, error *e);

// What a resume file's metadata says, without touching a network: to be freed with
// safetensors_free.
bool checkpoint_read_resume(const char *directory, safetensors *resume, error *e);

// Weights, statistics and momentum of DIR's checkpoint into the network. `resume` is
// checkpoint_read_resume's, and checkpoint_repair has been called. All of it has to be F32, as it is
// saved: resuming is to the bit.
bool checkpoint_resume(network *n, const char *directory, const safetensors *resume, error *e);

// A setting of the run that saved a file of weights: `key` from the metadata of the resume file beside
// it. False, and nothing in `value`, where there is none that belongs to exactly these weights.
bool checkpoint_setting_beside(const char *weights_path, const char *key,
                               char value[METADATA_VALUE]);

// Makes DIR where it is missing, and this process the only one that saves there until it ends; then
// repairs. False, with a line in e, where another run holds it or nothing can be written: before
// anything was moved, and before hours of training that could not be saved.
bool checkpoint_claim(const char *directory, error *e);

// Brings a pair of files together again that a crash of checkpoint_save or checkpoint_set_aside left
// under two names. True also where there is nothing to do; damaged files stay as they are. False, with
// a line in e, where a file cannot be read now (its disk, its owner), because then nothing can be told
// of it, or cannot be moved; and where the resume file is damaged and a .new beside it may be its weights.
bool checkpoint_repair(const char *directory, error *e);

// Moves the checkpoints that are in DIR already out of a new run's way, to names ending in .K: the last
// state, and the steps that --keep-every kept. *number is K, or 0 where there were none.
bool checkpoint_set_aside(const char *directory, int *number, error *e);

// Is it the name of a file that a run keeps in DIR, or writes before it has its name, or its lock?
bool checkpoint_owns(const char *file);

#endif
