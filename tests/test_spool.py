"""The parts that keep inputs and results safe, each at its edges; test_serve.py looks at them together."""

from __future__ import annotations

import errno
import json
import os
import queue
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from serving import WAIT_S, until
from support import ROOT, Clock

from edgeapp import errors
from edgeapp.records import Result
from edgeapp.service import control, intake, recorder, stream
from edgeapp.service.clients import Clients
from edgeapp.service.durable import Appended, remove_unfinished, rename_new, write_file
from edgeapp.service.intake import Intake
from edgeapp.service.ledger import MOST_BYTES, Ledger
from edgeapp.service.recorder import Recorder, SpoolFrame, Writing
from edgeapp.service.room import NoRoomError, Room
from edgeapp.service.source import SpoolSource
from edgeapp.service.spool import Spool, free_name, stamp_of
from edgeapp.stopping import Stop


@contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 1000 bytes: then write() fails, as on a full disk. Not while pytest writes its own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
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


def test_line_that_finds_no_room_leaves_no_trace(tmp_path: Path) -> None:
    """A later one that is shorter is appended whole."""
    file = Appended(str(tmp_path / "lines"))
    file.append(b"a" * 900 + b"\n")
    with small_files(), pytest.raises(OSError, match="File too large"):
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


@pytest.mark.parametrize("how", ["deleted", "replaced", "emptied", "longer"])
def test_file_that_somebody_else_changed_is_noticed(tmp_path: Path, how: str) -> None:
    """What is appended to it would be lost, or come after a hole."""
    path = tmp_path / "lines"
    file = Appended(str(path))
    file.append(b"one\n")
    assert file.intact
    if how == "deleted":
        path.unlink()
    elif how == "replaced":
        (tmp_path / "other").write_bytes(b"one\n")
        os.rename(tmp_path / "other", path)
    else:
        path.write_bytes(b"" if how == "emptied" else b"one\ntwo\n")
    assert not file.intact
    file.close()


def test_renaming_never_replaces(tmp_path: Path) -> None:
    """The other file stays, and so does this one."""
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(FileExistsError):
        rename_new(str(tmp_path / "a"), str(tmp_path / "b"))
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("a", "b")
    rename_new(str(tmp_path / "a"), str(tmp_path / "c"))
    assert sorted(os.listdir(tmp_path)) == ["b", "c"]
    with pytest.raises(FileNotFoundError):
        rename_new(str(tmp_path / "a"), str(tmp_path / "d"))


def test_file_that_cannot_be_written_keeps_its_old_content(tmp_path: Path) -> None:
    """And nothing lies beside it."""
    path = tmp_path / "x"
    write_file(str(path), b"old")
    with small_files(), pytest.raises(OSError, match="File too large"):
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


@pytest.mark.parametrize("how", ["deleted", "emptied"])
def test_ledger_that_somebody_removed_is_written_anew(tmp_path: Path, how: str) -> None:
    """With all that counts, at the next entry."""
    path = tmp_path / "ledger"
    ledger = Ledger(str(path))
    ledger.begin(["a"])
    path.unlink() if how == "deleted" else path.write_bytes(b"")
    ledger.begin(["b"])
    ledger.close()
    assert Ledger(str(path)).unfinished() == ["a", "b"]


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


def test_file_that_came_into_done_meanwhile_is_not_replaced(spool: Spool) -> None:
    """Somebody puts a file there between the choice of the name and the move: both stay."""
    stamp = put(spool, "a.jpg")
    target = spool.prepare("a.jpg", spool.done, stamp, {})
    Path(spool.done, target).write_text("mine")
    with pytest.raises(FileExistsError):
        spool.move("a.jpg", spool.done, stamp, target, {})
    assert Path(spool.done, target).read_text() == "mine"
    assert os.listdir(spool.watched) == ["a.jpg"]


@pytest.mark.parametrize("seconds", [9 * 10**18, -(9 * 10**18), -1], ids=["far future", "far past", "1969"])
def test_any_time_of_change_makes_a_name(spool: Spool, seconds: int) -> None:
    """Also one that no calendar knows: file systems keep 64 bits of seconds."""
    Path(spool.done, "a.jpg").touch()
    name = free_name(spool.done, "a.jpg", (1, 2, 3, seconds * 10**9))
    assert name.startswith("a~")
    assert name.endswith(".jpg")


@pytest.mark.parametrize("name", ["done", "failed", "results", "state"])
def test_own_folders_are_not_watched(tmp_path: Path, name: str) -> None:
    """What was done would be taken again, for ever; by another name of the folder too."""
    (tmp_path / "link").symlink_to(tmp_path / name)
    (tmp_path / name).mkdir()
    for watched in (tmp_path / name, tmp_path / "link"):
        with pytest.raises(errors.ConfigurationError, match="own"):
            Spool.at(str(tmp_path), str(watched)).make()


