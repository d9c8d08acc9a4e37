"""Whole clusters in trouble, by seed: safe after every event, and in agreement once all heals.

``snooze-sim replay SEED --trace`` tells a failure's story.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from snooze.simulation.many import run_seed

REPOSITORY = Path(__file__).parents[2]
SEEDS = 10
"""In each of twenty blocks, some three minutes of one core; ``make soak`` runs thousands."""


@pytest.mark.parametrize("block", range(20))
def test_a_cluster_in_trouble_is_safe_and_heals(block: int) -> None:
    for seed in range(1 + block * SEEDS, 1 + (block + 1) * SEEDS):
        result = run_seed(seed)
        assert not result.failure, f"snooze-sim replay {seed} --trace: {result.failure}"
        assert result.events > 1000, "nothing happened"


def test_most_submissions_are_accepted_and_many_leaders_are_elected() -> None:
    """The trouble is real, and so is the service: neither may quietly go away."""
    results = [run_seed(seed) for seed in range(5)]
    assert sum(result.elections for result in results) > 7
    accepted = sum(result.accepted for result in results)
    assert accepted > 0.7 * sum(result.submissions for result in results)


def replayed(seed: int, hash_seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "snooze.simulation.command", "replay", str(seed)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "typings"), "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("seed", [4, 9])
def test_a_seed_is_the_same_run_in_every_process(seed: int) -> None:
    assert len({replayed(seed, hash_seed) for hash_seed in ("0", "77")}) == 1
