"""The bill of materials and the licence texts inside the frozen file, held against the file itself."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import struct
import subprocess
import sys
import uuid
import zipfile
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing
from PyInstaller.archive.readers import CArchiveReader

import edgeapp

pytestmark = pytest.mark.frozen

ROOT = Path(__file__).parents[2]
OF_THE_LAUNCHER = {"manifest"}
"""What the launcher puts beside the program when it unpacks; it lists everything, the bill of materials too."""

BASE = "http://cyclonedx.org/schema/"

NOT_IN_SPDX = {
    "NVIDIA CUDA Toolkit End User License Agreement",
    "NVIDIA cuDNN Software License Agreement",
    "NVIDIA TensorRT Software License Agreement",
    "public domain; 0BSD since 5.6",
}


@pytest.fixture(scope="module")
def printed(binary: Path, frozen_cache: Path) -> str:
    """What --sbom prints."""
    env = {"EDGEAPP_CACHE": str(frozen_cache)}
    return subprocess.run([binary, "--sbom"], env=env, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def bill(printed: str) -> dict[str, Any]:
    return json.loads(printed)


def tops(bill: dict[str, Any]) -> list[dict[str, Any]]:
    """The program and what it is made of, without what these carry along."""
    return [bill["metadata"]["component"], *bill["components"]]


def walk(components: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Components and what they carry along, files too."""
    for component in components:
        yield component
        yield from walk(component.get("components", []))


def packages(bill: dict[str, Any]) -> list[dict[str, Any]]:
    return [component for component in walk(tops(bill)) if component["type"] != "file"]


def files(bill: dict[str, Any]) -> list[dict[str, Any]]:
    return [component for component in walk(tops(bill)) if component["type"] == "file"]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_bill_follows_the_schema(bill: dict[str, Any]) -> None:
    """It is CycloneDX 1.6, by the schema that its authors publish; SPDX identifiers exist."""
    spec = find_spec("cyclonedx")
    assert spec is not None
    assert spec.origin is not None
    schemas = Path(spec.origin).parent.glob("schema/_res/*.schema.json")
    resources = {f"{BASE}{path.name}": json.loads(path.read_text()) for path in schemas}
    registry: referencing.Registry[Any] = referencing.Registry().with_contents(resources.items())
    schema = resources[f"{BASE}bom-1.6.SNAPSHOT.schema.json"] | {"$id": f"{BASE}bom-1.6.SNAPSHOT.schema.json"}
    jsonschema.Draft7Validator(schema, registry=registry, format_checker=jsonschema.FormatChecker()).validate(bill)
    known = set(resources[f"{BASE}spdx.SNAPSHOT.schema.json"]["enum"])
    for component in packages(bill):
        for entry in component["licenses"]:
            assert set(re.split(r" (?:AND|OR|WITH) ", entry.get("expression", "MIT"))) <= known
    broken = {**bill, "components": [{**bill["components"][0], "licenses": [{"license": {"id": "no such"}}]}]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema, registry=registry).validate(broken)


def test_every_file_of_the_bundle_belongs_to_one_component(bill: dict[str, Any], content: Path) -> None:
    """All files are listed, once, with their SHA-256; nothing is listed that is not there."""
    there = {
        str(path.relative_to(content)): sha256(path.read_bytes())
        for path in content.rglob("*")
        if path.is_file() and not path.is_symlink() and path.name not in OF_THE_LAUNCHER
    }
    listed = [file for file in files(bill) if "!" not in file["name"]]
    assert [name for name, count in Counter(file["name"] for file in listed).items() if count > 1] == []
    hashes = {file["name"]: file["hashes"][0]["content"] if "hashes" in file else None for file in listed}
    own = "_internal/sbom.json"
    assert hashes.pop(own) is None, "a document cannot hold its own hash"
    assert there.pop(own)
    assert hashes == there
    assert len(there) > 100


def test_links_of_the_bundle_lead_to_listed_files(bill: dict[str, Any], content: Path) -> None:
    """A link is no file of its own, and it does not lead away."""
    names = {file["name"] for file in files(bill)}
    for path in content.rglob("*"):
        if path.is_symlink():
            assert str(path.resolve().relative_to(content.resolve())) in names


