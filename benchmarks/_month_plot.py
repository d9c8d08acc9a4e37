"""The month as a picture: what was asked for, what was up, what it drew, what was not served."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks._month_fleet import PERIOD_S, Floats, History

STEP: Final = 12
"""Periods in a point: an hour."""
COLOURS: Final = {"nothing decided": "#999999", "decided": "#1f77b4"}
"""The runs that are shown."""


def plot(histories: Mapping[str, History], path: Path) -> None:
    """Write the picture as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "month"
    import matplotlib.pyplot as plt

    figure, (cores, power, lost) = plt.subplots(3, 1, figsize=(11, 8), sharex=True)
    for name, history in histories.items():
        colour = COLOURS.get(name)
        if colour is None:
            continue
        days = np.arange(len(history.load) // STEP) * STEP * PERIOD_S / 86_400
        cores.plot(days, _hourly(history.up), color=colour, label=f"up, {name}", lw=0.8)
        power.plot(days, _hourly(history.energy_w) / 1000, color=colour, label=name, lw=0.8)
        unserved = 100 * _hourly(history.unserved) / np.maximum(_hourly(history.load), 1e-9)
        lost.plot(days, unserved, color=colour, label=name, lw=0.6)
    some = next(iter(histories.values()))
    days = np.arange(len(some.load) // STEP) * STEP * PERIOD_S / 86_400
    cores.plot(days, _hourly(some.load), color="#d62728", label="asked for", lw=0.8)
    for axis, label in ((cores, "cores"), (power, "kW"), (lost, "not served, %")):
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    cores.legend(loc="upper right", fontsize="small", ncol=2)
    lost.set_xlabel("days")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})  # pyright: ignore[reportUnknownMemberType]
    plt.close(figure)


def _hourly(values: Floats) -> Floats:
    whole = len(values) // STEP * STEP
    mean: Floats = values[:whole].reshape(-1, STEP).mean(axis=1)
    return mean
