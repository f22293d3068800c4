"""The program and a model that takes no time."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from serving import Spool


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture(scope="session")
def tiny(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of 298 bytes with a card: what is measured is the service, not the model."""
    folder = tmp_path_factory.mktemp("tiny")
    shutil.copy(models / "classifier.onnx", folder / "model.onnx")
    card = {"schema": 1, "task": "classify", "size_wh": [32, 32], "resize": "stretch", "antialias": False,
            "color_order": "RGB", "scale": 1 / 255, "mean": [0, 0, 0], "std": [1, 1, 1],
            "labels": ["red", "green", "blue", "dark", "bright"]}  # fmt: skip
    (folder / "model.json").write_text(json.dumps(card))
    return folder / "model.onnx"


@pytest.fixture(scope="session")
def small() -> Callable[[int], bytes]:
    """Number -> a small JPEG of its own bytes."""
    data = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 40, 90)).save(data, "JPEG")
    return lambda number: data.getvalue() + b"%d" % number
