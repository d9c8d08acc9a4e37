"""An original snooze_node.cfg: each key honoured, ignored with a reason, or a mistake."""

from pathlib import Path

import pytest

from snooze.common.config import (
    ROOTS,
    BootstrapSettings,
    GroupManagerSettings,
    LocalControllerSettings,
    Role,
    load,
    parse,
)
from snooze.common.config_check import check_config
from snooze.common.errors import SettingsError
from snooze.common.legacy_config import is_legacy, read_legacy
from snooze.common.settings_schema import leaves

# Every key of snoozenode 2.1.5's file with the value shipped (shown as "default" in its manual).
ORIGINAL = """\
# Snooze node configuration
node.role = {role}
node.networkCapacity.Rx = 131072
node.networkCapacity.Tx = 131072
network.listen.address = 10.1.0.5
network.listen.controlDataPort = 5000
network.listen.monitoringDataPort = 6000
network.multicast.address = 225.4.5.6
network.multicast.groupLeaderHeartbeatPort = 9000
network.multicast.groupManagerHeartbeatPort = 10000
network.virtualMachineSubnet = 192.168.122.0/24,192.168.123.0/24
httpd.maxNumberOfThreads = 200
httpd.maxNumberOfConnections = 500
httpd.minThreads = 1
httpd.lowThreads = 8
httpd.maxThreads = 10
httpd.maxQueued = 0
httpd.maxIoIdleTimeMs = 60000
hypervisor.driver = qemu
hypervisor.transport = tcp
hypervisor.port = 16509
hypervisor.migration.method = live
hypervisor.migration.timeout = 60
faultTolerance.zookeeper.hosts = 127.0.0.1:2181,zk2
faultTolerance.zookeeper.sessionTimeout = 10000
faultTolerance.heartbeat.interval = 3000
faultTolerance.heartbeat.timeout = 10000
imageRepository.address = localhost
imageRepository.port = 4000
imageRepository.manager.disks = backing
imageRepository.manager.source = /srv/images
imageRepository.manager.destination = /var/lib/libvirt/images
database.type = memory
database.cassandra.hosts = localhost:9160
database.numberOfEntriesPerGroupManager = 20
database.numberOfEntriesPerVirtualMachine = 30
monitoring.interval = 3000
monitoring.timeout = 20000
monitoring.numberOfMonitoringEntries = 5
monitoring.thresholds.cpu = 0, 0.9, 1
monitoring.thresholds.memory = 0, 1, 1
monitoring.thresholds.network = 0, 1, 1
external.notifier.transport = RABBITMQ
external.notifier.address = localhost
external.notifier.port = 5672
external.notifier.username = snooze
external.notifier.password = geheim
external.notifier.vhost = snooze-vhost
external.notifier.faultTolerance.numberOfRetries = 10
external.notifier.faultTolerance.retryInterval = 10
estimator.static = false
estimator.sortNorm = L1
estimator.numberOfMonitoringEntries = 15
estimator.policy.cpu = average
estimator.policy.memory = average
estimator.policy.network = average
groupLeaderScheduler.assignmentPolicy = RoundRobin
groupLeaderScheduler.dispatchingPolicy = FirstFit
groupManagerScheduler.pluginsDirectory = /usr/share/snoozenode/plugins/groupManagerScheduler
groupManagerScheduler.placementPolicy = RoundRobin
groupManagerScheduler.relocation.overloadPolicy = GreedyOverloadRelocation
groupManagerScheduler.relocation.underloadPolicy = GreedyUnderloadRelocation
groupManagerScheduler.reconfiguration.enabled = false
groupManagerScheduler.reconfiguration.policy = Sercon
groupManagerScheduler.reconfiguration.interval = 0 0/1 * * * ?
submission.dispatching.numberOfRetries = 60
submission.dispatching.retryInterval = 5
submission.collection.numberOfRetries = 200
submission.collection.retryInterval = 10
submission.packingDensity.cpu = 0.5
submission.packingDensity.memory = 1
submission.packingDensity.network = 1
energyManagement.enabled = false
energyManagement.numberOfReservedNodes = 1
energyManagement.powerSavingAction = shutdown
energyManagement.drivers.shutdown = system
energyManagement.drivers.suspend = pmutils
energyManagement.drivers.wakeup = IPMI
energyManagement.drivers.wakeup.options = -I lanplus -H BMC_IP -U user -P geheim
energyManagement.thresholds.idleTime = 120
energyManagement.thresholds.wakeupTime = 300
energyManagement.commandExecutionTimeout = 10
provisioner.contextDisk.bus = ide
provisioner.contextDisk.dev = hdc
provisioner.contextDisk.name = context.iso
provisioner.disk.bus = virtio
provisioner.disk.dev = vda
provisioner.serial.enable = true
provisioner.vnc.enable = false
provisioner.vnc.listenAddress = 0.0.0.0
provisioner.vnc.startPort = 8000
provisioner.vnc.portRange = 1000
provisioner.vnc.keymap = fr
provisioner.network.gateway = 192.168.122.1
provisioner.network.network = 192.168.122.0
provisioner.network.broadcast = 192.168.122.255
provisioner.network.netmask = 255.255.255.0
provisioner.network.nameserver = 192.168.122.1
"""

