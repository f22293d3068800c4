"""Pictures of small machine parts on a bench, drawn by a program, with their boxes.

``draw_scene(seed, size_wh)`` gives one picture and the boxes of the parts in it. The same seed
and size give the same bytes on one machine and one set of NumPy and Pillow versions.

Rules for a box:

* It is the tight extent of the part's *visible* pixels: those inside the picture, covered by
  the part by at least half, and not hidden by something lying on top. ``x0, y0`` are the first
  column and row, ``x1, y1`` one past the last, in pixels of the picture.
* A part keeps at least ``MIN_VISIBLE`` (35 %) of its area in view. A placement that would hide
  more, by overlap or by the edge of the picture, is not made; so no hidden part goes unlabelled.
* Shadows are not part of a box. Seen through a hole counts as visible.

Run as a program it writes a folder of JPEG files and their ``truth.json``::

    python scenes.py OUT_DIR --count 200 --first-seed 0
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Box = tuple[int, int, int, int, int]
Colour = tuple[float, float, float]

LABELS = ("bolt", "nut", "washer", "gear", "key", "spring")

# Width and height in pixels, and how often each is drawn.
SIZES: tuple[tuple[int, int, float], ...] = (
    (480, 360, 0.20),
    (512, 512, 0.10),
    (640, 360, 0.10),
    (640, 480, 0.24),
    (480, 640, 0.10),
    (800, 600, 0.10),
    (960, 540, 0.06),
    (1024, 768, 0.04),
    (1280, 720, 0.03),
    (1280, 960, 0.03),
)

MIN_VISIBLE = 0.35  # share of a part's own area that must stay in view
SUPERSAMPLE = 4  # outlines are filled at this multiple of the picture's resolution
MAX_PARTS = 14

STEEL: Colour = (206, 210, 216)
NICKEL: Colour = (214, 210, 200)
BLACK_OXIDE: Colour = (88, 90, 98)
ZINC_YELLOW: Colour = (214, 196, 128)
BRASS: Colour = (226, 182, 84)
COPPER: Colour = (216, 132, 92)
BLUE_ANODISED: Colour = (72, 122, 205)
RED_ANODISED: Colour = (205, 62, 62)
NYLON: Colour = (236, 232, 220)
BLACK_PLASTIC: Colour = (52, 53, 56)
ORANGE_PLASTIC: Colour = (240, 132, 40)
RED_PLASTIC: Colour = (200, 44, 40)
BLUE_PLASTIC: Colour = (48, 96, 180)
GREEN_PLASTIC: Colour = (60, 150, 84)

# (colour, is metal), the likelier ones repeated
MATERIALS: dict[str, tuple[tuple[Colour, bool], ...]] = {
    "bolt": (
        (STEEL, True),
        (STEEL, True),
        (BLACK_OXIDE, True),
        (ZINC_YELLOW, True),
        (BRASS, True),
        (BLUE_ANODISED, True),
    ),
    "nut": (
        (STEEL, True),
        (STEEL, True),
        (BLACK_OXIDE, True),
        (ZINC_YELLOW, True),
        (BRASS, True),
        (RED_ANODISED, True),
        (NYLON, False),
    ),
    "washer": (
        (STEEL, True),
        (STEEL, True),
        (BRASS, True),
        (COPPER, True),
        (BLACK_OXIDE, True),
        (ZINC_YELLOW, True),
        (RED_PLASTIC, False),
    ),
    "gear": (
        (STEEL, True),
        (BRASS, True),
        (BRASS, True),
        (BLACK_OXIDE, True),
        (NYLON, False),
        (ORANGE_PLASTIC, False),
        (BLUE_PLASTIC, False),
    ),
    "key": ((BRASS, True), (NICKEL, True), (STEEL, True)),
    "spring": (
        (STEEL, True),
        (STEEL, True),
        (BLACK_OXIDE, True),
        (ZINC_YELLOW, True),
        (COPPER, True),
    ),
}


@dataclass(frozen=True)
class Light:
    """Where the light comes from and how metal answers it.

    Attributes:
        x, y: Unit vector in the picture plane pointing towards the light.
        slant: Shadow length for a lift of one pixel, in pixels.
        softness: Shadow blur radius for a lift of one pixel, in pixels.
        strength: How dark the shadow's core is, 0..1.
        bands: float32 (256,): brightness of metal against tilt towards the light (-1..1).
    """

    x: float
    y: float
    slant: float
    softness: float
    strength: float
    bands: F32


@dataclass
class Sprite:
    """One thing drawn alone.

    Attributes:
        rgb: float32 (h, w, 3), 0..255, not multiplied by alpha.
        alpha: float32 (h, w), 0..1.
        lift: Height above the bench that its shadow shows, in pixels.
    """

    rgb: F32
    alpha: F32
    lift: float


class Pad:
    """A small canvas with its own axes: u along the part, v across it, origin in the middle.

    Args:
        half_u: Half extent along u in pixels.
        half_v: Half extent along v in pixels.
        angle: Direction of u in the picture, in radians.
        light: The scene's light; it is turned into the pad's own axes.
    """

    def __init__(self, half_u: float, half_v: float, angle: float, light: Light) -> None:
        cos, sin = math.cos(angle), math.sin(angle)
        self.cos, self.sin = cos, sin
        self.half_w = math.ceil(abs(half_u * cos) + abs(half_v * sin)) + 2
        self.half_h = math.ceil(abs(half_u * sin) + abs(half_v * cos)) + 2
        self.w, self.h = 2 * self.half_w, 2 * self.half_h
        x = (np.arange(self.w, dtype=np.float32) + 0.5 - self.half_w)[None, :]
        y = (np.arange(self.h, dtype=np.float32) + 0.5 - self.half_h)[:, None]
        self.u: F32 = x * np.float32(cos) + y * np.float32(sin)
        self.v: F32 = y * np.float32(cos) - x * np.float32(sin)
        self.light_u = light.x * cos + light.y * sin
        self.light_v = light.y * cos - light.x * sin
        self.light = light

    def _pixels(self, points: NDArray[np.floating]) -> list[float]:
        """Gives points (n, 2) in u, v as a flat list in supersampled canvas pixels."""
        u, v = points[:, 0], points[:, 1]
        x = (u * self.cos - v * self.sin + self.half_w) * SUPERSAMPLE - 0.5
        y = (u * self.sin + v * self.cos + self.half_h) * SUPERSAMPLE - 0.5
        return np.stack([x, y], axis=1).ravel().tolist()

    def fill(self, *shapes: NDArray[np.floating], holes: tuple = ()) -> F32:
        """Gives the anti-aliased cover, float32 (h, w) 0..1, of polygons less some holes.

        Args:
            shapes: Polygons, each (n, 2) in u, v.
            holes: Polygons cut out afterwards.
        """
        canvas = Image.new("L", (self.w * SUPERSAMPLE, self.h * SUPERSAMPLE))
        draw = ImageDraw.Draw(canvas)
        for shape in shapes:
            draw.polygon(self._pixels(shape), fill=255)
        for hole in holes:
            draw.polygon(self._pixels(hole), fill=0)
        return _unit(canvas.reduce(SUPERSAMPLE))

    def stroke(self, lines: list[NDArray[np.floating]], width: float) -> F32:
        """Gives the anti-aliased cover of smooth round-ended lines ``width`` pixels wide."""
        r = max(width, 0.5) / 2
        shapes = []
        for line in lines:
            # Two offset copies of the line: many times faster than joining its segments.
            way = np.gradient(line, axis=0)
            way /= np.hypot(way[:, :1], way[:, 1:]) + 1e-9
            side = np.stack([-way[:, 1], way[:, 0]], axis=1) * r
            shapes.append(np.concatenate([line + side, (line - side)[::-1]]))
            shapes += [_ring(r, 16, *line[0]), _ring(r, 16, *line[-1])]
        return self.fill(*shapes)

    def bevel(self, cover: F32, radius: float, tilt: float) -> tuple[F32, F32]:
        """Gives the tilt (u, v) of a surface that is rounded off near the edge of ``cover``.

        Args:
            cover: float32 (h, w), 0..1.
            radius: Width of the rounding in pixels.
            tilt: Sine of the steepest tilt, 0..1.
        """
        soft = _blur(cover, radius)
        gx = np.zeros_like(soft)
        gy = np.zeros_like(soft)
        gx[:, 1:-1] = soft[:, :-2] - soft[:, 2:]
        gy[1:-1] = soft[:-2] - soft[2:]
        k = np.float32(radius * 1.2)
        nx, ny = gx * k, gy * k
        steep = np.sqrt(nx * nx + ny * ny) + np.float32(1e-6)
        scale = np.minimum(steep, 1.0) * np.float32(tilt) / steep
        nx *= scale
        ny *= scale
        return nx * self.cos + ny * self.sin, ny * self.cos - nx * self.sin

    def shade(
        self,
        material: tuple[Colour, bool],
        nu: F32 | float,
        nv: F32 | float,
        extra: F32 | float = 0.0,
    ) -> F32:
        """Gives the colour, float32 (h, w, 3) 0..255, of a surface from its tilt.

        Args:
            material: Colour and whether it is metal.
            nu: Tilt along u (sine), array or number.
            nv: Tilt along v (sine).
            extra: Added to the tilt towards the light: brushing, machining marks.
        """
        steep = np.minimum(nu * nu + nv * nv, np.float32(0.999))
        towards = 2 * np.sqrt(1 - steep) * (nu * self.light_u + nv * self.light_v) + extra
        index = np.broadcast_to(np.clip(towards * 127.5 + 127.5, 0, 255), self.u.shape)
        return np.take(_ramp(self.light, material), index.astype(np.uint8), axis=0)


def _unit(image: Image.Image) -> F32:
    """Gives an 8-bit grey image as float32 0..1."""
    return np.asarray(image, dtype=np.float32) * np.float32(1 / 255)


def _blur(field: F32, radius: float) -> F32:
    """Blurs float32 (h, w) 0..1; two box passes look like a Gaussian and cost less."""
    image = Image.fromarray((field * 255).astype(np.uint8))
    blurred = image.filter(ImageFilter.BoxBlur(radius * 0.8)).filter(ImageFilter.BoxBlur(radius * 0.6))
    return _unit(blurred)


def _ramp(light: Light, material: tuple[Colour, bool]) -> F32:
    """Gives float32 (256, 3): colour against tilt towards the light."""
    colour = np.asarray(material[0], dtype=np.float32)
    if material[1]:
        value = light.bands
    else:
        value = np.interp(
            np.linspace(-1, 1, 256),
            (-1, -0.5, 0, 0.45, 0.72, 0.86, 1),
            (0.42, 0.62, 0.88, 1.02, 1.06, 1.30, 1.05),
        ).astype(np.float32)
    body = colour[None] * np.minimum(value, 1.0)[:, None]
    glint = np.maximum(value - 1.0, 0.0)[:, None]
    return np.minimum(body + glint * 255 * 0.8, 262).astype(np.float32)


@lru_cache(maxsize=1)
def _noise_bank() -> F32:
    """Gives a fixed float32 (2**21,) of normal noise; drawing it anew would cost the most."""
    return np.random.default_rng(20240229).standard_normal(1 << 21, dtype=np.float32)


def _noise(rng: np.random.Generator, *shape: int) -> F32:
    """Gives float32 normal noise of ``shape``, cut from the bank at a random place."""
    bank = _noise_bank()
    count = math.prod(shape)
    start = int(rng.integers(len(bank)))
    if start + count <= len(bank):
        return bank[start : start + count].reshape(shape)
    return np.take(bank, np.arange(start, start + count), mode="wrap").reshape(shape)


def _resize(field: F32, w: int, h: int, how: int = Image.Resampling.BICUBIC) -> F32:
    """Gives float32 (h, w): ``field`` stretched to that size."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(field)).resize((w, h), how))


