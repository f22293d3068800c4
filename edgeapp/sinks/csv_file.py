"""CSV for spreadsheets: one row for every object, class or tensor, and for every failed input."""

from __future__ import annotations

import csv

from edgeapp.records import Result
from edgeapp.sinks.jsonl import to_json
from edgeapp.sinks.writing import explained

COLUMNS = (
    "path", "width", "height", "task", "class_id", "label", "score", "x0", "y0", "x1", "y1",
    "tensor", "dtype", "shape", "min", "max", "mean", "error",
)  # fmt: skip


class CsvSink:
    """Writes one table with a header line; a picture without objects has one row without a class."""

    def __init__(self, path: str) -> None:
        self._path = path
        with explained(path):
            self._file = open(path, "w", encoding="utf-8", newline="")  # noqa: SIM115 closed by __exit__
        self._table = csv.DictWriter(self._file, COLUMNS, restval="")

    def __enter__(self) -> CsvSink:
        with explained(self._path):
            self._table.writeheader()
        return self

    def __exit__(self, *_: object) -> None:
        with explained(self._path):
            self._file.close()

    def write(self, result: Result) -> None:
        line = to_json(result)
        width, height = line.get("size_wh", ("", ""))
        row = {"path": line["path"], "width": width, "height": height, "task": line.get("task", "")}
        rows = []
        for found in [*line.get("detections", ()), *line.get("classes", ())]:
            corners = found.pop("box_xyxy", None)
            rows.append(
                {
                    **row,
                    **found,
                    **(dict(zip(("x0", "y0", "x1", "y1"), corners, strict=True)) if corners else {}),
                }
            )
        for tensor in line.get("tensors", ()):
            name, shape = tensor.pop("name"), "x".join(map(str, tensor.pop("shape")))
            rows.append({**row, **tensor, "tensor": name, "shape": shape})
        if result.error is not None:
            row["error"] = "; ".join(part for part in (result.error.what, result.error.why) if part)
        with explained(self._path):
            self._table.writerows(rows or [row])
            self._file.flush()
