"""`edgeapp inspect FILE...`: what a model file is and whether it runs here, from its bytes alone."""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from edgeapp import errors, gpus, paths
from edgeapp.gpu import runtimes
from edgeapp.log import Talk, tell
from edgeapp.plan import ONNX, PLAN, ModelFile, identify, look
from edgeapp.settings import Settings
from edgeapp.stopping import Stop

if TYPE_CHECKING:
    from edgeapp.records import TensorSpec

MOST_NAMES = 10
"""A line for people names this many classes."""

WIDTH = 19


def inspect(files: Sequence[str], as_json: bool, settings: Settings, stop: Stop, talk: Talk) -> int:
    """Describe each file; needs neither GPU, driver nor TensorRT. With --engine that one, loaded.

    Returns:
        0 when all can be run here, 1 when some can, 65 when none can, or the code of a file that cannot be read when
        it is the only one.

    Raises:
        UsageError: no file is named. EdgeappError: --tensorrt-library or --engine cannot be used.
    """
    if settings.engine is not None and not files:
        return _loaded(settings, as_json, stop, talk)
    if settings.trust_key or settings.require_signature or settings.engine_sha256:
        raise errors.UsageError(
            "signatures and digests are checked of an engine that is loaded", "", "edgeapp inspect --engine FILE ..."
        )
    library = settings.tensorrt_library
    if not files:
        raise errors.UsageError("no file given", "", "edgeapp inspect model.plan")
    codes = set()
    for path in files:
        stop.check()
        try:
            found = look(path, details=True)
        except errors.EdgeappError as error:
            talk.error(error)
            codes.add(error.exit_code)
            if as_json:
                refused = {"what": error.what, "why": error.why, "fix": error.fix}
                tell([json.dumps({"schema": 1, "path": paths.text(path), "error": refused}) + "\n"])
            continue
        verdict = runtimes.verdict(found, library, host_code=settings.allow_host_code)
        tell([json.dumps(describe(found, verdict)) + "\n"] if as_json else for_people(found, verdict))
        codes.add(errors.DataError.exit_code if verdict.runs == runtimes.NO else 0)
    if 0 in codes:
        return 0 if codes == {0} else 1
    return codes.pop() if len(codes) == 1 else errors.DataError.exit_code


def describe(found: ModelFile, verdict: runtimes.Verdict) -> dict[str, Any]:
    """All that is known of a file, for programs; what its bytes do not tell is null."""
    facts = found.facts
    result: dict[str, Any] = {
        "schema": 1,
        "path": paths.text(found.path),
        "kind": found.kind,
        "what": found.what,
        "size_bytes": found.size,
    }
    if facts is not None:
        capability = facts.compute_capability
        result["plan"] = {
            "tensorrt": ".".join(map(str, facts.version)),
            "offset": found.offset,
            "size_bytes": facts.size,
            "trailing_bytes": found.notes.get("trailing_bytes", 0),
            "sections": list(facts.sections),
            "archive": facts.archive,
            "compute_capability": f"{capability[0]}.{capability[1]}" if capability else None,
            "gpus": (gpus.name_of(*capability) or None) if capability else None,
            "multiprocessors": facts.multiprocessors,
            "gpu_memory_bytes": facts.memory_bytes,
            "hardware_compatibility": facts.level,
            "refittable": facts.refittable,
            "lean_runtime_inside": facts.lean_inside,
            "version_compatible": True if facts.lean_inside else None,
            "weight_stripped": None,
        }
    elif found.version:
        result["tensorrt"] = ".".join(map(str, found.version))
    if found.kind == ONNX:
        result["onnx"] = found.notes
    elif facts is None and found.notes:
        result["notes"] = found.notes
    if found.metadata:
        result["ultralytics"] = found.metadata
    runtime = verdict.runtime.name if verdict.runtime else ("ONNX Runtime" if verdict.runs == runtimes.YES else None)
    result["verdict"] = {
        "runs": verdict.runs,
        "runtime": runtime,
        "why": verdict.why or None,
        "fix": verdict.fix or None,
    }
    return result


def for_people(found: ModelFile, verdict: runtimes.Verdict) -> list[str]:
    """The same in lines, without what is not known."""
    rows: list[tuple[str, str]] = [("size", f"{found.size} bytes")]
    facts = found.facts
    if facts is not None:
        rows.append(("built by", "TensorRT " + ".".join(map(str, facts.version))))
        if facts.lean_inside:
            rows.append(("lean runtime", "inside, so it is version compatible"))
        if facts.compute_capability:
            gpu = f"compute capability {gpus.described(*facts.compute_capability)}"
            if facts.multiprocessors and facts.memory_bytes:
                gpu += f", {facts.multiprocessors} multiprocessors, {facts.memory_bytes / 2**30:.0f} GiB"
            rows.append(("built on", gpu))
            only = {"none": "this compute capability only", "ampere+": "Ampere (8.0) and newer"}
            rows.append(("for GPUs of", only.get(facts.level or "", facts.level or "not told")))
            rows.append(("refittable", "yes" if facts.refittable else "no"))
    rows += _notes(found)
    rows += _ultralytics(found.metadata)
    if verdict.runs == runtimes.NO:
        rows += [("runs here", "no"), ("why", verdict.why), ("fix", verdict.fix)]
    elif verdict.runs == runtimes.MAYBE:
        assert verdict.runtime is not None
        rows.append(
            ("runs here", f"with {verdict.runtime.name}, if it was built version compatible, which is not told")
        )
    else:
        rows.append(("runs here", f"with {verdict.runtime.name}" if verdict.runtime else verdict.why))
    title = f"{paths.printable(found.path)}: {found.what}\n"
    return [title, *(f"  {name:{WIDTH}s} {_line(value)}\n" for name, value in rows if value)]


