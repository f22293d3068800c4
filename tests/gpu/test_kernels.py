"""The kernels of edgeapp.cu on a real GPU, against the CPU reference: the cases of tests/test_kernels.py and larger.

Needs a Python with PyCUDA, NumPy, Pillow and pytest, and no TensorRT. It also prints how fast they are:

    PYTHONPATH=.:tests python tests/gpu/test_kernels.py
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from kernel_cases import (
    FITS,
    HEADS,
    MEMORY_DTYPES,
    NETWORKS_WH,
    NMS_HEADS,
    NMS_RULES,
    NMS_SIZES,
    SIZES_WH,
    card,
    check_filter,
    check_levels,
    check_limits,
    check_nms,
    check_prepare,
    crowd,
    dense,
    grey_levels,
    layouts,
    pack,
    picture,
    reference,
)

from edgeapp.gpu.driver import LIBRARY, Driver
from edgeapp.gpu.filter import Filter, Nms
from edgeapp.gpu.kernels import Kernels
from edgeapp.gpu.preprocess import Preparer
from edgeapp.model import Card
from edgeapp.records import COUNTS

cuda = pytest.importorskip("pycuda.driver", reason="PyCUDA or a driver is missing", exc_type=ImportError)

NOTHING = 171
"""What memory holds before a kernel writes there."""


class OnGpu:
    """Launches with memory of their own; needs the CUDA context."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self.kernels = Kernels(capability)
        self.stream = cuda.Stream()

    def upload(self, array: np.ndarray) -> Any:
        memory = cuda.mem_alloc(max(array.nbytes, 4))
        if array.nbytes:
            cuda.memcpy_htod(memory, array)
        return memory

    def empty(self, size: int) -> Any:
        memory = cuda.mem_alloc(size)
        cuda.memset_d8(memory, NOTHING, size)
        return memory

    def download(self, memory: Any, size: int) -> np.ndarray:
        self.stream.synchronize()
        found = np.empty(size, np.uint8)
        cuda.memcpy_dtoh(found, memory)
        return found

    def prepare(self, card: Card, dtype: str, pixels: np.ndarray, pictures: np.ndarray) -> np.ndarray:
        size = tensor_bytes(card, dtype, len(pictures))
        memory = [self.upload(pixels), self.upload(pictures), self.empty(size)]
        Preparer(card, dtype, self.kernels).launch(*map(int, memory), len(pictures), self.stream.handle)
        return self.download(memory[2], size)

    def filter(
        self, head: str, transposed: bool, array: np.ndarray, threshold: float, most: int, nms: Nms | None
    ) -> np.ndarray:
        made = Filter(head, transposed, array.shape, str(array.dtype), threshold, most, self.kernels, nms)
        memory = [self.upload(array), self.empty(made.nbytes(len(array)))]
        made.launch(*map(int, memory), len(array), self.stream.handle)
        return self.download(memory[1], made.results_nbytes(len(array)))


def tensor_bytes(card: Card, dtype: str, batch: int) -> int:
    channels = 1 if card.color_order == "GRAY" else 3
    return batch * channels * card.size_wh[0] * card.size_wh[1] * MEMORY_DTYPES[dtype].itemsize


@pytest.fixture(scope="module")
def capability() -> Iterator[tuple[int, int]]:
    """The GPU's; its primary context is current, as edgeapp.bootstrap makes it."""
    Driver().initialise()
    cuda.init()
    device = cuda.Device(0)
    context = device.retain_primary_context()
    context.push()
    yield device.compute_capability()
    context.pop()
    context.detach()


@pytest.fixture(scope="module", params=["machine code", "PTX"])
def on_gpu(request: pytest.FixtureRequest, capability: tuple[int, int]) -> Iterator[OnGpu]:
    """With the image for this GPU, and with the one for GPUs to come."""
    made = OnGpu(capability if request.param == "machine code" else (6, 0))
    assert made.kernels.image.endswith(".cubin" if request.param == "machine code" else ".ptx")
    yield made
    made.kernels.close()


@pytest.mark.parametrize("antialias", [True, False], ids=["antialias", "plain"])
@pytest.mark.parametrize(("resize", "fraction"), FITS)
@pytest.mark.parametrize("size_wh", [*NETWORKS_WH, (640, 640)], ids=str)
def test_pixels_are_within_one_grey_level_of_pillow(
    on_gpu: OnGpu, size_wh: tuple[int, int], resize: str, fraction: float, antialias: bool
) -> None:
    """Up, down, odd sizes, single pixels, ribbons, in one batch; antialiased they are equal."""
    images = [picture(*size, seed) for seed, size in enumerate([*SIZES_WH, (1920, 1080), (4000, 3000)])]
    made = card(size_wh=size_wh, resize=resize, crop_fraction=fraction, antialias=antialias, layout="NHWC")
    for rgbx in (True, False):
        found, wanted = check_prepare(on_gpu.prepare, images, made, "uint8", rgbx=rgbx, gap=4)
        check_levels(found, wanted, images, made)


