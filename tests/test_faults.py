"""The translator: TensorRT's log lines, PyCUDA's messages and CUDA's codes become cause, fix and exit code."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from edgeapp import errors, gpus
from edgeapp.gpu import engine, faults

ROWS = [*faults.LOG_ROWS, *faults.LAST_ROWS]


def shorten(row: faults.Row) -> str:
    return re.sub(r"\W+", "-", row.why)[:50].strip("-")


@pytest.mark.parametrize("row", ROWS, ids=shorten)
def test_row_explains_its_own_sample(row: faults.Row) -> None:
    """Every row is reached by its sample: its pattern matches, and no earlier row takes it away."""
    match = re.search(row.pattern, row.sample)
    assert match, row.pattern
    groups = [faults._Group(group) for group in match.groups() if group is not None]
    why, fix, error = faults.explain_log([row.sample])
    assert (why, fix, error) == (row.why.format(*groups), row.fix.format(*groups), row.error)
    assert why
    assert fix


def test_no_two_rows_are_the_same() -> None:
    """A pattern or a sample that stands twice would leave one row without a use."""
    assert len({row.pattern for row in ROWS}) == len({row.sample for row in ROWS}) == len(ROWS)


# Further lines: other versions of TensorRT, several lines together, and the values that must come out.
LINES = {
    "version_8.0": (
        ["6: The engine plan file is not compatible with this version of TensorRT, expecting library version 8.0.0 got "
         "8.0.1, please rebuild.",
         "4: [runtime.cpp::deserializeCudaEngine::74] Error Code 4: Internal Error (Engine deserialization failed.)"],
        "it was built by TensorRT 8.0.1, this runtime is 8.0.0", 65),
    "archive_8.4_8.2": (
        ["1: [stdArchiveReader.cpp::StdArchiveReader::40] Error Code 1: Serialization (Serialization assertion "
         "stdVersionRead == serializationVersion failed.Version tag does not match. Note: Current Version: 213, "
         "Serialized Engine Version: 205)"],
        "it was built by TensorRT 8.2 (archive version 205), this runtime is TensorRT 8.4 (archive version 213)", 65),
    "archive_unknown": (
        ["Version tag does not match. Note: Current Version: 226, Serialized Engine Version: 228)"],
        "it was built by a TensorRT with archive version 228, this runtime is a TensorRT with archive version 226", 65),
    "magic_ultralytics": (
        ["(Serialization assertion header.magicTag == rt::PlanMagicTag::kPLAN_MAGIC_TAG failed.Trying to load an "
         "engine created with incompatible serialization version (1825 != 1953657958)."],
        "it is most likely an Ultralytics engine: 1825 bytes of JSON before the plan; this runtime reads a TensorRT "
        "plan", 65),
    "magic_safety": (
        ["Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed.Trying to load an engine created with "
         "incompatible serialization version (1297697870 != 1953657958)."],
        "it is a plan for the safety runtime; this runtime reads a TensorRT plan", 65),
    "magic_8.6": (
        ["1: [runtime.cpp::parsePlan::314] Error Code 1: Serialization (Serialization assertion plan->header.magicTag "
         "== rt::kPLAN_MAGIC_TAG failed.)"],
        "it is no plan that this TensorRT knows: one of 8.5 or older, one with something before it, or another file",
        65),
    "compute_names": (
        ["IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is generated on an "
         "incompatible device, expecting compute 11.0 got compute 8.7, please rebuild.)"],
        "it was built for a GPU of compute capability 8.7 (Jetson Orin), this one has 11.0 (Jetson Thor)", 65),
    "compute_unknown": (
        ["expecting compute 13.7 got compute 7.5, please rebuild."],
        "it was built for a GPU of compute capability 7.5 (Turing: T4, GeForce GTX 16 and RTX 20), this one has 13.7",
        65),
    "unsupported_sm": (
        ["Error Code 1: Internal Error (Unsupported SM: 0x809)"],
        "this TensorRT does not know GPUs of compute capability 8.9 (GeForce RTX 40, L4, L40, RTX Ada)", 65),
    "plugin_7": (
        ["INVALID_ARGUMENT: getPluginCreator could not find plugin Prelu_TRT version 1",
         "safeDeserializationUtils.cpp (259) - Serialization Error in load: 0 (Cannot deserialize plugin since "
         "corresponding IPluginCreator not found in Plugin Registry)"],
        "it uses the plugin Prelu_TRT, which this runtime does not have", 65),
    "plugin_10_two_lines": (
        ["IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion creator failed.Cannot "
         "deserialize plugin since corresponding IPluginCreatorInterface not found in Plugin Registry)",
         "IPluginRegistry::getCreator: Error Code 4: API Usage Error (Cannot find plugin: ROIAlign_TRT, version: 2, "
         "namespace:.)"],
        "it uses the plugin ROIAlign_TRT, which this runtime does not have", 65),
    "memory_named": (
        ["1: [defaultAllocator.cpp::allocate::19] Error Code 1: Cuda Runtime (out of memory)",
         "Requested amount of GPU memory (17920000000 bytes) could not be allocated. There may not be enough free "
         "memory for allocation to succeed.",
         "2: [executionContext.cpp::ExecutionContext::470] Error Code 2: OutOfMemory (no further information)"],
        "it asked for 17.9 GB of GPU memory, and there is not so much", 71),
    "memory_unnamed": (
        ["1: [defaultAllocator.cpp::allocate::19] Error Code 1: Cuda Runtime (out of memory)"],
        "there is not enough GPU memory for it", 71),
    "driver_35": (
        ["CUDA initialization failure with error: 35. Please check your CUDA installation: "
         "http://docs.nvidia.com/cuda/cuda-installation-guide-linux/index.html"],
        "the driver is older than the CUDA runtime in this program (CUDA error 35)", 69),
    "driver_text": (
        ["Cuda failure: CUDA driver version is insufficient for CUDA runtime version"],
        "the driver is older than the CUDA runtime in this program (CUDA error 35)", 69),
    "driver_222": (
        ["Cuda Error in copyToDevice: 222 (the provided PTX was compiled with an unsupported toolchain.)"],
        "the kernels are newer than the driver understands (CUDA error 222)", 69),
    "driver_versions": (
        ["Insufficient driver: 11040 < 12080"],
        "the driver serves CUDA 11.4, this program needs CUDA 12.8", 69),
    "sticky": (
        ["IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (an illegal memory access was encountered)"],
        "a kernel touched memory it must not (CUDA error 700)", 75),
    "sticky_before_what_follows_from_it": (
        ["2: [executionContext.cpp::ExecutionContext::470] Error Code 2: OutOfMemory (no further information)",
         "1: [runner.cpp::execute::718] Error Code 1: Myelin (Final synchronize failed (700))"],
        "a kernel touched memory it must not (CUDA error 700)", 75),
    "destroyed": (
        ["1: [graphContext.h::~MyelinGraphContext::35] Error Code 1: Myelin (Error 709 destroying stream "
         "'0x19d55400'.)"],
        "the CUDA context was destroyed under the program (CUDA error 709)", 75),
    "handle": (
        ["IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (invalid resource handle)"],
        "a stream or an event belongs to another CUDA context (CUDA error 400)", 70),
    "no_kernel": (
        ["1: [slice.cu::launch::148] Error Code 1: Cuda Runtime (no kernel image is available for execution on the "
         "device)",
         "4: [runtime.cpp::deserializeCudaEngine::50] Error Code 4: Internal Error (Engine deserialization failed.)"],
        "it holds no machine code for this GPU (CUDA error 209)", 65),
    "dla": (
        ["dla/dlaUtils.cpp (171) - DLA Error in deserialize: 7 (Failure to load program.)"],
        "it was built for a DLA, and this machine or TensorRT has none that it can use", 65),
    "xid": (
        ["NVRM: Xid (PCI:0000:65:00): 48, pid=1"],
        "the driver reported Xid 48 (a double bit ECC error)", 75),
    "profile_values": (
        ["IExecutionContext::setInputShape: Error Code 3: API Usage Error (Parameter check failed, condition: "
         "satisfyProfile. Set dimension [0,2] for tensor x does not satisfy any optimization profiles. Valid range for "
         "profile 0: [1,2]..[8,2].)"],
        "the plan takes tensor x from [1,2] to [8,2], not [0,2]", 65),
    "output_address": (
        ["Neither address or allocator is set for output tensor boxes. Call setOutputTensorAddress, setTensorAddress "
         "or setOutputAllocator before enqueue/execute."],
        "tensor boxes was given no memory", 70),
    "unknown": (["some line that nobody knows"], "some line that nobody knows", 65),
    "nothing": ([], "TensorRT gave no reason", 65),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_log_lines_become_cause_and_exit_code(name: str) -> None:
    """The values in the lines are in the cause; the exit code tells an operator whether a restart helps."""
    lines, why, exit_code = LINES[name]
    error = faults.refused("cannot run m.plan", lines)
    assert (error.why, error.exit_code) == (why, exit_code)
    assert error.what == "cannot run m.plan"
    assert error.fix


@pytest.mark.parametrize(
    "line",
    ["CUDA lazy loading is not enabled. Enabling it can significantly reduce device memory usage",
     "onnx2trt_utils.cpp:374: Your ONNX model has been generated with INT64 weights, while TensorRT does not natively "
     "support INT64. Attempting to cast down to INT32.",
     "Using default stream in enqueueV3() may lead to performance issues due to additional calls to "
     "cudaStreamSynchronize() by TensorRT",
     "[MemUsageChange] TensorRT-managed allocation in engine deserialization: CPU +0, GPU +31"],
    ids=["lazy", "int64", "default-stream", "memory-change"],
)  # fmt: skip
def test_harmless_warnings_are_not_kept(line: str) -> None:
    """What TensorRT warns of in every healthy run never stands in for the cause of a later error."""
    assert not faults.TELLING_WARNINGS.search(line)


def test_memory_left_is_named_where_it_helps() -> None:
    """An allocation on the GPU that failed says what was asked for and what is free; others do not."""
    line = "Requested amount of GPU memory (2000000000 bytes) could not be allocated."
    error = faults.refused("x", [line], (500_000_000, 8_000_000_000))
    assert error.why == ("it asked for 2.0 GB of GPU memory, and there is not so much; 500.0 MB of 8.0 GB are free")
    host = faults.refused("x", ["Requested amount of memory (150994944 bytes) could not be allocated."], (1, 2))
    assert host.why == "it asked for 151.0 MB of host memory, and there is not so much"


class StandIn:
    """Stands in for TensorRT's Python module: the logger's base class, and a Runtime that logs `lines`.

    The Runtime is what 10.16 and 11.4 give where CUDA does not start: an object whose first use ends the process.
    """

    class ILogger:
        class Severity:
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self, *lines: str) -> None:
        self._lines = lines

    def Runtime(self, logger: Any) -> Any:  # noqa: N802 - TensorRT's name
        class Deadly:
            def __setattr__(self, name: str, value: object) -> None:
                raise AssertionError("the process would be gone")

        for line in self._lines:
            logger.log(self.ILogger.Severity.WARNING, line)
        return Deadly()


def test_debug_shows_the_original_lines() -> None:
    """--debug passes on what TensorRT said, word for word, but for its chatter; errors are kept for the translator."""
    said: list[str] = []
    log = engine.make_logger(StandIn(), said.append)
    severity = StandIn.ILogger.Severity
    log.log(severity.ERROR, "Error Code 1: Serialization (...)")
    log.log(severity.WARNING, "CUDA lazy loading is not enabled.")
    log.log(severity.WARNING, "Requested amount of GPU memory (9 bytes) could not be allocated.")
    log.log(severity.INFO, "Loaded engine size: 1 MiB")
    log.log(severity.VERBOSE, "chatter")
    assert said == [
        "TensorRT: Error Code 1: Serialization (...)",
        "TensorRT: CUDA lazy loading is not enabled.",
        "TensorRT: Requested amount of GPU memory (9 bytes) could not be allocated.",
        "TensorRT: Loaded engine size: 1 MiB",
    ]
    assert list(log.errors) == [
        "Error Code 1: Serialization (...)",
        "Requested amount of GPU memory (9 bytes) could not be allocated.",
    ]


def test_runtime_without_cuda_is_refused_before_its_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT says that CUDA does not start and hands out an object all the same: it is never touched."""
    monkeypatch.setattr(engine, "Driver", lambda: type("NoMemory", (), {"memory": lambda self: None})())
    trt = StandIn("CUDA initialization failure with error: 35. Please check your CUDA installation")
    with pytest.raises(errors.NoGpuError, match="TensorRT cannot start") as caught:
        engine.create_runtime(trt, engine.make_logger(trt, lambda _: None))
    assert caught.value.fix == faults.UPDATE


