"""Everything that a user can give wrongly: each has its message and its exit code, none crashes or hangs.

Every case runs twice, as source tree and as frozen file.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image
from support import Outcome, Program, frozen_binary
from test_plan import plan_bytes


@dataclass
class Place:
    """Where a case happens: an empty folder with a good picture and a good model in it."""

    folder: Path
    models: Path

    @property
    def engine(self) -> str:
        return str(self.models / "classifier.onnx")

    def file(self, name: str, data: bytes = b"") -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)


@pytest.fixture
def place(tmp_path: Path, models: Path) -> Place:
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "good.jpg")
    return Place(tmp_path, models)


def jpeg(width: int = 40, height: int = 30) -> bytes:
    import io

    out = io.BytesIO()
    Image.effect_noise((width, height), 80).convert("RGB").save(out, "JPEG")
    return out.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """About 10 kB that claim to be width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(9_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def unreadable(place: Place, name: str, data: bytes) -> str:
    path = place.file(name, data)
    os.chmod(path, 0)
    return path


def fifo(place: Place, name: str) -> str:
    os.mkfifo(place.folder / name)
    return str(place.folder / name)


def unix_socket(place: Place) -> str:
    path = place.folder / "socket.jpg"
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(place.folder)  # the name of a socket is short
        try:
            server.bind("socket.jpg")
        finally:
            os.chdir(here)
    return str(path)


def npy_claiming(place: Place, shape: str, name: str = "x.npy") -> str:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return place.file(name, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64))


def zip_bomb(place: Place) -> str:
    path = place.folder / "bomb.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (20000000,), }".ljust(117) + b"\n"
        member.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        for _ in range(80):
            member.write(bytes(1_000_000))
    # The directory claims 8 GB; the check must not need to unpack them.
    data = bytearray(path.read_bytes())
    where = data.rfind(b"PK\x01\x02")
    struct.pack_into("<I", data, where + 24, 0xFFFFFFF0)
    path.write_bytes(data)
    return str(path)


def folder(place: Place, name: str) -> str:
    (place.folder / name).mkdir()
    return str(place.folder / name)


def link(place: Place, target: str) -> str:
    (place.folder / "l.jpg").symlink_to(target)
    return str(place.folder / "l.jpg")


def npy(place: Place, array: np.ndarray) -> str:
    np.save(place.folder / "x.npy", array)
    return str(place.folder / "x.npy")


def npz(place: Place, **arrays: np.ndarray) -> str:
    np.savez(place.folder / "x.npz", **arrays)
    return str(place.folder / "x.npz")