@pytest.mark.parametrize(("dtype", "layout", "order"), layouts())
def test_every_layout_order_and_dtype_is_exact(on_gpu: OnGpu, dtype: str, layout: str, order: str) -> None:
    """Where nothing is resized every bit is the reference's; a place that nobody uses is zeros."""
    made = card(
        size_wh=(40, 24), layout=layout, color_order=order, mean=(0.45,) if order == "GRAY" else (0.485, 0.456, 0.406),
        std=(0.22,) if order == "GRAY" else (0.229, 0.224, 0.225),
    )  # fmt: skip
    images = [picture(40, 24, 4), None, picture(40, 20, 8), None]
    found, wanted = check_prepare(on_gpu.prepare, images, made, dtype, rgbx=False, gap=1)
    assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("boxes", "classes"), [(126, 3), (126, 80), (126, 1), (1, 2), (32, 33), (8400, 80)])
def test_filtered_head_is_the_decoded_head(on_gpu: OnGpu, head: str, dtype: type, boxes: int, classes: int) -> None:
    """Candidates are those of the reference to the bit, whatever the threshold; too many are counted."""
    if head == "yolox" and boxes > 126:
        pytest.skip("the grid of the cases has 126 cells")
    array = dense(head, dtype, boxes, classes, classes)
    for threshold in (0.0, 0.25, 0.3, 0.7, 1.0):
        check_filter(on_gpu.filter, head, array, threshold, boxes + 2)
    assert check_filter(on_gpu.filter, head, array, 0.0, 5) == [boxes, boxes]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("head", HEADS)
def test_scores_that_are_no_numbers_pass_or_fail_as_in_the_reference(on_gpu: OnGpu, head: str, dtype: type) -> None:
    """NaN, infinities and numbers below zero from a broken model."""
    rng = np.random.default_rng(5)
    array = dense(head, dtype, 126, 7, 5)
    odd = rng.choice([np.nan, np.inf, -np.inf, -1.0, -0.0, 2.0], array.shape).astype(dtype)
    array = np.ascontiguousarray(np.where(rng.uniform(0, 1, array.shape) < 0.1, odd, array))
    with np.errstate(all="ignore"):
        for threshold in (0.0, 0.5):
            check_filter(on_gpu.filter, head, array, threshold, 128)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("head", NMS_HEADS)
@pytest.mark.parametrize(("boxes", "classes"), NMS_SIZES)
def test_boxes_that_stay_are_those_of_the_reference(
    on_gpu: OnGpu, head: str, dtype: type, boxes: int, classes: int
) -> None:
    """To the bit and in its order: crowds, ties, boxes just as far apart as allowed, boxes that are none."""
    array = crowd(head, dtype, boxes, classes, boxes)
    with np.errstate(all="ignore"):
        for threshold, iou_threshold, keep in NMS_RULES:
            check_nms(on_gpu.filter, head, array, threshold, 1024, Nms(iou_threshold, keep))


def test_no_box_and_too_many_boxes_leave_none(on_gpu: OnGpu) -> None:
    check_limits(on_gpu.filter)


class Graph:
    """What was launched on a stream, captured: by libcuda, for PyCUDA has no graphs."""

    def __init__(self, stream: Any, launch: Callable[[], None]) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self._stream = ctypes.c_void_p(stream.handle)
        graph, self._ready = ctypes.c_void_p(), ctypes.c_void_p()
        thread_local = 1
        assert self._library.cuStreamBeginCapture_v2(self._stream, thread_local) == 0
        launch()
        assert self._library.cuStreamEndCapture(self._stream, ctypes.byref(graph)) == 0
        instantiate = self._library.cuGraphInstantiateWithFlags
        assert instantiate(ctypes.byref(self._ready), graph, ctypes.c_ulonglong(0)) == 0

    def run(self) -> None:
        assert self._library.cuGraphLaunch(self._ready, self._stream) == 0


