#!/usr/bin/env bash
# chapters_test.sh LADDER SIMT_TEST - the course's pages say what is so: every link leads to a file, every picture is
# shown, and the outputs in the chapters are what the commands print. `make course-check` runs it.
set -u
subject=chapters
. "$(dirname "$0")/check.sh"
shown=$(mktemp)
trap 'rm -f "$shown"' EXIT

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

# The experiment's table is what the logs in the repository give, on both pages.
unsaid=$(RESULTS=course/results tools/experiment.sh table | while read -r line; do
  for page in README.md course/experiment.md; do grep -qxF "$line" $page || echo "$page: $line"; done; done)
[ -z "$unsaid" ] && [ "$(RESULTS=course/results tools/experiment.sh table | wc -l)" -eq 6 ]
check "course/experiment.md, README.md: the table of course/results${unsaid:+, but for $unsaid}" $?

unsaid=$(RECIPE=evening SEEDS=1 RESULTS=course/results tools/experiment.sh table | while read -r line; do
  for page in README.md course/experiment.md; do grep -qxF "$line" $page || echo "$page: $line"; done; done)
[ -z "$unsaid" ]
check "course/experiment.md, README.md: the table of course/results/evening${unsaid:+, but for $unsaid}" $?

unsaid=$(RECIPE=night SEEDS=1 RESULTS=course/results tools/experiment.sh table | while read -r line; do
  grep -qxF "$line" course/experiment.md || echo "$line"; done)
[ -z "$unsaid" ]
check "course/experiment.md: the table of course/results/night${unsaid:+, but for $unsaid}" $?

# How far this program's run of the whole recipe is behind its author's, from the logs of both.
python3 - <<'end'
import csv
runs = [list(csv.DictReader(open("course/results/published/" + f))) for f in ("both-1/log.csv", "notebook.csv")]
page = open("course/experiment.md").read()
for first, last, rate in ((40, 49, "0.1"), (90, 99, "0.01"), (100, 106, "0.001")):
    row = "| %d to %d | %s |" % (first, last, rate)
    for column, form in (("test_accuracy", " %.1f |"), ("train_loss", " %.3f |")):
        for run in runs:
            seen = [float(r[column]) for r in run if first <= int(r["epoch"]) <= last]
            row += form % (sum(seen) / len(seen) * (100 if "accuracy" in column else 1))
    assert row + "\n" in page, row
end
check "course/experiment.md: the table of the two runs of the recipe" $?

# Its first epochs, and float32's.
python3 - <<'end'
import csv
page = open("course/experiment.md").read()
files = "both-1/log.csv", "float32/cpu.csv", "float32/pytorch.csv", "notebook.csv"
runs = [list(csv.DictReader(open("course/results/published/" + f))) for f in files]
for epoch in range(len(runs[1])):
    rows = [run[epoch] if epoch < len(run) else None for run in runs]
    cells = [" %.3f, %.1f" % (float(r["train_loss"]), 100 * float(r["test_accuracy"])) if r else "" for r in rows]
    row = " |".join(["| %d" % epoch, *cells]) + " |\n"
    assert row in page, row
end
check "course/experiment.md: the first epochs in float32" $?

# The losses of its first steps, in seven runs.
python3 - <<'end'
import csv
page = open("course/experiment.md").read()
with open("course/results/published/float32/first_steps.csv") as file:
    names, *rows = csv.reader(file)
for first, last in (1, 25), (26, 50), (51, 100), (101, 200), (201, 300), (301, 391):
    losses = list(zip(*rows[first - 1 : last]))[1:]
    means = ["%.3f" % (sum(map(float, run)) / len(run)) if all(run) else "" for run in losses]
    cells = [means[0], ", ".join(filter(None, means[1:4])), *means[4:]]
    row = "| %d to %d |" % (first, last) + "".join(" %s |" % cell if cell else " |" for cell in cells)
    assert row + "\n" in page, row
end
check "course/experiment.md: the first steps, in float32 and in bf16" $?

# Width 16: bf16 beside three runs in float32.
python3 - <<'end'
import csv
page = open("course/experiment.md").read()
with open("course/results/published/float32/width_16.csv") as file:
    table = list(csv.reader(file))[1:]
rows = [[float(loss) for loss in row[1:5]] for row in table]
above = [100 * (bf16 / (sum(floats) / 3) - 1) for bf16, *floats in rows]
apart = [100 * (max(floats) / min(floats) - 1) for _, *floats in rows]
assert all(bf16 > max(floats) for bf16, *floats in rows[2:10])
last = tuple(sum(run[20:]) / 10 for run in zip(*rows))
assert "its mean loss is %.3f, and %.3f, %.3f and %.3f in float32" % last in page
assert "by %.1f %% of their mean in the fourth and %.1f %% in the tenth" % (above[3], above[9]) in page
assert "no further than %.1f %% apart there" % max(apart[2:10]) in page
torch = tuple(float(row[5]) for row in table[:3])
third = (min(rows[2][1:]), max(rows[2][1:]), rows[2][0])
assert "had %.3f, %.3f and %.3f in its first" % torch in page
assert "(%.3f to %.3f), where `cpu-bf16` has %.3f" % third in page
end
check "course/experiment.md: bf16 at width 16" $?

