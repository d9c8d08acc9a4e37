"""Virtual clusters on separate daemons: submitted, placed, commanded, moved, resized, destroyed."""

from collections import Counter, defaultdict
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest
from prometheus_client.parser import text_string_to_metric_families

from snooze.client.sdk import ClusterRequest, TaskState, VmCommand, VmState
from snooze.common.errors import Conflict, NoCapacity, NotFound, SnoozeError

SOON_S = 15.0
"""Half of the time after which a local controller looks whether it missed anything."""

if TYPE_CHECKING:
    from snooze.lab.daemons import Daemon
    from tests.integration.cluster.conftest import Rig


def test_twelve_vms_live_and_die(rig: "Rig") -> None:
    prefix = rig.fresh()
    names = [f"{prefix}-{n}" for n in range(12)]
    task = rig.submit(ClusterRequest(rig.vms(prefix, 12), name="dozen"))
    assert task.state is TaskState.DONE
    assert [vm.name for vm in task.vms] == names
    assert {vm.state for vm in task.vms} == {VmState.RUNNING}
    assert len({vm.ip_address for vm in task.vms}) == 12
    assert len({vm.vm_id for vm in task.vms}) == 12
    assert {vm.virtual_cluster for vm in rig.living()} == {"dozen"}
    rig.until(rig.agrees, "Snooze tells of what runs")
    for found, vm in zip(rig.domains(), sorted(task.vms, key=lambda vm: vm.name), strict=True):
        assert found.uuid.replace("-", "") == vm.vm_id
    reserved = {host.id: host.reserved for host in rig.client.hosts()}
    for host_id, count in Counter(vm.host_id for vm in task.vms).items():
        assert reserved[host_id].cpu_cores == count
        assert reserved[host_id].memory_kib == count * 65536

    for command, state in (
        (VmCommand.SUSPEND, VmState.PAUSED),
        (VmCommand.RESUME, VmState.RUNNING),
        (VmCommand.REBOOT, VmState.RUNNING),
        (VmCommand.SHUTDOWN, VmState.STOPPED),
        (VmCommand.START, VmState.RUNNING),
    ):
        tasks = [rig.client.command(name, command) for name in names]
        for each in tasks:
            rig.client.wait(each, check=True)
        for name in names:
            assert rig.client.wait_settled(name).state is state, command
        if command is not VmCommand.REBOOT:  # idempotent: the same again is done already
            rig.client.wait(rig.client.command(names[0], command), check=True)
        rig.until(rig.agrees, f"Snooze tells of what runs after {command}")

    for each in [rig.client.destroy(name) for name in names]:
        rig.client.wait(each, check=True)
    assert rig.domains() == []
    rig.until(lambda: all(h.reserved.cpu_cores == 0 for h in rig.client.hosts()), "all is free")
    with pytest.raises(NotFound):
        rig.client.destroy(names[0])


@pytest.mark.parametrize("across", [False, True], ids=["same manager", "another manager"])
def test_a_migration_keeps_the_vm(rig: "Rig", across: bool) -> None:
    name = rig.fresh()
    hosts = rig.client.hosts()
    here, there = next(
        (one, two)
        for one in hosts
        for two in hosts
        if one is not two and (one.manager_id != two.manager_id) is across
    )
    [request] = rig.vms(name, 1)
    pinned = type(request)(libvirt_xml=request.libvirt_xml, host=here.hostname)
    [vm] = rig.submit([pinned]).vms
    assert vm.host_id == here.id
    before = rig.client.vm(vm.name)
    task = rig.client.wait(rig.client.migrate(vm.name, there.hostname), check=True)
    after = rig.client.vm(vm.name)
    assert (after.host_id, after.state) == (there.id, VmState.RUNNING)
    assert after.manager_id == there.manager_id
    assert (after.vm_id, after.ip_address, after.mac_address, after.generation) == (
        before.vm_id,
        before.ip_address,
        before.mac_address,
        before.generation,
    )
    [found] = rig.domains()
    assert (found.host, found.state) == (there.hostname, "running")
    assert ElementTree.fromstring(after.xml).findtext("name") == vm.name
    assert task.progress is not None
    assert "the definition was moved" in task.progress.note, "it says that it did no more"
    free = {host.id: host.reserved.cpu_cores for host in rig.client.hosts()}
    assert (free[here.id], free[there.id]) == (0.0, 1.0)
    rig.client.wait(rig.client.suspend(vm.name), check=True)
    rig.until(rig.agrees, "the VM is commanded where it is now")


