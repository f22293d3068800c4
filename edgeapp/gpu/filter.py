"""Dense detector output -> boxes on the GPU, so that a few kilobytes cross to the host, and no NMS is left to it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeapp.gpu.kernels import TILE_WH, Kernels
from edgeapp.records import CANDIDATE, CANDIDATES, COUNTS, KEPT, Tensors
from edgeapp.tensors import least_float16

HEADS = ("yolov8", "yolov5", "yolox")
DTYPES = ("float32", "float16")

HEAD = np.dtype([
    ("boxes", np.int32), ("classes", np.int32), ("most", np.int32), ("threshold", np.float32), ("least", np.int32),
])  # fmt: skip
"""Head in edgeapp.cu."""

SUPPRESSION = np.dtype([("most", np.int32), ("keep", np.int32), ("share", np.float64)])
"""Suppression in edgeapp.cu."""

MOST_SUPPRESSED = 1024
"""Candidates of a place that NMS has shared memory for; also in edgeapp.cu."""


class Nms(NamedTuple):
    """NMS class by class.

    Attributes:
        iou_threshold: a box that overlaps a better one by more is left out.
        keep: boxes of a place that stay, at most.
    """

    iou_threshold: float
    keep: int


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
    """Picks the boxes of a detector's head that reach the threshold, and of them those that NMS leaves.

    Args:
        head: yolov8, yolov5 or yolox.
        transposed: a yolov8 head that comes as (batch, n, 4 + classes).
        shape: of the output tensor, (batch, rows, columns), rows and columns known.
        dtype: of the output tensor, float32 or float16.
        threshold: least score, 0 to 1.
        most: candidates that a place of the batch has room for; with NMS at most MOST_SUPPRESSED.
        nms: None leaves it to the host; boxes of YOLOX are relative to their cells, so theirs is.

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
        nms: Nms | None = None,
    ) -> None:
        name, values, self._blocks = plan_filter(head, transposed, shape, dtype, threshold, most)
        self._head = ctypes.create_string_buffer(values.tobytes(), HEAD.itemsize)
        self._most = most
        self._nms = nms
        self._kernels = kernels
        self._function = kernels.function(name)
        if nms is not None:
            assert head != "yolox"
            assert most <= MOST_SUPPRESSED
            self._suppress = kernels.function("suppress")
            self._rules = ctypes.create_string_buffer(suppression(nms, most).tobytes(), SUPPRESSION.itemsize)

    def results_nbytes(self, batch: int) -> int:
        """Of a batch's results, which the host wants."""
        return picked_nbytes(batch, self._most) if self._nms is None else kept_nbytes(batch, self._nms)

    def nbytes(self, batch: int) -> int:
        """What a batch takes on the device: the results, and what becomes them."""
        picked = picked_nbytes(batch, self._most) if self._nms is not None else 0
        return self.results_nbytes(batch) + picked

    def launch(self, tensor_address: int, results_address: int, batch: int, stream: int) -> None:
        """Start it: counts to zero, then the kernels; all can be captured.

        Args:
            tensor_address: device memory of the output tensor.
            results_address: device memory of nbytes(batch).
            stream: handle.
        """
        picked_address = results_address if self._nms is None else results_address + self.results_nbytes(batch)
        self._kernels.zero(picked_address, batch, stream)
        tensor, picked, results = map(ctypes.c_uint64, (tensor_address, picked_address, results_address))
        self._kernels.launch(self._function, (self._blocks, 1, batch), [tensor, picked, self._head], stream)
        if self._nms is not None:
            self._kernels.launch(self._suppress, (1, 1, batch), [picked, results, self._rules], stream)

    def overflown(self, results: NDArray[np.uint8], batch: int) -> bool:
        """Whether some place had more boxes than there was room for."""
        return bool((results[: 4 * batch].view(np.int32) > self._most).any())

    def tensors(self, results: NDArray[np.uint8], batch: int) -> Tensors:
        """The results of a batch that is not overflown, views: COUNTS and, with NMS, KEPT, else CANDIDATES."""
        if self._nms is None:
            counts, candidates = split_picked(results, batch, self._most)
            return {COUNTS: counts, CANDIDATES: candidates}
        _, counts, kept = split_kept(results, batch, self._nms)
        return {COUNTS: counts, KEPT: kept}


def suppression(nms: Nms, most: int) -> NDArray[np.void]:
    """SUPPRESSION of the kernel."""
    return np.array([(most, nms.keep, nms.iou_threshold / (1.0 + nms.iou_threshold))], SUPPRESSION)


def picked_nbytes(batch: int, most: int) -> int:
    """Of what reached the threshold."""
    return batch * (4 + most * CANDIDATE.itemsize)


def split_picked(memory: NDArray[np.uint8], batch: int, most: int) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """How many reached the threshold (batch,), and CANDIDATE (batch, most) in any order; views."""
    candidates = memory[4 * batch : picked_nbytes(batch, most)].view(CANDIDATE)
    return memory[: 4 * batch].view(np.int32), candidates.reshape(batch, most)


def kept_nbytes(batch: int, nms: Nms) -> int:
    """Of what NMS left."""
    return batch * (8 + nms.keep * CANDIDATE.itemsize)


def split_kept(
    memory: NDArray[np.uint8], batch: int, nms: Nms
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[Any]]:
    """How many reached the threshold (batch,), how many of them stay (batch,), CANDIDATE (batch, keep) best first."""
    found, stays = memory[: 8 * batch].view(np.int32).reshape(2, batch)
    kept = memory[8 * batch : kept_nbytes(batch, nms)].view(CANDIDATE)
    return found, stays, kept.reshape(batch, nms.keep)
