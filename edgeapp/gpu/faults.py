"""CUDA codes and TensorRT's log lines -> what happened, why, and what to do: one table for each, nothing else.

Codes, their texts and which of them need a new process: CUDA driver and runtime API, enums CUresult and cudaError
(CUDA 13.0). PyCUDA and TensorRT repeat the texts, so that both can be looked up here.

Log lines: as TensorRT 7 to 11.4 write them, from public reports or from the texts in its libraries (there with values
filled in). In "expecting X got Y" X is what this machine has and Y what the plan was built for: a plan of a P6000 (6.1)
on an RTX 2080 Ti (7.5) gives "expecting compute 7.5 got compute 6.1" (microsoft/onnxruntime#15250), TensorRT 8.2.4 says
"expecting library version 8.2.4 got 8.2.3" to a plan of 8.2.3 (pytorch/TensorRT#1059).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edgeapp import errors, gpus
from edgeapp.gpu import machine
from edgeapp.plan.header import ARCHIVE_VERSIONS

LONGEST = 1000
"""Characters of a log line that are looked at; TensorRT cuts its own at about 500."""

RESTART = "start the program again; if it comes back, see dmesg for Xid lines"
UPDATE = "update the NVIDIA driver"
REPORT = "run again with --debug and report it"
REBUILD = "rebuild it with: trtexec --versionCompatible --excludeLeanRuntime"
COPY = "copy or build it again"
PLUGIN = "give the library that has it: --plugin FILE.so (TensorRT's own plugins: freeze edgeapp with --tensorrt full)"
FREE = "free the GPU (nvidia-smi shows who uses it), use a smaller --batch, or build a smaller plan"
FREE_HOST = "close other programs or add swap; on a Jetson the GPU takes from the same memory"

DATA, SYSTEM, NO_GPU = errors.DataError, errors.SystemRefusedError, errors.NoGpuError
LOST, BUG = errors.GpuLostError, errors.EdgeappError


class Code(NamedTuple):
    """A row of CODES: the driver's own text for the code, cause, fix, and the error that it becomes."""

    text: str
    why: str
    fix: str
    error: type[errors.EdgeappError]


class Row(NamedTuple):
    """A row of LOG_ROWS.

    Attributes:
        sample: a line that TensorRT writes; the test of the row.
        pattern: what is looked for in a line.
        why: cause; {0}, {1} are the groups that matched, {0:gpu} and so on see `_Group`.
        fix: what to do; the same fields.
        error: what it becomes.
    """

    sample: str
    pattern: str
    why: str
    fix: str
    error: type[errors.EdgeappError] = DATA


class Explanation(NamedTuple):
    """What log lines come to."""

    why: str
    fix: str
    error: type[errors.EdgeappError]