# name -> (what makes the input, exit code, words of the message)
INPUTS: dict[str, tuple[Callable[[Place], str], int, str]] = {
    "empty": (lambda p: p.file("x.jpg"), 65, "the file is empty"),
    "one byte": (lambda p: p.file("x.jpg", b"\xff"), 65, "no picture of a known format"),
    "not an image": (lambda p: p.file("x.jpg", b"hello world\n" * 100), 65, "no picture of a known format"),
    "gif is not on the list": (lambda p: p.file("x.gif", b"GIF89a" + bytes(100)), 65, "no picture of a known format"),
    "svg": (lambda p: p.file("x.jpg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), 65, "no picture"),
    "truncated jpeg": (lambda p: p.file("x.jpg", jpeg(400, 300)[:2000]), 65, "it is damaged"),
    "jpeg header only": (lambda p: p.file("x.jpg", jpeg()[:30]), 65, "cannot read"),
    "truncated png": (lambda p: p.file("x.png", huge_png(300, 300)[:60]), 65, "it is damaged"),
    "png with a broken checksum": (
        lambda p: p.file("x.png", huge_png(300, 300).replace(b"IDAT", b"IDAX", 1)), 65, "cannot read"),
    "10 kB that claim 1e9 pixels": (lambda p: p.file("x.png", huge_png(40_000, 25_000)), 65, "pixels are too many"),
    "0 x 0 pixels": (lambda p: p.file("x.png", huge_png(0, 0)), 65, "cannot read"),
    "bmp that claims 2e9 rows": (
        lambda p: p.file("x.bmp", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 30_000, 2_000_000_000,
                                                      1, 24, 0, 0, 0, 0, 0, 0)), 65, "pixels are too many"),
    "webp cut short": (lambda p: p.file("x.webp", b"RIFF\x10\0\0\0WEBPVP8 "), 65, "cannot read"),
    "missing": (lambda p: str(p.folder / "no.jpg"), 66, "no such file"),
    "missing folder": (lambda p: str(p.folder / "no" / "x.jpg"), 66, "no such file"),
    "file as folder": (lambda p: p.file("x.jpg", jpeg()) + "/y.jpg", 66, "not a directory"),
    "glob without a match": (lambda p: str(p.folder / "*.png"), 66, "nothing matches"),
    "empty folder": (lambda p: folder(p, "empty"), 65, "no pictures in this folder"),
    "fifo": (lambda p: fifo(p, "x.jpg"), 65, "it is a FIFO"),
    "device": (lambda p: "/dev/zero", 65, "it is a device"),
    "terminal": (lambda p: "/dev/null", 65, "it is a device"),
    "socket": (unix_socket, 65, "it is a socket"),
    "dangling link": (lambda p: link(p, "gone"), 66, "no such file"),
    "link to itself": (lambda p: link(p, "l.jpg"), 74, "symbolic link"),
    "name of 300 bytes": (lambda p: str(p.folder / ("x" * 300 + ".jpg")), 66, "too long"),
    "name with a newline": (lambda p: str(p.folder / "a\nb.jpg"), 66, r"a\nb.jpg"),
    "empty name": (lambda p: "", 66, "no such file"),
    "npy that is none": (lambda p: p.file("x.npy", b"hello"), 65, "no NumPy file"),
    "npy that claims 4e18 bytes": (lambda p: npy_claiming(p, "(1000000000, 1000000000)"), 65, "its header claims"),
    "npy with a negative shape": (lambda p: npy_claiming(p, "(-1, 16)"), 65, "cannot read"),
    "npy with code in its header": (lambda p: npy_claiming(p, "__import__('os').abort()"), 65, "no NumPy file"),
    "npy of Python objects": (lambda p: npy(p, np.array([{}], dtype=object)), 65, "Python objects"),
    "npy of another shape": (lambda p: npy(p, np.zeros((1, 3, 8, 8), np.float32)), 65, "does not fit"),
    "npy of text": (lambda p: npy(p, np.full((1, 3, 32, 32), "a")), 65, "do not fit into float32"),
    "npz with the wrong names": (lambda p: npz(p, wrong=np.zeros(3)), 65, "do not match"),
    "npz that is none": (lambda p: p.file("x.npz", b"PK\x03\x04" + bytes(50)), 65, "no NumPy file"),
    "npz that claims 4 GB": (zip_bomb, 65, "cannot read"),
}  # fmt: skip


@pytest.mark.parametrize("case", INPUTS, ids=lambda name: name.replace(" ", "-"))
def test_bad_input_alone_and_among_good_ones(program: Program, place: Place, case: str) -> None:
    """Alone it decides the exit code; between two good pictures it is one line, and the others are done."""
    make, code, words = INPUTS[case]
    name = make(place)
    alone = program("--engine", place.engine, "--input", name)
    assert (alone.returncode, words in alone.stderr) == (code, True), alone
    check_error_line(alone)
    good = str(place.folder / "good.jpg")
    mixed = program("--engine", place.engine, "--input", good, name, good)
    assert mixed.returncode == 1, mixed
    assert [("error" in line) for line in mixed.lines] == [False, True, False]


def check_error_line(done: Outcome) -> None:
    assert "Traceback" not in done.stderr, done
    error = done.line["error"]
    assert error["what"]
    assert f"edgeapp: {error['what']}" in done.stderr


# name -> (what makes the engine, exit code, words)
def without_input() -> bytes:
    """A model that always gives the same."""
    output = helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])
    node = helper.make_node("Constant", [], ["o"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0]))
    graph = helper.make_graph([node], "g", [], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


ENGINES: dict[str, tuple[Callable[[Place], str], int, str]] = {
    "empty": (lambda p: p.file("m.plan"), 65, "it is empty"),
    "missing": (lambda p: "no.plan", 66, "no such file"),
    "a folder": (lambda p: str(p.folder), 65, "it holds no .plan"),
    "a device": (lambda p: "/dev/zero", 65, "no regular file"),
    "a fifo": (lambda p: fifo(p, "m.plan"), 65, "no regular file"),
    "a picture": (lambda p: p.file("m.plan", jpeg()), 65, "it is a JPEG picture"),
    "text": (lambda p: p.file("m.plan", b"hello\n" * 50), 65, "neither a TensorRT plan nor an ONNX model"),
    "plan cut short": (lambda p: p.file("m.plan", plan_bytes(size=4096)[:1000]), 65, "1000 of 4096 bytes"),
    "plan of TensorRT 7": (lambda p: p.file("m.plan", plan_bytes((7, 2, 3, 4))), 65, "built by TensorRT 7.2.3"),
    "plan of TensorRT 99": (lambda p: p.file("m.plan", plan_bytes((99, 0, 0, 0))), 65, "built by TensorRT 99.0.0"),
    "plan of TensorRT 8.5": (lambda p: p.file("m.plan", b"ptrt" + bytes(300)), 65, "TensorRT 8.5 or older"),
    "RTX plan": (lambda p: p.file("m.plan", b"vtrt" + bytes(300)), 65, "TensorRT-RTX"),
    "PyTorch file": (lambda p: p.file("m.pt", b"PK\x03\x04" + bytes(300)), 65, "zip"),
    "git-LFS pointer": (
        lambda p: p.file("m.plan", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), 65, "git lfs pull"),
    "ONNX named .plan": (
        lambda p: p.file("m.plan", (p.models / "conv.onnx").read_bytes()), 65, "an ONNX model, not a plan"),
    "ONNX cut short": (
        lambda p: p.file("m.onnx", (p.models / "yolov8.onnx").read_bytes()[:700]), 65, "ONNX Runtime"),
    "ONNX without an input": (lambda p: p.file("m.onnx", without_input()), 65, "it has no input"),
    "ONNX header and noise": (
        lambda p: p.file("m.onnx", (p.models / "conv.onnx").read_bytes()[:40] + os.urandom(500)), 65, "ONNX Runtime"),
}  # fmt: skip


@pytest.mark.parametrize("case", ENGINES, ids=lambda name: name.replace(" ", "-"))
def test_bad_engine_is_refused_from_its_bytes(program: Program, place: Place, case: str) -> None:
    """No driver is asked and no library loaded for a file that cannot be run; nothing is printed as result."""
    make, code, words = ENGINES[case]
    done = program("--engine", make(place), "--input", "good.jpg")
    assert (done.returncode, words in done.stderr) == (code, True), done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "  fix: " in done.stderr or "no such file" in done.stderr


CARDS: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 78, "it is empty"),
    "no JSON": (b"task: detect", 78, "line 1"),
    "a list": (b"[]", 78, "no JSON object"),
    "unknown key": (b'{"scal": 1}', 78, "did you mean 'scale'"),
    "wrong value": (b'{"task": "fly"}', 78, "task must be one of"),
    "wrong type": (b'{"size_wh": "640"}', 78, "size_wh"),
    "not UTF-8": (b"\xff\xfe\x00", 78, "cannot use the model card"),
    "deeply nested": (b"[" * 200_000, 78, "cannot use the model card"),
    "size of another model": (b'{"size_wh": [640, 640]}', 78, "does not fit the input tensor"),
    "not a number": (b'{"scale": NaN}', 78, "NaN is no number"),
    "infinite": (b'{"mean": [-Infinity, 0, 0]}', 78, "-Infinity is no number"),
    "too large a number": (b'{"scale": 1e999}', 78, "1e999 is no number"),
    "a key twice": (b'{"scale": 1, "scale": 2}', 78, "'scale' is there twice"),
    "labels file missing": (b'{"labels": "no.txt"}', 66, "no.txt"),
    "task that does not fit": (b'{"task": "detect"}', 78, "task detect wants"),
}


