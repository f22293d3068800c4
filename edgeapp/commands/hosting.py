"""A model that is opened, kept and closed on a thread of its own: a CUDA context belongs to the thread that made it."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from edgeapp import errors, paths, plan
from edgeapp.bootstrap import Trace
from edgeapp.commands.golden import require_golden
from edgeapp.commands.opening import Model, chosen, decoders_for, given_card, make_runner, open_model, verified
from edgeapp.golden import noise_for
from edgeapp.log import Talk
from edgeapp.pipeline import Runner
from edgeapp.records import Frame, Letterbox, Result, Tensors
from edgeapp.settings import Settings
from edgeapp.stopping import Stop

READ_BYTES = 1 << 20


class Hosted:
    """Opens a model; it stays open until `close`.

    Attributes:
        settings: what it was opened with; of a folder of plans the one that was chosen.
        decoders: threads that its pipeline decodes with.
        sha256: of the model file, hex.
        noise: tensors that it takes.
        error: why it could not be opened, or closed.

    Args:
        changed: called when it is open, or cannot be.
    """

    def __init__(self, settings: Settings, stop: Stop, talk: Talk, changed: Callable[[], None]) -> None:
        self.settings = settings
        self.decoders = 0
        self.model: Model
        self.runner: Runner | None = None
        self.sha256 = ""
        self.noise: Tensors = {}
        self.error: BaseException | None = None
        self.trace = Trace()
        self._stop = stop
        self._talk = talk
        self._changed = changed
        self._known = threading.Event()
        self._unwanted = threading.Event()
        self._thread = threading.Thread(target=self._host, name="model", daemon=True)
        self._thread.start()

    @property
    def known(self) -> bool:
        """Whether it is open, or `error` says why not."""
        return self._known.is_set()

    def wait(self) -> None:
        """Until it is open.

        Raises:
            BaseException: it cannot be.
        """
        self._known.wait()
        if self.error is not None:
            raise self.error

    def close(self, timeout_s: float | None = None) -> bool:
        """Close it; False when that takes longer than `timeout_s`."""
        self._unwanted.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _host(self) -> None:
        try:
            with ExitStack() as stack:
                self._open(stack)
                self._known.set()
                self._changed()
                self._unwanted.wait()
        except BaseException as error:
            self.error = error
        finally:
            if not self._known.is_set():
                self._known.set()
                self._changed()

    def _open(self, stack: ExitStack) -> None:
        settings = self.settings
        assert settings.engine is not None  # serve() saw to it
        if os.path.isdir(settings.engine):
            self.settings = settings = chosen(settings, self._talk)
        assert settings.engine is not None
        before = _state_of(settings.engine)
        model_file = plan.identify(settings.engine)
        self.decoders = decoders_for(model_file, settings)
        self.model = open_model(
            model_file, settings, self.trace, self._talk, self._stop, stack, total=None, own_context=True
        )
        self.sha256 = _sha256(settings.engine)
        if _state_of(settings.engine) != before:
            raise errors.InputOutputError(
                f"cannot use {paths.printable(settings.engine)}: it was changed while it was loaded",
                "",
                "write it under another name and rename it, then load it again",
            )
        with self.trace.step("warm up"):
            self._warm_up(settings.engine)
        if self.model.preprocess is not None:
            with self.trace.step("buffers and graphs"):
                self.runner = make_runner(
                    self.model, self.model.preprocess, settings, stack, decoders=self.decoders, total=None
                )

    def _warm_up(self, path: str) -> None:
        """Run it once on noise, whose answer must be the golden one if there is one, and read what comes out."""
        model = self.model
        self.noise = noise_for(model.engine, model.card)
        if model.golden is not None:
            require_golden(path, model.engine, model.golden)
        outputs = model.engine.infer(self.noise)
        if model.preprocess is None:
            return
        whole = Letterbox((1.0, 1.0), (0.0, 0.0), model.card.size_wh)
        try:
            model.postprocess(outputs, [(0, whole, Result(Frame(""), model.card.task))])
        except (ValueError, IndexError, TypeError) as error:
            raise errors.DataError(
                f"cannot read what {paths.printable(path)} gives as {model.card.task}", str(error),
                "mend its model card: task, head",
            ) from error  # fmt: skip


def _state_of(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise paths.refusal(f"cannot read {paths.printable(path)}", error) from error
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def look_at(settings: Settings, stop: Stop, talk: Talk) -> None:
    """Find what can be found wrong with a model without loading it.

    Raises:
        EdgeappError: it cannot be run.
    """
    assert settings.engine is not None
    if os.path.isdir(settings.engine):
        settings = chosen(settings, talk)
    assert settings.engine is not None
    found = verified(plan.identify(settings.engine), given_card(settings), settings, talk, stop)
    if found.kind == plan.PLAN:
        from edgeapp.gpu import runtimes

        runtimes.choose(found, settings.tensorrt_library, host_code=settings.allow_host_code)


class Reload:
    """One wish for another model, and what became of it.

    Attributes:
        over: set once it is done or has failed, and another one can begin.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.swap = False
        self.over = threading.Event()
        self.error: errors.EdgeappError | None = None
        self.started_s = time.monotonic()

    def failed(self, error: BaseException | None) -> None:
        """Keep why it failed; None when it did not."""
        if error is not None and not isinstance(error, errors.EdgeappError):
            error = errors.EdgeappError(f"cannot load the model: {type(error).__name__}: {error}")
        self.error = error
