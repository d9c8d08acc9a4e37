"""A BMC that speaks Redfish: JSON over HTTPS.

The system is looked up once: root, list of systems, and there the one that is named or the only
one. Links are followed on the same server only.
"""

import asyncio
import base64
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import msgspec

from snooze.common.errors import (
    ExecutionError,
    PreconditionError,
    RemoteError,
    RemoteTimeout,
    SnoozeError,
)
from snooze.common.power_options import RedfishOptions
from snooze.common.transport.delivery import not_sent
from snooze.common.transport.http_client import HttpClient, HttpClientLimits, HttpReply
from snooze.groupmanager.power.port import PowerLimits, PowerState
from snooze.groupmanager.power.redfish_messages import (
    Chassis,
    Collection,
    EnvironmentMetrics,
    Link,
    Power,
    Root,
    System,
)

T = TypeVar("T")

_ROOT: Final = "/redfish/v1/"
_SESSIONS: Final = "/redfish/v1/SessionService/Sessions"
_AGAIN_S: Final = 10.0  # An order to switch off is repeated as long as the machine is on.
_LIMITS: Final = HttpClientLimits(
    connections=4, connect_attempts=1, max_reply_bytes=2 * 1024 * 1024
)

_OFF: Final = "Off"
_NOT_OFF: Final = frozenset({"On", "PoweringOn", "PoweringOff", "Paused"})
"""Of the states, those that are not off; any other word is nonsense."""


