"""Both ends of a migration, step by step; each function blocks and can be repeated.

Two ways. With a hypervisor that migrates, the source's libvirt speaks to the destination's
(peer to peer), the running guest moves, and its definition moves with it. libvirt's test driver has
no migration of any kind: there the definition is made at the destination with a mark that it is
still arriving, removed at the source, and started at the destination. Between the last two steps
the VM runs nowhere, never twice.

When two libvirts lose each other in the instant in which the guest changes over, the source lets it
run on although the destination may have begun (measured: a destination that freezes there and goes
on later runs it, too). What prevents that is qemu's lock on a disk that both open. Where no disk
has one (block devices, network disks, ``<shareable/>``, copied or no disks) the guest is *held*: it
arrives paused and marked, and runs when it is finished, which is asked once its source has none.
"""

import json
import logging
import uuid
from dataclasses import replace
from typing import Final

import libvirt
import libvirt_qemu
import msgspec

from snooze.common.errors import Conflict, ExecutionError, InvalidRequest, RemoteTimeout
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import MigrationProgress, MigrationTicket, SlowMigration, VmReport
from snooze.localcontroller.domain_xml import VmTag, read_domain, with_incoming
from snooze.localcontroller.hypervisor.libvirt_connection import is_code
from snooze.localcontroller.hypervisor.libvirt_domains import (
    ACTIVE_STATES,
    Workshop,
    check_name_is_free,
    find,
    managed,
    present_report,
    remove_from_source,
    report,
    undefine,
    write_tag,
)
from snooze.localcontroller.hypervisor.libvirt_uri import peer_uri
from snooze.localcontroller.hypervisor.port import (
    MigrationMethod,
    MigrationOffer,
    MigrationOptions,
)

log = logging.getLogger(__name__)

COPY_NOTE: Final = (
    "this hypervisor has no migration: the definition was moved and the guest started anew"
)
_COPYING: Final = (MigrationMethod.NO_SHARED_FULL, MigrationMethod.NO_SHARED_INCREMENTAL)


_LIVE_AND_CONFIG: Final = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG


def offer(
    connection: libvirt.virConnect, workshop: Workshop, vm_id: str, options: MigrationOptions
) -> MigrationOffer:
    """See the port."""
    domain, present = managed(connection, vm_id)
    if present.state not in (VmState.RUNNING, VmState.PAUSED):
        raise Conflict(f"cannot migrate VM {present.name!r}: it is {present.state.value}")
    token = uuid.uuid4().hex
    source_uuid = workshop.description.host_uuid
    if not workshop.description.live_migration:
        full = msgspec.structs.replace(present, xml=domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE))
        return MigrationOffer(full, token, options.method, source_uuid)
    disks = tuple(
        workshop.images.offer_disk(path, token) for path in read_domain(present.xml).disks
    )
    return MigrationOffer(present, token, options.method, source_uuid, disks)


def prepare_incoming(
    connection: libvirt.virConnect, workshop: Workshop, made: MigrationOffer
) -> MigrationTicket:
    """See the port."""
    description = workshop.description
    if made.source_uuid and made.source_uuid == description.host_uuid:
        raise Conflict(f"VM {made.report.name!r} is already on {description.hostname}")
    _clear_the_way(connection, made.report)
    check_name_is_free(connection, made.report.name, made.report.vm_id)
    uri = workshop.options.peer_uri or peer_uri(workshop.options.uri, description.hostname)
    if not description.live_migration:
        try:
            definition = with_incoming(made.report.xml, made.report.state.value)
        except ValueError as error:
            raise InvalidRequest(f"VM {made.report.name!r} cannot come here: {error}") from error
        connection.defineXML(definition)
        return MigrationTicket(made.report.vm_id, description.uri, live=False, token=made.token)
    copy = _has_to_copy(workshop, made)
    incremental = copy and (
        made.method is MigrationMethod.NO_SHARED_INCREMENTAL
        or (
            made.method is MigrationMethod.AUTO
            and all(workshop.images.shares_master(disk) for disk in made.disks)
        )
    )
    if copy:
        try:
            for disk in made.disks:
                workshop.images.make_room(disk, made.report.vm_id, incremental=incremental)
        except BaseException:
            workshop.images.give_room_back(made.report.vm_id)
            raise
    return MigrationTicket(
        made.report.vm_id,
        uri,
        workshop.options.data_uri,
        copy_storage=copy,
        token=made.token,
        incremental=incremental,
        hold=made.report.state is VmState.RUNNING
        and (copy or not read_domain(made.report.xml).locked),
    )


