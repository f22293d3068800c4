"""Where a picture goes in the network's input, and what becomes of its pixels: the same on the CPU and on the GPU."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeapp import errors
from edgeapp.model import Card
from edgeapp.records import Letterbox


class Fitting(NamedTuple):
    """How a picture is laid into the network's input; what it leaves free is padding.

    Attributes:
        box: the part of the picture that is taken (x0, y0, x1, y1), pixels.
        left, top: where it goes.
        inner_wh: the size that it gets.
        letterbox: brings network pixels back to picture pixels.
    """

    box: tuple[float, float, float, float]
    left: int
    top: int
    inner_wh: tuple[int, int]
    letterbox: Letterbox


def fitting(width: int, height: int, card: Card) -> Fitting:
    """That of a picture of this size, by letterbox, stretch or centre crop."""
    size_wh = (card.size_wh[0], card.size_wh[1])
    if card.resize == "letterbox":
        return _letterbox((width, height), size_wh)
    if card.resize == "center_crop":
        return _center_crop((width, height), size_wh, card.crop_fraction)
    scale_xy = (size_wh[0] / width, size_wh[1] / height)
    whole = (0.0, 0.0, float(width), float(height))
    return Fitting(whole, 0, 0, size_wh, Letterbox(scale_xy, (0.0, 0.0), (width, height)))


def reduction(image_wh: tuple[int, int], picture_wh: tuple[int, int]) -> int:
    """The n of 1/n at which a picture was decoded: 1, 2, 4 or 8; sizes are rounded up."""
    for n in (1, 2, 4, 8):
        if image_wh == (-(-picture_wh[0] // n), -(-picture_wh[1] // n)):
            return n
    raise ValueError(f"{image_wh} pixels are no part of {picture_wh}")


def reduced_fitting(image_wh: tuple[int, int], picture_wh: tuple[int, int], card: Card) -> Fitting:
    """That of a picture, its box in the pixels of what was decoded of it at 1/n."""
    found = fitting(*picture_wh, card)
    n = reduction(image_wh, picture_wh)
    x0, y0, x1, y1 = found.box
    return found._replace(box=(x0 / n, y0 / n, x1 / n, y1 / n))


def _letterbox(picture_wh: tuple[int, int], size_wh: tuple[int, int]) -> Fitting:
    width, height = picture_wh
    ratio = min(size_wh[0] / width, size_wh[1] / height)
    inner_wh = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    # Ultralytics rounds the border so (LetterBox in ultralytics/data/augment.py); odd pixels go
    # to the right and to the bottom.
    left, top = (max(0, round((size_wh[i] - inner_wh[i]) / 2 - 0.1)) for i in (0, 1))
    scale_xy = (inner_wh[0] / width, inner_wh[1] / height)
    whole = (0.0, 0.0, float(width), float(height))
    return Fitting(whole, left, top, inner_wh, Letterbox(scale_xy, (float(left), float(top)), picture_wh))


def _center_crop(picture_wh: tuple[int, int], size_wh: tuple[int, int], crop_fraction: float) -> Fitting:
    # torchvision: Resize(256) scales the shorter side and cuts the longer one's fraction off,
    # CenterCrop(224) cuts at a whole pixel; 224 / 256 = 0.875. Taking the same part of the picture
    # before scaling gives the same pixels without a huge picture in between.
    wanted = [round(n / crop_fraction) for n in size_wh]
    ratio = max(wanted[i] / picture_wh[i] for i in (0, 1))
    scaled = [max(wanted[i], int(picture_wh[i] * ratio + 1e-6)) for i in (0, 1)]
    start = [round((scaled[i] - size_wh[i]) / 2) for i in (0, 1)]
    scale = [scaled[i] / picture_wh[i] for i in (0, 1)]
    x0, y0 = (start[i] / scale[i] for i in (0, 1))
    x1, y1 = (min(float(picture_wh[i]), (start[i] + size_wh[i]) / scale[i]) for i in (0, 1))
    letterbox = Letterbox((scale[0], scale[1]), (float(-start[0]), float(-start[1])), picture_wh)
    return Fitting((x0, y0, x1, y1), 0, 0, size_wh, letterbox)


def factor_and_shift(card: Card) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(pixel * scale - mean) / std as pixel * factor + shift, a number for each channel of the tensor.

    Raises:
        ConfigurationError: there are not as many numbers as channels.
    """
    channels = 1 if card.color_order == "GRAY" else 3
    for name, values in (("mean", card.mean), ("std", card.std)):
        if len(values) not in (1, channels):
            raise errors.ConfigurationError(
                f"{name} has {len(values)} numbers, and the channels are {card.color_order}",
                "it is subtracted from or divides every channel",
                f"give one number, or one for each channel, as {name}",
            )
    std = np.asarray(card.std, np.float32)
    factor = np.float32(card.scale) / std
    shift = -np.asarray(card.mean, np.float32) / std
    return np.broadcast_to(factor, channels).copy(), np.broadcast_to(shift, channels).copy()
