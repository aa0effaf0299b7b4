#!/usr/bin/env bash
# train_test.sh TRAIN SHAPES [quick] - the trainer as its users meet it: it learns, its runs can be
# repeated, interrupted, resumed and killed without losing a bit, and each mistake gets one line.
# quick: without the simulated GPU, learning and other numbers of threads, which under sanitizers take minutes.
#
# Runs are small: width 8, 150 stand-in images. Bits are compared with cmp on checkpoints.
set -u
subject=train
. "$(dirname "$0")/check.sh"
# Signals do here what they do in a terminal, whoever started this: nohup ignores SIGHUP, other programs
# SIGPIPE, and what a process ignores its children ignore.
if env --default-signal true 2>/dev/null; then # coreutils 8.31, of 2019
  [ -n "${SIGNALS_ARE_DEFAULT:-}" ] || SIGNALS_ARE_DEFAULT=1 exec env --default-signal bash "$0" "$@"
fi
awk() { LC_ALL=C command awk "$@"; } # the trainer's numbers have decimal points, whatever the locale
# Runs are on the CPU: a GPU is told of some fifty steps before the first of them is done, so a signal that comes
# in the middle of an epoch would stop most runs at its end. on_gpu shows the command what is hidden here.
gpus=${CUDA_VISIBLE_DEVICES-all}
export CUDA_VISIBLE_DEVICES=
on_gpu() { if [ "$gpus" = all ]; then env -u CUDA_VISIBLE_DEVICES "$@"; else CUDA_VISIBLE_DEVICES=$gpus "$@"; fi; }
train=$(realpath "$1") shapes=$(realpath "$2") quick=${3:-}
work=$(mktemp -d) && cd "$work" && trap 'rm -rf "$work"' EXIT

skip() { echo "skip train: $1: $2"; }
weights() { echo "$1/resnet18_cifar10.safetensors"; }
same() { cmp -s "$(weights "$1")" "$(weights "$2")"; }

"$shapes" --seed 3 --train 150 --test 100 data >/dev/null || echo "FAIL train: no data"
# On one device, whose bits the machine does not choose: auto takes cpu-bf16 where there is AMX.
on_cpu="--data data --device cpu"
small="$on_cpu --width 8 --batch 32 --epochs 2 --milestones 1 --seed 5" # 5 steps an epoch

# -- A run, and the same again ----------------------------------------------------------------------
"$train" $small --threads 2 --checkpoint a --log a.csv --trace a.jsonl >a.out
check "a run ends well" $?
grep -q 'STAND-IN' a.out && grep -q ',stand-in$' a.csv
check "says on the screen and in the log that its data is a stand-in" $?
[ "$(wc -l <a.csv)" -eq 3 ] && [ "$(wc -l <a.jsonl)" -eq 13 ]
check "log: a heading and a row an epoch; trace: the run, 10 steps, 2 epochs" $?
sed -n 7p a.jsonl | grep -q '^{"epoch":0,"train_loss":' &&
  sed -n 6p a.jsonl | grep -q '"lr":0.1,' && sed -n 8p a.jsonl | grep -q '"lr":0.01,'
check "the learning rate drops at its milestone" $?
[ "$(sed -n 6p a.jsonl | grep -o '"index":\[[^]]*' | tr , '\n' | wc -l)" -eq 22 ]
check "the last batch of an epoch holds what is left" $?
for threads in 1 3; do
  "$train" $small --threads $threads --checkpoint t$threads --trace t$threads.jsonl >/dev/null
  same a t$threads && cmp -s <(grep '"step"' a.jsonl) <(grep '"step"' t$threads.jsonl)
  check "$threads threads give the bits that 2 give" $?
done
"$train" $small --checkpoint other --seed 6 >/dev/null
! same a other
check "another seed gives other bits" $?
"$train" $on_cpu --width 8 --eval "$(weights a)" >eval.out
accuracy=$(sed -n 's/^done: test accuracy \([0-9.]* % ([0-9]* of 100)\).*/\1/p' a.out)
[ -n "$accuracy" ] && grep -q "accuracy $accuracy" eval.out && [ "$(grep -c ' of ' eval.out)" -ge 11 ]
check "--eval gives the accuracy that the run ended with, and each class's" $?

# What --eval says: figure NAME FILE.
figure() { sed -n "s/^  $1 *\([0-9.]*\).*/\1/p" "$2"; }
close() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a != "" && b != "" && (a - b) ^ 2 <= 4e-12) }'; } # printed with 6 digits
column() { awk -F, -v name="$1" 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == name) c = i } END { print $c }' "$2"; }
close "$(column test_nll a.csv)" "$(figure 'negative log likelihood' eval.out)" &&
  close "$(column test_loss a.csv)" "$(figure 'training criterion' eval.out)" &&
  grep -q 'smoothing 0.1, as in its training' eval.out && ! close "$(column test_nll a.csv)" "$(column test_loss a.csv)"
check "--eval gives the test_nll and the test_loss of the run's last row" $?
"$train" $small --epochs 1 --smoothing 0 --checkpoint unsmoothed --log unsmoothed.csv >/dev/null
"$train" $on_cpu --eval "$(weights unsmoothed)" >unsmoothed.out
close "$(column test_loss unsmoothed.csv)" "$(figure 'training criterion' unsmoothed.out)" &&
  close "$(column test_loss unsmoothed.csv)" "$(figure 'negative log likelihood' unsmoothed.out)" &&
  grep -q 'smoothing 0, as in its training' unsmoothed.out
check "a run without smoothing: --eval finds that in the resume file, and both losses are the same" $?
cp "$(weights unsmoothed)" alone.safetensors
"$train" $on_cpu --eval alone.safetensors | grep -q "smoothing 0.1, the recipe's" &&
  "$train" $on_cpu --eval alone.safetensors --smoothing 0.3 | grep -q 'smoothing 0.3, as given' &&
  cp "$(weights a)" alone.safetensors && cp unsmoothed/resnet18_cifar10.resume.safetensors alone.resume.safetensors &&
  "$train" $on_cpu --eval alone.safetensors | grep -q "smoothing 0.1, the recipe's"
check "weights alone, or beside another run's resume file: the recipe's smoothing, or the one given" $?
"$train" $on_cpu --eval "$(weights a)" --bins bins.csv >/dev/null && echo kept >>bins.csv &&
  "$train" $on_cpu --eval "$(weights a)" --bins bins.csv >/dev/null && grep -q kept bins.csv.1
