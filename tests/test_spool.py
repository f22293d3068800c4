"""The parts that keep inputs and results safe, each at its edges; test_serve.py looks at them together."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

from edgeapp import errors
from edgeapp.service.durable import Appended, remove_unfinished, write_file
from edgeapp.service.intake import Intake
from edgeapp.service.ledger import MOST_BYTES, Ledger
from edgeapp.service.room import NoRoomError, Room
from edgeapp.service.spool import Spool, free_name, stamp_of


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 1000 bytes: then write() fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool.at(str(tmp_path))
    made.make()
    return made


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (b"a\n", b"a\n"),
        (b"a\nb", b"a\n"),
        (b"torn", b""),
        (b"a\n" + b"x" * 200_000, b"a\n"),
        (b"\n\n", b"\n\n"),
        (b"a\n\0\0\0\nb\n", b"a\n"),
        (b"\0" * 9, b""),
    ],
    ids=["empty", "whole", "torn", "only torn", "long torn", "blank", "zeros", "only zeros"],
)
def test_torn_line_is_cut_off(tmp_path: Path, before: bytes, after: bytes) -> None:
    """What a killed process left of its last line goes when the file is opened."""
    path = tmp_path / "lines"
    path.write_bytes(before)
    file = Appended(str(path))
    file.append(b"next\n")
    file.close()
    assert path.read_bytes() == after + b"next\n"


def test_line_that_finds_no_room_leaves_no_trace(tmp_path: Path, small_files: None) -> None:
    """A later one that is shorter is appended whole."""
    file = Appended(str(tmp_path / "lines"))
    file.append(b"a" * 900 + b"\n")
    with pytest.raises(OSError, match="File too large"):
        file.append(b"b" * 200 + b"\n")
    file.append(b"c\n")
    file.close()
    assert (tmp_path / "lines").read_bytes() == b"a" * 900 + b"\nc\n"


def test_tail_gives_whole_lines(tmp_path: Path) -> None:
    """Of a part of the file the first line may be half of one: it is left out."""
    file = Appended(str(tmp_path / "lines"))
    file.append(b"one\ntwo\nthree\n")
    assert file.tail(1000) == [b"one", b"two", b"three"]
    assert file.tail(8) == [b"three"]
    file.close()


def test_file_that_cannot_be_written_keeps_its_old_content(tmp_path: Path, small_files: None) -> None:
    """And nothing lies beside it."""
    path = tmp_path / "x"
    write_file(str(path), b"old")
    with pytest.raises(OSError, match="File too large"):
        write_file(str(path), b"n" * 2000)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert path.read_bytes() == b"old"


def test_only_our_unfinished_files_are_removed(tmp_path: Path) -> None:
    """Hidden files of others stay."""
    for name in (".5.new", ".other", "x.new"):
        (tmp_path / name).touch()
    remove_unfinished(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == [".other", "x.new"]


# --- ledger -----------------------------------------------------------------------------------------------------------


def test_ledger_counts_over_restarts(tmp_path: Path) -> None:
    """Begun and not ended counts on; ended is forgotten; names of any bytes."""
    path = str(tmp_path / "ledger")
    odd = os.fsdecode(b'\xff\n"\\')
    for count in (1, 2, 3):
        ledger = Ledger(path)
        ledger.begin(["a", odd])
        ledger.begin(["b"])
        ledger.end(["b", "never begun"])
        assert (ledger.count("a"), ledger.count(odd), ledger.count("b")) == (count, count, 0)
        ledger.close()
    ledger = Ledger(path)
    assert sorted(ledger.unfinished()) == sorted(["a", odd])
    ledger.close()


@pytest.mark.parametrize(
    "damage",
    [b"", b"\n", b"{", b"[]\n", b'"x"\n', b'{"begin": 7}\n', b'{"attempts": []}\n', b'{"attempts": {"a": null}}\n',
     b"\0" * 4096, b"\xff\xfe\n", b'{"end": ["a"]}'],
    ids=["empty", "blank", "half", "list", "text", "number", "list of attempts", "null", "zeros", "no UTF-8", "torn"],
)  # fmt: skip
def test_damaged_ledger_is_read_as_far_as_it_goes(tmp_path: Path, damage: bytes) -> None:
    """A power cut may leave anything; what is whole counts."""
    path = tmp_path / "ledger"
    path.write_bytes(b'{"begin": ["a"]}\n' + damage)
    ledger = Ledger(str(path))
    assert ledger.count("a") == 1
    ledger.close()


def test_ledger_stays_small(tmp_path: Path) -> None:
    """It is written anew when it is large, with what still counts."""
    path = tmp_path / "ledger"
    ledger = Ledger(str(path))
    ledger.begin(["kept"])
    for number in range(300):
        names = [f"{number:05d}-{index}-" + "x" * 200 for index in range(20)]
        ledger.begin(names)
        ledger.end(names)
    ledger.close()
    assert path.stat().st_size < MOST_BYTES + 20_000
    assert Ledger(str(path)).unfinished() == ["kept"]


# --- folders ----------------------------------------------------------------------------------------------------------


def put(spool: Spool, name: str, data: bytes = b"data") -> tuple[int, int, int, int]:
    Path(spool.input(name)).write_bytes(data)
    return stamp_of(os.lstat(spool.input(name)))


def moved(spool: Spool, name: str, stamp: tuple[int, int, int, int], sidecars: dict[str, bytes]) -> bool:
    target = spool.prepare(name, spool.done, stamp, sidecars)
    return spool.move(name, spool.done, stamp, target, sidecars)


def test_input_and_its_sidecars_arrive_together(spool: Spool) -> None:
    """Nothing hidden stays."""
    assert moved(spool, "a.jpg", put(spool, "a.jpg"), {".json": b"{}"})
    assert sorted(os.listdir(spool.done)) == ["a.jpg", "a.jpg.json"]


@pytest.mark.parametrize("how", ["replaced", "changed", "gone"])
def test_input_that_is_another_one_by_now_stays(spool: Spool, how: str) -> None:
    """It is new: the result was that of the old one."""
    stamp = put(spool, "a.jpg")
    target = spool.prepare("a.jpg", spool.done, stamp, {".json": b"{}"})
    if how == "replaced":
        put(spool, "b.jpg", b"other")
        os.rename(spool.input("b.jpg"), spool.input("a.jpg"))
    elif how == "changed":
        with open(spool.input("a.jpg"), "ab") as file:
            file.write(b"more")
    else:
        os.unlink(spool.input("a.jpg"))
    assert not spool.move("a.jpg", spool.done, stamp, target, {".json": b""})
    assert not spool.remove("a.jpg", stamp)
    assert os.listdir(spool.done) == []
    assert os.listdir(spool.watched) == ([] if how == "gone" else ["a.jpg"])


def test_sidecars_of_a_killed_process_are_settled(spool: Spool) -> None:
    """With their input moved they get their names, without it they go; what the user put there stays."""
    for name in ("a.jpg", "kept.json", ".mine"):
        Path(spool.done, name).touch()
    for name in (".a.jpg.json.pending", ".b.jpg.annotated.jpg.pending", ".7.new"):
        Path(spool.done, name).touch()
    spool.make()
    assert sorted(os.listdir(spool.done)) == [".mine", "a.jpg", "a.jpg.json", "kept.json"]


def test_free_names_fit_the_file_system(spool: Spool) -> None:
    """The longest names keep their ending, and no two are the same."""
    long = "é" * 125 + ".jpeg"
    stamp = (1, 2, 3, 1_700_000_000_123_456_789)
    names = []
    for _ in range(4):
        name = free_name(spool.done, long, stamp)
        for ending in ("", ".json", ".error.json", ".annotated.jpg"):
            Path(spool.done, name + ending).touch()
        Path(spool.done, f".{name}.annotated.jpg.pending").touch()
        names.append(name)
    assert len(set(names)) == 4
    assert all(name.endswith(".jpeg") for name in names)
    assert "20231114T221320.123456789" in names[1]
    assert free_name(spool.done, long, stamp, {free_name(spool.done, long, stamp)}) not in names


def test_watched_folder_on_another_file_system_is_refused(tmp_path: Path) -> None:
    """Inputs cannot be moved from there in one step: said at the start."""
    other = Path("/dev/shm")
    if not os.access(other, os.W_OK) or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system to write to")
    watched = other / f"edgeapp-test-{os.getpid()}"
    watched.mkdir()
    try:
        with pytest.raises(errors.ConfigurationError, match="cannot move"):
            Spool.at(str(tmp_path), str(watched)).make()
        assert not list(watched.iterdir())
    finally:
        watched.rmdir()


# --- intake -----------------------------------------------------------------------------------------------------------


def taken(intake: Intake, seconds: float, most: int = 1 << 20) -> list[str]:
    """All names within some time."""
    found: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found += intake.take(most)
        time.sleep(0.01)
    return found


def test_files_come_in_the_order_of_their_arrival(tmp_path: Path) -> None:
    """Those that are moved in or closed at once; hidden and unfinished ones never."""
    intake = Intake(str(tmp_path), 60, lambda: (), print)
    for number in (3, 1, 2):
        (tmp_path / ".x").write_bytes(b"x")
        os.rename(tmp_path / ".x", tmp_path / f"{number}.jpg")
    (tmp_path / "0.jpg").write_bytes(b"x")
    (tmp_path / "4.jpg.part").write_bytes(b"x")
    assert intake.take(100) == ["3.jpg", "1.jpg", "2.jpg", "0.jpg"]
    assert intake.take(100) == []
    intake.close()


def test_files_that_were_there_before_are_found(tmp_path: Path) -> None:
    """By looking, the oldest first, when they have settled."""
    for number, age in enumerate((10, 30, 20)):
        (tmp_path / f"{number}.jpg").touch()
        os.utime(tmp_path / f"{number}.jpg", (0, 1_700_000_000 - age))
    intake = Intake(str(tmp_path), 0.1, lambda: (), print)
    assert intake.take(10) == []
    assert taken(intake, 0.5) == ["1.jpg", "2.jpg", "0.jpg"]
    intake.close()


def test_lost_notices_lose_no_file(tmp_path: Path) -> None:
    """More files at once than the kernel's queue holds: looking finds the rest, each once."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    count = limit + 500
    if count > 40_000:
        pytest.skip("the kernel's queue is long here")
    intake = Intake(str(tmp_path), 0.1, lambda: (), print)
    intake.take(1)
    for number in range(count):
        os.close(os.open(tmp_path / f"{number}.jpg", os.O_WRONLY | os.O_CREAT))
    found: list[str] = []
    end = time.monotonic() + 20
    while len(found) < count and time.monotonic() < end:
        found += intake.take(1 << 20)
        time.sleep(0.01)
    assert len(found) == count
    assert len(set(found)) == count
    intake.close()


