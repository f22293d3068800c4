"""Which inputs are under way, written down before they reach the engine.

Who comes back after a crash knows by it what the engine was at. A file of lines is enough: the few inputs under way are
all that matters, and one write and one fdatasync a group are as cheap as it gets (a database would do more of both).
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from typing import Any

from edgeapp.service.durable import Appended, sync_folder, write_file

MOST_BYTES = 1 << 20
"""Then it is written anew, with what still counts."""


class Ledger:
    """How often each unfinished input was begun.

    Names are those in the watched folder. Any thread may call it.

    Args:
        path: the file; it is made when it is missing, and what is not understood in it is left out.

    Raises:
        OSError: as all that it does; then nothing has changed.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._attempts = _read(path)
        self._file = self._renewed()

    def unfinished(self) -> list[str]:
        """Names that were begun and not ended."""
        with self._lock:
            return list(self._attempts)

    def count(self, name: str) -> int:
        """How often an input was begun."""
        return self._attempts.get(name, 0)

    def begin(self, names: Iterable[str]) -> None:
        """Count an attempt of each; on the disk when it returns."""
        names = list(names)
        with self._lock:
            self._append({"begin": names})
            for name in names:
                self._attempts[name] = self._attempts.get(name, 0) + 1

    def end(self, names: Iterable[str]) -> None:
        """Forget them: they are done, failed or gone, or were given back before the engine saw them."""
        with self._lock:
            names = [name for name in names if name in self._attempts]
            if names:
                self._append({"end": names})
            for name in names:
                del self._attempts[name]

    def _append(self, record: dict[str, Any]) -> None:
        if self._file.size > MOST_BYTES or not self._file.intact:
            renewed = self._renewed()
            self._file.close()
            self._file = renewed
        self._file.append(json.dumps(record).encode() + b"\n")

    def _renewed(self) -> Appended:
        """The file with one line for all that counts."""
        write_file(self._path, json.dumps({"attempts": self._attempts}).encode() + b"\n")
        sync_folder(os.path.dirname(self._path))
        return Appended(self._path)

    def close(self) -> None:
        self._file.close()


def _read(path: str) -> dict[str, int]:
    attempts: dict[str, int] = {}
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return attempts
    for line in lines[:-1]:  # without its newline the last one was not finished
        try:
            record = json.loads(line)
            attempts.update({str(name): int(count) for name, count in record.get("attempts", {}).items()})
            for name in map(str, record.get("begin", ())):
                attempts[name] = attempts.get(name, 0) + 1
            for name in map(str, record.get("end", ())):
                attempts.pop(name, None)
        except (ValueError, TypeError, AttributeError):
            continue
    return attempts
