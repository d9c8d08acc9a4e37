"""What can go wrong, one at a time or two together; each says its own name and undoes itself."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from snooze.lab.hosts import LabHost
from tests.integration.chaos.world import SESSION_S, World

LONG_S = 2.5 * SESSION_S
"""Longer than the session: whoever is frozen or cut off for so long has been given up."""

Fault = Callable[[World, random.Random], AbstractAsyncContextManager[str]]


async def _pick(world: World, role: str, chance: random.Random) -> str:
    """The name of the daemon or server that now has this role."""
    if role in {"leader", "manager"}:
        for _ in range(100):
            leaders = await asyncio.to_thread(world.leaders)
            others = [m.name for m in world.cluster.managers if m.name not in leaders and m.runs]
            if role == "leader" and leaders:
                return max(leaders, key=leaders.__getitem__)
            if role == "manager" and others:
                return chance.choice(others)
            await asyncio.sleep(0.1)
        raise AssertionError(f"there is no {role}")
    if role in {"zookeeper leader", "zookeeper follower"}:
        return world.name_of(await world.zookeeper(role.split()[1]))
    daemons = world.cluster.hosts if role == "local controller" else world.cluster.bootstraps
    return chance.choice([daemon.name for daemon in daemons if daemon.runs])


def _killed(role: str) -> Fault:
    @asynccontextmanager
    async def fault(world: World, chance: random.Random) -> AsyncGenerator[str]:
        name = await _pick(world, role, chance)
        if name.startswith("zk"):
            server = world.server(name)
            await server.kill()
            yield name
            server.launch()
        else:
            daemon = world.daemon(name)
            await asyncio.to_thread(daemon.kill)
            yield name
            daemon.start()

    return fault


def _restarted(role: str) -> Fault:
    @asynccontextmanager
    async def fault(world: World, chance: random.Random) -> AsyncGenerator[str]:
        name = await _pick(world, role, chance)
        if name.startswith("zk"):
            await world.server(name).stop()
            world.server(name).launch()
        else:
            await asyncio.to_thread(world.daemon(name).stop)
            world.daemon(name).start()
        yield name

    return fault


def _frozen(role: str) -> Fault:
    @asynccontextmanager
    async def fault(world: World, chance: random.Random) -> AsyncGenerator[str]:
        name = await _pick(world, role, chance)
        target = world.server(name) if name.startswith("zk") else world.daemon(name)
        target.pause()
        try:
            yield name
        finally:
            target.resume()

    return fault


def _wired(role: str, cut: Callable[[World, LabHost], None]) -> Fault:
    @asynccontextmanager
    async def fault(world: World, chance: random.Random) -> AsyncGenerator[str]:
        name = await _pick(world, role, chance)
        place = world.places[name]
        await asyncio.to_thread(cut, world, place)
        try:
            yield name
        finally:
            await asyncio.to_thread(_mend, place)

    return fault


def _mend(place: LabHost) -> None:
    place.plug()
    place.heal()


def _cut(_world: World, place: LabHost) -> None:
    place.cut()


def _deafened(_world: World, place: LabHost) -> None:
    place.deafen()


def _muted(_world: World, place: LabHost) -> None:
    place.mute()


def _cut_from_store(world: World, place: LabHost) -> None:
    servers = [server.address for server in world.ensemble.servers]
    place.deafen(*servers)
    place.mute(*servers)


def _cut_from_peers(world: World, place: LabHost) -> None:
    """From every group manager and host, and not from the store."""
    peers = [world.places[d.name].address for d in (*world.cluster.managers, *world.cluster.hosts)]
    place.deafen(*(address for address in peers if address != place.address))


@asynccontextmanager
async def _power_lost(world: World, chance: random.Random) -> AsyncGenerator[str]:
    name = await _pick(world, "local controller", chance)
    kept = await asyncio.to_thread(world.lose_power, name)
    try:
        yield name
    finally:
        await asyncio.to_thread(world.boot, name, kept)
        world.daemon(name).start()


@asynccontextmanager
async def _all_power_lost(world: World, _chance: random.Random) -> AsyncGenerator[str]:
    """Everything dies in no order: record and hypervisors' disks are what is left."""
    kept = {
        host.name: await asyncio.to_thread(world.lose_power, host.name)
        for host in world.cluster.hosts
    }
    for server in world.ensemble.servers:
        await server.kill()
    for daemon in world.cluster:
        await asyncio.to_thread(daemon.kill)
    try:
        yield "everything"
    finally:
        for server in world.ensemble.servers:
            server.launch()
        for name, definitions in kept.items():
            await asyncio.to_thread(world.boot, name, definitions)
        for daemon in world.cluster:
            daemon.start()


ROLES = (
    "leader",
    "manager",
    "local controller",
    "bootstrap",
    "zookeeper leader",
    "zookeeper follower",
)

FAULTS: dict[str, Fault] = {
    **{f"kill -9 {role}": _killed(role) for role in ROLES},
    **{f"freeze {role}": _frozen(role) for role in ROLES},
    **{f"restart {role}": _restarted(role) for role in ROLES},
    **{f"cut off {role}": _wired(role, _cut) for role in ROLES},
    **{f"deafen {role}": _wired(role, _deafened) for role in ROLES},
    **{f"mute {role}": _wired(role, _muted) for role in ROLES},
    **{f"cut {role} from the store": _wired(role, _cut_from_store) for role in ROLES[:2]},
    **{f"cut {role} from its peers": _wired(role, _cut_from_peers) for role in ROLES[:2]},
    "power lost by a host": _power_lost,
    "power lost by everything": _all_power_lost,
}


def schedule(seed: int, rounds: int) -> list[tuple[str, ...]]:
    """The faults of each round: each once in a while, a third of the rounds with a second one."""
    chance = random.Random(seed)
    plan: list[tuple[str, ...]] = []
    pool: list[str] = []
    for _ in range(rounds):
        if not pool:
            pool = sorted(FAULTS)
            chance.shuffle(pool)
        names = [pool.pop()]
        if chance.random() < 1 / 3 and "everything" not in names[0]:
            second = chance.choice([n for n in sorted(FAULTS) if "everything" not in n])
            if _target(second) != _target(names[0]):
                names.append(second)
        plan.append(tuple(names))
    return plan


def _target(name: str) -> str:
    """The role in a fault's name; a power loss is one of a local controller's machine."""
    if "power" in name:
        return "local controller"
    return next(role for role in sorted(ROLES, key=len, reverse=True) if role in name)
