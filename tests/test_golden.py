"""Golden outputs: the same model is recognised, another one is not, and the card stays what it was."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from make_models import HEADS, save, value
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from support import ROOT, Program

from edgeapp import errors, golden, model
from edgeapp.commands.golden import with_golden
from edgeapp.cpu.engine import CpuEngine
from edgeapp.records import Tensors, TensorSpec
from edgeapp.tensors import noise

RAW = model.Card("raw")
SMALL = ("conv", "classifier", "classifier_batch4", "multi_io", "nonzero", "dtypes", "ultralytics", *HEADS)
DEMO = ROOT / "edgeapp" / "data" / "demo"


def card_of(engine: CpuEngine, card_file: Path | None = None) -> model.Card:
    given = model.read_card(str(card_file)) if card_file else {}
    return model.complete({**model.from_ultralytics(engine.metadata), **given}, engine.inputs, engine.outputs)[0]


def through_json(keys: dict[str, Any]) -> dict[str, Any]:
    """As the card will give it back."""
    found: dict[str, Any] = json.loads(json.dumps(keys, allow_nan=False))
    return found


def changed(source: Path, target: Path, by: float = 1.0) -> Path:
    """The same model with the first number of its largest float weight changed."""
    found = onnx.load(source)
    weights = [w for w in found.graph.initializer if w.data_type == T.FLOAT]
    weight = max(weights, key=lambda w: math.prod(w.dims))
    array = numpy_helper.to_array(weight).copy()
    array.flat[0] += by
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(found, target)
    return target


class Rounding:
    """An engine that stands in for one that rounds otherwise: its float inputs are off by a millionth."""

    def __init__(self, engine: CpuEngine) -> None:
        self._engine = engine
        self.name, self.inputs, self.outputs = engine.name, engine.inputs, engine.outputs

    def infer(self, tensors: Tensors) -> Tensors:
        off = {
            name: array + np.float32(1e-6) * (2 * noise(array.shape, 99) - 1) if array.dtype.kind == "f" else array
            for name, array in tensors.items()
        }
        return self._engine.infer(off)


class Answers:
    """An engine that stands in for any: it gives the arrays that it was made with, and counts."""

    name = "stand-in"

    def __init__(self, outputs: Tensors, inputs: Sequence[TensorSpec] = ()) -> None:
        self.inputs = tuple(inputs) or (TensorSpec("x", (1, 4), "float32", True),)
        self.outputs = tuple(TensorSpec(name, array.shape, str(array.dtype), False) for name, array in outputs.items())
        self._answers = outputs
        self.fed: list[Tensors] = []

    def infer(self, tensors: Tensors) -> Tensors:
        self.fed.append(tensors)
        return self._answers


@pytest.mark.parametrize("name", SMALL)
def test_model_gives_its_golden_output_again(models: Path, name: str) -> None:
    """In a new engine, out of the card's JSON, and when its calculation rounds otherwise."""
    path = str(models / f"{name}.onnx")
    engine = CpuEngine(path)
    keys = through_json(golden.make(engine, card_of(engine)))
    assert golden.compare(CpuEngine(path), keys) == []
    assert golden.compare(Rounding(engine), keys) == []
    assert golden.shapes_only(keys) == []


def test_demo_gives_its_golden_output_again() -> None:
    """A real network, with its card."""
    engine = CpuEngine(str(DEMO / "model.onnx"))
    keys = through_json(golden.make(engine, card_of(engine, DEMO / "model.json")))
    assert keys["inputs"]["images"] == {"shape": [1, 3, 416, 416], "range": [0, 1]}
    assert golden.compare(Rounding(engine), keys) == []


@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("nonzero", "dtypes")])
def test_one_changed_weight_is_found(models: Path, tmp_path: Path, name: str) -> None:
    """What a damaged file or another training would be."""
    engine = CpuEngine(str(models / f"{name}.onnx"))
    keys = golden.make(engine, card_of(engine))
    other = changed(models / f"{name}.onnx", tmp_path / "changed.onnx")
    [text] = golden.compare(CpuEngine(str(other)), keys)[:1]
    assert "is allowed" in text