def _clear_the_way(connection: libvirt.virConnect, arriving: VmReport) -> None:
    """Remove what an earlier life or a dead try of this VM left here.

    Raises:
        Conflict: if it runs here, or is here with a higher generation, or is not ours.
    """
    domain = find(connection, arriving.vm_id)
    if domain is None:
        return
    present = report(domain)
    if present is None:
        if domain.isActive():
            raise Conflict(f"VM {arriving.name!r} is already arriving here")
    elif not present.managed or present.state in ACTIVE_STATES:
        raise Conflict(f"VM {arriving.name!r} is already here, and {present.state.value}")
    elif present.generation > arriving.generation:
        raise Conflict(f"VM {arriving.name!r} is here with a higher generation")
    undefine(domain)


def _has_to_copy(workshop: Workshop, made: MigrationOffer) -> bool:
    """Whether disks have to travel.

    Raises:
        Conflict: if some do and some do not, or they would be copied onto themselves.
    """
    shared = [workshop.images.is_shared(disk) for disk in made.disks]
    name = made.report.name
    if made.method in _COPYING:
        if any(shared):
            raise Conflict(f"the disks of {name!r} are shared: they would be copied on themselves")
        return bool(made.disks)
    if made.method is not MigrationMethod.AUTO:
        return False
    if any(shared) and not all(shared):
        raise Conflict(f"some disks of VM {name!r} are shared and some are not: move those first")
    return bool(made.disks) and not any(shared)


def migrate_out(
    connection: libvirt.virConnect,
    workshop: Workshop,
    vm_id: str,
    ticket: MigrationTicket,
    options: MigrationOptions,
) -> None:
    """See the port; progress is asked for elsewhere, this only returns at the end."""
    domain = find(connection, vm_id)
    if domain is None:
        workshop.images.withdraw_proofs(ticket.token)
        return  # it has left already
    domain, present = managed(connection, vm_id)
    if not ticket.live:
        remove_from_source(domain)
        return
    if present.state not in (VmState.RUNNING, VmState.PAUSED):
        raise Conflict(f"cannot migrate VM {present.name!r}: it is {present.state.value}")
    facts = read_domain(present.xml)
    disks, tag = facts.disks, facts.tag
    hold = ticket.hold and present.state is VmState.RUNNING and tag is not None
    try:
        if hold and tag is not None:
            write_tag(domain, replace(tag, held=True), _LIVE_AND_CONFIG)
        if options.max_downtime_ms:
            _try_max_downtime(domain, options.max_downtime_ms)
        domain.migrateToURI3(
            ticket.uri, _parameters(ticket, options), _flags(ticket, options, hold=hold)
        )
    except libvirt.libvirtError as error:
        if hold:
            _let_go(connection, vm_id)
        _say_where_it_is(connection, vm_id, present.name, error)
    finally:
        workshop.images.withdraw_proofs(ticket.token)
    if ticket.copy_storage and workshop.options.remove_disks:
        workshop.images.remove_moved(disks)


def _is_paused(domain: libvirt.virDomain) -> bool:
    present = report(domain)
    return present is not None and present.state is VmState.PAUSED


def _let_go(connection: libvirt.virConnect, vm_id: str) -> None:
    """It stayed: it waits for nobody's word."""
    domain = find(connection, vm_id)
    if domain is not None:
        tag = read_domain(domain.XMLDesc()).tag
        if tag is not None and tag.held and domain.isActive() and not _is_paused(domain):
            write_tag(domain, replace(tag, held=False), _LIVE_AND_CONFIG)


def _try_max_downtime(domain: libvirt.virDomain, downtime_ms: int) -> None:
    try:
        domain.migrateSetMaxDowntime(downtime_ms)
    except libvirt.libvirtError as error:
        log.info("the downtime was not limited", extra={"reason": str(error)})