@pytest.mark.parametrize(
    ("number", "name"),
    [(1953657958, "a TensorRT plan"), (1953657974, "a TensorRT-RTX plan"),
     (1953657968, "a plan of TensorRT 8.5 or older"), (1297697870, "a plan for the safety runtime"),
     (0x04034B50, "a zip file (PyTorch's .pt is one)"), (int.from_bytes(b"<!DO", "little"), "a web page"),
     (int.from_bytes(b"<htm", "little"), "a web page"),
     (int.from_bytes(b"\x08\x08\x12\x07", "little"), "an ONNX model"),
     (int.from_bytes(b"vers", "little"), "a git-LFS pointer"), (0xE0FFD8FF, "a JPEG picture"),
     (556, "most likely an Ultralytics engine: 556 bytes of JSON before the plan"),
     (0xDEADBEEF, "no known kind of file: ef be ad de (....)"),
     (0x64636261, "no known kind of file: 61 62 63 64 (abcd)"),
     (0, "no known kind of file: 00 00 00 00 (....)")],
    ids=str,
)  # fmt: skip
def test_magic_number_is_decoded_to_its_bytes(number: int, name: str) -> None:
    """The decimal number in TensorRT's message is the file's first four bytes."""
    assert faults.magic_name(number) == name


@pytest.mark.parametrize("code", faults.CODES)
def test_every_code_has_cause_and_fix_and_is_found_by_its_text(code: int) -> None:
    """PyCUDA and TensorRT give the driver's text only: it leads back to the code."""
    row = faults.CODES[code]
    assert row.why
    assert row.fix
    assert faults.code_of(f"cuMemAlloc failed: {row.text}") == code
    assert faults.code_of(f"[cuda.cpp::f::1] Error Code 1: Cuda Runtime ({row.text})") == code


