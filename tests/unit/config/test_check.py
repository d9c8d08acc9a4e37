"""``check_config``: one report that says it all, whatever the file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from snooze.common.config import Role
from snooze.common.config_check import ConfigReport, check_config

Check = Callable[..., ConfigReport]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    def run(
        text: str, role: Role | None = None, environment: dict[str, str] | None = None
    ) -> ConfigReport:
        path = tmp_path / "settings.toml"
        path.write_text(text)
        return check_config(path, role, environment=environment)

    return run


def test_a_good_file(check: Check) -> None:
    report = check('role = "localcontroller"\n[log]\nlevel = "debug"')
    assert report.ok
    assert report.role == "localcontroller"
    assert report.settings is not None
    assert report.settings.log.level == "debug"
    assert report.text().endswith("settings.toml: settings of a localcontroller, no mistakes\n")


def test_a_bad_file_lists_every_mistake_on_its_own_line(check: Check) -> None:
    report = check('role = "groupmanager"\n[log]\nlevel = "x"\nformatt = "json"\n[htp]\n')
    assert not report.ok
    assert report.settings is None
    head, *lines = report.text().splitlines()
    assert head.endswith("settings of a groupmanager, 3 mistakes")
    assert [line.split(":")[0].strip() for line in lines] == ["log.level", "log.formatt", "htp"]


@pytest.mark.parametrize(
    ("text", "role"),
    [
        ("[join]\nretry_min_s = 1", "localcontroller"),
        ("[leader]", "groupmanager"),
        ("[network]\nmonitoring_port = 1", "groupmanager"),
        ("[hypervisor]\ndriver = 'none'\n[log]\nlevel = 1", "localcontroller"),
        ("", "bootstrap"),
    ],
)
def test_the_role_is_guessed_from_the_keys(check: Check, text: str, role: Role) -> None:
    assert check(text).role == role


def test_a_misspelt_role_is_a_mistake_and_still_tells_the_role(check: Check) -> None:
    report = check('role = "groupmanagr"\n[placement]\npolicy = "first_fit"')
    assert report.role == "groupmanager"
    assert [problem.where for problem in report.problems] == ["role"]


def test_the_callers_role_counts(check: Check) -> None:
    report = check('role = "bootstrap"', "groupmanager")
    assert [problem.where for problem in report.problems] == ["role"]
    assert check("", "localcontroller").role == "localcontroller"


def test_the_environment_is_looked_at_only_if_handed_in(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNOOZE_LOG__LEVEL", "loud")
    assert check("").ok
    assert not check("", environment={"SNOOZE_LOG__LEVEL": "loud"}).ok


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    report = check_config(tmp_path / "none.toml")
    assert not report.ok
    assert "No such file" in report.text()


def test_a_directory(tmp_path: Path) -> None:
    assert "directory" in check_config(tmp_path).text()
