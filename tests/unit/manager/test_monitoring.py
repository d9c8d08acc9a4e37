"""What a manager keeps of samples: VMs that move, hosts that claim, messages that are torn."""

import numpy as np
import pytest

from snooze.common.resources import ZERO, Capacity
from snooze.common.usage import HostSamples, HostUsage, MachineUsage, Pressure, VmUsage
from snooze.groupmanager.manager import monitoring
from snooze.groupmanager.manager.monitoring import SAMPLES, Monitoring

PERIOD_S = 3.0


def samples(
    taken_ms: int = 0, machine: MachineUsage | None = None, **cores: float | None
) -> HostSamples:
    """``None`` for a VM without rates yet."""
    vms = [
        VmUsage(name, taken_ms, Capacity(used or 0.0), rated=used is not None)
        for name, used in cores.items()
    ]
    return HostSamples.of(taken_ms, HostUsage(vms, machine), round(PERIOD_S * 1000))


def one_vm(name: str) -> HostSamples:
    return HostSamples.of(0, HostUsage([VmUsage(name, 0, Capacity(0.5))]))


def cores(kept: Monitoring, vm_id: str, now_s: float) -> list[float | None]:
    """The window of one VM, oldest first; None where not valid."""
    window = kept.window([vm_id], now_s)
    return [
        float(sample[0]) if valid else None
        for sample, valid in zip(window.samples[0], window.valid[0], strict=True)
    ]


def test_the_newest_comes_first_and_only_of_the_vm_asked_for() -> None:
    kept = Monitoring(PERIOD_S)
    kept.push("h", samples(1, a=0.1, b=0.2), 0.0)
    kept.push("h", samples(2, b=0.3), 3.0)
    kept.push("h", samples(3, a=0.4), 6.0)
    found = kept.of_vm("a", 10)
    assert [(sample.taken_ms, sample.used.cpu_cores) for sample in found] == [(3, 0.4), (1, 0.1)]
    assert len(kept.of_vm("a", 1)) == 1
    assert kept.of_vm("a", 0) == kept.of_vm("nobody", 10) == []


def test_only_so_many_are_kept() -> None:
    kept = Monitoring(PERIOD_S)
    for number in range(SAMPLES + 5):
        kept.push("h", samples(number, a=0.1), number * PERIOD_S)
    found = kept.of_vm("a", 1000)
    assert [sample.taken_ms for sample in found] == list(range(SAMPLES + 4, 4, -1))


def test_a_missed_interval_is_seen_and_so_is_silence() -> None:
    kept = Monitoring(PERIOD_S, samples=5)
    for at_s, used in ((0.0, 0.1), (3.1, 0.2), (9.0, 0.4)):
        kept.push("h", samples(a=used), at_s)
    assert cores(kept, "a", 9.5) == [None, 0.1, 0.2, None, 0.4]
    assert cores(kept, "a", 14.0) == [0.1, 0.2, None, 0.4, None], "five seconds of silence"
    assert cores(kept, "a", 9000.0) == [None] * 5
    load = kept.host_load(["h", "nobody"], 14.0)
    assert load.age_s.tolist() == [5.0, float("inf")]
    assert load.fresh.tolist() == [False, False]
    assert kept.host_load(["h"], 12.5).fresh.tolist() == [True]
    assert kept.fresh(["a", "nobody"], 12.5).tolist() == [True, False]


def test_a_vm_that_moves_takes_its_history_along() -> None:
    kept = Monitoring(PERIOD_S, samples=4)
    kept.push("one", samples(a=0.1, b=0.9), 0.0)
    kept.push("two", samples(c=0.7), 1.0)
    kept.push("one", samples(a=0.2, b=0.9), 3.0)
    kept.push("two", samples(c=0.7, a=None), 4.0)  # the source has not told yet that it left
    kept.push("one", samples(b=0.9), 6.0)
    kept.push("two", samples(c=0.7, a=0.4), 7.0)
    assert cores(kept, "a", 7.5) == [None, 0.1, 0.2, 0.4]
    assert cores(kept, "c", 7.5) == [None, 0.7, 0.7, 0.7]


def test_samples_without_rates_take_their_place_and_are_not_valid() -> None:
    kept = Monitoring(PERIOD_S, samples=3)
    for at_s, used in ((0.0, 0.5), (3.0, None), (6.0, 0.25)):
        kept.push("h", samples(a=used), at_s)
    assert cores(kept, "a", 6.0) == [0.5, None, 0.25]


def test_a_vm_that_two_hosts_claim_stays_with_the_one_that_is_heard() -> None:
    kept = Monitoring(PERIOD_S, samples=3)
    for at_s in (0.0, 3.0, 6.0):
        kept.push("one", samples(a=0.1), at_s)
        kept.push("two", samples(a=0.9, b=0.5), at_s + 1)
    assert cores(kept, "a", 7.0) == [0.1, 0.1, 0.1]
    assert cores(kept, "b", 7.0) == [0.5, 0.5, 0.5]
    kept.push("two", samples(a=0.9, b=0.5), 12.0)  # "one" is silent
    kept.push("one", samples(a=0.1), 13.0)
    assert cores(kept, "a", 13.0) == [0.1, None, 0.9]
    kept.push("two", samples(b=0.5), 15.0)
    kept.push("one", samples(a=0.2), 16.0)
    assert cores(kept, "a", 16.0) == [None, 0.9, 0.2]


