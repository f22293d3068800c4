"""From settings to a model that is ready to run: what `run` and `bench` begin with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgeapp import cores, errors, memory, paths, plan, trust
from edgeapp.bootstrap import Trace, bring_up
from edgeapp.log import Talk
from edgeapp.settings import Settings
from edgeapp.stopping import Stop

if TYPE_CHECKING:
    from edgeapp.gpu.filter import Filter
    from edgeapp.gpu.kernels import Kernels
    from edgeapp.gpu.ring import Ring
    from edgeapp.model import Card
    from edgeapp.pipeline import Engine, Postprocess, Runner
    from edgeapp.preprocess import Preprocessor
    from edgeapp.records import TensorSpec
    from edgeapp.sources import FileSource

BATCHES_BEYOND_DECODING, BATCHES_TO_SAVE = 6, 2
"""Batches that are not being decoded: three on the GPU, the others read, waiting or written; with --save, where each
picture stays in memory until it is drawn on, one in inference and one on its way, beside those that are drawn on."""

MOST_HOST_BYTES = min(1 << 30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8)
"""Of pictures that wait in memory."""

MOST_CANDIDATES = 1024
"""Boxes of a picture for which the GPU's filter has room; of more the whole head is copied."""

LEAST_FILTERED = 0.02
"""Under this score threshold there are too many boxes for a filter to pay."""

SIDE_BY_SIDE_CORES = range(2, 17)
"""Numbers of cores on which an ONNX model infers several batches at a time, each on one core. On more, the memory that
each inference takes would count."""

FEWEST_BATCHES_PER_CORE = 2
"""For that: of fewer, the last ones would leave cores without work."""

FEWEST_BATCHES_FOR_GRAPHS = 16
"""Recording graphs takes some 10 ms: as long as a few launches without."""


@dataclass
class Model:
    """An engine and all that its pictures need.

    Attributes:
        preprocess: None when the engine takes no pictures.
        batch: pictures per inference.
        least: places that an inference has at least.
        side_by_side: several threads shall infer at a time.
        golden: what its card keeps of its answer to noise, None where that is nothing.
    """

    engine: Engine
    card: Card
    preprocess: Preprocessor | None
    postprocess: Postprocess
    batch: int
    least: int
    side_by_side: bool = False
    golden: dict[str, Any] | None = None


def open_model(
    model_file: plan.ModelFile,
    settings: Settings,
    trace: Trace,
    talk: Talk,
    stop: Stop,
    stack: ExitStack,
    *,
    total: int | None,
    side_by_side: bool = False,
    own_context: bool = False,
) -> Model:
    """Bring up a model; the stack takes it down.

    Args:
        total: how many inputs there will be, None if nobody knows.
        side_by_side: on the CPU, each inference keeps to one core, as several threads infer at a time.
        own_context: see `bring_up`.

    Raises:
        EdgeappError: it cannot be run.
    """
    from edgeapp.postprocess import make_postprocess
    from edgeapp.preprocess import Preprocessor

    memory.keep_freed()
    given = given_card(settings)
    engine, metadata = stack.enter_context(
        open_engine(model_file, given, settings, trace, talk, stop, side_by_side=side_by_side, own_context=own_context)
    )
    if not engine.inputs:
        raise errors.DataError(
            f"cannot run {paths.printable(model_file.path)}: it has no input",
            "its outputs are constants",
            "export the model again, with its inputs",
        )
    card = _card(given, metadata, engine, talk)
    postprocess, guesses = make_postprocess(card, engine.outputs)
    if guesses:
        talk.note(f"edgeapp: guessed {', '.join(guesses)}")
    preprocess = Preprocessor(card, engine.inputs[0].dtype) if card.size_wh != (0, 0) else None
    batch, least = _batch(settings.batch, engine.inputs, total)
    side_by_side = side_by_side and model_file.kind != plan.PLAN
    return Model(engine, card, preprocess, postprocess, batch, least, side_by_side, given.get("golden"))


