#!/usr/bin/env bash
# data_test.sh TRAIN SHAPES - tests/data.py where there are python3 and curl to run it; elsewhere says so.
if command -v python3 >/dev/null && command -v curl >/dev/null; then
  exec python3 tests/data.py "$2"
fi
echo 'skipped: make data was not tested, because that takes python3 and curl'
echo '0 passed, 0 failed'
