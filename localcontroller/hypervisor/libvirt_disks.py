"""What the driver does about disks whose VM is not here; see ``loose_disks.py`` for the rules.

Like ``libvirt_domains``: blocking functions for a worker thread, which keep nothing.
"""

import os
from collections.abc import Iterator

import libvirt

from snooze.common.errors import Conflict, ExecutionError
from snooze.common.vms import LooseDisk
from snooze.localcontroller.domain_xml import DomainFacts, read_domain
from snooze.localcontroller.hypervisor.libvirt_connection import is_code
from snooze.localcontroller.hypervisor.libvirt_domains import Workshop


def loose_disks(connection: libvirt.virConnect, workshop: Workshop) -> list[LooseDisk]:
    """The disks made for VMs that have no domain here; those of domains here are adopted."""
    if not workshop.has_real_disks:
        return []
    notes = workshop.images.notes
    here: set[str] = set()
    in_use: set[str] = set()
    for facts, is_on in _facts(connection):
        here.add(facts.vm_id)
        in_use.update(map(os.path.realpath, facts.files))
        if facts.tag is not None and not facts.tag.incoming:
            notes.adopt(facts.vm_id, facts.tag.generation, is_on=is_on)
    return notes.loose(here, in_use)


def drop_disk(
    connection: libvirt.virConnect, workshop: Workshop, disk: LooseDisk, idle_s: float
) -> None:
    """See the port."""
    path = os.path.realpath(workshop.images.disk_path(disk.vm_id))
    for facts, _ in _facts(connection):
        if facts.vm_id == disk.vm_id or path in map(os.path.realpath, facts.files):
            raise Conflict(f"domain {facts.name!r} is here and has {path}")
    try:
        workshop.images.notes.drop(disk, idle_s, workshop.images.check_free)
    except OSError as error:
        raise ExecutionError(f"{path} stays: {error}") from error


def _facts(connection: libvirt.virConnect) -> Iterator[tuple[DomainFacts, bool]]:
    """What each domain is, and whether it is on."""
    for domain in connection.listAllDomains():
        try:
            yield read_domain(domain.XMLDesc()), domain.isActive() == 1
        except libvirt.libvirtError as error:
            if not is_code(error, libvirt.VIR_ERR_NO_DOMAIN):
                raise  # else it went while we looked
