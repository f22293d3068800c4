"""The frozen file alone, where users put it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import frozen_binary

pytestmark = pytest.mark.frozen
NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty folder that everybody may enter (pytest's own are closed to other users)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "mit Leerzeichen é 图"
        folder.mkdir()
        for path in (folder, folder.parent):
            path.chmod(0o755)
        shutil.copy(frozen_binary(), folder / "edgeapp")
        (folder.parent / "tmp").mkdir()
        (folder.parent / "tmp").chmod(0o1777)
        yield folder


def demo(folder: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """`edgeapp demo` as with env -i: only where to unpack is told."""
    return subprocess.run(
        [str(folder / "edgeapp"), "demo", *words], cwd=options.pop("cwd", folder), capture_output=True, text=True,
        env={"TMPDIR": str(folder.parent / "tmp")}, check=False, timeout=100, **options,
    )  # fmt: skip


def test_demo_finds_parts_with_an_empty_environment(place: Path) -> None:
    """Spaces and other scripts in the path; real detections on every picture; pictures drawn."""
    done = demo(place)
    assert done.returncode == 0, done
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 5
    assert all(len(line["detections"]) >= 8 for line in lines)
    drawn = sorted(p.name for p in (place / "edgeapp-demo").iterdir())
    assert drawn == [f"bench-{i}.jpg" for i in range(1, 6)]
    assert not list((place.parent / "tmp").iterdir())


def test_ordinary_user_in_a_read_only_folder(place: Path) -> None:
    """A user without rights runs it where nothing can be written: results come, pictures have their error."""
    (place / "pictures").mkdir()
    (place / "pictures").chmod(0o777)
    place.chmod(0o555)
    try:
        done = demo(place, "--save", "pictures", **NOBODY)
        assert done.returncode == 0, done
        assert len(done.stdout.splitlines()) == 5
        refused = demo(place, **NOBODY)
        assert refused.returncode in (73, 77), refused
        assert "cannot write edgeapp-demo" in refused.stderr
        assert "Traceback" not in refused.stderr
    finally:
        place.chmod(0o755)


def test_link_to_the_file_works(place: Path) -> None:
    """A link in another folder, as in /usr/local/bin."""
    link = place.parent / "link"
    link.symlink_to(place / "edgeapp")
    done = subprocess.run([str(link), "--version"], env={}, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("edgeapp ")
