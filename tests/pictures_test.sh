#!/usr/bin/env bash
# pictures_test.sh PICTURES PLOT SHAPES TRAIN - the course's pictures are what they say: PNG files that
# another reader takes apart, pixels that are where they should be, charts whose lines go through the
# numbers of their files, and a line for each mistake. `make course-check` runs it.
set -u
subject=pictures
. "$(dirname "$0")/check.sh"
export CUDA_VISIBLE_DEVICES= # what is tested is the same on the CPU (train_test.sh says more)
root=$PWD pictures=$PWD/$1 plot=$PWD/$2 shapes=$PWD/$3 train=$PWD/$4
work=$(mktemp -d) && cd "$work" && trap 'rm -rf "$work"' EXIT

refuse() { # STATUS PATTERN COMMAND..: that exit status and, on stderr, a line that matches
  local status=$1 pattern=$2
  shift 2
  "$@" >out 2>err
  [ $? -eq "$status" ] && grep -q -- "$pattern" err && { [ "$status" -eq 2 ] || [ "$(wc -l <err)" -eq 1 ]; }
  check "refused with status $status: $pattern" $?
}

"$shapes" --seed 1 --train 500 --test 100 data >/dev/null &&
  "$train" --data data --width 8 --epochs 1 --checkpoint run --log run.csv >/dev/null &&
  "$train" --data data --eval run/resnet18_cifar10.safetensors --bins bins.csv >/dev/null
check "a data set, a network and its files" $?
weights="--weights run/resnet18_cifar10.safetensors"
for drawn in "mixed --data data" "crops --data data" "mistakes --data data $weights" "filters $weights" \
  targets beta schedule registers winograd "reliability plain=bins.csv both=bins.csv"; do
  kind=png && [[ $drawn =~ ^(targets|beta|schedule|registers|winograd|reliability) ]] && kind=svg
  "$pictures" $drawn -o "${drawn%% *}.$kind"
  check "${drawn%% *} is drawn" $?
done

# Python's zlib has its own opinion about blocks and Adler-32, its binascii about CRC-32.
cat >read_png.py <<'end'
import binascii, struct, sys, zlib

def chunks(data):
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at = 8
    while at < len(data):
        length, name = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + length]
        crc, = struct.unpack(">I", data[at + 8 + length:at + 12 + length])
        assert crc == binascii.crc32(name + body)
        yield name, body
        at += 12 + length

def read(path):
    parts = list(chunks(open(path, "rb").read()))
    assert [name for name, _ in parts] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *rest = struct.unpack(">IIBBBBB", parts[0][1])
    assert rest == [8, 2, 0, 0, 0]
    rows = zlib.decompress(parts[1][1])
    stride = 1 + 3 * width
    assert len(rows) == height * stride and not any(rows[0::stride])
    return lambda x, y: rows[y * stride + 1 + 3 * x:y * stride + 4 + 3 * x]
end
python3 -c 'from read_png import read
for name in "mixed", "crops", "mistakes", "filters": read(name + ".png")'
check "each PNG is sound for another reader" $?
# The first column of mixed.png: an image, its partner below it, their mixture below both. Lambda from
# the pixel where the two differ most; then it has to fit all the others, but for rounding.
python3 -c 'from read_png import read
pixel = read("mixed.png")
a, b, mix = ([pixel(10 + x, y0 + y)[c] for y in range(64) for x in range(64) for c in range(3)] for y0 in (10, 84, 158))
i = max(range(len(a)), key=lambda i: abs(a[i] - b[i]))
share = (mix[i] - b[i]) / (a[i] - b[i])
assert 0.33 < share < 0.37, share # 0.35 stands below it
assert all(abs(share * x + (1 - share) * y - z) <= 2.1 for x, y, z in zip(a, b, mix))'
check "mixed.png: the third row is lambda times the first and the rest of the second" $?
# crops.png, first image: its pixels in the file, red plane first, are those of the first column.
python3 -c 'from read_png import read
pixel, record = read("crops.png"), open("data/data_batch_1.bin", "rb").read(3073)
assert all(pixel(10 + 2 * x, 22 + 2 * y)[c] == record[1 + 1024 * c + 32 * y + x] for y in range(32) for x in range(32) for c in range(3))'
check "crops.png: the first column is the file's" $?

