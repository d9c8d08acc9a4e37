"""Whether a request that failed can have reached its peer."""

from snooze.common.errors import Problem, RemoteError

_NOT_SENT = "not_sent"


def not_sent(message: str) -> RemoteError:
    """The error of a request that certainly did not leave: a repeat is safe."""
    return RemoteError(message, problems=[Problem("peer", "nothing was sent", _NOT_SENT)])


def was_sent(error: RemoteError) -> bool:
    """Whether what was asked may have reached the peer, and so may have happened."""
    return all(problem.code != _NOT_SENT for problem in error.problems)
