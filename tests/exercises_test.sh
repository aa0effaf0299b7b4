#!/usr/bin/env bash
# exercises_test.sh - the ten exercises of `make exercise`: each stub compiles and fails with the report that it
# should, each of our solutions passes, each wrong solution below is rejected for what is wrong with it, and
# course/exercises.md shows what is printed. `make course-check` runs it, with the compilers in the environment.
set -u
subject=exercises
. "$(dirname "$0")/check.sh"
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
export STATE=$work/state
mkdir -p "$STATE" "$work"/{stubs,wrong}

# build FOLDER FILE..: a checker with these files in it, FOLDER/check; two compilers at a time.
build() {
  printf '%s\n' "${@:2}" | xargs -P 2 -I FILE sh -c "$COMPILE FILE -o $1/\$(basename FILE .cu).o" &&
    $LINK_WITH "$1"/*.o $OBJECTS -o "$1/check" $LINK_THEN
}

# Stubs: number, and what the report has to say.
stubs=(
  '1 FAIL .*: x\[0\]\[4\]\[4\]\[0\] is 0, expected .*, tolerance'
  '2 FAIL .*: dlogits\[0\]\[0\] is 0, expected .*, tolerance'
  '3 FAIL .*: sums\[0\] is .*, expected .*, tolerance'
  '4 FAIL .*: dgamma\[0\] is 0, expected .*, tolerance'
  '5 FAIL right, but dear: 0.250 requests'
  '6 FAIL right, but dear: 8.125 sectors'
  '7 race in global memory: written at 7_fragments.cu:[0-9]*, and written by'
  '8 a copy in flight: read at 8_pipeline.cu:'
  '9 FAIL right, but bank conflicts: .* 4.50 times'
  '10 FAIL .*: dx\[0\]\[0\]\[1\]\[0\] is .*, expected .*, tolerance'
)

# Wrong solutions: number; what of ours becomes what; and what the report has to say.
wrong=(
  '1~IMAGE_SIDE - 1 - x~IMAGE_SIDE - x~FAIL .*: x\[.*expected'
  '2~logit\[j\] - largest)~logit[j])~FAIL .*: dlogits\[.* is -\?nan, expected'
  '3~__syncthreads();~~race in shared memory: read at 3_sum.cu:[0-9]*, and written by thread'
  '4~__syncthreads();~~race in shared memory: .* 4_norm.cu:'
  '5~first + 4 > count~first >= count~out of bounds: 16 bytes read at 5_sgd.cu:'
  '6~__syncthreads(); // all are.*~~race in shared memory: .* 6_tile.cu:.* and .* by thread'
  '7~i % 2 \* 8, lane % 4 \* 2 + i / 2~i / 2 * 8, lane % 4 * 2 + i % 2~FAIL .*: z\[0\]\[0\] is .*, expected'
  '8~wait_for_copies<LINES - 2>~wait_for_copies<LINES - 1>~a copy in flight: read at 8_pipeline.cu:.* before thread'
  '9~line % PIECES~line / 2 % 4~FAIL right, but bank conflicts: .* times the turns'
  '10~down % 2 ||~~FAIL .*: dx\[.*expected'
)

solution_of() { echo course/exercises/solutions/"$1"_*.cu; }
as_yours() { sed -e 's/namespace solution/namespace exercise/' "$@"; }

build "$work/stubs" course/exercises/[0-9]*.cu
check 'every stub compiles, with its warnings as they are' $?
for entry in "${stubs[@]}"; do
  n=${entry%% *}
  "$work/stubs/check" "$n" yours >"$work/said.stub.$n" 2>&1
  [ $? -eq 1 ] && grep -q "${entry#* }" "$work/said.stub.$n"
  check "stub $n fails: ${entry#* }" $? || tail -n 5 "$work/said.stub.$n"
  "$CHECKER" "$n" ours >"$work/said.ours.$n" 2>&1 && ! grep -q FAIL "$work/said.ours.$n"
  check "our solution of $n passes" $? || tail -n 5 "$work/said.ours.$n"
done

for entry in "${wrong[@]}"; do
  IFS='~' read -r n from to report <<<"$entry"
  ours=$(solution_of "$n")
  as_yours -e "s~$from~$to~" "$ours" >"$work/wrong/$(basename "$ours")"
  as_yours "$ours" | cmp -s - "$work/wrong/$(basename "$ours")" && echo "FAIL exercises: nothing changed in $n"
done
build "$work/wrong" "$work"/wrong/*.cu
check 'the wrong solutions compile' $?
for entry in "${wrong[@]}"; do
  IFS='~' read -r n from to report <<<"$entry"
  "$work/wrong/check" "$n" yours >"$work/out" 2>&1
  [ $? -eq 1 ] && grep -q "$report" "$work/out"
  check "wrong $n, '$to' in place of '$from': $report" $? || tail -n 5 "$work/out"
done

# The program around it: what a student sees.
as_yours -e 's/LINES - 2>/0>/' course/exercises/solutions/8_pipeline.cu >"$work/8.cu"
tools/exercise.sh 8 "$work/8.cu" >"$work/out" 2>&1
[ $? -eq 1 ] && grep -q 'FAIL right, but it waits: at most 1 copies .* 3 can be' "$work/out"
check 'a pipeline that waits for everything is rejected' $?
four='*(four_bf16 *)(rounded + first) = {to_pair(w[i], w[i]), to_pair(w[i], w[i])};'
as_yours -e "s~rounded\[i\] = .*~$four~" course/exercises/solutions/5_sgd.cu >"$work/5.cu"
tools/exercise.sh 5 "$work/5.cu" >"$work/out" 2>&1
[ $? -eq 1 ] && grep -q 'out of bounds: 4 bytes written at 5.cu:' "$work/out"
check 'a store that begins in an array of bf16 and ends behind it is rejected' $?
singly='for (int i = 0; i < 4; i++) rounded[first + i] = to_bf16(w[first + i]);'
as_yours -e "s~\*(four_bf16 \*)(rounded + first) = .*~$singly~" course/exercises/solutions/5_sgd.cu >"$work/5_singly.cu"
tools/exercise.sh 5 "$work/5_singly.cu" >"$work/out" 2>&1
[ $? -eq 1 ] && grep -q 'FAIL right, but dear: 0.[0-9]* requests for each result, at most 0.070' "$work/out"
check 'bf16 stored one by one are rejected' $?
as_yours -e 's/BLOCK \/ LANES\]/BLOCK \/ LANES - 1]/' course/exercises/solutions/3_sum.cu >"$work/3_array.cu"
tools/exercise.sh 3 "$work/3_array.cu" >"$work/out" 2>&1
[ $? -eq 1 ] && grep -q "out of bounds: index 7 of an array of type 'float \[7\]' at 3_array.cu:" "$work/out"
check 'a store behind the only array in shared memory is rejected' $?
as_yours -e 's/pixel = threadIdx.y/pixel = 0/; s/pixel += DOWN/pixel++/; s/row < DOWN/row < 1/' \
  course/exercises/solutions/4_norm.cu >"$work/4.cu"
tools/exercise.sh 4 "$work/4.cu" >"$work/out" 2>&1
[ $? -eq 1 ] && grep -q 'FAIL right, but one thread does too much: 7[0-9]* accesses to memory, at most 200' "$work/out"
check 'a thread that does the work of eight is rejected' $?
as_yours course/exercises/solutions/3_sum.cu >"$work/3_sum.cu"
tools/exercise.sh 3 "$work/3_sum.cu" >"$work/said.solved" 2>&1 && grep -q '^solved: exercise 3$' "$work/said.solved"
check 'a right file is solved' $?
tools/exercise.sh 3 >"$work/said.stub" 2>&1
[ $? -eq 1 ] && [ "$(tail -n 1 "$work/said.stub")" = 'exercise: course/exercises/3_sum.cu is not solved yet' ]
check 'a stub is not' $?
sed 's/own +=/won +=/' "$work/3_sum.cu" >"$work/typo.cu"
tools/exercise.sh 3 "$work/typo.cu" >"$work/out" 2>&1
[ $? -eq 1 ] && grep -q "^$work/typo.cu:[0-9]*:[0-9]*: error: .*won" "$work/out" &&
  [ "$(tail -n 1 "$work/out")" = "exercise: $work/typo.cu does not compile; the compiler's first message says where" ]
check 'an error of the compiler is shown as it is, with the path, then one line' $?
cksum <course/exercises/9_swizzle.cu >"$STATE/9" && echo 'another one' >"$STATE/8"
tools/exercise.sh >"$work/said.list" 2>&1 && [ "$(grep -c ✓ "$work/said.list")" -eq 1 ] && grep -q '✓  9 ' "$work/said.list"
check 'the list has a tick for a file that passed as it is now, and no other' $?
tools/exercise.sh 11 >"$work/out" 2>&1
[ $? -eq 1 ] && [ "$(cat "$work/out")" = 'exercise: there is no exercise 11; there are 1 to 10' ]
check 'there is no exercise 11' $?

if [ -n "$COMPILE_CUDA" ]; then
  printf '%s\n' course/exercises/[0-9]*.cu |
    xargs -P 2 -I FILE sh -c "${COMPILE_CUDA/ -c/ -ptx} FILE -o $work/\$(basename FILE).ptx" >"$work/out" 2>&1
  [ $? -eq 0 ] && [ ! -s "$work/out" ]
  check 'nvcc takes every stub, without a warning' $?
fi

unsaid=$(grep '^    ' course/exercises.md | cut -c5- | grep -v '^make \|^git ' | while read -r line; do
  grep -qF -e "$line" "$work"/said.* || echo "$line"
done)
[ -z "$unsaid" ]
check "course/exercises.md: what it shows is what is printed${unsaid:+, but for $unsaid}" $?

check_summary
