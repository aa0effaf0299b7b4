#!/usr/bin/env bash
#
# tools/data.sh - fetches CIFAR-10's binary version. `make data` calls it; tests/data.py checks it.
#
# CIFAR-10 is 60,000 colour photographs of 32x32 pixels in ten classes. The binary version is one
# tar.gz with a directory cifar-10-batches-bin: five files of training images, one of test images
# (records of 3073 bytes: a label, then 1024 red, 1024 green and 1024 blue values), the names of the
# classes in batches.meta.txt, and readme.html.
#
# A download of 170 MB breaks now and then, and a set that is quietly wrong costs a night of
# training. So the set passes through three states, and only the last has the name that the
# training program reads:
#
#     data/cifar-10-binary.tar.gz.part   whatever has come so far; the next call goes on from there
#     data/.cifar-10-unpack.XXXXXX/      unpacked after the SHA-256 agreed; removed if a run dies
#     data/cifar-10-batches-bin/         complete and checked: it gets its name by one rename
#
# The environment can say, as in `make data CIFAR_TAR=../cifar-10-binary.tar.gz`:
#
#     DATA_DIR=DIR        where to put it, instead of data
#     CIFAR_TAR=FILE      unpack this copy (never changed or deleted) and use no network at all
#     CIFAR_URL=URL       download from another address
#     CIFAR_SHA256=SUM    the checksum to expect of a mirror that packed the same files anew (and of
#                         the small sets in tests/data.py)
#     CIFAR_STALL=30      so many seconds below 1000 bytes a second end a try
#
# A server that sends next to nothing ends a call after one such try. One that is slow, or breaks off,
# is tried five times, two hours each at most, from where it stopped; then the next call goes on.
#
# Whatever goes wrong is one line on stderr, and exit status 1.
set -euo pipefail

default_url=https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz
default_bytes=170052171
default_sha256=c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd

data=${DATA_DIR:-data}
url=${CIFAR_URL:-$default_url}
sha256=$(tr A-F a-f <<< "${CIFAR_SHA256:-$default_sha256}")
final=$data/cifar-10-batches-bin
part=$data/cifar-10-binary.tar.gz.part
stall=${CIFAR_STALL:-30}
slowest=1000 # bytes a second

# One line, whatever a name or a program's words hold; never silent for lack of a standard output.
fail() {
  printf 'make data: %s\n' "$(printf '%s' "$*" | LC_ALL=C tr '[:cntrl:]' '?')" >&2
  exit 1
}

say() {
  printf '%s\n' "$(printf '%s' "$*" | LC_ALL=C tr '[:cntrl:]' '?')" 2> /dev/null ||
    fail "standard output: cannot be written: closed, or its disk is full; give it another place"
}

have() { command -v "$1" > /dev/null; }

bytes_in() { if [ -f "$1" ]; then echo $(($(wc -c < "$1"))); else echo 0; fi; }

# The SHA-256 of file $1; nothing if there is no such file. Linux has one program, macOS the other.
checksum() {
  [ -f "$1" ] || return 0
  if have sha256sum; then sha256sum; else shasum -a 256; fi < "$1" | cut -d ' ' -f 1
}

# Prints the first thing that keeps directory $1 from being a complete set; nothing if it is one.
# Of the size we ask only what every such set must have, so that small ones can be tested.
flaw() {
  local name bytes
  for name in data_batch_{1..5}.bin test_batch.bin; do
    if [ -e "$1/$name" ] && ! [ -f "$1/$name" ]; then
      echo "$name is no file"
      return
    fi
    if ! [ -r "$1/$name" ]; then
      echo "$name is missing"
      return
    fi
    bytes=$(bytes_in "$1/$name")
    if ((bytes == 0 || bytes % 3073 != 0)); then
      echo "$name has $bytes bytes, which is no whole number of 3073-byte records"
      return
    fi
  done
}

# Brings $part as far as it will go. We count the tries ourselves because curl's --retry would throw
# away what the broken try brought, where a new `--continue-at -` goes on behind it.
download() {
  local try status http before after problem
  local progress=(--silent)
  if [ -t 2 ]; then progress=(--progress-bar); fi
  for try in 1 2 3 4 5; do
    before=$(bytes_in "$part")
    status=0
    http=$(curl "${progress[@]}" --fail --location --continue-at - --connect-timeout 10 \
      --speed-limit $slowest --speed-time "$stall" --max-time 7200 --output "$part" --write-out '%{http_code}' \
      --url "$url") || status=$?
    after=$(bytes_in "$part")
    # The server cannot send the rest of a file (33), or we hold as much as it has or more (416, an
    # error to some versions of curl and a success to others) and it is not the right file.
    if ((before > 0)) && { [ "$status" = 33 ] || [ "$http" = 416 ]; }; then
      say "the $before bytes in $part cannot be continued: starting over"
      rm -f -- "$part"
      continue
    fi
    case $status:$http in
      0:*) return ;;
      22:408 | 22:429 | 22:5?? | 18:* | 52:* | 55:* | 56:* | 92:*) ;; # these often pass
      # A stall passes; a host that never answered does not, nor does one that sends a byte a second.
      28:*) ((after - before >= slowest * stall)) || break ;;
      *) break ;;
    esac
    if ((try < 5)); then
      say "the download broke off at $after$of_whole bytes: trying again"
      sleep 1
    fi
  done
  case $status:$http in
    5:* | 6:*) problem="no network, or no such host (its name was not found)" ;;
    7:*) problem="no network, or nobody listens there (connection refused or no route)" ;;
    28:*) problem="no answer in time (below $slowest bytes a second for $stall s)" ;;
    22:*) problem="the server says HTTP $http (CIFAR_URL=URL names another)" ;;
    23:*) problem="cannot write $part (disk full? 360 MB are needed in all)" ;;
    35:* | 60:*) problem="no secure connection (curl's status $status: certificates? clock?)" ;;
    *) problem="the download failed (curl's exit status $status)" ;;
  esac
  fail "$problem: $url; call again to go on from $after$of_whole bytes, or give a local copy with" \
    "CIFAR_TAR=FILE; \`make train\` can do without, on its stand-in images"
}

