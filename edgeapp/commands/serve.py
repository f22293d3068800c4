"""`edgeapp serve`: inputs of a folder through an engine, for years."""

from __future__ import annotations

import faulthandler
import gc
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from PIL import Image

from edgeapp import errors, memory, paths
from edgeapp.commands.hosting import Hosted, Reload, look_at
from edgeapp.commands.publishing import Publishing, wrong_with_receivers
from edgeapp.log import Talk
from edgeapp.pipeline import Pipeline
from edgeapp.records import Result
from edgeapp.service import metrics
from edgeapp.service.clients import Clients
from edgeapp.service.control import MOST_CLIENTS, answering
from edgeapp.service.ledger import Ledger
from edgeapp.service.notify import Notifier
from edgeapp.service.recorder import Outcome, Recorder, SpoolFrame, Writing
from edgeapp.service.room import Room
from edgeapp.service.source import SpoolSource
from edgeapp.service.spool import Spool
from edgeapp.service.state import State
from edgeapp.service.storms import EventLog
from edgeapp.service.stream import MOST_LISTING, Client, serve_socket
from edgeapp.service.thumbnails import Thumbnails
from edgeapp.settings import OPTIONS, SERVICE, Settings
from edgeapp.sinks.pictures import draw
from edgeapp.stopping import Stop
from edgeapp.tensors import noise

LOOK_EVERY_S = 0.5
GPU_RETRY_S = 2.0
START_PATIENCE_S = 30.0
"""systemd is asked for so much more time, again and again, while a model is loaded."""

SWAP_PATIENCE_S = 300.0
"""So long the watchdog is fed while a model is loaded in the place of another one."""

IDLE_PROBE_S = 10.0
PROBES_PER_WATCHDOG = 3
STILL_PROBES = 3
"""/healthz says that it is stuck when nothing came through for so many probes' time."""

METRICS_EVERY_S = 10.0
PUBLISH_S = 2.0
"""So long results that are not sent yet are sent at the end; the rest goes out after the next start."""

CLOSE_S = 5.0
"""A driver that is broken may never give a model back: then the process ends without that."""

PROBE_WH = (64, 48)

REASONS = {65: "data", 66: "missing", 71: "system", 74: "disk", 77: "permission"}
"""Why an input failed, by the exit code of its error."""


def serve(settings: Settings, again: Callable[[], Settings], stop: Stop, talk: Talk) -> int:
    """Serve until a signal comes; returns the exit code.

    Args:
        again: reads flags, environment and configuration anew.
    """
    memory.keep_freed()
    if sys.stderr is not None:
        faulthandler.enable()  # whoever aborts a process that hangs, as systemd's watchdog does, gets its stacks
    log = EventLog(quiet=talk.quiet, debug=talk.debug, form=settings.log)
    try:
        with Service(settings, _root(settings), again, stop, log) as service:
            return service.run()
    except errors.EdgeappError as error:
        if talk.debug:
            traceback.print_exc()
        log.error(error)
        return error.exit_code
    finally:
        stop.ignore()
        log.flush()


def _root(settings: Settings) -> str:
    """The spool; refuses settings that do not go together."""
    if settings.engine is None:
        raise errors.UsageError("no --engine given", "", "edgeapp serve --engine model.plan --spool DIR")
    root = settings.spool or os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if not root:
        raise errors.UsageError("no --spool given", "inputs and results need a folder", "--spool /var/lib/edgeapp")
    if settings.done == "delete" and set(settings.write) != {"jsonl"}:
        raise errors.UsageError(
            f"--write {' '.join(settings.write)} and --done delete do not go together",
            "what is written beside an input needs the input kept",
            "use --done move, or --write jsonl",
        )
    for problem in wrong_with_receivers(settings):
        raise problem
    return root


def _draw(result: Result) -> None:
    """On pictures that get another beside them: those of a list, and a probe, do not."""
    frame = result.frame
    assert isinstance(frame, SpoolFrame)
    if not frame.probe and not os.path.isabs(frame.name):
        draw(result)


