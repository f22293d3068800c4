"""Build the plans of the GPU tests and of the demo, with a full TensorRT 8.6 on a machine with a GPU.

    python tests/make_models.py MODELS
    cp edgeapp/data/demo/model.onnx MODELS/demo.onnx
    python tests/gpu/build_plans.py MODELS OUT [NAME ...]

Plans are version compatible without the lean runtime inside, and hardware compatible with Ampere and newer,
so that one file serves every such x86-64 machine; some say otherwise. The variants are what test_matrix.py compares the
verdicts of `edgeapp inspect` with; for the one with the lean runtime inside, the loader has to find
libnvinfer_lean.so.8.6.0. A plan that cannot be built is reported and left out; the exit code is then 1. resnet50
(224x224, random weights) is for the benchmark alone: export_resnet50.py writes its model; neither file is kept here.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import tensorrt as trt

Shape = tuple[int, ...]


@dataclass
class Wanted:
    """A plan to build; profiles map input tensors to (min, opt, max) shapes."""

    name: str
    model: str
    profiles: list[dict[str, tuple[Shape, Shape, Shape]]] = field(default_factory=list)
    fp16: bool = False
    native: bool = False
    any_gpu: bool = True
    flags: tuple[str, ...] = ()
    half_hwc8: bool = False


def images(size: int, *batches: int) -> list[dict[str, tuple[Shape, Shape, Shape]]]:
    low, best, high = ((n, 3, size, size) for n in batches)
    return [{"images": (low, best, high)}]


def multi(batch: int, low: int, high: int) -> dict[str, tuple[Shape, Shape, Shape]]:
    return {
        "image": ((1, 3, low, low), (batch, 3, high, high), (batch, 3, high, high)),
        "scale": ((1,), (batch,), (batch,)),
        "shift": ((1,), (batch,), (batch,)),
    }


WANTED = (
    Wanted("conv", "conv"),
    Wanted("classifier", "classifier", images(32, 1, 4, 16)),
    Wanted("classifier_batch4", "classifier_batch4"),
    Wanted("multi_io", "multi_io", [multi(4, 32, 64), multi(2, 64, 128)]),
    Wanted("nonzero", "nonzero", [{"x": ((1,), (8,), (64,))}]),
    Wanted("dtypes", "dtypes", fp16=True),
    Wanted("yolov8", "yolov8", images(64, 1, 4, 8)),
    Wanted("demo_fp32", "demo", images(416, 1, 8, 32)),
    Wanted("demo_fp16", "demo", images(416, 1, 8, 32), fp16=True),
    Wanted("demo_native", "demo", images(416, 1, 1, 4), native=True),
    Wanted("resnet50_fp16", "resnet50", images(224, 1, 8, 32), fp16=True, any_gpu=False),
    Wanted("variant_native", "conv", native=True),
    Wanted("variant_native_any_gpu", "conv", native=True, flags=("any_gpu",)),
    Wanted("variant_this_gpu", "conv", any_gpu=False),
    Wanted("variant_lean_inside", "conv", flags=("lean_inside",)),
    Wanted("variant_refit", "conv", native=True, flags=("REFIT",)),
    Wanted("variant_fp16", "conv", native=True, fp16=True),
    Wanted("variant_hwc8", "conv", native=True, fp16=True, half_hwc8=True),
    Wanted("variant_int8", "conv", native=True, flags=("INT8",)),
    Wanted("variant_multi", "multi_io", [multi(4, 32, 64)], native=True),
    Wanted("variant_multi_refit", "multi_io", [multi(4, 32, 64)], native=True, flags=("REFIT",)),
    Wanted("variant_dtypes", "dtypes", fp16=True, native=True),
    Wanted("variant_plugin", "", native=True),
    Wanted("variant_plugin_compatible", ""),
)


def build(wanted: Wanted, model: Path, logger: trt.ILogger) -> bytes | None:
    """The serialised plan, or None when TensorRT cannot build it (its log says why)."""
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, logger)
    if not wanted.model:
        add_plugin(network)
    elif not parser.parse_from_file(str(model)):
        return None
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 4 << 30)
    config.set_tactic_sources(0)  # neither cuBLAS nor cuDNN: the lean runtime has none
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32: the tests compare with the CPU
    if wanted.fp16:
        config.set_flag(trt.BuilderFlag.FP16)
    for flag in wanted.flags:
        if flag.isupper():
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if "INT8" in wanted.flags:
        give_ranges(network)
    if wanted.half_hwc8:
        network.get_input(0).dtype = trt.DataType.HALF
        network.get_input(0).allowed_formats = 1 << int(trt.TensorFormat.HWC8)
    if wanted.native and "any_gpu" in wanted.flags:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if not wanted.native:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if "lean_inside" not in wanted.flags:
            config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
        if wanted.any_gpu:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    for shapes in wanted.profiles:
        profile = builder.create_optimization_profile()
        for tensor, (low, best, high) in shapes.items():
            profile.set_shape(tensor, low, best, high)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return bytes(plan) if plan is not None else None


def give_ranges(network: trt.INetworkDefinition) -> None:
    """A dynamic range for every tensor, in place of a calibration."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    outputs = [layer.get_output(i) for layer in layers for i in range(layer.num_outputs)]
    for tensor in (*(network.get_input(i) for i in range(network.num_inputs)), *outputs):
        tensor.set_dynamic_range(-4, 4)


def add_plugin(network: trt.INetworkDefinition) -> None:
    """A network of one plugin of libnvinfer_plugin."""
    creator = trt.get_plugin_registry().get_plugin_creator("CoordConvAC", "1", "")
    plugin = creator.create_plugin("coordinates", trt.PluginFieldCollection([]))
    layer = network.add_plugin_v2([network.add_input("x", trt.float32, (1, 3, 32, 32))], plugin)
    layer.get_output(0).name = "y"
    network.mark_output(layer.get_output(0))


def main() -> int:
    models, out, names = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    out.mkdir(parents=True, exist_ok=True)
    logger = trt.Logger(trt.Logger.WARNING)
    trt.init_libnvinfer_plugins(logger, "")
    failed = []
    for wanted in WANTED:
        if names and wanted.name not in names:
            continue
        started = time.monotonic()
        plan = build(wanted, models / f"{wanted.model}.onnx", logger)
        seconds = time.monotonic() - started
        if plan is None:
            failed.append(wanted.name)
            print(f"{wanted.name}: FAILED after {seconds:.1f} s", flush=True)
        else:
            (out / f"{wanted.name}.plan").write_bytes(plan)
            print(f"{wanted.name}: {len(plan)} bytes in {seconds:.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
