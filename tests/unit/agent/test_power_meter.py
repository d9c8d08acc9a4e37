"""RAPL's counters, on a tree of files as the kernel lays it out."""

from pathlib import Path

from snooze.localcontroller.power_meter import RaplMeter

WRAP_UJ = 262_143_328_850


def zone(root: Path, name: str, label: str, energy_uj: int | str) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "max_energy_range_uj").write_text(f"{WRAP_UJ}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    return folder / "energy_uj"


def test_a_machine_without_counters(tmp_path: Path) -> None:
    meter = RaplMeter(tmp_path / "none")
    assert not meter.is_there
    assert meter.power_w(1.0) is None


def test_packages_and_their_memory_are_summed_and_cores_not_twice(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 1_000_000)
    cores = zone(tmp_path, "intel-rapl:0:0", "core", 1_000_000)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 1_000_000)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1_000_000)
    meter = RaplMeter(tmp_path)
    assert meter.is_there
    assert meter.power_w(10.0) is None
    first.write_text("101000000")
    second.write_text("41000000")
    cores.write_text("91000000")
    memory.write_text("11000000")
    assert meter.power_w(12.0) == (100 + 40 + 10) / 2
    assert meter.power_w(14.0) == 0


def test_the_board_goes_before_its_parts(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    board = zone(tmp_path, "intel-rapl:1", "psys", 0)
    meter = RaplMeter(tmp_path)
    meter.power_w(0.0)
    board.write_text("80000000")
    assert meter.power_w(1.0) == 80


def test_a_counter_that_starts_again(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", WRAP_UJ - 30_000_000)
    meter = RaplMeter(tmp_path)
    meter.power_w(0.0)
    counter.write_text("20000000")
    assert meter.power_w(1.0) == 50


def test_a_counter_that_was_reset_or_lies_is_not_power(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 200_000_000_000)
    meter = RaplMeter(tmp_path)
    meter.power_w(0.0)
    counter.write_text("0")
    assert meter.power_w(1.0) is None
    for nonsense in ("", "-1", "x", "9" * 30, "٣"):
        counter.write_text(nonsense)
        assert meter.power_w(2.0) is None
    counter.write_text("7000000")
    assert meter.power_w(3.0) is None
    counter.write_text("8000000")
    assert meter.power_w(3.0) is None  # no time went by
    counter.write_text("9000000")
    assert meter.power_w(4.0) == 1


def test_a_counter_that_goes_away(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = RaplMeter(tmp_path)
    meter.power_w(0.0)
    counter.unlink()
    assert meter.power_w(1.0) is None