class Service:
    """The parts of a running service.

    Threads: the main one, which hears signals and looks after the others; `work`, which runs one pipeline after
    another; that of the recorder; one for each model; those that answer questions.
    """

    def __init__(self, settings: Settings, root: str, again: Callable[[], Settings], stop: Stop, log: EventLog) -> None:
        self._settings = settings
        self._again = again
        self._stop = stop
        self._log = log
        self._spool = Spool.at(root, settings.watch)
        self._state = State()
        self._stack = ExitStack()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._quit = Stop()
        self._begun = self._ended = False
        self._failure: BaseException | None = None
        self._reload: Reload | None = None
        self._next: Hosted | None = None
        self._hangups = 0
        self._metrics_s = 0.0
        self._lock = threading.Lock()
        self._worked = threading.Event()
        self._hosted: Hosted
        self._work: threading.Thread

    def __enter__(self) -> Service:
        with ExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, stack: ExitStack) -> None:
        settings, spool = self._settings, self._spool
        self._notifier = stack.enter_context(Notifier())
        stack.enter_context(spool.locked())
        spool.make()
        self._room = Room(spool.folders, settings.min_free_mb << 20, self._disk, self._alive)
        try:
            self._ledger = Ledger(os.path.join(spool.state, "ledger"))
            self._ledger.end(name for name in self._ledger.unfinished() if not os.path.lexists(spool.input(name)))
        except OSError as error:
            raise paths.refusal(f"cannot use {paths.printable(spool.state)}", error, writing=True) from error
        stack.callback(self._ledger.close)
        watchdog_s = self._notifier.watchdog_s
        self._source = SpoolSource(
            spool,
            self._ledger,
            self._room,
            self._quit,
            settle_s=settings.settle_s,
            most_attempts=settings.attempts,
            probe_s=watchdog_s / PROBES_PER_WATCHDOG if watchdog_s else IDLE_PROBE_S,
            probe=self._probe,
            say=self._log.note,
        )
        stack.callback(self._source.close)
        self._recorder = Recorder(
            spool,
            self._ledger,
            self._room,
            Writing(
                jsonl="jsonl" in settings.write,
                json="json" in settings.write,
                delete=settings.done == "delete",
                segment_bytes=settings.segment_mb << 20,
                segment_s=settings.segment_s,
                group_s=settings.commit_ms / 1e3,
            ),
            most_attempts=settings.attempts,
            finished=self._finished,
        )
        stack.callback(self._recorder.end)
        self._publishing = Publishing(settings, spool, self._recorder, self._state, self._log)
        stack.callback(self._publishing.end, 0.0)
        self._metrics_file = settings.metrics_file
        if self._metrics_file is None and (runtime := os.environ.get("RUNTIME_DIRECTORY")):
            self._metrics_file = os.path.join(runtime, "metrics.prom")
        if settings.http is not None:
            from edgeapp.service.http import Server
            from edgeapp.service.listening import parse_address
            from edgeapp.service.pages import Pages

            still_s = max(STILL_PROBES * self._source.probe_s, START_PATIENCE_S)
            pages = Pages(self._state, still_s)
            stack.enter_context(Server(parse_address(settings.http), pages, self._log))
        if settings.listen == "-":
            threading.Thread(target=self._serve_standard_streams, name="standard input", daemon=True).start()
        elif settings.listen is not None:
            stack.callback(Clients(settings.listen, self._serve_paths, "paths", MOST_LISTING).close)
        place = settings.control or os.path.join(os.environ.get("RUNTIME_DIRECTORY") or spool.state, "control.sock")
        stack.callback(Clients(place, answering(self._answer), "control", MOST_CLIENTS).close)

    # --- the main thread ---------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until a signal, a drain or an error for good; returns the exit code.

        Raises:
            EdgeappError: the error.
        """
        try:
            self._hosted = self._first_model()
        except errors.Stopped:
            return 0
        self._begun = True
        self._work = threading.Thread(target=self._run_pipelines, name="work", daemon=True)
        self._work.start()
        try:
            while not self._worked.is_set():
                self._look_after()
                self._wait(LOOK_EVERY_S)
        finally:
            self._finish()
        if self._failure is not None and not isinstance(self._failure, errors.Stopped):
            raise self._failure
        self._log.note(f"stopped: {self._state.status_text()}")
        return 0

    def _first_model(self) -> Hosted:
        """Load the model; where there is no GPU yet, wait for it.

        Raises:
            EdgeappError: it cannot be loaded. Stopped: a signal came.
        """
        while True:
            hosted = self._load(self._settings)
            if hosted.error is None:
                self._state.release("waiting for the GPU")
                self._state.hold("warming up")
                return hosted
            if not isinstance(hosted.error, errors.NoGpuError):
                raise hosted.error
            if self._state.hold("waiting for the GPU", hosted.error.what):
                self._log.error(hosted.error)
            self._stand_by(GPU_RETRY_S)

    def _load(self, settings: Settings) -> Hosted:
        hosted = Hosted(settings, self._stop, self._log, self._notify)
        try:
            while not hosted.known:
                self._stand_by(LOOK_EVERY_S)
        except errors.Stopped:
            self._give_back(hosted)
            raise
        return hosted

    def _give_back(self, hosted: Hosted, timeout_s: float = CLOSE_S) -> None:
        """Close a model. Python ends under its thread else, which a library can answer with an abort."""
        if not hosted.close(timeout_s):
            if isinstance(self._failure, errors.EdgeappError):
                self._log.error(self._failure)
            self._log.note("the model could not be given back in time")
            self._log.flush()
            os._exit(getattr(self._failure, "exit_code", 0))

    def _stand_by(self, seconds: float) -> None:
        """Wait before the service is ready; systemd shall wait too."""
        self._notifier.extend_timeout(START_PATIENCE_S)
        self._notifier.status(self._state.status_text())
        self._wait(seconds)
        self._stop.check()
        if self._ended:
            raise errors.Stopped

    def _wait(self, seconds: float) -> None:
        """Until a signal, a notice from another thread or the end of the time."""
        self._stop.poll(self._wake, timeout_s=seconds)
        self._stop.clear()
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _notify(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _look_after(self) -> None:
        if self._stop.asked() or self._recorder.error is not None:
            self._end()
        if self._hangups != self._stop.hangups and self._reload is None:
            self._hangups = self._stop.hangups
            with suppress(errors.InputOutputError):  # another one has just begun
                self._begin_reload()
        self._watch_reload()
        self._state.queue_depth, self._state.in_flight = len(self._source), self._source.under_way
        with suppress(OSError):
            self._state.disk_free_bytes = free_bytes = self._room.free_bytes()
            if free_bytes < self._room.least_bytes:
                self._source.look()
        self._notifier.status(self._state.status_text())
        self._log.tick()
        if self._metrics_file is not None and time.monotonic() >= self._metrics_s:
            self._metrics_s = time.monotonic() + METRICS_EVERY_S
            try:
                metrics.write_file(self._metrics_file, metrics.render(self._state))
            except errors.EdgeappError as error:  # they do not stop the work
                self._log.error(error)

    def _end(self) -> None:
        """Take nothing more; what was taken is finished."""
        if not self._ended:
            self._ended = True
            self._state.hold("draining")
            self._notifier.stopping(self._state.status_text())
            self._room.end()
            self._source.end(over=True)

    def _finish(self) -> None:
        """Bring what is there to the disk, and give the model back."""
        self._end()
        self._work.join()
        lost = isinstance(self._failure, errors.GpuLostError)
        if lost:
            self._state.hold("GPU lost", str(self._failure))
        try:
            self._recorder.close()
        except errors.EdgeappError as error:
            self._failure = self._failure or error
        self._publishing.end(0.0 if lost else PUBLISH_S)
        for hosted in filter(None, (self._hosted, self._next)):
            self._give_back(hosted, 0.5 if lost else CLOSE_S)
        if self._reload is not None:
            ending = errors.InputOutputError("cannot reload", "the service is ending")
            self._reload.failed(self._reload.error or ending)
            self._reload.over.set()

    # --- the thread of the pipelines ---------------------------------------------------------------------------------

    def _run_pipelines(self) -> None:
        try:
            while not self._ended:
                self._run_pipeline(self._hosted)
                self._source.again()
                reload = self._reload
                if reload is not None and not self._ended and (reload.swap or self._next_is_open()):
                    self._switch(reload)
                    gc.collect()  # a pipeline is a circle of references, and holds its model's memory
                    memory.give_back()
        except BaseException as error:
            self._failure = error
        finally:
            self._worked.set()
            self._notify()

    def _run_pipeline(self, hosted: Hosted) -> None:
        model, settings = hosted.model, hosted.settings
        source, pictures = self._source, "pictures" in settings.write
        source.engine_sha256 = hosted.sha256
        source.fit, source.max_pixels = None, settings.max_pixels
        source.as_pixels = hosted.runner is not None and hosted.runner.takes_pixels and not (pictures or settings.http)
        if model.preprocess is not None and not pictures and not settings.exact_decode:
            source.fit = model.preprocess.wanted_wh
        assert settings.engine is not None
        self._state.model = {
            "file": settings.engine, "sha256": hosted.sha256, "runtime": model.engine.name, "task": model.card.task,
        }  # fmt: skip
        Pipeline(
            model.engine,
            hosted.runner,
            model.postprocess,
            [Thumbnails(self._state), self._recorder],
            task=model.card.task,
            batch=model.batch,
            decoders=hosted.decoders,
            keep_pictures=settings.http is not None,
            draw=_draw if pictures else None,
            finished=lambda _: None,
            stop=self._quit,
        ).run(source)

    def _switch(self, reload: Reload) -> None:
        """Put the new model in the place of the old one, or load it now that the old one is away."""
        old = self._hosted
        if self._next is not None:
            self._hosted, self._next = self._next, None
            old.close()
            self._reload_over(reload, None)
            return
        old.close()
        fresh = Hosted(reload.settings, self._stop, self._log, self._notify)
        try:
            fresh.wait()
        except Exception as error:
            reload.failed(error)
            fresh = Hosted(old.settings, self._stop, self._log, self._notify)
            fresh.wait()
            self._reload_over(reload, error)
        else:
            self._reload_over(reload, None)
        self._hosted = fresh

    # --- reloads -----------------------------------------------------------------------------------------------------

    def _begin_reload(self) -> Reload:
        """Load what the configuration names now.

        Raises:
            EdgeappError: the configuration is wrong, or a reload is under way.
        """
        with self._lock:
            why = "another reload is under way" if self._reload is not None else ""
            if self._ended or not self._begun:
                why = "the service is ending" if self._ended else "the service is starting"
            if why:
                raise errors.InputOutputError("cannot reload", why, "try again in a moment")
            reload = self._reload = Reload(self._settings)
        self._notifier.reloading()
        self._state.reloading(True)
        try:
            reload.settings = self._settings_now()
            if reload.settings.engine is None:
                raise errors.UsageError("no engine is named any more", "", "name it, in the configuration file")
            if reload.settings.reload == "swap":
                # The old model may lie where the new one is now, and then there is no way back to it.
                look_at(reload.settings, self._stop, self._log)
                reload.swap = True
                self._source.end()
            else:
                self._next = Hosted(reload.settings, self._stop, self._log, self._notify)
        except (Exception, errors.Stopped) as error:  # such as: the system refuses a thread
            self._reload_over(reload, error)
        return reload

    def _settings_now(self) -> Settings:
        """Flags, environment and configuration read anew; of the service itself only a restart changes anything."""
        now = self._again()
        fixed = {o.name: getattr(self._settings, o.name) for o in OPTIONS if o.group == SERVICE}
        if changed := [name for name, value in fixed.items() if getattr(now, name) != value]:
            self._log.note(f"{', '.join(changed)}: a restart is needed for what was changed here")
        return replace(now, **fixed)

    def _watch_reload(self) -> None:
        """Once the new model is there, end the run of the old one; once it is known to be bad, stay with that."""
        reload, hosted = self._reload, self._next
        if reload is not None and reload.swap and time.monotonic() - reload.started_s < SWAP_PATIENCE_S:
            self._alive()  # nothing else is, while there is no model
        if reload is None or reload.swap or hosted is None or not hosted.known:
            return
        if hosted.error is None:
            self._source.end()
        else:
            self._next = None
            self._reload_over(reload, hosted.error)
            memory.give_back()

    def _next_is_open(self) -> bool:
        return self._next is not None and self._next.known and self._next.error is None

    def _reload_over(self, reload: Reload, error: BaseException | None) -> None:
        reload.failed(error)
        if reload.error is not None:
            self._state.reload("failed", reload.error.what)
            self._log.error(reload.error)
        else:
            self._settings = reload.settings
            self._state.reload("done")
            self._log.note(f"serving {paths.printable(str(self._settings.engine))}")
        self._state.reloading(False)
        self._reload = None
        self._notifier.ready(self._state.status_text())
        reload.over.set()  # last: who waited for it may begin the next one

    # --- other threads -----------------------------------------------------------------------------------------------

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What `edgeapp ctl` gets; on a thread of its own."""
        wish = request.get("do")
        if wish == "status":
            return self._state.snapshot()
        if wish == "pause":
            self._source.pause()
            self._state.hold("paused")
        elif wish == "resume":
            self._source.resume()
            self._state.release("paused")
        elif wish == "drain":
            self._end()
        elif wish == "reload":
            reload = self._begin_reload()
            if request.get("wait"):
                reload.over.wait()
                if reload.error is not None:
                    raise reload.error
        else:
            raise errors.UsageError(f"cannot do {paths.printable(repr(wish))}")
        return {"state": self._state.status_text()}

    def _serve_paths(self, client: socket.socket) -> None:
        serve_socket(client, self._source.submit)

    def _serve_standard_streams(self) -> None:
        """Paths on standard input, results on standard output; the end of the one is the end of the service."""
        Client(0, 1, self._source.submit).serve()
        self._end()

    def _probe(self) -> SpoolFrame:
        """An input of ours, of the kind that the model takes."""
        model = self._hosted.model
        if model.preprocess is not None:
            width, height = PROBE_WH
            pixels = (noise((height, width, 3)) * 255).astype("uint8")
            return SpoolFrame("", image=Image.fromarray(pixels), picture_wh=PROBE_WH, probe=True)
        return SpoolFrame("", tensors=dict(self._hosted.noise), probe=True)

    def _disk(self, reason: str) -> None:
        """The disk became full, or has room again."""
        if reason:
            self._state.hold("disk full", reason)
            self._log.event("disk_full", reason, level="error", fix="free some space: it goes on by itself")
        else:
            self._state.release("disk full")
            self._log.event("disk_free", "there is room again")

    def _alive(self) -> None:
        self._state.beat()
        self._notifier.watchdog()

    def _finished(self, outcomes: Sequence[Outcome]) -> None:
        """A group of results is on the disk."""
        for outcome in outcomes:
            if outcome.kind == "probe":
                self._probed(outcome.result)
            else:
                self._count(outcome)
        self._publishing.more()
        self._source.finished({outcome.frame.name: outcome.line for outcome in outcomes})
        self._alive()

    def _count(self, outcome: Outcome) -> None:
        result, frame = outcome.result, outcome.frame
        seconds = time.perf_counter() - frame.taken_s
        if outcome.kind == "done":
            self._state.done(result, seconds, {"write": outcome.write_s}, frame.thumbnail)
        elif outcome.kind == "failed":
            assert result.error is not None
            reason = "poison" if frame.worn_out else REASONS.get(result.error.exit_code, "other")
            self._state.failed(frame.name, reason, result.error)
            self._log.event(
                "input_failed", result.error.what, level="error", reason=reason, why=result.error.why, name=frame.name
            )
        elif outcome.kind == "again":
            assert result.error is not None
            self._log.error(result.error)

    def _probed(self, result: Result) -> None:
        """A probe came through all steps: the service works."""
        if result.error is not None:
            raise result.error
        if self._state.release("starting", "warming up"):
            self._notifier.ready(self._state.status_text())
            self._log.note(f"ready: {paths.printable(str(self._settings.engine))} ({self._hosted.model.engine.name})")