def test_one_watched_folder_has_one_service(tmp_path: Path) -> None:
    """Whatever their spools are: each input would be worked on twice."""
    watched = str(tmp_path / "in")
    one, other = Spool.at(str(tmp_path / "1"), watched), Spool.at(str(tmp_path / "2"), watched)
    with one.locked(), pytest.raises(errors.SystemRefusedError, match="cannot serve"), other.locked():
        pass
    with other.locked():
        pass


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


@pytest.fixture
def intake_clock(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What Intake takes for the time."""
    monkeypatch.setattr(intake, "time", SimpleNamespace(monotonic=clock))
    return clock


def test_files_come_in_the_order_of_their_arrival(tmp_path: Path) -> None:
    """Those that are moved in or closed at once; hidden and unfinished ones never."""
    it = Intake(str(tmp_path), 60, lambda: (), print)
    for number in (3, 1, 2):
        (tmp_path / ".x").write_bytes(b"x")
        os.rename(tmp_path / ".x", tmp_path / f"{number}.jpg")
    (tmp_path / "0.jpg").write_bytes(b"x")
    (tmp_path / "4.jpg.part").write_bytes(b"x")
    assert it.take(100) == ["3.jpg", "1.jpg", "2.jpg", "0.jpg"]
    assert it.take(100) == []
    it.close()


def test_files_that_were_there_before_are_found(tmp_path: Path, intake_clock: Clock) -> None:
    """By looking, the oldest first, when they have settled."""
    for number, age in enumerate((10, 30, 20)):
        (tmp_path / f"{number}.jpg").touch()
        os.utime(tmp_path / f"{number}.jpg", (0, 1_700_000_000 - age))
    it = Intake(str(tmp_path), 0.1, lambda: (), print)
    assert it.take(10) == []
    intake_clock.now += 0.09
    assert it.take(10) == []
    intake_clock.now += 0.09
    assert it.take(10) == ["1.jpg", "2.jpg", "0.jpg"]
    it.close()


def test_files_of_a_large_folder_need_not_settle_for_long(tmp_path: Path, intake_clock: Clock) -> None:
    """After a restart, a hundred thousand that wait are begun soon."""

    class SlowIntake(Intake):
        """A stand-in for one of a folder that takes long to look through."""

        def _look(self, now: float) -> None:
            intake_clock.now += 0.2
            super()._look(now)

    (tmp_path / "a.jpg").touch()
    it = SlowIntake(str(tmp_path), 0.1, lambda: (), print)
    started_s = intake_clock.now
    while not (found := it.take(9)):
        intake_clock.now += 0.01
    assert found == ["a.jpg"]
    assert intake_clock.now - started_s < 2
    it.close()


def test_lost_notices_lose_no_file(tmp_path: Path) -> None:
    """More files at once than the kernel's queue holds: looking finds the rest, each once."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    count = limit + 500
    if count > 40_000:
        pytest.skip("the kernel's queue is long here")
    busy: set[str] = set()
    it = Intake(str(tmp_path), 0.1, lambda: busy, print)
    it.take(1)
    for number in range(count):
        os.close(os.open(tmp_path / f"{number}.jpg", os.O_WRONLY | os.O_CREAT))
    found: list[str] = []

    def all_found() -> bool:
        found.extend(it.take(1 << 20))
        busy.update(found)
        return len(found) >= count

    until(all_found, f"{count} names")
    assert len(found) == count
    assert len(set(found)) == count
    it.close()


def test_folder_that_takes_the_place_of_the_watched_one_is_watched(tmp_path: Path) -> None:
    """Its notices come, after it was found by looking; that of a folder that is gone is told."""
    folder = tmp_path / "in"
    folder.mkdir()
    it = Intake(str(folder), 0.1, lambda: (), print)
    it.take(1)
    os.rename(folder, tmp_path / "old")
    it.look_again()
    with pytest.raises(FileNotFoundError):
        it.take(1)
    folder.mkdir()
    it.look_again()
    it.take(1)
    (folder / "a.jpg").touch()
    (tmp_path / "old" / "b.jpg").touch()
    assert it.take(9) == ["a.jpg"]
    it.close()


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


def without_descriptors(times: int) -> Callable[[], str]:
    """A step that fails so often."""
    left = [errno.EMFILE, errno.ENFILE] * times

    def step() -> str:
        if left:
            raise OSError(left.pop(), "too many open files")
        return "done"

    return step


def test_missing_descriptors_are_waited_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders give theirs back soon, and nobody is told; when it lasts, a restart may heal it."""
    told: list[str] = []
    room = Room([str(tmp_path)], 1, told.append, lambda: None)
    assert room.patiently("write x", without_descriptors(2)) == "done"
    monkeypatch.setattr("edgeapp.service.room.DESCRIPTORS_S", 0.2)
    with pytest.raises(errors.SystemRefusedError, match="cannot write x"):
        room.patiently("write x", without_descriptors(1000))
    assert told == []


def test_missing_descriptors_do_not_end_the_looking(
    spool: Spool, make_source: Callable[..., SpoolSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is looked through when there are some again."""
    fail, look = without_descriptors(1), Intake._look
    monkeypatch.setattr(Intake, "_look", lambda self, now: (fail(), look(self, now)))
    put(spool, "a.jpg")
    source = make_source(Ledger(f"{spool.state}/ledger"))
    thread, frames = iterated(source)
    assert next_name(frames) == "a.jpg"
    source.end()
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_waiting_for_room_ends_with_the_service(tmp_path: Path) -> None:
    """SIGTERM while the disk is full: nothing waits for ever."""
    room = Room([str(tmp_path)], 1 << 62, lambda _: None, lambda: None)
    threading.Timer(0.1, room.end).start()
    with pytest.raises(NoRoomError):
        room.wait_for_least(lambda: False)


@pytest.fixture
def make_source(spool: Spool) -> Iterator[Callable[..., SpoolSource]]:
    """Sources of the spool that want so many bytes free."""
    made: list[SpoolSource] = []

    def make(ledger: Ledger, least: int = 1) -> SpoolSource:
        room = Room(spool.folders, least, lambda _: None, lambda: None)
        made.append(
            SpoolSource(spool, ledger, room, Stop(), settle_s=0.05, most_attempts=3, probe_s=60,
                        probe=lambda: SpoolFrame("", probe=True), say=print)
        )  # fmt: skip
        return made[-1]

    yield make
    for source in made:
        source.close()


def iterated(source: SpoolSource) -> tuple[threading.Thread, queue.SimpleQueue[SpoolFrame | None]]:
    """A thread that asks for frames until there are no more, and the frames."""
    frames: queue.SimpleQueue[SpoolFrame | None] = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: [frames.put(frame) for frame in source], daemon=True)
    thread.start()
    return thread, frames