def _ring(radius: float, count: int = 0, u: float = 0.0, v: float = 0.0) -> NDArray[np.floating]:
    """Gives the points (n, 2) of a circle."""
    count = count or max(16, min(96, int(radius * 3)))
    a = np.linspace(0, 2 * math.pi, count, endpoint=False)
    return np.stack([u + radius * np.cos(a), v + radius * np.sin(a)], axis=1)


def _rect(u0: float, v0: float, u1: float, v1: float) -> NDArray[np.floating]:
    return np.array([(u0, v0), (u1, v0), (u1, v1), (u0, v1)])


def _pick(rng: np.random.Generator, options: tuple) -> Any:
    """Gives one of the options, each as likely as the next."""
    return options[int(rng.integers(len(options)))]


def _polar(pad: Pad) -> tuple[F32, F32, F32]:
    """Gives radius, and the unit vector away from the middle (u, v)."""
    r = np.sqrt(pad.u * pad.u + pad.v * pad.v) + np.float32(1e-3)
    return r, pad.u / r, pad.v / r


def _turned(pad: Pad, ru: F32, rv: F32, r: F32, rng: np.random.Generator, amount: float) -> F32:
    """Gives the bow-tie sheen and the fine rings that a lathe leaves on a flat face."""
    along = ru * pad.light_u + rv * pad.light_v
    rings = _noise(rng, 512)[np.minimum(r * 1.5, 511).astype(np.int32)]
    return (along * along - 0.5) * np.float32(amount) + rings * np.float32(0.05)


def _edge(r: F32, at: float, width: float) -> F32:
    """Gives 0 before ``at - width`` rising to 1 at ``at``: where a rim rounds off."""
    return np.clip((r - (at - width)) / width, 0, 1)


def _over(below: F32, above: F32, cover: F32) -> F32:
    """Lays ``above`` on ``below`` (h, w, 3) where ``cover`` (h, w) says."""
    return below + (above - below) * cover[..., None]


# --- the six parts: each takes its length or diameter in pixels ------------------------------


def _bolt(rng: np.random.Generator, size: float, angle: float, light: Light) -> Sprite:
    """Draws a bolt lying on its side, head towards -u."""
    material = _pick(rng, MATERIALS["bolt"])
    d = size * rng.uniform(0.13, 0.23)
    head_h = d * rng.uniform(0.62, 0.85)
    head_w = d * rng.uniform(1.65, 2.0)
    kind = _pick(rng, ("hex", "hex", "hex", "cap", "pan", "flat", "flange"))
    if kind == "cap":
        head_h, head_w = d * rng.uniform(0.95, 1.15), d * rng.uniform(1.45, 1.65)
    half = size / 2
    neck = -half + head_h
    pad = Pad(half + 1, head_w * 0.72 + 1, angle, light)
    u, v = pad.u, pad.v

    pitch = d * rng.uniform(0.17, 0.26)
    smooth = rng.uniform(0.0, 0.45) if rng.random() < 0.5 else 0.0
    start = neck + (half - neck) * smooth
    r = d / 2
    depth = min(pitch * 0.42, d * 0.1)
    # The outline of a thread is a zigzag; the two sides are half a pitch apart.
    n = max(4, int((half - start - d * 0.12) / pitch * 2))
    us = start + np.arange(n) * pitch / 2
    low = np.stack([us, -(r - depth * (np.arange(n) % 2))], axis=1)
    high = np.stack([us, r - depth * (np.arange(n) % 2 == 0)], axis=1)[::-1]
    tip_r = r * 0.72
    tip = np.array([(half, -tip_r), (half, tip_r)])
    shaft = pad.fill(
        np.concatenate([[(neck - 1, -r)], low, tip, high, [(neck - 1, r)]]),
    )
    across = np.clip(v / r, -1, 1) * 0.97
    # A thread finer than about two pixels cannot be shown; it fades to a plain cylinder.
    amp = 0.62 * min(1.0, max(0.0, (pitch - 1.2) / 2.2))
    turn = np.sin((u - start - v * (pitch / d) * 0.5) * (2 * math.pi / pitch)).astype(np.float32)
    threaded = np.clip((u - start) * 0.7, 0, 1)
    nu = turn * amp * threaded * np.sqrt(1 - across * across)
    nu += 0.55 * np.clip((u - (half - d * 0.14)) / (d * 0.14), 0, 1)
    rgb = pad.shade(material, nu, across)
    rgb *= (1 - 0.34 * (amp / 0.62) * threaded * (turn < -0.4))[..., None]
    # The head throws a little shade on the shaft.
    rgb *= (1 - 0.45 * np.clip(1 - (u - neck) / (d * 0.35), 0, 1) * (u > neck))[..., None]

    w = head_w / 2
    if kind in ("hex", "flange"):
        c = head_h * 0.22
        head = pad.fill(
            np.array(
                [
                    (-half, -w * 0.78),
                    (-half, w * 0.78),
                    (-half + c, w),
                    (neck, w),
                    (neck, -w),
                    (-half + c, -w),
                ]
            )
        )
        facet = np.where(np.abs(v) < w * 0.5, 0.0, np.sign(v) * 0.62).astype(np.float32)
        fade = np.minimum(np.abs(np.abs(v) - w * 0.5), 1.0)
        nu_h = -0.7 * np.clip((-half + c - u) / c, 0, 1)
        bu, bv = pad.bevel(head, max(1.0, d * 0.07), 0.5)
        rgb_h = pad.shade(material, nu_h * 0.8 + bu * 0.5, facet + bv * 0.35)
        rgb_h *= (0.72 + 0.28 * fade)[..., None]
        if kind == "flange":
            f = head_h * 0.26
            wide = w * 1.3
            plate = pad.fill(_rect(neck - f, -wide, neck, wide))
            rgb_f = pad.shade(material, 0.3, np.clip(v / wide, -1, 1) * 0.9)
            rgb_h = _over(rgb_h, rgb_f, plate)
            head = np.maximum(head, plate)
    elif kind == "cap":
        c = head_h * 0.12
        head = pad.fill(
            np.array(
                [
                    (-half, -w + c),
                    (-half, w - c),
                    (-half + c, w),
                    (neck, w),
                    (neck, -w),
                    (-half + c, -w),
                ]
            )
        )
        across_h = np.clip(v / w, -1, 1) * 0.97
        knurl = np.sin(np.arcsin(np.clip(v / w, -1, 1)) * 22).astype(np.float32)
        knurl *= (u > -half + head_h * 0.25) * 0.5 * min(1.0, max(0.0, (w - 6) / 12))
        rgb_h = pad.shade(material, -0.6 * np.clip((-half + c * 2 - u) / c, 0, 1), across_h)
        rgb_h *= (1 - 0.28 * np.maximum(knurl, 0))[..., None]
    elif kind == "pan":
        a = np.linspace(-math.pi / 2, math.pi / 2, 25)
        dome = np.stack([neck - head_h * np.cos(a), w * np.sin(a)], axis=1)
        head = pad.fill(dome)
        rgb_h = pad.shade(material, np.clip((u - neck) / head_h, -1, 0) * 0.75, np.clip(v / w, -1, 1) * 0.75)
    else:
        c = head_h * 0.2
        head = pad.fill(np.array([(-half, -w), (-half, w), (-half + c, w), (neck, r), (neck, -r), (-half + c, -w)]))
        local = w - (w - r) * np.clip((u + half - c) / (head_h - c), 0, 1)
        rgb_h = pad.shade(material, 0.45 * (u > -half + c), np.clip(v / local, -1, 1) * 0.88)
    rgb = _over(rgb, rgb_h, head)
    return Sprite(rgb, np.maximum(shaft, head), d * 0.75)