def hasten(connection: libvirt.virConnect, vm_id: str, options: MigrationOptions) -> str:
    """Do what the VM's policy says about a migration that does not end; what was done, in words.

    Auto-converge is under way, giving up is the time limit: neither needs anything here.

    Raises:
        libvirtError: if it cannot be done; the migration goes on as it was.
    """
    domain = find(connection, vm_id)
    if domain is None:
        return ""
    match options.slow:
        case SlowMigration.POSTCOPY:
            domain.migrateStartPostCopy()
            return "post-copy: it runs at the destination while its memory follows"
        case SlowMigration.PAUSE:
            domain.migrateSetMaxDowntime(options.pause_ms)
            return f"it may be paused for up to {options.pause_ms} ms"
        case SlowMigration.CONVERGE | SlowMigration.GIVE_UP:
            return ""


def _parameters(ticket: MigrationTicket, options: MigrationOptions) -> dict[str, object]:
    parameters: dict[str, object] = {}
    if ticket.data_uri:
        parameters[libvirt.VIR_MIGRATE_PARAM_URI] = ticket.data_uri
    if options.bandwidth_mib_s:
        parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = options.bandwidth_mib_s
    return parameters


def _flags(ticket: MigrationTicket, options: MigrationOptions, *, hold: bool) -> int:
    """What libvirt is told; a guest that is held has not left its source: no post-copy then."""
    flags = (
        libvirt.VIR_MIGRATE_LIVE
        | libvirt.VIR_MIGRATE_PEER2PEER
        | libvirt.VIR_MIGRATE_PERSIST_DEST
        | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
        | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
    )
    if hold:
        flags |= libvirt.VIR_MIGRATE_PAUSED
    postcopy = options.slow is SlowMigration.POSTCOPY
    if postcopy and not (ticket.copy_storage or hold):
        flags |= libvirt.VIR_MIGRATE_POSTCOPY
    elif options.auto_converge and (postcopy or options.slow is SlowMigration.CONVERGE):
        flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
    if ticket.incremental:
        flags |= libvirt.VIR_MIGRATE_NON_SHARED_INC
    elif ticket.copy_storage:
        flags |= libvirt.VIR_MIGRATE_NON_SHARED_DISK
    elif options.method in (MigrationMethod.AUTO, MigrationMethod.FORCE_UNSAFE):
        # auto: the destination has proven that it sees the same files, which is more than libvirt
        # knows (it goes by the kind of file system, and calls a bind mount unsafe)
        flags |= libvirt.VIR_MIGRATE_UNSAFE
    return flags


def _say_where_it_is(
    connection: libvirt.virConnect, vm_id: str, name: str, error: libvirt.libvirtError
) -> None:
    """A migration failed: raise an error that says where the guest is.

    Raises:
        ExecutionError: it is still here.
        RemoteTimeout: it is not, so it may have arrived.
        libvirtError: if libvirt does not even answer that.
    """
    still = find(connection, vm_id)
    if still is not None and still.isActive():
        raise ExecutionError(f"VM {name!r} did not migrate and still runs here: {error}") from error
    raise RemoteTimeout(
        f"the migration of VM {name!r} failed, and it does not run here: {error}"
    ) from error


def finish_incoming(
    connection: libvirt.virConnect, workshop: Workshop, vm_id: str, ticket: MigrationTicket
) -> VmReport:
    """See the port."""
    domain = find(connection, vm_id)
    if domain is None:
        raise ExecutionError(f"VM {vm_id} has not arrived on {workshop.description.hostname}")
    tag = read_domain(domain.XMLDesc()).tag
    if tag is not None and tag.incoming:
        _start_arrived(domain, tag)
    present = report(domain)
    if present is None or present.state not in ACTIVE_STATES:
        raise ExecutionError(f"VM {vm_id} has not arrived on {workshop.description.hostname}")
    if ticket.live:
        workshop.images.room_is_taken(read_domain(present.xml).disks, vm_id)
    if tag is not None and tag.held:
        if present.state is VmState.PAUSED:
            domain.resume()
        write_tag(domain, replace(tag, held=False), _LIVE_AND_CONFIG)
    return present_report(domain)