def test_every_module_belongs_to_one_component(bill: dict[str, Any], content: Path) -> None:
    """So do the modules in the program and in base_library.zip, which are no files."""
    there = {}
    with zipfile.ZipFile(content / "_internal" / "base_library.zip") as library:
        for name in library.namelist():
            there[f"_internal/base_library.zip!{name}"] = sha256(library.read(name))
    program = CArchiveReader(str(content / "edgeapp"))
    for name, (*_, kind) in program.toc.items():
        if kind == "z":
            modules = program.open_embedded_archive(name)
            for module in modules.toc:
                there[f"edgeapp!{module}"] = sha256(modules.extract(module, raw=True) or b"")
        else:
            there[f"edgeapp!{name}"] = sha256(program.extract(name))
    listed = [file for file in files(bill) if "!" in file["name"]]
    assert [name for name, count in Counter(file["name"] for file in listed).items() if count > 1] == []
    assert {file["name"]: file["hashes"][0]["content"] for file in listed} == there
    assert {"edgeapp!edgeapp.cli", "edgeapp!numpy", "edgeapp!__main__"} <= set(there)


def test_modules_belong_to_the_package_of_their_name(bill: dict[str, Any]) -> None:
    """The owner is the right one, not just any."""
    owner = {
        part["name"]: component["name"] for component in walk(tops(bill)) for part in component.get("components", [])
    }
    expected = {
        "edgeapp": "pyinstaller",
        "edgeapp!edgeapp.cli": "edgeapp",
        "edgeapp!json.decoder": "CPython",
        "edgeapp!numpy.linalg": "numpy",
        "edgeapp!PIL.Image": "pillow",
        "edgeapp!pyimod02_importers": "pyinstaller",
        "edgeapp!rich.console": "rich",
        "_internal/base_library.zip": "CPython",
        "_internal/build.json": "edgeapp",
        "_internal/sbom.json": "edgeapp",
        "_internal/edgeapp/data/model_card.schema.json": "edgeapp",
        "_internal/licences/zstd/LICENSE": "zstd",
    }
    assert {name: owner[name] for name in expected} == expected
    for name, component in owner.items():
        if re.match(r"_internal/(libpython3|python3\.\d+/lib-dynload/)", name):
            assert component == "CPython", name
        if name.startswith("_internal/numpy.libs/libscipy_openblas"):
            assert component == "OpenBLAS"
        if name.startswith("_internal/pillow.libs/libjpeg"):
            assert component == "libjpeg-turbo"


def test_every_component_has_version_licence_and_name_for_scanners(bill: dict[str, Any]) -> None:
    """What is looked up when an advisory comes out is there for each, and no licence is a guess."""
    for component in packages(bill):
        name = component["name"]
        assert re.match(r"\d", component["version"].split(":")[-1]), name
        assert re.match(r"pkg:(pypi|generic|deb|rpm|github)/[^@]+@[^@]+$", component["purl"]), name
        for entry in component["licenses"]:
            known = entry.get("expression") or entry["license"].get("id")
            assert known or entry["license"]["name"] in NOT_IN_SPDX, name
    references = [component["bom-ref"] for component in packages(bill)]
    assert len(set(references)) == len(references)
    assert {entry["ref"] for entry in bill["dependencies"]} == set(references)


def test_components_are_those_that_are_pinned(bill: dict[str, Any], bundle: Path) -> None:
    """No Python package travels that no list names, and what build.json says is inside is inside."""
    found = {c["name"]: c["version"] for c in tops(bill) if c["purl"].startswith("pkg:pypi/")}
    lists = [(ROOT / "hooks" / f"requirements{name}.txt").read_text() for name in ("", "-lean", "-full")]
    pinned = set(re.findall(r"^([\w-]+)==", "\n".join(lists), re.MULTILINE))
    of_the_build = {"tensorrt-lean", "pycuda", "pyinstaller"}
    assert set(found) - of_the_build <= pinned
    facts = json.loads((bundle / "build.json").read_text())
    for name in ("pycuda", "numpy", "pillow", "onnxruntime"):
        assert found.get(name) == facts[name], name


def test_parts_that_are_no_packages_are_components(bill: dict[str, Any], bundle: Path) -> None:
    """The interpreter, the bootloader, the launcher and what these are linked with."""
    found = {component["name"]: component for component in tops(bill)}
    python = json.loads((bundle / "build.json").read_text())["python"]
    assert found["CPython"]["version"].startswith(python)
    assert found["pyinstaller"]["licenses"] == [
        {"expression": "GPL-2.0-or-later WITH Bootloader-exception AND Apache-2.0"}
    ]
    assert found["edgeapp"]["version"] == found["edgeapp-launcher"]["version"] == edgeapp.__version__
    assert {"musl", "zstd"} <= set(found)
    if os.environ.get("EDGEAPP_REQUIRE_PORTABLE") == "1":
        [module] = bundle.glob("python3.*/lib-dynload/_ssl.*.so")
        told = found["OpenSSL"]["version"].split("-")[0]
        assert f"OpenSSL {told} ".encode() in module.read_bytes()