def _nut(rng: np.random.Generator, size: float, angle: float, light: Light) -> Sprite:
    """Draws a hexagon nut lying flat; ``size`` is across its corners."""
    material = _pick(rng, MATERIALS["nut"])
    kind = _pick(rng, ("plain", "plain", "plain", "lock", "flange"))
    outer = size / 2
    hexa = outer * (0.8 if kind == "flange" else 1.0)
    flat = hexa * math.cos(math.pi / 6)
    bore = flat * rng.uniform(0.52, 0.64)
    pad = Pad(outer + 1, outer + 1, angle, light)
    r, ru, rv = _polar(pad)
    hole = _ring(bore * 0.9)
    cover = pad.fill(_ring(hexa, 6), holes=(hole,))
    # The corners of a nut are turned down: the top face is a disc that just meets the flats.
    corner = np.clip((r - flat * 0.95) / (hexa - flat * 0.95), 0, 1)
    bu, bv = pad.bevel(cover, max(1.0, size * 0.018), 0.55)
    outside = r > bore * 1.15
    chamfer = np.clip(1 - (r - bore) / (bore * 0.16), 0, 1) * (r >= bore) * 0.6
    tilt = 0.62 * (corner > 0) * (0.5 + 0.5 * corner) - chamfer
    rgb = pad.shade(
        material,
        ru * tilt + bu * outside * 0.7,
        rv * tilt + bv * outside * 0.7,
        _turned(pad, ru, rv, r, rng, 0.32),
    )
    if kind == "lock":
        ring = ((r > bore * 0.96) & (r < bore * 1.3)).astype(np.float32)
        colour = _pick(rng, (BLUE_PLASTIC, NYLON, GREEN_PLASTIC, RED_PLASTIC))
        lean = np.clip((r / bore - 1.13) * 5, -1, 1) * 0.7
        rgb = _over(rgb, pad.shade((colour, False), ru * lean, rv * lean), ring)
    # Inside the bore one sees the thread's turns, lit from the far side.
    inside = np.clip(bore - r + 0.5, 0, 1)
    turns = np.sin(r * (2 * math.pi / max(bore * 0.06, 1.5))).astype(np.float32)
    wall = pad.shade(material, -0.8 * ru, -0.8 * rv) * (0.5 + 0.14 * turns)[..., None]
    rgb = _over(rgb, wall, inside)
    if kind == "flange":
        disc = pad.fill(_ring(outer), holes=(hole,))
        lean = 0.3 + 0.5 * _edge(r, outer, outer * 0.05)
        base = pad.shade(material, ru * lean, rv * lean, _turned(pad, ru, rv, r, rng, 0.2))
        base *= (1 - 0.4 * _blur(cover, size * 0.02))[..., None]
        hex_cover = pad.fill(_ring(hexa, 6))
        rgb, cover = _over(base, rgb, hex_cover), disc
    return Sprite(rgb, cover, size * 0.17)


def _washer(rng: np.random.Generator, size: float, angle: float, light: Light) -> Sprite:
    """Draws a flat or a split washer."""
    material = _pick(rng, MATERIALS["washer"])
    outer = size / 2
    split = rng.random() < 0.22
    bore = outer * (rng.uniform(0.60, 0.68) if split else rng.uniform(0.36, 0.62))
    pad = Pad(outer + 1, outer + 1, angle, light)
    r, ru, rv = _polar(pad)
    holes = [_ring(bore)]
    if split:
        gap = outer * rng.uniform(0.04, 0.09)
        lean = gap * 2.2
        holes.append(
            np.array(
                [
                    (bore * 0.8, -gap - lean),
                    (outer * 1.1, -gap + lean),
                    (outer * 1.1, gap + lean),
                    (bore * 0.8, gap - lean),
                ]
            )
        )
    cover = pad.fill(_ring(outer), holes=tuple(holes))
    b = max(1.2, outer * rng.uniform(0.04, 0.09))
    tilt = 0.75 * _edge(r, outer, b) - 0.75 * np.clip((bore + b - r) / b, 0, 1)
    if split:
        tilt = tilt + 0.35 * np.clip((r - (bore + outer) / 2) / (outer - bore), -0.5, 0.5)
    rgb = pad.shade(material, ru * tilt, rv * tilt, _turned(pad, ru, rv, r, rng, 0.5))
    return Sprite(rgb, cover, max(1.5, size * rng.uniform(0.03, 0.07)))


def _gear(rng: np.random.Generator, size: float, angle: float, light: Light) -> Sprite:
    """Draws a spur gear from above."""
    material = _pick(rng, MATERIALS["gear"])
    outer = size / 2
    # Teeth narrower than a few pixels would blur into a disc.
    teeth = int(rng.integers(9, max(12, min(30, int(outer * 0.75))) + 1))
    root = outer * (1 - min(0.26, 3.6 / (teeth + 2)))
    step = 2 * math.pi / teeth
    a = (np.arange(teeth) * step)[:, None] + step * np.array([-0.5, -0.27, -0.13, 0.13, 0.27, 0.5])
    rr = np.array([root, root, outer, outer, root, root])[None]
    rim = np.stack([(rr * np.cos(a)).ravel(), (rr * np.sin(a)).ravel()], axis=1)
    bore = outer * rng.uniform(0.13, 0.24)
    hub = bore + outer * rng.uniform(0.10, 0.18)
    pad = Pad(outer + 1, outer + 1, angle, light)
    r, ru, rv = _polar(pad)
    holes = [_ring(bore)]
    if rng.random() < 0.4:
        holes.append(_rect(0, -bore * 0.28, bore * 1.35, bore * 0.28))
    web0, web1 = hub + outer * 0.05, root - outer * 0.12
    style = _pick(rng, ("plain", "web", "holes", "spokes"))
    if web1 - web0 < outer * 0.16:
        style = "plain"
    if style == "holes":
        count = int(rng.integers(4, 8))
        mid = (web0 + web1) / 2
        hole_r = min((web1 - web0) * 0.42, mid * math.pi / count * 0.7)
        for k in range(count):
            t = 2 * math.pi * k / count
            holes.append(_ring(hole_r, 0, mid * math.cos(t), mid * math.sin(t)))
    elif style == "spokes":
        count = int(rng.integers(3, 7))
        for k in range(count):
            half = math.pi / count
            inner = np.linspace(-half * 0.55, half * 0.55, 8) + 2 * half * k
            outerarc = np.linspace(half * 0.78, -half * 0.78, 12) + 2 * half * k
            holes.append(
                np.concatenate(
                    [
                        np.stack([web0 * np.cos(inner), web0 * np.sin(inner)], axis=1),
                        np.stack([web1 * np.cos(outerarc), web1 * np.sin(outerarc)], axis=1),
                    ]
                )
            )
    cover = pad.fill(rim, holes=tuple(holes))
    bu, bv = pad.bevel(cover, max(1.0, size * 0.014), 0.7)
    e = max(1.2, outer * 0.035)
    tilt = 0.6 * (_edge(r, hub + e, e) - _edge(r, hub + 2 * e, e))
    if style != "plain":
        # A web thinner than the rim: the rim's inner edge falls away towards the middle.
        tilt = tilt - 0.6 * (_edge(r, web1 + e, e) - _edge(r, web1 + 2 * e, e))
    rgb = pad.shade(material, ru * tilt + bu, rv * tilt + bv, _turned(pad, ru, rv, r, rng, 0.42))
    if style != "plain":
        rgb *= (1 - 0.16 * ((r > hub + e) & (r < web1 + e)))[..., None]
    return Sprite(rgb, cover, size * rng.uniform(0.06, 0.11))


