"""The shell of ``orphan_disks_core``: hears of loose disks, orders them away, shows them."""

import logging
from collections.abc import Callable
from typing import assert_never

from snooze.common.api import LooseDiskView
from snooze.common.clock import Clock
from snooze.common.errors import ErrorReport, SnoozeError
from snooze.common.settings_recovery import RecoverySettings
from snooze.common.task_set import TaskSet
from snooze.common.wire import DropDisk, HostDisks
from snooze.groupmanager.leader import orphan_disks_core as core
from snooze.groupmanager.leader.manager_links import ManagerLinks
from snooze.groupmanager.leader.membership_core import Announce
from snooze.groupmanager.leader.registry import Registry

logger = logging.getLogger(__name__)

CAUSE = "orphan-disks"


class OrphanDisks:
    """Settles the disks that lie on hosts without their VM, for one leader."""

    def __init__(
        self,
        registry: Registry,
        settings: RecoverySettings,
        epoch: int,
        clock: Clock,
        links: ManagerLinks,
        announce: Callable[[Announce], None],
    ) -> None:
        self.core = core.OrphanDiskCore(registry, settings.orphan_disk_s)
        self._epoch = epoch
        self._clock = clock
        self._links = links
        self._announce = announce
        self._tasks = TaskSet()

    def told(self, notice: HostDisks) -> None:
        """A host says which disks are loose on it."""
        self._feed(core.Told(notice.host_id, notice.disks))

    def tick(self, *, settled: bool) -> None:
        """Time went by."""
        self._feed(core.Ticked(self._clock.wall_ms(), settled))

    async def close(self) -> None:
        """Stop; what was ordered ends by itself."""
        await self._tasks.close()

    def of_host(self, host_id: str) -> list[LooseDiskView]:
        """What is loose on a host, for people."""
        return [
            LooseDiskView(
                disk.vm_id,
                disk.size_bytes,
                disk.changed_ms,
                verdict.value,
                orphan=verdict in core.ORPHANED,
            )
            for disk, verdict in self.core.of_host(host_id)
        ]

    def counts(self) -> dict[str, int]:
        """Loose disks by verdict; one that several hosts see counts once."""
        found = {
            disk.vm_id: verdict
            for host_id in self.core.by_host
            for disk, verdict in self.core.of_host(host_id)
        }
        verdicts = list(found.values())
        return {each.name.lower(): verdicts.count(each) for each in core.Verdict}

    def _feed(self, event: core.OrphanEvent) -> None:
        for effect in self.core.handle(event, self._clock.monotonic_s()):
            match effect:
                case core.Drop():
                    self._tasks.spawn(self._drop(effect))
                case Announce():
                    self._announce(effect)
                case _:
                    assert_never(effect)

    async def _drop(self, effect: core.Drop) -> None:
        """An answer that is lost is no harm: what is gone is not reported again."""
        error = None
        order = DropDisk(0, CAUSE, effect.disk, self.core.grace_s)
        try:
            await self._links.relay(self._epoch, CAUSE, effect.host_id, order)
        except SnoozeError as failure:
            error = ErrorReport.of(failure)
            logger.info(
                "a disk that nobody needs stays",
                extra={"vm_id": effect.disk.vm_id, "why": failure.message},
            )
        self._feed(core.Dropped(effect.host_id, effect.disk, error))
