"""The bench's findings as a picture: SVG, written by hand, for it is a few rectangles."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from edgeapp.sinks.writing import whole_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgeapp.gpu.meter import Steps

WIDTH, MARGIN, LINE = 960, 24, 22
BARS = 60
"""Of the histogram."""

COLORS = {"h2d": "#4c78a8", "compute": "#54a24b", "d2h": "#f58518", "decode": "#e45756", "preprocess": "#b279a2",
          "infer": "#54a24b", "postprocess": "#72b7b2"}  # fmt: skip
NAMES = {"h2d": "copy in", "d2h": "copy out"}


def draw(path: str, found: dict[str, Any], steps: Steps | None) -> None:
    """Write the picture: rates, where the time of a batch goes, and the distribution of the latencies.

    Raises:
        CannotWriteError, NotPermittedError: it cannot be written.
    """
    parts = list(_text(MARGIN, 30, f"{found['engine']}, batch {found['batch']}, {found['device']}", 16))
    y = 60
    best = max(mode["images_per_s"] for mode in found["modes"])
    for mode in found["modes"]:
        parts += _text(MARGIN, y + 15, mode["what"])
        parts.append(_bar(340, y, 440 * mode["images_per_s"] / best, LINE - 4, "#4c78a8"))
        parts += _text(350 + 440 * mode["images_per_s"] / best, y + 15, f"{mode['images_per_s']:.1f} images/s")
        y += LINE
    y += LINE
    for mode in found["modes"]:
        if stages := mode.get("stages_ms"):
            title = f"a picture in the mode {mode['mode']}, ms (p50)"
            parts += _timeline(y, title, [(name, ms["p50"]) for name, ms in stages.items()])
            y += 3 * LINE
    if steps is not None and (latency := found.get("latency_ms")):
        first = next(name for name in latency["compute"])
        times = [(name, latency[name][first]) for name in ("h2d", "compute", "d2h")]
        parts += _timeline(y, f"a batch alone, ms ({first})", times)
        y += 3 * LINE
        parts += _histogram(y, steps.total)
        y += 200
    size = f'width="{WIDTH}" height="{y + MARGIN}" viewBox="0 0 {WIDTH} {y + MARGIN}"'
    style = 'font-family="sans-serif" font-size="13"'
    text = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n<rect width="100%" height="100%" fill="white"/>\n'
    with whole_file(path) as file:
        file.write((text + "\n".join(parts) + "\n</svg>\n").encode())


def _timeline(y: int, title: str, times: Sequence[tuple[str, float]]) -> Iterator[str]:
    """One step after the other, as wide as they take long."""
    yield from _text(MARGIN, y + 14, title)
    whole = sum(ms for _, ms in times) or 1.0
    x, label_x = float(MARGIN), float(MARGIN)
    for name, ms in times:
        width = (WIDTH - 2 * MARGIN) * ms / whole
        yield _bar(x, y + LINE, width, 14, COLORS[name])
        x += width
        text = f"{NAMES.get(name, name)} {ms:.3f}"
        yield _bar(label_x, y + LINE + 18, 10, 10, COLORS[name])
        yield from _text(label_x + 14, y + LINE + 28, text)
        label_x += 40 + 8 * len(text)


def _histogram(y: int, values: Sequence[float]) -> Iterator[str]:
    """How many batches took how long; the slowest hundredth is drawn into the last bar."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[int((len(ordered) - 1) * 0.99)]
    step = (high - low) / BARS or 1.0
    counts = [0] * (BARS + 1)
    for value in ordered:
        counts[min(BARS, int((value - low) / step))] += 1
    yield from _text(MARGIN, y + 14, f"latency of {len(ordered)} batches alone, ms; slowest {ordered[-1]:.3f}")
    width = (WIDTH - 2 * MARGIN) / (BARS + 1)
    for i, count in enumerate(counts):
        height = 130 * count / max(counts)
        yield _bar(MARGIN + i * width, y + 155 - height, width - 1, height, "#e45756" if i == BARS else "#4c78a8")
    yield from _text(MARGIN, y + 172, f"{low:.3f}")
    yield from _text(WIDTH - MARGIN - 60, y + 172, f"{high:.3f} +")


def _bar(x: float, y: float, width: float, height: float, color: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" fill="{color}"/>'


def _text(x: float, y: float, text: str, size: int = 13) -> Iterator[str]:
    yield f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}">{escape(text)}</text>'
