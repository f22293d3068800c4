"""The log of a service: its three forms, and how little a storm leaves in it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import ROOT, Clock

from edgeapp.errors import DataError, EdgeappError
from edgeapp.log import Talk
from edgeapp.service.storms import LONGEST_WINDOW_S, MOST_LINE_BYTES, EventLog

LETTERS = str.maketrans("0123456789", "abcdefghij")


class Book:
    """A log into a file, with a clock of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("wb")
        self.clock = Clock()

    def log(self, form: str = "json", *, quiet: bool = False, debug: bool = False) -> EventLog:
        return EventLog(form=form, quiet=quiet, debug=debug, descriptor=self.file.fileno(), clock=self.clock)

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    book = Book(tmp_path / "log")
    yield book
    book.file.close()


def bad(n: int, why: str = "it is cut short") -> DataError:
    return DataError(f"cannot read {n}.jpg", why, "send it again")


# --- storms --------------------------------------------------------------------------------------------------------


def test_repeats_are_counted_and_told_when_the_window_ends(book: Book) -> None:
    """One line at once, one summary after 10 s, and silence when it is over."""
    log = book.log()
    for n in range(500):  # 5 s
        log.error(bad(n))
        book.clock.now += 0.01
    assert [line["message"] for line in book.lines] == ["cannot read 0.jpg"]
    book.clock.now += 5.01
    log.tick()
    assert len(book.lines) == 2
    assert book.lines[1]["message"] == "cannot read 499.jpg"
    fields = book.lines[1]["fields"]
    assert isinstance(fields, dict)
    assert fields["suppressed"] == 499
    assert fields["window_s"] == pytest.approx(10, abs=0.2)
    for _ in range(1000):
        book.clock.now += 1
        log.tick()
    assert len(book.lines) == 2
    log.error(bad(1000))
    assert len(book.lines) == 3, "after a calm the first is said at once again"


def test_other_kinds_and_reasons_are_said_during_a_storm(book: Book) -> None:
    """What is new is never hidden by what repeats; numbers and names in a reason make no new one."""
    log = book.log()
    for n in range(100):
        log.error(bad(n, f"byte {n} of '{n}.jpg' is wrong"))
    log.error(bad(7, "it is empty"))
    log.error(EdgeappError("cannot move 7.jpg", "byte 1 of '1.jpg' is wrong"))
    log.event("disk_full", "12 MB are left", level="critical")
    log.note("edgeapp: paused")
    assert [line["event"] for line in book.lines] == ["DataError", "DataError", "EdgeappError", "disk_full", "note"]


def test_flush_tells_what_was_kept_back(book: Book) -> None:
    """At the end nothing that was counted is lost."""
    log = book.log()
    for n in range(10):
        log.error(bad(n))
    log.flush()
    log.flush()
    assert [line["fields"].get("suppressed") for line in book.lines if isinstance(line["fields"], dict)] == [None, 9]


@pytest.mark.parametrize(
    ("rate", "reason"),
    [(5000, lambda n: "it is cut short"), (100, lambda n: str(n).translate(LETTERS) * 5)],
    ids=["5,000 per second of one kind", "100 per second, a million reasons"],
)
def test_storm_of_a_million_leaves_less_than_a_megabyte(book: Book, rate: int, reason: Callable[[int], str]) -> None:
    """In three minutes or in three hours; a fake clock makes it quick."""
    log = book.log("human")
    for n in range(1_000_000):
        log.error(bad(n, reason(n)))
        book.clock.now += 1 / rate
    log.flush()
    assert 100 < book.path.stat().st_size < 1_000_000


def test_windows_grow_while_a_storm_lasts(book: Book) -> None:
    """A storm of a day leaves some 150 lines and not 8,640; none of its events is uncounted."""
    log = book.log()
    for n in range(86_400):
        log.error(bad(n))
        book.clock.now += 1
    log.flush()
    lines = book.lines
    assert len(lines) < 86_400 / LONGEST_WINDOW_S + 10
    suppressed = [int(str(line["fields"].get("suppressed", 0))) for line in lines if isinstance(line["fields"], dict)]
    assert sum(suppressed) + 1 == 86_400


