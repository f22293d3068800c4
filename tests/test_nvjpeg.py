"""How JPEGs are given to nvJPEG, on stand-ins for the library and the driver: no GPU has to be here.

That the pictures come out right is for tests/gpu/test_decode.py.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from edgeapp import errors
from edgeapp.gpu import nvjpeg
from edgeapp.gpu.driver import up
from edgeapp.gpu.nvjpeg import Decoders, Memory

PICTURE = b"jpeg", (100, 50)
START = 1 << 20


class StandIn:
    """Both: every function succeeds and is written down, but those that a test has fail.

    Attributes:
        fails: functions that return the code 1.
        sizes_wh: by file, what the library reads in its header.
        asked: sizes for which the decoder was prepared, 0 for each decoding.
        taken: sizes of memory.
    """

    def __init__(self) -> None:
        self.fails: set[str] = set()
        self.sizes_wh = {b"jpeg": (100, 50), b"other": (64, 64), b"lies": (4000, 4000)}
        self.asked: list[int] = []
        self.taken: list[int] = []
        self._header = (0, 0)

    def __getattr__(self, name: str) -> Any:
        does = {
            "cuMemAlloc_v2": self._allocate, "nvjpegJpegStreamParseHeader": self._parse,
            "nvjpegDecodeBatchedSupported": self._support, "nvjpegJpegStreamGetFrameDimensions": self._measure,
            "nvjpegDecodeBatchedInitialize": self._prepare, "nvjpegDecodeBatched": self._decode,
        }.get(name, lambda *_: 0)  # fmt: skip
        return lambda *words: does(*words) or int(name in self.fails)

    def call(self, name: str, *_: Any) -> None:
        assert name not in self.fails

    def create(self, name: str, *_: Any) -> int:
        self.call(name)
        return 1

    def function(self, name: str) -> Any:
        return getattr(self, name)

    def _allocate(self, address: Any, size: int) -> int:
        self.taken.append(size)
        address._obj.value = START
        return 0

    def _parse(self, _: Any, data: bytes, length: int, __: Any) -> int:
        assert len(data) == length
        self._header = self.sizes_wh.get(data, (0, 0))
        return int(data not in self.sizes_wh)

    def _support(self, _: Any, __: Any, supported: Any) -> int:
        supported._obj.value = 0
        return 0

    def _measure(self, _: Any, width: Any, height: Any) -> int:
        width._obj.value, height._obj.value = self._header
        return 0

    def _prepare(self, _: Any, __: Any, count: int, *___: int) -> int:
        self.asked.append(count)
        return 0

    def _decode(self, *_: Any) -> int:
        self.asked.append(0)
        return 0


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = StandIn()
    monkeypatch.setattr(nvjpeg, "_load", lambda _: made)
    return made


def test_pictures_lie_behind_each_other(stand_in: Any) -> None:
    """In rows of their own length, in memory that is taken once."""
    found, memory = Decoders(stand_in, 32, None), Memory(stand_in)
    second = START + up(320 * 50)
    assert found.decode([PICTURE, (b"other", (64, 64)), PICTURE], memory) == [START, second, second + 192 * 64]
    assert found.decode([PICTURE], memory) == [START]
    assert len(stand_in.taken) == 1


def test_decoder_is_prepared_for_each_size_and_after_a_failure(stand_in: Any) -> None:
    """As nvjpeg.h asks for; between batches of one size it need not be."""
    found, memory = nvjpeg._Decoder(stand_in, stand_in, ExitStack()), Memory(stand_in)
    for count in (4, 4, 3):
        assert None not in found.decode([PICTURE] * count, memory)
    stand_in.fails.add("nvjpegDecodeBatched")
    assert found.decode([PICTURE] * 3, memory) == [None] * 3
    stand_in.fails = {"nvjpegDecodeBatchedInitialize"}
    assert found.decode([PICTURE] * 3, memory) == [None] * 3
    stand_in.fails.clear()
    assert None not in found.decode([PICTURE] * 3, memory)
    assert stand_in.asked == [4, 0, 0, 3, 0, 0, 3, 3, 0]


def test_what_cannot_be_decoded_is_left_out(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that is none, or tells the library of another size than there is room for; too much; no memory."""
    found, memory = Decoders(stand_in, 32, None), Memory(stand_in)
    addresses = found.decode([(b"junk", (8, 8)), PICTURE, (b"lies", (8, 8)), PICTURE], memory)
    assert [address is None for address in addresses] == [True, False, True, False]
    assert found.decode([(b"junk", (8, 8))], memory) == [None]
    monkeypatch.setattr(nvjpeg, "MOST_BYTES", 40_000)
    assert [address is None for address in found.decode([PICTURE] * 4, memory)] == [False, False, True, True]
    for call in ("cuMemAlloc_v2", "cuEventSynchronize"):
        stand_in.fails = {call}
        assert found.decode([PICTURE], Memory(stand_in)) == [None]


@pytest.mark.parametrize("library", ["missing.so", "libc.so.6"])
def test_wrong_library_is_told(library: str) -> None:
    """Missing, or another one."""
    stand_in: Any = StandIn()
    with pytest.raises(errors.NoGpuError, match=library):
        Decoders(stand_in, 8, library)


def test_gpu_without_a_decoder_is_told(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By nvJPEG's own word, of both libraries that were tried; where the second works, that is taken."""
    stand_in.nvjpegCreateEx = lambda *_: 7
    with pytest.raises(errors.NoGpuError, match=r"no decoder for JPEGs; .*no decoder for JPEGs"):
        Decoders(stand_in, 8, None)
    monkeypatch.setattr(nvjpeg, "_load", lambda name: StandIn() if name == nvjpeg.LIBRARIES[1] else stand_in)
    assert Decoders(stand_in, 8, None).decode([PICTURE], Memory(stand_in)) == [START]
