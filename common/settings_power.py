"""Settings of power: how a host is woken and goes down, and how group managers reach BMCs."""

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta

from snooze.common.errors import InvalidRequest
from snooze.common.power_options import (
    MAX_OPTIONS_CHARS,
    parse_power,
    shown_options,
    split_command,
)
from snooze.common.settings_schema import Complaint, Doc, Section


class WakeupSettings(Section, frozen=True, kw_only=True):
    """How this host is switched on, switched off and asked from outside (docs/power.md).

    Also shown by Snooze's API, without passwords.
    """

    driver: Annotated[
        Literal["IPMI", "REDFISH", "WOL", "COMMAND", "kapower3", "test"],
        Doc(
            "By which means. Only a driver that reads the state back (IPMI, REDFISH, COMMAND with "
            "--status) can prove that this host is off, so that its VMs may start elsewhere."
        ),
    ] = "IPMI"
    options: Annotated[
        str,
        Meta(max_length=MAX_OPTIONS_CHARS),
        Doc(
            'The arguments. IPMI: "-H 10.0.0.9 -U user -f /etc/snooze/bmc-password" (or -P '
            'PASSWORD); REDFISH: "https://10.0.0.9 -U user -f FILE"; WOL: MAC addresses; COMMAND: '
            '--on, --off and --status, each with a "COMMAND", which the group managers run only if '
            "power.run_commands_of_hosts is set there. Files are read by the group managers, at "
            "their end. Passwords are shown nowhere. Empty: this host is not woken.",
            secret=True,
        ),
    ] = ""

    def shown(self) -> list[tuple[str, object]]:
        """See ``Section``; of commands, the programs alone."""
        told = shown_options(self.driver, self.options)
        return [(key, told if key == "options" else value) for key, value in super().shown()]

    __rich_repr__ = shown

    def complaints(self) -> Iterator[Complaint]:
        """What the driver cannot read."""
        if self.options:
            try:
                parse_power(self.driver, self.options)
            except InvalidRequest as error:
                yield Complaint("options", error.message, because_of=("driver",))


class PowerDownSettings(Section, frozen=True, kw_only=True):
    """How this host goes down by itself when the cluster wants it to sleep, and what it draws."""

    driver: Annotated[
        Literal["systemd", "command", "ipmi", "test"],
        Doc(
            "systemd: systemctl poweroff, suspend, hibernate or hybrid-sleep. command: "
            "power.command. ipmi: this machine's own BMC, by ipmitool: shutdown alone. test: the "
            "daemon ends."
        ),
    ] = "systemd"
    actions: Annotated[
        tuple[Literal["shutdown", "suspend_to_ram", "suspend_to_disk", "suspend_to_both"], ...],
        Meta(max_length=4),
        Doc(
            "The ways in which this host may go to sleep, the preferred one first; what it cannot "
            "do is left out. Empty: it never sleeps."
        ),
    ] = ("shutdown",)
    command: Annotated[
        str,
        Meta(max_length=1024),
        Doc(
            'What driver = "command" runs, without a shell; {action} stands for one of the actions.'
        ),
    ] = ""
    idle_w: Annotated[
        float,
        Meta(ge=0, le=1e6),
        Doc("What it draws without load, in watts, where nothing measures it; 0: not known."),
    ] = 0.0
    full_w: Annotated[
        float, Meta(ge=0, le=1e6), Doc("What it draws with all cores busy; 0: not known.")
    ] = 0.0
    asleep_w: Annotated[
        float, Meta(ge=0, le=1e6), Doc("What it draws asleep; 0: not known, or nothing.")
    ] = 0.0

    def complaints(self) -> Iterator[Complaint]:
        """A command where one is needed, that can be split; a curve that rises."""
        if self.driver == "command" and self.actions and not self.command:
            yield Complaint("command", 'driver = "command" needs one', because_of=("driver",))
        if self.command:
            try:
                split_command(self.command, "it")
            except InvalidRequest as error:
                yield Complaint("command", error.message)
            for name in re.findall(r"\{([^}]*)\}", self.command):
                if name != "action":
                    yield Complaint("command", f"{{{name}}} stands for nothing; {{action}} does")
        if 0 < self.full_w < self.idle_w:
            yield Complaint(
                "full_w", f"is less than power.idle_w ({self.idle_w:g})", because_of=("idle_w",)
            )


class PowerControlSettings(Section, frozen=True, kw_only=True):
    """How the leader reaches the BMCs of hosts."""

    call_timeout_s: Annotated[
        float,
        Meta(ge=0.5, le=600),
        Doc("A BMC, or a command, that has not answered a question or an order by then is silent."),
    ] = 10.0
    off_timeout_s: Annotated[
        float,
        Meta(ge=1, le=3600),
        Doc("A host that is switched off and is not read as off by then is not proven off."),
    ] = 30.0
    poll_interval_s: Annotated[
        float, Meta(ge=0.05, le=60), Doc("Between two looks at a host that is to go off.")
    ] = 0.5
    ipmi_processes: Annotated[
        int,
        Meta(ge=1, le=256),
        Doc("IPMI requests at the same time, each in a process of its own (25 to 35 MiB)."),
    ] = 8
    overrides_file: Annotated[
        str,
        Meta(pattern=r"^(/.*)?\Z", max_length=1024),
        Doc(
            "A file of ours with hosts' drivers and options that go before what hosts tell, so "
            "that no host needs to know its BMC's password (docs/power.md); not readable by "
            "everybody. Empty: none.",
            form="an absolute path",
        ),
    ] = ""

    run_commands_of_hosts: Annotated[
        bool,
        Doc(
            "Whether commands that a host tells of itself (wakeup.driver COMMAND) are run, by the "
            "leader and on its machine: then whoever controls a host controls the leader. Those of "
            "power.overrides_file are run in any case."
        ),
    ] = False

    def complaints(self) -> Iterator[Complaint]:
        """Going off takes at least one question."""
        if self.off_timeout_s < self.call_timeout_s:
            yield Complaint(
                "off_timeout_s",
                f"is shorter ({self.off_timeout_s:g}) than power.call_timeout_s "
                f"({self.call_timeout_s:g})",
                because_of=("call_timeout_s",),
            )
