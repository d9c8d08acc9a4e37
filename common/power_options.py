"""How a host's power is described: a driver's name and its options, as one string.

=============  ====================================================================================
driver         options
=============  ====================================================================================
``IPMI``       ipmitool's: ``-H HOST -U USER``, ``-P PASSWORD`` or ``-f FILE``; ``-p PORT``,
               ``-L PRIVILEGE``, ``-k KEY`` or ``-y HEXKEY``; ``-I lanplus`` and ``-C 3|17`` may
               stand (both are negotiated), and ``-N``, ``-R``, ``-v`` have no effect
``REDFISH``    ``URL -U USER``, ``-P PASSWORD`` or ``-f FILE``; ``--system ID``,
               ``--auth basic|session``, ``--ca-file FILE`` or ``--insecure``
``WOL``        wakeonlan's: one or more MAC addresses; ``-i ADDRESS`` (broadcast) or
               ``-i INTERFACE``, either or both; ``-p PORT``
``COMMAND``    ``--on "COMMAND"``, ``--off "COMMAND"``, ``--status "COMMAND"``: any of them
``kapower3``   whatever ``kapower3`` takes: ``-m NODE``
``test``       the name of a simulated machine, or nothing: the host's own
=============  ====================================================================================

Strings are split as a shell would, and no shell ever sees them. What cannot be read is refused
without being repeated: a stray word may be half a password.
"""

import getopt
import ipaddress
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from yarl import URL

from snooze.common.errors import InvalidRequest
from snooze.common.redaction import HIDDEN, redact_options
from snooze.common.secret import NO_SECRET, Secret

POWER_DRIVERS: Final = ("IPMI", "REDFISH", "WOL", "COMMAND", "kapower3", "test")
MAX_OPTIONS_CHARS: Final = 4096
MAX_MACS: Final = 8

IPMI_PORT: Final = 623
WOL_PORT: Final = 9
BROADCAST: Final = "255.255.255.255"

# Source: IPMI 2.0, table 6-1 (privilege levels); the names are ipmitool's.
PRIVILEGES: Final = {"CALLBACK": 1, "USER": 2, "OPERATOR": 3, "ADMINISTRATOR": 4}

# Source: IPMI 2.0, table 22-19: those with both integrity and encryption that are negotiated.
_CIPHER_SUITES: Final = ("3", "17")

_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,255}")
_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}([:-]?)(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}")
_INTERFACE: Final = re.compile(r"[^/\s:]{1,15}")
_SYSTEM: Final = re.compile(r"[A-Za-z0-9._~%:@-]{1,255}")


@dataclass(frozen=True, slots=True)
class IpmiOptions:
    """A BMC that speaks IPMI.

    Attributes:
        privilege: what to ask for; 0: administrator, or operator where that is refused.
        kg: its second key, if it has one.
    """

    host: str
    user: str
    password: Secret
    port: int = IPMI_PORT
    privilege: int = 0
    kg: Secret = NO_SECRET
    kg_is_hex: bool = False


@dataclass(frozen=True, slots=True)
class RedfishOptions:
    """A BMC that speaks Redfish.

    Attributes:
        url: scheme, host and port; nothing else.
        system: the id of the system in its list; empty: the only one.
        ca_file: certificates that may vouch for it; empty: the machine's own.
        verify: whether its certificate is looked at.
    """

    url: str
    user: str
    password: Secret
    system: str = ""
    auth: Literal["basic", "session"] = "basic"
    ca_file: str = ""
    verify: bool = True


@dataclass(frozen=True, slots=True)
class WolOptions:
    """A host that wakes by a magic packet.

    Attributes:
        macs: of its network cards, six bytes each.
        address: where packets are sent by UDP, usually a network's broadcast address.
        interface: the card they leave by; raw frames are sent there too, if we may.
    """

    macs: tuple[bytes, ...]
    address: str = BROADCAST
    interface: str = ""
    port: int = WOL_PORT