CODES = {
    1: Code("invalid argument", "the driver was given a value that it cannot use", REPORT, BUG),
    2: Code("out of memory", "another process may hold the GPU's memory", FREE, SYSTEM),
    3: Code("initialization error", "the driver is not initialised, or this process forked after it was",
            "start the program again", NO_GPU),
    4: Code("driver shutting down", "the process is ending already", REPORT, BUG),
    34: Code("CUDA driver is a stub library", "the driver library is a stub for linking",
             "take the stubs folder out of LD_LIBRARY_PATH", NO_GPU),
    35: Code("CUDA driver version is insufficient for CUDA runtime version",
             "the driver is older than the CUDA runtime in this program", UPDATE, NO_GPU),
    36: Code("API call is not supported in the installed CUDA driver",
             "the driver is older than this program needs", UPDATE, NO_GPU),
    46: Code("CUDA-capable device(s) is/are busy or unavailable", "the GPU is busy, or another process has it alone",
             "see which process uses it: nvidia-smi; its compute mode should be Default", NO_GPU),
    100: Code("no CUDA-capable device is detected", "no GPU is visible",
              "check CUDA_VISIBLE_DEVICES, nvidia-smi, and in a container --gpus all", NO_GPU),
    101: Code("invalid device ordinal", "there is no such GPU", "choose another with --device", NO_GPU),
    200: Code("device kernel image is invalid", "the machine code in it is damaged, or for another GPU",
              "build the plan on this kind of GPU", DATA),
    201: Code("invalid device context", "no CUDA context is current on this thread", REPORT, BUG),
    209: Code("no kernel image is available for execution on the device",
              "it holds no machine code for this GPU", "build the plan on this kind of GPU", DATA),
    214: Code("uncorrectable ECC error encountered", "the GPU's memory has a fault that ECC cannot mend",
              f"{RESTART}; a GPU that does it often has to be replaced", LOST),
    216: Code("exclusive-thread device already in use by a different thread", "another process has the GPU alone",
              "nvidia-smi --compute-mode=DEFAULT", NO_GPU),
    218: Code("a PTX JIT compilation failed", "the driver cannot compile the kernels for this GPU", UPDATE, DATA),
    220: Code("uncorrectable NVLink error detected during the execution", "the link between GPUs failed",
              RESTART, LOST),
    221: Code("PTX JIT compiler library not found", "the driver is installed without libnvidia-ptxjitcompiler",
              "install the whole driver; in a container start it with --runtime nvidia", NO_GPU),
    222: Code("the provided PTX was compiled with an unsupported toolchain",
              "the kernels are newer than the driver understands", UPDATE, NO_GPU),
    226: Code("Invalid access of peer GPU memory over nvlink or a hardware error",
              "the GPU shut an error in, and this process with it", RESTART, LOST),
    304: Code("OS call failed or operation not supported on this OS", "the operating system refused the driver",
              "check the device nodes and the groups video and render of this user", NO_GPU),
    400: Code("invalid resource handle", "a stream or an event belongs to another CUDA context", REPORT, BUG),
    700: Code("an illegal memory access was encountered", "a kernel touched memory it must not", RESTART, LOST),
    701: Code("too many resources requested for launch", "a kernel wants more registers or threads than this GPU has",
              "build the plan on this kind of GPU", DATA),
    702: Code("the launch timed out and was terminated", "a kernel ran so long that the watchdog of a display ended it",
              f"{RESTART}; use a GPU without a display", LOST),
    709: Code("context is destroyed", "the CUDA context was destroyed under the program", RESTART, LOST),
    710: Code("device-side assert triggered", "a kernel stopped at an assertion", RESTART, LOST),
    714: Code("hardware stack error", "a hardware stack error", RESTART, LOST),
    715: Code("an illegal instruction was encountered", "a kernel used an illegal instruction", RESTART, LOST),
    716: Code("misaligned address", "a kernel used a misaligned address", RESTART, LOST),
    717: Code("operation not supported on global/shared address space", "a kernel used an invalid address space",
              RESTART, LOST),
    718: Code("invalid program counter", "a kernel's program counter went astray", RESTART, LOST),
    719: Code("unspecified launch failure", "a kernel failed", RESTART, LOST),
    721: Code("tensor memory not completely freed", "a kernel left tensor memory behind", RESTART, LOST),
    801: Code("operation not supported", "this GPU or driver cannot do what was asked", UPDATE, NO_GPU),
    802: Code("system not yet initialized", "the system is not ready for CUDA yet",
              "wait for nvidia-fabricmanager or nvidia-persistenced", NO_GPU),
    803: Code("system has unsupported display driver / cuda driver combination",
              "driver library and kernel driver are of different versions",
              "reboot after the driver update, or bind the host's libcuda into the container", NO_GPU),
    804: Code("forward compatibility was attempted on non supported HW",
              "the compatibility libcuda does not support this GPU",
              "take the cuda-compat folder out of LD_LIBRARY_PATH", NO_GPU),
    805: Code("MPS client failed to connect to the MPS control daemon or the MPS server",
              "CUDA_MPS_PIPE_DIRECTORY points to an MPS that does not answer",
              "start nvidia-cuda-mps-control, or unset CUDA_MPS_PIPE_DIRECTORY", NO_GPU),
    900: Code("operation not permitted when stream is capturing",
              "the engine does something that a CUDA graph cannot hold", REPORT, BUG),
    911: Code("an async error has occured in external entity outside of CUDA",
              "a device that the GPU works with failed", RESTART, LOST),
    999: Code("unknown error", "the driver failed for an unknown reason", "see dmesg; the GPU may need a reboot", LOST),
}  # fmt: skip
"""Every code has a cause and a fix."""

FATAL = frozenset(code for code, row in CODES.items() if row.error is LOST)
"""Codes after which every call of this process fails: only a new process heals."""

