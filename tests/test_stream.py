"""Streams of JPEGs: cut into pictures whatever lies between; all of them or the newest, errors where they belong."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from serving import until
from support import Program

from edgeapp.sources import stream
from edgeapp.sources.stream import Splitter

Noise = Callable[[int, int], Image.Image]


def jpeg(picture: Image.Image, **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, "JPEG", **options)
    return data.getvalue()


@pytest.fixture(scope="session")
def pictures(noise: Noise) -> list[bytes]:
    """Of every kind that cutting must understand."""
    picture = noise(90, 60)
    thumbnail = jpeg(picture.resize((16, 16)))
    plain = jpeg(picture)
    with_thumbnail = plain[:2] + b"\xff\xe1" + (len(thumbnail) + 8).to_bytes(2, "big") + b"Exif\0\0" + thumbnail
    return [
        plain,
        with_thumbnail + plain[2:],
        jpeg(picture, progressive=True),
        jpeg(picture, restart_marker_blocks=1),
        jpeg(picture.convert("L"), quality=98),
        plain[:2] + b"\xff\xff\xff" + plain[2:],  # filling before a marker
        jpeg(picture, comment=b"\xff\xd9\xff\xd8\xff"),
    ]


def cut(data: bytes, *sizes: int) -> list[bytes]:
    """What a splitter gives for pieces of these sizes, and of the last one again and again."""
    splitter, found, at = Splitter(), [], 0
    for number in range(len(data)):
        size = sizes[min(number, len(sizes) - 1)]
        found += splitter.feed(data[at : at + size])
        at += size
        if at >= len(data):
            break
    return [*found, *filter(None, [splitter.rest()])]


@pytest.mark.parametrize(
    "between", [b"", b"\r\n--frame\r\nContent-Type: image/jpeg\r\n\r\n", b"\0" * 5000, b"\xff\xd8\xd9"]
)
@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
def test_pictures_come_out_as_they_went_in(pictures: list[bytes], between: bytes, size: int) -> None:
    """Whatever the pieces are, and whatever a camera says between two pictures."""
    data = between + between.join(pictures)
    assert cut(data, size) == pictures


def test_last_picture_without_its_end_is_given_too(pictures: list[bytes]) -> None:
    """Whoever decodes it says that it is cut short."""
    assert cut(pictures[0] + pictures[2][:-40], 100) == [pictures[0], pictures[2][:-40]]


def test_picture_that_breaks_off_ends_where_the_next_one_begins(pictures: list[bytes]) -> None:
    """One frame of a camera is lost, not the ones after it."""
    found = cut(pictures[0] + pictures[4][:30] + pictures[2] + pictures[3], 64)
    assert found[0] == pictures[0]
    assert found[-1] == pictures[3]
    assert b"".join(found) == pictures[0] + pictures[4][:30] + pictures[2] + pictures[3]


def test_garbage_neither_raises_nor_grows(pictures: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Random bytes, and pictures with random bytes in them; what has no end is given up at a size."""
    monkeypatch.setattr(stream, "MOST_BYTES", 50_000)
    chance, splitter = random.Random(1), Splitter()
    for _ in range(3000):
        data = bytearray(chance.choice(pictures) if chance.random() < 0.7 else chance.randbytes(300))
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.choice((0, 0xFF, 0xD8, 0xD9, 0xDA, chance.randrange(256)))
        for found in splitter.feed(bytes(data)):
            assert found.startswith(stream.START)
        assert len(splitter._data) < 150_000


