"""Pictures like photographs, drawn: for tests and benchmarks of decoding."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

GRAIN = 6.0
"""Standard deviation of the sensor's noise, steps of 255."""


def photo(width: int, height: int, seed: int = 1) -> Image.Image:
    """RGB picture with a photograph's spectrum (amplitude falls with frequency), sharp things, blur and grain."""
    rng = np.random.default_rng(seed)
    scene = np.full((height, width, 3), 128, np.float32)
    cells = 2
    while cells <= max(width, height) // 2:
        rows, columns = (max(2, cells * side // max(width, height)) for side in (height, width))
        for channel in range(3):
            octave = Image.fromarray(rng.normal(0, 36 / cells, (rows, columns)).astype(np.float32))
            scene[:, :, channel] += np.asarray(octave.resize((width, height), Image.Resampling.BICUBIC))
        cells *= 2
    picture = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(30):
        x, y, size = rng.integers(0, width), rng.integers(0, height), rng.integers(width // 60 + 1, width // 8 + 2)
        draw.ellipse((x, y, x + size, y + size // 2), fill=tuple(rng.integers(0, 256, 3).tolist()))
    picture = picture.filter(ImageFilter.GaussianBlur(width / 1500))
    grain = rng.normal(0, GRAIN, (height, width, 1)).astype(np.float32)
    return Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).round().astype(np.uint8))