LOG_ROWS = (
    # memory
    Row("Requested amount of GPU memory (17920000000 bytes) could not be allocated. There may not be enough free "
        "memory for allocation to succeed.",
        r"Requested amount of GPU memory \((\d{1,15}) bytes\)",
        "it asked for {0:bytes} of GPU memory, and there is not so much", FREE, SYSTEM),
    Row("2: [virtualMemoryBuffer.cpp::resizePhysical::140] Error Code 2: OutOfMemory (Requested size was 22942842880 "
        "bytes.)",
        r"Requested size was (\d{1,15}) bytes",
        "it asked for {0:bytes} of GPU memory, and there is not so much", FREE, SYSTEM),
    Row("Requested amount of memory (150994944 bytes) could not be allocated. There may not be enough free memory for "
        "allocation to succeed.",
        r"Requested amount of memory \((\d{1,15}) bytes\)",
        "it asked for {0:bytes} of host memory, and there is not so much", FREE_HOST, SYSTEM),
    Row("Unexpected exception std::bad_alloc",
        r"bad_alloc|Cannot allocate (?:value )?memory for",
        "there is not enough host memory for it", FREE_HOST, SYSTEM),
    Row("2: [executionContext.cpp::ExecutionContext::470] Error Code 2: OutOfMemory (no further information)",
        r"OutOfMemory|[Oo]ut of memory|user allocator error allocating|run-time allocation failed"
        r"|-byte allocation failed|GPU memory allocation failed|MemoryAllocation",
        "there is not enough GPU memory for it", FREE, SYSTEM),
    # the driver
    Row("Insufficient driver: 11040 < 12000",
        r"Insufficient driver: (\d+) < (\d+)",
        "the driver serves CUDA {0:cuda}, this program needs CUDA {1:cuda}", UPDATE, NO_GPU),
    Row("Failed to query CUDA driver version. Please check Nvidia GPU driver installation.",
        r"Failed to (?:query CUDA driver version|load CUDA driver)",
        "the driver does not answer", "check nvidia-smi; in a container add --runtime nvidia --gpus all", NO_GPU),
    Row("NVRM: Xid (PCI:0000:65:00): 79, pid=4242, GPU has fallen off the bus.",
        r"Xid \([\w:.]+\): (\d+)",
        "the driver reported Xid {0} ({0:xid})", RESTART, LOST),
    # TensorRT's version
    Row("6: The engine plan file is not compatible with this version of TensorRT, expecting library version 8.2.4 got "
        "8.2.3, please rebuild.",
        r"expecting library version (\d[\d.]*) got (\d[\d.]*)",
        "it was built by TensorRT {1}, this runtime is {0}", REBUILD),
    Row("Serialization assertion safeVersionRead == safeSerializationVersion failed.Version tag does not match. Note: "
        "Current Version: 0, Serialized Engine Version: 43",
        r"safeVersionRead == ",
        "it was built by TensorRT 7 or older, or it is no plan", REBUILD),
    Row("IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion stdVersionRead == "
        "kSERIALIZATION_VERSION failed.Version tag does not match. Note: Current Version: 240, Serialized Engine "
        "Version: 239)",
        r"Current Version: (\d+), Serialized Engine Version: (\d+)",
        "it was built by {1:archive}, this runtime is {0:archive}", REBUILD),
    Row("coreReadArchive.cpp (38) - Serialization Error in verifyHeader: 0 (Version tag does not match)",
        r"Version tag does not match",
        "it was built by another version of TensorRT", REBUILD),
    Row("TensorRT plan major version does not match runtime major version. Plan version: 8.6.0, runtime library "
        "version: 10.16.1",
        r"Plan version: (\d[\d.]*\d), runtime library version: (\d[\d.]*\d)",
        "it was built by TensorRT {0}, this runtime is {1}", REBUILD),
    Row("TensorRT plan major version does not match runtime major version.",
        r"plan major version does not match",
        "it was built by another major version of TensorRT", REBUILD),
    Row("Engine Version Forward Compatibility supported starting TensorRT 8.6. This Engine was created with TensorRT "
        "8.5.3 and is version-locked.",
        r"created with TensorRT (\d[\d.]*\d) and is version-locked",
        "it was built by TensorRT {0}, before version compatible plans existed (8.6)", REBUILD),
    Row("Failed due to an old deserialization call on a newer plan file. This might happen when the plan file was "
        "built from an older TensorRT version.",
        r"old deserialization call on a newer plan",
        "it was built by an older major version of TensorRT", REBUILD),
    Row("Called with a graph created by a myelin library version 2.7 which is incompatible with the version of this "
        "library (2.9)",
        r"created by a myelin library version",
        "it was built by another version of TensorRT", REBUILD),
    Row("Platform specific tag mismatch detected. TensorRT plan files are only supported on the target runtime "
        "platform they were created on.",
        r"Platform specific tag mismatch|expectedPlatformTag",
        "it was built for another operating system, such as Windows", "build it on Linux, on this kind of machine"),
    # no plan at all
    Row("Trying to load an engine created with incompatible serialization version (1825 != 1953657958). Check that the "
        "engine was not created using safety runtime, same OS was used and version compatibility parameters were set "
        "accordingly and that it is a TRT engine file.",
        r"incompatible serialization version \((\d+) != (\d+)\)",
        "it is {0:magic}; this runtime reads {1:magic}", "give a plan built by trtexec"),
    Row("1: [stdArchiveReader.cpp::StdArchiveReader::32] Error Code 1: Serialization (Serialization assertion "
        "magicTagRead == kMAGIC_TAG failed.Magic tag does not match)",
        r"magicTag|[Mm]agic tag does not match|incompatible serialization version|Not a valid plan stream",
        "it is no plan that this TensorRT knows: one of 8.5 or older, one with something before it, or another file",
        "give a plan built by trtexec; " + REBUILD),
    # another GPU
    Row("6: The engine plan file is generated on an incompatible device, expecting compute 9.0 got compute 8.7, please "
        "rebuild.",
        r"expecting compute (\d+\.\d+) got compute (\d+\.\d+)",
        "it was built for a GPU of compute capability {1:gpu}, this one has {0:gpu}",
        "build the plan on this kind of GPU (or with --hardwareCompatibilityLevel=ampere+)"),
    Row("The current device is not compatible with this hardware-compatible engine. Expected compute capability >=8.0 "
        "but got compute capability =7.5",
        r"Expected compute capability >= ?(\d+\.\d+).{0,9} got compute capability = ?(\d+\.\d+)",
        "it was built for GPUs of compute capability {0:gpu} and newer, this one has {1:gpu}",
        "build the plan on this kind of GPU, without --hardwareCompatibilityLevel"),
    Row("The current device only supports 36 multiprocessors but the engine file requires 72. Deadlocking is likely.",
        r"only supports (\d+) multiprocessors but the engine file requires (\d+)",
        "it was built on a GPU with {1} multiprocessors, this one gives it {0}",
        "build the plan on this very GPU, or give it all of it (MPS, MIG)"),
    Row("IBuilder::buildSerializedNetwork: Error Code 9: API Usage Error (Target GPU SM 87 is not supported by this "
        "TensorRT release.)",
        r"Target GPU SM (\d+) is not supported",
        "this TensorRT does not know GPUs of compute capability {0:gpu}",
        "freeze edgeapp with another TensorRT: GPUs before 7.5 need 8.6, Orin needs JetPack's or 10.16"),
    Row("1: [caskUtils.cpp::trtSmToCask::147] Error Code 1: Internal Error (Unsupported SM: 0x601)",
        r"Unsupported SM: (0x[0-9a-fA-F]{3,4})",
        "this TensorRT does not know GPUs of compute capability {0:gpu}",
        "freeze edgeapp with another TensorRT: GPUs before 7.5 need 8.6, newer ones a newer TensorRT"),
    # plugins
    Row("3: getPluginCreator could not find plugin: EfficientNMS_TRT version: 1",
        r"could not find plugin:? '?([\w:.<>-]+)",
        "it uses the plugin {0}, which this runtime does not have", PLUGIN),
    Row("IPluginRegistry::getPluginCreator: Error Code 4: API Usage Error (Cannot find plugin: EfficientIdxNMS_TRT, "
        "version: 1, namespace:.)",
        r"Cannot find plugin: '?([\w:.<>-]+)",
        "it uses the plugin {0}, which this runtime does not have", PLUGIN),
    Row("IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion creatorInterface "
        "failed.Cannot deserialize plugin since corresponding plugin creator not found in Plugin Registry)",
        r"[Cc]annot deserialize plugin since|assertion creator(?:Interface)? failed",
        "it uses a plugin that this runtime does not have", PLUGIN),
    Row("Plugin creator with matching type, namespace and version found, but it is not of type IPluginCreator.",
        r"version found, but it is not of type (\w+)",
        "the plugin library is for another version of TensorRT",
        "build the plugin with the TensorRT that built the plan"),
    Row("deserializeCudaEngineEx: Failed to deserialize plugin library with size 81920",
        r"Failed to deserialize plugin library",
        "it carries a plugin library, which cannot be loaded",
        "build the plan without --setPluginsToSerialize and give the library: --plugin FILE.so"),
    # the lean runtime
    Row("1: [leanStubs.cpp::loadRunner::128] Error Code 1: Internal Error (Unexpected call to stub loadRunner for "
        "ReformatRunner.)",
        r"Unexpected call to stub",
        "it was built for the full TensorRT, and the lean runtime lacks a part it needs",
        "rebuild it with: trtexec --versionCompatible --excludeLeanRuntime, or freeze edgeapp with --tensorrt full"),
    Row("Cannot deserialize engine with lean runtime since IRuntime::getEngineHostCodeAllowed() is false.",
        r"HostCodeAllowed",
        "it carries its own runtime code, which is not run for safety", REBUILD),
    Row("Runtime load failed: could not access createLeanRuntime symbol",
        r"Runtime load failed",
        "the lean runtime in this program cannot be loaded", "the program's files are damaged: copy it again", BUG),
    Row("Use of temporary files for deserialization of lean runtime requires configuring a valid temporary directory",
        r"temporary files for deserialization|TempfileControlFlag|in-memory files requires Linux",
        "TensorRT needs a place for a temporary file and has none",
        "set TMPDIR to a folder that is writable and not mounted noexec", SYSTEM),
    # kinds of plans that do not run here
    Row("Cannot deserialize serialized engine built with EngineCapability::kDLA_STANDALONE, use cuDLA APIs instead.",
        r"kDLA_STANDALONE",
        "it is a DLA loadable, which TensorRT does not run", "build it without --buildDLAStandalone"),
    Row("Cannot create DLA engine, 0 not available",
        r"Cannot create DLA|DLA Error|DLANativeRunner|dlaContext",
        "it was built for a DLA, and this machine or TensorRT has none that it can use",
        "build it without --useDLACore; in a container pass /dev/nvhost-ctrl-nvdla0 on"),
    Row("Cannot deserialize safety engine, use safety public APIs instead.",
        r"safety engine",
        "it was built for the safety runtime", "build it without --safe"),
    Row("Archive does not contain weights, but weights plan entry was not provided by weightsPtr.",
        r"does not contain weights|neither weights nor a weights engine|weight-stripped|needed Weights\. Call IRefit",
        "it was built without its weights (--stripWeights) and never refitted",
        "refit it, or build it without --stripWeights"),
    # shapes and addresses
    Row("IExecutionContext::setInputShape: Error Code 3: API Usage Error (Parameter check failed, condition: "
        "engineDims.d[i] == dims.d[i]. Static dimension mismatch while setting input shape for images. Set dimensions "
        "are [3,3,256,192]. Expected dimensions are [1,3,256,192].)",
        r"Set dimensions are (\[[-\d,]*\])\. Expected dimensions are (\[[-\d,]*\])",
        "the plan takes {1}, not {0}", "give inputs of this shape, or rebuild the plan for others"),
    Row("Set dimension [9,3,64,64] for tensor images does not satisfy any optimization profiles. Valid range for "
        "profile 0: [1,3,64,64]..[4,3,64,64].",
        r"Set dimension (\[[-\d,]*\]) for tensor (\S+) does not satisfy any optimization profiles\. Valid range for "
        r"profile 0: (\[[-\d,]*\])\.\.(\[[-\d,]*\])",
        "the plan takes tensor {1} from {2} to {3}, not {0}",
        "give inputs of such shapes, or rebuild the plan with --minShapes, --optShapes, --maxShapes"),
    Row("3: [executionContext.cpp::setInputShape::2288] Error Code 3: API Usage Error (Parameter check failed at: "
        "runtime/api/executionContext.cpp::setInputShape::2288, condition: satisfyProfile Runtime dimension does not "
        "satisfy any optimization profile.)",
        r"does not satisfy any optimization profile|is not in profile |exceed min\.\.max range for profile",
        "no optimisation profile of the plan takes such shapes",
        "give other shapes, or rebuild the plan with --minShapes, --optShapes, --maxShapes"),
    Row("3: [executionContext.cpp::setInputShape::2037] Error Code 3: API Usage Error (Parameter check failed at: "
        "runtime/api/executionContext.cpp::setInputShape::2037, condition: engineDims.d[i] == dims.d[i] Static "
        "dimension mismatch while setting input shape.)",
        r"Static dimension mismatch|engineDims\.nbDims == dims\.nbDims",
        "the plan takes another shape", "give inputs of the plan's shape, or rebuild the plan for others"),
    Row("IExecutionContext::enqueueV3: Error Code 3: API Usage Error (Parameter check failed, condition: "
        "mContext.profileObliviousBindings.at(profileObliviousIndex) != nullptr. Address is not set for input tensor "
        "images. Call setInputTensorAddress or setTensorAddress before enqueue/execute.)",
        r"(?:Address is not set for input|Neither address or allocator is set for output) tensor (\S+)\.",
        "tensor {0} was given no memory", REPORT, BUG),
    Row("Not all input tensors' dimensions or shape bindings are specified.",
        r"Not all input tensors|allInputDimensionsSpecified|allInputShapesSpecified",
        "an input was given no shape", REPORT, BUG),
    Row("3: [executionContext.cpp::enqueueInternal::330] Error Code 3: Internal Error (Assertion mOptimizationProfile "
        ">= 0 failed. )",
        r"mOptimizationProfile >= 0|has been chosen by another IExecutionContext|Could not set default profile",
        "another execution context uses its only optimisation profile",
        "build the plan with a profile for each context, or with TensorRT 10"),
    Row("The CUDA stream is in capturing mode, but this TRT engine is not stream capturable.",
        r"not stream capturable",
        "a part of it cannot be held in a CUDA graph", REPORT, BUG),
    # its parts
    Row("Could not initialize cublas. Please check CUDA installation.",
        r"Could not initialize (cu\w+)",
        "{0} does not start: its library is missing or of another version, or the GPU's memory is full",
        "free the GPU (nvidia-smi), or build the plan without it: --tacticSources=-CUDNN,-CUBLAS,-CUBLAS_LT", SYSTEM),
    Row("NCCL library not found. Cannot load libnccl.so or libnccl.so.2. Ensure NCCL is installed and library path is "
        "configured correctly.",
        r"NCCL library not found",
        "it was built for several GPUs and needs NCCL, which is not here", "build it for one GPU"),
    Row("Inconsistent setting of NVIDIA_TF32_OVERRIDE env var at build time and at execution time.",
        r"Inconsistent setting of NVIDIA_TF32_OVERRIDE",
        "NVIDIA_TF32_OVERRIDE is not set as it was when the plan was built", "unset it, or build the plan with it"),
    # damage
    Row("1: [stdArchiveReader.cpp::StdArchiveReader::54] Error Code 1: Serialization (Serialization assertion sizeRead "
        "== static_cast<uint64_t>(mEnd - mCurrent) failed.Size specified in header does not match archive size)",
        r"does not match archive size|header\.size == blobSize|[Nn]ot enough data to deserialize|Short read"
        r"|deserialize (?:with an )?empty|cursor (?:<|==) blobSize|blobSize > numericCast|header from the stream",
        "it is cut short, or something was added to it", COPY),
    Row("The serialized host buffer is corrupted",
        r"is corrupted|kEND_OF_PLAN_MARKER|kEND_OF_ARCHIVE_MARKER|actualTypehash|Post deserialization check"
        r"|[Nn]o engine found in plan|Engine not found in plan|invalid version for standard type",
        "its contents are damaged", COPY),
)  # fmt: skip
"""The first row that matches any line counts; before them a fatal code, after them any other code."""

