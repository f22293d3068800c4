"""What the service answers over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable

from edgeapp import paths
from edgeapp.service import metrics
from edgeapp.service.http import Response
from edgeapp.service.state import State

THUMBNAIL = re.compile(r"/thumbnail/(\d{1,18})\.jpg")

ICON = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#1f7a4d"/>'
    b'<path d="M3 8h3l2-4 2 8 1-4h2" fill="none" stroke="#fff" stroke-width="1.5"/></svg>'
)

STILL_S = 30.0
"""A loop that has not moved for so long is stuck."""


class Pages:
    """Path -> Response.

    Args:
        state: what is told.
        still_s: the longest that the loop may rest before /healthz says that it is stuck.
    """

    def __init__(self, state: State, still_s: float = STILL_S) -> None:
        self._state = state
        self._still_s = still_s
        self._page = _page()

    def __call__(self, path: str) -> Response:
        pages: dict[str, Callable[[], Response]] = {
            "/": lambda: self._page,
            "/healthz": self._health,
            "/readyz": self._readiness,
            "/metrics": lambda: Response(200, metrics.CONTENT_TYPE, metrics.render(self._state).encode()),
            "/status.json": self._status,
            "/icon.svg": lambda: Response(200, "image/svg+xml", ICON),
        }
        if path in pages:
            return pages[path]()
        found = THUMBNAIL.fullmatch(path)
        jpeg = self._state.thumbnail(int(found[1])) if found else None
        return Response(200, "image/jpeg", jpeg) if jpeg else _text(404, "not found")

    def _health(self) -> Response:
        """Whether the process should live: before the loop begins, and while it moves."""
        still_s = self._state.still_s()
        if still_s is not None and still_s > self._still_s:
            return _text(503, f"stuck: the loop has not moved for {still_s:.0f} s")
        return _text(200, "alive")

    def _readiness(self) -> Response:
        reason = self._state.reason
        return _text(503, f"not ready: {reason}") if reason else _text(200, "ready")

    def _status(self) -> Response:
        self._state.watched()
        return Response(200, "application/json", json.dumps(self._state.snapshot()).encode())


def _text(status: int, text: str) -> Response:
    return Response(status, body=f"{text}\n".encode())


def _page() -> Response:
    """The page; only the script and the style in it may run, and it may ask only this server."""
    page = paths.resource("service/page.html").read_bytes()

    def source(tag: str) -> str:
        inside = re.findall(rb"<%s>(.*?)</%s>" % ((tag.encode(),) * 2), page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in inside)

    policy = (
        f"default-src 'none'; script-src {source('script')}; style-src {source('style')}; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Response(200, "text/html; charset=utf-8", page, {"Content-Security-Policy": policy})
