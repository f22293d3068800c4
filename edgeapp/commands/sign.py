"""`edgeapp sign`: FILE.minisig beside each file, for --require-signature and for `minisign -V`.

Making and keeping keys is left to minisign (`minisign -G`): they belong on the machine of whoever makes the models.
"""

from __future__ import annotations

import os
import termios
import time
from collections.abc import Iterator, Sequence

from edgeapp import errors, minisign, paths
from edgeapp.log import Talk
from edgeapp.stopping import Stop

LONGEST_PASSPHRASE_BYTES = 1024
"""As for minisign."""


def sign(key_file: str, files: Sequence[str], passphrase_file: str, stop: Stop, talk: Talk) -> int:
    """Sign the files, one after the other; 0.

    Args:
        key_file: a secret key of minisign, encrypted or not.
        passphrase_file: its first line opens the key; "" to ask on the terminal.

    Raises:
        ConfigurationError: the key or the passphrase is wrong.
        NotFoundError, NotPermittedError, InputOutputError: something cannot be read.
        CannotWriteError: a signature cannot be written; those of earlier files are.
    """
    from edgeapp.sinks.writing import whole_file

    def ask() -> bytes:
        return _from_file(passphrase_file) if passphrase_file else _from_terminal(key_file, stop)

    key = minisign.parse_secret_key(minisign.read_file(key_file, minisign.MOST_KEY_BYTES), key_file, ask)
    for path in files:
        digest = minisign.digest_of(_chunks(path, stop))
        text = minisign.sign(digest, os.path.basename(path), int(time.time()), key)
        with whole_file(path + minisign.SUFFIX) as out:
            out.write(text)
        talk.note(f"edgeapp: wrote {paths.printable(path)}{minisign.SUFFIX}, by key {minisign.key_id(key.number)}")
    return 0


def _chunks(path: str, stop: Stop) -> Iterator[bytes]:
    """The bytes of a regular file."""
    what = f"cannot sign {paths.printable(path)}"
    if not os.path.isfile(path) and os.path.exists(path):
        raise errors.DataError(what, "it is no regular file", "name a file")
    try:
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(minisign.CHUNK_BYTES):
                yield chunk
                stop.check()
    except OSError as error:
        raise paths.refusal(what, error) from error


def _first_line(text: bytes) -> bytes:
    return text.split(b"\n")[0].removesuffix(b"\r")


def _from_file(path: str) -> bytes:
    return _first_line(minisign.read_file(path, LONGEST_PASSPHRASE_BYTES + 1, pipes=True))


def _from_terminal(key_file: str, stop: Stop) -> bytes:
    """What a person types, unseen; a signal ends the waiting (getpass would go on)."""
    try:
        terminal = open("/dev/tty", "r+b", buffering=0)  # noqa: SIM115 (closed below)
    except OSError as error:
        raise errors.ConfigurationError(
            f"cannot open the key {paths.printable(key_file)}",
            "it is encrypted, and there is no terminal to ask for its passphrase",
            "give --passphrase-file FILE",
        ) from error
    with terminal:
        shown = termios.tcgetattr(terminal)
        hidden = [*shown[:3], shown[3] & ~termios.ECHO, *shown[4:]]
        try:
            termios.tcsetattr(terminal, termios.TCSAFLUSH, hidden)
            terminal.write(f"passphrase of {paths.printable(key_file)}: ".encode())
            stop.wait_readable(terminal)
            return _first_line(terminal.readline())
        finally:
            termios.tcsetattr(terminal, termios.TCSAFLUSH, shown)
            terminal.write(b"\n")