LAST_ROWS = (
    Row("9: [executor.cpp::execute::412] Error Code 9: Myelin ([impl.cpp:1231: cross_device_check] internal failure)",
        r"[Mm]yelin",
        "a compiled part of the network (Myelin) failed",
        "rebuild the plan on this machine, with the newest TensorRT that this program carries"),
    Row("4: [runtime.cpp::deserializeCudaEngine::50] Error Code 4: Internal Error (Engine deserialization failed.)",
        r"Serializ|[Dd]eserializ",
        "its contents are damaged or not for this runtime", COPY),
    Row("Using an engine plan file across different models of devices is not supported and is likely to affect "
        "performance or even cause errors or deadlock.",
        r"different models of devices",
        "it was built on another model of GPU", "build the plan on this GPU"),
)  # fmt: skip
"""What counts when nothing more exact is known."""

TELLING_WARNINGS = re.compile(
    "could not be allocated|initialization failure|different models of devices|multiprocessors but"
)
"""Warnings that say more than the errors which follow them."""

MAGICS = {
    b"ftrt": "a TensorRT plan",
    b"vtrt": "a TensorRT-RTX plan",
    b"ptrt": "a plan of TensorRT 8.5 or older",
    b"NLYM": "a plan for the safety runtime",
    b"TR01": "an ExecuTorch file",
    b"PK\x03\x04": "a zip file (PyTorch's .pt is one)",
    b"vers": "a git-LFS pointer",
    b"<!DO": "a web page", b"<!do": "a web page", b"<htm": "a web page",
    b"\x89HDF": "an HDF5 file (Keras writes them)",
    b"\x89PNG": "a PNG picture",
}  # fmt: skip

