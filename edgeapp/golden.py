"""The golden output of a model: what it answers to noise, kept in its card, so that it is recognised wherever it runs.

A wrong or damaged model, a sick GPU and a runtime that calculates something else all answer differently. The noise is
made anew from its shape and range; of each output up to 256 values are kept, spread evenly over it.

What counts as equal:
    Floating point: the root mean square of the relative differences of the values, each at most 1, where values near
    zero count by the size of the small ones. 1e-3 is allowed for float32 and float64, 2e-2 for half precision and for
    all outputs of plans, whose bytes do not tell in which precision they calculate (measured on plans of float32 and
    float16 against ONNX Runtime, tests/gpu). Integers and truth values: equal.
    Rounding differs between GPUs and runtimes, and some outputs hang on it: the class that just wins, the order of
    boxes, how many there are. So `make` runs the model on slightly changed noise, too, and takes the fourfold of what
    that changes as the tolerance. Where this is too much it looks at the sorted values; where they do not hold still
    either, as behind NMS, only dtype and shape are kept, without the dimensions that changed.
    NaN is never equal, nor is it kept. Infinity counts as the largest float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeapp import errors
from edgeapp.model import Card
from edgeapp.records import Shape, Tensors, TensorSpec
from edgeapp.tensors import noise

SCHEMA = 1
MOST_VALUES = 256
MOST_NUMBERS = 1 << 28
"""Of an input; a card that asks for more is wrong, or there to exhaust the machine."""

FREE_SIZE = 32
"""Of a dimension of which nobody says how large it is."""

TOLERANCE, ROUGH_TOLERANCE, MOST_TOLERANCE = 1e-3, 2e-2, 0.25
DRIFT = 0.05
"""Share of the tolerance by which the noise is changed: far more than rounding does, far less than a fault."""
DRIFTS, SAFETY = 3, 4
CHANGED_PIXELS = 0.01
"""Share of the numbers of an input of bytes that are changed by one instead."""

ROUGH = ("float16", "bfloat16")
HIGHEST = float(np.finfo(np.float32).max)

DAMAGED, AGAIN = "cannot use the golden output of the model card", "make it again: edgeapp golden --engine FILE --write"


class Model(Protocol):
    """The part of an engine that is needed here."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def infer(self, tensors: Tensors) -> Tensors: ...


def make(engine: Model, card: Card, *, rough: bool = False) -> dict[str, Any]:
    """Run the engine on noise and keep what it answers.

    Args:
        card: complete; says how large pictures are and what range their numbers have.
        rough: it may calculate in half precision, whatever its outputs are.

    Returns:
        the key `golden` of data/model_card.schema.json.

    Raises:
        DataError: the model cannot be run on noise, or answers NaN.
    """
    inputs = _inputs(engine, card)
    drift = DRIFT * (ROUGH_TOLERANCE if rough else TOLERANCE)
    runs = [engine.infer(_tensors(engine.inputs, inputs))]
    runs += [engine.infer(_tensors(engine.inputs, inputs, drift, seed)) for seed in range(1, DRIFTS + 1)]
    outputs = {spec.name: _kept(spec, [run[spec.name] for run in runs], rough) for spec in engine.outputs}
    return {"schema": SCHEMA, "made_with": engine.name, "inputs": inputs, "outputs": outputs}


def noise_for(engine: Model, card: Card) -> Tensors:
    """A tensor of noise for every input."""
    return _tensors(engine.inputs, _inputs(engine, card))


def shapes_only(keys: Mapping[str, Any]) -> list[str]:
    """The outputs of which nothing but dtype and shape is kept."""
    return [name for name, kept in keys["outputs"].items() if "values" not in kept]


def compare(engine: Model, keys: Mapping[str, Any]) -> list[str]:
    """See Golden."""
    return Golden(keys).differences(engine)


