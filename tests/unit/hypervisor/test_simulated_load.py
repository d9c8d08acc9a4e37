"""The load of a simulated guest, set by hand."""

from snooze.common.resources import Capacity
from snooze.common.vms import VmSpec
from snooze.localcontroller.hypervisor.simulated import SimulatedHypervisor
from snooze.localcontroller.hypervisor.simulated_world import SimulatedWorld


async def test_a_guest_burns_what_it_is_told_wherever_it_is() -> None:
    world = SimulatedWorld()
    host = SimulatedHypervisor(world, "h1")
    await host.open()
    await host.start(VmSpec("a" * 32, "burner", Capacity(4.0, 1024.0)))
    before = (await host.usage()).vms[0].used.cpu_cores
    assert before == 2.0
    world.loads["burner"] = 0.75
    used = (await host.usage()).vms[0].used
    assert (used.cpu_cores, used.memory_kib) == (3.0, 1024.0)
    del world.loads["burner"]
    assert (await host.usage()).vms[0].used.cpu_cores == before
