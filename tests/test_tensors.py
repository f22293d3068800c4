"""Input tensors are converted without changing what they say, or refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import ROOT

from edgeapp import tensors
from edgeapp.errors import DataError
from edgeapp.records import TensorSpec

HOST = {
    "float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(np.uint16),
    "float8": np.dtype(np.uint8), "int8": np.dtype(np.int8), "uint8": np.dtype(np.uint8),
    "int32": np.dtype(np.int32), "int64": np.dtype(np.int64), "bool": np.dtype(np.bool_),
}  # fmt: skip


def spec(dtype: str, shape: tuple[int, ...] = (2,)) -> TensorSpec:
    return TensorSpec("x", shape, dtype, True)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([1.5, 2.0]), "float32"),
        (np.array([1, 2]), "float32"),
        (np.array([1, 2]), "int32"),
        (np.array([1, 2], np.uint8), "int64"),
        (np.array([True, False]), "bool"),
        (np.array([1, 255]), "uint8"),
        (np.array([1, 200], np.uint8), "float8"),
        (np.array([1.5, 2.0]), "bfloat16"),
    ],
)
def test_convert_keeps_values(values: np.ndarray, dtype: str) -> None:
    """What fits is taken, from wider types too."""
    found = tensors.convert(values, spec(dtype), HOST)
    assert found.dtype == HOST[dtype]
    back = tensors.bfloat16_values(found) if dtype == "bfloat16" else found
    assert back.tolist() == values.tolist()


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([1.5]), "int32"),
        (np.array([300]), "uint8"),
        (np.array([-1]), "uint8"),
        (np.array([2**31]), "int32"),
        (np.array([2, 1]), "bool"),
        (np.array([1 + 2j]), "float32"),
        (np.array(["a"]), "float32"),
        (np.array([1.0]), "float8"),
        (np.array(["2020-01-01"], "M8[D]"), "bfloat16"),
    ],
)
def test_convert_refuses_what_would_change(values: np.ndarray, dtype: str) -> None:
    """Bytes are never reinterpreted and nothing is cut off."""
    with pytest.raises(DataError, match="do not fit into"):
        tensors.convert(values, spec(dtype), HOST)


def test_bfloat16_rounds_to_nearest_even() -> None:
    """Against the definition: the nearest of all bfloat16 values, ties to the even one."""
    rng = np.random.default_rng(0)
    values = np.concatenate(
        (
            rng.normal(0, 100, 2000).astype(np.float32),
            np.float32([0, -0.0, 1, 3e38, np.inf, -np.inf]),
        )
    )
    grid = np.arange(1 << 16, dtype=np.uint16)
    numbers = tensors.bfloat16_values(grid)
    finite = np.sort(numbers[np.isfinite(numbers)].astype(np.float64))
    for value in values[:300].astype(np.float64):
        found = float(tensors.bfloat16_values(tensors.bfloat16_bits(np.float32([value])))[0])
        assert abs(found - value) == np.abs(finite - value).min()
    halfway = np.float32([1 + 2**-8, 1 + 3 * 2**-8])  # ties: to 1 and to 1 + 2 * 2**-7
    assert tensors.bfloat16_values(tensors.bfloat16_bits(halfway)).tolist() == [1.0, 1 + 2**-6]
    special = tensors.bfloat16_values(tensors.bfloat16_bits(np.float32([np.inf, -np.inf, np.nan, -0.0])))
    assert special[0] == np.inf
    assert special[1] == -np.inf
    assert np.isnan(special[2])
    assert np.signbit(special[3])


def test_names_and_shapes_are_checked_by_name() -> None:
    """The message names what the engine wants."""
    with pytest.raises(DataError, match="y do not match"):
        tensors.check_names({"y": np.zeros(2)}, (spec("float32"),))
    with pytest.raises(DataError, match=r"shape \(3,\) does not fit"):
        tensors.check_shape(np.zeros(3), spec("float32"))
    tensors.check_shape(np.zeros((7, 2)), spec("float32", (-1, 2)))


MANY_READERS = """
import gc, json, sys, threading
from edgeapp.sources.arrays import read_tensors
sys.setswitchinterval(1e-6)
gc.set_threshold(10)
gc.callbacks.append(lambda *_: sum(range(50)))  # Python code in the middle of a parse: another thread may have its turn
wrong = []
def work():
    try:
        for _ in range(2000):
            read_tensors(sys.argv[1])
    except BaseException as error:
        wrong.append(repr(error))
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(wrong))
"""


def test_files_are_read_by_many_threads_at_once(tmp_path: Path) -> None:
    """The parser that reads their headers is not for several threads in CPython 3.11."""
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 4, 4), np.float32))
    done = subprocess.run(
        [sys.executable, "-c", MANY_READERS, tmp_path / "x.npy"], env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == []
