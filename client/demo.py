"""``make demo``: a cluster is formed, used, hurt and watched healing; every step is verified.

What the cluster says of itself is compared with what its hypervisors say. Exit code 0 only if each
step was as it should be.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import aiohttp
import msgspec
import uvloop
from rich.console import Console

from snooze.client.allinone import HYPERVISORS, AllInOne, Options, cluster
from snooze.client.async_sdk import AsyncSnooze
from snooze.client.demo_template import SEED_TEMPLATE
from snooze.client.hierarchy_formats import as_tree
from snooze.client.story import Broken, Story
from snooze.common.api import TaskState, TaskView, VmRequest
from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.errors import SnoozeError
from snooze.common.logging_setup import configure_logging
from snooze.common.settings import LogSettings
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmReport
from snooze.lab import guests
from snooze.localcontroller.service import LocalController

VMS = 12
WAIT_S = 30.0
POLL_S = 0.05


class Demo(Story):
    """One showing, step by step."""

    def __init__(self, running: AllInOne, sdk: AsyncSnooze, images: Path, console: Console) -> None:
        super().__init__(console)
        self.running = running
        self.sdk = sdk
        self.images = images

    @property
    def real(self) -> bool:
        """Whether guests really run."""
        return self.running.options.hypervisor == "qemu"

    # ------------------------------------------------------------ what hypervisors say

    async def domain(self, name: str) -> tuple[LocalController, VmReport]:
        """The one host that has a VM, by asking all hypervisors.

        Raises:
            Broken: none has it, or more than one.
        """
        found: list[tuple[LocalController, VmReport]] = []
        for host in self.running.hosts:
            reports = await host.hypervisor.inventory()
            found += [(host, report) for report in reports if report.name == name]
        if len(found) != 1:
            where = ", ".join(host.hostname for host, _ in found) or "no host"
            raise Broken(f"{name} is on {where}; it has to be on one")
        return found[0]

    async def expect(self, name: str, state: VmState) -> LocalController:
        """The cluster and the hypervisor agree that a VM is in this state; its host."""
        deadline_s = SYSTEM_CLOCK.monotonic_s() + WAIT_S
        while True:
            host, report = await self.domain(name)
            view = await self.sdk.vm(name)
            if view.state is state and report.state is state and view.host_id == host.node_id:
                return host
            if SYSTEM_CLOCK.monotonic_s() > deadline_s:
                raise Broken(
                    f"{name}: the cluster says {view.state} on {view.hostname}, "
                    f"{host.hostname} says {report.state}; it should be {state}"
                )
            await asyncio.sleep(POLL_S)

    # ------------------------------------------------------------ steps

    async def play(self) -> None:
        """All steps in order."""
        await self.show_hierarchy()
        await self.seed_template()
        names = await self.virtual_cluster()
        await self.move_and_pause(names[0])
        await self.destroy(names[1])
        await self.kill_the_leader(names)
        await self.destroy_all()

    async def show_hierarchy(self) -> None:
        """The tree formed by itself."""
        async with self.step("the hierarchy has formed; nobody configured it"):
            view = await self.sdk.hierarchy()
            if len(view.managers) != len(self.running.managers):
                raise Broken(f"{len(view.managers)} group managers, not as many as were started")
            hosts = sum(len(branch.hosts) for branch in view.managers)
            if hosts != len(self.running.hosts):
                raise Broken(f"{hosts} hosts, not as many as were started")
        self.console.print(as_tree(view))

    async def seed_template(self) -> None:
        """A template of 2012 by Snooze's own calls, as its clients of that time make them."""
        title = "a template of 2012, submitted by a call of 2012 (POST groupmanager?...)"
        async with self.step(title) as found, aiohttp.ClientSession() as session:
            leader = next(m.identity for m in self.running.managers if m.leading is not None)
            base = f"http://{leader.control}/groupmanager"
            body = {
                "virtualMachineTemplates": [
                    {
                        "libVirtTemplate": SEED_TEMPLATE,
                        "networkCapacityDemand": {"rxBytes": 12800.0, "txBytes": 12800.0},
                    }
                ]
            }
            async with session.post(f"{base}?startVirtualCluster", json=body) as answer:
                task_id = await answer.text()
            response = b""
            deadline_s = SYSTEM_CLOCK.monotonic_s() + WAIT_S
            while not response:
                if SYSTEM_CLOCK.monotonic_s() > deadline_s:
                    raise Broken("no answer to getVirtualClusterResponse")
                url = f"{base}?getVirtualClusterResponse"
                async with session.post(url, data=task_id) as answer:
                    response = await answer.read()
                await asyncio.sleep(POLL_S)
            vm = msgspec.json.decode(response)["virtualMachineMetaData"][0]
            if self.real:
                # qemu opens its disks, and the template's does not exist: that has to be said.
                task = await self.sdk.task(task_id)
                error = task.vms[0].error
                if vm["status"] != "ERROR" or error is None or "path_to_disk" not in error.message:
                    raise Broken(f"expected an error that names the missing disk, got {vm}")
                found.append(f"refused, as it must be without its disk: {error.message}")
                return
            if vm["status"] != "RUNNING":
                raise Broken(f"status {vm['status']}, error {vm['errorCode']}")
            host = await self.expect("debian1", VmState.RUNNING)
            found.append(f"debian1 is RUNNING on {host.hostname}, address {vm['ipAddress']}")

    def _request(self, name: str) -> VmRequest:
        if not self.real:
            return VmRequest(
                libvirt_xml=SEED_TEMPLATE.replace("<name>debian1<", f"<name>{name}<"),
                rx_kib_s=1000.0,
                tx_kib_s=1000.0,
            )
        disk = self.images / f"{name}.raw"
        guests.make_disk(disk, guests.assemble(self.images))
        kind = "kvm" if self.kvm else "qemu"
        return VmRequest(libvirt_xml=guests.micro_guest_xml(name, disk, domain_type=kind))

    kvm = False

    async def virtual_cluster(self) -> list[str]:
        """Many VMs in one request."""
        names = [f"web{index + 1}" for index in range(VMS)]
        async with self.step(f"a virtual cluster of {VMS} VMs in one request") as found:
            task = await self.sdk.submit([self._request(name) for name in names])
            task = await self.sdk.wait(task, timeout_s=120, check=True)
            self._check(task)
            placed: dict[str, list[str]] = {}
            for vm in task.vms:
                placed.setdefault(vm.hostname, []).append(vm.name)
            for name in names:
                await self.expect(name, VmState.RUNNING)
            found += [f"{host}: {', '.join(vms)}" for host, vms in sorted(placed.items())]
            if self.real:
                for name in names:
                    guests.wait_for_beat(self.images / f"{name}.raw", timeout_s=WAIT_S)
                found.append("each guest's heart beats: it counts on its disk")
        return names

    @staticmethod
    def _check(task: TaskView) -> None:
        if task.state is not TaskState.DONE:
            raise Broken(f"task {task.kind} is {task.state}: {task.error or task.vms}")

    async def move_and_pause(self, name: str) -> None:
        """Live migration, suspend, resume."""
        before = await self.expect(name, VmState.RUNNING)
        target = next(host for host in self.running.hosts if host is not before)
        disk = self.images / f"{name}.raw"
        async with self.step(f"{name} moves from {before.hostname} to {target.hostname}") as found:
            count = guests.wait_for_beat(disk).count if self.real else 0
            task = await self.sdk.wait(await self.sdk.migrate(name, target.hostname), check=True)
            self._check(task)
            if await self.expect(name, VmState.RUNNING) is not target:
                raise Broken("it is not where it was sent")
            progress = task.progress
            if self.real:
                beat = guests.wait_for_beat(disk, after=count)
                found.append(f"it kept counting: {count} before, {beat.count} after, the same boot")
                if progress is not None:
                    found.append(
                        f"{progress.processed_bytes} bytes in {progress.elapsed_ms} ms, "
                        f"downtime {progress.downtime_ms} ms"
                    )
            elif progress is not None:
                found.append(progress.note)
        async with self.step(f"{name} is suspended"):
            self._check(await self.sdk.wait(await self.sdk.suspend(name), check=True))
            await self.expect(name, VmState.PAUSED)
        async with self.step(f"{name} is resumed"):
            self._check(await self.sdk.wait(await self.sdk.resume(name), check=True))
            await self.expect(name, VmState.RUNNING)

    async def destroy(self, name: str) -> None:
        """A VM goes, and nothing of it stays."""
        async with self.step(f"{name} is destroyed"):
            self._check(await self.sdk.wait(await self.sdk.destroy(name), check=True))
            for host in self.running.hosts:
                if any(report.name == name for report in await host.hypervisor.inventory()):
                    raise Broken(f"{host.hostname} still has it")
            if any(view.name == name for view in await self.sdk.vms()):
                raise Broken("the cluster still lists it")

    async def kill_the_leader(self, names: list[str]) -> None:
        """The leader dies; the hierarchy heals, and no VM notices."""
        left = [name for name in names if name != names[1]]
        async with self.step("the leader dies without a word; another takes over") as found:
            killed = await self.running.kill_leader()
            await self.running.formed(WAIT_S)
            view = await self.sdk.hierarchy()
            if view.leader_id == killed.node_id:
                raise Broken("it still leads")
            leader = next(b.manager for b in view.managers if b.manager.id == view.leader_id)
            found.append(
                f"{killed.identity.hostname} is dead, {leader.hostname} leads, epoch {view.epoch}"
            )
            for name in left:
                await self.expect(name, VmState.RUNNING)
            found.append(f"all {len(left)} VMs run on, where they were")
        self.console.print(as_tree(view))
        async with self.step("the healed cluster takes work"):
            request = self._request("late")
            task = await self.sdk.wait(await self.sdk.submit([request]), check=True)
            self._check(task)
            await self.expect("late", VmState.RUNNING)

    async def destroy_all(self) -> None:
        """Everything goes."""
        async with self.step("all VMs are destroyed"):
            views = [view for view in await self.sdk.vms() if view.managed]
            tasks = [await self.sdk.destroy(view.name) for view in views]
            for task in tasks:
                self._check(await self.sdk.wait(task, check=True))
            for host in self.running.hosts:
                left = [r.name for r in await host.hypervisor.inventory() if r.managed]
                if left:
                    raise Broken(f"{host.hostname} still has {', '.join(left)}")


