"""What a file is, from its first bytes."""

from __future__ import annotations

import json
import os
import random
import struct
import time
import zipfile
from pathlib import Path

import make_heads
import onnx
import pytest

from edgeapp import errors, plan
from edgeapp.plan import onnx as onnx_bytes
from edgeapp.plan.peek import DETAIL_BYTES, VERDICT_BYTES, Peek


def header(version: tuple[int, ...] = (8, 6, 0, 12), size: int = 128) -> bytes:
    """The first bytes of a standard plan, laid out as in the plans that TensorRT 8.6.0 wrote."""
    return b"ftrt" + bytes(4) + struct.pack("<QQ", 1, size) + bytes(version) + bytes(4) + b"NGNE"


def plan_bytes(version: tuple[int, ...] = (8, 6, 0, 12), size: int = 128) -> bytes:
    return header(version, size).ljust(size, b"\0")


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def test_identify_plan_gives_version(tmp_path: Path) -> None:
    """Bytes 24 to 27 are the version of the builder."""
    found = plan.identify(write(tmp_path / "a.plan", plan_bytes((10, 3, 0, 30))))
    assert (found.kind, found.version, found.version_text) == (plan.PLAN, (10, 3, 0, 30), "10.3.0")


def test_identify_ultralytics_wrapper_gives_offset_and_metadata(tmp_path: Path) -> None:
    """The JSON text before the plan is read, and the plan is found after it."""
    text = json.dumps({"task": "detect", "names": {"0": "bolt"}, "imgsz": [320, 320]}).encode()
    path = write(tmp_path / "a.engine", struct.pack("<i", len(text)) + text + plan_bytes())
    found = plan.identify(path)
    assert found.kind == plan.PLAN
    assert found.offset == 4 + len(text)
    assert found.metadata["task"] == "detect"


def test_identify_real_plans_and_models(shared_fixtures: Path) -> None:
    """Every real plan is told to be of 8.6.0, every real ONNX model to be one."""
    plans = sorted(shared_fixtures.glob("*.plan"))
    assert plans
    assert {plan.identify(str(p)).version for p in plans} == {(8, 6, 0, 12)}
    assert {plan.identify(str(p)).kind for p in shared_fixtures.glob("*.onnx")} == {plan.ONNX}


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("a.plan", b"", "empty"),
        ("a.plan", b"ftrt", "cut short after 4 bytes"),
        ("a.plan", header(size=0).ljust(128), "damaged header"),
        ("a.plan", plan_bytes()[:100], "cut short: 100 of 128 bytes"),
        ("a.plan", b"vtrt" + bytes(200), "TensorRT-RTX"),
        ("a.plan", b"ptrt" + bytes(200), "8.5 or older"),
        ("a.plan", b"NLYM" + bytes(200), "safety"),
        ("a.pt", b"PK\x03\x04" + bytes(200), "zip"),
        ("a.plan", b"version https://git-lfs.github.com/spec/v1\n", "git-LFS"),
        ("a.plan", b"<!DOCTYPE html><html></html>", "web page"),
        ("a.plan", b"\x89PNG\r\n\x1a\n" + bytes(50), "picture"),
        ("a.plan", bytes(500), "neither"),
        ("a.plan", b"\xff" * 500, "neither"),
        ("a.plan", struct.pack("<i", 400) + b"{" + b"x" * 600, "neither"),
        (
            "a.plan",
            struct.pack("<i", 20) + b'{"a": 1}            ' + plan_bytes()[:60],
            "cut short",
        ),
    ],
)
def test_identify_refuses_what_is_no_model(tmp_path: Path, name: str, data: bytes, word: str) -> None:
    """Each wrong file is named for what it is, before any runtime sees it."""
    with pytest.raises(errors.DataError, match=word):
        plan.identify(write(tmp_path / name, data))


def test_identify_onnx_with_wrong_name_is_refused(models: Path, tmp_path: Path) -> None:
    """An ONNX model called .plan was meant for TensorRT: it is not run on the CPU silently."""
    path = write(tmp_path / "a.plan", (models / "conv.onnx").read_bytes())
    with pytest.raises(errors.DataError, match="ONNX model, not a plan"):
        plan.identify(path)
    assert plan.identify(str(models / "conv.onnx")).kind == plan.ONNX