@dataclass(frozen=True, slots=True, repr=False)
class CommandOptions:
    """Commands as lists of words; an empty one cannot be done. May hold passwords: not shown."""

    on: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    status: tuple[str, ...] = ()

    def __repr__(self) -> str:
        shown = (f"{name}={words[0]!r}..." for name, words in self.commands() if words)
        return f"CommandOptions({', '.join(shown)})"

    def commands(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Each by its name."""
        return ("on", self.on), ("off", self.off), ("status", self.status)


@dataclass(frozen=True, slots=True)
class SimulatedOptions:
    """A simulated machine; an empty name stands for the host's own."""

    name: str = ""


PowerOptions: TypeAlias = (
    IpmiOptions | RedfishOptions | WolOptions | CommandOptions | SimulatedOptions
)


def parse_power(driver: str, options: str) -> PowerOptions:
    """What a host's description means.

    Raises:
        InvalidRequest: it cannot be meant; says why without repeating any of it.
    """
    if len(options) > MAX_OPTIONS_CHARS:
        raise InvalidRequest(f"{driver} options are longer than {MAX_OPTIONS_CHARS} characters")
    words = _split(options, f"{driver} options")
    match driver:
        case "IPMI":
            return _ipmi(words)
        case "REDFISH":
            return _redfish(words)
        case "WOL":
            return _wol(words)
        case "COMMAND":
            return _command(words)
        case "kapower3":
            return CommandOptions(on=("kapower3", *words, "--on", "--no-wait"))
        case "test":
            if len(words) > 1:
                raise InvalidRequest("test options are one name, or nothing")
            return SimulatedOptions(*words)
        case _:
            raise InvalidRequest(
                f"{driver[:40]!r} is no power driver: {', '.join(POWER_DRIVERS)} are"
            )


def shown_options(driver: str, options: str) -> str:
    """Options for people, without passwords.

    Of commands only the programs: what is a password among their words is theirs to know.
    """
    if driver != "COMMAND" or not options:
        return redact_options(options)
    try:
        meant = _command(_split(options, "they"))
    except InvalidRequest:
        return HIDDEN
    each = (f"--{name} {shlex.quote(words[0])}..." for name, words in meant.commands() if words)
    return " ".join(each)


def split_command(text: str, what: str) -> tuple[str, ...]:
    """The words of a command.

    Raises:
        InvalidRequest: there are none, or it cannot be split; says so of ``what``.
    """
    words = tuple(_split(text, what))
    if not words or not words[0]:
        raise InvalidRequest(f"{what} is empty")
    return words


def _split(text: str, what: str) -> list[str]:
    if not text.isprintable():
        raise InvalidRequest(f"{what} hold a line break or another unprintable character")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidRequest(f"{what} cannot be split into words: {error}") from None


def _options(
    driver: str, words: list[str], short: str, long: Iterable[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Options and what is left; each option once, names without their dashes."""
    try:
        pairs, rest = getopt.gnu_getopt(words, short, list(long))
    except getopt.GetoptError as error:
        known = [f"-{letter}" for letter in short if letter != ":"]
        known += [f"--{name.rstrip('=')}" for name in long]
        # an unknown one is not named: it may be a piece of a password
        lacks_value = "requires argument" in error.msg
        wrong = f"-{error.opt} lacks its value" if lacks_value else "an option is not known"
        raise InvalidRequest(f"{driver}: {wrong}; known are {' '.join(known)}") from None
    found: dict[str, str] = {}
    for dashed, value in pairs:
        name = dashed.lstrip("-")
        if name in found and name != "v":
            raise InvalidRequest(f"{driver}: {dashed} stands there twice")
        found[name] = value
    return found, rest


def _port(driver: str, text: str, default: int) -> int:
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 65535):
        raise InvalidRequest(f"{driver}: -p is no port: a number from 1 to 65535 is")
    return int(text)


def _secret(driver: str, found: dict[str, str], text_name: str, file_name: str) -> Secret:
    text, file = found.get(text_name, ""), found.get(file_name, "")
    if text and file:
        raise InvalidRequest(f"{driver}: -{text_name} and -{file_name} exclude each other")
    if file and not file.startswith("/"):
        raise InvalidRequest(f"{driver}: -{file_name} takes an absolute path")
    return Secret(text, file)


def _is_host(text: str) -> bool:
    if _HOST.fullmatch(text):
        return True
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _ipmi(words: list[str]) -> IpmiOptions:
    found, rest = _options("IPMI", words, "I:H:U:P:f:p:C:L:k:y:N:R:v")
    if rest:
        raise InvalidRequest("IPMI: there is a stray word; a password with spaces needs quotes")
    if found.get("I", "lanplus") not in ("lanplus", "lan"):
        raise InvalidRequest("IPMI: -I is lanplus or lan: a sleeping host has no other interface")
    if found.get("C", "3") not in _CIPHER_SUITES:
        raise InvalidRequest("IPMI: -C is 3 or 17; no weaker cipher is spoken")
    host = found.get("H", "")
    if not _is_host(host):
        raise InvalidRequest("IPMI: -H HOST is needed: the name or address of the BMC")
    privilege = found.get("L", "").upper()
    if privilege and privilege not in PRIVILEGES:
        raise InvalidRequest(f"IPMI: -L is one of {', '.join(PRIVILEGES)}")
    if found.get("k") and found.get("y"):
        raise InvalidRequest("IPMI: -k and -y exclude each other")
    if not re.fullmatch(r"(?:[0-9A-Fa-f]{2}){0,20}", found.get("y", "")):
        raise InvalidRequest("IPMI: -y takes up to 40 hexadecimal digits")
    return IpmiOptions(
        host=host,
        user=found.get("U", ""),
        password=_secret("IPMI", found, "P", "f"),
        port=_port("IPMI", found.get("p", ""), IPMI_PORT),
        privilege=PRIVILEGES.get(privilege, 0),
        kg=Secret(found.get("k") or found.get("y", "")),
        kg_is_hex=bool(found.get("y")),
    )


def _redfish(words: list[str]) -> RedfishOptions:
    long = ("system=", "auth=", "ca-file=", "insecure")
    found, rest = _options("REDFISH", words, "U:P:f:", long)
    if len(rest) != 1:
        raise InvalidRequest("REDFISH: one URL is needed, such as https://10.0.0.9")
    auth = found.get("auth", "basic")
    if auth not in ("basic", "session"):
        raise InvalidRequest("REDFISH: --auth is basic or session")
    system = found.get("system", "")
    if system and (not _SYSTEM.fullmatch(system) or set(system) <= {"."}):
        raise InvalidRequest("REDFISH: --system is no id of a system")
    ca_file, verify = found.get("ca-file", ""), "insecure" not in found
    if ca_file and not ca_file.startswith("/"):
        raise InvalidRequest("REDFISH: --ca-file takes an absolute path")
    if rest[0].lower().startswith("http:") and verify:
        raise InvalidRequest(
            "REDFISH: http:// shows the password to the network; --insecure says you mean it"
        )
    if ca_file and not verify:
        raise InvalidRequest("REDFISH: --ca-file and --insecure exclude each other")
    return RedfishOptions(
        url=_base_url(rest[0]),
        user=found.get("U", ""),
        password=_secret("REDFISH", found, "P", "f"),
        system=system,
        auth="session" if auth == "session" else "basic",
        ca_file=ca_file,
        verify=verify,
    )


def _base_url(text: str) -> str:
    wrong = "REDFISH: the URL is none: https://HOST or https://HOST:PORT is"
    try:
        url = URL(text)
        is_good = url.scheme in ("http", "https") and bool(url.host) and url.port is not None
    except ValueError:
        raise InvalidRequest(wrong) from None
    if not is_good:
        raise InvalidRequest(wrong)
    if url.user is not None or url.password is not None:
        raise InvalidRequest("REDFISH: no user or password in the URL; -U, -P and -f take them")
    if url.path.rstrip("/") not in ("", "/redfish", "/redfish/v1") or url.query or url.fragment:
        raise InvalidRequest("REDFISH: the URL is that of the BMC, without a path; see --system")
    return str(url.origin())


def _wol(words: list[str]) -> WolOptions:
    address, interface, port = "", "", ""
    try:
        pairs, rest = getopt.gnu_getopt(words, "i:p:")
    except getopt.GetoptError:
        raise InvalidRequest("WOL: an option is not known or lacks its value; -i, -p are") from None
    for name, value in pairs:
        if name == "-p":
            port = value
            continue
        try:
            address = str(ipaddress.IPv4Address(value))
        except ValueError:
            interface = value
    if interface and not _INTERFACE.fullmatch(interface):
        raise InvalidRequest("WOL: -i is neither an IPv4 address nor a network interface")
    if not rest or len(rest) > MAX_MACS or not all(_MAC.fullmatch(word) for word in rest):
        raise InvalidRequest(
            f"WOL: 1 to {MAX_MACS} MAC addresses are needed, such as 52:54:00:12:34:56"
        )
    macs = (bytes.fromhex(word.replace(":", "").replace("-", "")) for word in rest)
    return WolOptions(
        macs=tuple(dict.fromkeys(macs)),
        address=address or BROADCAST,
        interface=interface,
        port=_port("WOL", port, WOL_PORT),
    )


def _command(words: list[str]) -> CommandOptions:
    found, rest = _options("COMMAND", words, "", ("on=", "off=", "status="))
    if rest:
        raise InvalidRequest('COMMAND: there is a stray word; write --on "a whole command"')
    if not found:
        raise InvalidRequest('COMMAND: at least one of --on, --off, --status "COMMAND" is needed')
    return CommandOptions(
        **{name: split_command(text, f"COMMAND: --{name}") for name, text in found.items()}
    )
