"""Stories by hand, with the transitions that are expected of them.

``snooze-sim scenario tests/scenarios/NAME --rewrite`` writes what happens; read the difference.
"""

import re
from pathlib import Path

import pytest

from snooze.simulation.scenario import expected_of, load, tell

FOLDER = Path(__file__).parents[1] / "scenarios"
FOLDERS = sorted(path for path in FOLDER.iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_story_goes_as_expected(folder: Path) -> None:
    assert (folder / "README.md").is_file(), "what is told, and where does it come from?"
    told = tell(load(folder))
    assert not told.result.failure
    expected = expected_of(folder)
    assert expected is not None, "nobody has said what is expected: --rewrite, and read it"
    assert told.lines == expected


def test_every_row_of_the_failure_table_has_a_story() -> None:
    told = "\n".join((folder / "README.md").read_text() for folder in FOLDERS)
    rows = ("leader", "group manager", "local controller, host alive", "host", "ZooKeeper quorum")
    for row in (*rows, "network split", "front door", "everything"):
        assert f"*{row}*" in told


def test_the_table_of_the_originals_bugs_names_what_is_there() -> None:
    table = (FOLDER / "README.md").read_text()
    named = set(re.findall(r"`([^`]+)`", table))
    for name in sorted(named):
        if name.startswith("tests/"):
            assert (FOLDER.parents[1] / name).is_file(), name
    assert {folder.name for folder in FOLDERS} <= named, "a story that the table does not name"
