"""The PlanetLab world and the published policies against a naive rendering of their rules."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import _planetlab_reference as reference
from benchmarks import _planetlab_world as world_of
from benchmarks import planetlab
from benchmarks._planetlab_kernels import watts
from benchmarks._planetlab_world import Fleet, Ints, Mode

HOSTS, VMS, STEPS = 10, 34, 20
Percents = NDArray[np.uint8]


def restless_day(seed: int, vms: int = VMS, samples: int = 288) -> Percents:
    """Utilisation in percent: mostly low, with bursts and idle stretches."""
    rng = np.random.default_rng(seed)
    level = rng.integers(5, 70, size=(vms, 1)) * np.ones((1, samples))
    noise = rng.normal(0, 18, size=(vms, samples))
    day = np.clip(level + noise, 0, 100)
    day[rng.random(vms) < 0.15, 9:14] = 0
    return day.astype(np.uint8)


Entry = tuple[float, float, float]
Stay = tuple[float, float, float, bool]


@dataclass
class Vm:
    number: int
    mips: float
    ram: float
    percent: Percents
    home: "Host | None" = None
    moving: bool = False
    history: list[float] = field(default_factory=list[float])
    entries: list[Stay] = field(default_factory=list[Stay])

    def utilisation(self, now: float) -> float:
        samples = [*(float(p) / 100 for p in self.percent), float(self.percent[-1]) / 100]
        k = int(now // 300)
        return samples[k] + (samples[k + 1] - samples[k]) / 300.0 * (now - k * 300.0)

    def asked(self, now: float) -> float:
        return self.utilisation(now) * self.mips


@dataclass
class Host:
    number: int
    core: float
    watts: tuple[float, ...]
    vms: list[Vm] = field(default_factory=list[Vm])
    arriving: list[Vm] = field(default_factory=list[Vm])
    served: float = 0.0
    entries: list[Entry] = field(default_factory=list[Entry])

    @property
    def total(self) -> float:
        return 2 * self.core

    def shares(self, now: float) -> dict[int, float]:
        """MIPS each VM gets; arriving ones are charged a tenth."""
        want = {vm.number: min(vm.asked(now), self.core) for vm in self.vms}
        part = {vm.number: 0.1 if vm in self.arriving else 1.0 for vm in self.vms}
        need = sum(want[n] * part[n] for n in want)
        short = need > self.total
        result: dict[int, float] = {}
        for vm in self.vms:
            share = want[vm.number] * part[vm.number]
            if short:
                share *= self.total / need
            if vm.moving and vm not in self.arriving:
                share *= 0.9
            result[vm.number] = math.floor(share) if short else share
        return result

    def power(self, load: float) -> float:
        load = min(load, 1.0)
        low = min(int(load * 10), 9)
        return self.watts[low] + (self.watts[low + 1] - self.watts[low]) * (load * 10 - low)


class Naive:
    """The rules of the issue, object by object."""

    def __init__(self, fleet: Fleet, percent: Percents, places: Ints, compat: bool) -> None:
        self.hosts = [
            Host(i, float(fleet.core_mips[i]), tuple(fleet.power_w[i])) for i in range(HOSTS)
        ]
        self.vms = [
            Vm(i, float(fleet.vm_mips[i]), float(fleet.ram_mb[i]), percent[i])
            for i in range(len(percent))
        ]
        for vm in self.vms:
            if places[vm.number] >= 0:
                home = self.hosts[int(places[vm.number])]
                vm.home = home
                home.vms.append(vm)
        self.compat = compat
        self.energy = 0.0
        self.last = 0.0
        self.moves = 0

    def serve(self, now: float) -> None:
        for host in self.hosts:
            shares = host.shares(now)
            host.served = 0.0
            asked = 0.0
            for vm in host.vms:
                share = shares[vm.number]
                asked += vm.asked(now)
                if vm not in host.arriving:
                    vm.entries = [e for e in vm.entries if e[0] != now]
                    vm.entries.append((now, share, vm.asked(now), vm.moving))
                    share = share / 0.9 if vm.moving else share
                host.served += share
            host.entries = [e for e in host.entries if e[0] != now]
            host.entries.append((now, host.served, asked))

    def advance(self, now: float) -> None:
        before = [host.served for host in self.hosts]
        self.serve(now)
        for host, was in zip(self.hosts, before, strict=True):
            if was > 0:
                ends = host.power(was / host.total) + host.power(host.served / host.total)
                self.energy += ends / 2 * (now - self.last)
        self.last = now
        self.let_go(now)

    def let_go(self, now: float) -> None:
        for vm in self.vms:
            if self.compat and vm.home and not vm.moving and vm.asked(now) == 0:
                vm.home.vms.remove(vm)
                vm.home = None

    def migrate(self, now: float, plan: list[tuple[int, int]]) -> None:
        self.moves += len(plan)
        for number, target in plan:
            self.vms[number].moving = True
            self.hosts[target].vms.append(self.vms[number])
            self.hosts[target].arriving.append(self.vms[number])
        self.serve(now)
        for ram in sorted({self.vms[number].ram for number, _ in plan}):
            self.advance(now + ram / 62.5)
            for number, target in plan:
                vm = self.vms[number]
                if vm.ram != ram:
                    continue
                assert vm.home is not None
                vm.home.vms.remove(vm)
                self.hosts[target].arriving.remove(vm)
                self.hosts[target].vms.remove(vm)
                self.hosts[target].vms.append(vm)
                vm.home, vm.moving = self.hosts[target], False
            self.serve(self.last)
            self.let_go(self.last)

    def slatah(self) -> float:
        active = bad = 0.0
        for host in self.hosts:
            for (t0, served, asked), (t1, _, _) in zip(
                host.entries, host.entries[1:], strict=False
            ):
                if served > 0:
                    active += t1 - t0
                    bad += (t1 - t0) * (served < asked)
        return bad / active

    def pdm(self) -> float:
        lost = total = 0.0
        for vm in self.vms:
            for (t0, got, asked, moving), (t1, *_) in zip(vm.entries, vm.entries[1:], strict=False):
                total += asked * (t1 - t0)
                lost += max(asked - got, 0.0) * (t1 - t0) * moving
        return lost / total

    def shutdowns(self) -> int:
        count = 0
        for host in self.hosts:
            was = True
            for _, served, _ in host.entries:
                count += was and not served > 0
                was = served > 0
        return count


class NaivePolicy:
    """Power-aware best fit, MMT and a detector, as ``_planetlab_reference`` describes them."""

    def __init__(self, name: str, parameter: float) -> None:
        self.name, self.parameter = name, parameter

    def overloaded(self, host: Host, vms: list[Vm], now: float) -> bool:
        use = sum(vm.asked(now) for vm in vms) / host.total
        if self.name == "thr":
            return use > self.parameter
        longest = max((len(vm.history) for vm in vms), default=0)
        newest = [
            sum(vm.history[t] * vm.mips / host.total for vm in vms if t < len(vm.history))
            for t in range(min(longest, 30))
        ]
        while newest and newest[-1] == 0:
            newest.pop()
        if self.name == "lr":
            if len(newest) < 10:
                return use > 0.7
            slope, start = np.polyfit(np.arange(1, 11), newest[9::-1], 1)
            return bool((start + slope * 11) * self.parameter >= 1)
        if len(newest) < 12:
            return use > 0.7
        if self.name == "mad":
            middle = float(np.median(newest))
            return use > 1 - self.parameter * float(np.median(np.abs(np.array(newest) - middle)))
        ranked, n = sorted(newest), len(newest) + 1
        spread = ranked[math.floor(0.75 * n + 0.5) - 1] - ranked[math.floor(0.25 * n + 0.5) - 1]
        return use > 1 - self.parameter * spread

    def plan(self, world: Naive, now: float) -> list[tuple[int, int]]:
        on: dict[int, list[Vm]] = {host.number: list(host.vms) for host in world.hosts}
        start = {h.number: watts(np.array(h.watts), h.served / h.total) for h in world.hosts}

        def find(vm: Vm, closed: set[int]) -> int | None:
            best, least = None, math.inf
            for host in world.hosts:
                here = on[host.number]
                want = [min(v.asked(now), host.core) for v in here]
                free, used = host.total - sum(want), sum(want)
                if free < 0:
                    used = sum(math.floor(w * (host.total / sum(want))) for w in want)
                if host.number in closed or vm.asked(now) > min(host.core, max(free, 0.0)):
                    continue
                if used and self.overloaded(host, [*here, vm], now):
                    continue
                load = (used + vm.asked(now)) / host.total
                rise = watts(np.array(host.watts), load) - start[host.number]
                if rise < least:
                    best, least = host.number, rise
            return best

        hot = {h.number for h in world.hosts if self.overloaded(h, on[h.number], now)}
        leaving: list[Vm] = []
        for number in sorted(hot):
            while on[number]:
                vm = min(on[number], key=lambda v: v.ram)
                leaving.append(vm)
                on[number].remove(vm)
                if not self.overloaded(world.hosts[number], on[number], now):
                    break
        plan: list[tuple[int, int]] = []
        for vm in sorted(leaving, key=lambda v: -v.asked(now)):
            target = find(vm, hot)
            if target is not None:
                on[target].append(vm)
                plan.append((vm.number, target))
        seen = hot | {h.number for h in world.hosts if h.served == 0}
        closed = set(seen)
        while True:
            left = [h for h in world.hosts if h.number not in seen and h.served / h.total < 1]
            if not left:
                return plan
            source = min(left, key=lambda h: h.served / h.total)
            seen.add(source.number)
            closed.add(source.number)
            placed: list[tuple[int, int]] = []
            for vm in sorted(on[source.number], key=lambda v: -v.asked(now)):
                target = find(vm, closed)
                if target is None:
                    for number, host in placed:
                        on[host].remove(world.vms[number])
                    placed = []
                    break
                on[target].append(vm)
                placed.append((vm.number, target))
            plan += placed
            seen.update(target for _, target in placed)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("thr", "compat"), ("thr", "clean"), ("iqr", "compat"), ("mad", "clean"), ("lr", "compat")],
)
def test_published_policies_do_what_a_naive_rendering_does(name: str, mode: Mode) -> None:
    percent = restless_day(seed=len(name) + len(mode))
    fleet = world_of.Fleet.of(percent, hosts=HOSTS)
    world = world_of.World(fleet, mode)
    places = np.arange(VMS) % HOSTS
    places[0] = -1
    world.place(places)
    policy = reference.Published(fleet, *reference.PUBLISHED[name])
    naive = Naive(fleet, percent, places, compat=mode == "compat")
    naive_policy = NaivePolicy(name, reference.PUBLISHED[name][1])
    now = world_of.START_S
    for _ in range(STEPS):
        now += world_of.PERIOD_S
        world.advance(now)
        naive.advance(now)
        for vm in naive.vms:
            vm.history = [vm.utilisation(now), *vm.history][:30]
        plan = [(int(vm), int(host)) for vm, host in zip(*policy.plan(world), strict=True)]
        assert plan == naive_policy.plan(naive, now)
        world.migrate(np.array([v for v, _ in plan], int), np.array([h for _, h in plan], int))
        naive.migrate(now, plan)
        assert world.host_of.tolist() == [vm.home.number if vm.home else -1 for vm in naive.vms]
    meters = world.meters
    assert meters.migrations == naive.moves > 0
    assert meters.energy_j == pytest.approx(naive.energy, rel=1e-9)
    assert meters.slatah == pytest.approx(naive.slatah(), rel=1e-9)
    assert meters.pdm == pytest.approx(naive.pdm(), rel=1e-9)
    assert meters.shutdowns == naive.shutdowns()


def test_power_is_linear_between_its_points_and_bounded_by_its_ends() -> None:
    fleet = world_of.Fleet.of(restless_day(1), hosts=2)
    assert fleet.watts(np.array([0.0, 0.0])).tolist() == [86.0, 93.7]
    assert fleet.watts(np.array([1.0, 1.5])).tolist() == [117.0, 135.0]
    assert fleet.watts(np.array([0.05, 0.95])) == pytest.approx([87.7, 134.0])


def test_first_places_keep_memory_and_full_speed() -> None:
    fleet = world_of.Fleet.of(restless_day(2, vms=60), hosts=16)
    places = reference.first_places(fleet)
    for host in range(16):
        here = np.flatnonzero(places == host)
        assert fleet.ram_mb[here].sum() <= world_of.HOST_RAM_MB
        assert fleet.vm_mips[here].sum() <= fleet.total_mips[host]
        assert (fleet.vm_mips[here] <= fleet.core_mips[host]).all()
    assert (places == -1).any()


def test_a_sleepy_world_charges_sleep_idling_and_waking() -> None:
    percent = np.zeros((2, 288), dtype=np.uint8)
    percent[0] = 40
    fleet = world_of.Fleet.of(percent, hosts=4)
    plain = world_of.World(fleet, "clean")
    sleepy = world_of.SleepyWorld(fleet, "clean", asleep_w=4.0)
    for world in (plain, sleepy):
        world.place(np.array([1, 3]))
        world.advance(300.1)
        world.advance(600.1)
    idling_j = 93.7 * 300  # the VM on host 3 asks for nothing, and keeps it running
    assert sleepy.meters.energy_j == pytest.approx(plain.meters.energy_j + idling_j)
    assert sleepy.asleep_j == pytest.approx(2 * 4.0 * 300)
    sleepy.promise(np.array([0]), np.array([2]))
    assert sleepy.waking_j == pytest.approx((117.0 - 4.0) * 300)
    assert [part.tolist() for part in sleepy.kept_promises()] == [[0], [2]]
    assert [part.tolist() for part in sleepy.kept_promises()] == [[], []]


def test_the_command_reports_the_default_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "20990101.npz", utilisation_percent=restless_day(3, vms=12))
    output = tmp_path / "out.json"
    arguments = ["--data", str(tmp_path), "--output", str(output), "--mode", "clean", "--check"]
    assert planetlab.main([*arguments, "--policy", "default", "--wake"]) == 0
    assert "20990101" in capsys.readouterr().out
    report = json.loads(output.read_text())
    (run,) = report["runs"]
    assert {"mode", "day", "policy", "energy_kwh", "migrations", "slatah", "pdm"} < set(run)
    assert {"slav", "esv", "shutdowns", "seconds"} < set(run)
    assert (run["mode"], run["day"], run["policy"]) == ("clean", "20990101", "default")
    assert run["esv"] == pytest.approx(run["energy_kwh"] * run["slatah"] * run["pdm"])
    (floor,) = report["floors_kwh"]
    assert floor["energy_kwh"] < run["energy_kwh"] < report["wake_runs"][0]["energy_kwh"]


@pytest.mark.parametrize("content", [None, b"no archive"])
def test_without_traces_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "20990101.npz").write_bytes(content)
    assert planetlab.main(["--data", str(tmp_path)]) == 2
    assert "no traces" in capsys.readouterr().err
