"""F4, F8, F13, F14, F16: the process is killed, signalled, starved, and its clock jumps."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from campaigning import CAMPAIGN, Row, found, long_control, planted, size
from serving import WAIT_S, Spool, serving, until
from support import Program

pytestmark = pytest.mark.timeout(7200 if CAMPAIGN else 300)

Small = Callable[[int], bytes]


# --- F4: killed -------------------------------------------------------------------------------------------------------


def kill_often(program: Program, spool: Spool, engine: Path, small: Small, count: int, kills: int) -> dict[str, object]:
    """SIGKILL at random times from the start to well into the work."""
    chance = random.Random(4)
    put = 0
    words = ("--settle-s", "0.02", "--attempts", "1000", "--segment-mb", "1")
    for kill in range(1, kills + 1):
        while put < count * kill // kills:
            spool.put(small(put), f"{put}.jpg")
            put += 1
        with serving(program, spool, *words, engine=engine, ready=False, stderr=subprocess.DEVNULL) as it:
            if chance.random() < 0.8:
                before = len(spool.waiting)
                until(lambda n=before: len(spool.waiting) < n, "a result")  # type: ignore[misc]
                time.sleep(chance.random() * 0.1)
            else:
                time.sleep(chance.random() * 0.8)
            it.process.kill()
    with serving(program, spool, *words, engine=engine, stderr=subprocess.DEVNULL) as it:
        until(lambda: not spool.waiting, "all", 1800)
        assert it.stop() == 0
    spool.assert_each_once()
    assert not os.listdir(spool.failed)
    ids = Counter(line["id"] for line in spool.lines())
    assert len(ids) == count
    twice = sum(number > 1 for number in ids.values())
    assert not twice, f"{twice} results were written twice"
    return {"kills": kills, "inputs": count, "lost": 0, "torn": 0, "twice": twice}


def test_f4_killed_at_any_time_loses_nothing(
    service: Program, spool: Spool, tiny: Path, small: Small, row: Row
) -> None:
    """Each input ends once, whole, with one line, and none is blamed."""
    row("F4 SIGKILL", **kill_often(service, spool, tiny, small, size(120, 20_000), size(6, 1000)))


@long_control
def test_f4_finds_results_kept_in_memory(source_program: Program, spool: Spool, tiny: Path, small: Small) -> None:
    """The negative control: inputs are moved before their results are on the disk."""
    found(r"done/\d+\.jpg", lambda: kill_often(planted(source_program, "buffers"), spool, tiny, small, 120, 4))


# --- F8: no space -----------------------------------------------------------------------------------------------------

MOST_PAUSE_S, MOST_LOG_BYTES = 1.0, 100_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", place], check=True, capture_output=True)
    except (subprocess.CalledProcessError, OSError):
        pytest.skip("mounts are not allowed here")
    yield place
    subprocess.run(["umount", "-l", place], check=False)


def fill(path: Path) -> None:
    """Let a file take all the space that there is."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        while True:
            os.write(file, bytes(1 << 16))
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017 the end of the loop
    finally:
        os.close(file)


def fill_often(program: Program, disk: Path, engine: Path, small: Small, cycles: int, log: Path) -> dict[str, object]:
    """The disk is full, and has room again, again and again; inputs come all the time."""
    spool, pauses, put = Spool(disk / "spool"), [], 0
    with log.open("wb") as stderr, serving(
        program, spool, "--min-free-mb", "1", "--done", "delete", "--segment-mb", "1", engine=engine, stderr=stderr
    ) as it:  # fmt: skip
        for cycle in range(cycles):
            if cycle % 2 == 0:  # full while it works, else while it waits for inputs
                it.process.send_signal(signal.SIGSTOP)
            for _ in range(20):
                spool.put(small(put), f"{put}.jpg")
                put += 1
            fill(disk / "filler")
            it.process.send_signal(signal.SIGCONT)
            started = time.monotonic()
            until(lambda: not it.ready(), "not ready")
            pauses.append(time.monotonic() - started)
            os.truncate(disk / "filler", 0)
            it.wait_done(put)
            until(it.ready, "ready")
            for path in spool.results.glob("2*.jsonl"):
                shutil.move(path, log.parent / path.name)
        assert it.stop() == 0
    assert not spool.waiting
    assert not os.listdir(spool.failed)
    for path in log.parent.glob("2*.jsonl"):
        shutil.move(path, spool.results / path.name)
    assert len({line["id"] for line in spool.lines()}) == len(spool.lines()) == put
    assert log.stat().st_size < MOST_LOG_BYTES
    return {"cycles": cycles, "inputs": put, "longest_until_pause_s": max(pauses), "log_bytes": log.stat().st_size}


