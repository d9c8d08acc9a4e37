"""Settings of the energy saver, which the leader runs."""

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta

from snooze.common.settings_schema import Complaint, Doc, Section


class EnergySettings(Section, frozen=True, kw_only=True):
    """Putting idle hosts to sleep and waking them; the leader does it, for the whole cluster."""

    enabled: Annotated[
        bool,
        Doc(
            "Whether idle hosts are put to sleep. Hosts that sleep are woken for VMs that need "
            "them whether or not this is set."
        ),
    ] = False
    action: Annotated[
        Literal["", "shutdown", "suspend_to_ram", "suspend_to_disk", "suspend_to_both"],
        Doc(
            "How hosts go down; one that cannot stays up. Empty: as each host prefers, which its "
            "own settings say."
        ),
    ] = ""
    idle_s: Annotated[
        float,
        Meta(ge=0, le=86400),
        Doc(
            "A host without VM or order for this long may be put to sleep. 0: for as long as a "
            "sleep has to last to pay for waking up (what waking draws at full load, over the "
            "watts that sleeping saves), at least a minute. Who waits that long never uses more "
            "than twice what the best possible choice would."
        ),
    ] = 0.0
    wake_s: Annotated[
        float,
        Meta(ge=1, le=7200),
        Doc("What waking a host takes, until it has been measured of it, or of others."),
    ] = 120.0
    min_on_s: Annotated[
        float,
        Meta(ge=0, le=86400),
        Doc("A host that came up stays up this long."),
    ] = 300.0
    min_off_s: Annotated[
        float,
        Meta(ge=0, le=86400),
        Doc(
            "A host that went to sleep is not woken before this for the reserve; a VM that waits, "
            "or a person, wakes it at any time, after the hosts that slept longer."
        ),
    ] = 120.0
    reserved_hosts: Annotated[
        int,
        Meta(ge=0, le=100_000),
        Doc("At least this many hosts of the cluster stay up."),
    ] = 1
    reserve_cpu: Annotated[
        float,
        Meta(ge=0, le=0.95),
        Doc(
            "The part of the cores of the hosts that are up that stays free; if less is free, "
            "hosts are woken. 0.1 is a tenth."
        ),
    ] = 0.1
    reserve_memory: Annotated[float, Meta(ge=0, le=0.95), Doc("Likewise for memory.")] = 0.1
    reserve_cpu_cores: Annotated[
        float,
        Meta(ge=0, le=1e6),
        Doc("Cores that stay free in all, if that is more than reserve_cpu asks for."),
    ] = 0.0
    reserve_memory_kib: Annotated[
        float, Meta(ge=0, le=1e15), Doc("Memory that stays free in all, likewise.")
    ] = 0.0
    down_timeout_s: Annotated[
        float,
        Meta(ge=1, le=3600),
        Doc("A host that shuts down and that its BMC calls on after this did not go down."),
    ] = 180.0
    wake_timeout_s: Annotated[
        float,
        Meta(ge=1, le=7200),
        Doc("A host that was woken and has not joined after this is woken once more, or failed."),
    ] = 300.0
    wake_tries: Annotated[
        int,
        Meta(ge=1, le=20),
        Doc("A host that did not come up after this many tries is marked; another is woken."),
    ] = 2
    anticipation: Annotated[
        bool,
        Doc(
            "Wake hosts before the demand rises, as it did after the same hour of the past days; "
            "and put none to sleep that will be needed soon."
        ),
    ] = False
    anticipation_s: Annotated[
        float,
        Meta(ge=60, le=21600),
        Doc("How far anticipation looks ahead: the time that waking takes, and some."),
    ] = 900.0
    power_curve: Annotated[
        Literal["generic", "hp_ml110_g4", "hp_ml110_g5", "ibm_x3250_x3470", "ibm_x3550_x5675"],
        Doc(
            "The SPECpower curve of hosts whose settings name no watts and whose power nothing "
            "measures; generic scales with their cores (docs/energy.md)."
        ),
    ] = "generic"
    record_s: Annotated[
        float,
        Meta(ge=1, le=3600),
        Doc(
            "Energy used and saved is recorded this often; so much is lost with a leader. Of more "
            "than 2000 hosts, of two thousand at a time, in turn."
        ),
    ] = 60.0

    def complaints(self) -> Iterator[Complaint]:
        """A VM does not wait for hours for a host that is dead."""
        if self.wake_timeout_s * self.wake_tries > 7200:
            yield Complaint(
                "wake_tries",
                f"times wake_timeout_s is {self.wake_timeout_s * self.wake_tries:g} s; a VM would "
                "wait for a dead host that long (at most 7200)",
                because_of=("wake_timeout_s",),
            )