def _line(value: str) -> str:
    """In one line, whatever is in it."""
    return "".join(c if c.isprintable() else " " for c in value)


def _notes(found: ModelFile) -> list[tuple[str, str]]:
    notes = found.notes
    if found.kind != ONNX:
        return [(name.replace("_", " "), ", ".join(v) if isinstance(v, list) else str(v)) for name, v in notes.items()]
    rows = [
        ("written by", notes.get("producer", "")),
        ("IR version", str(notes.get("ir_version", ""))),
        ("opset", ", ".join(f"{domain} {version}" for domain, version in notes.get("opsets", {}).items())),
        ("nodes", str(notes.get("nodes", ""))),
    ]
    rows += [(key[:-1], _tensor(tensor)) for key in ("inputs", "outputs") for tensor in notes.get(key, [])]
    if "incomplete" in notes:
        rows.append(("tensors" if notes["too_large"] else "damaged", notes["incomplete"]))
    metadata: dict[str, Any] = notes.get("metadata", {})
    return rows + _ultralytics(metadata)


def _tensor(tensor: dict[str, Any]) -> str:
    shape = tensor["shape"]
    return f"{tensor['name']} {tensor['dtype']} " + ("?" if shape is None else f"({', '.join(map(str, shape))})")


def _ultralytics(metadata: dict[str, Any]) -> list[tuple[str, str]]:
    """What Ultralytics wrote into the file, as far as people ask for it."""
    if not metadata:
        return []
    names = metadata.get("names")
    if isinstance(names, dict):
        names = list(names.values())
    rows: list[tuple[str, str]] = [
        (key, str(metadata[key])) for key in ("task", "imgsz", "stride", "batch", "date") if key in metadata
    ]
    if isinstance(names, list):
        more = ", ..." if len(names) > MOST_NAMES else ""
        rows.append(("classes", f"{len(names)}: {', '.join(map(str, names[:MOST_NAMES]))}{more}"))
    elif names:
        rows.append(("classes", str(names)[:300]))
    return rows


def _loaded(settings: Settings, as_json: bool, stop: Stop, talk: Talk) -> int:
    """Describe the engine of --engine, brought up as for a run."""
    from edgeapp.bootstrap import Trace
    from edgeapp.commands.opening import given_card, open_engine

    assert settings.engine is not None
    found = identify(settings.engine)
    trace = Trace()
    with open_engine(found, given_card(settings), settings, trace, talk, stop) as (engine, _):
        verdict = runtimes.verdict(found, settings.tensorrt_library, host_code=settings.allow_host_code)
        detail: dict[str, Any] = engine.describe() if isinstance(engine, Describing) else {}
        detail["name"] = engine.name
        detail["load_ms"] = round(sum(ms for _, ms in trace.steps), 1)
        detail["host_peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        detail["tensors"] = [_spec(spec, detail) for spec in (*engine.inputs, *engine.outputs)]
    if as_json:
        tell([json.dumps({**describe(found, verdict), "engine": detail}) + "\n"])
        return 0
    lines = for_people(found, verdict)
    rows = [("loaded by", engine.name), ("loaded in", f"{detail['load_ms']:.0f} ms")]
    rows += [("host memory", f"{detail['host_peak_bytes'] / 2**20:.0f} MiB at most")]
    for tensor in detail["tensors"]:
        text = f"{tensor['name']} {tensor['dtype']} ({', '.join(map(str, tensor['shape']))})"
        rows.append(("input" if tensor["input"] else "output", f"{text}  {tensor['format'] or ''}".rstrip()))
        for number, (low, best, high) in enumerate(tensor["profiles"]):
            shapes = " ".join("x".join(map(str, shape)) for shape in (low, best, high))
            rows.append(("", f"    profile {number}: min opt max {shapes}"))
    if found.kind == PLAN:
        used = f"{detail['device_used_bytes'] / 2**20:.0f} MiB used on the GPU"
        rows.append(("device memory", f"{detail['device_memory_bytes'] / 2**20:.1f} MiB of activations; {used}"))
        rows.append(("layers", str(detail["layer_count"])))
        for layer in detail["layers"] or []:
            rows.append(("", f"    {layer if isinstance(layer, str) else layer.get('Name', '?')}"))
    tell([*lines, *(f"  {name:{WIDTH}s} {_line(value)}\n" for name, value in rows)])
    return 0


def _spec(spec: TensorSpec, detail: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": spec.name,
        "input": spec.is_input,
        "dtype": spec.dtype,
        "shape": list(spec.shape),
        "format": detail.get("formats", {}).get(spec.name),
        "profiles": [[list(shape) for shape in profile] for profile in spec.profiles],
    }


@runtime_checkable
class Describing(Protocol):
    """An engine that can say more than its tensors: TensorRT's."""

    def describe(self) -> dict[str, Any]: ...
