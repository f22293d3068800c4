"""Names that are shown, errors of the system, and the environment of child processes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgeapp import errors, paths


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"LD_LIBRARY_PATH": "/bundle:/mine", "LD_LIBRARY_PATH_ORIG": "/mine"}, {"LD_LIBRARY_PATH": "/mine"}),
        ({"LD_LIBRARY_PATH": "/bundle"}, {}),
        ({}, {}),
    ],
)
def test_children_get_the_library_path_of_the_user(
    monkeypatch: pytest.MonkeyPatch, before: dict[str, str], after: dict[str, str]
) -> None:
    """What PyInstaller's bootloader put in front is taken away again, and what it tells its own children."""
    for name in ("LD_LIBRARY_PATH", "LD_LIBRARY_PATH_ORIG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**before, "_PYI_APPLICATION_HOME_DIR": "/bundle", "_PYI_PARENT_PROCESS_LEVEL": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(paths, "FROZEN", True)
    paths.restore_environment()
    assert {k: v for k, v in os.environ.items() if k.startswith(("LD_LIBRARY_PATH", "_PYI_"))} == after


@pytest.mark.parametrize(
    ("number", "writing", "code"),
    [
        (errno.ENOENT, False, 66), (errno.ENOTDIR, False, 66), (errno.ENAMETOOLONG, False, 66),
        (errno.EACCES, False, 77), (errno.EPERM, True, 77), (errno.ENOENT, True, 73), (errno.EISDIR, True, 73),
        (errno.EROFS, True, 73), (errno.ENOSPC, True, 73), (errno.EDQUOT, True, 73), (errno.EIO, True, 74),
        (errno.EIO, False, 74), (errno.EMFILE, False, 71), (errno.ENOMEM, False, 71), (errno.ELOOP, False, 74),
    ],
)  # fmt: skip
def test_system_errors_have_their_exit_code(number: int, writing: bool, code: int) -> None:
    """Each errno ends up at the code that a unit file can act on."""
    found = paths.refusal("cannot", OSError(number, os.strerror(number)), writing=writing)
    assert found.exit_code == code
    assert found.why == os.strerror(number).lower()


def test_printable_is_one_line_of_text() -> None:
    """Newlines, escapes and foreign bytes cannot break a log or a terminal."""
    name = os.fsdecode(b"a\nb\x1b[31m\xff.jpg")
    assert paths.printable(name) == r"a\nb\x1b[31m\xff.jpg"
    assert paths.printable("图片 é.jpg") == "图片 é.jpg"


def test_error_shows_its_three_parts() -> None:
    """What, why and what to do, one line each; empty parts are left out."""
    assert str(errors.DataError("a", "b", "c")) == "a\n  why: b\n  fix: c"
    assert str(errors.DataError("a")) == "a"


def test_resources_lie_in_the_package() -> None:
    """The schema that the card reader wants is there."""
    assert paths.resource("model_card.schema.json").is_file()
    assert isinstance(paths.library_root(), Path)
