#!/usr/bin/env bash
# ptx_report.sh NVCC FILE.cu.. - what nvcc's assembler says of each kernel, for sm_75, sm_80 and sm_90:
# registers a thread, static shared memory a block, bytes of a thread's local memory (an array whose index
# the compiler does not know lies there), bytes of registers spilled to it. Kernels of 256 threads with
# more than 128 registers no longer fit twice on a processor (65,536 registers).
# Local memory and spills are a failure, exit status 1: no kernel that training uses may have any. So is a
# file that does not compile for one of them, or has other kernels there than for the rest.
nvcc=$1 archs="sm_75 sm_80 sm_90" failed=0
shift
if ! command -v "$nvcc" >/dev/null; then
  echo "ptx-report needs nvcc: install the CUDA Toolkit, or say where it is (make NVCC=..)" >&2
  exit 1
fi
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
for arch in $archs; do
  for file in "$@"; do
    if "$nvcc" -std=c++17 -O3 -arch=$arch -I. -Xptxas -v -c "$file" -o "$work/object" >"$work/log" 2>&1; then
      c++filt <"$work/log" | sed "s|^|$arch $file: |" >>"$work/said"
    else
      echo "FAIL $file does not compile for $arch: $(grep -m 1 -e error -e fatal "$work/log")"
      failed=1
    fi
  done
done
[ $failed -eq 0 ] || exit 1
awk -v archs="$archs" '
  /Compiling entry function|Function properties for/ {
    if (match($0, /cuda::.*\(/)) { name = substr($0, RSTART + 6); sub(/\(.*/, "", name) }
  }
  /spill stores/ {
    spill = local = $0
    sub(/.*frame, /, "", spill); sub(/ bytes spill stores.*/, "", spill)
    sub(/ bytes stack frame.*/, "", local); sub(/.* /, "", local)
  }
  /Used [0-9]+ registers/ {
    registers = $0; sub(/.*Used /, "", registers); sub(/ registers.*/, "", registers)
    shared = 0
    if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART, RLENGTH) + 0
    printf "%s %-14s %-44s %9d %8d %8d %8d\n", $1, $2, name, registers, shared, local, spill
    kernels++
    seen[$2 " " name] = seen[$2 " " name] " " $1
    if (spill + local > 0) spilled++
  }
  BEGIN { printf "%-5s %-14s %-44s %9s %8s %8s %8s\n", "", "file", "kernel", "registers", "shared", "local", "spilled" }
  END {
    count = split(archs, arch)
    for (kernel in seen)
      for (i = 1; i <= count; i++)
        if (!index(seen[kernel], arch[i])) { print "FAIL " kernel " is missing for " arch[i]; missing++ }
    printf "%d kernels, %d with local memory or spills\n", kernels, spilled
    exit missing > 0 || spilled > 0 || kernels == 0
  }' "$work/said"
