"""The drawn scenes: the same for the same seed, and boxes that fit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

import scenes

SMALL = (240, 180)


def test_draw_scene_same_seed_gives_the_same_picture() -> None:
    """Seed and size decide every pixel and box, whatever was drawn in between."""
    first, boxes = scenes.draw_scene(7, SMALL)
    scenes.draw_scene(8, SMALL)
    again, boxes_again = scenes.draw_scene(7, SMALL)
    assert np.array_equal(first, again)
    assert boxes == boxes_again


def test_draw_scene_other_seed_gives_another_picture() -> None:
    """Neighbouring seeds have nothing in common."""
    assert not np.array_equal(scenes.draw_scene(7, SMALL)[0], scenes.draw_scene(8, SMALL)[0])


@pytest.mark.parametrize("size_wh", [(480, 360), (640, 360), (200, 300), (96, 96)])
def test_draw_scene_gives_picture_of_that_size(size_wh: tuple[int, int]) -> None:
    """Width comes first, as in Pillow; the pixels are 8-bit RGB."""
    picture, _ = scenes.draw_scene(3, size_wh)
    assert picture.shape == (size_wh[1], size_wh[0], 3)
    assert picture.dtype == np.uint8


def test_draw_scene_boxes_lie_inside_and_hold_something() -> None:
    """No box is empty or leaves the picture, and there are at most MAX_PARTS."""
    for seed in range(60):
        _, boxes = scenes.draw_scene(seed, SMALL)
        assert len(boxes) <= scenes.MAX_PARTS
        for class_id, x0, y0, x1, y1 in boxes:
            assert 0 <= class_id < len(scenes.LABELS)
            assert 0 <= x0 < x1 <= SMALL[0]
            assert 0 <= y0 < y1 <= SMALL[1]


def _alone(sprite: scenes.Sprite, centre: tuple[int, int]) -> tuple[scenes._Scene, list]:
    """Puts one sprite on a grey bench of 320 x 240."""
    light = scenes._light(np.random.default_rng(0))
    scene = scenes._Scene(np.full((240, 320, 3), 128, dtype=np.uint8), light)
    assert scene.place(sprite, 0, [(*centre, 1.0)])
    return scene, scene.boxes()


@pytest.mark.parametrize("class_id", range(len(scenes.LABELS)), ids=scenes.LABELS)
@pytest.mark.parametrize("angle", [0.0, 0.7, 2.4])
def test_box_of_a_part_alone_is_the_extent_of_its_pixels(class_id: int, angle: float) -> None:
    """The box is what one measures on the part's own cover, put where it was put."""
    for seed in range(6):
        sprite = scenes.draw_part(class_id, seed, 90.0, angle)
        _, boxes = _alone(sprite, (160, 120))
        solid = sprite.alpha >= 0.5
        rows, cols = np.nonzero(solid.any(axis=1))[0], np.nonzero(solid.any(axis=0))[0]
        left, top = 160 - solid.shape[1] // 2, 120 - solid.shape[0] // 2
        assert boxes == [(0, left + cols[0], top + rows[0], left + cols[-1] + 1, top + rows[-1] + 1)]
        # Nothing of it was lost at the rim of its own small canvas.
        assert not sprite.alpha[0].any()
        assert not sprite.alpha[-1].any()
        assert not sprite.alpha[:, 0].any()
        assert not sprite.alpha[:, -1].any()


@pytest.mark.parametrize("class_id", range(len(scenes.LABELS)), ids=scenes.LABELS)
def test_size_of_a_part_is_its_length_in_pixels(class_id: int) -> None:
    """Lying along x, a part is as long as was asked, to a few per cent."""
    for seed in range(8):
        solid = scenes.draw_part(class_id, seed, 120.0, 0.0).alpha >= 0.5
        cols = np.nonzero(solid.any(axis=0))[0]
        assert cols[-1] - cols[0] + 1 == pytest.approx(120, rel=0.06)


