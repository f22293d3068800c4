"""What the bytes of a TensorRT plan tell, without TensorRT.

The header (NVIDIA's TensorRT OSS, samples/common/sampleEngines.cpp, documents tag and version; the rest was seen in
every one of 45 plans that TensorRT 8.6.0 built on an H200, and in the plans of TensorRT-RTX 1.4 and 1.7):

    0  "ftrt"    4  u32 0    8  u64 number of sections    16  u64 size of the file    24  major, minor, patch, build
    32 the sections, 24 bytes each: four letters, u32 0, u64 offset, u64 size; the engine's is "NGNE"; "NAEL" is the
       lean runtime, an ELF library

A section is an archive: "ptrt", u32, u64 counter of the archive's format (236 in 8.6.0), u64 size, then typed values:
u16 type, u16 1, the value; 0x8002 a byte, 0x8007 an int32, 0x8008 and 0x8009 a u64, 0x800a a bool; other types open a
group, and u16 ~type closes it. The archive of 8.6.0 begins with the version, the hardware compatibility level, the
properties of the GPU that the plan was built on, the weights, a number and two bools.

Found by building one network in variants and comparing:

    hardware compatibility level   int32 at 108: 0 none, 1 Ampere and newer
    compute capability             int32 at 124 and 132; multiprocessors at 212, memory (u64) at 257
    refittable                     the second bool after the weights: 1 in all plans built with REFIT, else 0
    lean runtime inside            a section "NAEL"; such a plan is version compatible
    version compatible             otherwise not told: two networks gave the same bytes with the flag and without it
    profiling verbosity, dtypes    not told here
    weight-stripped                not told: TensorRT 8.6 cannot build such plans

Other versions open other groups (RTX 1.7: 0x804e for 0x80e5), so what follows the version in the archive of a version
that was not looked at counts as unknown; nothing is guessed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from edgeapp.plan.peek import Peek, UnknownError

HEADER_BYTES = 28
"""Tag, size and version of a plan lie in these bytes."""

MOST_SECTIONS = 64
ENGINE_SECTION, LEAN_SECTION = "NGNE", "NAEL"

ARCHIVE_VERSIONS = {
    205: "8.2", 213: "8.4", 232: "8.5", 236: "8.6", 237: "10.0 or the preview of 8.5", 239: "10.3 to 10.10",
    240: "10.11", 244: "11.3",
}  # fmt: skip
"""The counter in a plan's archive -> the TensorRT versions that were seen to write it; neighbours may share it.

