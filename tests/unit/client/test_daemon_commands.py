"""The commands that run something hand it what they were given, and exit as it does."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from snooze.bootstrap import service as bootstrap
from snooze.client import allinone
from snooze.common.errors import SettingsError
from snooze.groupmanager import service as groupmanager
from snooze.localcontroller import service as localcontroller

Run = Callable[..., Result]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            (),
            {
                "managers": 2,
                "hosts": 4,
                "hypervisor": "test",
                "port": 5000,
                "images": (),
                "sleep": False,
            },
        ),
        (
            ("--managers", "3", "--hosts", "0", "--hypervisor", "simulated", "--port", "0"),
            {
                "managers": 3,
                "hosts": 0,
                "hypervisor": "simulated",
                "port": 0,
                "images": (),
                "sleep": False,
            },
        ),
        (
            ("--hypervisor", "qemu"),
            {
                "managers": 2,
                "hosts": 4,
                "hypervisor": "qemu",
                "port": 5000,
                "images": (),
                "sleep": False,
            },
        ),
    ],
)
def test_up(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    expected: dict[str, object],
) -> None:
    given: list[dict[str, object]] = []

    def keep(**options: object) -> int:
        given.append(options)
        return 7

    monkeypatch.setattr(allinone, "run", keep)
    assert run("up", *arguments).exit_code == 7
    assert given == [expected]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("bootstrap", bootstrap),
        ("groupmanager", groupmanager),
        ("localcontroller", localcontroller),
    ],
)
def test_daemons(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, module: object
) -> None:
    config = tmp_path / "daemon.toml"
    config.write_text("")
    given: list[str] = []

    def serve(path: str) -> int:
        given.append(path)
        if len(given) > 1:
            raise SettingsError("the settings are wrong")
        return 0

    monkeypatch.setattr(module, "run", serve)
    assert run(name, "-c", str(config)).exit_code == 0
    assert given == [str(config)]
    wrong = run(name, "--config", str(config))
    assert wrong.exit_code == 3
    assert "the settings are wrong" in wrong.stderr
    absent = run(name, "-c", str(tmp_path / "absent"))
    assert absent.exit_code == 2
    assert len(given) == 2


def test_check_config(run: Run, tmp_path: Path) -> None:
    wrong = tmp_path / "gm.toml"
    wrong.write_text('role = "groupmanager"\n[nonsense]\nkey = 1\n')
    done = run("check-config", str(wrong))
    assert done.exit_code == 3
    assert "nonsense" in done.stdout
    right = tmp_path / "right.toml"
    right.write_text('role = "groupmanager"\n')
    assert run("check-config", str(right)).exit_code == 0
    misspelt = tmp_path / "misspelt.toml"
    misspelt.write_text('role = "groupmanager"\n[relocation]\npolicy = "predictve"\n')
    done = run("check-config", str(misspelt))
    assert done.exit_code == 3
    assert "relocation.policy: there is no relocation policy 'predictve'" in done.stdout
    misspelt.write_text('role = "groupmanager"\n[consolidation]\ncron = "0 25 * * *"\n')
    assert "is no cron expression: bad hour" in run("check-config", str(misspelt)).stdout
    assert run("check-config", str(right), "--role", "bootstrap").exit_code == 3
    absent = run("check-config", str(tmp_path / "absent"))
    assert absent.exit_code == 3
    assert "No such file" in absent.stdout
