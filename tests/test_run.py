"""The main job from outside: pictures and tensors in, answers out, as source tree and frozen."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import make_models
import numpy as np
import pytest
from PIL import Image
from support import Program, plain_png

from edgeapp import errors
from edgeapp.records import Detection, Frame, Result
from edgeapp.sinks.pictures import draw

Noise = Callable[[int, int], Image.Image]
ULTRALYTICS_NAMES = ("bolt", "nut", "gear")


def test_detect_prints_one_json_line_per_picture(program: Program, models: Path, picture: Path) -> None:
    """Path, size, detections in pixels of the original picture, times; exit 0."""
    done = program("--engine", models / "ultralytics.onnx", "--input", picture)
    assert done.returncode == 0, done
    line = done.line
    assert line["schema"] == 1
    assert line["path"] == str(picture)
    assert line["size_wh"] == [96, 64]
    assert line["task"] == "detect"
    # The 96x64 picture is laid into 64x64 by 2/3, 11 pixels below the top.
    expected = [make_models.BOXES[i] for i in make_models.KEPT]
    top = round((64 - round(64 * 2 / 3)) / 2 - 0.1)
    for found, (x0, y0, x1, y1, class_id, score) in zip(line["detections"], expected, strict=True):
        assert found["class_id"] == class_id
        assert found["label"] == ULTRALYTICS_NAMES[class_id]
        assert found["score"] == pytest.approx(score, abs=1e-3)
        scale_y = round(64 * 2 / 3) / 64
        wanted = [x0 * 1.5, (y0 - top) / scale_y, x1 * 1.5, min(64, (y1 - top) / scale_y)]
        assert found["box_xyxy"] == pytest.approx(wanted, abs=0.02)
    assert set(line["times_ms"]) == {"decode", "preprocess", "infer", "postprocess"}
    assert "1 input in" in done.stderr


def test_classify_names_the_colour(program: Program, models: Path, tmp_path: Path) -> None:
    """Each picture gets its true colour first, with a card beside the model's name."""
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(make_models.COLORS))
    colors = {
        "red": (255, 0, 0),
        "green": (0, 255, 0),
        "blue": (0, 0, 255),
        "bright": (255, 255, 255),
    }
    pictures = [plain_png(tmp_path / f"{name}.png", rgb) for name, rgb in colors.items()]
    done = program(
        "--engine", models / "classifier.onnx", "--labels", labels, "--mean", "0", "--std", "1", "--top-k", "2",
        "--input", *pictures,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert [line["classes"][0]["label"] for line in done.lines] == list(colors)
    assert all(len(line["classes"]) == 2 for line in done.lines)


@pytest.mark.parametrize("batch", ["1", "3", "16"])
def test_batches_answer_as_single_pictures(source_program: Program, models: Path, tmp_path: Path, batch: str) -> None:
    """The batch size changes no answer and no order; the last batch may be short."""
    for i in range(7):
        plain_png(tmp_path / f"{i}.png", ((255, 0, 0), (0, 255, 0), (0, 0, 255))[i % 3])
    done = source_program("--engine", models / "classifier.onnx", "--input", tmp_path, "--batch", batch, "--quiet")
    assert [line["classes"][0]["class_id"] for line in done.lines] == [0, 1, 2, 0, 1, 2, 0]
    assert done.stderr == ""


def test_fixed_batch_engine_is_padded(source_program: Program, models: Path, tmp_path: Path) -> None:
    """A model built for four takes five pictures in two runs."""
    for i in range(5):
        plain_png(tmp_path / f"{i}.png", (0, 0, 255))
    engine = models / "classifier_batch4.onnx"
    done = source_program("--engine", engine, "--input", tmp_path)
    assert [line["classes"][0]["class_id"] for line in done.lines] == [2] * 5
    done = source_program("--engine", engine, "--input", tmp_path, "--batch", "5")
    assert done.returncode == 64


def test_raw_npz_in_and_out(program: Program, models: Path, tmp_path: Path) -> None:
    """Input tensors by name, every output tensor by name, equal to NumPy's own arithmetic."""
    rng = np.random.default_rng(0)
    image = rng.normal(0, 1, (2, 3, 40, 56)).astype(np.float32)
    np.savez(tmp_path / "in.npz", image=image, scale=np.float32([1, 2]), shift=np.int32([0, 100]))
    done = program(
        "--engine",
        models / "multi_io.onnx",
        "--input",
        "in.npz",
        "--task",
        "raw",
        "--output",
        "out.npz",
    )
    assert done.returncode == 0, done
    with np.load(tmp_path / "out.npz") as out:
        assert set(out.files) == {"features", "winner", "bright"}
        assert out["features"].dtype == np.float32
        assert out["winner"].dtype == np.int32
        assert out["bright"].dtype == np.bool_
        features = out["features"]
        assert np.array_equal(out["winner"], features.argmax(1) + np.array([0, 100])[:, None, None])
        assert np.array_equal(out["bright"], features.mean((1, 2, 3)) > 0.1)
    assert done.stdout == ""


def test_several_inputs_get_their_stem_in_the_npz(source_program: Program, models: Path, tmp_path: Path) -> None:
    """STEM/NAME, and STEM~2 when a stem comes twice; .npy feeds the only input."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.save(
            tmp_path / folder / "x.npy",
            np.full((1, 3, 32, 32), 1 if folder == "a" else 2, np.float32),
        )
    done = source_program("--engine", models / "conv.onnx", "--input", "a/x.npy", "b/x.npy", "--output", "out.npz")
    assert done.returncode == 0, done
    with np.load(tmp_path / "out.npz") as out:
        assert set(out.files) == {"x/y", "x~2/y"}
        assert not np.array_equal(out["x/y"], out["x~2/y"])


def test_raw_pictures_give_every_output_tensor(
    source_program: Program, models: Path, picture: Path, tmp_path: Path
) -> None:
    """Pictures with --task raw write the tensors of each."""
    done = source_program(
        "--engine",
        models / "classifier.onnx",
        "--task",
        "raw",
        "--input",
        picture,
        "--output",
        "o.npz",
    )
    assert done.returncode == 0, done
    with np.load(tmp_path / "o.npz") as out:
        assert out["logits"].shape == (1, 5)


def test_data_dependent_output_has_its_true_shape(source_program: Program, models: Path, tmp_path: Path) -> None:
    """As many indices as there are positive values."""
    np.save(tmp_path / "x.npy", np.float32([1, -1, 2, 0, 3]))
    done = source_program("--engine", models / "nonzero.onnx", "--input", "x.npy", "--output", "o.npz")
    assert done.returncode == 0, done
    with np.load(tmp_path / "o.npz") as out:
        assert out["where"].tolist() == [[0, 2, 4]]


def test_every_dtype_comes_back_as_itself(source_program: Program, models: Path, tmp_path: Path) -> None:
    """float16, int32, bool and uint8 go in and out unchanged."""
    np.savez(
        tmp_path / "x.npz",
        half=np.float16([1, 2, 3, 4]), count=np.int32([1, -2, 3, 4]), flag=np.array([True, False, True, True]),
        pixel=np.uint8([[[[0, 4], [9, 16]]]]),
    )  # fmt: skip
    done = source_program("--engine", models / "dtypes.onnx", "--input", "x.npz", "--output", "o.npz")
    assert done.returncode == 0, done
    with np.load(tmp_path / "o.npz") as out:
        assert (out["half2"].dtype, out["half2"].tolist()) == (np.float16, [2, 4, 6, 8])
        assert (out["count2"].dtype, out["count2"].tolist()) == (np.int32, [2, -4, 6, 8])
        assert (out["other"].dtype, out["other"].tolist()) == (
            np.bool_,
            [False, True, False, False],
        )
        assert out["root"].reshape(-1).tolist() == [0, 2, 3, 4]


@pytest.mark.parametrize("name", ["conv_static", "multi_io", "tiny_classifier"])
def test_onnx_fixtures_equal_their_reference(
    program: Program, shared_fixtures: Path, tmp_path: Path, name: str
) -> None:
    """The CPU engine equals the PyTorch original to 1e-5 of its norm; integers and booleans exactly."""
    with np.load(shared_fixtures / f"{name}.npz") as reference:
        np.savez(
            tmp_path / "in.npz",
            **{k[3:]: reference[k] for k in reference.files if k.startswith("in_")},
        )
        done = program("--engine", shared_fixtures / f"{name}.onnx", "--input", "in.npz", "--output", "out.npz")
        assert done.returncode == 0, done
        with np.load(tmp_path / "out.npz") as out:
            assert {f"out_{k}" for k in out.files} == {k for k in reference.files if k.startswith("out_")}
            for key in out.files:
                wanted, found = reference[f"out_{key}"], out[key]
                assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
                if wanted.dtype.kind == "f":
                    assert np.linalg.norm(found - wanted) <= 1e-5 * np.linalg.norm(wanted)
                else:
                    assert np.array_equal(found, wanted)


def test_csv_has_a_row_for_every_detection_and_failure(
    source_program: Program, models: Path, picture: Path, tmp_path: Path
) -> None:
    """Spreadsheets see paths, classes, scores, corners and errors."""
    done = source_program(
        "--engine",
        models / "ultralytics.onnx",
        "--input",
        picture,
        "missing.jpg",
        "--output",
        "r.csv",
        "r.jsonl",
    )
    assert done.returncode == 1
    rows = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == ["bolt", "nut", "gear", ""]
    assert rows[0]["path"] == str(picture)
    assert float(rows[0]["x0"]) == pytest.approx(12, abs=0.1)
    assert "missing.jpg" in rows[3]["error"]
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [("error" in line) for line in lines] == [False, True]


def test_save_draws_on_a_copy(program: Program, models: Path, picture: Path, tmp_path: Path) -> None:
    """The annotated picture has the size of the input and boxes in it; the input stays as it was."""
    before = picture.read_bytes()
    done = program("--engine", models / "ultralytics.onnx", "--input", picture, picture, "--save", "out dir")
    assert done.returncode == 0, done
    assert sorted(p.name for p in (tmp_path / "out dir").iterdir()) == [
        "picture.jpg",
        "picture~2.jpg",
    ]
    drawn = np.asarray(Image.open(tmp_path / "out dir" / "picture.jpg")).astype(int)
    plain = np.asarray(Image.open(picture)).astype(int)
    assert drawn.shape == plain.shape
    assert (np.abs(drawn - plain).max(2) > 60).mean() > 0.02
    assert picture.read_bytes() == before


def test_picture_that_no_jpeg_can_be_fails_alone(program: Program, models: Path, picture: Path, tmp_path: Path) -> None:
    """--save of a row of 70,000 pixels: that input's error, and the others are drawn."""
    Image.new("RGB", (70_000, 1)).save(tmp_path / "row.png")
    done = program("--engine", models / "ultralytics.onnx", "--input", tmp_path / "row.png", picture, "--save", "out")
    assert done.returncode == 1, done
    row, other = map(json.loads, done.stdout.splitlines())
    assert "70000x1 pixels" in row["error"]["what"]
    assert "65500" in row["error"]["why"]
    assert "error" not in other
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["picture.jpg"]


def test_box_that_cannot_be_drawn_fails_its_input_alone() -> None:
    """A broken model gives boxes inside out; the error stays with the input, and ends no run and no service."""
    frame = Frame("x.jpg", image=Image.new("RGB", (64, 64)), picture_wh=(64, 64))
    result = Result(frame, "detect", detections=[Detection(0, "a", 0.9, (50.0, 5.0, 5.0, 50.0))])
    draw(result)
    assert isinstance(result.error, errors.DataError)
    assert "x.jpg" in result.error.what
    assert not result.drawn


def test_save_never_overwrites_an_input(source_program: Program, models: Path, picture: Path, tmp_path: Path) -> None:
    """--save into the folder of the inputs is refused before a pixel is lost."""
    before = picture.read_bytes()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "picture.jpg").write_bytes(b"not a picture")
    run = ("--engine", models / "ultralytics.onnx", "--input", picture, "other/picture.jpg", "--save")
    for folder in (tmp_path, "other", "."):
        done = source_program(*run, folder)
        assert done.returncode == 64, done
    assert picture.read_bytes() == before
    assert (tmp_path / "other" / "picture.jpg").read_bytes() == b"not a picture"


