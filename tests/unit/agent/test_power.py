"""Going down: what is offered, what is refused, what is run."""

import asyncio
import os
from pathlib import Path

import pytest

from snooze.common.errors import Conflict, ExecutionError, PreconditionError
from snooze.common.resources import Capacity
from snooze.common.settings_localcontroller import LocalControllerSettings
from snooze.common.settings_power import PowerDownSettings, WakeupSettings
from snooze.common.vm_lifecycle import VmCommand
from snooze.common.vms import VmSpec
from snooze.common.wire import CommandVm, StartVm
from snooze.localcontroller.drivers import power_description
from snooze.localcontroller.hypervisor.port import MigrationOptions
from snooze.localcontroller.hypervisor.simulated import SimulatedHypervisor
from snooze.localcontroller.hypervisor.simulated_world import SimulatedWorld
from snooze.localcontroller.orders import Orders
from snooze.localcontroller.power import (
    CommandPower,
    HostPowerDown,
    IpmiPower,
    PowerAction,
    PowerDownDriver,
    SimulatedPowerDown,
    SystemdPower,
    make_power,
)

ALL = tuple(action.value for action in PowerAction)


def script(folder: Path, text: str, name: str = "down") -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


class TestOffers:
    def test_a_machine_offers_what_its_kernel_knows(self, tmp_path: Path) -> None:
        states = tmp_path / "state"
        driver = SystemdPower(states, tmp_path)
        if driver.why_not(PowerAction.SHUTDOWN):
            pytest.skip("there is no systemctl")
        host = HostPowerDown(driver, ALL)
        assert host.actions() == ("shutdown",)
        states.write_text("freeze mem\n")
        assert host.actions() == ("shutdown", "suspend_to_ram")
        states.write_text("freeze mem disk\n")
        assert host.actions() == ALL

    def test_a_machine_without_systemd_offers_nothing_by_it(self, tmp_path: Path) -> None:
        host = HostPowerDown(SystemdPower(systemd=tmp_path / "none"), ALL)
        assert host.actions() == ()
        with pytest.raises(PreconditionError, match="systemd does not run"):
            host.check("shutdown")

    def test_what_the_settings_do_not_hold_is_refused(self) -> None:
        host = HostPowerDown(SimulatedPowerDown(), ("suspend_to_ram", "shutdown"))
        assert host.actions() == ("suspend_to_ram", "shutdown")
        assert host.check("shutdown") is PowerAction.SHUTDOWN
        for action in ("suspend_to_disk", "", "; reboot", "x" * 1000):
            with pytest.raises(PreconditionError):
                host.check(action)

    def test_a_bmc_cannot_suspend(self) -> None:
        assert "suspend" in IpmiPower().why_not(PowerAction.SUSPEND_TO_RAM)

    def test_a_command_has_to_be_there(self, tmp_path: Path) -> None:
        assert CommandPower("/no/such {action}").why_not(PowerAction.SHUTDOWN)
        assert CommandPower("").why_not(PowerAction.SHUTDOWN)
        assert not CommandPower(script(tmp_path, "true")).why_not(PowerAction.SHUTDOWN)

    def test_the_settings_choose(self) -> None:
        for name, kind in {
            "systemd": SystemdPower,
            "ipmi": IpmiPower,
            "test": SimulatedPowerDown,
        }.items():
            settings = PowerDownSettings(driver=name)  # type: ignore[arg-type]
            assert isinstance(make_power(settings), kind)
        settings = PowerDownSettings(driver="command", command="x {action}")
        assert isinstance(make_power(settings), CommandPower)


