"""Hosts that die with VMs on them: proven off, restarted elsewhere exactly once, stale copies gone.

Real daemons, a real ZooKeeper, libvirt's test driver behind real sockets. A host's power is an
operator's command: its ``off`` kills the agent and the guests, as a BMC would, and leaves the
definitions, as a disk does; ``status`` reads a file back. A guest's number in virsh changes with
every start, and two hosts are never allowed to run one.
"""

import itertools
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from snooze.client.sdk import VmRequest, VmState
from snooze.common.api import EventView, PolicyRequest
from snooze.common.vms import FailureAction
from snooze.lab.daemons import Daemon
from tests.integration.cluster.conftest import Rig

SCRIPT = """#!/bin/sh
# power HOST-FOLDER on|off|status
cd "$1" || exit 1
case $2 in
  status) cat state ;;
  on) echo on > state ;;
  off)
    [ -e silent ] && sleep 60
    kill -9 "$(cat pid)" 2>/dev/null
    for name in $(virsh -q -c "$(cat uri)" list --name); do
      virsh -q -c "$(cat uri)" destroy "$name"
    done
    echo off > state ;;
esac
"""


class PoweredRig(Rig):
    """A cluster whose hosts have power controllers."""

    def host_settings(self, name: str) -> dict[str, dict[str, object]]:
        folder = self.folder / "power" / name
        folder.mkdir(parents=True)
        (folder / "state").write_text("on\n")
        (folder / "uri").write_text(self.hypervisors[name].test_uri)
        script = self.folder / "power" / "power"
        if not script.exists():
            script.write_text(SCRIPT)
            script.chmod(0o755)
        command = f"{script} {folder}"
        options = " ".join(
            f"--{verb} {shlex.quote(f'{command} {verb}')}" for verb in ("on", "off", "status")
        )
        return {
            "wakeup": {"driver": "COMMAND", "options": options},
            "lease": {"enabled": "always", "grace_s": 1.0},
        }

    def manager_settings(self) -> dict[str, dict[str, object]]:
        return {
            "recovery": {"fence_after_s": 0.3, "patience_s": 20.0, "lease_s": 4.0},
            "power": {
                "call_timeout_s": 2.0,
                "off_timeout_s": 5.0,
                "run_commands_of_hosts": True,
            },
        }

    def all_events(self) -> list[EventView]:
        """Every event that the present leader has."""
        found: list[EventView] = []
        while page := self.client.events(after=found[-1].seq if found else 0):
            found += page
        return found

    def folder_of(self, host: Daemon) -> Path:
        return self.folder / "power" / host.name

    def power_on(self, host: Daemon) -> None:
        """Its operating system is up: the agent starts."""
        host.kill()
        (self.folder_of(host) / "state").write_text("on\n")
        (self.folder_of(host) / "silent").unlink(missing_ok=True)
        host.start()
        (self.folder_of(host) / "pid").write_text(str(host.pid))

    def restore(self) -> None:
        for host in self.hosts:
            if not host.runs or not (self.folder_of(host) / "pid").exists():
                self.power_on(host)
            with suppress(Exception):
                host.resume()
        super().restore()

    def lose_power(self, host: Daemon) -> None:
        """All of it at once: the agent, the guests; its controller knows."""
        host.kill()
        uri = self.hypervisors[host.name].test_uri
        for name in self.virsh(uri, "list", "--name").split():
            self.virsh(uri, "destroy", name)
        (self.folder_of(host) / "state").write_text("off\n")

    def running(self, name: str) -> list[str]:
        """The hosts on which a guest of this name runs."""
        return [d.host for d in self.domains() if d.name == name and d.state == "running"]

    def runs_of(self, names: list[str]) -> dict[str, set[tuple[str, str]]]:
        """The host and the number in virsh of every guest of these names that runs."""
        found: dict[str, set[tuple[str, str]]] = {name: set() for name in names}
        for domain in self.domains():
            if domain.name in found and domain.state == "running":
                found[domain.name].add((domain.host, domain.number))
        return found

    def defined(self, name: str) -> list[str]:
        return [d.host for d in self.domains() if d.name == name]


@pytest.fixture(scope="module")
def bare_powered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoweredRig]:
    with ExitStack() as stack:
        yield PoweredRig(tmp_path_factory.mktemp("dead"), stack)


@pytest.fixture
def rig(bare_powered: PoweredRig) -> PoweredRig:
    bare_powered.restore()
    return bare_powered


def requests(prefix: str, count: int, policy: PolicyRequest | None = None) -> list[VmRequest]:
    plain = PoweredRig.vms(prefix, count, memory_kib=600_000)
    return [VmRequest(libvirt_xml=r.libvirt_xml, policy=policy or PolicyRequest()) for r in plain]


def watched_until_elsewhere(rig: PoweredRig, names: list[str], lost: str) -> None:
    """Wait until all run elsewhere; at no look does one run twice."""

    def moved() -> bool:
        first = rig.runs_of(names)
        hosts = {name: {host for host, _ in runs} for name, runs in first.items()}
        if any(len(each) > 1 for each in hosts.values()):
            # Hosts are looked at one after the other: only runs that a second look still has, each
            # with its own number, are there at the same time.
            second = rig.runs_of(names)
            twice = {name: first[name] & second[name] for name in names}
            assert all(len(runs) <= 1 for runs in twice.values()), twice
            return False
        return all(each and each != {lost} for each in hosts.values())

    rig.until(moved, "all run elsewhere")
    rig.until(
        lambda: all(
            rig.client.vm(name).state is VmState.RUNNING
            and rig.client.vm(name).hostname in rig.running(name)
            for name in names
        ),
        "Snooze says so",
    )