# What its unreleased 3.0 added.
UNRELEASED = """\
node.idgenerator = hostname
monitoring.estimator.cpu = average
estimator = staticdynamic
estimator.options = {"static": false, "sortNorm": "L1", "packingDensityCpu": 0.25}
groupManagerScheduler.reconfiguration.options = {}
localController.hostmonitor = libvirt, ganglia
localController.hostmonitor.libvirt.interval = 3000
localController.anomaly.detector = simple
localController.anomaly.detector.enable = true
groupManager.anomaly.resolver = simple
groupManager.anomaly.resolver.options = {}
globals.pluginsDirectory = /usr/share/snoozenode/plugins
"""


def original(role: str, *more: str) -> str:
    return ORIGINAL.format(role=role) + "".join(f"{line}\n" for line in more)


def test_a_bootstrap_node() -> None:
    settings = parse(original("bootstrap"), BootstrapSettings)
    assert settings.network.advertised_address == "10.1.0.5"
    assert settings.network.control_port == 5000
    assert settings.http.max_connections == 500
    assert settings.http.request_timeout_s == 60
    assert settings.coordination.hosts == ("127.0.0.1:2181", "zk2:2181")
    assert settings.coordination.session_timeout_s == 10


def test_a_group_manager() -> None:
    settings = parse(original("groupmanager"), GroupManagerSettings)
    assert settings.network.monitoring_port == 6000
    assert settings.addresses.subnets == ("192.168.122.0/24", "192.168.123.0/24")
    assert (settings.heartbeat.interval_s, settings.heartbeat.timeout_s) == (3, 10)
    assert settings.leader.assignment_policy == "round_robin"
    assert settings.leader.dispatching_policy == "first_fit"
    assert settings.placement.policy == "round_robin"
    assert settings.placement.headroom.cpu == 0.1
    assert settings.placement.headroom.memory == 0
    assert settings.templates.image_directories == ("/srv/images", "/var/lib/libvirt/images")
    assert settings.placement.overcommit.cpu == 2
    assert settings.placement.overcommit.memory == 1
    assert settings.relocation.thresholds.cpu == (0, 0.9, 1)
    assert settings.relocation.thresholds.network == (0, 1, 1)
    assert (settings.relocation.policy, settings.relocation.estimator) == ("greedy", "average")
    assert settings.relocation.samples == 15
    assert (settings.consolidation.method, settings.consolidation.cron) == ("sercon", "")
    assert (settings.power.call_timeout_s, settings.power.off_timeout_s) == (10, 30)


def test_a_local_controller_told_where_the_bootstrap_nodes_are() -> None:
    settings = parse(
        original("localcontroller", "join.bootstrap_nodes = 10.1.0.1:5000, 10.1.0.2:5000"),
        LocalControllerSettings,
    )
    assert settings.join.bootstrap_nodes == ("10.1.0.1:5000", "10.1.0.2:5000")
    assert settings.hypervisor.uri == "qemu+tcp://10.1.0.5:16509/system"
    assert settings.hypervisor.migration_uri == "qemu+tcp://{address}:16509/system"
    assert settings.migration.method == "live"
    assert settings.migration.timeout_s == 60
    assert settings.capacity.rx_kib_s == settings.capacity.tx_kib_s == 131072
    assert settings.images.directories == ("/srv/images", "/var/lib/libvirt/images")
    assert settings.images.disk_directory == "/var/lib/libvirt/images"
    assert settings.monitoring.interval_s == 3
    assert settings.wakeup.driver == "IPMI"
    assert settings.wakeup.options.endswith("-P geheim")
    assert settings.power.driver == "systemd"
    assert settings.power.actions == ("shutdown",)


