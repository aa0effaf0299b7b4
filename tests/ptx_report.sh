#!/usr/bin/env bash
# ptx_report.sh NVCC FILE.cu.. - what nvcc's assembler says of each kernel, for sm_75, sm_80 and sm_90:
# registers a thread, static shared memory a block, bytes of registers spilled to memory. Kernels of
# 256 threads with more than 128 registers no longer fit twice on a processor (65,536 registers).
# A spill is a failure, exit status 1: no kernel that training uses may have one.
nvcc=$1
shift
if ! command -v "$nvcc" >/dev/null; then
  echo "ptx-report needs nvcc: install the CUDA Toolkit, or say where it is (make NVCC=..)" >&2
  exit 1
fi
object=$(mktemp)
for arch in sm_75 sm_80 sm_90; do
  for file in "$@"; do
    "$nvcc" -std=c++17 -O3 -arch=$arch -I. -Xptxas -v -c "$file" -o "$object" 2>&1 | c++filt |
      sed "s|^|$arch $file: |"
  done
done | awk '
  /: error|rror:/ { print; failed = 1 }
  /Compiling entry function|Function properties for/ {
    if (match($0, /cuda::.*\(/)) { name = substr($0, RSTART + 6); sub(/\(.*/, "", name) }
  }
  /spill stores/ { spill = $0; sub(/.*frame, /, "", spill); sub(/ bytes spill stores.*/, "", spill) }
  /Used [0-9]+ registers/ {
    registers = $0; sub(/.*Used /, "", registers); sub(/ registers.*/, "", registers)
    shared = 0
    if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART, RLENGTH) + 0
    printf "%s %-14s %-44s %9d %8d %8d\n", $1, $2, name, registers, shared, spill
    kernels++
    if (spill + 0 > 0) spilled++
  }
  BEGIN { printf "%-5s %-14s %-44s %9s %8s %8s\n", "", "file", "kernel", "registers", "shared", "spilled" }
  END {
    printf "%d kernels, %d with spills\n", kernels, spilled
    exit failed || spilled > 0 || kernels == 0
  }'
status=$?
rm -f "$object"
exit $status