check "--bins writes its file, and moves an earlier one aside" $?
ln -s /proc/self/fd/1 stdout # as /dev/stdout is, and nobody's loss if it is renamed
"$train" $on_cpu --eval "$(weights a)" --bins stdout >bins.out
[ -h stdout ] && [ "$(tail -n 1 bins.out | cut -d, -f1)" = 0.933333 ] && grep -q 'negative log' bins.out
check "--bins writes to what is no file of its own, and leaves that where it is" $?
awk -F, -v ece="$(figure 'expected calibration error' eval.out)" -v mean="$(figure 'mean confidence' eval.out)" \
  -v right="$(sed -n 's/.*accuracy .* (\([0-9]*\) of 100)/\1/p' eval.out | head -1)" '
  function near(a, b) { return (a - b) ^ 2 <= 4e-12 }
  NR > 1 {
    bins++; n += $3; sum += $3 * $4; hits += $3 * $5; d = $3 * ($5 - $4); error += d < 0 ? -d : d
    if ($3 && !($4 > $1 && $4 <= $2 + 1e-6)) bad = 1 # a mean lies in its bin
  }
  END { exit !(bins == 15 && n == 100 && !bad && near(sum / n, mean) && near(error / n, ece) && near(hits, right)) }' bins.csv
check "15 bins hold 100 images; confidence, accuracy and calibration error follow from them" $?
"$train" $on_cpu --eval "$(weights a)" --log figures.csv >/dev/null
for pair in 'nll|negative log likelihood' 'criterion|training criterion' 'confidence|mean confidence' \
  'calibration_error|expected calibration error'; do
  close "$(column "${pair%|*}" figures.csv)" "$(figure "${pair#*|}" eval.out)" || echo "$pair"
done >wrong.figures
[ ! -s wrong.figures ] && [ "$(column set figures.csv)" = test ] && close "$(column accuracy figures.csv)" "$(column test_accuracy a.csv)"
check "--eval with --log: the same figures, as a row" $?
# Three images that a network has memorised it knows; a label of the test set tells it nothing.
"$train" $on_cpu --width 8 --batch 3 --train-images 3 --test-images 2 --epochs 70 --milestones 50 --mixup-alpha 0 --checkpoint heart >/dev/null
"$train" $on_cpu --eval "$(weights heart)" --train-images 3 --eval-train --log heart.csv | grep -q 'train accuracy 100.00 % (3 of 3)' &&
  [ "$(column set heart.csv),$(column images heart.csv),$(column accuracy heart.csv)" = train,3,1 ]
check "--eval-train: the training images" $?
mkdir "a place" && cp -r data "a place/data"
(cd "a place" && "$train" $small --epochs 1 --checkpoint "check point" >out && sed -n 's/^next:  \.\/train/"$train"/p' out >next &&
  . ./next >next.out) && grep -q 'negative log' "a place/next.out"
check "the command under \"next:\" works where a path holds a space" $?
"$train" $small --epochs 1 --data "a place/data" --checkpoint spaced | grep -q "next:.*--data 'a place/data' --eval"
check "such a path is in quotes" $?
grep -q 'whole recipe: width 64, 150 epochs$' a.out
check "the whole recipe's time is not guessed from 600 images" $?
[ "$("$train" --plan 2>&1 | head -1 | cut -c1-5)" = layer ] && [ "$("$train" --help | head -1 | cut -c1-5)" = train ]
check "--plan and --help begin with what was asked for" $?
if command -v script >/dev/null && command -v stty >/dev/null; then
  # Its input stays open until it has ended: at the end of its input `script` may stop listening.
  mkfifo open && script -qec "stty cols 40; '$train' $small --epochs 1 --checkpoint narrow" /dev/null 0<>open >narrow.out 2>&1
  tr '\r' '\n' <narrow.out | sed -n 's/^\x1b\[K\(epoch [0-9]* (.*\)/\1/p' >narrow.lines
  grep -q '^epoch 0 (0-0) 5/5 0:00:00 left' narrow.lines && awk 'length > 39 { exit 1 }' narrow.lines
  check "the progress line fits a terminal of 40 columns" $?
fi

# -- Interrupted and resumed ------------------------------------------------------------------------
# Waits until a file of the last background process has so many lines, or that process is gone, or it hangs.
wait_for_lines() {
  local end=$((SECONDS + 120))
  until [ -e "$1" ] && [ "$(wc -l <"$1")" -ge "$2" ]; do
    kill -0 $! 2>/dev/null && [ $SECONDS -lt $end ] || return 1
    sleep 0.02
  done
}
# Every line but for the seconds it took: the log's column of that name, the trace's member.
rows() { awk -F, 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == "seconds") skip = i } { $skip = ""; print }' "$1"; }
lines() { sed 's/,"seconds":[0-9.]*//' "$1"; }
said_in_resume() { grep -ao "\"$2\":\"[0-9]*\"" "$1/resnet18_cifar10.resume.safetensors" | tr -dc 0-9; }
# A run without an end on the checkpoint $signal, stopped by that signal in the middle of an epoch, and
# not of the first. Where that is, and how many epochs the runs of comparison need, only the machine
# decides. It can be between two epochs, too: then there is another attempt.
finer="$small --batch 8" # 19 steps an epoch
signals="INT TERM HUP"
if [ -z "${SIGNALS_ARE_DEFAULT:-}" ]; then
  signals=
  skip 'runs stopped by a signal' 'env has no --default-signal here'
fi
stop_in_the_middle() {
  for _ in {1..10}; do
    rm -rf $signal $signal.csv $signal.jsonl
    # With default signals: a shell's background jobs ignore SIGINT.
    env --default-signal=INT "$train" $finer --epochs 100000 --checkpoint $signal --log $signal.csv --trace $signal.jsonl >$signal.out 2>&1 &
    wait_for_lines $signal.jsonl 27
    kill -$signal $!
    wait $!
    status=$? epoch=$(said_in_resume $signal epoch) step=$(said_in_resume $signal step_in_epoch)
    [ "${epoch:-0}" -ge 1 ] && [ "${step:-0}" -gt 0 ] && [ "$step" -lt 19 ] && return
  done
}
for signal in $signals; do
  stop_in_the_middle
  [ $status -eq $((128 + $(kill -l $signal))) ] && grep -q -- --resume $signal.out
  check "SIG$signal: saves, says how to go on, exit status $status" $?
  [ "$(grep -c '"step"' $signal.jsonl)" -eq $((19 * epoch + step)) ] && [ "$(wc -l <$signal.csv)" -eq $((1 + epoch)) ]
  check "it came in the middle of epoch $epoch, after its step $step of 19, with all rows so far" $?
  "$train" $finer --checkpoint $signal --resume --epochs $epoch >short.out 2>short.err
  [ $? -eq 1 ] && ! grep -q '^done' short.out && grep -q "^train: --epochs $epoch: .* give at least $((epoch + 1))$" short.err
  check "it is not done after $epoch epochs, and says so" $?
  epochs=$((epoch + 2)) whole=whole$((epoch + 2))
  [ -e $whole ] || "$train" $finer --epochs $epochs --checkpoint $whole --log $whole.csv --trace $whole.jsonl >/dev/null
  "$train" $finer --checkpoint $signal --log $signal.csv --trace $signal.jsonl --resume --epochs $epochs >/dev/null 2>&1
  same $signal $whole
  check "resumed: the bits of a run never stopped" $?
  [ "$(wc -l <$whole.csv)" -eq $((1 + epochs)) ] && cmp -s <(rows $signal.csv) <(rows $whole.csv)
  check "its log: every row, every column but the seconds" $?
  [ "$(wc -l <$whole.jsonl)" -eq $((1 + 20 * epochs)) ] && cmp -s <(lines $signal.jsonl) <(lines $whole.jsonl)
  check "its trace: every line, steps and epochs, but for the seconds" $?
