#!/usr/bin/env bash
# experiment_test.sh TRAIN SHAPES - `make experiment`, shortened to seconds: which runs there are and
# what distinguishes them, interrupted and resumed runs, the table's arithmetic, and mistakes.
# `make course-check` runs it.
set -u
subject=experiment
. "$(dirname "$0")/check.sh"
export CUDA_VISIBLE_DEVICES= # what is tested is the same on the CPU (train_test.sh says more)
export TRAIN=$(realpath "$1") DATA=data RESULTS=results RECIPE=minutes SEEDS=1 JOBS=2
shapes=$(realpath "$2") experiment=$PWD/tools/experiment.sh
work=$(mktemp -d) && cd "$work" && trap 'rm -rf "$work"' EXIT
export ARGS='--width=8 --train-images=64 --batch 16 --epochs 2 --milestones 1 --test-images 20'
"$shapes" --seed 3 --train 100 --test 50 data >/dev/null || echo "FAIL experiment: no data"

refuse() { # PATTERN COMMAND..: one line on stderr, and status 1
  local pattern=$1
  shift
  "$@" >out 2>err
  [ $? -eq 1 ] && [ "$(wc -l <err)" -eq 1 ] && grep -q "^experiment: $pattern" err
  check "refused with one line: $pattern" $?
}

[ "$(SEEDS=3 "$experiment" runs | sort | tr '\n' ',')" = \
  'both 2,both 3,both 4,mixup 2,mixup 3,mixup 4,plain 2,plain 3,plain 4,smoothing 2,smoothing 3,smoothing 4,' ]
check "runs: four variants from seeds 2, 3, 4" $?
"$experiment" all >all.out 2>all.err
[ $? -eq 0 ] && [ ! -s all.err ] && [ "$(grep -c '^| [a-z]* | 1 | [0-9.]* |' all.out)" -eq 4 ]
check "all: every variant has its row" $?
grep -q '| minutes on stand-in |' all.out
check "the table says on which data" $?
setting() { grep -ao "\"$2\":\"[^\"]*\"" "results/minutes/$1/resnet18_cifar10.resume.safetensors" | cut -d '"' -f 4; }
[ "$(for v in plain mixup smoothing both; do setting $v-2 mixup-alpha; setting $v-2 smoothing; done | tr '\n' ' ')" = \
  '0 0 1 0 0 0.1 1 0.1 ' ]
check "plain has neither, mixup and smoothing one each, both both" $?
[ "$(cut -d, -f 1,2 results/minutes/both-2/{test,train}.csv | grep -v set | tr '\n' ' ')" = 'test,50 train,64 ' ]
check "tested at the end on all test images, and on the training images" $?
touch before && "$experiment" all >again.out && [ -z "$(find results -name '*.csv' -newer before)" ] &&
  cmp -s <(grep '|' all.out) <(grep '|' again.out)
check "a second time nothing is done again" $?

# A run stopped in the middle, and done to its end later.
longer="$ARGS --epochs 30"
RESULTS=whole ARGS=$longer "$experiment" one both 2 >/dev/null
for _ in 1 2 3 4 5; do # a machine that is busy elsewhere gets more attempts
  rm -rf stopped
  RESULTS=stopped ARGS=$longer setsid "$experiment" one both 2 >/dev/null 2>&1 &
  for _ in {1..400}; do [ -s stopped/minutes/both-2/log.csv ] && break; sleep 0.02; done
  kill -TERM -- -$! 2>/dev/null
  wait $! 2>/dev/null
  for _ in {1..100}; do grep -q stopped stopped/minutes/both-2/output && break; sleep 0.05; done
  [ -e stopped/minutes/both-2/train.csv ] || break
done
RESULTS=stopped ARGS=$longer "$experiment" table | grep -q '^not complete: both-2, [0-9]* of 30 epochs'
check "a run that is not complete is named" $?
RESULTS=stopped ARGS=$longer "$experiment" one both 2 >/dev/null
grep -q '^resumed' stopped/minutes/both-2/output &&
  cmp -s {whole,stopped}/minutes/both-2/resnet18_cifar10.safetensors &&
  cmp -s {whole,stopped}/minutes/both-2/test.csv && [ "$(wc -l <stopped/minutes/both-2/log.csv)" -eq 31 ]
check "stopped and resumed: the bits and the log of a run never stopped" $?

# 50 and 70 %: mean 60, standard deviation 20 / sqrt(2). A third run was stopped between its two tests. A blank in
# the name of the directory does no harm.
for pair in '2 0.5' '3 0.7'; do
  mkdir -p "ma de/minutes/mixup-${pair% *}"
  printf 'set,accuracy,nll,confidence,calibration_error,data\ntest,%s,1,0.5,0.25,cifar10\n' "${pair#* }" \
    | tee "ma de/minutes/mixup-${pair% *}/"{test,train}.csv >/dev/null
done
mkdir 'ma de/minutes/mixup-4' && sed 's/,0.7,/,0.9,/' 'ma de/minutes/mixup-3/test.csv' >'ma de/minutes/mixup-4/test.csv'
RESULTS='ma de' "$experiment" table | grep -qx \
  '| mixup | 2 | 60.00 ± 14.14 | 1.000 ± 0.000 | 0.500 ± 0.000 | 0.250 ± 0.000 | 60.00 ± 14.14 |' &&
  RESULTS='ma de' "$experiment" table | grep -qx '| plain | 0 | - | - | - | - | - |'
check "the table: mean and standard deviation" $?
RESULTS='ma de' "$experiment" table | grep -qx 'not complete: mixup-4, 0 of 2 epochs'
check "of complete runs; another one is named" $?

refuse 'RECIPE=hours: .* minutes, evening, night or published is' env RECIPE=hours "$experiment" all
refuse 'SEEDS=0: .* a number' env SEEDS=0 "$experiment" all
# A trainer that only says what it was told, on 64 processors: four runs get 16 each.
mkdir many && printf '#!/bin/sh\necho 64\n' >many/nproc && printf '#!/bin/sh\necho "$@" >>"%s"\nexit 1\n' "$PWD/told" >many/train && chmod +x many/*
env -u JOBS PATH="$PWD/many:$PATH" TRAIN="$PWD/many/train" RESULTS=many/results "$experiment" one plain 2 >/dev/null 2>&1
grep -q -e '--threads 16 ' told
check "no processor is idle where there are more than runs" $?
refuse 'JOBS=two: .* a number' env JOBS=two "$experiment" all
refuse 'no variant is called cutout' "$experiment" one cutout 2
refuse '.*both-2 was begun with other options' env ARGS=--momentum=0 "$experiment" one both 2
# ARGS comes last on the command line: with these, all runs would be of one variant, or of one seed.
refuse '--mixup-alpha in ARGS: not possible' env ARGS='--mixup-alpha 0.2' "$experiment" all
refuse '--seed in ARGS: not possible' env ARGS='--batch 16 --seed=7' "$experiment" all
refuse '--data in ARGS: not possible' env ARGS='--data data' "$experiment" one plain 2
refuse 'plain 7: .*nowhere/data_batch_1.bin' env DATA=nowhere "$experiment" one plain 7
"$experiment" two >/dev/null 2>&1
[ $? -eq 2 ]
check "an unknown command: how to use it, status 2" $?

check_summary
