#!/usr/bin/env bash
# The check checked: does `make check` notice when a kernel is wrong?
#
#     tests/mutants.sh [N/M]        all of tests/mutants.txt, or the N-th of M parts (CI runs 1/3)
#
# Each entry of that file breaks one line of a kernel, in a copy of the sources in a temporary
# directory, one at a time. What the check named there does not reject then (by a failed row, or a
# report of the simulator) makes this script fail; so does an edit that no longer applies, because
# its old text is not there exactly once, or that does not compile. V=1 shows what noticed it.
#
#     == FILE: PROGRAM OPERATION: what is broken
#     - old text                                    \n is a line's end
#     + new text
#
# PROGRAM is kernels_test; watched/kernels_test, with the kernels' accesses to memory watched; or
# step_test, for which OPERATION says nothing.
set -u
export OMP_WAIT_POLICY=passive
cd "$(dirname "$0")/.." || exit 1
part=${1:-1/1}
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

programs=("$build/tests/kernels_test" "$build/watched/kernels_test" "$build/tests/step_test")
cp -a Makefile ./*.c ./*.h ./*.cu reference cpu gpu run simt tests tools "$work" && mkdir "$work/0" &&
  mv "$work"/[!0]* "$work/0" || exit 1
echo "building the kernels as they are"
make_in "$work/0" -j "$workers" "${programs[@]}" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
for program in "${programs[@]}"; do # what fails unbroken says nothing when broken
  (cd "$work/0" && $program quick) >"$work/log" 2>&1 && continue
  grep -v '^ok  ' "$work/log"
  echo "FAIL $program, with the kernels as they are"
  echo "0 passed, 1 failed"
  exit 1
done
for ((i = 1; i < workers; i++)); do cp -a "$work/0" "$work/$i" || exit 1; done

# replace FILE OLD NEW: false unless OLD is there exactly once.
replace() {
  local text rest
  text=$(cat "$1" && echo x) || return 1
  text=${text%x}
  rest=${text#*"$2"}
  [ "$rest" != "$text" ] && [[ $rest != *"$2"* ]] || return 1
  printf '%s' "${text%%"$2"*}$3$rest" >"$1"
}

# run_mutant TREE FILE PROGRAM OPERATION OLD NEW: a line, "ok" or "FAIL" first.
run_mutant() {
  local tree=$1 file=$2 program=$3 status noticed
  local old new
  old=$(printf '%b' "$5") new=$(printf '%b' "$6")
  [[ $program == */* ]] || program=tests/$program
  if ! replace "$tree/$file" "$old" "$new"; then
    echo "FAIL does not apply"
  elif ! make_in "$tree" "$build/$program" >"$tree/log" 2>&1; then
    echo "FAIL does not compile: $(grep -m 1 error "$tree/log")"
  else
    (cd "$tree" && timeout $limit "$build/$program" "$4" quick) >"$tree/log" 2>&1
    status=$?
    noticed=$(grep -m 1 -e '^FAIL' -e '^simt:' "$tree/log" | tr -s ' ')
    if [ $status -eq 0 ]; then
      echo "FAIL survived"
    elif [ $status -eq 124 ]; then
      echo "FAIL hangs"
    else
      echo "ok   killed${V:+ by $noticed}"
    fi
  fi
  cp "$file" "$tree/$file"
}

# The entries of this part, one after another, to a worker each in turn.
entries() {
  local head='' old='' line number=0
  while IFS= read -r line; do
    case $line in
    '== '*) head=${line#== } ;;
    '-'*) old=${line#-} ;;
    '+'*)
      line=${line#+} number=$((number + 1))
      [ $(((number - 1) % parts + 1)) -eq "$part_number" ] &&
        printf '%s\t%s\t%s\t%s\n' $number "$head" "${old# }" "${line# }"
      ;;
    esac
  done <tests/mutants.txt
}

entries >"$work/entries"
for ((i = 0; i < workers; i++)); do
  line_number=0
  while IFS=$'\t' read -r number head old new; do
    line_number=$((line_number + 1))
    [ $((line_number % workers)) -eq $i ] || continue
    file=${head%%: *} rest=${head#*: }
    check=${rest%%: *}
    result=$(run_mutant "$work/$i" "$file" "${check% *}" "${check#* }" "$old" "$new")
    printf '%s  %2d %-12s %s\n' "$result" "$number" "$file" "${rest#*: }" |
      tee -a "$work/results"
  done <"$work/entries" &
done
wait
passed=$(grep -c '^ok ' "$work/results")
failed=$(($(wc -l <"$work/entries") - passed))
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
