#!/usr/bin/env bash
# pictures.sh - makes all pictures of the course; `make pictures` calls it. course/pictures/README.md says
# what each shows.
#
# The environment says what from and where to; without it, the pictures that are in the repository:
#
#     DATA=DIR       a data set: without it the generated stand-in shapes
#     WEIGHTS=FILE   a network trained on it: without it, one is trained for a minute, and kept
#     RESULTS=DIR    what `make experiment` left, RECIPE=minutes of it (and its run of the whole recipe,
#                    if the author's figures lie beside it): course/results
#     PICTURES=DIR   where to: course/pictures, or, with DATA=, build/pictures, since CIFAR-10's
#                    images are not ours to publish
#     SHEET=FILE     what `make cost` prints: without it, that is done first, which takes a minute
#     BUILD=DIR TRAIN=FILE SHAPES=FILE   the programs
set -euo pipefail

build=${BUILD:-build/gcc} all_results=${RESULTS:-course/results}
results=$all_results/${RECIPE:-minutes} published=$all_results/published
out=${PICTURES:-$([ -n "${DATA:-}" ] && echo build/pictures || echo course/pictures)}
data=${DATA:-build/pictures/shapes} weights=${WEIGHTS:-}
mkdir -p "$out" build/pictures

# The test images come last: without them, a set is one that was interrupted.
[ -n "${DATA:-}" ] || [ -e "$data/test_batch.bin" ] || "$SHAPES" --seed 1 --train 5000 --test 1000 "$data"
if [ -z "$weights" ]; then
  weights=build/pictures/network$([ -z "${DATA:-}" ] || cksum <<<"$DATA" | cut -d ' ' -f 1)
  if [ ! -e "$weights/resnet18_cifar10.safetensors" ]; then
    rm -rf "$weights.part" # of one that was interrupted
    "$TRAIN" --data "$data" --train-images 5000 --width 16 --batch 64 --lr 0.05 --epochs 3 \
      --milestones 2 --checkpoint "$weights.part" | grep '^epoch .* test\|^done'
    mv "$weights.part" "$weights"
  fi
  weights=$weights/resnet18_cifar10.safetensors
fi

draw() { # NAME ARGUMENT.. FILE
  "$build/pictures" "${@:1:$#-1}" -o "$out/${!#}"
  echo "$out/${!#}"
}
draw mixed --data "$data" mixed.png
draw crops --data "$data" crops.png
draw mistakes --data "$data" --weights "$weights" mistakes.png
draw filters --weights "$weights" filters.png
draw targets targets.svg
draw beta beta.svg
draw schedule schedule.svg
draw registers registers.svg
draw winograd winograd.svg
[ -n "${SHEET:-}" ] || "$build/bench/cost" >build/pictures/step.txt
draw roofline "step=${SHEET:-build/pictures/step.txt}" roofline.svg

# name FILE: sets `named` to VARIANT=.../VARIANT-SEED/FILE for each run, the variants in the table's order.
name() {
  local variant path
  named=()
  for variant in plain mixup smoothing both; do
    for path in "$results/$variant"-*/"$1"; do [ ! -e "$path" ] || named+=("$variant=$path"); done
  done
}
name train.csv
if [ ${#named[@]} -gt 0 ]; then
  name log.csv
  "$build/plot" "${named[@]}" -o "$out/curves.svg"
  echo "$out/curves.svg"
  name bins.csv
  draw reliability "${named[@]}" reliability.svg
else
  echo "no curves and no reliability: nothing of \`make experiment\` is complete in $results"
fi
# The whole recipe, beside its author's run of it (course/experiment.md says where that is from).
if [ -e "$published/both-1/log.csv" ] && [ -e "$published/notebook.csv" ]; then
  "$build/plot" "this program=$published/both-1/log.csv" "the author=$published/notebook.csv" -o "$out/published.svg"
  echo "$out/published.svg"
fi