@pytest.mark.parametrize("role", ROOTS)
def test_of_every_key_it_is_told_what_became_of_it(role: Role, tmp_path: Path) -> None:
    path = tmp_path / "snooze_node.cfg"
    path.write_text(original(role) + UNRELEASED)
    report = check_config(path)
    assert report.ok, report.text()
    assert (report.role, report.format) == (role, "snooze_node.cfg")
    keys = [line.split(" = ")[0] for line in (ORIGINAL + UNRELEASED).splitlines()[2:]]
    told = [note for note in report.notes if note.kind != "missing"]
    assert sorted(note.key for note in told) == sorted(keys)
    assert all(note.message for note in told)
    assert "geheim" not in report.text()
    assert all(note.key in report.text() for note in told)


def test_every_key_is_honoured_by_some_daemon_or_ignored_by_all() -> None:
    kinds: dict[str, set[str]] = {}
    for role in ROOTS:
        for note in read_legacy(original(role), role, ROOTS).notes:
            kinds.setdefault(note.key, set()).add(note.kind)
    for key, found in kinds.items():
        assert found == {"ignored"} or "honoured" in found or "missing" in found, key


def test_an_honoured_key_is_one_that_exists() -> None:
    for role, root in ROOTS.items():
        known = {".".join(path) for path, _ in leaves(root)}
        for note in read_legacy(original(role) + UNRELEASED, role, ROOTS).notes:
            if note.kind == "honoured":
                targets = {
                    part.split(" = ")[0] for part in note.message.split(", ") if " = " in part
                }
                assert targets <= known, note


def test_a_reconfiguration_that_was_enabled_has_its_calendar() -> None:
    key = "groupManagerScheduler.reconfiguration.enabled"
    text = original("groupmanager").replace(f"{key} = false", f"{key} = true")
    settings = parse(text, GroupManagerSettings)
    assert settings.consolidation.cron == "0 0/1 * * * ?"


def test_the_options_of_3_0_carry_the_packing_densities() -> None:
    settings = parse(original("groupmanager") + UNRELEASED, GroupManagerSettings)
    assert settings.placement.overcommit.cpu == 4


def test_a_local_controller_not_told_is_warned(tmp_path: Path) -> None:
    path = tmp_path / "snooze_node.cfg"
    path.write_text(original("localcontroller"))
    report = check_config(path)
    (missing,) = [note for note in report.notes if note.kind == "missing"]
    assert missing.key == "join.bootstrap_nodes"
    assert "multicast" in report.text()


