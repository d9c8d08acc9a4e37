"""A daemon's id: made once, kept whole, never replaced by itself."""

import os
import stat
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snooze.common.config import (
    BootstrapSettings,
    GroupManagerSettings,
    NetworkSettings,
    NodeSettings,
)
from snooze.common.errors import SettingsError
from snooze.common.identity import advertised_address, node_hostname, node_identity


def settings(directory: Path, node_id: str = "") -> GroupManagerSettings:
    return GroupManagerSettings(node=NodeSettings(state_directory=str(directory), id=node_id))


def identity_of(directory: Path) -> str:
    return node_identity(settings(directory))


def test_a_configured_id_touches_no_disk(tmp_path: Path) -> None:
    assert node_identity(settings(tmp_path / "none", "gm-1")) == "gm-1"
    assert not (tmp_path / "none").exists()


def test_it_is_made_once_and_kept(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    made = identity_of(directory)
    assert uuid.UUID(made).version == 4
    assert identity_of(directory) == made
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    (file,) = directory.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_daemons_of_different_kinds_share_a_directory(tmp_path: Path) -> None:
    bootstrap = BootstrapSettings(node=NodeSettings(state_directory=str(tmp_path)))
    assert node_identity(bootstrap) != identity_of(tmp_path)


def test_daemons_that_start_together_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(identity_of, [tmp_path / "state"] * 8))
    assert len(made) == 1
    assert len(list((tmp_path / "state").iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"\0" * 37, b"abc", b"\xff" * 4000])
def test_a_damaged_file_stops_the_start_and_is_left_alone(tmp_path: Path, content: bytes) -> None:
    identity_of(tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"is damaged.*delete it") as caught:
        identity_of(tmp_path)
    assert caught.value.problems[0].where == "node.state_directory"
    assert file.read_bytes() == content


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"node\.state_directory"):
        identity_of(tmp_path / "file" / "state")


def test_what_a_crash_before_the_end_leaves_is_no_id(tmp_path: Path) -> None:
    (tmp_path / ".groupmanager.id.abc").write_text("half")
    assert uuid.UUID(identity_of(tmp_path))


@pytest.mark.parametrize(
    ("listen", "advertised", "expected"),
    [
        ("0.0.0.0", "10.0.0.1", "10.0.0.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("10.0.0.2", "h2.example", "h2.example"),
    ],
)
def test_the_address_told_to_others(listen: str, advertised: str, expected: str) -> None:
    network = NetworkSettings(listen_address=listen, advertised_address=advertised)
    assert advertised_address(network) == expected


def test_an_address_is_found_on_any_host() -> None:
    found = advertised_address(NetworkSettings())
    assert found.count(".") == 3
    assert found != "0.0.0.0"


def test_the_hostname() -> None:
    assert node_hostname(NodeSettings(hostname="rack1")) == "rack1"
    assert node_hostname(NodeSettings()) == os.uname().nodename
