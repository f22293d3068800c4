"""Inputs by their paths, a line each, from clients of a Unix socket or from standard input; results come back as lines.

A path is accepted when the ledger knows of it: then it gets a result, whatever happens to the process. Its file stays
where it is.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

Reply = Callable[[bytes], None]
Submit = Callable[[str, Reply], bool]

MOST_LISTING = 16
"""Clients at a time."""

MOST_UNANSWERED = 64
"""Of one client; before it gets some of its results, no more of it is read."""

MOST_LINE_BYTES = 1 << 16

ANSWER_S = 60.0
"""A client of a socket that reads none of its results for so long is left."""


class Client:
    """Reads paths and writes results until the reading ends and all is answered.

    Args:
        reading, writing: descriptors.
        submit: takes a path and where its result goes; False when the service is ending.
        leave: has the reading end; called when an answer cannot be written.
    """

    def __init__(self, reading: int, writing: int, submit: Submit, leave: Callable[[], None] = lambda: None) -> None:
        self._reading, self._writing = reading, writing
        self._submit = submit
        self._leave = leave
        self._unanswered = threading.BoundedSemaphore(MOST_UNANSWERED)
        self._answers: SimpleQueue[bytes | None] = SimpleQueue()

    def serve(self) -> None:
        """Until all is over; what it sends from a client that is gone is worked on all the same."""
        writer = threading.Thread(target=self._write, name="answers", daemon=True)
        writer.start()
        try:
            self._read()
        finally:
            for _ in range(MOST_UNANSWERED):
                self._unanswered.acquire()
            self._answers.put(None)
            writer.join()

    def _read(self) -> None:
        rest, data = b"", b"\n"
        while data:
            data = self._received()
            lines = (rest + (data or b"\n")).split(b"\n")  # the last line may lack its newline
            rest = lines.pop()
            if len(rest) > MOST_LINE_BYTES:
                return
            for line in lines:
                if path := os.fsdecode(line.removesuffix(b"\r")):
                    self._unanswered.acquire()
                    if not self._take(path):
                        self._unanswered.release()
                        return

    def _received(self) -> bytes:
        try:
            return os.read(self._reading, 1 << 16)
        except OSError:  # the client is gone
            return b""

    def _take(self, path: str) -> bool:
        if not os.path.isabs(path) or "\0" in path:
            self._answers.put(_refusal(path, "a whole path, from the root, is wanted"))
            return True
        return self._submit(path, self._answers.put)

    def _write(self) -> None:
        gone = False
        while (answer := self._answers.get()) is not None:
            try:
                rest = memoryview(b"" if gone else answer)
                while rest:
                    rest = rest[os.write(self._writing, rest) :]
            except OSError:  # it is gone, or has read nothing for a long time
                gone = True
                with suppress(OSError):
                    self._leave()
            self._unanswered.release()


def serve_socket(client: socket.socket, submit: Submit) -> None:
    """Serve a client of a socket."""
    seconds, microseconds = divmod(round(ANSWER_S * 1e6), 10**6)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, microseconds))
    Client(client.fileno(), client.fileno(), submit, lambda: client.shutdown(socket.SHUT_RDWR)).serve()


def _refusal(path: str, why: str) -> bytes:
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    return (
        json.dumps({"name": shown, "error": {"what": "cannot take this input", "why": why, "fix": ""}}).encode() + b"\n"
    )
