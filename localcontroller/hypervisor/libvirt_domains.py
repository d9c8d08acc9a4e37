"""What the driver does with domains, one blocking function per order.

Everything here runs in a worker thread and raises libvirt's errors as they are, or ours where we
know better. Nothing is kept between calls: libvirt is the only memory, so that a driver that died
at any line is continued by the next one.
"""

import logging
import uuid
from dataclasses import dataclass, replace
from typing import Final

import libvirt
import msgspec
from lxml import etree

from snooze.common.domain_template import Element, attribute, child_text, compose, read_template
from snooze.common.errors import (
    Conflict,
    ExecutionError,
    InvalidRequest,
    NotFound,
    RemoteTimeout,
    SnoozeError,
)
from snooze.common.resources import KIB_PER_MIB, Capacity
from snooze.common.template_policy import judge
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import DEFAULT_POLICY, VmReport, VmSpec
from snooze.localcontroller.domain_xml import (
    METADATA_PREFIX,
    DomainFacts,
    VmTag,
    adapt,
    check_spec,
    padded_mac,
    read_domain,
)
from snooze.localcontroller.hypervisor.libvirt_connection import has_job, is_code, translate
from snooze.localcontroller.hypervisor.libvirt_options import LibvirtOptions
from snooze.localcontroller.hypervisor.port import (
    METADATA_NAMESPACE,
    Feature,
    GuestSupport,
    HypervisorDescription,
)
from snooze.localcontroller.images import ImageStore

log = logging.getLogger(__name__)

# Source: libvirt-domain.h, virDomainState and its reasons.
_STATES: Final[dict[int, VmState]] = {
    0: VmState.RUNNING,
    1: VmState.RUNNING,
    2: VmState.RUNNING,
    3: VmState.PAUSED,
    4: VmState.STOPPING,
    5: VmState.STOPPED,
    6: VmState.FAILED,
    7: VmState.PAUSED,
}
_PAUSED, _SHUTOFF = 3, 5
_PAUSED_MIGRATION, _PAUSED_STARTING_UP = 2, 11
_SHUTOFF_REASONS: Final = {
    1: "shutdown",
    2: "destroyed",
    3: "crashed",
    4: "migrated",
    5: "saved",
    6: "failed",
    7: "from snapshot",
    8: "daemon",
}
_SHUTOFF_FAILURES: Final = (3, 6)
_SHUTOFF_UNASKED: Final = (0, 3, 8)
"""libvirt does not know why (it was not running then: its host went down), or found no process.

Source: qemuProcessReconnect; a live crash is heard of as an event, which is not this.
"""

ACTIVE_STATES: Final = frozenset({VmState.RUNNING, VmState.PAUSED, VmState.STOPPING})


@dataclass(frozen=True, slots=True)
class Workshop:
    """What the functions here work with, besides a connection."""

    options: LibvirtOptions
    description: HypervisorDescription
    images: ImageStore

    @property
    def has_real_disks(self) -> bool:
        """Whether disks are opened here."""
        return Feature.REAL_DISKS in self.description.features


def describe(connection: libvirt.virConnect, uri: str) -> HypervisorDescription:
    """What this libvirt is, from its capabilities."""
    root = etree.fromstring(connection.getCapabilities().encode())
    kind = connection.getType().lower()
    native = child_text(root, "host/cpu/arch")
    guests = [_read_guest(guest) for guest in root.iterfind("guest")]
    guests.sort(key=lambda guest: (guest.arch != native, guest.os_type != "hvm"))
    features: set[Feature] = set()
    if kind != "test":
        features |= {Feature.LIVE_MIGRATION, Feature.MEASURED_USAGE, Feature.REAL_DISKS}
    if kind != "test" or "+" in uri.partition(":")[0]:
        features.add(Feature.SHARED_STATE)
    version = connection.getVersion()
    return HypervisorDescription(
        kind=kind,
        version=f"{version // 1000000}.{version // 1000 % 1000}.{version % 1000}",
        uri=connection.getURI(),
        hostname=connection.getHostname(),
        host_uuid=child_text(root, "host/uuid").replace("-", ""),
        guests=tuple(guests),
        features=frozenset(features),
    )


