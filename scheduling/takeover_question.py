"""What a new leader does about hosts and VMs with which the former one was not done.

Rules of ``continue_power``, for a host that the record calls going down or waking:

1. One that was to go down and is still with its manager is ordered down again; one that left is
   looked at until its power controller calls it off.
2. One that was being woken is woken once more: every order may be given twice.
3. Nothing is weighed anew: what has changed since then is seen to when the step has ended.

A question holds all that its answer depends on (``rulings.py``).
"""

from typing import Literal

import msgspec


class PowerTakeover(msgspec.Struct, frozen=True, omit_defaults=True):
    """What becomes of a step that a former leader has recorded?

    Attributes:
        state: what the record calls the host.
        joined: it is with a group manager.
        note: the former leader's reason.
        action: how it goes down.
        since_s: how long it has been in that state.
    """

    id: str
    name: str
    state: Literal["going_down", "waking"]
    joined: bool
    note: str
    action: str
    since_s: float


class Continuation(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer."""

    verdict: Literal["order down", "look", "wake"]
    why: str
    others: tuple[str, ...] = ()


def continue_power(question: PowerTakeover) -> Continuation:
    """See the module's rules."""
    q = question
    why = f"goes on: {q.note}"
    if q.state == "waking":
        wait = (
            f"wait for it: the leader may have changed before it was woken, {q.since_s:.0f} s ago"
        )
        return Continuation("wake", why, (wait,))
    if q.joined:
        stays = f"leave {q.name} up: the record says that it goes down"
        return Continuation("order down", why, (stays,))
    back = f"wake {q.name} again: nobody needs it yet"
    return Continuation("look", why, (back,))
