"""Where the cluster is: order of the sources, forms of an address, mistakes named."""

from pathlib import Path

import pytest

from snooze.client.settings import addresses_from, default_config_path, find_addresses
from snooze.common.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("front", ("http://front:5000",)),
        ("front:6000", ("http://front:6000",)),
        ("http://front:6000/", ("http://front:6000",)),
        ("https://front", ("https://front:443",)),
        ("[::1]:5000", ("http://[::1]:5000",)),
        ("HTTP://a:1", ("http://a:1",)),
        (" a:1 , b:2,, a:1 ", ("http://a:1", "http://b:2")),
        (["a:1,b:2", "c:3"], ("http://a:1", "http://b:2", "http://c:3")),
    ],
)
def test_forms_of_an_address(text: str | list[str], expected: tuple[str, ...]) -> None:
    assert addresses_from(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " , ",
        "ftp://a:1",
        "a:0",
        "a:99999",
        "a:port",
        "http://",
        "http://user:secret@a:1",
        "http://a:1/path",
        "a:1?x=1",
        "a b:1",
        "http://[::1:5000",
        ",".join(f"h{n}" for n in range(65)),
    ],
)
def test_wrong_addresses_are_named(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        addresses_from(text, where="SNOOZE_URL")
    assert all(problem.where == "SNOOZE_URL" for problem in caught.value.problems)
    assert caught.value.problems
    assert "secret" not in str(caught.value.problems)


def test_every_wrong_address_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        addresses_from("a:0,b:1,ftp://c")
    assert len(caught.value.problems) == 2


def test_the_first_source_that_says_something_wins(tmp_path: Path) -> None:
    config = tmp_path / "client.toml"
    config.write_text('url = ["file-1", "file-2:6000"]')
    environment = {"SNOOZE_URL": "environment"}
    given = find_addresses("given", environment=environment, config_path=config)
    assert given == ("http://given:5000",)
    assert find_addresses(environment=environment, config_path=config) == (
        "http://environment:5000",
    )
    assert find_addresses(environment={}, config_path=config) == (
        "http://file-1:5000",
        "http://file-2:6000",
    )
    absent = tmp_path / "absent.toml"
    assert find_addresses(environment={}, config_path=absent) == ("http://127.0.0.1:5000",)


@pytest.mark.parametrize(
    "text", ["url = 5", "url = [", 'urls = "a"', 'url = "a"\ntoken = "b"', 'url = "a:0"']
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str) -> None:
    config = tmp_path / "client.toml"
    config.write_text(text)
    with pytest.raises(SettingsError) as caught:
        find_addresses(environment={}, config_path=config)
    told = str(caught.value) + "".join(problem.where for problem in caught.value.problems)
    assert str(config) in told


def test_the_file_lies_in_the_users_configuration(tmp_path: Path) -> None:
    path = default_config_path({"XDG_CONFIG_HOME": str(tmp_path)})
    assert path == tmp_path / "snooze" / "client.toml"
    assert default_config_path({}).parts[-3:] == (".config", "snooze", "client.toml")
