"""What the cluster may do by itself, as people said: pauses, modes, windows.

The leader keeps one ``AutonomyRecord`` in the store and tells it to its managers; every core that
decides asks the same ``Control``.

Rules:

1. Each kind of decision has a *mode* from the settings. A rule that names cluster or manager may
   set another; of several, the one that names more wins: manager before cluster, kind before all.
2. A *pause* makes the mode ``OFF`` where it applies, whatever else is said. A rule that names a
   host or a VM can only restrict: the decision has the strictest mode of all that take part.
3. Where windows are named for a kind, or for all, a decision outside all of them is ``OFF``. Those
   for all do not bind ``RESCUES``: who lets VMs move at night only wants dead hosts' VMs back, and
   hosts woken for VMs that wait, by day as well. Windows that name one of these kinds do.
4. A rule past ``until_ms`` is as if it were not there.

What is switched off for hosts and VMs takes no part: the host neither gives nor takes VMs, the VM
stays where it is.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

import msgspec

from snooze.common.decisions import DecisionKind, DecisionMode
from snooze.common.time_plans import Window, zone_of

MAX_RULES: Final = 10_000
MAX_WINDOWS: Final = 100

RESCUES: Final = frozenset({DecisionKind.FENCE, DecisionKind.RESTART, DecisionKind.WAKE})
"""What is done because somebody waits for it, and not to make something better."""

STRICTNESS: Final = (
    DecisionMode.AUTO,
    DecisionMode.ADVISE,
    DecisionMode.DRY_RUN,
    DecisionMode.OFF,
)
"""From the freest to the strictest."""

Modes = Mapping[DecisionKind, DecisionMode]


class Scope(StrEnum):
    """What a rule is about."""

    CLUSTER = "cluster"
    MANAGER = "manager"
    HOST = "host"
    VM = "vm"


class AutonomyRule(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that a person said; of each scope, target and kind there is one pause and one mode.

    Each holds until its own time: a pause that is over leaves the mode as it was, and the other way
    round. (Records of before have both in one rule; that is read as two, with the same time.)

    Attributes:
        target: id of the manager, host or VM; empty for the cluster.
        kind: which decisions; None: all.
        mode: None: not changed.
        paused: nothing of this kind happens here.
        who, why: who said so, and why.
        at_ms: when; ``until_ms``: until when it holds, 0 for ever.
    """

    scope: Scope
    target: str = ""
    kind: DecisionKind | None = None
    mode: DecisionMode | None = None
    paused: bool = False
    who: str = ""
    why: str = ""
    at_ms: int = 0
    until_ms: int = 0

    @property
    def about(self) -> tuple[str, str, str]:
        """What there is one pause and one mode for."""
        return (self.scope.value, self.target, self.kind.value if self.kind else "")

    def parts(self) -> "tuple[AutonomyRule, ...]":
        """The pause and the mode that it says, each by itself; nothing if it says neither."""
        if self.paused and self.mode is not None:
            replace = msgspec.structs.replace
            return replace(self, mode=None), replace(self, paused=False)
        return (self,) if self.paused or self.mode is not None else ()


class AutonomyWindow(msgspec.Struct, frozen=True, omit_defaults=True):
    """Decisions of a kind (None: of all but ``RESCUES``) happen in this window only, or in another.

    ``window``: see ``common/time_plans.py``.
    """

    window: str
    kind: DecisionKind | None = None
    zone: str = "UTC"
    who: str = ""
    why: str = ""
    at_ms: int = 0


class AutonomyRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What people said, all of it; ``revision`` counts the changes."""

    revision: int = 0
    rules: tuple[AutonomyRule, ...] = ()
    windows: tuple[AutonomyWindow, ...] = ()

    def with_rule(self, rule: AutonomyRule) -> "AutonomyRecord":
        """With what this rule says in place of what was said of the same.

        A pause replaces a pause, a mode a mode; a rule that says nothing replaces neither.
        """
        record = self
        for part in rule.parts():
            record = record.without_rule(part, paused=part.paused)
            rules = (*record.rules, part)
            record = msgspec.structs.replace(record, rules=rules)
        return msgspec.structs.replace(record, revision=self.revision + 1)

    def without_rule(self, rule: AutonomyRule, *, paused: bool) -> "AutonomyRecord":
        """Without the pause, or without the mode, that is about the same as this rule."""
        rules = [
            part
            for each in self.rules
            for part in each.parts()
            if part.about != rule.about or part.paused is not paused
        ]
        return msgspec.structs.replace(self, revision=self.revision + 1, rules=tuple(rules))

    def with_windows(
        self, kind: DecisionKind | None, windows: Iterable[AutonomyWindow]
    ) -> "AutonomyRecord":
        """With these windows in place of all of that kind."""
        kept = [each for each in self.windows if each.kind is not kind]
        return msgspec.structs.replace(self, revision=self.revision + 1, windows=(*kept, *windows))

    def without_old(self, wall_ms: int) -> "AutonomyRecord":
        """Without the rules whose time is over."""
        rules = tuple(rule for rule in self.rules if not 0 < rule.until_ms <= wall_ms)
        return self if rules == self.rules else msgspec.structs.replace(self, rules=rules)


class Control:
    """What may be done, asked of a record; ``set`` takes in another one."""

    def __init__(
        self,
        modes: Modes,
        windows: Iterable[Window] = (),
        record: AutonomyRecord | None = None,
    ) -> None:
        """``modes``: of the settings, ``AUTO`` where a kind is not named; ``windows`` likewise."""
        self._modes = dict(modes)
        self._own_windows = tuple(windows)
        self.record = AutonomyRecord()
        self._rules: dict[tuple[str, str, str], list[AutonomyRule]] = {}
        self._windows: list[tuple[DecisionKind | None, Window]] = []
        self.set(record or AutonomyRecord())

    def set(self, record: AutonomyRecord) -> None:
        """From now on this record holds; windows that make no sense are left out."""
        self.record = record
        self._rules = {}
        for rule in record.rules:
            self._rules.setdefault(rule.about, []).append(rule)
        self._windows = []
        for each in record.windows:
            try:
                self._windows.append((each.kind, Window.of(each.window, zone_of(each.zone))))
            except ValueError:
                continue

    def mode(
        self,
        kind: DecisionKind,
        wall_ms: int,
        manager_id: str = "",
        host_ids: Iterable[str] = (),
        vm_ids: Iterable[str] = (),
    ) -> DecisionMode:
        """The mode of a decision that these take part in."""
        mode = self._here(kind, wall_ms, manager_id)
        for scope, targets in ((Scope.HOST, host_ids), (Scope.VM, vm_ids)):
            for target in targets:
                mode = strictest(mode, self.restriction(kind, wall_ms, scope, target))
        return mode

    def restriction(
        self, kind: DecisionKind, wall_ms: int, scope: Scope, target: str
    ) -> DecisionMode:
        """What is said of one host or VM: ``AUTO`` if nothing is."""
        mode = DecisionMode.AUTO
        for rule in self._of(kind, wall_ms, scope, target):
            if rule.paused:
                return DecisionMode.OFF
            if rule.mode is not None:
                mode = strictest(mode, rule.mode)
        return mode

    def why_off(self, kind: DecisionKind, wall_ms: int, manager_id: str = "") -> str:
        """Why nothing of this kind happens at a manager, for people; empty if it may."""
        for scope, target in ((Scope.CLUSTER, ""), (Scope.MANAGER, manager_id)):
            for rule in self._of(kind, wall_ms, scope, target):
                if rule.paused:
                    said = f" by {rule.who}" if rule.who else ""
                    return f"paused{said}" + (f": {rule.why}" if rule.why else "")
        if not self._in_window(kind, wall_ms):
            return "outside its time windows"
        off = self._here(kind, wall_ms, manager_id) is DecisionMode.OFF
        return "switched off" if off else ""

    def _here(self, kind: DecisionKind, wall_ms: int, manager_id: str) -> DecisionMode:
        mode = self._modes.get(kind, DecisionMode.AUTO)
        for scope, target in ((Scope.CLUSTER, ""), (Scope.MANAGER, manager_id)):
            for rule in self._of(kind, wall_ms, scope, target):
                if rule.paused:
                    return DecisionMode.OFF
                if rule.mode is not None:
                    mode = rule.mode
        return mode if self._in_window(kind, wall_ms) else DecisionMode.OFF

    def _of(
        self, kind: DecisionKind, wall_ms: int, scope: Scope, target: str
    ) -> Iterable[AutonomyRule]:
        """The rules for a target: of all kinds first, so that the one of this kind has its say."""
        if target or scope is Scope.CLUSTER:
            for name in ("", kind.value):
                for rule in self._rules.get((scope.value, target, name), ()):
                    if not 0 < rule.until_ms <= wall_ms:
                        yield rule

    def _in_window(self, kind: DecisionKind, wall_ms: int) -> bool:
        every = [window for of, window in self._windows if of is kind]
        if kind not in RESCUES:
            every += [window for of, window in self._windows if of is None]
            every += self._own_windows
        return not every or any(window.has(wall_ms) for window in every)


def strictest(one: DecisionMode, other: DecisionMode) -> DecisionMode:
    """The stricter of two modes."""
    return max(one, other, key=STRICTNESS.index)