def _key(rng: np.random.Generator, size: float, angle: float, light: Light) -> Sprite:
    """Draws a door key, bow towards -u, its cuts on one side or on both."""
    material = _pick(rng, MATERIALS["key"])
    half = size / 2
    bow = size * rng.uniform(0.17, 0.215)
    centre = -half + bow
    blade = size * rng.uniform(0.052, 0.068)
    pad = Pad(half + 1, bow * 1.12 + 1, angle, light)
    u, v = pad.u, pad.v
    kind = _pick(rng, ("round", "oval", "hex", "square", "clover"))
    a = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    if kind == "round":
        radius: NDArray[np.floating] = np.full(72, bow)
    elif kind == "oval":
        radius = bow / np.sqrt(np.cos(a) ** 2 + (np.sin(a) / 1.1) ** 2)
    elif kind == "hex":
        radius = bow * (0.95 + 0.05 * np.cos(6 * a))
    elif kind == "square":
        radius = bow * 0.93 / (np.abs(np.cos(a)) ** 5 + np.abs(np.sin(a)) ** 5) ** 0.2
    else:
        radius = bow * (0.88 + 0.12 * np.cos(3 * (a - math.pi)))
    head = np.stack([centre + radius * np.cos(a), radius * np.sin(a)], axis=1)
    hole_r = bow * rng.uniform(0.22, 0.36)
    hole = _ring(hole_r, 0, centre - bow * rng.uniform(0.25, 0.5), 0.0)
    if rng.random() < 0.25:
        slot = bow * 0.5
        hole = np.stack([centre - bow * 0.42 + np.cos(a) * hole_r * 0.7, np.sin(a) * slot], axis=1)
    neck = centre + bow * 0.8
    shoulder = neck + bow * 0.35
    count = int(rng.integers(4, 7))
    stops = np.linspace(shoulder + size * 0.05, half - size * 0.05, count * 2)
    both = rng.random() < 0.35
    depth = rng.uniform(0.15, 0.55 if both else 0.95, count).repeat(2) * blade
    cuts = np.stack([stops + np.tile([-1, 1], count) * size * 0.004, blade - depth], axis=1)
    upper = (
        np.stack([cuts[:, 0], -cuts[:, 1]], axis=1)
        if both
        else np.array([(shoulder, -blade), (half - blade * 0.8, -blade)])
    )
    wide = blade * 1.5
    outline = np.concatenate(
        [
            [(centre, -wide), (shoulder, -wide), (shoulder, -blade)],
            upper,
            [(half, -blade * 0.2), (half, blade * 0.15)],
            cuts[::-1],
            [(shoulder, blade), (shoulder, wide), (centre, wide)],
        ]
    )
    cover = pad.fill(head, outline, holes=(hole,))
    bu, bv = pad.bevel(cover, max(1.0, size * 0.012), 0.65)
    brushed = _noise(rng, 256)[np.minimum(np.abs(v) * 2, 255).astype(np.int32)] * np.float32(0.05)
    sheen = 0.25 * np.sin(u * (3.2 / size) + rng.uniform(0, 6)).astype(np.float32) + brushed
    groove = np.exp(-(((v + blade * 0.32) / max(blade * 0.22, 0.9)) ** 2)) * (u > neck)
    slope = -0.55 * np.clip((v + blade * 0.32) / (blade * 0.3), -1, 1) * groove
    rgb = pad.shade(material, bu, bv + slope, sheen)
    rgb *= (1 - 0.42 * groove)[..., None]
    hx, hr = u - centre, np.sqrt((u - centre) ** 2 + v * v)
    if rng.random() < 0.38:
        colour = _pick(rng, (BLACK_PLASTIC, RED_PLASTIC, BLUE_PLASTIC, GREEN_PLASTIC))
        cap = np.clip(centre + bow * 0.72 - u + 0.5, 0, 1) * (hr < bow * 1.3)
        rgb = _over(rgb, pad.shade((colour, False), bu, bv), cap)
    else:
        rim = np.clip(1 - np.abs(hr - bow * 0.74) / max(1.0, bow * 0.05), 0, 1) * (hx < bow * 0.72)
        rgb *= (1 - 0.3 * rim)[..., None]
    return Sprite(rgb, cover, max(1.5, size * 0.022))


def _spring(rng: np.random.Generator, size: float, angle: float, light: Light) -> Sprite:
    """Draws a coil spring lying on its side, with or without hooks."""
    material = _pick(rng, MATERIALS["spring"])
    half = size / 2
    width = size * rng.uniform(0.13, 0.21)
    hooks = rng.random() < 0.4
    body = half - (width * 1.15 if hooks else 0)
    # Wire and pitch are kept wide enough that single turns stay apart at this resolution.
    turns = max(4, min(int(rng.integers(6, 13)), int(2 * body / 4.5)))
    pitch = 2 * body / turns
    wire = pitch * (rng.uniform(0.62, 0.8) if hooks else rng.uniform(0.36, 0.56))
    wire = min(wire, width * 0.5)
    w = width - wire / 2
    pad = Pad(half + 1, width + 1, angle, light)
    u, v = pad.u, pad.v
    t = np.linspace(-math.pi / 2, math.pi / 2, 17)
    rise = pitch * t / (2 * math.pi)
    front, back = [], []
    for k in range(turns):
        at = -body + pitch * (k + 0.5)
        front.append(np.stack([at + rise, w * np.sin(t)], axis=1))
        if k + 1 < turns:
            back.append(np.stack([at + pitch / 2 + rise, -w * np.sin(t)], axis=1))
    cover_f, cover_b = pad.stroke(front, wire), pad.stroke(back, wire)
    sine = np.clip(v / w, -0.995, 0.995)
    arc = np.arcsin(sine).astype(np.float32) * np.float32(pitch / (2 * math.pi))
    steep = pitch / (2 * math.pi * w) / np.sqrt(1 - sine * sine)
    narrow = 1 / np.sqrt(1 + steep * steep)
    near = (u + body - pitch / 2 - arc + pitch / 2) % pitch - pitch / 2
    far = (u + body - pitch / 2 + arc) % pitch - pitch / 2
    rod = np.float32(wire / 2)
    nf = np.clip(near * narrow / rod, -1, 1) * 0.93
    nb = np.clip(far * narrow / rod, -1, 1) * 0.93
    round_v = np.clip(v / width, -1, 1) * 0.75
    bulge = np.sqrt(1 - nf * nf)
    rgb_b = pad.shade(material, nb, -round_v * np.sqrt(1 - nb * nb)) * 0.55
    rgb_f = pad.shade(material, nf, round_v * bulge)
    rgb_f *= (0.55 + 0.45 * bulge)[..., None]
    shade = 1 - 0.4 * _blur(cover_f, max(1.0, wire * 0.3))
    rgb = _over(rgb_b * shade[..., None], rgb_f, cover_f)
    cover = np.maximum(cover_f, cover_b)
    if hooks:
        loops = []
        for side in (-1, 1):
            c = side * (body + width * 0.38)
            a = np.linspace(0.15, 1.75, 24) * math.pi
            lead = np.array([(side * (body - pitch * 0.3), 0.0)])
            r = width * 0.76 - wire / 2
            loop = np.stack([c - side * r * np.cos(a), r * np.sin(a)], axis=1)
            loops += [loop, np.concatenate([lead, loop[:1]])]
        cover_h = pad.stroke(loops, wire)
        hu, hv = pad.bevel(cover_h, max(1.0, wire * 0.45), 0.9)
        rgb = _over(rgb, pad.shade(material, hu, hv), cover_h)
        cover = np.maximum(cover, cover_h)
    return Sprite(rgb, cover, width * 0.7)


PAINTERS: tuple[Callable[[np.random.Generator, float, float, Light], Sprite], ...] = (
    _bolt,
    _nut,
    _washer,
    _gear,
    _key,
    _spring,
)
# Long parts are drawn longer, so that all six cover a similar area.
STRETCH = (1.45, 0.82, 0.85, 1.15, 1.65, 1.45)


# --- things that lie about and are not parts -------------------------------------------------