def chosen(settings: Settings, talk: Talk) -> Settings:
    """The settings with one plan in place of a folder of plans."""
    from edgeapp.gpu import selection
    from edgeapp.gpu.driver import Driver

    def capability() -> tuple[int, int]:
        driver = Driver()
        driver.initialise()
        return driver.compute_capability(settings.device)

    assert settings.engine is not None
    found, reason = selection.pick(
        settings.engine, settings.tensorrt_library, capability, host_code=settings.allow_host_code
    )
    talk.note(f"edgeapp: {reason}")
    return replace(settings, engine=found.path)


@contextmanager
def open_engine(
    model_file: plan.ModelFile,
    given: dict[str, Any],
    settings: Settings,
    trace: Trace,
    talk: Talk,
    stop: Stop,
    *,
    side_by_side: bool = False,
    own_context: bool = False,
) -> Iterator[tuple[Engine, dict[str, Any]]]:
    """An engine for a plan (GPU) or an ONNX model (CPU), and the metadata inside the file.

    The one way to an engine, so that no command can leave out the check.

    Args:
        model_file: the file at first sight; when it is checked, it is looked at anew.
        given: the model card's keys, for `trust_key` and `sha256`.
        side_by_side: see `open_model`.
        own_context: see `bring_up`.
    """
    with trace.step("verify the engine file"):
        model_file = verified(model_file, given, settings, talk, stop)
    if model_file.kind == plan.PLAN:
        from edgeapp.gpu import runtimes

        # Refuse what no runtime here can run, before the driver is asked.
        runtimes.choose(model_file, settings.tensorrt_library, host_code=settings.allow_host_code)
        with bring_up(
            model_file,
            device=settings.device,
            library=settings.tensorrt_library,
            detail=talk.detail,
            trace=trace,
            check_stop=stop.check,
            plugins=settings.plugin,
            host_code=settings.allow_host_code,
            own_context=own_context,
        ) as engine:
            yield engine, model_file.metadata
        return
    with trace.step("load the ONNX model"):
        from edgeapp.cpu.engine import CpuEngine

        data = model_file.checked.take() if model_file.checked else None
        cpu = CpuEngine(model_file.path, data, threads=1 if side_by_side else 0)
    try:
        yield cpu, dict(cpu.metadata)
    finally:
        cpu.close()


def verified(
    model_file: plan.ModelFile, given: dict[str, Any], settings: Settings, talk: Talk, stop: Stop
) -> plan.ModelFile:
    """The file as trust.check() read it, or as it was when there was nothing to check; says what code may run."""
    if model_file.kind != plan.PLAN and (settings.plugin or settings.allow_host_code):
        flag = "--plugin" if settings.plugin else "--allow-host-code"
        raise errors.UsageError(f"{flag} goes with a plan, not with an ONNX model", "", f"leave {flag} out")
    wanted = trust.demands(
        keys=settings.trust_key, required=settings.require_signature, sha256=settings.engine_sha256, card=given
    )
    data = trust.check(model_file.path, wanted, talk.note, stop.check)
    for file in settings.plugin:
        talk.always(f"edgeapp: plugin {paths.printable(file)} may run its code, SHA-256 {trust.plugin_sha256(file)}")
    if settings.allow_host_code:
        talk.always(f"edgeapp: {paths.printable(model_file.path)} may run native code that it carries")
    # What was read of the file before does not count any more: it may be another one since.
    return model_file if data is None else plan.identify(model_file.path, data)


def given_card(settings: Settings) -> dict[str, Any]:
    """Card keys from the card file, overridden by flags."""
    from edgeapp.labels import read_labels
    from edgeapp.model import find_card, read_card

    assert settings.engine is not None
    path = settings.model_card or find_card(settings.engine)
    values = read_card(path) if path else {}
    flags = dict(settings.card)
    if "labels" in flags:
        flags["labels"] = read_labels(flags["labels"])
    return {**values, **flags}


