#!/usr/bin/env bash
# Runs each test given as an argument, a command each, and adds up what their last lines say. Exit
# status 1 if any check failed, or if a test ended without its last line.
passed=0 failed=0
for test in "$@"; do
  printf '== %s\n' "$test"
  log=$(mktemp)
  started=$SECONDS
  $test >"$log" 2>&1
  status=$?
  # A test says a lot; what passed is worth a line each only where somebody asks for it.
  if [ -n "${V:-}" ]; then cat "$log"; else grep -v '^ok  ' "$log"; fi
  last=$(tail -n 1 "$log")
  rm -f "$log"
  if [[ $last =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed ]]; then
    passed=$((passed + BASH_REMATCH[1]))
    failed=$((failed + BASH_REMATCH[2]))
    [ $status -ne 0 ] && [ "${BASH_REMATCH[2]}" -eq 0 ] && failed=$((failed + 1))
  else
    echo "FAIL $test ended with status $status and without its last line"
    failed=$((failed + 1))
  fi
  printf '   %d s\n' $((SECONDS - started))
done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