def test_identify_missing_file_is_not_found(tmp_path: Path) -> None:
    """A missing file has its own exit code."""
    with pytest.raises(errors.NotFoundError):
        plan.identify(str(tmp_path / "no.plan"))


@pytest.mark.parametrize("name", ["a\0b.plan", "x" * 300])
def test_identify_impossible_name_is_not_found(name: str) -> None:
    """Names that no file can have are answered like missing ones."""
    with pytest.raises(errors.NotFoundError):
        plan.identify(name)


# --- what a file is, run or not --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The beginnings of real files, by name."""
    return {path.name: path for path in make_heads.write_all(tmp_path_factory.mktemp("heads"))}


@pytest.mark.parametrize(
    ("name", "level", "refittable"),
    [("conv_native.plan", "none", False), ("conv_native_hw.plan", "ampere+", False), ("conv_refit.plan", "none", True),
     ("plugin_native.plan", "none", False)],
)  # fmt: skip
def test_look_at_plan_tells_what_its_builder_was_asked_for(
    heads: dict[str, Path], name: str, level: str, refittable: bool
) -> None:
    """GPU, hardware compatibility level and refittable are read from the bytes of real plans of 8.6.0."""
    facts = plan.look(str(heads[name])).facts
    assert facts is not None
    assert facts.version == (8, 6, 0, 12)
    assert (facts.sections, facts.archive) == (("NGNE",), 236)
    assert (facts.compute_capability, facts.multiprocessors, facts.memory_bytes) == ((9, 0), 132, 150109880320)
    assert (facts.level, facts.refittable) == (level, refittable)


def test_look_at_plan_with_the_lean_runtime_inside_tells_so(heads: dict[str, Path]) -> None:
    """The runtime is a section of its own, before the engine's."""
    facts = plan.look(str(heads["lean_inside.plan"])).facts
    assert facts is not None
    assert (facts.sections, facts.lean_inside) == (("NAEL", "NGNE"), True)
    facts = plan.look(str(heads["conv_native.plan"])).facts
    assert facts is not None
    assert facts.lean_inside is False


def test_look_at_real_plans_tells_the_gpu(shared_fixtures: Path) -> None:
    """Names of the fixtures say which are for Ampere and newer; the bytes say the same."""
    for path in shared_fixtures.glob("*.plan"):
        facts = plan.look(str(path)).facts
        assert facts is not None
        assert facts.compute_capability == (9, 0)
        assert (facts.level == "ampere+") == ("sm80plus" in path.name)


def test_look_at_plan_of_another_layout_guesses_nothing(tmp_path: Path) -> None:
    """Of an archive that is laid out differently only the header counts."""
    found = plan.look(write(tmp_path / "a.plan", plan_bytes((10, 3, 0, 30))))
    assert found.facts is not None
    assert found.facts.version == (10, 3, 0, 30)
    assert (found.facts.compute_capability, found.facts.level, found.facts.refittable) == (None, None, None)
    assert not found.problem


def test_look_at_plan_with_trailing_bytes_counts_them(tmp_path: Path) -> None:
    """They are no error: only the plan is handed to TensorRT."""
    found = plan.look(write(tmp_path / "a.plan", plan_bytes() + b"x" * 7))
    assert (found.problem, found.notes, found.length) == ("", {"trailing_bytes": 7}, 128)


