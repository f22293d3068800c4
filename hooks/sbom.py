"""Adds to the frozen folder what it is made of: sbom.json (CycloneDX 1.6), and every licence text in licences/.

Usage: sbom.py FOLDER ORIGINS [--launcher FILE] [--musl FILE] [--zstd FOLDER]
    FOLDER: what PyInstaller has collected.
    ORIGINS: what edgeapp.spec wrote: where every file and module of it came from.
    --launcher: the launcher, which will be packed in front of the folder and is no file of it.
    --musl, --zstd: a file of musl's package and the folder of zstd, which the launcher is linked with.
Run by the Python whose packages the folder is made of. SOURCE_DATE_EPOCH is the time in the document.

Every file, every module in the program and every module in base_library.zip belongs to one component; what none can
be found for ends the build. Nothing in the document depends on the machine's paths, on the order of anything or on
the clock: equal folders have equal bills.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PyInstaller.archive.readers import CArchiveReader

HERE = Path(__file__).parent.parent
CONTENTS = "_internal"
"""PyInstaller's name for the folder with everything but the program."""
PROGRAM = "edgeapp"

UNKNOWN = "unknown"
"""The version of what neither a package nor the file itself tells, and its licence."""

GCC = "GPL-3.0-or-later WITH GCC-exception-3.1"
TENSORRT = "NVIDIA TensorRT Software License Agreement"
CUDA = "NVIDIA CUDA Toolkit End User License Agreement"
CUDNN = "NVIDIA cuDNN Software License Agreement"

# Licences of wheels without an SPDX expression, as far as the old field does not tell, or not all.
WHEELS = {
    "numpy": "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0",  # as later ones say themselves
    "onnxruntime": "MIT",
    "pycuda": "MIT AND PSF-2.0 AND BSL-1.0",  # its own _struct is CPython's; Boost.Python is linked in
    "pyinstaller": "GPL-2.0-or-later WITH Bootloader-exception AND Apache-2.0",
    "pyinstaller-hooks-contrib": "Apache-2.0",  # its run-time hooks, which are all that can travel
}
NVIDIA_WHEELS = {"tensorrt": TENSORRT, "nvidia-cudnn": CUDNN, "nvidia-": CUDA}

# Licences of Debian's and Ubuntu's source packages, as far as the libraries in them go.
SOURCE_PACKAGES = {
    "bzip2": "bzip2-1.0.6",
    "expat": "MIT",
    "gcc": GCC,
    "libffi": "MIT",
    "libnvinfer": TENSORRT,
    "musl": "MIT",
    "openssl": "Apache-2.0",
    "tensorrt": TENSORRT,
    "xz-utils": "public domain; 0BSD since 5.6",
    "zlib": "Zlib",
}
COMMON_LICENCES = {"GPL-3.0": "GPL-3", "GPL-2.0": "GPL-2", "LGPL-2.1": "LGPL-2.1", "Apache-2.0": "Apache-2.0"}
"""SPDX -> the file in /usr/share/common-licenses that Debian's copyright files point at instead of holding it."""


@dataclass(frozen=True)
class Library:
    """A library that others carry along: in a wheel, or on a build host without dpkg.

    Attributes:
        name: its project.
        licence: SPDX.
        version: what the library says of itself, if it does.
    """

    name: str
    licence: str
    version: bytes | None = None


