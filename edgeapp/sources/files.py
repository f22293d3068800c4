"""Frames from files: pictures and tensors, given as paths, folders, globs or a list on a stream."""

from __future__ import annotations

import errno
import glob
import os
import stat
import sys
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    ExifTags,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from edgeapp import errors, literals, paths
from edgeapp.records import Frame, Picture, Tensors, nbytes
from edgeapp.sources import jpeg
from edgeapp.stopping import Stop

PICTURE_FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        BmpImagePlugin.BmpImageFile,
        WebPImagePlugin.WebPImageFile,
    )
)
"""Pillow decoders that may see a byte of an input; each more is one more attack surface."""

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
TENSOR_SUFFIXES = (".npy", ".npz")
MOST_TENSOR_BYTES = 2 << 30
MOST_LINE_BYTES = 1 << 16
MOST_BYTES_AT_ONCE = 16 << 20

Image.MAX_IMAGE_PIXELS = None  # replaced by our own limit, which names the flag

# Pillow warns of odd EXIF blocks, but the pixels are what matters. Once and for all, as `catch_warnings`
# around a decoding would race with other threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

Opened = Callable[[BinaryIO, int], None]
"""Is given a file before anything else is read of it, and its size in bytes; leaves it at its beginning."""

Fit = Callable[[tuple[int, int]], tuple[int, int]]
"""Picture size -> the size that is enough of it, both (width, height) with the orientation applied."""

TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation (Exif 2.32, tag 0x0112)."""

RIGHT_COMES_FIRST, BOTTOM_COMES_FIRST, SIDES_SWAPPED = (2, 3, 7, 8), (3, 4, 6, 7), (5, 6, 7, 8)
"""EXIF orientations by what they do to the right and bottom edge of the stored picture, and to its sides."""


class FileSource:
    """Frames of files, in the order given; what cannot be read becomes a frame with its error.

    Iterating gives frames that know their path only; `read` fills them, in any thread.

    Attributes:
        fit: how large a picture has to be at least; JPEGs may be decoded smaller than they are, but
            not smaller than that. None: all in full. Set it before the first `read`.
        as_pixels: frames get their pixels in place of a picture where that is sooner done.

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
                frame.path, max_pixels, fit=fit, as_pixels=as_pixels, opened=opened
            )
    except errors.EdgeappError as error:
        _forget_locals(error)
        frame.error = error
    except MemoryError as error:
        _forget_locals(error)
        frame.error = errors.SystemRefusedError(
            f"cannot read {paths.printable(frame.path)}", "there is not enough memory"
        )
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


def open_regular(path: str) -> BinaryIO:
    """Open a file for reading, but no FIFO or device, which could block or never end.

    Raises:
        EdgeappError: it cannot be opened or is no regular file.
    """
    return os.fdopen(_descriptor(path)[0], "rb")


def _descriptor(path: str) -> tuple[int, int]:
    """A descriptor of a regular file, and its size, bytes."""
    what = f"cannot read {paths.printable(path)}"
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise errors.DataError(f"{what}: it is a socket", "", "name a picture file") from error
        raise paths.refusal(what, error) from error
    except ValueError as error:  # a NUL in the name
        raise errors.NotFoundError(what, str(error), "check the name") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        kind = next(
            (text for test, text in _KINDS if test(status.st_mode)),
            "no regular file",
        )
        raise errors.DataError(f"{what}: it is {kind}", "", "name a picture file")
    return handle, status.st_size


