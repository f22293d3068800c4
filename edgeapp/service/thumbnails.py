"""Small pictures of results for the page, with the boxes of what was found."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

    image = result.frame.image
    if image is None or result.frame.picture_wh is None:
        return None
    small = image.reduce(max(1, min(image.width // SIZE_WH[0], image.height // SIZE_WH[1]))).convert("RGB")
    small.thumbnail(SIZE_WH, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(small)
    x, y = (shown / whole for shown, whole in zip(small.size, result.frame.picture_wh, strict=True))
    for found in result.detections[:MOST_BOXES]:
        x0, y0, x1, y1 = found.box_xyxy
        draw.rectangle((min(x0, x1) * x, min(y0, y1) * y, max(x0, x1) * x, max(y0, y1) * y), outline=BOX_COLOR)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