class Golden:
    """What a model has to answer; the noise is made once.

    Args:
        keys: the key `golden` of a card that passed the schema.

    Raises:
        ConfigurationError: the keys contradict each other.
    """

    def __init__(self, keys: Mapping[str, Any]) -> None:
        self._inputs: Mapping[str, Any] = keys["inputs"]
        self._outputs: Mapping[str, Any] = keys["outputs"]
        self._made_for: tuple[TensorSpec, ...] = ()
        self._tensors: Tensors = {}
        for name, wanted in self._inputs.items():
            if math.prod(wanted["shape"]) > MOST_NUMBERS:
                raise errors.ConfigurationError(DAMAGED, f"input {name}: its shape is too large", AGAIN)
            if not -HIGHEST <= wanted["range"][0] <= wanted["range"][1] <= HIGHEST:
                raise errors.ConfigurationError(DAMAGED, f"input {name}: its range is none", AGAIN)
        for name, kept in self._outputs.items():
            if "values" in kept and len(kept["values"]) != min(MOST_VALUES, math.prod(kept["shape"])):
                raise errors.ConfigurationError(DAMAGED, f"output {name}: values and shape do not match", AGAIN)

    def differences(self, engine: Model) -> list[str]:
        """Run the engine once and say how its answer differs; empty if it does not.

        Raises:
            EdgeappError: the engine failed.
        """
        if engine.inputs != self._made_for:
            if wrong := self._wrong_inputs(engine.inputs):
                return wrong
            self._tensors, self._made_for = _tensors(engine.inputs, self._inputs), engine.inputs
        found = engine.infer(self._tensors)
        specs = {spec.name: spec for spec in engine.outputs}
        wrong = [f"output {name} is missing" for name in self._outputs if name not in specs]
        wrong += [f"output {name} is new" for name in specs if name not in self._outputs]
        for name, spec in specs.items():
            if name in self._outputs and (text := _difference(found[name], spec, self._outputs[name])):
                wrong.append(f"output {name}: {text}")
        return wrong

    def _wrong_inputs(self, specs: Sequence[TensorSpec]) -> list[str]:
        wrong = [f"input {spec.name} is new" for spec in specs if spec.name not in self._inputs]
        wrong += [f"input {name} is missing" for name in self._inputs if name not in {spec.name for spec in specs}]
        for spec in specs:
            shape = self._inputs[spec.name]["shape"] if spec.name in self._inputs else spec.shape
            if len(shape) != len(spec.shape) or any(n not in (-1, m) for n, m in zip(spec.shape, shape, strict=True)):
                wrong.append(f"input {spec}: the golden one has shape {tuple(shape)}")
        return wrong


def _difference(found: NDArray[Any], spec: TensorSpec, kept: Mapping[str, Any]) -> str:
    """How an output differs from what was kept of it, "" if it does not."""
    if spec.dtype != kept["dtype"]:
        return f"it is {spec.dtype}, golden is {kept['dtype']}"
    if found.ndim != len(kept["shape"]) or any(
        n not in (-1, m) for n, m in zip(kept["shape"], found.shape, strict=True)
    ):
        return f"its shape is {found.shape}, golden is {tuple(kept['shape'])}"
    if found.dtype.kind == "f" and (count := int(np.isnan(found).sum())):
        return f"{count} of {found.size} values are NaN"
    if "values" not in kept:
        return ""
    distance = _distance(_values(found, in_order=not kept.get("sorted")), kept["values"], found.dtype.kind)
    if distance <= kept["tolerance"]:
        return ""
    return f"differs by {distance:.3g}, {kept['tolerance']:.3g} is allowed"


def _kept(spec: TensorSpec, runs: Sequence[NDArray[Any]], rough: bool) -> dict[str, Any]:
    """What to keep of an output.

    Args:
        runs: the answer to the noise, then those to noise that was changed a little.
    """
    first = runs[0]
    if any(run.ndim != first.ndim for run in runs):
        raise errors.DataError(f"output tensor {spec}: the number of its dimensions changes with the input", "", "")
    shape = [n[0] if len(set(n)) == 1 else -1 for n in zip(*(run.shape for run in runs), strict=True)]
    kept: dict[str, Any] = {"dtype": spec.dtype, "shape": shape}
    kind = first.dtype.kind
    if kind == "f" and np.isnan(first).any():
        raise errors.DataError(
            f"cannot make a golden output: {int(np.isnan(first).sum())} of {first.size} values of {spec.name} are NaN",
            "the model answers so to noise; in half precision that is often an overflow",
            "check the model on a picture; build it in float32",
        )
    if kind not in "fiub" or spec.dtype == "float8" or -1 in shape:
        return kept
    least = 0.0 if kind != "f" else ROUGH_TOLERANCE if rough or spec.dtype in ROUGH else TOLERANCE
    for in_order in (True, False):
        values, *others = (_values(run, in_order=in_order) for run in runs)
        tolerance = max(least, SAFETY * max(_distance(other, values, kind) for other in others))
        if tolerance <= MOST_TOLERANCE:
            kept.update({"values": values, "tolerance": float(f"{tolerance:.2g}")})
            return kept if in_order else {**kept, "sorted": True}
    return kept


