"""What crosses to the GPU for a batch of pictures: network input made on the CPU, or the pixels themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeapp.fitting import Fitting, reduced_fitting
from edgeapp.gpu.infer import HOST_DTYPES
from edgeapp.gpu.preprocess import PICTURE, Preparer, picture_row
from edgeapp.model import Card
from edgeapp.pixels import image_of, pixels_of
from edgeapp.records import Letterbox, Picture, Shape, TensorSpec, nbytes
from edgeapp.tensors import bfloat16_bits

ALIGNMENT = 256
"""What CUDA aligns an allocation to, and what kernels may count on."""

PIXEL_BYTES = 4
"""Pillow keeps RGB with a fourth byte, and threads of a GPU like to read four."""

FULL_HD_BYTES = 1920 * 1080 * PIXEL_BYTES
ROOMY_BYTES, ROOMIER_BYTES = 64 << 20, 272 << 20
"""Up to this size of a batch every place has room for a full HD picture: where JPEGs are decoded at a size near that of
the network, and where they are decoded in full."""

NETWORK_SIZES = 2.25
"""Room of a place in larger batches, in pictures of the network's size: a JPEG is decoded at less than twice the size
that it is resized to, so at 1 to 4 times the pixels."""


MOST_SIZES = 256
"""Sizes of pictures that are kept in mind: those of a folder or of a camera are few."""

WH = tuple[int, int]
"""(width, height), pixels."""


class Preprocess(Protocol):
    """edgeapp.preprocess.Preprocessor."""

    card: Card

    @property
    def shape(self) -> Shape: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def fill(self, image: Image.Image, picture_wh: tuple[int, int], out: NDArray[Any]) -> Letterbox: ...

    def fitted(self, image: Image.Image, place: Fitting) -> Image.Image: ...


class Input(Protocol):
    """The part of a batch's page-locked memory that is copied in."""

    def clear(self) -> None:
        """Make all places unused."""
        ...

    def fill(self, place: int, image: Picture, picture_wh: tuple[int, int]) -> Letterbox:
        """Put a picture into its place; any thread may, each for another place."""
        ...

    def used(self, batch: int, /) -> int:
        """How many bytes have to be copied for a batch of that size."""
        ...


class Intake(Protocol):
    """How pictures become the input tensor.

    Attributes:
        size: bytes of a batch in page-locked memory.
        device_size: of what is copied of it to the device, at most.
        tensor_size: bytes of the input tensor on the device, where it is not what is copied; else 0.
    """

    size: int
    device_size: int
    tensor_size: int

    def input(self, memory: NDArray[np.uint8]) -> Input:
        """An empty batch in page-locked memory of `size` bytes."""
        ...

    def enqueue(self, copied: int, tensor: int, batch: int, stream: int) -> None:
        """Put on a stream what makes the input tensor of what was copied; device addresses."""
        ...


