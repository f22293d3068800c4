"""Picture -> network input, against arithmetic done another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeapp import errors
from edgeapp.fitting import fitting, reduction
from edgeapp.model import Card
from edgeapp.postprocess.detect import to_picture
from edgeapp.preprocess import Preprocessor, resize
from edgeapp.records import Letterbox

Noise = Callable[[int, int], Image.Image]


def card(**values: Any) -> Card:
    return Card(**{"task": "detect", "size_wh": (64, 64), "scale": 1.0, **values})


def make(image: Image.Image, dtype: str = "uint8", **values: Any) -> tuple[np.ndarray, Letterbox]:
    """The input of one picture, written over rubbish."""
    preprocessor = Preprocessor(card(**values), dtype)
    out = np.full(preprocessor.shape, 77, preprocessor.dtype)
    return out, preprocessor.fill(image, image.size, out)


def usual(image: Image.Image, dtype: str, **values: Any) -> np.ndarray:
    """The input of one picture as most scripts make it: paste into a canvas, then arithmetic on all of it."""
    wanted, mode = card(**values), "L" if values.get("color_order") == "GRAY" else "RGB"
    plan, image = fitting(*image.size, wanted), image.convert(mode)
    canvas = Image.new(mode, wanted.size_wh, (wanted.pad_value,) * len(mode) if mode == "RGB" else wanted.pad_value)
    canvas.paste(resize(image, plan.inner_wh, antialias=wanted.antialias, box=plan.box), (plan.left, plan.top))
    pixels = np.asarray(canvas).reshape(*wanted.size_wh[::-1], len(mode))
    if wanted.color_order == "BGR":
        pixels = pixels[:, :, ::-1]
    if dtype != "uint8":
        factor = np.float32(wanted.scale) / np.asarray(wanted.std, np.float32)
        shift = -np.asarray(wanted.mean, np.float32) / np.asarray(wanted.std, np.float32)
        pixels = (pixels.astype(np.float32) * factor + shift).astype(dtype)
    return pixels if wanted.layout == "NHWC" else pixels.transpose(2, 0, 1)


def bilinear(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Plain bilinear with half-pixel centres and clamped edges, written from its definition."""

    def axis(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
        low = np.floor(x)
        return (
            np.clip(low, 0, n_in - 1).astype(int),
            np.clip(low + 1, 0, n_in - 1).astype(int),
            x - low,
        )

    y0, y1, fy = axis(image.shape[0], height)
    x0, x1, fx = axis(image.shape[1], width)
    image = image.astype(np.float64)
    top = image[y0][:, x0] * (1 - fx[None, :, None]) + image[y0][:, x1] * fx[None, :, None]
    bottom = image[y1][:, x0] * (1 - fx[None, :, None]) + image[y1][:, x1] * fx[None, :, None]
    return top * (1 - fy[:, None, None]) + bottom * fy[:, None, None]


@pytest.mark.parametrize("size", [(33, 21), (64, 48), (200, 150), (640, 480)])
def test_resize_plain_is_bilinear_by_definition(noise: Noise, size: tuple[int, int]) -> None:
    """Without antialiasing the pixels are those of the formula, within rounding."""
    image = noise(160, 120)
    found = np.asarray(resize(image, size, antialias=False)).astype(float)
    assert np.abs(found - bilinear(np.asarray(image), *size)).max() < 1.001  # Pillow cuts the fraction off


def test_resize_antialiased_averages(noise: Noise) -> None:
    """Antialiased shrinking looks at every pixel: a thin line survives as grey."""
    image = Image.new("RGB", (160, 160))
    image.paste((255, 255, 255), (80, 0, 81, 160))
    thin = np.asarray(resize(image, (16, 16), antialias=True))
    assert 10 < thin.max() < 60
    assert np.asarray(resize(image, (16, 16), antialias=False)).max() in (0, 255, 128, 127)


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (64, 64), (30, 20), (1000, 3), (3, 1000), (65, 64)])
def test_letterbox_keeps_all_and_centres(size: tuple[int, int]) -> None:
    """The picture fills one side, the border is grey and even, and boxes come back exactly."""
    image = Image.new("RGB", size, (250, 10, 20))
    pixels, letterbox = make(image, pad_value=114, layout="NHWC")
    assert pixels.shape == (64, 64, 3)
    inner = (pixels == (250, 10, 20)).all(2)
    columns, rows = np.flatnonzero(inner.any(0)), np.flatnonzero(inner.any(1))
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    assert max(right - left, bottom - top) == 64
    assert abs(left - (64 - right)) <= 1
    assert abs(top - (64 - bottom)) <= 1
    assert (pixels[~inner] == 114).all()
    back = to_picture(np.array([[left, top, right, bottom]], np.float32), np.zeros(1, np.int64), [letterbox])
    assert np.allclose(back, [[0, 0, *size]], atol=1e-3)


