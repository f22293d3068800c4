"""What a model file is, told from its first bytes: no TensorRT, no driver, no other library.

Ultralytics writes a 4-byte little-endian length and a JSON text before the plan (ultralytics/utils/export/engine.py).
ExecuTorch's header names the plan inside (pytorch/executorch, backends/nvidia/tensorrt).
"""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass, field, replace
from typing import Any

from edgeapp import errors, paths
from edgeapp.plan import foreign, header
from edgeapp.plan.foreign import Foreign
from edgeapp.plan.header import PlanFacts
from edgeapp.plan.onnx import describe, looks_like_onnx
from edgeapp.plan.peek import DETAIL_BYTES, Peek, UnknownError

LONGEST_METADATA_BYTES = 1 << 20
"""No Ultralytics text comes near this; a larger number is not a length."""

HEAD_BYTES = 4096

PLAN, ONNX = "plan", "onnx"


class Checked:
    """The bytes of a file after its digest or signature was found right, so that no others are run.

    They are given out once, to what makes the engine: nobody holds on to gigabytes for as long as the program runs.
    """

    def __init__(self, data: bytes) -> None:
        self._data: bytes | None = data

    def take(self) -> bytes:
        data, self._data = self._data, None
        assert data is not None
        return data


@dataclass(frozen=True)
class ModelFile:
    """What a file is.

    Attributes:
        path: as the user named it.
        kind: PLAN or ONNX for what an engine can be made of, else a word of `foreign`.
        what: the same for people, "a TensorRT plan of 8.6.0".
        size: its length, bytes.
        version: (major, minor, patch, build) of the TensorRT that built a plan; () otherwise.
        offset, length: where the plan lies in the file, bytes.
        facts: what the plan's bytes tell; None for what is no plan.
        metadata: the JSON object that Ultralytics put before the plan; {} without one.
        notes: (name, value) of what else was found, for `inspect`.
        problem: why it cannot be run, "" where it can; fix: what to do then.
        checked: what is to be run in place of the file; None where nothing had to be checked.
    """

    path: str
    kind: str
    version: tuple[int, ...] = ()
    offset: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)
    what: str = ""
    size: int = 0
    length: int = 0
    facts: PlanFacts | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    fix: str = ""
    checked: Checked | None = None

    @property
    def version_text(self) -> str:
        """8.6.0, without the build number."""
        return ".".join(map(str, self.version[:3]))


def identify(path: str, data: bytes | None = None) -> ModelFile:
    """Say what `path` is, for running it.

    Args:
        data: all the bytes of the file, which is not opened then; they become `checked`.

    Raises:
        NotFoundError, NotPermittedError, InputOutputError: it cannot be read.
        DataError: it is neither a TensorRT plan nor an ONNX model, or it is cut short.
    """
    found = look(path) if data is None else _file(path, data, len(data), details=False)
    name = paths.printable(path)
    if found.problem or found.kind not in (PLAN, ONNX):
        raise errors.DataError(f"cannot run {name}: it is {found.what}", found.problem, found.fix)
    return found if data is None else replace(found, checked=Checked(data))


def look(path: str, *, details: bool = False) -> ModelFile:
    """Say what `path` is, whatever it is, from at most 64 KiB of it and an Ultralytics text.

    Args:
        details: read what an ONNX model says of its tensors, too.

    Raises:
        NotFoundError, NotPermittedError, InputOutputError: it cannot be read.
    """
    name = paths.printable(path)
    try:
        # Not blocking: a named pipe without a writer must not hang.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(number)
            if stat.S_ISDIR(status.st_mode):
                return _folder(path)
            if not stat.S_ISREG(status.st_mode):
                return _refused(
                    path, 0, Foreign("device", "no regular file", "", "name a .plan, .engine or .onnx file")
                )
            return _file(path, number, status.st_size, details=details)
        finally:
            os.close(number)
    except OSError as error:
        raise paths.refusal(f"cannot read {name}", error) from error
    except ValueError as error:  # a NUL in the name
        raise errors.NotFoundError(f"cannot read {name}", str(error), "check the name") from error


def _folder(path: str) -> ModelFile:
    if os.path.isfile(os.path.join(path, "saved_model.pb")):
        return _refused(path, 0, foreign.SAVED_MODEL)
    return _refused(path, 0, foreign.FOLDER)


def _refused(path: str, size: int, found: Foreign, **notes: Any) -> ModelFile:
    return ModelFile(path, found.kind, what=found.what, size=size, notes=notes, problem=found.why or found.what,
                     fix=found.fix)  # fmt: skip


