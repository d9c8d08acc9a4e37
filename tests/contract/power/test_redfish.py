"""Redfish beyond the contract: certificates, sessions, watts, slow machines, hostile answers.

The emulator of sushy-tools has neither sessions nor watts; a small service in this file has, as
DSP0266 and DSP0268 describe them.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from snooze.common.errors import (
    ExecutionError,
    PreconditionError,
    RemoteError,
    RemoteTimeout,
)
from snooze.common.power_options import RedfishOptions, parse_power
from snooze.groupmanager.power.port import PowerLimits, PowerState
from snooze.groupmanager.power.redfish import RedfishController

if TYPE_CHECKING:
    from tests.contract.power.conftest import Emulate

LIMITS = PowerLimits(call_timeout_s=15.0, off_timeout_s=40.0, poll_s=0.2)


def controller(options: str, limits: PowerLimits = LIMITS) -> RedfishController:
    meant = parse_power("REDFISH", options)
    assert isinstance(meant, RedfishOptions)
    return RedfishController(meant, limits)


# ---------------------------------------------------------------- with the emulator


async def test_a_machine_that_takes_seconds_is_waited_for(emulate: "Emulate") -> None:
    """Its fake machines go off 1 to 11 s after the order."""
    program = [str(Path(sys.executable).with_name("sushy-emulator")), "--fake"]
    with emulate(program=program) as emulator:
        power = controller(emulator.options())
        await power.on()
        async with asyncio.timeout(30):
            while await power.state() is not PowerState.ON:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        hasty = controller(emulator.options(), PowerLimits(5.0, 0.5, 0.1))
        with pytest.raises(RemoteTimeout):
            await hasty.off()
        assert await power.off() is PowerState.OFF
        await power.close()
        await hasty.close()


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate that vouches for itself and names 127.0.0.1, and its key."""
    chain, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 1"
    names = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(chain)]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return chain, key


async def test_a_certificate_is_looked_at_unless_told_otherwise(
    emulate: "Emulate", tmp_path: Path
) -> None:
    chain, key = certificate(tmp_path, "bmc")
    stranger, _ = certificate(tmp_path, "stranger")
    config = f"SUSHY_EMULATOR_SSL_CERT = {str(chain)!r}\nSUSHY_EMULATOR_SSL_KEY = {str(key)!r}\n"
    with emulate(config=config) as emulator:
        where = f"https://127.0.0.1:{emulator.port} -U admin -P geheim"
        for trust, is_good in {
            f"--ca-file {chain}": True,
            "--insecure": True,
            "": False,
            f"--ca-file {stranger}": False,
        }.items():
            power = controller(f"{where} {trust}")
            if is_good:
                assert await power.state() is PowerState.ON
            else:
                with pytest.raises(RemoteError, match="certificate verify failed") as caught:
                    await power.state()
                assert "geheim" not in str(caught.value)
            await power.close()
        missing = controller(f"{where} --ca-file {tmp_path}/none")
        with pytest.raises(PreconditionError, match="cannot be read"):
            await missing.state()


async def test_a_system_is_named_where_there_are_several(emulate: "Emulate") -> None:
    machines = [
        {"uuid": f"00000000-0000-0000-0000-00000000000{n}", "name": f"n{n}", "power_state": "Off"}
        for n in (1, 2)
    ]
    for machine in machines:
        machine["nics"] = []  # type: ignore[assignment]
    program = [str(Path(sys.executable).with_name("sushy-emulator")), "--fake"]
    with emulate(program=program, config=f"SUSHY_EMULATOR_FAKE_SYSTEMS = {machines!r}\n") as each:
        nameless = controller(each.options())
        with pytest.raises(PreconditionError, match="2 systems"):
            await nameless.state()
        named = controller(f"{each.options()} --system {machines[1]['uuid']}")
        assert await named.state() is PowerState.OFF
        stranger = controller(f"{each.options()} --system n3")
        with pytest.raises(PreconditionError, match="no system n3"):
            await stranger.state()
        for power in (nameless, named, stranger):
            await power.close()


# ---------------------------------------------------------------- with a service of our own


