"""What VMs used lately: rings of samples, refused when torn."""

import pytest

from snooze.common.resources import ZERO, Capacity
from snooze.common.vms import VmUsage
from snooze.common.wire import HostSamples
from snooze.groupmanager.manager.usage import KEPT, HostUsage, total


def samples(taken_ms: int, **cores: float) -> HostSamples:
    usages = [VmUsage(name, taken_ms, Capacity(used)) for name, used in cores.items()]
    return HostSamples.of(taken_ms, usages, Capacity(sum(cores.values())))


def test_the_newest_comes_first_and_only_of_the_vm_asked_for() -> None:
    usage = HostUsage()
    usage.add(samples(1, a=0.1, b=0.2))
    usage.add(samples(2, b=0.3))
    usage.add(samples(3, a=0.4))
    found = usage.of_vm("a", 10)
    assert [(sample.taken_ms, sample.used.cpu_cores) for sample in found] == [(3, 0.4), (1, 0.1)]
    assert len(usage.of_vm("a", 1)) == 1
    assert usage.of_vm("a", 0) == usage.of_vm("nobody", 10) == []


def test_only_so_many_are_kept() -> None:
    usage = HostUsage()
    for number in range(KEPT + 5):
        usage.add(samples(number, a=0.1))
    found = usage.of_vm("a", 1000)
    assert [sample.taken_ms for sample in found] == list(range(KEPT + 4, 4, -1))


@pytest.mark.parametrize(
    "message",
    [
        HostSamples(1, ["a"], b"\0" * 24, ZERO),
        HostSamples(1, ["a"], b"\0" * 31, ZERO),
        HostSamples(1, [], b"\0" * 32, ZERO),
        samples(1, a=float("nan")),
        samples(1, a=float("inf")),
    ],
)
def test_torn_samples_are_refused_and_change_nothing(message: HostSamples) -> None:
    usage = HostUsage()
    with pytest.raises(ValueError, match=r"sample|reshape|buffer"):
        usage.add(message)
    assert usage.of_vm("a", 10) == []
    assert usage.host_used == ZERO


def test_hosts_add_up() -> None:
    one, two = HostUsage(), HostUsage()
    one.add(samples(1, a=0.5))
    two.add(samples(1, b=0.25, c=1.0))
    assert total([one, two]).cpu_cores == 1.75
    assert total([]) == ZERO