def test_box_of_a_covered_part_shrinks_to_what_is_visible() -> None:
    """A plate over the right half of a washer moves the box's right side to the plate."""
    light = scenes._light(np.random.default_rng(0))
    washer = scenes.draw_part(scenes.LABELS.index("washer"), 1, 80.0, 0.0)
    scene, [(_, x0, y0, x1, y1)] = _alone(washer, (160, 120))
    cover = np.ones((100, 60), dtype=np.float32)
    plate = scenes.Sprite(np.full((100, 60, 3), 40, dtype=np.float32), cover, 2.0)
    assert scene.place(plate, -1, [(190, 120, 1.0)])
    assert scene.boxes() == [(0, x0, y0, 160, y1)]
    assert x1 > 160
    assert light.bands.shape == (256,)


def test_place_that_would_hide_a_part_is_refused() -> None:
    """A plate over the whole washer is not put, and the washer keeps its box."""
    scene, before = _alone(scenes.draw_part(2, 1, 80.0, 0.0), (160, 120))
    cover = np.ones((120, 120), dtype=np.float32)
    plate = scenes.Sprite(np.full((120, 120, 3), 40, dtype=np.float32), cover, 2.0)
    assert not scene.place(plate, -1, [(160, 120, 1.0)])
    assert scene.boxes() == before


def test_place_beyond_the_edge_is_refused() -> None:
    """A part of which less than MIN_VISIBLE would be in the picture is not put."""
    light = scenes._light(np.random.default_rng(0))
    scene = scenes._Scene(np.full((240, 320, 3), 128, dtype=np.uint8), light)
    part = scenes.draw_part(2, 1, 80.0, 0.0)
    assert not scene.place(part, 2, [(-25, 120, 1.0)])
    assert scene.place(part, 2, [(5, 120, 1.0)])
    assert scene.boxes()[0][1] == 0


def test_draw_scene_over_many_seeds_draws_all_classes_alike() -> None:
    """Of some thousand parts each class has between 12 and 22 per cent."""
    counts = Counter(row[0] for seed in range(150) for row in scenes.draw_scene(seed, (160, 120))[1])
    total = sum(counts.values())
    assert total > 600
    for class_id, label in enumerate(scenes.LABELS):
        assert 0.12 < counts[class_id] / total < 0.22, label


def test_draw_scene_over_many_seeds_has_empty_and_full_scenes() -> None:
    """Some scenes hold nothing, some more than ten parts."""
    counts = [len(scenes.draw_scene(seed, (160, 120))[1]) for seed in range(150)]
    assert min(counts) == 0
    assert max(counts) > 10


def test_scene_size_follows_its_weights() -> None:
    """Each size is drawn about as often as the table says."""
    counts = Counter(scenes.scene_size(seed) for seed in range(2000))
    for w, h, weight in scenes.SIZES:
        assert counts[(w, h)] / 2000 == pytest.approx(weight, abs=0.03)


def test_command_writes_pictures_and_their_truth(tmp_path: Path) -> None:
    """The folder holds what draw_scene gives, and truth.json names every file."""
    subprocess.run(
        [sys.executable, scenes.__file__, str(tmp_path), "--count", "3", "--first-seed", "40"],
        check=True,
        capture_output=True,
    )
    truth = json.loads((tmp_path / "truth.json").read_text(encoding="utf-8"))
    assert truth["labels"] == list(scenes.LABELS)
    assert sorted(truth["images"]) == [f"scene_{k:07d}.jpg" for k in (40, 41, 42)]
    for seed in (40, 41, 42):
        name = f"scene_{seed:07d}.jpg"
        picture, boxes = scenes.draw_scene(seed, scenes.scene_size(seed))
        assert truth["images"][name] == [list(box) for box in boxes]
        stored = np.asarray(Image.open(tmp_path / name), dtype=np.float32)
        assert stored.shape == picture.shape
        assert np.abs(stored - picture).mean() < 6  # what JPEG at 92 may change