def test_output_never_overwrites_card_or_labels(
    source_program: Program, models: Path, picture: Path, tmp_path: Path
) -> None:
    """Neither the card that was found beside the engine nor the file of labels."""
    (tmp_path / "m.onnx").write_bytes((models / "classifier.onnx").read_bytes())
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "labels.csv").write_text("a\nb\nc\nd\ne\n")
    run = ("--engine", "m.onnx", "--input", picture, "--labels", "labels.csv", "--output")
    for name in ("model.json", "labels.csv"):
        before = (tmp_path / name).read_text()
        assert source_program(*run, name).returncode == 64
        assert (tmp_path / name).read_text() == before


def test_output_never_replaces_a_device_or_pipe(
    source_program: Program, models: Path, picture: Path, tmp_path: Path
) -> None:
    """A file that appears when it is whole takes the place of what is there: not of a FIFO, nor of /dev/null."""
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "null.npz").symlink_to(os.devnull)
    for name in ("pipe.npz", "null.npz"):
        done = source_program("--engine", models / "classifier.onnx", "--input", picture, "--output", name)
        assert done.returncode == 73, done
        assert "no regular file" in done.stderr
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe.npz").st_mode)
    assert (tmp_path / "null.npz").is_symlink()


@pytest.mark.parametrize("victim", ["engine", "input"])
def test_output_never_overwrites_engine_or_input(
    source_program: Program, models: Path, tmp_path: Path, victim: str
) -> None:
    """A slip of the hand in --output costs nothing."""
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 32, 32), np.float32))
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 3, 32, 32), np.float32))
    engine = tmp_path / "link.npz" if victim == "engine" else models / "conv.onnx"
    if victim == "engine":
        copy = tmp_path / "m.onnx"
        copy.write_bytes((models / "conv.onnx").read_bytes())
        engine.unlink(missing_ok=True)
        engine.symlink_to(copy)
        done = source_program("--engine", copy, "--input", "x.npy", "--output", "link.npz")
    else:
        done = source_program("--engine", engine, "--input", "x.npz", "--output", "x.npz")
    assert done.returncode == 64, done
    assert "overwrite" in done.stderr


