"""Every key of an original ``snooze_node.cfg`` and what it is here: a table.

``RULES`` are the keys that have a meaning; ``ignored_because`` knows those that have none, and why.

The reasons tell people about this version; when it learns one of these things, its keys move up.

Source: snooze_node.cfg of snoozenode 2.1.5, and the keys that its unreleased 3.0 added.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import msgspec

from snooze.common.addresses import format_host_port

ROLE_KEY: Final = "node.role"

Values = Mapping[str, str]
"""Old keys and their texts."""


class Rule(NamedTuple):
    """One or several old keys that together are one or several of our settings."""

    keys: tuple[str, ...]
    targets: tuple[str, ...]
    """Ours, dotted."""
    convert: Callable[[Values], Mapping[str, object]]
    """The values of ``targets``; raises ValueError with a sentence for people."""
    remark: str = ""
    """What does not carry over."""


def _one(key: str, target: str, convert: Callable[[str], object] = str, remark: str = "") -> Rule:
    def convert_one(values: Values) -> dict[str, object]:
        return {target: convert(values[key])}

    return Rule((key,), (target,), convert_one, remark)


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f'"{text}" is no whole number') from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'"{text}" is no number') from None


def _boolean(text: str) -> bool:
    word = text.strip().lower()
    if word not in {"true", "false"}:
        raise ValueError(f'"{text}" is neither true nor false')
    return word == "true"


def _seconds(milliseconds: str) -> float:
    return _number(milliseconds) / 1000


def _idle_seconds(milliseconds: str) -> float:
    """0 was for ever; ours has an end."""
    return _seconds(milliseconds) or 3600.0


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _zookeeper_servers(text: str) -> list[str]:
    return [server if ":" in server else f"{server}:2181" for server in _list(text)]


def _thresholds(resource: str) -> Rule:
    """MIN, MID, MAX: placement filled a host up to MID, and so did relocation."""
    key = f"monitoring.thresholds.{resource}"
    ours, headroom = f"relocation.thresholds.{resource}", f"placement.headroom.{resource}"

    def convert(values: Values) -> dict[str, object]:
        parts = _list(values[key])
        if len(parts) != 3:
            raise ValueError(f'"{values[key]}" is not three numbers: MIN, MID, MAX')
        numbers = [_number(part) for part in parts]
        return {ours: numbers, headroom: round(1 - numbers[1], 12)}

    return Rule((key,), (ours, headroom), convert)


_RELOCATION_KEYS: Final = tuple(
    f"groupManagerScheduler.relocation.{kind}Policy" for kind in ("overload", "underload")
)


def _relocation(values: Values) -> dict[str, object]:
    """The original had one policy for each, and no others."""
    for key in _RELOCATION_KEYS:
        name = values.get(key, "").rpartition(".")[2].lower()
        if name and name not in ("greedyoverloadrelocation", "greedyunderloadrelocation"):
            raise ValueError(f'"{values[key]}" is not known here: the greedy policies are')
    return {"relocation.policy": "greedy"}


_RECONFIGURATION: Final = "groupManagerScheduler.reconfiguration."


def _reconfiguration(values: Values) -> dict[str, object]:
    """Not enabled, it could still be asked for."""
    enabled = values.get(f"{_RECONFIGURATION}enabled", "false").lower() == "true"
    interval = values.get(f"{_RECONFIGURATION}interval", "0 0/1 * * * ?")
    return {"consolidation.cron": interval if enabled else ""}


def _estimator(text: str) -> str:
    """Static: what was asked for instead of what was measured."""
    return "static" if text.lower() == "true" else "average"


def _overcommit(density: object) -> float:
    """The original multiplied what was asked for; we multiply what there is."""
    number = _number(str(density))
    if number <= 0:
        raise ValueError(f"a packing density of {number:g} has no meaning")
    return round(1 / number, 12)


def _named(**names: str) -> Callable[[str], str]:
    """Our name for one of theirs, also if it is written as a Java class."""

    def convert(text: str) -> str:
        short = text.rpartition(".")[2].lower()
        if short not in names:
            raise ValueError(f'"{text}" is not known here: {", ".join(names)} are')
        return names[short]

    return convert


_IMAGE_KEYS: Final = ("imageRepository.manager.source", "imageRepository.manager.destination")

_DIRECTORY_KEYS: Final = ("images.directories", "templates.image_directories")

_PACKING: Final = {
    "packingDensityCpu": "placement.overcommit.cpu",
    "packingDensityMemory": "placement.overcommit.memory",
    "packingDensityNetwork": "placement.overcommit.network",
}


def _estimator_options(values: Values) -> dict[str, object]:
    """Of 3.0's options, written as JSON, the packing densities."""
    try:
        options = msgspec.json.decode(values["estimator.options"], type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError):
        raise ValueError("is not a JSON object") from None
    return {
        target: _overcommit(options[option])
        for option, target in _PACKING.items()
        if option in options
    }


