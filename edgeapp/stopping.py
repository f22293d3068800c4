"""SIGINT and SIGTERM set a flag; the loops look at it and end in order."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import IO, NoReturn

from edgeapp import launched
from edgeapp.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_SIGNAL_S = 1.0
"""Repeats within this time are one request: timeout(1) signals its child and then the whole group."""


class Stop:
    """Whether a signal asked the program to end.

    The first signal sets the flag; one that comes later again kills the process at once.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._first_s = 0.0
        self._woken = False
        self._on_stop: Callable[[], None] | None = None
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)

    def install(self) -> None:
        """Take over the signals; call it from the main thread, before anything heavy is loaded."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP: keep that
                signal.signal(number, self._on_signal)
        launched.let_signals_in()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number, self._first_s = number, time.monotonic()
            if self._on_stop is not None:
                self._on_stop()
        elif time.monotonic() - self._first_s > SAME_SIGNAL_S:
            self.die()

    def notify(self, call: Callable[[], None] | None) -> None:
        """Have a call made when a signal comes: between any two steps of the main thread, so it may only put a flag."""
        self._on_stop = call
        if call is not None and self.signal_number is not None:
            call()

    @contextmanager
    def waking(self) -> Iterator[None]:
        """While the body runs, end the waiting of other threads as a signal would."""
        self._woken = True
        os.write(self._wake_write, b"\0")
        try:
            yield
        finally:
            self._woken = False
            os.read(self._wake_read, 1 << 16)

    def check(self) -> None:
        """Raise Stopped when a signal came."""
        if self.signal_number is not None or self._woken:
            raise Stopped

    def wait_readable(self, stream: IO[bytes] | int, timeout_s: float | None = None) -> bool:
        """Block until `stream` has data or ended; raise Stopped when a signal comes first.

        Args:
            stream: a file or its descriptor.
            timeout_s: wait no longer, seconds; None for ever.

        Returns:
            whether there is data or an end.
        """
        self.check()
        ready, _, _ = select.select([stream, self._wake_read], [], [], timeout_s)
        self.check()
        return stream in ready

    def die(self) -> NoReturn:
        """End the process by the signal that came, so that the parent sees the true cause."""
        number = self.signal_number or signal.SIGTERM
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        os._exit(128 + number)  # the kernel spares process 1 of a container
