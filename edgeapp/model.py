"""The model card: what a model is for, how its input is made and how its output is read.

A card is put together, the later winning, from guesses by the tensor shapes, what Ultralytics
wrote into the file, model.json beside it, and flags. Its keys are described in
data/model_card.schema.json.
"""

from __future__ import annotations

import ast
import json
import math
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeapp import errors, literals, paths
from edgeapp.labels import read_labels
from edgeapp.records import TensorSpec

CARD_NAME = "model.json"
MOST_CARD_BYTES = 16 << 20
NOT_OF_THE_TASK = ("schema", "description", "license", "sha256", "trust_key", "golden")
"""Keys that say nothing of how inputs are made and outputs are read; `trust` and `golden` look at the last three."""
ULTRALYTICS_TASKS = {"classify": "classify", "detect": "detect"}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Card:
    """A complete card; see data/model_card.schema.json for each key."""

    task: str
    name: str = ""
    labels: tuple[str, ...] = ()
    size_wh: tuple[int, int] = (0, 0)
    resize: str = "letterbox"
    antialias: bool = True
    crop_fraction: float = 0.875
    color_order: str = "RGB"
    layout: str = "NCHW"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    pad_value: int = 114
    head: str = ""
    activation: str = ""
    score_threshold: float = 0.25
    iou_threshold: float = 0.45
    max_detections: int = 300
    top_k: int = 5


def find_card(engine_path: str) -> str | None:
    """The card beside an engine: STEM.json first, then model.json; None when there is none."""
    engine = Path(engine_path)
    for candidate in (engine.with_suffix(".json"), engine.parent / CARD_NAME):
        if candidate.is_file():
            return str(candidate)
    return None


def read_card(path: str) -> dict[str, Any]:
    """The keys of a card file, checked against the schema, labels resolved to a list.

    Raises:
        NotFoundError, NotPermittedError: it cannot be read.
        ConfigurationError: it is no JSON, or a key is unknown or has a wrong value.
    """
    what = f"cannot use the model card {paths.printable(path)}"
    fix = "see the README on model cards, or name another with --model-card"
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise errors.ConfigurationError(what, "it is no regular file", fix)
        with open(path, "rb") as file:
            text = file.read(MOST_CARD_BYTES + 1)
    except OSError as error:
        raise paths.refusal(what, error) from error
    except ValueError as error:  # a NUL in the name
        raise errors.NotFoundError(what, str(error), "check the name") from error
    if len(text) > MOST_CARD_BYTES:
        raise errors.ConfigurationError(what, f"it is larger than {MOST_CARD_BYTES >> 20} MiB", fix)
    try:
        values = json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        why = f"line {error.lineno}, column {error.colno}: {error.msg}" if text.strip() else "it is empty"
        raise errors.ConfigurationError(what, why, fix) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise errors.ConfigurationError(what, "it is no JSON text", fix) from error
    except ValueError as error:
        raise errors.ConfigurationError(what, str(error), fix) from error
    if not isinstance(values, dict):
        raise errors.ConfigurationError(what, "it holds no JSON object", fix)
    _check(values, what, fix)
    labels = values.get("labels")
    if isinstance(labels, str):
        values["labels"] = read_labels(str(Path(path).parent / labels))
    elif isinstance(labels, dict):
        values["labels"] = _names({int(key): name for key, name in labels.items()})
    return values


def _finite(text: str) -> float:
    """A number of JSON; Python's reader would take NaN, Infinity and 1e999 too."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number to calculate with")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose keys must differ; Python's reader would take the last."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return values


def _check(values: dict[str, Any], what: str, fix: str) -> None:
    """Raise ConfigurationError naming the first key that the schema does not allow."""
    import difflib

    import fastjsonschema  # late: only a run with a card needs it

    schema = json.loads(paths.resource("model_card.schema.json").read_bytes())
    for key in values:
        if key not in schema["properties"]:
            near = difflib.get_close_matches(key, schema["properties"], 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise errors.ConfigurationError(what, f"unknown key {key!r}{hint}", fix)
    schema["properties"] = {key: schema["properties"][key] for key in values}  # each takes time to compile, golden most
    try:
        fastjsonschema.validate(schema, values)
    except fastjsonschema.JsonSchemaValueException as error:
        why = error.message.replace("data.", "", 1)
        allowed = error.definition.get("enum") if isinstance(error.definition, dict) else None
        found = json.dumps(error.value, default=str)
        found = found if len(found) <= 60 else found[:57] + "..."
        why = f"{why.split(' must be ')[0]} must be one of {', '.join(allowed)}" if allowed else why
        raise errors.ConfigurationError(what, f"{why}, found {found}", fix) from error


def from_ultralytics(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Card keys from what Ultralytics wrote into a plan (JSON) or an ONNX file (texts).

    Source: ultralytics/engine/exporter.py, metadata: description, task, names, imgsz, stride ...
    """
    values: dict[str, Any] = {}
    task, names, size = (_literal(metadata.get(key)) for key in ("task", "names", "imgsz"))
    if not isinstance(task, str) or not isinstance(names, dict | list):
        return {}
    values["task"] = ULTRALYTICS_TASKS.get(task, "raw")
    table = names if isinstance(names, dict) else dict(enumerate(names))
    try:
        values["labels"] = _names({int(key): str(name) for key, name in table.items()})
    except (TypeError, ValueError):
        return {}
    if isinstance(size, int):
        size = [size, size]
    if isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and 0 < n <= 16384 for n in size):
        values["size_wh"] = [size[1], size[0]]  # Ultralytics says height, width
    if values["task"] == "classify":
        values.update(resize="center_crop", crop_fraction=1.0, antialias=True, activation="none")
    else:
        values.update(resize="letterbox", antialias=False)
    values.update(mean=[0.0], std=[1.0], scale=1 / 255, color_order="RGB")
    return values