KINDS = {
    "torch2trt.pth": "torch2trt", "state_dict.pt": "pytorch", "module.pt": "pytorch", "legacy.pt": "pytorch",
    "script.pt": "torchscript", "export.pt2": "torch_export", "rtx_sm86.plan": "rtx_plan",
    "rtx_default.plan": "rtx_plan",
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_look_at_real_foreign_file_names_it(heads: dict[str, Path], name: str, kind: str) -> None:
    """PyTorch's and TensorRT-RTX's own files are told apart."""
    found = plan.look(str(heads[name]))
    assert found.kind == kind
    assert found.problem
    assert found.fix


def test_look_at_rtx_plan_lists_its_compute_capabilities(heads: dict[str, Path]) -> None:
    """The mask in the header was set by the builder's options."""
    assert plan.look(str(heads["rtx_sm86.plan"])).notes == {"compute_capabilities": ["8.6"]}
    found = plan.look(str(heads["rtx_default.plan"]))
    assert found.notes == {"compute_capabilities": ["8.0", "8.6", "8.9", "12.0", "12.1"]}
    assert found.what == "a TensorRT-RTX plan of 1.7.1"


@pytest.mark.parametrize(
    ("counter", "text"),
    [(205, "TensorRT 8.2"), (213, "TensorRT 8.4"), (232, "TensorRT 8.5"),
     (208, "a TensorRT between 8.2 and 8.4"), (96, "a TensorRT older than 8.2")],
)  # fmt: skip
def test_look_at_old_plan_names_its_builder(tmp_path: Path, counter: int, text: str) -> None:
    """Before 8.6 only the archive's counter tells the version."""
    found = plan.look(write(tmp_path / "a.plan", b"ptrt" + bytes(4) + bytes([counter]) + bytes(100)))
    assert (found.kind, found.notes["built_by"]) == ("old_plan", text)


def zipped(path: Path, **members: bytes) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), data)
    return str(path)


def test_look_at_zip_names_what_lies_in_it(tmp_path: Path) -> None:
    """A model that was zipped by mistake, a Torch-TensorRT module, arrays, anything else, and a damaged one."""
    pickle = b"\x80\x02c__torch__.torch.classes.tensorrt\nEngine\n"
    for members, kind in (
        ({"sub__model_dot_onnx": b"x"}, "zipped_onnx"),
        ({"model_dot_engine": b"x"}, "zipped_plan"),
        ({"m__data_dot_pkl": pickle, "m__code____torch__.py": b""}, "torch_tensorrt"),
        ({"a_dot_npy": b"x"}, "npz"),
        ({"model.weights.h5": b"x", "config.json": b"{}"}, "keras"),
        ({"readme": b"x"}, "zip"),
    ):
        assert plan.look(zipped(tmp_path / "a.zip", **members)).kind == kind
    data = (tmp_path / "a.zip").read_bytes()
    assert plan.look(write(tmp_path / "b.zip", data[:40])).kind == "zip"


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [("a", b"TR01" + struct.pack("<IIIQ8x", 32, 10, 48, 128) + bytes(16) + plan_bytes(), "executorch"),
     ("saved_model.pb", b"\x08\x01\x12\xff\x01" + bytes(300), "saved_model"),
     ("a.txt", b'ir_version: 8\nproducer_name: "x"\n', "onnx_text"),
     ("a.txt", b'# saved\nir_version: 8\n', "onnx_text"),
     ("a.html", b"\xef\xbb\xbf  <!doctype html>", "html"),
     ("a.xml", b"<?xml version='1.0'?><net name='x'>", "xml"),
     ("a.xml", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "html"),
     ("a.json", b'{"task": "detect"}', "json"),
     ("a.cache", b"TRT-8600-EntropyCalibration2\nx: 3c010a14", "calibration_cache"),
     ("a.tflite", b"\x1c\0\0\0TFL3" + bytes(50), "tflite"),
     ("a.safetensors", struct.pack("<Q", 20) + b'{"a":{"dtype":"F32"}}' + bytes(50), "safetensors"),
     ("a.so", b"\x7fELF" + bytes(50), "elf"), ("a.gz", b"\x1f\x8b" + bytes(50), "gzip"),
     ("a.tar", bytes(257) + b"ustar" + bytes(50), "tar"), ("a", bytes(50), "unknown"), ("a", b"", "empty")],
)  # fmt: skip
def test_look_names_each_kind(tmp_path: Path, name: str, data: bytes, kind: str) -> None:
    """What people give for a model by mistake has a name, a reason and a way out."""
    found = plan.look(write(tmp_path / name, data))
    assert found.kind == kind
    assert found.problem
    assert found.fix
    if kind == "executorch":
        assert found.notes == {"plan_version": "8.6.0"}


def test_look_at_folder_and_pipe_does_not_hang(tmp_path: Path) -> None:
    """What is no regular file is told at once."""
    os.mkfifo(tmp_path / "pipe")
    assert plan.look(str(tmp_path / "pipe")).kind == "device"
    assert plan.look(str(tmp_path)).kind == "folder"
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    assert plan.look(str(tmp_path)).kind == "saved_model"


