"""Child processes that are forks of this one, and messages to and from them.

A fork needs nothing else to start it, in the frozen file neither, and shares what is loaded. This process must have no
CUDA by then: a driver that was initialised before a fork is unusable after it (CUDA Programming Guide, "Fork").
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from edgeapp import errors, paths, stopping

PR_SET_PDEATHSIG = 1

GRACE_S = 2.0
"""A child that has said its last word, or was killed, is gone by then unless it hangs in the kernel."""

NO_NUMBER = -1
"""Of messages that are read at once; the data of those with a number are left as they are."""

NOTE, DETAIL, READY, ANSWER, FAILED = "note", "detail", "ready", "answer", "failed"
"""Kinds of messages without a number."""

HEADER = struct.Struct("=qQ")
READ_BYTES = 1 << 16
KEPT_LINES = 3
MOST_LINE_BYTES = 1 << 16
FIRST_FREE = 3
"""The lowest descriptor that is none of the standard ones."""


class Link:
    """One end of a socket for messages: a number, and bytes."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._unsent: deque[memoryview] = deque()
        self._header = bytearray(HEADER.size)
        self._part = memoryview(self._header)
        self._filled = 0
        self._number: int | None = None

    def fileno(self) -> int:
        return self._end.fileno()

    def close(self) -> None:
        self._end.close()

    @property
    def unsent(self) -> bool:
        """Whether something waits for `flush`."""
        return bool(self._unsent)

    def post(self, data: bytes, number: int = NO_NUMBER) -> None:
        """Have `flush` send it."""
        self._unsent.append(memoryview(HEADER.pack(number, len(data))))
        self._unsent.append(memoryview(data))

    def flush(self) -> None:
        """Send as much as goes without waiting; a broken socket is left to `receive`."""
        while self._unsent:
            try:
                count = self._end.send(self._unsent[0], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError:
                self._unsent.clear()
                return
            self._unsent[0] = self._unsent[0][count:]
            if not self._unsent[0]:
                self._unsent.popleft()

    def send(self, data: bytes, number: int = NO_NUMBER) -> None:
        """Send it now, from any thread.

        Raises:
            OSError: the other process is gone.
        """
        with self._lock:
            self._end.sendall(HEADER.pack(number, len(data)))
            self._end.sendall(data)

    def tell(self, kind: str, value: Any) -> None:
        """Send a message without a number."""
        self.send(pickle.dumps((kind, value), pickle.HIGHEST_PROTOCOL))

    def receive(self) -> list[tuple[int, bytearray]]:
        """The messages that are there, (number, data); does not wait.

        Raises:
            EOFError: the other process is gone, and all it sent was received.
        """
        found: list[tuple[int, bytearray]] = []
        while True:
            try:
                count = self._end.recv_into(self._part[self._filled :], 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            except ConnectionError:
                count = 0
            if not count:
                if found:
                    return found
                raise EOFError
            self._filled += count
            if self._filled < len(self._part):
                continue
            if self._number is None:
                self._number, size = HEADER.unpack(self._header)
                self._body = bytearray(size)
                self._part, self._filled = memoryview(self._body), 0
                if size:
                    continue
            found.append((self._number, self._body))
            self._number, self._part, self._filled = None, memoryview(self._header), 0


class Process:
    """A child, seen from its parent.

    Attributes:
        name: what people call it, "GPU 1".
        link: to it.
        printed: where to read what it, or a library in it, prints.
    """

    def __init__(self, pid: int, name: str, link: Link, printed: int) -> None:
        self._pid = pid
        self._status: int | None = None
        self.name = name
        self.link = link
        self.printed = printed
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._rest = b""

    @property
    def descriptors(self) -> tuple[int, int]:
        return self.link.fileno(), self.printed

    def read_printed(self) -> list[str]:
        """New whole lines; the last few are kept for `ending`. Does not wait."""
        lines: list[bytes] = []
        with suppress(BlockingIOError):
            while data := os.read(self.printed, READ_BYTES):
                *whole, rest = (self._rest + data).split(b"\n")
                self._rest = rest[-MOST_LINE_BYTES:]
                lines += whole
        texts = [text for line in lines if (text := line.decode("utf-8", "replace").strip())]
        self._lines.extend(texts)
        return texts

    def ending(self) -> tuple[str, str]:
        """How it ended, "was killed by SIGSEGV", and what it printed last; kills it if it goes on."""
        status = self.wait(GRACE_S)
        if status is None:
            self.kill()
            status = self.wait(GRACE_S)
        self.read_printed()
        why = " / ".join(self._lines)
        if status == -signal.SIGKILL:
            why = why or OUT_OF_MEMORY
        return ended(status), why

    def wait(self, limit_s: float) -> int | None:
        """Its exit code, negative for a signal; None while it is still there after that time."""
        if self._status is None:
            self._status = wait(self._pid, limit_s)
        return self._status

    def kill(self) -> None:
        if self._status is None:
            with suppress(OSError):
                os.kill(self._pid, signal.SIGKILL)

    def end(self) -> None:
        """Whatever it does; and let go of its descriptors."""
        self.kill()
        self.wait(GRACE_S)
        self.link.close()
        os.close(self.printed)


OUT_OF_MEMORY = "the kernel kills what takes too much memory: see dmesg"


def start(work: Callable[[Link], None], name: str, apart: Sequence[Process] = ()) -> Process:
    """Have a child do the work; it ends with it, and with this process.

    It takes no signals that ask for an end, of the terminal or of a service manager: this process tells it. An
    EdgeappError comes back as a message.

    Args:
        name: what people call it, "GPU 1".
        apart: earlier children, whose descriptors are none of its business.

    Raises:
        SystemRefusedError: the system refuses a process or descriptors.
    """
    opened: list[int] = []
    try:
        ours, theirs = socket.socketpair()
        opened += [ours.detach(), theirs.detach()]
        opened += os.pipe()
        # A parent without standard input or output would have them among the first three, which the child replaces.
        mine, its, reader, writer = (_above_standard(descriptor) for descriptor in opened)
        opened = [mine, its, reader, writer]
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        parent = os.getpid()
        pid = os.fork()
    except OSError as error:
        for descriptor in opened:
            with suppress(OSError):
                os.close(descriptor)
        raise paths.refusal(f"cannot start a process for {name}", error) from error
    if pid == 0:
        others = [mine, reader, *(descriptor for process in apart for descriptor in process.descriptors)]
        _be_child(work, socket.socket(fileno=its), writer, others, parent)
    os.close(its)
    os.close(writer)
    os.set_blocking(reader, False)
    return Process(pid, name, Link(socket.socket(fileno=mine)), reader)


def _above_standard(descriptor: int) -> int:
    """The same open file under a descriptor that is none of the standard ones."""
    if descriptor >= FIRST_FREE:
        return descriptor
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
    os.close(descriptor)
    return moved


def _be_child(
    work: Callable[[Link], None], end: socket.socket, writer: int, others: Iterable[int], parent: int
) -> NoReturn:
    """Do the work and end; nothing of the parent's is flushed, undone or cleaned up."""
    try:
        leave_parent(writer, parent, signal.SIG_IGN)
        for descriptor in others:
            with suppress(OSError):
                os.close(descriptor)
        link = Link(end)
        try:
            work(link)
            os._exit(0)
        except errors.EdgeappError as error:
            link.tell(FAILED, error)
        except Exception as error:
            traceback.print_exc()
            link.tell(FAILED, errors.unforeseen(error))
    finally:
        os._exit(1)


def leave_parent(writer: int, parent: int, handler: signal.Handlers) -> None:
    """Own signals, no core file, no terminal; and the kernel ends this process when the parent ends.

    Args:
        writer: a descriptor that takes the place of standard output and error.
        parent: its process id.
        handler: of the signals that ask for an end.
    """
    signal.set_wakeup_fd(-1)
    for number in stopping.SIGNALS:
        signal.signal(number, handler)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that call
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        null = os.open(os.devnull, os.O_RDONLY)
    except OSError:  # no /dev: a pipe without a writer is as empty
        null, closed = os.pipe()
        os.close(closed)
    for descriptor, target in ((null, 0), (writer, 1), (writer, 2)):
        os.dup2(descriptor, target)


def wait(pid: int, limit_s: float) -> int | None:
    """The exit code of a child, negative for a signal; None while it is still there after that time."""
    until_s = time.monotonic() + limit_s
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until_s:
            return None
        time.sleep(0.002)


def ended(status: int | None) -> str:
    """The end of a child in words: "killed by SIGSEGV"."""
    if status is None:
        return "hangs inside the kernel and cannot be killed"
    if status >= 0:
        return f"ended with {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def answers(processes: Sequence[Process], stop: stopping.Stop, heard: Callable[[Process, str, Any], None]) -> list[Any]:
    """What each child tells as its ANSWER, or that it is READY.

    Args:
        heard: takes messages of other kinds, and as DETAIL what is printed.

    Raises:
        EdgeappError: that of a child, or that one has crashed. Stopped: a signal came.
    """
    found: dict[Process, Any] = {}
    while len(found) < len(processes):
        waiting = [process for process in processes if process not in found]
        stop.wait_any([descriptor for process in waiting for descriptor in process.descriptors])
        for process in waiting:
            for line in process.read_printed():
                heard(process, DETAIL, line)
            try:
                messages = process.link.receive()
            except EOFError:
                how, why = process.ending()
                raise errors.GpuLostError(
                    f"{process.name}: process {how}", why, "see dmesg and edgeapp doctor"
                ) from None
            for _, data in messages:
                kind, value = pickle.loads(data)
                if kind == FAILED and len(processes) > 1:
                    raise type(value)(f"{process.name}: {value.what}", value.why, value.fix)
                if kind == FAILED:
                    raise value
                if kind in (ANSWER, READY):
                    found[process] = value
                else:
                    heard(process, kind, value)
    return [found[process] for process in processes]


def ask(call: Callable[[], Any], name: str, stop: stopping.Stop) -> Any:
    """What a call gives that must not be made in this process; `name` is what people call it.

    Raises:
        EdgeappError: that of the call, or that it crashed. Stopped: a signal came.
    """
    process = start(lambda link: link.tell(ANSWER, call()), name)
    try:
        return answers([process], stop, lambda *_: None)[0]
    finally:
        process.end()