236 is read from plans of 8.6.0; the others from public reports (205, 213, 232: NVIDIA/TensorRT#3073; 237: #3898 and
#2544; 239 and 240: #4479)."""

LEVELS = {0: "none", 1: "ampere+", 2: "same compute capability"}

RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Bit by bit of the u32 at 32 in a plan of TensorRT-RTX; bit 6 has no known meaning."""


@dataclass(frozen=True)
class PlanFacts:
    """What a plan's bytes tell; None for what they do not.

    Attributes:
        version: (major, minor, patch, build) of the TensorRT that built it.
        size: how long it has to be, bytes.
        sections: the names of its sections.
        archive: the counter of the archive's format.
        compute_capability: (major, minor) of the GPU that it was built on.
        multiprocessors, memory_bytes: of that GPU.
        level: hardware compatibility level, one of LEVELS.
        refittable: whether weights can be put in later.
    """

    version: tuple[int, int, int, int]
    size: int
    sections: tuple[str, ...] = ()
    archive: int | None = None
    compute_capability: tuple[int, int] | None = None
    multiprocessors: int | None = None
    memory_bytes: int | None = None
    level: str | None = None
    refittable: bool | None = None

    @property
    def lean_inside(self) -> bool | None:
        """Whether the plan carries a lean runtime: native code, which is not run unless it is allowed."""
        return LEAN_SECTION in self.sections if self.sections else None


def read_plan(peek: Peek, start: int) -> PlanFacts:
    """The facts of the plan that begins at `start` with "ftrt" or "vtrt".

    Raises:
        UnknownError: not even the header is there.
    """
    head = peek.read(start, HEADER_BYTES)
    if len(head) < HEADER_BYTES:
        raise UnknownError("no header")
    count, size = struct.unpack_from("<QQ", head, 8)
    version = (head[24], head[25], head[26], head[27])
    try:
        sections = _sections(peek, start, head[:4], count)
    except (UnknownError, struct.error):
        return PlanFacts(version, size)
    names = tuple(name for name, _ in sections)
    engine = next((offset for name, offset in sections if name == ENGINE_SECTION), None)
    if engine is None or head[:4] != b"ftrt":
        return PlanFacts(version, size, names)
    try:
        archive = _Archive(peek, start + engine, version)
    except (UnknownError, struct.error):
        return PlanFacts(version, size, names)
    try:
        return PlanFacts(version, size, names, archive.counter, *archive.first_values())
    except (UnknownError, struct.error):
        return PlanFacts(version, size, names, archive.counter)


def _sections(peek: Peek, start: int, magic: bytes, count: int) -> list[tuple[str, int]]:
    """(name, offset from the start of the plan) of every section."""
    if not 1 <= count <= MOST_SECTIONS:
        raise UnknownError(f"{count} sections")
    table = peek.read(start + (64 if magic == b"vtrt" else 32), 24 * count)
    return [(name.decode("latin-1"), offset) for name, _, offset, _ in struct.iter_unpack("<4sIQQ", table)]


def rtx_capabilities(peek: Peek, start: int) -> list[str]:
    """The compute capabilities that a plan of TensorRT-RTX was built for, ["8.6", "8.9"]."""
    mask = int.from_bytes(peek.read(start + 32, 4), "little")
    return [name for bit, name in enumerate(RTX_CAPABILITIES) if mask >> bit & 1]


class _Archive:
    """The typed values of an engine's section, one after the other.

    Raises:
        UnknownError: it is no archive, or not of this version's layout.
    """

    def __init__(self, peek: Peek, start: int, version: tuple[int, int, int, int]) -> None:
        self._peek = peek
        magic, _, self.counter, _ = struct.unpack("<4sIQQ", peek.read(start, 24))
        self._at = start + 24
        if magic != b"ptrt" or tuple(self._value(0x8002, "B") for _ in version) != version:
            raise UnknownError("no archive of this version")

    def first_values(self) -> tuple[tuple[int, int], int, int, str | None, bool]:
        """(compute capability, multiprocessors, memory in bytes, level, refittable), as 8.6.0 writes them."""
        self._group(0x80E5)
        level = self._value(0x8007, "i")
        self._group(0x8012)
        self._group(0x8010)
        capability = self._value(0x8007, "i"), self._value(0x8007, "i")
        for _ in ("core clock in kHz", "memory clock in kHz", "memory bus in bits"):
            self._value(0x8007, "i")
        for _ in ("L2 cache", "persisting part of it"):
            self._value(0x8008, "Q")
        for _ in ("shared memory of a block", "of a multiprocessor", "unknown"):
            self._value(0x8007, "i")
        multiprocessors = self._value(0x8007, "i")
        self._value(0x800A, "B")
        for _ in ("threads of a block", "grid x", "grid y", "grid z"):
            self._value(0x8007, "i")
        memory = self._value(0x8009, "Q")
        self._value(0x8007, "i")
        self._end(0x8010)
        self._end(0x8012)
        self._group(0x80B0)
        weights = self._value(0x8009, "Q")
        self._at += weights
        self._end(0x80B0)
        self._value(0x8007, "i")
        self._value(0x800A, "B")
        refittable = bool(self._value(0x800A, "B"))
        if not (1 <= capability[0] <= 99 and 0 <= capability[1] <= 9):
            raise UnknownError(f"compute capability {capability}")
        return capability, multiprocessors, memory, LEVELS.get(level), refittable

    def _take(self, format: str) -> int:
        size = struct.calcsize("<" + format)
        (value,) = struct.unpack("<" + format, self._peek.read(self._at, size))
        self._at += size
        return int(value)

    def _group(self, type_: int) -> None:
        if self._take("I") != 0x10000 | type_:
            raise UnknownError(f"no {type_:#x} at {self._at}")

    def _value(self, type_: int, format: str) -> int:
        self._group(type_)
        return self._take(format)

    def _end(self, type_: int) -> None:
        if self._take("H") != 0xFFFF & ~type_:
            raise UnknownError(f"no end of {type_:#x} at {self._at}")