def test_one_changed_weight_of_the_demo_is_found(tmp_path: Path) -> None:
    """One of 27,648, by a tenth of what it could be; half precision is not taken for a change where it is allowed."""
    engine = CpuEngine(str(DEMO / "model.onnx"))
    card = card_of(engine, DEMO / "model.json")
    exact, rough = golden.make(engine, card), golden.make(engine, card, rough=True)
    other = CpuEngine(str(changed(DEMO / "model.onnx", tmp_path / "changed.onnx", 0.3)))
    assert golden.compare(other, exact) != []

    halved = onnx.load(DEMO / "model.onnx")
    for weight in halved.graph.initializer:
        if weight.data_type == T.FLOAT:
            array = numpy_helper.to_array(weight).astype(np.float16).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(halved, tmp_path / "halved.onnx")
    half = CpuEngine(str(tmp_path / "halved.onnx"))
    assert golden.compare(half, exact) != []
    assert golden.compare(half, rough) == []


def sorted_rows(path: Path) -> Path:
    """x (1,1024) -> rows (1,300,2): the 300 largest and something that belongs to each, as a detector's top boxes;
    where (1,k): which are at least 128/255; both hang on rounding, as noise has only 256 different numbers."""
    rng = np.random.default_rng(5)
    return save(
        path,
        [
            helper.make_node("TopK", ["x", "k"], ["best", "index"], axis=1),
            helper.make_node("Gather", ["table", "index"], ["beside"]),
            helper.make_node("Unsqueeze", ["best", "last"], ["best3"]),
            helper.make_node("Unsqueeze", ["beside", "last"], ["beside3"]),
            helper.make_node("Concat", ["best3", "beside3"], ["rows"], axis=2),
            helper.make_node("Less", ["x", "limit"], ["below"]),
            helper.make_node("Not", ["below"], ["reached"]),
            helper.make_node("Cast", ["reached"], ["ones"], to=T.FLOAT),
            helper.make_node("NonZero", ["ones"], ["where"]),
            helper.make_node("Gather", ["permutation", "index"], ["ids"]),
        ],
        [value("x", T.FLOAT, [1, 1024])],
        [
            value("rows", T.FLOAT, [1, 300, 2]),
            value("where", T.INT64, [2, "n"]),
            value("ids", T.INT64, [1, 300]),
        ],
        {
            "k": np.array([300], np.int64),
            "last": np.array([2], np.int64),
            "table": rng.uniform(1, 2, 1024).astype(np.float32),
            "limit": np.array(128 / 255, np.float32),
            "permutation": rng.permutation(1024).astype(np.int64),
        },
    )


def test_output_that_hangs_on_rounding_is_compared_by_what_holds_still(tmp_path: Path) -> None:
    """Rows whose order changes by their sorted values, a size that changes not at all; and another model is found."""
    engine = CpuEngine(str(sorted_rows(tmp_path / "rows.onnx")))
    keys = through_json(golden.make(engine, RAW))
    assert keys["outputs"]["rows"]["sorted"] is True
    assert keys["outputs"]["where"] == {"dtype": "int64", "shape": [2, -1]}
    assert golden.shapes_only(keys) == ["where", *(["ids"] if "values" not in keys["outputs"]["ids"] else [])]
    assert golden.compare(Rounding(engine), keys) == []
    answer = engine.infer({"x": noise([1, 1024])})
    answer["rows"][:, :, 1] += 1
    other = Answers(answer, engine.inputs)
    assert any(text.startswith("output rows: differs by") for text in golden.compare(other, keys))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-3), ("float64", 1e-3), ("float16", 2e-2), ("int32", 0), ("bool", 0)]
)
def test_tolerance_is_that_of_the_dtype(dtype: str, tolerance: float) -> None:
    """Half precision differs between GPUs, integers and truth values do not."""
    array = (np.arange(1000).reshape(1, 1000) % 7).astype(dtype)
    keys = golden.make(Answers({"y": array}), RAW)
    assert keys["outputs"]["y"]["tolerance"] == tolerance
    assert len(keys["outputs"]["y"]["values"]) == 256
    near = array * (1 + tolerance / 2) if tolerance else array
    assert golden.compare(Answers({"y": near.astype(dtype)}), keys) == []
    other = array.copy()
    other.flat[0] = not other.flat[0]
    assert golden.compare(Answers({"y": other}), keys) != []
    if tolerance:
        far = array * (1 + 3 * tolerance)
        assert golden.compare(Answers({"y": far.astype(dtype)}), keys) != []


def test_plan_may_differ_more_whatever_its_outputs_are() -> None:
    """A float16 plan with float32 outputs is nothing that its bytes tell."""
    array = np.ones((1, 10), np.float32)
    keys = golden.make(Answers({"y": array}), RAW, rough=True)
    assert golden.compare(Answers({"y": array * np.float32(1.02)}), keys) == []
    assert golden.compare(Answers({"y": array * np.float32(1.1)}), keys) != []


