"""Handing a submission to the leader, whichever API it came by."""

import uuid
from collections.abc import Sequence

from snooze.groupmanager.leader.service import LeaderService
from snooze.groupmanager.leader.submission_events import Candidate, Submitted
from snooze.groupmanager.leader.tasks import Task


async def submit(
    leader: LeaderService,
    candidates: Sequence[Candidate],
    *,
    key: str = "",
    virtual_cluster: str = "",
    partial: bool = False,
) -> Task:
    """Have the VMs recorded; their task.

    Raises:
        InvalidRequest, TooBusy, NotLeader: refused; nothing changed.
    """
    task_id = str(uuid.uuid4())
    accepted = await leader.submit(
        lambda request_id: Submitted(
            request_id,
            task_id,
            candidates,
            leader.now_ms(),
            key=key,
            virtual_cluster=virtual_cluster,
            partial=partial,
        )
    )
    return leader.task(accepted)
