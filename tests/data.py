#!/usr/bin/env python3
"""data.py - holds tools/data.sh and tools/shapes.c to their promises: python3 tests/data.py SHAPES

A download script is easy to believe and hard to see fail: the campus network is up on the day it is
written. So each check here packs a small set of CIFAR-10's form (a few records of random bytes a
file), serves it from a web server on this machine that breaks off, refuses or lies as it is told,
and runs tools/data.sh against it with CIFAR_URL, CIFAR_SHA256 and DATA_DIR. No check leaves the machine.

After every failure the same things must hold (`refuses`): exit status 1, one line on stderr, no set
under the final name and nothing half unpacked beside it. SHAPES is the built program that draws the
stand-in set; it is interrupted and refused its files, too.

Prints a line a check, then the counts; exit status 1 if any check failed.
"""

import concurrent.futures
import contextlib
import fcntl
import gzip
import hashlib
import http.server
import io
import os
import pathlib
import random
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

SHAPES = pathlib.Path(sys.argv[1]).resolve() if len(sys.argv) == 2 else None
MAKEFILE = pathlib.Path(__file__).resolve().parent.parent / "Makefile"
SCRIPT = pathlib.Path(__file__).resolve().parent.parent / "tools" / "data.sh"
SET = "cifar-10-batches-bin"
PART = "cifar-10-binary.tar.gz.part"
BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
RECORD = 3073
PATH = os.environ.get("PATH", os.defpath)
PROGRAMS = ["bash", "cp", "curl", "cut", "find", "flock", "gzip", "head", "mkdir", "mktemp"]
PROGRAMS += ["mv", "od", "rm", "sed", "sha256sum", "shasum", "sleep", "sync", "tar", "tr", "wc"]
PATIENCE = 20  # seconds for any one wait: far more than it takes, so that a hang is a failure


def make_files():
    """The files of a set, name -> bytes, of 1 to 6 records each."""
    randoms = random.Random(10)
    files = {name: randoms.randbytes(RECORD * (i + 1)) for i, name in enumerate(BATCHES)}
    return {**files, "batches.meta.txt": b"airplane\nautomobile\n", "readme.html": b"<html></html>"}