def test_nan_is_never_golden_nor_equal() -> None:
    """Neither where the values are looked at nor elsewhere."""
    array = np.ones((1, 1000), np.float32)
    keys = golden.make(Answers({"y": array}), RAW)
    array = array.copy()
    array[0, 999] = np.nan
    assert golden.compare(Answers({"y": array}), keys) == ["output y: 1 of 1000 values are NaN"]
    with pytest.raises(errors.DataError, match="1 of 1000 values of y are NaN"):
        golden.make(Answers({"y": array}), RAW)


def test_infinite_values_are_kept_as_numbers() -> None:
    """JSON has no infinity; a masked score may be it all the same."""
    array = np.array([[np.inf, -np.inf, 1]], np.float32)
    keys = through_json(golden.make(Answers({"y": array}), RAW))
    assert golden.compare(Answers({"y": array}), keys) == []
    assert golden.compare(Answers({"y": -array}), keys) != []


@pytest.mark.parametrize(
    "array",
    [np.zeros((1, 5), np.float32), np.zeros((1, 0), np.float32), np.array(3, np.int32), np.array(0.5, np.float32)],
    ids=["zeros", "empty", "scalar integer", "scalar"],
)
def test_odd_outputs_are_kept(array: np.ndarray) -> None:
    """Nothing divides by zero."""
    keys = through_json(golden.make(Answers({"y": array}), RAW))
    assert golden.compare(Answers({"y": array}), keys) == []
    if array.size:
        assert golden.compare(Answers({"y": array + 1}), keys) != []


def test_numpy_cannot_hold_float8_so_only_its_shape_is_kept() -> None:
    """Its bits are no numbers to compare within a tolerance."""
    engine = Answers({"y": np.ones((1, 5), np.uint8)})
    engine.outputs = (TensorSpec("y", (1, 5), "float8", False),)
    assert golden.make(engine, RAW)["outputs"]["y"] == {"dtype": "float8", "shape": [1, 5]}


def test_noise_is_made_once_and_the_engine_runs_once() -> None:
    """A probe of an idle service costs one inference."""
    engine = Answers({"y": np.ones((1, 5), np.float32)})
    wanted = golden.Golden(golden.make(engine, RAW))
    engine.fed.clear()
    assert wanted.differences(engine) == wanted.differences(engine) == []
    first, second = engine.fed
    assert first["x"] is second["x"]


def test_noise_is_the_same_everywhere_and_forever() -> None:
    """Else no golden output of yesterday would be equal today."""
    digest = hashlib.sha256(noise([1000]).tobytes()).hexdigest()
    assert digest == "abe213383b067cc837ae45410ac926eee10edb72757ce8e0dadf2defb9711405"


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        ([TensorSpec("x", (1, 5), "float32", True)], {}, "input x float32 (1, 5): the golden one has shape (1, 4)"),
        ([TensorSpec("x", (4,), "float32", True)], {}, "input x float32 (4): the golden one has shape (1, 4)"),
        ([TensorSpec("z", (1, 4), "float32", True)], {}, "input z is new"),
        ([], {"y": np.ones((1, 5), np.float16)}, "output y: it is float16, golden is float32"),
        ([], {"y": np.ones((1, 6), np.float32)}, "output y: its shape is (1, 6), golden is (1, 5)"),
        ([], {"y": np.ones((1, 5, 1), np.float32)}, "output y: its shape is (1, 5, 1), golden is (1, 5)"),
        ([], {"z": np.ones((1, 5), np.float32)}, "output y is missing"),
    ],
)
def test_other_tensors_are_differences(inputs: list[TensorSpec], outputs: Tensors, says: str) -> None:
    """A model with other inputs or outputs is another model, and nothing is fed into it that does not fit."""
    usual = {"y": np.ones((1, 5), np.float32)}
    keys = golden.make(Answers(usual), RAW)
    assert says in golden.compare(Answers(outputs or usual, inputs), keys)