def up(size: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class ReadyInput:
    """The network input of every place, made on the CPU."""

    def __init__(self, array: NDArray[Any], preprocess: Preprocess) -> None:
        self.array = array
        self._preprocess = preprocess

    def clear(self) -> None:
        """Nothing: what an unused place holds is computed along, and nobody looks at it."""

    def fill(self, place: int, image: Picture, picture_wh: tuple[int, int]) -> Letterbox:
        target = self.array[place]
        if target.dtype == self._preprocess.dtype:
            return self._preprocess.fill(image_of(image), picture_wh, target)
        values = np.empty(self._preprocess.shape, self._preprocess.dtype)  # bfloat16, which NumPy has not
        letterbox = self._preprocess.fill(image_of(image), picture_wh, values)
        target[...] = bfloat16_bits(values)
        return letterbox

    def used(self, batch: int) -> int:
        return self.array[:batch].nbytes


class ReadyIntake:
    """Pictures become network input on the CPU.

    Args:
        spec: the engine's input.
        batch: pictures in the largest batch.
    """

    tensor_size = 0

    def __init__(self, preprocess: Preprocess, spec: TensorSpec, batch: int) -> None:
        self._preprocess = preprocess
        self._dtype = HOST_DTYPES[spec.dtype]
        self._shape = (batch, *preprocess.shape)
        self.size = self.device_size = nbytes(self._shape, self._dtype)

    def input(self, memory: NDArray[np.uint8]) -> ReadyInput:
        array = memory.view(self._dtype).reshape(self._shape)
        array[:] = 0
        return ReadyInput(array, self._preprocess)

    def enqueue(self, copied: int, tensor: int, batch: int, stream: int) -> None:
        """Nothing: what is copied is the tensor."""


def place_of(card: Card, image_wh: WH, picture_wh: WH) -> tuple[Fitting, tuple[int, ...]]:
    """Where an image goes that was decoded of a picture, and its `row_of`."""
    where = reduced_fitting(image_wh, picture_wh, card)
    return where, row_of(where, image_wh, card)


def row_of(where: Fitting, image_wh: WH, card: Card) -> tuple[int, ...]:
    """What the kernel has to know of an image beside where its pixels begin."""
    _, *rest = picture_row(
        where,
        image_wh,
        antialias=card.antialias,
        offset=0,
        row_bytes=image_wh[0] * PIXEL_BYTES,
        pixel_bytes=PIXEL_BYTES,
    )
    return tuple(rest)


class PixelInput:
    """The pictures of a batch as they were decoded, one behind the other, and before them where each one is.

    Args:
        placed: `place_of` with the model card.
        mapped: the GPU reads the pictures where they are; only where they are is copied.
    """

    def __init__(
        self,
        memory: NDArray[np.uint8],
        batch: int,
        preprocess: Preprocess,
        placed: Callable[[WH, WH], tuple[Fitting, tuple[int, ...]]],
        reserve: int,
        *,
        mapped: bool,
    ) -> None:
        self._memory = memory
        self._placed = placed
        self._mapped = mapped
        # Page-locked memory has one address for both (unified addressing, all 64-bit machines).
        self._base = memory.ctypes.data if mapped else 0
        self._start = up(batch * PICTURE.itemsize)
        self._rows = memory[: batch * PICTURE.itemsize].view(PICTURE)
        self._preprocess = preprocess
        self._reserve = reserve
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        self._rows[:] = np.zeros((), PICTURE)
        self._end = self._start
        self._left = len(self._rows)

    def fill(self, place: int, image: Picture, picture_wh: tuple[int, int]) -> Letterbox:
        """The pixels where there is room for them, else a picture of the network's size, for which there always is."""
        pixels = pixels_of(image) if isinstance(image, Image.Image) else image
        where, row = self._placed((pixels.shape[1], pixels.shape[0]), picture_wh)
        offset = self._room(pixels.nbytes)
        if offset is None:
            pixels = pixels_of(self._preprocess.fitted(image_of(image), where))
            height, width, _ = pixels.shape
            whole = where._replace(box=(0.0, 0.0, float(width), float(height)))
            row = row_of(whole, (width, height), self._preprocess.card)
            offset = self._room(pixels.nbytes, last=True)
            assert offset is not None
        self._memory[offset : offset + pixels.nbytes].reshape(pixels.shape)[...] = pixels
        self._rows[place] = (self._base + offset, *row)
        return where.letterbox

    def _room(self, size: int, *, last: bool = False) -> int | None:
        """Where so many bytes may go; None when those who follow would have no room left."""
        with self._lock:
            end = self._end + up(size)
            if not last and end + (self._left - 1) * self._reserve > len(self._memory):
                return None
            offset, self._end = self._end, end
            self._left -= 1
            return offset

    def used(self, _: int) -> int:
        return self._start if self._mapped else self._end


class PixelIntake:
    """Pictures cross as bytes and become network input on the GPU.

    Args:
        spec: the engine's input.
        batch: pictures in the largest batch.
        preparer: does it.
        mapped: the GPU reads the pictures where they are, in page-locked memory, which a GPU that shares the memory of
            the processor does as quickly as a copy.
    """

    def __init__(
        self, preprocess: Preprocess, spec: TensorSpec, batch: int, preparer: Preparer, *, mapped: bool
    ) -> None:
        self._preprocess = preprocess
        self._mapped = mapped
        self._preparer = preparer
        self._batch = batch
        self._placed = lru_cache(MOST_SIZES)(partial(place_of, preprocess.card))
        width, height = preprocess.card.size_wh
        self._reserve = up(width * height * PIXEL_BYTES)
        roomy = ROOMY_BYTES if preprocess.card.antialias else ROOMIER_BYTES
        room = max(int(NETWORK_SIZES * batch * self._reserve), min(roomy, batch * FULL_HD_BYTES))
        self._header = up(batch * PICTURE.itemsize)
        self.size = self._header + up(max(room, 4 * self._reserve))
        self.device_size = self._header if mapped else self.size
        self.tensor_size = nbytes((batch, *preprocess.shape), HOST_DTYPES[spec.dtype])

    def input(self, memory: NDArray[np.uint8]) -> PixelInput:
        return PixelInput(memory, self._batch, self._preprocess, self._placed, self._reserve, mapped=self._mapped)

    def enqueue(self, copied: int, tensor: int, batch: int, stream: int) -> None:
        # Offsets of the pictures count from the start of what is copied, or are addresses.
        self._preparer.launch(0 if self._mapped else copied, copied, tensor, batch, stream)