def test_f8_full_disk_pauses_and_goes_on_by_itself(
    service: Program, small_disk: Path, tiny: Path, small: Small, tmp_path: Path, row: Row
) -> None:
    """Not ready while it is full, no input lost or failed; ready again when there is room."""
    told = fill_often(service, small_disk, tiny, small, size(3, 100), tmp_path / "log")
    row("F8 full disk", **told)
    assert not CAMPAIGN or float(str(told["longest_until_pause_s"])) <= MOST_PAUSE_S


def test_f8_finds_who_gives_up(
    source_program: Program, small_disk: Path, tiny: Path, small: Small, tmp_path: Path
) -> None:
    """The negative control: no space is an error for good."""
    program = planted(source_program, "gives-up")
    found("^7[34]$", lambda: fill_often(program, small_disk, tiny, small, 3, tmp_path / "log"))


# --- F13: the clock jumps, the process is frozen ----------------------------------------------------------------------

YEARS = "+3650d", "-3650d", "+0", "+1h", "-1h"
WATCHDOG_S = 2.0


def faketime() -> str:
    paths = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not paths:
        pytest.skip("libfaketime is missing: apt-get install faketime")
    return str(paths[0])


class Watch:
    """The watchdog of a systemd, on a thread of its own: how often it heard from the service, and its longest wait."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(0.1)
        self._ended = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self.begin()

    def begin(self) -> None:
        """Count anew."""
        self._heard, self._heard_s, self.longest_s = 0, time.monotonic(), 0.0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while not self._ended:
            with suppress(TimeoutError):
                if b"WATCHDOG=1" in self._socket.recv(4096):
                    now = time.monotonic()
                    self.longest_s = max(self.longest_s, now - self._heard_s)
                    self._heard, self._heard_s = self._heard + 1, now

    def wait(self) -> None:
        """Until it heard twice more: the first may have been on its way."""
        wanted = self._heard + 2
        until(lambda: self._heard >= wanted, "a sign of life: it is silent")
        assert not CAMPAIGN or self.longest_s < WATCHDOG_S, f"silent for {self.longest_s:.1f} s"


def jump(
    program: Program, spool: Spool, engine: Path, small: Small, jumps: int, frozen_s: float, folder: Path
) -> dict[str, object]:
    """The wall clock goes years ahead and back while pictures come; then the process stands still."""
    offset = folder / "offset"
    offset.write_text("+0")
    watch = Watch(folder / "notify")
    env = {
        "LD_PRELOAD": faketime(), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1", "NO_FAKE_STAT": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NOTIFY_SOCKET": str(folder / "notify"),
        "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
    }  # fmt: skip
    count = 0
    with watch, serving(
        program, spool, "--settle-s", "0.1", engine=engine, env=env, stderr=subprocess.DEVNULL
    ) as it:  # fmt: skip
        watch.begin()
        for number in range(jumps):
            offset.with_suffix(".new").write_text(YEARS[number % len(YEARS)])
            for part in range(5):
                if part == 2:
                    os.replace(offset.with_suffix(".new"), offset)
                spool.put(small(count), f"{count}.jpg")
                count += 1
            watch.wait()
            it.wait_done(count)
        longest = watch.longest_s
        it.process.send_signal(signal.SIGSTOP)
        spool.put(small(count), f"{count}.jpg")
        time.sleep(frozen_s)
        it.process.send_signal(signal.SIGCONT)
        watch.begin()
        it.wait_done(count + 1)
        watch.wait()
        years = {line["time"][:4] for line in spool.lines()}
        assert it.stop() == 0
    spool.assert_each_once()
    assert not os.listdir(spool.failed)
    assert len(years) > 1, "the clock did not jump"
    return {"jumps": jumps, "longest_silence_s": longest, "watchdog_s": WATCHDOG_S, "frozen_s": frozen_s,
            "silence_after_s": watch.longest_s}  # fmt: skip


def test_f13_clock_jumps_and_freezes_are_no_hang(
    service: Program, spool: Spool, tiny: Path, small: Small, tmp_path: Path, row: Row
) -> None:
    """Signs of life go on, every input is done once."""
    row("F13 clock", **jump(service, spool, tiny, small, size(2, 40), 60 if CAMPAIGN else 0.5, tmp_path))


@long_control
def test_f13_finds_who_trusts_the_clock(
    source_program: Program, spool: Spool, tiny: Path, small: Small, tmp_path: Path
) -> None:
    """The negative control: durations by the wall clock."""
    program = planted(source_program, "wall-clock")
    found("silent|not within|^70$", lambda: jump(program, spool, tiny, small, 4, 0.1, tmp_path))


# --- F14: no memory, no descriptors -----------------------------------------------------------------------------------

CODES = (0, 71, 74, 75)
"""And 1, when NumPy's OpenBLAS finds no memory as it is loaded: then it ends the process itself."""


