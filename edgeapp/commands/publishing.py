"""What `edgeapp serve` sends on, and to whom: --webhook and --mqtt."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from edgeapp import errors, paths
from edgeapp.service import targets
from edgeapp.service.publisher import Publisher, Receiver
from edgeapp.service.recorder import Recorder
from edgeapp.service.spool import Spool
from edgeapp.service.state import State
from edgeapp.service.storms import EventLog
from edgeapp.service.unsent import Unsent
from edgeapp.settings import Settings

LEAST_S = 0.2
"""So much more time a publisher has to note where it stands."""


def wrong_with_receivers(settings: Settings) -> Iterator[errors.EdgeappError]:
    """What can be seen to be wrong without connecting to anything."""
    parts: list[Callable[[], object]] = []
    secure = False
    for url, parse in ((settings.webhook, targets.parse_webhook), (settings.mqtt, targets.parse_mqtt)):
        if url is not None:
            try:
                secure |= parse(url).secure
            except errors.EdgeappError as error:
                yield error
    if settings.webhook_headers is not None:
        parts.append(lambda: targets.read_headers(str(settings.webhook_headers)))
    if settings.mqtt_login is not None:
        parts.append(lambda: targets.read_login(str(settings.mqtt_login)))
    if secure:
        parts.append(lambda: targets.tls_context(settings.ca_file))
    for part in parts:
        try:
            part()
        except errors.EdgeappError as error:
            yield error
    if (settings.webhook or settings.mqtt) and "jsonl" not in settings.write:
        flag = "--webhook" if settings.webhook else "--mqtt"
        yield errors.UsageError(
            f"{flag} needs --write jsonl", "what is sent is read from SPOOL/results", "add jsonl to --write"
        )


class Publishing:
    """The publishers of a service.

    Raises:
        EdgeappError: a position cannot be read or written.
    """

    def __init__(self, settings: Settings, spool: Spool, recorder: Recorder, state: State, log: EventLog) -> None:
        self._publishers: list[Publisher] = []

        def say(text: str) -> None:
            log.event("publish_position", text, level="warning")

        for target, receiver in _receivers(settings, state):
            position = os.path.join(spool.state, f"{receiver.kind}.position")
            try:
                unsent = Unsent(spool.results, position, lambda: recorder.written, say)
            except OSError as error:
                raise paths.refusal(f"cannot use {paths.printable(position)}", error, writing=True) from error
            self._publishers.append(Publisher(receiver, str(target), unsent, state, log))

    def more(self) -> None:
        """There are results on the disk."""
        for publisher in self._publishers:
            publisher.more()

    def end(self, seconds: float) -> None:
        """Send what is left, within so long; all at once."""
        until_s = time.monotonic() + seconds
        for publisher in self._publishers:
            publisher.end(until_s)
        for publisher in self._publishers:
            publisher.join(LEAST_S)


def _receivers(settings: Settings, state: State) -> Iterator[tuple[targets.Target, Receiver]]:
    if settings.webhook is not None:
        from edgeapp.service.webhook import Webhook

        target = targets.parse_webhook(settings.webhook)
        yield target, Webhook(target, settings.webhook_headers, settings.ca_file)
    if settings.mqtt is not None:
        from edgeapp.service.mqtt import Mqtt  # late: paho takes 50 ms

        target = targets.parse_mqtt(settings.mqtt)
        yield target, Mqtt(target, settings.mqtt_login, settings.ca_file, state.figures)
