"""Batches in flight on a GPU give what the engine gives alone: with and without graphs, for every size of batch.

Needs a Python with PyCUDA and the lean TensorRT, such as ./build.sh setup makes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu.compare import DEMO, PLANS, unpacked
from PIL import Image

from edgeapp import errors, plan
from edgeapp.bootstrap import Trace
from edgeapp.commands import opening
from edgeapp.log import Talk
from edgeapp.records import KEPT, Frame, Result
from edgeapp.settings import Settings
from edgeapp.stopping import Stop

pytest.importorskip("pycuda", reason="PyCUDA is not installed in this Python")
pytest.importorskip("tensorrt_lean_libs", reason="TensorRT lean is not installed in this Python")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def opened(stack: ExitStack, path: Path, **values: Any) -> tuple[opening.Model, Settings]:
    settings = Settings(engine=str(path), **values)
    talk = Talk(quiet=True)
    return opening.open_model(plan.identify(str(path)), settings, Trace(), talk, Stop(), stack, total=None), settings


def pictures(count: int) -> list[Image.Image]:
    """The demo's, turned about, so that no two are the same."""
    files = sorted(DEMO.glob("*.jpg"))
    return [Image.open(files[i % len(files)]).convert("RGB").rotate(i * 7) for i in range(count)]


def detections(model: opening.Model, outputs: dict[str, np.ndarray], letterboxes: list[Any]) -> list[Any]:
    results = [Result(Frame("x"), model.card.task) for _ in letterboxes]
    shown = [(place, box, result) for place, (box, result) in enumerate(zip(letterboxes, results, strict=True))]
    model.postprocess(outputs, shown)
    return [result.detections for result in results]


def alone(model: opening.Model, images: list[Image.Image]) -> list[Any]:
    """One picture after the other, prepared on the CPU, every output read."""
    assert model.preprocess is not None
    found = []
    for image in images:
        tensor = np.zeros((1, *model.preprocess.shape), model.preprocess.dtype)
        letterbox = model.preprocess.fill(image, image.size, tensor[0])
        outputs = model.engine.infer({model.engine.inputs[0].name: tensor})
        found += detections(model, outputs, [letterbox])
    return found


@pytest.mark.parametrize(("preprocess", "mapped"), [("cpu", False), ("gpu", False), ("gpu", True)])
@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "enqueued"])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_batches_in_flight_give_what_the_engine_gives_alone(
    stack: ExitStack, tmp_path: Path, batch: int, graphs: bool, preprocess: str, mapped: bool
) -> None:
    """Full batches and a rest, three in flight, memory used again and again; pictures copied, or read in place."""
    path = unpacked(DEMO / "model.plan.xz", tmp_path)
    model, settings = opened(stack, path, batch=batch, preprocess=preprocess, model_card=str(DEMO / "model.json"))
    images = pictures(2 * 8 * batch // max(1, batch // 2) + 1)
    wanted = alone(model, images)
    assert sum(map(len, wanted)) > len(images)
    assert model.preprocess is not None
    ring = opening.open_ring(model, model.preprocess, settings, stack, hosts=4, graphs=graphs, mapped=mapped)
    assert bool(ring.not_captured) is not graphs
    found: list[Any] = []
    flying: deque[Any] = deque()

    def land() -> None:
        host, letterboxes = flying.popleft()
        ring.finish(host)
        found.extend(detections(model, ring.outputs(host), letterboxes))

    for number, first in enumerate(range(0, len(images), batch)):
        host, some = ring.hosts[number % 4], images[first : first + batch]
        ring.begin(host)
        letterboxes = [ring.fill(host, place, image, image.size) for place, image in enumerate(some)]
        ring.launch(host, len(some))
        flying.append((host, letterboxes))
        if len(flying) == ring.depth:
            land()
    while flying:
        land()
    assert [len(one) for one in found] == [len(one) for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.class_id == b.class_id
            assert a.score == pytest.approx(b.score, abs=5e-3)  # another batch size has other kernels
            assert a.box_xyxy == pytest.approx(b.box_xyxy, abs=2)


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "enqueued"])
@pytest.mark.parametrize("streams", [1, 2, 4])
def test_streams_compute_side_by_side(stack: ExitStack, streams: int, graphs: bool) -> None:
    """Each in a context of its own: every batch gets what the engine gives alone."""
    model, settings = opened(stack, PLANS / "classifier_batch4.plan", preprocess="cpu", streams=streams)
    assert model.preprocess is not None
    (output,) = (spec.name for spec in model.engine.outputs)
    images = pictures(100 * 4)
    wanted = []
    for first in range(0, len(images), 4):
        tensor = np.zeros((4, *model.preprocess.shape), model.preprocess.dtype)
        for place, image in enumerate(images[first : first + 4]):
            model.preprocess.fill(image, image.size, tensor[place])
        wanted.append(model.engine.infer({model.engine.inputs[0].name: tensor})[output])
    hosts = 3 * streams + 1
    ring = opening.open_ring(model, model.preprocess, settings, stack, hosts=hosts, graphs=graphs)
    assert ring.depth == 3 * streams
    flying: deque[Any] = deque()
    found = []
    for number in range(100):
        host = ring.hosts[number % hosts]
        ring.begin(host)
        for place, image in enumerate(images[4 * number : 4 * number + 4]):
            ring.fill(host, place, image, image.size)
        ring.launch(host, 4)
        flying.append(host)
        while len(flying) == ring.depth or (flying and number == 99):
            landed = flying.popleft()
            ring.finish(landed)
            found.append(ring.outputs(landed)[output].copy())
    assert np.array_equal(np.stack(found), np.stack(wanted))


