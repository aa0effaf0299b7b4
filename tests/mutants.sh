#!/usr/bin/env bash
# The check checked: does `make check` notice when the program is wrong?
#
#     tests/mutants.sh [N/M]        all of tests/mutants.txt, or the N-th of M parts (CI runs a sixteenth)
#     tests/mutants.sh plant TREE FILE WHAT      only plants one, in a tree of sources, for tools/bug.sh;
#                                   prints its program and operation
#
# Each entry of that file breaks one place of the sources, in a copy of them in a temporary directory,
# one at a time. What the check named there does not reject then (by a failed row, a report of the
# simulator, or its death) makes this script fail; so does an edit that does not compile, and, of whatever
# part, one that no longer applies, because its old text is not there exactly once. V=1 shows what noticed it.
#
#     == FILE: PROGRAM: what is broken
#     == FILE: PROGRAM OPERATION: what is broken
#     - old text                                    \n is a line's end
#     + new text
#
# PROGRAM is one of those that `make check` runs, so that what it rejects, `make check` rejects: a
# test (wiring_test), with its folder where that is not tests/ (double/gradients_test, or
# watched/kernels_test, with the kernels' accesses to memory watched), data_test.sh, or train_test.sh,
# which takes longest. OPERATION is for kernels_test, which runs small shapes, and then of that one only;
# "unguarded" can follow, for an access behind an array that changes no result.
set -u
export OMP_WAIT_POLICY=passive
cd "$(dirname "$0")/.." || exit 1
part=${1:-1/1}
[ "$part" = plant ] && [ $# -eq 4 ] && part=1/1
if ! [[ $part =~ ^([0-9]+)/([1-9][0-9]*)$ ]] || [ "${BASH_REMATCH[1]}" -lt 1 ] ||
  [ "${BASH_REMATCH[1]}" -gt "${BASH_REMATCH[2]}" ]; then
  echo "usage: tests/mutants.sh [N/M], N from 1 to M" >&2
  exit 2
fi
part_number=${part%/*} parts=${part#*/}
workers=$(nproc 2>/dev/null || echo 1)
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
build=build/mutants
limit=300 # seconds for a check that may have been made to hang

# make_in TREE TARGET..: without nvcc, which these checks do not need.
make_in() {
  make -s -C "$1" NVCC= BUILD=$build "${@:2}"
}

# target_of PROGRAM: the file to build for it.
target_of() {
  case $1 in
  *.sh) echo "$build/train $build/shapes" ;;
  */*) echo "$build/$1" ;;
  *) echo "$build/tests/$1" ;;
  esac
}

# run_in TREE PROGRAM OPERATION: its exit status, its output in TREE/log. 124: it took too long.
run_in() {
  local command
  case $2 in
  *.sh) command="tests/$2 $(target_of "$2")" ;;
  *kernels_test) command="$(target_of "$2") ${3#-} quick" ;;
  *) command=$(target_of "$2") ;;
  esac
  (cd "$1" && exec timeout $limit $command) >"$1/log" 2>&1
}

# All entries: number, file, program, operation, what is broken, old text, new text.
entries() {
  local head='' old='' line number=0 check
  while IFS= read -r line; do
    case $line in
    '== '*) head=${line#== } ;;
    '-'*) old=${line#-} ;;
    '+'*)
      line=${line#+} number=$((number + 1)) check=${head#*: }
      check=${check%%: *}
      [[ $check == *' '* ]] || check+=' -'
      printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' $number "${head%%: *}" "${check%% *}" "${check#* }" \
        "${head#*: *: }" "${old# }" "${line# }"
      ;;
    esac
  done <tests/mutants.txt
}

# applies FILE OLD: is that text there exactly once?
applies() {
  local text
  text=$(<"$1") || return 1
  [[ $text == *"$2"* && $text != *"$2"*"$2"* ]]
}

# replace FILE OLD NEW: false where that does not apply.
replace() {
  local text
  applies "$1" "$2" || return 1
  text=$(cat "$1" && echo x)
  text=${text%x}
  printf '%s' "${text%%"$2"*}$3${text#*"$2"}" >"$1"
}

entries >"$work/all"
if [ "${1:-}" = plant ]; then
  IFS=$'\t' read -r _ file program operation _ old new < <(
    awk -F'\t' -v file="$3" -v what="$4" '$2 == file && $5 == what' "$work/all")
  [ -n "${file:-}" ] && replace "$2/$file" "$(printf '%b' "$old")" "$(printf '%b' "$new")" &&
    echo "$program $operation"
  exit
fi

# give_up: what failed before the first bug was planted.
give_up() {
  echo "0 passed, $(wc -l <"$work/failed") failed"
  exit 1
}

while IFS=$'\t' read -r number file program _ what old _; do
  applies "$file" "$(printf '%b' "$old")" ||
    echo "FAIL does not apply  $number $file $program: $what" | tee -a "$work/failed"
done <"$work/all"
[ ! -e "$work/failed" ] || give_up
sed -n "$part_number~${parts}p" "$work/all" >"$work/entries"
mkdir "$work/0" &&
  cp -a Makefile ./*.c ./*.h ./*.cu reference cpu cpu-bf16 gpu run simt tests tools "$work/0" || exit 1
mapfile -t programs < <(cut -f 3 "$work/entries" | sort -u)
echo "building ${#programs[@]} checks of the sources as they are, and running them"
# shellcheck disable=SC2046 # one word each
make_in "$work/0" -j "$workers" $(for program in "${programs[@]}"; do target_of "$program"; done) \
  >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
for ((i = 1; i < workers; i++)); do cp -a "$work/0" "$work/$i" || exit 1; done

# Is nobody else at it? Then this process takes it.
take() { mkdir "$work/$1" 2>/dev/null; }

# What fails unbroken says nothing when broken.
for ((i = 0; i < workers; i++)); do
  for program in "${programs[@]}"; do
    take "whole ${program//\//_}" || continue
    run_in "$work/$i" "$program" '' && continue
    grep -v '^ok  ' "$work/$i/log"
    echo "FAIL $program, with the sources as they are" | tee -a "$work/failed"
  done &
done
wait
[ ! -e "$work/failed" ] || give_up

# run_mutant TREE FILE PROGRAM OPERATION OLD NEW: a line, "ok" or "FAIL" first.
run_mutant() {
  local tree=$1 file=$2 program=$3 status noticed old new
  old=$(printf '%b' "$5") new=$(printf '%b' "$6")
  replace "$tree/$file" "$old" "$new"
  if ! make_in "$tree" $(target_of "$program") >"$tree/log" 2>&1; then
    echo "FAIL does not compile: $(grep -m 1 error "$tree/log")"
  else
    run_in "$tree" "$program" "$4"
    status=$?
    noticed=$(grep -m 1 -e '^FAIL' -e '^simt:' "$tree/log" | tr -s ' ')
    [ $status -gt 128 ] && noticed=${noticed:-signal $((status - 128))}
    if [ $status -eq 0 ]; then
      echo "FAIL survived"
    elif [ $status -eq 124 ]; then
      echo "FAIL hangs"
    elif [ $status -eq 2 ] || [ -z "$noticed" ]; then
      echo "FAIL ends with status $status: $(grep -v '^ok ' "$tree/log" | tail -n 2 | tr '\n' ' ')"
    else
      echo "ok   killed${V:+ by $noticed}"
    fi
  fi
  cp "$file" "$tree/$file"
}

for ((i = 0; i < workers; i++)); do
  while IFS=$'\t' read -r number file program operation what old new; do
    take "mutant $number" || continue
    result=$(run_mutant "$work/$i" "$file" "$program" "$operation" "$old" "$new")
    printf '%s  %2d %-18s %s\n' "$result" "$number" "$file" "$program: $what" |
      tee -a "$work/results"
  done <"$work/entries" &
done
wait
passed=$(grep -c '^ok ' "$work/results")
failed=$(($(wc -l <"$work/entries") - passed))
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
