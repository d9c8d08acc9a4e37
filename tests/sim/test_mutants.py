"""A product that is broken on purpose is found out within a stated number of seeds."""

import pytest

from snooze.simulation.many import run_seed
from snooze.simulation.mutants import MUTANTS


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_mutant_is_found(name: str) -> None:
    mutant = MUTANTS[name]
    assert mutant.first <= mutant.seen_by < mutant.first + mutant.found_within
    for seed in mutant.seeds():
        if run_seed(seed, name).failure:
            return
    pytest.fail(f"{mutant.found_within} seeds saw nothing: {mutant.what}")


def test_what_a_mutant_breaks_is_mended_afterwards() -> None:
    with MUTANTS["acknowledged-before-write"].apply():
        pass
    assert not run_seed(1).failure