def test_launcher_is_the_one_that_the_bill_names(binary: Path, bill: dict[str, Any]) -> None:
    """Its hash is that of the first bytes of the file, up to where the compressed files begin."""
    data = binary.read_bytes()
    (frames_at,) = struct.unpack_from("<Q", data, len(data) - 56)
    [launcher] = [component for component in tops(bill) if component["name"] == "edgeapp-launcher"]
    assert launcher["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(data[:frames_at]).hexdigest()}]


def test_bill_tells_nothing_of_the_build_machine(printed: str, bill: dict[str, Any], bundle: Path) -> None:
    """No path of it, and no time but that of the commit."""
    for path in {str(ROOT), str(Path.home()), sys.prefix, sys.base_prefix, "site-packages", "/tmp/"}:
        assert path not in printed
    assert bill["metadata"]["timestamp"] == json.loads((bundle / "build.json").read_text())["built"]
    assert uuid.UUID(bill["serialNumber"].removeprefix("urn:uuid:")).version == 5


def test_licences_print_every_text_under_its_component(bill: dict[str, Any], binary: Path, frozen_cache: Path) -> None:
    """Each component is headed, in the order of the bill, and has its text; a library in a wheel has the wheel's."""
    env = {"EDGEAPP_CACHE": str(frozen_cache)}
    done = subprocess.run([binary, "--licenses"], env=env, capture_output=True, check=True, timeout=60)
    text = done.stdout.decode()
    heads = re.findall(r"^={120}\n([^\n]+): [^\n]+\n(?:  with [^\n]*\n)*={120}\n", text, re.MULTILINE)
    assert heads == [f"{component['name']} {component['version']}" for component in tops(bill)]
    assert "No licence text came with it" not in text
    for component in tops(bill):
        names = [file["name"] for file in component["components"] if "/licences/" in file["name"]]
        assert names, component["name"]
        for name in names:
            assert f"--- {name.split('/licences/')[1]}" in text
    for words in (
        "Apache License", "GNU GENERAL PUBLIC LICENSE", "GCC RUNTIME LIBRARY EXCEPTION", "PYTHON SOFTWARE FOUNDATION",
        "Bootloader Exception", "NVIDIA SOFTWARE LICENSE AGREEMENT", "Redistribution and use in source and binary",
        "Rich Felker", "Meta Platforms",
    ):  # fmt: skip
        assert words in text, words
    assert "libnvinfer_lean, which the lean build of this program carries, is NOT named" in text.split("=" * 120)[0]


@pytest.mark.parametrize("name", ["OpenBLAS", "libgfortran", "libjpeg-turbo", "FreeType", "libsodium", "zstd"])
def test_licence_of_a_library_in_a_wheel_is_in_the_text_of_the_wheel(
    bill: dict[str, Any], bundle: Path, name: str
) -> None:
    """What the heading says is true: the wheel's own text covers what the wheel carries along."""
    words = {
        "FreeType": "FREETYPE",
        "zstd": "ZSTD",
        "libjpeg-turbo": "Independent JPEG Group",
        "libsodium": "ISC License",
    }.get(name, name)
    owner = next(
        c for c in tops(bill) if any(p["name"] == name and p["type"] != "file" for p in c.get("components", []))
    )
    texts = [file["name"] for file in owner["components"] if "/licences/" in file["name"]]
    assert any(words in (bundle.parent / text).read_text("utf-8") for text in texts)


def test_telling_of_itself_is_fast(binary: Path, frozen_cache: Path) -> None:
    """No heavy import: 0.1 s of a core of 2024, and half a second is far below what NumPy and TensorRT take."""

    def spent_s() -> float:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return spent.ru_utime + spent.ru_stime

    env = {"EDGEAPP_CACHE": str(frozen_cache)}
    for words in (["--version", "--json"], ["--sbom"], ["--licenses"]):
        took_s = []
        for _ in range(5):
            before_s = spent_s()
            subprocess.run([binary, *words], env=env, stdout=subprocess.DEVNULL, check=True, timeout=60)
            took_s.append(spent_s() - before_s)
        assert min(took_s) < 0.5, (words, took_s)
