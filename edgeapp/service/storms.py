"""The log of a service: a line for every event, but few when the same happens again and again."""

from __future__ import annotations

import json
import os
import re
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from edgeapp import paths
from edgeapp.errors import EdgeappError
from edgeapp.log import Progress, Talk

PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""Levels, and what syslog and the journal call them (sd-daemon(3))."""

FORMS = ("auto", "human", "journal", "json")

WINDOW_S, LONGEST_WINDOW_S = 10.0, 640.0
"""An event is said once within a window; while it goes on, each window is twice as long as the one before."""

MOST_KINDS, MOST_REASONS = 32, 16
OTHERS = "others"
"""Kinds and reasons beyond these share a place: whatever comes, memory and log stay small."""

MOST_LINE_BYTES = 4096
"""PIPE_BUF: so much goes into a pipe whole, and at once where poll() says that there is room."""

MOST_TEXT = 800
"""Characters of a message, a reason or a field."""

VARYING = re.compile(r"\d+|'[^']*'|\"[^\"]*\"")
"""What differs between two reasons of one kind: numbers and quoted names."""


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        kind: its name for programs, "input_failed".
        message: one line, with the values in it.
        level: a key of PRIORITIES.
        why, fix: cause and cure, where they are known.
        fields: values for programs.
        suppressed: how many more like it were not said, within window_s seconds.
    """

    kind: str
    message: str
    level: str = "info"
    why: str = ""
    fix: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    suppressed: int = 0
    window_s: float = 0.0


@dataclass
class _Window:
    """One kind of event: for each reason how often it was kept back, and the latest of those."""

    until_s: float
    length_s: float
    reasons: dict[str, tuple[int, Event | None]] = field(default_factory=dict)


class Storms:
    """Says which events are worth a line.

    The first of a kind and reason is. Repeats are counted, and told by one line when the window ends.
    """

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}
        self._look_s = float("-inf")

    def admit(self, event: Event, reason: str, now_s: float) -> list[Event]:
        """What is to be said now that this event came."""
        said = self.ended(now_s)
        kind = event.kind if event.kind in self._windows or len(self._windows) < MOST_KINDS else OTHERS
        window = self._windows.setdefault(kind, _Window(now_s + WINDOW_S, WINDOW_S))
        reason = VARYING.sub("#", reason)
        if reason not in window.reasons and len(window.reasons) >= MOST_REASONS:
            reason = OTHERS
        if reason in window.reasons:
            window.reasons[reason] = window.reasons[reason][0] + 1, event
        else:
            window.reasons[reason] = 0, None
            said.append(event)
        return said

    def ended(self, now_s: float, *, all_of_them: bool = False) -> list[Event]:
        """A summary of each reason whose window is over and that was kept back in it."""
        if now_s < self._look_s and not all_of_them:
            return []
        self._look_s = now_s + 1.0
        said: list[Event] = []
        for kind, window in list(self._windows.items()):
            if now_s < window.until_s and not all_of_them:
                continue
            again = {reason: kept for reason, kept in window.reasons.items() if kept[0]}
            over_s = now_s - window.until_s + window.length_s
            said += [replace(event, suppressed=n, window_s=over_s) for n, event in again.values() if event is not None]
            if again and not all_of_them:
                window.length_s = min(window.length_s * 2, LONGEST_WINDOW_S)
                window.until_s = now_s + window.length_s
                window.reasons = dict.fromkeys(again, (0, None))
            else:
                del self._windows[kind]
        return said


