#!/usr/bin/env bash
# sass_report.sh CUOBJDUMP FILE.o - what a warp executes for each mma in the main loop of each kernel
# that uses tensor cores, from the machine code (SASS) that nvcc made for each GPU.
#
# A warp's scheduler starts one instruction a clock at most. On an A100 an mma of 16 x 8 x 16 keeps
# the tensor core of its quarter of a processor busy for 8 clocks (1,024 multiply-adds a clock and
# processor, so 256 a quarter, and the mma has 2,048), on an H100 for about 4. So where a loop has
# more instructions for each mma than that, the tensor core waits for them.
#
# The main loop is the shortest one that holds the most mma: from the target of a backward jump to
# the jump. Everything between counts, also what a condition may skip. Of a kernel without such a loop, all
# counts from its first instruction to its last mma. Kinds:
#
#     mma       HMMA                         copy     LDGSTS, global to shared memory (cp.async)
#     ldmatrix  LDSM                         memory   every other load or store, constants too
#     integer   addresses, conditions        flow     jumps, barriers, waits
#     float     everything on floats         other    what is left
cuobjdump=$1
shift
if ! command -v "$cuobjdump" >/dev/null; then
  echo "sass-report needs nvcc and cuobjdump, of the CUDA Toolkit (CUOBJDUMP=FILE names one)" >&2
  exit 1
fi
"$cuobjdump" -sass "$@" | c++filt | awk '
  function number_of(hex,   i, value) {
    for (i = 1; i <= length(hex); i++)
      value = 16 * value + index("0123456789abcdef", substr(hex, i, 1)) - 1
    return value
  }
  function kind_of(word) {
    if (word ~ /^HMMA/) return "mma"
    if (word ~ /^LDSM/) return "ldmatrix"
    if (word ~ /^LDGSTS/) return "copy"
    if (word ~ /^(LD|ST|ATOM|RED|ULDC)/) return "memory"
    if (word ~ /^(BRA|BSSY|BSYNC|BAR|DEPBAR|LDGDEPBAR|CALL|RET|EXIT|WARPSYNC|NOP|YIELD|BREAK)/)
      return "flow"
    if (word ~ /^(F[A-Z]|HADD|HMUL|HFMA|MUFU|D[A-Z])/ && word !~ /^FLO/) return "float"
    if (word ~ /^(U?I[A-Z]|U?LOP|U?LEA|U?SHF|U?SEL|U?MOV|U?PRMT|U?PLOP|VOTE|R2UR|S2|CS2R|U?BMSK|U?P2R|U?R2P|FLO)/)
      return "integer"
    return "other"
  }
  function report(   i, j, k, best, from, to, mma, counts, line) {
    best = from = to = 0
    for (i = 1; i <= n; i++) {
      if (!(i in target) || target[i] > address[i]) continue
      for (j = i; j > 1 && address[j] > target[i]; j--);
      mma = before[i] - before[j - 1]
      if (mma < best || !mma || (mma == best && i - j >= to - from)) continue
      best = mma; from = j; to = i
    }
    if (!best) {
      for (to = n; to > 1 && word[to] !~ /^HMMA/; to--);
      from = 1; best = before[n]
    }
    if (!best) return
    for (i = from; i <= to; i++) counts[kind_of(word[i])]++
    printf "%-6s %-52s %5d %7.2f ", arch, name, best, (to - from + 1) / best
    for (k = 1; k <= kinds; k++) printf " %8d", counts[kind[k]]
    printf "\n"
    kernels++
  }
  BEGIN {
    kinds = split("ldmatrix copy memory integer float flow other", kind)
    printf "%-6s %-52s %5s %7s  %8s %8s %8s %8s %8s %8s %8s\n", "", "kernel", "mma", "per mma",
      "ldmatrix", "copy", "memory", "integer", "float", "flow", "other"
  }
  /^arch = / { next_arch = $3 }
  /Function : / {
    report()
    arch = next_arch
    name = $0; sub(/.*Function : (void )?/, "", name); sub(/\(.*/, "", name); gsub(/cuda::/, "", name)
    n = 0; split("", target)
  }
  /^ +\/\*[0-9a-f]+\*\/ +[@A-Z]/ {
    n++
    address[n] = number_of(substr($1, 3, length($1) - 4))
    i = $2 ~ /^@/ ? 3 : 2
    word[n] = $i
    before[n] = before[n - 1] + (word[n] ~ /^HMMA/)
    if (word[n] ~ /^BRA/ && match($0, /0x[0-9a-f]+/))
      target[n] = number_of(substr($0, RSTART + 2, RLENGTH - 2))
  }
  END {
    report()
    if (!kernels) print "no kernel with mma found"
    exit !kernels
  }'
