"""Cores that a container or a service may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeapp import cores


@pytest.mark.parametrize(
    ("lines", "files", "wanted"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000"}, 8),
        ("0::/\n", {"cpu.max": "250000 100000"}, 3),
        ("0::/\n", {"cpu.max": "1000 100000"}, 1),
        ("0::/\n", {"cpu.max": "6400000 100000"}, 8),
        ("0::/a.slice/b.service\n", {"a.slice/b.service/cpu.max": "max 100000", "a.slice/cpu.max": "200000 100000"}, 2),
        ("0::/of/the/host\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/\n", {"cpu.max": "nonsense"}, 8),
        ("4:cpu,cpuacct:/x\n3:memory:/x\n", {"cpu/x/cpu.cfs_quota_us": "3000", "cpu/x/cpu.cfs_period_us": "1000"}, 3),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        (None, {}, 8),
    ],
)  # fmt: skip
def test_quota_of_any_group_above_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str | None, files: dict[str, str], wanted: int
) -> None:
    """Both versions of control groups, inside and outside of containers; without a limit the affinity alone."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    own = tmp_path / "own"
    if lines is not None:
        own.write_text(lines)
    assert cores.usable(tmp_path / "groups", own) == wanted


def test_this_machine_has_some() -> None:
    """The real files are understood."""
    assert 1 <= cores.usable() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("count", "gpus", "wanted"), [(1, 1, 1), (6, 1, 6), (8, 1, 7), (16, 1, 15), (32, 2, 30), (16, 4, 16), (16, 0, 16)]
)
def test_gpus_have_a_core_each_where_there_are_many(
    monkeypatch: pytest.MonkeyPatch, count: int, gpus: int, wanted: int
) -> None:
    """And an engine on the CPU decodes on all of them."""
    monkeypatch.setattr(cores, "usable", lambda: count)
    assert cores.decoders(gpus) == wanted