def _card(given: dict[str, Any], metadata: dict[str, Any], engine: Engine, talk: Talk) -> Card:
    """The complete card; says once what had to be guessed."""
    from edgeapp.model import complete, from_ultralytics

    known = {**from_ultralytics(metadata), **given}
    card, guesses = complete(known, engine.inputs, engine.outputs)
    if guesses and card.task != "raw":
        reason = "the model card leaves open" if known else "no model card"
        talk.note(f"edgeapp: {reason}, guessed {', '.join(guesses)}")
    return card


def _batch(wanted: int | str | None, inputs: Sequence[TensorSpec], total: int | None) -> tuple[int, int]:
    """(pictures per inference, places that an inference has at least)."""
    first = inputs[0].shape[0] if inputs and inputs[0].shape else 1
    if first > 0:
        if isinstance(wanted, int) and wanted > first:
            raise errors.UsageError(
                f"--batch {wanted} does not fit: the engine was built for batches of {first}",
                "",
                f"use --batch {first}",
            )
        return wanted if isinstance(wanted, int) else first, first
    least = min((low[0] for low, _, _ in inputs[0].profiles), default=1)
    if wanted == "auto":
        tuned = max((best[0] for _, best, _ in inputs[0].profiles), default=1)
        wanted = max(least, min(tuned, total or tuned))
    batch = wanted if isinstance(wanted, int) else max(1, least)
    return min(batch, max(least, total or batch)), least


def open_to_run(
    model_file: plan.ModelFile,
    source: FileSource,
    settings: Settings,
    trace: Trace,
    talk: Talk,
    stop: Stop,
    stack: ExitStack,
    *,
    decoders: int,
    total: int | None,
    side_by_side: bool = False,
) -> tuple[Model, Runner | None]:
    """Bring up a model and what runs batches of pictures on it, None when it takes none; the stack takes both down.

    Args:
        source: decodes no larger than the model needs from here on.
        decoders: threads that fill batches.
        total: how many inputs there will be, None if nobody knows.
        side_by_side: see `open_model`.

    Raises:
        EdgeappError: it cannot be run.
    """
    model = open_model(model_file, settings, trace, talk, stop, stack, total=total, side_by_side=side_by_side)
    runner = None
    if model.preprocess is not None:
        if settings.save is None and not settings.exact_decode:
            source.fit = model.preprocess.wanted_wh
        with trace.step("buffers and graphs"):
            runner = make_runner(model, model.preprocess, settings, stack, decoders=decoders, total=total)
        source.as_pixels = runner.takes_pixels and settings.save is None
    if settings.startup_trace:
        talk.always(str(trace))
    return model, runner


def decoders_for(model_file: plan.ModelFile, settings: Settings) -> int:
    """Threads that read and decode for a model."""
    return settings.decode_threads or cores.decoders(1 if model_file.kind == plan.PLAN else 0)


def infers_side_by_side(settings: Settings, *, decoders: int, total: int | None) -> bool:
    """Whether an ONNX model shall infer batches beside each other: where there are enough to keep all cores at work."""
    count = cores.usable()
    batch = settings.batch if isinstance(settings.batch, int) else 1
    if count not in SIDE_BY_SIDE_CORES or min(decoders, settings.slots or decoders) < count:
        return False
    return total is None or total >= FEWEST_BATCHES_PER_CORE * count * batch