def _images(values: Values) -> dict[str, object]:
    """Masters lay in the source, where a relative path belongs; disks of VMs in the destination."""
    source, destination = (values.get(key) for key in _IMAGE_KEYS)
    directories = list(dict.fromkeys(each for each in (source, destination) if each is not None))
    settings: dict[str, object] = dict.fromkeys(_DIRECTORY_KEYS, directories)
    if destination is not None:
        settings["images.disk_directory"] = destination
    return settings


def _hypervisor(values: Values) -> dict[str, object]:
    """The original connected to ``driver+transport://host:port``, itself and its peers alike."""
    driver = values.get("hypervisor.driver", "qemu").lower()
    transport = values.get("hypervisor.transport", "tcp").lower()
    port = _integer(values.get("hypervisor.port", "16509"))
    schemes = {"qemu": "qemu", "kvm": "qemu", "test": "test"}
    if driver not in schemes:
        raise ValueError(f'driver "{driver}" is not known here: {", ".join(schemes)} are')
    if transport not in ("tcp", "tls", "ssh"):
        raise ValueError(f'transport "{transport}" is not known here: tcp, tls, ssh are')
    path = "default" if driver == "test" else "system"

    def uri(address: str) -> str:
        default_port = transport != "tcp" and port == 16509
        place = address if default_port else format_host_port(address, port)
        return f"{schemes[driver]}+{transport}://{place}/{path}"

    return {
        "hypervisor.uri": uri(values.get("network.listen.address", "127.0.0.1")),
        "hypervisor.migration_uri": uri("{address}"),
    }


def _power_saving_action(text: str) -> list[str]:
    named = _named(
        shutdown="shutdown",
        suspendtoram="suspend_to_ram",
        suspendtodisk="suspend_to_disk",
        suspendtoboth="suspend_to_both",
    )
    return [named(text)]


def _command_timeout(values: Values) -> dict[str, object]:
    timeout_s = _number(values["energyManagement.commandExecutionTimeout"])
    return {"power.call_timeout_s": timeout_s, "power.off_timeout_s": max(30.0, timeout_s)}


