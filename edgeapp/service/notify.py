"""What systemd is told: the protocol of sd_notify(3) over a datagram socket, and silence where nobody listens."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, MutableMapping

from edgeapp import paths

MOST_STATUS = 200
"""Characters of STATUS=; systemd takes datagrams of up to 4096 bytes."""

STATUS_EVERY_S = 1.0
FEEDS_PER_TIMEOUT = 4
"""Signs of life within the time after which systemd gives up; sd_watchdog_enabled(3) advises two."""

NUMBERS = re.compile(r"\d+")


class Notifier:
    """Tells systemd how the service is; never raises, never waits, and says nothing outside of systemd.

    NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are taken out of the environment, so that no child speaks in our name.
    A message that must arrive (ready, reloading, stopping ...) and finds systemd's queue full is kept, and goes ahead
    of the next one; a later one of its kind replaces it. Any thread may call. Leaving it as a context manager closes
    the socket.

    Args:
        environment: where the variables are; that of the process by default.
        clock: seconds that never jump.

    Attributes:
        watchdog_s: systemd ends the process when it hears no `watchdog` for so long; None when it does not watch.
    """

    def __init__(
        self, environment: MutableMapping[str, str] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        environment = os.environ if environment is None else environment
        place = environment.pop("NOTIFY_SOCKET", "")
        timeout_us, owner = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[str, bytes] = {}
        self._socket: socket.socket | None = None
        self._address = _address(place)
        if self._address is not None:
            try:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            except OSError:  # no descriptor is left
                self._address = None
        self.watchdog_s = _watchdog_s(timeout_us, owner) if self.listening else None
        self._fed_s = self._told_s = float("-inf")
        self._told, self._told_kind = "", ""

    def __enter__(self) -> Notifier:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = None

    @property
    def listening(self) -> bool:
        """Whether there is somebody to tell."""
        return self._socket is not None

    def ready(self, status: str) -> None:
        """The start, or a reload, is over: everything works."""
        self._tell("READY=1", f"STATUS={_line(status)}", keep=True)

    def status(self, text: str) -> None:
        """What `systemctl status` shows; call it as often as you like.

        Of texts that differ in their numbers alone one a second is sent, of others every one.
        """
        now = self._clock()
        kind = NUMBERS.sub("", text)
        if text == self._told or (kind == self._told_kind and now - self._told_s < STATUS_EVERY_S):
            return
        self._told, self._told_kind, self._told_s = text, kind, now
        if not self._tell(f"STATUS={_line(text)}"):
            self._told = ""  # the same text is worth another try

    def watchdog(self) -> None:
        """The work has moved; sent only as often as it is needed, so it may be called for every input."""
        now = self._clock()
        if self.watchdog_s is None or now - self._fed_s < self.watchdog_s / FEEDS_PER_TIMEOUT:
            return
        if self._tell("WATCHDOG=1"):
            self._fed_s = now

    def reloading(self) -> None:
        """A reload begins; `ready` ends it. From systemd 253 on (Type=notify-reload) the time must be with it."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now_us}", keep=True)

    def extend_timeout(self, seconds: float) -> None:
        """Starting, stopping or working takes longer: wait this long from now on."""
        self._tell(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}", keep=True)

    def stopping(self, status: str = "") -> None:
        """The end begins."""
        self._tell("STOPPING=1", *([f"STATUS={_line(status)}"] if status else []), keep=True)

    def ending(self, exit_status: int, error_number: int = 0) -> None:
        """The exit status to come (systemd 254 and newer record it), and the errno behind it."""
        self._tell(f"EXIT_STATUS={exit_status}", *([f"ERRNO={error_number}"] if error_number else []), keep=True)

    def _tell(self, *lines: str, keep: bool = False) -> bool:
        """Send a message after those that wait; whether it went out.

        Args:
            keep: have it wait when it does not go out now.
        """
        data = "\n".join(lines).encode()
        with self._lock:
            if self._socket is None:
                return False
            for kind, earlier in list(self._waiting.items()):
                if not self._sent(earlier):
                    break
                del self._waiting[kind]
            sent = not self._waiting and self._sent(data)
            if keep and not sent:
                kind = lines[0].partition("=")[0]
                self._waiting.pop(kind, None)  # so that the new one goes to the end
                self._waiting[kind] = data
            return sent

    def _sent(self, data: bytes) -> bool:
        assert self._socket is not None
        assert self._address is not None
        try:
            self._socket.sendto(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._address)
        except (OSError, ValueError):  # ValueError: a NUL in the path
            return False
        return True


def _address(name: str) -> bytes | None:
    """The address of NOTIFY_SOCKET, a path or (with @) an abstract one; None for others, as vsock's of virtual ones."""
    try:
        raw = os.fsencode(name)
    except UnicodeEncodeError:
        return None
    if raw.startswith(b"@"):
        return b"\0" + raw[1:]
    return raw if raw.startswith(b"/") else None


def _watchdog_s(timeout_us: str, owner: str) -> float | None:
    """Seconds of WATCHDOG_USEC, if they are meant for this process.

    WATCHDOG_PID is compared, for a variable that a wrapper passed on is not for us. The launcher of the one file
    executes the program in its own place, so the process is the one that systemd started.
    """
    if not (timeout_us.isascii() and timeout_us.isdigit()) or int(timeout_us[:18]) == 0:
        return None
    if owner and owner != str(os.getpid()):
        return None
    return int(timeout_us[:18]) / 1e6


def _line(text: str) -> str:
    """One line of valid UTF-8: a newline would begin another variable."""
    text = paths.printable(text)
    return text if len(text) <= MOST_STATUS else text[: MOST_STATUS - 1] + "…"
