"""What people see of energy: the table and the plot."""

from xml.etree import ElementTree

import pytest
from rich.console import Console

from snooze.client import tables
from snooze.client.energy_plot import LEFT, RIGHT, WIDTH, nice, svg, thinned
from snooze.client.units import energy_text, watts_text
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
    row = " ".join(text.splitlines()[1].split())
    assert row.startswith("<node&1> asleep 5.0 W bmc 1.50 kWh 500 Wh")
    assert "25 % saved since" in text
    assert "Energy saving is on" in text


def test_dead_hosts_are_not_counted_as_asleep() -> None:
    assert "DEAD" not in shown(*tables.energy(view_of()))
    host = EnergyHostView("id2", "broken", "failed", up_s=60, asleep_s=120, dead_s=3600)
    lines = shown(*tables.energy(EnergyView(True, T0, 0.0, 0.0, 0.0, [host]))).splitlines()
    assert lines[0].split()[-3:] == ["UP", "ASLEEP", "DEAD"]
    assert " ".join(lines[1].split()).endswith(" 1 min 00 s 2 min 00 s 1 h 00 min")


@pytest.mark.parametrize("count", [0, 1])
def test_a_plot_without_a_past_says_so(count: int) -> None:
    picture = svg(view_of(*slots(count)))
    ElementTree.fromstring(picture)
    assert "no past to show" in picture


def test_the_plot_is_well_formed_and_inside_its_frame() -> None:
    picture = svg(view_of(*slots(2016)))
    root = ElementTree.fromstring(picture)
    paths = [element.get("d", "") for element in root.iter("{http://www.w3.org/2000/svg}path")]
    assert "500 Wh saved, 25 % of what would have been used" in picture
    assert "1.50 kWh used" in picture
    assert len(picture) < 60_000, "as many points as there are pixels"
    assert len(paths) > 6
    for path in paths:
        numbers = path.replace("M", " ").replace("H", " ").replace("V", " ").replace("Z", "")
        values = [float(word) for word in numbers.replace(",", " ").split()]
        assert min(values) >= LEFT - 0.1
        assert max(values) <= WIDTH - RIGHT + 0.1


def test_many_slots_are_drawn_as_means_that_hold_the_same_energy() -> None:
    past = slots(2016)
    few = thinned(past, 400)
    assert 300 < len(few) <= 400
    assert sum(slot.watts for slot in few) / len(few) == pytest.approx(
        sum(slot.watts for slot in past) / len(past), rel=1e-6
    )
    assert thinned(past[:7], 400) == past[:7]


@pytest.mark.parametrize(("most", "top"), [(0.0, 4), (66.8, 80), (1799.0, 2000), (100.0, 100)])
def test_axes_end_at_round_figures(most: float, top: float) -> None:
    assert nice(most) == pytest.approx(top)


@pytest.mark.parametrize(
    ("kwh", "text"),
    [
        (0.0, "0.00 Wh"),
        (-1e-9, "0.00 Wh"),
        (0.01249, "12.5 Wh"),
        (0.9996, "1.00 kWh"),
        (145.97, "146 kWh"),
        (1234.0, "1.23 MWh"),
    ],
)
def test_energy_has_three_digits(kwh: float, text: str) -> None:
    assert energy_text(kwh) == text
    assert watts_text(66.83) == "66.8 W"
    assert watts_text(1234.0) == "1.23 kW"


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
