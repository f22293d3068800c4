"""`edgeapp demo`: the detector and the pictures that travel with the program."""

from __future__ import annotations

import ctypes
from dataclasses import replace

from edgeapp import errors, paths
from edgeapp.commands.run import run
from edgeapp.log import Talk
from edgeapp.settings import Settings
from edgeapp.stopping import Stop

MODEL, PLAN, CARD = "demo/model.onnx", "demo/model.plan", "demo/model.json"
FOLDER = "edgeapp-demo"


def demo(settings: Settings, stop: Stop, talk: Talk) -> int:
    """Run the demo model on the demo pictures; what the flags name takes their place.

    With an NVIDIA driver the plan that travels in the frozen file (x86-64, Ampere and newer GPUs) runs
    on the GPU; elsewhere, and said so, the same model runs on the CPU.

    Returns:
        the exit code of the run.
    """
    pictures = sorted(str(path) for path in paths.resource("demo").glob("*.jpg"))
    if not pictures:
        raise errors.NotFoundError(
            "the demo is not inside this program", "it was frozen with --slim", "use the full edgeapp"
        )
    settings = replace(
        settings,
        input=settings.input or tuple(pictures),
        save=settings.save or FOLDER,
        model_card=settings.model_card or str(paths.resource(CARD)),
    )
    code = run(settings, stop, talk) if settings.engine else _own_engine(settings, stop, talk)
    talk.note(f"edgeapp: the annotated pictures are in {settings.save}/")
    return code


def _own_engine(settings: Settings, stop: Stop, talk: Talk) -> int:
    """Run the plan if this machine can, else the ONNX model; they are part of the program, nobody signs them."""
    settings = replace(settings, require_signature=False, engine_sha256=None)
    reason = "there is no NVIDIA driver here"
    if not paths.resource(PLAN).is_file():
        reason = "no plan travels with this program"
    elif _has_driver():
        try:
            return run(replace(settings, engine=str(paths.resource(PLAN))), stop, talk)
        except (errors.DataError, errors.NoGpuError) as error:
            reason = error.why or error.what
    talk.note(f"edgeapp: the demo runs on the CPU: {reason}")
    return run(replace(settings, engine=str(paths.resource(MODEL))), stop, talk)


def _has_driver() -> bool:
    """Whether a driver library can be loaded; the bootstrap finds out whether it works."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
