"""The nouns of the program: dataclasses over NumPy arrays, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

    from edgeapp.errors import EdgeappError

Tensors = dict[str, NDArray[Any]]
"""Tensor name -> array."""

Picture: TypeAlias = "Image.Image | NDArray[np.uint8]"
"""A picture, or its pixels: (height, width, 4), R, G, B and a byte that means nothing."""

Shape = tuple[int, ...]
"""A tensor's shape; -1 stands for a dimension that is known only at run time."""

CANDIDATE = np.dtype([("box", np.int32), ("class_id", np.int32), ("score", np.float32), ("xywh", np.float32, 4)])
"""A box that reached the threshold on the GPU: its number in the head, its best class and the score of that, centre and
size as the head has them."""

COUNTS, CANDIDATES, KEPT = "edgeapp.counts", "edgeapp.candidates", "edgeapp.kept"
"""Names in place of those of output tensors: how many boxes there are of each picture, (batch,), and CANDIDATE (batch,
most): those that reached the threshold, in any order, or those that NMS left of them, best first."""


@dataclass(frozen=True)
class TensorSpec:
    """One I/O tensor of an engine.

    Attributes:
        name: the tensor's name in the plan or ONNX file.
        shape: -1 where a dimension is free.
        dtype: float32, float16, bfloat16, float8, int8, uint8, int32, int64, bool ...
        is_input: True for an input tensor.
        profiles: for an input of an engine with dynamic shapes, (min, opt, max) of every
            optimisation profile; empty elsewhere.
    """

    name: str
    shape: Shape
    dtype: str
    is_input: bool
    profiles: tuple[tuple[Shape, Shape, Shape], ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({', '.join(map(str, self.shape))})"


@dataclass
class Frame:
    """One input: a picture or a set of tensors, or the reason why it could not be read.

    Attributes:
        path: as the user named it.
        data: the bytes of the picture's file, where they came with it; b"" has them read from `path`.
        image: RGB picture, orientation applied, maybe decoded smaller than it is, or its pixels where the source was
            asked for these; None for tensors.
        picture_wh: width and height of the picture as it is in the file, orientation applied, pixels;
            None for tensors.
        tensors: input tensors as they go to the engine; None for pictures.
        error: set when the input could not be read; then nothing else is.
        decode_ms: time spent on reading and decoding, milliseconds.
    """

    path: str
    image: Picture | None = None
    picture_wh: tuple[int, int] | None = None
    tensors: Tensors | None = None
    error: EdgeappError | None = None
    decode_ms: float = 0.0
    data: bytes = b""


@dataclass(frozen=True)
class Letterbox:
    """How a picture was laid into the network input, to bring boxes back.

    `input_xy = picture_xy * scale_xy + offset_xy`, all in pixels.
    """

    scale_xy: tuple[float, float]
    offset_xy: tuple[float, float]
    picture_wh: tuple[int, int]


class Detection(NamedTuple):
    """One object: box (x0, y0, x1, y1) in pixels of the picture, origin top left; score 0..1."""

    class_id: int
    label: str
    score: float
    box_xyxy: tuple[float, float, float, float]


class Classification(NamedTuple):
    """One of the best classes of a picture; score is a probability, 0..1."""

    class_id: int
    label: str
    score: float


@dataclass
class Result:
    """What came out for one frame.

    Attributes:
        task: classify, detect or raw.
        detections, classes, tensors: the one that belongs to the task is filled.
        drawn: the picture with what was found drawn on it, a JPEG; b"" where nobody wants it.
        times_ms: milliseconds of decode, preprocess, infer, postprocess. A batch's time is
            divided by its number of frames.
        error: why this input has no answer.
    """

    frame: Frame
    task: str
    detections: list[Detection] = field(default_factory=list)
    classes: list[Classification] = field(default_factory=list)
    tensors: Tensors = field(default_factory=dict)
    drawn: bytes = b""
    times_ms: dict[str, float] = field(default_factory=dict)
    error: EdgeappError | None = None


def nbytes(shape: Shape, dtype: np.dtype[Any]) -> int:
    """Bytes of an array of this shape and dtype."""
    size = dtype.itemsize
    for n in shape:
        size *= n
    return size