def test_history_survives_a_lost_link_for_a_while() -> None:
    kept = Monitoring(PERIOD_S)
    kept.push("one", samples(a=0.1), 0.0)
    kept.remove_host("one", 1.0)
    kept.remove_host("nobody", 1.0)
    assert kept.host_used("one") == ZERO
    kept.push("two", samples(a=0.2), 6.0)
    assert cores(kept, "a", 6.0)[-3:] == [0.1, None, 0.2]
    kept.remove_host("two", 7.0)
    kept.expire(8.0 + monitoring.RETENTION_S)
    assert kept.of_vm("a", 10) == []
    assert kept.size == (0, 0)


def test_rows_are_used_again_and_start_empty() -> None:
    kept = Monitoring(PERIOD_S, samples=2)
    for number in range(200):
        now_s = number * 2 * monitoring.RETENTION_S
        kept.push("h", one_vm(f"vm{number}"), now_s)
        kept.push(f"h{number}", samples(), now_s)
        kept.remove_host(f"h{number}", now_s)
        assert cores(kept, f"vm{number}", now_s) == [None, 0.5]
    assert kept.size == (1, 2)


def test_many_vms_that_went_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring, "MAX_RETIRED", 3)
    kept = Monitoring(PERIOD_S)
    for number in range(10):
        kept.push("h", one_vm(f"vm{number}"), number * PERIOD_S)
    assert kept.size == (1, 4)
    assert kept.of_vm("vm5", 1) == []
    assert len(kept.of_vm("vm6", 1)) == 1


BAD_MACHINES = (
    MachineUsage(Capacity(float("nan"))),
    MachineUsage(Capacity(-1.0)),
    MachineUsage(pressure=Pressure(cpu=1.5)),
    MachineUsage(pressure=Pressure(io=float("nan"))),
    MachineUsage(cores=float("inf")),
)


@pytest.mark.parametrize(
    "message",
    [
        HostSamples(1, ["a"], b"\0" * 24, ZERO),
        HostSamples(1, ["a"], b"\0" * 31, ZERO),
        HostSamples(1, [], b"\0" * 32, ZERO),
        HostSamples(1, ["a"], b"\0" * 32, ZERO, rated=b"\0\0"),
        HostSamples(1, ["a"], b"\0" * 32, ZERO, details=b"\0" * 31),
        HostSamples(1, ["a"], b"\0" * 32, ZERO, details=b"\xff" * 32),
        HostSamples(1, ["a", "a"], b"\0" * 64, ZERO),
        HostSamples(1, ["a" * 1000], b"\0" * 32, ZERO),
        HostSamples(1, [str(n) for n in range(2000)], b"\0" * 64000, ZERO),
        HostSamples(1, ["a"], b"\0" * 32, Capacity(float("inf"))),
        samples(1, a=float("nan")),
        samples(1, a=float("inf")),
        *(samples(1, machine, a=0.1) for machine in BAD_MACHINES),
    ],
)
def test_torn_samples_are_refused_and_change_nothing(message: HostSamples) -> None:
    kept = Monitoring(PERIOD_S)
    with pytest.raises(ValueError, match=r"sample|reshape|buffer|pressure"):
        kept.push("h", message, 0.0)
    assert kept.of_vm("a", 10) == []
    assert kept.size == (0, 0)
    assert kept.host_used("h") == ZERO


def test_a_sample_that_can_not_be_is_not_valid() -> None:
    kept = Monitoring(PERIOD_S, samples=2)
    kept.push("h", HostSamples(1, ["a"], np.array([-1.0, 0, 0, 0]).tobytes(), ZERO), 0.0)
    assert cores(kept, "a", 0.0) == [None, None]


def test_hosts_add_up() -> None:
    kept = Monitoring(PERIOD_S)
    kept.push("one", samples(a=0.5), 0.0)
    kept.push("two", samples(b=0.25, c=1.0), 0.0)
    assert kept.total_used().cpu_cores == 1.75
    assert kept.host_used("two").cpu_cores == 1.25
    assert Monitoring().total_used() == ZERO


def test_the_machine_is_told_where_it_is_measured() -> None:
    kept = Monitoring(PERIOD_S, samples=2)
    machine = MachineUsage(Capacity(3.0, 4.0), cores=8, pressure=Pressure(0.25, 0.5, 0.75))
    kept.push("one", samples(0, machine, a=0.5), 0.0)
    kept.push("two", samples(0, b=0.25), 0.0)
    load = kept.host_load(["two", "one", "nobody"], 0.0)
    assert load.measured.tolist() == [False, True, False]
    assert load.used.newest()[:, 0].tolist() == [0.25, 3.0, 0.0]
    assert load.pressure.newest()[1].tolist() == [0.25, 0.5, 0.75]
    assert load.pressure.valid[:, -1].tolist() == [False, True, False]
    assert kept.machine("one") == machine
    assert kept.machine("two") is kept.machine("nobody") is None


def test_the_long_past_is_kept_as_means() -> None:
    kept = Monitoring(PERIOD_S)
    for number in range(2000):
        kept.push("h", samples(a=float(number % 2)), number * PERIOD_S)
    past = kept.history(["a"], 2000 * PERIOD_S)
    assert past.valid[0].sum() == 20 + 1
    assert np.allclose(past.samples[0, past.valid[0], 0][1:-1], 0.5, atol=0.02)
    assert kept.history_period_s == 300


def test_a_host_that_measures_rarely_is_seen_all_the_time() -> None:
    kept = Monitoring(PERIOD_S, samples=8)
    usage = HostUsage([VmUsage("a", 0, Capacity(0.5))])
    for number in range(4):
        kept.push("h", HostSamples.of(0, usage, 10_000), number * 10.0)
    assert cores(kept, "a", 39.0) == [0.5] * 8
    assert cores(kept, "a", 46.0)[-1] is None
