"""`edgeapp golden`: keep in the model card what a model answers to noise, or compare with it."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeapp import errors, paths, plan
from edgeapp.bootstrap import Trace
from edgeapp.commands.opening import chosen, given_card, open_engine
from edgeapp.log import Talk, tell
from edgeapp.pipeline import Engine
from edgeapp.settings import Settings
from edgeapp.stopping import Stop

SPACE = re.compile(r"\s*")


def golden(action: str, settings: Settings, stop: Stop, talk: Talk) -> int:
    """Run the model on noise.

    Args:
        action: print, write (into the card) or check (against the card).

    Returns:
        0.

    Raises:
        DataError: it answers otherwise than the card says, or cannot be run on noise.
        ConfigurationError: the card keeps nothing to compare with, or cannot be used.
    """
    if settings.engine is None:
        raise errors.UsageError("no --engine given", "", "edgeapp golden --engine model.plan --write")
    if os.path.isdir(settings.engine):
        settings = chosen(settings, talk)
    assert settings.engine is not None
    from edgeapp.golden import make, shapes_only
    from edgeapp.model import complete, from_ultralytics

    given = given_card(settings)
    name = paths.printable(settings.engine)
    if action == "check" and "golden" not in given:
        raise errors.ConfigurationError(
            f"cannot check {name}: its model card keeps no golden output",
            "",
            f"where the model is known to be right: edgeapp golden --engine {name} --write",
        )
    model_file = plan.identify(settings.engine)
    with open_engine(model_file, given, settings, Trace(), talk, stop) as (engine, metadata):
        if action == "check":
            require_golden(settings.engine, engine, given["golden"])
            talk.note(f"edgeapp: {name} gives the golden output of its model card")
            return 0
        card, _ = complete({**from_ultralytics(metadata), **given}, engine.inputs, engine.outputs)
        keys = make(engine, card, rough=model_file.kind == plan.PLAN)
    for output in shapes_only(keys):
        talk.note(f"edgeapp: of output {output} only dtype and shape are kept: rounding alone changes its values")
    if action == "print":
        tell([formatted(keys, "") + "\n"])
        return 0
    path = write(settings, keys)
    talk.note(f"edgeapp: {paths.printable(path)} keeps the golden output of {name}")
    return 0


def require_golden(path: str, engine: Engine, keys: dict[str, Any]) -> None:
    """Raise DataError unless an engine gives the golden output that its card keeps."""
    from edgeapp.golden import compare

    if differences := compare(engine, keys):
        raise errors.DataError(
            f"{paths.printable(path)} does not give the golden output of its model card",
            "; ".join(differences),
            "if the model was renewed on purpose: edgeapp golden --write; else copy it again, edgeapp doctor",
        )


def write(settings: Settings, keys: dict[str, Any]) -> str:
    """Put the golden output into the card beside the engine, or the one that was named; gives its path.

    Raises:
        EdgeappError: it cannot be written; it is as it was then.
    """
    from edgeapp.model import find_card
    from edgeapp.sinks.writing import explained, whole_file

    assert settings.engine is not None
    path = settings.model_card or find_card(settings.engine)
    if path is None:
        path, text, status = str(Path(settings.engine).with_suffix(".json")), '{\n  "schema": 1\n}\n', None
    else:
        path = os.path.realpath(path)  # a link stays one
        with explained(path):
            status = os.stat(path)
            data = Path(path).read_bytes()
        text = data.decode(json.detect_encoding(data))
    with whole_file(path) as file:
        if status is not None:
            os.fchmod(file.fileno(), status.st_mode & 0o7777)
            with suppress(PermissionError):
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
        file.write(with_golden(text, keys).encode())
        file.flush()
        os.fsync(file.fileno())
    return path


@dataclass
class _Member:
    """Where the value of a key lies in a text."""

    start: int
    end: int


def with_golden(text: str, keys: dict[str, Any]) -> str:
    """The text of a card with another golden output; everything else stays as it was written.

    Args:
        text: a JSON object that was read without error.
    """
    members = _members(text)
    value = formatted(keys, "  ")
    if "golden" in members:
        old = members["golden"]
        return text[: old.start] + value + text[old.end :]
    if not members:
        return f'{{\n  "golden": {value}\n}}\n'
    end = max(member.end for member in members.values())
    return f'{text[:end]},\n  "golden": {value}{text[end:]}'


def _members(text: str) -> dict[str, _Member]:
    decoder = json.JSONDecoder()
    members: dict[str, _Member] = {}
    at = _after_space(text, text.index("{") + 1)
    while text[at] != "}":
        key, at = decoder.raw_decode(text, at)
        start = _after_space(text, _after_space(text, at) + 1)
        _, end = decoder.raw_decode(text, start)
        members[key] = _Member(start, end)
        at = _after_space(text, end)
        if text[at] == ",":
            at = _after_space(text, at + 1)
    return members


def _after_space(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    assert found is not None
    return found.end()


def formatted(keys: dict[str, Any], indent: str) -> str:
    """As JSON, a tensor a line."""
    lines = []
    for key, value in keys.items():
        if key in ("inputs", "outputs"):
            rows = ",\n".join(f"{indent}    {json.dumps(name)}: {json.dumps(tensor)}" for name, tensor in value.items())
            lines.append(f"{indent}  {json.dumps(key)}: {{\n{rows}\n{indent}  }}")
        else:
            lines.append(f"{indent}  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
