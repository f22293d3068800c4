"""Model cards: schema, Ultralytics metadata, guesses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgeapp import errors, model, paths
from edgeapp.labels import read_labels
from edgeapp.records import TensorSpec

IMAGES = TensorSpec("images", (-1, 3, 64, 96), "float32", True)
LOGITS = TensorSpec("logits", (-1, 10), "float32", False)
HEAD = TensorSpec("output0", (-1, 84, 8400), "float32", False)


def card(folder: Path, values: Any) -> str:
    path = folder / "model.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return str(path)


def test_schema_is_a_valid_json_schema() -> None:
    """Other tools can check cards with it."""
    jsonschema.Draft7Validator.check_schema(json.loads(paths.resource("model_card.schema.json").read_bytes()))


def test_schema_has_every_card_field() -> None:
    """What a card can say and what the program understands are the same."""
    schema = json.loads(paths.resource("model_card.schema.json").read_bytes())
    known = set(model.Card.__dataclass_fields__) | set(model.NOT_OF_THE_TASK)
    assert set(schema["properties"]) == known


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tsk": "detect"}, "unknown key 'tsk'; did you mean 'task'"),
        ({"task": "segment"}, 'task must be one of classify, detect, raw, found "segment"'),
        ({"size_wh": [640]}, "size_wh"),
        ({"mean": [0, "x", 0]}, r"mean\[1\]"),
        ({"score_threshold": 2}, "score_threshold"),
        ({"labels": {"a": "bolt"}}, "labels"),
        ({"schema": 2}, "schema"),
        ("[1, 2]", "no JSON object"),
        ("{", "line 1"),
        ("", "empty"),
        ("[" * 100_000, "no JSON"),
        ("\ud800", "line 1|no JSON"),
    ],
)
def test_read_card_wrong_key_is_named(tmp_path: Path, values: Any, words: str) -> None:
    """A wrong card names the key, what is allowed and what was found; exit code 78."""
    path = tmp_path / "model.json"
    text = values if isinstance(values, str) else json.dumps(values)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(errors.ConfigurationError, match=words) as caught:
        model.read_card(str(path))
    assert caught.value.exit_code == 78


def test_read_card_labels_in_three_forms(tmp_path: Path) -> None:
    """A list, ids with names (gaps filled), or a text file beside the card."""
    (tmp_path / "names.txt").write_text("bolt\n\nnut\n")
    assert model.read_card(card(tmp_path, {"labels": ["a", "b"]}))["labels"] == ["a", "b"]
    assert model.read_card(card(tmp_path, {"labels": {"2": "c", "0": "a"}}))["labels"] == [
        "a",
        "class 1",
        "c",
    ]
    assert model.read_card(card(tmp_path, {"labels": "names.txt"}))["labels"] == ["bolt", "nut"]


def test_find_card_prefers_the_stem(tmp_path: Path) -> None:
    """parts.json belongs to parts.plan; model.json serves a folder with one model."""
    engine = tmp_path / "parts.plan"
    assert model.find_card(str(engine)) is None
    (tmp_path / "model.json").write_text("{}")
    assert model.find_card(str(engine)) == str(tmp_path / "model.json")
    (tmp_path / "parts.json").write_text("{}")
    assert model.find_card(str(engine)) == str(tmp_path / "parts.json")


def test_from_ultralytics_onnx_texts() -> None:
    """ONNX metadata are texts of Python values; imgsz is height, width."""
    values = model.from_ultralytics({"task": "detect", "names": "{0: 'a', 1: 'b'}", "imgsz": "[480, 640]"})
    assert values["labels"] == ["a", "b"]
    assert values["size_wh"] == [640, 480]
    assert values["antialias"] is False


@pytest.mark.parametrize(
    "metadata",
    [{}, {"task": "detect"}, {"task": 3, "names": {}}, {"names": {"x": 1}, "task": "detect"}],
)
def test_from_ultralytics_without_sense_is_ignored(metadata: dict[str, Any]) -> None:
    """Half a set of metadata is no card."""
    assert model.from_ultralytics(metadata) == {}


@pytest.mark.parametrize(
    ("outputs", "task"),
    [((LOGITS,), "classify"), ((HEAD,), "detect"), ((HEAD, HEAD), "raw"),
     ((TensorSpec("y", (1, 8, 30, 30), "float32", False),), "raw")],
)  # fmt: skip
def test_complete_guesses_task_from_outputs(outputs: tuple[TensorSpec, ...], task: str) -> None:
    """Two dimensions classify, three detect, anything else is given raw."""
    assert model.complete({}, (IMAGES,), outputs)[0].task == task


def test_complete_takes_size_and_layout_from_the_tensor() -> None:
    """Width and height come from the shape, whichever way it lies."""
    card, _ = model.complete({}, (IMAGES,), (LOGITS,))
    assert (card.size_wh, card.layout, card.color_order) == ((96, 64), "NCHW", "RGB")
    nhwc = TensorSpec("images", (1, 64, 96, 3), "uint8", True)
    card, _ = model.complete({}, (nhwc,), (LOGITS,))
    assert (card.size_wh, card.layout, card.scale) == ((96, 64), "NHWC", 1 / 255)


def test_complete_free_size_uses_profile_or_asks() -> None:
    """A free size is the first profile's optimum, or must be given."""
    profiles = (((1, 3, 32, 32), (1, 3, 48, 64), (4, 3, 64, 64)),)
    free = TensorSpec("images", (-1, 3, -1, -1), "float32", True)
    planned = TensorSpec("images", (-1, 3, -1, -1), "float32", True, profiles)
    assert model.complete({}, (planned,), (LOGITS,))[0].size_wh == (64, 48)
    with pytest.raises(errors.ConfigurationError) as caught:
        model.complete({}, (free,), (LOGITS,))
    assert "--size-wh" in caught.value.fix
    assert model.complete({"size_wh": [96, 32]}, (free,), (LOGITS,))[0].size_wh == (96, 32)


def test_complete_wrong_size_is_refused() -> None:
    """A card for another size is a mistake, not a wish."""
    with pytest.raises(errors.ConfigurationError, match="does not fit"):
        model.complete({"size_wh": [64, 64]}, (IMAGES,), (LOGITS,))


def test_complete_pictures_for_two_inputs_are_refused() -> None:
    """A task for pictures wants one picture tensor."""
    with pytest.raises(errors.ConfigurationError, match="one input tensor"):
        model.complete({"task": "detect"}, (IMAGES, IMAGES), (HEAD,))


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", "pipe"])
def test_labels_of_an_impossible_name_are_refused(tmp_path: Path, name: str) -> None:
    """A card may name anything: a NUL, half a letter, a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(errors.ConfigurationError):
        read_labels(f"{tmp_path}/{name}")
