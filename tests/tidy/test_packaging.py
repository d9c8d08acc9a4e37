"""The list of packages, the links for type checkers and the folders say the same."""

import configparser
from pathlib import Path

import pytest

from snooze.common.version import VERSION
from tests.tidy.source import PREFIX, REPOSITORY, ROOMS

SETUP = configparser.ConfigParser()
SETUP.read(REPOSITORY / "setup.cfg")
LISTED = SETUP["options"]["packages"].split()


def folders() -> list[Path]:
    """Every folder of the rooms with a Python module in it."""
    return sorted({path.parent for room in ROOMS for path in (REPOSITORY / room).rglob("*.py")})


def dotted(folder: Path) -> str:
    return PREFIX + ".".join(folder.relative_to(REPOSITORY).parts)


def test_every_folder_with_modules_is_a_listed_package() -> None:
    assert sorted(LISTED) == LISTED
    assert sorted(dotted(folder) for folder in folders()) == LISTED


@pytest.mark.parametrize("folder", folders(), ids=dotted)
def test_a_package_is_one_and_says_that_it_is_typed(folder: Path) -> None:
    assert (folder / "__init__.py").is_file()
    assert (folder / "py.typed").is_file()


def test_every_room_at_the_top_is_known() -> None:
    top = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")}
    assert top - {"benchmarks"} == set(ROOMS)


def test_type_checkers_find_each_room_by_its_link() -> None:
    links = REPOSITORY / "typings" / "snooze"
    assert sorted(link.name for link in links.iterdir()) == sorted(ROOMS)
    for link in links.iterdir():
        assert link.is_symlink(), link
        assert link.readlink() == Path("../..") / link.name


def test_the_root_is_no_package() -> None:
    assert not (REPOSITORY / "__init__.py").exists()
    assert SETUP["options"]["package_dir"].split() == ["snooze", "=", "."]


def test_tests_are_no_packages() -> None:
    assert list((REPOSITORY / "tests").rglob("__init__.py")) == []


def test_files_that_are_no_modules_are_shipped() -> None:
    shipped = {
        package: patterns.replace(",", " ").split()
        for package, patterns in SETUP["options.package_data"].items()
    }
    assert shipped["*"] == ["py.typed"]
    left_out: list[str] = []
    for folder in folders():
        patterns = ["*.py", "*.md", "py.typed", *shipped.get(dotted(folder), [])]
        left_out += [
            str(path.relative_to(REPOSITORY))
            for path in folder.iterdir()
            if path.is_file() and not any(path.match(pattern) for pattern in patterns)
        ]
    assert left_out == []


def test_the_version_is_told_once() -> None:
    assert SETUP["metadata"]["version"] == VERSION