done
"$train" $small --epochs 100000 --checkpoint killed --log killed.csv --trace killed.jsonl >/dev/null 2>&1 &
wait_for_lines killed.jsonl 16
kill -STOP $! # it is alive, then, and in the middle of something
for again in '--resume --epochs 1' "$small"; do
  "$train" $on_cpu $again --checkpoint killed --log second.csv >second.out 2>second.err
  [ $? -eq 1 ] && [ "$(wc -l <second.err)" -eq 1 ] && grep -q "^train: killed: in use by process $! on $(uname -n);" second.err && [ ! -e second.csv ]
  check "a second run in the same place, ${again%% *}: refused, and told the first one's number" $?
done
rm -rf checkpoint # where runs are saved unless told otherwise
"$train" --plan >/dev/null && "$train" $on_cpu --eval "$(weights a)" >/dev/null && [ ! -e checkpoint ]
check "--plan and --eval make and claim no place of their own" $?
{ kill -9 $! && wait $!; } 2>/dev/null
done_steps=$(grep -c '"step"' killed.jsonl)
epochs=$(($(said_in_resume killed epoch) + 2))
"$train" $on_cpu --checkpoint killed --log killed.csv --trace killed.jsonl --resume --epochs $epochs >/dev/null
"$train" $small --epochs $epochs --checkpoint killed.whole --log killed.whole.csv --trace killed.whole.jsonl >/dev/null
same killed killed.whole
check "killed after step $done_steps and resumed from the last epoch: the same bits" $?
cmp -s <(rows killed.csv) <(rows killed.whole.csv) && cmp -s <(lines killed.jsonl) <(lines killed.whole.jsonl)
check "its log and trace have each epoch and step once" $?
# The plain reference takes its time over the test images: the signal comes while it looks at them.
slow="--data data --width 8 --batch 4 --train-images 4 --epochs 1 --device reference"
if [ -n "$signals" ]; then
  for _ in {1..10}; do
    rm -rf tested tested.jsonl tested.csv
    env --default-signal=INT "$train" $slow --checkpoint tested --log tested.csv --trace tested.jsonl >/dev/null 2>&1 &
    wait_for_lines tested.jsonl 2
    kill -INT $! 2>/dev/null
    wait $!
    status=$?
    [ $status -ne 0 ] && break
  done
  [ $status -eq 130 ] && [ "$(wc -l <tested.csv)" -eq 1 ] && [ "$(said_in_resume tested step_in_epoch)" = 1 ] &&
    "$train" $slow --checkpoint tested --log tested.csv --trace tested.jsonl --resume >/dev/null &&
    [ "$(wc -l <tested.csv)" -eq 2 ] && [ "$(wc -l <tested.jsonl)" -eq 3 ]
  check "a signal during the test stops it there: the step is saved, and the resumed run tests" $?
  # The second signal comes in the step that the first one lets end; or too late, or as one with the first.
  twice="--data data --width 8 --batch 64 --train-images 64 --test-images 2 --checkpoint twice"
  "$train" $twice --device cpu --epochs 1 >/dev/null && cp -r twice saved
  for _ in {1..5}; do
    rm -rf twice twice.jsonl && cp -r saved twice
    env --default-signal=INT "$train" $twice --device reference --epochs 2 --resume --trace twice.jsonl >/dev/null 2>&1 &
    wait_for_lines twice.jsonl 1
    kill -INT $!
    sleep 0.2
    kill -INT $! 2>/dev/null
    wait $!
    status=$?
    [ "$(said_in_resume twice step)" -eq 1 ] && break
  done 2>/dev/null # bash tells of the end of a process
  [ $status -eq 130 ] && cmp -s {saved,twice}/resnet18_cifar10.resume.safetensors && same saved twice
  check "a second Ctrl-C ends it at once: nothing more is saved" $?
fi
(trap '' HUP; exec "$train" $small --epochs 100000 --checkpoint ignoring --trace ignoring.jsonl) >/dev/null 2>&1 &
wait_for_lines ignoring.jsonl 2
kill -HUP $!
wait_for_lines ignoring.jsonl $(($(wc -l <ignoring.jsonl) + 7)) # more than an epoch's
went_on=$?
kill -TERM $! 2>/dev/null
wait $!
[ $? -eq 143 ] && [ $went_on -eq 0 ]
check "a signal that was ignored stays ignored, as nohup has it" $?
"$train" $small --epochs 100000 --checkpoint headed --trace headed.jsonl 2>headed.err | head -1 >/dev/null
[ "${PIPESTATUS[0]}" -eq 141 ] && [ ! -s headed.err ] && [ "$(said_in_resume headed step)" -eq "$(grep -c '"step"' headed.jsonl)" ]
check "a closed pipe (| head) ends a run without a word, and saves its last step" $?
"$train" $on_cpu --checkpoint a --resume >again.out && grep -q "test accuracy $accuracy" again.out
check "resuming a finished run says that it is finished" $?

