"""Settings that say what a VM's template may contain; leader and hosts both judge by them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from snooze.common.settings_schema import Complaint, Doc, Section

Danger = Literal[
    "host-devices",
    "host-files",
    "host-channels",
    "host-interfaces",
    "block-devices",
    "network-disks",
    "direct-boot",
    "shared-memory",
    "secrets",
    "security-labels",
    "command-line",
    "any-emulator",
]
"""The names of ``template_policy.Danger``."""


def bad_directories(key: str, directories: tuple[str, ...]) -> Iterator[Complaint]:
    """One complaint for each that is not absolute and plain, or would allow everything."""
    for index, text in enumerate(directories):
        where = f"{key}[{index}]"
        if not text.startswith("/"):
            yield Complaint(where, f'"{text}" is not an absolute path')
        elif ".." in Path(text).parts:
            yield Complaint(where, f'"{text}" contains ".."')
        elif not Path(text).parts[1:]:
            yield Complaint(where, '"/" would allow templates every file of the host')


class TemplateSettings(Section, frozen=True, kw_only=True):
    """What a VM's template may contain."""

    emulators: Annotated[
        tuple[str, ...],
        Meta(max_length=64),
        Doc(
            "The emulators a template may name; any other is refused. * stands for anything but /."
        ),
    ] = (
        "/usr/bin/kvm",
        "/usr/bin/qemu-kvm",
        "/usr/libexec/qemu-kvm",
        "/usr/bin/qemu-system-*",
    )
    firmware_directories: Annotated[
        tuple[str, ...],
        Meta(max_length=64),
        Doc("Where the firmware (loader, nvram) that a template names may lie."),
    ] = ("/usr/share/OVMF", "/usr/share/AAVMF", "/usr/share/edk2", "/usr/share/qemu")
    allowed_dangers: Annotated[
        tuple[Danger, ...],
        Meta(max_length=16),
        Doc(
            "Ways from the guest to the host that templates may use all the same; an error about "
            "a template names the one it would need."
        ),
    ] = ()

    def complaints(self) -> Iterator[Complaint]:
        """Directories and emulators must be absolute and plain."""
        yield from bad_directories("firmware_directories", self.firmware_directories)
        for index, text in enumerate(self.emulators):
            if not text.startswith("/"):
                yield Complaint(f"emulators[{index}]", f'"{text}" is not an absolute path')
