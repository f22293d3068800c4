"""Pictures -> network input on the GPU: the twin of edgeapp/preprocess.py, within one grey level of it."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from edgeapp import errors
from edgeapp.fitting import Fitting, factor_and_shift
from edgeapp.gpu.kernels import TILE_WH, Kernels
from edgeapp.model import Card

DTYPES = ("float32", "float16", "bfloat16", "uint8")
"""Input dtypes that a picture can be turned into, in the order of edgeapp.cu."""

PICTURE = np.dtype([
    ("offset", np.uint64),
    ("start_x", np.int64), ("step_x", np.int64), ("start_y", np.int64), ("step_y", np.int64),
    ("row_bytes", np.uint32), ("pixel_bytes", np.int32), ("width", np.int32), ("height", np.int32),
    ("left", np.int32), ("top", np.int32), ("inner_width", np.int32), ("inner_height", np.int32),
    ("fraction", np.int32), ("unused", np.int32),
])  # fmt: skip
"""Picture in edgeapp.cu: where the pixels of one place of a batch are and where they go; zeros for an unused place."""

NETWORK = np.dtype([
    ("width", np.int32), ("height", np.int32), ("nhwc", np.int32), ("gray", np.int32), ("bgr", np.int32),
    ("dtype", np.int32), ("pad", np.int32), ("factor", np.float32, 3), ("shift", np.float32, 3),
])  # fmt: skip
"""Network in edgeapp.cu: the same for all pictures."""

MOST_SIDE = (1 << 31) - 1


def picture_row(
    place: Fitting, image_wh: tuple[int, int], *, antialias: bool, offset: int, row_bytes: int, pixel_bytes: int
) -> tuple[int, ...]:
    """What the kernel has to know of a picture, for an array of PICTURE.

    Args:
        place: where it goes; its box in pixels of the image.
        image_wh: size of the image in the pixel buffer, pixels.
        antialias: the kernel is the antialiasing one.
        offset: of its first pixel in the pixel buffer, bytes.
        row_bytes: from one row to the next.
        pixel_bytes: 3 for RGB; 4 for RGB and a byte that does not matter, with offset and row_bytes multiples of 4.
    """
    assert pixel_bytes == 3 or (pixel_bytes == 4 and offset % 4 == 0 and row_bytes % 4 == 0)
    assert 0 < min(image_wh) <= max(image_wh) <= MOST_SIDE
    # As many as leave room for one and a half times the picture: never less exact than Pillow's double.
    fraction = 62 - max(image_wh).bit_length()
    starts_steps: list[int] = []
    for i in (0, 1):
        # Pillow takes the box as float32 when it antialiases.
        start, end = (float(np.float32(place.box[k])) if antialias else place.box[k] for k in (i, i + 2))
        extent = float(np.float32(end) - np.float32(start)) if antialias else end - start
        step = extent / place.inner_wh[i]
        starts_steps += [round(n * 2.0**fraction) for n in (start + 0.5 * step, step)]
    return offset, *starts_steps, row_bytes, pixel_bytes, *image_wh, place.left, place.top, *place.inner_wh, fraction, 0


def network(card: Card, dtype: str) -> NDArray[np.void]:
    """What the kernel has to know of the network's input, one NETWORK.

    Raises:
        ConfigurationError: pictures cannot be turned into that dtype, or mean or std do not fit the channels.
    """
    if dtype not in DTYPES:
        raise errors.ConfigurationError(
            f"pictures cannot feed an input tensor of {dtype}",
            f"a picture becomes {', '.join(DTYPES)}",
            "give tensors (.npy, .npz) with --task raw",
        )
    factor, shift = factor_and_shift(card)
    values = (
        *card.size_wh,
        card.layout == "NHWC",
        card.color_order == "GRAY",
        card.color_order == "BGR",
        DTYPES.index(dtype),
        card.pad_value,
        np.resize(factor, 3),
        np.resize(shift, 3),
    )
    return np.array([values], NETWORK)


def blocks(size_wh: tuple[int, ...], batch: int) -> tuple[int, int, int]:
    """The grid of a launch: a thread for every pixel of the network's input."""
    return -(-size_wh[0] // TILE_WH[0]), -(-size_wh[1] // TILE_WH[1]), batch


class Preparer:
    """Turns a batch of pictures on the GPU into network input as a model card says, by one launch.

    The sizes of the pictures may change from run to run of a captured graph: they are read on the GPU.

    Args:
        dtype: of the input tensor; uint8 gets the pixels as they are.

    Raises:
        ConfigurationError: see `network`. GpuLostError: the CUDA context is broken.
    """

    def __init__(self, card: Card, dtype: str, kernels: Kernels) -> None:
        self._size_wh = card.size_wh
        self._network = ctypes.create_string_buffer(network(card, dtype).tobytes(), NETWORK.itemsize)
        self._kernels = kernels
        self._function = kernels.function("prepare_antialias" if card.antialias else "prepare_plain")

    def launch(self, pixels_address: int, pictures_address: int, tensor_address: int, batch: int, stream: int) -> None:
        """Start it.

        Args:
            pixels_address: device memory with the pixels of all pictures.
            pictures_address: device memory with `batch` times PICTURE.
            tensor_address: device memory of the input tensor; every element is written, unused places become zeros.
            stream: handle.
        """
        addresses = [ctypes.c_uint64(n) for n in (pixels_address, pictures_address, tensor_address)]
        arguments = [*addresses, self._network]
        self._kernels.launch(self._function, blocks(self._size_wh, batch), arguments, stream)
