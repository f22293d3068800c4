"""nvJPEG by ctypes: JPEGs become pixels in the GPU's memory, by the decoder that some GPUs have for them.

A100, A30, H100, H200 and B200 have one. Names and numbers: NVIDIA's nvjpeg.h of CUDA 12 and 13.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any

import numpy as np

from edgeapp import errors, paths
from edgeapp.gpu.driver import BLOCKING_SYNC, DISABLE_TIMING, NON_BLOCKING, Driver

LIBRARIES = ("libnvjpeg.so.13", "libnvjpeg.so.12")

HARDWARE, RGB_INTERLEAVED = 3, 5
"""NVJPEG_BACKEND_HARDWARE, NVJPEG_OUTPUT_RGBI."""

_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
SIGNATURES: dict[str, tuple[type, ...]] = {
    "nvjpegCreateEx": (_INT, _POINTER, _POINTER, ctypes.c_uint, _POINTER),
    "nvjpegDestroy": (_POINTER,),
    "nvjpegJpegStreamCreate": (_POINTER, _POINTER),
    "nvjpegJpegStreamDestroy": (_POINTER,),
    "nvjpegJpegStreamParseHeader": (_POINTER, ctypes.c_char_p, _SIZE, _POINTER),
    "nvjpegDecodeBatchedSupported": (_POINTER, _POINTER, _POINTER),
    "nvjpegJpegStateCreate": (_POINTER, _POINTER),
    "nvjpegJpegStateDestroy": (_POINTER,),
    "nvjpegDecodeBatchedInitialize": (_POINTER, _POINTER, _INT, _INT, _INT),
    "nvjpegDecodeBatched": (_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
}
"""The functions that are called."""

STATUS = {
    1: "it is not initialised", 5: "there is not enough memory", 6: "it could not be run",
    7: "this GPU has no decoder for JPEGs", 8: "internal error", 9: "this GPU or driver does not support it",
}  # fmt: skip
"""nvjpegStatus_t, those that are no picture's fault."""

PIXEL_BYTES = 3
ROW_ALIGNMENT, PICTURE_ALIGNMENT = 64, 256

AT_WORK, MOST_DECODERS = 16, 8
"""Pictures that keep all units of the GPU's decoder busy, and handles to give them by. One call for pictures of several
batches was slower (tests/gpu/results.md)."""

WH = tuple[int, int]
"""(width, height), pixels."""


class _Image(ctypes.Structure):
    """nvjpegImage_t: where a picture goes; interleaved ones have one channel."""

    _fields_ = (("channel", ctypes.c_void_p * 4), ("pitch", ctypes.c_size_t * 4))


