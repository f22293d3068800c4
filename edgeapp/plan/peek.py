"""A file of which only a few bytes are read, at the places that matter."""

from __future__ import annotations

import os

VERDICT_BYTES = 64 << 10
"""What a file is must be told from no more than this."""

DETAIL_BYTES = 1 << 20
"""What is inside a model may cost this much: an ONNX graph of about 50,000 parts."""


TOO_FAR = "too large to be looked through"


class UnknownError(ValueError):
    """The bytes are not laid out as they would have to be, or looking on would cost too much."""


class Peek:
    """Reads pieces of a file and counts what it read.

    Args:
        source: the file's descriptor, or all its bytes.
        size: the file's length, bytes.
        limit: no more than this is read, bytes.
    """

    def __init__(self, source: int | bytes, size: int, limit: int = VERDICT_BYTES) -> None:
        self.source = source
        self.size = size
        self.limit = limit
        self._left = limit

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer at the end of the file.

        Raises:
            UnknownError: it lies outside the file, or the limit is reached. OSError: as os.pread.
        """
        if not 0 <= offset <= self.size:
            raise UnknownError(f"{offset} lies outside the file")
        length = max(0, min(length, self.size - offset))
        if length > self._left:
            raise UnknownError(TOO_FAR)
        self._left -= length
        if isinstance(self.source, bytes):
            return self.source[offset : offset + length]
        return os.pread(self.source, length, offset)