LIBRARIES = {
    "libXau": Library("libXau", "MIT"),
    "libbrotli": Library("Brotli", "MIT"),
    "libbz2": Library("bzip2", "bzip2-1.0.6"),
    "libexpat": Library("Expat", "MIT"),
    "libffi": Library("libffi", "MIT"),
    "libfreetype": Library("FreeType", "FTL"),
    "libgcc_s": Library("libgcc", GCC),
    "libgfortran": Library("libgfortran", GCC),
    "libharfbuzz": Library("HarfBuzz", "MIT-Modern-Variant"),
    "libjpeg": Library("libjpeg-turbo", "IJG AND BSD-3-Clause AND Zlib", rb"libjpeg-turbo version (\d+(?:\.\d+)+)"),
    "liblzma": Library("XZ Utils", "0BSD"),
    "libopenjp2": Library("OpenJPEG", "BSD-2-Clause"),
    "libpng": Library("libpng", "libpng-2.0", rb"libpng version (\d+(?:\.\d+)+)"),
    "libquadmath": Library("libquadmath", "LGPL-2.1-or-later"),
    "libscipy_openblas": Library("OpenBLAS", "BSD-3-Clause AND BSD-3-Clause-Open-MPI", rb"OpenBLAS (\d+(?:\.\d+)+)"),
    "libsharpyuv": Library("libwebp", "BSD-3-Clause"),
    "libstdc++": Library("libstdc++", GCC),
    "libtiff": Library("libtiff", "libtiff", rb"LIBTIFF, Version (\d+(?:\.\d+)+)"),
    "libwebp": Library("libwebp", "BSD-3-Clause"),
    "libxcb": Library("libxcb", "X11"),
    "libz.": Library("zlib", "Zlib", rb"deflate (\d+(?:\.\d+)+) Copyright"),
    "libzstd": Library("zstd", "BSD-3-Clause"),
}


LINKED_IN = {
    "pynacl": (Library("libsodium", "ISC"), r"``libsodium`` to (\d+(?:\.\d+)+[\w-]*)"),
    "simplejpeg": (LIBRARIES["libjpeg"], ""),
}
"""Wheel -> the library linked into its own, and the words of the wheel's changelog that tell which version it is; ""
where the library says it itself."""


@dataclass
class Component:
    """A part with one version and one licence.

    Attributes:
        name, version: as its makers call it.
        licence: SPDX identifier, SPDX expression, or the name of a licence that SPDX does not know.
        purl: package URL.
        cpe: the name in the database of vulnerabilities (NVD), where scanners cannot tell it from the purl.
        kind: CycloneDX's type.
        description: where the name alone would not do.
        version_from: where the version was found, when not in a package's own data.
        digest: SHA-256, of a part that is one file and lies outside the folder.
        texts: path below licences/ -> where the licence text is now.
        files: name in the bundle -> SHA-256, or None for sbom.json itself.
        parts: what it carries along.
    """

    name: str
    version: str
    licence: str
    purl: str
    kind: str = "library"
    description: str = ""
    version_from: str = ""
    cpe: str = ""
    digest: str = ""
    texts: dict[str, Path] = field(default_factory=dict)
    files: dict[str, str | None] = field(default_factory=dict)
    parts: dict[str, Component] = field(default_factory=dict)


class UnexplainedError(Exception):
    """A file that belongs to nothing."""


def purl(kind: str, name: str, version: str, **qualifiers: str) -> str:
    """A package URL (https://github.com/package-url/purl-spec)."""
    more = "&".join(f"{key}={quote(value, safe='')}" for key, value in sorted(qualifiers.items()))
    return f"pkg:{kind}/{quote(name)}@{quote(version, safe='')}{'?' if more else ''}{more}"


# --- wheels ----------------------------------------------------------------------------------------------------------


