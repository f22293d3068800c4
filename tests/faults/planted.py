"""`edgeapp` with a fault planted in it, for negative controls: python planted.py FAULT WORD..."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any

if sys.argv[1] == "wall-clock":  # before anything else takes hold of it
    time.monotonic = time.time

from edgeapp import cli
from edgeapp.commands import serve
from edgeapp.commands.hosting import Hosted
from edgeapp.cpu.engine import CpuEngine
from edgeapp.service import durable, http, intake, recorder, room, source, unsent

kept: list[Any] = []


def keep(size: int) -> None:
    """Memory that is never given back, each page of it touched."""
    kept.append(bytearray(os.urandom(64)) * (size // 64))


def crashes() -> None:
    """A damaged picture ends the process."""
    read = source.read_frame

    def read_frame(frame: Any, *words: Any, **named: Any) -> None:
        read(frame, *words, **named)
        if frame.error is not None:
            os.abort()

    source.read_frame = read_frame


def leaks() -> None:
    """500 kB an inference stay."""
    infer = CpuEngine.infer

    def leaking(self: CpuEngine, tensors: Any) -> Any:
        keep(500_000)
        return infer(self, tensors)

    CpuEngine.infer = leaking  # type: ignore[method-assign]


def leaks_models() -> None:
    """A descriptor stays of every model."""
    opened = Hosted._open

    def leaking(self: Hosted, stack: Any) -> None:
        kept.append(os.dup(0))
        opened(self, stack)

    Hosted._open = leaking  # type: ignore[method-assign]


def buffers() -> None:
    """Results stay in memory until there are 40."""
    append, waiting = durable.Appended.append, bytearray()

    def append_later(self: durable.Appended, data: bytes) -> None:
        if not self.path.endswith("results.jsonl"):
            return append(self, data)
        waiting.extend(data)
        if waiting.count(b"\n") >= 40:
            append(self, bytes(waiting))
            waiting.clear()

    durable.Appended.append = append_later  # type: ignore[method-assign]


def careless() -> None:
    """A result that cannot be written is lost without a word."""
    append = durable.Appended.append

    def append_if_it_can(self: durable.Appended, data: bytes) -> None:
        with suppress(OSError):
            append(self, data)

    durable.Appended.append = append_if_it_can  # type: ignore[method-assign]


def gives_up() -> None:
    """A full disk is an error like any other."""
    room.FULL = ()
    room.Room.wait_for_least = lambda self, leave: None  # type: ignore[method-assign]


def blind() -> None:
    """It relies on notices alone."""
    intake.Intake._look = lambda self, now: None  # type: ignore[method-assign]


def hasty() -> None:
    """Files are taken when they appear."""
    intake.IN_MOVED_TO |= 0x100  # IN_CREATE


def deaf() -> None:
    """Signals are not handled."""
    signal.signal = lambda number, handler: signal.SIG_DFL  # type: ignore[assignment]


def blames() -> None:
    """Errors that pass are the input's fault."""
    recorder.TRANSIENT = ()


def open_doors() -> None:
    """HTTP connections without number or end."""
    http.MOST_CONNECTIONS, http.REQUEST_S = 1_000_000, 1e6


def falls_silent() -> None:
    """A bad model ends the service."""
    watch = serve.Service._watch_reload

    def watching(self: serve.Service) -> None:
        if self._next is not None and self._next.known and self._next.error is not None:
            os._exit(3)
        watch(self)

    serve.Service._watch_reload = watching  # type: ignore[method-assign]


def forgets() -> None:
    """Results count as sent before they are."""
    following, sent = unsent.Unsent.next, unsent.Unsent.sent

    def ticked_off(self: unsent.Unsent, most_lines: int, most_bytes: int) -> list[bytes]:
        lines = following(self, most_lines, most_bytes)
        if lines:
            sent(self, lines)
            self.save(now=True)
        return lines

    unsent.Unsent.next = ticked_off  # type: ignore[method-assign]
    unsent.Unsent.sent = lambda self, lines: None  # type: ignore[method-assign]


FAULTS = {
    "crashes": crashes, "leaks": leaks, "leaks-models": leaks_models, "buffers": buffers, "careless": careless,
    "gives-up": gives_up, "blind": blind, "hasty": hasty, "deaf": deaf, "blames": blames, "open-doors": open_doors,
    "falls-silent": falls_silent, "forgets": forgets, "wall-clock": lambda: None,
}  # fmt: skip

if __name__ == "__main__":
    FAULTS[sys.argv[1]]()
    sys.exit(cli.main(sys.argv[2:]))
