#!/usr/bin/env bash
# chapters_test.sh LADDER - the course's pages say what is so: every link leads to a file, every picture is
# shown, and the outputs in the chapters are what the commands print. `make course-check` runs it.
set -u
passed=0 failed=0

check() { # what, status
  if [ "$2" -eq 0 ]; then
    passed=$((passed + 1)) && echo "ok   chapters: $1"
  else
    failed=$((failed + 1)) && echo "FAIL chapters: $1"
  fi
}

for page in README.md course/*.md course/*/*.md; do
  [ -e "$page" ] || continue
  missing=$(grep -o '](\([^)#]*\)' "$page" | cut -c3- | grep -v '^http' | while read -r link; do
    [ -e "$(dirname "$page")/$link" ] || echo "$link"
  done)
  [ -z "$missing" ]
  check "$page: every link leads somewhere${missing:+: not $missing}" $?
done
for picture in course/pictures/*.{png,svg}; do
  grep -q "(${picture##*/})" course/pictures/README.md
  check "${picture##*/} is shown and explained" $?
done
unsaid=$("$1" | grep '^[0-9] of' | while read -r line; do grep -qF "$line" course/3-ladder.md || echo "$line"; done)
[ -z "$unsaid" ] && [ "$(grep -c '^    [0-9] of' course/3-ladder.md)" -eq 6 ]
check "course/3-ladder.md: the table that make ladder prints${unsaid:+, but for $unsaid}" $?

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
