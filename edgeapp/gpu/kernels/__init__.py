"""The CUDA kernels of edgeapp.cu, which `./build.sh kernels` compiled into edgeapp.zip: loading and launching."""

from __future__ import annotations

import ctypes
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edgeapp import errors
from edgeapp.gpu import faults
from edgeapp.gpu.driver import LIBRARY

ARCHIVE = Path(__file__).parent / "edgeapp.zip"

TILE_WH = (32, 8)
"""Threads of a block; TILE_WIDTH and TILE_HEIGHT in edgeapp.cu."""


def fitting_images(names: Iterable[str], capability: tuple[int, int]) -> list[str]:
    """Which of the images may run on a GPU, the best first.

    Args:
        names: sm_87.cubin, machine code, which runs on its own major version from its minor on; compute_60.ptx,
            which the driver compiles for every GPU from there on.
        capability: compute capability, (major, minor).
    """
    ranked = []
    for name in names:
        if found := re.fullmatch(r"(sm|compute)_(\d+)(\d)\.\w+", name):
            major, minor = int(found[2]), int(found[3])
            machine_code = found[1] == "sm"
            if (major, minor) <= capability and (major == capability[0] or not machine_code):
                ranked.append((machine_code, major, minor, name))
    return [name for *_, name in sorted(ranked, reverse=True)]


class Kernels:
    """The kernels, loaded into the current CUDA context.

    Args:
        capability: the GPU's compute capability, (major, minor).

    Attributes:
        image: the name of the one that was loaded.

    Raises:
        DataError: none of them runs on this GPU with this driver. GpuLostError: the context is broken.
    """

    def __init__(self, capability: tuple[int, int]) -> None:
        self._cuda = ctypes.CDLL(LIBRARY)
        self._cuda.cuLaunchKernel.argtypes = [
            ctypes.c_void_p, *[ctypes.c_uint] * 7, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        self._cuda.cuMemsetD32Async.argtypes = [ctypes.c_uint64, ctypes.c_uint, ctypes.c_size_t, ctypes.c_void_p]
        self._module = ctypes.c_void_p()
        self.image = self._load(capability)

    def _load(self, capability: tuple[int, int]) -> str:
        refused = []
        with zipfile.ZipFile(ARCHIVE) as archive:
            for name in fitting_images(archive.namelist(), capability):
                # PTX is a text, which the driver reads up to a zero.
                code = self._cuda.cuModuleLoadData(ctypes.byref(self._module), archive.read(name) + b"\0")
                if code == 0:
                    return name
                if code in faults.FATAL:
                    self._check(code, "cuModuleLoadData")
                refused.append(f"{name}: CUDA error {code}")
        raise errors.DataError(
            f"the GPU kernels of this program do not run on compute capability {capability[0]}.{capability[1]}",
            "; ".join(refused) or "they need 6.0 or newer",
            faults.UPDATE if refused else "use another GPU",
        )

    def function(self, name: str) -> ctypes.c_void_p:
        """A kernel of edgeapp.cu. It is loaded now, so that a capture may begin with it."""
        function = ctypes.c_void_p()
        self._check(
            self._cuda.cuModuleGetFunction(ctypes.byref(function), self._module, name.encode()), "cuModuleGetFunction"
        )
        return function

    def launch(
        self, function: ctypes.c_void_p, grid: tuple[int, int, int], arguments: Sequence[Any], stream: int
    ) -> None:
        """Start a kernel.

        Args:
            grid: blocks of TILE_WH threads.
            arguments: as ctypes; their values are copied before this returns.
            stream: handle; a stream that is being captured takes the launch into its graph.
        """
        pointers = (ctypes.c_void_p * len(arguments))(*[ctypes.addressof(argument) for argument in arguments])
        code = self._cuda.cuLaunchKernel(function, *grid, *TILE_WH, 1, 0, stream, pointers, None)
        self._check(code, "cuLaunchKernel")

    def zero(self, address: int, words: int, stream: int) -> None:
        """Start setting 32-bit words to zero."""
        self._check(self._cuda.cuMemsetD32Async(address, 0, words, stream), "cuMemsetD32Async")

    def close(self) -> None:
        """Unload them; needs the CUDA context that they were loaded into."""
        if self._module:
            self._cuda.cuModuleUnload(self._module)
            self._module = ctypes.c_void_p()

    @staticmethod
    def _check(code: int, call: str) -> None:
        if code != 0:
            raise faults.from_cuda(RuntimeError(f"{call}: CUDA error {code}"), code, "running its GPU kernels")
