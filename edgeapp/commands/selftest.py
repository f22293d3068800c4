"""`edgeapp self-test`: whether everything inside the program can be loaded on this machine; needs no GPU."""

from __future__ import annotations

import ctypes
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from edgeapp import errors, paths
from edgeapp.log import tell
from edgeapp.stopping import Stop

if TYPE_CHECKING:
    from edgeapp.gpu.runtimes import Runtime


def _numpy() -> str:
    import numpy as np

    matrix = np.arange(9.0).reshape(3, 3)
    if (matrix @ matrix)[2, 2] != 111:
        raise ArithmeticError("3x3 times 3x3 gives a wrong product")
    return str(np.__version__)


def _pillow() -> str:
    import PIL
    from PIL import Image

    for kind in ("JPEG", "PNG", "WEBP", "BMP"):
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (10, 200, 30)).save(file, kind)
        if Image.open(file).convert("RGB").getpixel((8, 8))[1] < 190:  # type: ignore[index]
            raise ValueError(f"{kind} comes back with other colours")
    return PIL.__version__


def _pynacl() -> str:
    import nacl
    from nacl import bindings

    # The first test of RFC 8032, section 7.1: an empty message.
    key = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    signature = bytes.fromhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )
    bindings.crypto_sign_open(signature, key)
    return str(nacl.__version__)


def _onnxruntime() -> str:
    from edgeapp.cpu.engine import CpuEngine

    model = paths.resource("demo/model.onnx")
    return CpuEngine(str(model)).name if model.is_file() else "left out (frozen with --slim)"


def _tensorrt() -> str:
    from edgeapp.gpu import runtimes

    carried = runtimes.catalogue()
    for runtime in carried:
        _in_child(partial(_open, runtime))
    return ", ".join(runtime.name for runtime in carried)


def _open(runtime: Runtime) -> None:
    from edgeapp.gpu import engine

    engine.load_libraries(runtime)
    engine.import_bindings(runtime)


def _in_child(action: Callable[[], object]) -> None:
    """Do it in a process of its own: one process takes the bindings of one TensorRT only.

    Raises:
        RuntimeError: it failed or died; its reason is told.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException as error:
            os.write(writer, str(error).encode("utf-8", "backslashreplace")[:4000])
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as file:
        why = file.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != 0:
        raise RuntimeError(why or f"it ended with {status}")


def _libraries() -> str:
    """Every ELF file; PyCUDA's wants the driver, which need not be there."""
    root, count, waiting = paths.library_root(), 0, []
    # Python modules last: they find by name what was loaded.
    for path in sorted(root.rglob("*.so*"), key=lambda path: ("_bindings" in str(path), path)) if paths.FROZEN else []:
        with path.open("rb") as file:
            if path.is_symlink() or file.read(4) != b"\x7fELF":
                continue
        try:
            ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
            count += 1
        except OSError as error:
            why = paths.loader_words(error)
            if "libcuda.so.1" not in why:
                raise OSError(why) from error
            waiting.append(path.name)
    return f"{count} loaded" + (f", waiting for the NVIDIA driver: {', '.join(waiting)}" if waiting else "")


STEPS: dict[str, Callable[[], str]] = {
    "numpy": _numpy,
    "pillow": _pillow,
    "pynacl": _pynacl,
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
    "libraries": _libraries,
}


def self_test(names: Sequence[str], as_json: bool, stop: Stop) -> int:
    """Load the named parts, or all, and print a line for each: name, version, milliseconds.

    Raises:
        UsageError: there is no part of that name.
        SystemRefusedError: something cannot be loaded or does not work here.
    """
    if unknown := [name for name in names if name not in STEPS]:
        raise errors.UsageError(f"unknown part {paths.printable(unknown[0])}", "", f"choose from {', '.join(STEPS)}")
    for name in names or STEPS:
        stop.check()
        began = time.perf_counter()
        try:
            version = STEPS[name]()
        except Exception as error:
            raise errors.SystemRefusedError(
                f"self-test: {name} does not work on this machine",
                str(error),
                "if a GLIBC or GLIBCXX version is missing, the program was built for a newer system",
            ) from error
        milliseconds = round(1000 * (time.perf_counter() - began), 1)
        if as_json:
            tell([json.dumps({"name": name, "version": version, "ms": milliseconds}) + "\n"])
        else:
            tell([f"{name:12s} {milliseconds:7.1f} ms  {version}\n"])
    return 0