def starve(program: Program, spool: Spool, engine: Path, small: Small, limit: tuple[int, int], log: Path) -> str:
    """Serve with a limit from the start; gives how it ended."""
    for number in range(5):
        spool.put(small(number), f"{number}.jpg")
    spool.failed.mkdir()

    def lower() -> None:
        resource.setrlimit(limit[0], (limit[1], limit[1]))

    words = ("--settle-s", "0.05", "--attempts", "100")
    with log.open("wb") as stderr, serving(
        program, spool, *words, engine=engine, ready=False, stderr=stderr, preexec_fn=lower
    ) as it:  # fmt: skip
        end = time.monotonic() + 20
        while it.process.poll() is None and spool.waiting and time.monotonic() < end:
            time.sleep(0.05)
        code = it.process.poll()
        serves = "serves" if not spool.waiting else "tries again and again"
        code = it.stop() if code is None else code
    said = log.read_text()
    assert code in CODES or (code == 1 and "OpenBLAS error" in said), (limit, code, said)
    assert code == 0 or said.strip(), "it ends without a word"
    assert not any(name for name in os.listdir(spool.failed)), (limit, said)
    with serving(program, spool, *words, engine=engine, stderr=subprocess.DEVNULL) as it:
        until(lambda: not spool.waiting, "the next process does all")
        assert it.stop() == 0
    spool.assert_each_once()
    return serves if code == 0 else f"code {code}"


MEMORY = [(resource.RLIMIT_AS, megabytes << 20) for megabytes in (60, 120, 250, 350, 400, 450, 500, 600, 800, 1500)]
DESCRIPTORS = [(resource.RLIMIT_NOFILE, number) for number in (8, 12, 16, 18, 20, 22, 24, 26, 28, 32)]


def test_f14_starved_process_ends_or_serves(
    service: Program, tiny: Path, small: Small, tmp_path: Path, row: Row
) -> None:
    """With a documented code, a word, and nothing lost or blamed."""
    limits = MEMORY + DESCRIPTORS if CAMPAIGN else [MEMORY[2], DESCRIPTORS[3]]
    codes = Counter(
        starve(service, Spool(tmp_path / f"spool-{number}"), tiny, small, limit, tmp_path / "log")
        for number, limit in enumerate(limits)
    )
    row("F14 limits from the start", cases=len(limits), **codes)


def squeeze(program: Program, spool: Spool, engine: Path, small: Small, times: int) -> dict[str, object]:
    """Take a running service all its free descriptors, and give them back."""
    count = 0
    with serving(
        program, spool, "--settle-s", "0.05", "--decode-threads", "8", "--attempts", "100", engine=engine,
        stderr=subprocess.DEVNULL,
    ) as it:  # fmt: skip
        for _time in range(times):
            it.process.send_signal(signal.SIGSTOP)
            whole = resource.prlimit(it.process.pid, resource.RLIMIT_NOFILE)
            used = len(os.listdir(f"/proc/{it.process.pid}/fd"))
            resource.prlimit(it.process.pid, resource.RLIMIT_NOFILE, (used, whole[1]))
            for _ in range(16):
                spool.put(small(count), f"{count}.jpg")
                count += 1
            it.process.send_signal(signal.SIGCONT)
            time.sleep(0.3)
            if it.process.poll() is None:
                resource.prlimit(it.process.pid, resource.RLIMIT_NOFILE, whole)
            until(lambda: it.process.poll() is not None or not spool.waiting, "all")
            if (ended := it.process.poll()) is not None:
                break
    assert ended is None, f"it ended with {ended}"
    with serving(program, spool, "--settle-s", "0.05", engine=engine, stderr=subprocess.DEVNULL) as it:
        until(lambda: not spool.waiting, "all")
        assert it.stop() == 0
    assert not os.listdir(spool.failed), os.listdir(spool.failed)
    spool.assert_each_once()
    return {"times": times, "inputs": count, "ended": "no"}


