"""Small pictures of results for the page, with the boxes of what was found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeapp.service.recorder import SpoolFrame
from edgeapp.service.state import State

if TYPE_CHECKING:
    from edgeapp.records import Result

SIZE_WH = (240, 180)
QUALITY = 70
MOST_BOXES = 100
BOX_COLOR = (255, 200, 0)


def thumbnail(result: Result) -> bytes | None:
    """A JPEG of at most 240x180 pixels, some kilobytes; None when the result has no picture."""
    import io

    from PIL import Image, ImageDraw

    from edgeapp.pixels import image_of

    if result.frame.image is None or result.frame.picture_wh is None:
        return None
    image = image_of(result.frame.image)
    small = image.reduce(max(1, min(image.width // SIZE_WH[0], image.height // SIZE_WH[1]))).convert("RGB")
    small.thumbnail(SIZE_WH, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(small)
    for found in result.detections[:MOST_BOXES]:
        x0, y0, x1, y1 = found.box_xyxy
        left, right = _within(x0, x1, small.width, result.frame.picture_wh[0])
        top, bottom = _within(y0, y1, small.height, result.frame.picture_wh[1])
        draw.rectangle((left, top, right, bottom), outline=BOX_COLOR, width=2)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _within(a: float, b: float, shown: int, whole: int) -> list[int]:
    """Two coordinates of a picture in the small one, in order; Pillow draws for seconds what reaches far out of it."""
    return sorted(round(min(max(0.0, n / whole * shown), shown - 1.0)) for n in (a, b))


class Thumbnails:
    """A sink that makes small pictures for who looks; then the large ones need not wait for the disk.

    Args:
        state: says whether somebody looks.
    """

    def __init__(self, state: State) -> None:
        self._state = state

    def write(self, result: Result) -> None:
        frame = result.frame
        assert isinstance(frame, SpoolFrame)
        if result.error is None and not frame.probe and self._state.wants_thumbnail():
            frame.thumbnail = thumbnail(result)
        frame.image = None