XIDS = {
    13: "a kernel's error", 31: "a memory page fault", 43: "a program was stopped", 45: "a program's work was cleared",
    48: "a double bit ECC error", 63: "a memory row is being replaced", 64: "a memory row could not be replaced",
    74: "an NVLink error", 79: "the GPU has fallen off the bus", 94: "a contained memory error",
    95: "an uncontained memory error", 119: "the GPU's own processor does not answer",
    120: "the GPU's own processor failed",
}  # fmt: skip
"""Source: NVIDIA, "XID Errors", r580."""


class _Group(str):
    """What a row's pattern found; {0:gpu} and the like say it by name."""

    def __format__(self, spec: str) -> str:
        name = _NAMERS.get(spec)
        return name(str(self)) if name else str(self)


def _gpu(text: str) -> str:
    """8.7, 87 and 0x807 -> "8.7 (Jetson Orin)"."""
    if text.startswith("0x"):
        major, minor = divmod(int(text, 16), 256)
    elif "." in text:
        major, minor = (int(part) for part in text.split(".", 1))
    else:
        major, minor = divmod(int(text), 10)
    return gpus.described(major, minor)


def _archive(text: str) -> str:
    version = ARCHIVE_VERSIONS.get(int(text))
    return f"TensorRT {version} (archive version {text})" if version else f"a TensorRT with archive version {text}"


