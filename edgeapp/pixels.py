"""Pictures as arrays and back; a Pillow picture's own memory without a copy."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeapp.records import Picture

ONE_BLOCK_BYTES = 1 << 30
"""Pillow keeps pictures in blocks of 16 MiB, and gives its memory away only where one block holds all."""

# What the variable PILLOW_BLOCK_SIZE sets, for pictures made from now on. Up to 268 megapixels get one
# block; Pillow takes small blocks by itself where there is no such piece of memory.
Image.core.set_block_size(ONE_BLOCK_BYTES)  # type: ignore[attr-defined]

_address_in = ctypes.pythonapi.PyCapsule_GetPointer
_address_in.argtypes = (ctypes.py_object, ctypes.c_char_p)
_address_in.restype = ctypes.c_void_p


class _ArrowArray(ctypes.Structure):
    """struct ArrowArray of the Arrow C data interface, https://arrow.apache.org/docs/format/CDataInterface.html."""


_ArrowArray._fields_ = (
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    ("dictionary", ctypes.c_void_p),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
)


class _Lent:
    """Pixels that Pillow lends; NumPy keeps this object as the base of the array.

    The capsule stays whole: when the last array is gone its destructor calls Arrow's release, which
    lets go of the picture's memory, even where the picture object is long gone.
    """

    def __init__(self, capsule: object, address: int, shape: tuple[int, int, int]) -> None:
        self._capsule = capsule
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": shape, "data": (address, True)}


def image_of(image: Picture) -> Image.Image:
    """A picture as it is, or one that holds the pixels."""
    return image if isinstance(image, Image.Image) else Image.fromarray(image[:, :, :3])


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of a picture, read-only; in microseconds where Pillow can lend its memory, else a copy.

    Args:
        image: any mode; others than RGB are converted, which copies.

    Returns:
        (height, width, 4) R, G, B and a byte that means nothing; contiguous. It stays valid without
        the picture, and shows what is drawn into the picture later.
    """
    if image.mode != "RGB":
        image = image.convert("RGB")
    shape = (image.height, image.width, 4)
    try:
        _schema, capsule = image.__arrow_c_array__()
    except ValueError:  # in several blocks
        return np.asarray(image.convert("RGBX"))
    array = ctypes.cast(_address_in(capsule, b"arrow_array"), ctypes.POINTER(_ArrowArray)).contents
    bytes_ = array.children[0].contents if array.n_children == 1 else array
    if bytes_.length != shape[0] * shape[1] * 4 or bytes_.n_buffers != 2 or bytes_.offset or array.offset:
        return np.asarray(image.convert("RGBX"))
    lent: Any = _Lent(capsule, bytes_.buffers[1], shape)
    return np.asarray(lent)