def pack(files, kind=tarfile.REGTYPE, special=(), target=""):
    """A tar.gz of the set's files; those named in `special` are of a kind of their own: a link to
    `target`, a FIFO, a directory."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{SET}/{name}")
            member.size = len(content)
            if name in special:
                member.type, member.linkname, member.size, member.mode = kind, target, 0, 0o755
            tar.addfile(member, io.BytesIO(content) if member.size else None)
    return memory.getvalue()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


FILES = make_files()
ARCHIVE = pack(FILES)


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives the next of server.answers, the last of them for ever; serve() says what they are."""

    def do_GET(self):
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
        if isinstance(answer, int):
            return self.send_error(answer)
        if answer.startswith("drip"):
            return self.drip("header" in answer)
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and answer != "no ranges":
            start = int(asked[1])
            if start >= len(server.body):
                return self.send_error(416)
        content = server.body[start:]
        self.send_response(206 if start else 200)
        if start:
            end = len(server.body)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        sent = {"cut": len(content) // 2, "hold": len(content) // 2, "nothing": 0}
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content[: sent.get(answer, len(content))])
        if answer == "hold":
            server.holding.set()
            server.release.wait(PATIENCE)

    def drip(self, header):
        """A byte now and then: of the header, or of the file."""
        if not header:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.body)))
            self.end_headers()
        with contextlib.suppress(OSError):
            for byte in b"HTTP/1.1 200 OK and so on for ever" if header else self.server.body:
                self.wfile.write(bytes([byte]))
                if self.server.release.wait(0.3):
                    return

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(*answers, body=ARCHIVE):
    """A web server for `body`. It answers its requests in turn with
    "all"        what was asked for, from the start or from where a Range request says
    "cut"        the first half of that, then it closes the connection
    "nothing"    the header of that, then it closes the connection
    "hold"       the first half of that, then silence until `release` is set, then it closes
    "no ranges"  everything, whatever was asked for
    "drip"       that, three bytes a second; "drip header": not even the header comes sooner
    404, ...     an error of that number
    and notes each one's Range header in `ranges`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.answers, server.body, server.ranges = list(answers), body, []
    server.holding, server.release = threading.Event(), threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/set.tar.gz"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()


class Place:
    """One check's directory, with tools/data.sh's runs in it."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.data = self.root / "data"
        self.final = self.data / SET
        self.part = self.data / PART

    def start(self, before="", path=PATH, **settings):
        """Starts tools/data.sh; `before` is shell text to run ahead of it, such as a ulimit."""
        environment = {"PATH": path, "HOME": str(self.root), "LC_ALL": "C", "DATA_DIR": "data"}
        environment["CIFAR_SHA256"] = sha256(ARCHIVE)
        environment.update(settings)
        command = ["bash", "-c", f'{before} exec bash "$0"', SCRIPT]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, env=environment, cwd=self.root, stdout=pipe, stderr=pipe, text=True
        )

    def run(self, **settings):
        """tools/data.sh from start to end: its exit status, stdout and stderr."""
        process = self.start(**settings)
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"still running after {PATIENCE} s") from None
        return process.returncode, out, err

    def delivers(self, files=FILES, **settings):
        """Runs tools/data.sh and wants the set, whole, quietly, and nothing beside it."""
        status, out, err = self.run(**settings)
        assert status == 0, f"exit status {status}: {err}"
        assert not err, f"on stderr: {err}"
        self.holds(files)
        left = {path.name for path in self.data.iterdir()} - {SET}
        assert not left, f"left behind: {left}"
        return out

    def holds(self, files=FILES):
        found = {path.name: path.read_bytes() for path in self.final.iterdir()}
        assert found == files, f"not the files that were packed: {sorted(found)}"

    def refuses(self, *words, **settings):
        """Runs tools/data.sh and wants a failure in good order, its line with all the words."""
        status, _, err = self.run(**settings)
        assert status == 1, f"exit status {status}: {err}"
        assert err.startswith("make data: "), f"stderr does not begin with make data: {err!r}"
        assert err.count("\n") == 1 and err.endswith("\n"), f"not one line on stderr: {err!r}"
        for word in words:
            assert word in err, f"no {word!r} in {err!r}"
        assert not self.final.exists(), "a set stands under the final name"
        left = {path.name for path in self.data.iterdir()} - {PART} if self.data.is_dir() else ()
        assert not left, f"left behind: {left}"

    def tools(self, without=(), **scripts):
        """A PATH with what tools/data.sh needs, except some programs, and with shell scripts of ours."""
        folder = self.root / "bin"
        folder.mkdir()
        for name, text in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        for name in set(PROGRAMS) - set(without) - set(scripts):
            if shutil.which(name):
                (folder / name).symlink_to(shutil.which(name))
        return str(folder)

    def archive(self, content=ARCHIVE):
        path = self.root / "archive.tar.gz"
        path.write_bytes(content)
        return path


class Skip(Exception):
    """A check that this machine cannot do, and why."""


CHECKS = []


def check(what):
    def keep(function):
        CHECKS.append((what, function))
        return function

    return keep


# -- Downloads that come to a good end -------------------------------------------------------------


