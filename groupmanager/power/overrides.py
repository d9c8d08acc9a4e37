"""The operator's file of drivers and options that go before what hosts tell of themselves.

::

    [hosts."*"]                      # any host that has no table of its own
    driver = "IPMI"
    options = "-H {hostname}-bmc -U snooze -f /etc/snooze/bmc-password"

    [hosts.node-7]                   # by name, or by id
    driver = "REDFISH"
    options = "https://10.0.0.7 -U snooze -f /etc/snooze/bmc-password-7"

It lies on every group manager that may lead. It is read again when it changes; one that cannot be
read then is complained about, and the one before holds.
"""

import logging
import os
import re
import tomllib
from typing import Final, Literal

import msgspec

from snooze.common.errors import InvalidRequest, PreconditionError, SettingsError
from snooze.common.power_options import parse_power
from snooze.common.secret import read_private_file
from snooze.common.wire import PowerDescription

logger = logging.getLogger(__name__)

MAX_FILE_BYTES: Final = 4 * 1024 * 1024

_ANY: Final = "*"
_HOSTNAME: Final = "{hostname}"
_PLAIN: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")


class _Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    driver: Literal["IPMI", "REDFISH", "WOL", "COMMAND", "kapower3", "test"]
    options: str


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    hosts: dict[str, _Host] = {}


class PowerOverrides:
    """The file, as it is now."""

    def __init__(self, path: str) -> None:
        """Read it.

        Raises:
            SettingsError: it cannot be read, or is wrong.
        """
        self._path = path
        self._stamp = self._look()
        self._hosts = self._read()

    def of(self, host_id: str, hostname: str, told: PowerDescription) -> PowerDescription:
        """How this host is reached: by the file, else as it told."""
        self._refresh()
        for name in (host_id, hostname, _ANY):
            found = self._hosts.get(name)
            if found is None:
                continue
            options = found.options
            if _HOSTNAME in options:
                # a host names itself: its name must stay one word, and no option
                if not _PLAIN.fullmatch(hostname):
                    continue
                options = options.replace(_HOSTNAME, hostname)
            return msgspec.structs.replace(told, driver=found.driver, options=options)
        return told

    def version(self) -> object:
        """Something else whenever the file is another one."""
        self._refresh()
        return self._stamp

    def _refresh(self) -> None:
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._hosts = self._read()
        except SettingsError as error:
            logger.error("%s; what it said before holds", error.message)

    def _look(self) -> tuple[int, int]:
        try:
            about = os.stat(self._path)
        except OSError:
            return 0, 0
        return about.st_mtime_ns, about.st_ino

    def _read(self) -> dict[str, _Host]:
        try:
            text = read_private_file(self._path, MAX_FILE_BYTES).decode()
            hosts = msgspec.convert(tomllib.loads(text), _File).hosts
        except PreconditionError as error:
            raise SettingsError(f"power.overrides_file: {error.message}") from None
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"power.overrides_file {self._path}: {_where(error)}") from None
        for name, host in hosts.items():
            try:
                parse_power(host.driver, host.options.replace(_HOSTNAME, "host"))
            except InvalidRequest as error:
                raise SettingsError(f"power.overrides_file, {name}: {error.message}") from None
        return hosts


def _where(error: Exception) -> str:
    """What is wrong; a syntax error is told by its place alone, its text may be a password."""
    if isinstance(error, msgspec.ValidationError):
        return str(error)
    place = re.search(r"\(at [^()]*\)", str(error))
    return f"is no TOML {place[0] if place else ''}".rstrip()