@pytest.mark.parametrize("case", CARDS, ids=lambda name: name.replace(" ", "-"))
def test_bad_model_card_names_its_key(program: Program, place: Place, case: str) -> None:
    """A wrong card is a configuration error (78) that says where."""
    data, code, words = CARDS[case]
    place.file("card.json", data)
    done = program("--engine", place.engine, "--input", "good.jpg", "--model-card", "card.json")
    assert (done.returncode, words in done.stderr) == (code, True), done
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


USAGE: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "no --engine given"),
    "no input": (["--engine", "m.onnx"], "no --input given"),
    "wrong flag": (["--engin", "x"], "did you mean --engine"),
    "wrong command": (["runn"], "did you mean run"),
    "a picture alone": (["good.jpg"], "unknown command good.jpg"),
    "no number": (["--batch", "x"], "a whole number is wanted"),
    "number out of range": (["--score-threshold", "7"], "0 to 1 is allowed"),
    "unknown choice": (["--task", "fly"], "choose from classify, detect, raw"),
    "flag without value": (["--engine"], "expected one argument"),
    "size that is none": (["--size-wh", "axb"], "a whole number is wanted"),
    "unknown ending": (["--engine", "ENGINE", "--input", "good.jpg", "--output", "x.txt"], "unknown ending '.txt'"),
    "divisor of zero": (["--std", "1,0,1"], "numbers above zero are wanted"),
    "one output twice": (["--engine", "ENGINE", "--input", "good.jpg", "--output", "r.csv", "r.csv"], "is given twice"),
    "empty name": (["--engine", "ENGINE", "--input", "good.jpg", "--save", ""], "a name is wanted"),
    "name with newline": (["a\nb"], r"unknown command a\nb"),
}