class TestGoingDown:
    async def test_a_command_is_told_the_action(self, tmp_path: Path) -> None:
        command = CommandPower(f"{script(tmp_path, f'echo $1 $2 >{tmp_path}/said')} -a {{action}}")
        await command.go_down(PowerAction.SUSPEND_TO_RAM)
        assert (tmp_path / "said").read_text() == "-a suspend_to_ram\n"

    async def test_one_that_fails_at_once_says_why(self, tmp_path: Path) -> None:
        command = CommandPower(script(tmp_path, "echo no permission >&2; exit 3"))
        with pytest.raises(ExecutionError, match="ended with 3: no permission"):
            await command.go_down(PowerAction.SHUTDOWN)

    async def test_one_that_goes_on_is_left_to_it(self, tmp_path: Path) -> None:
        command = CommandPower(script(tmp_path, f"sleep 2; touch {tmp_path}/done"))
        await command.go_down(PowerAction.SHUTDOWN)
        assert not (tmp_path / "done").exists()
        async with asyncio.timeout(30):
            while not (tmp_path / "done").exists():  # noqa: ASYNC110 (a file)
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)

    @pytest.mark.parametrize(
        ("driver", "action", "run"),
        [
            (SystemdPower(), PowerAction.SHUTDOWN, "systemctl poweroff"),
            (SystemdPower(), PowerAction.SUSPEND_TO_RAM, "systemctl suspend"),
            (SystemdPower(), PowerAction.SUSPEND_TO_DISK, "systemctl hibernate"),
            (SystemdPower(), PowerAction.SUSPEND_TO_BOTH, "systemctl hybrid-sleep"),
            (IpmiPower(), PowerAction.SHUTDOWN, "ipmitool -I open chassis power soft"),
        ],
    )
    async def test_what_is_run(
        self,
        driver: PowerDownDriver,
        action: PowerAction,
        run: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name in ("systemctl", "ipmitool"):
            script(tmp_path, f'echo {name} "$@" >{tmp_path}/said', name)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        await driver.go_down(action)
        assert (tmp_path / "said").read_text() == f"{run}\n"

    async def test_the_fake_falls(self) -> None:
        fallen: list[PowerAction] = []
        await SimulatedPowerDown(fallen.append).go_down(PowerAction.SHUTDOWN)
        assert fallen == [PowerAction.SHUTDOWN]


def spec(vm_id: str) -> VmSpec:
    return VmSpec(vm_id * 32, f"vm-{vm_id}", Capacity(1.0, 131072.0), 1)


class TestOrders:
    async def test_no_host_goes_down_with_a_vm_that_is_on(self) -> None:
        hypervisor = SimulatedHypervisor(SimulatedWorld(), "h1")
        await hypervisor.open()
        orders = Orders(hypervisor, MigrationOptions(), 1, lambda notice: None)
        await orders.carry_out(StartVm(1, "t", spec("a")))
        with pytest.raises(Conflict, match="'vm-a' is one"):
            await orders.prepare_to_go_down()
        await orders.carry_out(StartVm(1, "t", spec("b")))
        for vm_id in ("a", "b"):
            await orders.carry_out(CommandVm(1, "t", vm_id * 32, VmCommand.SHUTDOWN))
        await orders.prepare_to_go_down()

    async def test_what_goes_down_takes_nothing_in_until_it_stays(self) -> None:
        hypervisor = SimulatedHypervisor(SimulatedWorld(), "h1")
        await hypervisor.open()
        orders = Orders(hypervisor, MigrationOptions(), 1, lambda notice: None)
        await orders.carry_out(StartVm(1, "t", spec("a")))
        await orders.carry_out(CommandVm(1, "t", "a" * 32, VmCommand.SHUTDOWN))
        await orders.prepare_to_go_down()
        for order in (StartVm(1, "t", spec("b")), CommandVm(1, "t", "a" * 32, VmCommand.START)):
            with pytest.raises(Conflict, match="going down"):
                await orders.carry_out(order)
        await orders.carry_out(CommandVm(1, "t", "a" * 32, VmCommand.DESTROY))
        orders.stay_up()
        await orders.carry_out(StartVm(1, "t", spec("b")))


class TestDescription:
    def test_it_has_the_password_and_does_not_show_it(self) -> None:
        settings = LocalControllerSettings(
            wakeup=WakeupSettings(options="-H bmc -U u -P geheim"),
            power=PowerDownSettings(idle_w=90.0),
        )
        told = power_description(settings, ("shutdown",))
        assert told.options.endswith("-P geheim")
        assert (told.driver, told.actions, told.idle_w) == ("IPMI", ("shutdown",), 90)
        assert "geheim" not in repr(told)

    def test_without_options_nothing_wakes_it(self) -> None:
        assert power_description(LocalControllerSettings(), ()).driver == ""
        test = LocalControllerSettings(wakeup=WakeupSettings(driver="test"))
        assert power_description(test, ()).driver == "test"
