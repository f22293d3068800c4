"""Compiles edgeapp/gpu/kernels/edgeapp.cu for every GPU that edgeapp serves; needs no GPU, no driver and no toolkit.

Usage: kernels.py FOLDER...
    FOLDER: a wheel of NVRTC, NVIDIA's compiler as a library, unpacked; one for each version in IMAGES.

Writes edgeapp/gpu/kernels/edgeapp.zip: machine code for the GPUs of today, PTX that the driver compiles for others,
and the SHA-256 of the source. One archive and not loose files, for machine code is ELF, which PyInstaller would take
for libraries; without times, so that equal sources make equal archives.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

KERNELS = Path(__file__).parents[1] / "edgeapp" / "gpu" / "kernels"
SOURCE = KERNELS / "edgeapp.cu"
ARCHIVE = KERNELS / "edgeapp.zip"

# What a driver loads is never of a newer CUDA than its own. PTX and machine code by 12.2 load with r535, the oldest
# driver that TensorRT supports with CUDA 12; B200 and RTX 50 began with 12.8 and r570, Thor is sm_110 since 13.0.
IMAGES = {
    (12, 2): ("compute_60", "sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90"),
    (12, 8): ("sm_100", "sm_120"),
    (13, 0): ("sm_110",),
}


class Nvrtc:
    """The compiler in one unpacked wheel."""

    def __init__(self, folder: Path) -> None:
        (library,) = folder.glob("nvidia/*/lib/libnvrtc.so.*")
        (builtins,) = folder.glob("nvidia/*/lib/libnvrtc-builtins.so.*")
        ctypes.CDLL(str(builtins))  # 13.0 finds it by its name alone, so only once it is there
        self._library = ctypes.CDLL(str(library))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def version(self) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        return major.value, minor.value

    def compile(self, source: bytes, architecture: str) -> bytes:
        """PTX for compute_NN, machine code for sm_NN."""
        program = ctypes.c_void_p()
        self._check(
            self._library.nvrtcCreateProgram(ctypes.byref(program), source, SOURCE.name.encode(), 0, None, None)
        )
        options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++14"]
        failed = self._library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        log = self._get(program, "ProgramLog").rstrip(b"\0").decode()
        if failed or log.strip():
            raise SystemExit(f"{SOURCE.name} for {architecture}:\n{log}")
        image = self._get(program, "PTX" if architecture.startswith("compute") else "CUBIN")
        self._check(self._library.nvrtcDestroyProgram(ctypes.byref(program)))
        return image.removesuffix(b"\0") if architecture.startswith("compute") else image

    def _get(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{what}")(program, buffer))
        return buffer.raw

    def _check(self, code: int) -> None:
        if code:
            raise SystemExit(f"NVRTC: {self._library.nvrtcGetErrorString(code).decode()}")


def images(folders: list[Path], source: bytes) -> Iterator[tuple[str, bytes]]:
    compilers = {nvrtc.version(): nvrtc for nvrtc in map(Nvrtc, folders)}
    if compilers.keys() != IMAGES.keys():
        raise SystemExit(f"these versions of NVRTC are wanted: {[*IMAGES]}, given: {[*compilers]}")
    for version, architectures in IMAGES.items():
        for architecture in architectures:
            suffix = "ptx" if architecture.startswith("compute") else "cubin"
            yield f"{architecture}.{suffix}", compilers[version].compile(source, architecture)


def main() -> None:
    source = SOURCE.read_bytes()
    files = {"source.sha256": hashlib.sha256(source).hexdigest().encode()}
    files.update(images([Path(word) for word in sys.argv[1:]], source))
    with zipfile.ZipFile(ARCHIVE, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, 9)  # dated 1980
            print(f"{len(data):7} {name}")
    print(f"{ARCHIVE.stat().st_size:7} {ARCHIVE.name}")


if __name__ == "__main__":
    main()
