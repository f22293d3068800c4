"""JPEGs that the GPU decodes: the same answers as with the CPU, whatever the pictures are.

python -m pytest tests/gpu/test_decode.py -s
"""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu.compare import DEMO, PLANS, unpacked
from PIL import Image
from support import Program

SCORE, BOX_PX = 0.05, 2.0
"""What a score and a corner may differ by: the decoder spreads colours over pixels in another way."""

CORRUPTED = 400


def photo(width: int, height: int) -> Image.Image:
    """Smooth colours and some noise."""
    chance = np.random.default_rng(width * height)
    coarse = Image.fromarray(chance.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def jpeg(picture: Image.Image, **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, "JPEG", **{"quality": 90, **options})
    return data.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def kinds() -> dict[str, bytes]:
    """Pictures that the GPU decodes, and those that it has to leave to the CPU."""
    picture, odd, png, plain = photo(320, 240), photo(641, 479), io.BytesIO(), jpeg(photo(320, 240))
    picture.save(png, "PNG")
    return {
        "plain.jpg": plain, "444.jpg": jpeg(picture, subsampling=0), "422.jpg": jpeg(picture, subsampling=1),
        "odd.jpg": jpeg(odd), "odd-444.jpg": jpeg(odd, subsampling=0), "large.jpg": jpeg(photo(4000, 3000)),
        "tall.jpg": jpeg(photo(200, 3001)), "small.jpg": jpeg(photo(17, 13)), "one.jpg": jpeg(photo(1, 1)),
        "restarts.jpg": jpeg(picture, restart_marker_blocks=3), "optimised.jpg": jpeg(picture, optimize=True),
        "upright.jpg": jpeg(picture, exif=turned(1)), "turned.jpg": jpeg(odd, exif=turned(6)),
        "progressive.jpg": jpeg(picture, progressive=True), "grey.jpg": jpeg(picture.convert("L")),
        "cmyk.jpg": jpeg(picture.convert("CMYK")), "more.jpg": plain + b"\0" * 100, "picture.png": png.getvalue(),
        "cut.jpg": plain[:-2000], "cut-with-end.jpg": plain[:-2000] + b"\xff\xd9", "empty.jpg": b"",
        "junk.jpg": b"junk", "head.jpg": plain[:300], "again.jpg": plain,
    }  # fmt: skip


def written(folder: Path, pictures: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("batch", ["1", "8"])
def test_finds_the_same_parts(edgeapp: Program, tmp_path: Path, on_gpu: tuple[str, ...], batch: str) -> None:
    """Labels, scores and boxes of the demo's pictures."""
    plan = unpacked(DEMO / "model.plan.xz", tmp_path)
    words = ("--engine", plan, "--model-card", DEMO / "model.json", "--batch", batch, "--input", DEMO)
    wanted, found = (edgeapp(*words, *more).lines for more in (("--exact-decode",), on_gpu))
    assert len(wanted) == len(found) == 5
    furthest = 0.0
    for one, other in zip(wanted, found, strict=True):
        assert one["path"] == other["path"]
        assert len(one["detections"]) == len(other["detections"])
        for part in one["detections"]:  # in another order, where scores are near each other
            apart, score, label = min(
                (float(np.abs(np.subtract(part["box_xyxy"], twin["box_xyxy"])).max()), twin["score"], twin["label"])
                for twin in other["detections"]
            )
            assert (label, score) == (part["label"], pytest.approx(part["score"], abs=SCORE))
            furthest = max(furthest, apart)
    print(f"\ncorners differ by {furthest:.2f} pixels at most")
    assert furthest <= BOX_PX


def test_pictures_of_every_kind(edgeapp: Program, tmp_path: Path, on_gpu: tuple[str, ...]) -> None:
    """Those that the decoder does not take are decoded on the CPU; errors are the same and stay with their picture."""
    folder = written(tmp_path / "kinds", kinds())
    words = ("--engine", PLANS / "classifier.plan", "--task", "classify", "--batch", "8", "--input", folder)
    wanted, found = edgeapp(*words, "--exact-decode"), edgeapp(*words, *on_gpu)
    assert wanted.returncode == found.returncode == 1, found
    for one, other in zip(wanted.lines, found.lines, strict=True):
        assert one["path"] == other["path"]
        assert one.get("error") == other.get("error"), other
        if "classes" in one and "cut" not in one["path"]:  # what is missing is made up in another way
            scores = [{part["class_id"]: part["score"] for part in line["classes"]} for line in (one, other)]
            for number in scores[0].keys() & scores[1].keys():
                assert abs(scores[0][number] - scores[1][number]) <= SCORE, (one, other)


def test_corrupted_pictures_harm_nobody(edgeapp: Program, tmp_path: Path, on_gpu: tuple[str, ...]) -> None:
    """Every picture has its result or its error, those beside it theirs, and nothing crashes."""
    chance, good = random.Random(7), jpeg(photo(320, 240))
    pictures = {}
    for number in range(CORRUPTED):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(2, len(data) - 2)] = chance.randrange(256)
        pictures[f"{number:03}-bad.jpg"] = bytes(data)
        pictures[f"{number:03}-good.jpg"] = good
    folder = written(tmp_path / "corrupted", pictures)
    words = ("--engine", PLANS / "classifier.plan", "--task", "classify", "--batch", "8", "--input", folder)
    on_cpu, done = edgeapp(*words), edgeapp(*words, *on_gpu)
    assert done.returncode in (0, 1), done
    assert len(done.lines) == 2 * CORRUPTED
    answers = {str(line["classes"][0]["label"]) for line in done.lines if line["path"].endswith("-good.jpg")}
    assert len(answers) == 1
    failed = [sum("error" in line for line in run.lines) for run in (on_cpu, done)]
    print(f"\nof {CORRUPTED} corrupted pictures {failed[1]} failed, on the CPU {failed[0]}")
