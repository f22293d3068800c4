"""Annotated pictures: boxes and labels drawn over the input, readable at any picture size."""

from __future__ import annotations

import colorsys
import os
from functools import lru_cache
from pathlib import Path, PurePath

import simplejpeg
from PIL import Image, ImageDraw, ImageFont

from edgeapp import errors, paths
from edgeapp.pixels import image_of, pixels_of
from edgeapp.records import Result
from edgeapp.sinks.writing import explained, whole_file

JPEG_QUALITY = 90
MOST_SIDE = 65500
"""Pixels that a JPEG may have in a row or a column, by libjpeg."""

GOLDEN_RATIO = 0.618034

Box = tuple[float, float, float, float]
Color = tuple[int, int, int]


def draw(result: Result) -> None:
    """Make `result.drawn` of its picture; any thread may. The input fails where it cannot be made."""
    assert result.frame.image is not None
    picture = image_of(result.frame.image).copy()
    if max(picture.size) > MOST_SIDE:
        result.error = errors.DataError(
            f"cannot draw {paths.printable(result.frame.path)}: {picture.width}x{picture.height} pixels",
            f"a JPEG has at most {MOST_SIDE} a side",
            "leave out the annotated pictures, or give it smaller ones",
        )
        return
    try:
        annotate(picture, result)
        # Unlike Pillow's, this encoder lets other threads have the interpreter.
        result.drawn = simplejpeg.encode_jpeg(pixels_of(picture), JPEG_QUALITY, "RGBX", "420")
    except (OSError, ValueError, ArithmeticError) as error:  # such as a box whose right is left of its left
        result.error = errors.DataError(
            f"cannot draw on {paths.printable(result.frame.path)}",
            str(error),
            "look at what the model gives: --output without the annotated pictures",
        )


class PictureSink:
    """Writes STEM.jpg for every drawn picture into a folder, which is made when it is missing."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._names: dict[str, int] = {}
        with explained(folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self._folder, os.W_OK | os.X_OK):
                raise PermissionError(13, "permission denied")

    def write(self, result: Result) -> None:
        if not result.drawn:
            return
        stem = PurePath(result.frame.path).stem[:200]
        count = self._names[stem] = self._names.get(stem, 0) + 1
        target = self._folder / f"{stem}.jpg" if count == 1 else self._folder / f"{stem}~{count}.jpg"
        named = os.path.exists(target) and os.path.exists(result.frame.path)  # pictures of a stream have no file
        if named and os.path.samefile(target, result.frame.path):
            raise errors.UsageError(
                f"--save would overwrite the input {paths.printable(str(target))}",
                "",
                "name another folder",
            )
        with whole_file(str(target)) as file:
            file.write(result.drawn)


def color_of(class_id: int) -> Color:
    """The colour of a class: the same in every run, and far from its neighbours'."""
    hue = (class_id * GOLDEN_RATIO + 0.33) % 1.0
    r, g, b = colorsys.hsv_to_rgb(hue, 0.85, 0.95 if class_id % 2 else 0.8)
    return round(r * 255), round(g * 255), round(b * 255)


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def annotate(picture: Image.Image, result: Result) -> None:
    """Draw what was found on a picture."""
    draw = ImageDraw.Draw(picture)
    short = min(picture.size)
    font_size = max(11, round(short * 0.028))
    line = max(1, round(short / 250))
    font = _font(font_size)
    if result.task == "detect":
        taken: list[Box] = []
        for found in result.detections:
            draw.rectangle(found.box_xyxy, outline=color_of(found.class_id), width=line)
        for found in result.detections:  # labels last: no box may cross one
            text = f"{found.label} {found.score:.2f}"
            _tag(draw, picture.size, found.box_xyxy, text, color_of(found.class_id), font, taken)
    elif result.task == "classify":
        y = float(line)
        for best in result.classes:
            text = f"{best.label} {best.score:.2f}"
            box = _tag(draw, picture.size, (line, y, line, y), text, color_of(best.class_id), font, [])
            y = box[3] + line


def _tag(
    draw: ImageDraw.ImageDraw,
    size_wh: tuple[int, int],
    box: Box,
    text: str,
    color: Color,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    taken: list[Box],
) -> Box:
    """Write a label on a filled field near a box, inside the picture, off other labels if possible."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    margin = max(2, round((bottom - top) * 0.25))
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    x = min(max(0.0, box[0]), max(0.0, size_wh[0] - width))
    places = (
        box[1] - height,
        box[1],
        box[3],
        box[3] - height,
    )  # above, inside, below, at the bottom
    best: Box | None = None
    for y in places:
        y = min(max(0.0, y), max(0.0, size_wh[1] - height))
        field = (x, y, x + width, y + height)
        if best is None:
            best = field
        if not any(_overlap(field, other) for other in taken):
            best = field
            break
    assert best is not None
    taken.append(best)
    draw.rectangle(best, fill=color)
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    draw.text(
        (best[0] + margin - left, best[1] + margin - top),
        text,
        fill="black" if dark else "white",
        font=font,
    )
    return best


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
