"""nvJPEG by ctypes: JPEGs become pixels in the GPU's memory, by the decoder that some GPUs have for them.

A100, A30, H100, H200 and B200 have one. Names and numbers: NVIDIA's nvjpeg.h of CUDA 12 and 13.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import accumulate
from queue import Empty, SimpleQueue
from typing import Any

from edgeapp import errors, paths
from edgeapp.gpu.driver import BLOCKING_SYNC, DISABLE_TIMING, NON_BLOCKING, Driver

LIBRARIES = ("libnvjpeg.so.13", "libnvjpeg.so.12")

HARDWARE, RGB_INTERLEAVED = 3, 5
"""NVJPEG_BACKEND_HARDWARE, NVJPEG_OUTPUT_RGBI."""

STATUS = {
    1: "it is not initialised", 5: "there is not enough memory", 6: "it could not be run",
    7: "this GPU has no decoder for JPEGs", 8: "internal error", 9: "this GPU or driver does not support it",
}  # fmt: skip
"""nvjpegStatus_t, those that are no picture's fault."""

PIXEL_BYTES = 3
ROW_ALIGNMENT, PICTURE_ALIGNMENT = 64, 256

FEEDERS, MOST_AT_ONCE = 2, 32
"""Threads that give pictures to the decoder, and pictures in one call: more of either brings nothing on an H200."""

WH = tuple[int, int]
"""(width, height), pixels."""


class _Image(ctypes.Structure):
    """nvjpegImage_t: where a picture goes; interleaved ones have one channel."""

    _fields_ = (("channel", ctypes.c_void_p * 4), ("pitch", ctypes.c_size_t * 4))


