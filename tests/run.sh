#!/usr/bin/env bash
# Runs each test given as an argument, a command each, two at a time, and adds up what their last lines
# say. Exit status 1 if any check failed, or if a test ended without its last line.
passed=0 failed=0 number=0
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

# run NUMBER COMMAND: leaves its output, its exit status and its time in $work.
run() {
  local started=$SECONDS
  $2 >"$work/$1.log" 2>&1
  echo "$? $((SECONDS - started))" >"$work/$1.end"
}

report() { # NUMBER COMMAND
  local status seconds last
  read -r status seconds <"$work/$1.end"
  printf '== %s\n' "$2"
  # A test says a lot; what passed is worth a line each only where somebody asks for it.
  if [ -n "${V:-}" ]; then cat "$work/$1.log"; else grep -v '^ok  ' "$work/$1.log"; fi
  last=$(tail -n 1 "$work/$1.log")
  if [[ $last =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed ]]; then
    passed=$((passed + BASH_REMATCH[1]))
    failed=$((failed + BASH_REMATCH[2]))
    [ "$status" -ne 0 ] && [ "${BASH_REMATCH[2]}" -eq 0 ] && failed=$((failed + 1))
  else
    echo "FAIL $2 ended with status $status and without its last line"
    failed=$((failed + 1))
  fi
  printf '   %d s\n' "$seconds"
}

for test in "$@"; do
  [ "$(jobs -rp | wc -l)" -ge 2 ] && wait -n
  run $number "$test" &
  number=$((number + 1))
done
number=0
for test in "$@"; do
  while [ ! -e "$work/$number.end" ] && [ -n "$(jobs -rp)" ]; do wait -n; done
  report $number "$test"
  number=$((number + 1))
done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
