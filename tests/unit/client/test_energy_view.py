"""What people see of energy: the table and the plot."""

from xml.etree import ElementTree

import pytest
from rich.console import Console

from snooze.client import tables
from snooze.client.energy_plot import svg
from snooze.common.api import EnergyHostView, EnergySlotView, EnergyView, HostView
from snooze.common.resources import Capacity

T0 = 1_700_000_000_000
STEP_MS = 300_000


def view_of(*slots: EnergySlotView) -> EnergyView:
    host = EnergyHostView(
        "id1", "<node&1>", "asleep", 5.0, "bmc", used_kwh=1.5, saved_kwh=0.5, up_s=60, asleep_s=7200
    )
    return EnergyView(True, T0, 5.0, 1.5, 0.5, [host], list(slots))


def slots(count: int) -> list[EnergySlotView]:
    return [
        EnergySlotView(T0 + n * STEP_MS, 300.0 - n % 200, 400.0, 3.0 - (n % 2), 1.0 + (n % 2))
        for n in range(count)
    ]


def shown(*renderables: object) -> str:
    console = Console(width=140, force_terminal=False)
    with console.capture() as capture:
        console.print(*renderables)
    return capture.get()


def test_the_table_says_what_was_used_and_saved() -> None:
    text = shown(*tables.energy(view_of()))
    assert "<node&1>" in text
    assert "bmc" in text
    assert "1.500 kWh used" in text
    assert "0.500 kWh saved (25%)" in text
    assert "Energy saving is on" in text


@pytest.mark.parametrize("count", [0, 1])
def test_a_plot_without_a_past_says_so(count: int) -> None:
    picture = svg(view_of(*slots(count)))
    ElementTree.fromstring(picture)
    assert "no past to show" in picture


def test_the_plot_is_well_formed_and_inside_its_frame() -> None:
    picture = svg(view_of(*slots(2016)))
    root = ElementTree.fromstring(picture)
    paths = [element.get("d", "") for element in root.iter("{http://www.w3.org/2000/svg}path")]
    assert len(paths) == 4
    assert "1.500 kWh used, 0.500 kWh saved" in picture
    for path in paths:
        numbers = path.replace("M", " ").replace("H", " ").replace("V", " ").replace("Z", "")
        values = [float(word) for word in numbers.replace(",", " ").split()]
        assert min(values) >= 49.9
        assert max(values) <= 840.1


def test_a_host_is_shown_with_its_power() -> None:
    zero = Capacity()
    host = HostView(
        "id1", "node1", "10.0.0.1:5000", "going_down", Capacity(8, 1024 * 1024), zero, zero,
        power="going_down", power_since_ms=T0, note="idle for 120 s; saves 80 W",
    )  # fmt: skip
    text = shown(tables.host_details(host))
    assert "going down" in text
    assert "saves 80 W" in text
    assert "0 of 8" in text