class Service:
    """A BMC with sessions and sensors; ``says`` replaces its answers, by path."""

    def __init__(self) -> None:
        self.says: dict[str, Any] = {}
        self.tokens: set[str] = set()
        self.log_ins = 0
        self.resets: list[str] = []
        self.state = "On"
        self.refuses_on = False
        self.port = 0

    def options(self, auth: str = "session") -> str:
        return f"http://127.0.0.1:{self.port} --insecure -U admin -P geheim --auth {auth}"

    async def answer(self, request: web.Request) -> web.Response:
        path = request.path
        if path == "/redfish/v1/SessionService/Sessions" and request.method == "POST":
            return await self._log_in(request)
        token = request.headers.get("X-Auth-Token", "")
        if path != "/redfish/v1/" and token not in self.tokens:
            return web.Response(status=401)
        if request.method == "DELETE":
            self.tokens.discard(token)
            return web.Response(status=204)
        if request.method == "POST":
            kind = (await request.json())["ResetType"]
            self.resets.append(kind)
            if self.refuses_on and kind == "On":
                return web.Response(status=409)
            self.state = "On" if kind == "On" else "Off"
            return web.Response(status=204)
        found = self.says.get(path, self._tree().get(path))
        if isinstance(found, bytes):
            return web.Response(body=found, content_type="application/json")
        return web.json_response(found) if found is not None else web.Response(status=404)

    async def _log_in(self, request: web.Request) -> web.Response:
        self.log_ins += 1
        if (await request.json()) != {"UserName": "admin", "Password": "geheim"}:
            return web.Response(status=401)
        token = f"token-{self.log_ins}"
        self.tokens.add(token)
        headers = {"X-Auth-Token": token, "Location": "/redfish/v1/SessionService/Sessions/7"}
        return web.Response(status=201, headers=headers)

    def _tree(self) -> dict[str, Any]:
        def link(path: str) -> dict[str, str]:
            return {"@odata.id": path}

        target = "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset"
        allowed = ["On", "ForceOff"]
        reset = {"target": target, "ResetType@Redfish.AllowableValues": allowed}
        return {
            "/redfish/v1/": {"Systems": link("/redfish/v1/Systems")},
            "/redfish/v1/Systems": {"Members": [link("/redfish/v1/Systems/1")]},
            "/redfish/v1/Systems/1": {
                "PowerState": self.state,
                "Actions": {"#ComputerSystem.Reset": reset},
                "Links": {"Chassis": [link("/redfish/v1/Chassis/1")]},
            },
            "/redfish/v1/Chassis/1": {"Power": link("/redfish/v1/Chassis/1/Power")},
            "/redfish/v1/Chassis/1/Power": {"PowerControl": [{"PowerConsumedWatts": 344}]},
        }


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    bmc = Service()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", bmc.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    bmc.port = runner.addresses[0][1]
    yield bmc
    await runner.cleanup()


async def test_a_session_is_kept_renewed_and_ended(service: Service) -> None:
    power = controller(service.options())
    assert await power.state() is PowerState.ON
    assert await power.off() is PowerState.OFF
    assert service.log_ins == 1
    service.tokens.clear()  # the BMC was restarted
    assert await power.state() is PowerState.OFF
    assert service.log_ins == 2
    await power.close()
    assert service.tokens == set()
    assert service.resets == ["ForceOff"]


async def test_a_wrong_password_for_a_session(service: Service) -> None:
    power = controller(service.options().replace("geheim", "falsch"))
    with pytest.raises(PreconditionError, match="refuses"):
        await power.state()
    assert service.log_ins == 1
    await power.close()


async def test_watts_by_the_older_way_and_by_the_newer(service: Service) -> None:
    power = controller(service.options())
    assert await power.power_w() == 344
    service.says["/redfish/v1/Chassis/1"] = {
        "EnvironmentMetrics": {"@odata.id": "/redfish/v1/Chassis/1/EnvironmentMetrics"},
        "Power": {"@odata.id": "/redfish/v1/Chassis/1/Power"},
    }
    assert await power.power_w() == 344
    metrics = "/redfish/v1/Chassis/1/EnvironmentMetrics"
    service.says[metrics] = {"PowerWatts": {"Reading": 120.5}}
    assert await power.power_w() == 120.5
    service.says["/redfish/v1/Chassis/1"] = {}
    assert await power.power_w() is None
    await power.close()


async def test_what_the_bmc_does_not_offer_is_not_asked(service: Service) -> None:
    power = controller(service.options())
    with pytest.raises(ExecutionError, match="GracefulShutdown"):
        await power.off(hard=False)
    assert service.resets == []
    await power.close()


async def test_a_refusal_to_switch_on_what_is_on_is_no_error(service: Service) -> None:
    service.refuses_on = True
    power = controller(service.options())
    await power.on()
    service.state = "Off"
    with pytest.raises(ExecutionError, match="409"):
        await power.on()
    await power.close()


NONSENSE: list[tuple[str, object]] = [
    ("/redfish/v1/Systems/1", {"PowerState": None}),
    ("/redfish/v1/Systems/1", {"PowerState": "off"}),
    ("/redfish/v1/Systems/1", {"PowerState": "geheim" * 1000}),
    ("/redfish/v1/Systems/1", {}),
    ("/redfish/v1/Systems/1", {"PowerState": ["Off"]}),
    ("/redfish/v1/Systems/1", b"{"),
    ("/redfish/v1/Systems/1", b"[" * 100_000),
    ("/redfish/v1/Systems/1", b" " * 3_000_000),
    ("/redfish/v1/Systems", {"Members": [{"@odata.id": "https://elsewhere/steal"}]}),
    ("/redfish/v1/Systems", {"Members": [{"@odata.id": "//elsewhere/steal"}]}),
    ("/redfish/v1/Systems", {"Members": [{"@odata.id": "http://[/"}]}),
    ("/redfish/v1/Systems", {"Members": [{}]}),
    ("/redfish/v1/", {}),
]


@pytest.mark.parametrize(("path", "says"), NONSENSE)
async def test_nonsense_is_never_off(service: Service, path: str, says: object) -> None:
    service.says[path] = says
    power = controller(service.options())
    for call in (power.state, power.off):
        with pytest.raises(RemoteError) as caught:
            await call()
        assert len(str(caught.value)) < 300
    await power.close()


async def test_a_reset_that_leads_elsewhere_is_not_followed(service: Service) -> None:
    for target in ("https://elsewhere/", "//elsewhere/", "elsewhere"):
        service.says["/redfish/v1/Systems/1"] = {
            "PowerState": "On",
            "Actions": {"#ComputerSystem.Reset": {"target": target}},
        }
        power = controller(service.options())
        with pytest.raises(RemoteError, match="away"):
            await power.off()
        await power.close()