def test_folder_is_sorted_and_recursive_on_request(source_program: Program, models: Path, tmp_path: Path) -> None:
    """Pictures of a folder by name; of its folders only when asked; hidden files and others never."""
    for name in ("p/b.png", "p/a.jpg", "p/.hidden.png", "p/notes.txt", "p/q/c.webp", "p/q/d.bmp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no picture")
        else:
            Image.new("RGB", (20, 20)).save(path)
    run = ("--engine", models / "classifier.onnx", "--input", "p")
    assert [line["path"] for line in source_program(*run).lines] == ["p/a.jpg", "p/b.png"]
    found = [line["path"] for line in source_program(*run, "--recursive").lines]
    assert found == ["p/a.jpg", "p/b.png", "p/q/c.webp", "p/q/d.bmp"]
    globbed = source_program("--engine", models / "classifier.onnx", "--input", "p/**/*.[wb]*")
    assert [line["path"] for line in globbed.lines] == ["p/q/c.webp", "p/q/d.bmp"]


def test_paths_from_standard_input(program: Program, models: Path, picture: Path) -> None:
    """A path a line, in any encoding, as find prints them; empty lines are passed over."""
    listed = os.fsencode(picture) + b"\n\nno \xff.jpg\n" + os.fsencode(picture)
    done = program("--engine", models / "classifier.onnx", "--input", "-", input=listed)
    assert done.returncode == 1
    assert [line["path"] for line in done.lines] == [str(picture), "no \\xff.jpg", str(picture)]


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("LA", "png"), ("P", "png"), ("RGBA", "png"), ("1", "png"), ("I;16", "png"), ("CMYK", "jpg"),
     ("L", "jpg"), ("RGB", "webp"), ("RGBA", "webp"), ("RGB", "bmp"), ("P", "bmp")],
)  # fmt: skip
def test_every_kind_of_picture_is_seen_in_its_colour(
    source_program: Program, models: Path, tmp_path: Path, mode: str, suffix: str
) -> None:
    """A bright picture is bright in every mode that the formats know."""
    if mode == "I;16":
        image = Image.fromarray(np.full((30, 30), 60_000, np.uint16))
    else:
        image = Image.new("RGB", (30, 30), (255, 250, 252)).convert(mode)
    path = tmp_path / f"x.{suffix}"
    image.save(path)
    done = source_program("--engine", models / "classifier.onnx", "--mean", "0", "--std", "1", "--input", path)
    assert done.returncode == 0, done
    assert done.line["classes"][0]["class_id"] == make_models.COLORS.index("bright")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(source_program: Program, models: Path, tmp_path: Path, orientation: int) -> None:
    """Orientations 5 to 8 swap width and height, as every viewer shows them."""
    path = tmp_path / "x.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    done = source_program("--engine", models / "classifier.onnx", "--input", path)
    assert done.line["size_wh"] == ([40, 20] if orientation < 5 else [20, 40])