def row_bytes(width: int) -> int:
    """From one row of a decoded picture to the next."""
    return -(-width * PIXEL_BYTES // ROW_ALIGNMENT) * ROW_ALIGNMENT


class Memory:
    """Device memory for the pictures of a batch; grows on demand."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._address = ctypes.c_void_p()
        self._size = 0

    def places(self, sizes: Sequence[WH]) -> list[int] | None:
        """Device addresses for pictures of these sizes, valid until the next call; None without enough memory."""
        ends = np.cumsum([-(-row_bytes(w) * h // PICTURE_ALIGNMENT) * PICTURE_ALIGNMENT for w, h in sizes]).tolist()
        if ends[-1] > self._size:
            self.free()
            if self._driver.function("cuMemAlloc_v2")(ctypes.byref(self._address), ends[-1]) != 0:
                self._address = ctypes.c_void_p()
                return None
            self._size = ends[-1]
        start = self._address.value or 0
        return [start + offset for offset in (0, *ends[:-1])]

    def free(self) -> None:
        if self._size:
            self._driver.function("cuMemFree_v2")(self._address)
        self._address, self._size = ctypes.c_void_p(), 0


class Decoders:
    """The GPU's decoder for JPEGs, for several threads; made where the CUDA context is current.

    Args:
        batch: pictures that come together.
        library: of nvJPEG; None has the system's loader find one.

    Raises:
        NoGpuError: there is no such library, or this GPU has no such decoder.
    """

    def __init__(self, driver: Driver, batch: int, library: str | None) -> None:
        self._driver = driver
        self._undo = ExitStack()
        self._free: SimpleQueue[_Decoder] = SimpleQueue()
        context = ctypes.c_void_p()
        driver.call("cuCtxGetCurrent", ctypes.byref(context))
        self._context = context.value
        loaded = _load(library)
        try:
            for _ in range(min(MOST_DECODERS, max(2, -(-AT_WORK // batch)))):
                decoder = _Decoder(driver, loaded, self._undo)
                self._free.put(decoder)
        except BaseException:
            self.close()
            raise

    def decode(self, jpegs: Sequence[tuple[bytes, WH]], memory: Memory) -> list[int | None]:
        """Decode pictures and wait for them; any thread may.

        Args:
            jpegs: files, and the sizes in them.
            memory: takes the pixels: rows of `row_bytes`, three bytes a pixel.

        Returns:
            For each picture its device address, None where the decoder does not take it.
        """
        self._driver.function("cuCtxSetCurrent")(self._context)
        decoder = self._free.get()
        try:
            return decoder.decode(jpegs, memory)
        finally:
            self._free.put(decoder)

    def close(self) -> None:
        self._undo.close()


class _Decoder:
    """One handle of the library, for one thread at a time."""

    def __init__(self, driver: Driver, library: Any, undo: ExitStack) -> None:
        self._driver = driver
        self._library = library
        self._undo = undo
        self._handle = self._made("nvjpegCreateEx", HARDWARE, None, None, 0)
        undo.callback(library.nvjpegDestroy, self._handle)
        self._header = self._made("nvjpegJpegStreamCreate", self._handle)
        undo.callback(library.nvjpegJpegStreamDestroy, self._header)
        self._states: dict[int, ctypes.c_void_p] = {}
        self._stream = driver.create("cuStreamCreate", NON_BLOCKING)
        undo.callback(driver.function("cuStreamDestroy_v2"), self._stream)
        self._done = driver.create("cuEventCreate", BLOCKING_SYNC | DISABLE_TIMING)
        undo.callback(driver.function("cuEventDestroy_v2"), self._done)

    def decode(self, jpegs: Sequence[tuple[bytes, WH]], memory: Memory) -> list[int | None]:
        """See `Decoders.decode`; where one picture makes the decoder fail, none is decoded."""
        found: list[int | None] = [None] * len(jpegs)
        numbers = [number for number, (data, _) in enumerate(jpegs) if self._takes(data)]
        if not numbers or (addresses := memory.places([jpegs[number][1] for number in numbers])) is None:
            return found
        count = len(numbers)
        files = (ctypes.c_char_p * count)(*[jpegs[number][0] for number in numbers])
        lengths = (ctypes.c_size_t * count)(*[len(jpegs[number][0]) for number in numbers])
        images = (_Image * count)()
        for image, number, address in zip(images, numbers, addresses, strict=True):
            image.channel[0], image.pitch[0] = address, row_bytes(jpegs[number][1][0])
        if (state := self._state(count)) is None:
            return found
        code = self._library.nvjpegDecodeBatched(self._handle, state, files, lengths, images, self._stream)
        # Also after a refusal: what was begun writes into this memory.
        waited = self._driver.function("cuEventRecord")(self._done, self._stream)
        waited = waited or self._driver.function("cuEventSynchronize")(self._done)
        if code or waited:
            return found
        for number, address in zip(numbers, addresses, strict=True):
            found[number] = address
        return found

    def _takes(self, data: bytes) -> bool:
        """By its header."""
        supported = ctypes.c_int(1)
        code = self._library.nvjpegJpegStreamParseHeader(self._handle, data, len(data), self._header)
        code = code or self._library.nvjpegDecodeBatchedSupported(self._handle, self._header, ctypes.byref(supported))
        return code == 0 and supported.value == 0

    def _state(self, count: int) -> ctypes.c_void_p | None:
        """For batches of this size; None where the library refuses it."""
        if count not in self._states:
            state = ctypes.c_void_p()
            if self._library.nvjpegJpegStateCreate(self._handle, ctypes.byref(state)) != 0:
                return None
            self._undo.callback(self._library.nvjpegJpegStateDestroy, state)
            if self._library.nvjpegDecodeBatchedInitialize(self._handle, state, count, 1, RGB_INTERLEAVED) != 0:
                return None
            self._states[count] = state
        return self._states[count]

    def _made(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        code = getattr(self._library, name)(*arguments, ctypes.byref(handle))
        if code != 0:
            raise errors.NoGpuError(
                "cannot decode JPEGs on this GPU",
                f"{name}: {STATUS.get(code, f'status {code}')}",
                "leave out --decode gpu; A100, A30, H100, H200 and B200 have a decoder for JPEGs",
            )
        return handle


def _load(library: str | None) -> Any:
    """nvJPEG with the types of what is called."""
    why = ""
    for name in (library,) if library is not None else LIBRARIES:
        try:
            found = ctypes.CDLL(name)
            for function, types in SIGNATURES.items():
                getattr(found, function).argtypes = types
        except (OSError, AttributeError) as error:  # the latter: it is another library
            why = paths.loader_words(error)
        else:
            return found
    raise errors.NoGpuError(
        "cannot decode JPEGs on the GPU: nvJPEG is missing",
        why,
        "name the one of the wheel nvidia-nvjpeg-cu12: --nvjpeg-library libnvjpeg.so.12; or leave out --decode gpu",
    )
