"""SIGINT and SIGTERM set a flag; the loops look at it and end in order."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from types import FrameType
from typing import IO

from edgeapp.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_SIGNAL_S = 1.0
"""Repeats within this time are one request: PyInstaller's onefile parent forwards a signal that
the whole process group got already (measured with 6.22: Ctrl-C arrives twice)."""


PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent dies, if the parent is PyInstaller's onefile loader.

    The loader is the process that a user started and kills; killed by SIGKILL it can pass nothing on, and
    its child, this process, would work on unseen (PyInstaller 6.22).
    """
    if os.path.basename(getattr(sys, "_MEIPASS", "")).startswith("_MEI"):
        import ctypes  # late: 10 ms, and only the onefile program needs it

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        try:
            parent = os.readlink(f"/proc/{os.getppid()}/exe")
        except OSError:  # no /proc: then nobody can tell
            return
        if parent != os.path.realpath(sys.executable):  # it died before the kernel was told
            os.kill(os.getpid(), signal.SIGTERM)


class Stop:
    """Whether a signal asked the program to end.

    The first signal sets the flag; one that comes later again kills the process at once.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._first_s = 0.0
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)

    def install(self) -> None:
        """Take over the signals; call it from the main thread, before anything heavy is loaded."""
        end_with_parent()
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP: keep that
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number, self._first_s = number, time.monotonic()
        elif time.monotonic() - self._first_s > SAME_SIGNAL_S:
            self.die()

    def check(self) -> None:
        """Raise Stopped when a signal came."""
        if self.signal_number is not None:
            raise Stopped

    def wait_readable(self, stream: IO[bytes]) -> None:
        """Block until `stream` has data or ended; raise Stopped when a signal comes first."""
        select.select([stream.fileno(), self._wake_read], [], [])
        self.check()

    def die(self) -> None:
        """End the process by the signal that came, so that the parent sees the true cause."""
        if self.signal_number is not None:
            signal.signal(self.signal_number, signal.SIG_DFL)
            os.kill(os.getpid(), self.signal_number)
