"""Common JPEGs straight to pixels, by libjpeg-turbo in one call.

Pillow gives the same bits, but asks for the interpreter's lock a dozen times for a picture and holds it while it clears
the memory for the pixels: sixteen threads that decode for a GPU then wait for each other (tests/gpu/results.md).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image

START = b"\xff\xd8\xff"
"""How a JPEG begins."""

REDUCTIONS = (8, 4, 2)
"""By how much the decoder can shrink a picture; it then leaves the finer frequencies out."""

APP1, START_OF_SCAN = 0xE1, 0xDA
WITHOUT_LENGTH = (0x01, *range(0xD0, 0xDA), 0xFF)
"""Markers, ITU T.81."""

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


def _upright(data: bytes) -> bool:
    """Whether the orientation is told by Exif, and is the usual one, or by nothing."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in WITHOUT_LENGTH:
        marker, size = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
        if marker == START_OF_SCAN:
            return True
        if marker == APP1:
            segment = data[at + 4 : at + 2 + size]
            if XMP_ORIENTATION in segment or (segment.startswith(EXIF) and _orientation(segment) != 1):
                return False
        at += 2 + size
    return False


def _orientation(segment: bytes) -> int:
    """Of an Exif segment; 0 where it cannot be read."""
    exif = Image.Exif()
    try:
        exif.load(segment)
        return int(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises many kinds on damaged ones, and reads the pixels all the same
        return 0
