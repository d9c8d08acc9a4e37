"""Who leads, as the store says: what every daemon may know without taking part in the election.

=========================  ======================================================================
``/candidates/TOKEN-SEQ``  one per group manager that would lead; ephemeral, in order of arrival
``/epoch``                 counts the leaders there have ever been: its version plus one
``/leader``                the ``LeaderRecord`` of the one that leads; ephemeral
``/question``              whether the leader is there: ``groupmanager/challenge.py``
=========================  ======================================================================

The epoch is the fencing token: it grows with every leader, is written in the same transaction as
the leader's record, and every transaction of a leader carries ``epoch_guard(epoch)``, so that the
store itself refuses a leader that was deposed without its noticing.
"""

import logging
from collections.abc import Callable
from typing import Final

import msgspec

from snooze.common.coordination.callbacks import Callbacks
from snooze.common.coordination.port import Cancel, Check, Coordinator, Entry

CANDIDATES: Final = "/candidates"
EPOCH: Final = "/epoch"
LEADER: Final = "/leader"

_MAX_RECORD_BYTES = 65_536

_log = logging.getLogger(__name__)


class LeaderRecord(msgspec.Struct, frozen=True):
    """The leader: which daemon, in which epoch, and what it wants known of itself.

    ``payload`` is the leader's own business (its addresses); ``token`` names the candidacy by which
    it came to lead.
    """

    id: str
    epoch: int
    payload: bytes
    token: str


def encode_record(record: LeaderRecord) -> bytes:
    """The record as stored."""
    return msgspec.msgpack.encode(record)


def decode_record(data: bytes) -> LeaderRecord | None:
    """The record as read; None, and a line in the log, for what is none."""
    try:
        if len(data) > _MAX_RECORD_BYTES:
            raise msgspec.ValidationError(f"{len(data)} bytes")
        return msgspec.msgpack.decode(data, type=LeaderRecord)
    except msgspec.MsgspecError as error:
        _log.warning("the leader's record is unreadable", extra={"reason": str(error)})
        return None


def epoch_guard(epoch: int) -> Check:
    """The operation that lets a transaction fail unless ``epoch`` is still the present one."""
    return Check(EPOCH, epoch - 1)


class LeaderWatch:
    """Follows the leader's record, for those that are not candidates.

    While the store cannot be reached, the last known leader stands: it may well lead still, and if
    it does not, it says so itself.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self.leader: LeaderRecord | None = None
        self._coordinator = coordinator
        self._callbacks: Callbacks[LeaderRecord | None] = Callbacks()
        self._cancel: Cancel | None = None

    def start(self) -> None:
        """Begin to follow; the first report comes when the store is reached."""
        if self._cancel is None:
            self._cancel = self._coordinator.watch(LEADER, self._changed)

    def close(self) -> None:
        """Stop following."""
        if self._cancel is not None:
            self._cancel()
            self._cancel = None

    def on_change(self, callback: Callable[[LeaderRecord | None], None]) -> Cancel:
        """Call back whenever there is another leader, or none; not with the present one."""
        return self._callbacks.add(callback)

    def _changed(self, entry: Entry | None) -> None:
        leader = None if entry is None else decode_record(entry.data)
        if leader != self.leader:
            self.leader = leader
            self._callbacks.call(leader)