def _literal(value: Any) -> Any:
    """A value as it is, or the Python literal that a text holds (ONNX metadata are texts)."""
    if isinstance(value, str):
        try:
            with literals.PARSING:
                return ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value
    return value


def _names(table: Mapping[int, str]) -> list[str]:
    """Names in the order of their ids; gaps are filled with "class N"."""
    if not table or max(table) > 1_000_000:
        return []
    return [table.get(i, f"class {i}") for i in range(max(table) + 1)]


def complete(
    given: Mapping[str, Any], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[Card, list[str]]:
    """A whole card from the given keys; what is missing is guessed from the tensors.

    Args:
        given: keys of data/model_card.schema.json; labels as a list.
        inputs, outputs: the engine's I/O tensors, -1 for free dimensions.

    Returns:
        card: complete.
        guesses: what was guessed, "task=detect", in the order of importance.

    Raises:
        ConfigurationError: a given key contradicts the tensors, or a value cannot be guessed.
    """
    values = {key: value for key, value in given.items() if key not in NOT_OF_THE_TASK}
    guesses: list[str] = []

    def guess(key: str, value: Any) -> None:
        if key not in values:
            values[key] = value
            guesses.append(f"{key}={_short(value)}")

    picture = inputs[0] if len(inputs) == 1 and len(inputs[0].shape) == 4 else None
    guess("task", _guess_task(outputs) if picture else "raw")
    values.setdefault("score_threshold", 0.25 if values["task"] == "detect" else 0.0)
    if picture is not None:
        channels_last = picture.shape[3] in (1, 3) and picture.shape[1] not in (1, 3)
        values.setdefault("layout", "NHWC" if channels_last else "NCHW")
        nchw = values["layout"] == "NCHW"
        channels = picture.shape[1 if nchw else 3]
        hw = (2, 3) if nchw else (1, 2)
        if channels not in (1, 3, -1):
            if values["task"] != "raw":
                raise errors.ConfigurationError(
                    f"input tensor {picture}: {channels} channels, a picture has 1 or 3",
                    f"the layout is {values['layout']}",
                    "give the right --layout, or tensors (.npy, .npz) with --task raw",
                )
        else:
            guess("color_order", "GRAY" if channels == 1 else "RGB")
            if "size_wh" not in values:
                values["size_wh"] = _guess_size(picture, hw)
            _check_size(values["size_wh"], picture, hw)
            if picture.dtype.startswith("float") or picture.dtype == "bfloat16":
                classify = values["task"] == "classify" and values["color_order"] != "GRAY"
                guess("scale", 1 / 255)
                guess("mean", IMAGENET_MEAN if classify else (0.0,))
                guess("std", IMAGENET_STD if classify else (1.0,))
            guess("resize", "center_crop" if values["task"] == "classify" else "letterbox")
            guess("antialias", values["task"] == "classify")
    elif values["task"] != "raw":
        shapes = "; ".join(map(str, inputs))
        raise errors.ConfigurationError(
            f"task {values['task']} wants one input tensor of four dimensions",
            f"the engine has {shapes}",
            "use --task raw with tensors (.npy, .npz)",
        )
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Card(**fields), guesses


def _short(value: Any) -> str:
    """A guessed value for people: 0.003922, not 0.00392156862745098."""
    if isinstance(value, tuple):
        return ",".join(map(_short, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _guess_task(outputs: Sequence[TensorSpec]) -> str:
    """classify, detect or raw by the number and shapes of the output tensors."""
    if len(outputs) == 1:
        shape = outputs[0].shape
        if len(shape) == 2 and shape[1] != 1:
            return "classify"
        if len(shape) == 3:
            return "detect"
    if len(outputs) == 4 and sorted(len(o.shape) for o in outputs) in ([2, 2, 2, 3], [1, 2, 2, 3]):
        return "detect"
    return "raw"


def _guess_size(picture: TensorSpec, hw: tuple[int, int]) -> tuple[int, int]:
    """(width, height) from the tensor's shape, else from the first profile's optimum."""
    shape = picture.profiles[0][1] if picture.profiles else picture.shape
    height, width = shape[hw[0]], shape[hw[1]]
    if height < 1 or width < 1:
        raise errors.ConfigurationError(
            f"input tensor {picture}: width and height are free, and no model card names them",
            "",
            "give --size-wh WIDTHxHEIGHT",
        )
    return width, height


def _check_size(size_wh: Sequence[int], picture: TensorSpec, hw: tuple[int, int]) -> None:
    for wanted, axis in zip((size_wh[1], size_wh[0]), hw, strict=True):
        if picture.shape[axis] not in (-1, wanted):
            raise errors.ConfigurationError(
                f"size_wh {size_wh[0]}x{size_wh[1]} does not fit the input tensor {picture}",
                "the engine was built for another size",
                "leave size_wh out, or use the engine's size",
            )