def make_runner(
    model: Model, preprocess: Preprocessor, settings: Settings, stack: ExitStack, *, decoders: int, total: int | None
) -> Runner:
    """What runs batches of pictures on the engine; the stack closes it.

    Args:
        decoders: threads that fill batches.
        total: how many inputs there will be, None if nobody knows.
    """
    from edgeapp.direct import Direct
    from edgeapp.pipeline import drawers
    from edgeapp.records import nbytes

    engine: Any = model.engine
    batch, least = model.batch, model.least
    batches = -(-total // batch) if total is not None else None
    beyond = BATCHES_BEYOND_DECODING * settings.streams
    if settings.save:
        beyond = BATCHES_TO_SAVE + -(-drawers(decoders) // batch)
    hosts = settings.slots or (decoders if model.side_by_side else -(-decoders // batch) + beyond)
    hosts = min(hosts, batches or hosts)
    if getattr(engine, "pictures_only", False):  # a GpuEngine
        with suppress(errors.DataError):  # outputs of a size that only the run tells
            return open_ring(
                model,
                preprocess,
                settings,
                stack,
                hosts=hosts,
                graphs=batches is None or batches >= FEWEST_BATCHES_FOR_GRAPHS,
            )
    hosts = max(1, min(hosts, MOST_HOST_BYTES // (batch * nbytes(preprocess.shape, preprocess.dtype))))
    return Direct(engine, preprocess.fill, preprocess.shape, preprocess.dtype, batch=batch, least=least, hosts=hosts)


def open_ring(
    model: Model,
    preprocess: Preprocessor,
    settings: Settings,
    stack: ExitStack,
    *,
    hosts: int,
    graphs: bool = True,
    on_gpu: bool = True,
    mapped: bool | None = None,
) -> Ring:
    """What runs batches of pictures on a GPU; the stack closes it.

    Args:
        graphs: record CUDA graphs.
        on_gpu: pictures may become network input, and boxes be picked, on the GPU, if --preprocess lets them.
        mapped: the GPU reads pictures in page-locked memory instead of having them copied; None lets the GPU say.

    Raises:
        DataError: the engine's outputs have a size that only the run tells. UsageError: --streams does not fit.
    """
    from edgeapp.gpu.intake import Intake, PixelIntake, ReadyIntake
    from edgeapp.gpu.kernels import Kernels
    from edgeapp.gpu.preprocess import Preparer
    from edgeapp.gpu.ring import SLOTS, Ring

    engine: Any = model.engine
    spec = engine.inputs[0]
    kernels = None
    if on_gpu and settings.preprocess != "cpu":
        try:
            kernels = Kernels(engine.driver.compute_capability(settings.device))
            stack.callback(kernels.close)
        except errors.DataError:
            if settings.preprocess == "gpu":
                raise
    intake: Intake = ReadyIntake(preprocess, spec, model.batch)
    if kernels is not None:
        mapped = engine.driver.is_integrated(settings.device) if mapped is None else mapped
        intake = PixelIntake(preprocess, spec, model.batch, Preparer(model.card, spec.dtype, kernels), mapped=mapped)
    try:
        ring = Ring(
            engine,
            intake,
            shape=preprocess.shape,
            batch=model.batch,
            least=model.least,
            hosts=min(hosts, max(SLOTS * settings.streams + 1, MOST_HOST_BYTES // intake.size)),
            spin=settings.sync == "spin",
            graphs=graphs,
            streams=settings.streams,
            boxes=_filter(model, preprocess, kernels) if kernels is not None else None,
        )
    except errors.DataError as error:
        if settings.streams == 1:
            raise
        raise errors.UsageError(
            f"--streams {settings.streams} does not fit this plan",
            f"each stream computes with an execution context of its own: {error.what}",
            "leave it out; with free dimensions TensorRT 8.6 wants a profile for each context, 10 does not",
        ) from error
    stack.callback(ring.close)
    return ring


def _filter(model: Model, preprocess: Preprocessor, kernels: Kernels) -> Filter | None:
    """What picks the boxes of a dense detector head on the GPU; None for other outputs."""
    from edgeapp.gpu import filter as boxes
    from edgeapp.postprocess.detect import choose_head

    engine: Any = model.engine
    if model.card.task != "detect" or model.card.score_threshold < LEAST_FILTERED or len(engine.outputs) != 1:
        return None
    head, transposed = choose_head(model.card, engine.outputs)
    (output,) = engine.outputs
    if head not in boxes.HEADS or output.dtype not in boxes.DTYPES:
        return None
    shape = engine.output_shapes((model.batch, *preprocess.shape))[output.name]
    card, nms = model.card, None
    if head != "yolox":
        nms = boxes.Nms(card.iou_threshold, min(card.max_detections, MOST_CANDIDATES))
    return boxes.Filter(head, transposed, shape, output.dtype, card.score_threshold, MOST_CANDIDATES, kernels, nms)