def normal(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def files_of_wheels(site: str) -> dict[str, importlib.metadata.Distribution]:
    """Path -> the distribution in `site` whose RECORD names it."""
    found: dict[str, importlib.metadata.Distribution] = {}
    for package in importlib.metadata.distributions(path=[site]):
        for file in package.files or []:
            found.setdefault(os.path.normpath(os.path.join(site, file)), package)
    return found


def wheel_of(source: str) -> importlib.metadata.Distribution | None:
    """The distribution that a file came with, of the venv or, through links, of the host's Python."""
    for path in dict.fromkeys((source, os.path.realpath(source))):
        for parent in Path(path).parents:
            if parent.name in ("site-packages", "dist-packages"):
                if found := files_of_wheels(str(parent)).get(path):
                    return found
                break
    return None


def licence_of_wheel(package: importlib.metadata.Distribution) -> str:
    name = normal(package.metadata["Name"])
    for start, licence in NVIDIA_WHEELS.items():
        if name.startswith(start):
            return licence
    metadata = package.metadata.json
    told = str(metadata.get("license") or "").strip()
    told = "" if "\n" in told else told  # the whole text, in older wheels
    return str(metadata.get("license_expression") or WHEELS.get(name) or told or "see its licence text")


def texts_of_wheel(package: importlib.metadata.Distribution) -> dict[str, Path]:
    """Every licence text in a wheel, beside its metadata or beside its modules."""
    wanted = re.compile(r"(licen[cs]e|copying|notice)[^/]*$", re.IGNORECASE)
    texts = {}
    for file in package.files or []:
        if wanted.search(str(file)) and file.suffix not in (".py", ".pyc"):
            name = re.sub(r"^[^/]*\.dist-info/(licenses/)?", "", str(file))
            texts[f"{normal(package.metadata['Name'])}/{name}"] = Path(str(package.locate_file(file)))
    return texts


@cache
def component_of_wheel(package: importlib.metadata.Distribution) -> Component:
    name = normal(package.metadata["Name"])
    parts = {}
    if name in LINKED_IN:
        library, words = LINKED_IN[name]
        version, version_from = linked_version(package, library, words)
        url = purl("generic", library.name.lower(), version)
        parts[url] = Component(library.name, version, library.licence, url, version_from=version_from)
    return Component(
        name,
        package.version,
        licence_of_wheel(package),
        purl("pypi", name, package.version),
        texts=texts_of_wheel(package),
        description="bootloader, loader modules and run-time hooks" if name == "pyinstaller" else "",
        parts=parts,
    )


def linked_version(package: importlib.metadata.Distribution, library: Library, words: str) -> tuple[str, str]:
    """Of a library that is linked into a wheel's own: its version, and where that was found."""
    if words:
        told = re.search(words, package.read_text("METADATA") or "")  # the newest entry is the first
        if told:
            return told[1], "the changelog in its wheel"
    for file in package.files or [] if library.version else []:
        if file.suffix == ".so" and (said := re.search(library.version, Path(package.locate_file(file)).read_bytes())):
            return said[1].decode(), "the library's own words"
    name = package.metadata["Name"]
    raise UnexplainedError(f"the wheel {name} {package.version} does not tell which {library.name} is in it")


def bills_of_wheel(package: importlib.metadata.Distribution) -> dict[str, dict[str, Any]]:
    """What a wheel's own bills of materials (PEP 770) say: name in lower case -> component."""
    found = {}
    for file in package.files or []:
        if file.parent.name == "sboms" and file.suffix == ".json":
            for part in json.loads(file.read_text()).get("components", []):
                if part.get("version"):
                    found[part["name"].lower()] = part
    return found


# --- libraries -------------------------------------------------------------------------------------------------------


def library_called(name: str) -> Library | None:
    return next((library for start, library in LIBRARIES.items() if name.startswith(start)), None)


def component_of_library(source: str, owner: importlib.metadata.Distribution | None) -> Component:
    """A library that came in a wheel (`owner`), or that no package of the host knows."""
    path = Path(source)
    told_by_owner = licence_of_wheel(owner) if owner else f"{UNKNOWN}: no package of the build host has {path.name}"
    library = library_called(path.name) or Library(path.name.split("-")[0].split(".so")[0], told_by_owner)
    told = bills_of_wheel(owner).get(library.name.lower(), {}) if owner else {}
    said = re.search(library.version, path.read_bytes()) if library.version else None
    named = re.search(r"\.so\.(\d+(?:\.\d+)+)$", os.path.realpath(path))
    version, version_from = UNKNOWN, f"{path.name}, of which nothing tells the version"
    if said:
        version, version_from = said[1].decode(), "the library's own words"
    elif told:
        version, version_from = told["version"], "the bill of materials in its wheel"
    elif named:
        version, version_from = named[1], "the library's file name"
    url = told.get("purl") or purl("generic", library.name.lower(), version)
    return Component(library.name, version, library.licence, url, version_from=version_from)


# --- the build host's packages ---------------------------------------------------------------------------------------


@cache
def debian_package(path: str) -> str:
    """The Debian package that a file is of, "" if none; tried with and without /usr, which dpkg mixes."""
    if shutil.which("dpkg-query") is None:
        return ""
    names = [path, os.path.realpath(path)]
    # libz.so.1 is in /lib for dpkg and in /usr/lib for the loader, or the other way round (merged /usr).
    names += [f"/usr{name}" if not name.startswith("/usr/") else name.removeprefix("/usr") for name in names]
    for name in dict.fromkeys(names):
        done = subprocess.run(["dpkg-query", "-S", name], capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if not line.startswith("diversion ")]
        if done.returncode == 0 and lines:
            return lines[0].rsplit(": ", 1)[0].split(",")[0]
    return ""


@cache
def component_of_debian(package: str) -> Component:
    """A binary package of the build host; `package` may have an architecture: libffi8:amd64."""
    wanted = "${Package}\t${Version}\t${Architecture}\t${source:Package}"
    done = subprocess.run(["dpkg-query", "-W", "-f", wanted, package], capture_output=True, text=True, check=True)
    name, version, architecture, source = done.stdout.split("\t")
    system = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.MULTILINE))
    text = Path("/usr/share/doc", name, "copyright")
    known = (licence for start, licence in SOURCE_PACKAGES.items() if re.match(rf"{start}(-[\d.]+)?$", source))
    licence = next(known, f"see licences/{name}/copyright")
    texts = {f"{name}/copyright": text} if text.is_file() else {}
    for spdx, file in COMMON_LICENCES.items():
        if texts and spdx in licence and f"/usr/share/common-licenses/{file}" in text.read_text("utf-8", "replace"):
            texts[f"{name}/{file}"] = Path("/usr/share/common-licenses", file)
    kind = f"deb/{system['ID']}"
    url = purl(kind, name, version, arch=architecture, distro=f"{system['ID']}-{system.get('VERSION_ID', 'unstable')}")
    return Component(name, version, licence, url, texts=texts)


