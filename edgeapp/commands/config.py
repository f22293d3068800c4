"""`edgeapp config show|template`: the effective settings and where each came from; a file to fill in."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from edgeapp import paths
from edgeapp.config import DEFAULT_FILE, literal
from edgeapp.log import tell
from edgeapp.settings import OPTIONS, Option, Settings

ACTIONS = ("show", "template")
SCHEMA = 1
WIDTH = 100


def config(action: str, settings: Settings, *, origin: bool, as_json: bool) -> int:
    """Print the settings as they would be used, or a configuration file in which everything is commented out.

    Args:
        origin: tell of each value where it came from; as JSON it is always told.

    Raises:
        InputOutputError, CannotWriteError: standard output does not take it.
    """
    if action == "template":
        tell(template())
    elif as_json:
        found = {o.name: {"value": _plain(value), "origin": text} for o, value, text in effective(settings)}
        tell([json.dumps({"schema": SCHEMA, "settings": found}) + "\n"])
    else:
        tell(_table(settings, origin))
    return 0


def effective(settings: Settings) -> Iterator[tuple[Option, Any, str]]:
    """(option, value or None where there is none, where it came from) of every option, in their order."""
    for option in OPTIONS:
        values = settings.card if option.card else vars(settings) | {"device": settings.gpus}
        value = values.get(option.name, option.default)
        yield option, None if value == () else value, settings.origins.get(option.name, "default")


def _table(settings: Settings, origin: bool) -> Iterator[str]:
    """Lines that are a configuration file, too: what cannot stand in one is a comment."""
    rows = []
    for option, value, source in effective(settings):
        text = f"{option.name} = {literal(value)}" if value is not None else f"# {option.name} has no value"
        rows.append((text if option.file_too else f"# {text.removeprefix('# ')}", source))
    width = min(60, max(len(text) for text, _ in rows))
    for text, source in rows:
        yield f"{text:{width}s}  # {source}\n" if origin else f"{text}\n"


def _plain(value: Any) -> Any:
    """What JSON can hold: a path may not be valid Unicode."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return paths.text(value) if isinstance(value, str) else value


def template() -> Iterator[str]:
    """A configuration file with every option, its help and its default."""
    yield f"# Settings of edgeapp; {DEFAULT_FILE} is read by `edgeapp serve`.\n"
    yield "# Flags and EDGEAPP_* variables win over this file. `edgeapp check` says what is wrong with it.\n"
    group = ""
    for option in OPTIONS:
        if not option.file_too:
            continue
        if option.group != group:
            group = option.group
            yield f"\n# --- {group}\n"
        note = "" if option.variable_too else " (only where root owns this file and nobody else may write it)"
        yield "\n" + textwrap.fill(option.help + note, WIDTH, initial_indent="# ", subsequent_indent="# ") + "\n"
        yield f"#{option.name} = {_example(option)}\n"


def _example(option: Option) -> str:
    """The default, or what the help calls the value."""
    if option.parse is None:
        return literal(bool(option.default))
    if option.default is not None:
        return literal(option.default)
    return f"[{literal(option.metavar)}]" if option.many else literal(option.metavar)
