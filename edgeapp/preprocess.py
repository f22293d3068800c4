"""Picture -> network input on the CPU: the reference that every faster way is tested against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeapp import errors
from edgeapp.model import Card
from edgeapp.pixels import pixels_of
from edgeapp.records import Letterbox

DTYPES = ("float32", "float16", "bfloat16", "uint8")
"""Input dtypes that a picture can be turned into; bfloat16 is made from float32 by the engine."""

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""


@dataclass(frozen=True)
class Geometry:
    """Which part of a picture goes where in the network input, pixels.

    Attributes:
        box: the part of the picture that is resized.
        inner_wh: the size that it gets.
        corner_xy: where its upper left corner comes to lie; the rest is padding.
        letterbox: brings network pixels back to picture pixels.
    """

    box: Box
    inner_wh: tuple[int, int]
    corner_xy: tuple[int, int]
    letterbox: Letterbox


class Preprocessor:
    """Turns pictures into network input as a model card says.

    Args:
        card: size, resize, colour order, layout, scale, mean, std.
        dtype: of the input tensor; uint8 gets the pixels as they are.

    Attributes:
        shape: of one picture's input, (channels, height, width), or (height, width, channels) for NHWC.
        dtype: of that input.

    Raises:
        ConfigurationError: pictures cannot be turned into that dtype, or mean or std do not fit the channels.
    """

    def __init__(self, card: Card, dtype: str) -> None:
        if dtype not in DTYPES:
            raise errors.ConfigurationError(
                f"pictures cannot feed an input tensor of {dtype}",
                f"a picture becomes {', '.join(DTYPES)}",
                "give tensors (.npy, .npz) with --task raw",
            )
        self._card = card
        self.dtype: np.dtype[Any] = np.dtype(
            np.uint8 if dtype == "uint8" else np.float16 if dtype == "float16" else np.float32
        )
        grey = card.color_order == "GRAY"
        self._mode = "L" if grey else "RGB"
        self._channels = (0,) if grey else (2, 1, 0) if card.color_order == "BGR" else (0, 1, 2)
        hw, count = card.size_wh[::-1], len(self._channels)
        self.shape: tuple[int, ...] = (count, *hw) if card.layout == "NCHW" else (*hw, count)
        for key, values in (("mean", card.mean), ("std", card.std)):
            if len(values) not in (1, count):
                raise errors.ConfigurationError(
                    f"{key} has {len(values)} numbers, the input tensor {count} channel{'s' if count > 1 else ''}",
                    f"the colour order is {card.color_order}",
                    f"give one number, or one for each channel: --{key}",
                )
        std = np.asarray(card.std, np.float32)
        self._factors = np.broadcast_to(np.float32(card.scale) / std, count)
        self._shifts = np.broadcast_to(-np.asarray(card.mean, np.float32) / std, count)
        self._tables = self._all_values()

    def _all_values(self) -> NDArray[Any]:
        """What each of the 256 pixel values becomes in each channel: (channels, 256), of the input's dtype."""
        values = np.tile(np.arange(256, dtype=np.float32), (len(self._channels), 1))
        if self.dtype != np.uint8:
            values *= self._factors[:, None]
            values += self._shifts[:, None]
        return values.astype(self.dtype)

    def wanted_wh(self, picture_wh: tuple[int, int]) -> tuple[int, int]:
        """How large a picture has to be decoded at least: as large as it is resized to.

        Plain bilinear takes few of the picture's pixels and leaves out the rest; a picture that was
        decoded smaller would look smoother than what the model was trained with, so it gets all.
        """
        if not self._card.antialias:
            return picture_wh
        scale = geometry(picture_wh, self._card).letterbox.scale_xy
        return max(1, round(picture_wh[0] * scale[0])), max(1, round(picture_wh[1] * scale[1]))

    def fill(self, image: Image.Image, picture_wh: tuple[int, int], out: NDArray[Any]) -> Letterbox:
        """Make the input of one picture; any thread may call it.

        Args:
            image: RGB, any size; where it was decoded at 1/n, of that part of `picture_wh`.
            picture_wh: the picture's own size, pixels.
            out: filled; of this object's `shape` and `dtype`, such as one place of a batch.

        Returns:
            brings network pixels back to the picture's own pixels.
        """
        if image.mode != self._mode:
            image = image.convert(self._mode)
        plan = geometry(picture_wh, self._card)
        n = reduction(image.size, picture_wh)
        x0, y0, x1, y1 = plan.box
        box = (x0 / n, y0 / n, x1 / n, y1 / n)
        fitted = resize(image, plan.inner_wh, antialias=self._card.antialias, box=box)
        pixels = np.asarray(fitted)[:, :, None] if fitted.mode == "L" else pixels_of(fitted)
        (left, top), (width, height) = plan.corner_xy, plan.inner_wh
        right, bottom = left + width, top + height
        planes = out if self._card.layout == "NCHW" else out.transpose(2, 0, 1)
        for place, channel in enumerate(self._channels):
            plane = planes[place]
            self._convert(pixels[:, :, channel], plane[top:bottom, left:right], place)
            for border in (plane[:top], plane[bottom:], plane[top:bottom, :left], plane[top:bottom, right:]):
                border[...] = self._tables[place, self._card.pad_value]
        return plan.letterbox

    def _convert(self, pixels: NDArray[np.uint8], out: NDArray[Any], place: int) -> None:
        """Pixels (height, width) of one channel to numbers."""
        if self.dtype == np.uint8:
            out[...] = pixels
        elif self.dtype == np.float16:
            out[...] = self._tables[place].take(pixels)  # NumPy's float16 arithmetic is five times slower
        else:
            np.multiply(pixels, self._factors[place], out=out)
            if self._shifts[place]:
                out += self._shifts[place]


