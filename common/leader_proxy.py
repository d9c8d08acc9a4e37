"""Passing calls on to the leader, waiting a little while there is none.

A leader that falls silent is asked no longer than it leads: what can be repeated without harm is
then asked of the next one, the rest is told to have an unknown outcome.

A bootstrap node does nothing else; a group manager does it while it does not lead.
"""

import asyncio
from collections.abc import Callable

from aiohttp import web

from snooze.common.admission import Admission
from snooze.common.clock import Clock
from snooze.common.errors import NotLeader, RemoteError, RemoteTimeout
from snooze.common.transport.delivery import was_sent
from snooze.common.transport.proxy import Proxy
from snooze.common.wire import Address

LEADER_WAIT_S = 5.0
"""How long a call waits for a leader; an election takes about a session time-out."""
PAUSE_S = 0.05
LOOK_S = 0.1
"""How often a call that is not answered looks whether the leader is another one by now."""
GRACE_S = 0.2
"""How long a leader that was replaced may still answer what it was asked."""
RETRY_AFTER_S = 1.0


class LeaderProxy:
    """Finds the leader for each call; a call that did not leave is tried again."""

    def __init__(self, proxy: Proxy, leader: Callable[[], Address | None], clock: Clock) -> None:
        """``leader`` says where the leader is now; None if nobody knows."""
        self._proxy = proxy
        self._leader = leader
        self._clock = clock
        self._admission = Admission("calls", clock=clock)

    async def pass_on(self, request: web.Request) -> web.StreamResponse:
        """The leader's answer.

        Of calls that change something, only so many are passed on at a time; one that asked for
        its answer to be held (``wait_s``) does not count, as it waits for its own sake.

        Raises:
            TooBusy: too many are under way; nothing was passed on.
            NotLeader: there was none in time.
            RemoteError, RemoteTimeout: it broke off or fell silent.
        """
        if request.method != "POST" or "wait_s" in request.query:
            return await self._pass_on(request)
        with self._admission.admit():
            return await self._pass_on(request)

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        deadline_s = self._clock.monotonic_s() + LEADER_WAIT_S
        while True:
            target = self._leader()
            if target is not None:
                try:
                    response = await self._ask(request, target)
                except _Replaced as error:
                    if not _may_be_repeated(request):
                        raise RemoteTimeout(str(error)) from None
                except RemoteError as error:
                    if was_sent(error):
                        raise
                else:
                    if not _is_refusal(response) or self._clock.monotonic_s() > deadline_s:
                        return response
            if self._clock.monotonic_s() > deadline_s:
                raise NotLeader(
                    "no group leader answers at this moment; try again",
                    retry_after_s=RETRY_AFTER_S,
                )
            await asyncio.sleep(PAUSE_S)

    async def _ask(self, request: web.Request, target: Address) -> web.StreamResponse:
        """Its answer; one that does not begin to answer is asked only while it leads.

        Raises:
            _Replaced: another one leads by now, and this one said nothing. Else as ``Proxy``.
        """
        begun = asyncio.Event()
        call = asyncio.ensure_future(self._proxy.pass_on(request, target, begun.set))
        pause_s = LOOK_S
        try:
            while not (await asyncio.wait([call], timeout=pause_s))[0] and not begun.is_set():
                if pause_s == GRACE_S:
                    raise _Replaced(f"{target} leads no more and is silent; it may have happened")
                pause_s = LOOK_S if self._leader() in {None, target} else GRACE_S
            return await call
        finally:
            if not call.done():
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)


class _Replaced(Exception):  # no error of anybody: who leads has changed
    """A leader that was asked is none any more."""


def _may_be_repeated(request: web.Request) -> bool:
    """Whether a call that may have happened can be made again: the leader knows it by its key."""
    return request.method in {"GET", "HEAD"} or "Idempotency-Key" in request.headers


def _is_refusal(response: web.StreamResponse) -> bool:
    """Whether a group manager said that it does not lead (any more, or yet): nothing was done."""
    return (
        response.status == NotLeader.http_status and response.headers.get(NOT_LEADING_HEADER) == "1"
    )


NOT_LEADING_HEADER = "X-Snooze-Not-Leading"
"""Set on a 503 that says no more than "I do not lead"."""
