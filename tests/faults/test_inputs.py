"""F1, F2, F9: what comes in is damaged, hostile, or comes in a storm."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import bombs
import PIL
import pytest
from campaigning import CAMPAIGN, Row, Usage, assert_flat, found, planted, size
from serving import Spool, serving, until
from support import Program

pytestmark = pytest.mark.timeout(7200 if CAMPAIGN else 300)

MOST_GROWTH_KB = 5 << 10
MOST_LOG_BYTES = 1 << 20


# --- F1: damaged pictures ---------------------------------------------------------------------------------------------


def feed_corrupted(program: Program, spool: Spool, engine: Path, count: int, seed: int) -> dict[str, object]:
    """Damaged pictures through a service, twice: none harms it, and the second time takes no more memory.

    Once is not enough: what is freed is kept for the next picture, up to the largest that there was.
    """
    samples, batch = [], max(1, count // 10)
    log = spool.root / "log"
    with log.open("wb") as stderr, serving(program, spool, engine=engine, stderr=stderr) as it:
        pictures = itertools.chain(bombs.corrupted(count, seed), bombs.corrupted(count, seed))
        for number, (name, data) in enumerate(pictures, 1):
            spool.put(data + b"." * (number > count), f"{number}-{name}")
            if number % batch == 0:
                until(lambda n=number: it.finished() >= n, "all")  # type: ignore[misc]
                samples.append(Usage.of(it.process.pid))
        assert it.stop() == 0
    grown = assert_flat(samples[9:], MOST_GROWTH_KB)
    spool.assert_each_once()
    assert not spool.waiting
    said = log.read_bytes()
    assert len(said) < MOST_LOG_BYTES
    assert b"Traceback" not in said
    lines = spool.lines()
    assert len(lines) == 2 * count
    decode = max(line["times_ms"]["decode"] for line in lines if "times_ms" in line)
    reasons = Counter(line["error"]["exit_code"] for line in lines if "error" in line)
    assert set(reasons) == {65}, reasons
    return {"inputs": 2 * count, "failed": reasons[65], "memory_kB": int(grown), "longest_decode_ms": decode,
            "log_bytes": len(said)}  # fmt: skip


def test_f1_corrupted_pictures_harm_nothing(service: Program, spool: Spool, tiny: Path, row: Row) -> None:
    """Each is done or failed, once; memory stays, the log is short."""
    row("F1 damaged pictures", **feed_corrupted(service, spool, tiny, size(80, 10_000), seed=1))


def pillows_pictures(folder: Path) -> list[bytes]:
    """What a release of Pillow is tested with, a thousand files: every format, and what made it crash once.

    EDGEAPP_PILLOW_SDIST names its archive, else pip gets it.
    """
    archive = os.environ.get("EDGEAPP_PILLOW_SDIST")
    if archive is None:
        words = ["--no-deps", "--no-binary=pillow", "--dest", folder, f"pillow=={PIL.__version__}"]
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *words], check=True)
        archive = str(next(folder.glob("*.tar.gz")))
    with tarfile.open(archive) as tar:
        files = [tar.extractfile(entry) for entry in tar if "/Tests/images/" in entry.name and entry.isfile()]
        return [file.read() for file in files if file is not None]


@pytest.mark.skipif(not CAMPAIGN, reason="47 MB to get, in a campaign")
def test_f1_pictures_that_pillow_is_tested_with(
    service: Program, spool: Spool, tiny: Path, tmp_path: Path, row: Row
) -> None:
    """Each is done or failed, once, whatever its name says."""
    pictures = {hashlib.sha256(data).hexdigest(): data for data in pillows_pictures(tmp_path)}
    log = spool.root / "log"
    with log.open("wb") as stderr, serving(service, spool, engine=tiny, stderr=stderr) as it:
        for number, data in enumerate(pictures.values()):
            spool.put(data, f"{number}.jpg")
        it.wait_done(len(pictures), 600)
        assert it.stop() == 0
    spool.assert_each_once()
    assert not spool.waiting
    assert b"Traceback" not in log.read_bytes()
    reasons = Counter(line["error"]["exit_code"] for line in spool.lines() if "error" in line)
    assert set(reasons) == {65}, reasons
    assert 0 < reasons[65] < len(pictures)
    row("F1 Pillow's own test pictures", inputs=len(pictures), failed=reasons[65])


@pytest.mark.parametrize(("fault", "seen"), [("crashes", "-6"), ("leaks", "kB more")])
def test_f1_finds_a_planted_fault(source_program: Program, spool: Spool, tiny: Path, fault: str, seen: str) -> None:
    """The negative control."""
    found(seen, lambda: feed_corrupted(planted(source_program, fault), spool, tiny, 80, seed=1))


# --- F2: bombs --------------------------------------------------------------------------------------------------------

LIMIT, MOST_BOMB_KB = "--max-pixels=20000000", 200 << 10
"""Pillow takes four bytes a pixel, a copy is made of some, and there is more than pixels."""


def without_overrides(program: Program) -> Program:
    """Root, but permissions count."""
    if os.geteuid() != 0:
        return program
    drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    return Program([*drop, *program.command], program.cwd, program.env)


def feed_bombs(
    program: Program, spool: Spool, engine: Path, folder: Path, names: list[str], limit: str
) -> dict[str, object]:
    """One bomb at a time: bounded memory and time, no door opened."""
    puts: dict[bytes, Callable[[Path], object]] = {
        os.fsencode(name): (lambda path, name=name: path.write_bytes(bombs.BYTES[name]()))  # type: ignore[misc]
        for name in names
    }
    if limit == LIMIT:
        puts |= bombs.special(folder)
    longest, slowest, largest, log = 0.0, b"", b"", spool.root / "log"
    with log.open("wb") as stderr, serving(
        without_overrides(program), spool, "--settle-s", "0.1", limit, engine=engine, stderr=stderr
    ) as it:  # fmt: skip
        before = peak = Usage.of(it.process.pid).peak_kb
        most = 0
        for number, (name, put) in enumerate(puts.items()):
            path = Path(os.fsdecode(os.fsencode(folder / "made-") + b"%d" % number))
            put(path)
            if path.is_dir():
                path.rename(spool.incoming / os.fsdecode(name))
                continue
            started = time.monotonic()
            os.rename(path, os.fsencode(spool.incoming) + b"/" + name)
            until(lambda: it.ready() and not set(spool.waiting) - {b"folder.png"}, repr(name))
            if (took := time.monotonic() - started) > longest:
                longest, slowest = took, name
            if (more := Usage.of(it.process.pid).peak_kb - peak) > most:
                most, largest = more, name
            peak += more
            assert peak - before < MOST_BOMB_KB, f"{name!r}: {peak - before} kB more"
        assert it.stop() == 0
    assert len(spool.lines()) == len(puts) - (b"folder.png" in puts)
    said = log.read_bytes()
    assert b"Traceback" not in said
    assert b"\x1b" not in said
    assert not (program.cwd / "edgeapp-was-here").exists()
    return {"cases": len(puts), "memory_MB": (peak - before) // 1024, "of": largest.decode(), "longest_s": longest,
            "for": slowest.decode()}  # fmt: skip


def test_f2_bombs_are_refused_by_their_header(
    service: Program, spool: Spool, tiny: Path, tmp_path: Path, row: Row
) -> None:
    """Links are not followed, FIFOs not waited for, memory is bounded; what cannot be read is not done."""
    row("F2 bombs", **feed_bombs(service, spool, tiny, tmp_path, [*bombs.BYTES], LIMIT))
    failed = {path.name for path in spool.failed.iterdir()}
    assert {
        "30k.png",
        "9k.png",
        "1e9-header.png",
        "pickle.npy",
        "link.png",
        "fifo.png",
        "secret.png",
        "huge.npy",
    } <= failed


def test_f2_finds_a_limit_that_is_lifted(source_program: Program, spool: Spool, tiny: Path, tmp_path: Path) -> None:
    """The negative control: 9,000 x 9,000 pixels are taken when they are let in."""
    found("kB more", lambda: feed_bombs(source_program, spool, tiny, tmp_path, ["9k.png"], "--max-pixels=100000000"))


# --- F9: storms -------------------------------------------------------------------------------------------------------


def queue_length() -> int:
    return int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


def storm(program: Program, spool: Spool, engine: Path, small: Callable[[int], bytes], count: int, stopped: int,
          seconds: float) -> dict[str, object]:  # fmt: skip
    """Many at once before the start, and many while the process stands still: all are found."""
    for number in range(count):
        spool.put(small(number), f"{number}.jpg")
    log = spool.root / "log"
    with log.open("wb") as stderr, serving(program, spool, "--settle-s", "0.2", engine=engine, stderr=stderr) as it:
        started = time.monotonic()
        it.wait_done(count, seconds)
        rate = count / (time.monotonic() - started)
        it.process.send_signal(signal.SIGSTOP)
        for number in range(count, count + stopped):
            spool.put(small(number), f"{number}.jpg")
        it.process.send_signal(signal.SIGCONT)
        it.wait_done(count + stopped, seconds)
        rss = Usage.of(it.process.pid).rss_kb >> 10
        assert it.stop() == 0
    assert not spool.waiting
    assert not os.listdir(spool.failed)
    spool.assert_each_once()
    return {"at_once": count, "while_stopped": stopped, "notices_kept": queue_length(), "inputs_a_s": rate,
            "memory_MB": rss}  # fmt: skip


def test_f9_storm_of_files_is_found(
    service: Program, spool: Spool, tiny: Path, small: Callable[[int], bytes], row: Row
) -> None:
    """More files than the kernel keeps notices of."""
    row("F9 storm", **storm(service, spool, tiny, small, size(400, 100_000), size(100, 20_000), 3600))


def test_f9_finds_who_relies_on_notices(
    source_program: Program, spool: Spool, tiny: Path, small: Callable[[int], bytes]
) -> None:
    """The negative control: files that were there before the start have none."""
    found("not within", lambda: storm(planted(source_program, "blind"), spool, tiny, small, 10, 0, 1))


def disturbed(
    program: Program, spool: Spool, engine: Path, small: Callable[[int], bytes], count: int
) -> dict[str, object]:
    """Files are renamed, deleted and written slowly while the service works."""
    chance = random.Random(9)
    deleted = 0
    slow: dict[bytes, tuple[BinaryIO, bytearray]] = {}

    def write_more(number: int) -> None:
        for file, written in slow.values():
            file.write(small(number))
            written += small(number)

    with serving(program, spool, "--settle-s", "60", engine=engine, stderr=subprocess.DEVNULL) as it:
        for number in range(count):
            spool.put(small(number), f"{number}.jpg")
            if number % (count // 5) == 0:
                name = f"slow-{number}.jpg"
                slow[name.encode()] = (spool.incoming / name).open("wb", buffering=0), bytearray()
            if number % 20 == 0:
                write_more(number)
            victim = b"%d.jpg" % max(0, number - chance.randrange(4))
            path = os.fsencode(spool.incoming) + b"/" + victim
            with suppress(FileNotFoundError):
                if number % 3 == 0:
                    os.rename(path, os.fsencode(spool.incoming) + b"/renamed-" + victim)
                elif number % 3 == 1:
                    os.unlink(path)
                    del spool.given[victim]
                    deleted += 1
            time.sleep(0.005)
        until(lambda: not set(spool.waiting) - slow.keys(), "all that are whole")
        write_more(count)
        for name, (file, written) in slow.items():
            file.close()
            spool.given[name] = hashlib.sha256(written).hexdigest()
        until(lambda: not spool.waiting, "all")
        assert it.stop() == 0
    spool.assert_each_once()
    assert not os.listdir(spool.failed)
    return {"inputs": count, "deleted": deleted, "written_slowly": len(slow)}


def test_f9_files_that_change_under_it(
    service: Program, spool: Spool, tiny: Path, small: Callable[[int], bytes], row: Row
) -> None:
    """What was renamed is done under one of its names, what was deleted is forgotten, half a file is never taken."""
    row("F9 changing files", **disturbed(service, spool, tiny, small, size(150, 10_000)))


def test_f9_finds_who_takes_half_a_file(
    source_program: Program, spool: Spool, tiny: Path, small: Callable[[int], bytes]
) -> None:
    """The negative control: files are taken before they are closed or quiet."""
    found("slow", lambda: disturbed(planted(source_program, "hasty"), spool, tiny, small, 150))