def _values(array: NDArray[Any], *, in_order: bool) -> list[Any]:
    """Numbers of a tensor that are spread evenly over it; as short as their dtype allows."""
    flat = array.reshape(-1)
    if not in_order:
        flat = np.sort(flat)
    count = min(MOST_VALUES, flat.size)
    picked = flat[np.arange(count) * flat.size // max(count, 1)]
    if picked.dtype.kind != "f":
        return [int(value) for value in picked]
    return [min(max(float(str(value)), -HIGHEST), HIGHEST) for value in picked]


def _distance(found: Sequence[Any], wanted: Sequence[Any], kind: str) -> float:
    """See the top of this file; 0 for equal values, 1 for others all over."""
    if not wanted:
        return 0.0
    if kind != "f":
        return len([a for a, b in zip(found, wanted, strict=True) if a != b]) / len(wanted)
    values, golden = np.array(found, np.float64), np.array(wanted, np.float64)
    sizes = np.sort(np.abs(golden[golden != 0]))
    small = float(sizes[len(sizes) // 10]) if len(sizes) else 1e-30
    relative = np.minimum(1, np.abs(values - golden) / (np.abs(golden) + small))
    return math.sqrt(float(np.mean(relative**2)))


def _inputs(engine: Model, card: Card) -> dict[str, Any]:
    """Shape and range of the noise for every input."""
    return {
        spec.name: {"shape": list(_shape(spec, engine, card)), "range": _range(spec, card)} for spec in engine.inputs
    }


def _shape(spec: TensorSpec, engine: Model, card: Card) -> Shape:
    """The smallest picture batch, or what the first profile was tuned for; every free dimension gets a size."""
    wanted = list(spec.profiles[0][1] if spec.profiles else (1, *[FREE_SIZE] * len(spec.shape))[: len(spec.shape)])
    if _is_picture(engine.inputs, card):
        width, height = card.size_wh
        channels = 1 if card.color_order == "GRAY" else 3
        least = min((low[0] for low, _, _ in spec.profiles), default=1)
        wanted = [least, channels, height, width] if card.layout == "NCHW" else [least, height, width, channels]
    return tuple(n if n >= 0 else free for n, free in zip(spec.shape, wanted, strict=True))


def _is_picture(inputs: Sequence[TensorSpec], card: Card) -> bool:
    return len(inputs) == 1 and len(inputs[0].shape) == 4 and card.size_wh != (0, 0)


def _range(spec: TensorSpec, card: Card) -> list[float]:
    """The lowest and the highest number of the noise: of a picture what black and white become."""
    if spec.dtype in ("uint8", "int8"):
        return [0, 255] if spec.dtype == "uint8" else [-127, 127]
    if not _is_float(spec.dtype) or card.size_wh == (0, 0):
        return [0, 1]
    ends = [(255 * pixel * card.scale - m) / s for pixel in (0, 1) for m in card.mean for s in card.std]
    return [float(f"{end:.6g}") for end in (min(ends), max(ends))]


def _is_float(dtype: str) -> bool:
    return dtype.startswith("float") or dtype == "bfloat16"


def _tensors(specs: Sequence[TensorSpec], wanted: Mapping[str, Any], drift: float = 0.0, seed: int = 0) -> Tensors:
    """The noise for every input.

    Args:
        drift: how much it is changed, as a share of its range; only what is no index, count or truth value is.
    """
    tensors: Tensors = {}
    for spec in specs:
        shape, (low, high) = wanted[spec.name]["shape"], wanted[spec.name]["range"]
        values = noise(shape)
        changes = noise(shape, seed) if drift else None
        if _is_float(spec.dtype):
            if changes is not None:
                values = values + np.float32(drift) * (2 * changes - 1)
            tensors[spec.name] = (low + (high - low) * values).astype(np.float32)
        elif spec.dtype == "bool":
            tensors[spec.name] = values > 0.5
        else:
            whole = np.rint(low + (high - low) * values).astype(np.int64)
            if changes is not None and spec.dtype in ("uint8", "int8"):
                whole = np.minimum(whole + (changes < CHANGED_PIXELS), int(high))
            tensors[spec.name] = whole
    return tensors
