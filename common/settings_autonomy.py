"""Settings of what a cluster does by itself about load: when, how, and how much at a time."""

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta

from snooze.common.settings_schema import Complaint, Doc, Section
from snooze.common.time_plans import Cron, Window, zone_of

Mode = Literal["auto", "advise", "dry-run", "off"]
Share = Annotated[float, Meta(ge=0, le=1)]


class AutonomySettings(Section, frozen=True, kw_only=True):
    """What a group manager does by itself, and how often it looks.

    Of each kind: auto does it, advise proposes it and waits for a person (``snooze decisions
    approve``), dry-run only writes it down, off is off. ``snooze autonomy`` changes it at run time.
    """

    overload: Annotated[Mode, Doc("Moving VMs off hosts that are too hot.")] = "auto"
    underload: Annotated[Mode, Doc("Emptying hosts that are hardly used.")] = "auto"
    consolidation: Annotated[Mode, Doc("Packing VMs on fewer hosts now and then.")] = "auto"
    sleep: Annotated[Mode, Doc("Sending hosts to sleep.")] = "auto"
    wake: Annotated[Mode, Doc("Waking hosts.")] = "auto"
    fence: Annotated[Mode, Doc("Switching off hosts that are out of reach.")] = "auto"
    restart: Annotated[Mode, Doc("Starting VMs of dead hosts elsewhere.")] = "auto"
    interval_s: Annotated[
        float, Meta(ge=0.1, le=3600), Doc("Time between two looks at the hosts.")
    ] = 10.0
    max_concurrent: Annotated[
        int,
        Meta(ge=1, le=10_000),
        Doc("Migrations that run at a time in a group manager; people's count too."),
    ] = 8
    max_per_host: Annotated[
        int,
        Meta(ge=1, le=100),
        Doc("Migrations at a time that start or end at one host; people's count too."),
    ] = 2
    hold_s: Annotated[
        float,
        Meta(ge=0, le=604_800),
        Doc(
            "A VM that moved is not moved for energy's sake for so long, and not back to where it "
            "came from at all."
        ),
    ] = 3600.0
    cool_down_s: Annotated[
        float,
        Meta(ge=0, le=86_400),
        Doc("After a plan was carried out, or found useless, the pause before the next one."),
    ] = 60.0
    windows: Annotated[
        tuple[str, ...],
        Meta(max_length=100),
        Doc(
            'Only in these windows of the week ("mon-fri 20:00-06:00"); none: at any time. They do '
            "not bind fence, restart and wake (snooze autonomy window --kind does)."
        ),
    ] = ()
    time_zone: Annotated[
        str, Meta(max_length=64), Doc("The zone of windows and of consolidation.cron.")
    ] = "UTC"
    keep_room: Annotated[
        bool,
        Doc(
            "Hosts are not emptied if highly available VMs of some host would find no room "
            "elsewhere, should it fail."
        ),
    ] = True
    plugins_directory: Annotated[
        str,
        Meta(pattern=r"^(/.*)?\Z"),
        Doc(
            "Where plug-ins (*.py) lie: estimators, detectors, relocation and consolidation, as in "
            "docs/scheduling.md. Empty: only those of installed packages are known.",
            form="an absolute path, or empty",
        ),
    ] = ""

    def complaints(self) -> Iterator[Complaint]:
        """Zone and windows must be such."""
        try:
            zone = zone_of(self.time_zone)
        except ValueError as error:
            yield Complaint("time_zone", str(error))
            return
        for index, text in enumerate(self.windows):
            try:
                Window.of(text, zone)
            except ValueError as error:
                yield Complaint(f"windows[{index}]", str(error))


class ThresholdSettings(Section, frozen=True, kw_only=True):
    """From when hosts are too hot or too idle.

    Three numbers for each axis: MIN, MID, MAX, as fractions of a host's capacity. A host is too hot
    above MAX on any axis, too idle below MIN on every axis, and is filled by moves up to MID.
    """

    cpu: Annotated[tuple[Share, ...], Meta(min_length=3, max_length=3), Doc("Cores in use.")] = (
        0.2,
        0.8,
        0.9,
    )
    memory: Annotated[
        tuple[Share, ...],
        Meta(min_length=3, max_length=3),
        Doc("Memory in use. A host whose memory is promised to the last page is not too hot."),
    ] = (0.5, 1.0, 1.0)
    network: Annotated[
        tuple[Share, ...],
        Meta(min_length=3, max_length=3),
        Doc("Bandwidth in use, each direction by itself."),
    ] = (0.2, 0.8, 0.9)

    def complaints(self) -> Iterator[Complaint]:
        """They must rise."""
        for key in ("cpu", "memory", "network"):
            low, middle, high = getattr(self, key)
            if not low < middle <= high:
                yield Complaint(key, f"must be MIN < MID <= MAX, not {low:g}, {middle:g}, {high:g}")


