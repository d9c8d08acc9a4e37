"""Indexes of the registry, kept as its entries change.

What the leader does a few times a second must not cost more with more hosts: it looks at the hosts
that are *odd* (away, not simply active, or in maintenance), which are few, not at all of them; and
at the VMs of one host, not at all VMs.

``watched`` turns some fields of a slotted dataclass into properties whose setters tell the table
that the entry is in; everything else, the constructor too, is as before.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from snooze.common.api import ImageView

T = TypeVar("T")


class Table(Protocol):
    """What is told of a change."""

    def changed(self, entry: Any, name: str, former: Any) -> None:
        """A watched field of an entry of this table has another value now."""
        ...


def watched(*names: str) -> Callable[[type[T]], type[T]]:
    """Let the ``table`` of an entry hear when one of these fields changes.

    The class has a field ``table: Table | None``, the last one.
    """

    def decorate(cls: type[T]) -> type[T]:
        for name in names:
            slot = getattr(cls, name)
            setattr(cls, name, _property(name, slot.__get__, slot.__set__))
        return cls

    return decorate


def _property(name: str, get: Callable[[Any], Any], put: Callable[[Any, Any], None]) -> property:
    def change(entry: Any, value: Any) -> None:
        table: Table | None = getattr(entry, "table", None)
        if table is None:
            put(entry, value)
            return
        former = get(entry)
        put(entry, value)
        if former != value:
            table.changed(entry, name, former)

    return property(get, change)


def keep(index: dict[str, T], key: str, entry: T, belongs: bool) -> None:
    """Have an entry in an index, or not."""
    if belongs:
        index[key] = entry
    else:
        index.pop(key, None)


class Groups:
    """Keys by what they belong to."""

    def __init__(self) -> None:
        self._members: dict[str, dict[str, None]] = {}

    def add(self, group: str, key: str) -> None:
        """Put a key into a group."""
        self._members.setdefault(group, {})[key] = None

    def remove(self, group: str, key: str) -> None:
        """Take a key out of a group."""
        members = self._members.get(group)
        if members is not None:
            members.pop(key, None)
            if not members:
                del self._members[group]

    def of(self, group: str) -> Iterator[str]:
        """The keys of a group, as they are now."""
        return iter(tuple(self._members.get(group, ())))

    def has(self, group: str) -> bool:
        """Whether a group has a key."""
        return group in self._members


class Images:
    """Which images hosts in reach have, by name, as they come and go."""

    def __init__(self) -> None:
        self._listed: dict[str, Sequence[ImageView]] = {}
        self._silent: dict[str, None] = {}
        self._count: Counter[str] = Counter()

    def note(self, host_id: str, images: Sequence[ImageView] | None, *, lists: bool) -> None:
        """What a host has; None: it is out of reach. ``lists``: whether it says all it has."""
        if lists or images is None:
            self._silent.pop(host_id, None)
        else:
            self._silent[host_id] = None
        former = self._listed.get(host_id)
        if former is images:
            return
        for image in former or ():
            self._count[image.name] -= 1
            if not self._count[image.name]:
                del self._count[image.name]
        if images is None:
            del self._listed[host_id]
            return
        self._listed[host_id] = images
        self._count.update(image.name for image in images)

    def may_have(self, names: Iterable[str]) -> bool:
        """Whether a host has one of these, or may have; without any host nobody knows yet."""
        if not self._listed or self._silent:
            return True
        return any(name in self._count for name in names)
