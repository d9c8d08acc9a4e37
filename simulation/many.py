"""Many seeds, in several processes of this machine."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from snooze.simulation.deeds import Deed
from snooze.simulation.drawing import draw
from snooze.simulation.minimise import minimise
from snooze.simulation.mutants import MUTANTS, unbroken
from snooze.simulation.run import Result, Run, recipe_of

Judge = Callable[[Sequence[Deed]], Result]


def run_seed(seed: int, mutant: str = "") -> Result:
    """The run of a seed; with a mutant, of a product that is broken on purpose."""
    recipe = recipe_of(seed)
    script = draw(seed, recipe.shape, recipe.length_s, recipe.trouble)
    return play(seed, script, mutant)


def play(seed: int, script: Sequence[Deed], mutant: str = "") -> Result:
    """The world of a seed, with this script instead of its own."""
    recipe = recipe_of(seed)
    broken = MUTANTS[mutant].apply if mutant else unbroken
    with broken():
        return Run(seed, script, recipe.shape, recipe.length_s).go()


def run_seeds(seeds: Sequence[int], jobs: int = 0, mutant: str = "") -> Iterator[Result]:
    """All seeds, as they end; in ``jobs`` processes (0: one for each core)."""
    jobs = min(jobs or os.cpu_count() or 1, len(seeds))
    if jobs <= 1:
        for seed in seeds:
            yield run_seed(seed, mutant)
        return
    with ProcessPoolExecutor(jobs) as pool:
        waiting = {pool.submit(run_seed, seed, mutant) for seed in seeds}
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            for future in waiting:
                future.cancel()


def minimised(result: Result, mutant: str = "", tries: int = 120) -> list[Deed]:
    """The smallest part of a failed seed's script with which it still fails in the same way."""
    recipe = recipe_of(result.seed)
    script = draw(result.seed, recipe.shape, recipe.length_s, recipe.trouble)
    kind = _kind(result.failure)
    return minimise(
        script, lambda part: _kind(play(result.seed, part, mutant).failure) == kind, tries
    )


def _kind(failure: str) -> str:
    """Which promise was broken, without times and names."""
    told = failure.partition(" s: ")[2] or failure
    return "".join(c for c in told.partition("\n")[0] if not c.isdigit())[:24]
