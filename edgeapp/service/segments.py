"""How the files of results are called: results.jsonl grows; when it is closed it gets the time of that as its name.

The names are in the order in which the files were written, even where the clock was set back in between.
"""

from __future__ import annotations

import os
import re
from datetime import datetime, timedelta, timezone

CURRENT = "results.jsonl"
CLOSED = re.compile(r"\d{8}T\d{6}\.\d{6}Z\.jsonl")
FORM = "%Y%m%dT%H%M%S.%fZ.jsonl"


def closed(folder: str, after: str = "") -> list[str]:
    """Names of closed segments, the oldest first; only those after this one."""
    return sorted(name for name in os.listdir(folder) if name > after and CLOSED.fullmatch(name))


def newest(folder: str) -> str:
    """The one that was closed last, "" if there is none."""
    return max((name for name in os.listdir(folder) if CLOSED.fullmatch(name)), default="")


def name_after(name: str, now: datetime) -> str:
    """What the next one is called: the time, or a microsecond after the last one, if the clock is behind that."""
    told = now.strftime(FORM)
    if told > name:
        return told
    try:
        last = datetime.strptime(name, FORM).replace(tzinfo=timezone.utc)
        return (last + timedelta(microseconds=1)).strftime(FORM)
    except (ValueError, OverflowError):  # no date that there is: somebody made it up
        return told
