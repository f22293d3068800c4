"""What the launcher of the one file told this process, taken out of the environment (hooks/launcher/launcher.c)."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Launched:
    """How this process came to be; nothing of it from the source tree.

    Attributes:
        file: the one file, as installed; links resolved.
        content: the name of its content, the first half of a SHA-256.
        lock: the file descriptor whose shared lock keeps the unpacked files from being removed, or -1.
        signals: those that are blocked until there are handlers for them.
    """

    file: Path | None = None
    content: str = ""
    lock: int = -1
    signals: tuple[int, ...] = ()


_launched = Launched()


def launched() -> Launched:
    """What take_over() found."""
    return _launched


def take_over() -> None:
    """Read and remove the launcher's variables; child processes inherit neither them nor the lock."""
    global _launched
    file = os.environ.pop("_EDGEAPP_FILE", None)
    lock = os.environ.pop("_EDGEAPP_LOCK", "-1")
    _launched = Launched(
        file=Path(file) if file else None,
        content=os.environ.pop("_EDGEAPP_CONTENT", ""),
        lock=int(lock),
        signals=tuple(map(int, os.environ.pop("_EDGEAPP_SIGNALS", "").split())),
    )
    if _launched.lock >= 0:
        os.set_inheritable(_launched.lock, False)


def let_signals_in() -> None:
    """Unblock them, once there are handlers: one that came in the meantime is delivered now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _launched.signals)
