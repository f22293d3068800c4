"""F3: pictures found by coverage, through reading, decoding and preprocessing: python fuzz_pictures.py FLAG... CORPUS

`./build.sh campaign fuzz` gets atheris, which the flags are for (libFuzzer's), and calls it. An input that ends in
anything but a picture or an error of edgeapp's own ends it, and is written down. EDGEAPP_PLANTED=1 is the negative
control: pictures of other heights than the seeds raise IndexError, which it must find.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["edgeapp", "PIL"]):
    import numpy as np
    from PIL import Image, ImageDraw

    from edgeapp.model import complete
    from edgeapp.pixels import image_of
    from edgeapp.preprocess import Preprocessor
    from edgeapp.records import Frame, TensorSpec
    from edgeapp.sources.files import read_frame

MOST_PIXELS = 4_000_000
PLANTED = os.environ.get("EDGEAPP_PLANTED") == "1"
PLACE = Path(f"/dev/shm/edgeapp-fuzz-{os.getpid()}.jpg")

INPUT = TensorSpec("images", (1, 3, 64, 64), "float32", is_input=True)
OUTPUT = TensorSpec("logits", (1, 5), "float32", is_input=False)


def preprocessor(*, antialias: bool) -> Preprocessor:
    card, _ = complete({"task": "classify", "antialias": antialias}, (INPUT,), (OUTPUT,))
    return Preprocessor(card, "float32")


WAYS = (preprocessor(antialias=True), preprocessor(antialias=False))


def one(data: bytes) -> None:
    """All ways that a picture can take."""
    PLACE.write_bytes(data)
    for way in WAYS:
        for as_pixels in (False, True):
            frame = Frame(str(PLACE))
            read_frame(frame, MOST_PIXELS, fit=way.wanted_wh, as_pixels=as_pixels)
            if frame.error is not None:
                continue
            assert frame.image is not None
            width, height = frame.picture_wh
            if PLANTED and height not in (7, 30, 40):
                raise IndexError("planted")
            out = np.empty(way.shape, way.dtype)
            way.fill(image_of(frame.image), (width, height), out)
            assert np.isfinite(out).all()


def seeds(folder: Path) -> None:
    """Small pictures of every format, mode and orientation."""
    folder.mkdir(exist_ok=True)
    picture = Image.new("RGB", (40, 30), (180, 90, 20))
    ImageDraw.Draw(picture).ellipse((5, 5, 30, 25), (10, 200, 30))
    for mode in ("RGB", "L", "CMYK"):
        for number, more in enumerate(({}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 2})):
            picture.convert(mode).save(folder / f"{mode}{number}.jpg", quality=60, **more)
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        picture.save(folder / f"turned{orientation}.jpg", exif=exif)
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"):
        made = Image.new(mode, (9, 7)) if mode == "I;16" else picture.convert(mode)
        made.save(folder / f"{mode.replace(';', '')}.png")
    for mode in ("RGB", "L", "P", "1"):
        picture.convert(mode).save(folder / f"{mode}.bmp")
    picture.save(folder / "x.webp")
    picture.save(folder / "lossless.webp", lossless=True)
    picture.save(folder / "moving.webp", save_all=True, append_images=[picture.rotate(90)])


if __name__ == "__main__":
    seeds(Path(sys.argv[-1]))
    atheris.Setup(sys.argv, one)
    try:
        atheris.Fuzz()
    finally:
        PLACE.unlink(missing_ok=True)