@pytest.mark.parametrize("case", USAGE, ids=lambda name: name.replace(" ", "-"))
def test_wrong_command_line_is_explained(program: Program, place: Place, case: str) -> None:
    """Exit 64, the nearest right word, and where to read on."""
    words, message = USAGE[case]
    done = program(*[place.engine if word == "ENGINE" else word for word in words])
    assert (done.returncode, message in done.stderr) == (64, True), done
    assert "Traceback" not in done.stderr


def test_wrong_environment_variable_is_named(source_program: Program) -> None:
    """The message names the variable, not a flag that nobody typed."""
    done = source_program("--engine", "x", env={"EDGEAPP_BATCH": "many"})
    assert done.returncode == 64
    assert "EDGEAPP_BATCH='many'" in done.stderr


OUTPUTS: dict[str, tuple[str, int, str]] = {
    "missing folder": ("no/r.jsonl", 73, "cannot write no/r.jsonl"),
    "folder as file": ("folder.jsonl", 73, "is a directory"),
    "full disk, jsonl": ("/dev/full", 73, "no space left"),
    "full disk, csv": ("full.csv", 73, "no space left"),
    "npz into a missing folder": ("no/r.npz", 73, "cannot write no/r.npz"),
    "name of 300 bytes": ("x" * 300 + ".jsonl", 73, "too long"),
}


@pytest.mark.parametrize("case", OUTPUTS, ids=lambda name: name.replace(" ", "-"))
def test_output_that_cannot_be_written(program: Program, place: Place, case: str) -> None:
    """Exit 73 with the name and the reason; a full disk is noticed."""
    output, code, words = OUTPUTS[case]
    (place.folder / "folder.jsonl").mkdir()
    (place.folder / "full.csv").symlink_to("/dev/full")
    (place.folder / "full.jsonl").symlink_to("/dev/full")
    output = "full.jsonl" if output == "/dev/full" else output
    done = program("--engine", place.engine, "--input", "good.jpg", "--output", output)
    assert (done.returncode, words in done.stderr) == (code, True), done
    assert "Traceback" not in done.stderr


