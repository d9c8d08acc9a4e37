"""A failure made small: the fewest deeds of its script with which the same seed still fails.

Source: delta debugging, Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input"
(2002), algorithm ddmin: try parts, then all but a part, in ever finer parts.
"""

from collections.abc import Callable, Sequence

from snooze.simulation.deeds import Deed


def minimise(
    script: Sequence[Deed], fails: Callable[[Sequence[Deed]], bool], tries: int = 200
) -> list[Deed]:
    """A part of ``script`` that still ``fails`` and of which no deed can be left out.

    Or, after so many ``tries``, the smallest part found by then.
    """
    part, parts = list(script), 2
    while len(part) > 1 and tries > 0:
        size = -(-len(part) // parts)
        for start in range(0, len(part), size):
            rest = part[:start] + part[start + size :]
            tries -= 1
            if rest and fails(rest):
                part, parts = rest, max(parts - 1, 2)
                break
            if tries <= 0:
                break
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(part))
    return part
