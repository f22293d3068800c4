"""SIGINT and SIGTERM set a flag; the loops look at it and end in order."""

from __future__ import annotations

import math
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import IO, NoReturn

from edgeapp import launched
from edgeapp.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HANDLER_S = 0.005
"""How long to wait before looking again whether the main thread has run the handler."""

SAME_SIGNAL_S = 1.0
"""Repeats within this time are one request: timeout(1) signals its child and then the whole group."""


class Stop:
    """Whether a signal asked the program to end.

    The first signal sets the flag; one that comes later again kills the process at once.

    Attributes:
        signal_number: the first one; None while there was none.
        hangups: how many SIGHUP came that ask a service for a reload.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.hangups = 0
        self._service = False
        self._first_s = 0.0
        self._woken = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)

    def install(self, *, service: bool = False) -> None:
        """Take over the signals; call it from the main thread, before anything heavy is loaded.

        Args:
            service: SIGHUP asks for a reload, and only a second SIGINT kills: systemd may send SIGTERM twice.
        """
        self._service = service
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP: keep that
                signal.signal(number, self._on_signal)
        launched.let_signals_in()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._service and number == signal.SIGHUP:
            self.hangups += 1
        elif self.signal_number is None:
            self.signal_number, self._first_s = number, time.monotonic()
        elif time.monotonic() - self._first_s > SAME_SIGNAL_S and not (self._service and number != signal.SIGINT):
            self.die()

    @staticmethod
    def ignore() -> None:
        """Have signals do nothing: the end is under way, and Python gives handlers up before the process is gone."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def clear(self) -> None:
        """Take back what ends the waiting of `poll`: for who goes on after a signal."""
        if self._wake_read in self.poll(timeout_s=0):
            os.read(self._wake_read, 1 << 16)

    @contextmanager
    def waking(self) -> Iterator[None]:
        """While the body runs, end the waiting of other threads as a signal would."""
        self._woken = True
        with suppress(BlockingIOError):  # full of signals: it wakes all the same
            os.write(self._wake_write, b"\0")
        try:
            yield
        finally:
            self._woken = False
            os.read(self._wake_read, 1 << 16)

    def asked(self) -> bool:
        """Whether a signal came, or `waking` says so."""
        return self.signal_number is not None or self._woken

    def check(self) -> None:
        """Raise Stopped when a signal came."""
        if self.asked():
            raise Stopped

    def wait_readable(self, stream: IO[bytes] | int, timeout_s: float | None = None) -> bool:
        """Block until `stream` has data or ended; raise Stopped when a signal comes first.

        Args:
            stream: a file or its descriptor.
            timeout_s: wait no longer, seconds; None for ever.

        Returns:
            whether there is data or an end.
        """
        return bool(self.wait_any([stream], timeout_s=timeout_s))

    def wait_any(
        self,
        readers: Iterable[IO[bytes] | int],
        writers: Iterable[IO[bytes] | int] = (),
        timeout_s: float | None = None,
    ) -> list[int]:
        """Block until one of several has data, ended or takes data; raise Stopped when a signal comes first.

        Args:
            readers, writers: files or their descriptors.
            timeout_s: as of `wait_readable`.

        Returns:
            the descriptors that are ready.
        """
        readers, writers = list(readers), list(writers)
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self.check()
            left = None if until is None else max(0.0, until - time.monotonic())
            ready = self.poll(*readers, writers=writers, timeout_s=left)
            if self._wake_read not in ready:
                return ready
            # A signal came, maybe to another thread: the main thread is about to set the flag.
            time.sleep(HANDLER_S)

    def wait(self) -> None:
        """Block until a signal comes; for a thread beside the main one, whose own waiting a signal need not end.

        The kernel gives a signal to any thread, and Python's handler runs when the main thread wakes up.
        """
        self.poll()

    def poll(
        self, *streams: IO[bytes] | int, writers: Iterable[IO[bytes] | int] = (), timeout_s: float | None = None
    ) -> list[int]:
        """Wait for streams or a signal; gives the descriptors that have data, take data, have an end or an error.

        Not select(), which refuses descriptors from 1024 on: the parent may have left so many open.
        """
        wanted: dict[int, int] = {}
        for event, ready in ((select.POLLIN, (*streams, self._wake_read)), (select.POLLOUT, writers)):
            for stream in ready:
                number = stream if isinstance(stream, int) else stream.fileno()
                wanted[number] = wanted.get(number, 0) | event
        poll = select.poll()
        for number, events in wanted.items():
            poll.register(number, events)
        return [number for number, _ in poll.poll(None if timeout_s is None else math.ceil(timeout_s * 1e3))]

    def die(self) -> NoReturn:
        """End the process by the signal that came, so that the parent sees the true cause."""
        number = self.signal_number or signal.SIGTERM
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        os._exit(128 + number)  # the kernel spares process 1 of a container
