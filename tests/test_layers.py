"""The house rules that a linter cannot see: who may import whom, and what a start costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "edgeapp"

# A module may import modules of lower levels, and its own folder.
LEVELS = {
    "__init__": 0, "errors": 0, "records": 0, "paths": 0, "launched": 0, "gpus": 0, "stopping": 0, "workers": 0,
    "memory": 0, "cores": 0, "literals": 0, "headstart": 0,
    "settings": 1, "log": 1, "labels": 1, "plan": 1, "model": 1, "fitting": 1, "tensors": 1, "minisign": 1, "pixels": 1,
    "config": 1, "forking": 1,
    "sources": 2, "sinks": 2, "preprocess": 2, "postprocess": 2, "gpu": 2, "cpu": 2, "trust": 2, "golden": 2,
    "pipeline": 3, "direct": 3, "bootstrap": 3, "checks": 3, "service": 3, "fleet": 3,
    "commands": 4,
    "verbs": 5, "cli": 6, "__main__": 7,
}  # fmt: skip
INSIDE_LEVEL = {
    "paths": {"errors"},
    "headstart": {"memory"},
    "stopping": {"errors", "launched"},
    "records": {"errors"},
    "model": {"labels"},
    "fitting": {"model"},
    "config": {"settings"},
    "fleet": {"pipeline"},
    "direct": {"pipeline"},
}
GPU_ORDER = (
    "__init__", "machine", "faults", "driver", "nvml", "runtimes", "selection", "graphs", "buffers", "kernels",
    "preprocess", "filter", "engine", "infer", "intake", "slots", "ring", "meter", "build",
)  # fmt: skip
GPU_LIBRARIES = (
    "pycuda",
    "tensorrt",
    "tensorrt_lean_bindings",
    "tensorrt_lean",
    "tensorrt_dispatch",
)

MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[str]:
    """Dotted names that a file imports, at its top or inside functions."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_module_imports_only_lower_levels(path: Path) -> None:
    """An arrow never points up or sideways."""
    here = place(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "edgeapp" or len(parts) < 2:
            continue
        there = parts[1] if parts[1] in LEVELS else "__init__"
        allowed = there == here or LEVELS[there] < LEVELS[here] or there in INSIDE_LEVEL.get(here, ())
        assert allowed, f"{here} (level {LEVELS[here]}) imports {name} (level {LEVELS[there]})"


@pytest.mark.parametrize("path", sorted((PACKAGE / "gpu").glob("*.py")), ids=lambda p: p.name)
def test_gpu_module_imports_only_earlier_ones(path: Path) -> None:
    """Inside gpu/ the order is fixed, so no circle can grow."""
    for name in imports(path):
        parts = name.split(".")
        if parts[:2] == ["edgeapp", "gpu"] and len(parts) > 2 and parts[2] in GPU_ORDER:
            assert GPU_ORDER.index(parts[2]) < GPU_ORDER.index(path.stem)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_gpu_libraries_stay_inside_gpu_and_bootstrap(path: Path) -> None:
    """pycuda and tensorrt are imported nowhere else, lazily or not."""
    if place(path) in ("gpu", "bootstrap"):
        return
    assert not [name for name in imports(path) if name.split(".")[0] in GPU_LIBRARIES]


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(word: str) -> None:
    """A glance at the help costs no NumPy, Pillow, TensorRT or ONNX Runtime, and no ctypes either."""
    heavy = ("ctypes", "numpy", "PIL", "onnxruntime", "rich", "fastjsonschema", "nacl", *GPU_LIBRARIES)
    code = (
        "import sys\nfrom edgeapp.__main__ import main\n"
        f"sys.argv[1:] = ['{word}']\n"
        f"try:\n    main()\nexcept SystemExit as end:\n    assert end.code in (0, None), end.code\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
