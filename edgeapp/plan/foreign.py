"""Files that are given for a model by mistake, or hold one that no runtime here takes: what, why, and the way out."""

from __future__ import annotations

import io
from dataclasses import dataclass

from edgeapp.plan.peek import Peek, UnknownError

TO_ONNX = "export the model to ONNX, then build a plan with trtexec"
AGAIN = "copy or download it again"
VERSION_COMPATIBLE = "trtexec --versionCompatible --excludeLeanRuntime"


@dataclass(frozen=True)
class Foreign:
    """What a file is that cannot be run: a word for programs, words for people, why it does not run, what to do."""

    kind: str
    what: str
    why: str
    fix: str


_MAGICS = (
    (0, b"ptrt", Foreign("old_plan", "a plan of TensorRT 8.5 or older",
                         "such plans run only on the TensorRT that built them",
                         f"rebuild it with TensorRT 8.6 or newer: {VERSION_COMPATIBLE}")),
    (0, b"NLYM", Foreign("safety_plan", "a plan for the safety runtime", "the standard runtime cannot load it",
                         "build it without --safe")),
    (0, b"version https://git-lfs", Foreign("git_lfs", "a git-LFS pointer", "the file itself was never downloaded",
                                            "run: git lfs pull")),
    (0, b"TRT-", Foreign("calibration_cache", "an INT8 calibration cache of TensorRT",
                         "it holds ranges for the builder, no network", "give the plan that was built with it")),
    (0, b"\x89HDF", Foreign("hdf5", "an HDF5 file", "Keras writes these", TO_ONNX)),
    (4, b"TFL3", Foreign("tflite", "a TensorFlow Lite model", "another runtime executes these",
                         "convert it to ONNX (tf2onnx --tflite), then build a plan with trtexec")),
    (4, b"ORTM", Foreign("ort_model", "a model in ONNX Runtime's own format", "it was converted for mobile builds",
                         "give the .onnx file that it was made of")),
    (0, b"GGUF", Foreign("gguf", "a GGUF file", "llama.cpp runs these", "export the model to ONNX")),
    (0, b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19",
     Foreign("pytorch", "a PyTorch file of the format before 1.6", "it holds weights and Python objects", TO_ONNX)),
    (0, b"\x7fELF", Foreign("elf", "a program or a library", "it is no model", "name the model with --engine")),
    (0, b"\x93NUMPY", Foreign("npy", "a NumPy array", "it is an input, no model", "give it with --input")),
    (0, b"\xff\xd8\xff", Foreign("jpeg", "a JPEG picture", "it is an input, no model", "give it with --input")),
    (0, b"\x89PNG", Foreign("png", "a PNG picture", "it is an input, no model", "give it with --input")),
    (0, b"\x1f\x8b", Foreign("gzip", "a gzip file", "models are read as they are", "unpack it: gunzip")),
    (0, b"\xfd7zXZ\x00", Foreign("xz", "an xz file", "models are read as they are", "unpack it: xz -d")),
    (0, b"\x28\xb5\x2f\xfd", Foreign("zstd", "a zstd file", "models are read as they are", "unpack it: zstd -d")),
    (0, b"7z\xbc\xaf\x27\x1c", Foreign("7z", "a 7z archive", "models are read as they are", "unpack it: 7z x")),
    (257, b"ustar", Foreign("tar", "a tar archive", "models are read as they are", "unpack it: tar xf")),
)  # fmt: skip

EXECUTORCH = Foreign(
    "executorch",
    "an ExecuTorch program with a TensorRT plan inside",
    "the plan inside belongs to ExecuTorch",
    "build a plan of its own from the ONNX model",
)
RTX = Foreign(
    "rtx_plan",
    "a TensorRT-RTX plan",
    "TensorRT-RTX is another runtime, of which nothing is inside here",
    "build a plan with TensorRT (trtexec) instead of tensorrt_rtx",
)
SAVED_MODEL = Foreign(
    "saved_model",
    "a TensorFlow SavedModel",
    "TensorFlow runs these",
    "convert it (python -m tf2onnx.convert --saved-model ...), then build a plan with trtexec",
)
ONNX_TEXT = Foreign(
    "onnx_text",
    "an ONNX model as text",
    "runtimes read the binary form",
    "in Python: onnx.save(onnx.load('model.txt', format='textproto'), 'model.onnx')",
)
HTML = Foreign("html", "a web page", "the download brought a page instead of the file", "download it again")
EMPTY = Foreign("empty", "empty", "a copy or a download stopped at once, or the disk was full", AGAIN)
SAFETENSORS = Foreign("safetensors", "a safetensors file", "it holds weights without a network", TO_ONNX)
JSON_TEXT = Foreign("json", "a JSON text", "a model card belongs to --model-card", "name the model with --engine")
XML_TEXT = Foreign("xml", "an XML text", "OpenVINO writes networks like this", TO_ONNX)
FOLDER = Foreign("folder", "a folder", "a model is one file", "name a .plan, .engine or .onnx file")
DEVICE = Foreign("device", "no regular file", "it has no length", "name a .plan, .engine or .onnx file")
UNKNOWN_KIND = "unknown"