def test_save_into_a_file_is_refused(program: Program, place: Place) -> None:
    """--save wants a folder."""
    place.file("taken")
    done = program("--engine", place.engine, "--input", "good.jpg", "--save", "taken")
    assert done.returncode == 73, done
    assert "cannot write taken" in done.stderr


def test_full_standard_output_is_noticed(program: Program, place: Place) -> None:
    """Results that do not fit on the disk behind > are an error."""
    with open("/dev/full", "wb") as full:
        done = program("--engine", place.engine, "--input", "good.jpg", stdout=full)
    assert done.returncode == 73, done
    assert "cannot write standard output" in done.stderr
    assert "Exception ignored" not in done.stderr


def test_closed_standard_output_is_noticed(program: Program, place: Place) -> None:
    """`>&-` leaves no place for results."""
    command = " ".join(f"'{word}'" for word in [*program.command, "--engine", place.engine, "--input", "good.jpg"])
    done = subprocess.run(["/bin/sh", "-c", f"{command} >&-"], cwd=program.cwd, env=program.env, capture_output=True,
                          check=False, timeout=60)  # fmt: skip
    assert done.returncode == 74, done
    assert b"standard output is closed" in done.stderr


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_other_closed_streams_do_no_harm(program: Program, place: Place, closed: str) -> None:
    """Without standard input or error the results still come."""
    command = " ".join(f"'{word}'" for word in [*program.command, "--engine", place.engine, "--input", "good.jpg"])
    done = subprocess.run(["/bin/sh", "-c", f"{command} {closed}"], cwd=program.cwd, env=program.env,
                          capture_output=True, check=False, timeout=60)  # fmt: skip
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["path"] == "good.jpg"


def test_binary_list_on_standard_input_is_refused(program: Program, place: Place) -> None:
    """A picture piped into --input - is told apart from a list of names."""
    done = program("--engine", place.engine, "--input", "-", input=b"\x01" * 200_000)
    assert done.returncode == 65, done
    assert "a path a line is wanted" in done.stderr


@pytest.mark.frozen
@pytest.mark.parametrize(
    ("words", "code"),
    [(["--input", "secret.jpg"], 77), (["--input", "secret/"], 77), (["--engine", "secret.onnx"], 77),
     (["--trust-key", "secret.jpg"], 77),
     (["--output", "secret/r.jsonl"], 77), (["--save", "readonly"], 77), (["--top-k", "1"], 0)],
    ids=lambda v: " ".join(v) if isinstance(v, list) else str(v),
)  # fmt: skip
def test_user_without_rights_is_told_which_file(place: Place, words: list[str], code: int) -> None:
    """An ordinary user can run the frozen file; what it may not touch is named, exit 77."""
    unreadable(place, "secret.jpg", jpeg())
    unreadable(place, "secret.onnx", b"x")
    (place.folder / "secret").mkdir(mode=0)
    (place.folder / "readonly").mkdir(mode=0o555)
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        shutil.copytree(place.folder, folder / "here", copy_function=shutil.copy2)
        shutil.copy(frozen_binary(), folder / "edgeapp")
        shutil.copy(place.engine, folder / "classifier.onnx")
        (folder / "tmp").mkdir()
        for path in (folder, folder / "here", folder / "edgeapp", folder / "classifier.onnx"):
            path.chmod(0o755)
        (folder / "tmp").chmod(0o777)
        given = {"--engine": "../classifier.onnx", "--input": "good.jpg"} | {words[0]: words[1]}
        done = subprocess.run(
            [str(folder / "edgeapp"), *(word for pair in given.items() for word in pair)],
            cwd=folder / "here", env={"TMPDIR": str(folder / "tmp")}, capture_output=True, text=True, check=False,
            timeout=60, **({"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}),
        )  # fmt: skip
        assert done.returncode == code, done
        assert ("permission denied" in done.stderr) == (code == 77)
        assert not list((folder / "tmp").iterdir())
