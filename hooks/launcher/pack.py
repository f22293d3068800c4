"""Makes one file of the launcher and PyInstaller's folder; content.h says how it is laid out.

Usage: pack.py LAUNCHER FOLDER OUTPUT CACHE. Modification times become SOURCE_DATE_EPOCH, so equal folders make
equal files. Compressing TensorRT takes minutes and it seldom changes: frames are kept in CACHE.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import zstandard

PROGRAM = "edgeapp"
MAGIC = b"edgeapp\x01"
TRAILER = struct.Struct("<8sQQQ32s")
OWN_FRAME_BYTES = 1 << 20
"""Larger files get a frame of their own: frames are compressed, kept and unpacked side by side."""

LEVEL = 22
WINDOW_LOG = 25
"""32 MiB of memory for each thread that unpacks; 128 MiB would save 0.2 % (lean 10.16.1)."""


def compress(data: bytes, cache: Path) -> bytes:
    """A zstd frame, from the cache if it was made before."""
    made_by = f"zstandard {zstandard.__version__} zstd {zstandard.ZSTD_VERSION} {LEVEL} {WINDOW_LOG}"
    kept = cache / hashlib.sha256(data + made_by.encode()).hexdigest()
    if not kept.is_file():
        parameters = zstandard.ZstdCompressionParameters.from_level(
            LEVEL, source_size=len(data), window_log=min(WINDOW_LOG, max(10, len(data).bit_length()))
        )
        frame = zstandard.ZstdCompressor(compression_params=parameters).compress(data)
        with tempfile.NamedTemporaryFile(dir=cache, delete=False) as file:
            file.write(frame)
        os.replace(file.name, kept)
    return kept.read_bytes()


def groups(files: list[Path]) -> list[list[Path]]:
    """The files of each frame, the largest frame first; like stands beside like."""
    large = [file for file in files if file.stat().st_size >= OWN_FRAME_BYTES]
    small = sorted(set(files) - set(large), key=lambda file: (file.suffix, file))
    alone = sorted(([file] for file in large), key=lambda group: (-group[0].stat().st_size, group[0]))
    return [*alone, small] if small else alone


def manifest_lines(folder: Path, frames: list[tuple[list[Path], int]], epoch: int) -> Iterator[str]:
    yield "edgeapp content 1"
    yield f"program {PROGRAM}"
    if (facts := folder / "_internal" / "build.json").is_file():
        yield f"glibc {json.loads(facts.read_bytes())['glibc_floor']}"
    yield f"time {epoch}"
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            yield f"link {path.readlink()} {path.relative_to(folder)}"
        elif path.is_dir():
            yield f"dir {path.relative_to(folder)}"
    offset = 0
    for files, size in frames:
        yield f"frame {offset} {size}"
        offset += size
        for file in files:
            mode = "555" if file.suffix == "" and file.name == PROGRAM else "444"
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            yield f"file {mode} {file.stat().st_size} {digest} {file.relative_to(folder)}"


def pack(launcher: Path, folder: Path, output: Path, cache: Path, epoch: int) -> None:
    """Write the one file."""
    cache.mkdir(parents=True, exist_ok=True)
    groups_of_files = groups([path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()])
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # zstd works without Python's lock
        frames = list(pool.map(lambda files: compress(b"".join(map(Path.read_bytes, files)), cache), groups_of_files))
    sized = [(files, len(frame)) for files, frame in zip(groups_of_files, frames, strict=True)]
    manifest = "".join(f"{line}\n" for line in manifest_lines(folder, sized, epoch)).encode()
    with tempfile.NamedTemporaryFile(dir=output.parent, delete=False) as file:
        file.write(launcher.read_bytes())
        frames_at = file.tell()
        file.writelines(frames)
        manifest_at = file.tell()
        file.write(manifest)
        file.write(TRAILER.pack(MAGIC, frames_at, manifest_at, len(manifest), hashlib.sha256(manifest).digest()))
    os.chmod(file.name, 0o755)
    os.replace(file.name, output)  # a running program keeps its file


if __name__ == "__main__":
    pack(*map(Path, sys.argv[1:]), epoch=int(os.environ["SOURCE_DATE_EPOCH"]))