def test_flags_beat_environment_beat_card(source_program: Program, models: Path, picture: Path, tmp_path: Path) -> None:
    """flag > EDGEAPP_ variable > model card."""
    (tmp_path / "model.json").write_text(json.dumps({"task": "detect", "score_threshold": 0.85}))
    run = ("--engine", models / "yolov8.onnx", "--input", picture, "--model-card", "model.json")
    count = len(source_program(*run).line["detections"])
    assert count == 1
    assert len(source_program(*run, env={"EDGEAPP_SCORE_THRESHOLD": "0.7"}).line["detections"]) == 2
    both = source_program(*run, "--score-threshold", "0.95", env={"EDGEAPP_SCORE_THRESHOLD": "0.7"})
    assert both.line["detections"] == []


def test_card_beside_the_engine_is_found(source_program: Program, models: Path, picture: Path, tmp_path: Path) -> None:
    """model.json in the engine's folder needs no flag."""
    (tmp_path / "net.onnx").write_bytes((models / "yolov8.onnx").read_bytes())
    (tmp_path / "model.json").write_text(json.dumps({"labels": ["x", "y", "z"]}))
    done = source_program("--engine", "net.onnx", "--input", picture)
    assert [d["label"] for d in done.line["detections"]] == ["x", "y", "z"]