python3 -c 'import sys, xml.dom.minidom
for name in sys.argv[1:]: xml.dom.minidom.parse(name)' targets.svg beta.svg schedule.svg registers.svg winograd.svg reliability.svg
check "each SVG is well-formed" $?
grep -q '>3: 0.633<' targets.svg && grep -q '>5: 0.278<' targets.svg && grep -q '>others: 0.011<' targets.svg
check "targets: 0.7 (1 - s) + 0.3 s / 9, and so on" $?
grep -q '>m2 = 5 x 1.5 = 7.5<' winograd.svg && grep -q '>y0 = 7<' winograd.svg && grep -q '>y1 = 10<' winograd.svg
check "winograd: the results of the formula, 1 + 2 * 3 and 2 + 2 * 4" $?
error=$("$train" --data data --eval run/resnet18_cifar10.safetensors | sed -n 's/.*calibration error *\([0-9.]*\).*/\1/p')
grep -q "error $(LC_ALL=C printf %.3f "$error")" reliability.svg
check "reliability: the calibration error that --eval gives" $?

# A sheet of 14 kernels: the first takes 28 % of an H100's time and 10 % of an RTX 3090's, the others
# share the rest; it does 100 FLOP for each byte, where an H100's memory allows 335 TFLOP/s. From 10 to
# 1,000 are 300 units each way: its point lies in the middle, at 64 + 150, and log10(33.5) * 150 up.
LC_ALL=C awk 'function row(name, gflop, mb, h100, rest) {
       printf "%-29s %-7s %4d %8.1f %8.1f %9.1f %8.1f %5.2f %7.1f %7.1f %7.1f %7.1f\n", name, "3x3/1", 1, gflop, mb, mb, 0, 1, rest, h100, rest, rest }
     BEGIN { print "kernel                        layer"
             row("first (output)", 100, 1000, 280, 100)
             for (i = 2; i <= 14; i++) row("kernel" i, 0, 100, 720 / 13, 900 / 13)
             row("together", 100, 2300, 1000, 1000) }' >sheet.txt
sed -i 's/^\(together *\)3x3\/1/\1     /' sheet.txt
"$pictures" roofline step=sheet.txt -o roofline.svg && python3 -c 'import xml.dom.minidom; xml.dom.minidom.parse("roofline.svg")' &&
  grep -A 1 '<circle cx="214.0" cy="137.2" r="8"' roofline.svg | grep -q 'fill="#ffffff"' && [ "$(grep -c '<circle' roofline.svg)" -eq 1 ] &&
  grep -A 9 '>first (output) 3x3/1<' roofline.svg | grep -o '>[0-9.]*<' | tr -d '\n' | grep -q '^>1<>28.0<>10.0<'
check "roofline: a kernel's point and its shares" $?
grep -A 3 '>the others<' roofline.svg | grep -q '>11.1<' # two of 13, of 72 %
check "roofline: what is not shown is added up" $?

printf 'epoch,lr,train_loss,train_accuracy,test_loss,test_accuracy,test_nll,seconds,data\n' >head.csv
{ cat head.csv; printf '0,1,1,0,1,0.5,1,1,x\n1,1,1,0.5,1,0.5,1,1,x\n'; } >one.csv
{ cat head.csv; printf '0,1,1,0.5,1,0.5,1,1,x\n1,1,1,1,1,0.5,1,1,x\n'; } >two.csv
"$plot" a=one.csv a=two.csv -o seeds.svg
# 250 wide from 62, 190 high down from 64: the mean goes from 25 % up to 75 %, the band from 0 to 50
# and 50 to 100 %.
grep -q 'points="62.0,206.5 312.0,111.5 "' seeds.svg && grep -q 'points="62.0,254.0 312.0,159.0 312.0,64.0 62.0,159.0 "' seeds.svg
check "plot: the mean of two runs, and the band from the least to the most" $?
"$plot" run.csv -o run.svg && python3 -c 'import xml.dom.minidom; xml.dom.minidom.parse("run.svg")'
check "plot: a real log" $?
plain='re sults/minutes/plain-2' published='re sults/published' # blanks do no harm
mkdir -p "$plain" && cp run.csv "$plain/log.csv" && cp run.csv "$plain/train.csv" && cp bins.csv "$plain/bins.csv"
# Another program's: no test_nll, another order, an empty field, the line ends of DOS.
printf 'note,epoch,test_accuracy,train_accuracy\r\n' | sed 's/note,epoch/epoch,note/' >other.csv
printf '0,,0.5,0\r\n1,,0.5,1\r\n' >>other.csv
mkdir -p "$published/both-1" && cp one.csv "$published/both-1/log.csv" && cp other.csv "$published/notebook.csv"
here=$PWD
(cd "$root" && DATA=$here/data WEIGHTS=$here/run/resnet18_cifar10.safetensors RESULTS="$here/re sults" PICTURES=$here/all \
  SHEET=$here/sheet.txt \
  BUILD=$(dirname "$pictures") TRAIN=$train SHAPES=$shapes tools/pictures.sh) >all.out 2>&1 && [ "$(ls all | wc -l)" -eq 13 ]
