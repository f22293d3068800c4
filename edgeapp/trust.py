"""Whether an engine file is one that this machine trusts: signatures, keys and digests.

Deserialising a plan can run native code out of it: a plan may carry plugin libraries, which TensorRT loads even while
host code is denied. So what is known of a file is checked before TensorRT or ONNX Runtime is loaded, and the bytes
that were checked are the ones that are run: read once, into memory; the file may change afterwards.

Who is trusted:
    A key is trusted because the operator said so: --trust-key, or root put it into /etc/edgeapp/keys.d. Nothing that
    travels with a model adds trust. A model card can be changed by whoever can change the model, so its keys only
    narrow: `trust_key` names the key that must have signed (it has to be trusted here all the same, and a signature is
    demanded), `sha256` the one file that the card is for. A card without them takes nothing away from the flags.
    There is no way to leave out the keys that are installed, only ways to add some.

When:
    FILE.minisig beside an engine is always verified when a key is trusted, and a wrong one is always refused. Without
    --require-signature a missing one is let pass, so whoever can delete files can avoid the check: give it, or
    --engine-sha256, where that matters.

What a signature does not say:
    that the file is the newest, or meant for this place: an older model, or another one, of the same maker passes. The
    name that it was signed under is said when it differs; --engine-sha256 names exactly one file.
    For an ONNX model, what other files it names: weights outside of a checked file are refused.
    Of plugins (--plugin) only the SHA-256 is said: naming them is trusting them.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeapp import errors, minisign, paths
from edgeapp.minisign import PublicKey

KEYS_FOLDER = "/etc/edgeapp/keys.d"
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Demands:
    """What an engine file has to be.

    Attributes:
        keys: the trusted ones; empty: nobody's signature counts.
        required: without a signature it is refused.
        digests: (who says so, SHA-256 in lower-case hex): all of them must be right.
        asked: the user named a key for this run, and wants to hear when it was of no use.
    """

    keys: tuple[PublicKey, ...] = ()
    required: bool = False
    digests: tuple[tuple[str, str], ...] = ()
    asked: bool = False


def demands(*, keys: Sequence[str], required: bool, sha256: str | None, card: Mapping[str, Any]) -> Demands:
    """What the flags, the installed keys and the model card ask for together.

    Args:
        keys: each a .pub file, or a public key in base64.
        required: whether a missing signature is refused.
        sha256: hex digits, None for any file.
        card: the model card's keys; `trust_key` and `sha256` are looked at.

    Raises:
        ConfigurationError: a key or a digest is none, or the card's key is not trusted.
        NotFoundError, NotPermittedError, InputOutputError: a key cannot be read.
    """
    trusted = (*map(_key, keys), *installed_keys(KEYS_FOLDER))
    digests = []
    for origin, text in (("--engine-sha256", sha256), ("the model card", card.get("sha256"))):
        if text is not None:
            digests.append((origin, _sha256(origin, text)))
    if "trust_key" in card:
        wanted = minisign.parse_public_key(str(card["trust_key"]).encode(), "trust_key of the model card")
        trusted = tuple(key for key in trusted if key.same(wanted))
        required = True
        if not trusted:
            raise errors.ConfigurationError(
                f"the model card wants a signature by key {wanted}, which is not trusted here",
                "a card can be changed by whoever can change the model, so it cannot make its own key trusted",
                f"if you know whose it is: --trust-key {card['trust_key']}",
            )
    return Demands(trusted, required, tuple(digests), bool(keys))


def _key(text: str) -> PublicKey:
    """The key that --trust-key names; a file of such a name is meant by ./NAME."""
    if minisign.KEY_TEXT.fullmatch(text):
        return minisign.parse_public_key(text.encode(), text)
    return minisign.parse_public_key(minisign.read_file(text, minisign.MOST_KEY_BYTES), text)


def installed_keys(folder: str) -> tuple[PublicKey, ...]:
    """The keys in *.pub of a folder; none if there is no such folder.

    Raises:
        ConfigurationError: a file holds no key, or anybody could have put it there.
        NotPermittedError, InputOutputError: the folder or a file cannot be read.
    """
    try:
        names = sorted(os.listdir(folder))
        for path in (folder, *(os.path.join(folder, name) for name in names if name.endswith(".pub"))):
            if os.stat(path).st_mode & stat.S_IWOTH:
                raise errors.ConfigurationError(
                    f"cannot trust the keys in {folder}",
                    f"anybody may write {paths.printable(path)}",
                    f"chmod o-w {paths.printable(path)}",
                )
    except FileNotFoundError:
        if os.path.lexists(folder):  # a file went away, or a link leads nowhere
            raise errors.ConfigurationError(f"cannot read {folder}", "a file in it is gone", "look there") from None
        return ()
    except OSError as error:
        raise paths.refusal(f"cannot read {folder}", error) from error
    files = (os.path.join(folder, name) for name in names if name.endswith(".pub"))
    return tuple(minisign.parse_public_key(minisign.read_file(f, minisign.MOST_KEY_BYTES), f) for f in files)


def _sha256(origin: str, text: str) -> str:
    digest = text.lower()
    if not SHA256.fullmatch(digest):
        raise errors.ConfigurationError(
            f"the SHA-256 of {origin} is none: {paths.printable(text[:80])}",
            f"it has {len(text)} characters; 64 hexadecimal digits are wanted",
            "sha256sum FILE prints it",
        )
    return digest


def check(path: str, wanted: Demands, say: Callable[[str], None], check_stop: Callable[[], None]) -> bytes | None:
    """Compare an engine file with what is demanded of it.

    Args:
        path: the engine file.
        say: takes what a person should know.
        check_stop: called now and then; raises when a signal came.

    Returns:
        the file's bytes, which are to be run and no others; None when nothing was there to check.

    Raises:
        ConfigurationError: it is not the file that it has to be, or not signed by whom it has to be.
        NotPermittedError, InputOutputError: it or its signature cannot be read.
    """
    name = paths.printable(path)
    signature = _signature(path)
    if wanted.required and not wanted.keys:
        raise errors.ConfigurationError(
            f"cannot verify {name}: a signature is required, and no key is trusted",
            f"no key was given, and there is none in {KEYS_FOLDER}",
            "name the public key of whoever signs the models: --trust-key FILE.pub",
        )
    if wanted.required and signature is None:
        raise errors.ConfigurationError(
            f"cannot run {name}: it is not signed, and a signature is required",
            f"there is no {name}{minisign.SUFFIX}",
            f"copy it too, or make it: edgeapp sign --key FILE.key {name}",
        )
    if signature is None and wanted.asked:
        say(f"edgeapp: {name} is not signed; --require-signature would refuse it")
    if signature is not None and not wanted.keys:
        say(f"edgeapp: {name}{minisign.SUFFIX} is not verified: no key is trusted (--trust-key)")
        signature = None
    if signature is None and not wanted.digests:
        return None
    data = minisign.read_file(path)
    for origin, digest in wanted.digests:
        _compare(name, data, origin, digest, check_stop)
    if signature is not None:
        key = _verify(name, data, signature, wanted.keys, check_stop)
        say(f"edgeapp: {name} is signed by key {key} ({paths.printable(key.origin)}){_other_name(path, signature)}")
    return data


def _signature(path: str) -> minisign.Signature | None:
    """The signature beside a file, None without one."""
    beside = path + minisign.SUFFIX
    if not os.path.lexists(beside):
        return None
    return minisign.parse_signature(minisign.read_file(beside, minisign.MOST_SIGNATURE_BYTES), beside)


def _chunks(data: bytes, check_stop: Callable[[], None]) -> Iterator[memoryview]:
    """Pieces of some milliseconds each, so that a signal does not wait for gigabytes."""
    view = memoryview(data)
    for start in range(0, len(data), minisign.CHUNK_BYTES):
        check_stop()
        yield view[start : start + minisign.CHUNK_BYTES]


def _compare(name: str, data: bytes, origin: str, wanted: str, check_stop: Callable[[], None]) -> None:
    digest = hashlib.sha256()
    for chunk in _chunks(data, check_stop):
        digest.update(chunk)
    if digest.hexdigest() != wanted:
        raise errors.ConfigurationError(
            f"cannot run {name}: it is not the file that {origin} wants",
            f"its SHA-256 is {digest.hexdigest()}, wanted is {wanted}",
            "copy the right one, or correct the SHA-256 if the file was renewed on purpose",
        )


def _verify(
    name: str, data: bytes, signature: minisign.Signature, keys: Sequence[PublicKey], check_stop: Callable[[], None]
) -> PublicKey:
    """The trusted key that signed."""
    of_number = [key for key in keys if key.number == signature.number]
    if not of_number:
        raise errors.ConfigurationError(
            f"cannot run {name}: it is signed by key {minisign.key_id(signature.number)}, which is not trusted here",
            f"trusted is {', '.join(map(str, keys))}",
            f"if you know whose it is: --trust-key, or put its .pub into {KEYS_FOLDER}",
        )
    digest = minisign.digest_of(_chunks(data, check_stop))
    for key in of_number:
        if minisign.is_signed(digest, signature, key):
            return key
    raise errors.ConfigurationError(
        f"cannot run {name}: its signature by key {of_number[0]} is wrong",
        "the file, the signature or its trusted comment was changed after signing, or they are of two different files",
        "copy both again from where they were signed; do not run the file if that does not help",
    )


def _other_name(path: str, signature: minisign.Signature) -> str:
    """What to say where the file was signed under another name than it has now."""
    found = re.search(rb"(?:^|\t)file:([^\t]*)", signature.comment)
    there = paths.printable(found[1].decode("utf-8", "backslashreplace")) if found else ""
    return f"; it was signed as {there}" if there and there != paths.printable(Path(path).name) else ""


def plugin_sha256(path: str) -> str:
    """The SHA-256 of a plugin library.

    Raises:
        NotFoundError, NotPermittedError, InputOutputError: it cannot be read. DataError: it is no library.
    """
    data = minisign.read_file(path)
    if not data.startswith(b"\x7fELF"):
        raise errors.DataError(
            f"cannot use the plugin {paths.printable(path)}",
            "it is no shared library (ELF)",
            "name the .so that holds it",
        )
    return hashlib.sha256(data).hexdigest()
