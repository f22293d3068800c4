"""`edgeapp --version --json`, `--sbom` and `--licenses`: what this program is, and what is in it.

hooks/sbom.py makes sbom.json and the folder licences/ when the program is frozen, edgeapp.spec makes build.json.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeapp import __version__, errors, launched, paths
from edgeapp.log import tell

RULE = "=" * 120


def about(what: str) -> int:
    """Print "version" (a line), "facts" (JSON), "sbom" (CycloneDX JSON) or "licenses"; 0.

    Raises:
        NotFoundError: sbom and licenses are in the frozen file only.
        InputOutputError, CannotWriteError: standard output does not take it.
    """
    if what == "version":
        texts = iter([f"edgeapp {__version__}\n"])
    elif what == "facts":
        texts = iter([json.dumps(facts(), indent=2) + "\n"])
    else:
        bill = _read(what).decode()
        texts = iter([bill]) if what == "sbom" else licences(json.loads(bill), paths.library_root().parent)
    tell(texts)
    return 0


def facts() -> dict[str, Any]:
    """What tells this program from others; null is what is not known, or not in it.

    Keys: edgeapp, commit, built (UTC), python, machine, tensorrt (flavour, runtimes), pycuda, cuda_runtime, numpy,
    pillow, onnxruntime, glibc_floor (the oldest glibc it starts on), digest (names the content of the one file),
    file (where the one file lies).
    """
    from edgeapp.gpu import runtimes

    built = _built() if paths.FROZEN else _installed()
    return {
        "edgeapp": __version__,
        "commit": built.get("commit"),
        "built": built.get("built"),
        "python": ".".join(map(str, sys.version_info[:3])),
        "machine": os.uname().machine,
        "tensorrt": {
            "flavour": runtimes.flavour()["tensorrt"],
            "runtimes": [runtime.name for runtime in runtimes.catalogue()],
        },
        **{key: built.get(key) for key in ("pycuda", "cuda_runtime", "numpy", "pillow", "onnxruntime", "glibc_floor")},
        "digest": launched.launched().content or None,
        "file": paths.text(str(file)) if (file := launched.launched().file) else None,
    }


def _built() -> dict[str, Any]:
    values: dict[str, Any] = json.loads((paths.library_root() / "build.json").read_bytes())
    return values


def _installed() -> dict[str, Any]:
    """The same of the source tree, as far as the installed packages tell it."""
    from importlib import metadata

    found: dict[str, Any] = {}
    names = {
        "pycuda": ("pycuda",),
        "cuda_runtime": ("nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime"),
        "numpy": ("numpy",),
        "pillow": ("pillow",),
        "onnxruntime": ("onnxruntime",),
    }
    for key, distributions in names.items():
        for name in distributions:
            try:
                found.setdefault(key, metadata.version(name))
            except metadata.PackageNotFoundError:
                continue
    return found


def _read(flag: str) -> bytes:
    file = paths.library_root() / "sbom.json"
    if not paths.FROZEN or not file.is_file():
        raise errors.NotFoundError(
            f"cannot print --{flag}: this program knows nothing of its parts",
            "what is inside is written down when it is frozen into one file; this one runs from its source",
            f"./build.sh freeze, then dist/edgeapp --{flag}",
        )
    try:
        return file.read_bytes()
    except OSError as error:
        raise paths.refusal(f"cannot read {file}", error) from error


def licences(bill: dict[str, Any], folder: Path) -> Iterator[str]:
    """Every component of a bill of materials with its licence texts, in its order; NVIDIA's terms first.

    Args:
        bill: as hooks/sbom.py made it.
        folder: what its file names are relative to.
    """
    yield paths.resource("nvidia_terms.txt").read_text("utf-8")
    printed: dict[str, str] = {}
    for component in (bill["metadata"]["component"], *bill["components"]):
        inside = component.get("components", [])
        title = _title(component)
        yield f"\n{RULE}\n{title}\n"
        for part in inside:
            if part["type"] != "file":
                yield f"  with {_title(part)}; its licence text is one of these\n"
        yield f"{RULE}\n"
        texts = [part for part in inside if part["type"] == "file" and "/licences/" in part["name"]]
        if not texts:
            yield "\nNo licence text came with it.\n"
        for text in texts:
            digest = text["hashes"][0]["content"]
            name = text["name"].split("/licences/")[1]
            if digest in printed:
                yield f"\n--- {name}: the same as {printed[digest]}, above\n"
                continue
            printed[digest] = name
            try:
                words = (folder / text["name"]).read_text("utf-8", "replace")
            except OSError as error:
                raise paths.refusal(f"cannot read {folder / text['name']}", error) from error
            yield f"\n--- {name}\n\n{words.rstrip()}\n"


def _title(component: dict[str, Any]) -> str:
    """NAME VERSION: LICENCE."""
    licences = (
        entry.get("expression") or entry["license"].get("id") or entry["license"]["name"]
        for entry in component["licenses"]
    )
    return f"{component['name']} {component['version']}: {', '.join(licences)}"