class RelocationSettings(Section, frozen=True, kw_only=True):
    """How overloaded and underloaded hosts are found, and what is moved."""

    thresholds: ThresholdSettings = ThresholdSettings()
    detector: Annotated[
        str,
        Meta(min_length=1, max_length=128),
        Doc(
            "What overload is measured against: thresholds (MAX), mad, iqr, local_regression, or "
            "a plug-in's name."
        ),
    ] = "thresholds"
    sustained_s: Annotated[
        float, Meta(ge=0, le=86_400), Doc("A host is too hot only after it has been for so long.")
    ] = 30.0
    idle_s: Annotated[
        float, Meta(ge=0, le=604_800), Doc("A host is too idle only after it has been for so long.")
    ] = 300.0
    hysteresis: Annotated[
        float,
        Meta(ge=0, le=0.5),
        Doc("How far below MAX (above MIN) a host must come back, as a fraction of its capacity."),
    ] = 0.05
    estimator: Annotated[
        str,
        Meta(min_length=1, max_length=128),
        Doc(
            "How what VMs use is estimated from samples: average, ewma, percentile, "
            "local_regression, static (what was asked for), or a plug-in's name."
        ),
    ] = "average"
    samples: Annotated[
        int, Meta(ge=1, le=1000), Doc("The newest samples that the average is taken of.")
    ] = 15
    forecast_s: Annotated[
        float,
        Meta(ge=1, le=86_400),
        Doc("The past that a forecast looks at; longer than what is kept: all that is kept."),
    ] = 60.0
    policy: Annotated[
        str,
        Meta(min_length=1, max_length=128),
        Doc(
            "Which VMs move, and where to: predictive, greedy (the original's way), "
            "greedy_overload, greedy_underload, or a plug-in's name."
        ),
    ] = "predictive"
    margin: Annotated[
        float, Meta(ge=1, le=1000), Doc("How many times its cost a move has to gain (predictive).")
    ] = 1.2
    passing: Annotated[
        float,
        Meta(ge=0, le=1),
        Doc(
            "An overload is left alone if forecast says less than this share of what the host may "
            "be filled with (predictive)."
        ),
    ] = 0.7
    relieved_hold_s: Annotated[
        float,
        Meta(ge=0, le=604_800),
        Doc(
            "A host that was too hot, or took VMs from one that was, is not emptied for so long "
            "(predictive)."
        ),
    ] = 1800.0
    max_moves: Annotated[int, Meta(ge=1, le=2000), Doc("Most moves of one plan.")] = 50
    bandwidth_kib_s: Annotated[
        float,
        Meta(ge=1, le=1e9),
        Doc("What one migration gets of the network, KiB/s, by which moves are weighed."),
    ] = 62_500.0
    only_sleepable: Annotated[
        bool,
        Doc("Only hosts that can be put to sleep are emptied for being hardly used."),
    ] = True


class ConsolidationSettings(Section, frozen=True, kw_only=True):
    """Packing VMs on fewer hosts, at set times and when asked."""

    cron: Annotated[
        str,
        Meta(max_length=200),
        Doc(
            'When, as a cron expression of five fields ("0 3 * * *"), or of six with seconds '
            'first as the original has it ("0 0/1 * * * ?"). Empty: only when asked '
            "(snooze autonomy consolidate)."
        ),
    ] = ""
    method: Annotated[
        str,
        Meta(min_length=1, max_length=128),
        Doc(
            "Which algorithm: optimiser, sercon (the original's), first_fit_decreasing, colony, or "
            "a plug-in's name."
        ),
    ] = "optimiser"
    max_moves: Annotated[int, Meta(ge=1, le=100_000), Doc("Most moves of one plan.")] = 200
    host_worth_s: Annotated[
        float,
        Meta(ge=0, le=1e7),
        Doc("How many seconds of migrating one emptied host is worth."),
    ] = 1800.0

    def complaints(self) -> Iterator[Complaint]:
        """The expression must be one."""
        if self.cron:
            try:
                Cron.of(self.cron, zone_of("UTC"))
            except ValueError as error:
                yield Complaint("cron", str(error))


class DecisionSettings(Section, frozen=True, kw_only=True):
    """How decisions are kept and approved."""

    expire_s: Annotated[
        float,
        Meta(ge=1, le=604_800),
        Doc(
            "What was proposed and not approved within this time expires, and so do moves of a "
            "plan that could not begin within it."
        ),
    ] = 900.0
    directory: Annotated[
        str,
        Meta(pattern=r"^(/.*)?\Z"),
        Doc(
            "The leader also writes every decision there, as lines of JSON, and reads them again "
            "when it starts. Empty: nowhere.",
            form="an absolute path, or empty",
        ),
    ] = ""
    file_bytes: Annotated[
        int, Meta(ge=4096, le=1 << 30), Doc("A file larger than this is closed and numbered.")
    ] = 16 * 1024 * 1024
    files: Annotated[int, Meta(ge=1, le=1000), Doc("Files that are kept; the oldest go.")] = 10
