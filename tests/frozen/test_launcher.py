"""What the one file does before it is the program: unpacks once, checks, gives way, and says why not.

EDGEAPP_CAMPAIGN=1 (`./build.sh campaign launcher`) makes the random tests long. Tests that need a mount of their own
skip where that is not allowed. Where a test says `tiny`, the launcher is the real one, and what it carries is a
stand-in: a shell script.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import re
import shlex
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

pytestmark = [pytest.mark.frozen, pytest.mark.timeout(3600)]
CAMPAIGN = os.environ.get("EDGEAPP_CAMPAIGN") == "1"
NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
ONE_USER = os.geteuid() != 0 or Path("/proc/self/uid_map").read_text().split()[2] == "1"
as_root = pytest.mark.skipif(ONE_USER, reason="needs root, to be two users")
# Asked by another process, for qemu answers for its own.
UNDER_QEMU = "qemu" in subprocess.check_output(["readlink", f"/proc/{os.getpid()}/exe"], text=True)
not_under_qemu = pytest.mark.skipif(UNDER_QEMU, reason="qemu starts programs in its own way")


def start(binary: Path, *words: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([binary, *words], env=env, capture_output=True, text=True, check=False, timeout=timeout)


def contents(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if len(path.name) == 32]


def assert_tidy(cache: Path, count: int = 1) -> None:
    """So many contents, the lock, and nothing else."""
    names = sorted(path.name for path in cache.iterdir())
    assert len(names) == count + 1, names
    assert names[-1] == "lock", names


def works(binary: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    done = start(binary, "--version", EDGEAPP_CACHE=str(cache))
    assert done.returncode == 0, done
    assert done.stdout.startswith("edgeapp "), done
    return done


def snapshot(folder: Path) -> dict[str, tuple[int, ...]]:
    """All that a write would change."""
    paths = [folder, *folder.rglob("*")]
    return {str(p): (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for p in paths for s in [p.lstat()]}


@pytest.fixture
def warm(content: Path, place: Path) -> Path:
    """A cache folder with the real content: a copy, as a container image or `cp -a` makes one."""
    cache = place / "cache"
    cache.mkdir(mode=0o700)
    shutil.copytree(content, cache / content.name, symlinks=True)
    (cache / "lock").touch(mode=0o600)
    return cache


def in_namespace(script: str, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script as root of mounts of its own; what earlier starts left on this machine is out of sight."""
    places = "/var/lib/edgeapp /opt/edgeapp /var/tmp/edgeapp-0 /tmp/edgeapp-0"
    hide = f"for d in {places}; do [ ! -d $d ] || mount -t tmpfs -o mode=700 none $d; done"
    script = f"{hide}\n{script}"
    inside = ["unshare", "--user", "--map-root-user", "--mount"] if os.geteuid() else ["unshare", "--mount"]
    if subprocess.run([*inside, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False).returncode:
        pytest.skip("mounts of its own are not allowed here")
    return subprocess.run(
        [*inside, "/bin/sh", "-ec", script, "sh", *words],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **env}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


# --- one process, nothing written ---------------------------------------------------------------------


def test_second_start_writes_nothing(binary: Path, warm: Path) -> None:
    """Not a byte into the cache, home or temporary folder; the kernel's count says so too."""
    home = warm.parent / "home"
    home.mkdir()
    works(binary, warm)  # the first reading of a file that was copied notes its time, which counts as written
    before = snapshot(warm.parent)
    env = {"EDGEAPP_CACHE": str(warm), "HOME": str(home), "TMPDIR": str(home)}
    with subprocess.Popen([binary, "--version"], env=env, stdout=subprocess.PIPE) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # still there to be looked at
        counts = dict(line.split(": ") for line in Path(f"/proc/{child.pid}/io").read_text().splitlines())
    assert child.returncode == 0
    assert int(counts["write_bytes"]) == 0
    assert int(counts["wchar"]) < 100  # the line that it prints
    assert snapshot(warm.parent) == before


def test_program_is_the_process_that_was_started(binary: Path, place: Path) -> None:
    """One process, whose id is the one that was started; it knows the real file."""
    env = {"EDGEAPP_CACHE": str(place / "cache"), "HOME": str(place)}
    link = place / "link"
    link.symlink_to(binary)
    model = ROOT / "edgeapp" / "data" / "demo" / "model.onnx"
    words = [link, "--engine", model, "--input", "-", "--quiet"]
    with subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        process = Path(f"/proc/{child.pid}")
        deadline = time.monotonic() + 60
        while "onnxruntime" not in (maps := (process / "maps").read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        # Not by its exe: under qemu that is qemu.
        assert re.search(rf"{place}/cache/[0-9a-f]{{32}}/edgeapp$", maps, re.MULTILINE)
        children = [(process / "task" / task / "children").read_text() for task in os.listdir(process / "task")]
        assert "".join(children) == ""
        child.send_signal(signal.SIGTERM)
    assert child.returncode == -signal.SIGTERM


def test_tiny_program_gets_words_stdin_umask_and_environment(tiny: Callable[..., Path], place: Path) -> None:
    """The launcher adds its own four variables and changes nothing else."""
    file = tiny('echo "$@"; umask; cat; env; exit 7')
    done = subprocess.run(
        ["/bin/sh", "-c", f"umask 0027; exec {shlex.quote(str(file))} 'a b' c"],
        env={"EDGEAPP_CACHE": str(place / "cache"), "A": "1"}, input="in\n",
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 7, done
    assert done.stderr == ""
    words, mask, given, *env = done.stdout.splitlines()
    assert (words, mask, given) == ("a b c", "0027", "in")
    names = {line.split("=")[0] for line in env}
    ours = {"_EDGEAPP_FILE", "_EDGEAPP_CONTENT", "_EDGEAPP_LOCK", "_EDGEAPP_SIGNALS"}
    assert names - {"PWD", "OLDPWD", "_", "SHLVL"} == {"EDGEAPP_CACHE", "A"} | ours
    assert f"_EDGEAPP_FILE={file}" in env
    assert contents(place / "cache")[0].stat().st_mode & 0o777 == 0o755


def test_first_start_with_closed_streams_unpacks_whole(tiny: Callable[..., Path], place: Path) -> None:
    """A file of the content never becomes somebody's standard output, nor does a closed stream open."""
    file = tiny("echo to stdout; [ ! -e /proc/$$/fd/2 ] && exit 5")
    command = f"EDGEAPP_CACHE={place}/cache {file} <&- >&- 2>&-"
    assert subprocess.run(["/bin/sh", "-c", command], check=False).returncode == 5
    [content] = contents(place / "cache")
    assert (content / "_internal" / "data").read_bytes() == bytes(range(256)) * 1000


def test_start_without_proc_works(binary: Path, place: Path) -> None:
    """In a chroot nobody mounts /proc."""
    done = in_namespace("mount -t tmpfs none /proc; exec $1 --version", binary, EDGEAPP_CACHE=str(place / "cache"))
    assert done.returncode == 0, done
    assert done.stdout.startswith("edgeapp ")


def test_tiny_program_for_a_newer_glibc_is_refused_with_both_versions(tiny: Callable[..., Path], place: Path) -> None:
    """Before anything is unpacked; the dynamic loader's own words are a riddle."""
    done = start(tiny("exit 0", glibc="2.999"), EDGEAPP_CACHE=str(place / "cache"))
    assert done.returncode == 71, done
    assert f"this system has glibc {platform.libc_ver()[1]}, the program needs 2.999 or newer" in done.stderr
    assert not (place / "cache").exists()
    assert start(tiny("exit 0", "old", glibc="2.2"), EDGEAPP_CACHE=str(place / "cache")).returncode == 0


@not_under_qemu
@as_root
def test_system_without_glibc_is_told(binary: Path, place: Path) -> None:
    """As on Alpine: no loader of glibc."""
    folder = "/lib" if platform.machine() == "aarch64" else "/lib64"
    script = f"folder=$(readlink -f {folder}); mount -t tmpfs none $folder; exec $1 --version"
    done = in_namespace(script, binary, EDGEAPP_CACHE=str(place / "cache"))
    assert done.returncode == 71, done
    assert "lacks the loader of the GNU C library" in done.stderr


# --- many at once, and killed -------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(20 if CAMPAIGN else 2))
def test_parallel_first_starts_all_work_and_share_one_copy(binary: Path, place: Path, number: int) -> None:
    """32 at once: one unpacks, the others wait for it."""
    cache = place / f"cache{number}"
    words, env = [binary, "--version"], {"EDGEAPP_CACHE": str(cache)}
    children = [subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(32)]
    for child in children:
        out, err = child.communicate(timeout=120)
        assert (child.returncode, err) == (0, b"")
        assert out.startswith(b"edgeapp ")
    assert_tidy(cache)


def first_start_s(binary: Path, place: Path) -> float:
    began = time.monotonic()
    works(binary, place / "measured")
    shutil.rmtree(place / "measured")
    return time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signal_at_random_points_of_the_first_start_does_no_harm(
    binary: Path, place: Path, number: signal.Signals
) -> None:
    """The process ends by the signal, or had ended; the next start works, and then nothing is left over.

    A signal that can be caught leaves nothing even before the next start, and no word on standard error.
    """
    seconds, cache = first_start_s(binary, place), place / "cache"
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for _ in range((200 if number == signal.SIGKILL else 50) if CAMPAIGN else 6):
        if cache.exists():
            shutil.rmtree(cache)
        words, env = [binary, "--version"], {"EDGEAPP_CACHE": str(cache)}
        with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            time.sleep(rng.uniform(0, seconds))
            child.send_signal(number)
            _, err = child.communicate(timeout=60)
        assert child.returncode in (0, -number), (seed, err)
        assert err == b"", (seed, err)
        if number != signal.SIGKILL and cache.exists():
            assert not [path for path in cache.iterdir() if path.name.startswith(".new")], seed
        works(binary, cache)
        assert_tidy(cache)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signal_at_random_points_of_a_warm_start_is_delivered_once(
    binary: Path, warm: Path, number: signal.Signals
) -> None:
    """Also while Python starts: no stack trace, no other exit code."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for _ in range(200 if CAMPAIGN else 20):
        words, env = [binary, "--version"], {"EDGEAPP_CACHE": str(warm)}
        with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            time.sleep(rng.uniform(0, 0.1))
            child.send_signal(number)
            _, err = child.communicate(timeout=60)
        assert child.returncode in (0, -number), (seed, err)
        assert err == b"", (seed, err)
    assert_tidy(warm)


def first_child(pid: int) -> int:
    """Wait for a process to have one."""
    file = Path(f"/proc/{pid}/task/{pid}/children")
    while not (children := file.read_text().split()):
        time.sleep(0.0005)
    return int(children[0])


@not_under_qemu
@as_root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_process_of_a_container_ends_by_a_signal_too(
    binary: Path, warm: Path, place: Path, number: signal.Signals
) -> None:
    """The kernel spares process 1 what it has no handler for; it ends all the same, at any time."""
    model = ROOT / "edgeapp" / "data" / "demo" / "model.onnx"
    for cache, seconds in ((place / "new", 0.15), (warm, 0), (warm, 0.02), (warm, 0.05), (warm, 0.1), (warm, 2.0)):
        words = ["unshare", "--pid", "--fork", "--kill-child", binary, "--engine", model, "--input", "-", "--quiet"]
        env = {"EDGEAPP_CACHE": str(cache), "PATH": os.defpath}
        with subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            inside = first_child(child.pid)
            while "edgeapp" not in os.readlink(f"/proc/{inside}/exe"):
                time.sleep(0.0005)
            time.sleep(0.002 + seconds)  # it has begun to run
            os.kill(inside, number)
            _, err = child.communicate(timeout=60)
        assert (child.returncode, err) == (128 + number, b"")
        assert not cache.exists() or not list(cache.glob(".new*"))


# --- what is unpacked and was changed -----------------------------------------------------------------

NAME = "_internal/build.json"


def flip(path: Path) -> None:
    """Another byte of the same file, its time as before: only a digest tells."""
    status = path.stat()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    path.chmod(0o444)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_link(path: Path) -> None:
    path.rename(path.parent.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent.parent / "elsewhere")


CHANGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda content: os.truncate(content / NAME, 10),
    "emptied": lambda content: os.truncate(content / "edgeapp", 0),
    "longer": lambda content: os.truncate(content / NAME, 100_000),
    "rewritten": lambda content: (content / NAME).write_bytes((content / NAME).read_bytes()),
    "missing": lambda content: (content / NAME).unlink(),
    "planted": lambda content: (content / "_internal" / "libplanted.so").write_bytes(b"x"),
    "a link": lambda content: replace_by_link(content / NAME),
    "another link": lambda content: relink(content),
    "a folder": lambda content: ((content / NAME).unlink(), (content / NAME).mkdir()),
    "writable for others": lambda content: (content / NAME).chmod(0o666),
    "no program": lambda content: (content / "edgeapp").chmod(0o444),
    "no manifest": lambda content: (content / "manifest").unlink(),
    "no folder": lambda content: shutil.rmtree(content / "_internal"),
}


def relink(content: Path) -> None:
    link = next(path for path in (content / "_internal").iterdir() if path.is_symlink())
    link.unlink()
    link.symlink_to("/etc/passwd")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changed_content_is_never_run_but_unpacked_anew(
    binary: Path, warm: Path, change: Callable[[Path], object]
) -> None:
    """Every start looks at sizes, kinds, modes and times; it says what it found."""
    [content] = contents(warm)
    change(content)
    done = works(binary, warm)
    assert "edgeapp: not using the files in" in done.stderr
    assert_tidy_but(warm, "elsewhere")
    assert works(binary, warm).stderr == ""


def assert_tidy_but(cache: Path, name: str) -> None:
    (cache / name).unlink(missing_ok=True)
    assert_tidy(cache)


@pytest.mark.parametrize(
    ("words", "env"),
    [(["--version"], {"EDGEAPP_VERIFY": "1"}), (["cache", "verify"], {})],
    ids=["EDGEAPP_VERIFY", "cache"],
)
def test_changed_byte_is_found_where_every_byte_is_checked(
    binary: Path, warm: Path, words: list[str], env: dict[str, str]
) -> None:
    """A flipped bit, sizes and times as before: `cache` and EDGEAPP_VERIFY=1 compare digests first."""
    library = next(contents(warm)[0].rglob("libnvinfer*.so.*"))
    good = library.read_bytes()
    flip(library)
    done = start(binary, *words, EDGEAPP_CACHE=str(warm), **env)
    assert done.returncode == 0, done
    assert f"the SHA-256 of {library.relative_to(contents(warm)[0])} differs" in done.stderr
    assert library.read_bytes() == good
    assert_tidy(warm)


@as_root
def test_foreign_file_in_the_content_is_not_used(binary: Path, warm: Path) -> None:
    """What another user could change is unpacked anew."""
    [content] = contents(warm)
    os.chown(content / NAME, 65534, 65534)
    assert "belongs to user 65534" in works(binary, warm).stderr
    assert works(binary, warm).stderr == ""


# --- the cache: list, verify, clear, eviction ---------------------------------------------------------


def test_cache_command_shows_checks_and_clears(binary: Path, warm: Path) -> None:
    """path, list, verify, clear; what another process runs stays."""
    env = {"EDGEAPP_CACHE": str(warm)}
    [content] = contents(warm)
    assert start(binary, "cache", "path", **env).stdout == f"{warm}\n"
    assert content.name in start(binary, "cache", "list", **env).stdout
    assert start(binary, "cache", "verify", **env).stdout == f"{content.name}  whole\n"
    model = ROOT / "edgeapp" / "data" / "demo" / "model.onnx"
    with subprocess.Popen([binary, "--engine", model, "--input", "-"], env=env, stdin=subprocess.PIPE) as child:
        while "libpython" not in Path(f"/proc/{child.pid}/maps").read_text():
            time.sleep(0.01)
        assert "kept" in start(binary, "cache", "clear", **env).stdout
        assert '"used_by_others": true' in start(binary, "cache", "list", "--json", **env).stdout
        child.kill()
    done = start(binary, "cache", "clear", **env)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "removed" in done.stdout
    assert_tidy(warm, 0)


def test_cache_verify_names_the_damaged_file_of_another_content(
    binary: Path, warm: Path, tiny: Callable[..., Path]
) -> None:
    """The launcher heals what it starts; of the content before it, `cache verify` tells: exit 65."""
    assert start(tiny("exit 0"), EDGEAPP_CACHE=str(warm)).returncode == 0
    other = next(path for path in contents(warm) if (path / "_internal" / "data").exists())
    flip(other / "_internal" / "data")
    (other / "more").write_text("x")
    done = start(binary, "cache", "verify", EDGEAPP_CACHE=str(warm))
    assert done.returncode == 65, done
    assert f"{other.name}  DAMAGED\n  _internal/data: its SHA-256 differs\n  more: not one" in done.stdout


def test_tiny_contents_current_and_previous_stay_and_older_ones_go(tiny: Callable[..., Path], place: Path) -> None:
    """The newest two; the older one is removed when the third comes."""
    cache = place / "cache"
    files = [tiny(f"echo {number}", f"tiny{number}") for number in range(4)]
    for number, file in enumerate(files):
        assert start(file, EDGEAPP_CACHE=str(cache)).stdout == f"{number}\n"
        assert_tidy(cache, min(number + 1, 2))
    assert start(files[2], EDGEAPP_CACHE=str(cache)).stdout == "2\n"
    assert_tidy(cache, 2)


def test_tiny_content_in_use_is_never_removed(tiny: Callable[..., Path], place: Path) -> None:
    """However old: its process holds a lock on it."""
    cache = place / "cache"
    env = {"EDGEAPP_CACHE": str(cache)}
    with subprocess.Popen([tiny("echo on; read end; cat _internal/data", "old")], env=env, cwd=place,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == b"on\n"
        [old] = contents(cache)
        for number in range(3):
            assert start(tiny(f"echo {number}", f"tiny{number}"), **env).returncode == 0
        assert old.is_dir()
        child.kill()
    assert start(tiny("echo 4", "tiny4"), **env).returncode == 0
    assert not old.exists()
    assert_tidy(cache, 2)


def test_limit_of_file_sizes_is_a_reason_and_no_crash(binary: Path, place: Path) -> None:
    """ulimit -f: no folder can hold it; nothing is left."""
    # 2000 blocks of 512 bytes: so dash and POSIX count
    done = in_namespace("ulimit -f 2000; exec $1 --version", binary, EDGEAPP_CACHE=f"{place}/cache", HOME=str(place))
    assert done.returncode == 73, done
    assert done.stderr.count("File too large") >= 3
    assert_tidy(place / "cache", 0)


@as_root
def test_content_for_all_users_is_shared_and_read_only(binary: Path, place: Path) -> None:
    """What root unpacks into /var/lib/edgeapp/cache serves everybody, and nobody writes there."""
    done = in_namespace(
        """
        mkdir -p /var/lib/edgeapp; mount -t tmpfs -o mode=755 none /var/lib/edgeapp
        EDGEAPP_CACHE=/var/lib/edgeapp/cache $1 --version
        mount -o remount,ro /var/lib/edgeapp
        HOME=$2 setpriv --reuid 65534 --regid 65534 --clear-groups $1 cache path
        """,
        shutil.copy(binary, place / "edgeapp"), place,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[1] == "/var/lib/edgeapp/cache"
    assert not (place / ".cache").exists()


def test_folder_that_is_wanted_is_used_even_if_another_has_it(tiny: Callable[..., Path], place: Path) -> None:
    """EDGEAPP_CACHE and CACHE_DIRECTORY are wishes; of the others, the one that has it already is used."""
    file = tiny("exit 0")
    for folder in ("home", "xdg", "unit", "own"):
        (place / folder).mkdir(mode=0o700)
    home = {"HOME": str(place / "home")}
    assert start(file, **home).returncode == 0
    assert_tidy(place / "home/.cache/edgeapp")
    assert start(file, XDG_CACHE_HOME=str(place / "xdg"), **home).returncode == 0
    assert not list((place / "xdg").iterdir())
    assert start(file, CACHE_DIRECTORY=f"{place}/unit:/elsewhere", **home).returncode == 0
    assert_tidy(place / "unit")
    assert start(file, EDGEAPP_CACHE=f"{place}/own", CACHE_DIRECTORY=f"{place}/unit", **home).returncode == 0
    assert_tidy(place / "own")


@as_root
def test_leftover_of_a_process_with_the_same_id_is_no_obstacle(tiny: Callable[..., Path], place: Path) -> None:
    """In containers everything is process 1: one was killed, the next finds its leftovers and a damaged content."""
    file, cache = tiny("echo $$"), place / "cache"
    words = ["unshare", "--pid", "--fork", str(file)]
    env = {"EDGEAPP_CACHE": str(cache), "PATH": os.defpath}
    for _ in range(2):
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "1\n"), done
        assert_tidy(cache)
        for number in range(3):
            (cache / f".new-1-{number}" / "_internal").mkdir(parents=True)
        (contents(cache)[0] / "edgeapp").chmod(0o777)


# --- folders that cannot hold it ----------------------------------------------------------------------

# script that makes /mnt/bad unusable -> words of the reason
FAULTS = {
    "noexec": ("mount -t tmpfs -o noexec,mode=700 none /mnt/bad", "mounted noexec"),
    "full": ("mount -t tmpfs -o size=50m,mode=700 none /mnt/bad", "wanted, 53 MB free"),
    "full of small files": ("mount -t tmpfs -o nr_inodes=20,mode=700 none /mnt/bad", "No space left on device"),
    "read-only": ("mount -t tmpfs -o ro,mode=700 none /mnt/bad", "read-only file system"),
    "a file": ("rmdir /mnt/bad; touch /mnt/bad", "Not a directory"),
    "below a file": ("rmdir /mnt/bad; touch /mnt/x; ln -s x/y /mnt/bad", "Not a directory"),
    "of another user": ("chown 65534:65534 /mnt/bad", "it belongs to user 65534"),
    "writable for others": ("chmod 777 /mnt/bad", "others may write to it"),
    "a dangling link": ("rmdir /mnt/bad; ln -s nowhere /mnt/bad", "No such file or directory"),
    "a lock that is a link": ("ln -s /etc/passwd /mnt/bad/lock", "Symbolic link loop"),
    "below a folder of another user": (
        "mkdir -p /mnt/bad/sub; chown 65534 /mnt/bad; mv /mnt/bad /mnt/u; ln -s u/sub /mnt/bad",
        "a folder above it belongs to user 65534",
    ),
    "below a folder open to others": (
        "mkdir -p /mnt/bad/sub; chmod 777 /mnt/bad; mv /mnt/bad /mnt/u; ln -s u/sub /mnt/bad",
        "others may write to a folder above it (mode 0777)",
    ),
    "a letter of LD_LIBRARY_PATH": (
        "mkdir /mnt/a:b; rmdir /mnt/bad; ln -s a:b /mnt/bad",
        "its path has one of the letters : ; $",
    ),
}


@as_root
@pytest.mark.parametrize(("make", "reason"), FAULTS.values(), ids=FAULTS.keys())
def test_unusable_cache_is_named_and_the_next_folder_is_used(binary: Path, make: str, reason: str) -> None:
    """EDGEAPP_CACHE cannot be used: the program says why, unpacks in the next folder and works."""
    done = in_namespace(
        f"mount -t tmpfs none /mnt; mkdir /mnt/bad /mnt/home; {make}; $1 --version; cd /mnt; find home -maxdepth 3",
        binary, EDGEAPP_CACHE="/mnt/bad", HOME="/mnt/home",
    )  # fmt: skip
    assert done.returncode == 0, done
    assert done.stdout.startswith("edgeapp ")
    assert "home/.cache/edgeapp/lock" in done.stdout
    assert done.stderr.startswith("edgeapp: not using EDGEAPP_CACHE=/mnt/bad: ")
    assert reason in done.stderr


@as_root
def test_home_that_is_a_link_to_that_of_another_user_is_not_used(binary: Path) -> None:
    """Root would run what its owner can exchange."""
    done = in_namespace(
        """
        for folder in /mnt /var/tmp; do mount -t tmpfs -o mode=1777 none $folder; done
        mkdir /mnt/theirs; chown 65534 /mnt/theirs; ln -s theirs /mnt/home
        $1 cache path; find /mnt/theirs -mindepth 1
        """,
        binary, HOME="/mnt/home",
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("/var/tmp/edgeapp-0\n", 0), done


@as_root
def test_content_on_a_mount_that_became_noexec_is_left_for_the_next_folder(binary: Path) -> None:
    """It was unpacked where programs may no longer run."""
    done = in_namespace(
        """
        mount -t tmpfs none /mnt; mkdir /mnt/cache /mnt/home; mount -t tmpfs -o mode=700 none /mnt/cache
        $1 --version; mount -o remount,noexec /mnt/cache; $1 cache path
        """,
        binary, EDGEAPP_CACHE="/mnt/cache", HOME="/mnt/home",
    )  # fmt: skip
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[1] == "/mnt/home/.cache/edgeapp"
    assert "mounted noexec" in done.stderr


@as_root
def test_lock_of_another_user_holds_nobody_up(binary: Path) -> None:
    """Content for all users can be locked by each of them; it is used all the same."""
    done = in_namespace(
        """
        mkdir -p /var/lib/edgeapp; mount -t tmpfs -o mode=755 none /var/lib/edgeapp
        EDGEAPP_CACHE=/var/lib/edgeapp/cache $1 --version
        folder=$(echo /var/lib/edgeapp/cache/????????????????????????????????)
        setpriv --reuid 65534 --regid 65534 --clear-groups flock -xF $folder sleep 200 >/dev/null 2>&1 &
        while flock -n $folder true; do sleep 0.05; done
        timeout 90 $1 cache path; EDGEAPP_CACHE=/var/lib/edgeapp/cache timeout 90 $1 cache path; kill $!
        """,
        binary, HOME="/nonexistent",
    )  # fmt: skip
    assert done.stdout.splitlines()[1:] == ["/var/lib/edgeapp/cache"] * 2, done


def test_changed_content_that_a_program_uses_is_not_removed_under_it(binary: Path, warm: Path, content: Path) -> None:
    """The next start takes another folder, and says why; the program goes on."""
    home = warm.parent / "home"
    assert start(binary, "--version", EDGEAPP_CACHE=f"{home}/.cache/edgeapp").returncode == 0
    env = {"EDGEAPP_CACHE": str(warm), "HOME": str(home)}
    model = ROOT / "edgeapp" / "data" / "demo" / "model.onnx"
    words = [binary, "--engine", model, "--input", "-", "--quiet"]
    with subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        while "onnxruntime" not in Path(f"/proc/{child.pid}/maps").read_text():
            time.sleep(0.02)
        (warm / content.name / "manifest").touch()
        done = start(binary, "cache", "path", **env)
        assert done.stdout == f"{home}/.cache/edgeapp\n", done
        assert "a running program uses them" in done.stderr
        assert (warm / content.name / "edgeapp").is_file()
        child.communicate(b"")
    assert child.returncode == 0
    assert works(binary, warm).stderr.startswith("edgeapp: not using the files in")
    assert_tidy(warm)


@pytest.mark.parametrize("limit", range(4, 13))
def test_limit_of_open_files_never_harms_what_is_unpacked(binary: Path, warm: Path, limit: int) -> None:
    """A start that cannot look has no say on whether files were changed."""
    before = snapshot(warm)
    command = f"ulimit -n {limit}; exec {shlex.quote(str(binary))} cache list"
    env = {"EDGEAPP_CACHE": str(warm), "EDGEAPP_VERIFY": "1", "HOME": str(warm.parent / "no")}
    done = subprocess.run(["/bin/bash", "-c", command], env=env, capture_output=True, text=True, check=False)
    assert done.returncode != 70, done
    assert "Traceback" not in done.stderr
    assert snapshot(warm) == before


def test_stopped_start_is_waited_for_aloud(binary: Path, place: Path) -> None:
    """Who unpacks holds the lock; a second start says what it waits for, and goes on when the first does."""
    env = {"EDGEAPP_CACHE": str(place / "cache")}
    with subprocess.Popen([binary, "--version"], env=env, stdout=subprocess.DEVNULL) as first:
        while not list(place.glob("cache/.new-*")):
            time.sleep(0.001)
        first.send_signal(signal.SIGSTOP)
        with subprocess.Popen([binary, "--version"], env=env, stderr=subprocess.PIPE, text=True) as second:
            assert second.stderr is not None
            assert second.stderr.readline().startswith("edgeapp: waiting for another start, which unpacks into")
            first.send_signal(signal.SIGCONT)
            assert second.wait(60) == 0
        assert first.wait(60) == 0
    assert_tidy(place / "cache")


def test_clear_removes_what_killed_starts_left(binary: Path, warm: Path) -> None:
    """Their space is given back at once, not only by the next unpacking."""
    (warm / ".new-98-0").mkdir()
    (warm / ".new-98-0" / "part").write_bytes(b"x")
    assert start(binary, "cache", "clear", EDGEAPP_CACHE=str(warm)).returncode == 0
    assert_tidy(warm, 0)


def test_deleted_file_is_not_named(binary: Path, warm: Path, place: Path) -> None:
    """The program runs, and does not tell a path that leads nowhere."""
    shutil.copy(binary, place / "copy")
    number = os.open(place / "copy", os.O_RDONLY)
    (place / "copy").unlink()
    try:
        words = [f"/proc/self/fd/{number}", "--version", "--json"]
        env = {"EDGEAPP_CACHE": str(warm)}
        done = subprocess.run(words, env=env, pass_fds=[number], capture_output=True, check=True)
    finally:
        os.close(number)
    assert json.loads(done.stdout)["file"] is None


@as_root
def test_set_user_id_bit_is_refused(binary: Path, place: Path) -> None:
    """Whoever may start it would choose, as root, where files are made and run."""
    shutil.copy(binary, place / "edgeapp")
    (place / "edgeapp").chmod(0o4755)
    done = subprocess.run(
        [place / "edgeapp", "--version"], env={}, capture_output=True, text=True, check=False, **NOBODY
    )
    assert done.returncode == 77, done
    assert "set-user-ID" in done.stderr


@as_root
@pytest.mark.parametrize(
    "env", [{}, {"HOME": ""}, {"HOME": "/nonexistent"}, {"HOME": "relative"}, {"XDG_CACHE_HOME": "/proc"}],
    ids=["HOME unset", "HOME empty", "no home", "relative", "XDG_CACHE_HOME in /proc"],
)  # fmt: skip
def test_user_without_a_home_gets_a_private_folder(binary: Path, place: Path, env: dict[str, str]) -> None:
    """In /var/tmp, closed to others."""
    shutil.copy(binary, place / "edgeapp")
    words = " ".join(f"{name}={shlex.quote(value)}" for name, value in env.items())
    done = in_namespace(
        f"""
        mount -t tmpfs -o mode=1777 none /var/tmp; mount -t tmpfs -o mode=700 none /root; cd /
        setpriv --reuid 65534 --regid 65534 --clear-groups env -i {words} $1 cache path
        stat --format=%a /var/tmp/edgeapp-65534
        """,
        place / "edgeapp",
    )  # fmt: skip
    assert done.returncode == 0, done
    assert done.stdout == "/var/tmp/edgeapp-65534\n700\n"
    assert done.stderr == ""


@as_root
@pytest.mark.parametrize("how", ["link", "owner", "file"])
def test_trap_in_the_temporary_folder_is_not_stepped_into(binary: Path, place: Path, how: str) -> None:
    """Another user was there first with our name: the next folder is taken, his is not touched."""
    traps = {
        "link": "mkdir /var/tmp/trap; ln -s trap /var/tmp/edgeapp-65534",
        "owner": "mkdir -m 777 /var/tmp/edgeapp-65534",
        "file": "touch /var/tmp/edgeapp-65534",
    }
    done = in_namespace(
        f"""
        mount -t tmpfs -o mode=1777 none /var/tmp; mount -t tmpfs -o mode=1777 none /mnt; cp $1 /mnt
        mount -t tmpfs -o mode=1777 none /tmp; {traps[how]}; chown -hR 1:1 /var/tmp/*
        setpriv --reuid 65534 --regid 65534 --clear-groups env -i /mnt/edgeapp cache path
        find /var/tmp -mindepth 2
        """,
        shutil.copy(binary, place / "edgeapp"),
    )  # fmt: skip
    assert done.stdout == "/tmp/edgeapp-65534\n", done


@as_root
def test_no_folder_at_all_is_told_with_every_reason(binary: Path, place: Path) -> None:
    """Exit 73, or 77 where it is all a question of permission; each folder with its reason, and nothing left."""
    full = in_namespace(
        """
        for folder in /var/tmp /tmp /root /mnt; do mount -t tmpfs -o size=20m,mode=1777 none $folder; done
        mount -t tmpfs -o noexec none /root
        $1 --version || echo $?; find /var/tmp /tmp -mindepth 2 ! -name lock
        """,
        place_outside_tmp(binary), HOME="/root",
    )  # fmt: skip
    assert full.stdout == "73\n", full
    for words in ("/root/.cache/edgeapp (HOME): ", "noexec", "/var/tmp/edgeapp-0", "/tmp/edgeapp-0", "MB free",
                  "fix: set EDGEAPP_CACHE to a folder of your own"):  # fmt: skip
        assert words in full.stderr, words
    closed = in_namespace(
        """
        for folder in /var/tmp /tmp /root; do mount -t tmpfs -o mode=700 none $folder; done
        cd /; setpriv --reuid 65534 --regid 65534 --clear-groups $1 --version || echo $?
        """,
        place_outside_tmp(binary), HOME="/root",
    )  # fmt: skip
    assert closed.stdout == "77\n", closed
    assert closed.stderr.count("Permission denied") == 2, closed
    assert "/root/.cache/edgeapp (HOME): HOME belongs to user 0" in closed.stderr


OUTSIDE_TMP = Path(f"/run/edgeapp-test-{os.getpid()}")


def place_outside_tmp(binary: Path) -> Path:
    """A copy of the program where no test mounts something."""
    folder = OUTSIDE_TMP
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    if not (folder / "edgeapp").exists() or (folder / "edgeapp").stat().st_mtime < binary.stat().st_mtime:
        shutil.copy(binary, folder / "edgeapp")
    return folder / "edgeapp"


@pytest.fixture(scope="module", autouse=True)
def _clean_up() -> Iterator[None]:
    yield
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(OUTSIDE_TMP)


# --- a file that is not what was built ----------------------------------------------------------------


def test_damaged_file_never_runs_and_says_so(binary: Path, place: Path) -> None:
    """Truncated anywhere or with any bit flipped: exit 74 and a reason, or it works all the same; never a crash."""
    data = binary.read_bytes()
    (frames_at,) = struct.unpack_from("<Q", data, len(data) - 56)
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    file = place / "edgeapp"
    cases = [data[: frames_at + 1], data[:-1], data[: len(data) // 2], data + b"\0"]
    for position in (64, 56, 49, 48, 40, 1):  # from the end: the magic, the ends of the three numbers, the digest
        before, after = data[:-position], data[len(data) - position + 1 :]
        cases.append(before + bytes([data[-position] ^ 0xFF]) + after)
    for _ in range(200 if CAMPAIGN else 6):
        # The launcher itself left alone: a changed instruction can do anything.
        position = (
            rng.randrange(frames_at, len(data)) if rng.random() < 0.7 else rng.randrange(len(data) - 40_000, len(data))
        )
        cases.append(data[:position] + bytes([data[position] ^ 1 << rng.randrange(8)]) + data[position + 1 :])
    for case in cases:
        file.write_bytes(case)
        file.chmod(0o755)
        done = start(file, "--version", EDGEAPP_CACHE=str(place / "cache"))
        assert done.returncode == 74, (seed, done)
        assert "copy it again" in done.stderr
        assert not (place / "cache").exists() or [p.name for p in (place / "cache").iterdir()] == ["lock"]


@not_under_qemu
@as_root
def test_file_that_cannot_read_itself_says_so(binary: Path, place: Path) -> None:
    """Mode 0711 lets others start it and not read it."""
    file = shutil.copy(binary, place / "edgeapp")
    file.chmod(0o711)
    done = subprocess.run([file, "--version"], env={}, capture_output=True, text=True, check=False, **NOBODY)
    assert done.returncode == 77, done
    assert "chmod a+r" in done.stderr
