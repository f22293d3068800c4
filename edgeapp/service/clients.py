"""A Unix socket whose clients are served on threads, a bounded number of them."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from edgeapp.service.listening import listener_at, parse_address

REFUSED_S = 0.1
"""No descriptor or thread is left: the next look is after so long."""


class Clients:
    """Serves who connects, until `close`.

    Args:
        path: of the socket, mode 0660; who may write into its folder may replace it.
        serve: is given each connection, on a thread of its own, and need not close it.
        name: of the threads.
        most: connections at a time; others wait.

    Raises:
        EdgeappError: the socket cannot be made.
    """

    def __init__(self, path: str, serve: Callable[[socket.socket], None], name: str, most: int) -> None:
        self._path = path
        self._serve = serve
        self._name = name
        self._free = threading.BoundedSemaphore(most)
        self._socket = listener_at(parse_address(f"unix:{path}"))
        self._socket.setblocking(True)
        self._closed = False
        threading.Thread(target=self._accept, name=name, daemon=True).start()

    def _accept(self) -> None:
        while True:
            self._free.acquire()
            try:
                client, _ = self._socket.accept()
            except OSError:
                if self._closed:
                    return
                self._free.release()
                time.sleep(REFUSED_S)
                continue
            thread = threading.Thread(target=self._serve_one, args=(client,), name=f"{self._name} client", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the client sees that it is closed
                client.close()
                self._free.release()
                time.sleep(REFUSED_S)

    def _serve_one(self, client: socket.socket) -> None:
        try:
            with client:
                self._serve(client)
        finally:
            self._free.release()

    def close(self) -> None:
        """Take no more clients; those that are there may go on."""
        self._closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with suppress(OSError):
            os.unlink(self._path)
