"""What the machine shows when the driver does not come up: device nodes, groups, versions.

Each test builds the files of such a machine in a folder; the nodes are plain files there.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeapp.gpu import machine

PLUGGED = ("nvidiactl", "nvidia0", "nvidia-uvm")
ORIN = ("nvmap", "nvgpu/igpu0/ctrl")
NANO = ("nvmap", "nvhost-ctrl-gpu")
THOR = ("nvmap", "nvidia0", "nvidiactl")


def a_machine(root: Path, *nodes: str, jetson: bool = False, container: bool = False) -> Path:
    (root / "dev").mkdir()
    for node in nodes:
        path = root / "dev" / node
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if jetson:
        (root / "proc/device-tree").mkdir(parents=True)
        (root / "proc/device-tree/compatible").write_bytes(b"nvidia,p3768\0nvidia,tegra234\0")
    if container:
        (root / ".dockerenv").touch()
    return root


@pytest.mark.parametrize(
    ("nodes", "jetson"),
    [(PLUGGED, False), (ORIN, True), (NANO, True), (THOR, True)],
    ids=["pc", "orin", "nano", "thor"],
)
def test_sound_machine_has_no_trouble(tmp_path: Path, nodes: tuple[str, ...], jetson: bool) -> None:
    """All nodes are there and may be opened."""
    assert machine.node_trouble(a_machine(tmp_path, *nodes, jetson=jetson)) is None


@pytest.mark.parametrize(
    ("nodes", "jetson", "container", "why", "fix"),
    [((), False, False, "there is no /dev/nvidiactl", "sudo modprobe nvidia"),
     ((), False, True, "there is no /dev/nvidiactl", "--runtime nvidia --gpus all"),
     (("nvidiactl",), False, False, "there is no /dev/nvidia0", "sudo modprobe nvidia"),
     (("nvidiactl", "nvidia3"), False, False, "there is no /dev/nvidia-uvm", "sudo nvidia-modprobe -u -c=0"),
     (("nvidiactl", "nvidia3"), False, True, "there is no /dev/nvidia-uvm", "--runtime nvidia --gpus all"),
     ((), True, True, "there is no /dev/nvmap", "start the container with --runtime nvidia"),
     (("nvmap",), True, False, "there is no /dev/nvgpu/igpu0/ctrl nor /dev/nvhost-ctrl-gpu nor /dev/nvidia0",
      "JetPack")],
    ids=["pc", "container", "no-gpu", "no-uvm", "container-no-uvm", "jetson-container", "jetson"],
)  # fmt: skip
def test_missing_node_is_named_with_its_fix(
    tmp_path: Path, nodes: tuple[str, ...], jetson: bool, container: bool, why: str, fix: str
) -> None:
    """The fix is another one on a PC, on a Jetson and in a container."""
    trouble = machine.node_trouble(a_machine(tmp_path, *nodes, jetson=jetson, container=container))
    assert trouble is not None
    assert trouble[0] == why
    assert fix in trouble[1]
    assert ("--gpus" in trouble[1]) == (container and not jetson)


@pytest.fixture
def without_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is bob and in no group that owns a node; the nodes belong to group 44, video."""
    monkeypatch.setattr(machine, "_user", lambda: "bob")
    monkeypatch.setattr(machine, "_group_name", lambda number: "video")
    monkeypatch.setattr(os, "getgroups", list)
    monkeypatch.setattr(os, "getegid", lambda: 99999)
    real = os.stat_result

    def stat(path: Path, **options: object) -> os.stat_result:
        values = list(os.stat(path))
        values[5] = 44
        return real(values)

    monkeypatch.setattr(Path, "stat", stat)


@pytest.mark.usefixtures("without_groups")
def test_closed_node_names_the_missing_group(tmp_path: Path) -> None:
    """A user who is not in the group gets the command that puts him there, and the line for a unit."""
    root = a_machine(tmp_path, *ORIN, jetson=True)
    trouble = machine.node_trouble(root, may_open=lambda node: node.name != "nvmap")
    assert trouble == (
        "/dev/nvmap: the user bob is not in the group video",
        "sudo usermod -aG video bob, then log in again; in a unit: SupplementaryGroups=video",
    )


@pytest.mark.usefixtures("without_groups")
def test_closed_node_in_a_container_names_the_number(tmp_path: Path) -> None:
    """In a container the group's number is what counts."""
    root = a_machine(tmp_path, *ORIN, jetson=True, container=True)
    trouble = machine.node_trouble(root, may_open=lambda _: False)
    assert trouble is not None
    assert trouble[1] == "start the container with --group-add 44"


def test_closed_node_of_no_group_to_join_is_for_udev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that this user's own groups own and that is closed all the same: groups do not help."""
    monkeypatch.setattr(machine, "_user", lambda: "bob")
    root = a_machine(tmp_path, *PLUGGED)
    monkeypatch.setattr(os, "getgroups", lambda: [(root / "dev/nvidia0").stat().st_gid])
    trouble = machine.node_trouble(root, may_open=lambda node: node.name != "nvidia0")
    assert trouble is not None
    assert trouble[0] == "/dev/nvidia0: this process (user bob) may not open it"
    assert "udev" in trouble[1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_rights_are_those_of_the_file_system(tmp_path: Path) -> None:
    """Without a stand-in for the rights: a node of mode 0 is closed."""
    root = a_machine(tmp_path, *PLUGGED)
    (root / "dev/nvidiactl").chmod(0)
    assert machine.node_trouble(root) is not None


def test_driver_files_name_both_versions(tmp_path: Path) -> None:
    """What an error 803 is about: the library of one version, the kernel driver of another."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/self/maps").write_text(
        "7f0000000000-7f0000001000 r--p 00000000 08:01 42   /usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05\n"
    )
    assert machine.driver_files(tmp_path) == "the library is /usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05"
    (tmp_path / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.03  Release Build  (dvs-builder)\n"
        "GCC version:  gcc version 13.3.0\n"
    )
    assert machine.driver_files(tmp_path).endswith(", the kernel driver 580.159.03")
    (tmp_path / "proc/self/maps").write_bytes(b"\xff\xfe")
    assert machine.driver_files(tmp_path) == "the kernel driver is 580.159.03"


def test_machine_without_anything_gives_an_answer(tmp_path: Path) -> None:
    """An empty root: no Jetson, no container, no versions."""
    assert not machine.is_jetson(tmp_path)
    assert not machine.in_container(tmp_path)
    assert machine.driver_files(tmp_path) == ""
    trouble = machine.node_trouble(tmp_path)
    assert trouble is not None
    assert trouble[0] == "there is no /dev/nvidiactl"
