"""Pictures of JPEG, PNG, BMP and WebP files, by Pillow and by libjpeg-turbo."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from edgeapp import errors, paths
from edgeapp.records import Picture
from edgeapp.sources import jpeg
from edgeapp.sources.regular import MOST_BYTES_AT_ONCE, Opened, open_regular, whole

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

Image.MAX_IMAGE_PIXELS = None  # replaced by our own limit, which names the flag

# Pillow warns of odd EXIF blocks, but the pixels are what matters. Once and for all, as `catch_warnings`
# around a decoding would race with other threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

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


def read_picture(
    path: str,
    max_pixels: int,
    *,
    fit: Fit | None = None,
    as_pixels: bool = False,
    opened: Opened | None = None,
    data: bytes = b"",
) -> tuple[Picture, tuple[int, int]]:
    """Decode a JPEG, PNG, BMP or WebP file.

    Args:
        data: what is in it, where that is there already.
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
    if as_pixels and not data:
        data = whole(path)
    with BytesIO(data) if data else open_regular(path) as file:
        try:
            size = len(data) or os.fstat(file.fileno()).st_size
            if opened is not None:
                opened(file, size)
            if size == 0:  # or a file of /proc, from which anything may come
                raise errors.DataError(what, "the file is empty", fix)
            if as_pixels and data.startswith(jpeg.START) and (found := jpeg.pixels(data, max_pixels, fit)) is not None:
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