RULES: Final[tuple[Rule, ...]] = (
    _one("node.networkCapacity.Rx", "capacity.rx_kib_s", _number),
    _one("node.networkCapacity.Tx", "capacity.tx_kib_s", _number),
    _one("network.listen.address", "network.advertised_address"),
    _one("network.listen.controlDataPort", "network.control_port", _integer),
    _one("network.listen.monitoringDataPort", "network.monitoring_port", _integer),
    _one("network.virtualMachineSubnet", "addresses.subnets", _list),
    _one("httpd.maxNumberOfConnections", "http.max_connections", _integer),
    _one("httpd.maxIoIdleTimeMs", "http.request_timeout_s", _idle_seconds),
    Rule(
        ("hypervisor.driver", "hypervisor.transport", "hypervisor.port"),
        ("hypervisor.uri", "hypervisor.migration_uri"),
        _hypervisor,
    ),
    _one(
        "hypervisor.migration.method",
        "migration.method",
        # The original's own comment misspelt the second.
        lambda text: text.replace("nonshared", "noshared"),
    ),
    _one("hypervisor.migration.timeout", "migration.timeout_s", _number),
    _one("faultTolerance.zookeeper.hosts", "coordination.hosts", _zookeeper_servers),
    _one("faultTolerance.zookeeper.sessionTimeout", "coordination.session_timeout_s", _seconds),
    _one("faultTolerance.heartbeat.interval", "heartbeat.interval_s", _seconds),
    _one("faultTolerance.heartbeat.timeout", "heartbeat.timeout_s", _seconds),
    Rule(_IMAGE_KEYS, (*_DIRECTORY_KEYS, "images.disk_directory"), _images),
    _one("monitoring.interval", "monitoring.interval_s", _seconds),
    *(_thresholds(resource) for resource in ("cpu", "memory", "network")),
    Rule(_RELOCATION_KEYS, ("relocation.policy",), _relocation),
    Rule(
        (f"{_RECONFIGURATION}enabled", f"{_RECONFIGURATION}interval"),
        ("consolidation.cron",),
        _reconfiguration,
    ),
    _one(f"{_RECONFIGURATION}policy", "consolidation.method", _named(sercon="sercon")),
    _one("estimator.static", "relocation.estimator", _estimator),
    _one("estimator.numberOfMonitoringEntries", "relocation.samples", _integer),
    _one(
        "groupLeaderScheduler.assignmentPolicy",
        "leader.assignment_policy",
        _named(roundrobin="round_robin", random="random"),
    ),
    _one(
        "groupLeaderScheduler.dispatchingPolicy",
        "leader.dispatching_policy",
        _named(firstfit="first_fit", roundrobin="round_robin"),
    ),
    _one(
        "groupManagerScheduler.placementPolicy",
        "placement.policy",
        _named(firstfit="first_fit", roundrobin="round_robin"),
    ),
    *(
        _one(
            f"submission.packingDensity.{resource}",
            f"placement.overcommit.{resource}",
            _overcommit,
            remark="its reciprocal: it multiplied what is asked for, ours what there is",
        )
        for resource in ("cpu", "memory", "network")
    ),
    Rule(
        ("estimator.options",),
        tuple(_PACKING.values()),
        _estimator_options,
        remark="of its options only the packing densities have a meaning here",
    ),
    _one("energyManagement.drivers.wakeup", "wakeup.driver"),
    _one("energyManagement.drivers.wakeup.options", "wakeup.options"),
    _one(
        "energyManagement.drivers.shutdown",
        "power.driver",
        _named(system="systemd", ipmi="ipmi", test="test"),
        remark="ipmi presses the power button, it does not cut the power of a running system",
    ),
    _one("energyManagement.powerSavingAction", "power.actions", _power_saving_action),
    Rule(
        ("energyManagement.commandExecutionTimeout",),
        ("power.call_timeout_s", "power.off_timeout_s"),
        _command_timeout,
        remark="a bound: commands that end earlier are not waited for",
    ),
    _one("energyManagement.enabled", "energy.enabled", _boolean),
    _one(
        "energyManagement.numberOfReservedNodes",
        "energy.reserved_hosts",
        _integer,
        remark="of the whole cluster: it was for each group manager",
    ),
    _one("energyManagement.thresholds.idleTime", "energy.idle_s", _number),
    _one(
        "energyManagement.thresholds.wakeupTime",
        "energy.wake_timeout_s",
        _number,
        remark="a bound: a host is used as soon as it has joined, not after this time",
    ),
    # Of snooze_client.cfg, the only file of the original that names bootstrap nodes.
    _one("general.bootstrapNodes", "join.bootstrap_nodes", _list),
)

