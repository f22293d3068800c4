"""Keep the beginnings of real model files, from which `edgeapp inspect` tells what they are.

    python tests/make_heads.py FILE... > tests/heads.json

Small files are kept whole. Those here were built by TensorRT 8.6.0 on an H200 (tests/gpu/build_plans.py), by
TensorRT-RTX 1.7.1 without a GPU and by PyTorch 2.11; torch2trt.pth is what torch2trt's state_dict is, saved by PyTorch.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

KEPT_BYTES = 2048
WHOLE_BYTES = 9000
HEADS = Path(__file__).parent / "heads.json"


def write_all(folder: Path) -> list[Path]:
    """Every kept file with its real length; what was not kept are zeros."""
    paths = []
    for name, kept in json.loads(HEADS.read_bytes()).items():
        path = folder / name
        path.write_bytes(base64.b64decode(kept["head"]))
        with path.open("r+b") as file:
            file.truncate(kept["size"])
        paths.append(path)
    return paths


def main() -> None:
    heads = {}
    for path in map(Path, sys.argv[1:]):
        data = path.read_bytes()
        head = data if len(data) <= WHOLE_BYTES else data[:KEPT_BYTES]
        heads[path.name] = {"size": len(data), "head": base64.b64encode(head).decode()}
    json.dump(heads, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
