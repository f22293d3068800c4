"""What a model file is, told from its first bytes: no TensorRT, no driver, no other library.

Sources: the plan header is documented by NVIDIA's own sample code (TensorRT OSS,
samples/common/sampleEngines.cpp: tag at byte 0, version quad at bytes 24-27); the size field at
byte 16 was right in every 8.6.0 plan that was looked at. Ultralytics writes a 4-byte little-endian
length and a JSON text before the plan (ultralytics/utils/export/engine.py).
"""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeapp import errors, paths

HEADER_BYTES = 28
"""The tag and the version of a plan lie in these bytes."""

LONGEST_METADATA_BYTES = 1 << 20
"""No Ultralytics text comes near this; a larger number is not a length."""

PLAN, ONNX = "plan", "onnx"

_FOREIGN = (
    (b"vtrt", "a TensorRT-RTX plan", "TensorRT-RTX is another runtime", "build a plan with TensorRT (trtexec)"),
    (b"ptrt", "a plan of TensorRT 8.5 or older", "such plans run only on the TensorRT that built them",
     "rebuild it with TensorRT 8.6 or newer: trtexec --versionCompatible --excludeLeanRuntime"),
    (b"NLYM", "a plan for the safety runtime", "the standard runtime cannot load it", "build it without --safe"),
    (b"TR01", "an ExecuTorch file", "the plan inside belongs to ExecuTorch", "export the plan itself"),
    (b"PK\x03\x04", "a zip file", "PyTorch's .pt files and archives look like this",
     "export the model to ONNX, then build a plan with trtexec"),
    (b"version https://git-lfs", "a git-LFS pointer", "the file itself was never downloaded", "run: git lfs pull"),
    (b"<!DOCTYPE", "a web page", "the download brought a page instead of the file", "download it again"),
    (b"<html", "a web page", "the download brought a page instead of the file", "download it again"),
    (b"\x89HDF", "an HDF5 file", "Keras writes these", "export the model to ONNX, then build a plan with trtexec"),
    (b"\xff\xd8\xff", "a JPEG picture", "", "give the picture with --input and the plan with --engine"),
    (b"\x89PNG", "a PNG picture", "", "give the picture with --input and the plan with --engine"),
)  # fmt: skip


@dataclass(frozen=True)
class ModelFile:
    """A file that an engine can be made of.

    Attributes:
        path: as the user named it.
        kind: PLAN or ONNX.
        version: (major, minor, patch, build) of the TensorRT that built a plan; () for ONNX.
        offset: where the plan starts in the file, bytes.
        metadata: the JSON object that Ultralytics put before the plan; {} without one.
    """

    path: str
    kind: str
    version: tuple[int, ...] = ()
    offset: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def version_text(self) -> str:
        """8.6.0, without the build number."""
        return ".".join(map(str, self.version[:3]))


def identify(path: str) -> ModelFile:
    """Say what `path` is, reading only its beginning.

    Raises:
        NotFoundError, NotPermittedError, InputOutputError: it cannot be read.
        DataError: it is neither a TensorRT plan nor an ONNX model, or it is cut short.
    """
    name = paths.printable(path)
    try:
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode):
            found = "a folder" if stat.S_ISDIR(mode) else "no regular file"
            raise errors.DataError(f"cannot run {name}: it is {found}", "", "name a .plan, .engine or .onnx file")
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            head = file.read(64)
            offset, metadata = 0, {}
            length = int.from_bytes(head[:4], "little", signed=True)
            if 2 <= length <= min(size - 4, LONGEST_METADATA_BYTES) and head[4:5] == b"{":
                file.seek(4)
                metadata = _metadata(file.read(length))
                if metadata:
                    offset = 4 + length
                    head = file.read(64)
    except OSError as error:
        raise paths.refusal(f"cannot read {name}", error) from error
    except ValueError as error:  # a NUL in the name
        raise errors.NotFoundError(f"cannot read {name}", str(error), "check the name") from error

    if size == 0:
        raise errors.DataError(f"cannot run {name}: the file is empty", "", "copy or build it again")
    if head.startswith(b"ftrt"):
        return ModelFile(path, PLAN, _plan_version(name, head, size - offset), offset, metadata)
    for magic, what, why, fix in _FOREIGN:
        if head.startswith(magic):
            raise errors.DataError(f"cannot run {name}: it is {what}", why, fix)
    if _looks_like_onnx(head, size):
        if not path.lower().endswith(".onnx"):
            raise errors.DataError(
                f"cannot run {name}: it is an ONNX model, not a plan",
                "an ONNX model runs only on the CPU, and only when its name says so",
                "rename it to .onnx to run it on the CPU, or build a plan from it: trtexec --onnx=...",
            )
        return ModelFile(path, ONNX)
    raise errors.DataError(
        f"cannot run {name}: it is neither a TensorRT plan nor an ONNX model",
        f"it starts with {head[:8].hex(' ')}, a plan starts with 66 74 72 74 (ftrt)",
        "give a plan built by trtexec, or an .onnx file to run it on the CPU",
    )


def _metadata(text: bytes) -> dict[str, Any]:
    """The JSON object in `text`, or {} when it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _plan_version(name: str, head: bytes, size: int) -> tuple[int, ...]:
    """(major, minor, patch, build) from the header of a plan of `size` bytes."""
    if len(head) < HEADER_BYTES:
        raise errors.DataError(
            f"cannot run {name}: the plan is cut short after {size} bytes",
            "",
            "copy or build it again",
        )
    wanted = int.from_bytes(head[16:24], "little")
    if size < wanted:
        raise errors.DataError(
            f"cannot run {name}: the plan is cut short: {size} of {wanted} bytes are there",
            "a copy or a download stopped early, or the disk was full",
            "copy or build it again",
        )
    return tuple(head[24:28])


def _looks_like_onnx(head: bytes, size: int) -> bool:
    """Whether `head` is the start of an ONNX ModelProto.

    A ModelProto is a protobuf message. Exporters write field 1 (ir_version, a varint of 1 to 20)
    first: bytes 08 0x; what follows are fields 2, 3, 5, 6, 7, 8, 14 or 20.
    """
    if size < 8 or head[0] != 0x08 or not 1 <= head[1] <= 20:
        return False
    return head[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72, 0xA2)
