"""What ``snooze-sim`` says of calls that make no sense: a line, and exit code 2."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from snooze.simulation.command import app


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--seeds", "many"), "--seeds 'many': a number, or two"),
        (("run", "--seeds", "9-3"), "--seeds 9-3: the first must not be above the last"),
        (("replay", "1", "--script", "--only", "3-1"), "--only 3-1: the script has the deeds 0 to"),
        (("replay", "1", "--script", "--only", "0-99999999999"), "the script has the deeds 0 to"),
        (("scale", "--hours", "nan"), "no negative number"),
        (("scale", "--hours", "inf"), "no negative number"),
        (("scenario", str(Path(__file__).parent)), "there is no scenario.toml in it"),
        (("scenario", __file__), "cannot be read: Not a directory"),
    ],
)
def test_nonsense(arguments: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert done.stderr.startswith("snooze-sim: ")