class RedfishController:
    """A ``PowerController`` by Redfish."""

    can_read_state = True
    can_power_off = True

    def __init__(self, options: RedfishOptions, limits: PowerLimits) -> None:
        self._options = options
        self._limits = limits
        self._client: HttpClient | None = None
        self._closed = False
        self._opening = asyncio.Lock()
        self._system = ""
        self._token = ""
        self._session = ""

    def __repr__(self) -> str:
        return f"RedfishController({self._options.url!r})"

    # ------------------------------------------------------------ the port

    async def state(self) -> PowerState:
        """See the port."""
        async with self._within(self._limits.call_timeout_s):
            return _state(await self._read_system())

    async def on(self) -> None:
        """See the port; ordered also if it is on: one suspended to RAM may count as on."""
        async with self._within(self._limits.call_timeout_s):
            try:
                await self._reset(await self._read_system(), "On")
            except ExecutionError:
                if _state(await self._read_system()) is not PowerState.ON:
                    raise

    async def off(self, *, hard: bool = True) -> PowerState:
        """See the port."""
        if not hard:
            async with self._within(self._limits.call_timeout_s):
                system = await self._read_system()
                if _state(system) is not PowerState.OFF:
                    await self._reset(system, "GracefulShutdown")
                    system = await self._read_system()
                return _state(system)
        async with self._within(self._limits.off_timeout_s):
            looks, again = 0, max(1, round(_AGAIN_S / self._limits.poll_s))
            while _state(system := await self._read_system()) is not PowerState.OFF:
                if looks % again == 0:
                    await self._reset(system, "ForceOff")
                looks += 1
                await asyncio.sleep(self._limits.poll_s)
            return PowerState.OFF

    async def power_w(self) -> float | None:
        """See the port: of the box that the system is in."""
        async with self._within(self._limits.call_timeout_s):
            links = (await self._read_system()).links.chassis
            if not links:
                return None
            chassis = await self._get(links[0].path, Chassis)
            if chassis.environment_metrics is not None:
                metrics = await self._find(chassis.environment_metrics, EnvironmentMetrics)
                if metrics is not None and metrics.power_watts.reading is not None:
                    return metrics.power_watts.reading
            if chassis.power is not None:
                power = await self._find(chassis.power, Power)
                if power is not None and power.power_control:
                    return power.power_control[0].power_consumed_watts
            return None

    async def close(self) -> None:
        """See the port; ends the session, if there is one, and what is under way."""
        self._closed = True
        client, self._client = self._client, None
        if client is None:
            return
        try:
            if self._session:
                headers = {"X-Auth-Token": self._token}
                await client.send(
                    "DELETE",
                    self._options.url + self._session,
                    timeout_s=self._limits.call_timeout_s,
                    headers=headers,
                )
        except SnoozeError:
            pass  # The BMC ends it by itself.
        finally:
            self._token = self._session = ""
            await client.close()

    # ------------------------------------------------------------ the system

    async def _read_system(self) -> System:
        if not self._system:
            self._system = await self._find_system()
        return await self._get(self._system, System)

    async def _find_system(self) -> str:
        root = await self._get(_ROOT, Root)
        if root.systems is None:
            raise RemoteError(f"{self._options.url} has no list of systems")
        links = (await self._get(root.systems.path, Collection)).members
        wanted = self._options.system
        if wanted:
            links = tuple(link for link in links if link.path.rstrip("/").endswith(f"/{wanted}"))
        if len(links) != 1:
            which = f"no system {wanted}" if wanted else f"{len(links)} systems"
            raise PreconditionError(f"{self._options.url} has {which}: name one by --system ID")
        return links[0].path

    async def _reset(self, system: System, kind: str) -> None:
        """Switch the system.

        Raises:
            ExecutionError: the BMC cannot, or says that it failed.
        """
        reset = system.actions.reset
        if reset is None or (reset.allowed and kind not in reset.allowed):
            raise ExecutionError(f"{self._options.url} offers no reset of type {kind}")
        target = Link(reset.target).path
        reply = await self._send("POST", target, {"ResetType": kind})
        if not 200 <= reply.status < 300:
            raise ExecutionError(f"{self._options.url} answered {kind} with {reply.status}")

    # ------------------------------------------------------------ asking

    @asynccontextmanager
    async def _within(self, limit_s: float) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError:
            raise RemoteTimeout(
                f"{self._options.url} did not get done within {limit_s:g} s; it may have happened"
            ) from None

    async def _get(self, path: str, kind: type[T]) -> T:
        reply = await self._send("GET", path)
        if reply.status != 200:
            raise RemoteError(f"{self._options.url} answered {reply.status} for {path[:200]}")
        return self._decode(reply, kind)

    async def _find(self, link: Link, kind: type[T]) -> T | None:
        """What the link leads to; None if there is nothing."""
        reply = await self._send("GET", link.path)
        return self._decode(reply, kind) if reply.status == 200 else None

    def _decode(self, reply: HttpReply, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(reply.body, type=kind)
        except (ValueError, RecursionError):
            raise RemoteError(f"{self._options.url} answered nonsense") from None

    async def _send(self, method: str, path: str, body: object = None) -> HttpReply:
        client = await self._open()
        had_token = self._token
        reply = await self._send_once(client, method, path, body)
        if reply.status == 401 and had_token:
            self._token = ""  # The session is over; a new one, once.
            reply = await self._send_once(client, method, path, body)
        if reply.status in (401, 403):
            raise PreconditionError(f"{self._options.url} refuses the user or the password")
        return reply

    async def _send_once(
        self, client: HttpClient, method: str, path: str, body: object
    ) -> HttpReply:
        headers = {"Accept": "application/json", "OData-Version": "4.0"}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = msgspec.json.encode(body)
        if self._options.user:
            headers |= await self._credentials(client)
        return await client.send(
            method,
            self._options.url + path,
            data,
            timeout_s=self._limits.off_timeout_s,
            headers=headers,
        )

    async def _credentials(self, client: HttpClient) -> dict[str, str]:
        options = self._options
        if options.auth == "basic":
            password = await asyncio.to_thread(options.password.read)
            pair = base64.b64encode(f"{options.user}:{password}".encode()).decode()
            return {"Authorization": f"Basic {pair}"}
        if not self._token:
            await self._log_in(client)
        return {"X-Auth-Token": self._token}

    async def _log_in(self, client: HttpClient) -> None:
        password = await asyncio.to_thread(self._options.password.read)
        body = {"UserName": self._options.user, "Password": password}
        reply = await client.send(
            "POST",
            self._options.url + _SESSIONS,
            msgspec.json.encode(body),
            timeout_s=self._limits.call_timeout_s,
            headers={"Content-Type": "application/json", "Accept": "application/json"},
        )
        token = reply.headers.get("X-Auth-Token", "")
        if reply.status in (400, 401, 403):
            raise PreconditionError(f"{self._options.url} refuses the user or the password")
        if not 200 <= reply.status < 300 or not token:
            raise RemoteError(f"{self._options.url} gives no session ({reply.status})")
        self._token = token
        location = reply.headers.get("Location", "").removeprefix(self._options.url)
        self._session = location if location.startswith("/") else ""

    async def _open(self) -> HttpClient:
        async with self._opening:
            if self._client is None:
                context = await asyncio.to_thread(_ssl_context, self._options)
                if self._closed:
                    raise not_sent(f"the controller of {self._options.url} was closed")
                client = HttpClient(limits=_LIMITS, ssl_context=context)
                await client.start()
                self._client = client
            return self._client


def _ssl_context(options: RedfishOptions) -> ssl.SSLContext:
    """How the BMC's certificate is looked at; reads the disk.

    Raises:
        PreconditionError: the file of certificates cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=options.ca_file or None)
    except OSError as error:  # ssl.SSLError is one
        raise PreconditionError(
            f"the certificates in {options.ca_file} cannot be read: {error.strerror}"
        ) from None
    if not options.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _state(system: System) -> PowerState:
    if system.power_state == _OFF:
        return PowerState.OFF
    if system.power_state in _NOT_OFF:
        return PowerState.ON
    raise RemoteError(f"the BMC tells no power state: {str(system.power_state)[:40]!r}")
