"""Keys and signatures in minisign's format, so that `minisign -V` and edgeapp verify each other's.

A signature is Ed25519 over the BLAKE2b-512 of the file, and a second one over the first and the trusted comment
(minisign's "prehashed" form, "ED"; the default since 0.11). libsodium calculates, by way of PyNaCl: minisign uses the
same library, which refuses weak keys and signatures that are not canonical. Untrusted comments are signed by nobody
and are not looked at. Every other byte counts: base64 that decodes to the same bytes by another spelling is refused.

Source: https://jedisct1.github.io/minisign/, "Signature format", "Public key format", "Secret key format".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgeapp import errors, paths

SUFFIX = ".minisig"
MOST_KEY_BYTES = 4096
MOST_SIGNATURE_BYTES = 16384
"""minisign itself reads comments of up to 1 and 8 KiB."""
CHUNK_BYTES = 16 << 20

UNTRUSTED, TRUSTED = b"untrusted comment: ", b"trusted comment: "
PUBLIC_BYTES, SECRET_BYTES, SIGNATURE_BYTES = 42, 158, 74
KEY_TEXT = re.compile(r"RW[A-Za-z0-9+/]{54}")
"""A public key in base64: 42 bytes, the first two of which are "Ed"."""

# libsodium's crypto_pwhash_scryptsalsa208sha256_*: what minisign uses, and down to which it halves it where memory
# is short. A key file that asks for more would only be there to exhaust the machine.
OPSLIMITS, MEMLIMITS = (1 << 15, 1 << 25), (1 << 24, 1 << 30)
KEY_STREAM_BYTES = 104


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key.

    Attributes:
        number: eight random bytes that tell keys apart; they prove nothing.
        key: 32 bytes.
        origin: where it came from, for messages.
    """

    number: bytes
    key: bytes
    origin: str = ""

    def __str__(self) -> str:
        return key_id(self.number)

    def same(self, other: PublicKey) -> bool:
        """Whether it is the same key, wherever it came from."""
        return (self.number, self.key) == (other.number, other.key)


@dataclass(frozen=True)
class Signature:
    """What a .minisig file holds; `comment` is the trusted one."""

    number: bytes
    signature: bytes
    comment: bytes
    of_comment: bytes


@dataclass(frozen=True)
class SecretKey:
    """An Ed25519 key pair: `key` is the 32-byte seed, then the 32-byte public key."""

    number: bytes
    key: bytes


def key_id(number: bytes) -> str:
    """A key's number as minisign prints it."""
    return f"{int.from_bytes(number, 'little'):X}"


def read_file(path: str, limit: int | None = None, *, pipes: bool = False) -> bytes:
    """All the bytes of a file, read once.

    Args:
        limit: a file with more bytes is refused.
        pipes: take what is no regular file, too; it is read until it ends.

    Raises:
        NotFoundError, NotPermittedError, InputOutputError: it cannot be read.
        ConfigurationError: it is too large, or no regular file.
    """
    what = f"cannot use {paths.printable(path)}"
    try:
        # Not blocking: a named pipe without a writer must not hang.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            mode = os.fstat(number).st_mode
            if not stat.S_ISREG(mode) and (stat.S_ISDIR(mode) or not pipes):
                raise errors.ConfigurationError(what, "it is no regular file", "name a file")
            os.set_blocking(number, True)
            with open(number, "rb", closefd=False) as file:
                data = file.read(-1 if limit is None else limit + 1)
        finally:
            os.close(number)
    except OSError as error:
        raise paths.refusal(f"cannot read {paths.printable(path)}", error) from error
    except ValueError as error:  # a NUL in the name
        raise errors.NotFoundError(f"cannot read {paths.printable(path)}", str(error), "check the name") from error
    if limit is not None and len(data) > limit:
        raise errors.ConfigurationError(what, f"it has more than {limit} bytes", "name the right file")
    return data


def parse_public_key(data: bytes, origin: str) -> PublicKey:
    """A key from a .pub file, with its comment or without, or from the base64 text alone.

    Raises:
        ConfigurationError: it is none.
    """
    lines = _lines(data)
    if lines and lines[0].startswith(UNTRUSTED):
        lines = lines[1:]
    raw = _base64(lines[0], PUBLIC_BYTES) if len(lines) == 1 else None
    if raw is None or raw[:2] != b"Ed":
        raise errors.ConfigurationError(
            f"cannot use the key {paths.printable(origin)}",
            "it is no public key of minisign: a comment, then 56 characters that begin with RW",
            "name the .pub file that minisign -G wrote",
        )
    return PublicKey(raw[2:10], raw[10:], origin)


def parse_signature(data: bytes, origin: str) -> Signature:
    """The contents of a .minisig file.

    Raises:
        ConfigurationError: it is none, cut short, or of the older form that is not prehashed.
    """
    what = f"cannot use the signature {paths.printable(origin)}"
    lines = _lines(data)
    raw = of_comment = None
    if len(lines) == 4 and lines[0].startswith(UNTRUSTED) and lines[2].startswith(TRUSTED):
        raw, of_comment = _base64(lines[1], SIGNATURE_BYTES), _base64(lines[3], 64)
    if raw is None or of_comment is None or raw[:2] not in (b"ED", b"Ed"):
        raise errors.ConfigurationError(
            what, "it is no signature of minisign, or cut short: four lines are wanted", "copy or make it again"
        )
    if raw[:2] == b"Ed":
        raise errors.ConfigurationError(
            what,
            "it is of minisign's older form, without prehashing",
            "sign again: minisign -S of 0.11 or newer, or edgeapp sign",
        )
    return Signature(raw[2:10], raw[10:], lines[2].removeprefix(TRUSTED), of_comment)