# What JPEG costs, from the logs of the two runs.
python3 - <<'end'
import csv
page = open("course/experiment.md").read()
for copy, name in (("once", "our copy"), ("twice", "through JPEG once more")):
    log, test, train = [list(csv.DictReader(open(f"course/results/jpeg/{copy}/evening/plain-2/{file}.csv")))
                        for file in ("log", "test", "train")]
    loss, accuracy = [sum(float(r[c]) for r in log[20:]) / len(log[20:]) for c in ("train_loss", "test_accuracy")]
    end = [100 * float(test[0]["accuracy"]), float(test[0]["nll"]), 100 * float(train[0]["accuracy"])]
    row = "| %s | %.3f | %.2f | %.2f | %.3f | %.2f |" % (name, loss, 100 * accuracy, *end)
    assert len(log) == 30 and row + "\n" in page, row
end
check "course/experiment.md: what JPEG costs" $?

# What 2-gpu.md shows of the simulator's own check.
SHOW=1 "$2" >"$shown"
unsaid=$(grep -E '^    (ok  | +simt:)' course/2-gpu.md | cut -c5- | while read -r line; do grep -qF "$line" "$shown" || echo "$line"; done)
[ -z "$unsaid" ] && [ "$(grep -c '^    ok  ' course/2-gpu.md)" -eq 11 ]
check "course/2-gpu.md: what simt_test prints${unsaid:+, but for $unsaid}" $?

said=$(grep -o 'simt_broken.h:[0-9]*, but' course/4-simulator.md | tr -dc 0-9)
sed -n "${said:-1}p" tests/simt_broken.h | grep -q __syncthreads
check "course/4-simulator.md: a report's line is where it says" $?
said=$(grep -o 'written at gpu.h:[0-9]*' course/4-simulator.md | tr -dc 0-9) read=$(grep -o 'halo_weight.h:[0-9]*' course/4-simulator.md | tr -dc 0-9)
sed -n "${said:-1}p" gpu/gpu.h | grep -q 'to = raw;' && sed -n "${read:-1}p" gpu/halo_weight.h | grep -q 'copy_async'
check "course/4-simulator.md: the two lines of a race between branches" $?

# What 5-cpu.md computes by hand.
python3 - <<'end'
d, g = (1, 2, 3, 4), (1, 0, 2)
m = ((d[0] - d[2]) * g[0], (d[1] + d[2]) * (g[0] + g[1] + g[2]) / 2, (d[2] - d[1]) * (g[0] - g[1] + g[2]) / 2,
     (d[1] - d[3]) * g[2])
y = [sum(d[i + j] * g[j] for j in range(3)) for i in range(2)]
assert (m[0] + m[1] + m[2], m[1] - m[2] - m[3]) == tuple(y)
page = open("course/5-cpu.md").read()
for i, value in enumerate(m): assert [l for l in page.split("\n") if l.startswith("    m%d = " % (i + 1)) and l.endswith("= %g" % value)]
for i, value in enumerate(y): assert "    y%d = " % i in page and "= %d\n" % value in page
end
check "course/5-cpu.md: its numbers" $?

# What 1-step.md computes by hand, computed once more.
python3 - <<'end'
from math import exp, log, sqrt
page = open("course/1-step.md").read()
def said(values): assert "(" + ", ".join("%.4f" % v if v != int(v) else "%d" % v for v in values) + ")" in page, values
z, g = (1, 2, 6), (0, 1, 2)
deviation = sqrt(sum((x - 3) ** 2 for x in z) / 3)
xhat = [(x - 3) / deviation for x in z]
dgamma = sum(a * b for a, b in zip(g, xhat))
said(xhat), said([2 * x + 1 for x in xhat]), said([2 / deviation * (a - 1 - x * dgamma / 3) for a, x in zip(g, xhat)])
assert "= %.4f\n" % dgamma in page
def at(a, i): return a[i] if 0 <= i < len(a) else 0
x, w, dz = (1, 2, 3, 4), (1, 0, 2), (1, 0, 0, 2)
said([sum(at(x, i - 1 + s) * w[s] for s in range(3)) for i in range(4)])
said([sum(at(dz, i + 1 - s) * w[s] for s in range(3)) for i in range(4)])
said([sum(dz[i] * at(x, i - 1 + s) for i in range(4)) for s in range(3)])
def loss(a): return log(exp(a) + exp(1) + 1) - a
assert "= %.4f\n" % ((loss(2.001) - loss(1.999)) / 0.002) in page
p = [exp(x) / (exp(2) + exp(1) + 1) for x in (2, 1, 0)]
said(p)
for target in (1, 0, 0), (0.9, 0.05, 0.05), (0.7, 0.3, 0):
    said([a - b for a, b in zip(p, target)])
    assert "  %.4f  " % -sum(t * log(a) for t, a in zip(target, p)) in page
v = 0.9 * 0.1 + 0.2 + 0.0002 * 0.5
assert "= %.4f\n" % v in page and "= %.5f\n" % (0.5 - 0.1 * v) in page
assert "log 81 = %.2f" % log(81) in page and "log 91 = %.2f" % log(91) in page
end
check "course/1-step.md: its numbers" $?

check_summary