@check("the address, size and checksum of the real file")
def _(_place):
    text = SCRIPT.read_text()
    for line in (
        "default_url=https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "default_bytes=170052171",
        "default_sha256=c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ):
        assert f"\n{line}\n" in text, f"no line {line}"


@check("a good download")
def _(place):
    with serve("all") as server:
        place.delivers(CIFAR_URL=server.url)
        assert server.ranges == [None], server.ranges


@check("a download cut once goes on from there in the same call")
def _(place):
    with serve("cut", "all") as server:
        place.delivers(CIFAR_URL=server.url)
        assert server.ranges == [None, f"bytes={len(ARCHIVE) // 2}-"], server.ranges


@check("a download cut for good goes on from there in the next call")
def _(place):
    half = len(ARCHIVE) // 2
    with serve("cut", 404, "all") as server:
        place.refuses("HTTP 404", f"from {half} bytes", CIFAR_URL=server.url)
        assert place.part.read_bytes() == ARCHIVE[:half], "the first half was not kept"
        place.delivers(CIFAR_URL=server.url)
        assert server.ranges == [None] + 2 * [f"bytes={half}-"], server.ranges


@check("a server that cannot send the rest of a file: starts over")
def _(place):
    with serve("cut", "no ranges") as server:
        place.delivers(CIFAR_URL=server.url)
        assert len(server.ranges) == 3 and server.ranges[2] is None, server.ranges


@check("a .part that is complete needs no server")
def _(place):
    place.data.mkdir()
    place.part.write_bytes(ARCHIVE)
    with serve("all") as server:
        place.delivers(CIFAR_URL=server.url)
        assert not server.ranges, server.ranges


@check("a .part as large as the file but wrong, or larger (HTTP 416): starts over")
def _(place):
    for content in (bytes(len(ARCHIVE)), ARCHIVE + b"more"):
        place.data.mkdir()
        place.part.write_bytes(content)
        with serve("all") as server:
            place.delivers(CIFAR_URL=server.url)
            assert server.ranges == [f"bytes={len(content)}-", None], server.ranges
        shutil.rmtree(place.data)


@check("a directory's name with a blank, a colon and a dash in front")
def _(place):
    place.data = place.root / "-my data:set"
    place.final = place.data / SET
    with serve("all") as server:
        place.delivers(CIFAR_URL=server.url, DATA_DIR=place.data.name)


# -- Downloads that do not -------------------------------------------------------------------------


@check("a file that never comes whole")
def _(place):
    half = len(ARCHIVE) // 2
    with serve("cut", "nothing") as server:
        place.refuses("the download failed", f"from {half} bytes", CIFAR_URL=server.url)
        assert 3 <= len(server.ranges) <= 10, f"{len(server.ranges)} tries"
        assert place.part.stat().st_size == half, "the first half was not kept"


@check("a file that is cut short on the server: deleted, and the next call starts afresh")
def _(place):
    short = ARCHIVE[:-1000]
    with serve("all", body=short) as server:
        sums = sha256(short), sha256(ARCHIVE)
        place.refuses("not the right file", *sums, CIFAR_URL=server.url)
        assert not place.part.exists(), "the .part was kept"
        server.body = ARCHIVE
        place.delivers(CIFAR_URL=server.url)
        assert server.ranges == [None, None], server.ranges


@check("another file of the right form: its checksum gives it away")
def _(place):
    other = pack({**FILES, "test_batch.bin": bytes(RECORD)})
    with serve("all", body=other) as server:
        sums = sha256(other), sha256(ARCHIVE)
        place.refuses("not the right file", *sums, "call again", CIFAR_URL=server.url)
        assert not place.part.exists(), "the .part was kept"


@check("an empty answer")
def _(place):
    with serve("all", body=b"") as server:
        place.refuses("not the right file", CIFAR_URL=server.url)


@check("HTTP 404, asked for once")
def _(place):
    with serve(404) as server:
        place.refuses("HTTP 404", server.url, "CIFAR_TAR=FILE", CIFAR_URL=server.url)
        assert len(server.ranges) == 1, f"{len(server.ranges)} tries"


@check("HTTP 503, asked for a few times")
def _(place):
    with serve(503) as server:
        place.refuses("HTTP 503", CIFAR_URL=server.url)
        assert 3 <= len(server.ranges) <= 10, f"{len(server.ranges)} tries"


@check("a refused connection, in no time")
def _(place):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        begin = time.monotonic()
        place.refuses("no network", "CIFAR_TAR=FILE", "make train", CIFAR_URL=url)
    seconds = time.monotonic() - begin
    assert seconds < 5, f"took {seconds:.1f} s"


@check("a server that sends a few bytes a second: given up after CIFAR_STALL, 30 s if not said")
def _(place):
    assert "\nstall=${CIFAR_STALL:-30}\n" in SCRIPT.read_text()
    for answer in "drip", "drip header":
        with serve(answer) as server:
            begin = time.monotonic()
            place.refuses("no answer in time", CIFAR_URL=server.url, CIFAR_STALL="1")
            seconds = time.monotonic() - begin
            assert len(server.ranges) == 1, f"{len(server.ranges)} tries"
            assert seconds < PATIENCE / 2, f"took {seconds:.1f} s"


@check("a disk that fills up during the download; then there is room")
def _(place):
    limit = "trap '' XFSZ; ulimit -f 16;"  # 16 KiB a file, and an error instead of a signal
    with serve("all") as server:
        place.refuses("disk full", before=limit, CIFAR_URL=server.url)
        place.delivers(CIFAR_URL=server.url)


@check("a disk that fills up during the unpacking; the download is kept")
def _(place):
    files = {name: bytes(100 * RECORD) for name in BATCHES}  # zeros: small until unpacked
    content = pack(files)
    limit = "trap '' XFSZ; ulimit -f 64;"
    with serve("all", body=content) as server:
        settings = {"CIFAR_URL": server.url, "CIFAR_SHA256": sha256(content)}
        place.refuses("disk full", before=limit, **settings)
        place.delivers(files, **settings)
        assert len(server.ranges) == 1, server.ranges


@check("an archive with a file of half a record too many")
def _(place):
    content = pack({**FILES, "data_batch_4.bin": bytes(RECORD + RECORD // 2)})
    with serve("all", body=content) as server:
        settings = {"CIFAR_URL": server.url, "CIFAR_SHA256": sha256(content)}
        place.refuses("data_batch_4.bin has 4609 bytes", **settings)
        assert not place.part.exists(), "the .part was kept"


@check("an archive with an empty file; one without a file")
def _(place):
    empty = {**FILES, "test_batch.bin": b""}
    fewer = {name: text for name, text in FILES.items() if name != "data_batch_5.bin"}
    for files, words in (
        (empty, "test_batch.bin has 0 bytes"),
        (fewer, "data_batch_5.bin is missing"),
    ):
        tar = place.archive(pack(files))
        content = tar.read_bytes()
        place.refuses(words, CIFAR_TAR=str(tar), CIFAR_SHA256=sha256(content))
        assert tar.read_bytes() == content, "the user's file was changed"


@check("an archive that is no gzip: said, and not kept")
def _(place):
    page = b"<html>\nPlease log in\0</html>"
    for expected in sha256(page), sha256(ARCHIVE):
        with serve("all", body=page) as server:
            place.refuses("no gzip archive", CIFAR_URL=server.url, CIFAR_SHA256=expected)
            assert not place.part.exists(), "the .part was kept"
    tar = str(place.archive(page))
    place.refuses("no gzip archive", CIFAR_TAR=tar, CIFAR_SHA256=sha256(page))


@check("an archive that cannot be unpacked: not kept")
def _(place):
    for content in ARCHIVE[:-1000], gzip.compress(b"no tar" * 1000):
        with serve("all", body=content) as server:
            settings = {"CIFAR_URL": server.url, "CIFAR_SHA256": sha256(content)}
            place.refuses("cannot be unpacked", **settings)
            assert not place.part.exists(), "the .part was kept"


@check("links, a FIFO, a directory in the place of the archive's files")
def _(place):
    outside = place.root / "outside"
    outside.write_bytes(bytes(RECORD))
    for kind, words in (
        (tarfile.SYMTYPE, "test_batch.bin is a link or a device"),
        (tarfile.FIFOTYPE, "test_batch.bin is a link or a device"),
        (tarfile.DIRTYPE, "test_batch.bin is no file"),
    ):
        content = pack(FILES, kind, ["test_batch.bin"], str(outside))
        with serve("all", body=content) as server:
            settings = {"CIFAR_URL": server.url, "CIFAR_SHA256": sha256(content)}
            place.refuses(words, **settings)
            assert not place.part.exists(), "the .part was kept"
    assert outside.read_bytes() == bytes(RECORD), "a file outside was changed"


@check("a link in the place of the archive's directory")
def _(place):
    (place.root / "outside").mkdir()
    for name, content in FILES.items():
        (place.root / "outside" / name).write_bytes(content)
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz") as tar:
        member = tarfile.TarInfo(SET)
        member.type, member.linkname = tarfile.SYMTYPE, str(place.root / "outside")
        tar.addfile(member)
    tar = place.archive(memory.getvalue())
    settings = {"CIFAR_TAR": str(tar), "CIFAR_SHA256": sha256(memory.getvalue())}
    place.refuses(f"{SET} is a link or a device", **settings)


# -- What a shell can do to a program --------------------------------------------------------------


@check("no standard output, or a full disk under it")
def _(place):
    for before in "exec >&-;", "exec >/dev/full;":
        with serve("all") as server:
            place.refuses("standard output", before=before, CIFAR_URL=server.url)


@check("line ends in names: one line all the same")
def _(place):
    place.refuses("CIFAR_TAR=no?where", CIFAR_TAR="no\nwhere")
    place.refuses("fi?le", DATA_DIR="/dev/null/fi\nle", CIFAR_TAR=str(place.archive()))


@check("a FIFO or a directory in the place of a file")
def _(place):
    os.mkfifo(place.root / "fifo")
    place.refuses("no such file", CIFAR_TAR="fifo")
    place.refuses("cannot make the directory", DATA_DIR="fifo", CIFAR_TAR=str(place.archive()))
    place.data.mkdir(exist_ok=True)
    os.mkfifo(place.part)
    place.refuses("is no file", CIFAR_URL="http://127.0.0.1:1/")
    place.part.unlink()
    place.part.mkdir()
    place.refuses("is no file", CIFAR_URL="http://127.0.0.1:1/")


# -- A file of the user's --------------------------------------------------------------------------


@check("CIFAR_TAR: no request is made, and the file stays as it is")
def _(place):
    tar = place.archive()
    before = tar.stat()
    with serve("all") as server:
        place.delivers(CIFAR_TAR=tar.name, CIFAR_URL=server.url)
        assert not server.ranges, server.ranges
    after = tar.stat()
    assert tar.read_bytes() == ARCHIVE, "the file was changed"
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), "not the same"


@check("CIFAR_TAR: no such file")
def _(place):
    place.refuses("CIFAR_TAR=nowhere.tar.gz", "no such file", CIFAR_TAR="nowhere.tar.gz")


@check("CIFAR_TAR: the wrong file, which stays where it is")
def _(place):
    tar = place.archive(b"something else")
    place.refuses(sha256(b"something else"), sha256(ARCHIVE), CIFAR_TAR=str(tar))
    assert tar.read_bytes() == b"something else", "the user's file was changed"


@check("CIFAR_SHA256: not a checksum, found out before the download")
def _(place):
    with serve("all") as server:
        place.refuses("64 hexadecimal digits", CIFAR_URL=server.url, CIFAR_SHA256="c4a38")
        assert not server.ranges, server.ranges


# -- What is there already -------------------------------------------------------------------------


def lay_out(place, names):
    place.final.mkdir(parents=True)
    for name in names:
        (place.final / name).write_bytes(FILES[name])


@check("a complete directory: no request is made")
def _(place):
    lay_out(place, FILES)
    with serve("all") as server:
        out = place.delivers(CIFAR_URL=server.url)
        assert not server.ranges, server.ranges
    assert "already there" in out, out


@check("an incomplete directory: refused, and left alone")
def _(place):
    some = ["data_batch_1.bin", "test_batch.bin"]
    lay_out(place, some)
    status, _out, err = place.run(CIFAR_TAR=str(place.archive()))
    assert status == 1 and err.count("\n") == 1, f"exit status {status}: {err}"
    assert "data_batch_2.bin is missing" in err and "move it away" in err, err
    place.holds({name: FILES[name] for name in some})


# -- Killed, or two at once ------------------------------------------------------------------------


@check("kill -9 during the download; the next call goes on from there")
def _(place):
    with serve("hold", "all") as server:
        process = place.start(CIFAR_URL=server.url)
        assert server.holding.wait(PATIENCE), "no request came"
        process.kill()
        process.wait()
        assert not place.final.exists(), "a set stands under the final name"
        server.release.set()  # ends the curl that the kill left behind
        process.communicate()
        place.delivers(CIFAR_URL=server.url)
        assert server.ranges == [None, f"bytes={len(ARCHIVE) // 2}-"], server.ranges


@check("kill -9 during the unpacking; the next call removes what it left")
def _(place):
    # A tar that unpacks, empties one of the files again, and kills tools/data.sh, which called it.
    real = shutil.which("tar")
    empty = "find data -name test_batch.bin -exec cp /dev/null {} ';'"
    path = place.tools(tar=f'{real} "$@"; {empty}; kill -9 $SCRIPT')
    with serve("all") as server:
        process = place.start("export SCRIPT=$$;", path, CIFAR_URL=server.url)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == -9, f"the script was not killed: {process.returncode}"
        assert not place.final.exists(), "a set stands under the final name"
        assert place.part.exists(), "the download was lost"
        assert len(list(place.data.iterdir())) == 2, "it left nothing to remove"
        place.delivers(CIFAR_URL=server.url)
        assert len(server.ranges) == 1, server.ranges


@check("two calls at once: the second waits")
def _(place):
    if not shutil.which("flock"):
        raise Skip("no flock on this machine")
    with serve("hold", "all") as server:
        first = place.start(CIFAR_URL=server.url)
        assert server.holding.wait(PATIENCE), "no request came"
        second = place.start(CIFAR_URL=server.url)
        assert "waiting" in second.stdout.readline()
        server.release.set()
        for process in (first, second):
            _, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0 and not err, f"{process.returncode}: {err}"
        assert len(server.ranges) == 2, server.ranges  # both of the first: the half, and the rest
        place.holds()


# -- The stand-in set ------------------------------------------------------------------------------


def shapes(place, *arguments, before="", directory="shapes", kill_after=None):
    """Draws a small set: exit status, stdout and stderr. It may be killed after some seconds."""
    if not SHAPES:
        raise Skip("no program was named that draws it")
    command = ["bash", "-c", f'{before} exec "$0" "$@"', SHAPES, "--train", "200", "--test", "50"]
    process = subprocess.Popen(
        [*command, *arguments, directory],
        cwd=place.root,
        env={"PATH": PATH, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=kill_after or PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        assert kill_after, f"still running after {PATIENCE} s"
    return process.returncode, out, err


def shapes_refuse(place, *words, **how):
    status, _, err = shapes(place, **how)
    assert status == 1, f"exit status {status}: {err}"
    assert err.startswith("shapes: ") and err.count("\n") == 1, f"not one line: {err!r}"
    for word in words:
        assert word in err, f"no {word!r} in {err!r}"


def contents(place, directory="shapes"):
    return {path.name: path.read_bytes() for path in (place.root / directory).iterdir()}


@check("the stand-in set, killed at some moments: whole where test_batch.bin is, and made anew")
def _(place):
    begin = time.monotonic()
    assert shapes(place, directory="whole")[0] == 0
    seconds = time.monotonic() - begin
    whole = contents(place, "whole")
    assert sorted(whole) == sorted([*BATCHES, "batches.meta.txt", "STAND-IN.txt"]), sorted(whole)
    for i in range(8):
        shapes(place, kill_after=seconds * (i + 1) / 8)
        found = contents(place) if (place.root / "shapes").exists() else {}
        assert "test_batch.bin" not in found or found == whole, "not whole, and has test_batch.bin"
        assert shapes(place)[0] == 0
        assert contents(place) == whole, "the next call did not make it whole"
        shutil.rmtree(place.root / "shapes")


@check("a set that could not be replaced by another is no whole one")
def _(place):
    assert shapes(place)[0] == 0
    (place.root / "shapes" / "data_batch_3.bin").unlink()
    (place.root / "shapes" / "data_batch_3.bin" / "x").mkdir(parents=True)
    shapes_refuse(place, "data_batch_3.bin", before='set -- "$@" --seed 2;')
    names = [path.name for path in (place.root / "shapes").iterdir()]
    assert "test_batch.bin" not in names, "two sets' files, and it looks whole"
    assert not [name for name in names if name.endswith(".tmp")], names


@check("two stand-in sets at once in one directory: the second waits, and one of them is whole")
def _(place):
    place.root.joinpath("shapes").mkdir()
    held = os.open(place.root / "shapes", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert "waiting for another" in shapes(place, kill_after=2)[1], "it does not wait"
    assert not contents(place), "it wrote into a directory that another works in"
    os.close(held)
    wholes = []
    for seed in "1", "2":
        assert shapes(place, "--seed", seed, directory=seed)[0] == 0
        wholes.append(contents(place, seed))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        runs = [pool.submit(shapes, place, "--seed", seed) for seed in "1212"]
        statuses = [run.result()[0] for run in runs]
    assert statuses == [0] * 4, statuses
    assert contents(place) in wholes, "a mixture of two sets"


@check("make data/stand-in: made anew where it was interrupted, left alone where it is whole")
def _(place):
    if not SHAPES or not shutil.which("make"):
        raise Skip("no make, or no program that draws it")
    shutil.copy(MAKEFILE, place.root)
    script = place.root / "draw"
    script.write_text(f'#!/bin/sh\nexec "{SHAPES}" --train 50 --test 10 "$@"\n')
    script.chmod(0o755)
    stand_in = place.root / "data" / "stand-in"
    stand_in.mkdir(parents=True)
    (stand_in / "STAND-IN.txt").write_text("This is NOT CIFAR-10.")
    (stand_in / "data_batch_1.bin.tmp").write_bytes(b"half")
    command = ["make", "-s", "-o", "./draw", "NVCC=", "SHAPES=./draw", "data/stand-in"]
    # Not as a part of the make that runs this check (its jobs, its SAN=1).
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    for drawn in 1, 0:
        done = subprocess.run(command, env=environment, cwd=place.root, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert done.stdout.count("\n") == drawn, done.stdout
        assert sorted(path.name for path in stand_in.iterdir()) == sorted(
            [*BATCHES, "batches.meta.txt", "STAND-IN.txt"]
        )


@check("the stand-in set without standard output, a disk, a place")
def _(place):
    shapes_refuse(place, "standard output", before="exec >&-;")
    shapes_refuse(place, "standard output", before="exec >/dev/full;")
    shapes_refuse(place, "data_batch_1.bin.tmp", "File too large", before="ulimit -f 8;", directory="b")
    (place.root / "fi\nle").write_bytes(b"")
    shapes_refuse(place, "fi\\nle/a\\nb", directory="fi\nle/a\nb")
    (place.root / "names").mkdir()
    os.mkfifo(place.root / "names" / "batches.meta.txt")
    shapes_refuse(place, "not made by this program", directory="names")
    (place.root / "taken" / "STAND-IN.txt.tmp").mkdir(parents=True)
    shapes_refuse(place, "could not be created", directory="taken")
    (place.root / "fifo").mkdir()
    os.mkfifo(place.root / "fifo" / "STAND-IN.txt.tmp")
    assert shapes(place, directory="fifo")[0] == 0


# -- Programs that are not there -------------------------------------------------------------------


@check("no curl: said, and not needed for CIFAR_TAR")
def _(place):
    path = place.tools(without=["curl"])
    place.refuses("needs curl", "CIFAR_TAR=FILE", path=path, CIFAR_URL="http://127.0.0.1:1/")
    place.delivers(path=path, CIFAR_TAR=str(place.archive()))


@check("no sha256sum, as on macOS: shasum -a 256")
def _(place):
    real = shutil.which("sha256sum")
    if not real:
        raise Skip("no sha256sum here either: every other check went this way")
    shasum = f'[ "$*" = "-a 256" ] && exec {real}'
    path = place.tools(without=["sha256sum"], shasum=shasum)
    place.delivers(path=path, CIFAR_TAR=str(place.archive()))


@check("neither sha256sum nor shasum")
def _(place):
    path = place.tools(without=["sha256sum", "shasum"])
    place.refuses("needs sha256sum", path=path, CIFAR_TAR=str(place.archive()))


def run_check(case):
    """Runs one check in a directory of its own: "ok", "skip" or "FAIL", and its line."""
    what, function = case
    with tempfile.TemporaryDirectory(prefix="data-check-") as root:
        try:
            function(Place(root))
            return "ok", f"ok   data: {what}"
        except Skip as why:
            return "skip", f"skip data: {what}: {why}"
        except Exception as why:  # whatever a check stumbles over is its failure, not the end
            text = f"{type(why).__name__}: {why}".replace("\n", " ")
            return "FAIL", f"FAIL data: {what}: {text}"


def main():
    counts = {"ok": 0, "skip": 0, "FAIL": 0}
    # Most of a check is waiting for the pauses between tools/data.sh's tries.
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for result, line in pool.map(run_check, CHECKS):
            counts[result] += 1
            print(line, flush=True)
    print(f"{counts['ok']} passed, {counts['FAIL']} failed")
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
