"""What the tests share: the program in two forms, models, pictures."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from campaigning import CAMPAIGN, Row
from PIL import Image
from support import BINARY, ROOT, Clock, Program, frozen_binary

# What nohup or a shell's & has the tests ignore, the program would be born ignoring.
for number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def frozen_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the frozen file unpacks itself, once for all tests that are not about that."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(params=["source", pytest.param("frozen", marks=pytest.mark.frozen)])
def program(request: pytest.FixtureRequest, tmp_path: Path, frozen_cache: Path) -> Program:
    """The program as source tree and as frozen file; every test that takes it runs twice."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    if request.param == "frozen":
        return Program([str(frozen_binary())], tmp_path, env | {"EDGEAPP_CACHE": str(frozen_cache)})
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


@pytest.fixture
def service(request: pytest.FixtureRequest, source_program: Program, frozen_cache: Path) -> Program:
    """The frozen file in a campaign, where there is one; the source tree else."""
    if not (CAMPAIGN and BINARY.is_file()):
        return source_program
    env = {key: value for key, value in source_program.env.items() if key != "PYTHONPATH"}
    frozen = Program([str(BINARY)], source_program.cwd, env | {"EDGEAPP_CACHE": str(frozen_cache)})
    assert frozen("--version").returncode == 0  # what takes long the first time is not what is looked at
    return frozen


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the models that make_models.py writes."""
    import make_models  # late: the GPU tests can run without the onnx package

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
def clock() -> Clock:
    return Clock()


@pytest.fixture
def picture(tmp_path: Path, noise: Callable[[int, int], Image.Image]) -> Path:
    """A 96x64 JPEG."""
    path = tmp_path / "picture.jpg"
    noise(96, 64).save(path, quality=95)
    return path


@pytest.fixture
def row(record_property: Callable[[str, object], None]) -> Row:
    """Give the numbers of this fault's row of the table."""

    def record(fault: str, **numbers: object) -> None:
        record_property("fault", fault)
        for name, value in numbers.items():
            record_property(name.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else value)

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = []
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            told = dict(report.user_properties)
            if report.when == "call" and "fault" in told:
                fault = str(told.pop("fault"))
                numbers = ", ".join(f"{name} {value}" for name, value in told.items())
                rows.append((int(fault.split()[0].strip("F")), f"| {fault} | {numbers} | {report.outcome} |"))
    if rows:
        terminalreporter.write_line("| fault | numbers | |\n|---|---|---|")
        for _, line in sorted(rows):
            terminalreporter.write_line(line)
