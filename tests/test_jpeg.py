"""JPEGs straight to pixels: the same bits as Pillow's, and Pillow for all that is not an upright colour JPEG."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from photos import photo
from PIL import Image

from edgeapp import errors
from edgeapp.pixels import image_of, pixels_of
from edgeapp.sources.pictures import read_picture

LIMIT = 1_000_000
Fit = Callable[[tuple[int, int]], tuple[int, int]]


def jpeg(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **{"quality": 85, **options})
    return out.getvalue()


def exif(**tags: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0110] = "camera"
    for name, value in tags.items():
        found[int(name[1:], 16)] = value
    return found


def read(path: Path, data: bytes, *, fit: Fit | None = None, limit: int = LIMIT) -> tuple[Any, Any]:
    """What Pillow makes of a file and what comes when pixels are wanted; errors as their words."""
    path.write_bytes(data)
    found: list[Any] = []
    for as_pixels in (False, True):
        try:
            found.append(read_picture(str(path), limit, fit=fit, as_pixels=as_pixels))
        except errors.EdgeappError as error:
            found.append(str(error))
    return found[0], found[1]


def assert_same(pillow: Any, found: Any) -> None:
    (image, picture_wh), (pixels, same_wh) = pillow, found
    assert same_wh == picture_wh
    assert np.array_equal(pixels_of(image_of(pixels))[..., :3], pixels_of(image)[..., :3])


@pytest.mark.parametrize(
    "fit",
    [None, lambda wh: (max(1, wh[0] // 2), max(1, wh[1] // 2)), lambda wh: (max(1, wh[0] // 5), 1), lambda _: (1, 1)],
)
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(1, 1), (97, 61), (640, 480), (15, 300)])
def test_pixels_are_those_of_pillow(
    tmp_path: Path, size: tuple[int, int], subsampling: int, progressive: bool, fit: Fit | None
) -> None:
    """At every reduction, with every way to keep colours."""
    data = jpeg(photo(*size), subsampling=subsampling, progressive=progressive)
    pillow, found = read(tmp_path / "x.jpg", data, fit=fit)
    assert isinstance(found[0], np.ndarray)
    assert found[0].shape == (pillow[0].height, pillow[0].width, 4)
    assert_same(pillow, found)


@pytest.mark.parametrize(
    "options",
    [{"exif": exif()}, {"exif": exif(x0112=1)}, {"comment": b"Exif\0\0 tiff:Orientation"}, {"icc_profile": b"x"}],
)
def test_upright_ones_are_known(tmp_path: Path, options: dict[str, Any]) -> None:
    pillow, found = read(tmp_path / "x.jpg", jpeg(photo(64, 48), **options))
    assert isinstance(found[0], np.ndarray)
    assert_same(pillow, found)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize(
    ("image", "options"),
    [
        *((photo(64, 48), {"exif": exif(x0112=n)}) for n in range(2, 9)),
        (photo(64, 48), {"xmp": XMP}),
        (photo(64, 48).convert("L"), {}),
        (photo(64, 48).convert("CMYK"), {}),
        (photo(64, 48), {"keep_rgb": True}),
    ],
)
def test_turned_and_odd_ones_are_left_to_pillow(tmp_path: Path, image: Image.Image, options: dict[str, Any]) -> None:
    pillow, found = read(tmp_path / "x.jpg", jpeg(image, **options))
    assert isinstance(found[0], Image.Image)
    assert_same(pillow, found)


@pytest.mark.parametrize("kind", ["two pictures", "Adobe's RGB", "without tables", "marker FF 01"])
def test_rare_ones_give_what_pillow_gives(tmp_path: Path, kind: str) -> None:
    """The same pixels, or the same words."""
    plain, two = jpeg(photo(64, 48)), io.BytesIO()
    photo(64, 48).save(two, "MPO", save_all=True, append_images=[photo(64, 48).rotate(90)])
    data = {
        "two pictures": two.getvalue(),
        "Adobe's RGB": plain[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0" + plain[2:],
        "without tables": plain[: plain.index(b"\xff\xc4")] + plain[plain.index(b"\xff\xda") :],
        "marker FF 01": plain[:2] + b"\xff\x01\xff\xe0" + plain[2:],
    }[kind]
    pillow, found = read(tmp_path / "x.jpg", data)
    if isinstance(pillow, str):
        assert found == pillow
    else:
        assert_same(pillow, found)


@pytest.mark.parametrize("marker", [b"\xff\xd0", b"\xff\xff"])
def test_marker_without_length_hides_no_orientation(tmp_path: Path, marker: bytes) -> None:
    """Who reads a length after it, 0xffe1, steps over the Exif behind it, to what looks like a scan."""
    plain, turned = jpeg(photo(64, 48)), exif(x0112=6).tobytes()
    front = plain[:2] + marker + struct.pack(">HH", 0xFFE1, 2 + len(turned)) + turned + b"\xff\xfe\xff\xff"
    comment = bytes(4 + 0xFFE1 - len(front)) + b"\xff\xda"
    pillow, found = read(tmp_path / "x.jpg", front + comment.ljust(0xFFFD, b"\0") + plain[2:])
    assert isinstance(found[0], Image.Image)
    assert found[1] == (48, 64)
    assert_same(pillow, found)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_other_formats_are_left_to_pillow(tmp_path: Path, kind: str) -> None:
    out = io.BytesIO()
    photo(64, 48).save(out, kind)
    pillow, found = read(tmp_path / "x.jpg", out.getvalue())
    assert isinstance(found[0], Image.Image)
    assert_same(pillow, found)


@pytest.mark.parametrize("as_pixels", [False, True])
@pytest.mark.parametrize("data", [jpeg(photo(64, 48)), jpeg(photo(64, 48).convert("L"))])
def test_who_is_given_the_file_first_gets_all_of_it(tmp_path: Path, as_pixels: bool, data: bytes) -> None:
    """And the picture is read from the beginning after that."""
    (tmp_path / "x.jpg").write_bytes(data)
    seen = []

    def opened(file: BinaryIO, size: int) -> None:
        seen.append(file.read(size))
        file.seek(0)

    image, _ = read_picture(str(tmp_path / "x.jpg"), LIMIT, as_pixels=as_pixels, opened=opened)
    assert seen == [data]
    assert image_of(image).size == (64, 48)


def test_limit_of_pixels_holds(tmp_path: Path) -> None:
    pillow, found = read(tmp_path / "x.jpg", jpeg(photo(200, 100)), fit=lambda _: (10, 5), limit=19_999)
    assert "200x100 pixels are too many" in found
    assert found == pillow


def damaged(count: int, seed: int) -> list[bytes]:
    """JPEGs with bytes changed, taken out, put in and cut off."""
    chance = random.Random(seed)
    whole = [
        jpeg(photo(97, 61), subsampling=subsampling, progressive=progressive, exif=exif(x0112=1))
        for subsampling, progressive in ((0, False), (2, False), (1, True))
    ]
    found = []
    for _ in range(count):
        data = bytearray(chance.choice(whole))
        for _ in range(chance.choice((1, 1, 2, 4))):
            at = chance.randrange(2, min(len(data), chance.choice((700, 10_000))))
            kind = chance.randrange(8)
            if kind < 5:
                data[at] = chance.randrange(256)
            elif kind == 5:
                del data[at : at + chance.randrange(1, 30)]
            elif kind == 6:
                data[at:at] = chance.randbytes(chance.randrange(1, 20))
            elif at > 100:
                del data[at:]
        found.append(bytes(data))
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_ones_give_what_pillow_gives(tmp_path: Path) -> None:
    """The same pixels, or the same words; of some the pixels come without Pillow, of others they do not."""
    kinds = []
    for data in damaged(800, seed=1):
        pillow, found = read(tmp_path / "x.jpg", data, fit=lambda wh: (wh[0] // 3, wh[1] // 3))
        if isinstance(pillow, str):
            assert found == pillow
        else:
            assert_same(pillow, found)
        refused = isinstance(found, str)
        kinds.append("refused" if refused else "array" if isinstance(found[0], np.ndarray) else "picture")
    assert min(kinds.count(kind) for kind in ("refused", "array", "picture")) > 50, kinds
