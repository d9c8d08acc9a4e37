"""The recovery core's shell: power controllers, directives, and the leader's own authority."""

import logging
from collections.abc import Callable, Mapping
from typing import assert_never

from snooze.common.clock import Clock
from snooze.common.core_runner import CoreRunner
from snooze.common.errors import (
    ErrorReport,
    NotFound,
    NotLeader,
    PreconditionError,
    SnoozeError,
)
from snooze.common.questions import Questions
from snooze.common.resources import FloatArray
from snooze.common.settings_recovery import RecoverySettings
from snooze.common.task_set import TaskSet
from snooze.common.wire import Accepted, DirectHosts, HostDirective
from snooze.groupmanager.leader import recovery_events as events
from snooze.groupmanager.leader.decision_log import DecisionLog
from snooze.groupmanager.leader.ha_reserve import NOWHERE, shortfall
from snooze.groupmanager.leader.journal import Done
from snooze.groupmanager.leader.manager_links import PLACE_TIMEOUT_S, ManagerLinks
from snooze.groupmanager.leader.membership_core import Announce, RecordHost
from snooze.groupmanager.leader.recovery_core import RecoveryCore
from snooze.groupmanager.leader.registry import HostEntry, Registry
from snooze.groupmanager.leader.submission_events import Decided
from snooze.groupmanager.power.factory import PowerDrivers
from snooze.groupmanager.power.port import PowerState

logger = logging.getLogger(__name__)

RESERVE_EVERY_S = 5.0
DIRECTIVES = 500
"""Hosts in one message with directives."""