def test_center_crop_is_resize_then_cut(noise: Noise) -> None:
    """The cut equals scaling the shorter side to 256 and cutting 224, as torchvision does."""
    image = noise(400, 300)
    fitted, letterbox = make(image, size_wh=(224, 224), resize="center_crop", crop_fraction=0.875, layout="NHWC")
    scaled = image.resize((341, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(scaled.crop((58, 16, 58 + 224, 240))).astype(int)
    assert np.abs(fitted - expected).max() <= 1
    assert letterbox.scale_xy == pytest.approx((341 / 400, 256 / 300))


def test_center_crop_of_a_ribbon_takes_no_huge_memory() -> None:
    """A 100,000 x 2 picture is cut before it is enlarged."""
    fitted, _ = make(Image.new("RGB", (100_000, 2)), size_wh=(224, 224), resize="center_crop")
    assert fitted.shape == (3, 224, 224)
    assert not fitted.any()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_preprocessor_layout_order_and_scale(layout: str, order: str, dtype: str) -> None:
    """(pixel * scale - mean) / std for each channel, in the wanted layout; uint8 stays as it is."""
    image = Image.new("RGB", (64, 64), (10, 20, 30))
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    tensor, _ = make(image, dtype, scale=1 / 255, mean=mean, std=std, layout=layout, color_order=order)
    assert tensor.dtype == dtype
    assert tensor.shape == ((3, 64, 64) if layout == "NCHW" else (64, 64, 3))
    pixel = np.array((10, 20, 30) if order == "RGB" else (30, 20, 10), float)
    wanted = pixel if dtype == "uint8" else (pixel / 255 - mean) / np.array(std)
    found = tensor[:, 5, 7] if layout == "NCHW" else tensor[5, 7]
    assert found == pytest.approx(wanted, abs=2e-3 if dtype == "float16" else 1e-5)


def test_preprocessor_grey_has_one_channel(noise: Noise) -> None:
    """GRAY gives one channel of luminance."""
    tensor, _ = make(noise(64, 64), "float32", color_order="GRAY")
    assert tensor.shape == (1, 64, 64)
    assert np.array_equal(tensor[0], np.asarray(noise(64, 64).convert("L")))


def test_preprocessor_int32_input_is_refused() -> None:
    """A picture is never stuffed into a tensor of another kind."""
    with pytest.raises(errors.ConfigurationError, match="int32"):
        Preprocessor(card(), "int32")


@pytest.mark.parametrize("resizing", ["letterbox", "stretch", "center_crop"])
@pytest.mark.parametrize("order", ["RGB", "BGR", "GRAY"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("size", [(200, 100), (33, 77), (64, 40)])
def test_fill_gives_the_bits_of_the_usual_way(
    noise: Noise, resizing: str, order: str, dtype: str, size: tuple[int, int]
) -> None:
    """Faster, but not another number: the tensor equals canvas, float32 arithmetic and cast, bit for bit."""
    grey = order == "GRAY"
    for layout, mean in (("NCHW", (0.0,)), ("NHWC", (0.45,) if grey else (0.485, 0.456, 0.406))):
        values: dict[str, Any] = {
            "size_wh": (64, 40), "resize": resizing, "color_order": order, "layout": layout,
            "scale": 1 / 255, "mean": mean, "std": (0.22,) if grey else (0.229, 0.224, 0.225),
        }  # fmt: skip
        found, _ = make(noise(*size), dtype, **values)
        assert np.array_equal(found, usual(noise(*size), dtype, **values))


def test_fill_leaves_the_rest_of_a_batch_alone_and_clears_its_own_border(noise: Noise) -> None:
    """One place of a batch is written whole, padding too, whatever an earlier picture left there."""
    preprocessor = Preprocessor(card(), "float32")
    batch = np.zeros((3, *preprocessor.shape), np.float32)
    preprocessor.fill(noise(200, 50), (200, 50), batch[1])
    preprocessor.fill(noise(50, 200), (50, 200), batch[1])
    assert np.array_equal(batch[1], make(noise(50, 200), "float32")[0])
    assert not batch[0].any()
    assert not batch[2].any()


@pytest.mark.parametrize("wanted", [(100, 50), (101, 51), (5, 3), (8, 8), (1303, 977)])
def test_reduction_is_told_from_the_sizes(wanted: tuple[int, int]) -> None:
    """A picture that can be halved has another size at each reduction; sizes are rounded up."""
    for n in (1, 2, 4, 8):
        if min(wanted) >= n:
            assert reduction((-(-wanted[0] // n), -(-wanted[1] // n)), wanted) == n
    with pytest.raises(ValueError, match="no part of"):
        reduction((wanted[0] + 1, wanted[1]), wanted)


@pytest.mark.parametrize(
    ("resizing", "wanted"), [("letterbox", (64, 32)), ("stretch", (64, 40)), ("center_crop", (92, 46))]
)
def test_wanted_size_is_that_of_the_resized_picture(resizing: str, wanted: tuple[int, int]) -> None:
    """The whole picture after resizing; all of it where plain bilinear takes single pixels."""
    values = {"size_wh": (64, 40), "resize": resizing}
    assert Preprocessor(card(**values), "uint8").wanted_wh((400, 200)) == wanted
    assert Preprocessor(card(**values, antialias=False), "uint8").wanted_wh((400, 200)) == (400, 200)


@pytest.mark.parametrize(("order", "mean"), [("GRAY", (0.1, 0.2, 0.3)), ("RGB", (0.1, 0.2))])
def test_preprocessor_mean_for_other_channels_is_refused(order: str, mean: tuple[float, ...]) -> None:
    """Three numbers do not fit one channel, nor two any picture."""
    with pytest.raises(errors.ConfigurationError, match="mean has"):
        Preprocessor(card(color_order=order, mean=mean), "float32")
