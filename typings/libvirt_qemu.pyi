"""The part of libvirt-python's QEMU extension that Snooze uses, typed."""

import libvirt

def qemuMonitorCommand(domain: libvirt.virDomain, cmd: str, flags: int) -> str: ...  # noqa: N802
