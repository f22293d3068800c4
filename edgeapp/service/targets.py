"""Where results are sent to: what a URL says, who may be trusted there, and how to log in."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from edgeapp import errors, paths

if TYPE_CHECKING:
    from ssl import SSLContext

PORTS = {"http": 80, "https": 443, "mqtt": 1883, "mqtts": 8883}
SECURE = ("https", "mqtts")

MOST_SECRET_BYTES = 64 << 10
MOST_PREFIX_BYTES = 1024

WELL_KNOWN_AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Jetson Linux, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",
)
"""OpenSSL's own default is a place of the machine that it was built on, not of this one."""

HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
OWN_HEADERS = ("connection", "content-length", "content-type", "host", "idempotency-key", "transfer-encoding")


@dataclass(frozen=True)
class Target:
    """Where to connect to.

    Attributes:
        scheme: a key of PORTS.
        path: what is asked for, with the query, or the prefix of the topics; it may hold a secret.
    """

    scheme: str
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        """Without what may be a secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + (f":{self.port}" if self.port != PORTS[self.scheme] else "")

    @property
    def secure(self) -> bool:
        return self.scheme in SECURE


def parse_webhook(url: str) -> Target:
    """http://HOST[:PORT]/PATH, or https://.

    Raises:
        UsageError: it is neither.
    """
    scheme, host, port, path, query = _split(url, "--webhook", ("http", "https"), "--webhook-headers")
    return Target(scheme, host, port, (path or "/") + (f"?{query}" if query else ""))


def parse_mqtt(url: str) -> Target:
    """mqtt://HOST[:PORT][/PREFIX], or mqtts://; the prefix of the topics is edgeapp/HOSTNAME by default.

    Raises:
        UsageError: it is neither.
    """
    scheme, host, port, path, query = _split(url, "--mqtt", ("mqtt", "mqtts"), "--mqtt-login")
    prefix = unquote(path).strip("/") or f"edgeapp/{socket.gethostname()}"
    wrong = re.search(r"[+#\x00-\x1f\x7f\ufffd]|//|^\$", prefix)
    if query or wrong or len(prefix.encode()) > MOST_PREFIX_BYTES:
        raise errors.UsageError(
            "--mqtt: the prefix of the topics is wrong",
            f"it has words between slashes, without + # ? and not beginning with $, {MOST_PREFIX_BYTES} bytes at most",
            "--mqtt mqtt://broker.local/factory/line-3",
        )
    return Target(scheme, host, port, prefix)


def _split(url: str, flag: str, schemes: tuple[str, ...], login: str) -> tuple[str, str, int, str, str]:
    """Scheme, host, port, path, query; what is said of a wrong one shows no more than its beginning."""
    example = {"--webhook": "http://10.0.0.5:8080/results", "--mqtt": "mqtt://10.0.0.5/factory/line-3"}[flag]
    try:
        if not re.fullmatch(r"[!-~]+", url):
            raise ValueError("it has characters that a URL must write as %NN, or none at all")
        parts = urlsplit(url)
        if parts.scheme not in schemes:
            raise ValueError(f"it begins with {':// or '.join(schemes)}://")
        if "@" in parts.netloc:
            raise errors.UsageError(
                f"{flag}: there is a user in the URL",
                "everybody on the machine can read it in the list of processes",
                f"write it into a file: {login} FILE",
            )
        port = parts.port
        if port == 0 or parts.netloc.endswith(":"):
            raise ValueError("a port is 1 to 65535")
        if not parts.hostname:
            raise ValueError("it names no host")
        if "#" in url:
            raise ValueError("it has a #")
    except ValueError as error:
        raise errors.UsageError(f"{flag}: this is no URL to send to", str(error), f"{flag} {example}") from error
    return parts.scheme, parts.hostname, port or PORTS[parts.scheme], parts.path, parts.query


# --- TLS -------------------------------------------------------------------------------------------------------------


def tls_context(ca_file: str | None) -> SSLContext:
    """What verifies a server: its name, and that an authority signed it.

    Args:
        ca_file: PEM; these authorities alone. By default those of this machine: SSL_CERT_FILE and SSL_CERT_DIR, then
            the places where systems keep them.

    Raises:
        ConfigurationError: this program has no TLS, OpenSSL cannot do it, or there are no authorities.
        EdgeappError: the file cannot be read.
    """
    try:
        import ssl
    except ImportError as error:
        raise errors.ConfigurationError(
            "cannot send over https:// or mqtts://",
            "this edgeapp was frozen without TLS",
            "use http:// or mqtt:// inside a network that you trust, or a proxy on this machine that adds TLS",
        ) from error
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    except ssl.SSLError as error:
        raise errors.ConfigurationError(
            "cannot send over https:// or mqtts://",
            f"with the settings of this machine OpenSSL says {error.reason or error}",
            "look into openssl.cnf (in /etc/ssl), or name another: OPENSSL_CONF=FILE",
        ) from error
    for file in (ca_file,) if ca_file else _authorities():
        try:
            context.load_verify_locations(file)
        except ssl.SSLError as error:
            raise errors.ConfigurationError(
                f"cannot use the certificates in {paths.printable(file)}", error.reason or str(error),
                "a file of authorities in PEM is wanted: -----BEGIN CERTIFICATE-----",
            ) from error  # fmt: skip
        except OSError as error:
            raise paths.refusal(f"cannot read {paths.printable(file)}", error) from error
        return context
    folder = os.environ.get("SSL_CERT_DIR") or ssl.get_default_verify_paths().capath
    if not folder or not os.path.isdir(folder):
        raise errors.ConfigurationError(
            "cannot send over https:// or mqtts://",
            "there are no certificate authorities on this machine",
            "apt-get install ca-certificates, or name a file of them: --ca-file FILE",
        )
    context.load_verify_locations(capath=folder)
    return context


def _authorities() -> Iterator[str]:
    """Files that exist, the one that is asked for first."""
    if named := os.environ.get("SSL_CERT_FILE"):
        yield named
    elif not os.environ.get("SSL_CERT_DIR"):
        yield from filter(os.path.isfile, WELL_KNOWN_AUTHORITIES)


# --- secrets ---------------------------------------------------------------------------------------------------------


def read_headers(file: str) -> dict[str, str]:
    """HTTP headers, a line each: NAME: VALUE; empty lines and those that begin with # say nothing.

    Raises:
        ConfigurationError: a line is no header, or one that is made here.
        EdgeappError: the file cannot be read.
    """
    headers = {}
    for number, line in enumerate(_lines(file), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        good = colon and HEADER_NAME.fullmatch(name) and re.fullmatch(r"[\t -~]+", value.strip())
        if not good or name.lower() in OWN_HEADERS:
            raise errors.ConfigurationError(
                f"cannot use line {number} of {paths.printable(file)}",
                f"{name} is made for each request" if good else "it is no header",
                "Authorization: Bearer ...",
            )
        headers[name] = value.strip()
    return headers


def read_login(file: str) -> tuple[str, str]:
    """User and password: USER:PASSWORD, the first line.

    Raises:
        ConfigurationError: there is none.
        EdgeappError: the file cannot be read.
    """
    user, colon, password = next(iter(_lines(file)), "").partition(":")
    if not colon or not user or "\0" in user + password:
        raise errors.ConfigurationError(
            f"cannot use {paths.printable(file)}", "its first line is not USER:PASSWORD", "write it so"
        )
    return user, password


def _lines(file: str) -> list[str]:
    try:
        with open(file, "rb") as opened:
            data = opened.read(MOST_SECRET_BYTES + 1)
        if len(data) > MOST_SECRET_BYTES:
            raise errors.ConfigurationError(
                f"cannot use {paths.printable(file)}", f"it is larger than {MOST_SECRET_BYTES >> 10} KB"
            )
        return data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise errors.ConfigurationError(f"cannot use {paths.printable(file)}", "it is not UTF-8") from error
    except OSError as error:
        raise paths.refusal(f"cannot read {paths.printable(file)}", error) from error
