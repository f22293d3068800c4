"""What the tests share: the program in two forms, models, pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import make_models
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
BINARY = Path(os.environ.get("EDGEAPP_BINARY", ROOT / "dist" / "edgeapp"))


@dataclass
class Outcome:
    """How one run of the program ended."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def line(self) -> dict[str, Any]:
        assert len(self.lines) == 1, self
        return self.lines[0]


@dataclass
class Program:
    """The program, run from outside as a user would."""

    command: list[str]
    cwd: Path
    env: dict[str, str]

    def __call__(
        self,
        *words: str | Path | bytes,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        input: bytes | None = None,
        stdout: Any = subprocess.PIPE,
        timeout: float = 60,
    ) -> Outcome:
        """Run to the end with `input` on standard input; both outputs must be valid UTF-8."""
        done = subprocess.run(
            [*self.command, *map(os.fsencode, words)],
            cwd=cwd or self.cwd,
            env=self.env | (env or {}),
            input=input or b"",
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=timeout,
            check=False,
        )
        return Outcome(done.returncode, (done.stdout or b"").decode(), done.stderr.decode())

    def start(self, *words: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*self.command, *map(str, words)], cwd=self.cwd, env=self.env, **options)


def frozen_binary() -> Path:
    """The frozen file; skips the test without one, unless EDGEAPP_REQUIRE_FROZEN says it must be there."""
    if not BINARY.is_file():
        reason = f"{BINARY} is missing: ./build.sh freeze makes it"
        if os.environ.get("EDGEAPP_REQUIRE_FROZEN") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return BINARY


@pytest.fixture(params=["source", pytest.param("frozen", marks=pytest.mark.frozen)])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Program:
    """The program as source tree and as frozen file; every test that takes it runs twice."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    if request.param == "frozen":
        return Program([str(frozen_binary())], tmp_path, env)
    return Program([sys.executable, "-m", "edgeapp"], tmp_path, {**env, "PYTHONPATH": str(ROOT)})


@pytest.fixture
def source_program(tmp_path: Path) -> Program:
    """The program as source tree only, for what needs no second look when frozen."""
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
    }
    return Program([sys.executable, "-m", "edgeapp"], tmp_path, env)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the models that make_models.py writes."""
    folder = tmp_path_factory.mktemp("models")
    make_models.write_all(folder)
    return folder


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    """Larger models with reference outputs, where they lie beside the checkout; skips without them."""
    folder = Path(os.environ.get("EDGEAPP_FIXTURES", ROOT.parent / "shared" / "fixtures"))
    if not folder.is_dir():
        pytest.skip("no folder of larger fixtures: set EDGEAPP_FIXTURES")
    return folder


@pytest.fixture(scope="session")
def noise() -> Callable[[int, int], Image.Image]:
    """A picture maker: (width, height) -> smooth coloured noise, the same every time."""

    def make(width: int, height: int) -> Image.Image:
        rng = np.random.default_rng(width * 10_000 + height)
        small = rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
        return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)

    return make


@pytest.fixture
def picture(tmp_path: Path, noise: Callable[[int, int], Image.Image]) -> Path:
    """A 96x64 JPEG."""
    path = tmp_path / "picture.jpg"
    noise(96, 64).save(path, quality=95)
    return path


def plain_png(path: Path, color: Sequence[int], size: tuple[int, int] = (40, 30)) -> Path:
    """A picture of one colour."""
    Image.new("RGB", size, tuple(color)).save(path)
    return path
