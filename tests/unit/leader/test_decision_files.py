"""Decisions in files: what a later leader reads, rotation, lines that were cut off."""

from pathlib import Path

import msgspec

from snooze.common.decisions import Decision, DecisionKind, DecisionMode, DecisionState
from snooze.common.settings_autonomy import DecisionSettings
from snooze.groupmanager.leader.decision_files import DecisionFiles


def decision(number: int, **changes: object) -> Decision:
    made = Decision(
        f"{number:032x}", number, DecisionKind.OVERLOAD, DecisionMode.AUTO, "gm1", "x" * 100
    )
    return msgspec.structs.replace(made, **changes)


def files(directory: Path, **more: int) -> DecisionFiles:
    return DecisionFiles(DecisionSettings(directory=str(directory), **more))


def test_the_latest_state_of_each_is_read_with_the_inputs_that_were_told_once(
    tmp_path: Path,
) -> None:
    kept = files(tmp_path / "new")
    kept.add(decision(1, inputs=b"\x00dump"))
    kept.add(decision(2))
    kept.add(decision(1, state=DecisionState.DONE, outcome="1 of 1 moved"))
    kept.close()
    found = files(tmp_path / "new").read()
    assert [each.decision_id for each in found] == [f"{n:032x}" for n in (1, 2)]
    assert found[0].state is DecisionState.DONE
    assert found[0].inputs == b"\x00dump"


def test_a_line_that_was_cut_off_spoils_neither_itself_nor_the_next(tmp_path: Path) -> None:
    kept = files(tmp_path)
    kept.add(decision(1))
    kept.close()
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + b'{"decision_id": "ab')
    again = files(tmp_path)
    again.add(decision(2))
    again.close()
    assert len(files(tmp_path).read()) == 2


def test_files_are_numbered_and_the_oldest_go(tmp_path: Path) -> None:
    kept = files(tmp_path, file_bytes=4096, files=3)
    for number in range(200):
        kept.add(decision(number))
    kept.close()
    assert len(list(tmp_path.iterdir())) == 3
    found = files(tmp_path, file_bytes=4096, files=3).read()
    assert 20 < len(found) < 200
    assert found[-1].decision_id == f"{199:032x}"


def test_without_a_directory_nothing_is_written(tmp_path: Path) -> None:
    kept = DecisionFiles(DecisionSettings())
    kept.add(decision(1))
    kept.close()
    assert kept.read() == []
    assert list(tmp_path.iterdir()) == []
