"""Picture -> network input on the CPU: the reference that every faster way is tested against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeapp import errors
from edgeapp.fitting import Fitting, factor_and_shift, fitting, reduced_fitting
from edgeapp.model import Card
from edgeapp.pixels import pixels_of
from edgeapp.records import Letterbox

DTYPES = ("float32", "float16", "bfloat16", "uint8")
"""Input dtypes that a picture can be turned into; bfloat16 is made from float32 by the engine."""


class Preprocessor:
    """Turns pictures into network input as a model card says.

    Args:
        card: size, resize, colour order, layout, scale, mean, std.
        dtype: of the input tensor; uint8 gets the pixels as they are.

    Attributes:
        shape: of one picture's input, (channels, height, width), or (height, width, channels) for NHWC.
        dtype: of that input.
        card: as given.

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
        self.card = card
        self.dtype: np.dtype[Any] = np.dtype(
            np.uint8 if dtype == "uint8" else np.float16 if dtype == "float16" else np.float32
        )
        grey = card.color_order == "GRAY"
        self._mode = "L" if grey else "RGB"
        self._channels = (0,) if grey else (2, 1, 0) if card.color_order == "BGR" else (0, 1, 2)
        hw, count = card.size_wh[::-1], len(self._channels)
        self.shape: tuple[int, ...] = (count, *hw) if card.layout == "NCHW" else (*hw, count)
        self._factors, self._shifts = factor_and_shift(card)
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
        if not self.card.antialias:
            return picture_wh
        scale = fitting(*picture_wh, self.card).letterbox.scale_xy
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
        place = reduced_fitting(image.size, picture_wh, self.card)
        fitted = self.fitted(image, place)
        pixels = np.asarray(fitted)[:, :, None] if fitted.mode == "L" else pixels_of(fitted)
        left, top, (width, height) = place.left, place.top, place.inner_wh
        right, bottom = left + width, top + height
        planes = out if self.card.layout == "NCHW" else out.transpose(2, 0, 1)
        for number, channel in enumerate(self._channels):
            plane = planes[number]
            self._convert(pixels[:, :, channel], plane[top:bottom, left:right], number)
            for border in (plane[:top], plane[bottom:], plane[top:bottom, :left], plane[top:bottom, right:]):
                border[...] = self._tables[number, self.card.pad_value]
        return place.letterbox

    def fitted(self, image: Image.Image, place: Fitting) -> Image.Image:
        """The picture in the size and the mode that it gets in the network's input."""
        if image.mode != self._mode:
            image = image.convert(self._mode)
        return resize(image, place.inner_wh, antialias=self.card.antialias, box=place.box)

    def _convert(self, pixels: NDArray[np.uint8], out: NDArray[Any], channel: int) -> None:
        """Pixels (height, width) of one channel to numbers."""
        if self.dtype == np.uint8:
            out[...] = pixels
        elif self.dtype == np.float16:
            out[...] = self._tables[channel].take(pixels)  # NumPy's float16 arithmetic is five times slower
        else:
            np.multiply(pixels, self._factors[channel], out=out)
            if self._shifts[channel]:
                out += self._shifts[channel]


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
