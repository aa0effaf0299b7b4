#!/usr/bin/env bash
# experiment.sh - what do mixup and label smoothing bring? Trains the network with neither, with one,
# with the other and with both, each from several seeds, and puts the results into one table.
# `make experiment` calls it; course/experiment.md tells what came out; tests/experiment_test.sh
# checks it.
#
#     tools/experiment.sh runs                 name every run: a variant and a seed a line
#     tools/experiment.sh one VARIANT SEED     do one run, or what is left of it, and test it
#     tools/experiment.sh all                  do all of them, JOBS at a time; then the table
#     tools/experiment.sh table                the table of what is there
#
# A run is a process of its own and shares nothing with the others, so a cluster can do one in each
# task of an array job: `tools/experiment.sh one $(tools/experiment.sh runs | sed -n ${TASK}p)`.
# A run that was interrupted goes on where it stopped, one that is complete is left as it is.
#
# The environment can say:
#
#     RECIPE=NAME                        minutes, evening, night or published: how large a network, how
#                                        many images and epochs; the table below
#     SEEDS=N                            that many seeds, from 2 on
#     JOBS=N                             runs at a time; each gets its share of the processors
#     DATA=DIR  TRAIN=FILE  ARGS=..      CIFAR-10's files; the trainer; more options for it, the same for all runs
#     RESULTS=DIR                        in RESULTS/RECIPE/VARIANT-SEED/ a run leaves
#         log.csv                        a row an epoch (run/report.h has the columns)
#         test.csv, train.csv            how good the final network is on the test images, and on the
#                                        training images, neither cropped nor flipped nor mixed
#         bins.csv                       the test's confidence bins (run/evaluate.c)
#         options                        what the run was begun with
#         output, *.safetensors          what the trainer said, and its checkpoint
set -uo pipefail

# Seeds 0 and 1 were for choosing the recipes. Results on them would flatter whatever they chose.
first_seed=2

variants='
plain      --mixup-alpha 0 --smoothing 0
mixup      --mixup-alpha 1 --smoothing 0
smoothing  --mixup-alpha 0 --smoothing 0.1
both       --mixup-alpha 1 --smoothing 0.1'

# minutes: so few images that the plain network memorises them; the tests on the way take 1,000
# images, the one at the end all. evening: all of them, and as much as four runs can do in two
# hours of two processors (with AMX, in 40 minutes); night: the same at twice the width.
recipes='
minutes    --width 16 --train-images 2500 --test-images 1000 --epochs 200 --milestones 100,150
evening    --width 16 --epochs 30 --milestones 10,20
night      --width 32 --epochs 30 --milestones 10,20
published  --width 64 --epochs 150 --milestones 50,100'

recipe=${RECIPE:-minutes} seeds=${SEEDS:-3} train=${TRAIN:-./train}
data=${DATA:-data/cifar-10-batches-bin} results=${RESULTS:-checkpoint/experiment}/$recipe
processors=$(nproc 2>/dev/null || echo 1)
jobs=${JOBS:-$processors}

fail() {
  echo "experiment: $*" >&2
  exit 1
}

# options_of NAME TABLE: the options behind the name; false where there is none.
options_of() { grep "^$1 " <<<"$2" | sed 's/^[a-z]*  *//'; }

runs() {
  local seed variant
  for ((seed = first_seed; seed < first_seed + seeds; seed++)); do
    for variant in $(cut -d ' ' -f 1 <<<"$variants"); do echo "$variant $seed"; done
  done
}

# How many epochs the log in directory $1 has; its first line is a heading.
epochs_in() { if [ -s "$1/log.csv" ]; then echo $(($(wc -l <"$1/log.csv") - 1)); else echo 0; fi; }

# What a run is called after is not for ARGS to say: it comes last, and would hold for each of them.
check_arguments() {
  local option
  for option in --mixup-alpha --smoothing --seed --data --checkpoint --log --eval --init --resume; do
    [[ ! " ${ARGS:-} " =~ [[:space:]]$option[=[:space:]] ]] ||
      fail "$option in ARGS: not possible; variant, seed, DATA= and RESULTS= decide that"
  done
}

# The last --epochs of a list of options is the one that holds.
epochs_asked() { sed -n 's/.*--epochs[ =]\([0-9]*\).*/\1/p' <<<"$recipe_options ${ARGS:-}"; }

train_one() { # DIRECTORY OPTION..
  local directory=$1 resume=
  shift
  [ -e "$directory/resnet18_cifar10.resume.safetensors" ] && resume=--resume
  "$train" --data "$data" "$@" --checkpoint "$directory" --log "$directory/log.csv" $resume \
    >>"$directory/output" 2>&1
}

# Of a run's options those that concern a test: the weights' file says the rest.
test_options() { # --OPTION VALUE or --OPTION=VALUE..
  for (( ; $# > 0; )); do
    case $1 in
    --train-images=* | --batch=* | --smoothing=* | --device=* | --threads=*) echo "$1" ;;
    --train-images | --batch | --smoothing | --device | --threads) echo "$1 ${2:-}" ;;
    esac
    shift
  done
}

# test.csv, bins.csv, and last of all train.csv, which says that the run is complete.
evaluate_one() { # DIRECTORY OPTION..
  local directory=$1
  local evaluate=("$train" --data "$data" $(test_options "${@:2}")
    --eval "$directory/resnet18_cifar10.safetensors")
  rm -f "$directory"/{test,bins,part}.csv
  "${evaluate[@]}" --log "$directory/test.csv" --bins "$directory/bins.csv" &&
    "${evaluate[@]}" --eval-train --log "$directory/part.csv" &&
    mv "$directory/part.csv" "$directory/train.csv"
} >>"$1/output" 2>&1