async def show(hypervisor: str, console: Console) -> int:
    """One showing; the exit code."""
    started_s = SYSTEM_CLOCK.monotonic_s()
    with tempfile.TemporaryDirectory(prefix="snooze-demo-") as folder:
        images = Path(folder)
        # Tiny guests, so that many of them may share the cores of a small machine.
        placement = {"policy": "round_robin", "overcommit": {"cpu": 16.0}}
        spread: dict[str, object] = {"placement": placement}
        options = Options(hypervisor=hypervisor, port=0, images=(folder,), overrides=spread)
        kvm = False
        if hypervisor == "qemu":
            kvm = await asyncio.to_thread(guests.kvm_works)
            how = "KVM" if kvm else "software emulation (KVM does not boot a guest here)"
            console.print(f"Guests run by {how}.", highlight=False)
        try:
            async with cluster(options) as running, AsyncSnooze([running.url]) as sdk:
                demo = Demo(running, sdk, images, console)
                demo.kvm = kvm
                await demo.play()
        except (Broken, SnoozeError, OSError) as error:
            console.print(f"[red]The demonstration failed:[/] {error}", highlight=False)
            return 1
    took_s = SYSTEM_CLOCK.monotonic_s() - started_s
    console.print(
        f"\n[green]All {demo.steps} steps verified in {took_s:.1f} s.[/] "
        "Keep a cluster: .venv/bin/snooze up",
        highlight=False,
    )
    return 0


def main() -> int:
    """Parse the command line and show."""
    parser = argparse.ArgumentParser(prog="snooze.client.demo", description=__doc__)
    parser.add_argument("--hypervisor", choices=HYPERVISORS, default="test")
    arguments = parser.parse_args()
    configure_logging(LogSettings(level="error"), "", "demo")
    return uvloop.run(show(arguments.hypervisor, Console(soft_wrap=True)))


if __name__ == "__main__":
    sys.exit(main())