@pytest.mark.parametrize("code", [214, 220, 700, 702, 709, 710, *range(714, 720), 999])
def test_codes_that_only_a_restart_heals_are_fatal(code: int) -> None:
    """CUDA's reference says of these that the process must be started anew."""
    assert code in faults.FATAL


@pytest.mark.parametrize("code", [1, 2, 100, 201, 209, 222, 400, 701, 803])
def test_codes_that_leave_the_context_whole_are_not_fatal(code: int) -> None:
    """After these other calls still work: the process may go on."""
    assert code not in faults.FATAL


@pytest.mark.parametrize(
    ("text", "context_code", "kind", "what"),
    [("cuMemAlloc failed: out of memory", 0, errors.SystemRefusedError, "not enough GPU memory while x"),
     ("cuMemHostAlloc failed: out of memory", 0, errors.SystemRefusedError, "not enough page-locked host memory"),
     ("cuCtxSynchronize failed: an illegal memory access was encountered", 700, errors.GpuLostError, "CUDA error 700"),
     ("cuStreamSynchronize failed: misaligned address", 0, errors.GpuLostError, "CUDA error 716"),
     ("execute_async_v3 failed", 719, errors.GpuLostError, "the GPU is lost to this process while x: CUDA error 719"),
     ("cuMemAlloc failed: out of memory", 999, errors.GpuLostError, "CUDA error 999"),
     ("cuStreamCreate failed: context is destroyed", 0, errors.GpuLostError, "CUDA error 709"),
     ("cuMemAlloc failed: invalid device context", 201, errors.EdgeappError, "CUDA error 201"),
     ("explicit_context_dependent failed: invalid device context - no currently active context?", 0,
      errors.EdgeappError, "CUDA error 201"),
     ("cuDevicePrimaryCtxRetain failed: CUDA-capable device(s) is/are busy or unavailable", 0, errors.NoGpuError,
      "CUDA error 46"),
     ("cuInit failed: system has unsupported display driver / cuda driver combination", 0, errors.NoGpuError,
      "CUDA error 803"),
     ("cuEventRecord failed: invalid resource handle", 0, errors.EdgeappError, "CUDA error 400"),
     ("execute_async_v3 failed", 733, errors.EdgeappError, "CUDA failed while x: CUDA error 733"),
     ("something else", 0, errors.EdgeappError, "CUDA failed while x")],
)  # fmt: skip
def test_pycuda_message_becomes_the_error_of_its_code(
    text: str, context_code: int, kind: type[errors.EdgeappError], what: str
) -> None:
    """The same table serves PyCUDA; a context that is broken for good wins over the message."""
    error = faults.from_cuda(RuntimeError(text), context_code, "x", (10_000_000, 20_000_000))
    assert type(error) is kind
    assert what in error.what
    assert error.why
    assert error.fix