def _start_arrived(domain: libvirt.virDomain, tag: VmTag) -> None:
    """Start a definition that arrived, in the state its guest had; the mark goes last."""
    if not domain.isActive():
        domain.create()
        if tag.incoming == VmState.PAUSED.value:
            domain.suspend()
    write_tag(domain, replace(tag, incoming=""), _LIVE_AND_CONFIG)


def abort_incoming(
    connection: libvirt.virConnect, workshop: Workshop, vm_id: str, ticket: MigrationTicket
) -> None:
    """See the port."""
    domain = find(connection, vm_id)
    if domain is not None:
        tag = read_domain(domain.XMLDesc()).tag
        if domain.isActive():
            present = report(domain)
            if present is None and ticket.live:
                raise Conflict(f"VM {vm_id} is still arriving; abort it at its source first")
            if tag is not None and tag.held and present and present.state is VmState.PAUSED:
                raise Conflict(f"VM {vm_id} has arrived, and waits: its source may have it still")
            return
        if tag is not None and tag.incoming:
            undefine(domain)
    if ticket.live:
        workshop.images.give_room_back(vm_id)


def progress(connection: libvirt.virConnect, vm_id: str) -> MigrationProgress | None:
    """How far it is, from libvirt's job statistics; None if no job is under way.

    Source: libvirt-domain.h, VIR_DOMAIN_JOB_*: times in ms, data in bytes, dirty rate in pages/s.
    """
    return _read_job(connection, vm_id, 0)


def arrival(connection: libvirt.virConnect, vm_id: str) -> MigrationProgress | None:
    """The statistics of the migration by which a VM came, as its source handed them over."""
    return _read_job(connection, vm_id, libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)


def _read_job(connection: libvirt.virConnect, vm_id: str, flags: int) -> MigrationProgress | None:
    domain = find(connection, vm_id)
    if domain is None:
        return None
    try:
        stats = domain.jobStats(flags)
    except libvirt.libvirtError as error:
        if is_code(error, libvirt.VIR_ERR_NO_SUPPORT):
            return None
        raise

    def number(key: str) -> int:
        value = stats.get(key, 0)
        return value if isinstance(value, int) else 0

    if number("type") == libvirt.VIR_DOMAIN_JOB_NONE:
        return None
    page_kib = (number("memory_page_size") or 4096) / 1024
    return MigrationProgress(
        vm_id,
        elapsed_ms=number("time_elapsed"),
        total_bytes=number("data_total"),
        processed_bytes=number("data_processed"),
        remaining_bytes=number("data_remaining"),
        dirty_kib_s=number("memory_dirty_rate") * page_kib,
        downtime_ms=number("downtime"),
        iteration=number("memory_iteration"),
    )


def abort_job(connection: libvirt.virConnect, vm_id: str) -> None:
    """Stop the migration of a VM, if one is under way."""
    domain = find(connection, vm_id)
    if domain is None:
        return
    try:
        domain.abortJob()
    except libvirt.libvirtError as error:
        log.info("nothing to abort", extra={"vm_id": vm_id, "reason": str(error)})


def cut_connections(connection: libvirt.virConnect, vm_id: str) -> int:
    """Have the qemu of a guest give up its connections for a migration under way; how many.

    For a destination that died owing an answer: qemu would wait for it for ever, and libvirt can
    stop nothing. The connections of the guest's own disks stay. Not for a guest that has begun to
    run at the destination (post-copy).

    Source: QEMU's QMP reference, "Yank feature".
    libvirt calls its nodes ``migration-DISK-storage``.

    Raises:
        libvirtError: this qemu cannot.
    """
    domain = find(connection, vm_id)
    if domain is None:
        return 0

    def ask(command: dict[str, object]) -> object:
        text = libvirt_qemu.qemuMonitorCommand(domain, json.dumps(command), 0)
        return msgspec.json.decode(text, type=_QmpAnswer).answer

    instances = [
        instance
        for instance in msgspec.convert(ask({"execute": "query-yank"}), list[dict[str, str]])
        if instance.get("type") == "migration"
        or instance.get("node-name", "").startswith("migration-")
    ]
    if instances:
        ask({"execute": "yank", "arguments": {"instances": instances}})
    return len(instances)


class _QmpAnswer(msgspec.Struct, frozen=True):
    """What a monitor says; an error is libvirt's to raise."""

    answer: object = msgspec.field(default=None, name="return")
