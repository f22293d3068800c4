"""Class scores -> the k best classes with their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeapp import errors
from edgeapp.labels import label
from edgeapp.model import Card
from edgeapp.records import Classification, Letterbox, Result, Tensors, TensorSpec


def make_classify(card: Card, outputs: Sequence[TensorSpec]) -> tuple[Any, list[str]]:
    """See `make_postprocess`; wants one output tensor (batch, classes), maybe with dimensions of 1 besides."""
    if len(outputs) != 1 or len(outputs[0].shape) < 2 or sum(n != 1 for n in outputs[0].shape[1:]) > 1:
        raise errors.ConfigurationError(
            "task classify wants one output tensor (batch, classes)",
            "the engine has " + "; ".join(map(str, outputs)),
            "use --task raw",
        )
    name = outputs[0].name

    def classify(tensors: Tensors, shown: Sequence[tuple[int, Letterbox, Result]]) -> None:
        array = tensors[name]
        scores = array.reshape(len(array), -1)[[place for place, _, _ in shown]].astype(np.float32)
        for (_, _, result), chosen in zip(shown, top_k(scores, card.top_k, card.activation), strict=True):
            for class_id, score in chosen:
                if score >= card.score_threshold or not result.classes:
                    result.classes.append(Classification(class_id, label(card.labels, class_id), score))

    return classify, []


def top_k(scores: NDArray[np.float32], k: int, activation: str = "") -> list[list[tuple[int, float]]]:
    """The k best classes of each picture, best first.

    Args:
        scores: (pictures, classes) logits or probabilities.
        activation: softmax, none, or "" to apply softmax unless the scores of a picture are
            probabilities already (0..1, sum 1).

    Returns:
        (class id, probability) pairs.
    """
    count = scores.shape[1]
    k = min(k, count)
    if not k:
        return [[] for _ in scores]
    best = np.argpartition(-scores, k - 1, 1)[:, :k]
    best.sort(1)  # of equal scores the first class first
    best = np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), 1, "stable"), 1)
    chosen = np.take_along_axis(scores, best, 1)
    if activation != "none":
        top = scores.max(1, keepdims=True)
        soft = np.exp(chosen - top) / np.exp(scores - top).sum(1, keepdims=True)
        if activation == "":
            sums = scores.sum(1, dtype=np.float64, keepdims=True)
            ready = (scores.min(1, keepdims=True) >= 0) & (np.abs(sums - 1) < 1e-2)
            soft = np.where(ready, chosen, soft)
        chosen = soft
    return [list(zip(ids, values, strict=True)) for ids, values in zip(best.tolist(), chosen.tolist(), strict=True)]
