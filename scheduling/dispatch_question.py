"""Which managers are asked to take VMs, as a question that can be written down.

``dispatching.plan`` decides; a question holds the views of the managers that were asked, and so all
that its answer depends on (``rulings.py``).
"""

from typing import Final

import msgspec
import numpy as np

from snooze.common.resources import R
from snooze.scheduling.dispatching import ManagerView, plan
from snooze.scheduling.energy_question import Amounts

MAX_LINES: Final = 10


class ManagerRoom(msgspec.Struct, frozen=True):
    """A manager: so many hosts (``count``) with at least so much room each."""

    id: str
    name: str
    room: tuple[Amounts, ...]
    count: tuple[int, ...]


class Wanted(msgspec.Struct, frozen=True, omit_defaults=True):
    """A VM; ``pin``: row of the only manager that may have it, -1: any, too large: it is away."""

    id: str
    name: str
    demand: Amounts
    pin: int = -1


class DispatchQuestion(msgspec.Struct, frozen=True):
    """Who is asked for these VMs, which the same managers have refused?"""

    managers: tuple[ManagerRoom, ...]
    vms: tuple[Wanted, ...]
    policy: str
    cursor: int


class Dispatched(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer: pairs of VM and manager, both by id; what else was weighed, for people."""

    managers: tuple[tuple[str, str], ...]
    others: tuple[str, ...] = ()


def choose_managers(question: DispatchQuestion) -> Dispatched:
    """The plan of ``dispatching`` for the question."""
    q = question
    views = [
        ManagerView(
            each.id,
            np.array(each.room, dtype=np.float64).reshape(-1, R),
            np.array(each.count, dtype=np.int64),
        )
        for each in q.managers
    ]
    demand = np.array([vm.demand for vm in q.vms], dtype=np.float64)
    pins = np.array([vm.pin for vm in q.vms], dtype=np.int64)
    made = plan(views, demand, pins, q.policy, q.cursor)
    managers: list[tuple[str, str]] = []
    others: list[str] = []
    for row, vm in enumerate(q.vms):
        if made.manager[row] >= 0:
            managers.append((vm.id, q.managers[int(made.manager[row])].id))
            others += [
                f"{q.managers[each].name} for {vm.name}: it has room, too"
                for each in made.fallbacks[row]
            ]
    others += [f"{q.vms[each.vm].name}: {each.message}" for each in made.reasons]
    return Dispatched(tuple(managers), tuple(others[:MAX_LINES]))
