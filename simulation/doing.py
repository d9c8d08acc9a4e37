"""Carrying deeds out in a world, and undoing them."""

from collections.abc import Callable
from functools import partial

import msgspec

from snooze.simulation.clients import Clients
from snooze.simulation.deeds import COMMANDS, POWER_WISHES, ROLES, Deed
from snooze.simulation.ghosts import Ghosts
from snooze.simulation.network import Weather
from snooze.simulation.world import World

_STOPPED = {"pause": "snooze", "freeze": "hypervisor", "pause_guard": "guard"}
"""The process that a deed stops."""
_TO_DAEMONS = frozenset({"kill", "stop", "kill_guard"})
"""What needs a machine that runs: on one that is suspended nothing is killed."""


class Doer:
    """Does what a script says, to one world."""

    def __init__(
        self, world: World, clients: Clients, ghosts: Ghosts, look: Callable[[], None]
    ) -> None:
        """``look`` is called after each deed."""
        self.world = world
        self.ghosts = ghosts
        self.look = look
        self.clients = clients
        self._undo: dict[int, Callable[[], None]] = {}
        self._number = 0

    def plan(self, script: list[Deed]) -> None:
        """Have each deed done at its time, from now on."""
        start_s = self.world.schedule.now_s
        for deed in script:
            self.world.schedule.at(start_s + deed.at_s, partial(self.do, deed))

    def _named(self, deed: Deed) -> Deed:
        """With the names of who leads now, and of another manager."""
        if not ROLES & set(deed.who):
            return deed
        managers = [machine.name for machine in self.world.manager_machines]
        leaders = [n for n, manager in self.world.managers.items() if manager.leading is not None]
        leader = leaders[0] if leaders else managers[0]
        others = [name for name in managers if name != leader] or [leader]
        names = {"leader": leader, "manager": others[deed.number % len(others)]}
        return msgspec.structs.replace(deed, who=tuple(names.get(n, n) for n in deed.who))

    def do(self, deed: Deed) -> None:
        """Do one, and have it undone when its time is over."""
        deed = self._named(deed)
        self.world.tell("--", _told(deed))
        undo = self._do(deed)
        self.look()
        if undo is None:
            return
        self._number += 1
        number = self._number
        self._undo[number] = undo

        def over() -> None:
            step = self._undo.pop(number, None)
            if step is not None:
                self.world.tell("--", f"over: {_told(deed)}")
                step()

        self.world.schedule.after(deed.for_s, over)

    def heal(self) -> None:
        """Undo everything that is not undone yet."""
        self.world.tell("--", "everything heals")
        while self._undo:
            _, step = self._undo.popitem()
            step()
        self.world.network.heal_all()
        for machine in self.world.machines.values():
            self.world.power_on(machine.name)

    def _do(self, deed: Deed) -> Callable[[], None] | None:
        world, who = self.world, deed.who
        if deed.verb == "submit":
            host = next((name for name in who if name != "partial"), "")
            self.clients.submit(
                deed.number, deed.amount or 1.0, partial="partial" in who, host=host
            )
            return None
        if deed.verb in COMMANDS:
            self.clients.command(deed.verb, deed.number, who[0] if who else "", deed.amount)
            return None
        if deed.verb in POWER_WISHES:
            self.clients.power(deed.verb, who[0], force=bool(deed.number))
            return None
        if deed.verb in _TO_DAEMONS and world.machines[who[0]].is_suspended:
            return None
        match deed.verb:
            case "kill":
                world.wanted[who[0]] = False
                world.kill(who[0])
                return partial(world.start_daemon, who[0])
            case "stop":
                world.wanted[who[0]] = False
                world.stop(who[0])
                return partial(self._start_after_stop, who[0])
            case "pause" | "freeze" | "pause_guard":
                return self._pause(who[0], _STOPPED[deed.verb])
            case "kill_guard":
                world.kill_guard(who[0])
                return None
            case "power_off":
                world.power_off(who[0])
                return partial(world.power_on, who[0])
            case "unplug":
                world.power_off(who[0])
                bmc = world.bmcs.machine(who[0])
                bmc.is_silent = True
                return partial(self._plug_in, who[0])
            case "bmc_silent" | "bmc_slow" | "bmc_stuck" | "bmc_fails" | "bmc_deaf":
                return self._bmc(deed)
            case "isolate":
                return self._cut_off(set(who))
            case "split":
                return self._cut_off(set(who))
            case "cut":
                world.network.cut(who[0], who[1])
                world.ensemble.look()
                return partial(world.network.heal, who[0], who[1])
            case "rough" | "slow_net":
                return self._weather(deed)
            case "slow":
                world.guests.slow[who[0]] = deed.amount
                return lambda: (world.guests.slow.pop(who[0], None), None)[1]
            case "fail":
                world.guests.failing[who[0]] = deed.amount
                return lambda: (world.guests.failing.pop(who[0], None), None)[1]
            case "halt":
                world.guests.migrations_halt = True
                return self._migrations_go_on
            case "disk_full":
                world.guests.full_disks.add(who[0])
                return lambda: world.guests.full_disks.discard(who[0])
            case "store_full":
                world.ensemble.refuses_writes = True
                return self._store_is_free
            case "expire":
                world.ensemble.expire(who[0])
                return None
            case "lease_setting":
                world.terms_s[who[0]] = deed.amount
                return None
            case "step_clock":
                world.machines[who[0]].wall_step_ms += round(deed.amount * 1000)
                return None
            case "refuse_sleep":
                world.sleepers.refusing.add(who[0])
                return lambda: world.sleepers.refusing.discard(who[0])
            case "slow_sleep":
                world.sleepers.late_s[who[0]] = deed.amount
                return partial(self._sleeps_well, who[0])
            case "ghost":
                self.ghosts.appear(deed.number)
                return None
            case "guest_off" | "guest_crash":
                self._guest(deed)
                return None
            case _:
                raise ValueError(f"no verb {deed.verb!r}")

    def _sleeps_well(self, name: str) -> None:
        self.world.sleepers.late_s.pop(name, None)

    def _plug_in(self, name: str) -> None:
        self.world.bmcs.machine(name).is_silent = False
        self.world.power_on(name)

    def _bmc(self, deed: Deed) -> Callable[[], None]:
        bmc = self.world.bmcs.machine(deed.who[0])
        name, former = {
            "bmc_silent": ("is_silent", False),
            "bmc_slow": ("answer_s", 0.0),
            "bmc_stuck": ("is_stuck", False),
            "bmc_fails": ("fails", False),
            "bmc_deaf": ("loses_answers", False),
        }[deed.verb]
        setattr(bmc, name, deed.amount if deed.verb == "bmc_slow" else True)
        return lambda: setattr(bmc, name, former)

    def _migrations_go_on(self) -> None:
        self.world.guests.migrations_halt = False

    def _store_is_free(self) -> None:
        self.world.ensemble.refuses_writes = False

    def _start_after_stop(self, name: str) -> None:
        """An init system waits for the end before it starts a service again; not for ever."""
        self.world.kill(name)
        self.world.start_daemon(name)

    def _pause(self, name: str, kind: str) -> Callable[[], None] | None:
        process = self.world.machines[name].processes.get(kind)
        if process is None or process.paused:
            return None
        process.pause()
        return process.resume

    def _cut_off(self, names: set[str]) -> Callable[[], None]:
        network = self.world.network
        others = [name for name in self.world.machines if name not in names]
        ways = [(a, b) for a in sorted(names) for b in others]
        ways += [(b, a) for a, b in ways]
        for source, target in ways:
            network.cut(source, target)
        self.world.ensemble.look()

        def undo() -> None:
            for source, target in ways:
                network.heal(source, target)

        return undo

    def _weather(self, deed: Deed) -> Callable[[], None]:
        network = self.world.network
        loss = deed.amount if deed.verb == "rough" else 0.0
        delay_s = deed.amount if deed.verb == "slow_net" else 0.0
        weather = Weather(deed.verb, frozenset(deed.who), loss, delay_s)
        network.weather.append(weather)
        return lambda: network.weather.remove(weather) if weather in network.weather else None

    def _guest(self, deed: Deed) -> None:
        guests = self.world.guests
        running = [
            (machine.name, vm_id)
            for machine in self.world.host_machines
            for vm_id, vm in guests.host(machine.name).vms.items()
            if vm.state.value in {"running", "paused"}
        ]
        if not running:
            return
        name, vm_id = running[deed.number % len(running)]
        daemon = self.world.machines[name].processes.get("hypervisor")
        if daemon is None:
            return
        host = guests.host(name)

        def happen() -> None:
            if vm_id in host.vms and host.vms[vm_id].state.value in {"running", "paused"}:
                if deed.verb == "guest_off":
                    host.guest_powers_off(vm_id)
                else:
                    host.crash(vm_id)

        daemon.run(happen)


def _told(deed: Deed) -> str:
    return str(deed)[10:].strip()
