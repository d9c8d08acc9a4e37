"""``make lab-demo``: a cluster of four real hosts runs itself; every step is verified.

Guests that burn are spread, quiet ones are packed, two hosts go to sleep by real power commands, a
submission wakes one by IPMI, and a power cut is survived. What the cluster says is compared with
what hypervisors, BMCs and the guests' own disks say. Exit code 0 only if each step was as it should
be. Takes root.
"""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import uvloop
from rich.console import Console

from snooze.client.async_sdk import AsyncSnooze, decode
from snooze.client.story import Broken, Story
from snooze.common.api import AutonomyChange, AutonomyView, DecisionView, VmRequest
from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.errors import SnoozeError
from snooze.common.vm_lifecycle import VmState
from snooze.lab import guests
from snooze.lab.bmc import PASSWORD, USER
from snooze.lab.cluster import LabCluster, LabPlan
from snooze.lab.hosts import LabHost
from snooze.lab.quick import HOST_CORES, HOST_MEMORY_KIB, quickened
from snooze.lab.witness import Witness

T = TypeVar("T")

GUESTS: Final = ("guest1", "guest2", "guest3", "guest4")
BIG: Final = ("big1", "big2", "big3")
BUSY: Final = (0.11, 0.17, 0.22, 0.28, 0.39)
"""The parts of a core that guests burn: more on a busy machine, where they do not get that much."""
BURN_S: Final = 12.0
"""After so long without an overload they burn more."""
BIG_MEMORY_KIB: Final = 1536 * 1024
"""Two do not fit on one host."""
PATIENCE_S: Final = 120.0
POLL_S: Final = 0.2


