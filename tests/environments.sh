#!/usr/bin/env bash
# tests/environments.sh [whole] - the checks where other people run them (`make environments`).
#
# A check that passes on its author's machine may lean on it: on a decimal point, on files that
# everybody may read, on a writable source directory, on names without blanks. So here the quick part
# of `make check` (files, checkpoints, data, whole runs on the CPU), and the experiment, is built and run
#
#     comma       with a locale whose numbers have a decimal comma, made here by localedef. That is for the
#                 scripts, whose awk and printf follow it: no program in C calls setlocale
#     umask       with umask 077
#     homeless    with no HOME and hardly any environment
#     read-only   in a source tree that cannot be written, with BUILD= elsewhere
#     blanks      in a directory, and with a TMPDIR, with blanks and letters beyond ASCII in their names
#     nobody      as another user
#
# whole: all of `make check` in each. What this machine cannot do is skipped, by name.
set -u
cd "$(dirname "$0")/.." || exit 1
how=${1:-quick} passed=0 failed=0
work=$(mktemp -d) && chmod 711 "$work" || exit 1
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT

# What runs in each: TREE BUILD HOW.
read -r -d '' checks <<'SCRIPT'
cd "$1" || exit 1
build=$2
export OMP_WAIT_POLICY=passive
[ "$3" = whole ] && exec make -j2 NVCC= BUILD="$build" check
tests=
for test in random cifar safetensors checkpoint crash evaluate log_files wiring; do tests+=" $build/tests/${test}_test"; done
make -s -j2 NVCC= BUILD="$build" "$build/train" "$build/shapes" $tests || exit 1
exec tests/run.sh "tests/train_test.sh $build/train $build/shapes quick" $tests \
  "tests/data_test.sh $build/train $build/shapes" "tests/experiment_test.sh $build/train $build/shapes"
SCRIPT

# A copy of the sources, as $work/NAME.
copy() {
  mkdir -p "$work/$1" &&
    cp -R Makefile ./*.c ./*.h ./*.cu bench course reference cpu cpu-bf16 gpu run simt tests tools "$work/$1"
}

# environment NAME COMMAND..: what the command, which ends with the checks, says in its last line.
environment() {
  local name=$1 log=$work/$1.log last
  shift
  "$@" >"$log" 2>&1
  last=$(tail -n 1 "$log")
  if [[ $last =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
    passed=$((passed + BASH_REMATCH[1]))
    failed=$((failed + BASH_REMATCH[2]))
    [ "${BASH_REMATCH[2]}" -eq 0 ] && echo "ok   $name: $last" && return
  else
    failed=$((failed + 1))
  fi
  echo "FAIL $name: $last"
  grep -v '^ok ' "$log" | tail -n 30
}

skip() { echo "skip $1: $2"; }

# -- What needs no other sources ------------------------------------------------------------------
copy sources || exit 1
run=(bash -c "$checks" checks "$work/sources" build/gcc "$how")

mkdir "$work/locales"
if ! command -v localedef >/dev/null; then
  skip comma 'no localedef here'
elif ! localedef -i de_DE -f UTF-8 "$work/locales/de_DE.UTF-8" 2>/dev/null ||
  [ "$(LOCPATH=$work/locales LC_ALL=de_DE.UTF-8 bash -c "printf '%.1f' 1,5")" != 1,5 ]; then
  skip comma 'localedef has no source of de_DE here'
else
  environment comma env LOCPATH="$work/locales" LC_ALL=de_DE.UTF-8 "${run[@]}"
fi
environment umask bash -c 'umask 077 && exec "$@"' umask "${run[@]}"
environment homeless env -i PATH="$PATH" "${run[@]}"

# -- What does ------------------------------------------------------------------------------------
as_nobody=(setpriv --reuid=nobody --regid=nogroup --clear-groups env HOME=/nonexistent)
if [ "$(id -u)" -eq 0 ] && command -v setpriv >/dev/null && "${as_nobody[@]}" true 2>/dev/null; then
  mkdir "$work/elsewhere" && chown nobody:nogroup "$work/elsewhere"
  rm -rf "$work/sources/build"
  chmod -R a+rX "$work/sources" # nobody's only to read
  environment read-only "${as_nobody[@]}" bash -c "$checks" checks "$work/sources" \
    "$work/elsewhere/build" "$how"
  copy nobody && chown -R nobody:nogroup "$work/nobody"
  environment nobody "${as_nobody[@]}" bash -c "$checks" checks "$work/nobody" build/gcc "$how"
elif [ "$(id -u)" -eq 0 ]; then
  skip read-only 'root may write everywhere, and there is no setpriv, or no user nobody'
  skip nobody 'no setpriv here, or no user nobody'
else
  rm -rf "$work/sources/build"
  chmod -R a-w "$work/sources"
  environment read-only bash -c "$checks" checks "$work/sources" "$work/elsewhere" "$how"
  skip nobody 'only root may become another user'
fi

place="großer Ort/naïve copy"
mkdir -p "$work/$place/tmp dir"
copy "$place/sources" || exit 1
environment blanks env TMPDIR="$work/$place/tmp dir" bash -c "$checks" checks "$work/$place/sources" \
  build/gcc "$how"

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
