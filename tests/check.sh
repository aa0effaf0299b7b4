# tests/check.sh - all the test framework there is for tests in bash, as check.h is for those in C: a line a check,
# and "N passed, N failed" at the end. Their first lines:
#
#     subject=train            what a line begins with
#     . "$(dirname "$0")/check.sh"
passed=0 failed=0

check() { # what, status; false where that is a failure
  if [ "$2" -eq 0 ]; then
    passed=$((passed + 1)) && echo "ok   $subject: $1"
  else
    failed=$((failed + 1)) && echo "FAIL $subject: $1"
    return 1
  fi
}

# The last line of a test, and its exit status.
check_summary() {
  echo "$passed passed, $failed failed"
  [ $failed -eq 0 ]
}