def _file(path: str, source: int | bytes, size: int, *, details: bool) -> ModelFile:
    if size == 0:
        return _refused(path, 0, foreign.EMPTY)
    peek = Peek(source, size)
    head = peek.read(0, HEAD_BYTES)
    offset, metadata = _wrapper(peek, head)
    if offset:
        head = peek.read(offset, 64)
    if head.startswith(b"ftrt"):
        return _plan(path, peek, offset, metadata)
    if head.startswith(b"vtrt"):
        return _rtx(path, peek, offset)
    if found := foreign.recognise(peek, head, path):
        return _refused(path, size, found, **_inside(peek, found, head))
    if looks_like_onnx(head, size):
        notes = describe(Peek(source, size, DETAIL_BYTES)) if details else {}
        if notes.get("incomplete") and not notes["too_large"]:
            return ModelFile(
                path, ONNX, what="an ONNX model, damaged or cut short", size=size, length=size, notes=notes,
                problem=notes["incomplete"], fix=foreign.AGAIN,
            )  # fmt: skip
        if path.lower().endswith(".onnx"):
            return ModelFile(path, ONNX, what="an ONNX model", size=size, length=size, notes=notes)
        return ModelFile(
            path, ONNX, what="an ONNX model, not a plan", size=size, length=size, notes=notes,
            problem="an ONNX model runs only on the CPU, and only when its name says so",
            fix="rename it to .onnx to run it on the CPU, or build a plan from it: trtexec --onnx=...",
        )  # fmt: skip
    return ModelFile(
        path, foreign.UNKNOWN_KIND, what="neither a TensorRT plan nor an ONNX model", size=size,
        problem=f"it starts with {head[:8].hex(' ')}, a plan starts with 66 74 72 74 (ftrt)",
        fix="give a plan built by trtexec, or an .onnx file to run it on the CPU",
    )  # fmt: skip


def _finite(text: str) -> float | None:
    """A number of JSON; 1e999 is none, and could not be printed as JSON again."""
    value = float(text)
    return value if math.isfinite(value) else None


def _wrapper(peek: Peek, head: bytes) -> tuple[int, dict[str, Any]]:
    """Where the plan begins, and what Ultralytics says of it: (0, {}) where it did not write the file."""
    length = int.from_bytes(head[:4], "little", signed=True)
    if not 2 <= length <= min(peek.size - 4, LONGEST_METADATA_BYTES) or head[4:5] != b"{":
        return 0, {}
    text = Peek(peek.source, peek.size, LONGEST_METADATA_BYTES).read(4, length)
    try:
        value = json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError):
        return 0, {}
    return (4 + length, value) if isinstance(value, dict) and value else (0, {})


def _plan(path: str, peek: Peek, offset: int, metadata: dict[str, Any]) -> ModelFile:
    """A standard plan, whole or not."""
    size = peek.size - offset
    try:
        facts = header.read_plan(peek, offset)
    except UnknownError:
        return ModelFile(
            path, PLAN, what=f"a TensorRT plan, cut short after {size} bytes", size=peek.size, offset=offset,
            length=size, problem="not even its header is there", fix=foreign.AGAIN,
        )  # fmt: skip
    version = ".".join(map(str, facts.version[:3]))
    what, problem, notes = f"a TensorRT plan of {version}", "", {}
    if size < facts.size:
        what += f", cut short: {size} of {facts.size} bytes are there"
        problem = "a copy or a download stopped early, or the disk was full"
    elif facts.size < header.HEADER_BYTES:
        what += " with a damaged header"
        problem = f"it says that it is {facts.size} bytes long"
    elif size > facts.size:
        notes["trailing_bytes"] = size - facts.size
    return ModelFile(
        path, PLAN, facts.version, offset, metadata, what, peek.size, min(size, facts.size), facts, notes, problem,
        foreign.AGAIN if problem else "",
    )  # fmt: skip


def _rtx(path: str, peek: Peek, offset: int) -> ModelFile:
    """A plan of TensorRT-RTX, which nothing here runs."""
    notes: dict[str, Any] = {}
    version: tuple[int, ...] = ()
    try:
        version = header.read_plan(peek, offset).version
        notes["compute_capabilities"] = header.rtx_capabilities(peek, offset)
    except UnknownError:
        pass
    what = f"{foreign.RTX.what} of {'.'.join(map(str, version[:3]))}" if version else foreign.RTX.what
    return ModelFile(
        path, foreign.RTX.kind, version, offset, {}, what, peek.size, notes=notes, problem=foreign.RTX.why,
        fix=foreign.RTX.fix,
    )  # fmt: skip


def _inside(peek: Peek, found: Foreign, head: bytes) -> dict[str, Any]:
    """What more can be told of a file that cannot be run."""
    if found.kind == "old_plan" and len(head) > 8:
        counter = head[8]
        return {"archive": counter, "built_by": built_by(counter)}
    if found.kind == "executorch":
        offset = int.from_bytes(head[12:16], "little")
        try:
            if peek.read(offset, 4) != b"ftrt":
                return {}
            return {"plan_version": ".".join(map(str, header.read_plan(peek, offset).version[:3]))}
        except UnknownError:
            return {}
    return {}


def built_by(counter: int) -> str:
    """The TensorRT that writes archives of this counter, as far as it is known."""
    known = header.ARCHIVE_VERSIONS
    if counter in known:
        return f"TensorRT {known[counter]}"
    older = [text for number, text in known.items() if number < counter]
    newer = [text for number, text in known.items() if number > counter]
    if older and newer:
        return f"a TensorRT between {older[-1]} and {newer[0]}"
    return f"a TensorRT newer than {older[-1]}" if older else f"a TensorRT older than {newer[0]}"