def _read_guest(guest: Element) -> GuestSupport:
    arch = guest.find("arch")
    if arch is None:
        return GuestSupport("")
    types = [attribute(domain, "type") for domain in arch.iterfind("domain")]
    types.sort(key=lambda kind: kind != "kvm")
    return GuestSupport(
        arch=attribute(arch, "name"),
        os_type=child_text(guest, "os_type"),
        domain_types=tuple(types),
        emulator=child_text(arch, "emulator"),
        machines=tuple((machine.text or "").strip() for machine in arch.iterfind("machine")),
    )


def capacity(connection: libvirt.virConnect) -> Capacity:
    """Cores and memory of the machine.

    ``getInfo`` counts the memory of one NUMA node where the kernel shows only that:
    ``getMemoryStats`` is right, where the driver has it.
    """
    info = connection.getInfo()
    memory_kib = float(info[1] * KIB_PER_MIB)
    try:
        stats = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
        memory_kib = float(stats.get("total", 0)) or memory_kib
    except libvirt.libvirtError as error:
        if not is_code(error, libvirt.VIR_ERR_NO_SUPPORT):
            raise
    return Capacity(float(info[2]), memory_kib)


def inventory(connection: libvirt.virConnect) -> list[VmReport]:
    """Every domain, except those that are still arriving."""
    reports: list[VmReport] = []
    for domain in connection.listAllDomains():
        try:
            found = report(domain)
        except libvirt.libvirtError as error:
            if is_code(error, libvirt.VIR_ERR_NO_DOMAIN):
                continue  # it went while we looked
            raise
        if found is not None:
            reports.append(found)
    return reports


def report(domain: libvirt.virDomain) -> VmReport | None:
    """What is to be said of a domain; None while it is still arriving."""
    number, why = domain.state()[:2]
    if (number, why) == (_PAUSED, _PAUSED_MIGRATION) and not domain.isPersistent():
        return None
    xml = domain.XMLDesc()
    facts = read_domain(xml)
    if facts.tag is not None and facts.tag.incoming:
        return None
    state, reason = _STATES.get(number, VmState.RUNNING), ""
    if (number, why) == (_PAUSED, _PAUSED_STARTING_UP):
        state = VmState.STARTING
    if number == _SHUTOFF:
        reason = _SHUTOFF_REASONS.get(why, "")
        if why in _SHUTOFF_FAILURES:
            state = VmState.FAILED
    interrupted = number == _SHUTOFF and why in _SHUTOFF_UNASKED
    found = as_report(facts, state, xml, reason, interrupted=interrupted)
    if state is VmState.PAUSED and facts.tag is not None:
        halted = facts.tag.held or why == _PAUSED_MIGRATION
        if halted and not has_job(domain):
            return msgspec.structs.replace(found, halted=True)
    return found


def as_report(
    facts: DomainFacts, state: VmState, xml: str, reason: str = "", *, interrupted: bool = False
) -> VmReport:
    """A report from what a definition says."""
    tag = facts.tag
    return VmReport(
        vm_id=facts.vm_id,
        name=facts.name,
        state=state,
        demand=facts.demand,
        generation=tag.generation if tag else 1,
        managed=tag is not None,
        ip_address=tag.ip_address if tag else "",
        mac_address=(tag.mac_address if tag else "") or facts.mac_address,
        image=tag.image if tag else "",
        xml=xml,
        reason=reason,
        policy=tag.policy if tag else DEFAULT_POLICY,
        interrupted=interrupted and tag is not None,
    )


def with_state(present: VmReport, state: VmState) -> VmReport:
    """The same report with another state."""
    return msgspec.structs.replace(present, state=state)


def find(connection: libvirt.virConnect, vm_id: str) -> libvirt.virDomain | None:
    """The domain of this VM, managed or not, if it is here.

    Raises:
        NotFound: if that can be no VM's identity.
    """
    try:
        text = str(uuid.UUID(hex=vm_id))
    except ValueError:
        raise NotFound(f"{vm_id[:40]!r} is no VM id") from None
    try:
        return connection.lookupByUUIDString(text)
    except libvirt.libvirtError as error:
        if is_code(error, libvirt.VIR_ERR_NO_DOMAIN):
            return None
        raise