class LabDemo(Story):
    """One showing, step by step."""

    def __init__(
        self, lab: LabCluster, sdk: AsyncSnooze, witness: Witness, console: Console
    ) -> None:
        super().__init__(console)
        self.lab = lab
        self.sdk = sdk
        self.witness = witness

    async def play(self) -> None:
        """All steps in order."""
        await self.start()
        await self.spread()
        await self.pack()
        await self.sleep()
        await self.wake()
        await self.lose_power()

    # ------------------------------------------------------------ what is

    def disk(self, name: str) -> Path:
        """Where a guest counts."""
        return self.lab.images / f"{name}.raw"

    def running_on(self, name: str) -> list[str]:
        """The hosts on which a guest runs, by asking each hypervisor."""
        places: list[str] = []
        for host in self.lab.hosts:
            if host.is_on:
                listed = host.exec(["virsh", "-q", "list", "--name"]).stdout.decode().split()
                places += [host.name] if name in listed else []
        return places

    async def places(self) -> dict[str, str]:
        """Where each guest runs, if cluster and hypervisors agree, and it is one place.

        Raises:
            Broken: they do not, or a guest has run twice.
        """
        if violations := self.witness.violations():
            raise Broken("; ".join(violations))
        views = {view.name: view for view in await self.sdk.vms()}
        found: dict[str, str] = {}
        for name in GUESTS:
            hosts = await asyncio.to_thread(self.running_on, name)
            view = views.get(name)
            if view is None or view.state is not VmState.RUNNING or hosts != [view.hostname]:
                says = "nothing" if view is None else f"{view.state} on {view.hostname}"
                raise Broken(f"{name} is on {', '.join(hosts) or 'no host'}; the cluster: {says}")
            found[name] = view.hostname
        return found

    async def until(self, holds: Callable[[dict[str, str]], bool], what: str) -> dict[str, str]:
        """Wait until the guests' places are as wished; those.

        Raises:
            Broken: not in time; says where they are.
        """
        deadline_s = SYSTEM_CLOCK.monotonic_s() + PATIENCE_S
        while True:
            try:
                places = await self.places()
                if holds(places):
                    return places
                now = f"they are on {places}"
            except (Broken, SnoozeError) as error:
                now = str(error)
            if SYSTEM_CLOCK.monotonic_s() > deadline_s:
                raise Broken(f"waited {PATIENCE_S:g} s for {what}; {now}")
            await asyncio.sleep(POLL_S)

    async def becomes(self, holds: Callable[[], bool], what: str) -> float:
        """Wait until something is so; the seconds that it took.

        Raises:
            Broken: not in time.
        """
        began_s = SYSTEM_CLOCK.monotonic_s()
        while not await asyncio.to_thread(holds):
            if SYSTEM_CLOCK.monotonic_s() > began_s + PATIENCE_S:
                raise Broken(f"waited {PATIENCE_S:g} s for {what}")
            await asyncio.sleep(POLL_S)
        return SYSTEM_CLOCK.monotonic_s() - began_s

    async def decided(self, *kinds: str) -> list[str]:
        """What the cluster decided of these kinds, and why."""
        decisions = decode(await self.sdk.fetch("/decisions"), list[DecisionView])
        return [
            f"decided: {one.kind} ({one.state}), because {one.reason}"
            for one in sorted(decisions, key=lambda one: one.at_ms)
            if one.kind in kinds
        ]

    async def allow(self, *kinds: str, paused: bool = False) -> None:
        """Let the cluster decide such things by itself, or not."""
        change = AutonomyChange(kinds=kinds, paused=paused, who="demo", why="the story")
        await self.sdk.send("/autonomy", change, AutonomyView, verb="PUT")

    def unmoved(self) -> list[str]:
        """Proof by the disks that no guest was started anew: each has written as one boot."""
        boots = {name: self.witness.boots(name) for name in GUESTS}
        if any(len(names) != 1 for names in boots.values()):
            raise Broken(f"a guest was started anew: {boots}")
        return ["each guest kept counting on its disk: all were live migrations"]

    def asleep(self) -> list[LabHost]:
        """Hosts without power."""
        return [host for host in self.lab.hosts if not host.is_on]

    def bmc_says(self, host: LabHost) -> str:
        """What ipmitool reads of its power."""
        login = ("-I", "lanplus", "-C", "3", "-U", USER, "-P", PASSWORD)
        address = self.lab.rack.bmcs[host.name].address
        done = subprocess.run(
            ("ipmitool", *login, "-H", address, "chassis", "power", "status"),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done.stdout.strip() or done.stderr.strip()

    # ------------------------------------------------------------ steps

    async def start(self) -> None:
        """Guests, all on one host, as first fit puts them."""
        await self.allow("overload", "sleep", "underload", paused=True)
        async with self.step(f"{len(GUESTS)} guests are submitted; they boot") as found:
            requests = [
                VmRequest(libvirt_xml=(self.lab.templates / f"{name}.xml").read_text())
                for name in GUESTS
            ]
            await self.sdk.wait(await self.sdk.submit(requests), check=True)
            for name in GUESTS:
                await asyncio.to_thread(guests.wait_for_beat, self.disk(name))
            places = await self.until(lambda _: True, "all to run")
            found.append(_by_host(places))

    async def spread(self) -> None:
        """Load moves apart."""
        async with self.step("all of them burn; the overloaded host gives guests away") as found:
            crowd = set((await self.places()).values())
            await self.allow("overload")
            for busy in BUSY:
                for name in GUESTS:
                    guests.set_load(self.disk(name), busy)
                until_s = SYSTEM_CLOCK.monotonic_s() + BURN_S
                while not (begun := await self.decided("overload")):
                    if SYSTEM_CLOCK.monotonic_s() > until_s:
                        break
                    await asyncio.sleep(POLL_S)
                if begun:
                    break
            places = await self.until(
                lambda places: len(set(places.values())) > len(crowd), "them to be spread"
            )
            await asyncio.sleep(2.0)
            places = await self.until(lambda _: True, "migrations to end")
            found += [_by_host(places), *await self.decided("overload"), *self.unmoved()]

    async def pack(self) -> None:
        """Quiet guests move together."""
        async with self.step("they fall quiet; hardly used hosts are emptied") as found:
            for name in GUESTS:
                guests.set_load(self.disk(name), 0.0)
            spread = len(set((await self.places()).values()))
            await self.allow("underload")
            places = await self.until(
                lambda places: len(set(places.values())) < min(spread, 3), "them to be packed"
            )
            found += [_by_host(places), *await self.decided("underload"), *self.unmoved()]

    async def sleep(self) -> None:
        """Idle hosts go down by themselves."""
        async with self.step("two idle hosts go to sleep by their own power command") as found:
            await self.allow("sleep")
            await self.becomes(lambda: len(self.asleep()) == 2, "two hosts to go down")
            for host in self.asleep():
                said = await asyncio.to_thread(self.bmc_says, host)
                if said != "Chassis Power is off":
                    raise Broken(f"the BMC of {host.name} says: {said}")
                found.append(f"{host.name}: ipmitool says {said!r}")
            await self.until(lambda _: True, "all guests to run on")
            found.extend(await self.decided("sleep"))

    async def wake(self) -> None:
        """Work that finds no room wakes a host."""
        async with self.step("a submission finds no room; a host is woken by IPMI") as found:
            sleepers = {host.name for host in self.asleep()}
            kind = "kvm" if self.lab.kvm else "qemu"
            requests: list[VmRequest] = []
            for name in BIG:
                guests.make_disk(self.disk(name), self.lab.sector)
                xml = guests.micro_guest_xml(
                    name, self.disk(name), domain_type=kind, memory_kib=BIG_MEMORY_KIB
                )
                requests.append(VmRequest(libvirt_xml=xml))
            task = await self.sdk.wait(
                await self.sdk.submit(requests), timeout_s=PATIENCE_S, check=True
            )
            places = {vm.name: vm.hostname for vm in task.vms}
            woken = sleepers & set(places.values())
            if not woken:
                raise Broken(f"no sleeper was woken: {places}")
            for name in BIG:
                await asyncio.to_thread(guests.wait_for_beat, self.disk(name))
            found += [_by_host(places), *await self.decided("wake")]
            await self.allow("sleep", "underload", paused=True)
            for name in BIG:
                await self.sdk.wait(await self.sdk.destroy(name), check=True)

    async def lose_power(self) -> None:
        """A host dies; its guests run again."""
        places = await self.until(lambda _: True, "calm")
        victim = max(set(places.values()), key=list(places.values()).count)
        lost = [name for name, host in places.items() if host == victim]
        async with self.step(f"power of {victim} is cut; {', '.join(lost)} die with it") as found:
            boots = {name: len(self.witness.boots(name)) for name in GUESTS}
            cut_s = SYSTEM_CLOCK.monotonic_s()
            await asyncio.to_thread(self.lab.power, victim, "off")
            for name in lost:
                await self.becomes(self._began_after(name, cut_s), f"{name} to run again")
            after_s = [self.witness.first_boot_after_s(name, cut_s) or 0.0 for name in lost]
            places = await self.until(lambda _: True, "cluster and hosts to agree")
            found.append(
                f"their hearts beat again {min(after_s) - cut_s:.1f} to "
                f"{max(after_s) - cut_s:.1f} s after the cut; {_by_host(places)}"
            )
            for name in GUESTS:
                expected = boots[name] + (name in lost)
                if len(self.witness.boots(name)) != expected:
                    raise Broken(f"{name} booted {self.witness.boots(name)}")
            found.append("each was started anew once, and no disk was ever written by two")
            found.extend(await self.decided("fence", "restart"))

    def _began_after(self, name: str, since_s: float) -> Callable[[], bool]:
        return lambda: self.witness.first_boot_after_s(name, since_s) is not None


def _by_host(places: dict[str, str]) -> str:
    hosts: dict[str, list[str]] = {}
    for name, host in sorted(places.items()):
        hosts.setdefault(host, []).append(name)
    return "; ".join(f"{host}: {', '.join(names)}" for host, names in sorted(hosts.items()))


async def show(console: Console) -> int:
    """One showing; the exit code."""
    started_s = SYSTEM_CLOCK.monotonic_s()

    def say(line: str) -> None:
        console.print(f"  [dim]{line}[/]", highlight=False)

    try:
        with await asyncio.to_thread(
            LabCluster, quickened(LabPlan(zookeepers=1)), "demo", say
        ) as lab:
            how = "KVM" if lab.kvm else "software emulation (KVM does not boot a guest here)"
            console.print(
                f"Four hosts of {HOST_CORES:g} cores and {HOST_MEMORY_KIB // 2**20} GiB on this "
                f"machine; guests run by {how}.\nEach guest counts its heart beats on its disk: "
                "one that is started anew, or runs twice, shows there.",
                highlight=False,
            )
            await asyncio.to_thread(lab.wait_ready)
            disks = {name: lab.images / f"{name}.raw" for name in GUESTS}
            with Witness(disks) as witness:
                async with AsyncSnooze(lab.url.split(",")) as sdk:
                    demo = LabDemo(lab, sdk, witness, console)
                    await demo.play()
    except (Broken, SnoozeError, OSError, RuntimeError) as error:
        console.print(f"[red]The demonstration failed:[/] {error}", highlight=False)
        return 1
    took_s = SYSTEM_CLOCK.monotonic_s() - started_s
    console.print(
        f"\n[green]All {demo.steps} steps verified in {took_s:.0f} s.[/] "
        "Keep such a cluster: sudo .venv/bin/snooze lab up --quick",
        highlight=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(uvloop.run(show(Console(soft_wrap=True))))
