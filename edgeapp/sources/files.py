"""Frames from files: pictures and tensors, given as paths, folders, globs or a list on a stream."""

from __future__ import annotations

import glob
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from edgeapp import errors, paths
from edgeapp.records import Frame
from edgeapp.sources.arrays import read_tensors
from edgeapp.sources.pictures import Fit, read_picture
from edgeapp.sources.regular import Opened
from edgeapp.stopping import Stop

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
TENSOR_SUFFIXES = (".npy", ".npz")
MOST_LINE_BYTES = 1 << 16


class FileSource:
    """Frames of files, in the order given; what cannot be read becomes a frame with its error.

    Iterating gives frames that know their path only; `read` fills them, in any thread.

    Attributes:
        fit: how large a picture has to be at least; JPEGs may be decoded smaller than they are, but
            not smaller than that. None: all in full. Set it before the first `read`.
        as_pixels: frames get their pixels in place of a picture where that is sooner done.
        left_out: frames that nobody will see; of files none.

    Args:
        uris: paths, folders (their pictures and tensors, sorted), glob patterns, or "-" for a list
            of paths on `stream`, a path a line.
        recursive: look into the folders of folders.
        max_pixels: refuse larger pictures by their header.
        stop: ends the waiting for `stream`.
        stream: where "-" reads from.
        patience_s: how long `stream` may be silent before that is told, seconds.
    """

    def __init__(
        self,
        uris: Sequence[str],
        *,
        recursive: bool = False,
        max_pixels: int,
        stop: Stop,
        stream: IO[bytes] | None = None,
        patience_s: float = 0.0,
    ) -> None:
        self._patience_s = patience_s
        self._max_pixels = max_pixels
        self._stop = stop
        self._stream = stream
        self.fit: Fit | None = None
        self.as_pixels = False
        self.left_out = 0
        self._items: list[str | errors.EdgeappError | None] = []
        self.total: int | None = 0
        for uri in uris:
            if uri == "-":
                self._items.append(None)
                self.total = None
            else:
                self._items.extend(expand(uri, recursive=recursive))
        if self.total is not None:
            self.total = len(self._items)

    @property
    def paths(self) -> list[str]:
        """The files that are known before the first is read."""
        return [item for item in self._items if isinstance(item, str)]

    def __iter__(self) -> Iterator[Frame | None]:
        for item in self._items:
            if item is None:
                for path in self._listed():
                    yield Frame(path) if path is not None else None
            elif isinstance(item, errors.EdgeappError):
                yield Frame(item.what.removeprefix("cannot read "), error=item)
            else:
                yield Frame(item)

    def _listed(self) -> Iterator[str | None]:
        """Paths from the stream, as they come, None where it is silent; a signal ends the waiting."""
        stream = self._stream
        if stream is None:
            raise errors.UsageError("--input - wants a list of paths on standard input", "standard input is closed")
        rest = b""
        while True:
            if not self._stop.wait_readable(stream, self._patience_s):
                yield None
                self._stop.wait_readable(stream)
            chunk = os.read(stream.fileno(), 1 << 16)
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            if not chunk:
                lines, rest = [rest], b""
            for line in lines:
                path = os.fsdecode(line.removesuffix(b"\r"))
                if path:
                    yield path
            if len(rest) > MOST_LINE_BYTES:
                raise errors.DataError(
                    f"the list on standard input has a line of over {MOST_LINE_BYTES} bytes",
                    "a path a line is wanted, not the pictures themselves",
                    "printf '%s\\n' *.jpg | edgeapp ... --input -",
                )
            if not chunk:
                return

    @staticmethod
    def is_tensors(frame: Frame) -> bool:
        """Whether tensors will be read, and no picture."""
        return frame.path.lower().endswith(TENSOR_SUFFIXES)

    def read(self, frame: Frame) -> None:
        """Read and decode a frame; what is wrong with the input becomes its error. Any thread may call it."""
        if frame.error is None:
            read_frame(frame, self._max_pixels, fit=self.fit, as_pixels=self.as_pixels)


def read_frame(
    frame: Frame,
    max_pixels: int,
    *,
    fit: Fit | None = None,
    as_pixels: bool = False,
    opened: Opened | None = None,
) -> None:
    """Fill in a frame's picture or tensors, or the error that kept it from that.

    Args:
        fit: see `read_picture`.
        as_pixels: see `FileSource`.
        opened: may raise OSError or EdgeappError.
    """
    started = time.perf_counter()
    try:
        if FileSource.is_tensors(frame):
            frame.tensors = read_tensors(frame.path, opened)
        else:
            frame.image, frame.picture_wh = read_picture(
                frame.path, max_pixels, fit=fit, as_pixels=as_pixels, opened=opened, data=frame.data
            )
    except errors.EdgeappError as error:
        _forget_locals(error)
        frame.error = error
    except MemoryError as error:
        _forget_locals(error)
        frame.error = errors.SystemRefusedError(
            f"cannot read {paths.printable(frame.path)}", "there is not enough memory"
        )
    frame.data = b""
    frame.decode_ms = (time.perf_counter() - started) * 1e3


def _forget_locals(error: BaseException | None) -> None:
    """Let go of the half-decoded pictures in an error's stack frames, which it would keep until it is collected."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def expand(uri: str, *, recursive: bool) -> list[str | errors.EdgeappError]:
    """The files that a path, a folder or a glob pattern names; an error where it names none."""
    name = paths.printable(uri)
    try:
        if os.path.isdir(uri):
            found = _folder(uri, recursive=recursive)
            if not found:
                return [
                    errors.DataError(
                        f"cannot read {name}: no pictures in this folder",
                        f"looked for {' '.join(PICTURE_SUFFIXES + TENSOR_SUFFIXES)}",
                        "name another folder" if recursive else "add --recursive for the folders inside it",
                    )
                ]
            return [*found]
        if glob.has_magic(uri) and not os.path.lexists(uri):
            matches = sorted(p for p in glob.glob(uri, recursive=recursive) if not os.path.isdir(p))
            if not matches:
                return [errors.NotFoundError(f"cannot read {name}: nothing matches", "", "check the pattern")]
            return [*matches]
    except OSError as error:
        return [paths.refusal(f"cannot read {name}", error)]
    return [uri]


def _folder(root: str, *, recursive: bool) -> list[str]:
    """Pictures and tensors of a folder, sorted by path; hidden files are left out."""
    found: list[str] = []

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if recursive else []
        for name in names:
            if not name.startswith(".") and name.lower().endswith(PICTURE_SUFFIXES + TENSOR_SUFFIXES):
                found.append(os.path.join(folder, name))
    return sorted(found)


def standard_input() -> IO[bytes] | None:
    """Standard input as bytes, unbuffered, so that `select` tells the truth; None when it is closed."""
    return os.fdopen(sys.stdin.fileno(), "rb", buffering=0, closefd=False) if sys.stdin is not None else None


def same_file(one: str | Path, other: str | Path) -> bool:
    """Whether two paths name one file; False when either does not exist."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False
