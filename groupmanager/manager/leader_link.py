"""A manager's link to whoever leads: kept, joined anew, and what is told over it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from snooze.common.clock import Clock
from snooze.common.errors import SnoozeError
from snooze.common.transport.channel import CloseCause
from snooze.common.transport.link import Link, LinkLimits, Service, connect, is_refused
from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import (
    HostGone,
    HostImages,
    HostJoined,
    LeaderOrder,
    ManagerDescription,
    ManagerHello,
    ManagerNotice,
    ManagerWelcome,
    VmsChanged,
    VmStatus,
)
from snooze.groupmanager.manager.host_table import HostTable

logger = logging.getLogger(__name__)

RETRY_MIN_S = 0.05
RETRY_MAX_S = 1.0
MAX_HELLO_IMAGES = 20_000
"""Of all hosts together; their entries take up to 300 bytes each, and a frame has 16 MiB."""
MAX_WAITING_BYTES = 2 * 1024 * 1024
DRAIN_S = 0.05
REFUSALS = 2
"""So many in a row from the machine of a leader that we had joined: its process is gone."""


class LeaderNews(Protocol):
    """Who wants to know what becomes of the leader."""

    def leader_died(self, leader: ManagerDescription) -> None:
        """Its process is gone."""
        ...

    def leader_unheard(self, leader: ManagerDescription) -> None:
        """It has been silent for longer than a living peer is, or is not reached."""
        ...


class LeaderLink:
    """The link to the leader, and the notices that wait for it within one turn of the loop."""

    def __init__(
        self,
        identity: ManagerDescription,
        table: HostTable,
        limits: LinkLimits,
        answer: Callable[[LeaderOrder], Awaitable[msgspec.Struct]],
        seeks: Callable[[], None],
        joined: Callable[[], None],
        news: "LeaderNews",
        clock: Clock,
        moving: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        """What it serves.

        Args:
            answer: carries out the leader's orders.
            seeks: called before each hello: a leader's first order may be here before its welcome
                was taken in.
            joined: called after the hello.
            news: told what the store may not know yet.
            moving: names the VMs whose migration this manager sees to.
        """
        self._moving = moving
        self.identity = identity
        self.epoch = 0
        self._table = table
        self._limits = limits
        self._answer = answer
        self._seeks = seeks
        self._joined = joined
        self._news = news
        self._clock = clock
        self._known: ManagerDescription | None = None
        self._link: Link | None = None
        self._wanted: ManagerDescription | None = None
        self._changed = asyncio.Event()
        self._statuses: dict[str, VmStatus] = {}
        self._flushing = False

    def follow(self, leader: ManagerDescription | None) -> None:
        """The election's word: who leads, ourselves perhaps."""
        if leader == self._wanted:
            return
        self._wanted = leader
        if self._link is not None:
            self._link.close("another group manager leads")
        self._changed.set()

    @property
    def link(self) -> Link | None:
        """The link to the leader, while it stands."""
        return self._link

    def close(self, reason: str) -> None:
        """Leave the leader."""
        if self._link is not None:
            self._link.close(reason)

    async def keep(self) -> None:
        """Keep a link to whoever leads."""
        pause_s = RETRY_MIN_S
        refusals = 0
        sought_s, sought = self._clock.monotonic_s(), self._wanted
        while True:
            wanted = self._wanted
            if wanted != sought:
                sought_s, sought = self._clock.monotonic_s(), wanted
            if wanted is None:
                self._changed.clear()
                await self._changed.wait()
                continue
            self._seeks()
            hello = self._hello()
            try:
                joined = await self._connect(wanted, hello)
            except SnoozeError as error:
                logger.debug("the leader is not reached", extra={"error": error.message})
                refusals = refusals + 1 if is_refused(error) else 0
                if refusals >= REFUSALS and wanted == self._known == self._wanted:
                    self._known, refusals = None, 0
                    self._news.leader_died(wanted)
                elif (
                    wanted == self._wanted
                    and self._clock.monotonic_s() >= sought_s + self._limits.silence_timeout_s
                ):
                    self._news.leader_unheard(wanted)
                self._changed.clear()
                await _wait(self._changed, pause_s)
                pause_s = min(RETRY_MAX_S, pause_s * 2)
                continue
            if joined is None:
                continue
            link, welcome = joined
            if wanted != self._wanted:
                link.close("another group manager leads")
                continue
            pause_s, refusals, self._known = RETRY_MIN_S, 0, wanted
            if welcome.epoch < self.epoch:
                link.close("deposed: a later leader was heard of")
                await asyncio.sleep(RETRY_MIN_S)
                continue
            cause = await self._stay(link, hello, welcome)
            sought_s = self._clock.monotonic_s()
            if cause is CloseCause.SILENT and wanted == self._wanted:
                self._news.leader_unheard(wanted)

    async def _connect(
        self, wanted: ManagerDescription, hello: ManagerHello
    ) -> tuple[Link, ManagerWelcome] | None:
        """Join; None as soon as another leads: one that stands still takes a hello and no notice.

        Raises: see ``connect``.
        """
        self._changed.clear()
        joining = asyncio.ensure_future(
            connect(
                wanted.monitoring.host,
                wanted.monitoring.port,
                hello,
                ManagerWelcome,
                Service(requests=LeaderOrder, answer=self._answer),
                limits=self._limits,
            )
        )
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait((joining, changed), return_when=asyncio.FIRST_COMPLETED)
            return joining.result() if joining.done() else None
        finally:
            changed.cancel()
            joining.cancel()

    def _hello(self) -> ManagerHello:
        table = self._table
        hosts = [table.state_of(host_id) for host_id in table.order]
        if sum(len(state.host.images) for state in hosts) > MAX_HELLO_IMAGES:
            hosts = [
                msgspec.structs.replace(state, host=msgspec.structs.replace(state.host, images=()))
                for state in hosts
            ]
        return ManagerHello(self.identity, hosts, moving=self._moving())

    async def _tell_images(self, link: Link, hello: ManagerHello) -> None:
        """Those that the hello had no room for, host by host, as fast as the leader reads."""
        for state in hello.hosts:
            host = self._table.hosts.get(state.host.host_id)
            if host is None or state.host.images or not host.description.images:
                continue
            while link.is_open and link.buffered_bytes > MAX_WAITING_BYTES:  # noqa: ASYNC110
                await asyncio.sleep(DRAIN_S)
            link.notify(HostImages(state.host.host_id, host.description.images))

    async def _stay(self, link: Link, hello: ManagerHello, welcome: ManagerWelcome) -> CloseCause:
        """Be with a leader until the link ends; returns why it did.

        What changed between the making of the hello and the welcome is told again, and what ended
        lately: a former leader may have died before it recorded that.
        """
        self._link, self.epoch = link, welcome.epoch
        logger.info("joined leader %s, epoch %d", welcome.leader_id, welcome.epoch)
        table = self._table
        told = {state.host.host_id: state for state in hello.hosts}
        for host_id, state in told.items():
            if host_id not in table.hosts:
                link.notify(HostGone(host_id, state.epoch, "it left"))
        for host_id in table.order:
            if table.is_outdated(told.get(host_id), host_id):
                link.notify(HostJoined(table.state_of(host_id)))
        heard = [vm for state in hello.hosts for vm in state.vms]
        known = {(vm.vm_id, vm.host_id): vm for vm in heard}
        statuses = [vm.status() for vm in table.vms.values()]
        statuses += [vm.status() for host in table.hosts.values() for vm in host.copies.values()]
        changed = [vm for vm in statuses if known.get((vm.vm_id, vm.host_id)) != vm]
        changed += [vm for vm in table.vanished if vm.vm_id not in table.vms]
        if changed:
            link.notify(VmsChanged(changed))
        self._joined()
        try:
            await self._tell_images(link, hello)
            reason = await link.closed
            logger.info("the link to the leader closed: %s", reason)
            return reason.cause
        finally:
            self._link = None

    def tell(self, notice: ManagerNotice, *, droppable: bool = False) -> None:
        """Notices while no leader is joined are not sent: the next hello has it all.

        Changes of VMs within one turn of the loop go in one message, the last of each domain: the
        end of a copy is no news of the VM, and neither takes the place of the other.
        """
        if isinstance(notice, VmsChanged):
            for status in notice.vms:
                key = f"{status.vm_id}@{status.host_id}"
                self._statuses.pop(key, None)
                self._statuses[key] = status
            if not self._flushing:
                self._flushing = True
                asyncio.get_running_loop().call_soon(self._flush)
            return
        self._flush()
        if self._link is not None:
            self._link.notify(notice, droppable=droppable)

    def _flush(self) -> None:
        self._flushing = False
        # What is anywhere comes first: or a VM of which a copy goes, or goes on, would be gone.
        statuses = sorted(self._statuses.values(), key=lambda vm: vm.state is VmState.DESTROYED)
        self._statuses = {}
        if statuses and self._link is not None:
            self._link.notify(VmsChanged(statuses))


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
