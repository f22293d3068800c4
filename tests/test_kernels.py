"""The kernels' arithmetic on the CPU, not a GPU: edgeapp.cu compiled as C++ by cuda_on_cpu.h, against the reference.

tests/gpu/test_kernels.py does the same on a real GPU.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import zipfile
from pathlib import Path

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
    picture,
)  # fmt: skip
from support import ROOT

from edgeapp import errors
from edgeapp.fitting import factor_and_shift, fitting
from edgeapp.gpu import filter as gpu_filter
from edgeapp.gpu import preprocess as gpu_preprocess
from edgeapp.gpu.kernels import ARCHIVE, TILE_WH, fitting_images
from edgeapp.model import Card
from edgeapp.records import CANDIDATE

KERNELS = ROOT / "edgeapp" / "gpu" / "kernels"


class OnCpu:
    """edgeapp.cu as C++: a stand-in for Kernels, Preparer and Filter, which need a GPU."""

    def __init__(self, folder: Path) -> None:
        library = folder / "kernels.so"
        subprocess.run(
            [
                "g++", "-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-shared",
                "-fPIC", "-I", KERNELS, "-o", library, ROOT / "tests" / "cuda_on_cpu.cpp",
            ],
            check=True,
        )  # fmt: skip
        self.library = ctypes.CDLL(str(library))

    def _run(self, name: str, grid: tuple[int, int, int], *arrays: np.ndarray) -> None:
        getattr(self.library, f"run_{name}")(
            (ctypes.c_int * 3)(*grid), *[ctypes.c_void_p(a.ctypes.data) for a in arrays]
        )

    def prepare(self, card: Card, dtype: str, pixels: np.ndarray, pictures: np.ndarray) -> np.ndarray:
        channels = 1 if card.color_order == "GRAY" else 3
        size = len(pictures) * channels * card.size_wh[0] * card.size_wh[1] * MEMORY_DTYPES[dtype].itemsize
        tensor = np.full(size, 171, np.uint8)  # nothing may stay
        grid = gpu_preprocess.blocks(card.size_wh, len(pictures))
        name = "prepare_antialias" if card.antialias else "prepare_plain"
        self._run(name, grid, pixels, pictures, tensor, gpu_preprocess.network(card, dtype))
        return tensor

    def filter(
        self, head: str, transposed: bool, array: np.ndarray, threshold: float, most: int, nms: gpu_filter.Nms | None
    ) -> np.ndarray:
        batch = len(array)
        name, values, blocks = gpu_filter.plan_filter(head, transposed, array.shape, str(array.dtype), threshold, most)
        picked = np.full(gpu_filter.picked_nbytes(batch, most), 171, np.uint8)
        picked[: 4 * batch] = 0  # what Kernels.zero does
        self._run(name, (blocks, 1, batch), array, picked, values)
        if nms is None:
            return picked
        results = np.full(gpu_filter.kept_nbytes(batch, nms), 171, np.uint8)
        self._run("suppress", (1, 1, batch), picked, results, gpu_filter.suppression(nms, most))
        return results


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> OnCpu:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return OnCpu(tmp_path_factory.mktemp("kernels"))


# --- what is committed ------------------------------------------------------------------------------------------------


def test_archive_is_made_from_the_source_beside_it() -> None:
    """Who changes edgeapp.cu runs `./build.sh kernels`; PTX of CUDA 12.2 and machine code are there."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        digest = hashlib.sha256((KERNELS / "edgeapp.cu").read_bytes()).hexdigest()
        assert archive.read("source.sha256").decode() == digest, "run ./build.sh kernels"
        ptx = archive.read("compute_60.ptx")
        assert b".version 8.2\n" in ptx  # what r535, the driver of CUDA 12.2, reads
        assert b".target sm_60\n" in ptx
        assert ptx.endswith(b"}\n\n")
        for name in archive.namelist():
            if name.endswith(".cubin"):
                assert archive.read(name)[:4] == b"\x7fELF"
    assert ARCHIVE.stat().st_size < 400_000


