"""Nothing is lost, torn or left behind when the service is killed at any call, calls fail, or the power is cut.

EDGEAPP_CAMPAIGN=1 (`./build.sh campaign durability`) makes it long. A power cut is a file system of its own that is
shut down without its log (EXT4_IOC_SHUTDOWN, as XFS has it too) and mounted again: what was not on the disk is gone.
That a disk lies about what it wrote is not shown. `no_sync` is the negative control: a library that makes fsync() and
fdatasync() do nothing; with it inputs or results must get lost.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from campaigning import CAMPAIGN, Row, found, long_control, planted
from PIL import Image
from serving import Serving, Spool, serving, until
from support import ROOT, Program

from edgeapp.service import spool as folders
from edgeapp.service.durable import Appended

MODEL = ROOT / "edgeapp" / "data" / "demo" / "model.onnx"
SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
"""ioctl of ext4 and XFS (linux/fs.h), and its flag."""

CUTS, NEGATIVE_CUTS = (1000, 60) if CAMPAIGN else (6, 0)
WAITING_AT_A_CUT = 30

pytestmark = pytest.mark.timeout(7200 if CAMPAIGN else 300)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "x.jpg"
    Image.new("RGB", (64, 48), (10, 200, 90)).save(path)
    return path.read_bytes()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def is_done(spool: Spool) -> bool:
    return not spool.waiting


# --- killed, or refused, at a system call -----------------------------------------------------------------------------

CALLS = ("openat", "write", "fsync", "fdatasync", "renameat2", "ftruncate")
ERRNOS = ("ENOSPC", "EIO", "EROFS", "EDQUOT", "EMFILE", "EINTR", "ESTALE")

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing")


def disturbed(program: Program, spool: Spool, call: str, how: str) -> Program:
    """The program under strace, which disturbs a call on the paths that the write path uses."""
    folders = ("in", "done", "failed", "results", "state")
    files = ("results/results.jsonl", "state/ledger", "in/0.jpg", "in/1.jpg", "in/2.jpg", "in/junk.jpg")
    watched = [word for name in (*folders, *files) for word in ("-P", str(spool.root / name))]
    trace = ["strace", "-f", "-qq", "-o", "/dev/null", *watched, "-e", f"trace={call}", "-e", f"inject={call}:{how}"]
    return Program([*trace, *program.command], program.cwd, program.env)


def finished_by_the_next(program: Program, spool: Spool, words: Sequence[str]) -> None:
    """What was left is done by another process, undisturbed."""
    subprocess.run(["pkill", "-KILL", "-f", str(spool.root)], check=False)  # what strace left behind
    seek = ["pgrep", "-f", str(spool.root)]
    until(lambda: subprocess.run(seek, stdout=subprocess.DEVNULL, check=False).returncode == 1, "its lock is free")
    with serving(program, spool, *words, engine=MODEL, stderr=subprocess.DEVNULL) as it:
        until(lambda: is_done(spool), "all")
        assert it.stop() == 0
    spool.assert_each_once()


WORDS = ("--settle-s", "0.05", "--write", "jsonl", "json")


def killed_at(program: Program, clean: Program, spool: Spool, small: bytes, call: str, number: int) -> bool:
    """Whether the process had a call of that number, which was its last one; `clean` finishes what it left."""
    for index in range(3):
        spool.put(small + b"%d" % index, f"{index}.jpg")
    spool.put(b"junk", "junk.jpg")
    it_dies = disturbed(program, spool, call, f"signal=SIGKILL:when={number}")
    with serving(it_dies, spool, *WORDS, engine=MODEL, ready=False, stderr=subprocess.DEVNULL) as it:
        until(lambda: it.process.poll() is not None or is_done(spool), "end")
        killed = it.process.poll() is not None
    finished_by_the_next(clean, spool, WORDS)
    assert len(spool.lines()) == 4, (call, number)
    return killed


@needs_strace
@pytest.mark.parametrize("call", CALLS)
def test_killed_at_each_system_call_nothing_is_lost(
    service: Program, tmp_path: Path, small: bytes, row: Row, call: str
) -> None:
    """The N-th call of the write path is the last one of the process, for every N (without a campaign: some)."""
    kills = 0
    for number in range(1, 60) if CAMPAIGN else (1, 3):
        spool = Spool(tmp_path / f"{call}-{number}")
        killed = killed_at(service, service, spool, small, call, number)
        assert killed or number > 1, "the injection does nothing"
        shutil.rmtree(spool.root)
        if not killed:
            break
        kills += 1
    row(f"F5 SIGKILL at {call}", kills=kills, lost=0, twice=0)


@long_control
@needs_strace
def test_killed_finds_results_kept_in_memory(source_program: Program, spool: Spool, small: bytes) -> None:
    """The negative control: inputs are moved before their results are written."""
    faulty = planted(source_program, "buffers")
    found(r"done/\d\.jpg", lambda: killed_at(faulty, source_program, spool, small, "renameat2", 3))


def refused_at(
    program: Program, clean: Program, spool: Spool, small: bytes, call: str, error: str, number: int | str
) -> None:
    """The call of that number ("1+": all) fails; it goes on or ends with a code that says why, and `clean` finishes."""
    for index in range(3):
        spool.put(small + b"%d" % index, f"{index}.jpg")
    it_fails = disturbed(program, spool, call, f"error={error}:when={number}")
    log = spool.root / "log"
    with log.open("wb") as stderr, serving(it_fails, spool, *WORDS, engine=MODEL, ready=False, stderr=stderr) as it:
        until(lambda: it.process.poll() is not None or is_done(spool), "end")
        code = it.process.poll()
    said = log.read_text()
    assert code in (None, 0, 66, 71, 73, 74, 77), (call, error, number, code, said)
    assert "Traceback" not in said, said
    finished_by_the_next(clean, spool, WORDS)


@needs_strace
@pytest.mark.parametrize("error", ERRNOS if CAMPAIGN else ("ENOSPC", "EIO"))
@pytest.mark.parametrize("call", CALLS if CAMPAIGN else ("fdatasync", "renameat2"))
def test_refused_system_call_loses_nothing(
    service: Program, tmp_path: Path, small: bytes, row: Row, call: str, error: str
) -> None:
    """It recovers, or ends with a documented code; the next start finishes what is left."""
    numbers = range(1, 21) if CAMPAIGN else (2,)
    for number in numbers:
        spool = Spool(tmp_path / f"{call}-{error}-{number}")
        refused_at(service, service, spool, small, call, error, number)
        shutil.rmtree(spool.root)
    row(f"F7 {call} {error}", cases=len(numbers), lost=0)


@long_control
@needs_strace
def test_refused_finds_who_does_not_look(source_program: Program, spool: Spool, small: bytes) -> None:
    """The negative control: a result that cannot be written is lost without a word."""
    faulty = planted(source_program, "careless")
    found(r"done/\d\.jpg", lambda: refused_at(faulty, source_program, spool, small, "fdatasync", "EIO", "1+"))


# --- the power goes ---------------------------------------------------------------------------------------------------


class Disk:
    """A file system in a file, that can lose its power."""

    def __init__(self, image: Path, place: Path, kind: str) -> None:
        self.image, self.place, self.kind = image, place, kind
        megabytes = 64 if kind == "ext4" else 320  # XFS takes no smaller ones
        with open(image, "wb") as file:
            file.truncate(megabytes << 20)
        command = ["mkfs.ext4", "-q", "-F"] if kind == "ext4" else ["mkfs.xfs", "-q", "-f"]
        subprocess.run([*command, image], check=True, capture_output=True)
        place.mkdir()
        self.mount()

    def mount(self) -> None:
        # Whoever copied the mounts of this machine meanwhile still holds the dead file system: then a copy is mounted.
        if subprocess.run(["losetup", "-j", self.image], check=True, capture_output=True).stdout:
            copy = self.image.with_suffix(f".{time.monotonic_ns()}")
            shutil.copyfile(self.image, copy)
            self.image.unlink()
            self.image = copy
        options = "loop" if self.kind == "ext4" else "loop,nouuid"  # beside its twin, if that is still held
        subprocess.run(["mount", "-o", options, self.image, self.place], check=True, capture_output=True)

    def cut(self, *, flush: bool) -> None:
        """Lose what is not on the disk; `flush`: just after the log was written for another reason."""
        if flush:
            (self.place / "unrelated").write_bytes(b"x")
            file = os.open(self.place / "unrelated", os.O_RDONLY)
            os.fsync(file)
            os.close(file)
        folder = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(folder)

    def unmount(self) -> None:
        until(
            lambda: subprocess.run(["umount", self.place], capture_output=True, check=False).returncode == 0, "umount"
        )

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.place], capture_output=True, check=False)


@pytest.fixture(params=["ext4", "xfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0 or shutil.which(f"mkfs.{request.param}") is None:
        pytest.skip(f"needs root and mkfs.{request.param}")
    try:
        made = Disk(tmp_path / "image", tmp_path / "disk", request.param)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot mount a file here: {error.stderr.decode().strip()}")
    yield made
    made.close()


@pytest.fixture(scope="module")
def no_sync(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes fsync() and fdatasync() do nothing."""
    folder = tmp_path_factory.mktemp("no_sync")
    (folder / "no_sync.c").write_text(
        "int fsync(int f) { (void)f; return 0; }\nint fdatasync(int f) { (void)f; return 0; }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "no_sync.so", folder / "no_sync.c"], check=True)
    return folder / "no_sync.so"


def wait_for_a_result(it: Serving) -> None:
    before = len(it.spool.waiting)
    until(lambda: len(it.spool.waiting) < before or it.process.poll() is not None, "a result")
    assert it.process.poll() is None, f"it ended with {it.process.returncode}"


def cuts(disk: Disk, program: Program, small: bytes, count: int, check: Callable[[Spool], None]) -> None:
    """Cut the power again and again while pictures come and are worked on."""
    chance = random.Random(6)
    spool = Spool(disk.place / "spool")
    number = 0
    for _ in range(count):
        for _ in range(WAITING_AT_A_CUT - len(spool.waiting)):
            number += 1
            spool.put(small + b"%d" % number, f"{number}.jpg")
        os.sync()  # what came before the service saw it is not its own
        words = ("--settle-s", "0.02", "--min-free-mb", "1", "--segment-mb", "1", "--attempts", "1000")
        with serving(program, spool, *words, engine=MODEL, ready=False, stderr=subprocess.DEVNULL) as it:
            if chance.random() < 0.9:
                wait_for_a_result(it)
            time.sleep(chance.random() * 0.3)
            disk.cut(flush=chance.random() < 0.5)
            it.process.kill()
            it.process.wait()
        disk.unmount()
        disk.mount()
        check(spool)
        if len(os.listdir(spool.done)) > 2000:  # the disk is small
            for path in spool.done.iterdir():
                digest = path.name
                path.unlink()
                del spool.given[os.fsencode(digest)]
            os.sync()


def test_power_cut_loses_nothing(disk: Disk, service: Program, small: bytes, row: Row) -> None:
    """Every input lies in one place, whole; each that left the folder has its line; the next start goes on."""
    done = 0

    def check(spool: Spool) -> None:
        nonlocal done
        done = len(os.listdir(spool.done))
        folders.Spool.at(str(spool.root)).make()  # what the next start does first
        Appended(str(spool.results / "results.jsonl")).close()
        spool.assert_each_once()

    cuts(disk, service, small, CUTS, check)
    assert done > 0
    row(f"F6 power cuts, {disk.kind}", cuts=CUTS, lost=0, torn=0)


@pytest.mark.skipif(not NEGATIVE_CUTS, reason="the negative control takes a campaign")
def test_power_cut_without_sync_loses_something(disk: Disk, service: Program, small: bytes, no_sync: Path) -> None:
    """The negative control: without fsync the same cuts do harm, so the test above can fail."""
    harm = 0

    def check(spool: Spool) -> None:
        nonlocal harm
        try:
            spool.assert_each_once()
        except (AssertionError, ValueError, OSError):
            harm += 1
        spool.given = {name: "" for name in map(os.fsencode, os.listdir(spool.incoming))}

    env = {**service.env, "LD_PRELOAD": str(no_sync)}
    cuts(disk, Program(service.command, service.cwd, env), small, NEGATIVE_CUTS, check)
    assert harm > 0
