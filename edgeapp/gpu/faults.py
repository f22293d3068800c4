"""CUDA codes and TensorRT's log lines -> what happened, why, and what to do.

Codes and their meaning: CUDA driver API, enum CUresult (CUDA 13.0).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgeapp import errors

CODES = {
    2: ("out of memory", "another process may hold the GPU's memory: see nvidia-smi"),
    3: ("the driver is not initialised", "restart the program"),
    34: ("the driver library is a stub for linking", "take the stubs folder out of LD_LIBRARY_PATH"),
    35: ("the driver is older than this program needs", "update the NVIDIA driver"),
    36: ("the driver is older than this program needs", "update the NVIDIA driver"),
    46: ("the GPU is busy or unavailable", "see which process uses it: nvidia-smi"),
    100: ("no GPU is visible", "check CUDA_VISIBLE_DEVICES, nvidia-smi, and in a container --gpus all"),
    101: ("there is no such GPU", "choose another with --device"),
    222: ("the kernels are newer than the driver understands", "update the NVIDIA driver"),
    304: ("the operating system refused the driver",
          "check the device nodes and the groups video and render of this user"),
    700: ("a kernel touched memory it must not", ""),
    710: ("a kernel stopped at an assertion", ""),
    714: ("a hardware stack error", ""),
    715: ("a kernel used an illegal instruction", ""),
    716: ("a kernel used a misaligned address", ""),
    717: ("a kernel used an invalid address space", ""),
    718: ("a kernel's program counter went astray", ""),
    719: ("a kernel failed", ""),
    802: ("the system is not ready for CUDA yet", "wait for nvidia-fabricmanager or nvidia-persistenced"),
    803: ("driver library and kernel driver are of different versions",
          "reboot after the driver update, or bind the host's libcuda into the container"),
    804: ("the compatibility libcuda does not support this GPU",
          "take the cuda-compat folder out of LD_LIBRARY_PATH"),
    999: ("the driver failed for an unknown reason", "see dmesg; the GPU may need a reboot"),
}  # fmt: skip

FATAL = frozenset((214, 220, *range(700, 720))) - {704, 705}
"""Codes after which every call of this process fails: only a new process heals."""


def no_gpu(code: int, call: str) -> errors.NoGpuError:
    """The error for a driver that does not come up."""
    why, fix = CODES.get(code, ("the driver gives no usable answer", "see dmesg"))
    return errors.NoGpuError(f"cannot use a GPU: {call} failed with CUDA error {code}", why, fix)


def from_cuda(error: Exception, context_code: int, doing: str) -> errors.EdgeappError:
    """The error for a PyCUDA exception.

    Args:
        context_code: what the context answers afterwards; see `Driver.context_code`.
        doing: "allocating 12 MB for tensor x".
    """
    text = str(error)
    if context_code in FATAL or context_code == 999:
        why, _ = CODES.get(context_code, (text, ""))
        return errors.GpuLostError(
            f"the GPU is lost to this process while {doing}: CUDA error {context_code}",
            why,
            "start the program again; if it comes back, see dmesg for Xid lines",
        )
    if "out of memory" in text:
        return errors.SystemRefusedError(
            f"not enough GPU memory while {doing}",
            text,
            "use a smaller --batch, or free the GPU: nvidia-smi",
        )
    return errors.EdgeappError(f"CUDA failed while {doing}", text, "run again with --debug and report it")


_CC = r"(\d+\.\d+)"
LOG_ROWS = (
    (r"Unexpected call to stub",
     "it was built for the full TensorRT, and the lean runtime lacks a part it needs",
     "rebuild it with: trtexec --versionCompatible --excludeLeanRuntime, or freeze edgeapp with --tensorrt full"),
    (rf"incompatible device.*expecting compute {_CC}.*got compute {_CC}",
     "it was built for a GPU of compute capability {0}, this one has {1}",
     "build the plan on this kind of GPU (or with --hardwareCompatibilityLevel=ampere+)"),
    (r"old deserialization call on a newer plan|Version tag does not match|plan->header.magicTag|version mismatch",
     "it was built by another version of TensorRT",
     "rebuild it, with: trtexec --versionCompatible --excludeLeanRuntime"),
    (r"host code|executable code|hostCodeAllowed",
     "it carries its own runtime code, which is not run for safety",
     "rebuild it with: trtexec --versionCompatible --excludeLeanRuntime"),
    (r"getPluginCreator could not find plugin:? ?'?(\w+)|Cannot (?:find|deserialize) plugin.*?'?(\w+)",
     "it uses the plugin {0}, which this runtime does not have",
     "export the model without the plugin"),
    (r"[Oo]ut of memory|OutOfMemory|bad_alloc|cudaErrorMemoryAllocation",
     "there is not enough GPU memory for it",
     "free the GPU (nvidia-smi), or build a smaller plan"),
    (r"Serialization assertion|Deserialization|deserializ|magicTag",
     "its contents are damaged or not for this runtime",
     "copy or build it again"),
)  # fmt: skip
"""(pattern in a log line, why, fix); the first row that matches any line counts."""


def explain_log(lines: Sequence[str]) -> tuple[str, str]:
    """(why, fix) from TensorRT's error lines; the line itself where none is known."""
    for pattern, why, fix in LOG_ROWS:
        for line in lines:
            match = re.search(pattern, line)
            if match:
                return why.format(*(group for group in match.groups() if group)), fix
    return (lines[-1] if lines else "TensorRT gave no reason"), "run again with --debug to see TensorRT's log"
