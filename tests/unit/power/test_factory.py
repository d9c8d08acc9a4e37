"""From descriptions and the operator's overrides to controllers."""

import asyncio
import os
from pathlib import Path

import pytest

from snooze.common.errors import InvalidRequest, RemoteError, SettingsError
from snooze.common.records import HostRecord
from snooze.common.resources import Capacity
from snooze.common.settings_power import PowerControlSettings
from snooze.common.wire import Address, HostDescription, PowerDescription
from snooze.groupmanager.power.command import CommandController
from snooze.groupmanager.power.factory import PowerDrivers
from snooze.groupmanager.power.ipmi import IpmiController
from snooze.groupmanager.power.overrides import PowerOverrides
from snooze.groupmanager.power.port import PowerState
from snooze.groupmanager.power.redfish import RedfishController
from snooze.groupmanager.power.wake_on_lan import WakeOnLanController

IPMI = "-H bmc -U u -P geheim"


def described(driver: str, options: str, hostname: str = "h1") -> HostDescription:
    power = PowerDescription(driver=driver, options=options)
    where = Address("127.0.0.1", 1)
    return HostDescription(f"id-{hostname}", hostname, where, Capacity(1, 1, 1, 1), power=power)


def recorded(host: HostDescription) -> HostRecord:
    return HostRecord(host.host_id, host.hostname, host.control, "gm", 1, power=host.power)


async def test_a_record_gives_the_same_controller_as_the_host_itself() -> None:
    drivers = PowerDrivers()
    host = described("IPMI", IPMI)
    controller = drivers.controller(host)
    assert isinstance(controller, IpmiController)
    assert drivers.controller(recorded(host)) is controller
    assert drivers.controller(described("WOL", "52:54:00:12:34:56")) is not controller
    assert "geheim" not in repr(controller)
    await drivers.close()


async def test_a_host_that_tells_no_driver_or_nonsense_is_refused() -> None:
    drivers = PowerDrivers()
    with pytest.raises(InvalidRequest, match="h1 tells no way"):
        drivers.controller(described("", ""))
    with pytest.raises(InvalidRequest, match="-H HOST"):
        drivers.controller(described("IPMI", "-P geheim"))
    await drivers.close()


@pytest.mark.parametrize(
    ("driver", "options", "wakes"),
    [
        ("", "", False),
        ("IPMI", IPMI, True),
        ("IPMI", "-P geheim", False),
        ("WOL", "52:54:00:12:34:56", True),
        ("COMMAND", "--off /bin/off --status /bin/status", False),
        ("COMMAND", "--on /bin/on", True),
        ("kapower3", "-m node-7", True),
        ("test", "", True),
    ],
)
def test_what_can_wake_a_host(driver: str, options: str, *, wakes: bool) -> None:
    drivers = PowerDrivers(run_commands_of_hosts=True)
    assert drivers.can_wake(described(driver, options)) is wakes


async def test_commands_are_the_operators_word(tmp_path: Path) -> None:
    host = described("COMMAND", "--on /bin/true")
    drivers = PowerDrivers()
    assert not drivers.can_wake(host)
    with pytest.raises(InvalidRequest, match=r"power\.overrides_file"):
        drivers.controller(host)
    await drivers.close()
    table = '[hosts.h1]\ndriver = "COMMAND"\noptions = "--on /bin/true"\n'
    drivers = PowerDrivers(overrides=PowerOverrides(overrides_file(tmp_path, table)))
    assert drivers.can_wake(host)
    assert isinstance(drivers.controller(host), CommandController)
    await drivers.close()


async def test_a_simulated_machine_is_named_as_its_host() -> None:
    drivers = PowerDrivers()
    drivers.world.machine("h1").switch(False)
    assert await drivers.controller(described("test", "")).state() is PowerState.OFF
    assert await drivers.controller(described("test", "other", "h2")).state() is PowerState.ON
    drivers.forget("id-h1")
    await drivers.close()
    await drivers.close()