@pytest.mark.parametrize(
    ("capability", "first"),
    [
        ((6, 1), "compute_60.ptx"), ((7, 0), "compute_60.ptx"), ((7, 5), "sm_75.cubin"), ((8, 0), "sm_80.cubin"),
        ((8, 6), "sm_86.cubin"), ((8, 7), "sm_87.cubin"), ((8, 9), "sm_89.cubin"), ((9, 0), "sm_90.cubin"),
        ((10, 0), "sm_100.cubin"), ((10, 3), "sm_100.cubin"), ((11, 0), "sm_110.cubin"), ((12, 0), "sm_120.cubin"),
        ((12, 1), "sm_120.cubin"), ((13, 0), "compute_60.ptx"),
    ],
)  # fmt: skip
def test_image_for_a_gpu_is_its_own_or_ptx(capability: tuple[int, int], first: str) -> None:
    """Machine code of the GPU's own major version goes first, PTX is what is left when it is refused."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        images = fitting_images(archive.namelist(), capability)
    assert images[0] == first
    assert images[-1] == "compute_60.ptx"
    assert fitting_images(images, (5, 2)) == []


def test_structures_are_as_large_in_python_as_in_the_kernels(on_cpu: OnCpu) -> None:
    """What is copied to the GPU is what the kernels read."""
    assert on_cpu.library.size_of_picture() == gpu_preprocess.PICTURE.itemsize
    assert on_cpu.library.size_of_network() == gpu_preprocess.NETWORK.itemsize
    assert on_cpu.library.size_of_head() == gpu_filter.HEAD.itemsize
    assert on_cpu.library.size_of_suppression() == gpu_filter.SUPPRESSION.itemsize
    assert on_cpu.library.most_suppressed() == gpu_filter.MOST_SUPPRESSED
    assert on_cpu.library.size_of_candidate() == CANDIDATE.itemsize
    source = (KERNELS / "edgeapp.cu").read_text()
    assert f"#define TILE_WIDTH {TILE_WH[0]}\n#define TILE_HEIGHT {TILE_WH[1]}\n" in source


# --- pictures -> network input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("antialias", [True, False], ids=["antialias", "plain"])
@pytest.mark.parametrize(("resize", "fraction"), FITS)
@pytest.mark.parametrize("size_wh", NETWORKS_WH, ids=str)
def test_pixels_are_within_one_grey_level_of_pillow(
    on_cpu: OnCpu, size_wh: tuple[int, int], resize: str, fraction: float, antialias: bool
) -> None:
    """Up, down, odd sizes, single pixels, ribbons, in one batch; antialiased they are equal."""
    images = [picture(*size, seed) for seed, size in enumerate(SIZES_WH)]
    made = card(size_wh=size_wh, resize=resize, crop_fraction=fraction, antialias=antialias, layout="NHWC")
    found, wanted = check_prepare(on_cpu.prepare, images, made, "uint8", rgbx=True)
    check_levels(found, wanted, images, made)


@pytest.mark.parametrize("seed", range(24))
def test_random_pictures_are_within_one_grey_level_of_pillow(on_cpu: OnCpu, seed: int) -> None:
    """Any size into any size, three bytes a pixel at any address."""
    rng = np.random.default_rng(seed)
    images = [picture(*(int(n) for n in np.exp(rng.uniform(0, 6.5, 2))), int(rng.integers(0, 1000))) for _ in range(5)]
    made = card(
        size_wh=tuple(rng.integers(1, 130, 2).tolist()),
        resize=str(rng.choice(["letterbox", "stretch", "center_crop"])),
        crop_fraction=float(rng.uniform(0.05, 1)),
        antialias=bool(seed % 2),
        color_order=str(rng.choice(["RGB", "BGR", "GRAY"])),
        layout=str(rng.choice(["NCHW", "NHWC"])),
        pad_value=int(rng.integers(0, 256)),
    )
    rgbx = seed % 3 == 0
    gap = 8 if rgbx else int(rng.integers(0, 9))
    found, wanted = check_prepare(on_cpu.prepare, images, made, "uint8", rgbx=rgbx, gap=gap)
    check_levels(found, wanted, images, made)


@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize("antialias", [True, False], ids=["antialias", "plain"])
@pytest.mark.parametrize("resize", ["letterbox", "center_crop"])
def test_picture_decoded_smaller_is_within_one_grey_level(on_cpu: OnCpu, resize: str, antialias: bool, n: int) -> None:
    """The part that is taken of what was decoded at 1/n begins and ends between pixels."""
    images = [picture(*size, 4) for size in [(97, 61), (131, 40), (64, 64)]]
    made = card(resize=resize, antialias=antialias, layout="NHWC")
    found, wanted = check_prepare(on_cpu.prepare, images, made, "uint8", rgbx=True, n=n)
    largest, share = grey_levels(found, wanted)
    assert largest <= 1
    assert share < 0.02


@pytest.mark.parametrize(("dtype", "layout", "order"), layouts())
def test_every_layout_order_and_dtype_is_exact(on_cpu: OnCpu, dtype: str, layout: str, order: str) -> None:
    """Where nothing is resized every bit is the reference's; a place that nobody uses is zeros."""
    mean = 0.45 if order == "GRAY" else (0.485, 0.456, 0.406)
    std = 0.22 if order == "GRAY" else (0.229, 0.224, 0.225)
    made = card(
        size_wh=(40, 24), layout=layout, color_order=order, scale=1 / 255, pad_value=114,
        mean=mean if isinstance(mean, tuple) else (mean,), std=std if isinstance(std, tuple) else (std,),
    )  # fmt: skip
    images = [picture(40, 24, 4), None, picture(40, 20, 8), None]
    found, wanted = check_prepare(on_cpu.prepare, images, made, dtype, rgbx=False, gap=1)
    assert found.tobytes() == wanted.tobytes()
    assert not found[1].any()
    assert found[2].any()