def test_a_resize_is_checked_against_what_the_host_has(rig: "Rig") -> None:
    [vm] = rig.submit(rig.vms(rig.fresh(), 1, memory_kib=131072)).vms
    for change in ({"memory_kib": rig.HOST_MEMORY_KIB + 1}, {"vcpus": rig.HOST_CPUS + 1}):
        with pytest.raises(SnoozeError) as caught:
            rig.client.wait(rig.client.resize(vm.name, **change), check=True)
        assert isinstance(caught.value, NoCapacity | Conflict), caught.value
    assert rig.client.vm(vm.name).demand.memory_kib == 131072
    rig.client.wait(rig.client.resize(vm.name, memory_kib=98304), check=True)
    after = rig.client.vm(vm.name)
    assert after.demand.memory_kib == 98304
    host = rig.client.host(vm.host_id)
    assert host.reserved.memory_kib == 98304
    assert ElementTree.fromstring(after.xml).findtext("currentMemory") == "98304"


def test_a_full_cluster_refuses_what_does_not_fit_and_takes_it_later(rig: "Rig") -> None:
    big = rig.HOST_MEMORY_KIB - 65536
    first = rig.submit(rig.vms(rig.fresh("big"), 3, memory_kib=big))
    assert len({vm.host_id for vm in first.vms}) == 3
    name = rig.fresh("late")
    task = rig.client.wait(rig.client.submit(rig.vms(name, 1, memory_kib=big)))
    assert task.state is TaskState.FAILED
    [late] = task.vms
    assert late.error is not None
    assert late.error.code == NoCapacity.code
    assert len(rig.domains()) == 3
    rig.client.wait(rig.client.destroy(first.vms[0].name), check=True)
    rig.submit(rig.vms(rig.fresh("late"), 1, memory_kib=big))


def test_what_others_started_is_shown_counted_and_left_alone(rig: "Rig") -> None:
    host = rig.client.hosts()[0]
    uri = rig.hypervisors[host.hostname].test_uri
    template = rig.folder / "foreign.xml"
    foreign = rig.fresh("foreign")
    xml = rig.domain(foreign, vcpus=3, memory_kib=262144).replace("'kvm'", "'test'")
    template.write_text(xml)
    rig.virsh(uri, "create", str(template))
    vm = rig.until(
        lambda: next((vm for vm in rig.client.vms() if vm.name == foreign), None),
        "the domain is seen, by libvirt's event",
    )
    assert (vm.managed, vm.state, vm.host_id) == (False, VmState.RUNNING, host.id)
    rig.until(lambda: rig.client.host(host.id).reserved.cpu_cores == 3, "it is counted")
    for command in (VmCommand.DESTROY, VmCommand.SUSPEND):
        with pytest.raises(Conflict, match="not started by Snooze"):
            rig.client.command(foreign, command)
    room = rig.HOST_MEMORY_KIB - 131072
    for each in rig.submit(rig.vms(rig.fresh("around"), 2, memory_kib=room)).vms:
        assert each.host_id != host.id, "there is no room beside the foreign domain"
    rig.virsh(uri, "destroy", foreign)
    rig.until(lambda: rig.client.host(host.id).reserved.cpu_cores == 0, "its room is free")
    rig.until(lambda: foreign not in {vm.name for vm in rig.client.vms()}, "it is gone", SOON_S)


def metrics(rig: "Rig", daemon: "Daemon") -> dict[str, float]:
    """What a daemon tells Prometheus, labels left out, series of one name added up."""
    reply = rig.call(daemon, "GET", "/metrics")
    assert reply.status == 200
    found: defaultdict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(reply.text):
        for sample in family.samples:
            found[sample.name] += sample.value
    return dict(found)


def test_all_daemons_tell_prometheus(rig: "Rig") -> None:
    prefix = rig.fresh()
    rig.submit(ClusterRequest(rig.vms(prefix, 3)))
    for daemon in rig.cluster:
        assert metrics(rig, daemon)["snooze_ready"] == 1

    def heard() -> bool:
        hosts = [metrics(rig, daemon) for daemon in rig.hosts]
        managers = [metrics(rig, daemon) for daemon in rig.managers]
        fresh = sum(found["snooze_manager_fresh_hosts"] for found in managers)
        used = sum(found["snooze_manager_used_cpu_cores"] for found in managers)
        return (
            sum(found.get("snooze_host_vms", 0) for found in hosts) >= 3
            and fresh == len(hosts)
            and used == pytest.approx(sum(h["snooze_host_vms_used_cpu_cores"] for h in hosts))
        )

    rig.until(heard, "samples of all hosts are at their managers")
    told = [metrics(rig, daemon) for daemon in rig.managers]
    [leader] = [found for found in told if "snooze_cluster_vms" in found]
    assert leader["snooze_leading"] == 1
    assert leader["snooze_cluster_joined_hosts"] == len(rig.hosts)
    assert leader["snooze_cluster_vms"] >= 3
    assert leader["snooze_leader_transactions_total"] > 0
    for number in range(3):
        rig.client.wait(rig.client.destroy(f"{prefix}-{number}"), check=True)
