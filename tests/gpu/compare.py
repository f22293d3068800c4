"""Where the plans lie, and when two tensors are equal."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path

import numpy as np

PLANS = Path(__file__).parent / "plans"
DEMO = Path(__file__).parents[2] / "edgeapp" / "data" / "demo"


def unpacked(packed: Path, folder: Path) -> Path:
    """A plan from its .xz file."""
    plan = folder / packed.stem
    if not plan.is_file():
        plan.write_bytes(lzma.decompress(packed.read_bytes()))
    return plan


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Norm of the difference, as a share of the norm of what was wanted."""
    scale = float(np.linalg.norm(wanted.astype(np.float64)))
    return float(np.linalg.norm(found.astype(np.float64) - wanted)) / max(scale, 1e-12)


def assert_equal(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    """Same dtype and shape; floats within the tolerance, everything else to the last bit."""
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    if wanted.dtype.kind == "f":
        assert relative_error(found, wanted) <= tolerance
    else:
        assert np.array_equal(found, wanted)


def with_lean_inside(plan: bytes, library: bytes) -> bytes:
    """What TensorRT 8.6.0 builds of the same network with the lean runtime inside: compared, byte for byte."""
    _, _, offset, size = struct.unpack_from("<4sIQQ", plan, 32)
    first = 32 + 2 * 24
    body = struct.pack("<4sIQQ", b"NAEL", 0, first, len(library))
    body += struct.pack("<4sIQQ", b"NGNE", 0, first + len(library), size)
    body += library + plan[offset:]
    return struct.pack("<4sIQQ4sI", b"ftrt", 0, 2, 32 + len(body), plan[24:28], 0) + body
