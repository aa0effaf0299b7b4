#!/usr/bin/env bash
# Runs each test given as an argument, a command each, two at a time, and adds up what their last lines
# say. Exit status 1 if any check failed, or if a test ended without its last line, or had not ended after
# LIMIT seconds. One that cannot be done here says so, "skipped: WHY"; the end names it once more.
passed=0 failed=0 number=0 limit=${LIMIT:-1800} skipped=() started=()
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
# Each test has a process group of its own, which no Ctrl-C reaches.
trap 'kill "${started[@]}" 2>/dev/null; wait; exit 130' INT TERM

# run NUMBER COMMAND: leaves its output, its exit status and its time in $work.
run() {
  local begun=$SECONDS status
  trap "" INT # which is the other shell's to answer
  timeout -k 10 "$limit" $2 >"$work/$1.log" 2>&1 & # a signal to timeout goes to the test and its children
  trap 'kill $!; wait $!' TERM
  wait $! 2>/dev/null
  status=$?
  kill -KILL -- -$! 2>/dev/null # a child that only noted the signal, as a trainer that hangs does
  echo "$status $((SECONDS - begun))" >"$work/$1.end"
}

fail() {
  echo "FAIL $*"
  failed=$((failed + 1))
}

report() { # NUMBER COMMAND
  local status seconds last why
  read -r status seconds <"$work/$1.end"
  printf '== %s\n' "$2"
  # A test says a lot; what passed is worth a line each only where somebody asks for it.
  if [ -n "${V:-}" ]; then cat "$work/$1.log"; else grep -v '^ok  ' "$work/$1.log"; fi
  last=$(tail -n 1 "$work/$1.log") why=$(grep -m 1 '^skipped: ' "$work/$1.log")
  if [ "$seconds" -ge "$limit" ]; then
    fail "$2 took longer than $limit s"
  elif [ "$last" = '0 passed, 0 failed' ]; then
    if [ -n "$why" ]; then skipped+=("$why"); else fail "$2 checked nothing"; fi
  elif [[ $last =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed ]]; then
    passed=$((passed + BASH_REMATCH[1]))
    failed=$((failed + BASH_REMATCH[2]))
    [ "$status" -ne 0 ] && [ "${BASH_REMATCH[2]}" -eq 0 ] && fail "$2 ended with status $status"
  else
    fail "$2 ended with status $status and without its last line"
  fi
  printf '   %d s\n' "$seconds"
}

for test in "$@"; do
  [ "$(jobs -rp | wc -l)" -ge 2 ] && wait -n
  run $number "$test" &
  started+=($!)
  number=$((number + 1))
done
number=0
for test in "$@"; do
  while [ ! -e "$work/$number.end" ] && [ -n "$(jobs -rp)" ]; do wait -n; done
  report $number "$test"
  number=$((number + 1))
done
[ ${#skipped[@]} -eq 0 ] || printf '%s\n' "${skipped[@]}"
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
