"""JSON Lines: one object a line for every input, in order, written as it comes."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

from edgeapp import paths
from edgeapp.records import Result
from edgeapp.sinks.writing import explained

SCHEMA = 1
"""Raised when a key changes its meaning or goes away; new keys do not raise it."""


class JsonlSink:
    """Writes JSON Lines to a file, or to standard output when `path` is None."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._file: TextIO
        if path is None:
            self._file = sys.stdout
        else:
            with explained(path):
                self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115 closed by __exit__

    def __enter__(self) -> JsonlSink:
        return self

    def __exit__(self, *_: object) -> None:
        with explained(self._path):
            if self._path is None:
                self._flush()
            else:
                self._file.close()

    def write(self, result: Result) -> None:
        with explained(self._path):
            self._file.write(json.dumps(to_json(result), ensure_ascii=False) + "\n")
            self._flush()

    def _flush(self) -> None:
        try:
            self._file.flush()
        except OSError:
            # What could not be written must not be tried again when the interpreter ends.
            if self._path is None:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise


def to_json(result: Result) -> dict[str, Any]:
    """The object of one result.

    Keys: schema, path, then either error (what, why, fix), or size_wh (pixels, pictures only), task,
    detections (class_id, label, score, box_xyxy in pixels of the picture) or classes (class_id, label,
    score) or tensors (name, dtype, shape, min, max, mean), and times_ms.
    """
    frame = result.frame
    line: dict[str, Any] = {"schema": SCHEMA, "path": paths.text(frame.path)}
    if result.error is not None:
        line["error"] = {
            "what": result.error.what,
            "why": result.error.why,
            "fix": result.error.fix,
        }
        return line
    if frame.picture_wh is not None:
        line["size_wh"] = list(frame.picture_wh)
    line["task"] = result.task
    if result.task == "detect":
        line["detections"] = [
            {
                "class_id": d.class_id,
                "label": d.label,
                "score": round(d.score, 4),
                "box_xyxy": [round(n, 2) for n in d.box_xyxy],
            }
            for d in result.detections
        ]
    elif result.task == "classify":
        line["classes"] = [
            {"class_id": c.class_id, "label": c.label, "score": round(c.score, 4)} for c in result.classes
        ]
    else:
        line["tensors"] = [_summary(name, array) for name, array in result.tensors.items()]
    line["times_ms"] = {stage: round(ms, 3) for stage, ms in result.times_ms.items()}
    return line


def _summary(name: str, array: Any) -> dict[str, Any]:
    """What a tensor is, and its range, without its values; numbers that JSON lacks become null."""
    summary: dict[str, Any] = {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
    if array.size:
        values = array.astype("float64")
        for key, value in (("min", values.min()), ("max", values.max()), ("mean", values.mean())):
            summary[key] = float(value) if abs(value) < float("inf") else None
    return summary