class EventLog(Talk):
    """A Talk for programs that run for months: limited, in the form that its reader wants, harmless when it has none.

    Nothing waits for the reader: lines for which there is no room are left out and counted. `detail` (--debug) and
    `always` are not limited. Any thread may call.

    Args:
        quiet: only errors are said.
        debug: `detail` is said too.
        form: human lines, the journal's priorities, JSON Lines, or what fits standard error.
        descriptor: where to write; standard error by default.
        clock: seconds that never jump.

    Attributes:
        lost: how many lines could not be written.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        debug: bool = False,
        form: str = "auto",
        descriptor: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(quiet=quiet, debug=debug)
        self._descriptor = _standard_error() if descriptor is None else descriptor
        self._terminal = self._descriptor is not None and os.isatty(self._descriptor)
        if form == "auto":
            form = "journal" if _is_journal(self._descriptor) else "human"
        self._render = {"human": self._human, "journal": _journal, "json": _json}[form]
        self._clock = clock
        self._lock = threading.Lock()
        self._storms = Storms()
        self.lost = 0

    def event(
        self,
        kind: str,
        message: str,
        *,
        level: str = "info",
        reason: str = "",
        why: str = "",
        fix: str = "",
        **fields: Any,
    ) -> None:
        """Say that something happened, or count it when the same was said a moment ago.

        Args:
            kind: the name of the event, of a fixed set.
            message: one line, with the values in it.
            level: a key of PRIORITIES.
            reason: what makes two events of a kind different; `why` by default.
            why, fix: cause and cure.
            fields: values for programs, in JSON only.
        """
        if reason:
            fields = {"reason": reason, **fields}
        self._limited(Event(kind, message, level, why, fix, fields), reason or why)

    def error(self, error: EdgeappError) -> None:
        """Say an error; those of one class and cause are of one kind."""
        self.event(
            type(error).__name__, error.what, level="error", why=error.why, fix=error.fix, exit_code=error.exit_code
        )

    def note(self, text: str) -> None:
        for line in text.splitlines():
            self._limited(Event("note", line), line)

    def always(self, text: str) -> None:
        self._unlimited(text, "info")

    def detail(self, text: str) -> None:
        if self.debug:
            self._unlimited(text, "debug")

    def tick(self) -> None:
        """Say what was kept back in windows that are over; call it about every second."""
        with self._lock:
            for said in self._storms.ended(self._clock()):
                self._say(said)

    def flush(self) -> None:
        """Say all that was kept back: the end has come."""
        with self._lock:
            for said in self._storms.ended(self._clock(), all_of_them=True):
                self._say(said)

    @contextmanager
    def progress(self, total: int | None) -> Iterator[Progress]:  # noqa: ARG002
        """No bar: a service has no end to count to."""
        yield Progress(self, None, 0)

    def _limited(self, event: Event, reason: str) -> None:
        if self.quiet and PRIORITIES[event.level] > PRIORITIES["error"]:
            return
        with self._lock:
            for said in self._storms.admit(event, reason, self._clock()):
                self._say(said)

    def _unlimited(self, text: str, level: str) -> None:
        with self._lock:
            for line in text.splitlines():
                self._say(Event("note", line, level))

    def _say(self, event: Event) -> None:
        """Write an event as one line that fits."""
        for most in (MOST_TEXT, MOST_TEXT // 4, MOST_TEXT // 16):
            line = self._render(_short(event, most)).encode("utf-8", "backslashreplace") + b"\n"
            if len(line) <= MOST_LINE_BYTES:
                break
        self._put(line[:MOST_LINE_BYTES])

    def _put(self, line: bytes) -> None:
        try:
            if self._descriptor is None:
                raise OSError
            room = select.poll()
            room.register(self._descriptor, select.POLLOUT)
            if room.poll(0) != [(self._descriptor, select.POLLOUT)]:
                raise BlockingIOError
            os.write(self._descriptor, line)
        except (OSError, ValueError):
            self.lost += 1

    def _human(self, event: Event) -> str:
        """The three parts of an error on a terminal, else one line with the time."""
        message = event.message.removeprefix("edgeapp: ") + _suppressed(event)
        if not self._terminal:
            return f"{_now()} {event.level:7s} {_joined(message, event)}"
        name = "edgeapp:"
        if PRIORITIES[event.level] <= PRIORITIES["error"] and self.on_terminal() and not os.environ.get("NO_COLOR"):
            name = f"\x1b[1;31m{name}\x1b[0m"
        return f"{name} {EdgeappError(message, event.why, event.fix)}"


def _journal(event: Event) -> str:
    """A line of the journal, which knows time and program by itself; <N> is the priority."""
    message = event.message.removeprefix("edgeapp: ") + _suppressed(event)
    return f"<{PRIORITIES[event.level]}>{_joined(message, event)}"


def _json(event: Event) -> str:
    """A line of JSON: time, level, event, message, fields."""
    fields = {key: value for key, value in (("why", event.why), ("fix", event.fix)) if value} | event.fields
    if event.suppressed:
        fields |= {"suppressed": event.suppressed, "window_s": round(event.window_s, 1)}
    line = {
        "time": _now(),
        "level": event.level,
        "event": event.kind,
        "message": event.message.removeprefix("edgeapp: "),
        "fields": fields,
    }
    return json.dumps(line, ensure_ascii=False, allow_nan=False)


def _suppressed(event: Event) -> str:
    if not event.suppressed:
        return ""
    return f" (and {event.suppressed} more like it, suppressed within {event.window_s:.0f} s)"


def _joined(message: str, event: Event) -> str:
    parts = (message, event.why and f"why: {event.why}", event.fix and f"fix: {event.fix}")
    return "; ".join(part for part in parts if part)


def _short(event: Event, most: int) -> Event:
    """The event with texts of one line and of at most so many characters, and with values that JSON has."""
    return replace(
        event,
        message=_line(event.message, most),
        why=_line(event.why, most),
        fix=_line(event.fix, most),
        fields={key: _value(value, most) for key, value in event.fields.items()},
    )


def _line(text: str, most: int) -> str:
    text = paths.printable(" ".join(text[: 2 * most].splitlines()))
    return text if len(text) <= most else text[: most - 1] + "…"


def _value(value: Any, most: int) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    return _line(str(value), most)


def _now() -> str:
    """UTC, with milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _standard_error() -> int | None:
    """Its descriptor; None when it is closed, for then the number may belong to another file."""
    try:
        return sys.stderr.fileno() if sys.stderr is not None else None
    except (OSError, ValueError):
        return None


def _is_journal(descriptor: int | None) -> bool:
    """Whether it leads to systemd's journal: JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    if descriptor is None:
        return False
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