@pytest.mark.parametrize(
    ("spec", "card", "shape", "ends"),
    [
        (TensorSpec("x", (-1, 3, 8, 8), "float32", True), {"size_wh": (8, 8)}, [1, 3, 8, 8], [0, 1]),
        (TensorSpec("x", (-1, -1, -1, -1), "float32", True), {"size_wh": (6, 8)}, [1, 3, 8, 6], [0, 1]),
        (
            TensorSpec("x", (-1, -1, 8, 1), "float16", True, (((2, 4, 8, 1), (4, 6, 8, 1), (8, 8, 8, 1)),)),
            {"size_wh": (8, 6), "layout": "NHWC", "color_order": "GRAY", "scale": 1.0}, [2, 6, 8, 1], [0, 255],
        ),
        (
            TensorSpec("x", (1, 3, 8, 8), "float32", True), {"size_wh": (8, 8), "mean": (0.5, 0.25), "std": (0.5,)},
            [1, 3, 8, 8], [-1, 1.5],
        ),
        (TensorSpec("x", (1, 3, 8, 8), "uint8", True), {"size_wh": (8, 8)}, [1, 3, 8, 8], [0, 255]),
        (TensorSpec("ids", (-1, -1), "int64", True), {}, [1, 32], [0, 1]),
        (TensorSpec("ids", (-1, -1), "int64", True, (((1, 1), (4, 77), (8, 99)),)), {}, [4, 77], [0, 1]),
        (TensorSpec("x", (), "float32", True), {}, [], [0, 1]),
    ],
)  # fmt: skip
def test_noise_has_the_shape_and_the_range_of_the_input(
    spec: TensorSpec, card: dict[str, Any], shape: list[int], ends: list[float]
) -> None:
    """The smallest batch of pictures, with the numbers that pictures have; else what the profile is best at."""
    engine = Answers({"y": np.ones((1, 5), np.float32)}, [spec])
    keys = golden.make(engine, model.Card("raw", **card))
    assert keys["inputs"][spec.name] == {"shape": shape, "range": ends}
    fed = engine.fed[0][spec.name]
    assert list(fed.shape) == shape
    assert ends[0] <= fed.min() <= fed.max() <= ends[1]


@pytest.fixture
def written(models: Path, tmp_path: Path) -> Path:
    """A card with a golden output beside its model."""
    shutil.copy(models / "classifier.onnx", tmp_path / "model.onnx")
    engine = CpuEngine(str(tmp_path / "model.onnx"))
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"task": "classify", "golden": golden.make(engine, card_of(engine))}))
    return path