def test_values_too_large_for_float16_become_infinity(on_cpu: OnCpu) -> None:
    """As in NumPy."""
    made = card(size_wh=(16, 16), scale=1000.0)
    pixels = np.full((16, 16, 3), 70, np.uint8)
    pictures = np.zeros(1, gpu_preprocess.PICTURE)
    where = fitting(16, 16, made)
    pictures[0] = gpu_preprocess.picture_row(
        where, (16, 16), antialias=True, offset=0, row_bytes=48, pixel_bytes=3
    )  # fmt: skip
    assert np.isposinf(on_cpu.prepare(made, "float16", pixels, pictures).view(np.float16)).all()


def test_no_picture_at_all_gives_zeros(on_cpu: OnCpu) -> None:
    """A batch of unused places reads no pixel."""
    made = card(mean=(3.0,))
    pictures = np.zeros(2, gpu_preprocess.PICTURE)
    assert not on_cpu.prepare(made, "float32", np.zeros(0, np.uint8), pictures).any()


def test_gpu_refuses_what_the_reference_refuses() -> None:
    """An int32 input takes no picture; two numbers for three channels fit nothing."""
    with pytest.raises(errors.ConfigurationError, match="int32"):
        gpu_preprocess.network(card(), "int32")
    for values in ({"mean": (0.1, 0.2)}, {"std": (0.1, 0.2, 0.3), "color_order": "GRAY"}):
        with pytest.raises(errors.ConfigurationError, match="numbers"):
            factor_and_shift(card(**values))


# --- dense detector output -> candidates ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("boxes", "classes"), [(126, 3), (126, 80), (126, 1), (1, 2), (32, 33)], ids=lambda value: str(value)
)
def test_filtered_head_is_the_decoded_head(on_cpu: OnCpu, head: str, dtype: type, boxes: int, classes: int) -> None:
    """Candidates are those of the reference to the bit, whatever the threshold; too many are counted."""
    array = dense(head, dtype, boxes, classes, classes)
    for threshold in (0.0, 0.25, 0.3, 0.7, 1.0):
        check_filter(on_cpu.filter, head, array, threshold, 128)
    counts = check_filter(on_cpu.filter, head, array, 0.0, 5)
    assert counts == [boxes, boxes]


@pytest.mark.parametrize("head", HEADS)
def test_float16_thresholds_are_exact(on_cpu: OnCpu, head: str) -> None:
    """A score of just the threshold passes, the one below does not, whether float16 has the threshold or not."""
    scores = np.arange(np.float16(0.3).view(np.int16) - 20, np.float16(0.3).view(np.int16) + 20, dtype=np.int16)
    array = dense(head, np.float16, 40, 1, 0)
    if head == "yolov8":
        array[:, 4] = scores.view(np.float16)
    else:
        array[:, :, 4] = scores.view(np.float16)
        array[:, :, 5:] = 1
    for threshold in (0.3, float(np.float16(0.3)), 0.3001):
        counts = check_filter(on_cpu.filter, head, array, threshold, 64)
        assert 0 < counts[0] < 40


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("head", HEADS)
def test_scores_that_are_no_numbers_pass_or_fail_as_in_the_reference(on_cpu: OnCpu, head: str, dtype: type) -> None:
    """NaN, infinities and numbers below zero from a broken model."""
    rng = np.random.default_rng(5)
    array = dense(head, dtype, 126, 7, 5)
    odd = rng.choice([np.nan, np.inf, -np.inf, -1.0, -0.0, 2.0], array.shape).astype(dtype)
    array = np.where(rng.uniform(0, 1, array.shape) < 0.1, odd, array)
    if head == "yolov8":
        array[:, 4:, :9] = -1
    else:
        array[:, :9, -7:] = -1
    with np.errstate(all="ignore"):
        for threshold in (0.0, 0.5):
            check_filter(on_cpu.filter, head, np.ascontiguousarray(array), threshold, 128)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("head", NMS_HEADS)
@pytest.mark.parametrize(("boxes", "classes"), NMS_SIZES)
def test_boxes_that_stay_are_those_of_the_reference(
    on_cpu: OnCpu, head: str, dtype: type, boxes: int, classes: int
) -> None:
    """To the bit and in its order: crowds, ties, boxes just as far apart as allowed, boxes that are none."""
    array = crowd(head, dtype, boxes, classes, boxes)
    with np.errstate(all="ignore"):
        for threshold, iou_threshold, keep in NMS_RULES:
            check_nms(on_cpu.filter, head, array, threshold, 1024, gpu_filter.Nms(iou_threshold, keep))


def test_no_box_and_too_many_boxes_leave_none(on_cpu: OnCpu) -> None:
    check_limits(on_cpu.filter)
