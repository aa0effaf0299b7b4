#!/usr/bin/env bash
# exercise.sh - fill in: compiles a student's file for the simulated GPU and has it checked. `make exercise`
# calls it, with what it needs to compile and link in the environment (course/course.mk).
#
#     tools/exercise.sh             lists the ten, with a tick for those whose file, as it is now, passed
#     tools/exercise.sh N [FILE]    checks exercise N: course/exercises/N_name.cu, or FILE; status 0: solved
#
# A file that passed leaves its checksum in build/exercises/N ($STATE/N, for the check of this program).
# Where there is nvcc, it has to take the file as well, and where a GPU answers, it has to be right there.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
state=${STATE:-build/exercises}

fail() {
  echo "exercise: $*" >&2
  exit 1
}

file_of() { "$CHECKER" list | awk -v n="$1" '$1 == n { print "course/exercises/" $2 ".cu" }'; }
title_of() { "$CHECKER" list | awk -v n="$1" '$1 == n' | cut -d ' ' -f 3-; }
is_solved() { [ -e "$state/$1" ] && [ "$(cat "$state/$1")" = "$(cksum <"$(file_of "$1")")" ]; } 2>/dev/null

list() {
  local n file title mark
  while read -r n file title; do
    mark=' ' && is_solved "$n" && mark='✓'
    printf '  %s %2d  %-38s %s\n' "$mark" "$n" "$title" "course/exercises/$file.cu"
  done < <("$CHECKER" list)
  echo 'make exercise N=1 checks the first; course/exercises.md says how to work with them'
}

try() { # N FILE
  local work status
  work=$(mktemp -d "$state/work.XXXXXX") && trap "rm -rf '$work'" EXIT
  echo "exercise $1, $(title_of "$1"): $2"
  $COMPILE "$2" -o "$work/yours.o" || fail "$2 does not compile; the compiler's first message says where"
  $LINK_WITH "$work/yours.o" $OBJECTS -o "$work/check" $LINK_THEN || fail "$2 does not link; run_$1 has to be in namespace exercise"
  timeout 120 "$work/check" "$1" yours 2>&1
  status=$?
  [ $status -eq 124 ] && fail "$2 runs for more than two minutes: is there a loop without an end?"
  [ $status -eq 0 ] || fail "$2 is not solved yet"
  if [ -n "$COMPILE_CUDA" ]; then
    $COMPILE_CUDA "$2" -o "$work/cuda.o" || fail "$2 is right on the simulated GPU, but nvcc does not take it"
  fi
  if [ -n "$HAVE_GPU" ]; then
    $LINK_WITH "$work"/{yours,cuda}.o $OBJECTS -o "$work/check" $LINK_THEN && "$work/check" "$1" yours cuda ||
      fail "$2 is right on the simulated GPU, but not on the real one"
  fi
  [ "$2" != "$(file_of "$1")" ] || cksum <"$2" >"$state/$1"
  echo "solved: exercise $1"
}

mkdir -p "$state" || exit 1
case "$#" in
0) list ;;
1 | 2)
  file=$(file_of "$1")
  [ -n "$file" ] || fail "there is no exercise $1; there are 1 to 10"
  [ -r "${2:-$file}" ] || fail "there is no file ${2:-$file}"
  try "$1" "${2:-$file}"
  ;;
*) echo "usage: tools/exercise.sh [N [FILE]]" >&2 && exit 2 ;;
esac
