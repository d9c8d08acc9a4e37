"""Who this daemon is and where it is reached: its id, its host's name and its address."""

import errno
import fcntl
import os
import re
import socket
import struct
import tempfile
import uuid
from pathlib import Path

from snooze.common.config import Settings
from snooze.common.errors import Problem, SettingsError
from snooze.common.settings import NetworkSettings, NodeSettings

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\n?")
_SIOCGIFADDR = 0x8915
_VIRTUAL = ("lo", "virbr", "vnet", "docker", "veth", "tap")


def node_identity(settings: Settings) -> str:
    """The daemon's id: ``node.id``, or a UUID kept in ``ROLE.id`` in ``node.state_directory``.

    The UUID is made once. It is on disk before it is returned, and of several daemons that start at
    the same time on an empty directory all get the same one. The directory is made with mode 0700,
    the file with 0600.

    Raises:
        SettingsError: if the directory cannot be used, or the file is damaged. A damaged file is
            never replaced: to the cluster, a new id is another daemon.
    """
    if settings.node.id:
        return settings.node.id
    directory = Path(settings.node.state_directory)
    path = directory / f"{settings.role}.id"
    try:
        kept = _read_id(path)
        if kept is None:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _create_durably(path, f"{uuid.uuid4()}\n")
            kept = _read_id(path)
    except OSError as error:
        raise _state_error(f"{error.filename or path}: {error.strerror or error}") from error
    if kept is None:
        raise _state_error(f"{path} vanished while it was read")
    return kept


def _read_id(path: Path) -> str | None:
    """The id in the file, or None if there is no file."""
    try:
        with path.open("rb") as file:
            content = file.read(256)
    except FileNotFoundError:
        return None
    text = content.decode("ascii", "replace")
    if not _ID.fullmatch(text):
        raise _state_error(
            f"{path} is damaged: it should hold a UUID. Restore it; or delete it, and the cluster "
            "will take this daemon for a new one"
        )
    return text.strip()


def _create_durably(path: Path, content: str) -> None:
    """Create a file that is whole and on disk as soon as it exists; one already there is kept."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        try:
            # Not a rename: a daemon that starts at the same time may have been first.
            os.link(file.name, path)
        except FileExistsError:
            return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _state_error(message: str) -> SettingsError:
    problem = Problem("node.state_directory", message, "unusable")
    return SettingsError(f"node.state_directory: {message}", problems=[problem])


def node_hostname(settings: NodeSettings) -> str:
    """The host name shown to people."""
    return settings.hostname or socket.gethostname()


def advertised_address(settings: NetworkSettings) -> str:
    """The address the rest of the cluster is told; no packet is sent to find it.

    The one configured; else the one listened on; else the one that the default route uses; else
    the first of an interface that is not loopback nor a bridge for guests; else 127.0.0.1.
    """
    if settings.advertised_address:
        return settings.advertised_address
    if settings.listen_address not in ("0.0.0.0", "::"):
        return settings.listen_address
    return _routed_address() or _first_interface_address() or "127.0.0.1"


def _routed_address() -> str | None:
    """The address that the default route sends from; connecting a UDP socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation, RFC 5737
        except OSError:
            return None
        address: str = probe.getsockname()[0]
    return None if address.startswith("127.") or address == "0.0.0.0" else address


def _first_interface_address() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            if name.startswith(_VIRTUAL):
                continue
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError as error:
                if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV):
                    continue
                raise
            address = socket.inet_ntoa(answer[20:24])
            if not address.startswith("127."):
                return address
    return None
