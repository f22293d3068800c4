"""Checks in a process of their own: what crashes or hangs there is a line in the table.

The child is a fork of this process, which has one thread and no CUDA, so the frozen file needs nothing else to start
it. Its records come back on a pipe, each on a line that begins with the record separator of ASCII; what drivers and
libraries print goes to the same pipe and is kept for `--debug`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any, NoReturn

from edgeapp import forking, stopping
from edgeapp.checks import FAILURE, WARNING, Check, Say, failed
from edgeapp.errors import EdgeappError, SystemRefusedError

Work = Callable[[Say], Check | Iterable[Check]]

RECORD = b"\x1e"
KEPT_LINES = 3
READ_BYTES = 1 << 16
MOST_LINE_BYTES = 1 << 20
"""What a library prints without ending its line fills no memory."""


class Child:
    """One piece of work and what came of it.

    Args:
        name: of the line that tells a crash.
        work: gives checks; runs in the child only.
        limit_s: it is killed after this time.
        exit_code: of the line that tells a crash or a hang; fix: what to do then.
        heard: takes what was printed there.
    """

    def __init__(
        self, name: str, work: Work, limit_s: float, exit_code: int, fix: str, heard: Callable[[str], None]
    ) -> None:
        self._name, self._work, self._limit_s = name, work, limit_s
        self._exit_code, self._fix, self._heard = exit_code, fix, heard
        self._step = ""
        self._printed: deque[str] = deque(maxlen=KEPT_LINES)
        self._told: set[str] = set()
        self._ended = False
        self.hung = False

    def checks(self, stop: stopping.Stop) -> Iterator[Check]:
        """Every check as it comes, and one more where the child did not end as it should.

        Raises:
            Stopped: a signal came; the child is gone.
        """
        parent = os.getpid()
        try:
            reader, writer = os.pipe()
            child = os.fork()
        except OSError as error:
            yield Check(self._name, FAILURE, "it could not be tried", "a process of its own", str(error),
                        "raise the limits of processes and open files (ulimit -u, -n)",
                        SystemRefusedError.exit_code)  # fmt: skip
            return
        if child == 0:
            os.close(reader)
            _be_child(self._name, self._work, writer, parent)
        os.close(writer)
        status: int | None = None
        try:
            for record in self._records(reader, stop):
                if "step" in record:
                    self._step = record["step"]
                else:
                    yield self._new(Check(**record["check"]))
        finally:
            os.close(reader)
            status = forking.wait(child, forking.GRACE_S) if self._ended else None
            if status is None:
                _kill(child)
                status = forking.wait(child, forking.GRACE_S)
        if self.hung or status != 0:
            yield self._new(self._died(status))

    def _new(self, check: Check) -> Check:
        """The same under a name of its own: what breaks late must not look like the line that was fine."""
        if check.name in self._told:
            check = replace(check, name=f"{check.name} (rest)")
        self._told.add(check.name)
        return check

    def _records(self, reader: int, stop: stopping.Stop) -> Iterator[dict[str, Any]]:
        """What the child sends, until it ends or its time is over."""
        rest = b""
        deadline_s = time.monotonic() + self._limit_s
        while True:
            if not stop.wait_readable(reader, timeout_s=max(0.0, deadline_s - time.monotonic())):
                self.hung = True
                return
            data = os.read(reader, READ_BYTES)
            if not data:
                self._ended = True
                return
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-MOST_LINE_BYTES:]
            for line in lines:
                if (record := _record(line)) is not None:
                    yield record
                elif line.strip():
                    text = line.decode("utf-8", "replace").strip()
                    self._printed.append(text)
                    self._heard(text)

    def _died(self, status: int | None) -> Check:
        where = f" in step {self._step}" if self._step else ""
        why = " / ".join(self._printed)
        if self.hung:
            found = f"no answer within {self._limit_s:g} s{where}"
            if status is None:
                why = "it hangs inside the kernel and cannot be killed"
        else:
            found = f"{forking.ended(status)}{where}"
            if status == -signal.SIGKILL:
                why = why or forking.OUT_OF_MEMORY
        return Check(self._name, FAILURE, found, "", why, self._fix, self._exit_code)


def _record(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(RECORD):
        return None
    try:
        value: dict[str, Any] = json.loads(line[1:])
    except ValueError:
        return None
    return value


def _kill(child: int) -> None:
    """The child and what it started; the group exists as soon as the child has made it."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(child, signal.SIGKILL)


def _be_child(name: str, work: Work, writer: int, parent: int) -> NoReturn:
    """Do the work and end; nothing of the parent's is flushed, undone or cleaned up."""

    def send(**record: Any) -> None:
        data = b"\n" + RECORD + json.dumps(record).encode() + b"\n"
        while data:
            data = data[os.write(writer, data) :]

    try:
        forking.leave_parent(writer, parent, signal.SIG_DFL)
        os.setpgid(0, 0)
        step = ""

        def say(words: str) -> None:
            nonlocal step
            step = words
            send(step=words)

        try:
            found = work(say)
            for check in (found,) if isinstance(found, Check) else found:
                send(check=asdict(check))
        except EdgeappError as error:
            what = f"{error.what} (in step {step})" if step else error.what
            send(check=asdict(failed(name, error, found=what)))
        except BaseException as error:  # a check must not end the others
            place = traceback.extract_tb(error.__traceback__)[-1]
            why = f"{os.path.basename(place.filename)}, line {place.lineno}"
            send(check=asdict(Check(name, WARNING, f"cannot be told: {type(error).__name__}: {error}", "", why)))
        os._exit(0)
    finally:
        os._exit(1)
