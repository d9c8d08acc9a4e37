"""Which VMs change while somebody looks: what was seen of them may be of before or after."""

import contextlib
from collections.abc import Generator, Iterable


class Touched:
    """Ids of the VMs that orders and events concern during each look that is under way.

    A VM whose order begins and ends within one look is neither under way before nor after it, and
    yet what the look says of it may be old: a VM that is gone would be told to run.
    """

    def __init__(self) -> None:
        self._looks: list[set[str]] = []

    def note(self, vm_id: str) -> None:
        """An order or an event is about this VM."""
        for look in self._looks:
            look.add(vm_id)

    @contextlib.contextmanager
    def during(self, under_way: Iterable[str]) -> Generator[set[str]]:
        """The VMs that are under way, and those noted until the block ends."""
        look = set(under_way)
        self._looks.append(look)
        try:
            yield look
        finally:
            self._looks = [each for each in self._looks if each is not look]
