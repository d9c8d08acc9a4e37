"""A BMC that speaks IPMI 2.0 over the network."""

import asyncio

from snooze.common.power_options import IpmiOptions
from snooze.groupmanager.power.ipmi_workers import IpmiReply, IpmiRequest, IpmiWorkers
from snooze.groupmanager.power.port import PowerLimits, PowerState


class IpmiController:
    """A ``PowerController`` by IPMI; its calls are made by ``IpmiWorkers``."""

    can_read_state = True
    can_power_off = True

    def __init__(self, options: IpmiOptions, workers: IpmiWorkers, limits: PowerLimits) -> None:
        self._options = options
        self._workers = workers
        self._limits = limits

    def __repr__(self) -> str:
        return f"IpmiController({self._options.host!r}, port={self._options.port})"

    async def state(self) -> PowerState:
        """See the port."""
        return _state(await self._ask("state", self._limits.call_timeout_s))

    async def on(self) -> None:
        """See the port."""
        await self._ask("on", self._limits.call_timeout_s)

    async def off(self, *, hard: bool = True) -> PowerState:
        """See the port."""
        if not hard:
            return _state(await self._ask("shutdown", self._limits.call_timeout_s))
        return _state(await self._ask("off", self._limits.off_timeout_s))

    async def power_w(self) -> float | None:
        """See the port; by DCMI, which many BMCs do not know."""
        return (await self._ask("power_w", self._limits.call_timeout_s)).power_w

    async def close(self) -> None:
        """See the port; there is nothing to give back: each call has a session of its own."""

    async def _ask(self, op: str, limit_s: float) -> IpmiReply:
        options = self._options
        password = await asyncio.to_thread(options.password.read)
        return await self._workers.ask(
            IpmiRequest(
                op=op,
                host=options.host,
                port=options.port,
                user=options.user,
                password=password,
                kg=options.kg.text or None,
                kg_is_hex=options.kg_is_hex,
                privilege=options.privilege,
                poll_s=self._limits.poll_s,
                limit_s=limit_s,
            )
        )


def _state(reply: IpmiReply) -> PowerState:
    if reply.is_on is None:
        return PowerState.UNKNOWN
    return PowerState.ON if reply.is_on else PowerState.OFF