def test_streams_are_refused_where_a_context_wants_its_own_profile(stack: ExitStack, tmp_path: Path) -> None:
    """By TensorRT 8.6, for free dimensions: it is said, and one stream goes on."""
    path = unpacked(DEMO / "model.plan.xz", tmp_path)
    model, settings = opened(stack, path, batch=2, model_card=str(DEMO / "model.json"), streams=2)
    assert model.preprocess is not None
    with pytest.raises(errors.UsageError, match="--streams 2 does not fit"):
        opening.open_ring(model, model.preprocess, settings, stack, hosts=7)
    opening.open_ring(model, model.preprocess, replace(settings, streams=1), stack, hosts=4)


def test_more_boxes_than_the_filter_has_room_for_are_all_there(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the whole head is copied; a later batch with few boxes is filtered again."""
    monkeypatch.setattr(opening, "MOST_CANDIDATES", 8)
    path = unpacked(DEMO / "model.plan.xz", tmp_path)
    model, settings = opened(stack, path, batch=2, model_card=str(DEMO / "model.json"))
    assert model.preprocess is not None
    ring = opening.open_ring(model, model.preprocess, settings, stack, hosts=1)
    for images in (pictures(2), [Image.new("RGB", (640, 480), (99, 99, 99))] * 2, pictures(2)):
        (host,) = ring.hosts
        ring.begin(host)
        letterboxes = [ring.fill(host, place, image, image.size) for place, image in enumerate(images)]
        ring.launch(host, 2)
        ring.finish(host)
        outputs = ring.outputs(host)
        found = detections(model, outputs, letterboxes)
        assert ("output0" in outputs) == (len(found[0]) > 1)
        assert ("output0" in outputs) != (KEPT in outputs)
        assert [len(one) for one in found] == [len(one) for one in alone(model, images)]


def test_pictures_that_do_not_fit_into_the_memory_are_made_smaller_first(stack: ExitStack, tmp_path: Path) -> None:
    """Sixteen large pictures in a batch for sixteen: some cross whole, some as the CPU resized them; answers agree."""
    path = unpacked(DEMO / "model.plan.xz", tmp_path)
    model, settings = opened(stack, path, batch=16, model_card=str(DEMO / "model.json"))
    assert model.preprocess is not None
    images = [image.resize((3000, 2250)) for image in pictures(16)]
    wanted = alone(model, images)
    ring = opening.open_ring(model, model.preprocess, settings, stack, hosts=1)
    (host,) = ring.hosts
    ring.begin(host)
    letterboxes = [ring.fill(host, place, image, image.size) for place, image in enumerate(images)]
    ring.launch(host, 16)
    ring.finish(host)
    found = detections(model, ring.outputs(host), letterboxes)
    assert [len(one) for one in found] == [len(one) for one in wanted]


def test_ring_gives_back_what_it_took(stack: ExitStack) -> None:
    """Device memory, page-locked memory, streams, events and graphs: a hundred rings leave nothing."""
    import pycuda.driver as cuda

    model, settings = opened(stack, PLANS / "yolov8.plan", batch=4, model_card=None)
    assert model.preprocess is not None
    free = []
    for _ in range(100):
        with ExitStack() as once:
            opening.open_ring(model, model.preprocess, replace(settings, preprocess="gpu"), once, hosts=4)
        free.append(cuda.mem_get_info()[0])
    assert min(free[-20:]) >= min(free[5:25]) - (8 << 20)