def test_f14_no_descriptors_for_a_while(service: Program, spool: Spool, tiny: Path, small: Small, row: Row) -> None:
    """No input is blamed for it."""
    row("F14 no descriptors while it runs", **squeeze(service, spool, tiny, small, size(1, 50)))


@long_control
def test_f14_finds_who_blames_inputs(source_program: Program, spool: Spool, tiny: Path, small: Small) -> None:
    """The negative control: what passes is taken for a damaged file."""
    found(r"\.jpg|it ended with", lambda: squeeze(planted(source_program, "blames"), spool, tiny, small, 12))


# --- F16: signals -----------------------------------------------------------------------------------------------------

WAYS = (
    ("SIGTERM",), ("SIGINT",), ("SIGTERM", "SIGTERM"), ("SIGHUP", "SIGTERM"), ("SIGHUP",) * 20 + ("SIGTERM",),
    ("SIGPIPE", "SIGTERM"),
)  # fmt: skip


def signal_once(program: Program, spool: Spool, engine: Path, way: tuple[str, ...], after_s: float) -> str:
    """At any time: it ends with 0, or by the signal while it has not come to handle any."""
    lock = spool.root / "state" / "lock"
    lock.unlink(missing_ok=True)
    log = spool.root / "log"
    with log.open("wb") as stderr, serving(
        program, spool, "--settle-s", "0.02", engine=engine, ready=False, stderr=stderr
    ) as it:  # fmt: skip
        time.sleep(after_s)
        early = not lock.exists()
        for name in way:
            it.process.send_signal(signal.Signals[name])
        code = it.process.wait(WAIT_S)
    if early and code in {-signal.Signals[name] for name in way}:
        return "by the signal"
    if early and code == 1 and "SIGINT" in way and log.read_text().endswith("KeyboardInterrupt\n"):
        return "by the signal"  # a Python that is not frozen ends so while it starts itself
    assert code == 0, (way, after_s, code)
    return "early 0" if early else "0"


def signal_often(program: Program, spool: Spool, engine: Path, small: Small, count: int) -> dict[str, object]:
    chance = random.Random(16)
    ends: Counter[str] = Counter()
    for number in range(count):
        for part in range(5):
            spool.put(small(number * 5 + part), f"{number * 5 + part}.jpg")
        ends[signal_once(program, spool, engine, WAYS[number % len(WAYS)], chance.random() * 1.2)] += 1
    with serving(program, spool, "--settle-s", "0.02", engine=engine, stderr=subprocess.DEVNULL) as it:
        until(lambda: not spool.waiting, "all")
        assert it.stop() == 0
    spool.assert_each_once()
    assert not os.listdir(spool.failed)
    return {"times": count, "ended_with_0": ends["0"] + ends["early 0"], "by_the_signal_before_it_served":
            ends["by the signal"]}  # fmt: skip


def test_f16_signals_at_any_time(service: Program, spool: Spool, tiny: Path, small: Small, row: Row) -> None:
    """Start, work and reload among them; nothing is lost."""
    row("F16 signals", **signal_often(service, spool, tiny, small, size(6, 1000)))


@long_control
def test_f16_finds_who_is_deaf(source_program: Program, spool: Spool, tiny: Path, small: Small) -> None:
    """The negative control: the signal ends a process that serves."""
    found("-15|-2|-1", lambda: signal_often(planted(source_program, "deaf"), spool, tiny, small, 12))


def test_f16_storm_of_hangups(service: Program, spool: Spool, tiny: Path, small: Small, row: Row) -> None:
    """A thousand a second: some reloads, all inputs."""
    count = size(300, 10_000)
    with serving(service, spool, engine=tiny, stderr=subprocess.DEVNULL) as it:
        for number in range(count):
            it.process.send_signal(signal.SIGHUP)
            if number % 10 == 0:
                spool.put(small(number), f"{number}.jpg")
            time.sleep(0.001)
        it.wait_done(count // 10)
        until(lambda: it.status()["reloads"]["done"], "a reload")
        reloads = it.status()["reloads"]
        assert it.stop() == 0
    assert not reloads["failed"]
    spool.assert_each_once()
    assert not os.listdir(spool.failed)
    row("F16 storm of SIGHUP", signals=count, reloads=reloads["done"])
