#!/usr/bin/env bash
# bugs_test.sh - the twelve bugs of `make bug`: each is an entry of tests/mutants.txt that applies to the sources as
# they are, is one that some check of kernels notices (`make mutants` sees to that), and has its lesson.
# `make course-check` runs it; nothing is compiled here.
set -u
subject=bugs
. "$(dirname "$0")/check.sh"
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT

cp -a ./*.cu gpu "$work"
while IFS= read -r what; do
  file=${what%%: *}
  said=$(tests/mutants.sh plant "$work" "$file" "${what#*: }")
  [[ $said =~ ^(watched/)?kernels_test\ [a-z_]+$ ]] && ! cmp -s "$file" "$work/$file" &&
    [ "$(awk -v what="== $what" '$0 == what { here = 1; next } /^==/ { here = 0 } here' course/bugs.txt | wc -w)" -ge 30 ]
  check "$what" $?
  cp "$file" "$work/$file"
done < <(sed -n 's/^== //p' course/bugs.txt)
[ $passed -eq 12 ]
check "they are twelve" $?
tests/mutants.sh plant "$work" mixup.cu 'the flip is right' >"$work/out" 2>&1
[ $? -ne 0 ] && cmp -s mixup.cu "$work/mixup.cu"
check "one that does not exist is not planted" $?

check_summary