def magic_name(number: int) -> str:
    """What a file is whose first four bytes are this little-endian number."""
    data = (number & 0xFFFFFFFF).to_bytes(4, "little")
    if data in MAGICS:
        return MAGICS[data]
    if data[:1] == b"\x08" and 1 <= data[1] <= 20 and data[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A):
        return "an ONNX model"
    if data[:3] == b"\xff\xd8\xff":
        return "a JPEG picture"
    if 2 <= number <= 1 << 20:
        return f"most likely an Ultralytics engine: {number} bytes of JSON before the plan"
    letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)
    return f"no known kind of file: {data.hex(' ')} ({letters})"


def _bytes(text: str) -> str:
    size = int(text)
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _cuda(text: str) -> str:
    return f"{int(text) // 1000}.{int(text) % 1000 // 10}"


_NAMERS: dict[str, Callable[[str], str]] = {
    "gpu": _gpu,
    "archive": _archive,
    "magic": lambda text: magic_name(int(text)),
    "bytes": _bytes,
    "cuda": _cuda,
    "xid": lambda text: XIDS.get(int(text), "see NVIDIA's list of Xid errors"),
}

_PATTERNS = {row: re.compile(row.pattern, re.ASCII) for row in (*LOG_ROWS, *LAST_ROWS)}
_CODE_OF_TEXT = {row.text: code for code, row in CODES.items()}
_TEXT = re.compile(r"[:(] ?(" + "|".join(map(re.escape, sorted(_CODE_OF_TEXT, key=len, reverse=True))) + ")")
_NUMBER = re.compile(r"(?:\bCUDA error:?|with error:?|\bError|failed) \(?(\d{1,3})\b")