def _coin(rng: np.random.Generator, size: float, angle: float, light: Light) -> Sprite:
    """Draws a coin, a plain disc or a flush screw head: round, but without a hole."""
    material = (_pick(rng, (COPPER, NICKEL, BRASS, STEEL)), True)
    outer = size / 2
    pad = Pad(outer + 1, outer + 1, angle, light)
    r, ru, rv = _polar(pad)
    cover = pad.fill(_ring(outer))
    e = max(1.2, outer * 0.07)
    tilt = 0.6 * _edge(r, outer, e)
    kind = _pick(rng, ("coin", "coin", "disc", "disc", "screw"))
    nu, nv = ru * tilt, rv * tilt
    if kind == "coin":
        tilt = tilt - 0.5 * (_edge(r, outer - e * 1.2, e) - _edge(r, outer - e * 2.2, e))
        # A star and a ring of dots, struck into the middle.
        points = int(rng.integers(5, 9))
        a = np.arange(2 * points) * math.pi / points
        reach = outer * np.where(np.arange(2 * points) % 2, rng.uniform(0.18, 0.3), 0.5)
        star = np.stack([reach * np.cos(a), reach * np.sin(a)], axis=1)
        dots = [
            _ring(outer * 0.05, 12, outer * 0.68 * math.cos(t), outer * 0.68 * math.sin(t))
            for t in np.linspace(0, 2 * math.pi, 24, endpoint=False)
        ]
        su, sv = pad.bevel(pad.fill(star, *dots), max(1.0, outer * 0.035), 0.6)
        nu, nv = ru * tilt + su, rv * tilt + sv
    rgb = pad.shade(material, nu, nv, _turned(pad, ru, rv, r, rng, 0.25))
    if kind == "screw":
        q, s = outer * 0.58, outer * 0.09
        slot = pad.fill(_rect(-q, -s, q, s), _rect(-s, -q, s, q))
        rgb *= (1 - 0.72 * slot)[..., None]
    return Sprite(rgb, cover, max(1.2, size * 0.04))


def _pin(rng: np.random.Generator, size: float, angle: float, light: Light) -> Sprite:
    """Draws a smooth dowel pin: a rod without head or thread."""
    material = (_pick(rng, (STEEL, BRASS, BLACK_OXIDE, (176, 126, 78))), rng.random() < 0.8)
    half, r = size / 2, size * rng.uniform(0.05, 0.11)
    c = r * 0.5
    pad = Pad(half + 1, r + 1, angle, light)
    cover = pad.fill(
        np.array(
            [
                (-half, -r + c),
                (-half, r - c),
                (-half + c, r),
                (half - c, r),
                (half, r - c),
                (half, -r + c),
                (half - c, -r),
                (-half + c, -r),
            ]
        )
    )
    end = np.clip((np.abs(pad.u) - half + c) / c, 0, 1) * np.sign(pad.u) * 0.5
    return Sprite(pad.shade(material, end, np.clip(pad.v / r, -1, 1) * 0.95), cover, r)


def _label(rng: np.random.Generator, size: float, angle: float, light: Light) -> Sprite:
    """Draws a paper label with a bar code and lines of print."""
    half_u, half_v = size * rng.uniform(0.5, 0.75), size * rng.uniform(0.28, 0.45)
    pad = Pad(half_u + 1, half_v + 1, angle, light)
    cover = pad.fill(_rect(-half_u, -half_v, half_u, half_v))
    papers = ((244, 242, 234), (250, 236, 150), (236, 214, 180), (225, 236, 245))
    paper = np.array(_pick(rng, papers))
    marks = []
    if rng.random() < 0.6:
        at = -half_u * 0.85
        while at < half_u * 0.1:
            wide = half_u * rng.uniform(0.012, 0.05)
            marks.append(_rect(at, -half_v * 0.7, at + wide, half_v * 0.15))
            at += wide + half_u * rng.uniform(0.015, 0.05)
    for row in np.arange(-0.6, 0.8, 0.28):
        at = half_u * (0.2 if row < 0.3 else -0.85)
        while at < half_u * 0.8:
            wide = half_u * rng.uniform(0.06, 0.25)
            end = min(at + wide, half_u * 0.85)
            marks.append(_rect(at, half_v * (row - 0.05), end, half_v * (row + 0.05)))
            at += wide + half_u * 0.05
    ink = pad.fill(*marks) * np.float32(rng.uniform(0.6, 0.9))
    sheen = 1 + 0.04 * pad.u / half_u
    rgb = (paper[None, None] * sheen[..., None]).astype(np.float32) * (1 - 0.8 * ink)[..., None]
    return Sprite(rgb, cover, 1.2)


def _plate(rng: np.random.Generator, size: float, angle: float, light: Light) -> Sprite:
    """Draws a plain block or sheet with rounded corners, of metal, plastic or rubber."""
    half_u, half_v = size * rng.uniform(0.3, 0.6), size * rng.uniform(0.12, 0.35)
    colour = _pick(rng, (STEEL, BLACK_OXIDE, BLUE_PLASTIC, RED_PLASTIC, GREEN_PLASTIC, NYLON))
    c = min(half_u, half_v) * rng.uniform(0.1, 0.6)
    corners = [_ring(c, 32, su * (half_u - c), sv * (half_v - c)) for su in (-1, 1) for sv in (-1, 1)]
    pad = Pad(half_u + 1, half_v + 1, angle, light)
    cover = pad.fill(
        _rect(-half_u + c, -half_v, half_u - c, half_v),
        _rect(-half_u, -half_v + c, half_u, half_v - c),
        *corners,
    )
    bu, bv = pad.bevel(cover, max(1.2, size * 0.03), 0.7)
    lines = _noise(rng, 512)[np.clip(pad.v * 2 + 256, 0, 511).astype(np.int32)]
    rgb = pad.shade((colour, rng.random() < 0.5), bu, bv, lines * np.float32(0.06))
    return Sprite(rgb, cover, size * rng.uniform(0.03, 0.12))


def _pencil(rng: np.random.Generator, size: float, angle: float, light: Light) -> Sprite:
    """Draws a sharpened pencil."""
    half, r = size * 0.9, size * 0.065
    pad = Pad(half + 1, r + 1, angle, light)
    u, v = pad.u, pad.v
    cone = half - r * 5
    cover = pad.fill(np.array([(-half, -r), (cone, -r), (half, 0), (cone, r), (-half, r)]))
    colour = _pick(rng, ((238, 184, 40), RED_PLASTIC, BLUE_PLASTIC, GREEN_PLASTIC, BLACK_PLASTIC))
    facet = np.round(np.clip(v / r, -1, 1) * 1.4) * 0.55
    rgb = pad.shade((colour, False), 0.0, facet)
    rgb = _over(rgb, pad.shade(((226, 190, 142), False), 0.0, facet), (u > cone).astype(np.float32))
    lead = (u > half - r * 1.7).astype(np.float32)
    return Sprite(_over(rgb, pad.shade((BLACK_PLASTIC, False), 0.0, facet), lead), cover, r)


CLUTTER = (_coin, _coin, _pin, _label, _plate, _pencil)


# --- the bench --------------------------------------------------------------------------------


def _clouds(rng: np.random.Generator, w: int, h: int, cell: float, octaves: int = 3) -> F32:
    """Gives float32 (h, w) cloudy noise, about -1..1; ``cell`` is the largest cloud in pixels."""
    total = np.zeros((h, w), dtype=np.float32)
    gain = 0.5
    for _ in range(octaves):
        n_w, n_h = max(3, int(w / cell) + 2), max(3, int(h / cell) + 2)
        if n_w * 2 >= w or n_h * 2 >= h:
            total += _noise(rng, h, w) * np.float32(gain)
            break
        total += _resize(_noise(rng, n_h, n_w), w, h, Image.Resampling.BILINEAR) * np.float32(gain)
        gain *= 0.55
        cell /= 3.5
    return total


def _tint(field: F32, dark: Colour, light: Colour) -> U8:
    """Gives uint8 (h, w, 3): ``field`` -1..1 as colours from ``dark`` to ``light``."""
    steps = np.linspace(0, 1, 256)[:, None]
    table = (np.array(dark) * (1 - steps) + np.array(light) * steps).clip(0, 255).astype(np.uint8)
    return np.take(table, np.clip(field * 127 + 128, 0, 255).astype(np.uint8), axis=0)


def _grid(w: int, h: int, step: float, angle: float, width: float) -> list[tuple]:
    """Gives line segments (x0, y0, x1, y1, width) of a turned grid that covers the picture."""
    reach = math.hypot(w, h) / 2
    cos, sin = math.cos(angle), math.sin(angle)
    lines = []
    count = int(reach / step) + 1
    for k in range(-count, count + 1):
        o = k * step
        for a, b in ((cos, sin), (-sin, cos)):
            x, y = w / 2 - b * o, h / 2 + a * o
            wide = width * (2.2 if k % 5 == 0 else 1.0)
            lines.append((x - a * reach, y - b * reach, x + a * reach, y + b * reach, wide))
    return lines


def _paint(base: U8, lines: list[tuple], colour: Colour, strength: float) -> U8:
    """Draws anti-aliased lines or circles on uint8 (h, w, 3) and gives it back.

    A tuple of five is a line (x0, y0, x1, y1, width); of four a circle (x, y, radius, width).
    """
    h, w = base.shape[:2]
    canvas = Image.new("L", (w * 2, h * 2))
    draw = ImageDraw.Draw(canvas)
    for item in lines:
        if len(item) == 5:
            x0, y0, x1, y1, wide = (2 * float(k) for k in item)
            draw.line((x0, y0, x1, y1), fill=255, width=max(1, round(wide)))
        else:
            x, y, r, wide = (2 * float(k) for k in item)
            draw.ellipse((x - r, y - r, x + r, y + r), outline=255, width=max(1, round(wide)))
    ink = Image.new("RGB", (w, h), tuple(int(c) for c in colour))
    mask = canvas.reduce(2).point(lambda value: int(value * strength))
    picture = Image.fromarray(base)
    picture.paste(ink, mask=mask)
    return np.asarray(picture)


