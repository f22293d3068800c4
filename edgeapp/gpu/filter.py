"""Dense detector output -> candidates on the GPU, so that a few kilobytes cross to the host and not megabytes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeapp.gpu.kernels import TILE_WH, Kernels
from edgeapp.records import CANDIDATE
from edgeapp.tensors import least_float16

HEADS = ("yolov8", "yolov5", "yolox")
DTYPES = ("float32", "float16")

HEAD = np.dtype([
    ("boxes", np.int32), ("classes", np.int32), ("most", np.int32), ("threshold", np.float32), ("least", np.int32),
])  # fmt: skip
"""Head in edgeapp.cu."""


def plan_filter(
    head: str, transposed: bool, shape: Sequence[int], dtype: str, threshold: float, most: int
) -> tuple[str, NDArray[np.void], int]:
    """Which kernel filters a head, its HEAD, and the blocks that one place of a batch takes; see `Filter`."""
    assert head in HEADS
    assert dtype in DTYPES
    if head == "yolov8" and not transposed:
        kind, numbers, block_boxes = "columns", 4, TILE_WH[0]
        rows, boxes = shape[-2:]
    else:
        # A warp takes 4 boxes, or looks at the objectness of 32.
        kind, numbers, warp_boxes = ("rows", 4, 4) if head == "yolov8" else ("objectness", 5, 32)
        block_boxes = TILE_WH[1] * warp_boxes
        boxes, rows = shape[-2:]
    assert boxes > 0
    assert rows > numbers
    least = int(least_float16(threshold).view(np.int16))
    values = np.array([(boxes, rows - numbers, most, threshold, least)], HEAD)
    return f"filter_{kind}_{dtype}", values, -(-boxes // block_boxes)


class Filter:
    """Picks the boxes of a detector's head that reach the threshold.

    Args:
        head: yolov8, yolov5 or yolox.
        transposed: a yolov8 head that comes as (batch, n, 4 + classes).
        shape: of the output tensor, (batch, rows, columns), rows and columns known.
        dtype: of the output tensor, float32 or float16.
        threshold: least score, 0 to 1.
        most: candidates that a place of the batch has room for.

    Raises:
        GpuLostError: the CUDA context is broken.
    """

    def __init__(
        self,
        head: str,
        transposed: bool,
        shape: Sequence[int],
        dtype: str,
        threshold: float,
        most: int,
        kernels: Kernels,
    ) -> None:
        name, values, self._blocks = plan_filter(head, transposed, shape, dtype, threshold, most)
        self._head = ctypes.create_string_buffer(values.tobytes(), HEAD.itemsize)
        self._most = most
        self._kernels = kernels
        self._function = kernels.function(name)

    def nbytes(self, batch: int) -> int:
        """What the results of a batch take, on the device and on the host."""
        return results_nbytes(batch, self._most)

    def launch(self, tensor_address: int, results_address: int, batch: int, stream: int) -> None:
        """Start it: counts to zero, then the kernel; both can be captured.

        Args:
            tensor_address: device memory of the output tensor.
            results_address: device memory of nbytes(batch).
            stream: handle.
        """
        self._kernels.zero(results_address, batch, stream)
        arguments = [ctypes.c_uint64(tensor_address), ctypes.c_uint64(results_address), self._head]
        self._kernels.launch(self._function, (self._blocks, 1, batch), arguments, stream)

    def overflown(self, results: NDArray[np.uint8], batch: int) -> bool:
        """Whether some place had more boxes than there was room for."""
        return bool((results[: 4 * batch].view(np.int32) > self._most).any())

    def split(self, results: NDArray[np.uint8], batch: int) -> tuple[NDArray[np.int32], NDArray[Any]]:
        """The results as counts (batch,) and CANDIDATE (batch, most), views; for postprocess.detect.decode_filtered."""
        return split_results(results, batch, self._most)


def results_nbytes(batch: int, most: int) -> int:
    return batch * (4 + most * CANDIDATE.itemsize)


def split_results(results: NDArray[np.uint8], batch: int, most: int) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """See Filter.split."""
    candidates = results[4 * batch : results_nbytes(batch, most)].view(CANDIDATE)
    return results[: 4 * batch].view(np.int32), candidates.reshape(batch, most)
