"""Common JPEGs straight to pixels, by libjpeg-turbo in one call.

Pillow gives the same bits, but asks for the interpreter's lock a dozen times for a picture and holds it while it clears
the memory for the pixels: sixteen threads that decode for a GPU then wait for each other (tests/gpu/results.md).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image

START, END = b"\xff\xd8\xff", b"\xff\xd9"
"""How a JPEG begins and ends."""

REDUCTIONS = (8, 4, 2)
"""By how much the decoder can shrink a picture; it then leaves the finer frequencies out."""

APP1, APP2, APP14, START_OF_SCAN = 0xE1, 0xE2, 0xEE, 0xDA
BASELINE, HUFFMAN_TABLES, QUANTIZATION_TABLES = 0xC0, 0xC4, 0xDB
WITHOUT_LENGTH = (0x01, *range(0xD0, 0xDA), 0xFF)
"""Markers, ITU T.81."""

PLAIN = {BASELINE, HUFFMAN_TABLES, QUANTIZATION_TABLES, START_OF_SCAN}
OTHER_FRAMES = {*range(0xC1, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)}
"""What begins a picture that is coded in another way than the plainest."""

EXIF, XMP_ORIENTATION = b"Exif\0\0", b"tiff:Orientation"


def pixels(
    data: bytes, max_pixels: int, fit: Callable[[tuple[int, int]], tuple[int, int]] | None
) -> tuple[NDArray[np.uint8], tuple[int, int]] | None:
    """Decode an upright colour JPEG without faults; None for others, which are Pillow's.

    Args:
        data: the file.
        max_pixels: larger ones are left to Pillow, too.
        fit: it may be decoded at half, a quarter or an eighth of its size, not below this.

    Returns:
        pixels: (height, width, 4), R, G, B and a byte that means nothing.
        picture_wh: the size in the file.
    """
    if not _upright(data):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space != "YCbCr" or width * height > max_pixels:
            return None
        least = fit((width, height)) if fit is not None else (width, height)
        n = next((n for n in REDUCTIONS if width >= n * least[0] and height >= n * least[1]), 1)
        size = -(-height // n), -(-width // n)
        found = simplejpeg.decode_jpeg(data, "RGBX", min_height=size[0], min_width=size[1], min_factor=n)
    except (ValueError, MemoryError):  # also what other decoders would only warn of
        return None
    return (found, (width, height)) if found.shape[:2] == size else None


def baseline_wh(data: bytes, max_pixels: int) -> tuple[int, int] | None:
    """Size of an upright colour JPEG of the plainest kind: baseline, one scan, its tables, its end; None for others."""
    segments = list(_segments(data)) if data.endswith(END) else []
    markers = {marker for marker, _ in segments}
    if not markers >= PLAIN or markers & OTHER_FRAMES or segments[-1][1][:1] != b"\x03" or not _upright(data):
        return None
    for marker, segment in segments:
        other_colours = marker == APP14 and segment.startswith(b"Adobe") and segment[11:12] != b"\x01"
        if other_colours or (marker == APP2 and segment.startswith(b"MPF\0")):  # the latter: several pictures
            return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, MemoryError):
        return None
    return (width, height) if space == "YCbCr" and width * height <= max_pixels else None


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers with what belongs to them, up to the first scan, which comes last; fewer where the file is odd."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in WITHOUT_LENGTH:
        marker, size = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
        yield marker, data[at + 4 : at + 2 + size]
        if marker == START_OF_SCAN:
            return
        at += 2 + size


def _upright(data: bytes) -> bool:
    """Whether the orientation is told by Exif, and is the usual one, or by nothing."""
    for marker, segment in _segments(data):
        if marker == START_OF_SCAN:
            return True
        if marker == APP1 and (XMP_ORIENTATION in segment or (segment.startswith(EXIF) and _orientation(segment) != 1)):
            return False
    return False


def _orientation(segment: bytes) -> int:
    """Of an Exif segment; 0 where it cannot be read."""
    exif = Image.Exif()
    try:
        exif.load(segment)
        return int(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises many kinds on damaged ones, and reads the pixels all the same
        return 0
