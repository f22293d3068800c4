"""What travels inside the frozen program, looked at from outside."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.metadata
import json
import lzma
import re
import subprocess
import sys
import sysconfig
from fnmatch import fnmatch
from pathlib import Path

import pytest

import edgeapp

pytestmark = pytest.mark.frozen

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]

# What every Linux has beside its C library: the C++ library, in versions that test_portable.py holds; libcuda.so.1
# comes with the driver.
OF_THE_HOST = {
    "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libc.so.6", "libdl.so.2", "libm.so.6",
    "libpthread.so.0", "librt.so.1", "libutil.so.1", "libcuda.so.1",
    "libgcc_s.so.1", "libstdc++.so.6",
}  # fmt: skip


def lines_of(path: Path) -> list[str]:
    """The lines of a list without comments."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def files_of(bundle: Path) -> list[Path]:
    return sorted(path for path in bundle.rglob("*") if path.is_file() and not path.is_symlink())


def libraries_of(bundle: Path) -> list[Path]:
    def is_elf(path: Path) -> bool:
        with path.open("rb") as file:
            return file.read(4) == b"\x7fELF"

    return [path for path in files_of(bundle) if is_elf(path)]


def neutral(name: str) -> str:
    """A library's name without its version, its hash, and the version of Python."""
    name = re.sub(r"python3\.\d+", "python3", name)
    name = re.sub(r"\.(cpython-3\d+|abi3)[^.]*", "", name)
    name = re.sub(r"(-[0-9a-f]{8})+(?=\.so)", "", name)
    return re.sub(r"\.so(\.\d+)+$", ".so", name)


def test_libraries_of_the_bundle_are_those_of_the_list(lean_bundle: Path) -> None:
    """Exactly the listed libraries travel: a new one is a decision, and so is one that is gone."""
    found = {neutral(str(path.relative_to(lean_bundle))) for path in libraries_of(lean_bundle)}
    standard = {name for name in found if name.startswith("python3/lib-dynload/")}
    newer = {"_sha2"}  # of Python 3.12, where these tests may run on an older one than the bundle's
    assert {Path(name).stem for name in standard} <= sys.stdlib_module_names | newer
    listed = lines_of(HERE / "bundled_libraries.txt")
    may = {line.removesuffix("?").strip() for line in listed}
    must = {line for line in listed if not line.endswith("?")}
    assert sorted(found - standard - may) == [], "not in bundled_libraries.txt"
    assert sorted(must - found) == [], "in bundled_libraries.txt, but not in the bundle"


def test_bundle_without_any_library_of_the_driver_or_the_system(bundle: Path) -> None:
    """Nothing that must match the kernel, the driver or the C library of the target travels."""
    patterns = lines_of(REPOSITORY / "hooks" / "never_bundle.txt")
    assert patterns
    names = [path.name for path in bundle.rglob("*")]
    assert [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)] == []


def test_libraries_need_only_each_other_and_the_host(bundle: Path) -> None:
    """No library of the bundle would say "cannot open shared object file" on a bare machine."""
    libraries = libraries_of(bundle)
    output = subprocess.run(["readelf", "--dynamic", *libraries], check=True, capture_output=True, text=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", output))
    assert "libc.so.6" in needed
    assert sorted(needed - {path.name for path in libraries} - OF_THE_HOST) == []


def recorded_hashes() -> dict[str, str]:
    """Path in the bundle -> SHA-256, as the maker of the wheel wrote it down."""
    hashes = {}
    for package in importlib.metadata.distributions():
        if package.name.startswith(("nvidia-", "tensorrt")):
            for file in package.files or []:
                if file.hash is not None:
                    hashes[str(file)] = file.hash.value
    # What build.sh took out of wheels into folders of its own; it keeps the wheel's list beside it.
    for record in Path(sysconfig.get_paths()["purelib"]).glob("tensorrt_lean[0-9]*/RECORD"):
        for path, digest, _ in csv.reader(record.read_text().splitlines()):
            hashes[f"{record.parent.name}/{Path(path).name}"] = digest.removeprefix("sha256=")
    return hashes


def test_files_of_nvidia_are_byte_for_byte_those_of_the_wheels(bundle: Path) -> None:
    """NVIDIA allows its libraries to be passed on unmodified only: not stripped, not packed."""
    recorded = recorded_hashes()
    theirs = [
        path for path in libraries_of(bundle) if path.relative_to(bundle).parts[0].startswith(("nvidia", "tensorrt"))
    ]
    assert len(theirs) >= 4
    minor = json.loads((bundle / "build.json").read_text())["python"].split(".")[1]
    for path in theirs:
        if "_bindings" in path.parent.name and int(minor) != sys.version_info.minor:
            continue  # one wheel for each Python: the one installed here is another
        digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest())
        name = str(path.relative_to(bundle))
        assert digest.rstrip(b"=").decode() == recorded[name], name


def test_pycuda_runs_on_the_oldest_driver_that_tensorrt_supports(bundle: Path) -> None:
    """Compiled with CUDA 13's headers it would need functions that r535 to r575 drivers lack."""
    output = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", *(bundle / "pycuda").glob("_driver*.so")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "cuCtxPushCurrent_v2" in output
    if json.loads((bundle / "build.json").read_text())["cuda"] == "12":
        assert "cuCtxCreate_v4" not in output
        assert "cuEventElapsedTime_v2" not in output


def test_data_of_the_source_tree_travels_whole(bundle: Path) -> None:
    """Every file of edgeapp/data and the compiled kernels are in the bundle, unchanged; what is packed is unpacked."""
    source = REPOSITORY / "edgeapp" / "data"
    files = files_of(source)
    assert files
    for file in files:
        expected = file.read_bytes()
        name = str(file.relative_to(source))
        if file.suffix == ".xz":
            expected, name = lzma.decompress(expected), name.removesuffix(".xz")
        assert (bundle / "edgeapp" / "data" / name).read_bytes() == expected, name
    kernels = Path("edgeapp", "gpu", "kernels", "edgeapp.zip")
    assert (bundle / kernels).read_bytes() == (REPOSITORY / kernels).read_bytes()


def test_build_facts_name_the_runtime_that_travels(lean_bundle: Path) -> None:
    """The program learns from build.json which TensorRT it carries."""
    facts = json.loads((lean_bundle / "build.json").read_text())
    assert facts["edgeapp"] == edgeapp.__version__
    assert facts["tensorrt"] == "lean"
    assert (lean_bundle / "tensorrt_lean_libs" / "libnvinfer_lean.so.10").is_file()
    assert facts["tensorrt_version"] == "10.16.1.11"


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("edgeapp", "Apache License"),
        ("numpy", "Redistribution and use in source and binary forms"),
        ("pyinstaller", "GNU GENERAL PUBLIC LICENSE"),
        ("tensorrt-lean-cu12-libs", "NVIDIA"),
        ("nvidia-cuda-runtime-cu12", "NVIDIA"),
    ],
)
def test_licence_of_what_travels_is_in_the_bundle(lean_bundle: Path, folder: str, words: str) -> None:
    """Most licences ask that their text goes with the copy."""
    texts = [path.read_text("utf-8") for path in files_of(lean_bundle / "licences" / folder)]
    assert any(words in text for text in texts)