one() { # VARIANT SEED
  local options directory=$results/$1-$2 share=$((processors > jobs ? processors / jobs : 1))
  options="$recipe_options $(options_of "$1" "$variants") --seed $2 ${ARGS:-}" ||
    fail "no variant is called $1"
  mkdir -p "$directory" || fail "$directory: cannot be made"
  [ -e "$directory/options" ] || echo "$options" >"$directory/options"
  [ "$(<"$directory/options")" = "$options" ] ||
    fail "$directory was begun with other options; give RESULTS=DIR, or remove it"
  [ -e "$directory/train.csv" ] && return
  exec {lock}>"$directory/lock" && flock -n "$lock" || fail "$directory: another process is at it"
  train_one "$directory" --threads $share $options &&
    evaluate_one "$directory" --threads $share $options || fail "$1 $2: $(tail -n 1 "$directory/output")"
  clear_line
  LC_ALL=C printf '%-9s seed %d: test accuracy %.2f %%\n' "$1" "$2" \
    "$(LC_ALL=C awk -F, 'NR == 2 { print 100 * $3 }' "$directory/test.csv")"
}

# Output other than the progress line first clears it.
clear_line() { [ ! -t 1 ] || printf '\r\033[K'; }

# A line for the terminal, again and again: runs and epochs done, and the time left at this speed.
progress() {
  local total begun=$SECONDS at_start=-1 epochs complete run left
  total=$(($(epochs_asked) * 4 * seeds))
  while sleep 1; do
    epochs=0 complete=0
    for run in $(runs | tr ' ' -); do
      epochs=$((epochs + $(epochs_in "$results/$run")))
      [ -e "$results/$run/train.csv" ] && complete=$((complete + 1))
    done
    [ $at_start -ge 0 ] || at_start=$epochs
    left=-:--:--
    [ $epochs -gt $at_start ] &&
      left=$(((total - epochs) * (SECONDS - begun) / (epochs - at_start))) &&
      left=$(printf '%d:%02d:%02d' $((left / 3600)) $((left / 60 % 60)) $((left % 60)))
    printf '\r\033[K%d of %d runs, %d of %d epochs, %s left ' \
      $complete $((4 * seeds)) $epochs $total "$left"
  done
}

all() {
  local status watcher
  [ -t 1 ] && progress &
  watcher=$!
  trap "kill $watcher 2>/dev/null" EXIT
  export RECIPE="$recipe" SEEDS="$seeds" JOBS="$jobs"
  runs | xargs -n 2 -P "$jobs" "$0" one
  status=$?
  kill $watcher 2>/dev/null
  wait $watcher 2>/dev/null
  clear_line
  table
  return $((status != 0))
}

# Mean and, of several seeds, the standard deviation of one figure in the files of a variant's complete runs.
# The files have decimal points, whatever the locale; awk and printf read what it says.
mean_of() { # VARIANT FILE COLUMN FACTOR FORMAT
  local run files=(/dev/null)
  for run in "$results/$1"-*/train.csv; do [ ! -e "$run" ] || files+=("${run%train.csv}$2"); done
  LC_ALL=C awk -F, -v name="$3" -v factor="$4" -v format="$5" '
    FNR == 1 { for (i = 1; i <= NF; i++) if ($i == name) column = i }
    FNR == 2 { x = factor * $column; n++; sum += x; squares[n] = x }
    END {
      for (i = 1; i <= n; i++) variance += (squares[i] - sum / n) ^ 2 / (n > 1 ? n - 1 : 1)
      if (n > 1) printf format " ± " format, sum / n, sqrt(variance)
      else if (n) printf format, sum / n
      else printf "-"
    }' "${files[@]}"
}

# As Markdown. Every run that was begun is in it, or named below it.
table() {
  local variant run complete datasets
  datasets=$(cat "$results"/*-*/test.csv 2>/dev/null | grep -v '^set' | sed 's/.*,//' | sort -u | paste -sd+)
  echo "| $recipe on ${datasets:-nothing yet} | runs | test accuracy, % | NLL | mean confidence | calibration error | train accuracy, % |"
  echo "|---|---|---|---|---|---|---|"
  for variant in $(cut -d ' ' -f 1 <<<"$variants"); do
    complete=$(ls "$results/$variant"-*/train.csv 2>/dev/null | wc -l)
    echo "| $variant | $complete | $(mean_of $variant test.csv accuracy 100 %.2f) |" \
      "$(mean_of $variant test.csv nll 1 %.3f) | $(mean_of $variant test.csv confidence 1 %.3f) |" \
      "$(mean_of $variant test.csv calibration_error 1 %.3f) |" \
      "$(mean_of $variant train.csv accuracy 100 %.2f) |"
  done
  for run in "$results"/*-*; do
    [ -d "$run" ] && [ ! -e "$run/train.csv" ] &&
      echo "not complete: ${run##*/}, $(epochs_in "$run") of $(epochs_asked) epochs"
  done
  return 0
}

recipe_options=$(options_of "$recipe" "$recipes") ||
  fail "RECIPE=$recipe: not possible; minutes, evening, night or published is"
check_arguments
[[ $seeds =~ ^[1-9][0-9]{0,3}$ ]] || fail "SEEDS=$seeds: not possible; a number from 1 to 9999 is"
# With more jobs than runs, a share of the processors would be nobody's.
[ -n "${JOBS:-}" ] || jobs=$((processors < 4 * seeds ? processors : 4 * seeds))
[[ $jobs =~ ^[1-9][0-9]{0,3}$ ]] || fail "JOBS=$jobs: not possible; a number from 1 to 9999 is"
case "$#-${1:-}" in
1-runs | 1-all | 1-table | 3-one) "$@" ;;
*) echo "usage: tools/experiment.sh runs | one VARIANT SEED | all | table" >&2 && exit 2 ;;
esac