class Recovery:
    """Watches over lost hosts, for one leader from its election to its end."""

    def __init__(
        self,
        registry: Registry,
        settings: RecoverySettings,
        epoch: int,
        clock: Clock,
        links: ManagerLinks,
        power: PowerDrivers,
        decisions: DecisionLog,
        limit: FloatArray,
        *,
        term_s: Callable[[], float],
        is_leader: Callable[[], bool],
        record_host: Callable[[str, Done | None], None],
        proven: Callable[[str, str], None],
        announce: Callable[[Announce], None],
    ) -> None:
        """``proven`` has the VMs of a host that is down dealt with; ``record_host`` writes one.

        ``limit[R]`` scales a host's capacity (overcommit, headroom); ``term_s``: how long a lease
        lasts that may be held now.
        """
        self._registry = registry
        self._epoch = epoch
        self._clock = clock
        self._links = links
        self._power = power
        self._decisions = decisions
        self._is_leader = is_leader
        self._record_host = record_host
        self._proven = proven
        self._announce = announce
        self._settings = settings
        self._limit = limit
        self._term_s = term_s
        self._reserve_due_s = clock.monotonic_s() + RESERVE_EVERY_S
        self.reserve = ""
        self.core = RecoveryCore(
            registry,
            clock.monotonic_s(),
            lease_s=term_s(),
            margin_s=settings.margin_s,
            fence_after_s=settings.fence_after_s,
            patience_s=settings.patience_s,
            storm_share=settings.storm_share,
            reboot_fenced=settings.reboot_fenced,
            is_controllable=lambda host: bool(power.describe(host.description).driver),
        )
        self._runner = CoreRunner(self.core, self._perform, clock)
        self._questions = Questions[None]()
        self._tasks = TaskSet()

    def tick(self) -> None:
        """Time went by."""
        self.core.lease_s = self._term_s()
        self._runner.feed(events.Ticked(self._clock.wall_ms()))
        now_s = self._clock.monotonic_s()
        if self._settings.reserve == "largest_host" and now_s >= self._reserve_due_s:
            self._reserve_due_s = now_s + RESERVE_EVERY_S
            self._look_at_reserve()

    def _look_at_reserve(self) -> None:
        """Warn when the loss of a host could no longer be absorbed, and when it could again."""
        lacks = shortfall(self._registry, self._limit)
        message = lacks.message if lacks is not None else ""
        if bool(message) is not bool(self.reserve):
            subject = lacks.host_id if lacks is not None else "hosts"
            kind = "reserve.missing" if message else "reserve.restored"
            text = message or "the loss of any one host could be absorbed again"
            self._announce(Announce(kind, subject, text))
        self.reserve = message

    def lacks(self, gone: frozenset[str], moved: Mapping[str, str] = NOWHERE) -> str:
        """Why the hosts but these could not take in the VMs of one that fails; or nothing.

        ``moved``: VMs as if they were on other hosts than they are.
        """
        if self._settings.reserve != "largest_host":
            return ""
        found = shortfall(self._registry, self._limit, gone, moved)
        return found.message if found is not None else ""

    def heard(self, manager_id: str, host_ids: list[str]) -> None:
        """These hosts joined a manager, and what they have was taken in."""
        self._runner.feed(events.HostHeard(manager_id, host_ids, self._clock.wall_ms()))

    def direct(self, host_id: str) -> None:
        """What is true of a host changed: tell its manager."""
        self._runner.feed(events.Redirect(host_id))

    def waits_for(self, host: HostEntry) -> str:
        """What is known of a lost host and would prove it down; empty if it is not watched."""
        return self.core.waits_for(host, self._clock.monotonic_s())

    async def confirm_dead(self, id_or_name: str) -> HostEntry:
        """A person says that a host is off.

        Raises:
            NotFound: no such host.
            Conflict: it is in reach; nothing changed.
        """
        host = self._registry.find_host(id_or_name)
        if host is None:
            raise NotFound(f"no host is called {id_or_name!r}; `snooze hosts` lists them")
        host_id, now_ms = host.description.host_id, self._clock.wall_ms()
        await self._questions.ask(
            lambda number: self._runner.feed(events.ConfirmDead(number, host_id, now_ms))
        )
        return host

    async def close(self) -> None:
        """Stop; what a controller was told last may still happen."""
        await self._tasks.close()
        self._questions.close(NotLeader("the leader changed; ask again", retry_after_s=0.5))

    # ------------------------------------------------------------ effects

    def _perform(self, effect: events.RecoveryEffect) -> None:
        match effect:
            case events.AskPower():
                self._tasks.spawn(self._ask_power(effect))
            case events.SwitchOn():
                self._switch_on(effect)
            case events.HostProven():
                self._proven(effect.host_id, effect.proof)
            case events.Direct():
                for start in range(0, len(effect.directives), DIRECTIVES):
                    page = list(effect.directives[start : start + DIRECTIVES])
                    self._tasks.spawn(self._direct(effect.manager_id, page))
            case events.AnswerPerson():
                self._answer(effect)
            case RecordHost():
                self._record_host(effect.record.host_id, None)
            case Decided():
                self._decisions.note(effect)
            case Announce():
                self._announce(effect)
            case _:
                assert_never(effect)

    def _answer(self, effect: events.AnswerPerson) -> None:
        if effect.error is not None:
            self._questions.refuse(effect.request_id, effect.error)
        else:
            self._questions.answer(effect.request_id, None)

    async def _direct(self, manager_id: str, directives: list[HostDirective]) -> None:
        link = self._links.get(manager_id)
        try:
            if link is not None:
                await link.request(DirectHosts(self._epoch, directives), Accepted, PLACE_TIMEOUT_S)
                return
        except SnoozeError as error:
            logger.info(
                "a group manager did not take what holds of its hosts",
                extra={"manager": manager_id, "error": error.message},
            )
        self._runner.feed(events.DirectiveLost([each.host_id for each in directives]))

    # ------------------------------------------------------------ power

    async def _ask_power(self, effect: events.AskPower) -> None:
        outcome, message = events.PowerOutcome.SILENT, ""
        try:
            if not self._is_leader():
                raise NotLeader("this group manager does not lead at this moment")
            controller = self._power.controller(self._registry.hosts[effect.host_id].description)
            state = await controller.state()
            if effect.off and state is not PowerState.OFF:
                if not controller.can_power_off:
                    raise PreconditionError("its power driver cannot switch it off")
                if not self._is_leader():
                    raise NotLeader("this group manager does not lead at this moment")
                state = await controller.off(hard=True)
            if state is PowerState.OFF:
                outcome = events.PowerOutcome.OFF
            elif state is PowerState.ON:
                outcome = events.PowerOutcome.ON
            else:
                outcome, message = events.PowerOutcome.REFUSED, "its state cannot be read"
        except PreconditionError as error:
            outcome, message = events.PowerOutcome.REFUSED, error.message
        except SnoozeError as error:
            message = error.message
        except Exception as error:
            # a question that is never answered would be the last one about this host
            logger.exception("a power controller has a defect", extra={"host": effect.host_id})
            message = f"its power driver broke off ({type(error).__name__})"
        self._runner.feed(
            events.PowerAnswered(
                effect.host_id, effect.attempt, outcome, message, self._clock.wall_ms()
            )
        )

    def _switch_on(self, effect: events.SwitchOn) -> None:
        def recorded(error: ErrorReport | None) -> None:
            if error is None and self._is_leader():
                self._tasks.spawn(self._power_on(effect))

        try:
            self._record_host(effect.host_id, recorded)
        except SnoozeError as error:
            logger.warning("a fenced host is not switched on again: %s", error.message)

    async def _power_on(self, effect: events.SwitchOn) -> None:
        name = self._registry.hosts[effect.host_id].description.hostname
        try:
            controller = self._power.controller(self._registry.hosts[effect.host_id].description)
            await controller.on()
        except SnoozeError as error:
            message = f"host {name} was fenced, and is not switched on again: {error.message}"
        else:
            message = f"host {name} was fenced, and is switched on again"
        self._announce(Announce("host.power_on", effect.host_id, message))
