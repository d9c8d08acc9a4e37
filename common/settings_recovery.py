"""Settings of recovery: leases, fencing and restarts (docs/never-twice.md has the reasoning)."""

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta

from snooze.common.settings_schema import Complaint, Doc, Section


class RecoverySettings(Section, frozen=True, kw_only=True):
    """What is done about hosts that are lost; the same on every group manager."""

    lease_s: Annotated[
        float,
        Meta(ge=1, le=3600),
        Doc(
            "Leases end this long after the leader last proved to the store that it leads. Hosts "
            "that fence themselves keep their guests through an outage of the store that is "
            "shorter. Where group managers differ, the longest that was granted is waited for."
        ),
    ] = 30.0
    margin_s: Annotated[
        float,
        Meta(ge=0.5, le=3600),
        Doc(
            "Waited besides, until a host whose lease ran out is believed to have fenced itself: "
            "for the drift of clocks, and the time that switching guests off takes."
        ),
    ] = 10.0
    fence_after_s: Annotated[
        float,
        Meta(ge=0, le=3600),
        Doc(
            "Once a host has been silent for heartbeat.timeout_s, it has this long until its "
            "power controller is asked; if it is on, it is switched off."
        ),
    ] = 1.0
    patience_s: Annotated[
        float,
        Meta(ge=1, le=86400),
        Doc(
            "A host whose link was closed (its agent stopped, its group manager died) and a host "
            "that a new leader has not heard of get this long before they are switched off. "
            "Whether they are off already is asked after fence_after_s."
        ),
    ] = 30.0
    storm_share: Annotated[
        float,
        Meta(ge=0, le=1),
        Doc(
            "If more than this part of all hosts (and three or more) is away at once, no host is "
            "switched off: it is more likely that the group managers are cut off. 1: never held."
        ),
    ] = 0.5
    reboot_fenced: Annotated[
        bool, Doc("Switch a host on again after it was switched off and read as off.")
    ] = True
    restart_window_s: Annotated[
        float,
        Meta(ge=1, le=31_536_000),
        Doc("Within this time a VM is restarted at most as often as its policy says."),
    ] = 3600.0
    on_host_failure: Annotated[
        Literal["restart", "ask", "leave"],
        Doc(
            "What becomes of a VM whose host is proven down, unless its submission says so. "
            "restart: it is started on another host. ask: once a person starts it. leave: it "
            "waits for its host."
        ),
    ] = "restart"
    max_restarts: Annotated[
        int, Meta(ge=0, le=1000), Doc("How often it is restarted within restart_window_s.")
    ] = 3
    reserve: Annotated[
        Literal["none", "largest_host"],
        Doc(
            "largest_host: warn when the highly available VMs of any one host would not fit on "
            "the others, and put no host to sleep that this would need. none: do not look."
        ),
    ] = "largest_host"

    orphan_disk_s: Annotated[
        float,
        Meta(ge=0, le=31_536_000),
        Doc(
            "A disk that was made for a VM and that nobody needs any more, which the record "
            "proves, is removed when a leader has known so, and it has not been written, for this "
            "long. 0: never."
        ),
    ] = 604_800.0

    def complaints(self) -> Iterator[Complaint]:
        """Patience is at least what silence gets."""
        if self.patience_s < self.fence_after_s:
            yield Complaint(
                "patience_s",
                f"is shorter ({self.patience_s:g}) than fence_after_s ({self.fence_after_s:g})",
                because_of=("fence_after_s",),
            )