def test_without_notices_it_looks(tmp_path: Path) -> None:
    """The limit of watches is reached: said once, and all is found all the same."""
    code = (
        "import resource, sys, time\nfrom edgeapp.service import intake\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "said = []\nit = intake.Intake('.', 0.05, lambda: (), said.append)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "print(it.descriptor, said)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("None ['no notices of new files (too many open files)"), done


# --- room -------------------------------------------------------------------------------------------------------------


def test_full_disk_is_waited_for_and_other_errors_are_not(tmp_path: Path) -> None:
    """ENOSPC is tried again; EIO is told at once."""
    told: list[str] = []
    room = Room([str(tmp_path)], 1, told.append, lambda: None)
    left = [errno.ENOSPC, errno.EDQUOT, errno.ENOSPC]

    def step() -> str:
        if left:
            raise OSError(left.pop(), "full")
        return "done"

    assert room.patiently("write x", step) == "done"
    assert [bool(text) for text in told] == [True, False]
    with pytest.raises(errors.InputOutputError):
        room.patiently("write x", lambda: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))


def test_waiting_for_room_ends_with_the_service(tmp_path: Path) -> None:
    """SIGTERM while the disk is full: nothing waits for ever."""
    room = Room([str(tmp_path)], 1 << 62, lambda _: None, lambda: None)
    threading.Timer(0.1, room.end).start()
    with pytest.raises(NoRoomError):
        room.wait_for_least()


def test_ledger_lines_are_json(tmp_path: Path) -> None:
    """An operator can read it."""
    ledger = Ledger(str(tmp_path / "ledger"))
    ledger.begin(["a.jpg"])
    ledger.end(["a.jpg"])
    ledger.close()
    lines = [json.loads(line) for line in (tmp_path / "ledger").read_text().splitlines()]
    assert lines == [{"attempts": {}}, {"begin": ["a.jpg"]}, {"end": ["a.jpg"]}]
