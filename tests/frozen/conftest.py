"""The finished program: dist/edgeapp, or the file that EDGEAPP_BINARY names."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support import frozen_binary


@pytest.fixture(scope="session")
def binary() -> Path:
    """The path of the frozen program; skips where there is none, unless it must be there."""
    return frozen_binary()


@pytest.fixture(scope="session")
def content(binary: Path, frozen_cache: Path) -> Path:
    """The folder that the frozen file unpacks: the program, its manifest, and the bundle beside them."""
    env = {"EDGEAPP_CACHE": str(frozen_cache)}
    subprocess.run([binary, "--version"], env=env, capture_output=True, check=True, timeout=60)
    return next(path for path in frozen_cache.iterdir() if path.is_dir())


@pytest.fixture(scope="session")
def bundle(content: Path) -> Path:
    """The folder with all that travels inside but the program itself."""
    return content / "_internal"


@pytest.fixture
def lean_bundle(bundle: Path) -> Path:
    """The same, for what holds of the lean program only."""
    flavour = json.loads((bundle / "build.json").read_text())["tensorrt"]
    if flavour != "lean":
        pytest.skip(f"built with TensorRT {flavour}")
    return bundle