def test_memory_left_is_named_for_pycuda_too() -> None:
    """An allocation that PyCUDA was refused tells what is free."""
    error = faults.from_cuda(RuntimeError("cuMemAlloc failed: out of memory"), 0, "x", (10_000_000, 20_000_000))
    assert error.why == "cuMemAlloc failed: out of memory; 10.0 MB of 20.0 MB are free"


@pytest.mark.parametrize(
    ("serves", "needed", "told"),
    [((12, 2), 12, False), ((13, 0), 12, False), ((12, 9), 13, True), ((11, 4), 12, True), ((11, 4), 0, False)],
)
def test_driver_of_an_older_cuda_major_is_too_old(serves: tuple[int, int], needed: int, told: bool) -> None:
    """Within a major every driver will do; both versions are named where it will not."""
    error = faults.old_driver(serves, needed)
    assert (error is not None) == told
    if error:
        assert error.why == f"the driver serves CUDA {serves[0]}.{serves[1]}, this program needs CUDA {needed}"


def test_hidden_gpus_are_told_by_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuInit's 100 with sound device nodes and CUDA_VISIBLE_DEVICES set: the variable is the cause."""
    monkeypatch.setattr("edgeapp.gpu.machine.node_trouble", lambda: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    error = faults.no_gpu(100, "cuInit")
    assert error.why == "no GPU is visible: CUDA_VISIBLE_DEVICES is '7'"
    assert "unset CUDA_VISIBLE_DEVICES" in error.fix


def test_gpus_hidden_on_purpose_are_told_whatever_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty CUDA_VISIBLE_DEVICES is a cause of its own; nobody is sent after device nodes."""
    monkeypatch.setattr("edgeapp.gpu.machine.node_trouble", lambda: ("there is no /dev/nvidiactl", "modprobe"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert faults.no_gpu(100, "cuInit").why == "no GPU is visible: CUDA_VISIBLE_DEVICES is ''"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert faults.no_gpu(100, "cuInit").why == "no GPU is visible: there is no /dev/nvidiactl"


def test_closed_device_nodes_make_the_fix_concrete(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine shows stands in the cause, and its fix replaces the general one."""
    trouble = ("/dev/nvmap: the user bob is not in the group video", "sudo usermod -aG video bob")
    monkeypatch.setattr("edgeapp.gpu.machine.node_trouble", lambda: trouble)
    error = faults.no_gpu(304, "cuInit")
    assert error.why == f"the operating system refused the driver: {trouble[0]}"
    assert error.fix == trouble[1]


def noise(kind: str) -> list[str]:
    rng = random.Random(kind)
    words = [row.sample for row in ROWS] + [row.text for row in faults.CODES.values()]
    pieces = [word[: rng.randrange(len(word))] for word in words]
    return {
        "bytes": [rng.randbytes(rng.randrange(3000)).decode("latin-1") for _ in range(200)],
        "letters": ["a" * 1_000_000, " " * 1_000_000, "[" * 100_000, "9" * 100_000, "\x00" * 100_000, ""],
        "halves": ["".join(rng.choices(pieces, k=8)) for _ in range(300)],
        "repeats": [word * 200 for word in words],
        "digits": [re.sub(r"\d+", "9" * 400, word) for word in words] + [re.sub(r"\d", "\u0663", w) for w in words],
        "braces": ["could not find plugin {0} {1:gpu}", "{", "}", "Cannot find plugin: {0:magic}, version: {9}"],
    }[kind]


@pytest.mark.parametrize("kind", ["bytes", "letters", "halves", "repeats", "digits", "braces"])
def test_no_line_makes_the_translator_fail_or_wait(kind: str) -> None:
    """Whatever is logged, an answer comes; the best of three tries takes less than 10 ms of a core."""

    def best_ms(call: Callable[[], object]) -> float:
        times = []
        for _ in range(3):
            started = time.thread_time()
            call()
            times.append((time.thread_time() - started) * 1e3)
        return min(times)

    for line in noise(kind):
        for call in (lambda text=line: faults.explain_log([text]), lambda text=line: faults.code_of(text)):
            taken = best_ms(call)
            assert taken < 10, f"{taken:.1f} ms for {line[:80]!r}"
        error = faults.from_cuda(RuntimeError(line), 0, "x")
        assert error.what


def test_fifty_long_lines_are_explained_at_once() -> None:
    """As many lines as the logger keeps: nobody waits for the cause."""
    started = time.thread_time()
    faults.explain_log(["x" * 10_000] * 50)
    assert time.thread_time() - started < 1


@pytest.mark.parametrize(
    ("capability", "name"),
    [((5, 3), "Jetson Nano, TX1"), ((6, 2), "Jetson TX2"), ((7, 2), "Jetson Xavier"), ((8, 7), "Jetson Orin"),
     ((11, 0), "Jetson Thor"), ((9, 0), "H100, H200, GH200"), ((99, 9), "")],
)  # fmt: skip
def test_compute_capability_has_a_name(capability: tuple[int, int], name: str) -> None:
    """The numbers in TensorRT's messages are named as people know the GPUs; unknown ones have no name."""
    assert gpus.name_of(*capability) == name


def test_compute_capability_is_described_with_and_without_a_name() -> None:
    """The number is always there."""
    assert gpus.described(8, 7) == "8.7 (Jetson Orin)"
    assert gpus.described(99, 9) == "99.9"