# --- what is no package ----------------------------------------------------------------------------------------------


def edgeapp_version() -> str:
    found = re.search(r'^__version__ = "([^"]+)"', (HERE / "edgeapp" / "__init__.py").read_text(), re.MULTILINE)
    assert found
    return found[1]


def component_of_edgeapp() -> Component:
    version = edgeapp_version()
    texts = {"edgeapp/LICENSE": HERE / "LICENSE"}
    return Component(
        "edgeapp", version, "Apache-2.0", purl("generic", "edgeapp", version), kind="application", texts=texts
    )


@cache
def component_of_python() -> Component:
    """The interpreter and its standard library; a distribution's has that one's version, for its fixes are in it."""
    version = platform.python_version()
    text = Path(sysconfig.get_paths()["stdlib"], "LICENSE.txt")
    if package := debian_package(os.__file__):
        debian = replace(component_of_debian(package), name="CPython", licence="Python-2.0.1")
        return replace(debian, texts={"python/LICENSE.txt": text}) if text.is_file() else debian
    if not text.is_file():
        raise UnexplainedError("the licence text of this Python cannot be found")
    return Component(
        "CPython",
        version,
        "Python-2.0.1",
        purl("generic", "cpython", version),
        cpe=f"cpe:2.3:a:python:python:{version}:*:*:*:*:*:*:*",
        texts={"python/LICENSE.txt": text},
    )