def test_look_at_onnx_model_equals_the_onnx_package(models: Path) -> None:
    """Opsets, tensors, dtypes, shapes and texts, read from the bytes, are what the onnx package reads."""
    for path in sorted(models.glob("*.onnx")):
        notes, model = plan.look(str(path), details=True).notes, onnx.load(path)
        assert notes["opsets"] == {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
        assert notes["nodes"] == len(model.graph.node)
        assert notes.get("metadata", {}) == {entry.key: entry.value for entry in model.metadata_props}
        for key, values in (("inputs", model.graph.input), ("outputs", model.graph.output)):
            assert [tensor["name"] for tensor in notes[key]] == [value.name for value in values]
            for tensor, value in zip(notes[key], values, strict=True):
                type_ = value.type.tensor_type
                assert tensor["dtype"].upper() in ("FLOAT32", "FLOAT16", "FLOAT64", "BOOL", "INT32", "INT64", "UINT8")
                assert onnx_bytes.DTYPES.index(tensor["dtype"]) == type_.elem_type
                assert tensor["shape"] == [d.dim_param or d.dim_value for d in type_.shape.dim]


def test_look_at_old_onnx_model_leaves_weights_out_of_its_inputs(tmp_path: Path) -> None:
    """Before IR version 4 every weight was an input as well."""
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [2.0])
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "w", "y")]
    node = onnx.helper.make_node("Mul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", tensors[:2], tensors[2:], [weight])
    onnx.save(onnx.helper.make_model(graph, ir_version=3), tmp_path / "m.onnx")
    assert [tensor["name"] for tensor in plan.look(str(tmp_path / "m.onnx"), details=True).notes["inputs"]] == ["x"]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A copy with some bytes changed, cut off, put in or doubled."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(max(1, min(len(out), rng.choice((64, 300, 4096)))))
        way = rng.randrange(5)
        if way == 0 and out:
            out[at] = rng.randrange(256)
        elif way == 1:
            out[at : at + 8] = rng.choice((bytes(8), b"\xff" * 8, struct.pack("<Q", rng.randrange(1 << 40))))
        elif way == 2:
            del out[at:]
        elif way == 3:
            out[at:at] = rng.randbytes(rng.choice((1, 4, 40)))
        else:
            out[at:at] = out[at : at + rng.randrange(1, 100)]
    return bytes(out)


def test_look_at_mutated_files_never_raises_and_reads_little(
    heads: dict[str, Path], models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the bytes, look() answers, from 64 KiB at most; EDGEAPP_FUZZ sets how many files are tried."""
    count = int(os.environ.get("EDGEAPP_FUZZ", "2000"))
    spent = {VERDICT_BYTES: 0, DETAIL_BYTES: 0}
    read = Peek.read

    def counting(self: Peek, offset: int, length: int) -> bytes:
        data = read(self, offset, length)
        spent[self.limit] += len(data)
        return data

    monkeypatch.setattr(Peek, "read", counting)
    wrapper = json.dumps({"task": "detect", "names": {"0": "bolt"}}).encode()
    seeds = [path.read_bytes()[: 1 << 14] for path in heads.values()]
    seeds += [path.read_bytes()[: 1 << 14] for path in models.glob("*.onnx")]
    seeds += [struct.pack("<i", len(wrapper)) + wrapper + seeds[0], b"TR01" + bytes(60) + plan_bytes()]
    rng = random.Random(int(os.environ.get("EDGEAPP_FUZZ_SEED", "0")))
    path, slowest = tmp_path / "m.onnx", 0.0
    for i in range(count):
        path.write_bytes(mutated(rng.choice(seeds), rng))
        spent.update(dict.fromkeys(spent, 0))
        began = time.perf_counter()
        found = plan.look(str(path), details=bool(i % 2))
        slowest = max(slowest, time.perf_counter() - began)
        assert spent[VERDICT_BYTES] <= VERDICT_BYTES
        assert found.kind
        assert bool(found.problem) == bool(found.fix)
        json.dumps([found.notes, found.metadata, found.what])
    assert slowest < 5
