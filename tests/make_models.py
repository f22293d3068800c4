"""Write the small ONNX models that the tests run: python make_models.py OUT_DIR

Every model is hand-made, so that what it must answer can be worked out on paper or with NumPy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

OPSET = 13
COLORS = ("red", "green", "blue", "dark", "bright")

# What the detector models answer for every picture, in pixels of their 64x64 input:
# (x0, y0, x1, y1, class, score). The third box overlaps the first (IoU 0.68) and is weaker, so NMS
# drops it; the fourth lies on the first but is of another class; the last is below 0.25.
BOXES = (
    (8.0, 16.0, 28.0, 36.0, 0, 0.9),
    (40.0, 20.0, 60.0, 50.0, 1, 0.8),
    (10.0, 18.0, 30.0, 38.0, 0, 0.7),
    (8.0, 16.0, 28.0, 36.0, 2, 0.6),
    (2.0, 2.0, 6.0, 6.0, 1, 0.1),
)
KEPT = (0, 1, 3)
CLASSES = 3


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    graph = helper.make_graph(
        nodes,
        path.stem,
        inputs,
        outputs,
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    if metadata:
        helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def value(name: str, dtype: int, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def conv(path: Path) -> Path:
    """x (1,3,32,32) -> y (1,8,30,30): convolution and ReLU with seeded weights."""
    rng = np.random.default_rng(0)
    return save(
        path,
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3]),
            helper.make_node("Relu", ["c"], ["y"]),
        ],
        [value("x", T.FLOAT, [1, 3, 32, 32])],
        [value("y", T.FLOAT, [1, 8, 30, 30])],
        {
            "w": rng.normal(0, 0.2, (8, 3, 3, 3)).astype(np.float32),
            "b": rng.normal(0, 0.2, 8).astype(np.float32),
        },
    )


def classifier(path: Path, batch: int | str = "batch") -> Path:
    """images (batch,3,32,32) -> logits (batch,5): which of COLORS the mean colour is, by a factor 10."""
    weights = np.array([[2, -1, -1], [-1, 2, -1], [-1, -1, 2], [-1, -1, -1], [1, 1, 1]], np.float32) * 10
    bias = np.array([0, 0, 0, 5, -20], np.float32)
    return save(
        path,
        [
            helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1),
        ],
        [value("images", T.FLOAT, [batch, 3, 32, 32])],
        [value("logits", T.FLOAT, [batch, 5])],
        {"w": weights, "b": bias},
    )


def hanging(path: Path) -> Path:
    """As `classifier`, for one picture; a white one is never done: a loop has 2**62 rounds for it."""
    scalar = [value("total", T.FLOAT, [])]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["so_far", "one"], ["total"]),
        ],
        "rounds",
        [value("round", T.INT64, []), value("go", T.BOOL, []), value("so_far", T.FLOAT, [])],
        [value("go_on", T.BOOL, []), *scalar],
    )
    return save(
        path,
        [
            helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
            helper.make_node("Greater", ["mean", "white"], ["is_white"]),
            helper.make_node("Where", ["is_white", "many", "none"], ["rounds"]),
            helper.make_node("Loop", ["rounds", "", "zero"], ["waited"], body=body),
            helper.make_node("GlobalAveragePool", ["images"], ["means"]),
            helper.make_node("Flatten", ["means"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w"], ["found"]),
            helper.make_node("Add", ["found", "waited"], ["logits"]),
        ],
        [value("images", T.FLOAT, [1, 3, 32, 32])],
        [value("logits", T.FLOAT, [1, 3])],
        {
            "w": np.eye(3, dtype=np.float32) * 10, "white": np.array(0.999, np.float32),
            "many": np.array(1 << 62, np.int64), "none": np.array(0, np.int64),
            "zero": np.array(0, np.float32), "one": np.array(1, np.float32),
        },
    )  # fmt: skip


def multi_io(path: Path) -> Path:
    """image, scale and shift of two dtypes -> features, winner and bright of three; free batch and size."""
    rng = np.random.default_rng(1)
    return save(
        path,
        [
            helper.make_node("Conv", ["image", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Unsqueeze", ["scale", "axes"], ["s4"]),
            helper.make_node("Mul", ["r", "s4"], ["features"]),
            helper.make_node("ArgMax", ["features"], ["a"], axis=1, keepdims=0),
            helper.make_node("Cast", ["a"], ["a32"], to=T.INT32),
            helper.make_node("Unsqueeze", ["shift", "axes2"], ["s3"]),
            helper.make_node("Add", ["a32", "s3"], ["winner"]),
            helper.make_node("ReduceMean", ["features"], ["m"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Greater", ["m", "limit"], ["bright"]),
        ],
        [
            value("image", T.FLOAT, ["batch", 3, "h", "w_"]),
            value("scale", T.FLOAT, ["batch"]),
            value("shift", T.INT32, ["batch"]),
        ],
        [
            value("features", T.FLOAT, ["batch", 8, "h", "w_"]),
            value("winner", T.INT32, ["batch", "h", "w_"]),
            value("bright", T.BOOL, ["batch"]),
        ],
        {
            "w": rng.normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32),
            "axes": np.array([1, 2, 3], np.int64),
            "axes2": np.array([1, 2], np.int64),
            "limit": np.array(0.1, np.float32),
        },
    )


def nonzero(path: Path) -> Path:
    """x (n) -> where (1,k) int32: indices of the positive values; k is known only after the run."""
    return save(
        path,
        [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("NonZero", ["r"], ["w64"]),
            helper.make_node("Cast", ["w64"], ["where"], to=T.INT32),
        ],
        [value("x", T.FLOAT, ["n"])],
        [value("where", T.INT32, [1, "k"])],
    )


def dtypes(path: Path) -> Path:
    """One tensor of each dtype that TensorRT 8.6 passes: half -> half2, count -> count2, flag -> other."""
    return save(
        path,
        [
            helper.make_node("Add", ["half", "half"], ["half2"]),
            helper.make_node("Add", ["count", "count"], ["count2"]),
            helper.make_node("Not", ["flag"], ["other"]),
            helper.make_node("Cast", ["pixel"], ["pixel_f"], to=T.FLOAT),
            helper.make_node("Sqrt", ["pixel_f"], ["root"]),
        ],
        [
            value("half", T.FLOAT16, [4]),
            value("count", T.INT32, [4]),
            value("flag", T.BOOL, [4]),
            value("pixel", T.UINT8, [1, 1, 2, 2]),
        ],
        [
            value("half2", T.FLOAT16, [4]),
            value("count2", T.INT32, [4]),
            value("other", T.BOOL, [4]),
            value("root", T.FLOAT, [1, 1, 2, 2]),
        ],
    )


def _constant(path: Path, outputs: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    """A detector with input images (batch,3,64,64) that answers the same for every picture."""
    kinds = {np.dtype(np.float32): T.FLOAT, np.dtype(np.int32): T.INT32}
    nodes = [
        helper.make_node("Slice", ["images", "zero4", "one4"], ["corner"]),
        helper.make_node("ReduceSum", ["corner", "axes"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "nought"], ["zero"]),
    ]
    weights = {
        "zero4": np.zeros(4, np.int64),
        "one4": np.array([np.iinfo(np.int64).max, 1, 1, 1], np.int64),
        "axes": np.array([1, 2, 3], np.int64),
        "nought": np.array(0, np.float32),
    }
    values = []
    for name, array in outputs.items():
        weights[f"{name}_c"] = array[None].astype(np.float32)
        weights[f"{name}_s"] = np.array([-1] + [1] * array.ndim, np.int64)
        nodes.append(helper.make_node("Reshape", ["zero", f"{name}_s"], [f"{name}_z"]))
        if array.dtype == np.int32:
            nodes.append(helper.make_node("Add", [f"{name}_c", f"{name}_z"], [f"{name}_f"]))
            nodes.append(helper.make_node("Cast", [f"{name}_f"], [name], to=T.INT32))
        else:
            nodes.append(helper.make_node("Add", [f"{name}_c", f"{name}_z"], [name]))
        values.append(value(name, kinds[array.dtype], ["batch", *array.shape]))
    return save(path, nodes, [value("images", T.FLOAT, ["batch", 3, 64, 64])], values, weights, metadata)


def head_outputs(head: str) -> dict[str, np.ndarray]:
    """Output arrays (without the batch axis) of one head that say BOXES."""
    boxes = np.array([b[:4] for b in BOXES], np.float32)
    classes = np.array([b[4] for b in BOXES])
    scores = np.array([b[5] for b in BOXES], np.float32)
    xywh = np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1)
    one_hot = np.zeros((len(BOXES), CLASSES), np.float32)
    one_hot[np.arange(len(BOXES)), classes] = scores
    if head in ("yolov8", "yolov8_transposed"):
        rows = np.zeros((84, 4 + CLASSES), np.float32)  # 84 cells: strides 8, 16, 32 on 64 pixels
        rows[: len(BOXES)] = np.concatenate((xywh, one_hot), 1)
        return {"output0": rows if head == "yolov8_transposed" else np.ascontiguousarray(rows.T)}
    if head == "yolov5":
        rows = np.zeros((252, 5 + CLASSES), np.float32)  # three boxes a cell
        sure = np.sqrt(scores)[:, None]
        rows[: len(BOXES)] = np.concatenate((xywh, sure, one_hot / sure), 1)
        return {"output0": rows}
    if head == "yolox":
        rows = np.zeros((84, 5 + CLASSES), np.float32)
        # Cell i of the first 64 has stride 8 and lies at (i % 8, i // 8).
        for i, box in enumerate(xywh):
            rows[i, :2] = box[:2] / 8 - (i % 8, i // 8)
            rows[i, 2:4] = np.log(box[2:] / 8)
            rows[i, 4], rows[i, 5:] = 1.0, one_hot[i]
        return {"output0": rows}
    kept = list(KEPT)
    if head == "end2end":
        rows = np.zeros((300, 6), np.float32)
        rows[: len(kept)] = np.concatenate((boxes[kept], scores[kept, None], classes[kept, None]), 1)
        return {"output0": rows}
    pad = 10 - len(kept)
    return {
        "num_dets": np.array([len(kept)], np.int32),
        "det_boxes": np.pad(boxes[kept], ((0, pad), (0, 0))),
        "det_scores": np.pad(scores[kept], (0, pad)),
        "det_classes": np.pad(classes[kept].astype(np.int32), (0, pad)),
    }


HEADS = ("yolov8", "yolov8_transposed", "yolov5", "yolox", "end2end", "nms")
ULTRALYTICS = {
    "task": "detect", "names": "{0: 'bolt', 1: 'nut', 2: 'gear'}", "imgsz": "[64, 64]", "stride": "32", "batch": "1",
}  # fmt: skip


def write_all(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    conv(folder / "conv.onnx")
    classifier(folder / "classifier.onnx")
    classifier(folder / "classifier_batch4.onnx", 4)
    hanging(folder / "hanging.onnx")
    multi_io(folder / "multi_io.onnx")
    nonzero(folder / "nonzero.onnx")
    dtypes(folder / "dtypes.onnx")
    for head in HEADS:
        _constant(folder / f"{head}.onnx", head_outputs(head))
    _constant(folder / "ultralytics.onnx", head_outputs("yolov8"), ULTRALYTICS)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