def geometry(picture_wh: tuple[int, int], card: Card) -> Geometry:
    """Where a picture goes by letterbox, stretch or centre crop."""
    if card.resize == "letterbox":
        return _letterbox(picture_wh, card)
    if card.resize == "center_crop":
        return _center_crop(picture_wh, card)
    size_wh, (width, height) = card.size_wh, picture_wh
    letterbox = Letterbox((size_wh[0] / width, size_wh[1] / height), (0.0, 0.0), picture_wh)
    return Geometry((0.0, 0.0, float(width), float(height)), size_wh, (0, 0), letterbox)


def reduction(image_wh: tuple[int, int], picture_wh: tuple[int, int]) -> int:
    """The n of 1/n at which a picture was decoded: 1, 2, 4 or 8; sizes are rounded up."""
    for n in (1, 2, 4, 8):
        if image_wh == (-(-picture_wh[0] // n), -(-picture_wh[1] // n)):
            return n
    raise ValueError(f"{image_wh} pixels are no part of {picture_wh}")


def resize(
    image: Image.Image,
    size_wh: tuple[int, int],
    *,
    antialias: bool,
    box: Box | None = None,
) -> Image.Image:
    """Bilinear with half-pixel centres; antialiased as Pillow, or plain as cv2.INTER_LINEAR.

    Args:
        box: the part of the picture to take (x0, y0, x1, y1), pixels; all of it by default.
    """
    x0, y0, x1, y1 = box or (0.0, 0.0, float(image.width), float(image.height))
    if image.size == size_wh and (x0, y0, x1, y1) == (0.0, 0.0, *image.size):
        return image
    if antialias:
        return image.resize(size_wh, Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))
    steps = ((x1 - x0) / size_wh[0], 0, x0, 0, (y1 - y0) / size_wh[1], y0)
    return image.transform(size_wh, Image.Transform.AFFINE, steps, Image.Resampling.BILINEAR)


def _letterbox(picture_wh: tuple[int, int], card: Card) -> Geometry:
    size_wh, (width, height) = card.size_wh, picture_wh
    ratio = min(size_wh[0] / width, size_wh[1] / height)
    inner = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    # Ultralytics rounds the border so (LetterBox in ultralytics/data/augment.py); odd pixels go
    # to the right and to the bottom.
    left, top = (max(0, round((size_wh[i] - inner[i]) / 2 - 0.1)) for i in (0, 1))
    letterbox = Letterbox((inner[0] / width, inner[1] / height), (float(left), float(top)), picture_wh)
    return Geometry((0.0, 0.0, float(width), float(height)), inner, (left, top), letterbox)


def _center_crop(picture_wh: tuple[int, int], card: Card) -> Geometry:
    # torchvision: Resize(256) scales the shorter side and cuts the longer one's fraction off,
    # CenterCrop(224) cuts at a whole pixel; 224 / 256 = 0.875. Taking the same part of the picture
    # before scaling gives the same pixels without a huge picture in between.
    size_wh = card.size_wh
    wanted = [round(n / card.crop_fraction) for n in size_wh]
    ratio = max(wanted[i] / picture_wh[i] for i in (0, 1))
    scaled = [max(wanted[i], int(picture_wh[i] * ratio + 1e-6)) for i in (0, 1)]
    start = [round((scaled[i] - size_wh[i]) / 2) for i in (0, 1)]
    scale = [scaled[i] / picture_wh[i] for i in (0, 1)]
    x0, y0 = (start[i] / scale[i] for i in (0, 1))
    x1, y1 = (min(float(picture_wh[i]), (start[i] + size_wh[i]) / scale[i]) for i in (0, 1))
    letterbox = Letterbox((scale[0], scale[1]), (float(-start[0]), float(-start[1])), picture_wh)
    return Geometry((x0, y0, x1, y1), size_wh, (0, 0), letterbox)