def managed(connection: libvirt.virConnect, vm_id: str) -> tuple[libvirt.virDomain, VmReport]:
    """A domain that we may give orders.

    Raises:
        NotFound: if it is not here, or not yet.
        Conflict: if it is not ours.
    """
    domain = find(connection, vm_id)
    present = None if domain is None else report(domain)
    if domain is None or present is None:
        raise NotFound(f"no VM {vm_id} on this host")
    if not present.managed:
        raise Conflict(f"domain {present.name!r} is not managed by us")
    return domain, present


def start(connection: libvirt.virConnect, workshop: Workshop, spec: VmSpec) -> VmReport:
    """See the port: define and start, or find it done, or complete it."""
    check_spec(spec)
    domain = find(connection, spec.vm_id)
    if domain is not None:
        present = report(domain)
        if present is None:
            raise Conflict(f"VM {spec.name!r} is arriving here by a migration")
        _check_generation(present, spec)
        if present.state in ACTIVE_STATES:
            return present
        if present.generation == spec.generation:
            claim_disk(workshop, present)
            domain.create()
            return present_report(domain)
        undefine(domain)  # of an earlier life on this host
    check_name_is_free(connection, spec.name, spec.vm_id)
    return _start_new(connection, workshop, spec)


def _check_generation(present: VmReport, spec: VmSpec) -> None:
    if not present.managed:
        raise Conflict(f"domain {present.name!r} has the UUID of VM {spec.name!r}, and is not ours")
    if present.generation > spec.generation:
        raise Conflict(
            f"VM {spec.name!r} is here with generation {present.generation}, "
            f"which is higher than {spec.generation}"
        )
    if present.generation < spec.generation and present.state in ACTIVE_STATES:
        raise Conflict(f"VM {spec.name!r} still runs here with generation {present.generation}")


def check_name_is_free(connection: libvirt.virConnect, name: str, vm_id: str) -> None:
    """Refuse a name that belongs to another domain.

    Raises:
        Conflict: naming it.
    """
    try:
        holder = connection.lookupByName(name)
    except libvirt.libvirtError as error:
        if is_code(error, libvirt.VIR_ERR_NO_DOMAIN):
            return
        raise
    if holder.UUIDString().replace("-", "") != vm_id:
        raise Conflict(
            f"there is already a domain named {name!r} on this host, with UUID "
            f"{holder.UUIDString()}"
        )


def _start_new(connection: libvirt.virConnect, workshop: Workshop, spec: VmSpec) -> VmReport:
    """Define and start; if it fails what was made is unmade. RemoteTimeout: it may be on."""
    had_disk = bool(spec.image) and workshop.images.has_disk(spec.vm_id)
    domain: libvirt.virDomain | None = None
    try:
        xml = definition(workshop, spec)
        if workshop.has_real_disks:
            workshop.images.check_disks(read_domain(xml).files)
        domain = connection.defineXML(xml)
        if spec.image and workshop.has_real_disks:
            workshop.images.claim(spec.vm_id, spec.generation, used=True)
        domain.create()
        return present_report(domain)
    except (libvirt.libvirtError, SnoozeError) as error:
        if domain is not None and _is_active(domain):
            return present_report(domain)  # somebody else started it while we were at it
        left = "" if domain is None else _try_to_undefine(domain)
        if spec.image and not had_disk and workshop.has_real_disks and not left:
            workshop.images.remove_disk(spec.vm_id)
        if left and not is_off(connection, spec.vm_id):
            raise RemoteTimeout(f"VM {spec.name!r} may be on: {error}; {left}") from error
        if isinstance(error, SnoozeError):
            raise
        ours = _translate_start(error, f"start VM {spec.name!r}")
        if left:
            raise ExecutionError(f"{ours.message}; {left}") from error
        raise ours from error


def _translate_start(error: libvirt.libvirtError, what: str) -> SnoozeError:
    ours = translate(error, what)
    if is_code(error, libvirt.VIR_ERR_OPERATION_FAILED) and "already" in ours.message:
        return Conflict(ours.message)  # somebody took the name while we were at it
    return ours


