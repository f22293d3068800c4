"""Raw outputs -> answers: classify, detect (decoding and NMS), raw."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgeapp.model import Card
from edgeapp.postprocess.classify import make_classify
from edgeapp.postprocess.detect import make_detect
from edgeapp.records import Letterbox, Result, Tensors, TensorSpec

Postprocess = Callable[[Tensors, Sequence[tuple[int, Letterbox, Result]]], None]
"""(outputs of a batch, place in the batch, letterbox and result to fill in of its pictures)."""


def make_postprocess(card: Card, outputs: Sequence[TensorSpec]) -> tuple[Postprocess, list[str]]:
    """The function that fills in results for the card's task.

    Returns:
        postprocess: fills `detections`, `classes` or `tensors` of a Result.
        guesses: what had to be guessed about the outputs, "head=yolov8".

    Raises:
        ConfigurationError: the outputs do not fit the task.
    """
    if card.task == "classify":
        return make_classify(card, outputs)
    if card.task == "detect":
        return make_detect(card, outputs)
    return raw, []


def raw(outputs: Tensors, shown: Sequence[tuple[int, Letterbox, Result]]) -> None:
    """Give a copy of every output tensor as it is, cut to one frame (the batch axis stays, length 1)."""
    for place, _, result in shown:
        result.tensors = {name: array[place : place + 1].copy() for name, array in outputs.items()}
