"""Group managers: the real core in a shell without sockets."""

from collections import deque
from typing import TYPE_CHECKING

import msgspec

from snooze.common.errors import (
    ErrorReport,
    StaleEpoch,
    TooBusy,
)
from snooze.common.resources import Capacity
from snooze.common.wire import (
    Accepted,
    Address,
    DirectHosts,
    ForgetHost,
    HostAnswer,
    HostGone,
    HostHello,
    HostJoined,
    HostState,
    ManagerDescription,
    ManagerHello,
    ManagerSummary,
    ManagerWelcome,
    OrderDone,
    PlaceVms,
    RelayedAnswer,
    RelayedOrder,
    RelayToHost,
    ReleaseHost,
    VmChanged,
    VmOrder,
    VmsChanged,
)
from snooze.groupmanager.manager import manager_events as events
from snooze.groupmanager.manager.manager_core import ManagerCore
from snooze.scheduling import dispatching, placement
from tests.property.cluster.links import Link, Outcome, Peer

if TYPE_CHECKING:
    from tests.property.cluster.leader import Leader
    from tests.property.cluster.world import World

ONE = Capacity(1.0, 1.0, 1.0, 1.0)


class Manager(Peer):
    """``groupmanager.manager.service`` without sockets."""

    def __init__(self, world: "World", manager_id: str) -> None:
        self.world = world
        where = Address(manager_id, 1)
        self.description = ManagerDescription(manager_id, manager_id, where, where)
        self.core = ManagerCore(placement.policy_named("first_fit"), ONE, ONE)
        self.links: dict[str, Link] = {}
        self.hellos: dict[Link, HostHello] = {}
        self.leader: Link | None = None
        self.leader_epoch = 0
        self.told: dict[str, int] = {}
        self.requests: dict[int, tuple[Link, int]] = {}
        self.queue: deque[events.ManagerEvent] = deque()
        self.is_busy = False

    @property
    def manager_id(self) -> str:
        return self.description.manager_id

    def feed(self, event: events.ManagerEvent) -> None:
        self.queue.append(event)
        if self.is_busy:
            return
        self.is_busy = True
        while self.queue:
            for effect in self.core.handle(self.queue.popleft(), self.world.now_s):
                self._perform(effect)
        self.is_busy = False
        self.world.check_manager(self)

    def _perform(self, effect: events.ManagerEffect) -> None:
        match effect:
            case events.OrderHost():
                self._order(effect)
            case events.AnswerLeader():
                link, ident = self.requests.pop(effect.request_id)
                link.reply(self, ident, effect.answer)
            case events.TellLeader():
                if self.leader is not None:
                    self.leader.notify(self, effect.notice)
            case events.CloseHost():
                if effect.host_id in self.links:
                    self.links[effect.host_id].close(self)

    def _order(self, effect: events.OrderHost) -> None:
        def answered(outcome: Outcome, unknown: bool) -> None:
            answer = outcome.answer if isinstance(outcome, RelayedAnswer) else outcome
            assert isinstance(answer, HostAnswer | ErrorReport)
            if self.world.managers.get(self.manager_id) is self:
                self.feed(events.HostAnswered(effect.order_id, answer, unknown))

        link = self.leader if effect.relayed else self.links.get(effect.host_id)
        if link is None:
            gone = ErrorReport.of(TooBusy("not here"))
            self.world.soon.append(lambda: answered(gone, False))
        elif effect.relayed:
            relay = RelayToHost(effect.order.cause, effect.host_id, effect.order)
            link.request(self, relay, answered)
        else:
            link.request(self, effect.order, answered)

    def on_request(self, link: Link, ident: int, message: msgspec.Struct) -> None:
        if isinstance(message, HostHello):
            self._accept(link, ident, message)
            return
        assert isinstance(
            message, PlaceVms | VmOrder | RelayedOrder | ReleaseHost | ForgetHost | DirectHosts
        )
        if message.epoch < self.leader_epoch:
            link.reply(self, ident, ErrorReport.of(StaleEpoch("a later leader was heard of")))
            return
        request_id = self.world.next_number()
        self.requests[request_id] = (link, ident)
        match message:
            case PlaceVms():
                self.feed(events.PlaceAsked(request_id, message))
            case VmOrder():
                self.feed(events.OrderAsked(request_id, message))
            case RelayedOrder():
                self.feed(events.RelayAsked(request_id, message))
            case DirectHosts():
                self.feed(events.Directed(message.directives))
                self.summarise()
                link.reply(self, ident, Accepted())
            case ReleaseHost():
                self.feed(events.ReleaseAsked(message.host_id, message.assignment))
            case ForgetHost():
                if message.host_id in self.links:
                    self.links[message.host_id].close(self)

    def _accept(self, link: Link, ident: int, hello: HostHello) -> None:
        host_id = hello.host.host_id
        known = self.core.table.hosts.get(host_id)
        if known is not None and known.epoch > hello.epoch:
            link.reply(self, ident, ErrorReport.of(StaleEpoch("it is here with a newer epoch")))
            return
        link.reply(self, ident, OrderDone())
        former = self.links.pop(host_id, None)
        if former is not None:
            former.close(self)
        self.links[host_id], self.hellos[link] = link, hello
        self.feed(events.HostJoined(hello))

    def on_notice(self, link: Link, message: msgspec.Struct) -> None:
        host_id = self.hellos[link].host.host_id
        assert isinstance(message, VmChanged)
        self.feed(events.VmNoticed(host_id, message))

    def on_closed(self, link: Link) -> None:
        if link is self.leader:
            self.leader = None
        hello = self.hellos.pop(link, None)
        if hello is None or self.links.get(hello.host.host_id) is not link:
            return
        del self.links[hello.host.host_id]
        if self.world.managers.get(self.manager_id) is self:
            self.feed(events.HostLost(hello.host.host_id, hello.epoch, "closed"))

    def join(self, leader: "Leader") -> None:
        """Open a link to the leader; what changes before the welcome is told again."""
        table = self.core.table
        states = [table.state_of(h) for h in table.order]
        hello = ManagerHello(self.description, states, moving=self.core.migrations.moving)
        told = {state.host.host_id: state for state in hello.hosts}
        link = self.world.open(self, leader)
        link.request(self, hello, lambda outcome, unknown: self._joined(link, told, outcome))

    def _joined(self, link: Link, told: dict[str, HostState], outcome: Outcome) -> None:
        if isinstance(outcome, ErrorReport) or not link.is_open(self) or self.leader is not None:
            link.close(self)
            return
        assert isinstance(outcome, ManagerWelcome)
        self.leader, self.leader_epoch = link, outcome.epoch
        table = self.core.table
        for host_id, state in told.items():
            if host_id not in table.hosts:
                link.notify(self, HostGone(host_id, state.epoch, "it left"))
        for host_id in table.order:
            if table.is_outdated(told.get(host_id), host_id):
                link.notify(self, HostJoined(table.state_of(host_id)))
        statuses = [vm.status() for vm in table.vms.values()]
        statuses += [vm.status() for host in table.hosts.values() for vm in host.copies.values()]
        if statuses:
            link.notify(self, VmsChanged(statuses))
        self.summarise()

    def summarise(self) -> None:
        if self.leader is None:
            return
        table = self.core.table
        room, count = dispatching.histogram(table.free(self.core.limit))
        zero = Capacity()
        self.leader.notify(
            self,
            ManagerSummary(
                0, zero, zero, zero, room.tobytes(), [int(n) for n in count], len(table.order), 0
            ),
        )

    def die(self) -> None:
        """The process vanishes; its peers find out by and by."""
        for link in [*self.links.values(), *([self.leader] if self.leader else [])]:
            link.cut()
        for link in self.world.links:
            if self in link.ends:
                link.cut()
                link.shut[link.side(self)] = True