def test_startup_trace_names_the_steps(program: Program, models: Path, picture: Path) -> None:
    """--startup-trace shows where the time of the start goes."""
    done = program("--engine", models / "conv.onnx", "--input", picture, "--startup-trace", "--quiet")
    assert "load the ONNX model" in done.stderr
    assert " ms  together" in done.stderr


def test_terminal_shows_a_bar_and_pipes_do_not(source_program: Program, models: Path, tmp_path: Path) -> None:
    """The progress bar is for people: on a terminal, and with NO_COLOR without colours."""
    for i in range(5):
        plain_png(tmp_path / f"{i}.png", (0, 0, 0))
    run = [
        *source_program.command,
        "--engine",
        str(models / "classifier.onnx"),
        "--input",
        str(tmp_path),
    ]
    env = source_program.env | {"TERM": "xterm"}
    for no_color in (False, True):
        master, slave = os.openpty()
        done = subprocess.run(
            [*run, "missing.jpg"], env=env | ({"NO_COLOR": "1"} if no_color else {}), stdout=subprocess.PIPE,
            stderr=slave, check=False, timeout=60,
        )  # fmt: skip
        os.close(slave)
        seen = b""
        while True:
            try:
                chunk = os.read(master, 65536)
            except OSError:
                break
            if not chunk:
                break
            seen += chunk
        os.close(master)
        assert done.returncode == 1
        assert re.search(rb"\d/6", seen), seen
        assert (b"\x1b[1;31m" in seen) != no_color
    assert "\x1b" not in source_program(*run[len(source_program.command) :]).stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_the_run_in_order(
    program: Program, models: Path, picture: Path, tmp_path: Path, number: int
) -> None:
    """Waiting for a list, a signal ends the program at once, by that signal, with nothing left behind."""
    child = program.start(
        "--engine", models / "classifier.onnx", "--input", "-", "--output", "out.npz", "--task", "raw",
        stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    child.stdin.write(os.fsencode(picture) + b"\n")
    child.stdin.flush()
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("out.npz.*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    child.send_signal(number)
    child.wait(timeout=20)  # the list stays open: the end of the list would end the run, too
    _, talk = child.communicate()
    assert child.returncode == -number, talk
    assert b"stopped after 1 input" in talk
    assert not list(tmp_path.glob("out.npz*"))


def test_killed_program_leaves_no_process_behind(program: Program, models: Path, picture: Path) -> None:
    """After SIGKILL nothing works on unseen: the pipes close at once, also those of a child."""
    child = program.start(
        "--engine", models / "classifier.onnx", "--input", "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(os.fsencode(picture) + b"\n")
    child.stdin.flush()
    assert child.stdout.readline()
    child.kill()
    rest = child.stdout.read()  # returns when the last process that writes here is gone
    child.stdin.close()
    child.stdout.close()
    assert child.wait(timeout=10) == -signal.SIGKILL
    assert rest == b""


def test_reader_that_goes_away_is_no_error_message(program: Program, models: Path, picture: Path) -> None:
    """`edgeapp ... | head -1` ends quietly."""
    command = " ".join(
        f"'{w}'" for w in [*program.command, "--engine", models / "classifier.onnx", "--quiet", "--input"]
    )
    many = " ".join([f"'{picture}'"] * 300)
    done = subprocess.run(
        ["/bin/bash", "-c", f"{command} {many} | head -1; exit ${{PIPESTATUS[0]}}"], env=program.env, cwd=program.cwd,
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 74
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == b""


def test_names_with_anything_in_them(program: Program, models: Path, tmp_path: Path) -> None:
    """Spaces, newlines, other scripts, foreign bytes and 255 bytes in names are just names."""
    names = [
        b"a b.png",
        b"new\nline.png",
        "图片 é.png".encode(),
        b"bytes\xff\xfe.png",
        b"x" * 251 + b".png",
        b"-dash.png",
    ]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            Image.new("RGB", (20, 20)).save(file, "PNG")
    done = program(
        "--engine",
        models / "classifier.onnx",
        "--input",
        tmp_path,
        "--save",
        "out",
        "--output",
        "-",
        "r.csv",
    )
    assert done.returncode == 0, done
    assert len(done.lines) == len(names)
    assert len(os.listdir(tmp_path / "out")) == len(names)
