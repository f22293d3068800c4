"""How old a Linux may be that the frozen program still runs on: what its libraries ask of the C and the C++ library."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from support import ROOT

pytestmark = pytest.mark.frozen

Version = tuple[int, ...]

# The oldest system that must do, by its symbol versions.
OLDEST: dict[str, dict[str, Version]] = {
    # Debian 11 (GCC 10.2), Ubuntu 20.04
    "x86_64": {"GLIBC": (2, 31), "GLIBCXX": (3, 4, 28), "CXXABI": (1, 3, 12)},
    # Debian 12 (GCC 12.2), and so JetPack 7, which is Ubuntu 24.04
    "aarch64": {"GLIBC": (2, 36), "GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13)},
}


def numbers(version: str) -> Version:
    return tuple(map(int, version.split(".")))


def needs_of(folder: Path) -> dict[str, dict[str, Version]]:
    """GLIBC, GLIBCXX, CXXABI -> file -> the newest version that it asks for; files that ask for none are left out."""
    needs: dict[str, dict[str, Version]] = {"GLIBC": {}, "GLIBCXX": {}, "CXXABI": {}}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        if path.read_bytes()[:4] != b"\x7fELF":
            continue
        command = ["readelf", "--wide", "--version-info", str(path)]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        # What the file itself defines stands in the first section, which ends with an empty line.
        wanted = listing[listing.find("Version needs section") :]
        for family, found in needs.items():
            if versions := re.findall(rf"Name: {family}_([0-9.]+)", wanted):
                found[str(path.relative_to(folder))] = max(map(numbers, versions))
    return needs


@pytest.fixture(scope="module", params=["dist/edgeapp", "dist/edgeapp-aarch64"])
def unpacked(request: pytest.FixtureRequest) -> Path:
    """The unpacked bundle of each file that is there; `./build.sh aarch64` leaves that of the other processor."""
    if request.param == "dist/edgeapp":
        return Path(request.getfixturevalue("bundle"))
    folders = list(ROOT.glob("build/root-bookworm-arm64/cache/*/_internal"))
    if not (ROOT / request.param).is_file() or not folders:
        pytest.skip(f"{request.param} is missing: ./build.sh aarch64 makes it")
    return folders[0]


def test_glibc_floor_is_what_the_libraries_need(unpacked: Path) -> None:
    """build.json tells the truth: no library needs a newer C library than it says, and one needs just that."""
    facts = json.loads((unpacked / "build.json").read_text())
    needs = needs_of(unpacked)["GLIBC"]
    assert len(needs) > 20
    assert max(needs.values()) == numbers(facts["glibc_floor"]), needs


@pytest.mark.parametrize("family", ["GLIBC", "GLIBCXX", "CXXABI"])
def test_portable_file_runs_on_the_oldest_system(unpacked: Path, family: str) -> None:
    """What ./build.sh portable and aarch64 make asks for nothing that the oldest system lacks."""
    machine = json.loads((unpacked / "build.json").read_text())["machine"]
    if machine == "x86_64" and os.environ.get("EDGEAPP_REQUIRE_PORTABLE") != "1":
        pytest.skip("made for this machine; EDGEAPP_REQUIRE_PORTABLE=1 says that it is of ./build.sh portable")
    oldest = OLDEST[machine][family]
    needs = needs_of(unpacked)[family]
    assert needs
    assert {path: version for path, version in needs.items() if version > oldest} == {}
