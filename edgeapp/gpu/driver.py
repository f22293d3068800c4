"""The NVIDIA driver by ctypes: found and asked before anything that would crash without it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from edgeapp import errors, headstart, paths
from edgeapp.gpu import faults

LIBRARY = headstart.LIBRARY

_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
SIGNATURES: dict[str, tuple[type, ...]] = {
    "cuStreamCreate": (_POINTER, _INT),
    "cuStreamDestroy_v2": (_POINTER,),
    "cuStreamSynchronize": (_POINTER,),
    "cuStreamWaitEvent": (_POINTER, _POINTER, _INT),
    "cuStreamBeginCapture_v2": (_POINTER, _INT),
    "cuStreamEndCapture": (_POINTER, _POINTER),
    "cuGraphInstantiateWithFlags": (_POINTER, _POINTER, ctypes.c_ulonglong),
    "cuGraphGetNodes": (_POINTER, _POINTER, _POINTER),
    "cuGraphLaunch": (_POINTER, _POINTER),
    "cuGraphDestroy": (_POINTER,),
    "cuGraphExecDestroy": (_POINTER,),
    "cuEventCreate": (_POINTER, _INT),
    "cuEventDestroy_v2": (_POINTER,),
    "cuEventRecord": (_POINTER, _POINTER),
    "cuEventSynchronize": (_POINTER,),
    "cuEventQuery": (_POINTER,),
    "cuEventElapsedTime": (_POINTER, _POINTER, _POINTER),
    "cuMemcpyHtoDAsync_v2": (_POINTER, _POINTER, _SIZE, _POINTER),
    "cuMemcpyDtoHAsync_v2": (_POINTER, _POINTER, _SIZE, _POINTER),
    "cuMemsetD8Async": (_POINTER, ctypes.c_ubyte, _SIZE, _POINTER),
}
"""Functions for the work on streams: PyCUDA has no graphs, and its other calls cost several times a ctypes call."""


class CallError(Exception):
    """A driver function returned an error; `faults.from_cuda` says what it means."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call} failed: CUDA error {code}")
        self.code = code


