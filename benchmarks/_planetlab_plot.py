"""The PlanetLab benchmark's Pareto front: energy against service lost, one picture a world."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

LABEL_OFFSETS = {"thr": (6, 5), "iqr": (6, -10), "mad": (-28, -12), "lr": (6, 4)}
PUBLISHED_COLOUR = "#b35806"
OURS_COLOUR = "#2166ac"


@dataclass(frozen=True, slots=True)
class Point:
    """A policy's mean over the days."""

    mode: str
    policy: str
    energy_kwh: float
    slav: float


def draw(
    folder: Path,
    plain: Sequence[Point],
    floors: Mapping[tuple[str, str], float],
    sleepy: Sequence[Point],
    sleepy_floors: Mapping[tuple[str, str], float],
) -> None:
    """Write ``planetlab-front.svg``, and ``planetlab-front-wake.svg`` if there is ``sleepy``."""
    folder.mkdir(parents=True, exist_ok=True)
    _picture(folder / "planetlab-front.svg", plain, floors, "the reference's rules")
    if sleepy:
        title = "300 s to wake up, power while asleep"
        _picture(folder / "planetlab-front-wake.svg", sleepy, sleepy_floors, title)


def _picture(
    path: Path, points: Sequence[Point], floors: Mapping[tuple[str, str], float], title: str
) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "snooze"
    from matplotlib import pyplot

    modes = sorted({point.mode for point in points}, reverse=True)
    figure, axes = pyplot.subplots(1, len(modes), figsize=(5.2 * len(modes), 4.2), squeeze=False)
    for mode, axis in zip(modes, axes[0], strict=True):
        here = [point for point in points if point.mode == mode]
        ours = sorted(
            (point for point in here if point.policy.startswith("default")),
            key=lambda point: point.energy_kwh,
        )
        axis.plot(
            [point.energy_kwh for point in ours],
            [point.slav for point in ours],
            "o-",
            color=OURS_COLOUR,
            label="default, by confidence",
        )
        others = [point for point in here if not point.policy.startswith("default")]
        axis.plot(
            [point.energy_kwh for point in others],
            [point.slav for point in others],
            "s",
            color=PUBLISHED_COLOUR,
            label="published (CloudSim 3.0.3)",
        )
        for point in here:
            label = point.policy.removeprefix("default ").upper().replace("DEFAULT", "default")
            axis.annotate(
                label,
                (point.energy_kwh, point.slav),
                textcoords="offset points",
                xytext=LABEL_OFFSETS.get(point.policy, (6, 4)),
                fontsize=8,
            )
        floor = fmean(value for (of, _), value in floors.items() if of == mode)
        axis.axvline(floor, color="grey", linestyle=":", label="energy floor")
        axis.set_yscale("log")
        axis.margins(x=0.15, y=0.1)
        axis.set_xlabel("energy, kWh a day (mean over the days)")
        axis.set_ylabel("SLAV = SLATAH x PDM")
        axis.set_title(f"{mode}: {title}", fontsize=10)
        axis.legend(fontsize=8, loc="center right")
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})  # pyright: ignore[reportUnknownMemberType]
    pyplot.close(figure)
