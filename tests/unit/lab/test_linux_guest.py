"""The lab's Linux guest where Debian's mirrors are out of reach."""

import os
from pathlib import Path

import pytest

from snooze.common.errors import PreconditionError
from snooze.lab.linux_guest import linux_guest


@pytest.fixture
def no_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``apt-get`` fails; where guests are kept, of which there is none."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in (
        ("apt-get", f"echo $1 >>{tmp_path}/asked; echo no mirror >&2; exit 100"),
        ("apt-cache", "echo '  Depends: linux-image-9.9.9-1-cloud-amd64'"),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/snooze-lab"


def test_it_says_that_there_is_no_mirror_and_leaves_nothing(no_mirror: Path) -> None:
    with pytest.raises(PreconditionError, match=r"apt-get: no mirror; .* has to reach a mirror"):
        linux_guest()
    assert list(no_mirror.iterdir()) == []
    asked = (no_mirror.parents[1] / "asked").read_text().split()
    assert asked == ["download", "update"], "old lists may be all that is wrong"


def test_an_older_kernel_is_better_than_none(
    no_mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def make(kernel: str, folder: Path, target: Path) -> None:
        made.append(target)
        target.mkdir()
        (target / "kernel").write_text(kernel)

    with monkeypatch.context() as patch:
        patch.setattr("snooze.lab.linux_guest._make", make)
        first = linux_guest()
        assert linux_guest() == first
    assert len(made) == 1, "it is kept"
    apt_cache = no_mirror.parents[1] / "tools/apt-cache"
    apt_cache.write_text("#!/bin/sh\necho '  Depends: linux-image-9.9.9-2-cloud-amd64'\n")
    assert linux_guest() == first
    assert first.kernel.read_text().endswith("9-1-cloud-amd64")