def component_of_openssl() -> Component | None:
    """What hooks/build_root.sh linked into the ssl module: Debian's sources and patches, and so Debian's version."""
    folder = Path(sys.base_prefix, "share", "openssl")
    told = folder / "version"
    if not told.is_file():
        return None
    version = told.read_text().strip()
    return Component(
        "OpenSSL",
        version,
        "Apache-2.0",
        purl("deb/debian", "openssl", version, arch="source", distro="debian-13"),
        description="linked into CPython's _ssl",
        texts={"openssl/LICENSE.txt": folder / "LICENSE.txt"},
    )


def component_of_lean_beside(folder: Path) -> Component:
    """A TensorRT lean that build.sh took out of its wheel, into a folder beside that of the installed one."""
    with (folder / "RECORD").open(newline="") as file:
        paths = [row[0] for row in csv.reader(file)]
    named = next(filter(None, (re.match(r"([\w.]+)-([\d.]+)\.dist-info/", path) for path in paths)), None)
    assert named
    name, version = normal(named[1]), named[2]
    texts = {f"{name}-{version}/LICENSE.txt": folder / "LICENSE.txt"}
    return Component(name, version, TENSORRT, purl("pypi", name, version), texts=texts)


def launcher_components(launcher: Path | None, libc: Path | None, zstd: Path | None) -> Iterator[Component]:
    """What lies in front of the folder in the one file."""
    if not launcher:
        return
    version = edgeapp_version()
    yield Component(
        "edgeapp-launcher",
        version,
        "Apache-2.0",
        purl("generic", "edgeapp-launcher", version),
        description="static program that the one file starts with; no file of the folder",
        digest=sha256(launcher.read_bytes()),
        texts={"edgeapp-launcher/LICENSE": HERE / "LICENSE"},
    )
    if libc:
        if package := debian_package(str(libc)):
            musl = component_of_debian(package)
        else:
            musl = Component("musl", UNKNOWN, "MIT", purl("generic", "musl", UNKNOWN))
        yield replace(musl, name="musl", description="linked into the launcher")
    if zstd:
        found = re.findall(r"#define ZSTD_VERSION_(?:MAJOR|MINOR|RELEASE)\s+(\d+)", (zstd / "zstd.h").read_text())
        version = ".".join(found)
        yield Component(
            "zstd",
            version,
            "BSD-3-Clause",
            purl("github", "facebook/zstd", f"v{version}"),
            description="linked into the launcher, which unpacks with it",
            texts={"zstd/LICENSE": zstd / "LICENSE"},
        )


# --- the whole -------------------------------------------------------------------------------------------------------


