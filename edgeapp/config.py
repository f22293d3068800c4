"""The configuration file: TOML, flat, its keys the names of the options; strict, so that no slip stays unseen.

Options that let code run (`variable_too` is false) count only in a file that root owns and nobody else may write:
whoever could write that one could change the program as well. Everybody else gives them as flags, where they are seen.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import stat
import sys
from collections.abc import Mapping
from typing import Any

from edgeapp import errors, paths
from edgeapp.settings import OPTIONS, Given, Option

DEFAULT_FILE = "/etc/edgeapp/config.toml"

MOST_BYTES, LONGEST_LINE = 256 << 10, 4096
"""The reader of Python 3.11 takes time and memory by the square of the parts of a key, a.a.a.a: 2 GB at 256 KiB."""

STATEMENT = re.compile(r"""^[ \t]*\[*[ \t]*(["']?)([\w-]+)\1[ \t]*[.=\]]""", re.MULTILINE)
LONG_TEXT = re.compile(r'"""(?:[^\\]|\\.)*?"""' + r"|'''.*?'''", re.DOTALL)
POSITION = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)")

Found = tuple[dict[str, Given], list[errors.EdgeappError]]


def load(
    arguments: argparse.Namespace,
    environment: Mapping[str, str] = os.environ,
    *,
    default: str | None,
    problems: list[errors.EdgeappError] | None = None,
) -> dict[str, Given]:
    """What the file of --config or EDGEAPP_CONFIG says; nothing for a command that has no --config.

    Args:
        default: the file that is read when none is named, if it is there; None for none.
        problems: takes everything that is wrong, and what is right is given all the same.

    Raises:
        EdgeappError: the first thing that is wrong, if `problems` is None.
    """
    if not hasattr(arguments, "config"):
        return {}
    path = arguments.config or environment.get("EDGEAPP_CONFIG")
    values: dict[str, Given] = {}
    if not path:
        if default is None or not os.path.lexists(default):
            return {}
        path = default
        values["config"] = Given(path, "default")
    found, wrong = read(path)
    if wrong and problems is None:
        raise wrong[0]
    if problems is not None:
        problems += wrong
    return values | found


def read(path: str) -> Found:
    """The options in a file, and everything that is wrong with it; never hangs, whatever `path` is."""
    try:
        data, roots = _bytes(path)
        text = _text(path, data)
        table = _parsed(path, text)
    except errors.EdgeappError as error:
        return {}, [error]
    lines = _lines(text)
    found: dict[str, Given] = {}
    wrong: list[errors.EdgeappError] = []
    known = {option.name: option for option in OPTIONS if option.file_too}
    for key, value in table.items():
        place = f"{paths.printable(path)}:{lines[key]}" if key in lines else paths.printable(path)
        try:
            if key not in known:
                raise _unknown(place, key, known)
            if not known[key].variable_too and not roots:
                raise errors.ConfigurationError(
                    f"{place}: {key} is not taken from this file",
                    "it lets code run, and somebody other than root may have written the file",
                    f"give {known[key].flag}, or: chown root {paths.printable(path)}; "
                    f"chmod go-w {paths.printable(path)}",
                )
            found[key] = Given(_value(place, known[key], value), place)
        except errors.EdgeappError as error:
            wrong.append(error)
    return found, wrong


def _bytes(path: str) -> tuple[bytes, bool]:
    """What the file holds, and whether only root can have written it."""
    what = f"cannot read the configuration {paths.printable(path)}"
    fix = "name a TOML file: edgeapp config template prints one"
    try:
        # Not blocking: a named pipe without a writer must not hang.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            status = os.fstat(number)
            if not stat.S_ISREG(status.st_mode):
                raise errors.ConfigurationError(what, "it is no regular file", fix)
            with open(number, "rb", closefd=False) as file:
                data = file.read(MOST_BYTES + 1)
        finally:
            os.close(number)
    except OSError as error:
        raise paths.refusal(what, error) from error
    except ValueError as error:  # a NUL in the name
        raise errors.NotFoundError(what, str(error), "check the name") from error
    if len(data) > MOST_BYTES:
        raise errors.ConfigurationError(what, f"it has more than {MOST_BYTES >> 10} KiB", fix)
    return data, status.st_uid == 0 and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _text(path: str, data: bytes) -> str:
    """The file's text.

    Raises:
        ConfigurationError: it is none, or a line is longer than anybody writes.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise errors.ConfigurationError(
            f"{paths.printable(path)}:{line}: this is no UTF-8 text",
            f"byte 0x{data[error.start]:02x}",
            "save it as UTF-8",
        ) from error
    for line, content in enumerate(text.split("\n"), 1):
        if len(content) > LONGEST_LINE:
            raise errors.ConfigurationError(
                f"{paths.printable(path)}:{line}: this line is too long",
                f"it has {len(content)} characters, {LONGEST_LINE} are allowed",
                "write a list with an item a line",
            )
    return text


def _parsed(path: str, text: str) -> dict[str, Any]:
    """The table that a TOML text is.

    Raises:
        ConfigurationError: it is no TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib  # late: only a configuration needs it
    else:
        import tomli as tomllib

    place, why = paths.printable(path), ""
    try:
        # With a line end: else an error in the last line would be "at end of document".
        table: dict[str, Any] = tomllib.loads(text + "\n")
        return table
    except RecursionError:
        why = "it is nested too deeply"
    except ValueError as error:  # a TOMLDecodeError, or an integer of too many digits
        match = POSITION.fullmatch(str(error))
        why = match[1] if match else str(error)
        if match:
            line, column = match[2] or text.rstrip().count("\n") + 1, match[3] or "1"
            place += f":{line}:{column}"
        if "overwrite a value" in why:
            why = "this key is there twice"
    raise errors.ConfigurationError(
        f"{place}: this is no TOML", why[:1].lower() + why[1:], 'write key = "text", key = 0.5 or key = true'
    )


def _lines(text: str) -> dict[str, int]:
    """Key -> line of its first statement, counted from 1; TOML's readers do not tell."""
    text = LONG_TEXT.sub(lambda found: "\n" * found[0].count("\n"), text)
    lines: dict[str, int] = {}
    line, at = 1, 0
    for found in STATEMENT.finditer(text):
        line, at = line + text.count("\n", at, found.start(2)), found.start(2)
        lines.setdefault(found[2], line)
    return lines


def _unknown(place: str, key: str, known: Mapping[str, Option]) -> errors.EdgeappError:
    near = difflib.get_close_matches(key.replace("-", "_"), known, 1)
    hint = f", did you mean {near[0]}?" if near else ""
    return errors.ConfigurationError(
        f"{place}: unknown key {paths.printable(key[:80])}{hint}",
        "",
        "the keys are the names of the options: edgeapp config template lists them",
    )


def _value(place: str, option: Option, value: Any) -> Any:
    """The option's value as its own parser makes it.

    Raises:
        ConfigurationError: it does not take this.
    """
    try:
        if option.many:
            items = value if isinstance(value, list) else [value]
            return [_single(option, item) for item in items]
        return _single(option, value)
    except ValueError as error:
        shown = literal(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise errors.ConfigurationError(
            f"{place}: {option.name} = {shown}: {error}", "", f"see edgeapp --help, {option.flag}: {option.help}"
        ) from error


def _single(option: Option, value: Any) -> Any:
    """One value; numbers go through the parser by their text.

    Raises:
        ValueError: with the reason.
    """
    if option.parse is None:
        if not isinstance(value, bool):
            raise ValueError("true or false is wanted")
        return value
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("a text without NUL is wanted")
        return option.parse(value)
    if isinstance(value, list) and option.joined and value and all(map(_is_number, value)):
        return option.parse(option.joined.join(map(repr, value)))
    if _is_number(value):
        parsed = option.parse(repr(value))
        if not isinstance(parsed, str):
            return parsed
    refused = {bool: "a truth value is not wanted", list: "one value is wanted, no list", dict: "there are no tables"}
    raise ValueError(refused.get(type(value), "text in quotes is wanted"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def literal(value: Any) -> str:
    """A value as TOML writes it, in one line; what no option can have as Python does."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(map(_escaped, paths.text(value))) + '"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, int) and value.bit_length() > LONGEST_LINE:
        return hex(value)  # Python refuses to write so many decimal digits
    return "{...}" if isinstance(value, dict) else str(value)  # tables may be nested too deeply to follow


def _escaped(letter: str) -> str:
    """A letter of a TOML text."""
    if letter in '"\\':
        return "\\" + letter
    return letter if letter.isprintable() else f"\\U{ord(letter):08x}"