def recognise(peek: Peek, head: bytes, name: str) -> Foreign | None:
    """What the file is, None if it is nothing known.

    Args:
        head: its first 4096 bytes, or all.
        name: its path; saved_model.pb is told by its name.
    """
    for offset, magic, found in _MAGICS:
        if head.startswith(magic, offset):
            return found
    if head.startswith(b"TR01"):
        return EXECUTORCH
    if head.startswith(b"PK\x03\x04"):
        return _zip(peek)
    if head[:3] == b"\x08\x01\x12" and (name.endswith("saved_model.pb") or b"\x0a\x05serve" in head):
        return SAVED_MODEL
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head")):
        return HTML
    if text.startswith(b"<?xml"):
        return HTML if b"<html" in text or b"<error" in text else XML_TEXT
    if text.startswith((b"ir_version:", b"producer_name:", b"graph {")) or b"\nir_version:" in text:
        return ONNX_TEXT
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < peek.size:
        return SAFETENSORS
    if text.startswith((b'{"', b"{\n", b"{ ", b"{\r", b"[")):
        return JSON_TEXT
    return None


def _zip(peek: Peek) -> Foreign:
    """Which of the many formats a zip file is, by the names in it."""
    import zipfile  # late: 10 ms, and few files are one

    try:
        with zipfile.ZipFile(_Bounded(peek)) as archive:
            names = archive.namelist()
            pickle = next((name for name in names if name.endswith("/data.pkl")), "")
            start = b""
            if pickle and archive.getinfo(pickle).compress_type == zipfile.ZIP_STORED:
                with archive.open(pickle) as file:
                    start = file.read(4096)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, KeyError, EOFError):
        return Foreign("zip", "a zip file", "PyTorch's .pt files and archives look like this", TO_ONNX)
    return _by_names(names, start)


def _by_names(names: list[str], pickle: bytes) -> Foreign:
    if b"tensorrt" in pickle and b"Engine" in pickle:
        return Foreign("torch_tensorrt", "a Torch-TensorRT module", "the plan inside belongs to PyTorch",
                       "export it with torch_tensorrt's convert_exported_program_to_serialized_trt_engine")  # fmt: skip
    if b"engine" in pickle and b"ftrt" in pickle:
        return Foreign("torch2trt", "a state_dict of torch2trt with a TensorRT plan inside",
                       "the plan lies in a Python object",
                       "take the plan out: open('m.plan','wb').write(torch.load('m.pth')['engine'])")  # fmt: skip
    if any(name.endswith(("/archive_format", "serialized_exported_program.json")) for name in names):
        return Foreign("torch_export", "a program of torch.export", "PyTorch runs these", TO_ONNX)
    if any("/code/__torch__" in name or name.endswith("/constants.pkl") for name in names):
        return Foreign("torchscript", "a TorchScript module", "PyTorch runs these", TO_ONNX)
    if any(name.endswith("data.pkl") for name in names):
        return Foreign("pytorch", "a PyTorch file", "it holds weights and Python objects", TO_ONNX)
    for ending, kind, what in ((".onnx", "zipped_onnx", "an ONNX model"), (".plan", "zipped_plan", "a plan"),
                               (".engine", "zipped_plan", "a plan")):  # fmt: skip
        inside = next((name for name in names if name.lower().endswith(ending)), None)
        if inside is not None:
            return Foreign(kind, f"{what} in a zip file", f"it lies inside as {inside[:200]!r}", "unpack it: unzip")
    if "model.weights.h5" in names:
        return Foreign("keras", "a Keras model", "TensorFlow runs these", TO_ONNX)
    if names and all(name.endswith(".npy") for name in names):
        return Foreign("npz", "NumPy arrays", "they are inputs, no model", "give them with --input")
    return Foreign("zip", "a zip file", "no model is seen in it", "unpack it: unzip")


class _Bounded(io.RawIOBase):
    """A file for zipfile, which reads no more than its Peek allows."""

    def __init__(self, peek: Peek) -> None:
        self._peek = peek
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._peek.size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        size = self._peek.size - self._at if size < 0 else size
        try:
            data = self._peek.read(self._at, size)
        except UnknownError as error:
            raise OSError(str(error)) from error
        self._at += len(data)
        return data
