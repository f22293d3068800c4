"""Where the service listens: IP addresses with a port, Unix sockets."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass

from edgeapp import errors, paths

BACKLOG = 128
MOST_UNIX_PATH_BYTES = 107
SOCKET_MODE = 0o660


@dataclass(frozen=True)
class Address:
    """Where to listen: an IP address with a port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return paths.printable(self.path)
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return bool(self.path) or ipaddress.ip_address(self.host).is_loopback


def parse_address(text: str) -> Address:
    """PORT (on loopback), HOST:PORT, [IPv6]:PORT, or a path with a slash in it, unix:PATH too.

    A host is an IP address, localhost, or nothing for all addresses; names would need a name server.

    Raises:
        UsageError: it is none of these.
    """
    if text.startswith("unix:") or "/" in text:
        path = text.removeprefix("unix:")
        if not path or "\0" in path or len(os.fsencode(path)) > MOST_UNIX_PATH_BYTES:
            raise errors.UsageError(
                f"cannot listen on {paths.printable(text)}",
                f"the path of a Unix socket has 1 to {MOST_UNIX_PATH_BYTES} bytes",
                "use a shorter path: /run/edgeapp/http.sock",
            )
        return Address(path=path)
    host, colon, port = text.rpartition(":")
    host = "127.0.0.1" if not colon or host == "localhost" else host or "0.0.0.0"
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        ipaddress.ip_address(host)
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 1 << 16):
            raise ValueError
    except ValueError:
        raise errors.UsageError(
            f"cannot listen on {paths.printable(text)}",
            "IP-ADDRESS:PORT or the path of a Unix socket is wanted",
            "127.0.0.1:9100, [::1]:9100 or /run/edgeapp/http.sock",
        ) from None
    return Address(host, int(port))


def listener_at(address: Address) -> socket.socket:
    """A socket that listens there and never blocks; a Unix socket is for its user and group.

    Raises:
        EdgeappError: the address is in use, not permitted, or not of this machine.
    """
    return _listen_unix(address.path) if address.path else _listen_inet(address)


def _listen_inet(address: Address) -> socket.socket:
    listener = None
    try:
        listener = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise _refused_address(address, error) from error
    return listener


def _listen_unix(path: str) -> socket.socket:
    address = Address(path=path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(path)
        os.fchmod(listener.fileno(), SOCKET_MODE)  # before bind(): at no time it is open to more than these
        listener.bind(path)
        os.chmod(path, SOCKET_MODE)  # whatever the umask is
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _refused_address(address, error) from error
    except errors.EdgeappError:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    """Remove the socket of a process that is gone; raise OSError when it is somebody's, or no socket."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file of this name, which is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _refused_address(address: Address, error: OSError) -> errors.EdgeappError:
    what = f"cannot listen on {address}"
    if error.errno == errno.EADDRINUSE:
        return errors.SystemRefusedError(
            what, "another process listens there", "end it (ss -lxtp names it), or choose another port or path"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return errors.SystemRefusedError(what, "this machine does not have that address (yet)", "ip address lists them")
    if error.errno == errno.EAFNOSUPPORT:
        return errors.ConfigurationError(
            what, "no sockets of this kind are allowed here",
            f"edgeapp service install --http {address} writes a unit file that allows them; IPv6 may be switched off",
        )  # fmt: skip
    if isinstance(error, PermissionError) and not address.path:
        return errors.NotPermittedError(what, "ports below 1024 are root's", "choose a port from 1024 on")
    return paths.refusal(what, error, writing=True)