def test_captured_preparation_takes_pictures_of_other_sizes(on_gpu: OnGpu) -> None:
    """Sizes, addresses and the number of pictures are read when the graph runs."""
    made = card(layout="NHWC")
    batches = [
        [picture(300, 200, 0), picture(20, 90, 1), None],
        [None, picture(64, 64, 5), picture(1, 1, 2)],
        [picture(700, 31, 8), None, None],
    ]
    size = tensor_bytes(made, "uint8", 3)
    packed = [pack(images, made, rgbx=False) for images in batches]
    pixels, pictures, tensor = on_gpu.empty(1 << 20), on_gpu.empty(packed[0][1].nbytes), on_gpu.empty(size)
    preparer = Preparer(made, "uint8", on_gpu.kernels)
    graph = Graph(
        on_gpu.stream,
        lambda: preparer.launch(int(pixels), int(pictures), int(tensor), 3, on_gpu.stream.handle),
    )
    for images, (some_pixels, some_pictures, _) in zip(batches, packed, strict=True):
        cuda.memcpy_htod(pixels, some_pixels)
        cuda.memcpy_htod(pictures, some_pictures)
        graph.run()
        found = on_gpu.download(tensor, size)
        wanted, _ = reference(images, made, "uint8")
        assert grey_levels(found.reshape(wanted.shape), wanted)[0] <= 1


def test_captured_filter_starts_from_zero_every_time(on_gpu: OnGpu) -> None:
    """The counts of one run are not added to those of the next."""
    array = dense("yolov8", np.float16, 126, 3, 0)
    made = Filter("yolov8", False, array.shape, "float16", 0.5, 128, on_gpu.kernels, Nms(0.5, 50))
    tensor, results = on_gpu.upload(array), on_gpu.empty(made.nbytes(2))
    graph = Graph(on_gpu.stream, lambda: made.launch(int(tensor), int(results), 2, on_gpu.stream.handle))
    counts = []
    for _ in range(3):
        graph.run()
        counts.append(made.tensors(on_gpu.download(results, made.results_nbytes(2)), 2)[COUNTS].tolist())
    assert counts[0][0] > 0
    assert counts == counts[:1] * 3


# --- how fast ---------------------------------------------------------------------------------------------------------


def microseconds(stream: Any, launch: Callable[[], None], times: int = 200) -> float:
    """Of one launch out of many back to back, by CUDA events."""
    launch()
    start, end = cuda.Event(), cuda.Event()
    start.record(stream)
    for _ in range(times):
        launch()
    end.record(stream)
    end.synchronize()
    return start.time_till(end) * 1e3 / times


def measure() -> None:
    Driver().initialise()
    cuda.init()
    device = cuda.Device(0)
    context = device.retain_primary_context()
    context.push()
    try:
        gpu = OnGpu(device.compute_capability())
        print(f"{device.name()}, {gpu.kernels.image}\n\n| kernel | us | GB/s |\n|---|---|---|")
        for batch in (1, 8):
            for size, net in (((1920, 1080), 640), ((4000, 3000), 640), ((640, 360), 640), ((256, 256), 224)):
                for antialias in (True, False):
                    for rgbx in (True, False):
                        made = card(size_wh=(net, net), antialias=antialias)
                        pixels, pictures, _ = pack([picture(*size, 0)] * batch, made, rgbx=rgbx)
                        tensor = gpu.empty(tensor_bytes(made, "float16", batch))
                        memory = [gpu.upload(pixels), gpu.upload(pictures), tensor]
                        preparer = Preparer(made, "float16", gpu.kernels)
                        time = microseconds(
                            gpu.stream,
                            lambda p=preparer, m=memory, b=batch: p.launch(*map(int, m), b, gpu.stream.handle),
                        )
                        moved = pixels.nbytes + tensor_bytes(made, "float16", batch)
                        name = f"{batch} x {size[0]}x{size[1]} {'RGBX' if rgbx else 'RGB'} -> {net}"
                        kind = "antialias" if antialias else "plain"
                        print(f"| {name} float16, {kind} | {time:.1f} | {moved / time / 1e3:.0f} |")
            for head in HEADS[:3]:
                boxes = 25200 if head == "yolov5" else 8400
                for dtype in (np.float32, np.float16):
                    array = np.repeat(dense(head, dtype, boxes, 80, 0)[:1], batch, 0)
                    transposed = head.endswith("transposed")
                    name = head.removesuffix("_transposed")
                    made = Filter(name, transposed, array.shape, str(array.dtype), 0.9, 1024, gpu.kernels)
                    memory = [gpu.upload(array), gpu.empty(made.nbytes(batch))]
                    time = microseconds(
                        gpu.stream, lambda f=made, m=memory, b=batch: f.launch(*map(int, m), b, gpu.stream.handle)
                    )
                    print(f"| {batch} x {head} {boxes} {array.dtype} | {time:.1f} | {array.nbytes / time / 1e3:.0f} |")
        gpu.kernels.close()
    finally:
        context.pop()
        context.detach()


if __name__ == "__main__":
    measure()
