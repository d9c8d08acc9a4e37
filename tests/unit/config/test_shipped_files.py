"""The commented files, the page of settings and the unit files: true, complete, loadable."""

import configparser
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from snooze.common.config import ROOTS, Role, load
from snooze.common.config_check import check_config
from snooze.common.config_text import shipped_files, toml_text
from snooze.common.settings_schema import Section, fields_of, leaves
from snooze.common.toml_values import is_table

REPOSITORY = Path(__file__).parents[3]
CONFIGS = REPOSITORY / "configs"


@pytest.mark.parametrize("path", shipped_files(), ids=lambda path: path.name)
def test_generated_files_are_up_to_date(path: Path) -> None:
    assert path.read_text() == shipped_files()[path], "run: python -m snooze.common.config_text"


@pytest.mark.parametrize("role", ROOTS)
class TestCommentedFile:
    def test_it_says_what_the_types_say(self, role: Role) -> None:
        path = CONFIGS / f"{role}.toml"
        assert load(path, ROOTS[role], environment={}) == ROOTS[role]()
        assert check_config(path).ok

    def test_every_key_is_written_and_commented(self, role: Role) -> None:
        text = (CONFIGS / f"{role}.toml").read_text()
        tables = tomllib.loads(text)
        lines = text.splitlines()
        for path, _ in leaves(ROOTS[role]):
            value: object = tables
            for part in path:
                assert is_table(value)
                value = value[part]
        for number, line in enumerate(lines):
            if line and not line.startswith("#"):
                assert lines[number - 1].startswith("# "), f"no comment above {line!r}"
        keys = [line for line in lines if line and line[0] not in "#["]
        assert len(keys) == len(list(leaves(ROOTS[role])))

    def test_what_is_written_is_read_back_the_same(self, role: Role) -> None:
        text = toml_text(ROOTS[role]())
        assert len(text.splitlines()) > 10
        assert max(len(line) for line in text.splitlines()) <= 100

    def test_every_key_and_section_says_what_it_means(self, role: Role) -> None:
        for path, info in leaves(ROOTS[role]):
            assert info.doc.text.endswith("."), path

        def sections(section: type[Section]) -> Iterator[type[Section]]:
            yield section
            for info in fields_of(section):
                if info.section is not None:
                    yield from sections(info.section)

        for section in sections(ROOTS[role]):
            assert section.__doc__, section


class UnitFile(configparser.ConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr


@pytest.mark.parametrize("role", ROOTS)
class TestUnitFile:
    @pytest.fixture
    def unit(self, role: Role) -> UnitFile:
        parser = UnitFile(interpolation=None)
        parser.read(CONFIGS / f"snooze-{role}.service")
        return parser

    def test_it_starts_the_daemon_with_its_shipped_file(self, unit: UnitFile, role: Role) -> None:
        command = unit["Service"]["ExecStart"].split()
        assert command == ["/usr/bin/snooze", role, "-c", f"/etc/snooze/{role}.toml"]
        assert (CONFIGS / f"{role}.toml").exists()

    def test_the_state_directory_is_the_default_one(self, unit: UnitFile, role: Role) -> None:
        directory = Path("/var/lib") / unit["Service"]["StateDirectory"]
        assert str(directory) == ROOTS[role]().node.state_directory

    def test_it_is_started_again_unless_its_settings_are_wrong(
        self, unit: UnitFile, role: Role
    ) -> None:
        from snooze.common.errors import SettingsError

        assert unit["Service"]["Restart"] == "on-failure"
        assert unit["Service"]["RestartPreventExitStatus"] == str(SettingsError.exit_code)
        assert unit["Unit"]["StartLimitIntervalSec"] == "0"

    def test_it_is_stopped_gently(self, unit: UnitFile, role: Role) -> None:
        assert unit["Service"]["KillSignal"] == "SIGTERM"


def test_the_local_controllers_unit_spares_its_vms() -> None:
    parser = UnitFile(interpolation=None)
    parser.read(CONFIGS / "snooze-localcontroller.service")
    assert parser["Service"]["KillMode"] == "process"
    assert not {"Requires", "BindsTo", "PartOf"} & set(parser["Unit"])
