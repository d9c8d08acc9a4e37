"""A whole cluster by hand: the real cores, and everything between them drawn from one seed.

Managers (``ManagerCore``), hosts (``AgentCore`` and a few domains) and the leader
(``MembershipCore``, ``SubmissionCore``) speak over links that delay, lose and break; the shells
here do what the daemons' own shells promise, and nothing more. The store of record is a queue of
writes: a leader that goes takes those with it that were not applied yet.
"""

from collections import deque
from collections.abc import Callable
from random import Random

import numpy as np

from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import HOLDS_CAPACITY, VmCommand, VmState
from snooze.localcontroller import agent_core as agents
from tests.property.cluster.hosts import ACTIVE, CAPACITY, Host
from tests.property.cluster.leader import Leader, Store
from tests.property.cluster.links import Link, Peer
from tests.property.cluster.managers import Manager


class World:
    """Everything, one step at a time."""

    def __init__(self, seed: int, hosts: int = 4, managers: int = 3) -> None:
        self.random = Random(seed)
        self.now_s = 1000.0
        self.is_rough = True
        self.size = managers
        self.soon: deque[Callable[[], None]] = deque()
        self.delayed: list[Callable[[], None]] = []
        self.links: list[Link] = []
        self.numbers = 0
        self.store = Store()
        self.acked: set[str] = set()
        self.managers = {f"gm{i}": Manager(self, f"gm{i}") for i in range(managers)}
        self.leader: Leader | None = Leader(self, "gm0") if managers else None
        self.hosts: dict[str, Host] = {}
        for i in range(hosts):
            self.hosts[f"host{i}"] = Host(self, f"host{i}")

    # -------------------------------- what cores and shells ask of it

    def next_number(self) -> int:
        self.numbers += 1
        return self.numbers

    def later(self, step: Callable[[], None]) -> None:
        self.delayed.append(step)

    def open(self, opener: Peer, accepter: Peer) -> Link:
        link = Link(self, (opener, accepter))
        self.links.append(link)
        return link

    def fails(self) -> bool:
        return self.is_rough and self.random.random() < 0.15

    def loses(self) -> bool:
        return self.is_rough and self.random.random() < 0.1

    # -------------------------------- what always holds

    def check_manager(self, manager: Manager) -> None:
        """Reservations are the sum of what holds room, and no more than there is."""
        core = manager.core
        room = core.table.capacity * core.limit
        assert (core.table.reserved <= room + 1e-6).all(), "more is reserved than there is"
        assert (core.table.reserved >= -1e-6).all(), "less than nothing is reserved"
        for host_id in core.table.order:
            held = core.migrations.promised_on(host_id)
            for vm in core.table.vms_on(host_id):
                if vm.state in HOLDS_CAPACITY:
                    held = held.plus(vm.demand)
            assert np.allclose(core.table.reserved_on(host_id).as_array(), held.as_array())

    def check_membership(self, leader: Leader) -> None:
        """A host is joined to at most one manager, and both sides of the registry agree."""
        registry = leader.registry
        for host_id, host in registry.hosts.items():
            has = [m for m, entry in registry.managers.items() if host_id in entry.hosts]
            assert has == ([host.manager_id] if host.joined else [])

    def check(self) -> None:
        addresses: dict[str, str] = {}
        places: dict[str, str] = {}
        for host_id, host in self.hosts.items():
            used = Capacity()
            for vm_id in {*host.domains, *(work.vm_id for work in host.work)}:
                if not host.has(vm_id):
                    continue
                assert places.setdefault(vm_id, host_id) == host_id, f"{vm_id} runs twice"
                domain = host.domains.get(vm_id)
                if domain is not None:
                    address = domain.spec.ip_address
                    assert addresses.setdefault(address, vm_id) == vm_id, f"{address} leased twice"
                    used = used.plus(domain.spec.demand if domain.state in ACTIVE else Capacity())
            assert used.fits_in(CAPACITY), f"{host_id} is overfull"
        recorded = self.store.tasks
        assert self.acked <= recorded.keys(), "an acknowledged submission was lost"

    # -------------------------------- steps

    def step(self) -> None:
        """Something happens: a message arrives, an order gets on, time goes by."""
        choices: list[Callable[[], None]] = [self.pass_time]
        if self.soon:
            choices += [self._wake] * 3
        if self.delayed:
            choices.append(self._arrive)
        if any(inbox for link in self.links for inbox in link.inboxes):
            choices += [self._deliver] * 4
        if any(host.work for host in self.hosts.values()):
            choices += [self._work] * 2
        if self.leader is not None and self.leader.writes:
            choices.append(self._write)
        self.random.choice(choices)()
        self.check()

    def _wake(self) -> None:
        self.soon.popleft()()

    def _arrive(self) -> None:
        self.delayed.pop(self.random.randrange(len(self.delayed)))()

    def _deliver(self) -> None:
        full = [inbox for link in self.links for inbox in link.inboxes if inbox]
        self.random.choice(full).popleft()()

    def _work(self) -> None:
        busy = [(host, work) for host in self.hosts.values() for work in host.work]
        host, work = self.random.choice(busy)
        host.go_on(work)

    def _write(self) -> None:
        if self.leader is not None:
            self.leader.writes.popleft()()

    def pass_time(self, seconds: float | None = None) -> None:
        """Timers go off; nobody waits while something could be done at once."""
        while self.soon:
            self.soon.popleft()()
        self.now_s += self.random.choice((0.05, 0.25, 1.0)) if seconds is None else seconds
        self.links = [link for link in self.links if not all(link.shut) or any(link.inboxes)]
        for host in self.hosts.values():
            for wake in [wake for wake in host.wakes if wake[0] <= self.now_s]:
                host.wakes.remove(wake)
                host.feed(agents.Woken(wake[1]))
        for manager in self.managers.values():
            self._follow(manager)
            manager.summarise()
        if self.leader is not None:
            self.leader.tick()

    def _follow(self, manager: Manager) -> None:
        """A manager hears who leads, sooner or later."""
        leader, link = self.leader, manager.leader
        if leader is None or (self.is_rough and self.random.random() < 0.5):
            return
        if link is not None and link.ends[1] is not leader:
            link.close(manager)
        elif link is None and not self._is_joining(manager):
            manager.join(leader)

    def _is_joining(self, manager: Manager) -> bool:
        return any(
            link.ends[0] is manager and link.ends[1] is self.leader and link.is_open(manager)
            for link in self.links
        )

    # -------------------------------- faults, and clients

    def trouble(self) -> None:
        """One thing goes wrong, or somebody wants something."""
        deeds = (
            [self._submit] * 6
            + [self._command] * 8
            + [self._cut_link, self._time_out] * 2
            + [self._guest_off, self._isolate, self._restart_agent, self._reconcile]
            + [self._kill_manager, self._change_leader]
        )
        self.random.choice(deeds)()
        self.check()

    def _submit(self) -> None:
        if self.leader is not None:
            cores = [self.random.choice((1.0, 1.0, 2.0)) for _ in range(self.random.randint(1, 3))]
            demands = [Capacity(core, 512.0 * core) for core in cores]
            self.leader.submit(demands, self.random.random() < 0.5)

    def _command(self) -> None:
        if self.leader is None or not self.leader.registry.vms:
            return
        vm_id = self.random.choice(sorted(self.leader.registry.vms))
        command = self.random.choice(
            [*VmCommand, VmCommand.MIGRATE, VmCommand.MIGRATE, VmCommand.DESTROY]
        )
        demand = Capacity(self.random.choice((1.0, 2.0, 3.0)), 512.0)
        target = self.random.choice(sorted(self.hosts))
        self.leader.command(vm_id, command, demand, target)

    def _cut_link(self) -> None:
        if self.links:
            self.random.choice(self.links).cut()

    def _time_out(self) -> None:
        open_requests = [
            (link, side, ident)
            for link in self.links
            for side in (0, 1)
            for ident in link.waiting[side]
        ]
        if open_requests:
            link, side, ident = self.random.choice(open_requests)
            link.time_out(side, ident)

    def _guest_off(self) -> None:
        host = self.hosts[self.random.choice(sorted(self.hosts))]
        if host.domains:
            host.power_off_guest(self.random.choice(sorted(host.domains)))

    def _reconcile(self) -> None:
        self.hosts[self.random.choice(sorted(self.hosts))].reconcile()

    def _isolate(self) -> None:
        """A host drops out of the network, or is back."""
        host = self.hosts[self.random.choice(sorted(self.hosts))]
        host.cut_off = not host.cut_off
        if host.cut_off and host.link is not None:
            host.link.cut()

    def _restart_agent(self) -> None:
        """An agent dies and comes again; its VMs run on, what it was doing stops."""
        name = self.random.choice(sorted(self.hosts))
        former = self.hosts[name]
        for link in self.links:
            if former in link.ends:
                link.cut()
                link.shut[link.side(former)] = True
        former.core.handle(agents.Stopped(), self.now_s)
        host = self.hosts[name] = Host(self, name)
        host.domains, host.cut_off = former.domains, former.cut_off
        for domain in host.domains.values():
            if domain.state is VmState.MIGRATING:
                domain.state = VmState.RUNNING

    def _kill_manager(self) -> None:
        """A manager dies, with the leader if that is its home, or a dead one comes again."""
        dead = sorted({f"gm{i}" for i in range(self.size)} - self.managers.keys())
        if dead and (len(self.managers) == 1 or self.random.random() < 0.5):
            self.managers[dead[0]] = Manager(self, dead[0])
            return
        if len(self.managers) == 1:
            return
        manager_id = self.random.choice(sorted(self.managers))
        if self.leader is not None and self.leader.home == manager_id:
            self._change_leader()
        self.managers.pop(manager_id).die()

    def _change_leader(self) -> None:
        if self.leader is not None:
            self.leader.resign()
        self.leader = Leader(self, self.random.choice(sorted(self.managers)))

    def heal(self) -> None:
        """All that is dead or cut off comes back, and time passes."""
        self.is_rough = False
        for i in range(self.size):
            if f"gm{i}" not in self.managers:
                self.managers[f"gm{i}"] = Manager(self, f"gm{i}")
        for host in self.hosts.values():
            host.cut_off = False
        self.settle(100.0)
        self.pass_time(5000.0)
        self.settle(150.0)

    def settle(self, seconds: float) -> None:
        """Let everything arrive, for so long."""
        until_s = self.now_s + seconds
        next_look_s = self.now_s
        while self.now_s < until_s:
            for _ in range(10_000):
                if not self._advance():
                    break
            else:
                raise AssertionError("the cluster does not come to rest")
            if self.now_s >= next_look_s:
                next_look_s = self.now_s + 30.0
                for host in self.hosts.values():
                    host.reconcile()
            self.pass_time(1.0)
            self.check()

    def _advance(self) -> bool:
        if self.soon:
            self.soon.popleft()()
            return True
        if self.delayed:
            self.delayed.pop(0)()
            return True
        if self.leader is not None and self.leader.writes:
            self.leader.writes.popleft()()
            return True
        for link in self.links:
            for inbox in link.inboxes:
                if inbox:
                    inbox.popleft()()
                    return True
        for host in self.hosts.values():
            for work in list(host.work):
                host.go_on(work)
                if work not in host.work or work.stage:
                    return True
        return False
