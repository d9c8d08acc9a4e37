"""Why a VM went where it went: per host, the filter that refused it, or each weight's part.

The explanation is the decision made again with its steps noted down, by the same code.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from snooze.scheduling.choosing import Chooser, Trace
from snooze.scheduling.filters import Bundle
from snooze.scheduling.ledger import Ledger
from snooze.scheduling.placement import explained, plan, run
from snooze.scheduling.plans import Move
from snooze.scheduling.policies import PlacementPolicy, Strategy
from snooze.scheduling.snapshot import NONE, HostState, Snapshot, accepting

MAX_TEXT_HOSTS: Final = 40
"""Hosts printed in full; the others are counted."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one weight said of one host; ``product`` is factor times score."""

    weight: str
    factor: float
    score: float
    product: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one host fared.

    Attributes:
        host: its index.
        host_id: its name.
        refused_by: the first filter that refused it; "" if it passed all.
        why: the same in words; of a host that passed, its state if it is not active.
        parts: each weight's part, if it passed.
        total: what the host was ranked by, lower is better.
        place: its place in the order from 0, -1 if it was refused.
    """

    host: int
    host_id: str
    refused_by: str
    why: str
    parts: tuple[Part, ...]
    total: float
    place: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """One choice. ``vms`` are several if they had to go together; ``chosen`` is -1 for none."""

    vms: tuple[int, ...]
    vm_ids: tuple[str, ...]
    policy: str
    strategy: str
    chosen: int
    reason: str
    hosts: tuple[Verdict, ...]

    def data(self) -> dict[str, object]:
        """As JSON-ready data."""
        return asdict(self)


def explain(
    snapshot: Snapshot,
    policy: PlacementPolicy,
    vm: int | None = None,
    *,
    cursor: int = 0,
    rng: np.random.Generator | None = None,
) -> tuple[Explanation, ...]:
    """Explain the choice for each VM that ``placement.plan`` would place, or for VM ``vm`` alone.

    For a VM that has a host already: how the hosts compare for it now, and why it stays or might
    better be elsewhere. Pass the cursor and generator that the decision had.
    """
    if vm is not None and not 0 <= vm < snapshot.vms:
        return ()
    if vm is not None and snapshot.placement[vm] != NONE:
        return (_explain_placed(snapshot, policy, vm),)
    traces: dict[Bundle, Trace] = {}
    only = NONE if vm is None else vm
    traced = run(snapshot, policy, cursor, rng, traces=traces, only=only)
    decided = traced
    if policy.strategy is Strategy.OPTIMISED:
        decided = plan(snapshot, policy, cursor=cursor)
    found: list[Explanation] = []
    for bundle, trace in traces.items():
        chosen = int(decided.placement[bundle.vms[0]])
        reason = decided.reason_for(bundle.vms[0])
        text = reason.message if reason is not None else _why_chosen(policy, trace, chosen)
        found.append(_explanation(snapshot, policy, bundle, trace, chosen=chosen, reason=text))
    return tuple(found)


def _explain_placed(snapshot: Snapshot, policy: PlacementPolicy, vm: int) -> Explanation:
    home = int(snapshot.placement[vm])
    ledger = Ledger(snapshot)
    ledger.lift(vm)
    trace = Trace([""] * snapshot.hosts)
    bundle = Bundle((vm,))
    Chooser(ledger, policy).choose(bundle, trace=trace)
    if home not in trace.order:
        text = f"it would not be placed there now: {explained(snapshot, trace, home)}"
    elif trace.order[0] == home:
        text = "it is on the best host for it"
    else:
        best = snapshot.host_ids[trace.order[0]]
        place = trace.order.index(home) + 1
        text = f"its host is number {place} of {len(trace.order)} now; the best is {best!r}"
    return _explanation(snapshot, policy, bundle, trace, chosen=home, reason=text)


def _why_chosen(policy: PlacementPolicy, trace: Trace, chosen: int) -> str:
    passed = f"{len(trace.order)} of {len(trace.refused_by)} hosts passed the filters"
    match policy.strategy:
        case Strategy.FIRST_FIT:
            how = "the first of them"
        case Strategy.ROUND_ROBIN:
            how = "the next in turn"
        case Strategy.RANDOM_K:
            how = "the best of those drawn"
        case Strategy.OPTIMISED:
            how = "chosen for all VMs at once"
        case Strategy.WEIGHTS:
            how = "the lowest score"
    if trace.order and trace.order[0] == chosen:
        return f"{passed}; this is {how}"
    return f"{passed}; {how}"


def _explanation(
    snapshot: Snapshot,
    policy: PlacementPolicy,
    bundle: Bundle,
    trace: Trace,
    *,
    chosen: int,
    reason: str,
) -> Explanation:
    places = {host: place for place, host in enumerate(trace.order)}
    verdicts: list[Verdict] = []
    for host, refused_by in enumerate(trace.refused_by):
        parts: tuple[Part, ...] = ()
        if not refused_by:
            parts = tuple(
                Part(name, factor, float(scores[host]), float(factor * scores[host]))
                for name, factor, scores in trace.parts
            )
        total = float(trace.totals[host]) if host in places else 0.0
        state = HostState(int(snapshot.host_state[host]))
        why = "" if state is HostState.ACTIVE else state.name.lower()
        if refused_by:
            why = explained(snapshot, trace, host)
        if refused_by == "capacity":
            why = f"refused by capacity ({_lack(snapshot, bundle, host)})"
        verdicts.append(
            Verdict(
                host,
                snapshot.host_ids[host],
                refused_by,
                why,
                parts,
                total,
                places.get(host, NONE),
            )
        )
    return Explanation(
        bundle.vms,
        tuple(snapshot.vm_ids[vm] for vm in bundle.vms),
        policy.name,
        policy.strategy.value,
        chosen,
        reason,
        tuple(verdicts),
    )


def _lack(snapshot: Snapshot, bundle: Bundle, host: int) -> str:
    """Which resource is missing even before this decision, or that this decision used it up."""
    need = snapshot.demand[list(bundle.vms)].sum(axis=0)
    free = Ledger(snapshot).free[host]
    lacking = [
        f"{name}: {need[axis]:g} asked, {max(0.0, float(free[axis])):g} free"
        for axis, name in enumerate(snapshot.axes)
        if need[axis] > free[axis]
    ]
    return "; ".join(lacking) or "its room went to VMs placed before"


def text(snapshot: Snapshot, explanation: Explanation, most: int = MAX_TEXT_HOSTS) -> str:
    """The explanation for people: best hosts first, then the refused ones."""
    names = ", ".join(explanation.vm_ids)
    where = "nowhere"
    if explanation.chosen != NONE:
        where = snapshot.host_ids[explanation.chosen]
    lines = [f"{names} -> {where}  ({explanation.policy}: {explanation.reason})"]
    passed = sorted((v for v in explanation.hosts if v.place != NONE), key=lambda v: v.place)
    refused = [v for v in explanation.hosts if v.place == NONE]
    for verdict in (*passed, *refused)[:most]:
        mark = "*" if verdict.host == explanation.chosen else " "
        if verdict.refused_by:
            lines.append(f"  {mark} {verdict.host_id}: {verdict.why}")
            continue
        parts = " + ".join(
            f"{part.weight} {part.score:g}*{part.factor:g}"
            for part in verdict.parts
            if part.product
        )
        late = f" ({verdict.why})" if verdict.why else ""
        score = f" {parts or 0} = {verdict.total:g}" if verdict.parts else ""
        lines.append(f"  {mark} {verdict.place + 1}. {verdict.host_id}:{score}{late}")
    if len(explanation.hosts) > most:
        lines.append(f"    and {len(explanation.hosts) - most} more hosts")
    return "\n".join(lines)


def other_targets(
    snapshot: Snapshot, move: Move, vm: str, name_of: Callable[[int], str], most: int = 5
) -> Iterator[str]:
    """Where else a VM could have gone, or why not: a line for each of the first ``most`` hosts."""
    need = snapshot.demand[move.vm]
    others = [row for row in range(snapshot.hosts) if row not in (move.source, move.target)][:most]
    taking = accepting(snapshot)
    for row in others:
        if not taking[row]:
            yield f"{name_of(row)} for {vm}: it takes no part"
            continue
        load = snapshot.used[row] + snapshot.demand[snapshot.placement == row].sum(axis=0)
        over = np.flatnonzero((load + need > snapshot.ceiling[row]) & (need > 0))
        after = (load[0] + need[0]) / max(float(snapshot.capacity[row, 0]), 1e-9)
        if over.size:
            yield f"{name_of(row)} for {vm}: no room ({snapshot.axes[int(over[0])]})"
        else:
            yield (
                f"{name_of(row)} for {vm}: possible, cpu at {after:.0%}; "
                f"{name_of(move.target)} suits better"
            )
