"""The driver from elsewhere: by TLS and by ssh, and what it says when it is not let in."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from snooze.common.errors import RemoteError, RemoteTimeout
from snooze.common.vm_lifecycle import VmState
from snooze.lab.guests import wait_for_beat
from snooze.lab.hosts import LabHost
from snooze.lab.tls import LabCa, tls_uri
from snooze.localcontroller.hypervisor.port import Feature, MigrationOptions

if TYPE_CHECKING:
    from tests.integration.hypervisor.conftest import Lab

QUICK = MigrationOptions(progress_period_s=0.05)
LOST = "client socket is closed"
"""What libvirt says if ssh ended, with all it had to say, before libvirt's first call."""

UriOf = Callable[[LabHost], str]


@pytest.fixture(params=["tls", "ssh"])
def uri_of(lab: "Lab", request: pytest.FixtureRequest) -> UriOf:
    """The address of a host for somebody who is let in."""
    if request.param == "tls":
        client = lab.ca.client(f"client-{len(list(lab.ca.folder.iterdir()))}")
        return lambda host: tls_uri(host.address, client)
    for host in (lab.one, lab.two):
        start_sshd(lab, host)
    return lab.ssh.uri


def start_sshd(lab: "Lab", host: LabHost) -> None:
    lab.ssh.start(host)
    lab.stack.callback(lab.ssh.stop, host)


async def test_orders_go_and_events_come(lab: "Lab", uri_of: UriOf) -> None:
    driver = await lab.driver(lab.one, uri_of(lab.one))
    description = await driver.describe()
    assert description.features == frozenset(Feature)
    assert description.hostname == "one"
    assert (await driver.capacity()).memory_kib > 1024 * 1024
    disk = lab.shared / "disk.raw"
    spec = lab.make_spec(disk, str(disk))
    assert (await driver.start(spec)).state is VmState.RUNNING
    await asyncio.to_thread(wait_for_beat, disk)
    assert (await driver.suspend(spec.vm_id)).state is VmState.PAUSED
    assert (await driver.resume(spec.vm_id)).state is VmState.RUNNING
    [used] = (await driver.usage()).vms
    assert used.vm_id == spec.vm_id
    await driver.destroy(spec.vm_id)
    assert await driver.inventory() == []
    for kind in ("started", "paused", "resumed", "stopped", "gone"):
        assert (await lab.ears["one"].wait_for_change(kind)).vm_id == spec.vm_id


async def test_a_cut_host_is_noticed_and_found_again(lab: "Lab", uri_of: UriOf) -> None:
    driver = await lab.driver(lab.one, uri_of(lab.one))
    ears = lab.ears["one"]
    disk = lab.shared / "disk.raw"
    spec = lab.make_spec(disk, str(disk))
    await driver.start(spec)
    lab.one.cut()
    with pytest.raises(RemoteTimeout):
        await asyncio.wait_for(driver.inventory(), 30)
    await ears.wait_for_connection(False)
    with pytest.raises(RemoteError, match="no connection"):
        await driver.suspend(spec.vm_id)
    lab.one.plug()
    await ears.wait_for_connection(True)
    assert (await driver.suspend(spec.vm_id)).state is VmState.PAUSED


async def test_hosts_reach_each_other_by_it_for_a_live_migration(lab: "Lab", uri_of: UriOf) -> None:
    one = await lab.driver(lab.one, uri_of(lab.one))
    two = await lab.driver(lab.two, uri_of(lab.two))
    disk = lab.shared / "disk.raw"
    spec = lab.make_spec(disk, str(disk))
    await one.start(spec)
    before = await asyncio.to_thread(wait_for_beat, disk)
    ticket = await two.prepare_incoming(await one.offer(spec.vm_id, QUICK))
    assert ticket.uri.partition(":")[0] == uri_of(lab.two).partition(":")[0]
    assert ticket.data_uri == "tcp://two"
    await one.migrate_out(spec.vm_id, ticket, QUICK, lambda progress: None)
    assert (await two.finish_incoming(spec.vm_id, ticket)).state is VmState.RUNNING
    after = await asyncio.to_thread(wait_for_beat, disk, before.count + 2)
    assert after.boot == before.boot
    assert await one.inventory() == []


async def refused(lab: "Lab", uri: str, connect_timeout_s: float = 10.0) -> str:
    """What the driver says when it can not open."""
    said = LOST
    for _ in range(10):
        driver = lab.make_driver(lab.one, uri, connect_timeout_s=connect_timeout_s)
        with pytest.raises(RemoteError) as caught:
            await asyncio.wait_for(driver.open(), 30)
        said = caught.value.message
        assert said.startswith(f"cannot connect to {uri}: ")
        if LOST not in said:
            break
    return said


async def test_tls_refuses_both_ways_and_says_what_to_do(lab: "Lab", tmp_path: Path) -> None:
    other = LabCa(tmp_path / "other-ca")
    address = lab.one.address
    said = await refused(lab, tls_uri(address, other.client("we-distrust-the-host")))
    assert "is not signed by the CA in our cacert.pem" in said
    said = await refused(lab, tls_uri(address, other.client("the-host-distrusts-us", lab.ca)))
    assert "refused our clientcert.pem" in said
    said = await refused(lab, tls_uri(address, tmp_path / "nothing"))
    assert "lie where pkipath= says" in said
    trusted = lab.ca.client(tmp_path.name)
    alias = f"{lab.net.subnet}.200"
    lab.one.exec(["ip", "addr", "add", f"{alias}/24", "dev", "br0"])
    lab.stack.callback(lab.one.exec, ["ip", "addr", "del", f"{alias}/24", "dev", "br0"])
    assert f"does not name {alias}" in await refused(lab, tls_uri(alias, trusted))
    said = await refused(lab, tls_uri(f"{address}:1", trusted))
    assert "to listen with TLS on port 1 " in said


async def test_ssh_asks_nobody_and_says_what_to_do(
    lab: "Lab", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, asked, script = lab.one, tmp_path / "asked", tmp_path / "askpass"
    script.write_text(f"#!/bin/sh\ntouch {asked}\necho yes\n")
    script.chmod(0o755)
    monkeypatch.setenv("SSH_ASKPASS", str(script))
    monkeypatch.setenv("DISPLAY", ":0")
    assert "run sshd on port 22" in await refused(lab, lab.ssh.uri(one))
    start_sshd(lab, one)
    said = await refused(lab, lab.ssh.uri(one, known=False))
    assert f"ssh-keyscan {one.address}" in said
    said = await refused(lab, lab.ssh.uri(one, key="stranger"))
    assert "belongs into authorized_keys of root" in said
    assert not asked.exists()


async def test_a_host_that_accepts_and_says_nothing_is_given_up(lab: "Lab") -> None:
    start_sshd(lab, lab.one)
    lab.ssh.freeze(lab.one)
    said = await refused(lab, lab.ssh.uri(lab.one), connect_timeout_s=1.0)
    assert "no answer within 1 s" in said
    assert len(sessions(lab.one)) == 1
    lab.ssh.thaw(lab.one)
    await lab.driver(lab.one, lab.ssh.uri(lab.one))
    async with asyncio.timeout(30):  # what came too late is closed
        while True:
            if len(sessions(lab.one)) == 1:
                break
            await asyncio.sleep(0.05)


def sessions(host: LabHost) -> list[str]:
    """Connections to the host's sshd."""
    command = ("ss", "-Htn", "state", "established", "sport = :22")
    return host.exec(command).stdout.decode().splitlines()
