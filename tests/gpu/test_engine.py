"""Promises of the GPU engine that only show from inside the process: whose memory an output is.

Needs a Python with PyCUDA and the lean TensorRT, such as ./build.sh setup makes.
"""

from __future__ import annotations

import ctypes
import gc
import os
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from gpu.compare import DEMO, PLANS, unpacked
from gpu.provoking import Memory

from edgeapp import errors, plan
from edgeapp.bootstrap import Trace, bring_up

pytest.importorskip("pycuda", reason="PyCUDA is not installed in this Python")
pytest.importorskip("tensorrt_lean_libs", reason="TensorRT lean is not installed in this Python")


def opened(name: str, path: Path | None = None, *, own_context: bool = False) -> AbstractContextManager:
    return bring_up(
        plan.identify(str(path or PLANS / f"{name}.plan")),
        device=0,
        library=None,
        detail=lambda text: None,
        trace=Trace(),
        check_stop=lambda: None,
        own_context=own_context,
    )


def ones(value: float) -> dict[str, np.ndarray]:
    return {"x": np.full((1, 3, 32, 32), value, np.float32)}


def test_outputs_are_never_overwritten_by_a_later_run() -> None:
    """What was handed out stays as it was, however often the engine runs again."""
    with opened("conv") as engine:
        first = engine.infer(ones(1))["y"]
        kept = first.copy()
        second = engine.infer(ones(-2))["y"]
        for value in range(20):
            engine.infer(ones(value))
        assert np.array_equal(first, kept)
        assert not np.array_equal(first, second)
        assert not np.shares_memory(first, second)


def test_views_show_the_latest_run() -> None:
    """Who asks for views gets the page-locked buffer itself, and is overwritten as promised."""
    with opened("conv") as engine:
        view = engine.infer(ones(1), views=True)["y"]
        before = view.copy()
        after = engine.infer(ones(-2))["y"]
        assert not np.array_equal(view, before)
        assert np.array_equal(view, after)


def test_replaced_engine_leaves_no_reference_to_old_buffers() -> None:
    """After an engine is replaced its buffers are gone, and old outputs still hold their values."""
    import pycuda.driver as cuda

    with opened("multi_io") as engine:
        inputs = {
            "image": np.ones((2, 3, 100, 100), np.float32), "scale": np.ones(2, np.float32),
            "shift": np.zeros(2, np.int32),
        }  # fmt: skip
        old = engine.infer(inputs)
        kept = {name: array.copy() for name, array in old.items()}
        buffers = [weakref.ref(buffer) for buffer in engine._buffers.values()]
    del engine
    with opened("conv") as engine:
        engine.infer(ones(1))
        for name, array in old.items():
            assert np.array_equal(array, kept[name])
        gc.collect()
        assert [ref() for ref in buffers] == [None] * len(buffers)
        allocations = [o for o in gc.get_objects() if isinstance(o, cuda.DeviceAllocation)]
        assert len(allocations) <= len(engine._buffers)


def test_hundred_reloads_hold_no_memory() -> None:
    """Replacing an engine again and again costs neither GPU memory nor page-locked memory."""
    import pycuda.driver as cuda

    free = []
    for i in range(100):
        with opened("conv" if i % 2 else "classifier") as engine:
            if i % 2:
                engine.infer(ones(i))
            else:
                images = np.zeros((i % 16 + 1, 3, 32, 32), np.float32)
                assert engine.infer({"images": images})["logits"].shape == (i % 16 + 1, 5)
            free.append(cuda.mem_get_info()[0])
    assert min(free[-20:]) >= min(free[10:30]) - (8 << 20)


OPENINGS = 120
PIECE_KB = 2 << 10
"""What the driver takes of a GPU's memory at a time."""


class MallocState(ctypes.Structure):
    """struct mallinfo2 of glibc 2.33 and newer; uordblks: bytes in use."""

    NAMES = (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )  # fmt: skip
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


def kept_kb(do: Callable[[], object], times: int = 20) -> tuple[float, float]:
    """Memory that is still in use after it, each time: of the host, of the GPU."""
    library, on_gpu = ctypes.CDLL(None), Memory()
    library.mallinfo2.restype = MallocState
    for _ in range(3):
        do()
    gc.collect()
    before, before_kb = library.mallinfo2().uordblks, on_gpu.kb(os.getpid())
    for _ in range(times):
        do()
    gc.collect()
    after_kb = on_gpu.kb(os.getpid())
    assert before_kb is not None
    assert after_kb is not None
    return float(library.mallinfo2().uordblks - before) / 1024 / times, (after_kb - before_kb) / times


def test_what_tensorrt_leaves_in_memory_goes_with_the_cuda_context(tmp_path: Path) -> None:
    """TensorRT 8.6.0 never unloads the softmax kernels of the demo's plan: 90 kB, and 25 kB of the GPU, each time.

    The GPU's memory comes in pieces of 2 MB, so that many times are needed to tell.
    """
    from edgeapp.gpu import engine as steps
    from edgeapp.gpu import runtimes

    path = unpacked(DEMO / "model.plan.xz", tmp_path)

    def open_and_close(*, own_context: bool) -> None:
        with opened("demo", path, own_context=own_context) as engine:
            engine.infer({spec.name: np.zeros([max(size, 1) for size in spec.shape], spec.dtype)
                          for spec in engine.inputs})  # fmt: skip

    with opened("demo", path) as held:  # so that the CUDA context stays
        model_file = plan.identify(str(path))
        host = steps.create_runtime(held._trt, held._log)
        guest = steps.load_guest(host, held._log, runtimes.file_of(runtimes.choose(model_file, None).guest))
        alone, alone_gpu = kept_kb(lambda: steps.deserialise(guest, held._log, model_file), OPENINGS)
        shared, shared_gpu = kept_kb(lambda: open_and_close(own_context=False), OPENINGS)
        own, own_gpu = kept_kb(lambda: open_and_close(own_context=True), OPENINGS)
    print(f"\nkept each time: deserialising alone {alone:.1f} kB, of the GPU {alone_gpu:.1f}")
    print(f"a whole opening {shared:.1f} and {shared_gpu:.1f}, in a context of its own {own:.1f} and {own_gpu:.1f}")
    assert shared < alone + 8
    assert shared_gpu < alone_gpu + 2 * PIECE_KB / OPENINGS
    assert own < 2
    assert own_gpu <= PIECE_KB / OPENINGS


def test_wrong_tensors_leave_the_engine_usable() -> None:
    """Every refusal comes before anything is changed."""
    with opened("multi_io") as engine:
        good = {
            "image": np.ones((2, 3, 40, 40), np.float32), "scale": np.ones(2, np.float32),
            "shift": np.zeros(2, np.int32),
        }  # fmt: skip
        wanted = engine.infer(good)
        for wrong in (
            {},
            {**good, "image": np.ones((9, 3, 40, 40), np.float32)},
            {**good, "image": np.ones((2, 4, 40, 40), np.float32)},
            {**good, "shift": np.ones(2, np.float32)},
            {**good, "scale": np.ones(3, np.float32)},
        ):
            with pytest.raises(errors.DataError):
                engine.infer(wrong)
        again = engine.infer(good)
        for name in wanted:
            assert np.array_equal(wanted[name], again[name])