def _whole(path: str) -> bytes:
    """A file of at most MOST_BYTES_AT_ONCE with few calls, as each gives up the interpreter's lock; b"" of others."""
    handle, size = _descriptor(path)
    try:
        return os.read(handle, size) if size <= MOST_BYTES_AT_ONCE else b""
    except OSError as error:
        raise paths.refusal(f"cannot read {paths.printable(path)}", error) from error
    finally:
        os.close(handle)


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_picture(
    path: str,
    max_pixels: int,
    *,
    fit: Fit | None = None,
    as_pixels: bool = False,
    opened: Opened | None = None,
) -> tuple[Picture, tuple[int, int]]:
    """Decode a JPEG, PNG, BMP or WebP file.

    Args:
        fit: a JPEG may be decoded at half, a quarter or an eighth of its size, not below this.
        as_pixels: give the pixels where that is sooner done.

    Returns:
        picture: 8-bit RGB, EXIF orientation applied. Greyscale and palettes are spread to RGB,
            CMYK is converted, 16 bits are cut to their upper 8, alpha is dropped (the habit of
            torchvision and OpenCV, so what models are trained with).
        picture_wh: its size in the file, orientation applied. Decoded at 1/n, the picture has this
            size / n, rounded up: its last column and row may be parts of a pixel.

    Raises:
        EdgeappError: it cannot be opened, is no such picture, is damaged or larger than
            `max_pixels`.
    """
    what = f"cannot read {paths.printable(path)}"
    fix = "give a JPEG, PNG, BMP or WebP picture"
    data = _whole(path) if as_pixels else b""
    with BytesIO(data) if data else open_regular(path) as file:
        try:
            size = len(data) or os.fstat(file.fileno()).st_size
            if opened is not None:
                opened(file, size)
            if size == 0:  # or a file of /proc, from which anything may come
                raise errors.DataError(what, "the file is empty", fix)
            if data.startswith(jpeg.START) and (found := jpeg.pixels(data, max_pixels, fit)) is not None:
                return found
            image = Image.open(file, formats=PICTURE_FORMATS)
            width, height = image.size
            if width * height > max_pixels:
                raise errors.DataError(
                    f"{what}: {width}x{height} pixels are too many",
                    f"the limit is {max_pixels} pixels",
                    "raise it with --max-pixels if there is enough memory",
                )
            if isinstance(image, JpegImagePlugin.JpegImageFile):
                if fit is not None:
                    _reduce(image, fit)
                # By default Pillow asks for the interpreter lock every 64 KiB, and a thread that waits
                # for a busy one gets it 5 ms later.
                image.decodermaxblock = min(size + 1, MOST_BYTES_AT_ONCE)
            image.load()
            orientation = _orientation(image)
            picture_wh = (height, width) if orientation in SIDES_SWAPPED else (width, height)
            return to_rgb(image, orientation), picture_wh
        except UnidentifiedImageError as error:
            raise errors.DataError(what, "it is no picture of a known format", fix) from error
        except OSError as error:
            if error.errno is not None:
                raise paths.refusal(what, error) from error
            raise errors.DataError(what, f"it is damaged: {error}", "copy it again, or leave it out") from error
        except (
            ValueError,
            SyntaxError,
            IndexError,
            KeyError,
            TypeError,
            ArithmeticError,
            EOFError,
        ) as error:
            # Pillow's decoders raise any of these on damaged files.
            raise errors.DataError(what, f"it is damaged: {error}", "copy it again, or leave it out") from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none."""
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in TRANSPOSE else 1


def _reduce(image: JpegImagePlugin.JpegImageFile, fit: Fit) -> None:
    """Have a JPEG decoded smaller, as far as `fit` allows."""
    orientation = _orientation(image)
    swap = orientation in SIDES_SWAPPED
    width, height = image.size
    least = fit((height, width) if swap else (width, height))
    least_width, least_height = least[::-1] if swap else least
    for n in jpeg.REDUCTIONS:
        if width < n * least_width or height < n * least_height:
            continue
        # A part of a pixel at the right or the bottom must not come to lie at the left or the top.
        if (orientation in RIGHT_COMES_FIRST and width % n) or (orientation in BOTTOM_COMES_FIRST and height % n):
            continue
        image.draft(None, (width // n, height // n))  # type: ignore[no-untyped-call, unused-ignore]
        return


def to_rgb(image: Image.Image, orientation: int = 1) -> Image.Image:
    """8-bit RGB of any mode that the allowed decoders give, with an EXIF orientation applied."""
    if orientation in TRANSPOSE:
        image = image.transpose(TRANSPOSE[orientation])
    if image.mode.startswith("I") or image.mode == "F":
        # 16-bit PNG: Pillow's own conversion to 8 bits clips instead of scaling.
        pixels = np.asarray(image)
        image = Image.fromarray((np.clip(pixels, 0, 65535).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def read_tensors(path: str, opened: Opened | None = None) -> Tensors:
    """Arrays of a .npz file by name, or of a .npy file under the name "".

    Raises:
        EdgeappError: it cannot be opened, is damaged, holds objects or claims too many bytes.
    """
    what = f"cannot read {paths.printable(path)}"
    fix = "write it with numpy.save or numpy.savez"
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if opened is not None:
                opened(file, size)
            if size == 0:
                raise ValueError("it is empty")
            if path.lower().endswith(".npy"):
                return {"": _read_array(file, size)}
            tensors: Tensors = {}
            with zipfile.ZipFile(file) as archive:
                total = sum(entry.file_size for entry in archive.infolist())
                if total > MOST_TENSOR_BYTES:
                    raise ValueError(f"it claims {total} bytes, the limit is {MOST_TENSOR_BYTES}")
                for entry in archive.infolist():
                    with archive.open(entry) as member:
                        tensors[entry.filename.removesuffix(".npy")] = _read_array(member, entry.file_size)
            if not tensors:
                raise ValueError("it holds no arrays")
            return tensors
        except OSError as error:
            if error.errno is not None:
                raise paths.refusal(what, error) from error
            raise errors.DataError(what, f"it is damaged: {error}", fix) from error
        except (
            ValueError,
            EOFError,
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
            SyntaxError,
        ) as error:
            raise errors.DataError(what, f"it is no NumPy file: {error}", fix) from error
        except Exception as error:
            if type(error).__module__ in ("zlib", "_lzma", "tokenize"):  # damaged inside
                raise errors.DataError(what, f"it is damaged: {error}", fix) from error
            raise


def _read_array(file: IO[bytes], size: int) -> NDArray[Any]:
    """One array in NumPy's format, checked by its header before memory is taken for it."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format is unknown")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with literals.PARSING:
        shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, not numbers")
    wanted = nbytes(shape, dtype)
    if wanted > size:
        raise ValueError(f"its header claims {wanted} bytes, it has {size}")
    data = file.read(wanted)
    if len(data) < wanted:
        raise ValueError(f"{len(data)} of {wanted} bytes are there")
    array = np.frombuffer(bytearray(data), dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def standard_input() -> IO[bytes] | None:
    """Standard input as bytes, unbuffered, so that `select` tells the truth; None when it is closed."""
    return os.fdopen(sys.stdin.fileno(), "rb", buffering=0, closefd=False) if sys.stdin is not None else None


def same_file(one: str | Path, other: str | Path) -> bool:
    """Whether two paths name one file; False when either does not exist."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False
