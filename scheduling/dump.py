"""A decision as a file: snapshot, policy and what was decided, as JSON, to be replayed elsewhere.

Columns that hold nothing but their default are left out. Numbers survive exactly. Reading never
trusts the file: the snapshot is validated like any other, and what cannot be read at all raises
``DumpError`` with the reason.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from snooze.scheduling import plugged
from snooze.scheduling.check import check_plan
from snooze.scheduling.consolidation import Consolidation, consolidate
from snooze.scheduling.deciding import (
    DecisionKind,
    consolidation_policy,
    decide,
    drain_options,
    options_of,
    relocated,
)
from snooze.scheduling.drain import Drain, DrainPolicy, drain
from snooze.scheduling.plans import Move, Plan
from snooze.scheduling.plugins import DeciderKind, Plugins, for_plans
from snooze.scheduling.policies import (
    BUILT_IN,
    Catalogue,
    PlacementPolicy,
    PolicyError,
    document_of,
    is_list,
    is_table,
)
from snooze.scheduling.relocation import Outcome, Situation
from snooze.scheduling.relocation_predictive import DEFAULT
from snooze.scheduling.reserve import stranded_hosts
from snooze.scheduling.situations import (
    read_situation,
    relocation_policy,
    situation_document,
)
from snooze.scheduling.snapshot import (
    Affinity,
    AffinityRule,
    BoolArray,
    IntArray,
    Labels,
    Snapshot,
)
from snooze.scheduling.units import Properties, PropertyValue, UnitFailed
from snooze.scheduling.validation import as_numbers

FORMAT: Final = "snooze-decision/1"

MAX_PACKED_BYTES: Final = 1024 * 1024

_COLUMNS: Final = (
    ("used", 0.0),
    ("host_state", 0.0),
    ("demand", None),
    ("placement", -1.0),
    ("overcommit", 1.0),
    ("headroom", 1.0),
    ("pin", -1.0),
    ("load", None),
    ("vm_count", 0.0),
    ("max_vms", -1.0),
    ("host_preference", 0.0),
    ("priority", 0.0),
    ("movable", 1.0),
    ("highly_available", 0.0),
    ("memory_kib", None),
    ("dirty_rate_kib_s", 0.0),
    ("overload_s", 0.0),
)
_LABELS: Final = ("tags", "networks", "images")


class DumpError(ValueError):
    """The file is no dump of a decision."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision to be made again.

    Attributes:
        kind: what was decided.
        snapshot: what it was made on.
        policy: by which policy; of no account for consolidations and drains.
        options: of a consolidation, drain or relocation, see ``deciding``.
        cursor: where round-robin was.
        situation: of a relocation.
        placement: what was decided then (``int64[V]``), if the file says so.
    """

    kind: DecisionKind
    snapshot: Snapshot
    policy: PlacementPolicy = BUILT_IN.policies["first_fit"]
    cursor: int = 0
    placement: IntArray | None = None
    options: Properties = field(default_factory=dict[str, PropertyValue])
    situation: Situation | None = None

    def decide(self, plugged_in: Plugins | None = None) -> Plan:
        """Decide again, by the same code as then. Raises: UnitFailed: see ``deciding.decide``."""
        return decide(
            self.kind,
            self.snapshot,
            self.policy,
            options_of(self.kind, self.options),
            self.cursor,
            self.situation,
            plugged_in,
        )


def snapshot_document(snapshot: Snapshot) -> dict[str, object]:
    """``snapshot`` as JSON-ready data, from which ``read_snapshot`` makes an equal one."""
    document: dict[str, object] = {
        "host_ids": list(snapshot.host_ids),
        "capacity": snapshot.capacity.tolist(),
        "vm_ids": list(snapshot.vm_ids),
        "axes": list(snapshot.axes),
    }
    for name, default in _COLUMNS:
        column: NDArray[np.generic] = getattr(snapshot, name)
        if default is None or bool(np.any(column != default)):
            document[name] = column.tolist()
    document["rules"] = [
        {
            "kind": rule.kind.value,
            "vms": list(rule.vms),
            "hosts": list(rule.hosts),
            "hard": rule.hard,
            "weight": rule.weight,
            "name": rule.name,
        }
        for rule in snapshot.rules
    ]
    for name in _LABELS:
        labels: Labels | None = getattr(snapshot, name)
        if labels is not None:
            document[name] = {
                "hosts": _members(labels.names, labels.hosts),
                "vms": _members(labels.names, labels.vms),
            }
    return document


def _members(names: tuple[str, ...], marks: NDArray[np.bool_]) -> list[list[str]]:
    return [[names[i] for i in np.flatnonzero(row).tolist()] for row in marks]


def read_snapshot(document: Mapping[str, object]) -> Snapshot:
    """The snapshot of ``snapshot_document``; what is wrong in it is in its ``problems``.

    Raises:
        DumpError: it cannot be read at all.
    """
    allowed = {"host_ids", "capacity", "vm_ids", "axes", "rules", *_LABELS}
    allowed |= {name for name, _ in _COLUMNS}
    unknown = set(document) - allowed
    if unknown:
        raise DumpError(f"unknown keys: {', '.join(sorted(unknown))}")
    columns: dict[str, NDArray[np.float64]] = {}
    for name in ("capacity", *(name for name, _ in _COLUMNS)):
        if name in document:
            numbers = as_numbers(document[name])
            if numbers is None:
                raise DumpError(f"{name} is not an array of numbers")
            columns[name] = numbers
    host_ids, vm_ids = _names(document, "host_ids"), _names(document, "vm_ids")
    rules = document.get("rules", [])
    if not is_list(rules):
        raise DumpError("rules is not a list")
    axes = _names(document, "axes")
    capacity = columns.pop("capacity", np.zeros((0, len(axes))))
    return Snapshot.of(
        host_ids,
        capacity,
        vm_ids=vm_ids,
        axes=axes or None,
        rules=[_rule(rule) for rule in rules],
        tags=_labels(document, "tags"),
        networks=_labels(document, "networks"),
        images=_labels(document, "images"),
        **columns,
    )


def _names(document: Mapping[str, object], key: str) -> list[str]:
    value = document.get(key, [])
    if not is_list(value) or not all(isinstance(name, str) for name in value):
        raise DumpError(f"{key} is not a list of names")
    return [str(name) for name in value]


def _rule(value: object) -> AffinityRule:
    if not is_table(value):
        raise DumpError("a rule is not a table")
    try:
        kind = Affinity(str(value.get("kind")))
    except ValueError as error:
        raise DumpError(str(error)) from None
    weight = value.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise DumpError("a rule's weight is not a number")
    return AffinityRule(
        kind,
        _indices(value.get("vms", [])),
        _indices(value.get("hosts", [])),
        bool(value.get("hard", True)),
        float(weight),
        str(value.get("name", "")),
    )


def _indices(value: object) -> tuple[int, ...]:
    if not is_list(value):
        raise DumpError("a rule's members are not a list")
    found: list[int] = []
    for each in value:
        if isinstance(each, bool) or not isinstance(each, int):
            raise DumpError("a rule's members are not indices")
        found.append(each)
    return tuple(found)


def _labels(document: Mapping[str, object], key: str) -> Labels | None:
    value = document.get(key)
    if value is None:
        return None
    if not is_table(value):
        raise DumpError(f"{key} is not a table")
    sides: list[list[frozenset[str]]] = []
    for side in ("hosts", "vms"):
        rows = value.get(side)
        if not is_list(rows):
            raise DumpError(f"{key}.{side} is not a list")
        sides.append([frozenset(_names({"names": row}, "names")) for row in rows])
    return Labels.of(sides[0], sides[1])


def dump(decision: Decision, plan: Plan | None = None) -> str:
    """The decision as JSON text, with ``plan`` if one was made."""
    document: dict[str, object] = {
        "format": FORMAT,
        "kind": decision.kind.value,
        "policy": document_of(decision.policy),
        "options": dict(decision.options),
        "cursor": decision.cursor,
        "snapshot": snapshot_document(decision.snapshot),
    }
    if decision.situation is not None:
        document["situation"] = situation_document(decision.situation)
    if plan is not None:
        document["plan"] = plan_document(decision.snapshot, plan)
    # Numbers as short as they can be and still the same when read again.
    return msgspec.json.encode(document).decode()


def pack(decision: Decision, plan: Plan | None = None) -> bytes:
    """``dump``, compressed by zlib; empty if that is too much to keep."""
    packed = zlib.compress(dump(decision, plan).encode(), 6)
    return packed if len(packed) <= MAX_PACKED_BYTES else b""


def drain_and_pack(
    snapshot: Snapshot, hosts: BoolArray, policy: DrainPolicy
) -> tuple[Drain, bytes]:
    """A drain's plan, and what makes it again. ``hosts`` are those that drain."""
    answer = drain(snapshot, hosts, policy)
    decision = Decision(DecisionKind.DRAIN, snapshot, options=drain_options(policy))
    return answer, pack(decision, answer.plan)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A plan with all that takes long to find out about it.

    Attributes:
        plan, outcomes: what is to be done, and what was done about each host in question.
        inputs: what makes the plan again.
        broken: the rule that it breaks, in words; empty: none.
        strands: hosts whose highly available VMs would find room before it, and not afterwards.
    """

    plan: Plan
    outcomes: tuple[Outcome, ...]
    inputs: bytes
    broken: str
    strands: tuple[int, ...]


def prepare(decision: Decision, plan: Plan, outcomes: tuple[Outcome, ...] = ()) -> Prepared:
    """Prove a plan, and write down how it was made."""
    snapshot = decision.snapshot
    broken = check_plan(snapshot, plan)
    worse = stranded_hosts(snapshot.moved(plan.placement)) & ~stranded_hosts(snapshot)
    return Prepared(
        plan,
        outcomes,
        pack(decision, plan),
        broken[0].message if broken else "",
        tuple(np.flatnonzero(worse).tolist()),
    )


def relocate_and_prepare(
    situation: Situation, options: Mapping[str, object], directory: str = ""
) -> Prepared:
    """A relocation's plan, proved; ``options`` as in ``RELOCATION``.

    ``directory``: of plug-ins. One that fails decides nothing (``plugged.py``, rule 3).
    """
    chosen, kind = options_of(DecisionKind.RELOCATION, options), DeciderKind.RELOCATION
    answer, problem = None, None
    name = str(chosen["policy"])
    if plugged.is_plugged(kind, name):
        try:
            answer = relocated(situation, chosen, for_plans(directory))
        except UnitFailed as failure:
            problem = plugged.problem_of(kind, name, failure)
            chosen = options_of(DecisionKind.RELOCATION, {**chosen, "policy": DEFAULT.name})
    answer = answer or relocation_policy(chosen).plan(situation)
    plan = plugged.with_problem(answer, problem) if problem is not None else answer.plan
    decision = Decision(
        DecisionKind.RELOCATION, situation.snapshot, options=chosen, situation=situation
    )
    return prepare(decision, plan, answer.outcomes)


def consolidate_and_prepare(
    snapshot: Snapshot, options: Mapping[str, object], directory: str = ""
) -> tuple[Consolidation, Prepared]:
    """A consolidation, proved; ``options`` as in ``CONSOLIDATION``; else as above."""
    chosen, kind = options_of(DecisionKind.CONSOLIDATION, options), DeciderKind.CONSOLIDATION
    policy, name = consolidation_policy(chosen), str(chosen["method"])
    answer, problem = None, None
    if plugged.is_plugged(kind, name):
        try:
            answer = plugged.consolidate(snapshot, policy, for_plans(directory), name)
        except UnitFailed as failure:
            problem = plugged.problem_of(kind, name, failure)
            chosen = options_of(
                DecisionKind.CONSOLIDATION, {**chosen, "method": policy.method.value}
            )
    answer = answer or consolidate(snapshot, policy)
    if problem is not None:
        answer = replace(answer, plan=plugged.with_problem(answer, problem))
    return answer, prepare(
        Decision(DecisionKind.CONSOLIDATION, snapshot, options=chosen), answer.plan
    )


def plan_document(snapshot: Snapshot, plan: Plan) -> dict[str, object]:
    """``plan`` as JSON-ready data, by names as well as by indices."""

    def move(each: Move) -> dict[str, object]:
        return {
            "vm": snapshot.vm_ids[each.vm],
            "source": snapshot.host_ids[each.source],
            "target": snapshot.host_ids[each.target],
            "batch": each.batch,
        }

    return {
        "placement": plan.placement.tolist(),
        "hosts": {
            snapshot.vm_ids[vm]: snapshot.host_ids[host] if host >= 0 else None
            for vm, host in enumerate(plan.placement.tolist())
        },
        "moves": [move(each) for each in plan.moves],
        "wakes": [snapshot.host_ids[host] for host in plan.wakes],
        "sleeps": [snapshot.host_ids[host] for host in plan.sleeps],
        "cursor": plan.cursor,
        "policy": plan.policy,
        "reasons": [
            {
                "vm": snapshot.vm_ids[reason.vm],
                "code": reason.code.value,
                "message": reason.message,
                "refused": [list(each) for each in reason.refused],
            }
            for reason in plan.reasons
        ],
        "problems": [
            {"where": each.where, "message": each.message, "code": each.code}
            for each in plan.problems
        ],
    }


def load(text: str, catalogue: Catalogue = BUILT_IN) -> Decision:
    """The decision in ``text``.

    Raises:
        DumpError: it is not one, or its policy needs parts that ``catalogue`` lacks.
    """
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DumpError(f"not JSON: {error}") from None
    if not is_table(document) or document.get("format") != FORMAT:
        raise DumpError(f"not a {FORMAT} document")
    snapshot = document.get("snapshot")
    policy = document.get("policy", {"name": "first_fit"})
    options = document.get("options", {})
    if not is_table(snapshot) or not is_table(policy) or not is_table(options):
        raise DumpError("snapshot, policy and options must be tables")
    try:
        kind = DecisionKind(str(document.get("kind", "placement")))
    except ValueError as error:
        raise DumpError(str(error)) from None
    try:
        chosen = catalogue.compose(policy)
        chosen_options = options_of(kind, options)
    except PolicyError as error:
        raise DumpError(f"policy: {error}") from None
    read = read_snapshot(snapshot)
    cursor = document.get("cursor", 0)
    if isinstance(cursor, bool) or not isinstance(cursor, int):
        raise DumpError("cursor is not an index")
    recorded = _recorded(document.get("plan"), read)
    situation = document.get("situation")
    if situation is None:
        return Decision(kind, read, chosen, cursor, recorded, chosen_options)
    if not is_table(situation):
        raise DumpError("situation must be a table")
    try:
        seen = read_situation(situation, read)
    except ValueError as error:
        raise DumpError(f"situation: {error}") from None
    return Decision(kind, read, chosen, cursor, recorded, chosen_options, seen)


def _recorded(plan: object, snapshot: Snapshot) -> IntArray | None:
    if plan is None:
        return None
    if not is_table(plan):
        raise DumpError("plan must be a table")
    numbers = as_numbers(plan.get("placement"))
    if numbers is None or numbers.shape != (snapshot.vms,) or not np.isfinite(numbers).all():
        raise DumpError("plan.placement is not one index per VM")
    return numbers.astype(np.int64)
