"""What the GPU tests share. One command runs them all on a machine with an NVIDIA GPU:

    python -m pytest tests/gpu            (the frozen file: dist/edgeapp, or EDGEAPP_BINARY)

They need Python 3.10 or newer with NumPy, Pillow and pytest; nothing of CUDA but the driver. test_serve.py makes a
small library with a C compiler, or takes it from EDGEAPP_STING_LIBRARY (tests/gpu/sting.c says how to make it).
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from support import Program, frozen_binary

HERE = Path(__file__).parent


def gpu_count() -> int:
    """How many GPUs the driver shows; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


COUNT = gpu_count()


def capability() -> tuple[int, int]:
    """The compute capability of GPU 0."""
    driver, values = ctypes.CDLL("libcuda.so.1"), (ctypes.c_int(), ctypes.c_int())
    for value, attribute in zip(values, (75, 76), strict=True):
        assert driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0) == 0
    return values[0].value, values[1].value


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs a GPU, and skips for no other reason."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if COUNT == 0:
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))


@pytest.fixture
def edgeapp(tmp_path: Path, frozen_cache: Path) -> Program:
    """The frozen file, from outside, with an empty environment but for where it unpacks itself."""
    return Program([str(frozen_binary())], tmp_path, {"HOME": str(tmp_path), "EDGEAPP_CACHE": str(frozen_cache)})