def parse_secret_key(data: bytes, origin: str, ask: Callable[[], bytes]) -> SecretKey:
    """The contents of a secret key file, decrypted.

    Args:
        ask: gives the passphrase; called only for an encrypted key, once.

    Raises:
        ConfigurationError: it is none, it is damaged, or the passphrase is wrong.
        SystemRefusedError: there is not enough memory to decrypt it (scrypt takes 1 GiB).
    """
    what = f"cannot use the key {paths.printable(origin)}"
    lines = _lines(data)
    raw = _base64(lines[1], SECRET_BYTES) if len(lines) == 2 and lines[0].startswith(UNTRUSTED) else None
    if raw is None or raw[:2] != b"Ed" or raw[2:4] not in (b"Sc", b"\0\0") or raw[4:6] != b"B2":
        raise errors.ConfigurationError(what, "it is no secret key of minisign", "name the .key of minisign -G")
    salt, body = raw[6:38], raw[54:]
    encrypted = raw[2:4] == b"Sc"
    if encrypted:
        opslimit, memlimit = int.from_bytes(raw[38:46], "little"), int.from_bytes(raw[46:54], "little")
        body = bytes(a ^ b for a, b in zip(body, _scrypt(what, ask, salt, opslimit, memlimit), strict=True))
    number, key, checksum = body[:8], body[8:72], body[72:]
    # minisign -W writes no checksum; whether the halves of the key belong together can be told of both.
    right = hashlib.blake2b(b"Ed" + number + key, digest_size=32).digest()
    if (encrypted and checksum != right) or not _is_pair(key):
        why = "the passphrase is wrong, or the file is damaged" if encrypted else "the file is damaged"
        raise errors.ConfigurationError(what, why, "try again" if encrypted else "take it from a backup")
    return SecretKey(number, key)


def _is_pair(key: bytes) -> bool:
    """Whether the public half of a secret key is that of its seed."""
    from nacl import bindings  # late: only signatures need it

    return bool(bindings.crypto_sign_seed_keypair(key[:32])[1] == key)


def _scrypt(what: str, ask: Callable[[], bytes], salt: bytes, opslimit: int, memlimit: int) -> bytes:
    """The key stream that a passphrase gives."""
    if not (OPSLIMITS[0] <= opslimit <= OPSLIMITS[1] and MEMLIMITS[0] <= memlimit <= MEMLIMITS[1]):
        raise errors.ConfigurationError(
            what, f"it asks scrypt for {memlimit} bytes and {opslimit} steps, minisign never does", "take another"
        )
    from nacl import bindings, exceptions  # late: only signatures need it

    log2_n, r, p = bindings.nacl_bindings_pick_scrypt_params(opslimit, memlimit)
    passphrase = ask()
    try:
        stream: bytes = bindings.crypto_pwhash_scryptsalsa208sha256_ll(
            passphrase, salt, 1 << log2_n, r, p, dklen=KEY_STREAM_BYTES, maxmem=2 * MEMLIMITS[1]
        )
    except exceptions.RuntimeError as error:
        raise errors.SystemRefusedError(
            what, f"decrypting it takes {memlimit >> 20} MiB of memory, which are not there", "free some memory"
        ) from error
    return stream


def digest_of(chunks: Iterator[bytes | memoryview]) -> bytes:
    """BLAKE2b-512, what is signed of a file."""
    digest = hashlib.blake2b()
    for chunk in chunks:
        digest.update(chunk)
    return digest.digest()


def is_signed(digest: bytes, signature: Signature, key: PublicKey) -> bool:
    """Whether the file of this digest, and the trusted comment, were signed by `key`."""
    return _verifies(signature.signature, digest, key) and _verifies(
        signature.of_comment, signature.signature + signature.comment, key
    )


def _verifies(signature: bytes, message: bytes, key: PublicKey) -> bool:
    from nacl import bindings, exceptions  # late: only signatures need it

    try:
        bindings.crypto_sign_open(signature + message, key.key)
    except exceptions.BadSignatureError:
        return False
    return True


def sign(digest: bytes, name: str, time_s: int, key: SecretKey) -> bytes:
    """The .minisig file for a digest.

    Args:
        name: the file's, without folders; for the trusted comment.
        time_s: seconds since 1970, for the trusted comment.
    """
    from nacl import bindings  # late: only signatures need it

    comment = f"timestamp:{time_s}\tfile:{paths.printable(name)}\thashed".encode()
    signature = bindings.crypto_sign(digest, key.key)[:64]
    of_comment = bindings.crypto_sign(signature + comment, key.key)[:64]
    lines = (
        UNTRUSTED + b"signature by edgeapp sign",
        base64.b64encode(b"ED" + key.number + signature),
        TRUSTED + comment,
        base64.b64encode(of_comment),
    )
    return b"".join(line + b"\n" for line in lines)


def _lines(data: bytes) -> list[bytes]:
    """Lines as minisign and a Windows editor end them; the last one's end may be missing."""
    lines = [line.removesuffix(b"\r") for line in data.split(b"\n")]
    return lines[:-1] if lines[-1] == b"" else lines


def _base64(line: bytes, length: int) -> bytes | None:
    """The `length` bytes of a line of base64 in its one canonical spelling, else None."""
    try:
        raw = base64.b64decode(line, validate=True)
    except binascii.Error:
        return None
    return raw if len(raw) == length and base64.b64encode(raw) == line else None
