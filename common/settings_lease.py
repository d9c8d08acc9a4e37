"""Settings of a host's lease: when it fences itself (docs/never-twice.md has the reasoning)."""

from typing import Annotated, Literal

from msgspec import Meta

from snooze.common.settings_schema import Doc, Section


class LeaseSettings(Section, frozen=True, kw_only=True):
    """Whether and how this host fences itself."""

    enabled: Annotated[
        Literal["auto", "always", "never"],
        Doc(
            "Whether this host switches its highly available guests off when it has held no lease "
            "for grace_s, so that they may be started elsewhere without asking its power "
            "controller. auto: if wakeup names no controller that can prove it off: then an outage "
            "of the store or of all group managers that is longer than recovery.lease_s stops "
            "those guests. never: without such a controller they are restarted elsewhere only "
            "once a person has confirmed that this host is off."
        ),
    ] = "auto"
    grace_s: Annotated[
        float,
        Meta(ge=0.5, le=3600),
        Doc("The lease has been over for this long before guests are switched off."),
    ] = 2.0
    watchdog_device: Annotated[
        str,
        Meta(pattern=r"^(/dev/[A-Za-z0-9/_-]+)?\Z"),
        Doc(
            "A hardware watchdog, as /dev/watchdog, that the guard keeps quiet: the machine is "
            "reset if the guard dies or hangs, or cannot switch guests off. Empty: none.",
            form="the path of a device, or empty",
        ),
    ] = ""
