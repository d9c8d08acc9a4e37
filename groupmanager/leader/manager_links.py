"""The leader's links to its managers: who is let in, what is sent, who describes hosts."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from snooze.common.errors import NotFound, SnoozeError, TooBusy
from snooze.common.transport.link import Link, Service
from snooze.common.transport.link_server import Accepted as LinkAccepted
from snooze.common.vm_lifecycle import SETTLED
from snooze.common.wire import (
    Accepted,
    AskMoving,
    DescribeHosts,
    HostDetail,
    HostDetails,
    HostOrder,
    LeaderOrder,
    ManagerHello,
    ManagerNotice,
    ManagerRequest,
    ManagerWelcome,
    NotMoving,
    RelayedAnswer,
    RelayedOrder,
    RelayToHost,
)
from snooze.groupmanager.leader.registry import Registry

logger = logging.getLogger(__name__)

PLACE_TIMEOUT_S = 10.0
DESCRIBE_TIMEOUT_S = 3.0
RELAY_TIMEOUT_S = 3600.0
DESCRIBE_HOSTS = 32
"""Hosts in one answer with their VMs: of a hundred VMs each with their XML, about 10 MiB."""
MAX_PAGE_HOSTS = 5000


class ManagerLinks:
    """One link a manager, the latest; the service's callbacks hear of everything that comes."""

    def __init__(
        self,
        registry: Registry,
        welcome: ManagerWelcome,
        answer: Callable[[ManagerRequest], Awaitable[msgspec.Struct]],
        joined: Callable[[ManagerHello], None],
        noticed: Callable[[str, ManagerNotice], None],
        left: Callable[[str, str], None],
    ) -> None:
        """``joined`` and ``left`` are called in turn, ``noticed`` between them."""
        self._registry = registry
        self._welcome = welcome
        self._answer = answer
        self._joined = joined
        self._noticed = noticed
        self._left = left
        self._links: dict[str, Link] = {}

    def accept(self, hello: ManagerHello) -> LinkAccepted:
        """Let a manager in; a former link of it is closed first."""
        manager = hello.manager

        def opened(link: Link) -> None:
            former = self._links.get(manager.manager_id)
            if former is not None:
                self._gone(manager.manager_id, former, "it joined again")
                former.close("this group manager joined again")
            self._links[manager.manager_id] = link
            self._joined(hello)
            link.closed.add_done_callback(
                lambda closed: (
                    self._gone(manager.manager_id, link, str(closed.result()))
                    if not closed.cancelled()
                    else None
                )
            )

        service = Service(
            requests=ManagerRequest,
            answer=self._answer,
            notifications=ManagerNotice,
            on_notification=lambda notice: self._noticed(manager.manager_id, notice),
        )
        return LinkAccepted(self._welcome, service, opened)

    def _gone(self, manager_id: str, link: Link, reason: str) -> None:
        if self._links.get(manager_id) is link:
            del self._links[manager_id]
            self._left(manager_id, reason)

    def close(self, reason: str) -> None:
        """Close every link."""
        for link in list(self._links.values()):
            link.close(reason)

    def close_one(self, manager_id: str, reason: str) -> None:
        """Close the link of a manager, if it has one: it joins again."""
        link = self._links.get(manager_id)
        if link is not None:
            link.close(reason)

    def get(self, manager_id: str) -> Link | None:
        """The link to a manager."""
        return self._links.get(manager_id)

    def require(self, manager_id: str) -> Link:
        """The link to a manager.

        Raises:
            TooBusy: it is not in reach.
        """
        link = self._links.get(manager_id)
        if link is None:
            raise TooBusy(f"group manager {manager_id} is not in reach", retry_after_s=1.0)
        return link

    async def relay(self, epoch: int, cause: str, host_id: str, order: HostOrder) -> RelayedAnswer:
        """Have a host carry out an order, by its manager.

        Raises:
            NotFound: the host is not in reach. Else as the host answers.
        """
        host = self._registry.hosts.get(host_id)
        if host is None or not host.joined:
            raise NotFound(f"host {host_id} is not in reach")
        link = self.require(host.manager_id)
        message = RelayedOrder(epoch, cause, host_id, order)
        return await link.request(message, RelayedAnswer, RELAY_TIMEOUT_S)

    async def relay_for(self, epoch: int, message: RelayToHost) -> RelayedAnswer:
        """A manager's migration takes a step on another manager's host. Raises: as ``relay``."""
        return await self.relay(epoch, message.cause, message.host_id, message.order)

    def not_moving(self, message: AskMoving) -> NotMoving:
        """Of the VMs that a manager awaits, those that nobody moves any more.

        A host in reach says that it has the VM and does not move it; or there is no such VM.
        """
        ended: list[str] = []
        for vm_id in message.vm_ids:
            vm = self._registry.vms.get(vm_id)
            host = self._registry.hosts.get(vm.host_id) if vm is not None else None
            is_there = host is not None and host.joined
            if vm is None or (is_there and not vm.moving and vm.state in SETTLED):
                ended.append(vm_id)
        return NotMoving(ended)

    async def tell(self, manager_id: str, message: LeaderOrder) -> None:
        """Order what needs no answer; a manager that does not take it is logged."""
        link = self._links.get(manager_id)
        if link is None:
            return
        try:
            await link.request(message, Accepted, PLACE_TIMEOUT_S)
        except SnoozeError as error:
            logger.info(
                "a group manager did not take an order",
                extra={"manager": manager_id, "error": error.message},
            )

    async def describe(
        self, request: DescribeHosts, manager_ids: Sequence[str] | None = None
    ) -> dict[str, list[HostDetail]]:
        """What managers say of their hosts, by manager; what is not answered is left out.

        A manager with many hosts is asked for some at a time, so that no answer outgrows a frame.
        """
        asked = [
            (manager_id, page)
            for manager_id in self._links
            if manager_ids is None or manager_id in manager_ids
            for page in self._pages(manager_id, request)
        ]

        async def ask(manager_id: str, page: DescribeHosts) -> list[HostDetail]:
            link = self._links.get(manager_id)
            with contextlib.suppress(SnoozeError):
                if link is not None:
                    return (await link.request(page, HostDetails, DESCRIBE_TIMEOUT_S)).hosts
            return []

        result: dict[str, list[HostDetail]] = {}
        answers = await asyncio.gather(*(ask(manager_id, page) for manager_id, page in asked))
        for (manager_id, _), hosts in zip(asked, answers, strict=True):
            result.setdefault(manager_id, []).extend(hosts)
        return result

    def _pages(self, manager_id: str, request: DescribeHosts) -> list[DescribeHosts]:
        """The request, split by hosts where its answer could be long."""
        manager = self._registry.managers.get(manager_id)
        if manager is None or request.host_ids or request.vm_keys:
            return [request]
        size = DESCRIBE_HOSTS if request.with_vms else MAX_PAGE_HOSTS
        hosts = sorted(manager.hosts)
        return [
            msgspec.structs.replace(request, host_ids=tuple(hosts[start : start + size]))
            for start in range(0, len(hosts), size)
        ]
