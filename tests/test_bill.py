"""hooks/sbom.py, which tells what the frozen folder is made of; tests/frozen/test_sbom.py looks at what comes out."""

from __future__ import annotations

import importlib.util
import json
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support import ROOT


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "hooks" / "sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sbom"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bill(sbom: ModuleType, tmp_path: Path) -> Any:
    """A bill that knows nothing yet."""
    return sbom.Bill({"work": str(tmp_path / "work"), "files": {}, "modules": {}})


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("MIT", [{"license": {"id": "MIT"}}]),
        ("bzip2-1.0.6", [{"license": {"id": "bzip2-1.0.6"}}]),
        ("MIT AND Zlib", [{"expression": "MIT AND Zlib"}]),
        ("GPL-2.0-or-later WITH Bootloader-exception", [{"expression": "GPL-2.0-or-later WITH Bootloader-exception"}]),
        ("NVIDIA Something", [{"license": {"name": "NVIDIA Something"}}]),
    ],
    ids=["identifier", "identifier with digits", "several", "exception", "not in SPDX"],
)
def test_licence_takes_the_form_that_cyclonedx_wants(sbom: ModuleType, licence: str, expected: Any) -> None:
    """Identifiers, expressions and names have a key each."""
    assert sbom.licences(licence) == expected


def test_package_url_escapes_what_it_must(sbom: ModuleType) -> None:
    """A colon or a plus in a Debian version would be read as something else."""
    assert sbom.purl("deb/debian", "zlib1g", "1:1.2+x", arch="amd64") == "pkg:deb/debian/zlib1g@1%3A1.2%2Bx?arch=amd64"


@pytest.mark.parametrize(
    "name", ["_internal/stray.txt", "edgeapp!stray.module", "_internal/base_library.zip!stray.pyc"]
)
def test_what_came_from_nowhere_ends_the_build(sbom: ModuleType, bill: Any, name: str) -> None:
    """A file or module without an owner is named; it does not slip in under somebody's licence."""
    with pytest.raises(sbom.UnexplainedError, match="stray"):
        bill.of_file(name)


def test_module_of_a_wheel_belongs_to_it(bill: Any) -> None:
    """The wheel's RECORD decides, not the name of the folder: Pillow's is PIL."""
    site = Path(sysconfig.get_paths()["purelib"])
    component = bill.of_source(str(site / "PIL" / "Image.py"))
    assert component.name == "pillow"
    assert component.licence == "MIT-CMU"
    assert component.purl.startswith("pkg:pypi/pillow@")
    assert all(path.is_file() for path in component.texts.values())


def test_library_in_a_wheel_is_a_part_of_it(bill: Any) -> None:
    """OpenBLAS says its version itself; it hangs below NumPy."""
    site = Path(sysconfig.get_paths()["purelib"])
    library = next((site / "numpy.libs").glob("libscipy_openblas*"))
    part = bill.of_source(str(library))
    assert part.name == "OpenBLAS"
    assert part.version.startswith("0.3.")
    numpy = next(component for component in bill.components.values() if component.name == "numpy")
    assert list(numpy.parts.values()) == [part]


def test_library_linked_into_a_wheel_is_a_part_of_it(bill: Any) -> None:
    """libsodium has advisories of its own; PyNaCl's changelog says which one it holds, as no file does."""
    site = Path(sysconfig.get_paths()["purelib"])
    component = bill.of_source(str(site / "nacl" / "bindings" / "__init__.py"))
    assert (component.name, component.licence) == ("pynacl", "Apache-2.0")
    (part,) = component.parts.values()
    assert (part.name, part.licence) == ("libsodium", "ISC")
    assert part.version.startswith("1.0.20")
    assert any("ISC License" in text.read_text() for text in component.texts.values())


def test_library_that_no_package_knows_names_itself(bill: Any, tmp_path: Path) -> None:
    """Where dpkg is of no help the component says so, and a known library has its licence and its own version."""
    (tmp_path / "libz.so.1").write_bytes(b"\0 deflate 1.3.1 Copyright 1995-2024 \0")
    (tmp_path / "libfoo.so.1").write_bytes(b"\x7fELF")
    known = bill.of_source(str(tmp_path / "libz.so.1"))
    assert (known.name, known.version, known.licence) == ("zlib", "1.3.1", "Zlib")
    unknown = bill.of_source(str(tmp_path / "libfoo.so.1"))
    assert (unknown.name, unknown.version) == ("libfoo", "unknown")
    assert unknown.licence == "unknown: no package of the build host has libfoo.so.1"


def test_namespace_belongs_to_who_is_in_it(sbom: ModuleType) -> None:
    """A folder without code has no source; whoever has something in it owns it."""
    site = Path(sysconfig.get_paths()["purelib"])
    origins = {"work": "/nowhere", "files": {}, "modules": {"space": "-", "space.a": str(site / "PIL" / "Image.py")}}
    assert sbom.Bill(origins).of_module("space").name == "pillow"


def test_document_of_equal_bills_is_equal(sbom: ModuleType) -> None:
    """Neither the order of finding nor the clock shows; another file changes the serial number."""

    def made(*names: str) -> dict[str, Any]:
        bill = sbom.Bill({"work": "/nowhere", "files": {}, "modules": {}})
        for name in names:
            component = bill.add(sbom.Component(name, "1", "MIT", sbom.purl("generic", name, "1")))
            component.files[f"_internal/{name}"] = "00" * 32
        document: dict[str, Any] = sbom.document(bill, 1_700_000_000)
        return document

    assert json.dumps(made("a", "b")) == json.dumps(made("b", "a"))
    assert made("a", "b")["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    assert made("a")["serialNumber"] != made("a", "b")["serialNumber"]
