"""The switching of programs and models: one version is the current one, whatever is killed and whenever."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

from edgeapp import errors
from edgeapp.service.versions import State, Versions

CALLS = "/^(rename|symlink|unlink|rmdir|mkdir|fsync|openat|f?chmod|write|access|faccessat)"
"""Every system call that changes a folder or a file, and those that open one; a pattern of strace's."""


ADD = """
from edgeapp.service.versions import Versions

def add(versions: Versions, name: str) -> None:
    with versions.alone():
        with versions.new() as made:
            (made / "file").write_text(name)
            versions.keep(made, name)
        versions.activate(name)
        versions.prune()
"""


def add(versions: Versions, name: str) -> None:
    """Make a version with one file, which holds its name, and let it be current."""
    names: dict[str, Any] = {}
    exec(ADD, names)
    names["add"](versions, name)


def held(versions: Versions) -> str:
    return (versions.current / "file").read_text()


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path / "program")


def test_versions_two_and_the_current_one_stay(versions: Versions) -> None:
    """The version before stays, what is older goes, and nothing else lies there."""
    assert versions.state() == State()
    for name in ("a", "b", "c"):
        add(versions, name)
        assert held(versions) == name
    assert versions.state() == State("c", "b")
    assert sorted(path.name for path in versions.folder.iterdir()) == ["current", "previous", "versions"]
    assert sorted(path.name for path in (versions.folder / "versions").iterdir()) == ["b", "c"]


def test_rollback_goes_back_and_forward_again(versions: Versions) -> None:
    """A second rollback undoes the first."""
    add(versions, "a")
    with pytest.raises(errors.NotFoundError):
        versions.rollback()
    add(versions, "b")
    versions.rollback()
    assert (versions.state(), held(versions)) == (State("a", "b"), "a")
    versions.rollback()
    assert (versions.state(), held(versions)) == (State("b", "a"), "b")


def test_restore_leaves_what_was_before(versions: Versions) -> None:
    """A version that was tried in vain is neither current nor the one to go back to."""
    add(versions, "a")
    add(versions, "b")
    with versions.alone(), versions.new() as made:
        versions.keep(made, "c")
        before = versions.activate("c")
        versions.restore(before)
        versions.prune()
    assert (versions.state(), held(versions)) == (State("b", "a"), "b")
    assert not versions.path("c").exists()


def test_same_version_again_changes_nothing(versions: Versions) -> None:
    """Installing what is installed keeps the version before."""
    add(versions, "a")
    add(versions, "b")
    add(versions, "b")
    assert versions.state() == State("b", "a")


def test_two_at_a_time_are_refused(versions: Versions) -> None:
    """The second one is told so, and nothing waits."""
    with versions.alone(), pytest.raises(errors.SystemRefusedError), versions.alone():
        pass
    with versions.alone():
        pass


def test_failure_while_making_leaves_nothing(versions: Versions) -> None:
    """What was half made is removed, and that of one who was killed by the next one."""
    add(versions, "a")
    with versions.alone():
        with contextlib.suppress(ZeroDivisionError), versions.new() as made:
            (made / "file").write_text("half")
            raise ZeroDivisionError
        assert not made.exists()
        (versions.folder / "versions" / ".new-killed").mkdir()
        with versions.new():
            pass
    assert [path.name for path in (versions.folder / "versions").iterdir()] == ["a"]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace kills at a system call")
def test_killed_at_every_system_call_one_whole_version_is_current(tmp_path: Path) -> None:
    """SIGKILL before each system call of a change, one after the other; the next change finds nothing in its way."""
    killed = 0
    for place in killed_changes(ADD, tmp_path):
        versions = Versions(place)
        assert held(versions) == versions.state().current
        assert held(versions) in ("b", "c")
        add(versions, "d")
        assert (held(versions), versions.state().current) == ("d", "d")
        assert not [path for path in place.rglob("*") if path.name.startswith(".")]
        killed += 1
    assert killed >= 20


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace kills at a system call")
def test_links_that_are_made_anew_do_not_pass(tmp_path: Path) -> None:
    """The control: a link removed and made again, instead of renamed, leaves no version when it is killed between."""
    anew = f"""{ADD}
def _link(self, link, name):
    (self.folder / link).unlink(missing_ok=True)
    (self.folder / link).symlink_to("versions/" + name)
Versions._link = _link
"""
    assert [place for place in killed_changes(anew, tmp_path) if not (place / "current").exists()]


def killed_changes(code: str, tmp_path: Path) -> Iterator[Path]:
    """Folders with versions a and b, in which a change to c was killed, each before another system call."""
    fresh = tmp_path / "fresh"
    for name in ("a", "b"):
        add(Versions(fresh), name)
    for call, number in calls_of_a_change(code, fresh, tmp_path):
        place = tmp_path / f"{call}-{number}"
        shutil.copytree(fresh, place, symlinks=True)
        done = change(code, place, f"inject={call}:signal=SIGKILL:when={number}")
        assert done.returncode in (-9, 137), (call, number, done)
        yield place


def change(code: str, place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Another process makes version c the current one, under strace; it looks for /begin before, for /end after."""
    code = (
        f"{code}\nimport os, sys\nfrom pathlib import Path\n"
        "os.access('/begin', 0)\nadd(Versions(Path(sys.argv[1])), 'c')\nos.access('/end', 0)\n"
    )
    words = [word for option in options for word in ("-e", option)]
    return subprocess.run(
        ["strace", "-qq", "-o", "/dev/stdout", *words, sys.executable, "-S", "-c", code, place],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def calls_of_a_change(code: str, fresh: Path, tmp_path: Path) -> list[tuple[str, int]]:
    """(system call, its number among those of its kind) of a change that is not disturbed."""
    shutil.copytree(fresh, tmp_path / "undisturbed", symlinks=True)
    done = change(code, tmp_path / "undisturbed", f"trace={CALLS}")
    assert done.returncode == 0, done
    seen: Counter[str] = Counter()
    found = []
    inside = False
    for line in done.stdout.splitlines():
        call = line.split("(")[0]
        inside = (inside or '"/begin"' in line) and '"/end"' not in line
        seen[call] += 1
        if inside and "access" not in call:
            found.append((call, seen[call]))
    return found
