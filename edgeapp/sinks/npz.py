"""Output tensors in NumPy's .npz format, written as they come, so memory stays small."""

from __future__ import annotations

import zipfile
from contextlib import ExitStack
from pathlib import PurePath

import numpy as np

from edgeapp import paths
from edgeapp.records import Result
from edgeapp.sinks.writing import explained, whole_file


class NpzSink:
    """Writes an array for every output tensor (task raw), or the answers as arrays.

    Keys are the tensors' names; with several inputs STEM/NAME, where STEM is the input's file name
    without its ending (a second input of that stem is STEM~2). The tasks detect and classify write
    boxes_xyxy (n, 4), scores (n,) and class_ids (n,).

    The file appears when the run ends; a run that is killed leaves none.
    """

    def __init__(self, path: str, *, many_inputs: bool) -> None:
        self._path = path
        self._many = many_inputs
        self._stems: dict[str, int] = {}
        self._stack = ExitStack()

    def __enter__(self) -> NpzSink:
        file = self._stack.enter_context(whole_file(self._path))
        self._archive = self._stack.enter_context(zipfile.ZipFile(file, "w", zipfile.ZIP_STORED))
        return self

    def __exit__(self, *error: object) -> bool | None:
        return self._stack.__exit__(*error)  # type: ignore[arg-type]

    def write(self, result: Result) -> None:
        if result.error is not None:
            return
        prefix = ""
        if self._many:
            stem = paths.text(PurePath(result.frame.path).stem)
            count = self._stems[stem] = self._stems.get(stem, 0) + 1
            prefix = f"{stem}/" if count == 1 else f"{stem}~{count}/"
        arrays = dict(result.tensors)
        if result.task == "detect":
            arrays["boxes_xyxy"] = np.array([d.box_xyxy for d in result.detections], np.float32).reshape(-1, 4)
        if result.task in ("detect", "classify"):
            found = result.detections or result.classes
            arrays["scores"] = np.array([f.score for f in found], np.float32)
            arrays["class_ids"] = np.array([f.class_id for f in found], np.int64)
        with explained(self._path):
            for name, array in arrays.items():
                with self._archive.open(f"{prefix}{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