def code_of(text: str) -> int | None:
    """The CUDA code that a text of PyCUDA or TensorRT speaks of, None when it names none.

    "cuMemAlloc failed: out of memory", "Cuda Runtime (misaligned address)", "Myelin (Final synchronize failed (700))".
    """
    text = text[:LONGEST]
    if match := _TEXT.search(text):
        return _CODE_OF_TEXT[match[1]]
    for match in _NUMBER.finditer(text):
        if int(match[1]) in CODES:
            return int(match[1])
    return None


def explain_log(lines: Sequence[str]) -> Explanation:
    """What TensorRT's error lines come to; the last line itself where nothing is known."""
    lines = [line[:LONGEST] for line in lines]
    codes = [code for line in lines if (code := code_of(line)) is not None]
    fatal = [code for code in codes if code in FATAL]
    return (
        _of_codes(fatal)
        or _of_rows(LOG_ROWS, lines)
        or _of_codes(codes)
        or _of_rows(LAST_ROWS, lines)
        or Explanation(
            lines[-1] if lines else "TensorRT gave no reason", "run again with --debug to see TensorRT's log", DATA
        )
    )


def _of_rows(rows: Sequence[Row], lines: Sequence[str]) -> Explanation | None:
    for row in rows:
        for line in lines:
            if match := _PATTERNS[row].search(line):
                groups = [_Group(group) for group in match.groups() if group is not None]
                return Explanation(row.why.format(*groups), row.fix.format(*groups), row.error)
    return None


