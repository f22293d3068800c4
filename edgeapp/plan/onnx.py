"""What an ONNX model says of itself, read field by field from its protobuf bytes; weights are skipped, not read.

Source: onnx.proto of the ONNX project (ModelProto, GraphProto, ValueInfoProto) and protobuf's encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgeapp.plan.peek import TOO_FAR, Peek, UnknownError

DTYPES = (
    "undefined", "float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool", "float16",
    "float64", "uint32", "uint64", "complex64", "complex128", "bfloat16", "float8e4m3fn", "float8e4m3fnuz",
    "float8e5m2", "float8e5m2fnuz", "uint4", "int4", "float4e2m1",
)  # fmt: skip
"""TensorProto.DataType by number."""

LONGEST_TEXT_BYTES = 4096
LONGEST_TENSOR_BYTES = 16384
"""A name, a type and a shape are never longer."""

Field = tuple[int, int, int]
"""(number, start of the payload, its length); for numbers the value takes the place of start, and the length is -1."""


def looks_like_onnx(head: bytes, size: int) -> bool:
    """Whether `head` is the start of an ONNX ModelProto.

    Exporters write field 1 (ir_version, a number of 1 to 20) first: bytes 08 0x; what follows are fields 2, 3, 4, 5,
    6, 7, 8, 14 or 20. TensorFlow's SavedModel begins with 08 01 12 too, and its field 2 is nearly the whole file.
    """
    if size < 8 or len(head) < 8 or head[0] != 0x08 or not 1 <= head[1] <= 20:
        return False
    return head[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72, 0xA2)


def describe(peek: Peek) -> dict[str, Any]:
    """ir_version, producer, opsets, inputs and outputs; what cannot be read is left out."""
    found: dict[str, Any] = {}
    try:
        _model(peek, found)
    except UnknownError as error:
        found["incomplete"] = str(error)
        found["too_large"] = str(error) == TOO_FAR
    return found


def _model(peek: Peek, found: dict[str, Any]) -> None:
    graph = None
    for number, at, length in _fields(peek, 0, peek.size):
        if number == 1 and length < 0:
            found["ir_version"] = at
        elif number in (2, 3) and length >= 0:
            found["producer"] = f"{found.get('producer', '')} {_text(peek, at, length)}".strip()
        elif number == 7 and length >= 0:
            graph = at, length
        elif number == 8 and length >= 0:
            domain, version = _opset(peek, at, length)
            found.setdefault("opsets", {})[domain or "ai.onnx"] = version
        elif number == 14 and length >= 0:
            key, value = _pair(peek, at, length)
            found.setdefault("metadata", {})[key] = value
    if graph is None:
        raise UnknownError("no graph")
    _graph(peek, *graph, found)


def _graph(peek: Peek, start: int, length: int, found: dict[str, Any]) -> None:
    inputs: list[dict[str, Any]] = []
    outputs: list[dict[str, Any]] = []
    weights, nodes = set(), 0
    old = found.get("ir_version", 0) < 4  # then weights are inputs, too
    for number, at, size in _fields(peek, start, start + length):
        nodes += number == 1
        if number in (11, 12) and size >= 0:
            (inputs if number == 11 else outputs).append(_tensor(peek, at, size))
        elif number == 5 and size >= 0 and old:
            weights.add(_named(peek, at, size, 8))
    found["nodes"] = nodes
    found["inputs"] = [tensor for tensor in inputs if tensor["name"] not in weights]
    found["outputs"] = outputs


def _tensor(peek: Peek, start: int, length: int) -> dict[str, Any]:
    """Name, dtype and shape of a ValueInfoProto; free dimensions are -1 or have a name."""
    if length > LONGEST_TENSOR_BYTES:
        raise UnknownError("a tensor's description is too long")
    tensor: dict[str, Any] = {"name": "", "dtype": "unknown", "shape": None}
    for number, at, size in _fields(peek, start, start + length):
        if number == 1 and size >= 0:
            tensor["name"] = _text(peek, at, size)
        elif number == 2 and size >= 0:
            for kind, at2, size2 in _fields(peek, at, at + size):
                if kind == 1 and size2 >= 0:
                    _tensor_type(peek, at2, size2, tensor)
    return tensor


def _tensor_type(peek: Peek, start: int, length: int, tensor: dict[str, Any]) -> None:
    for number, at, size in _fields(peek, start, start + length):
        if number == 1 and size < 0:
            tensor["dtype"] = DTYPES[at] if at < len(DTYPES) else f"dtype {at}"
        elif number == 2 and size >= 0:
            tensor["shape"] = [_dimension(peek, at2, size2) for _, at2, size2 in _fields(peek, at, at + size)]


def _dimension(peek: Peek, start: int, length: int) -> int | str:
    for number, at, size in _fields(peek, start, start + max(0, length)):
        if number == 1 and size < 0:
            return at if at < 1 << 63 else -1
        if number == 2 and size > 0:
            return _text(peek, at, size)
    return -1


def _opset(peek: Peek, start: int, length: int) -> tuple[str, int]:
    domain, version = "", 0
    for number, at, size in _fields(peek, start, start + length):
        if number == 1 and size >= 0:
            domain = _text(peek, at, size)
        elif number == 2 and size < 0:
            version = at
    return domain, version


def _pair(peek: Peek, start: int, length: int) -> tuple[str, str]:
    texts = {number: _text(peek, at, size) for number, at, size in _fields(peek, start, start + length) if size >= 0}
    return texts.get(1, ""), texts.get(2, "")


def _named(peek: Peek, start: int, length: int, wanted: int) -> str:
    return next((_text(peek, at, size) for n, at, size in _fields(peek, start, start + length) if n == wanted), "")


def _text(peek: Peek, start: int, length: int) -> str:
    text = peek.read(start, min(length, LONGEST_TEXT_BYTES)).decode("utf-8", "replace")
    return text if length <= LONGEST_TEXT_BYTES else text + "..."


def _fields(peek: Peek, start: int, end: int) -> Iterator[Field]:
    """Every field of the message that lies from `start` to `end`."""
    while start < end:
        head = peek.read(start, min(20, end - start))  # a key and a number are ten bytes at most
        key, at = _varint(head, 0)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(head, at)
            yield number, value, -1
            start += at
        elif kind in (1, 5):
            start += at + (8 if kind == 1 else 4)
        elif kind == 2:
            length, at = _varint(head, at)
            if start + at + length > end:
                raise UnknownError("a part ends behind the end")
            yield number, start + at, length
            start += at + length
        else:
            raise UnknownError(f"wire type {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(number, where it ends)."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
    raise UnknownError("a number without end")
