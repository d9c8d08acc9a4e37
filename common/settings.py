"""Settings that all daemons have, and those of a bootstrap node.

Every key stands here once, with its unit, bounds, default and meaning. The text beside a field is
the only place that explains it: the commented files in ``configs/`` and ``docs/settings.md`` are
written from it (see ``config_text``).
"""

import ipaddress
from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta

from snooze.common.addresses import parse_host_port
from snooze.common.settings_schema import Complaint, Doc, Section

Role = Literal["bootstrap", "groupmanager", "localcontroller"]


def _is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def bad_host_ports(key: str, values: tuple[str, ...]) -> Iterator[Complaint]:
    """One complaint for each element that is no ``host:port``, and for each repetition."""
    for index, value in enumerate(values):
        try:
            parse_host_port(value)
        except ValueError as error:
            yield Complaint(f"{key}[{index}]", str(error))
        if value in values[:index]:
            yield Complaint(f"{key}[{index}]", f'"{value}" is listed twice')


class NodeSettings(Section, frozen=True, kw_only=True):
    """Who this daemon is."""

    id: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9._:-]{0,128}\Z"),
        Doc(
            "The daemon's name in the cluster, the same after every restart. Empty: a UUID is made "
            "at the first start and kept in state_directory.",
            form="letters, digits and . _ : - (at most 128)",
        ),
    ] = ""
    hostname: Annotated[
        str,
        Meta(max_length=253),
        Doc("The host name shown to people. Empty: what the system says."),
    ] = ""
    state_directory: Annotated[
        str,
        Meta(pattern=r"^/"),
        Doc(
            "Where the daemon keeps the little it must remember itself (its id). Made with mode "
            "0700 if missing.",
            form="an absolute path",
        ),
    ] = "/var/lib/snooze"


class NetworkSettings(Section, frozen=True, kw_only=True):
    """Where this daemon listens and how others reach it."""

    listen_address: Annotated[
        str,
        Doc("The IP address to listen on; 0.0.0.0 is every IPv4 address of the host."),
    ] = "0.0.0.0"
    advertised_address: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9._:-]{0,253}\Z"),
        Doc(
            "The address told to the rest of the cluster. Empty: listen_address if that is one "
            "address, else the first of the host that is not loopback, else 127.0.0.1.",
            form="an IP address or a host name",
        ),
    ] = ""
    control_port: Annotated[
        int,
        Meta(ge=0, le=65535),
        Doc("TCP port of the HTTP calls; 0 takes any free one."),
    ] = 5000

    def complaints(self) -> Iterator[Complaint]:
        """The addresses must be addresses."""
        if not _is_ip_address(self.listen_address):
            yield Complaint("listen_address", f'"{self.listen_address}" is no IP address')
        if self.advertised_address in ("0.0.0.0", "::"):
            yield Complaint(
                "advertised_address",
                f"nobody can reach {self.advertised_address!r}; name one address of this host",
            )


class HttpSettings(Section, frozen=True, kw_only=True):
    """Bounds of the HTTP server."""

    max_body_bytes: Annotated[
        int,
        Meta(ge=1024, le=1 << 30),
        Doc("A larger request body is refused (413) before it is read."),
    ] = 16 * 1024 * 1024
    request_timeout_s: Annotated[
        float,
        Meta(gt=0, le=3600),
        Doc(
            "A request must have arrived after this; a large body gets more while it keeps coming."
        ),
    ] = 20.0
    max_connections: Annotated[
        int,
        Meta(ge=1, le=100_000),
        Doc("Connections beyond this number are refused."),
    ] = 2048


class CoordinationSettings(Section, frozen=True, kw_only=True):
    """The service that elects the leader and keeps the record."""

    driver: Annotated[
        Literal["zookeeper", "memory"],
        Doc("memory lives and dies with one process: for the all-in-one cluster and tests."),
    ] = "zookeeper"
    hosts: Annotated[
        tuple[str, ...],
        Meta(min_length=1, max_length=64),
        Doc("The ZooKeeper servers, each host:port."),
    ] = ("127.0.0.1:2181",)
    session_timeout_s: Annotated[
        float,
        Meta(ge=0.5, le=300),
        Doc(
            "A daemon that ZooKeeper has not heard of for this long has left; so long a dead "
            "leader goes unnoticed. ZooKeeper grants 2 to 20 of its ticks."
        ),
    ] = 4.0
    operation_timeout_s: Annotated[
        float,
        Meta(gt=0, le=300),
        Doc("How long one read or write may take before it counts as failed."),
    ] = 5.0
    root: Annotated[
        str,
        Meta(pattern=r"^(/[A-Za-z0-9._-]+)+\Z", max_length=256),
        Doc(
            "The ZooKeeper path everything lies under; two clusters on one ensemble take two.",
            form="an absolute ZooKeeper path that does not end in /",
        ),
    ] = "/snooze"

    def complaints(self) -> Iterator[Complaint]:
        """Servers must be reachable names."""
        if self.driver == "zookeeper":
            yield from bad_host_ports("hosts", self.hosts)


class HeartbeatSettings(Section, frozen=True, kw_only=True):
    """How daemons notice that the other end of a link died silently."""

    interval_s: Annotated[float, Meta(ge=0.05, le=60), Doc("Time between two signs of life.")] = 1.0
    timeout_s: Annotated[float, Meta(ge=0.1, le=600), Doc("Silence for this long means dead.")] = (
        3.0
    )

    def complaints(self) -> Iterator[Complaint]:
        """A time-out no longer than the interval would call everyone dead."""
        if self.timeout_s <= self.interval_s:
            yield Complaint(
                "timeout_s",
                f"must be longer than heartbeat.interval_s ({self.interval_s:g}), "
                f"but is {self.timeout_s:g}",
                because_of=("interval_s",),
            )


class LogSettings(Section, frozen=True, kw_only=True):
    """What is logged, and how; it goes to standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Doc("Lines below this level are left out."),
    ] = "info"
    format: Annotated[
        Literal["text", "json"],
        Doc("text is for people; json is one object per line, for programs."),
    ] = "text"


class BootstrapSettings(Section, frozen=True, kw_only=True):
    """A bootstrap node: the front door of the cluster."""

    role: Annotated[Literal["bootstrap"], Doc("Which daemon this file is for.")] = "bootstrap"
    node: NodeSettings = NodeSettings()
    network: NetworkSettings = NetworkSettings()
    http: HttpSettings = HttpSettings()
    coordination: CoordinationSettings = CoordinationSettings()
    log: LogSettings = LogSettings()