def _of_codes(codes: Sequence[int]) -> Explanation | None:
    if not codes:
        return None
    row = CODES[codes[0]]
    return Explanation(f"{row.why} (CUDA error {codes[0]})", row.fix, row.error)


def refused(what: str, lines: Sequence[str], memory: tuple[int, int] | None = None) -> errors.EdgeappError:
    """The error for something that TensorRT refused with these log lines.

    Args:
        memory: the GPU's (free, total) bytes, where they are known.
    """
    why, fix, error = explain_log(lines)
    return error(what, why + memory_left(memory) if fix == FREE else why, fix)


def no_gpu(code: int, call: str) -> errors.NoGpuError:
    """The error for a driver that does not come up; what the machine shows of the cause is named."""
    row = CODES.get(code)
    why, fix = (row.why, row.fix) if row else ("the driver gives no usable answer", "see dmesg")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") if code == 100 else None
    if code in (803, 804) and (files := machine.driver_files()):
        why = f"{why}: {files}"
    elif (
        visible not in ("", "-1")
        and (row is None or code in (3, 100, 304, 801, 999))
        and (trouble := machine.node_trouble())
    ):
        why, fix = f"{why}: {trouble[0]}", trouble[1]
    elif visible is not None:
        why = f"{why}: CUDA_VISIBLE_DEVICES is {visible!r}"
        fix = "unset CUDA_VISIBLE_DEVICES, or name a GPU of nvidia-smi in it"
    return errors.NoGpuError(f"cannot use a GPU: {call} failed with CUDA error {code}", why, fix)


FIRST_DRIVERS = {12: "535 or newer (Jetson: JetPack 6)", 13: "580 or newer (Jetson: JetPack 7)"}
"""The oldest driver series that TensorRT supports with a CUDA major."""


def old_driver(serves: tuple[int, int], needed_major: int) -> errors.NoGpuError | None:
    """The error when the driver serves only an older CUDA than this program needs; None when it is new enough.

    Within a major version a program runs on the first driver of it (CUDA's minor version compatibility). With an older
    driver TensorRT gives a runtime object whose first use ends the process.
    """
    if serves[0] >= needed_major:
        return None
    return errors.NoGpuError(
        "cannot use a GPU: its driver is too old for this program",
        f"the driver serves CUDA {serves[0]}.{serves[1]}, this program needs CUDA {needed_major}",
        f"{UPDATE} to {FIRST_DRIVERS.get(needed_major, 'a newer one')}",
    )


def from_cuda(
    error: Exception, context_code: int, doing: str, memory: tuple[int, int] | None = None
) -> errors.EdgeappError:
    """The error for a PyCUDA exception.

    Args:
        context_code: what the context answers afterwards; see `Driver.context_code`.
        doing: "allocating 12 MB for tensor x".
        memory: the GPU's (free, total) bytes, where they are known.
    """
    text = str(error)
    code = context_code if context_code in FATAL else code_of(text) or context_code
    if code not in CODES:
        return errors.EdgeappError(
            f"CUDA failed while {doing}" + (f": CUDA error {code}" if code else ""), text, REPORT
        )
    row = CODES[code]
    if code in FATAL:
        return errors.GpuLostError(
            f"the GPU is lost to this process while {doing}: CUDA error {code}", row.why, row.fix
        )
    if code == 2 and ("HostAlloc" in text or "AllocHost" in text):
        return errors.SystemRefusedError(f"not enough page-locked host memory while {doing}", text, FREE_HOST)
    if code == 2:
        return errors.SystemRefusedError(f"not enough GPU memory while {doing}", text + memory_left(memory), FREE)
    return row.error(f"CUDA failed while {doing}: CUDA error {code}", f"{row.why} ({text})", row.fix)


def memory_left(memory: tuple[int, int] | None) -> str:
    """What is free, for the end of a cause; nothing where it is not known."""
    return f"; {_bytes(str(memory[0]))} of {_bytes(str(memory[1]))} are free" if memory else ""