def busiest(rig: PoweredRig, prefix: str) -> tuple[Daemon, list[str]]:
    """The host with most of these VMs, and their names."""
    mine = sorted(vm.hostname for vm in rig.living() if vm.name.startswith(prefix))
    name = max(((len(list(g)), k) for k, g in itertools.groupby(mine)))[1]
    host = next(h for h in rig.hosts if h.name == name)
    return host, sorted(v.name for v in rig.living() if v.hostname == name)


@pytest.mark.parametrize("how", ["power lost", "agent silent"])
def test_a_dead_hosts_vms_run_elsewhere_once(rig: PoweredRig, how: str) -> None:
    prefix = rig.fresh("ha")
    rig.submit(requests(prefix, 4))
    host, names = busiest(rig, prefix)
    if how == "power lost":
        rig.lose_power(host)
    else:
        host.pause()  # its guests run on: only its controller can end them
    watched_until_elsewhere(rig, names, host.name)
    assert all(rig.client.vm(name).generation == 2 for name in names)
    assert all(host.name in rig.defined(name) for name in names), "the old definitions are there"

    rig.power_on(host)
    rig.until(
        lambda: all(host.name not in rig.defined(name) for name in names), "stale copies are gone"
    )
    rig.wait_whole()
    rig.until(rig.agrees, "Snooze tells of what runs")
    for name in names:
        assert len(rig.running(name)) == 1
        rig.client.wait(rig.client.suspend(name), check=True)
    kinds = {event.kind for event in rig.all_events()}
    assert {"host.down", "decision.fence", "decision.restart"} <= kinds


def test_a_controller_that_is_silent_proves_nothing(rig: PoweredRig) -> None:
    prefix = rig.fresh("silent")
    rig.submit(requests(prefix, 2))
    host, names = busiest(rig, prefix)
    (rig.folder_of(host) / "silent").touch()
    before = {name: rig.running(name) for name in names}
    host.pause()
    rig.until(
        lambda: any(
            e.kind == "host.suspect" and "does not answer" in e.message for e in rig.all_events()
        ),
        "it is said that the controller does not answer",
    )
    rig.until(
        lambda: all(rig.client.vm(name).state is VmState.UNREACHABLE for name in names),
        "they are out of sight",
    )
    assert {name: rig.running(name) for name in names} == before
    rig.lose_power(host)  # a person pulls the plug, and says so
    rig.call(rig.fronts[0], "POST", f"/v1/hosts/{host.name}/confirm-dead")
    watched_until_elsewhere(rig, names, host.name)


def test_policies_are_kept(rig: PoweredRig) -> None:
    prefix = rig.fresh("policy")
    asks = requests(f"{prefix}-ask", 1, PolicyRequest(FailureAction.ASK))
    leaves = requests(f"{prefix}-leave", 1, PolicyRequest(FailureAction.LEAVE))
    restarts = requests(f"{prefix}-restart", 1)
    rig.submit([*asks, *leaves, *restarts])
    host = next(h for h in rig.hosts if h.name == rig.client.vm(f"{prefix}-leave-0").hostname)
    rig.lose_power(host)
    rig.until(
        lambda: (
            rig.client.vm(f"{prefix}-ask-0").state is VmState.UNREACHABLE
            and "start it" in rig.client.vm(f"{prefix}-ask-0").reason
        ),
        "a person is asked",
    )
    assert rig.running(f"{prefix}-leave-0") == []
    assert rig.running(f"{prefix}-ask-0") == []
    rig.client.wait(rig.client.start(f"{prefix}-ask-0"), check=True)
    watched_until_elsewhere(rig, [f"{prefix}-ask-0", f"{prefix}-restart-0"], host.name)
    rig.power_on(host)
    rig.until(lambda: rig.defined(f"{prefix}-ask-0") != [host.name], "its copy is gone")
    rig.wait_whole()
    assert rig.defined(f"{prefix}-leave-0") == [host.name], "it waited for its host"
    rig.until(rig.agrees, "Snooze tells of what runs")


def test_guests_are_fenced_without_a_lease_and_started_again_with_one(rig: PoweredRig) -> None:
    prefix = rig.fresh("fence")
    rig.submit(requests(f"{prefix}-ha", 2))
    rig.submit(requests(f"{prefix}-leave", 1, PolicyRequest(FailureAction.LEAVE)))
    names = [f"{prefix}-ha-0", f"{prefix}-ha-1"]
    before = {name: rig.running(name) for name in names}
    other = rig.running(f"{prefix}-leave-0")
    for manager in rig.managers:
        manager.pause()
    try:
        rig.until(lambda: not any(rig.running(name) for name in names), "they are fenced")
        assert rig.running(f"{prefix}-leave-0") == other, "only highly available ones are"
        assert {name: rig.defined(name) for name in names} == before
    finally:
        for manager in rig.managers:
            manager.resume()
    rig.until(lambda: all(len(rig.running(name)) == 1 for name in names), "they run again")
    rig.wait_whole()
    rig.until(rig.agrees, "Snooze tells of what runs")