def test_memory_is_bounded_whatever_comes(book: Book) -> None:
    """100,000 kinds of events, each with a reason of its own, cost nothing that stays."""
    log = book.log()
    for n in range(100_000):
        word = str(n).translate(LETTERS)
        log.event(word, "x" * 50, reason=word * 10)
    windows = log._storms._windows
    assert len(windows) <= 33
    assert sum(len(window.reasons) for window in windows.values()) <= 33 * 17
    log.flush()
    assert len(book.lines) < 1000


def test_threads_share_a_log(book: Book) -> None:
    """Lines never mix, and every event is said or counted."""
    log = book.log()
    threads = [threading.Thread(target=lambda: [log.error(bad(n)) for n in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.flush()
    assert [line["fields"].get("suppressed", 0) for line in book.lines if isinstance(line["fields"], dict)] == [0, 3999]


# --- forms ---------------------------------------------------------------------------------------------------------


def test_it_is_a_talk(book: Book) -> None:
    """Code that takes a Talk speaks into it; detail needs --debug, errors come through --quiet."""
    quiet, loud = book.log(quiet=True), book.log(debug=True)
    assert isinstance(quiet, Talk)
    for log in (quiet, loud):
        log.note("edgeapp: noted")
        log.detail("in detail")
        log.always("one\ntwo")
        log.error(bad(1))
        with log.progress(10) as progress:
            progress.advance()
    assert [line["message"] for line in book.lines] == [
        "one", "two", "cannot read 1.jpg", "noted", "in detail", "one", "two", "cannot read 1.jpg",
    ]  # fmt: skip


def test_json_line_has_its_keys(book: Book) -> None:
    """Time in UTC with milliseconds, level, event, message, fields."""
    book.log().event(
        "reload",
        "b.plan serves",
        level="warning",
        why="asked for",
        reason="word",
        digest="ab",
        n=3,
        x=1.5,
        bad=float("nan"),
    )
    (line,) = book.lines
    assert list(line) == ["time", "level", "event", "message", "fields"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(line["time"]))
    assert (line["level"], line["event"], line["message"]) == ("warning", "reload", "b.plan serves")
    assert line["fields"] == {"why": "asked for", "reason": "word", "digest": "ab", "n": 3, "x": 1.5, "bad": "nan"}


def test_journal_line_has_its_priority(book: Book) -> None:
    """<N> before the text, one line an event, and no name or time, which the journal has."""
    log = book.log("journal", debug=True)
    log.error(bad(1))
    log.note("edgeapp: serves")
    log.detail("deep")
    log.event("gpu_lost", "code 700", level="critical")
    assert book.text.splitlines() == [
        "<3>cannot read 1.jpg; why: it is cut short; fix: send it again", "<6>serves", "<7>deep", "<2>code 700",
    ]  # fmt: skip


def test_human_line_in_a_file_has_the_time(book: Book) -> None:
    """Whoever reads it later wants to know when."""
    book.log("human").error(bad(1))
    assert re.fullmatch(r"\S+Z error   cannot read 1.jpg; why: it is cut short; fix: send it again\n", book.text)


def test_human_error_on_a_terminal_has_three_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As every other command says it."""
    monkeypatch.setenv("NO_COLOR", "1")
    ours, theirs = pty.openpty()
    try:
        EventLog(descriptor=theirs).error(bad(1))
        said = os.read(ours, 1000).decode().replace("\r\n", "\n")
    finally:
        os.close(ours)
        os.close(theirs)
    assert said == "edgeapp: cannot read 1.jpg\n  why: it is cut short\n  fix: send it again\n"


@pytest.mark.parametrize(("stream", "prefix"), [("{dev}:{inode}", "<6>"), ("1:1", "2"), ("", "2"), ("x", "2")])
def test_journal_is_known_by_its_stream(book: Book, monkeypatch: pytest.MonkeyPatch, stream: str, prefix: str) -> None:
    """JOURNAL_STREAM must name what standard error really is; a redirected one is a file like others."""
    status = os.fstat(book.file.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", stream.format(dev=status.st_dev, inode=status.st_ino))
    book.log("auto").note("serves")
    assert book.text.startswith(prefix)


@pytest.mark.parametrize("form", ["human", "journal", "json"])
@pytest.mark.parametrize(
    "text",
    ["a\n<0>b", "a\r\nb", "\x1b[2J", "\ud800", "caf\udce9", "x" * 1_000_000, "\U0001f600" * 5000, "\0", "\u2028", ""],
    ids=["newline", "CRLF", "escape", "half a letter", "no UTF-8", "long", "wide", "NUL", "separator", "empty"],
)  # fmt: skip
def test_event_is_one_line_whatever_is_in_it(book: Book, form: str, text: str) -> None:
    """Names of files come from anybody: they forge no line, and none is longer than a pipe takes at once."""
    book.log(form).event("input", f"cannot read {text}", level="error", why=text, fix=text, name=text)
    data = book.path.read_bytes()
    assert data.count(b"\n") == 1
    assert len(data) <= MOST_LINE_BYTES
    assert data.decode().rstrip("\n").isprintable()
    if form == "json":
        assert str(book.lines[0]["message"]).startswith("cannot read")


# --- nobody listens ------------------------------------------------------------------------------------------------


def test_full_pipe_holds_up_nothing() -> None:
    """A reader that stopped reading costs lines, not time; when it reads again, so are new ones."""
    ours, theirs = os.pipe()
    clock = Clock()
    log = EventLog(descriptor=theirs, clock=clock, form="journal")
    try:
        for n in range(2000):
            clock.now += 100
            log.error(bad(n))
        assert log.lost > 0
        lost = log.lost
        assert os.read(ours, 1 << 20).endswith(b"again\n"), "every line that went out is whole"
        log.event("other", "here again")
        assert log.lost == lost
        assert os.read(ours, 1000) == b"<6>here again\n"
    finally:
        os.close(ours)
        os.close(theirs)


def test_reader_that_went_away_harms_nothing() -> None:
    """EPIPE is counted and no more; so is a descriptor that is closed, and a full disk."""
    ours, theirs = os.pipe()
    log = EventLog(descriptor=theirs)
    os.close(ours)
    log.event("a", "b")
    os.close(theirs)
    log.event("c", "d")
    assert log.lost == 2
    with open("/dev/full", "wb") as full:
        log = EventLog(descriptor=full.fileno())
        log.event("a", "b")
    assert log.lost == 1


def test_closed_standard_error_is_never_written_to() -> None:
    """Its number may have become another file's: what that holds stays as it is."""
    with tempfile.NamedTemporaryFile() as other:
        code = (
            "import os, sys\nfrom edgeapp.service.storms import EventLog\n"
            f"assert os.open({other.name!r}, os.O_WRONLY) == 2 and sys.stderr is None\n"
            "log = EventLog()\nlog.event('a', 'b')\nlog.always('c')\nassert log.lost == 2\n"
        )
        closed = ["/bin/sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code]
        done = subprocess.run(closed, env={"PYTHONPATH": str(ROOT)}, check=False)
        assert done.returncode == 0
        assert Path(other.name).read_bytes() == b""


def test_no_memory_grows_in_a_storm() -> None:
    """300,000 events, a third of them of reasons of their own, leave a process as large as it was."""
    code = (
        "import resource, sys\nsys.path.insert(0, 'tests')\nfrom test_storms import *\n"
        "clock = Clock()\nlog = EventLog(form='json', descriptor=os.open(os.devnull, os.O_WRONLY), clock=clock)\n"
        "def work(count):\n"
        "    for n in range(count):\n"
        "        clock.now += 0.001\n"
        "        log.error(bad(n, str(n).translate(LETTERS) * 20 if n % 3 == 0 else 'it is cut short'))\n"
        "work(30_000)\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nwork(300_000)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1024  # kB