# The archive is not what it should be. A download is deleted, for there is no telling which of its
# bytes are wrong, and going on from them would fail for ever; a file of the user's stays.
reject() {
  if [ -n "${CIFAR_TAR:-}" ]; then fail "$archive $*; give the real file, or drop CIFAR_TAR="; fi
  rm -f -- "$archive"
  fail "$archive $*; deleted it: call again for a fresh download, or give a good copy with" \
    "CIFAR_TAR=FILE"
}

# Does the archive begin as every gzip file does (RFC 1952)?
is_gzip() { [ "$(head -c 2 < "$archive" | od -A n -t x1 | tr -d ' \n')" = 1f8b ]; }

# -- What can be known to be wrong before any work is done ----------------------------------------
[[ $sha256 =~ ^[0-9a-f]{64}$ ]] || fail "CIFAR_SHA256=$sha256 is not 64 hexadecimal digits"
[[ $stall =~ ^[1-9][0-9]{0,3}$ ]] || fail "CIFAR_STALL=$stall is not a number of seconds, 1 to 9999"
of_whole=
if [ "$sha256" = "$default_sha256" ]; then of_whole=" of $default_bytes"; fi
have sha256sum || have shasum ||
  fail "needs sha256sum (from GNU coreutils) or shasum (from Perl): install one of them"
mkdir -p -- "$data" 2> /dev/null || fail "cannot make the directory $data (DATA_DIR)"

# Two runs at once would write the same .part, and a killed run may leave a curl behind that still
# does. The lock is on the directory and is held by every process that has descriptor 9 open. Where
# there is no flock (macOS), two such runs spoil the .part, which its checksum then shows.
if have flock; then
  exec 9< "$data"
  # 1 means taken; anything else, that this file system knows no such locks.
  flock -n 9 2> /dev/null || if [ $? = 1 ]; then
    say "waiting for another \`make data\` in $data"
    flock 9
  fi
fi
rm -rf -- "$data"/.cifar-10-unpack.*

if [ -e "$final" ] || [ -L "$final" ]; then
  problem=$(flaw "$final")
  [ -z "$problem" ] || fail "$final is there but not complete ($problem);" \
    "move it away or delete it, then call again"
  rm -f -- "$part"
  say "$final is already there, complete"
  exit 0
fi

if [ -e "$part" ] && ! [ -f "$part" ]; then
  fail "$part: is no file, and in the download's way; move it away, then call again"
fi

# -- The archive, and its checksum ----------------------------------------------------------------
if [ -n "${CIFAR_TAR:-}" ]; then
  archive=$CIFAR_TAR
  if ! [ -f "$archive" ] || ! [ -r "$archive" ]; then
    fail "CIFAR_TAR=$archive: no such file, or not readable"
  fi
  sum=$(checksum "$archive")
else
  archive=$part
  # A run that died after its download left it whole: then there is nothing to ask for.
  sum=$(checksum "$part")
  if [ "$sum" != "$sha256" ]; then
    have curl || fail "needs curl to download $url: install it, or give a local copy with" \
      "CIFAR_TAR=FILE"
    say "downloading $url ($(bytes_in "$part")$of_whole bytes are here)"
    download
    sum=$(checksum "$part")
  fi
fi
note=
is_gzip || note="; it is no gzip archive (a login page?), for it begins with \"$(head -c 40 < "$archive" |
  tr -d '\0')\""
[ "$sum" = "$sha256" ] || reject "is not the right file: it has $(bytes_in "$archive")$of_whole" \
  "bytes and SHA-256 $sum, expected $sha256$note"
[ -z "$note" ] || reject "is not the right file$note"

# -- The set: unpacked aside, checked, renamed ----------------------------------------------------
unpack=$(mktemp -d -- "$data/.cifar-10-unpack.XXXXXX" 2> /dev/null) || fail "cannot write in $data"
trap 'rm -rf -- "$unpack"' EXIT
# Redirected, because tar takes a colon in a file's name for a host; and owned by who runs this.
words=$(tar -x -z -f - --no-same-owner -C "$unpack" < "$archive" 2>&1 | sed -n 1p) || {
  # Can it be read through where nothing is written? Then it is the disk.
  tar -t -z -f - < "$archive" > /dev/null 2>&1 || reject "cannot be unpacked: $words"
  fail "cannot unpack $archive in $data (disk full? 360 MB are needed in all): $words"
}
# A link in the place of a file leads out of the set, to whatever there is on this machine.
other=$(cd -- "$unpack" && find . ! -type f ! -type d | sed -n 1p)
[ -z "$other" ] || reject "is not CIFAR-10's binary version: ${other#./} is a link or a device"
problem=$(flaw "$unpack/cifar-10-batches-bin")
[ -z "$problem" ] || reject "is not CIFAR-10's binary version: $problem in cifar-10-batches-bin"
# All bytes reach the disk before the name does.
sync -- "$unpack"/cifar-10-batches-bin/* 2> /dev/null || sync
mv -- "$unpack/cifar-10-batches-bin" "$final"
if [ "$archive" = "$part" ]; then rm -f -- "$part"; fi
say "$final is ready"