class Bill:
    """Components, and which of them every file and module is of.

    Args:
        origins: as edgeapp.spec wrote it: files and modules, each name -> source path, and the work folder.
    """

    def __init__(self, origins: dict[str, Any]) -> None:
        self.files: dict[str, str] = origins["files"]
        self.modules: dict[str, str] = origins["modules"]
        self.work = Path(origins["work"])
        self.components: dict[str, Component] = {}

    def add(self, component: Component) -> Component:
        """The component, or the same one from before."""
        return self.components.setdefault(component.purl, component)

    def of_source(self, source: str) -> Component:
        """The component of a file, by where it came from."""
        path = Path(source)
        if re.fullmatch(r"tensorrt_lean\d+_\w+", path.parent.name):
            return self.add(component_of_lean_beside(path.parent))
        wheel = wheel_of(source)
        # What JetPack and Debian install is in dpkg's lists and may look like a wheel as well.
        if wheel and not path.resolve().is_relative_to(sys.prefix) and (package := debian_package(source)):
            return self.add(component_of_debian(package))
        if wheel:
            owner = self.add(component_of_wheel(wheel))
            if not path.parent.name.endswith(".libs"):
                return owner
            part = component_of_library(source, wheel)
            return owner.parts.setdefault(part.purl, part)
        if path.name == "base_library.zip" or path.name.startswith("libpython"):
            return self.add(component_of_python())
        if path.is_relative_to(self.work) or path.is_relative_to(HERE / "edgeapp"):
            return self.add(component_of_edgeapp())
        if path.name.startswith("_ssl.") and (openssl := component_of_openssl()):
            self.add(openssl)  # the file itself is Python's
        standard = (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["platstdlib"])
        if path.is_relative_to(sys.base_prefix) and any(
            os.path.realpath(path).startswith(os.path.realpath(folder)) for folder in standard
        ):
            return self.add(component_of_python())
        if package := debian_package(source):
            return self.add(component_of_debian(package))
        return self.add(component_of_library(source, None))

    def of_module(self, name: str) -> Component:
        """The component of a module in the program, by its dotted name."""
        source = self.modules.get(name)
        if source and source != "-":
            return self.of_source(source)
        if source == "-":  # a folder without code: of whoever has something in it
            inside = [source for other, source in self.modules.items() if other.startswith(f"{name}.")]
            inside += [source for file, source in self.files.items() if file.startswith(name.replace(".", "/") + "/")]
            found = sorted((self.of_source(source) for source in inside if source != "-"), key=lambda c: c.purl)
            if found:
                return found[0]
        if name.startswith(("pyimod", "pyiboot")):  # PyInstaller's loader
            return self.add(component_of_wheel(importlib.metadata.distribution("pyinstaller")))
        return self.of_standard(name)

    def of_standard(self, name: str) -> Component:
        if name.split(".")[0] not in sys.stdlib_module_names:
            raise UnexplainedError(f"the module {name} came from nowhere")
        return self.add(component_of_python())

    def of_file(self, name: str) -> Component:
        """The component of a file or member, by its name in the bundle."""
        if name == PROGRAM:
            return self.add(component_of_wheel(importlib.metadata.distribution("pyinstaller")))
        container, _, member = name.partition("!")
        if container == PROGRAM:
            return self.of_module(member)
        if member:
            return self.of_standard(re.sub(r"(/__init__)?\.pyc$", "", member).replace("/", "."))
        inside = name.removeprefix(f"{CONTENTS}/")
        if inside not in self.files:
            raise UnexplainedError(f"{inside} came from nowhere")
        return self.of_source(self.files[inside])


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def contents(folder: Path) -> dict[str, str]:
    """Everything in a frozen folder: name -> SHA-256.

    Names are paths below the folder. What lies inside of one is FILE!MEMBER: a module in the program (the hash is
    that of its code, unpacked) or in base_library.zip. Links are left out: they lead to files of the folder.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            if not path.resolve().is_relative_to(folder.resolve()):
                raise UnexplainedError(f"{path.name} is a link that leads outside")
        elif path.is_file():
            found[str(path.relative_to(folder))] = sha256(path.read_bytes())
    program = CArchiveReader(str(folder / PROGRAM))
    for name, (*_, kind) in program.toc.items():
        if kind != "z":
            found[f"{PROGRAM}!{name}"] = sha256(program.extract(name))
            continue
        modules = program.open_embedded_archive(name)
        for module in modules.toc:
            found[f"{PROGRAM}!{module}"] = sha256(modules.extract(module, raw=True) or b"")
    library = f"{CONTENTS}/base_library.zip"
    with zipfile.ZipFile(folder / library) as archive:
        for member in archive.namelist():
            found[f"{library}!{member}"] = sha256(archive.read(member))
    return found


def licences(licence: str) -> list[dict[str, Any]]:
    """CycloneDX's form: an SPDX identifier, an expression of several, or a name."""
    words = r"[A-Za-z0-9][\w.+-]*"
    if re.fullmatch(words, licence):
        return [{"license": {"id": licence}}]
    if re.fullmatch(rf"\(?{words}\)?( (AND|OR|WITH) \(?{words}\)?)+", licence):
        return [{"expression": licence}]
    return [{"license": {"name": licence}}]


def sorted_components(components: Iterable[Component]) -> list[Component]:
    return sorted(components, key=lambda component: (component.name.lower(), component.purl))


def reference(component: Component, owner: str = "") -> str:
    """What other parts of the document call a component; two wheels may carry the same library."""
    return f"{owner}#{component.purl}" if owner else component.purl