@pytest.mark.parametrize(
    "piece", [b"\xff" * 4096, b"\xff" * 4095 + b"\0", b"\xff\xd8" * 2048, b"\xff\x01" * 2048, b"\xff\xe0\0\2" * 1024],
    ids=["filling", "bytes", "beginnings", "markers", "segments"],
)  # fmt: skip
@pytest.mark.parametrize("begin", [b"\xff\xd8\xff", b"\xff\xd8\xff\xda\0\2"], ids=["segments", "scan"])
def test_time_to_cut_grows_with_the_bytes_alone(begin: bytes, piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two megabytes that try to be looked at again and again; by the square it would take minutes."""
    monkeypatch.setattr(stream, "MOST_BYTES", 32 << 20)
    splitter, began_s = Splitter(), time.process_time()
    list(splitter.feed(begin))
    for _ in range(512):
        list(splitter.feed(piece))
    assert time.process_time() - began_s < 60


def test_stream_gives_what_files_give(program: Program, models: Path, tmp_path: Path, pictures: list[bytes]) -> None:
    """Same pictures, same results, in order; an error stays with its frame."""
    damaged = pictures[2][:200] + b"\xff\xd9"
    given = [*pictures[:3], damaged, *pictures[3:]]
    for number, data in enumerate(given, 1):
        (tmp_path / f"stdin-{number:06d}.jpg").write_bytes(data)
    words = ("--engine", models / "classifier.onnx", "--quiet", "--batch", "2")
    of_files = program(*words, "--input", "stdin-*.jpg")
    of_stream = program(*words, "--input", "mjpeg:-", input=b"junk".join(given))
    (tmp_path / "stdin.mjpeg").write_bytes(b"".join(given))
    of_file = program(*words, "--input", "mjpeg:stdin.mjpeg")
    assert [done.returncode for done in (of_files, of_stream, of_file)] == [1, 1, 1]
    wanted, *found = ([told(line) for line in done.stdout.splitlines()] for done in (of_files, of_stream, of_file))
    assert len(wanted) == len(given)
    assert "error" in wanted[3]
    assert found == [wanted, wanted]


def told(line: str) -> dict[str, Any]:
    result = dict(json.loads(line))
    result.pop("times_ms", None)
    if "error" in result:
        result["error"] = result["error"]["what"]  # why it is damaged may depend on what follows
    return result


def test_live_takes_the_newest_and_counts_the_others(program: Program, models: Path, pictures: list[bytes]) -> None:
    """Nothing is waited for, nothing comes out of order, and the last one is never left out."""
    words = ("--engine", models / "classifier.onnx", "--input", "mjpeg:-", "--live")
    done = program(*words, input=b"".join(pictures[:1] * 3000))
    assert done.returncode == 0, done
    numbers = [int(json.loads(line)["path"][6:12]) for line in done.stdout.splitlines()]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 3000
    left_out = re.search(r"(\d+) left out for newer ones", done.stderr)
    assert left_out, done
    assert len(numbers) + int(left_out[1]) == 3000


def test_live_stream_is_as_new_as_its_last_picture(
    source_program: Program, models: Path, pictures: list[bytes], tmp_path: Path
) -> None:
    """Pictures that wait in the pipe are passed over: a result is never older than the pictures under way."""
    fifo = tmp_path / "camera.mjpeg"
    os.mkfifo(fifo)
    words = ("--engine", models / "classifier.onnx", "--input", f"mjpeg:{fifo}", "--live", "--quiet")
    with source_program.start(*words, stdout=subprocess.PIPE) as child, fifo.open("wb", buffering=0) as camera:
        assert child.stdout is not None
        seen = []
        for _ in range(3):
            camera.write(pictures[0] * 20)
            seen.append(int(json.loads(child.stdout.readline())["path"][7:13]))
            while seen[-1] % 20:
                seen.append(int(json.loads(child.stdout.readline())["path"][7:13]))
        camera.close()
        assert child.wait(60) == 0
    assert seen[-1] == 60


@pytest.mark.parametrize("live", [(), ("--live",)])
def test_signal_ends_a_stream_that_is_silent(
    program: Program, models: Path, pictures: list[bytes], live: tuple[str, ...]
) -> None:
    """What came is done and told; then the process ends by the signal."""
    words = ("--engine", models / "classifier.onnx", "--input", "mjpeg:-", *live)
    child = program.start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(pictures[0])
    child.stdin.flush()
    assert b"000001" in child.stdout.readline()
    child.send_signal(signal.SIGTERM)
    began_s = time.monotonic()
    _, said = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGTERM, said
    assert time.monotonic() - began_s < 30
    assert b"stopped after 1 input" in said


def test_live_stream_that_a_signal_ends_tells_what_was_left_out(
    source_program: Program, models: Path, pictures: list[bytes]
) -> None:
    """A camera has no other end."""
    words = ("--engine", models / "classifier.onnx", "--input", "mjpeg:-", "--live")
    child = source_program.start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(pictures[0] * 3000)
    child.stdin.flush()
    while b"stdin-003000" not in child.stdout.readline():
        pass
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=60)
    assert re.search(rb"stopped after .*; \d+ left out for newer ones", said), said


@pytest.mark.parametrize("more", [(), ("--live",), ("--max-delay-ms", "50"), ("--live", "--max-delay-ms", "50")])
def test_batch_is_not_waited_for_longer_than_asked(
    source_program: Program, models: Path, pictures: list[bytes], more: tuple[str, ...]
) -> None:
    """--max-delay-ms holds for pictures as for paths; by default nothing is waited for."""
    words = ("--engine", models / "classifier.onnx", "--batch", "8", "--input", "mjpeg:-")
    child = source_program.start(*words, *more, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(pictures[0])
    child.stdin.flush()
    assert b"000001" in child.stdout.readline()
    child.communicate(timeout=60)
    assert child.returncode == 0


def test_results_never_replace_the_stream(
    source_program: Program, models: Path, pictures: list[bytes], tmp_path: Path
) -> None:
    """As with files, the folder of a recording included."""
    recording = tmp_path / "camera" / "x.npz"
    recording.parent.mkdir()
    recording.write_bytes(pictures[0])
    (tmp_path / "link.jsonl").symlink_to(recording)
    for words in (("--output", "camera/x.npz"), ("--output", "link.jsonl"), ("--save", "camera")):
        done = source_program("--engine", models / "yolov8.onnx", "--input", "mjpeg:camera/x.npz", *words)
        assert done.returncode == 64, done
    assert recording.read_bytes() == pictures[0]
    assert len(list(recording.parent.iterdir())) == 1


def test_saved_pictures_of_a_stream_are_written_twice(
    source_program: Program, models: Path, pictures: list[bytes], tmp_path: Path
) -> None:
    """Into the same folder again: there is no file that they could overwrite."""
    words = ("--engine", models / "yolov8.onnx", "--input", "mjpeg:-", "--save", "out", "--quiet")
    for _ in range(2):
        assert source_program(*words, input=pictures[0] + pictures[2]).returncode == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["stdin-000001.jpg", "stdin-000002.jpg"]


@pytest.mark.parametrize(
    ("words", "stdin", "code", "said"),
    [
        (("--input", "mjpeg:-"), b"", 65, "there is no JPEG in it"),
        (("--input", "mjpeg:-", "--live"), b"a path\n" * 99, 65, "there is no JPEG in it"),
        (("--input", "mjpeg:none"), b"", 66, "cannot read none"),
        (("--input", "mjpeg:"), b"", 64, "names no stream"),
        (("--input", "mjpeg:."), b"", 65, "it is a folder"),
        (("--input", "mjpeg:-", "x.jpg"), b"", 64, "cannot be beside other inputs"),
        (("--input", "x.jpg", "--live"), b"", 64, "--live goes with a stream"),
    ],
)
def test_wrong_streams_are_told(
    program: Program, models: Path, words: tuple[str, ...], stdin: bytes, code: int, said: str
) -> None:
    """What, why and what to do."""
    done = program("--engine", models / "classifier.onnx", *words, input=stdin)
    assert done.returncode == code, done
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_stream_waits_for_its_writer(
    source_program: Program, models: Path, tmp_path: Path, pictures: list[bytes]
) -> None:
    """A FIFO that nobody has opened for writing yet is no end."""
    fifo = tmp_path / "camera"
    os.mkfifo(fifo)
    words = ("--engine", models / "classifier.onnx", "--input", "mjpeg:camera", "--quiet")
    child = source_program.start(*words, stdout=subprocess.PIPE)
    try:
        until(lambda: str(fifo) in open_files(child.pid), "it opened the FIFO")
        time.sleep(0.3)
        assert child.poll() is None
        fifo.write_bytes(pictures[0] + pictures[1])
        out, _ = child.communicate(timeout=60)
    finally:
        child.kill()
    assert (child.returncode, out.count(b"camera-00000")) == (0, 2)


def open_files(pid: int) -> list[str]:
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found
