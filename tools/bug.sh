#!/usr/bin/env bash
# bug.sh - find the bug: a kernel that is broken, and the reports of those who noticed. `make bug` calls it.
#
#     tools/bug.sh              lists the twelve, with those already found
#     tools/bug.sh N            makes build/bugs/N, a copy of the sources with bug N in it, and runs the check
#                               that fails; again, after you have changed a file there, checks that
#     tools/bug.sh N solve      says where the bug is, what is wrong, and what to learn from it
#
# course/bugs.txt has the twelve. Which change to which file each is stands in tests/mutants.txt: do not
# look there. The first call builds the checks, which takes a few minutes; later ones build what changed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
bugs=build/bugs base=build/bugs/base
export OMP_WAIT_POLICY=passive

fail() {
  echo "bug: $*" >&2
  exit 1
}

titles() { sed -n 's/^== //p' course/bugs.txt; }
title() { titles | sed -n "$1p"; } # "FILE: WHAT"
lesson() { awk -v n="$1" '/^== / { at++; next } at == n' course/bugs.txt; }

list() {
  local n
  for ((n = 1; n <= $(titles | wc -l); n++)); do
    if [ -e $bugs/$n/found ]; then echo "  ✓ bug $n"; elif [ -d $bugs/$n ]; then echo "  … bug $n"; else echo "    bug $n"; fi
  done
  echo 'make bug N=1 begins; SOLVE=1 gives up'
}

# The sources as they are, with the checks built, so that a bug's own copy has little to build. Again,
# where one has changed since.
make_base() {
  [ -e $base/whole ] &&
    [ -z "$(find . -path ./build -prune -o -newer $base/whole \( -name '*.c' -o -name '*.cu' -o -name '*.cpp' -o -name '*.h' -o -name Makefile -o -name '*.mk' \) -print -quit)" ] && return
  rm -f $base/whole
  echo 'building the checks of the sources as they are'
  mkdir -p $base && copy_sources $base && make_in $base "${programs[@]}" && touch $base/whole ||
    fail "the checks could not be built; the whole output is in $bugs/log"
}
programs=(tests/kernels_test watched/kernels_test)
copy_sources() { cp -a Makefile ./*.c ./*.h ./*.cu reference cpu cpu-bf16 gpu run simt tests tools course "$1"; }
make_in() { # TREE PROGRAM..
  local targets=("${@:2}")
  make -s -C "$1" NVCC= BUILD=build/bug "${targets[@]/#/build/bug/}" >$bugs/log 2>&1 && return
  grep -m 5 -i error $bugs/log
  return 1
}

# The tree of bug N, with the bug in it.
plant() {
  local what
  what=$(title "$1")
  [ -n "$what" ] || fail "there is no bug $1; there are 1 to $(titles | wc -l)"
  [ -e $bugs/$1/check ] && return
  rm -rf "${bugs:?}/$1" && mkdir -p $bugs/$1 && cp -a $base/. $bugs/$1 || exit 1
  tests/mutants.sh plant "$bugs/$1" "${what%%: *}" "${what#*: }" >$bugs/$1/check.new ||
    fail "bug $1 does not apply: tests/mutants.txt has no \"$what\""
  mv $bugs/$1/check.new $bugs/$1/check
}

# Runs the check; true if nothing is wrong any more, 124 if it did not come to an end.
run_check() {
  local program operation name
  read -r program operation <$bugs/$1/check
  name=$program && [[ $program == */* ]] || name=tests/$program
  make_in $bugs/$1 "$name" || fail "what is in $bugs/$1 does not compile"
  (cd $bugs/$1 && timeout 300 build/bug/$name "$operation" quick) >$bugs/$1/report 2>&1
}

try() {
  plant "$1"
  local status=0
  run_check "$1" || status=$?
  if [ $status -eq 0 ]; then
    touch $bugs/$1/found
    echo "bug $1: found. Every row passes. What to learn from it:" && lesson "$1"
    return
  fi
  rm -f $bugs/$1/found
  [ $status -ne 124 ] || fail "bug $1: the check ran for five minutes: does a loop of what you changed in $bugs/$1 never end?"
  echo "bug $1: the check of \"$(cut -d ' ' -f 2 $bugs/$1/check)\" says, first of $(grep -c -e '^FAIL' -e '^simt:' $bugs/$1/report):"
  grep -e '^FAIL' -e '^simt:' $bugs/$1/report | head -5 | cut -c1-160
  echo "Find it in $bugs/$1, change it there, and say make bug N=$1 again; the whole report is in $bugs/$1/report."
}

solve() {
  local what file
  what=$(title "$1") file=${what%%: *}
  plant "$1"
  echo "bug $1, in $what"
  diff -U 2 "$file" "$bugs/$1/$file" | sed 1,2d
  echo "(- is right, + is the bug)" && lesson "$1"
}

mkdir -p $bugs
case "$#-${1:-}-${2:-}" in
0--) list ;;
1-[1-9]*-) make_base && try "$1" ;;
2-[1-9]*-solve) make_base && solve "$1" ;;
*) echo "usage: tools/bug.sh [N [solve]]" >&2 && exit 2 ;;
esac
