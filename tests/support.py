"""The program as a user runs it, for tests that look at it from outside."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from edgeapp.minisign import PublicKey

ROOT = Path(__file__).parent.parent
BINARY = Path(os.environ.get("EDGEAPP_BINARY", ROOT / "dist" / "edgeapp"))


@dataclass
class Outcome:
    """How one run of the program ended."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def line(self) -> dict[str, Any]:
        assert len(self.lines) == 1, self
        return self.lines[0]


@dataclass
class Program:
    """The program, run from outside as a user would."""

    command: list[str]
    cwd: Path
    env: dict[str, str]

    def __call__(
        self,
        *words: str | Path | bytes,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        input: bytes | None = None,
        stdout: Any = subprocess.PIPE,
        timeout: float = 120,
    ) -> Outcome:
        """Run to the end with `input` on standard input; both outputs must be valid UTF-8."""
        done = subprocess.run(
            [*self.command, *map(os.fsencode, words)],
            cwd=cwd or self.cwd,
            env=self.env | (env or {}),
            input=input or b"",
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=timeout,
            check=False,
        )
        return Outcome(done.returncode, (done.stdout or b"").decode(), done.stderr.decode())

    def start(self, *words: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*self.command, *map(str, words)], cwd=self.cwd, env=self.env, **options)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 7000.0

    def __call__(self) -> float:
        return self.now


def frozen_binary() -> Path:
    """The frozen file; skips the test without one, unless EDGEAPP_REQUIRE_FROZEN says it must be there."""
    if not BINARY.is_file():
        reason = f"{BINARY} is missing: ./build.sh freeze makes it"
        if os.environ.get("EDGEAPP_REQUIRE_FROZEN") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return BINARY


def plain_png(path: Path, color: Sequence[int], size: tuple[int, int] = (40, 30)) -> Path:
    """A picture of one colour."""
    Image.new("RGB", size, tuple(color)).save(path)
    return path


def write_keys(stem: Path, seed: int = 1) -> PublicKey:
    """STEM.key and STEM.pub as `minisign -G -W` writes them, the same for every seed; test_trust.py compares."""
    from nacl import bindings  # late: the GPU tests can run without

    from edgeapp.minisign import PublicKey

    public, key = bindings.crypto_sign_seed_keypair(bytes([seed]) * 32)
    number = bytes([seed]) * 8
    head = b"Ed" + b"\0\0" + b"B2" + bytes(48)
    secret = base64.b64encode(head + number + key + bytes(32)).decode()
    stem.with_suffix(".key").write_text(f"untrusted comment: minisign encrypted secret key\n{secret}\n")
    text = base64.b64encode(b"Ed" + number + public).decode()
    stem.with_suffix(".pub").write_text(f"untrusted comment: minisign public key {number.hex()}\n{text}\n")
    return PublicKey(number, public)


def write_signature(path: Path, key_file: Path) -> Path:
    """FILE.minisig by a key of write_keys()."""
    from edgeapp import minisign

    key = minisign.parse_secret_key(key_file.read_bytes(), str(key_file), lambda: b"")
    beside = Path(f"{path}{minisign.SUFFIX}")
    beside.write_bytes(minisign.sign(minisign.digest_of(iter([path.read_bytes()])), path.name, 1_700_000_000, key))
    return beside
