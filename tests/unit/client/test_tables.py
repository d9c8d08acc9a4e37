"""What is left of a table on a narrow terminal."""

import io

import pytest
from rich.console import Console, RenderableType

from snooze.client.tables import plain_table

WHY = "no host of any manager has room for guest3, and nothing can be woken for it"


def shown(table: RenderableType, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [100, 60, 40])
def test_words_go_on_in_the_next_line(width: int) -> None:
    lines = shown(plain_table(("ID", "~WHY", "UNTIL"), [("1a2b3c4d", WHY, "18:06")], ""), width)
    assert max(map(len, lines)) <= width
    assert lines[0].split() == ["ID", "WHY", "UNTIL"]
    words = " ".join(lines[1:]).split()
    assert words[0] == "1a2b3c4d"
    assert [word for word in words[1:] if word != "18:06"] == WHY.split()


def test_the_last_columns_are_left_out() -> None:
    table = plain_table(("ID", "STATE", "~WHY"), [("1a2b3c4d", "done", WHY)], "")
    assert shown(table, 28)[0].split() == ["ID", "STATE"]