class Driver:
    """The driver library of this machine.

    It is looked up by its soname, never by a path and never in the bundle: it must belong to the
    running kernel driver, and JetPack moved it three times (5: tegra/, 6: nvidia/, 7: /opt/nvidia).
    It is opened with global symbols, because PyCUDA finds its functions there.

    Raises:
        NoGpuError: there is no driver library.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY, mode=ctypes.RTLD_GLOBAL)
            self._quick = ctypes.PyDLL(LIBRARY)
        except OSError as error:
            raise errors.NoGpuError(
                "cannot use a GPU: there is no NVIDIA driver on this machine",
                paths.loader_words(error),
                "install the driver (in a container: start it with --runtime nvidia --gpus all), "
                "or give an .onnx model to run on the CPU",
            ) from error

    def call(self, name: str, *arguments: Any) -> None:
        """One of SIGNATURES.

        Raises:
            CallError: it returned an error.
        """
        code = self.function(name)(*arguments)
        if code != 0:
            raise CallError(name, code)

    def function(self, name: str, *, waits: bool = True) -> Callable[..., int]:
        """One of SIGNATURES, to be called often: it returns the error code.

        Args:
            waits: give up the interpreter's lock during the call. Beside many threads that decode, getting it back can
                take a hundred times as long as a call that waits for nothing.
        """
        found: Any = getattr(self._library if waits else self._quick, name)
        found.argtypes = SIGNATURES[name]
        return found  # type: ignore[no-any-return]

    def create(self, name: str, *arguments: Any) -> int:
        """The handle that a function of SIGNATURES puts where its first argument points."""
        handle = ctypes.c_void_p()
        self.call(name, ctypes.byref(handle), *arguments)
        return handle.value or 0

    def initialise(self) -> None:
        """cuInit.

        Raises:
            NoGpuError: the driver finds no usable GPU; the reason is named.
        """
        headstart.make_lazy()
        self._check(self._library.cuInit(0), "cuInit")

    def retain_context(self, number: int) -> None:
        """Make the primary context of a GPU, or count one more who needs it; current in this thread.

        Raises:
            NoGpuError: it cannot be made.
        """
        context = ctypes.c_void_p()
        code = self._library.cuDevicePrimaryCtxRetain(ctypes.byref(context), self._device(number))
        self._check(code, "cuDevicePrimaryCtxRetain")
        self._check(self._library.cuCtxSetCurrent(context), "cuCtxSetCurrent")

    def release_context(self, number: int) -> None:
        """Undo `retain_context`."""
        self._library.cuDevicePrimaryCtxRelease_v2(self._device(number))

    def version(self) -> tuple[int, int]:
        """The newest CUDA version that the driver serves, (major, minor)."""
        value = ctypes.c_int()
        self._check(self._library.cuDriverGetVersion(ctypes.byref(value)), "cuDriverGetVersion")
        return value.value // 1000, value.value % 1000 // 10

    def device_count(self) -> int:
        """The number of visible GPUs."""
        value = ctypes.c_int()
        self._check(self._library.cuDeviceGetCount(ctypes.byref(value)), "cuDeviceGetCount")
        return value.value

    def require(self, number: int) -> None:
        """Make sure that there is a GPU of this number.

        Raises:
            NoGpuError: there is none.
        """
        count = self.device_count()
        if number >= count:
            raise errors.NoGpuError(
                f"cannot use GPU {number}: {count} GPU{'s are' if count != 1 else ' is'} visible",
                "they are numbered from 0; CUDA_VISIBLE_DEVICES may hide some",
                "choose another with --device" if count else "check nvidia-smi",
            )

    def compute_capability(self, number: int) -> tuple[int, int]:
        """That of the GPU of this number, (major, minor); before any context exists."""
        # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
        return self.attribute(number, 75), self.attribute(number, 76)

    def is_integrated(self, number: int) -> bool:
        """Whether the GPU shares the memory of the processor."""
        return self.attribute(number, 18) == 1  # CU_DEVICE_ATTRIBUTE_INTEGRATED

    def device_name(self, number: int) -> str:
        """The name of the GPU of this number, "NVIDIA H200"."""
        return self._text("cuDeviceGetName", number)

    def bus_id(self, number: int) -> str:
        """Its PCI address, "0000:01:00.0"."""
        return self._text("cuDeviceGetPCIBusId", number)

    def total_memory(self, number: int) -> int:
        """Its memory, bytes."""
        value = ctypes.c_size_t()
        self._check(self._library.cuDeviceTotalMem_v2(ctypes.byref(value), self._device(number)), "cuDeviceTotalMem")
        return value.value

    def attribute(self, number: int, which: int) -> int:
        """One of CUdevice_attribute."""
        value = ctypes.c_int()
        code = self._library.cuDeviceGetAttribute(ctypes.byref(value), which, self._device(number))
        self._check(code, "cuDeviceGetAttribute")
        return value.value

    def memory(self) -> tuple[int, int] | None:
        """(free, total) bytes of the GPU of the current CUDA context; None when it does not answer."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        if self._library.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) != 0:
            return None
        return free.value, total.value

    def context_code(self) -> int:
        """0 while the current CUDA context works; the error code that broke it for good otherwise."""
        return int(self._library.cuCtxSynchronize())

    def _device(self, number: int) -> ctypes.c_int:
        device = ctypes.c_int()
        self._check(self._library.cuDeviceGet(ctypes.byref(device), number), "cuDeviceGet")
        return device

    def _text(self, call: str, number: int) -> str:
        buffer = ctypes.create_string_buffer(256)
        self._check(getattr(self._library, call)(buffer, len(buffer), self._device(number)), call)
        return buffer.value.decode("utf-8", "replace")

    @staticmethod
    def _check(code: int, call: str) -> None:
        if code != 0:
            raise faults.no_gpu(code, call)