def definition(workshop: Workshop, spec: VmSpec) -> str:
    """What libvirt is to define for ``spec``, its own disk made.

    Raises:
        InvalidRequest, NotFound, ExecutionError: as templates and images can be wrong.
    """
    disk_path = ""
    if spec.image:
        disk_path = workshop.images.disk_path(spec.vm_id)
    mac = padded_mac(spec.mac_address) if spec.mac_address else ""
    text = spec.libvirt_xml or compose(
        spec.name, spec.vcpus, spec.memory_kib, disk_path, mac_address=mac
    )
    template = read_template(text)
    problems = judge(template, workshop.options.policy)
    if problems:
        message = "; ".join(problem.message for problem in problems)
        raise InvalidRequest(f"the template is not allowed: {message}", problems=problems)
    if spec.image and workshop.has_real_disks:
        workshop.images.create_disk(spec.vm_id, spec.image, spec.generation)
    return adapt(template, spec, workshop.description, workshop.options.adapt, disk_path)


def present_report(domain: libvirt.virDomain) -> VmReport:
    """The report of a domain that is known to be here."""
    found = report(domain)
    if found is None:
        raise NotFound(f"domain {domain.name()!r} is arriving here by a migration")
    return found


def start_again(connection: libvirt.virConnect, workshop: Workshop, vm_id: str) -> VmReport:
    """See the port."""
    domain, present = managed(connection, vm_id)
    if present.state in ACTIVE_STATES:
        return present
    if workshop.has_real_disks:
        workshop.images.check_disks(read_domain(present.xml).files)
    claim_disk(workshop, present)
    domain.create()
    return present_report(domain)


def claim_disk(workshop: Workshop, present: VmReport) -> None:
    """Have the note beside the disk made for a VM, if it has one, say that it is started here.

    Raises:
        ExecutionError: it cannot be noted: then it must not be started.
    """
    if workshop.has_real_disks and workshop.images.has_disk(present.vm_id):
        workshop.images.claim(present.vm_id, present.generation, used=True)


def suspend(connection: libvirt.virConnect, vm_id: str) -> VmReport:
    """See the port."""
    domain, present = managed(connection, vm_id)
    if present.state is VmState.PAUSED:
        _wait_no_more(domain, present)
        return present_report(domain)
    _check_state(present, "suspend", VmState.RUNNING)
    domain.suspend()
    return present_report(domain)


def _wait_no_more(domain: libvirt.virDomain, present: VmReport) -> None:
    """Somebody has said what it is to do: it waits for nobody's word after its migration."""
    tag = read_domain(present.xml).tag
    if tag is not None and tag.held:
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
        write_tag(domain, replace(tag, held=False), flags)


def resume(connection: libvirt.virConnect, vm_id: str) -> VmReport:
    """See the port."""
    domain, present = managed(connection, vm_id)
    if present.state is VmState.RUNNING:
        return present
    _check_state(present, "resume", VmState.PAUSED)
    domain.resume()
    _wait_no_more(domain, present)
    return present_report(domain)


def shutdown(connection: libvirt.virConnect, vm_id: str) -> VmReport:
    """See the port."""
    domain, present = managed(connection, vm_id)
    if present.state not in ACTIVE_STATES:
        return present
    _check_state(present, "shut down", VmState.RUNNING, VmState.STOPPING)
    domain.shutdown()
    return present_report(domain)


def reboot(connection: libvirt.virConnect, vm_id: str) -> VmReport:
    """See the port: a guest without ACPI has no power button, it is reset."""
    domain, present = managed(connection, vm_id)
    _check_state(present, "reboot", VmState.RUNNING)
    if read_domain(present.xml).has_acpi:
        domain.reboot()
    else:
        try:
            domain.reset()
        except libvirt.libvirtError as error:
            if not is_code(error, libvirt.VIR_ERR_NO_SUPPORT):
                raise
            domain.reboot()
    return present_report(domain)


def destroy(connection: libvirt.virConnect, workshop: Workshop, vm_id: str) -> None:
    """See the port."""
    domain = find(connection, vm_id)
    if domain is not None:
        present = report(domain)
        if present is None:
            raise Conflict(f"VM {vm_id} is arriving here by a migration")
        if not present.managed:
            raise Conflict(f"domain {present.name!r} is not managed by us")
        if present.state in ACTIVE_STATES:
            _switch_off(domain)
        undefine(domain)
    if workshop.options.remove_disks and workshop.has_real_disks:
        workshop.images.remove_disk(vm_id)


