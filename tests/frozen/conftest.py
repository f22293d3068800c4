"""The finished program: dist/edgeapp, or the file that EDGEAPP_BINARY names."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from installed import OURS
from support import ROOT, frozen_binary
from systemd import Machine


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


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty folder that everybody may enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def tiny(binary: Path, place: Path) -> Callable[..., Path]:
    """Makes one file of the real launcher and a shell script."""
    data = binary.read_bytes()
    (frames_at,) = struct.unpack_from("<Q", data, len(data) - 56)
    launcher = place / "launcher"
    launcher.write_bytes(data[:frames_at])

    def make(script: str, name: str = "tiny", glibc: str = "") -> Path:
        folder = place / f"{name}.folder"
        (folder / "_internal").mkdir(parents=True)
        (folder / "edgeapp").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "_internal" / "data").write_bytes(bytes(range(256)) * 1000)
        (folder / "_internal" / "link").symlink_to("data")
        if glibc:
            (folder / "_internal" / "build.json").write_text(json.dumps({"glibc_floor": glibc}))
        subprocess.run(
            [sys.executable, ROOT / "hooks/launcher/pack.py", launcher, folder, place / name, place / "frames"],
            env={"SOURCE_DATE_EPOCH": "1700000000"}, check=True,
        )  # fmt: skip
        return place / name

    return make


@pytest.fixture
def real(content: Path, binary: Path, frozen_cache: Path) -> Iterator[Machine]:
    """A machine with the real program as /src/edgeapp; what it carries is unpacked for it there."""
    places = {
        binary: "/src/edgeapp",
        frozen_cache: "/src/cache",
        ROOT / "edgeapp/data/demo": "/src/demo",
        ROOT / "tests/frozen": "/src/files",
    }
    with Machine(places, hidden=OURS) as machine:
        machine.environment["EDGEAPP_CACHE"] = "/src/cache"
        yield machine