def up(size: int, alignment: int) -> int:
    """The next multiple."""
    return -(-size // alignment) * alignment


def row_bytes(width: int) -> int:
    """From one row of a decoded picture to the next."""
    return up(width * PIXEL_BYTES, ROW_ALIGNMENT)


@dataclass
class Jpeg:
    """A JPEG that is to be decoded.

    Attributes:
        data: the file.
        size_wh: the size in it.
        address: of its pixels on the device: rows of `row_bytes`, three bytes a pixel; 0 until it is decoded.
    """

    data: bytes
    size_wh: WH
    address: int = 0


class Memory:
    """Device memory for the pictures of a batch; grows on demand."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._address = ctypes.c_void_p()
        self._size = 0

    def places(self, jpegs: Sequence[Jpeg]) -> list[int]:
        """Device addresses for the pixels of pictures, valid until the next call; none without enough memory."""
        sizes = [up(row_bytes(jpeg.size_wh[0]) * jpeg.size_wh[1], PICTURE_ALIGNMENT) for jpeg in jpegs]
        if sum(sizes) > self._size:
            self.free()
            if self._driver.function("cuMemAlloc_v2")(ctypes.byref(self._address), sum(sizes)) != 0:
                self._address = ctypes.c_void_p()
                return []
            self._size = sum(sizes)
        return [(self._address.value or 0) + start for start in accumulate(sizes[:-1], initial=0)]

    def free(self) -> None:
        if self._size:
            self._driver.function("cuMemFree_v2")(self._address)
        self._address, self._size = ctypes.c_void_p(), 0


@dataclass(frozen=True)
class _Request:
    """Pictures of a batch, until somebody has tried to decode them."""

    jpegs: Sequence[Jpeg]
    memory: Memory
    done: threading.Event = field(default_factory=threading.Event)


class Decoders:
    """The GPU's decoder for JPEGs, for several threads; made where the CUDA context is current.

    Two threads feed it, so that one reads headers while the other's pictures are decoded. Each takes what waits, of
    several batches if need be: a few pictures take the decoder nearly as long as many.

    Args:
        library: of nvJPEG; None has the system's loader find one.

    Raises:
        NoGpuError: there is no such library, or this GPU has no such decoder.
    """

    def __init__(self, driver: Driver, library: str | None) -> None:
        self._driver = driver
        self._undo = ExitStack()
        self._waiting: SimpleQueue[_Request | None] = SimpleQueue()
        context = ctypes.c_void_p()
        driver.call("cuCtxGetCurrent", ctypes.byref(context))
        self._context = context.value
        loaded = _load(library)
        try:
            made = [_Decoder(driver, loaded, self._undo) for _ in range(FEEDERS)]
        except BaseException:
            self._undo.close()
            raise
        self._threads = [threading.Thread(target=self._feed, args=(one,), name="jpegs", daemon=True) for one in made]
        for thread in self._threads:
            thread.start()

    def decode(self, jpegs: Sequence[Jpeg], memory: Memory) -> None:
        """Decode pictures into `memory`, and wait for them; those that cannot be keep the address 0. Any thread may."""
        request = _Request(jpegs, memory)
        self._waiting.put(request)
        request.done.wait()

    def _feed(self, decoder: _Decoder) -> None:
        self._driver.function("cuCtxSetCurrent")(self._context)
        while (request := self._waiting.get()) is not None:
            requests = [request]
            with suppress(Empty):
                while sum(len(one.jpegs) for one in requests) < MOST_AT_ONCE:
                    if (request := self._waiting.get_nowait()) is None:
                        self._waiting.put(None)  # for the next turn
                        break
                    requests.append(request)
            with suppress(Exception):  # what it does not decode is decoded on the CPU
                decoder.decode(requests)
            for one in requests:
                one.done.set()

    def close(self) -> None:
        """End the threads; nobody may wait any more."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()
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

    def decode(self, requests: Sequence[_Request]) -> None:
        """All their pictures at once; where one of them makes the decoder fail, none is decoded."""
        jpegs: list[Jpeg] = []
        addresses: list[int] = []
        for request in requests:
            taken = [jpeg for jpeg in request.jpegs if self._takes(jpeg.data)]
            if taken and (found := request.memory.places(taken)):
                jpegs += taken
                addresses += found
        count = len(jpegs)
        if not count or (state := self._state(count)) is None:
            return
        files = (ctypes.c_char_p * count)(*[jpeg.data for jpeg in jpegs])
        lengths = (ctypes.c_size_t * count)(*[len(jpeg.data) for jpeg in jpegs])
        images = (_Image * count)()
        for image, jpeg, address in zip(images, jpegs, addresses, strict=True):
            image.channel[0], image.pitch[0] = address, row_bytes(jpeg.size_wh[0])
        code = self._library.nvjpegDecodeBatched(self._handle, state, files, lengths, images, self._stream)
        # Also after a refusal: what was begun writes into this memory.
        waited = self._driver.function("cuEventRecord")(self._done, self._stream)
        waited = waited or self._driver.function("cuEventSynchronize")(self._done)
        if not code and not waited:
            for jpeg, address in zip(jpegs, addresses, strict=True):
                jpeg.address = address

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
    found, why = None, ""
    for name in (library,) if library is not None else LIBRARIES:
        try:
            found = ctypes.CDLL(name)
            break
        except OSError as error:
            why = paths.loader_words(error)
    if found is None:
        raise errors.NoGpuError(
            "cannot decode JPEGs on the GPU: nvJPEG is missing",
            why,
            "name the one of the wheel nvidia-nvjpeg-cu12: --nvjpeg-library libnvjpeg.so.12; or leave out --decode gpu",
        )
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for name, types in {
        "nvjpegCreateEx": (number, pointer, pointer, ctypes.c_uint, pointer),
        "nvjpegDestroy": (pointer,),
        "nvjpegJpegStreamCreate": (pointer, pointer),
        "nvjpegJpegStreamDestroy": (pointer,),
        "nvjpegJpegStreamParseHeader": (pointer, ctypes.c_char_p, size, pointer),
        "nvjpegDecodeBatchedSupported": (pointer, pointer, pointer),
        "nvjpegJpegStateCreate": (pointer, pointer),
        "nvjpegJpegStateDestroy": (pointer,),
        "nvjpegDecodeBatchedInitialize": (pointer, pointer, number, number, number),
        "nvjpegDecodeBatched": (pointer, pointer, pointer, pointer, pointer, pointer),
    }.items():
        getattr(found, name).argtypes = types
    return found
