"""Links that delay, lose and break."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from snooze.common.errors import (
    ErrorReport,
    RemoteError,
)

if TYPE_CHECKING:
    from tests.property.cluster.world import World

Outcome = msgspec.Struct | ErrorReport
Then = Callable[[Outcome, bool], None]


class Peer:
    """An end of links."""

    def on_notice(self, link: "Link", message: msgspec.Struct) -> None:
        raise NotImplementedError

    def on_request(self, link: "Link", ident: int, message: msgspec.Struct) -> None:
        raise NotImplementedError

    def on_closed(self, link: "Link") -> None:
        raise NotImplementedError


@dataclass(eq=False)
class Link:
    """Two queues in order; a broken link delivers a prefix of each, then says that it is closed."""

    world: "World"
    ends: tuple[Peer, Peer]
    inboxes: tuple[deque[Callable[[], None]], deque[Callable[[], None]]] = field(
        default_factory=lambda: (deque(), deque())
    )
    shut: list[bool] = field(default_factory=lambda: [False, False])
    broken: bool = False
    waiting: list[dict[int, Then]] = field(default_factory=lambda: [{}, {}])
    number: int = 0

    def side(self, end: Peer) -> int:
        return 0 if self.ends[0] is end else 1

    def is_open(self, end: Peer) -> bool:
        return not self.shut[self.side(end)]

    def _send(self, end: Peer, deliver: Callable[[], None]) -> None:
        other = 1 - self.side(end)
        if not self.broken and self.is_open(end):
            self.inboxes[other].append(lambda: None if self.shut[other] else deliver())

    def notify(self, end: Peer, message: msgspec.Struct) -> None:
        peer = self.ends[1 - self.side(end)]
        self._send(end, lambda: peer.on_notice(self, message))

    def request(self, end: Peer, message: msgspec.Struct, then: Then) -> None:
        self.number += 1
        ident, peer = self.number, self.ends[1 - self.side(end)]
        self.waiting[self.side(end)][ident] = then
        self._send(end, lambda: peer.on_request(self, ident, message))

    def reply(self, end: Peer, ident: int, outcome: Outcome) -> None:
        other = 1 - self.side(end)
        self._send(end, lambda: self._settle(other, ident, outcome, False))

    def _settle(self, side: int, ident: int, outcome: Outcome, unknown: bool) -> None:
        then = self.waiting[side].pop(ident, None)
        if then is not None:
            # Whoever awaits a reply goes on some turns of the loop later.
            self.world.soon.append(lambda: then(outcome, unknown))

    def time_out(self, side: int, ident: int) -> None:
        self._settle(side, ident, ErrorReport.of(RemoteError("no answer in time")), True)

    def close(self, end: Peer) -> None:
        """One end closes; the other hears of it after what was sent before."""
        side = self.side(end)
        if not self.shut[side]:
            self._send(end, lambda: self._close(1 - side))
            self._close(side)

    def cut(self) -> None:
        """The network breaks the link; each end finds out by itself."""
        if self.broken:
            return
        for side in (0, 1):
            inbox = self.inboxes[side]
            for _ in range(self.world.random.randint(0, len(inbox))):
                inbox.pop()
            inbox.append(partial(self._close, side))
        self.broken = True

    def _close(self, side: int) -> None:
        if self.shut[side]:
            return
        self.shut[side] = True
        self.inboxes[side].clear()
        for ident in list(self.waiting[side]):
            self._settle(side, ident, ErrorReport.of(RemoteError("the link closed")), True)
        self.ends[side].on_closed(self)
