"""What decoding costs: exact and reduced, with kept memory and without, lent pixels and copies; prints tables.

    python tests/bench_decode.py             # two minutes
    python tests/bench_decode.py --reduced   # half a minute: only exact and reduced to 640, pair by pair
    python tests/bench_decode.py --growth    # resident memory over 2,000 decodes

Every number is made in a process of its own, turn about (A, B, A, B ...), and is the median of their medians.
Milliseconds are CPU time, pictures a second are by the wall clock. The pictures are drawn (tests/photos.py): HD
1920x1080 and 12 MP 4000x3000, 4:2:0, quality 85. A time goes from the file to the network's float32 input (letterbox,
antialiased).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benching import beside, in_child, turn_about

PICTURES = {"HD": (1920, 1080), "12 MP": (4000, 3000)}
SIZES = (224, 640)
TURNS, REPEATS = 5, 12


def median_ms(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    times = []
    for _ in range(REPEATS + 2):
        started = clock()
        work()
        times.append(clock() - started)
    return statistics.median(times[2:]) * 1e3


def one(path: str, size: int, exact: bool, kept: bool, threads: int, wall: bool) -> float:
    """Milliseconds a picture, with so many threads at work."""
    from edgeapp import memory

    if kept:
        assert memory.keep_freed()
    import numpy as np

    from edgeapp.model import Card
    from edgeapp.preprocess import Preprocessor
    from edgeapp.records import Frame
    from edgeapp.sources import FileSource
    from edgeapp.stopping import Stop

    preprocessor = Preprocessor(Card(task="detect", size_wh=(size, size)), "float32")
    source = FileSource([path], max_pixels=10**9, stop=Stop())
    source.fit = None if exact else preprocessor.wanted_wh
    batch = np.zeros((threads, *preprocessor.shape), np.float32)

    def work(place: int) -> None:
        for _ in range(2):
            frame = Frame(path)
            source.read(frame)
            assert frame.picture_wh is not None
            preprocessor.fill(frame.image, frame.picture_wh, batch[place])

    with ThreadPoolExecutor(threads) as pool:
        clock = time.perf_counter if wall else time.process_time
        return median_ms(lambda: list(pool.map(work, range(threads))), clock) / (2 * threads)


def pixels(path: str, lent: bool, kept: bool) -> float:
    """Milliseconds from a decoded picture to an array of its pixels."""
    from edgeapp import memory

    if kept:
        assert memory.keep_freed()
    import numpy as np

    from edgeapp.pixels import pixels_of
    from edgeapp.sources.pictures import read_picture

    image, _ = read_picture(path, 10**9)
    return median_ms((lambda: pixels_of(image)) if lent else (lambda: np.asarray(image)), time.perf_counter)


def growth(folder: str, threads: int) -> list[float]:
    """Resident megabytes after each 200 of 2,000 decodes, exact, reduced, turned and damaged among each other."""
    from edgeapp import memory

    memory.keep_freed()
    import numpy as np

    from edgeapp.model import Card
    from edgeapp.preprocess import Preprocessor
    from edgeapp.records import Frame
    from edgeapp.sources import FileSource
    from edgeapp.stopping import Stop

    preprocessor = Preprocessor(Card(task="detect", size_wh=(640, 640)), "float32")
    exact, reduced = (FileSource([folder], max_pixels=10**9, stop=Stop()) for _ in range(2))
    reduced.fit = preprocessor.wanted_wh

    def work(item: tuple[FileSource, Frame]) -> None:
        source, frame = item
        source.read(frame)
        if frame.image is not None:
            assert frame.picture_wh is not None
            preprocessor.fill(frame.image, frame.picture_wh, np.empty(preprocessor.shape, np.float32))
            frame.image = None

    found = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(10):
            done = 0
            while done < 200:
                items = [(source, frame) for source in (exact, reduced) for frame in source]
                list(pool.map(work, items))
                done += len(items)
            with open("/proc/self/statm") as file:
                found.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
    return found


def draw(folder: Path) -> dict[str, str]:
    from photos import photo

    for name, size in PICTURES.items():
        photo(*size).save(folder / f"{name}.jpg", quality=85)
    return {name: str(folder / f"{name}.jpg") for name in PICTURES}


def tables(files: dict[str, str]) -> None:
    print("| file to input, CPU ms | exact | reduced | ratio | exact, memory not kept | reduced, memory not kept |")
    print("|---|---|---|---|---|---|")
    for name, path in files.items():
        for size in SIZES:
            cases = [(path, size, exact, kept, 1, False) for kept in (True, False) for exact in (True, False)]
            exact, reduced, exact_plain, reduced_plain = turn_about("bench_decode.one", cases, TURNS)
            row = f"{exact:.1f} | {reduced:.1f} | {reduced / exact:.2f} | {exact_plain:.1f} | {reduced_plain:.1f}"
            print(f"| {name} to {size} | {row} |", flush=True)
    print("\n| file to input of 640, pictures a second | 1 thread | 2 threads | ratio |\n|---|---|---|---|")
    for name, path in files.items():
        for exact in (True, False):
            single, double = turn_about(
                "bench_decode.one", [(path, 640, exact, True, threads, True) for threads in (1, 2)], TURNS
            )
            row = f"{1e3 / single:.1f} | {1e3 / double:.1f} | {single / double:.2f}"
            print(f"| {name}, {'exact' if exact else 'reduced'} | {row} |", flush=True)
    print("\n| pixels as an array, ms | lent | np.asarray | np.asarray, memory not kept |\n|---|---|---|---|")
    for name, path in files.items():
        lent, copied, copied_plain = turn_about(
            "bench_decode.pixels", [(path, True, True), (path, False, True), (path, False, False)], TURNS
        )
        print(f"| {name} | {lent:.4f} | {copied:.2f} | {copied_plain:.2f} |", flush=True)


def pairs(files: dict[str, str]) -> None:
    print("| file to input of 640, CPU ms | exact | reduced | ratio | at best: exact | reduced | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name, path in files.items():
        times = []
        for _ in range(2 * TURNS):
            exact, reduced = (in_child("bench_decode.one", path, 640, exact, True, 1, False) for exact in (True, False))
            times.append((exact, reduced))
        print(f"| {name} | {beside(times)} |", flush=True)


def growths(folder: Path, files: dict[str, str]) -> None:
    from PIL import Image

    data = Path(files["HD"]).read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(files["HD"]) as image:
        image.save(folder / "turned.jpg", quality=85, exif=exif)
        image.resize((640, 360)).save(folder / "small.png")
    print("| resident MB after 200, 400 ... 2,000 decodes | |\n|---|---|")
    for threads in (1, 8):
        found = in_child("bench_decode.growth", str(folder), threads)
        print(f"| {threads} thread{'s' if threads > 1 else ''} | {', '.join(f'{n:.0f}' for n in found)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reduced", action="store_true")
    parser.add_argument("--growth", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = draw(folder)
        print(", ".join(f"{key}: {os.path.getsize(path) / 1e6:.2f} MB" for key, path in files.items()) + "\n")
        if arguments.growth:
            growths(folder, files)
        elif arguments.reduced:
            pairs(files)
        else:
            tables(files)


if __name__ == "__main__":
    main()
