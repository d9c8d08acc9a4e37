"""A group manager's metrics: as manager of its hosts, and as leader while it leads."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import Metric

from snooze.common.metrics import counter, counters, gauge, gauges, links, resources
from snooze.common.resources import ZERO, Capacity
from snooze.groupmanager.leader.service import LeaderService
from snooze.groupmanager.manager.service import ManagerService

DECISION = "decision."
"""Begins the kind of an event that is about a decision."""


def manager_metrics(manager: ManagerService) -> Iterator[Metric]:
    """What a manager has, and how fresh its picture of that is."""
    table, monitoring = manager.core.table, manager.monitoring
    reserved, capacity = table.reserved.clip(min=0.0).sum(axis=0), table.capacity.sum(axis=0)
    yield gauge("snooze_manager_hosts", "Hosts that have joined.", len(table.order))
    states = Counter(str(vm.state) for vm in table.vms.values())
    yield gauges("snooze_manager_vms", "VMs on these hosts.", "state", states)
    yield from resources("snooze_manager_capacity", "of these hosts", Capacity.of(capacity))
    yield from resources("snooze_manager_reserved", "promised to VMs", Capacity.of(reserved))
    yield from resources("snooze_manager_used", "used by VMs", monitoring.total_used())
    load = monitoring.host_load(table.order, manager.now_s)
    heard = load.age_s[load.age_s < float("inf")]
    yield gauge("snooze_manager_fresh_hosts", "Hosts with samples in time.", int(load.fresh.sum()))
    yield gauge(
        "snooze_manager_oldest_sample_seconds",
        "Age of the newest sample of the host heard of longest ago.",
        float(heard.max()) if heard.size else 0.0,
    )
    yield counter("snooze_manager_samples", "Messages with samples.", monitoring.taken)
    yield counter("snooze_manager_samples_refused", "Those that made no sense.", monitoring.refused)
    yield gauge("snooze_manager_monitored_vms", "VMs with samples kept.", monitoring.size[1])
    yield gauge(
        "snooze_manager_events_waiting", "Events of hosts to decide.", manager.runner.waiting
    )
    yield counter("snooze_manager_events", "Events of hosts decided.", manager.runner.handled)
    yield from links("host", *manager.link_stats())


def leader_metrics(leader: LeaderService | None) -> Iterator[Metric]:
    """What the leader knows; nothing but that on a group manager that does not lead."""
    yield gauge("snooze_leading", "Whether this group manager leads.", leader is not None)
    if leader is None:
        return
    registry = leader.registry
    yield gauge("snooze_cluster_epoch", "Of this leader.", leader.epoch)
    yield gauge(
        "snooze_cluster_managers", "Group managers that have joined.", len(registry.managers)
    )
    hosts = Counter(str(host.state) for host in registry.hosts.values())
    yield gauges("snooze_cluster_hosts", "Hosts by power state.", "state", hosts)
    joined = sum(host.joined for host in registry.hosts.values())
    yield gauge("snooze_cluster_joined_hosts", "Hosts that a manager has.", joined)
    vms = Counter(str(vm.state) for vm in registry.vms.values())
    yield gauges("snooze_cluster_vms", "VMs by state.", "state", vms)
    capacity = reserved = used = ZERO
    for manager in registry.managers.values():
        capacity, reserved = capacity.plus(manager.capacity), reserved.plus(manager.reserved)
        used = used.plus(manager.used)
    yield from resources("snooze_cluster_capacity", "of all joined hosts", capacity)
    yield from resources("snooze_cluster_reserved", "promised to VMs", reserved)
    yield from resources("snooze_cluster_used", "used by VMs", used)
    tasks = Counter(str(task.state) for task in leader.tasks.tasks.values())
    yield gauges("snooze_leader_tasks", "Submissions kept, by state.", "state", tasks)
    yield gauge("snooze_leader_open_tasks", "Submissions not ended.", len(leader.tasks.open_tasks))
    events = leader.events.counts
    kinds = {kind: count for kind, count in events.items() if not kind.startswith(DECISION)}
    decisions = {
        kind.removeprefix(DECISION): count
        for kind, count in events.items()
        if kind.startswith(DECISION)
    }
    yield counters("snooze_leader_events", "Events of the cluster.", "kind", kinds)
    yield counters("snooze_leader_decisions", "Words on decisions.", "kind", decisions)
    journal = leader.journal
    yield counter("snooze_leader_transactions", "Writes to the store.", journal.transactions)
    yield counter("snooze_leader_written_bytes", "Written to the store.", journal.bytes_written)
    yield gauge("snooze_leader_changes_waiting", "Changes to be written.", journal.waiting)
    yield gauges(
        "snooze_cluster_loose_disks",
        "Disks on hosts that have not their VM, by whether somebody needs them.",
        "verdict",
        leader.disks.counts(),
    )
    yield counter(
        "snooze_leader_disks_removed", "Disks that nobody needed.", leader.disks.core.removed
    )
    yield from _energy(leader)


def _energy(leader: LeaderService) -> Iterator[Metric]:
    """Watts and kilowatt-hours, in all and by host."""
    view = leader.energy.view()
    yield gauge("snooze_cluster_watts", "Drawn by all hosts now.", view.watts)
    yield gauge("snooze_cluster_used_kwh", "Used by all hosts since it is metered.", view.used_kwh)
    yield gauge("snooze_cluster_saved_kwh", "Saved since some of them sleep.", view.saved_kwh)
    for name, words, values in (
        ("watts", "Drawn by each host now.", {h.hostname: h.watts for h in view.hosts}),
        ("used_kwh", "Used by each host.", {h.hostname: h.used_kwh for h in view.hosts}),
        ("saved_kwh", "Saved by each host's sleep.", {h.hostname: h.saved_kwh for h in view.hosts}),
    ):
        yield gauges(f"snooze_host_{name}", words, "host", values)
