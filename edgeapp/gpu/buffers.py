"""A page-locked host buffer and a device buffer for every I/O tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycuda.driver as cuda
from numpy.typing import NDArray

from edgeapp.gpu import faults
from edgeapp.gpu.driver import Driver

LEAST_BYTES = 256
"""TensorRT wants an address for empty tensors too; CUDA aligns allocations to 256 bytes anyway."""


class Buffer:
    """Host and device memory of one tensor; grows on demand, never shrinks.

    Args:
        name: of the tensor, for messages.
    """

    def __init__(self, name: str, driver: Driver) -> None:
        self._name = name
        self._driver = driver
        self._host: Any = None
        self._device: Any = None
        self.capacity = 0
        self.device_capacity = 0

    @property
    def address(self) -> int:
        """Of the device buffer."""
        return int(self._device)

    def reserve(self, size: int) -> None:
        """Have both buffers hold at least `size` bytes.

        Raises:
            SystemRefusedError: there is not enough memory. GpuLostError: the context is broken.
        """
        self.reserve_device(size)
        self.reserve_host(size)

    def reserve_device(self, size: int) -> None:
        size = max(size, LEAST_BYTES)
        if size > self.device_capacity:
            self._free_device()
            try:
                self._device = cuda.mem_alloc(size)
            except cuda.Error as error:
                raise self._refused(error, size) from error
            self.device_capacity = size

    def reserve_host(self, size: int) -> None:
        size = max(size, LEAST_BYTES)
        if size > self.capacity:
            self._free_host()
            try:
                self._host = cuda.pagelocked_empty(size, np.uint8)
            except cuda.Error as error:
                raise self._refused(error, size) from error
            self.capacity = size

    def host(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The host buffer as an array; valid until the next `reserve` or `free`."""
        assert self._host is not None
        count = int(np.prod(shape, dtype=np.int64))
        return np.ndarray(shape, dtype, buffer=self._host.data) if count else np.empty(shape, dtype)

    @property
    def host_address(self) -> int:
        assert self._host is not None
        return int(self._host.ctypes.data)

    def upload(self, array: NDArray[Any], stream: Any) -> None:
        """Copy into the host buffer, then start the H2D copy on the stream."""
        np.copyto(self.host(array.shape, array.dtype), array)
        if array.nbytes:
            cuda.memcpy_htod_async(self._device, self.host((array.nbytes,), np.dtype(np.uint8)), stream)

    def download(self, size: int, stream: Any) -> None:
        """Start the D2H copy of `size` bytes into the host buffer."""
        if size:
            cuda.memcpy_dtoh_async(self.host((size,), np.dtype(np.uint8)), self._device, stream)

    def free(self) -> None:
        """Give both buffers back; the object can be used again."""
        self._free_device()
        self._free_host()

    def _free_device(self) -> None:
        if self._device is not None:
            self._device.free()
        self._device, self.device_capacity = None, 0

    def _free_host(self) -> None:
        if self._host is not None:
            self._host.base.free()
        self._host, self.capacity = None, 0

    def _refused(self, error: Exception, size: int) -> Exception:
        return faults.from_cuda(
            error,
            self._driver.context_code(),
            f"allocating {size / 1e6:.1f} MB for tensor {self._name}",
            self._driver.memory(),
        )
