"""Results by MQTT 3.1.1: a message for each, of quality 1; what the broker has acknowledged is its own."""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from edgeapp import errors
from edgeapp.service.publisher import MOST_LINES, DownError, RefusedError
from edgeapp.service.targets import Target, read_login, tls_context

TIMEOUT_S = 10.0
KEEP_ALIVE_S = 30
STATUS_EVERY_S = 30.0
GOODBYE_S = 0.5
LOOK_S = 0.1

MOST_CLOSINGS = 8
"""So often a broker may end the connection over one and the same result: MQTT 3.1.1 knows no other way to refuse it."""

STATUS_KEYS = ("ready", "reasons", "uptime_s", "inputs", "rate_1m", "queue_depth", "model")


class Mqtt:
    """A receiver at a broker.

    PREFIX/results has a message for each result; PREFIX/available, retained, is online or offline, which the broker
    says itself when the service is gone; PREFIX/status tells every 30 s how it is.

    Args:
        target: its path is the prefix.
        login_file: user and password, read anew for each connection.
        ca_file: as tls_context takes it.
        figures: State.figures.

    Raises:
        EdgeappError: a file cannot be used, or there is no TLS.
    """

    kind = "mqtt"

    def __init__(
        self, target: Target, login_file: str | None, ca_file: str | None, figures: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._target = target
        self._login_file = login_file
        self._figures = figures
        if login_file:
            read_login(login_file)
        self._context = tls_context(ca_file) if target.secure else None
        # Of its own for each process: a broker ends the older one of two connections with one name.
        self._name = f"edgeapp-{socket.gethostname()[:32]}-{secrets.token_hex(4)}"
        self._session: _Session | None = None
        self._status_s = float("-inf")
        self._closings = 0

    def send(self, lines: Sequence[bytes]) -> None:
        session = self._connected()
        try:
            for line in lines:
                session.put(f"{self._target.path}/results", line.rstrip(b"\n"))
            session.settle(TIMEOUT_S)
        except _ClosedError as error:
            self._drop()
            self._closings = self._closings + 1 if len(lines) == 1 else 0
            if self._closings >= MOST_CLOSINGS:
                self._closings = 0
                raise RefusedError(f"it closed the connection over it {MOST_CLOSINGS} times") from error
            raise
        except DownError:
            self._drop()
            raise
        self._closings = 0
        self._tell_status()

    def idle(self) -> None:
        """Answer the broker, and tell how it is."""
        session = self._connected()
        try:
            session.turn(0.0)
        except DownError:
            self._drop()
            raise
        self._tell_status()

    def close(self) -> None:
        session = self._session
        if session is not None:
            with suppress(DownError):
                session.put(f"{self._target.path}/available", b"offline", retain=True)
                session.settle(GOODBYE_S)
                session.close(goodbye=True)
            self._drop()

    def _connected(self) -> _Session:
        if self._session is None:
            login = None
            try:
                login = read_login(self._login_file) if self._login_file else None
            except errors.EdgeappError as error:
                raise DownError(f"{error.what}: {error.why}") from error
            client = paho.Client(
                CallbackAPIVersion.VERSION2, self._name, protocol=paho.MQTTv311, reconnect_on_failure=False
            )
            if login is not None:
                client.username_pw_set(*login)
            if self._context is not None:
                client.tls_set_context(self._context)
            client.will_set(f"{self._target.path}/available", b"offline", qos=1, retain=True)
            session = _Session(client, self._target)
            session.put(f"{self._target.path}/available", b"online", retain=True)
            self._session = session
            self._status_s = float("-inf")
        return self._session

    def _tell_status(self) -> None:
        if self._session is not None and time.monotonic() - self._status_s >= STATUS_EVERY_S:
            self._status_s = time.monotonic()
            told = self._figures()
            self._session.put(
                f"{self._target.path}/status", json.dumps({key: told[key] for key in STATUS_KEYS}).encode(), quality=0
            )

    def _drop(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


class _ClosedError(DownError):
    """The broker ended a connection that it had accepted."""


class _Session:
    """One connection, for one thread: what moves its bytes is `turn`.

    Raises:
        DownError: from here and from all methods: there is no connection, or none any more.
    """

    def __init__(self, client: paho.Client, target: Target) -> None:
        self._client = client
        self._sent = self._acknowledged = 0
        self._answer: str | None = None
        client.connect_timeout = TIMEOUT_S
        client.max_inflight_messages_set(MOST_LINES * 2)
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish
        try:
            client.connect(target.host, target.port, KEEP_ALIVE_S)
            refused = self._greeting()
        except OSError as error:
            self.close()
            reason = getattr(error, "verify_message", "") or error.strerror or str(error)
            raise DownError(str(reason).lower()) from error
        except DownError:
            self.close()
            raise
        if refused:
            self.close()
            raise DownError(f"it refused the connection: {refused.lower()}")

    def _greeting(self) -> str:
        """What the broker has against the connection, "" if nothing."""
        until_s = time.monotonic() + TIMEOUT_S
        while self._answer is None:
            if time.monotonic() > until_s:
                raise DownError(f"no answer within {TIMEOUT_S:g} s")
            self.turn(LOOK_S)
        return self._answer

    def put(self, topic: str, payload: bytes, *, quality: int = 1, retain: bool = False) -> None:
        """Send a message, sooner or later."""
        self._check(self._client.publish(topic, payload, quality, retain).rc)
        self._sent += 1

    def settle(self, seconds: float) -> None:
        """Wait until all messages are acknowledged."""
        until_s = time.monotonic() + seconds
        while self._acknowledged < self._sent:
            if time.monotonic() > until_s:
                raise DownError(f"no acknowledgement within {seconds:g} s")
            self.turn(LOOK_S)

    def turn(self, seconds: float) -> None:
        """Read and write what can be; waits so long for something to read."""
        self._check(self._client.loop(seconds))

    def close(self, *, goodbye: bool = False) -> None:
        """Let the connection go.

        Args:
            goodbye: without it the broker says that the service is gone.
        """
        with suppress(Exception):
            if goodbye:
                self._client.disconnect()
                self._client.loop(0.0)
        self._client.on_connect = self._client.on_publish = None  # they lead back here: a circle
        sock = self._client.socket()
        if sock is not None:
            sock.close()

    def _check(self, code: MQTTErrorCode) -> None:
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS and not self._answer:
            said = paho.error_string(code).lower().rstrip(".")
            if self._answer is None:
                raise DownError(f"it refused the connection: {said}")
            raise _ClosedError(f"the connection is lost: {said}")

    def _on_connect(self, *told: Any) -> None:
        """Client, its data, flags, reason code, properties."""
        self._answer = str(told[3]) if told[3].is_failure else ""

    def _on_publish(self, *_: Any) -> None:
        self._acknowledged += 1
