"""Whose fault, and what changed: every error that crosses a module boundary.

====================  ==========================================  ====  =========
class                 promise                                     HTTP  exit code
====================  ==========================================  ====  =========
``InvalidRequest``    the request is wrong; nothing changed       422   2
``NotFound``          no such thing; nothing changed              404   4
``Conflict``          not in this state; nothing changed          409   5
``NoCapacity``        no room for it; nothing changed             507   6
``TooBusy``           a bound was reached; come back later        503   7
``NotLeader``         somebody else decides; ask again            503   7
``StaleEpoch``        the sender was deposed; it must step down   409   5
``ExecutionError``    perhaps half done: the message names what   500   8
``RemoteError``       the peer failed or answered nonsense        502   9
``RemoteTimeout``     the peer did not answer: perhaps done       504   9
``SettingsError``     the settings are wrong; nothing started     500   3
====================  ==========================================  ====  =========

The first seven are ``PreconditionError``: nothing changed, so a repeat is safe.
"""

from collections.abc import Sequence
from typing import ClassVar

import msgspec


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that is wrong, and where.

    ``where`` is a path into what was sent (``vms[3].memory_kib``) or a settings key; ``code`` is
    stable and meant for programs; ``message`` says what to do and is meant for people.
    """

    where: str
    message: str
    code: str = "invalid"


class SnoozeError(Exception):
    """Base of all our errors."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        problems: Sequence[Problem] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.problems = tuple(problems)
        self.retry_after_s = retry_after_s


class PreconditionError(SnoozeError):
    """Refused: nothing changed."""

    code = "refused"
    http_status = 409
    exit_code = 5


class InvalidRequest(PreconditionError):
    """The request itself is wrong, whatever the state of the cluster."""

    code = "invalid_request"
    http_status = 422
    exit_code = 2


class NotFound(PreconditionError):
    """The named thing does not exist."""

    code = "not_found"
    http_status = 404
    exit_code = 4


class Conflict(PreconditionError):
    """The thing exists, but not in a state that allows this."""

    code = "conflict"
    http_status = 409
    exit_code = 5


class NoCapacity(PreconditionError):
    """No host has room."""

    code = "no_capacity"
    http_status = 507
    exit_code = 6


class TooBusy(PreconditionError):
    """A queue is full; ``retry_after_s`` says when to come back."""

    code = "too_busy"
    http_status = 503
    exit_code = 7


class NotLeader(PreconditionError):
    """There is no leader yet, or it is somebody else."""

    code = "not_leader"
    http_status = 503
    exit_code = 7


class StaleEpoch(PreconditionError):
    """The order carries an epoch older than one already seen."""

    code = "stale_epoch"
    http_status = 409
    exit_code = 5


class ExecutionError(SnoozeError):
    """It was tried and failed, perhaps half done; the message names what is left."""

    code = "execution_failed"
    http_status = 500
    exit_code = 8


class RemoteError(SnoozeError):
    """The peer failed, closed the connection or answered nonsense."""

    code = "remote_failed"
    http_status = 502
    exit_code = 9


class RemoteTimeout(RemoteError):
    """The peer did not answer in time: what was asked may have happened."""

    code = "remote_timeout"
    http_status = 504
    exit_code = 9


class SettingsError(SnoozeError):
    """The settings are wrong; every problem is listed."""

    code = "settings"
    http_status = 500
    exit_code = 3


ERRORS_BY_CODE: dict[str, type[SnoozeError]] = {
    cls.code: cls
    for cls in (
        SnoozeError,
        PreconditionError,
        InvalidRequest,
        NotFound,
        Conflict,
        NoCapacity,
        TooBusy,
        NotLeader,
        StaleEpoch,
        ExecutionError,
        RemoteError,
        RemoteTimeout,
        SettingsError,
    )
}


class ErrorReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as it travels: in our HTTP answers and on links between daemons."""

    code: str
    message: str
    problems: tuple[Problem, ...] = ()
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: BaseException) -> "ErrorReport":
        """Describe ``error``; anything not ours is ``internal``, named by its type."""
        if isinstance(error, SnoozeError):
            return cls(error.code, error.message, error.problems, error.retry_after_s)
        return cls("internal", f"{type(error).__name__}: {error}")

    def as_error(self) -> SnoozeError:
        """The exception this report describes, to be raised on the receiving side."""
        kind = ERRORS_BY_CODE.get(self.code, RemoteError)
        return kind(self.message, problems=self.problems, retry_after_s=self.retry_after_s)