def overrides_file(folder: Path, text: str, mode: int = 0o600) -> str:
    path = folder / "power.toml"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


TEXT = """
[hosts."*"]
driver = "IPMI"
options = "-H {hostname}-bmc -U u -P geheim"
[hosts.h2]
driver = "WOL"
options = "52:54:00:12:34:56"
[hosts.id-h3]
driver = "REDFISH"
options = "https://10.0.0.3"
"""


class TestOverrides:
    async def test_the_operator_goes_before_the_host(self, tmp_path: Path) -> None:
        path = overrides_file(tmp_path, TEXT)
        drivers = PowerDrivers.of(PowerControlSettings(overrides_file=path))
        host = described("test", "")
        assert drivers.describe(host).options == "-H h1-bmc -U u -P geheim"
        assert isinstance(drivers.controller(host), IpmiController)
        assert isinstance(drivers.controller(described("", "", "h2")), WakeOnLanController)
        assert isinstance(drivers.controller(described("", "", "h3")), RedfishController)
        await drivers.close()

    async def test_what_the_host_says_of_its_sleep_still_holds(self, tmp_path: Path) -> None:
        told = PowerDescription(driver="test", actions=("shutdown",), idle_w=100.0)
        overrides = PowerOverrides(overrides_file(tmp_path, TEXT))
        found = overrides.of("id", "h1", told)
        assert (found.driver, found.actions, found.idle_w) == ("IPMI", ("shutdown",), 100)

    @pytest.mark.parametrize("name", ["-Pgeheim", "a b", "a'b", "", "h/1", "h\n"])
    def test_a_host_does_not_name_itself_into_options(self, name: str, tmp_path: Path) -> None:
        told = PowerDescription(driver="test")
        overrides = PowerOverrides(overrides_file(tmp_path, TEXT))
        assert overrides.of("id", name, told) is told

    def test_it_is_read_again_when_it_changes(self, tmp_path: Path) -> None:
        told = PowerDescription()
        path = overrides_file(tmp_path, TEXT)
        overrides = PowerOverrides(path)
        version = overrides.version()
        assert overrides.version() == version
        new = '[hosts.h1]\ndriver = "test"\noptions = ""\n'
        os.utime(overrides_file(tmp_path, new), ns=(1, 1))
        assert overrides.version() != version, "who keeps what it says is told so"
        assert overrides.of("", "h1", told).driver == "test"
        os.utime(overrides_file(tmp_path, "nonsense"), ns=(2, 2))
        assert overrides.of("", "h1", told).driver == "test"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ('[hosts.h1]\ndriver = "bell"\noptions = ""', "driver"),
            ('[hosts.h1]\ndriver = "IPMI"\noptions = "-P geheim"', "h1: .*-H HOST"),
            ('[hosts.h1]\ndriver = "IPMI"\noptions = "geheim', "TOML .at"),
            ('[host.h1]\ndriver = "IPMI"', "host"),
        ],
    )
    def test_a_wrong_one_stops_the_start(self, text: str, said: str, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=said) as caught:
            PowerOverrides(overrides_file(tmp_path, text))
        assert "geheim" not in str(caught.value)

    def test_one_that_everybody_may_read_stops_the_start(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="chmod o="):
            PowerOverrides(overrides_file(tmp_path, TEXT, 0o644))
        with pytest.raises(SettingsError, match="cannot be read"):
            PowerOverrides(str(tmp_path / "none"))


async def test_a_question_that_is_under_way_when_its_host_says_something_else_ends() -> None:
    """It would open a connection that nobody closes, which is a warning."""
    drivers = PowerDrivers()
    asked = asyncio.ensure_future(
        drivers.controller(described("REDFISH", "https://127.0.0.1:9")).state()
    )
    await asyncio.sleep(0)
    drivers.controller(described("REDFISH", "https://127.0.0.1:10"))
    with pytest.raises(RemoteError, match="closed"):
        await asked
    await drivers.close()