def next_name(frames: queue.SimpleQueue[SpoolFrame | None]) -> str:
    while (frame := frames.get(timeout=WAIT_S)) is None or frame.probe:
        pass
    return frame.name


def test_full_disk_does_not_keep_the_source_from_its_end(spool: Spool, make_source: Callable[..., SpoolSource]) -> None:
    """A reload, or an engine that is lost, does not wait for room."""
    source = make_source(Ledger(f"{spool.state}/ledger"), 1 << 62)
    thread, frames = iterated(source)
    frames.get(timeout=WAIT_S)
    source.end()
    thread.join(WAIT_S)
    assert not thread.is_alive()


class FullLedger(Ledger):
    """A stand-in for one on a full disk, while `full` is set."""

    full = True

    def begin(self, names: Any) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "full")
        super().begin(names)


def test_inputs_for_which_the_ledger_has_no_room_are_taken_again(
    spool: Spool, make_source: Callable[..., SpoolSource]
) -> None:
    """A reload while the disk is full loses none of them."""
    ledger = FullLedger(f"{spool.state}/ledger")
    source = make_source(ledger)
    put(spool, "a.jpg")
    thread, _ = iterated(source)
    until(lambda: source.under_way, "taken")
    source.end()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert source.under_way == 0
    ledger.full = False
    source.again()
    thread, frames = iterated(source)
    assert next_name(frames) == "a.jpg"
    source.end()
    thread.join(WAIT_S)


def test_input_that_became_a_folder_is_left_alone(spool: Spool, make_source: Callable[..., SpoolSource]) -> None:
    """As if it were gone; one that was listed by its path is told to be a folder."""
    Path(spool.input("a.jpg")).mkdir()
    source = make_source(Ledger(f"{spool.state}/ledger"))
    frame = SpoolFrame(spool.input("a.jpg"), name="a.jpg")
    source.read(frame)
    assert frame.stamp is None
    listed = SpoolFrame(spool.input("a.jpg"), name=spool.input("a.jpg"))
    source.read(listed)
    assert listed.error is not None
    assert "it is a folder" in listed.error.what


