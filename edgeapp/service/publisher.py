"""Sends results on, at least once and in order, and never holds up the work: a thread for each receiver."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from edgeapp.service.state import Published, State
from edgeapp.service.storms import EventLog
from edgeapp.service.unsent import Unsent

MOST_LINES, MOST_BYTES = 100, 1_000_000
"""Of a batch; one line that is larger goes alone. nginx takes 1 MiB by default."""

GATHER_S = 0.05
"""A batch that is not full is followed by the next one after so long: fast results are sent together."""

IDLE_S = 1.0
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 60.0


class DownError(Exception):
    """The receiver cannot be reached or does not take anything now: later.

    Args:
        why: one line.
        after_s: it wants to be left alone for so long.
    """

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class RefusedError(Exception):
    """The receiver works, and says that it does not want what was sent."""


class Receiver(Protocol):
    """Where results go. All methods are called on one thread; `send` and `idle` raise DownError or RefusedError."""

    @property
    def kind(self) -> str:
        """webhook or mqtt."""

    def send(self, lines: Sequence[bytes]) -> None:
        """Send lines of JSON; comes back when the receiver has acknowledged them all."""

    def idle(self) -> None:
        """There is nothing to send; called about every second."""

    def close(self) -> None:
        """Say goodbye, and take no more than a moment for it."""


@dataclass
class _Outage:
    since_s: float
    attempts: int = 0


class Publisher:
    """The thread that sends to one receiver.

    Args:
        where: the receiver, for people.
    """

    def __init__(self, receiver: Receiver, where: str, unsent: Unsent, state: State, log: EventLog) -> None:
        self._receiver = receiver
        self._where = f"{receiver.kind} {where}"
        self._unsent = unsent
        self._log = log
        self._told = state.publishing[receiver.kind] = Published()
        self._most = MOST_LINES
        self._outage: _Outage | None = None
        self._more = threading.Event()
        self._ended = threading.Event()
        self._until_s = float("inf")
        self._thread = threading.Thread(target=self._run, name=receiver.kind, daemon=True)
        self._thread.start()

    def more(self) -> None:
        """There are results on the disk."""
        self._more.set()

    def end(self, until_s: float) -> None:
        """Have it try to send what is left, until this time of time.monotonic."""
        self._until_s = until_s
        self._ended.set()
        self._more.set()

    def join(self, more_s: float) -> None:
        """Wait for that, and so much longer; one that hangs ends with the process."""
        self._thread.join(max(0.0, self._until_s - time.monotonic()) + more_s)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._step():
            pass
        try:
            self._unsent.close()
        except OSError as error:
            self._complain(error)
        with suppress(Exception):
            self._receiver.close()

    def _step(self) -> bool:
        """Send a batch, or wait for something to send; False at the end."""
        last = self._ended.is_set()
        self._more.clear()
        lines: list[bytes] = []
        try:
            lines = self._unsent.next(self._most, MOST_BYTES)
            self._told.waiting_bytes = self._unsent.waiting_bytes()
            if lines:
                self._receiver.send(lines)
            else:
                self._receiver.idle()
        except RefusedError as error:
            self._refused(lines, error)
            return self._goes_on()
        except Exception as error:
            delay_s = self._down(error)
            self._save()
            self._ended.wait(delay_s)
            return not last
        self._up()
        if lines:
            self._told.published += len(lines)
            self._sent(lines)
            if len(lines) < self._most:
                self._ended.wait(GATHER_S)
            self._most = min(MOST_LINES, self._most * 2)
            return self._goes_on()
        self._save()
        if not last:
            self._more.wait(IDLE_S)
        return not last

    def _goes_on(self) -> bool:
        return time.monotonic() < self._until_s

    def _refused(self, lines: Sequence[bytes], error: RefusedError) -> None:
        """Find the line that is not wanted, by sending them one by one, and leave it out."""
        self._up()
        if len(lines) > 1:
            self._most = 1
            return
        self._told.refused += 1
        self._sent(lines)
        self._log.event(
            "publish_refused", f"{self._where} refuses a result", level="error", why=str(error),
            fix="it is left out there, and is in results/ as all are",
        )  # fmt: skip

    def _down(self, error: Exception) -> float:
        """Say it, once for each outage; the seconds to wait before the next attempt."""
        self._told.failures += 1
        self._told.down = True
        self._most = 1  # whatever made it fail, the first one through is small
        if self._outage is None:
            self._outage = _Outage(time.monotonic())
            why = _reason(error)
            self._log.event(
                "publish_down", f"cannot send results to {self._where}", level="warning", why=why,
                reason=f"{self._where} {why}", fix="they wait in results/, and go out when it takes them",
            )  # fmt: skip
        delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * (1 << min(self._outage.attempts, 16)))
        self._outage.attempts += 1
        asked_s = min(LONGEST_DELAY_S, error.after_s) if isinstance(error, DownError) else 0.0
        return max(asked_s, delay_s * random.uniform(0.5, 1.0))

    def _up(self) -> None:
        if self._outage is not None:
            after_s = time.monotonic() - self._outage.since_s
            self._outage = None
            self._told.down = False
            self._log.event(
                "publish_up", f"{self._where} takes results again, after {after_s:.0f} s", reason=self._where
            )

    def _sent(self, lines: Sequence[bytes]) -> None:
        try:
            self._unsent.sent(lines)
        except OSError as error:
            self._complain(error)

    def _save(self) -> None:
        try:
            self._unsent.save()
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        """The position is kept in memory alone: after a kill some results go out again."""
        self._log.event("publish_position", f"cannot note what {self._where} has", level="warning", why=_reason(error))


def _reason(error: Exception) -> str:
    if isinstance(error, DownError):
        return str(error)
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return f"{type(error).__name__}: {error}"
