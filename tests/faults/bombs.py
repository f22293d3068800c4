"""Inputs that are small on the disk and large, endless or odd to whoever opens them."""

from __future__ import annotations

import functools
import io
import os
import random
import shutil
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

HEAD = b"\x89PNG\r\n\x1a\n"
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")


def corrupted(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of damaged pictures: four formats, four mutations, the same for a seed."""
    chance = random.Random(seed)
    whole = {kind: [_encoded(kind, wh) for wh in ((64, 48), (160, 120), (320, 240))] for kind in FORMATS}
    for number in range(count):
        kind = FORMATS[number % 4]
        data = bytearray(chance.choice(whole[kind]))
        mutation = ("flips", "truncation", "header", "splice")[number // 4 % 4]
        if mutation == "flips":
            for _ in range(chance.randint(1, 40)):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif mutation == "truncation":
            del data[chance.randrange(len(data)) :]
        elif mutation == "header":
            for _ in range(chance.randint(1, 8)):
                data[chance.randrange(min(64, len(data)))] = chance.choice((0, 0xFF, chance.randrange(256)))
        else:
            other = chance.choice(whole[chance.choice(FORMATS)])
            data[chance.randrange(len(data)) :] = other[chance.randrange(len(other)) :]
        yield f"{number}-{mutation}.{kind.lower()}", bytes(data) + b"%d" % number


def _encoded(kind: str, wh: tuple[int, int]) -> bytes:
    rng = np.random.default_rng(wh[0])
    file = io.BytesIO()
    coarse = Image.fromarray(rng.integers(0, 256, (wh[1] // 8, wh[0] // 8, 3), np.uint8))
    coarse.resize(wh).save(file, kind)
    return file.getvalue()


def chunk(kind: bytes, data: bytes, length: int | None = None) -> bytes:
    size = struct.pack(">I", len(data) if length is None else length)
    return size + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int = 8, color: int = 2) -> bytes:
    return HEAD + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))


def png_header(width: int, height: int, bits: int = 8) -> bytes:
    return png(width, height, bits) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@functools.cache
def zeros(megabytes: int) -> bytes:
    """So many zeros, compressed a thousandfold."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()


def black_png(side: int) -> bytes:
    """A whole picture of one bit a pixel."""
    return png(side, side, 1, 0) + chunk(b"IDAT", zeros(side * (side // 8 + 1) // (1 << 20) + 1)) + chunk(b"IEND", b"")


def with_chunk(extra: bytes) -> bytes:
    data = _encoded("PNG", (64, 48))
    return data[:33] + extra + data[33:]


def with_segments(marker: int, head: bytes, count: int, wh: tuple[int, int] = (64, 48)) -> bytes:
    data = _encoded("JPEG", wh)
    return data[:2] + (b"\xff" + bytes([marker]) + b"\xff\xff" + head.ljust(65533, b"\0")) * count + data[2:]


def frames(kind: str, count: int) -> bytes:
    file = io.BytesIO()
    pictures = [Image.new("RGB", (8, 8), (n % 256, n // 256, 0)) for n in range(count)]
    pictures[0].save(file, kind, save_all=True, append_images=pictures[1:])
    return file.getvalue()


def apng(count: int) -> bytes:
    control = struct.pack(">IIIIHHBB", 8, 8, 0, 0, 1, 100, 0, 0)
    body = b"".join(chunk(b"fcTL", struct.pack(">I", n) + control) for n in range(100_000))
    one = chunk(b"IDAT", zlib.compress(bytes(8 * 25))) + chunk(b"IEND", b"")
    return png(8, 8) + chunk(b"acTL", struct.pack(">II", count, 0)) + body + one


def jpeg_sized(width: int, height: int) -> bytes:
    data = bytearray(_encoded("JPEG", (64, 48)))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp(width: int, height: int, **fields: int) -> bytes:
    info = {"bits": 24, "compression": 0, "offset": 54, "colors": 0, **fields}
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, info["offset"]) + struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, info["bits"], info["compression"], 0, 0, 0, info["colors"], 0
    ) + bytes(4096)  # fmt: skip


def webp(width: int, height: int) -> bytes:
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size
    return b"RIFF" + struct.pack("<I", 0xFFFFFFF0) + body


def npy(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"


def npz(members: int, each: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(members):
            archive.writestr(f"{number}.npy", each)
    return file.getvalue()


def pickled() -> bytes:
    return npy("(1,)", "'|O'") + b"cos\nsystem\n(S'touch edgeapp-was-here'\ntR."


EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\0\0\0\0"
"""Its folder of tags is inside itself."""

BYTES: dict[str, Callable[[], bytes]] = {
    "30k.png": lambda: black_png(30_000),
    "9k.png": lambda: black_png(9_000),
    "1e9-header.png": lambda: png_header(31_623, 31_623),
    "2e31-header.png": lambda: png_header((1 << 31) - 1, (1 << 31) - 1),
    "0x0.png": lambda: png_header(0, 0),
    "line.png": lambda: png_header((1 << 31) - 1, 1),
    "length.png": lambda: HEAD + chunk(b"IHDR", b"", 0xFFFFFFFF),
    "bits.png": lambda: png_header(64, 64, 255),
    "text.png": lambda: with_chunk(chunk(b"zTXt", b"k\0\0" + zeros(200))),
    "texts.png": lambda: with_chunk(chunk(b"zTXt", b"k\0\0" + zeros(1)) * 500),
    "profile.png": lambda: with_chunk(chunk(b"iCCP", b"k\0\0" + zeros(200))),
    "chunks.png": lambda: with_chunk(chunk(b"teXt", b"") * 100_000),
    "data.png": lambda: png(64, 48) + chunk(b"IDAT", zeros(200)) + chunk(b"IEND", b""),
    "exif.png": lambda: with_chunk(chunk(b"eXIf", EXIF[6:])),
    "apng.png": lambda: apng(100_000),
    "apng-claims.png": lambda: apng(0xFFFFFFFF),
    "palette.png": lambda: png(64, 64, 8, 3) + chunk(b"PLTE", bytes(3 * 70_000)),
    "frames.webp": lambda: frames("WEBP", 2_000),
    "frames.gif": lambda: frames("GIF", 2_000),
    "65535.gif": lambda: b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\0;",
    "65535.jpg": lambda: jpeg_sized(65_535, 65_535),
    "9k.jpg": lambda: jpeg_sized(9_000, 9_000),
    "0x0.jpg": lambda: jpeg_sized(0, 0),
    "exif.jpg": lambda: with_segments(0xE1, b"Exif\0\0", 200),
    "exif-loop.jpg": lambda: with_segments(0xE1, EXIF, 1),
    "profile.jpg": lambda: with_segments(0xE2, b"ICC_PROFILE\0\x01\xff", 255),
    "comment.jpg": lambda: with_segments(0xFE, b"", 300),
    "scans.jpg": lambda: (data := _encoded("JPEG", (320, 240)))[:-2] + data[data.index(b"\xff\xda") : -2] * 500,
    "fill.jpg": lambda: b"\xff\xd8" + b"\xff" * (1 << 20),
    "big.bmp": lambda: bmp((1 << 31) - 1, (1 << 31) - 1),
    "negative.bmp": lambda: bmp(-64, -(1 << 31)),
    "rle.bmp": lambda: bmp(20_000, 20_000, bits=8, compression=1),
    "far.bmp": lambda: bmp(64, 64, offset=0xFFFFFFFF),
    "colors.bmp": lambda: bmp(64, 64, bits=8, colors=0xFFFFFFFF),
    "canvas.webp": lambda: webp(1 << 24, 1 << 24),
    "16k.webp": lambda: webp(16_383, 16_383),
    "svg.jpg": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "script.jpg": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "zip.jpg": lambda: npz(1, bytes(1 << 20)),
    "gzip.jpg": lambda: b"\x1f\x8b\x08" + zeros(50),
    "empty.jpg": lambda: b"",
    "byte.png": lambda: b"\x89",
    "newlines.bmp": lambda: b"\n" * (1 << 20),
    "huge.npy": lambda: npy(f"({1 << 40},)"),
    "negative.npy": lambda: npy("(-1, -1)"),
    "deep.npy": lambda: npy("(" * 5_000),
    "pickle.npy": pickled,
    "zeros.npz": lambda: npz(1, npy(f"({30 << 18},)") + bytes(30 << 20)),
    "members.npz": lambda: npz(20_000, b""),
}


def special(folder: Path) -> dict[bytes, Callable[[Path], object]]:
    """Things that are no plain files, or have odd names: name -> what puts one there."""
    whole = _encoded("PNG", (64, 48))
    names = [b"new\nline.png", b"\xff\xfe\x80.png", b"a" * 251 + b".png", b"esc\x1b[2J\x1b]0;x\x07.png", b"--help",
             b"%s%n$(reboot)`x`.png", b" . .png", "‮gnp.x﻿".encode()]  # fmt: skip
    (folder / "elsewhere.png").write_bytes(whole)
    kinds: dict[bytes, Callable[[Path], object]] = {
        b"link.png": lambda path: path.symlink_to(folder / "elsewhere.png"),
        b"nowhere.png": lambda path: path.symlink_to("nowhere"),
        b"loop.png": lambda path: path.symlink_to(path.name),
        b"zero.png": lambda path: path.symlink_to("/dev/zero"),
        b"fifo.png": os.mkfifo,
        b"socket.png": _socket,
        b"folder.png": lambda path: path.mkdir(),
        b"secret.png": lambda path: (path.write_bytes(whole), path.chmod(0)),
        b"sparse.png": lambda path: (path.write_bytes(whole), os.truncate(path, 3 << 30)),
        b"hard.png": lambda path: os.link(shutil.copy(folder / "elsewhere.png", folder / "twin.png"), path),
    }
    return kinds | {name: (lambda path, name=name: path.write_bytes(whole + name)) for name in names}  # type: ignore[misc]


def _socket(path: Path) -> None:
    """Bound from its own folder: such names are short."""
    here = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(f"/proc/self/fd/{here}/{path.name}")
    finally:
        os.close(here)
