"""What follows the registry host by host, brought up to date in pieces.

Whoever asks one of these pays for what changed since it was asked last. That is little, but just
after a change of the leader: then everything is new, and a loop held for a second hears of no
session and no manager. So before the leader's ticks ask, what is behind by more than a piece is
brought up to date piece by piece, with a turn for others in between. What is asked afterwards is
answered as ever, and exactly: this only does a part of the work before.
"""

import asyncio
from collections.abc import Iterable
from typing import Final, Protocol

AT_ONCE: Final = 200
"""Hosts; some milliseconds' work."""


class Follower(Protocol):
    """What is kept up to date from the changes of a registry."""

    def behind(self) -> int:
        """How many hosts changed that were not looked at since."""
        ...

    def follow(self, most: int) -> None:
        """Look at so many of those."""
        ...


def begin(*followers: Follower) -> tuple[Follower, ...]:
    """Have these hear of changes from now on: late, all that is there is new at once."""
    for follower in followers:
        follower.behind()
    return followers


def pieces(follower: Follower) -> int:
    """How many pieces leave it behind by one at most."""
    return max(0, follower.behind() - 1) // AT_ONCE


async def catch_up(followers: Iterable[Follower]) -> None:
    """Leave each of these behind by a piece at most, and by what changes meanwhile."""
    for follower in followers:
        for _ in range(pieces(follower)):
            follower.follow(AT_ONCE)
            await asyncio.sleep(0)