def power_off(connection: libvirt.virConnect, vm_id: str) -> VmReport:
    """See the port."""
    domain, present = managed(connection, vm_id)
    if present.state in ACTIVE_STATES:
        _switch_off(domain)
    return present_report(domain)


def discard(
    connection: libvirt.virConnect, vm_id: str, generation: int, *, only_off: bool
) -> VmReport | None:
    """See the port."""
    domain = find(connection, vm_id)
    if domain is None:
        return None
    present = report(domain)
    if present is None:
        raise Conflict(f"VM {vm_id} is arriving here by a migration")
    if not present.managed:
        raise Conflict(f"domain {present.name!r} is not managed by us")
    if present.generation > generation:
        return present
    if present.state in ACTIVE_STATES:
        if only_off:
            return present
        _switch_off(domain)
    undefine(domain)
    return None


def resize(connection: libvirt.virConnect, vm_id: str, demand: Capacity) -> VmReport:
    """See the port."""
    vcpus, memory_kib = round(demand.cpu_cores), round(demand.memory_kib)
    domain, present = managed(connection, vm_id)
    facts = read_domain(present.xml)
    if not (1 <= vcpus <= facts.max_vcpus and 1 <= memory_kib <= facts.max_memory_kib):
        raise InvalidRequest(
            f"VM {present.name!r} can have 1 to {facts.max_vcpus} vCPUs and 1 to "
            f"{facts.max_memory_kib} KiB, not {vcpus} and {memory_kib}"
        )
    flags = [libvirt.VIR_DOMAIN_AFFECT_CONFIG]
    if present.state in ACTIVE_STATES:
        flags.insert(0, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    for flag in flags:  # one after the other: the test driver takes no two at once
        if vcpus != facts.vcpus:
            domain.setVcpusFlags(vcpus, flag)
        if memory_kib != facts.memory_kib:
            domain.setMemoryFlags(memory_kib, flag)
    if facts.tag is not None:
        whole = Capacity(float(vcpus), float(memory_kib), demand.rx_kib_s, demand.tx_kib_s)
        for flag in flags:
            write_tag(domain, replace(facts.tag, demand=whole), flag)
    return present_report(domain)


def write_tag(domain: libvirt.virDomain, tag: VmTag, flags: int) -> None:
    """Replace our element in a domain's metadata."""
    domain.setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT,
        tag.as_text(),
        METADATA_PREFIX,
        METADATA_NAMESPACE,
        flags,
    )


def _check_state(present: VmReport, what: str, *allowed: VmState) -> None:
    if present.state not in allowed:
        raise Conflict(f"cannot {what} VM {present.name!r}: it is {present.state.value}")


def _switch_off(domain: libvirt.virDomain) -> None:
    try:
        domain.destroy()
    except libvirt.libvirtError as error:
        if not is_code(error, libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
            raise  # else it went off by itself


def undefine(domain: libvirt.virDomain) -> None:
    """Undefine a domain and all that libvirt keeps for it; already gone is fine."""
    everything = (
        libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    )
    try:
        try:
            domain.undefineFlags(everything)
        except libvirt.libvirtError as error:
            if not is_code(
                error, libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED
            ):
                raise
            domain.undefineFlags(0)
    except libvirt.libvirtError as error:
        if not is_code(error, libvirt.VIR_ERR_NO_DOMAIN):
            raise


def _is_active(domain: libvirt.virDomain) -> bool:
    try:
        return domain.isActive() == 1
    except libvirt.libvirtError:
        return False


def is_off(connection: libvirt.virConnect, vm_id: str) -> bool:
    """Whether libvirt says that a VM is not here, or not on."""
    try:
        domain = find(connection, vm_id)
        return domain is None or domain.isActive() == 0
    except libvirt.libvirtError:
        return False


def _try_to_undefine(domain: libvirt.virDomain) -> str:
    """Undo a definition whose start failed; what is left, if that fails too."""
    try:
        _switch_off(domain)
        undefine(domain)
    except libvirt.libvirtError as error:
        log.warning("a definition is left", extra={"vm": domain.name(), "reason": str(error)})
        return f"and its definition is left: {error}"
    return ""


def remove_from_source(domain: libvirt.virDomain) -> None:
    """Switch off and undefine: the VM lives elsewhere now."""
    _switch_off(domain)
    undefine(domain)