_NO_THREADS: Final = "requests are served by an event loop, not by a pool of threads"
_NO_MULTICAST: Final = (
    "nothing is multicast: daemons find each other through ZooKeeper and the bootstrap nodes"
)
_NO_IMAGE_SERVICE: Final = "there is no image service: disks lie in images.directories"
_NO_NOTIFIER: Final = "there is no RabbitMQ notifier"
_NO_DATABASE: Final = "the record is kept in ZooKeeper and samples in memory; nothing to choose"
_REQUESTED: Final = "placement counts what VMs asked for; estimates are relocation.estimator's"
_NO_JARS: Final = "plug-ins written in Java cannot be loaded"
_NO_OPTIONS: Final = "its options were those of plug-ins written in Java"
_NO_POLLING: Final = "answers are awaited, not polled for; submission.start_timeout_s is the bound"
_NO_ANOMALIES: Final = "anomalies are found by relocation.detector, at the group manager"
_TEMPLATE_DECIDES: Final = "the VM's own template decides"
_NO_CONTEXT_DISK: Final = "no context disk is made"
_UNUSED: Final = "the original did not use it either"

IGNORED: Final[dict[str, str]] = {
    "node.idgenerator": "ids are UUIDs kept in node.state_directory, or what node.id says",
    "httpd.maxNumberOfThreads": _NO_THREADS,
    "httpd.minThreads": _NO_THREADS,
    "httpd.lowThreads": _NO_THREADS,
    "httpd.maxThreads": _NO_THREADS,
    "httpd.maxQueued": _NO_THREADS,
    "imageRepository.address": _NO_IMAGE_SERVICE,
    "imageRepository.port": _NO_IMAGE_SERVICE,
    "imageRepository.manager.disks": (
        "a VM made from an image always gets a copy-on-write disk over it (backing)"
    ),
    "monitoring.timeout": "one time-out says that a daemon is dead: heartbeat.timeout_s",
    "monitoring.numberOfMonitoringEntries": "each sample is sent as soon as it is taken",
    "external.notifier.faultTolerance.numberOfRetries": _UNUSED,
    "external.notifier.faultTolerance.retryInterval": _UNUSED,
    "estimator": _REQUESTED,
    "groupManagerScheduler.pluginsDirectory": _NO_JARS,
    "globals.pluginsDirectory": _NO_JARS,
    "localController.hostmonitor": _REQUESTED,
    "provisioner.contextDisk.name": _UNUSED,
    "energyManagement.drivers.suspend": "systemd suspends; power.command can do it otherwise",
}

IGNORED_BELOW: Final[dict[str, str]] = {
    "network.multicast.": _NO_MULTICAST,
    "database.": _NO_DATABASE,
    "external.notifier.": _NO_NOTIFIER,
    "estimator.": _REQUESTED,
    "monitoring.estimator.": _REQUESTED,
    "localController.hostmonitor.": _REQUESTED,
    "groupManagerScheduler.relocation.": _NO_OPTIONS,
    "groupManagerScheduler.reconfiguration.": _NO_OPTIONS,
    "localController.anomaly.": _NO_ANOMALIES,
    "groupManager.anomaly.": _NO_ANOMALIES,
    "submission.dispatching.": _NO_POLLING,
    "submission.collection.": _NO_POLLING,
    "provisioner.contextDisk.": _NO_CONTEXT_DISK,
    "provisioner.disk.": _TEMPLATE_DECIDES,
    "provisioner.serial.": _TEMPLATE_DECIDES,
    "provisioner.vnc.": _TEMPLATE_DECIDES,
    "provisioner.network.": _UNUSED,
}
"""Whole families of keys, such as ``database.``; what stands in ``IGNORED`` goes first."""


def ignored_because(key: str) -> str | None:
    """Why the key has no meaning here, or None if it is not known."""
    if key in IGNORED:
        return IGNORED[key]
    return next(
        (reason for family, reason in IGNORED_BELOW.items() if key.startswith(family)), None
    )