def _values(keys: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = keys["outputs"]["logits"]
    return found


@pytest.mark.parametrize(
    "damage",
    [
        lambda keys: keys.pop("schema"),
        lambda keys: keys.update(schema=2),
        lambda keys: keys.update(more=1),
        lambda keys: keys.update(inputs={}),
        lambda keys: keys.update(outputs=[]),
        lambda keys: keys["inputs"]["images"].pop("range"),
        lambda keys: keys["inputs"]["images"].update(range=[1, 0]),
        lambda keys: keys["inputs"]["images"].update(range=[0, 1e300]),
        lambda keys: keys["inputs"]["images"].update(range=["0", "1"]),
        lambda keys: keys["inputs"]["images"].update(shape=[-1, 3, 32, 32]),
        lambda keys: keys["inputs"]["images"].update(shape=[1 << 20, 3, 1 << 20, 1]),
        lambda keys: keys["inputs"]["images"].update(shape=[1.5]),
        lambda keys: _values(keys).pop("dtype"),
        lambda keys: _values(keys).pop("tolerance"),
        lambda keys: _values(keys).pop("values"),
        lambda keys: _values(keys).update(tolerance=-1),
        lambda keys: _values(keys).update(tolerance=True),
        lambda keys: _values(keys)["values"].pop(),
        lambda keys: _values(keys)["values"].append(0),
        lambda keys: _values(keys).update(values=["a"] * 5),
        lambda keys: _values(keys).update(values=None),
        lambda keys: _values(keys).update(shape=[1, -1]),
        lambda keys: _values(keys).update(sorted="yes"),
    ],
)
def test_damaged_golden_output_is_refused(written: Path, damage: Callable[[dict[str, Any]], Any]) -> None:
    """As a wrong configuration, before anything is run."""
    values = json.loads(written.read_text())
    damage(values["golden"])
    written.write_text(json.dumps(values))
    with pytest.raises(errors.ConfigurationError):
        golden.Golden(model.read_card(str(written))["golden"])


def test_command_writes_and_checks(program: Program, models: Path, tmp_path: Path) -> None:
    """From a model without a card to one that is recognised; the frozen file, too."""
    engine = tmp_path / "net.onnx"
    shutil.copy(models / "classifier.onnx", engine)
    card = tmp_path / "net.json"
    done = program("golden", "--engine", engine)
    assert (done.returncode, card.exists()) == (0, False)
    assert program("golden", "--engine", engine, "--check").returncode == 78
    assert program("golden", "--engine", engine, "--write").returncode == 0
    assert json.loads(card.read_text())["golden"] == json.loads(done.stdout)
    assert model.read_card(str(card))["schema"] == 1
    assert program("golden", "--engine", engine, "--check").returncode == 0
    before = card.read_text()
    assert program("golden", "--engine", engine, "--write").returncode == 0
    assert card.read_text() == before

    changed(models / "classifier.onnx", engine)
    done = program("golden", "--engine", engine, "--check")
    assert (done.returncode, done.stdout) == (65, "")
    assert "output logits: differs by" in done.stderr
    assert sorted(path.name for path in tmp_path.glob("net*")) == ["net.json", "net.onnx"]


def test_command_keeps_link_mode_and_the_rest_of_the_card(
    source_program: Program, models: Path, tmp_path: Path
) -> None:
    """It is the user's file."""
    shutil.copy(models / "classifier.onnx", tmp_path / "model.onnx")
    text = '{ "task" :"classify",\n\t"labels": ["a","é\\u00e9", "}"], "top_k": 2 }'
    card = tmp_path / "real.json"
    card.write_text(text, encoding="utf-8")
    card.chmod(0o640)
    (tmp_path / "model.json").symlink_to("real.json")
    done = source_program("golden", "--engine", tmp_path / "model.onnx", "--write")
    assert done.returncode == 0, done
    assert (tmp_path / "model.json").is_symlink()
    assert card.stat().st_mode & 0o777 == 0o640
    found = card.read_text(encoding="utf-8")
    assert found.startswith(text[:-2] + ",\n")
    assert found.endswith("} }")
    assert json.loads(found) == {**json.loads(text), "golden": json.loads(found)["golden"]}


@pytest.mark.parametrize(
    "text",
    ["{}", " {\n}\n", '{"a": 1}', '{\n  "a": {"golden": [1, {}]},\n  "b": "}, \\"golden\\": {"\n}\n',
     '{"golden": {}, "z": [1]}', '{"a":1 ,"golden" : {"x": "}"} }', '{"\\u0061": 1e5,"b":null}'],
)  # fmt: skip
def test_card_keeps_its_text_around_the_golden_output(text: str) -> None:
    """Written by hand in any way; the second time nothing changes."""
    keys = {"schema": 1, "made_with": 'a "x"', "inputs": {"i": {"shape": []}}, "outputs": {"o": {"values": [1.5]}}}
    found = with_golden(text, keys)
    assert json.loads(found) == {**json.loads(text), "golden": keys}
    assert list(json.loads(found)) == list({**json.loads(text), "golden": keys})
    assert with_golden(found, keys) == found


def test_card_that_cannot_be_written_stays_as_it_was(source_program: Program, models: Path, tmp_path: Path) -> None:
    """Without space a half-written card must not take its place."""
    shutil.copy(models / "classifier.onnx", tmp_path / "model.onnx")
    card = tmp_path / "model.json"
    card.write_text("{}")
    limited = Program(
        ["/bin/sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *source_program.command],
        tmp_path,
        source_program.env | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    done = limited("golden", "--engine", tmp_path / "model.onnx", "--write")
    assert done.returncode in (73, 74), done
    assert card.read_text() == "{}"
    assert sorted(os.listdir(tmp_path)) == ["model.json", "model.onnx"]


def test_card_in_a_folder_that_may_not_be_written_is_a_matter_of_permission(
    source_program: Program, models: Path, tmp_path: Path
) -> None:
    """77, and the card is as it was."""
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(models / "classifier.onnx", folder / "model.onnx")
    (folder / "model.json").write_text("{}")
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    done = source_program("golden", "--engine", folder / "model.onnx", "--write")
    folder.chmod(0o755)
    assert done.returncode == 77, done
    assert (folder / "model.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 64),
        (["--engine", "missing.onnx"], 66),
        (["--engine", "model.onnx", "--write", "--check"], 64),
        (["--engine", "model.onnx", "--model-card", "missing.json", "--write"], 66),
        (["--engine", "model.onnx", "--require-signature"], 78),
    ],
)
def test_command_refuses_what_it_cannot_do(
    source_program: Program, models: Path, tmp_path: Path, words: list[str], code: int
) -> None:
    """With the exit code of the reason."""
    shutil.copy(models / "classifier.onnx", tmp_path / "model.onnx")
    assert source_program("golden", *words).returncode == code
