"""Whether a lost host is switched off or proven down, and what becomes of its VMs; each a question.

``judge_fence``, the first that holds:

1. a person said so, or its power controller, asked after it was lost, reads as off: *down*;
2. it fences itself, and nobody can have renewed its lease: *down*, for highly available VMs;
3. no controller, or not away for ``fence_after_s``: *wait*;
4. away long enough (``patience_s`` if its link was closed: its machine lives), not too many away at
   once, and nobody forbade it: *off*;
5. it has not said yet whether it is on: *ask*; else *wait*.

``judge_restart``: what a person asks for, and what a former leader has recorded, is done; a VM that
its submission still waits for is placed anew; one that was off stays so; else as its policy says,
at most ``max_restarts`` within the window.

The rules' reasons are at the top of the leader's ``recovery_core.py`` and
``submission_restarts_core.py``, which ask these questions; ``rulings.py`` asks them again.
"""

from typing import Final, Literal

import msgspec

STORM_HOSTS: Final = 3
"""Fewer that are away at once are no storm."""


class Ruling(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer.

    Attributes:
        verdict: fence: wait, ask, off or down; restart: restart, keep or ask.
        why: for people.
        proof: of down: bmc, lease or person.
        others: what else was weighed, and why not.
    """

    verdict: Literal["wait", "ask", "off", "down", "restart", "keep"]
    why: str
    proof: str = ""
    others: tuple[str, ...] = ()


class FenceQuestion(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is to be done about a lost host?

    Attributes:
        silent: its link fell silent; else it was closed, by an agent or manager that went.
        away, hosts: that are lost and not proven down, of how many that are not asleep.
        may_fence: people let hosts be switched off by themselves, this one too.
        controlled: it has a power controller to ask.
        answers: so many questions to it were answered, none by "off".
        reads_off: the newest answer, to a question asked after the loss, is "off".
        own_lease_s: it fences itself so long after its lease ended; 0: it does not.
        fenced: proven by its lease already.
        confirmed: a person said that it is off.
    """

    host: str
    away_s: float
    silent: bool
    away: int
    hosts: int
    fence_after_s: float
    patience_s: float
    storm_share: float
    lease_s: float
    margin_s: float
    own_lease_s: float = 0.0
    may_fence: bool = True
    controlled: bool = True
    answers: int = 0
    reads_off: bool = False
    fenced: bool = False
    confirmed: bool = False


def is_storm(away: int, hosts: int, share: float) -> bool:
    """Whether so many hosts are away at once that it is more likely that we are cut off."""
    return away >= STORM_HOSTS and away > share * hosts


def judge_fence(question: FenceQuestion) -> Ruling:
    """See the module's rules."""
    q = question
    gone = f"host {q.host} has been away for {q.away_s:.1f} s"
    if q.confirmed:
        return Ruling("down", "a person said that it is off", "person")
    if q.reads_off:
        return Ruling(
            "down",
            "its power controller says it is off",
            "bmc",
            (f"switch {q.host} off: not needed, it is off",),
        )
    lease_due_s = q.lease_s + q.own_lease_s + q.margin_s
    if q.own_lease_s > 0 and not q.fenced and q.away_s >= lease_due_s:
        asked = f"ask its power controller: {q.host} has none"
        why = "its lease ran out, so it has fenced itself"
        return Ruling("down", why, "lease", () if q.controlled else (asked,))
    others = _later(q, lease_due_s)
    if not q.controlled:
        return Ruling("wait", f"{gone}; it has no power controller to ask", others=others)
    if q.away_s < q.fence_after_s:
        return Ruling("wait", f"{gone}; it may come back", others=others)
    wait_s = q.fence_after_s if q.silent else max(q.patience_s, q.fence_after_s)
    why = ""
    if not q.may_fence:
        why = "nothing is switched off by itself now"
    elif is_storm(q.away, q.hosts, q.storm_share):
        why = f"{q.away} of {q.hosts} hosts are away at once"
    elif q.away_s < wait_s:
        why = f"its link was closed, so its machine lives: {wait_s:g} s of patience"
    if not why:
        wait = f"wait longer: {wait_s:g} s without a sign of life are the limit"
        return Ruling("off", gone, others=(wait, *others))
    if q.answers:
        return Ruling("wait", f"{gone}; its controller was asked; {why}", others=others)
    return Ruling("ask", f"{gone}; {why}", others=(f"switch {q.host} off: {why}", *others))


def _later(q: FenceQuestion, lease_due_s: float) -> tuple[str, ...]:
    """Other ways to a proof."""
    lines: list[str] = []
    if q.own_lease_s > 0 and not q.fenced:
        lines.append(
            f"wait for its lease: it has fenced itself {lease_due_s - q.away_s:.0f} s from now"
        )
    elif not q.own_lease_s:
        lines.append(f"wait for its lease: {q.host} holds none that ends by itself")
    lines.append(f"a person confirms that {q.host} is dead: nobody has")
    return tuple(lines)


class RestartQuestion(msgspec.Struct, frozen=True, omit_defaults=True):
    """What becomes of a VM whose host is down?

    Attributes:
        proof: that the host is down.
        policy: ``on_host_failure``.
        back: the host is back, and brought the VM along, switched off by its end.
        asked: a person wants it started.
        begun: a former leader has recorded its restart.
        suspect: it is not known to have been on that host, and nobody else can have it.
        discarded: the copy that was taken for it is gone, as it had been told to go before.
        awaited: its submission still waits for it.
        was_off: it was off, or about to be by somebody's wish.
        may_restart: people let VMs be restarted by themselves, this one too.
        restarts: within the window.
    """

    vm: str
    host: str
    proof: str
    policy: Literal["restart", "ask", "leave"]
    restarts: int
    max_restarts: int
    back: bool = False
    awaited: bool = False
    was_off: bool = False
    may_restart: bool = True
    asked: bool = False
    begun: bool = False
    suspect: bool = False
    discarded: bool = False


def judge_restart(question: RestartQuestion) -> Ruling:
    """See the module's rules."""
    q = question
    down = f"host {q.host} is down ({q.proof})"
    if q.asked:
        wait = (
            f"wait for {q.host}: a person asked" if q.host else "leave it as it is: a person asked"
        )
        return Ruling("restart", "a person asked for it", others=(wait,))
    if q.begun:
        return Ruling(
            "restart",
            "goes on: its restart was recorded before the leader changed",
            others=("judge it anew: the host that it was on is not recorded any more",),
        )
    if q.suspect:
        return Ruling(
            "restart",
            "the host that may have had it is down",
            others=("give it up: it was started, and is to run",),
        )
    if q.discarded:
        return Ruling(
            "restart",
            f"its copy on host {q.host} was discarded as stale, and there is no other",
            others=("give it up: it was started, and is to run",),
        )
    if q.back:
        if q.policy == "ask":
            return Ruling("ask", "its host went down under it; start it when you want it")
        return Ruling(
            "restart",
            "its host went down under it; it is started there again",
            others=("start it on another host: its disks and its copy are there",),
        )
    if q.awaited:
        return Ruling("restart", f"{down}; it was never known to run there")
    if q.was_off:
        return Ruling("keep", f"{down}; it was off")
    if q.policy == "leave":
        return Ruling("keep", f"{down}; it waits for it, as its policy says")
    if q.policy == "ask":
        return Ruling("ask", f"{down}; start it to have it on another host")
    if not q.may_restart:
        return Ruling("ask", f"{down}; VMs are not restarted by themselves now: start it")
    if q.restarts >= q.max_restarts:
        return Ruling(
            "ask",
            f"{down}; it was restarted {q.restarts} times of late, the most its policy allows: "
            "start it yourself",
        )
    return Ruling(
        "restart",
        f"{down}; its policy is to restart it",
        others=(
            f"wait for {q.host}: its policy is to restart",
            f"ask a person: it was restarted {q.restarts} times of late, {q.max_restarts} are "
            "allowed",
        ),
    )
