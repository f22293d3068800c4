"""Picture -> network input on the CPU: the reference that every faster way is tested against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeapp import errors
from edgeapp.model import Card
from edgeapp.records import Letterbox

DTYPES = ("float32", "float16", "bfloat16", "uint8")
"""Input dtypes that a picture can be turned into; bfloat16 is made from float32 by the engine."""


class Preprocessor:
    """Turns pictures into network input as a model card says.

    Args:
        card: size, resize, colour order, layout, scale, mean, std.
        dtype: of the input tensor; uint8 gets the pixels as they are.

    Raises:
        ConfigurationError: pictures cannot be turned into that dtype.
    """

    def __init__(self, card: Card, dtype: str) -> None:
        if dtype not in DTYPES:
            raise errors.ConfigurationError(
                f"pictures cannot feed an input tensor of {dtype}",
                f"a picture becomes {', '.join(DTYPES)}",
                "give tensors (.npy, .npz) with --task raw",
            )
        self._card = card
        self._dtype = np.dtype(np.uint8 if dtype == "uint8" else np.float16 if dtype == "float16" else np.float32)
        self._mode = "L" if card.color_order == "GRAY" else "RGB"
        std = np.asarray(card.std, np.float32)
        self._factor = np.float32(card.scale) / std
        self._shift = -np.asarray(card.mean, np.float32) / std

    def __call__(self, image: Image.Image) -> tuple[NDArray[Any], Letterbox]:
        """Make the input of one picture.

        Args:
            image: RGB, any size.

        Returns:
            tensor: (channels, height, width), or (height, width, channels) for NHWC; contiguous.
            letterbox: brings network pixels back to picture pixels.
        """
        if image.mode != self._mode:
            image = image.convert(self._mode)
        fitted, letterbox = fit(image, self._card)
        pixels = np.asarray(fitted)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if self._card.color_order == "BGR":
            pixels = pixels[:, :, ::-1]
        if self._card.layout == "NCHW":
            pixels = pixels.transpose(2, 0, 1)
        if self._dtype == np.uint8:
            return np.ascontiguousarray(pixels), letterbox
        channel_axis = (-1, 1, 1) if self._card.layout == "NCHW" else (1, 1, -1)
        tensor = pixels.astype(np.float32, order="C")
        tensor *= self._factor.reshape(channel_axis)
        tensor += self._shift.reshape(channel_axis)
        return tensor.astype(self._dtype, copy=False), letterbox


def fit(image: Image.Image, card: Card) -> tuple[Image.Image, Letterbox]:
    """Bring a picture to the network's size by letterbox, stretch or centre crop.

    Returns:
        picture of card.size_wh, and how it was laid there.
    """
    size_wh = (card.size_wh[0], card.size_wh[1])
    if card.resize == "letterbox":
        return _letterbox(image, size_wh, card)
    if card.resize == "center_crop":
        return _center_crop(image, size_wh, card)
    fitted = resize(image, size_wh, antialias=card.antialias)
    return fitted, Letterbox((size_wh[0] / image.width, size_wh[1] / image.height), (0.0, 0.0), image.size)


def resize(
    image: Image.Image,
    size_wh: tuple[int, int],
    *,
    antialias: bool,
    box: tuple[float, float, float, float] | None = None,
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


def _letterbox(image: Image.Image, size_wh: tuple[int, int], card: Card) -> tuple[Image.Image, Letterbox]:
    ratio = min(size_wh[0] / image.width, size_wh[1] / image.height)
    inner = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    # Ultralytics rounds the border so (LetterBox in ultralytics/data/augment.py); odd pixels go
    # to the right and to the bottom.
    left, top = (max(0, round((size_wh[i] - inner[i]) / 2 - 0.1)) for i in (0, 1))
    fitted = resize(image, inner, antialias=card.antialias)
    if inner != size_wh:
        grey = card.pad_value if image.mode == "L" else (card.pad_value,) * 3
        canvas = Image.new(image.mode, size_wh, grey)
        canvas.paste(fitted, (left, top))
        fitted = canvas
    scale_xy = (inner[0] / image.width, inner[1] / image.height)
    return fitted, Letterbox(scale_xy, (float(left), float(top)), image.size)


def _center_crop(image: Image.Image, size_wh: tuple[int, int], card: Card) -> tuple[Image.Image, Letterbox]:
    # torchvision: Resize(256) scales the shorter side and cuts the longer one's fraction off,
    # CenterCrop(224) cuts at a whole pixel; 224 / 256 = 0.875. Taking the same part of the picture
    # before scaling gives the same pixels without a huge picture in between.
    wanted = [round(n / card.crop_fraction) for n in size_wh]
    ratio = max(wanted[i] / image.size[i] for i in (0, 1))
    scaled = [max(wanted[i], int(image.size[i] * ratio + 1e-6)) for i in (0, 1)]
    start = [round((scaled[i] - size_wh[i]) / 2) for i in (0, 1)]
    scale = [scaled[i] / image.size[i] for i in (0, 1)]
    x0, y0 = (start[i] / scale[i] for i in (0, 1))
    x1, y1 = (min(float(image.size[i]), (start[i] + size_wh[i]) / scale[i]) for i in (0, 1))
    fitted = resize(image, size_wh, antialias=card.antialias, box=(x0, y0, x1, y1))
    return fitted, Letterbox((scale[0], scale[1]), (float(-start[0]), float(-start[1])), image.size)
