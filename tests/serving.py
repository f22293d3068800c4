"""A running `edgeapp serve`, for tests that look at it from outside."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from support import Outcome, Program

WAIT_S = 60.0
TCP_LISTEN = "0A"
"""In /proc/PID/net/tcp (linux/include/net/tcp_states.h)."""


def until(true: Callable[[], Any], what: str, seconds: float = WAIT_S, every_s: float = 0.01) -> Any:
    """Wait for something; fails when it does not come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(every_s)
    raise AssertionError(f"not within {seconds} s: {what}")


class Spool:
    """The folders of a service, and what was put in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming, self.done, self.failed = root / "in", root / "done", root / "failed"
        self.results = root / "results"
        self.given: dict[bytes, str] = {}
        self.incoming.mkdir(parents=True)

    def put(self, source: Path | bytes, name: str | bytes) -> None:
        """Move a finished file in, as a careful producer does."""
        raw = os.fsencode(name)
        data = source if isinstance(source, bytes) else source.read_bytes()
        hidden = os.fsencode(self.incoming) + b"/.coming"
        Path(os.fsdecode(hidden)).write_bytes(data)
        os.rename(hidden, os.fsencode(self.incoming) + b"/" + raw)
        self.given[raw] = hashlib.sha256(data).hexdigest()

    @property
    def waiting(self) -> list[bytes]:
        return [name for name in os.listdir(os.fsencode(self.incoming)) if not name.startswith(b".")]

    def lines(self) -> list[dict[str, Any]]:
        """All results, the oldest first."""
        files = sorted(self.results.glob("*.jsonl"), key=lambda path: (path.name == "results.jsonl", path.name))
        return [json.loads(line) for path in files for line in path.read_text().splitlines()]

    def assert_each_once(self) -> None:
        """Every input lies in exactly one place, with its bytes, and each that is not waiting has a result."""
        found: list[str] = []
        for folder in (self.incoming, self.done, self.failed):
            for path in folder.iterdir():
                if path.is_file() and not path.name.endswith((".error.json", ".json", ".annotated.jpg")):
                    found.append(hashlib.sha256(path.read_bytes()).hexdigest())
        assert sorted(found) == sorted(self.given.values())
        known = {line["sha256"] for line in self.lines()}
        for folder in (self.done, self.failed):
            for path in folder.iterdir():
                if not path.name.endswith((".json", ".annotated.jpg")) and path.is_file():
                    assert hashlib.sha256(path.read_bytes()).hexdigest() in known, path
        for path in self.failed.iterdir():
            if not path.name.endswith(".error.json"):
                report = json.loads(Path(f"{path}.error.json").read_text())
                assert report["error"]["what"], report
        assert not [path for path in self.root.rglob("*") if path.name.endswith((".new", ".pending"))]


class Serving:
    """A running service."""

    def __init__(self, process: subprocess.Popen[bytes], program: Program, spool: Spool) -> None:
        self.process, self.program, self.spool = process, program, spool

    def ctl(self, *words: str, timeout: float = 60) -> Outcome:
        return self.program("ctl", *words, "--spool", self.spool.root, timeout=timeout)

    def status(self) -> dict[str, Any]:
        """What it tells of itself, asked over its socket."""
        return self.ask(do="status")

    def ask(self, **request: Any) -> dict[str, Any]:
        """Its answer to a request over its socket, as `edgeapp ctl` gets it."""
        import socket

        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(WAIT_S)
            client.connect(str(self.spool.root / "state" / "control.sock"))
            client.sendall(json.dumps(request).encode() + b"\n")
            data = b""
            while part := client.recv(1 << 16):
                data += part
        if not data:
            raise ConnectionError("it ended before it answered")
        answer: dict[str, Any] = json.loads(data)
        return answer

    def ready(self) -> bool:
        assert self.process.poll() is None, self.process.returncode
        try:
            return bool(self.status()["ready"])
        except OSError:
            return False

    def finished(self) -> int:
        """How many inputs are done or failed."""
        assert self.process.poll() is None, self.process.returncode
        try:
            return sum(self.status()["inputs"].values())
        except OSError:
            return 0

    def wait_done(self, count: int, seconds: float = WAIT_S) -> None:
        """Until so many inputs are done or failed."""
        until(lambda: self.finished() >= count, f"{count} inputs", seconds, 0.02)

    def port(self) -> int:
        """The TCP port that it listens on, whichever it was given: none is chosen before it is taken."""
        folder = Path(f"/proc/{self.process.pid}")
        held = set()
        for path in (folder / "fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                held.add(os.readlink(path))
        sockets = [line.split() for line in (folder / "net" / "tcp").read_text().splitlines()[1:]]
        (port,) = (one[1].split(":")[1] for one in sockets if one[3] == TCP_LISTEN and f"socket:[{one[9]}]" in held)
        return int(port, 16)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)


@contextmanager
def serving(
    program: Program,
    spool: Spool,
    *words: str | Path,
    engine: Path | None,
    env: Mapping[str, str] | None = None,
    ready: bool = True,
    **options: Any,
) -> Iterator[Serving]:
    """A service, from ready to the end of the body; then it is killed, if it is still there.

    Args:
        engine: None where the words name it, or a configuration file of theirs.
    """
    named = [] if engine is None else ["--engine", str(engine)]
    command = [*program.command, "serve", *named, "--spool", str(spool.root), *map(str, words)]
    with subprocess.Popen(command, cwd=program.cwd, env={**program.env, **(env or {})}, **options) as process:
        it = Serving(process, program, spool)
        try:
            if ready:
                until(it.ready, "ready")
            yield it
        finally:
            if process.poll() is None:
                process.kill()


def copy_model(source: Path, folder: Path) -> Path:
    """The demo's model and card, to be changed."""
    folder.mkdir()
    for name in ("model.onnx", "model.json"):
        shutil.copy(source / name, folder / name)
    return folder / "model.onnx"
