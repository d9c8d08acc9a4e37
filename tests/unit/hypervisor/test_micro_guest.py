"""The guest of one sector, as bytes and as text."""

from pathlib import Path

import pytest

from snooze.common.domain_template import read_template
from snooze.common.template_policy import TemplatePolicy, judge
from snooze.lab.guests import (
    Beat,
    assemble,
    make_disk,
    micro_guest_xml,
    read_beat,
    wait_for_beat,
)


def test_it_fits_its_sector_and_its_disk_has_no_beat_yet(tmp_path: Path) -> None:
    sector = assemble(tmp_path)
    assert len(sector) == 512
    disk = tmp_path / "disk.raw"
    make_disk(disk, sector, fill=b"abcd")
    assert disk.stat().st_size == 2**20
    assert disk.read_bytes()[8192:8196] == b"abcd"
    assert read_beat(disk) is None
    with pytest.raises(TimeoutError):
        wait_for_beat(disk, timeout_s=0.1)


def test_a_beat_is_read_from_the_second_sector(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(512) + b"beat 0000000042 boot 00c0ffee\n\0")
    assert read_beat(disk) == Beat(42, "00c0ffee")


def test_its_template_may_run() -> None:
    template = read_template(micro_guest_xml("a", Path("/i/d.raw"), max_vcpus=2, bridge="br0"))
    assert (template.vcpus, template.max_vcpus) == (1, 2)
    assert judge(template, TemplatePolicy(image_directories=("/i",))) == []
