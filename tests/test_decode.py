"""Decoding: JPEGs read smaller than they are, many threads, Pillow's memory as an array, memory that stays flat."""

from __future__ import annotations

import gc
import io
import json
import platform
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photos import photo
from PIL import Image
from support import ROOT, Program

from edgeapp import errors
from edgeapp.model import Card
from edgeapp.pixels import pixels_of
from edgeapp.preprocess import Preprocessor
from edgeapp.records import Frame, Letterbox
from edgeapp.sources import FileSource
from edgeapp.sources.pictures import read_picture
from edgeapp.stopping import Stop

LIMIT = 100_000_000
DEMO = ROOT / "edgeapp" / "data" / "demo"

WIDTH, HEIGHT = 1304, 976  # multiples of 8


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    return photo(WIDTH, HEIGHT)


def write(path: Path, image: Image.Image, orientation: int = 1, **options: Any) -> str:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, "JPEG", quality=90, exif=exif, **options)
    return str(path)


def both_ways(path: str, **card: Any) -> tuple[Image.Image, list[np.ndarray], list[Letterbox]]:
    """The reduced picture; network input and letterbox from the exact and from the reduced picture."""
    preprocessor = Preprocessor(Card(**{"task": "detect", "layout": "NHWC", **card}), "uint8")
    inputs, letterboxes = [], []
    for fit in (None, preprocessor.wanted_wh):
        image, picture_wh = read_picture(path, LIMIT, fit=fit)
        inputs.append(np.zeros(preprocessor.shape, np.uint8))
        letterboxes.append(preprocessor.fill(image, picture_wh, inputs[-1]))
    return image, inputs, letterboxes


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio, dB."""
    error = float(((one.astype(np.float64) - other) ** 2).mean())
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


@pytest.mark.parametrize("resizing", ["letterbox", "stretch", "center_crop"])
@pytest.mark.parametrize(("size", "n"), [(420, 2), (210, 4), (105, 8)])
def test_reduced_picture_gives_nearly_the_same_input(
    tmp_path: Path, scene: Image.Image, resizing: str, size: int, n: int
) -> None:
    """Halves, quarters and eighths stay within 40 dB of the exact way, under the same letterbox."""
    path = write(tmp_path / "x.jpg", scene)
    # The whole picture is resized to that width.
    wanted = {
        "letterbox": (size, size), "stretch": (size, size * HEIGHT // WIDTH), "center_crop": (size * 6 // 10,) * 2,
    }[resizing]  # fmt: skip
    image, (exact, reduced), letterboxes = both_ways(path, size_wh=wanted, resize=resizing)
    assert image.size == (WIDTH // n, HEIGHT // n)
    assert psnr(exact, reduced) > 40
    assert letterboxes[0] == letterboxes[1]
    assert letterboxes[0].picture_wh == (WIDTH, HEIGHT)


@pytest.mark.parametrize("kind", ["baseline", "progressive", "greyscale", "CMYK", "4:4:4", "two pictures in one"])
@pytest.mark.parametrize(("width", "height"), [(WIDTH, HEIGHT), (1001, 753), (999, 750)])
def test_reduced_picture_of_every_kind_of_jpeg(
    tmp_path: Path, scene: Image.Image, kind: str, width: int, height: int
) -> None:
    """Odd sizes, progressive, greyscale, CMYK, full chroma and phones' double pictures: reduced, and as faithful."""
    image = scene.crop((0, 0, width, height))
    path = tmp_path / "x.jpg"
    if kind == "two pictures in one":
        image.save(path, "MPO", quality=90, save_all=True, append_images=[image.resize((100, 100))])
    else:
        image = image.convert({"greyscale": "L", "CMYK": "CMYK"}.get(kind, "RGB"))
        write(path, image, progressive=kind == "progressive", subsampling=0 if kind == "4:4:4" else -1)
    reduced, inputs, letterboxes = both_ways(str(path), size_wh=(100, 100))
    assert reduced.mode == "RGB"
    assert reduced.size == (-(-width // 8), -(-height // 8))
    assert psnr(*inputs) > 40
    assert letterboxes[0] == letterboxes[1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("width", "height"), [(1000, 752), (1001, 753), (1004, 750)])
def test_reduced_picture_of_every_orientation(tmp_path: Path, orientation: int, width: int, height: int) -> None:
    """What lies in the picture lies in the same place, to a tenth of a network pixel, also where a side is odd."""
    image = Image.new("RGB", (width, height), (40, 60, 90))
    image.paste((250, 240, 10), (width // 8, height // 8, width // 4, height // 4))
    path = write(tmp_path / "x.jpg", image, orientation)
    wanted = (80, 100) if orientation > 4 else (100, 80)
    reduced, inputs, letterboxes = both_ways(path, size_wh=wanted, resize="stretch")
    assert letterboxes[0] == letterboxes[1]
    assert letterboxes[0].picture_wh == ((height, width) if orientation > 4 else (width, height))
    if width % 8 == height % 8 == 0 or orientation in (1, 5):
        assert max(reduced.size) == -(-width // 8)
    centres = []
    for pixels in inputs:
        weight = pixels[:, :, 0].astype(float) - 40
        rows, columns = np.indices(weight.shape)
        centres.append(((weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()))
    assert centres[0] == pytest.approx(centres[1], abs=0.1)


@pytest.mark.parametrize(
    ("wanted", "size"),
    [((100, 50), (100, 50)), ((101, 50), (200, 100)), ((100, 51), (200, 100)), ((51, 25), (100, 50)),
     ((25, 13), (50, 25)), ((25, 12), (25, 13)), ((1, 1), (25, 13)),
     ((200, 100), (200, 100)), ((400, 200), (200, 100))],
)  # fmt: skip
def test_picture_is_never_decoded_smaller_than_wanted(
    tmp_path: Path, wanted: tuple[int, int], size: tuple[int, int]
) -> None:
    """The largest reduction that leaves at least the wanted pixels on both sides; turned pictures alike."""
    path = write(tmp_path / "x.jpg", Image.new("RGB", (200, 100)))
    image, picture_wh = read_picture(path, LIMIT, fit=lambda _: wanted)
    assert (image.size, picture_wh) == (size, (200, 100))
    path = write(tmp_path / "x.jpg", Image.new("RGB", (200, 100)), orientation=5)
    image, picture_wh = read_picture(path, LIMIT, fit=lambda _: wanted[::-1])
    assert (image.size, picture_wh) == (size[::-1], (100, 200))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_other_formats_are_decoded_in_full(tmp_path: Path, kind: str) -> None:
    """Only JPEG can be decoded smaller."""
    Image.new("RGB", (200, 100), (1, 2, 3)).save(tmp_path / "x", kind)
    image, picture_wh = read_picture(str(tmp_path / "x"), LIMIT, fit=lambda _: (10, 5))
    assert image.size == picture_wh == (200, 100)


def test_limit_of_pixels_is_that_of_the_whole_picture(tmp_path: Path) -> None:
    """What is refused without reduction is refused with it."""
    path = write(tmp_path / "x.jpg", Image.new("RGB", (200, 100)))
    with pytest.raises(errors.DataError, match="200x100 pixels are too many"):
        read_picture(path, 19_999, fit=lambda _: (10, 5))


def demo(program: Program, *words: str | Path) -> list[dict[str, Any]]:
    pictures = sorted(DEMO.glob("*.jpg"))
    done = program("--engine", DEMO / "model.onnx", "--quiet", *words, "--input", *pictures)
    assert done.returncode == 0, done
    return done.lines


def test_demo_finds_the_same_in_reduced_pictures(source_program: Program, tmp_path: Path) -> None:
    """By default halved, with --exact-decode or --save in full: the same parts, sizes and boxes of the picture."""
    reduced, exact, saved = (
        demo(source_program, *words) for words in ((), ("--exact-decode",), ("--save", tmp_path / "out"))
    )
    different = False
    for short, full, drawn in zip(reduced, exact, saved, strict=True):
        with Image.open(full["path"]) as picture, Image.open(tmp_path / "out" / Path(full["path"]).name) as annotated:
            assert full["size_wh"] == short["size_wh"] == list(picture.size) == list(annotated.size)
        assert drawn["detections"] == full["detections"]
        different |= short["detections"] != full["detections"]
        assert len(full["detections"]) > 5
        left = list(short["detections"])
        for one in full["detections"]:
            near = [
                other
                for other in left
                if other["class_id"] == one["class_id"]
                and other["box_xyxy"] == pytest.approx(one["box_xyxy"], abs=2)  # 0.65 of a network pixel
                and other["score"] == pytest.approx(one["score"], abs=0.03)
            ]
            assert near, one
            left.remove(near[0])
        assert not left
    assert different  # else nothing was reduced


def source(names: list[str]) -> FileSource:
    return FileSource(names, max_pixels=LIMIT, stop=Stop())


def test_source_lists_first_and_reads_when_told(tmp_path: Path) -> None:
    """Frames come with their path or error alone; reading fills them, and what is wrong becomes their error."""
    good, bad = write(tmp_path / "good.jpg", Image.new("RGB", (200, 100))), str(tmp_path / "bad.jpg")
    Path(bad).write_bytes(b"\xff\xd8 no picture")
    np.save(tmp_path / "x.npy", np.zeros(3))
    files = source([good, bad, str(tmp_path / "no*.jpg"), str(tmp_path / "x.npy")])
    files.fit = lambda _: (50, 25)
    frames = list(files)
    assert [f.path for f in frames if f.error is None] == [good, bad, str(tmp_path / "x.npy")]
    assert all(f.image is None and f.tensors is None and f.picture_wh is None for f in frames)
    missing = frames[2].error
    for frame in frames:
        files.read(frame)
    assert frames[0].image is not None
    assert (frames[0].image.size, frames[0].picture_wh) == ((50, 25), (200, 100))
    assert frames[0].decode_ms > 0
    assert isinstance(frames[1].error, errors.DataError)
    assert frames[2].error is missing
    assert isinstance(missing, errors.NotFoundError)
    assert frames[3].tensors is not None
    assert (frames[3].image, frames[3].picture_wh) == (None, None)


def with_odd_exif(path: Path) -> str:
    """A picture whose EXIF block names data beyond its end, of which Pillow warns."""
    entry = b"\x0e\x01\x02\x00\x40\x00\x00\x00\x00\x10\x00\x00"  # ImageDescription, 64 bytes at 4096
    Image.new("RGB", (64, 48), (9, 9, 9)).save(path, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4))
    return str(path)


def test_odd_exif_is_passed_over_in_silence(source_program: Program, models: Path, tmp_path: Path) -> None:
    """Nobody is told of an odd EXIF block, as the pixels are what matters."""
    path = with_odd_exif(tmp_path / "x.jpg")
    with pytest.warns(UserWarning, match="Tag data larger|Truncated File Read"), Image.open(path) as image:
        image.getexif()
    done = source_program(
        "--engine", models / "classifier.onnx", "--quiet", "--input", path, env={"PYTHONWARNINGS": "error"}
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # pytest puts its own filter before ours
def test_eight_threads_read_what_one_reads(tmp_path: Path, scene: Image.Image) -> None:
    """Good, reduced, turned, odd, damaged and missing files among each other: every frame gets its own."""
    names = []
    for i in range(8):
        part = scene.crop((i * 20, 0, i * 20 + 300 + i, 220))
        names.append(write(tmp_path / f"{i}.jpg", part, orientation=i + 1))
        part.save(tmp_path / f"{i}.png")
        data = Path(names[-1]).read_bytes()
        (tmp_path / f"{i}-cut.jpg").write_bytes(data[: len(data) // 2])
        (tmp_path / f"{i}-noise.jpg").write_bytes(data[:2] + bytes(range(256)))
        names += [str(tmp_path / f"{i}{end}") for end in (".png", "-cut.jpg", "-noise.jpg", "-missing.jpg")]
        names.append(with_odd_exif(tmp_path / f"{i}-odd.jpg"))
    files = source(names * 4)
    files.fit = lambda wh: (wh[0] // 3, wh[1] // 3)

    def outcome(frame: Frame) -> object:
        files.read(frame)
        if frame.error is not None:
            return type(frame.error), str(frame.error)
        assert frame.image is not None
        return frame.image.size, frame.picture_wh, pixels_of(frame.image)[:, :, :3].tobytes()

    alone = [outcome(frame) for frame in files]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outcome, files)) == alone
    assert sum(isinstance(found[0], type) for found in alone) == 3 * 8 * 4


def is_lent(pixels: np.ndarray) -> bool:
    """Whether the array is Pillow's memory, not NumPy's."""
    return type(pixels.base).__name__ == "_Lent"


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (1920, 1080), (4000, 3000)])
def test_pixels_are_lent_and_those_of_the_picture(size: tuple[int, int]) -> None:
    """(height, width, 4) in Pillow's memory: 12 megapixels as well, read-only, and what is drawn shows."""
    image = Image.effect_noise(size, 90).convert("RGB")
    image.putpixel((size[0] - 1, 0), (1, 2, 3))
    pixels = pixels_of(image)
    assert is_lent(pixels)
    assert (pixels.shape, pixels.dtype) == ((size[1], size[0], 4), np.uint8)
    assert np.array_equal(pixels[:, :, :3], np.asarray(image))
    assert not pixels.flags.writeable
    image.putpixel((0, 0), (7, 8, 9))
    assert pixels[0, 0, :3].tolist() == [7, 8, 9]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "RGBA", "1"])
def test_pixels_of_other_modes_are_rgb(mode: str) -> None:
    """Every mode is converted first."""
    image = photo(40, 30).convert(mode)
    assert np.array_equal(pixels_of(image)[:, :, :3], np.asarray(image.convert("RGB")))


def test_pixels_of_a_decoded_picture_are_lent(tmp_path: Path) -> None:
    """What `read_picture` gives lies in one block, turned or not."""
    for orientation in (1, 6):
        image, _ = read_picture(write(tmp_path / "x.jpg", photo(640, 480), orientation), LIMIT)
        assert is_lent(pixels_of(image))


def test_pixels_in_several_blocks_are_copied() -> None:
    """Where Pillow cannot lend its memory, the same pixels come as a copy."""
    usual = Image.core.get_block_size()
    Image.core.set_block_size(1 << 16)
    try:
        image = photo(200, 200)
    finally:
        Image.core.set_block_size(usual)
    pixels = pixels_of(image)
    assert not is_lent(pixels)
    assert (pixels.shape, pixels.dtype) == ((200, 200, 4), np.uint8)
    assert np.array_equal(pixels[:, :, :3], np.asarray(image))


def test_pixels_stay_when_the_picture_goes() -> None:
    """The array, and any view of it, keeps the memory; other pictures do not get it."""
    image = photo(800, 600)
    expected = np.asarray(image).copy()
    row = pixels_of(image)[300]
    pixels = pixels_of(image)
    del image
    gc.collect()
    others = [Image.new("RGB", (800, 600), (255, 0, 0)) for _ in range(20)]
    assert np.array_equal(pixels[:, :, :3], expected)
    del pixels
    gc.collect()
    others += [Image.new("RGB", (800, 600), (0, 255, 0)) for _ in range(20)]
    assert np.array_equal(row[:, :3], expected[300])


def child(code: str, *words: str) -> Any:
    """What Python code prints as JSON in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


RESIDENT = """
import os
def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6
"""


def test_pixels_give_their_memory_back() -> None:
    """A thousand lent pictures of 5 MB, in turn and with the picture gone first, leave nothing behind."""
    code = RESIDENT + (
        "import json\nfrom PIL import Image\nfrom edgeapp.pixels import pixels_of\n"
        "def turn():\n    image = Image.new('RGB', (1280, 960), 5)\n    lent = pixels_of(image)\n"
        "    other = pixels_of(image)\n    del image\n    assert lent[5, 5, 0] == other[5, 5, 0]\n"
        "for _ in range(20): turn()\nbefore = resident()\nfor _ in range(1000): turn()\n"
        "print(json.dumps(resident() - before))"
    )
    assert child(code) < 6


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is of glibc")
def test_kept_memory_is_used_again_without_new_pages() -> None:
    """After keep_freed a second block of 48 MB, also in a thread, costs no page faults; by default all of them."""
    code = (
        "import json, resource, sys, threading\nfrom edgeapp import memory\n"
        "done = memory.keep_freed() if sys.argv[1] == 'keep' else None\n"
        "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.prctl(41, 1, 0, 0, 0)\n"  # PR_SET_THP_DISABLE
        "libc.malloc.restype = ctypes.c_void_p\n"
        "libc.malloc.argtypes = [ctypes.c_size_t]\nlibc.free.argtypes = [ctypes.c_void_p]\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def use():\n    block = libc.malloc(48 << 20)\n    ctypes.memset(block, 1, 48 << 20)\n    libc.free(block)\n"
        "found = []\ndef work():\n"
        "    use(); use()\n    before = faults()\n    for _ in range(5): use()\n    found.append(faults() - before)\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()\nprint(json.dumps([done, found[0]]))"
    )
    done, faults = child(code, "keep")
    assert done is True
    assert faults < 100
    done, faults = child(code, "default")
    assert faults > 10_000


@pytest.mark.parametrize("threads", [1, 4])
def test_memory_stays_flat_over_many_decodes(tmp_path: Path, scene: Image.Image, threads: int) -> None:
    """Six hundred pictures, reduced, exact, turned and damaged, and their network inputs: nothing piles up."""
    names = [write(tmp_path / f"{i}.jpg", scene, orientation=1 + 5 * i) for i in range(2)]
    scene.resize((300, 200)).save(tmp_path / "x.png")
    (tmp_path / "cut.jpg").write_bytes(Path(names[0]).read_bytes()[:40_000])
    names += [str(tmp_path / "x.png"), str(tmp_path / "cut.jpg")]
    code = RESIDENT + (
        "from edgeapp import memory\nmemory.keep_freed()\nimport json, sys\nimport numpy as np\n"
        "from concurrent.futures import ThreadPoolExecutor\nfrom edgeapp.model import Card\n"
        "from edgeapp.preprocess import Preprocessor\nfrom edgeapp.sources import FileSource\n"
        "from edgeapp.stopping import Stop\n"
        "made = Preprocessor(Card(task='detect', size_wh=(416, 416)), 'float32')\n"
        "exact, reduced = (FileSource(sys.argv[2:], max_pixels=10**8, stop=Stop()) for _ in range(2))\n"
        "reduced.fit = made.wanted_wh\n"
        "def work(item):\n    source, frame = item\n    source.read(frame)\n    if frame.image is not None:\n"
        "        made.fill(frame.image, frame.picture_wh, np.empty(made.shape, made.dtype))\n"
        "def turn():\n    list(pool.map(work, [(s, f) for s in (exact, reduced) for f in s]))\n"
        "with ThreadPoolExecutor(int(sys.argv[1])) as pool:\n    for _ in range(15): turn()\n"
        "    before = resident()\n    for _ in range(60): turn()\n    print(json.dumps(resident() - before))\n"
    )
    assert child(code, str(threads), *names) < 8


def test_decoding_waits_seldom_for_a_busy_thread(tmp_path: Path) -> None:
    """A JPEG is read and decoded in one go, not in pieces of 64 KiB that each wait for the interpreter lock."""
    out = io.BytesIO()
    photo(1920, 1080).save(out, "JPEG", quality=98)
    path = tmp_path / "x.jpg"
    path.write_bytes(out.getvalue())
    pieces = path.stat().st_size // 65536
    assert pieces >= 16
    usual, stop = sys.getswitchinterval(), threading.Event()

    def busy() -> None:
        while not stop.is_set():
            pass

    wait_s = 0.05
    sys.setswitchinterval(wait_s)  # so that each wait for the lock shows
    worker = threading.Thread(target=busy)
    worker.start()
    try:
        frame = Frame(str(path))
        source([str(path)]).read(frame)
    finally:
        stop.set()
        worker.join()
        sys.setswitchinterval(usual)
    assert frame.error is None
    assert frame.decode_ms < 0.6 * pieces * wait_s * 1e3
