"""nvJPEG by ctypes: JPEGs become pixels in the GPU's memory, by the decoder that some GPUs have for them.

A100, A30, H100, H200 and B200 have one. Names and numbers: NVIDIA's nvjpeg.h of CUDA 12 and 13.

Where a JPEG is damaged inside, the decoder leaves pixels out and reports nothing. What shows there is of an earlier
picture: it lies in memory of the decoder's own, which nobody else can reach (tests/gpu/results.md).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import accumulate
from queue import SimpleQueue
from typing import Any

from edgeapp import errors, paths
from edgeapp.gpu.driver import BLOCKING_SYNC, DISABLE_TIMING, NON_BLOCKING, Driver, up

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
    "nvjpegJpegStreamGetFrameDimensions": (_POINTER, _POINTER, _POINTER),
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
ROW_ALIGNMENT = 64
MOST_BYTES = 1 << 30
"""Of the pictures of a batch on the device; what is beyond is decoded on the CPU."""

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
    return up(width * PIXEL_BYTES, ROW_ALIGNMENT)


class Memory:
    """Device memory for the pictures of a batch; grows on demand."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._address = ctypes.c_void_p()
        self._size = 0

    def places(self, sizes: Sequence[int]) -> list[int] | None:
        """Device addresses for pictures of so many bytes, valid until the next call; None without enough memory."""
        whole = sum(sizes)
        if whole > self._size:
            self.free()
            if self._driver.function("cuMemAlloc_v2")(ctypes.byref(self._address), whole) != 0:
                self._address = ctypes.c_void_p()
                return None
            self._size = whole
        start = self._address.value or 0
        return [start + offset for offset in accumulate(sizes[:-1], initial=0)]

    def free(self) -> None:
        if self._size:
            self._driver.function("cuMemFree_v2")(self._address)
        self._address, self._size = ctypes.c_void_p(), 0


class _RefusedError(Exception):
    """The library cannot be used; the reason."""


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
        reasons = []
        count = min(MOST_DECODERS, max(2, -(-AT_WORK // batch)))
        for name in (library,) if library is not None else LIBRARIES:
            try:
                loaded = _load(name)
                made = [_Decoder(driver, loaded, self._undo) for _ in range(count)]
            except _RefusedError as error:
                self._undo.close()
                reasons.append(str(error))
                continue
            for decoder in made:
                self._free.put(decoder)
            return
        raise errors.NoGpuError(
            "cannot decode JPEGs on the GPU",
            "; ".join(reasons),
            "leave out --decode gpu; or, if it has a decoder, name the library of the wheel nvidia-nvjpeg-cu12: "
            "--nvjpeg-library libnvjpeg.so.12",
        )

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
        self._handle = self._made("nvjpegCreateEx", HARDWARE, None, None, 0)
        undo.callback(library.nvjpegDestroy, self._handle)
        self._header = self._made("nvjpegJpegStreamCreate", self._handle)
        undo.callback(library.nvjpegJpegStreamDestroy, self._header)
        self._state = self._made("nvjpegJpegStateCreate", self._handle)
        undo.callback(library.nvjpegJpegStateDestroy, self._state)
        self._prepared = 0
        self._stream = driver.create("cuStreamCreate", NON_BLOCKING)
        undo.callback(driver.function("cuStreamDestroy_v2"), self._stream)
        self._done = driver.create("cuEventCreate", BLOCKING_SYNC | DISABLE_TIMING)
        undo.callback(driver.function("cuEventDestroy_v2"), self._done)

    def decode(self, jpegs: Sequence[tuple[bytes, WH]], memory: Memory) -> list[int | None]:
        """See `Decoders.decode`; where one picture makes the decoder fail, none is decoded."""
        found: list[int | None] = [None] * len(jpegs)
        numbers: list[int] = []
        sizes: list[int] = []
        for number, (data, (width, height)) in enumerate(jpegs):
            size = up(row_bytes(width) * height)
            if sum(sizes) + size <= MOST_BYTES and self._takes(data, (width, height)):
                numbers.append(number)
                sizes.append(size)
        if not numbers or (addresses := memory.places(sizes)) is None:
            return found
        count = len(numbers)
        files = (ctypes.c_char_p * count)(*[jpegs[number][0] for number in numbers])
        lengths = (ctypes.c_size_t * count)(*[len(jpegs[number][0]) for number in numbers])
        images = (_Image * count)()
        for image, number, address in zip(images, numbers, addresses, strict=True):
            image.channel[0], image.pitch[0] = address, row_bytes(jpegs[number][1][0])
        code = 0
        if self._prepared != count:  # of another size, or the last one failed
            code = self._library.nvjpegDecodeBatchedInitialize(self._handle, self._state, count, 1, RGB_INTERLEAVED)
        code = code or self._library.nvjpegDecodeBatched(
            self._handle, self._state, files, lengths, images, self._stream
        )
        # Also after a refusal: what was begun writes into this memory.
        waited = self._driver.function("cuEventRecord")(self._done, self._stream)
        waited = waited or self._driver.function("cuEventSynchronize")(self._done)
        self._prepared = 0 if code or waited else count
        for number, address in zip(numbers, addresses, strict=True):
            found[number] = address if self._prepared else None
        return found

    def _takes(self, data: bytes, size_wh: WH) -> bool:
        """By its header, which has to be read as it was before: the room is for that size."""
        supported, width, height = ctypes.c_int(1), ctypes.c_uint(), ctypes.c_uint()
        library, header = self._library, self._header
        code = library.nvjpegJpegStreamParseHeader(self._handle, data, len(data), header)
        code = code or library.nvjpegDecodeBatchedSupported(self._handle, header, ctypes.byref(supported))
        code = code or library.nvjpegJpegStreamGetFrameDimensions(header, ctypes.byref(width), ctypes.byref(height))
        return code == 0 and supported.value == 0 and (width.value, height.value) == size_wh

    def _made(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        code = getattr(self._library, name)(*arguments, ctypes.byref(handle))
        if code != 0:
            raise _RefusedError(f"{name}: {STATUS.get(code, f'status {code}')}")
        return handle


def _load(name: str) -> Any:
    """nvJPEG with the types of what is called."""
    try:
        found = ctypes.CDLL(name)
        for function, types in SIGNATURES.items():
            getattr(found, function).argtypes = types
    except (OSError, AttributeError) as error:  # the latter: it is another library
        raise _RefusedError(paths.loader_words(error)) from error
    return found