def test_suspected_input_whose_result_never_comes_keeps_nothing_from_its_end(
    spool: Spool, make_source: Callable[..., SpoolSource]
) -> None:
    """The recorder gave up: the disk is full, or broken."""
    ledger = Ledger(f"{spool.state}/ledger")
    put(spool, "a.jpg")
    ledger.begin(["a.jpg"])
    source = make_source(ledger)
    thread, frames = iterated(source)
    assert next_name(frames) == "a.jpg"
    source.end()
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_results_that_wait_have_bounded_pictures(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is slow: who brings large pictures waits, however few they are."""
    monkeypatch.setattr(recorder, "MOST_WAITING_BYTES", 1_000_000)
    finished = threading.Event()
    room = Room(spool.folders, 1, lambda _: None, lambda: None)
    it = Recorder(spool, Ledger(f"{spool.state}/ledger"), room, Writing(group_s=0.3), most_attempts=3,
                  finished=lambda _: finished.set())  # fmt: skip
    large = [Result(SpoolFrame("x"), "detect", drawn=bytes(750_000)) for _ in range(3)]
    started = time.monotonic()
    it.write(large[0])
    it.write(large[1])
    assert finished.is_set(), "1.5 MB of pictures were kept at once"
    assert time.monotonic() - started >= 0.3, "the first was not waited for"
    it.write(large[2])
    it.close()


def test_results_that_cannot_be_opened_are_an_error_with_a_code(spool: Spool) -> None:
    """Its name is taken, its disk is full or broken: no bug of ours."""
    Path(spool.results, "results.jsonl").mkdir()
    room = Room(spool.folders, 1, lambda _: None, lambda: None)
    with pytest.raises(errors.CannotWriteError, match=r"cannot write to .*results\.jsonl"):
        Recorder(spool, Ledger(f"{spool.state}/ledger"), room, Writing(), most_attempts=3, finished=lambda _: None)


# --- sockets ----------------------------------------------------------------------------------------------------------


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(WAIT_S)
    client.connect(str(path))
    return client


def test_clients_are_served_again_when_descriptors_are_free_again(tmp_path: Path) -> None:
    """accept() fails for a while: nobody is served, then all are."""
    clients = Clients(str(tmp_path / "s"), lambda client: client.sendall(b"served"), "x", 2)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT_S)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            client.connect(str(tmp_path / "s"))
            time.sleep(0.3)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert client.recv(10) == b"served"
    clients.close()


def test_client_that_asks_too_slowly_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However busily it sends."""
    monkeypatch.setattr(control, "REQUEST_S", 0.3)
    clients = Clients(str(tmp_path / "s"), control.answering(lambda _: {"yes": 1}), "x", 1)
    with connected(tmp_path / "s") as slow, connected(tmp_path / "s") as other:
        other.sendall(b"{}\n")
        other.settimeout(0.01)
        answer = b""
        for _ in range(3000):
            with suppress(OSError):
                slow.send(b" ")
            try:
                answer = other.recv(100)
                break
            except TimeoutError:
                continue
    clients.close()
    assert b"yes" in answer


def listening(path: Path) -> tuple[Clients, list[str]]:
    """Something that takes paths, and answers each at once."""
    taken: list[str] = []

    def submit(name: str, reply: stream.Reply) -> bool:
        taken.append(name)
        reply(b"x" * 10_000 + b"\n")
        return True

    return Clients(str(path), lambda client: stream.serve_socket(client, submit), "x", 1), taken


def test_last_path_may_lack_its_newline(tmp_path: Path) -> None:
    """It has a result like the others."""
    clients, taken = listening(tmp_path / "s")
    with connected(tmp_path / "s") as client:
        client.sendall(b"/a.jpg\n/b.jpg")
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as answers:
            assert len(answers.readlines()) == 2
    clients.close()
    assert taken == ["/a.jpg", "/b.jpg"]


def test_client_that_reads_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not keep its place from others for ever."""
    monkeypatch.setattr(stream, "ANSWER_S", 0.2)
    clients, _ = listening(tmp_path / "s")
    with connected(tmp_path / "s") as deaf, connected(tmp_path / "s") as other:
        deaf.sendall(b"/a.jpg\n" * 200)
        other.sendall(b"/b.jpg\n")
        assert other.recv(10) == b"x" * 10
    clients.close()


def test_ledger_lines_are_json(tmp_path: Path) -> None:
    """An operator can read it."""
    ledger = Ledger(str(tmp_path / "ledger"))
    ledger.begin(["a.jpg"])
    ledger.end(["a.jpg"])
    ledger.close()
    lines = [json.loads(line) for line in (tmp_path / "ledger").read_text().splitlines()]
    assert lines == [{"attempts": {}}, {"begin": ["a.jpg"]}, {"end": ["a.jpg"]}]
