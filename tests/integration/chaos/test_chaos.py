"""A few rounds of chaos, among them the worst; ``make chaos ROUNDS=100`` does many more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLAN = (
    "kill -9 leader",
    "freeze leader, kill -9 local controller",
    "cut leader from the store",
    "deafen manager, kill -9 zookeeper leader",
    "power lost by everything",
)
LIMIT_S = 570
"""A minute and a half on two idle cores."""


@pytest.mark.timeout(600)
def test_nothing_is_lost_and_nothing_runs_twice() -> None:
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'typings'}:{root}"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.chaos", "--plan", ";".join(PLAN)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=root,
        env=environment,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(PLAN)} rounds, 0 failed" in done.stdout