check "make pictures: all thirteen, from results too" $?
[ "$(grep -c '>epoch<' all/published.svg)" -eq 2 ] && ! grep -q NLL all/published.svg &&
  [ "$(grep -c 'points="62.0,254.0 312.0,159.0 "' all/published.svg)" -eq 1 ] && # 0 and 50 % in training
  [ "$(grep -c 'points="62.0,254.0 312.0,64.0 "' all/published.svg)" -eq 1 ] && # 0 and 100
  [ "$(grep -c 'points="384.0,159.0 634.0,159.0 "' all/published.svg)" -eq 2 ] # tests: 50, both
check "plot: a log without the NLL: the two charts that both logs have" $?
{ cat one.csv; printf '2,1,1'; } >cut.csv
refuse 1 'cut.csv: line 4 is not the row of epoch 2' "$plot" cut.csv -o out.svg
refuse 1 'bins.csv: is no log' "$plot" bins.csv -o out.svg
printf 'epoch,test_nll\n0,\n' >empty.csv
refuse 1 'empty.csv: line 2 is not the row of epoch 0' "$plot" empty.csv -o out.svg
printf 'epoch,test_nll\n0,1\n' >nll.csv
refuse 1 'no column in common' "$plot" nll.csv other.csv -o out.svg
refuse 1 'head.csv: has no epoch yet' "$plot" head.csv -o out.svg
refuse 1 'no.csv: cannot be opened' "$plot" no.csv -o out.svg
refuse 1 'nowhere/out.svg: No such' "$plot" one.csv -o nowhere/out.svg
cp one.csv kept.csv
refuse 1 'one.csv: is there already and no such picture' "$plot" one.csv -o one.csv
refuse 1 'one.csv: is there already and no such picture' "$plot" -o one.csv two.csv
cmp one.csv kept.csv
check "plot: a log is never overwritten" $?
"$plot" run.csv -o out.svg && "$plot" one.csv -o out.svg && "$plot" one.csv -o again.svg && cmp -s out.svg again.svg
check "plot: an earlier chart is" $?
cp run/resnet18_cifar10.safetensors kept.safetensors
refuse 1 'kept.safetensors: is there already and no such picture' "$pictures" filters --weights kept.safetensors -o kept.safetensors
cmp run/resnet18_cifar10.safetensors kept.safetensors
check "pictures: nor are weights" $?
refuse 2 '^plot: usage:' "$plot" one.csv
refuse 2 '^plot: usage:' "$plot" one.csv -o
refuse 2 '^plot: usage:' "$plot" one.csv -x -o out.svg
refuse 1 'run.csv: is no file of --bins' "$pictures" reliability plain=run.csv -o out.svg
refuse 1 'bins.csv: NAME=FILE.csv is wanted' "$pictures" reliability bins.csv -o out.svg
head -n 9 sheet.txt >short.txt
refuse 1 'short.txt: is not what .make cost. prints' "$pictures" roofline step=short.txt -o out.svg
refuse 1 'sheet.txt: step=FILE is wanted' "$pictures" roofline sheet.txt -o out.svg
refuse 1 'nowhere/data_batch_1.bin' "$pictures" mixed --data nowhere -o out.png
refuse 1 'run.csv: .*safetensors' "$pictures" filters --weights run.csv -o out.png
# Four bytes in the middle of the weights become a NaN.
{ head -c 20000 run/resnet18_cifar10.safetensors; head -c 4 /dev/zero | tr '\0' '\377'; tail -c +20005 run/resnet18_cifar10.safetensors; } >nan.safetensors
refuse 1 'nan.safetensors: .* is not finite' "$pictures" filters --weights nan.safetensors -o out.png
refuse 1 'nan.safetensors: .* is not finite' "$pictures" mistakes --data data --weights nan.safetensors -o out.png
refuse 2 '^usage:' "$pictures" mixed -o out.png
refuse 2 '^usage:' "$pictures" nothing -o out.png

check_summary