@pytest.mark.parametrize(
    ("line", "key", "part"),
    [
        ("network.listen.controlDatPort = 1", "network.listen.controlDatPort", "did you mean"),
        ("monitoring.interval = soon", "monitoring.interval", "no number"),
        ("monitoring.interval = 1", "monitoring.interval_s", "from monitoring.interval"),
        ("hypervisor.driver = xen", "hypervisor.driver", "qemu, kvm, test"),
        ("hypervisor.transport = carrier-pigeon", "hypervisor.driver", "tcp, tls, ssh"),
        ("hypervisor.migration.method = fast", "migration.method", "nosharedfull"),
        ("energyManagement.drivers.wakeup = bell", "wakeup.driver", "WOL"),
        ("join.retry_min_s = never", "join.retry_min_s", "a number"),
        ("wakeup.options = \\uZZZZ", "line 101", "hexadecimal"),
    ],
)
def test_mistakes_in_an_old_file(line: str, key: str, part: str) -> None:
    kept = [
        each
        for each in original("localcontroller").splitlines()
        if each.split(" ")[0] != line.split(" ", maxsplit=1)[0]
    ]
    with pytest.raises(SettingsError) as caught:
        parse("\n".join([*kept, line]), LocalControllerSettings)
    (problem,) = caught.value.problems
    assert part in problem.message
    assert problem.where == key or problem.code == "syntax"


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("monitoring.thresholds.cpu = 0, 1", "monitoring.thresholds.cpu"),
        ("submission.packingDensity.cpu = 0", "submission.packingDensity.cpu"),
        ("groupManagerScheduler.placementPolicy = MyJar", "groupManagerScheduler.placementPolicy"),
        ("estimator.options = [1]", "estimator.options"),
        ("estimator.options = {", "estimator.options"),
        ("network.virtualMachineSubnet = 10.0.0.0/33", "addresses.subnets[0]"),
    ],
)
def test_mistakes_that_a_group_manager_makes_out_and_others_pass_over(line: str, key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(f"node.role = groupmanager\n{line}", GroupManagerSettings)
    assert [problem.where for problem in caught.value.problems] == [key]
    parse(f"node.role = bootstrap\n{line}", BootstrapSettings)


def test_a_file_for_another_daemon_is_refused() -> None:
    with pytest.raises(SettingsError, match="read for a groupmanager"):
        parse(original("bootstrap"), GroupManagerSettings)


@pytest.mark.parametrize("role", ["", "node.role = king\n"])
def test_without_a_role_nothing_can_be_checked(tmp_path: Path, role: str) -> None:
    path = tmp_path / "snooze_node.cfg"
    path.write_text(f"{role}network.listen.controlDataPort = 5000\n")
    report = check_config(path)
    assert not report.ok
    assert "bootstrap, groupmanager, localcontroller" in report.text()


def test_the_role_may_be_said_by_the_caller_instead(tmp_path: Path) -> None:
    path = tmp_path / "snooze_node.cfg"
    path.write_text("network.listen.controlDataPort = 5009\n")
    report = check_config(path, "groupmanager")
    assert report.ok
    assert report.settings is not None
    assert report.settings.network.control_port == 5009


def test_the_last_of_two_lines_counts_and_the_first_is_told() -> None:
    legacy = read_legacy(
        "monitoring.interval=1000\nmonitoring.interval=2000", "localcontroller", ROOTS
    )
    assert legacy.document.tables == {"monitoring": {"interval_s": 2.0}}
    assert [note.kind for note in legacy.notes[:2]] == ["ignored", "honoured"]


@pytest.mark.parametrize(
    ("text", "legacy"),
    [
        ("node.role = bootstrap", True),
        ("network.multicast.address: 225.4.5.6", True),
        ("hypervisor.driver qemu", True),
        ("", False),
        ('role = "bootstrap"\nmonitoring.interval = 3', False),
        ("[hypervisor]\ndriver = 'libvirt'", False),
        ('hypervisor.driver = "libvirt"', False),
        ("root:x:0:0:root:/root:/bin/bash", False),
    ],
)
def test_old_files_are_known_by_their_content(text: str, legacy: bool) -> None:
    assert is_legacy(text) is legacy


@pytest.mark.parametrize(
    ("transport", "port", "uri"),
    [
        ("tcp", 16510, "qemu+tcp://127.0.0.1:16510/system"),
        ("tls", 16509, "qemu+tls://127.0.0.1/system"),
        ("ssh", 2222, "qemu+ssh://127.0.0.1:2222/system"),
    ],
)
def test_the_address_of_the_hypervisor(transport: str, port: int, uri: str) -> None:
    text = f"hypervisor.driver=kvm\nhypervisor.transport={transport}\nhypervisor.port={port}"
    assert parse(text, LocalControllerSettings).hypervisor.uri == uri


def test_the_test_driver_has_another_path() -> None:
    settings = parse("hypervisor.driver = test", LocalControllerSettings)
    assert settings.hypervisor.uri == "test+tcp://127.0.0.1:16509/default"


def test_latin_1_as_java_wrote_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "snooze_node.cfg"
    path.write_bytes(b"# f\xfcr den Rechner\nnode.role = bootstrap\ndatabase.type=memory\n")
    assert load(path, BootstrapSettings, environment={}) == BootstrapSettings()
    assert "1 of its keys have no meaning here" in caplog.text


def test_environment_and_overrides_apply_as_well() -> None:
    settings = parse(
        original("bootstrap"),
        BootstrapSettings,
        environment={"SNOOZE_NETWORK__CONTROL_PORT": "1"},
        overrides={"log": {"level": "error"}},
    )
    assert settings.network.control_port == 1
    assert settings.log.level == "error"
