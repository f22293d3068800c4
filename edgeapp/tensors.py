"""Checks and conversions of input tensors that every engine needs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeapp.errors import DataError
from edgeapp.records import Tensors, TensorSpec


def check_names(tensors: Tensors, inputs: Sequence[TensorSpec]) -> None:
    """Raise DataError unless `tensors` has exactly the engine's input names."""
    wanted = {spec.name for spec in inputs}
    if set(tensors) != wanted:
        raise DataError(
            f"input tensors {', '.join(sorted(tensors)) or 'none'} do not match the engine's",
            f"it wants {'; '.join(map(str, inputs))}",
            "name the arrays so: numpy.savez(FILE, NAME=ARRAY ...)",
        )


def check_shape(array: NDArray[Any], spec: TensorSpec) -> None:
    """Raise DataError unless the array has the tensor's dimensions, free ones excepted."""
    fits = array.ndim == len(spec.shape) and all(
        wanted in (-1, found) for wanted, found in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise DataError(
            f"input tensor {spec.name}: shape {array.shape} does not fit",
            f"the engine wants ({', '.join('any' if n == -1 else str(n) for n in spec.shape)})",
            "give an array of that shape",
        )


def convert(array: NDArray[Any], spec: TensorSpec, host_dtypes: Mapping[str, np.dtype[Any]]) -> NDArray[Any]:
    """The array in the tensor's dtype, without changing its values beyond rounding.

    Floats are rounded to the tensor's precision and integers narrowed when every value fits; a
    float is never cut to an integer, and bytes are never reinterpreted.

    Args:
        host_dtypes: dtype name -> NumPy dtype that holds it in memory (bfloat16: uint16 bits,
            float8: uint8 bits).

    Returns:
        contiguous array of host_dtypes[spec.dtype].

    Raises:
        DataError: the values cannot be kept.
    """
    wanted = host_dtypes[spec.dtype]
    if spec.dtype == "bfloat16":
        if np.can_cast(array.dtype, np.float32, "same_kind"):
            return bfloat16_bits(np.ascontiguousarray(array, np.float32))
    elif array.dtype == wanted or np.can_cast(array.dtype, wanted, "safe"):
        return np.ascontiguousarray(array, wanted)
    elif array.dtype.kind in "iu" and wanted.kind in "iu":
        low, high = np.iinfo(wanted).min, np.iinfo(wanted).max
        if not array.size or (int(array.min()) >= low and int(array.max()) <= high):
            return np.ascontiguousarray(array, wanted)
    elif array.dtype.kind in "fiu" and wanted.kind == "f":
        with np.errstate(over="ignore"):  # too large for float16 becomes infinity, as on the GPU
            return np.ascontiguousarray(array, wanted)
    raise DataError(
        f"input tensor {spec.name}: {array.dtype} values do not fit into {spec.dtype}",
        "they would be changed",
        f"give an array of {spec.dtype}",
    )


def bfloat16_bits(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16 (to nearest, ties to even); NaN stays NaN."""
    bits = array.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), np.uint32(0x7FC0), rounded).astype(np.uint16)


def bfloat16_values(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 values of bfloat16 bits; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def least_float16(threshold: float) -> np.float16:
    """The smallest float16 that reaches the threshold, so that rounding lets no score slip."""
    least: np.float16 = np.float16(threshold)
    if float(least) < threshold:
        least = np.nextafter(least, np.float16(np.inf))
    return least


def noise(shape: Sequence[int], seed: int = 0) -> NDArray[np.float32]:
    """Numbers from 0 to 1 that look random, the same every time; they repeat after a million."""
    # Python's own generator: that of NumPy would be the only thing for which the bundle carries 2 MB.
    once = np.frombuffer(random.Random(seed).randbytes(1 << 20), np.uint8).astype(np.float32) / 255
    return np.resize(once, tuple(shape))
