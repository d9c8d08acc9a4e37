"""Was each decision worth it? What became of it, against what would have been without it.

Everything else is left as it was: without the decision its guests would have stayed where they were
until a later decision moved them, and their hosts up. Both ways are priced over the hour after its
last move: kWh, and ``PRICE_KWH`` for each core hour that was asked for and not served, what the
migrations took included. A decision is *harmful* if it cost more, by more than ``TOLERANCE`` of
what its hosts cost in that hour. A nap is harmful if it saved less than waking the host took.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks._month_fleet import (
    FAILED,
    MIGRATION_SHARE,
    ON,
    PERIOD_S,
    WAKE_S,
    WAKING,
    Moved,
)
from benchmarks._month_world import Month

HORIZON_S: Final = 3600.0
PRICE_KWH: Final = 1.0
"""A core hour that was not served weighs as much as some fifteen that were, in energy."""
TOLERANCE: Final = 0.01
RETURN_S: Final = 3600.0
J_PER_KWH: Final = 3.6e6


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one decision: its price with it and without it, in kWh."""

    decision_id: str
    kind: str
    moves: int
    cost: float
    otherwise: float

    @property
    def is_harmful(self) -> bool:
        """Worse than nothing, beyond tolerance."""
        return self.cost - self.otherwise > TOLERANCE * self.otherwise

    @property
    def is_worse(self) -> bool:
        """Worse at all."""
        return self.cost > self.otherwise


def judge(month: Month) -> list[Verdict]:
    """Every decision that moved something and whose hour has passed."""
    by_decision: dict[str, list[Moved]] = defaultdict(list)
    for move in month.moves:
        by_decision[move.decision_id].append(move)
    periods = month.fleet.periods
    verdicts: list[Verdict] = []
    for decision_id, moves in by_decision.items():
        decision = month.decisions.get(decision_id)
        first = int(np.ceil(max(move.ended_s for move in moves) / PERIOD_S))
        last = first + round(HORIZON_S / PERIOD_S)
        if decision is not None and last <= periods:
            cost, otherwise = _compare(month, moves, first, last)
            verdicts.append(Verdict(decision_id, decision.kind.value, len(moves), cost, otherwise))
    return verdicts


def _compare(month: Month, moves: list[Moved], first: int, last: int) -> tuple[float, float]:
    history, fleet = month.history, month.fleet
    hosts = sorted({row for move in moves for row in (move.source, move.target)})
    sources = {move.source for move in moves}
    cost = otherwise = 0.0
    for move in moves:
        use = fleet.use[move.vm, min(int(move.began_s // PERIOD_S), fleet.periods - 1)]
        seconds = move.ended_s - move.began_s
        cost += PRICE_KWH * float(use) * MIGRATION_SHARE * seconds / 3600
    for period in range(first, last):
        place, state, use = history.place[period], history.state[period], fleet.use[:, period]
        before = place.copy()
        for move in moves:
            if place[move.vm] == move.target and state[move.source] != FAILED:
                before[move.vm] = move.source
        for row in hosts:
            if state[row] == FAILED:
                continue
            cost += _price(month, row, int(state[row]), float(use[place == row].sum()))
            kept_up = row in sources and bool((before == row).any())
            stays = ON if kept_up else int(state[row])
            otherwise += _price(month, row, stays, float(use[before == row].sum()))
    return cost, otherwise


def _price(month: Month, row: int, state: int, load: float) -> float:
    """kWh of one host in one period."""
    fleet = month.fleet
    if state == ON:
        watts = float(fleet.watts(np.array([row]), np.array([load]))[0])
    else:
        watts = float(fleet.power_w[row, -1]) if state == WAKING else fleet.asleep_w
    unserved = max(0.0, load - float(fleet.cores[row])) if state == ON else 0.0
    return watts * PERIOD_S / J_PER_KWH + PRICE_KWH * unserved * PERIOD_S / 3600


def returns(month: Month) -> int:
    """How often a guest came back to a host that it had left within the hour."""
    left: dict[tuple[int, int], float] = {}
    count = 0
    for move in sorted(month.moves, key=lambda each: each.began_s):
        at_s = left.get((move.vm, move.target))
        if at_s is not None and move.began_s - at_s < RETURN_S:
            count += 1
        left[move.vm, move.source] = move.ended_s
    return count


def harmful_naps(month: Month) -> int:
    """Sleeps that saved less than waking the host took."""
    fleet, count = month.fleet, 0
    for row, from_s, woken_s in month.slept:
        if np.isfinite(woken_s):
            power = fleet.power_w[int(row)]
            saved_j = (woken_s - from_s) * float(power[0] - fleet.asleep_w)
            count += saved_j < WAKE_S * float(power[-1])
    return count