def as_json(component: Component, owner: str = "") -> dict[str, Any]:
    own = reference(component, owner)
    value: dict[str, Any] = {
        "type": component.kind,
        "bom-ref": own,
        "name": component.name,
        "version": component.version,
        "description": component.description,
        "licenses": licences(component.licence),
        "cpe": component.cpe,
        "purl": component.purl,
    }
    if component.digest:
        value["hashes"] = [{"alg": "SHA-256", "content": component.digest}]
    if component.version_from:
        value["properties"] = [{"name": "edgeapp:version-from", "value": component.version_from}]
    value["components"] = [as_json(part, own) for part in sorted_components(component.parts.values())]
    for name, digest in sorted(component.files.items()):
        file: dict[str, Any] = {"type": "file", "name": name}
        if digest:
            file["hashes"] = [{"alg": "SHA-256", "content": digest}]
        value["components"].append(file)
    return {key: item for key, item in value.items() if item not in ("", [])}


def dependencies(component: Component, others: list[Component], owner: str = "") -> list[dict[str, Any]]:
    """Who needs whom: a component, then what it carries or, the program, everything."""
    own = reference(component, owner)
    parts = sorted_components(component.parts.values())
    needed = [reference(other) for other in others] + [reference(part, own) for part in parts]
    found = [{"ref": own, **({"dependsOn": needed} if needed else {})}]
    for part in parts:
        found += dependencies(part, [], own)
    for other in others:
        found += dependencies(other, [])
    return found


def document(bill: Bill, epoch: int) -> dict[str, Any]:
    """The bill in CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/)."""
    subject = bill.add(component_of_edgeapp())
    parts = sorted_components(part for part in bill.components.values() if part is not subject)
    maker = importlib.metadata.version("pyinstaller")
    body: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": [{"type": "application", "name": "PyInstaller", "version": maker}]},
            "component": as_json(subject),
        },
        "components": [as_json(part) for part in parts],
    }
    body["dependencies"] = dependencies(subject, parts)
    # Of the contents, not at random: the same build has the same number.
    serial = uuid.uuid5(uuid.NAMESPACE_URL, sha256(json.dumps(body, sort_keys=True).encode()))
    return {**body, "serialNumber": f"urn:uuid:{serial}"}


def write(folder: Path, origins: dict[str, Any], epoch: int, launcher: Iterable[Component] = ()) -> None:
    """Add sbom.json and licences/ to a frozen folder.

    Raises:
        UnexplainedError: something in the folder belongs to nothing.
    """
    root = folder / CONTENTS
    (root / "sbom.json").unlink(missing_ok=True)
    shutil.rmtree(root / "licences", ignore_errors=True)
    bill = Bill(origins)
    for name, digest in contents(folder).items():
        bill.of_file(name).files[name] = digest
    for component in launcher:
        bill.add(component)
    for component in bill.components.values():
        for name, source in component.texts.items():
            copy = root / "licences" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
            component.files[f"{CONTENTS}/licences/{name}"] = sha256(copy.read_bytes())
    bill.add(component_of_edgeapp()).files[f"{CONTENTS}/sbom.json"] = None
    text = json.dumps(document(bill, epoch), indent=1, ensure_ascii=False)
    (root / "sbom.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("origins", type=Path)
    parser.add_argument("--launcher", type=Path)
    parser.add_argument("--musl", type=Path)
    parser.add_argument("--zstd", type=Path)
    words = parser.parse_args()
    try:
        origins = json.loads(words.origins.read_text())
        launcher = launcher_components(words.launcher, words.musl, words.zstd)
        write(words.folder, origins, int(os.environ["SOURCE_DATE_EPOCH"]), launcher)
    except UnexplainedError as error:
        sys.exit(f"sbom.py: cannot write the bill of materials\n  why: {error}\n  fix: name it in hooks/sbom.py")


if __name__ == "__main__":
    main()