# -- Keeping and starting from files ---------------------------------------------------------------
"$train" $small --epochs 1 --checkpoint kept --keep-every 2 >/dev/null
ls kept/step-000002.safetensors kept/step-000004.resume.safetensors >/dev/null && [ ! -e kept/step-000003.safetensors ]
check "--keep-every 2 keeps steps 2 and 4" $?
# tensor FILE NAME: its bytes.
tensor() {
  local data ends
  data=$((8 + $(od -An -t u8 -N 8 "$1")))
  ends=$(head -c $data "$1" | grep -ao "\"$2\":{[^}]*" | sed 's/.*"data_offsets":\[\([0-9,]*\).*/\1/')
  tail -c +$((data + ${ends%,*} + 1)) "$1" | head -c $((${ends#*,} - ${ends%,*}))
}
still="$small --epochs 1 --lr 1e-30 --weight-decay 0" # no weight is so small
"$train" $still --init "$(weights a)" --checkpoint from >/dev/null
"$train" $still --checkpoint fresh >/dev/null
for name in conv1.weight linear.weight; do
  tensor "$(weights a)" $name >wanted
  [ -s wanted ] && tensor "$(weights from)" $name | cmp -s - wanted && ! tensor "$(weights fresh)" $name | cmp -s - wanted ||
    echo $name
done >wrong.tensors
[ ! -s wrong.tensors ]
check "--init starts from a file" $?
cp "$(weights a)" before.safetensors
"$train" $small --checkpoint a --seed 9 >set_aside.out
cmp -s before.safetensors a/resnet18_cifar10.safetensors.1 && grep -q 'earlier run' set_aside.out
check "a new run in the same place moves the earlier checkpoint aside and says so" $?
mv kept earlier
for _ in {1..10}; do # until it is killed before it has saved
  rm -rf kept kept.jsonl && cp -r earlier kept
  "$train" $small --checkpoint kept --seed 6 --epochs 1 --keep-every 2 --device reference --trace kept.jsonl >kept.out 2>&1 &
  wait_for_lines kept.jsonl 2
  { kill -9 $! && wait $!; } 2>/dev/null
  [ ! -e kept/step-000002.safetensors ] && break
done
cmp -s earlier/step-000002.safetensors kept/step-000002.safetensors.1 && cmp -s "$(weights earlier)" "$(weights kept).1"
check "its kept steps too; and all before the first step: what stands together is of one run" $?
"$train" $on_cpu --checkpoint kept --resume 2>&1 | grep -q 'nothing to resume'
check "so that nothing goes on from the earlier run's state with the new one's log" $?
for file in kept/*.1; do mv "$file" "${file%.1}"; done
"$train" --plan | grep -q '11173962 parameters'
check "--plan: the published 11,173,962 parameters" $?

# -- The CPU's tensor cores, or plain C in their place ---------------------------------------------------
# One epoch there, one on the CPU, one there again; and all at once, or with an end between, the same.
blocks="--data data --width 8 --batch 4 --train-images 6 --test-images 2 --device cpu-bf16"
"$train" $blocks --checkpoint blocks --epochs 1 >blocks.out &&
  cp -R blocks blocks_resumed &&
  "$train" $blocks --checkpoint blocks --epochs 2 --resume --device cpu >>blocks.out &&
  "$train" $blocks --checkpoint blocks --epochs 3 --resume >>blocks.out
[ $? -eq 0 ] && [ "$(grep -c 'resumed' blocks.out)" -eq 2 ] && grep -q 'after 3 epochs' blocks.out
check "--device cpu-bf16 trains, and a run goes from it to cpu and back" $?
"$train" $blocks --checkpoint blocks_resumed --epochs 2 --resume --threads 1 >/dev/null &&
  "$train" $blocks --checkpoint blocks_whole --epochs 2 --threads 3 >/dev/null &&
  cmp -s "$(weights blocks_resumed)" "$(weights blocks_whole)"
check "--device cpu-bf16: resumed, on another number of threads, to the same bits" $?
two_blocks="$small --batch 64 --test-images 2 --epochs 1 --device cpu-bf16" # 3 steps
on_threads() { "$train" $two_blocks --threads $1 --keep-every 2 --checkpoint b$1 --trace b$1.jsonl >/dev/null; }
on_threads 1
if [ -z "$quick" ]; then
  on_threads 2 && on_threads 3 && same b1 b2 && same b3 b2 && cmp -s <(lines b1.jsonl) <(lines b2.jsonl) && cmp -s <(lines b3.jsonl) <(lines b2.jsonl)
  check "--device cpu-bf16: the bits of two blocks of images on 1, 2 and 3 threads" $?
fi
mkdir middle && for kind in '' resume.; do cp b1/step-000002.${kind}safetensors middle/resnet18_cifar10.${kind}safetensors; done
"$train" $two_blocks --threads 2 --checkpoint middle --resume >middle.out && grep -q '^resumed *after step 2' middle.out && same middle b1
check "--device cpu-bf16: resumed in the middle of an epoch, to the same bits" $?

# -- The simulated GPU --------------------------------------------------------------------------------
if [ -z "$quick" ]; then
  # Its checkpoints are everyone's: one epoch there, one on the CPU, one there again.
  tiny="--data data --width 8 --batch 2 --train-images 3 --test-images 1 --checkpoint simulated"
  "$train" $tiny --device simt --epochs 1 --trace simulated.jsonl >simulated.out &&
    cp "$(weights simulated)" first.safetensors &&
    "$train" $tiny --device cpu --epochs 2 --resume >>simulated.out &&
    "$train" $tiny --device simt --epochs 3 --resume >>simulated.out
  [ $? -eq 0 ] && [ "$(grep -c 'resumed' simulated.out)" -eq 2 ] && grep -q 'after 3 epochs' simulated.out
  check "--device simt trains, and a run goes from it to the CPU and back" $?
  "$train" $tiny --device simt --epochs 1 --checkpoint simulated_again >/dev/null
  cmp -s first.safetensors "$(weights simulated_again)"
  check "--device simt: the same seed, the same bits" $?
  "$train" $tiny --device reference --epochs 1 --checkpoint plain --trace plain.jsonl >/dev/null
  losses() { grep '"step":1,' "$1" | grep -o '"loss":[0-9.]*' | cut -d: -f2; }
  awk -v a="$(losses simulated.jsonl)" -v b="$(losses plain.jsonl)" \
    'BEGIN { exit !(a > 0 && b > 0 && (a - b) ^ 2 <= (0.02 * b) ^ 2) }' # bf16; step_test.c derives what it may do
  check "its first loss is the reference's, but for bf16" $?
  grep '"step":1,' simulated.jsonl | grep -q '"activations":"bf16"' &&
    grep '"step":1,' plain.jsonl | grep -q '"activations":"float32"'
  check "the trace says which it is" $?
fi

# -- A GPU, where one answers ---------------------------------------------------------------------------
gpu=cuda
if [ -z "$quick" ] && on_gpu "$train" --device $gpu --plan >/dev/null 2>&1; then
  tiny="--data data --width 8 --batch 4 --train-images 6 --test-images 2 --device $gpu"
  on_gpu "$train" $tiny --checkpoint gpu --epochs 2 >gpu.out && grep -q 'after 2 epochs' gpu.out
  check "--device $gpu trains" $?
  on_gpu "$train" $tiny --checkpoint gpu_resumed --epochs 1 >/dev/null &&
    on_gpu "$train" $tiny --checkpoint gpu_resumed --epochs 2 --resume >/dev/null && same gpu gpu_resumed
  check "--device $gpu: stopped after an epoch and resumed, the same bits" $?
  "$train" $tiny --checkpoint gpu_resumed --epochs 3 --resume --device cpu | grep -q 'after 3 epochs'
  check "--device $gpu: its run goes on on the CPU" $?
  on_gpu "$train" $tiny --checkpoint gpu_bad --epochs 9 --lr 1e30 2>gpu.err >/dev/null
  [ $? -eq 1 ] && [ "$(wc -l <gpu.err)" -eq 1 ] && grep -qE 'loss is (nan|inf|-nan) at epoch' gpu.err
  check "--device $gpu: a loss that is not finite stops the run" $?
fi

# -- Mistakes -----------------------------------------------------------------------------------------
# refuse STATUS PATTERN ARGUMENTS: exactly one line on stderr, which matches, and that exit status.
refuse() {
  local status=$1 pattern=$2
  shift 2
  local typed=${*@Q}
  [ ${#typed} -gt 60 ] && typed=..${typed: -60}
  "$train" "$@" >refuse.out 2>refuse.err
  [ $? -eq "$status" ] && [ "$(wc -l <refuse.err)" -eq 1 ] && grep -qE -- "$pattern" refuse.err
  check "refused with one line, status $status: $typed" $?
}
# Options that are none, and the one that was meant: a letter wrong, missing, too many or swapped with
# the next, and dashes left out. Where nothing is near, nothing is suggested.
while read -r typed meant; do
  refuse 2 "^train: unknown option ${typed%=*}; did you mean --$meant\?$" "$typed" 8
done <<'end'
--widht width
--widht=8 width
--wdiht width
width width
-width width
---width width
width=8 width
--Width width
--epoch epochs
--epochss epochs
--rl lr
-rl lr
--evan eval
--weight_decay weight-decay
--trian-imgaes train-images
-help help
end
for typed in data.csv --x --gpu --mixup --learning-rate -x -hh -h=1 - -- --- = --= --=8; do
  refuse 2 "^train: unknown option $typed; --help lists them$" "$typed"
done
refuse 2 '^train: unknown option ""; --help lists them$' ''
long=$(head -c 5000 /dev/zero | tr '\0' x)
for odd in "$long" "--$long" "--$long=" "=$long" "--lr=$long" "--data=$long" "--device=$long" \
  "--milestones=$long" "--preset=$long" "--plan=$long" $'--a\nb\n' $'--lr=\n1' $'--plan=\n' $'--data=a\nb'; do
  refuse 2 '^train: .{10,150}$' "$odd"
done
refuse 2 '^train: --data a\\nb\\x1b\[2J: not possible; ' --data $'a\nb\e[2J'
refuse 1 '^train: nowhere/(\./)+\.\.\.[./]+/data_batch_1.bin: No such file or directory; .*place$' --data nowhere$(printf '/.%.0s' {1..900})
# --name=value
refuse 2 '^train: --width 12: ' --width=12
refuse 2 '^train: --lr 0.1=2: ' --lr=0.1=2
for option in lr data milestones seed preset device epochs; do
  refuse 2 "^train: --$option needs a value, " --$option= --plan
  refuse 2 "^train: --$option needs a value, " --$option '' --plan
done
refuse 2 '^train: --plan takes no value: leave =yes away$' --plan=yes
refuse 2 '^train: --resume takes no value' --resume=
cmp -s <("$train" --preset=quick --width=8 --plan --batch=7) <("$train" --preset quick --width 8 --plan --batch 7) &&
  "$train" --width=8 --plan | grep -q '^conv1 .* 32x32x8 '
check "--name=value is --name value" $?
cmp -s <("$train" -h) <("$train" --help) && "$train" -h | grep -q -- --help
check "-h is --help" $?
refuse 2 '--width 12: .* a multiple of 8 from 8 to 1024 is' --width 12
refuse 2 '--width 1032: .* a multiple of 8 from 8 to 1024 is' --width 1032
refuse 2 '--width 0' --width 0
refuse 2 '--batch 1.5: .* a whole number from 1 to 65536 is' --batch 1.5
refuse 2 '--batch -1' --batch -1
for lr in -1 0 2e30 nan 0.1x; do refuse 2 "--lr $lr: .* a number above 0 and up to 1e\+30 is" --lr $lr; done
refuse 2 '--epochs needs a value' --width 8 --epochs
refuse 2 '^train: --log needs a value, FILE.csv, and --resume is an option; --log=--resume would take' --log --resume
for share in 1 1.5 -0.1; do
  refuse 2 "train: --momentum $share: .* from 0 to below 1 is" --momentum $share
  refuse 2 "train: --smoothing $share: [^-]* from 0 to below 1 is" --smoothing $share
done
for alpha in -1 1e-7 2e6; do refuse 2 "--mixup-alpha $alpha: .* 0 or a number from 1e-06 to" --mixup-alpha $alpha; done
refuse 2 '--milestones 100,50: .* rising' --milestones 100,50
refuse 2 '--milestones 50,' --milestones 50,
refuse 2 '--seed -1: .* a whole number from 0 to 18446744073709551615 is' --seed -1
refuse 2 '--preset fast: .* recipe or quick is' --preset fast
refuse 2 '--device gpu: .* auto, cuda, cpu, cpu-bf16, reference or simt is' --device gpu
# The ends that do belong to a range.
"$train" --lr 1e30 --momentum 0 --smoothing 0 --mixup-alpha 0 --width 1024 --batch 1 --plan >/dev/null &&
  "$train" --mixup-alpha 1e-6 --width 8 --gamma 0 --weight-decay 0 --epochs 1 --plan >/dev/null
check "options take the ends of their ranges" $?
refuse 1 'built without CUDA|driver|no NVIDIA GPU' --device cuda
"$train" $small --epochs 1 --checkpoint auto --device auto | grep -q '^no GPU '
check "--device auto without a GPU: says so, and takes the CPU" $?
refuse 2 '^train: --eval only tests .*: leave --resume away$' --resume --eval x
for option in init trace checkpoint keep-every epochs lr weight-decay mixup-alpha gamma milestones; do
  refuse 2 "^train: --eval only tests the weights of its file: leave --$option away$" --eval x --$option 1
done
for option in eval init log; do refuse 2 "^train: --plan only prints the network: leave --$option away$" --plan --$option x; done
refuse 2 '^train: --plan only prints the network: leave --resume away$' --plan --resume
refuse 2 '^train: --bins needs --eval' --bins bins.csv
refuse 2 '^train: --eval-train needs --eval' --eval-train
refuse 1 'missing.safetensors: No such' $on_cpu --bins bins.csv --eval missing.safetensors
refuse 1 'nowhere/data_batch_1.bin: No such file' --data nowhere
refuse 1 '151' $on_cpu --train-images 151
echo text >file
refuse 1 'nothing to resume' $on_cpu --checkpoint nothing --resume
[ ! -e nothing ]
check "and nothing is made there" $?
# Where nothing can be saved: noticed before the first step, whoever asks. /proc takes no file, even of root.
refuse 1 '^train: file: a run cannot be saved there' $small --checkpoint file
! grep -q '^epoch' refuse.out
check "before the first step" $?
refuse 1 '^train: /proc: a run cannot be saved there' $small --checkpoint /proc
! grep -q '^epoch' refuse.out
check "before the first step" $?
mkfifo weights_pipe
timeout 20 "$train" $on_cpu --eval weights_pipe 2>&1 | grep -q '^train: weights_pipe: not a file'
check "a pipe is no file of weights, and nobody waits for it" $?
ln -s loop loop
refuse 1 'train: loop: a run cannot be saved there: Too many levels' $on_cpu --checkpoint loop --resume
refuse 1 '^train: nowhere/bins.csv: No such file' $on_cpu --eval "$(weights a)" --bins nowhere/bins.csv
! grep -q accuracy refuse.out
check "and before the test" $?
refuse 1 '^train: --preset sets --width 64: the run was begun with 8' $on_cpu --checkpoint kept --preset recipe --resume
cp -r kept longer && "$train" $on_cpu --checkpoint longer --width 8 --preset quick --epochs 2 --resume |
  grep -q '^--milestones 1, with which the run was begun, stays; this command line would set 1,2$'
check "a preset does not change the milestones of a run that goes on, and it says so" $?
refuse 1 'width 16: the run was begun with 8' $on_cpu --checkpoint kept --resume --width 16
refuse 1 'would fit' $on_cpu --width 256 --batch 65536
for width in 256 232 208; do # one of them could fit by chance
  "$train" --data data --device cpu-bf16 --width $width --batch 65536 2>&1 | sed -n 's/.*--batch \([0-9]*\) would fit/\1/p'
done >fits
[ "$(wc -l <fits)" -eq 3 ] && awk '$1 % 32 { odd++ } END { exit odd > 0 }' fits
check "cpu-bf16 takes whole blocks of 32 images, and so does the batch that would fit" $?
# A container's limit, where one can be put in its place: in a view of the files that only this command has.
contained() { # BYTES COMMAND..
  unshare -m sh -c 'mount -t tmpfs none /sys/fs/cgroup && echo "$1" >/sys/fs/cgroup/memory.max && shift && exec "$@"' - "$@"
}
if contained max true 2>/dev/null; then
  contained 100000000 "$train" $on_cpu --width 8 --batch 5000 2>&1 | grep -q '^train: --batch 5000 needs .* and this container may use 0.1 GiB; --batch [0-9]* would fit$' &&
    contained max "$train" $on_cpu --width 8 --epochs 1 --checkpoint contained >/dev/null
  check "a container's memory counts, and \"max\" is no limit" $?
else
  skip "a container's memory" "another /sys/fs/cgroup takes root, and unshare"
fi
refuse 1 'no such|No such' $on_cpu --eval missing.safetensors
printf 'epoch,lr\n0,0.1\n7 dwarfs\n9' >old.csv && cp old.csv old.trace && cp old.csv old.copy
refuse 1 'give another --log' $on_cpu --checkpoint kept --resume --log old.csv
refuse 1 'give another --trace' $on_cpu --checkpoint kept --resume --trace old.trace
cmp -s old.csv old.copy && cmp -s old.trace old.copy
check "a log or trace that is not this program's is left as it is" $?
cp killed.whole.csv long.csv && cp killed.whole.jsonl long.jsonl # of three epochs or more
refuse 1 'long.csv: goes on behind epoch 1' $on_cpu --checkpoint kept --resume --log long.csv
refuse 1 'long.jsonl: goes on behind epoch 1' $on_cpu --checkpoint kept --resume --trace long.jsonl
cmp -s killed.whole.csv long.csv && cmp -s killed.whole.jsonl long.jsonl
check "nor is one cut back that has more than a crash leaves" $?
sed 's/"step":"[0-9]*/&z/' kept/resnet18_cifar10.resume.safetensors >damaged.resume
mkdir damaged && cp damaged.resume damaged/resnet18_cifar10.resume.safetensors
refuse 1 'damaged' $on_cpu --checkpoint damaged --resume
# Positions that cannot be: more right than there were images; a step that had 7 images, of a batch of others.
for impossible in 's/"correct":"0/"correct":"9/' 's/"step_in_epoch":"0/"step_in_epoch":"1/; s/"images":"0/"images":"7/'; do
  sed "$impossible" kept/resnet18_cifar10.resume.safetensors >damaged/resnet18_cifar10.resume.safetensors
  refuse 1 'names a step that cannot be' $on_cpu --checkpoint damaged --resume --epochs 9
done
# Another run's log and trace, which fit the checkpoint as far as epochs go: kept has one, theirs a second.
"$train" $small --epochs 1 --checkpoint first --log theirs.csv --trace theirs.jsonl >/dev/null
"$train" $small --epochs 2 --milestones none --checkpoint second --log theirs.csv --trace theirs.jsonl >/dev/null
cp theirs.csv theirs.csv.copy && cp theirs.jsonl theirs.jsonl.copy
refuse 1 'theirs.csv: not what the run of this checkpoint wrote last, .*; give another --log' $on_cpu --checkpoint first --epochs 2 --resume --log theirs.csv
refuse 1 'theirs.csv: has rows .*, whose run had no file for --log by then .*; give another --log' $on_cpu --checkpoint kept --epochs 2 --resume --log theirs.csv
refuse 1 'theirs.jsonl: not what .*; give another --trace' $on_cpu --checkpoint first --epochs 2 --resume --trace theirs.jsonl
cmp -s theirs.csv theirs.csv.copy && cmp -s theirs.jsonl theirs.jsonl.copy
check "another run's log and trace are not gone on with" $?
cp theirs.csv.1 own.csv && echo '1,a row behind the checkpoint' >>own.csv && cp own.csv own.csv.copy
refuse 1 'theirs.jsonl: not what' $on_cpu --checkpoint first --epochs 2 --resume --log own.csv --trace theirs.jsonl
cmp -s own.csv own.csv.copy
check "and where one is refused the other is not changed" $?
head -n 1 theirs.jsonl | sed 's/"seed":5/"seed":6/' >head.jsonl && cp head.jsonl head.copy && cp -R first headed.first &&
  "$train" $on_cpu --checkpoint headed.first --epochs 2 --resume --trace head.jsonl >/dev/null && cmp -s head.jsonl.1 head.copy && grep -q '"seed":5' head.jsonl
check "a trace with another run's first line alone is moved aside" $?
"$train" $on_cpu --checkpoint first --epochs 2 --resume >/dev/null &&
  "$train" $on_cpu --checkpoint first --epochs 3 --resume --log theirs.csv.1 --trace theirs.jsonl.1 --momentum 0.5 --smoothing 0.25 >/dev/null
[ $? -eq 0 ] && [ "$(cut -d, -f1 theirs.csv.1 | tr '\n' ' ')" = 'epoch 0 2 ' ] && [ "$(grep -c '"momentum":0.5,.*"smoothing":0.25,' theirs.jsonl.1)" -eq 5 ]
check "its own it goes on with after epochs without one, and each step's settings are in the trace" $?
# In a run's first epoch its log holds no row that could tell.
"$train" $small --epochs 1 --train-images 32 --checkpoint third --log third.csv --keep-every 1 >/dev/null
for kind in '' resume.; do mv third/step-000001.${kind}safetensors third/resnet18_cifar10.${kind}safetensors; done
cp third.csv third.csv.copy && "$train" $on_cpu --checkpoint third --resume --log third.csv >third.out &&
  cmp -s third.csv.copy third.csv.1 && cmp -s <(rows third.csv) <(rows third.csv.1) && grep -qx 'third.csv: what stood there is now third.csv.1' third.out
check "a row behind a checkpoint of the first epoch may be another run's, and is moved aside" $?
cp "$(weights a)" nan.safetensors
printf '\0\0\300\177' | # a NaN, as the first number behind the header
  dd of=nan.safetensors bs=1 seek=$(($(od -An -t u8 -N 8 nan.safetensors) + 8)) conv=notrunc 2>/dev/null
refuse 1 'conv1.weight is not finite' $on_cpu --eval nan.safetensors
refuse 1 'conv1.weight is not finite' $on_cpu --init nan.safetensors --checkpoint from_nan
refuse 1 'not a safetensors file' $on_cpu --eval a.csv
refuse 1 'has no tensor' $on_cpu --eval kept/step-000002.resume.safetensors
refuse 1 'shape' $on_cpu --width 16 --eval "$(weights a)"
header='{"conv1.weight":{"dtype":"F32","shape":[12,3,3,3],"data_offsets":[0,1296]}}   '
(printf "\\$(printf %o ${#header})\\0\\0\\0\\0\\0\\0\\0%s" "$header" && head -c 1296 /dev/zero) >twelve.safetensors
refuse 1 'twelve.safetensors: a network of width 12; .* multiples of 8 up to' $on_cpu --eval twelve.safetensors
"$shapes" --seed 8 --train 150 --test 100 other.data >/dev/null
refuse 1 'other.data: stand-in data, and not the same that this run was begun with, which is stand-in; give its --data' --data other.data --checkpoint kept --resume
refuse 1 'cannot change in its middle' $on_cpu --checkpoint kept --resume --test-images 50
head -c 3000 data/data_batch_2.bin >short && cp -r data cut && mv short cut/data_batch_2.bin
refuse 1 'cut/data_batch_2.bin: wrong size' --data cut --width 8
"$train" --help >help.out
[ "$(grep -c '^  --' help.out)" -ge 28 ] && [ "$(wc -L <help.out)" -le 80 ] &&
  grep -q -- '--keep-every N' help.out && grep -q -- '--name=VALUE' help.out && ! grep -q 'seed|' help.out
check "--help lists the options in 80 columns" $?
[ "$(grep -A1 '^[A-Z][a-z ]*$' help.out | sed 's/^  \(--[a-z]*\).*/\1/' | tr '\n' ' ')" = \
  'The run --preset -- The recipe --epochs -- Files --data -- Looking inside --eval ' ]
check "--help has its options in four groups" $?
for presets in '' '--preset recipe' '--preset seed' '--preset quick --preset recipe'; do
  "$train" $presets --plan | grep -q '11173962 parameters'
  check "the published network: ${presets:-without a preset}" $?
done
"$train" --width 8 --preset recipe --preset quick --plan | grep -q '^conv1 .* 32x32x8 ' &&
  "$train" --preset recipe --preset quick --plan | grep -q '^conv1 .* 32x32x16 '
check "an option stands above its preset, and the later of two presets holds" $?

# -- Logs and traces --------------------------------------------------------------------------------
one="$on_cpu --width 8 --train-images 64 --test-images 2 --milestones none --epochs 1 --checkpoint one"
"$train" $one --log one.csv --trace one.jsonl >/dev/null
"$train" $one --log one.csv --trace one.jsonl >one.out
grep -qx 'one.csv: what stood there is now one.csv.1' one.out && grep -q 'one.jsonl.1$' one.out && cmp -s <(rows one.csv) <(rows one.csv.1)
check "a new run moves an earlier run's log and trace aside, and says so" $?
ln -s one.csv link.csv && "$train" $one --log link.csv >one.out && [ -h link.csv ] && [ -e one.csv.2 ] && [ "$(wc -l <one.csv)" -eq 2 ] &&
  grep -q '^link.csv: .* now .*/one.csv.2$' one.out
check "a symbolic link is followed: its target moves, and it leads to the new log" $?
: >empty.csv && ln -s absent.csv dangling.csv && "$train" $one --log empty.csv >/dev/null && [ ! -e empty.csv.1 ] && [ "$(wc -l <empty.csv)" -eq 2 ] &&
  "$train" $one --log dangling.csv >/dev/null && [ "$(wc -l <absent.csv)" -eq 2 ]
check "an empty file, and a link to nothing, are simply written" $?
echo 'my thesis' >thesis
for option in --log --trace; do refuse 1 'thesis: does not begin as .*; give another' $one $option thesis; done
refuse 1 'thesis: does not begin' $one --log one.csv --trace thesis
refuse 1 'thesis: does not begin' $on_cpu --eval "$(weights one)" --bins thesis
[ "$(cat thesis)" = 'my thesis' ] && [ ! -e thesis.1 ] && [ ! -e one.csv.3 ] && [ "$(wc -l <one.csv)" -eq 2 ]
check "what is no log, trace or bins of ours stays, and so does the log beside it" $?
mkdir folder unused && ln data/test_batch.bin hard.link
refuse 1 'folder: Is a directory' $one --log folder
refuse 1 'test_batch.bin: is a file of the data set' $one --log data/test_batch.bin
refuse 1 'hard.link: is a file of the data set' $one --trace hard.link
refuse 1 'safetensors: is a file of the checkpoint' $one --log "$(weights one)"
refuse 1 'safetensors: is a file of the checkpoint' $one --checkpoint unused --log "$(weights unused)"
refuse 1 'the same file' $one --log both --trace ./both
ln -s both both.link
refuse 1 'the same file' $one --log both.link --trace both
[ -d folder ] && [ ! -e folder.1 ] && [ -s data/test_batch.bin ] && [ ! -e "$(weights unused)" ] && [ ! -e both ] && [ -h both.link ]
check "and none of them is moved, or left where nothing was" $?
ln -s /dev/null null && "$train" $one --log null --trace null >/dev/null && [ -h null ] && [ ! -h null.1 ]
check "a device is written to, and stays" $?
mkfifo pipe
refuse 1 'pipe: a pipe that nobody reads' $one --log pipe
(exec 5<>pipe; "$train" $one --log pipe >/dev/null; "$train" $one --log pipe --resume --epochs 2 >/dev/null; timeout 60 head -n 3 <&5 >piped)
[ -p pipe ] && [ "$(cut -d, -f1 piped | tr '\n' ' ')" = 'epoch 0 1 ' ]
check "a pipe is appended to as it is, by a resumed run too" $?
"$train" $one --log closed.csv --trace closed.jsonl <&- >&- 2>&-
[ $? -eq 0 ] && [ "$(grep -c '^{' closed.jsonl)" -eq 3 ] && [ "$(wc -l <closed.jsonl)" -eq 3 ] && [ "$(wc -l <closed.csv)" -eq 2 ]
check "with standard output closed nothing is printed into a log" $?
"$train" $one --log /dev/stdout >shared.out
[ "$(grep -c '^0,' shared.out)" -eq 1 ] && grep -q '^done' shared.out && grep -q '^epoch,lr' shared.out && grep -q '^recipe' shared.out
check "a log that is standard output stands among its lines" $?

# Two files that cannot grow: filled up to 10 bytes below \`ulimit -f\` by a row that is all blanks, while the
# plain reference works on the next step. The limit lets a checkpoint through, but no row.
two="--data data --device reference --width 8 --batch 64 --train-images 64 --test-images 2 --milestones none --epochs 2"
stop_when_full() { # CHECKPOINT FILE LINES BEGINNING: FILE is filled once it has so many lines
  for _ in {1..5}; do
    rm -rf $1 $1.csv $1.jsonl
    (ulimit -f 2000; exec "$train" $two --checkpoint $1 --log $1.csv --trace $1.jsonl) >/dev/null 2>full.err &
    wait_for_lines $2 $3 && printf "%-$((2000 * 1024 - 10 - $(wc -c <$2) - 1))s\\n" "$4" >>$2
    wait $!
    status=$?
    [ $status -ne 0 ] && return
  done
}
"$train" $two --checkpoint full.whole --log full.whole.csv --trace full.whole.jsonl >/dev/null
"$train" $two --epochs 1 --checkpoint full.before >/dev/null
go_on_with_room() {
  "$train" $two --checkpoint $1 --log $1.csv --trace $1.jsonl --resume >/dev/null
  same $1 full.whole && cmp -s <(rows $1.csv) <(rows full.whole.csv) && cmp -s <(lines $1.jsonl) <(lines full.whole.jsonl)
}
stop_when_full full full.csv 1 0,
[ $status -eq 1 ] && [ "$(wc -l <full.err)" -eq 1 ] && grep -q '^train: full.csv: could not be written: File too large; the run is saved' full.err &&
  [ "$(said_in_resume full step)" -eq 1 ]
check "a row that cannot be written stops the run, which is saved as of its last step" $?
go_on_with_room full
check "resumed, with room: the same bits, each row of log and trace once" $?
stop_when_full step step.jsonl 3 '{"epoch":1,'
[ $status -eq 1 ] && [ "$(wc -l <full.err)" -eq 1 ] && grep -q 'step.jsonl: could not be written: File too large; --resume goes on from the last' full.err &&
  same step full.before
check "a step's line that cannot be written stops the run; no state without its line is saved" $?
go_on_with_room step
check "resumed, with room: the same bits, each line once" $?

# -- Bad moments ------------------------------------------------------------------------------------
cp "$(weights kept)" kept.before
refuse 1 'loss is (nan|inf|-nan) at epoch 1, step [0-9]+; the first tensor with a bad value is' \
  $on_cpu --checkpoint kept --resume --epochs 2 --milestones none --lr 1e30
(cd . && "$train" $small --epochs 1 --lr 1e30 --checkpoint none 2>none.err >/dev/null)
[ $? -eq 1 ] && ! grep -q 'last checkpoint' none.err && grep -q 'bad value is the output of' none.err
check "without a checkpoint none is spoken of" $?
cmp -s kept.before "$(weights kept)"
check "a loss that is not finite stops the run; the last good checkpoint stays" $?
# A step of a length that makes weights with which the logits overflow, and two that make them so large
# that their outputs' variance does, while the loss of training is a number still.
refuse 1 'the test loss is -?(nan|inf) after epoch 0, .*try a smaller --lr' $small --batch 64 --train-images 64 --epochs 1 \
  --lr 1e10 --checkpoint overflow --keep-every 1 --log overflow.csv
[ "$(wc -l <overflow.csv)" -eq 1 ] && [ ! -e "$(weights overflow)" ]
check "a test loss that is not finite: nothing saved, no row" $?
refuse 1 'step-000001.safetensors: the test loss is .* overflow' $on_cpu --eval overflow/step-000001.safetensors
refuse 1 'running_var is not finite after epoch 0; try' $small --batch 64 --train-images 128 --epochs 1 --milestones none \
  --lr 1e18 --checkpoint infinite --log infinite.csv
[ "$(wc -l <infinite.csv)" -eq 1 ] && [ ! -e "$(weights infinite)" ]
check "a running statistic that is not finite: nothing saved, no row" $?
(ulimit -f 100; "$train" $small --checkpoint kept --resume --epochs 3 >/dev/null 2>full.err)
[ $? -eq 1 ] && [ "$(wc -l <full.err)" -eq 1 ] && grep -q 'could not be written' full.err && cmp -s kept.before "$(weights kept)"
check "a full disk: one line, and the last checkpoint stays" $?
if [ -c /dev/full ]; then
  "$train" --plan >/dev/full 2>full.err
  [ $? -eq 1 ] && grep -q 'disk full' full.err
  check "a full disk under standard output is noticed" $?
  "$train" $small --checkpoint unheard >/dev/full 2>full.err
  [ $? -eq 1 ] && [ "$(wc -l <full.err)" -eq 1 ] && grep -q 'standard output: could not be written' full.err && [ ! -e "$(weights unheard)" ]
  check "and by a run: it stops" $?
fi
(unset OMP_WAIT_POLICY; exec -a /bin/echo "$train" --help) | grep -q '^train - '
check "the program starts itself once more, whatever its name is said to be" $?
if [ -z "$quick" ]; then # sanitizers need the addresses; a thread takes as many of them as its stack may have
  (ulimit -s 8192 -v 6000000; "$train" $one --threads 1024 >/dev/null 2>threads.err)
  [ $? -eq 1 ] && [ "$(wc -l <threads.err)" -eq 1 ] && grep -q '^train: 1024 threads: the system gives [0-9]*: ' threads.err
  check "threads that cannot be had: one line, and it is ours" $?
fi

# -- It learns ----------------------------------------------------------------------------------------
if [ -z "$quick" ]; then
  "$shapes" --seed 4 --train 1700 --test 200 more >/dev/null
  # Chance gives 10. Of sixteen runs (two compilers, eight seeds) one came to 22, the others to 55 to 82: so short a
  # run can begin badly, but not with four seeds.
  for seed in 1 2 3 4; do
    "$train" --data more --width 8 --batch 8 --lr 0.01 --epochs 3 --milestones 2 --mixup-alpha 0.2 --device cpu --seed $seed \
      --checkpoint learned >learned.out
    learned=$(sed -n 's/^done: test accuracy \([0-9]*\).*/\1/p' learned.out)
    [ "${learned:-0}" -ge 40 ] && break
  done
  [ "${learned:-0}" -ge 40 ]
  check "a small run on the stand-in set learns: $learned % of 10 classes right" $?
  grep -qE 'whole recipe: width 64, 150 epochs; up to [0-9.]+ hours here' learned.out
  check "the whole recipe's time is estimated from 5,100 images" $?
fi

check_summary