def _bench(rng: np.random.Generator, w: int, h: int) -> U8:
    """Gives the empty bench or belt, uint8 (h, w, 3)."""
    unit = min(w, h)
    kind = _pick(rng, ("wood", "wood", "mat", "mat", "belt", "steel", "concrete", "paper", "cloth"))
    if kind == "wood":
        dark, light = _pick(
            rng,
            (
                ((112, 72, 42), (186, 134, 86)),
                ((150, 108, 66), (216, 176, 126)),
                ((70, 46, 32), (124, 86, 60)),
                ((158, 140, 118), (214, 200, 180)),
            ),
        )
        planks = int(rng.integers(2, 7))
        tall = rng.random() < 0.4
        pw, ph = (h, w) if tall else (w, h)
        rows = np.linspace(0, planks, ph, endpoint=False)
        waves = _resize(_noise(rng, planks * 4 + 2, 5), pw, ph) * np.float32(0.35)
        grain = _resize(_noise(rng, ph, max(4, pw // 90)), pw, ph, Image.Resampling.BILINEAR)
        shift = rng.normal(0, 0.28, planks).astype(np.float32)[rows.astype(np.int64)][:, None]
        field = waves + grain * np.float32(0.22) + shift
        seam = np.abs(rows - np.round(rows)) < planks * max(1.5, unit * 0.003) / ph
        seam[: ph // 40] = False
        field[seam] -= 0.9
        return _tint(np.ascontiguousarray(field.T) if tall else field, dark, light)
    if kind == "mat":
        colour = _pick(rng, ((38, 92, 74), (34, 72, 118), (52, 56, 64), (120, 40, 52), (36, 104, 110)))
        field = _clouds(rng, w, h, unit * 0.6, 2) * 0.3 + _noise(rng, h, w) * np.float32(0.10)
        base = _tint(field, tuple(c * 0.78 for c in colour), tuple(c * 1.22 for c in colour))
        step = unit * rng.uniform(0.05, 0.11)
        lines = _grid(w, h, step, rng.uniform(-0.5, 0.5), max(0.6, unit * 0.0016))
        bright = tuple(min(255.0, c * 0.4 + 140) for c in colour)
        return _paint(base, lines, bright, rng.uniform(0.25, 0.6))
    if kind == "belt":
        tone = rng.uniform(34, 84)
        field = _clouds(rng, w, h, unit * 0.5, 2) * 0.35
        period = unit * rng.uniform(0.012, 0.03)
        x = np.sin(np.arange(w, dtype=np.float32) * np.float32(2 * math.pi / period))
        y = np.sin(np.arange(h, dtype=np.float32) * np.float32(2 * math.pi / period))
        across, along = x[None], y[:, None]
        weave = _pick(rng, (across * along, np.maximum(across, along), across))
        field = field + weave * np.float32(0.22) + _noise(rng, h, w) * np.float32(0.12)
        cool = (tone * 0.95, tone, tone * 1.06)
        return _tint(field, tuple(c * 0.6 for c in cool), tuple(c * 1.4 for c in cool))
    if kind == "steel":
        tall = rng.random() < 0.5
        pw, ph = (h, w) if tall else (w, h)
        brush = _resize(_noise(rng, ph, max(4, pw // 60)), pw, ph, Image.Resampling.BILINEAR)
        field = brush * np.float32(0.26) + _clouds(rng, pw, ph, unit * 0.9, 1) * 0.3
        tone = rng.uniform(105, 190)
        if tall:
            field = np.ascontiguousarray(field.T)
        cool = (tone * 0.985, tone, tone * 1.02)
        return _tint(field, tuple(c * 0.81 for c in cool), tuple(c * 1.2 for c in cool))
    if kind == "concrete":
        tone = rng.uniform(95, 185)
        field = _clouds(rng, w, h, unit * 0.4, 4) * 0.7 + _noise(rng, h, w) * np.float32(0.1)
        warm = (tone * 1.03, tone, tone * rng.uniform(0.88, 1.0))
        return _tint(field, tuple(c * 0.72 for c in warm), tuple(c * 1.22 for c in warm))
    if kind == "paper":
        tone = rng.uniform(205, 245)
        field = _clouds(rng, w, h, unit * 0.8, 2) * 0.3 + _noise(rng, h, w) * np.float32(0.10)
        warm = (tone, tone, tone * 0.98)
        base = _tint(field, tuple(c * 0.93 for c in warm), tuple(c * 1.05 for c in warm))
        lines: list[tuple] = []
        if rng.random() < 0.6:
            lines = _grid(w, h, unit * rng.uniform(0.03, 0.07), rng.uniform(-0.3, 0.3), 0.7)
        # Drawn circles look like washers to a careless detector.
        for _ in range(int(rng.integers(0, 6))):
            r = unit * rng.uniform(0.02, 0.12)
            lines.append((rng.uniform(0, w), rng.uniform(0, h), r, max(0.8, unit * 0.003)))
        colour = _pick(rng, ((90, 130, 190), (120, 120, 125), (190, 110, 100)))
        return _paint(base, lines, colour, rng.uniform(0.3, 0.7)) if lines else base
    colours = ((60, 84, 130), (150, 60, 56), (190, 186, 176), (74, 78, 82), (176, 150, 60))
    colour = _pick(rng, colours)
    period = max(3.0, unit * rng.uniform(0.006, 0.012))
    x = np.arange(w, dtype=np.float32)[None] * np.float32(2 * math.pi / period)
    y = np.arange(h, dtype=np.float32)[:, None] * np.float32(2 * math.pi / period)
    field = np.sin(x + y) * np.float32(0.3) + _clouds(rng, w, h, unit * 0.5, 2) * 0.5
    return _tint(field, tuple(c * 0.7 for c in colour), tuple(c * 1.2 for c in colour))


def _wear(rng: np.random.Generator, base: U8) -> U8:
    """Adds scratches, stains and chips to the bench."""
    h, w = base.shape[:2]
    unit = min(w, h)
    if rng.random() < 0.55:
        lines = []
        for _ in range(int(rng.integers(2, 16))):
            x, y, a = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0, math.pi)
            n = unit * rng.uniform(0.04, 0.4)
            lines.append((x, y, x + n * math.cos(a), y + n * math.sin(a), unit * 0.0015))
        tone = _pick(rng, (235, 30))
        base = _paint(base, lines, (tone, tone, tone), rng.uniform(0.15, 0.5))
    if rng.random() < 0.4:
        rings = []
        for _ in range(int(rng.integers(1, 3))):
            r = unit * rng.uniform(0.08, 0.2)
            rings.append((rng.uniform(0, w), rng.uniform(0, h), r, unit * 0.008))
        base = _paint(base, rings, (60, 42, 26), rng.uniform(0.1, 0.35))
    if rng.random() < 0.4:
        small = _resize(_noise(rng, 5, 6), max(8, w // 8), max(8, h // 8))
        spot = np.clip((small - rng.uniform(0.5, 1.2)) * 1.3, 0, 1) * rng.uniform(0.2, 0.55)
        mask = Image.fromarray((spot * 255).astype(np.uint8))
        mask = mask.resize((w, h), Image.Resampling.BILINEAR)
        picture = Image.fromarray(base)
        picture.paste(_pick(rng, ((30, 24, 18), (70, 46, 24), (40, 44, 60))), (0, 0, w, h), mask)
        base = np.asarray(picture)
    if rng.random() < 0.5:
        picture = Image.fromarray(base)
        draw = ImageDraw.Draw(picture)
        for _ in range(int(rng.integers(8, 70))):
            x, y, r = rng.uniform(0, w), rng.uniform(0, h), unit * rng.uniform(0.001, 0.006)
            tone = int(rng.integers(25, 235))
            tall = r * rng.uniform(0.3, 1.0)
            draw.ellipse((x - r, y - tall, x + r, y + tall), fill=(tone, tone, int(tone * 0.92)))
        base = np.asarray(picture)
    return base


# --- composition ------------------------------------------------------------------------------


class _Scene:
    """A picture in the making: what is drawn so far and who owns each pixel.

    Attributes:
        canvas: float32 (h, w, 3), 0..255.
        owner: int16 (h, w): number of the thing on top, 0 for the bench.
        areas: Full area in pixels of each thing, by number; clutter too.
        seen: Pixels of each thing still in view, by number.
        classes: Class of each thing, -1 for clutter.
        spans: Where each thing was put: (x0, y0, x1, y1), inside the picture.
    """

    def __init__(self, bench: U8, light: Light) -> None:
        self.canvas: F32 = bench.astype(np.float32)
        self.h, self.w = bench.shape[:2]
        self.light = light
        self.owner = np.zeros((self.h, self.w), dtype=np.int16)
        self.areas = [0]
        self.seen = [0]
        self.classes = [-1]
        self.spans = [(0, 0, 0, 0)]

    def place(self, sprite: Sprite, class_id: int, spots: list[tuple[float, float, float]]) -> bool:
        """Puts a sprite at the first spot that hides nothing too much.

        Args:
            sprite: What to put.
            class_id: Its class, -1 for clutter.
            spots: (x, y, share): centre in pixels, and how much of the sprite may lie on others.

        Returns:
            Whether it was put.
        """
        solid = sprite.alpha >= 0.5
        area = int(solid.sum())
        if area < 12:
            return False
        sh, sw = solid.shape
        for x, y, share in spots:
            left, top = round(x) - sw // 2, round(y) - sh // 2
            x0, y0 = max(0, left), max(0, top)
            x1, y1 = min(self.w, left + sw), min(self.h, top + sh)
            if x1 <= x0 or y1 <= y0:
                continue
            cut = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
            inside = solid[cut]
            shown = int(inside.sum())
            if shown < max(12, area * MIN_VISIBLE):
                continue
            hidden = np.bincount(self.owner[y0:y1, x0:x1][inside], minlength=len(self.areas))
            if shown - int(hidden[0]) > share * area:
                continue
            if any(
                self.classes[k] >= 0 and self.seen[k] - hidden[k] < MIN_VISIBLE * self.areas[k]
                for k in np.flatnonzero(hidden)
                if k
            ):
                continue
            for k in np.flatnonzero(hidden):
                self.seen[k] -= int(hidden[k])
            number = len(self.areas)
            self.areas.append(area)
            self.seen.append(shown)
            self.classes.append(class_id)
            self.spans.append((x0, y0, x1, y1))
            self.owner[y0:y1, x0:x1][inside] = number
            self._shadow(sprite, left, top)
            patch = self.canvas[y0:y1, x0:x1]
            patch += (sprite.rgb[cut] - patch) * sprite.alpha[cut][..., None]
            return True
        return False

    def _shadow(self, sprite: Sprite, left: int, top: int) -> None:
        """Darkens what lies under and beside a sprite before it is drawn."""
        light, lift = self.light, sprite.lift
        soft = max(0.8, lift * light.softness)
        dx, dy = -light.x * lift * light.slant, -light.y * lift * light.slant
        margin = math.ceil(max(abs(dx), abs(dy)) + soft * 2.5) + 3
        margin += margin % 2
        sh, sw = sprite.alpha.shape
        mask = Image.fromarray((sprite.alpha * 255).astype(np.uint8))
        # Wide blurs are done at half the resolution: nobody sees it and it takes a quarter.
        part = 2 if lift > 6 else 1
        mask = mask.reduce(part)
        pad = margin // part
        dx, dy, soft = dx / part, dy / part, soft / part
        wide = Image.new("L", (mask.width + 2 * pad, mask.height + 2 * pad))
        contact = wide.copy()
        # Half-way and full offset together leave no gap between a tall part and its shadow.
        wide.paste(mask, (pad + round(dx / 2), pad + round(dy / 2)), mask)
        wide.paste(mask, (pad + round(dx), pad + round(dy)), mask)
        wide = wide.filter(ImageFilter.BoxBlur(soft)).filter(ImageFilter.BoxBlur(soft * 0.7))
        contact.paste(mask, (pad, pad))
        contact = contact.filter(ImageFilter.BoxBlur(max(1.0, min(3.0, lift * 0.3)) / part))
        strength = light.strength
        both = ImageChops.lighter(
            wide.point([round(k * strength) for k in range(256)]),
            contact.point([round(k * 0.42) for k in range(256)]),
        )
        if part > 1:
            both = both.resize((both.width * 2, both.height * 2), Image.Resampling.BILINEAR)
        dark = _unit(both)[: sh + 2 * margin, : sw + 2 * margin]
        left, top = left - margin, top - margin
        x0, y0 = max(0, left), max(0, top)
        x1, y1 = min(self.w, left + dark.shape[1]), min(self.h, top + dark.shape[0])
        if x1 > x0 and y1 > y0:
            self.canvas[y0:y1, x0:x1] *= 1 - dark[y0 - top : y1 - top, x0 - left : x1 - left, None]

    def cable(self, rng: np.random.Generator) -> None:
        """Lays a cable across the picture, over or under the parts drawn so far."""
        w, h = self.w, self.h
        unit = min(w, h)
        wide = unit * rng.uniform(0.012, 0.026)
        a = rng.uniform(0, 2 * math.pi)
        reach = float(math.hypot(w, h))
        t = np.linspace(-1, 1, 90)
        mid = np.array([w * rng.uniform(0.2, 0.8), h * rng.uniform(0.2, 0.8)])
        bend = unit * rng.uniform(0.05, 0.25) * np.sin(t * rng.uniform(3, 9) + rng.uniform(0, 6))
        way = np.array([math.cos(a), math.sin(a)])
        side = np.array([-way[1], way[0]])
        points = mid + t[:, None] * reach * way + bend[:, None] * side

        def stroke(width: float, shift: float) -> U8:
            canvas = Image.new("L", (w * 2, h * 2))
            moved = (points + np.array([self.light.x, self.light.y]) * shift) * 2
            ImageDraw.Draw(canvas).line(moved.ravel().tolist(), fill=255, width=max(1, round(width * 2)), joint="curve")
            return np.asarray(canvas.reduce(2))

        body = stroke(wide, 0)
        solid = body >= 128
        hidden = np.bincount(self.owner[solid], minlength=len(self.areas))
        if any(
            self.classes[k] >= 0 and self.seen[k] - hidden[k] < MIN_VISIBLE * self.areas[k]
            for k in range(1, len(self.areas))
        ):
            return
        number = len(self.areas)
        for k in range(1, number):
            self.seen[k] -= int(hidden[k])
        self.areas.append(int(solid.sum()))
        self.seen.append(int(solid.sum()))
        self.classes.append(-1)
        self.spans.append((0, 0, w, h))
        self.owner[solid] = number
        colours = ((40, 40, 44), (190, 40, 36), (44, 84, 170), (220, 190, 50), (210, 210, 205))
        colour = np.array(_pick(rng, colours))
        shadow = Image.fromarray(stroke(wide, -wide * 0.9)).filter(ImageFilter.BoxBlur(wide * 0.35))
        self.canvas *= 1 - np.asarray(shadow, dtype=np.float32)[..., None] * np.float32(0.45 / 255)
        for cover, tone in (
            (body, colour * 0.62),
            (stroke(wide * 0.66, wide * 0.08), colour * 0.95),
            (stroke(wide * 0.2, wide * 0.2), np.minimum(255, colour * 0.7 + 95)),
        ):
            rows, cols = np.flatnonzero(cover.any(axis=1)), np.flatnonzero(cover.any(axis=0))
            if len(rows) == 0:
                continue
            cut = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
            patch = self.canvas[cut]
            share = cover[cut].astype(np.float32)[..., None] * np.float32(1 / 255)
            patch += (tone.astype(np.float32) - patch) * share

    def boxes(self) -> list[Box]:
        """Gives the boxes of all parts, in the order in which they were put."""
        found: list[Box] = []
        for number in range(1, len(self.areas)):
            if self.classes[number] < 0:
                continue
            x0, y0, x1, y1 = self.spans[number]
            mine = self.owner[y0:y1, x0:x1] == number
            rows, cols = np.flatnonzero(mine.any(axis=1)), np.flatnonzero(mine.any(axis=0))
            found.append(
                (
                    self.classes[number],
                    x0 + int(cols[0]),
                    y0 + int(rows[0]),
                    x0 + int(cols[-1]) + 1,
                    y0 + int(rows[-1]) + 1,
                )
            )
        return found


def _light(rng: np.random.Generator) -> Light:
    """Chooses a lamp and what metal mirrors."""
    a = rng.uniform(0, 2 * math.pi)
    flat = rng.uniform(0.60, 0.74)
    peak = rng.uniform(0.38, 0.62)
    bands = np.interp(
        np.linspace(-1, 1, 256),
        (-1, -0.75, -0.45, -0.2, 0, 0.18, peak - 0.12, peak, peak + 0.1, peak + 0.25, 1.01),
        (
            rng.uniform(0.30, 0.5),
            rng.uniform(0.18, 0.3),
            rng.uniform(0.30, 0.42),
            flat - 0.16,
            flat,
            flat + 0.1,
            0.95,
            rng.uniform(1.25, 1.55),
            1.0,
            rng.uniform(0.68, 0.85),
            rng.uniform(0.45, 0.7),
        ),
    ).astype(np.float32)
    return Light(
        math.cos(a),
        math.sin(a),
        slant=rng.uniform(0.45, 1.3),
        softness=rng.uniform(0.15, 0.6),
        strength=rng.uniform(0.3, 0.62),
        bands=bands,
    )


def draw_part(class_id: int, seed: int, size: float, angle: float, light: Light | None = None) -> Sprite:
    """Draws one part alone.

    Args:
        class_id: Index into ``LABELS``.
        seed: Decides its proportions, variant and material.
        size: Length or diameter in pixels.
        angle: Direction of its long axis in radians.
        light: The scene's light; left out, it comes from the top left.
    """
    if light is None:
        light = _light(np.random.default_rng(0))
    return PAINTERS[class_id](np.random.default_rng(seed), size, angle, light)


def _spots(
    rng: np.random.Generator, w: int, h: int, mode: str, slot: tuple[float, float], piled: bool
) -> list[tuple[float, float, float]]:
    """Gives places to try, best first: (x, y, share that may lie on others)."""
    if mode == "rows":
        jitter = min(w, h) * 0.006
        return [(slot[0] + rng.normal(0, jitter), slot[1] + rng.normal(0, jitter), 0.02)]
    found = []
    for _ in range(14):
        if mode == "heap":
            x, y = rng.normal(slot[0], w * 0.16), rng.normal(slot[1], h * 0.16)
        else:
            x, y = rng.uniform(-0.02, 1.02) * w, rng.uniform(-0.02, 1.02) * h
        found.append((x, y, 0.75 if piled else 0.03))
    return found


def draw_scene(seed: int, size_wh: tuple[int, int]) -> tuple[U8, list[Box]]:
    """Draws one picture.

    Args:
        seed: Any integer from 0; with the size it decides everything.
        size_wh: Width and height in pixels, each at least 96.

    Returns:
        The picture, uint8 (h, w, 3) RGB, and for each part
        ``(class_id, x0, y0, x1, y1)`` in pixels by the rules at the top of this file.
    """
    w, h = size_wh
    rng = np.random.default_rng((int(seed), w, h))
    light = _light(rng)
    unit = min(w, h)
    scene = _Scene(_wear(rng, _bench(rng, w, h)), light)

    mode = _pick(rng, ("scatter", "scatter", "scatter", "scatter", "rows", "heap"))
    count = 0 if rng.random() < 0.04 else int(rng.integers(1, MAX_PARTS + 1))
    general = math.exp(rng.uniform(math.log(0.11), math.log(0.24)))
    angle_of_rows = rng.uniform(0, 2 * math.pi) if rng.random() < 0.3 else 0.0
    slots = [(w * rng.uniform(0.3, 0.7), h * rng.uniform(0.3, 0.7))] * MAX_PARTS
    if mode == "rows":
        count = max(count, 4)
        cols = math.ceil(math.sqrt(count * w / h))
        lines = math.ceil(count / cols)
        general = min(0.24, 0.5 * min(w / cols, h / lines) / unit)
        slots = [((k % cols + 0.5) * w / cols, (k // cols + 0.5) * h / lines) for k in range(count)]

    things = [(k, False) for k in range(count)]
    things += [(k, True) for k in range(int(rng.integers(0, 6)) if mode != "rows" else 0)]
    order = rng.permutation(len(things)) if mode != "rows" else np.arange(len(things))
    cable_at = int(rng.integers(0, len(things) + 1)) if rng.random() < 0.22 else -1
    if mode == "rows":
        cable_at = -1
    for step, index in enumerate(order):
        if step == cable_at:
            scene.cable(rng)
        k, is_clutter = things[int(index)]
        scale = general * math.exp(rng.uniform(-0.45, 0.45)) if mode != "rows" else general
        scale = min(max(scale, 0.08), 0.32)
        angle = rng.uniform(0, 2 * math.pi)
        piled = rng.random() < (0.9 if mode == "heap" else 0.32)
        if is_clutter:
            sprite = _pick(rng, CLUTTER)(rng, unit * min(0.22, scale * rng.uniform(0.8, 1.3)), angle, light)
            scene.place(sprite, -1, _spots(rng, w, h, "scatter", slots[0], False))
            continue
        class_id = int(rng.integers(len(LABELS)))
        if mode == "rows" and rng.random() < 0.8:
            angle = angle_of_rows
        sprite = PAINTERS[class_id](rng, unit * scale * STRETCH[class_id], angle, light)
        scene.place(sprite, class_id, _spots(rng, w, h, mode, slots[k % len(slots)], piled))
    if cable_at == len(things):
        scene.cable(rng)

    return _photograph(rng, scene.canvas), scene.boxes()


def _photograph(rng: np.random.Generator, canvas: F32) -> U8:
    """Turns the drawn scene into a photograph: lamp, lens, sensor and file.

    Args:
        rng: The scene's random numbers.
        canvas: float32 (h, w, 3), 0..255; changed in place.

    Returns:
        uint8 (h, w, 3).
    """
    h, w = canvas.shape[:2]
    unit = min(w, h)
    # Lamp: a slope, a spot and the lens's falling off towards the corners, on a coarse grid.
    ys, xs = np.mgrid[-1:1:24j, -1:1:32j].astype(np.float32)
    a = rng.uniform(0, 2 * math.pi)
    lamp = 1 + rng.uniform(0, 0.28) * (xs * math.cos(a) + ys * math.sin(a))
    if rng.random() < 0.45:
        cx, cy, reach = rng.uniform(-0.7, 0.7), rng.uniform(-0.7, 0.7), rng.uniform(0.5, 1.3)
        spot = np.exp(-(((xs - cx) ** 2 + (ys - cy) ** 2) / reach**2))
        lamp = lamp * (1 - rng.uniform(0.15, 0.5) * (1 - spot))
    if rng.random() < 0.15:
        edge = xs * math.cos(a + 1) + ys * math.sin(a + 1) - rng.uniform(-0.8, 0.8)
        lamp = lamp * (1 - rng.uniform(0.15, 0.45) / (1 + np.exp(edge * rng.uniform(5, 30))))
    lamp = lamp * (1 - rng.uniform(0, 0.22) * (xs * xs + ys * ys) * 0.5)
    exposure = math.exp(rng.normal(0.02, 0.17))
    warmth = rng.normal(0, 0.07)
    gains = np.array([1 + warmth, 1.0, 1 - warmth]) * exposure
    gains[1] *= 1 + rng.normal(0, 0.015)
    field = _resize(lamp.astype(np.float32), w, h, Image.Resampling.BILINEAR)
    canvas *= field[..., None]
    canvas *= gains.astype(np.float32)

    picture = Image.fromarray(np.clip(canvas, 0, 255, out=canvas).astype(np.uint8))
    draw = rng.random()
    if draw < 0.22:
        picture = picture.filter(ImageFilter.BoxBlur(unit * rng.uniform(0.0006, 0.0032)))
    elif draw < 0.32:
        # A moving belt smears along one axis.
        smear = unit * rng.uniform(0.002, 0.007)
        radius = (smear, 0.0) if rng.random() < 0.5 else (0.0, smear)
        picture = picture.filter(ImageFilter.BoxBlur(radius))

    sigma = abs(rng.normal(0, 5.0)) if rng.random() < 0.8 else 0.0
    pixels = np.asarray(picture)
    if sigma > 0.4:
        grain = _noise(rng, h, w, 3) if rng.random() < 0.6 else _noise(rng, h, w, 1)
        noisy = pixels + grain * np.float32(sigma)
        pixels = np.clip(noisy, 0, 255, out=noisy).astype(np.uint8)
    if rng.random() < 0.5:
        store = io.BytesIO()
        Image.fromarray(pixels).save(store, "JPEG", quality=int(rng.integers(35, 93)))
        pixels = np.asarray(Image.open(store))
    return np.ascontiguousarray(pixels)


def scene_size(seed: int) -> tuple[int, int]:
    """Gives the width and height in pixels that belong to a seed, drawn from ``SIZES``."""
    share = np.random.default_rng((int(seed), 1)).random()
    total = 0.0
    for w, h, weight in SIZES:
        total += weight
        if share < total:
            return w, h
    return SIZES[-1][:2]


def _write(task: tuple[str, int]) -> tuple[str, list[Box]]:
    """Draws one scene into a folder and gives its file name and boxes."""
    folder, seed = task
    picture, boxes = draw_scene(seed, scene_size(seed))
    name = f"scene_{seed:07d}.jpg"
    Image.fromarray(picture).save(Path(folder) / name, "JPEG", quality=92)
    return name, boxes


def main() -> None:
    """Writes a folder of pictures and its ``truth.json``."""
    parser = argparse.ArgumentParser(description="Draw scenes of small parts with their boxes.")
    parser.add_argument("out", type=Path, help="folder to write into; made if it is not there")
    parser.add_argument("--count", type=int, default=100, help="how many pictures")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first picture")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tasks = [(str(args.out), args.first_seed + k) for k in range(args.count)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        images = dict(pool.map(_write, tasks, chunksize=8))
    truth = {"labels": list(LABELS), "images": images}
    (args.out / "truth.json").write_text(json.dumps(truth) + "\n", encoding="utf-8")
    print(f"{len(images)} pictures, {sum(map(len, images.values()))} parts in {args.out}")


if __name__ == "__main__":
    main()
