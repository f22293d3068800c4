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
    """See `make_postprocess`; wants one output tensor (batch, classes)."""
    if len(outputs) != 1 or len(outputs[0].shape) < 2:
        raise errors.ConfigurationError(
            "task classify wants one output tensor (batch, classes)",
            "the engine has " + "; ".join(map(str, outputs)),
            "use --task raw",
        )
    name = outputs[0].name

    def classify(tensors: Tensors, place: int, _letterbox: Letterbox, result: Result) -> None:
        scores = tensors[name][place].reshape(-1).astype(np.float32)
        for class_id, score in top_k(scores, card.top_k, card.activation):
            if score >= card.score_threshold or not result.classes:
                result.classes.append(Classification(class_id, label(card.labels, class_id), score))

    return classify, []


def top_k(scores: NDArray[np.float32], k: int, activation: str = "") -> list[tuple[int, float]]:
    """The k best classes, best first.

    Args:
        scores: (classes,) logits or probabilities.
        activation: softmax, none, or "" to apply softmax unless the scores are probabilities
            already (0..1, sum 1).

    Returns:
        (class id, probability) pairs.
    """
    if activation == "":
        is_probability = bool(scores.size and scores.min() >= 0 and abs(float(scores.sum()) - 1) < 1e-2)
        activation = "none" if is_probability else "softmax"
    k = min(k, scores.size)
    best = np.argpartition(-scores, k - 1)[:k] if k else np.empty(0, np.int64)
    best = best[np.argsort(-scores[best], kind="stable")]
    chosen = scores[best]
    if activation == "softmax" and scores.size:
        top = scores.max()
        chosen = np.exp(chosen - top) / np.exp(scores - top).sum()
    return list(zip(best.tolist(), chosen.tolist(), strict=True))
