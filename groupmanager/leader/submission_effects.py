"""Carrying out what the submission core orders: writes, and questions to managers."""

from collections.abc import Awaitable, Callable

from snooze.common.clock import Clock
from snooze.common.errors import ErrorReport, RemoteError, SnoozeError, TooBusy
from snooze.common.transport.link import was_sent
from snooze.common.vm_lifecycle import VmCommand
from snooze.common.wire import PlacementAnswer, PlaceVms, VmOrder, VmStatus
from snooze.groupmanager.leader import submission_events as submissions
from snooze.groupmanager.leader.journal import Done, Journal
from snooze.groupmanager.leader.manager_links import PLACE_TIMEOUT_S, ManagerLinks
from snooze.groupmanager.leader.record_writes import new_task, updates

Feed = Callable[[submissions.SubmissionEvent], None]


class SubmissionEffects:
    """Each outcome is an event: done, refused, or not answered."""

    def __init__(
        self,
        epoch: int,
        clock: Clock,
        journal: Journal,
        links: ManagerLinks,
        ask: Callable[[str, VmOrder], Awaitable[VmStatus]],
        feed: Feed,
    ) -> None:
        """``ask`` has a manager carry an order out; ``feed`` takes the outcomes."""
        self._epoch = epoch
        self._clock = clock
        self._journal = journal
        self._links = links
        self._ask = ask
        self._feed = feed

    async def place(self, effect: submissions.AskManager) -> None:
        """Ask a manager to place VMs."""
        message = PlaceVms(self._epoch, effect.cause, list(effect.vms))
        ids = [request.spec.vm_id for request in effect.vms]
        try:
            link = self._links.get(effect.manager_id)
            if link is None:
                raise TooBusy("the group manager has just left")
            answer = await link.request(message, PlacementAnswer, PLACE_TIMEOUT_S)
        except SnoozeError as error:
            unknown = isinstance(error, RemoteError) and was_sent(error)
            self._feed(
                submissions.PlacementFailed(
                    effect.manager_id, ids, unknown, ErrorReport.of(error), self._clock.wall_ms()
                )
            )
        else:
            self._feed(
                submissions.PlacementAnswered(effect.manager_id, answer, self._clock.wall_ms())
            )

    async def start_there(self, effect: submissions.StartThere) -> None:
        """Have a VM started where it is; its state comes as a notice, this is only the end."""
        order = VmOrder(
            self._epoch,
            submissions.RECOVERY,
            effect.vm_id,
            VmCommand.RESUME if effect.resume else VmCommand.START,
            destination=effect.host_id,
        )
        error = ""
        try:
            await self._ask(effect.manager_id, order)
        except SnoozeError as failure:
            error = failure.message
        self._feed(submissions.StartEnded(effect.vm_id, error, self._clock.wall_ms()))

    def record_task(self, effect: submissions.RecordTask) -> None:
        """Write a new task with its VMs."""
        task_id = effect.task.task_id

        def done(error: ErrorReport | None) -> None:
            if error is not None:
                self._feed(submissions.RecordFailed(task_id, error))
            else:
                self._feed(submissions.RecordWritten(task_id, self._clock.wall_ms()))

        try:
            self._journal.write(new_task(effect), done)
        except TooBusy as error:
            done(ErrorReport.of(error))

    def record_restarts(self, effect: submissions.RecordRestarts) -> None:
        """Write VMs with their next generation."""
        ids = [vm.vm_id for vm in effect.vms]

        def written(error: ErrorReport | None) -> None:
            if error is None:
                self._feed(submissions.RestartsWritten(ids, self._clock.wall_ms()))
            else:
                self._feed(submissions.RestartsNotWritten(ids, error.message))

        done: Done = written
        try:
            self._journal.write(updates(submissions.UpdateRecords(vms=effect.vms)), done)
        except TooBusy as error:
            done(ErrorReport.of(error))
