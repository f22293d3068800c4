"""The NVIDIA driver by ctypes: found and asked before anything that would crash without it."""

from __future__ import annotations

import ctypes

from edgeapp import errors, paths
from edgeapp.gpu import faults

LIBRARY = "libcuda.so.1"


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
        except OSError as error:
            raise errors.NoGpuError(
                "cannot use a GPU: there is no NVIDIA driver on this machine",
                paths.loader_words(error),
                "install the driver (in a container: start it with --runtime nvidia --gpus all), "
                "or give an .onnx model to run on the CPU",
            ) from error

    def initialise(self) -> None:
        """cuInit.

        Raises:
            NoGpuError: the driver finds no usable GPU; the reason is named.
        """
        self._check(self._library.cuInit(0), "cuInit")

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

    def compute_capability(self, number: int) -> tuple[int, int]:
        """That of the GPU of this number, (major, minor); before any context exists."""
        # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
        return self.attribute(number, 75), self.attribute(number, 76)

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
