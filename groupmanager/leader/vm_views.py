"""One VM in its forms: the leader's entry, the record, the order to start it."""

from snooze.common.records import VmRecord, unpack_template
from snooze.common.resources import ZERO
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmSpec
from snooze.common.wire import VmStatus
from snooze.groupmanager.leader.registry import VmEntry


def spec_of(vm: VmEntry) -> VmSpec:
    """What a host needs to start it."""
    return VmSpec(
        vm_id=vm.vm_id,
        name=vm.name,
        demand=vm.demand,
        generation=vm.generation,
        libvirt_xml=unpack_template(vm.template),
        image=vm.image,
        ip_address=vm.ip_address,
        mac_address=vm.mac_address,
        policy=vm.policy,
    )


def record_of(vm: VmEntry) -> VmRecord:
    """What the store keeps of it."""
    return VmRecord(
        vm_id=vm.vm_id,
        name=vm.name,
        demand=vm.demand,
        state=vm.state,
        task_id=vm.task_id,
        generation=vm.generation,
        template=vm.template,
        image=vm.image,
        ip_address=vm.ip_address,
        mac_address=vm.mac_address,
        virtual_cluster=vm.virtual_cluster,
        pin_host=vm.pin_host,
        pin_manager=vm.pin_manager,
        manager_id=vm.manager_id if vm.state is not VmState.PENDING else "",
        host_id=vm.host_id,
        policy=vm.policy,
        restarts_ms=vm.restarts_ms,
        highest=vm.highest,
        left=vm.left,
        moved_ms=vm.moved_ms,
        stuck_ms=vm.stuck_ms,
    )


def tombstone_of(vm: VmEntry) -> VmRecord:
    """What the store keeps of a VM that is gone and may have left copies."""
    return VmRecord(
        vm_id=vm.vm_id,
        name=vm.name,
        demand=ZERO,
        state=VmState.DESTROYED,
        task_id=vm.task_id,
        generation=max(vm.generation, vm.highest),
    )


def status_of(vm: VmEntry) -> VmStatus:
    """What was last heard of it, as its manager told it."""
    return VmStatus(
        vm_id=vm.vm_id,
        name=vm.name,
        state=vm.state,
        demand=vm.demand,
        host_id=vm.host_id,
        generation=vm.generation,
        managed=vm.managed,
        ip_address=vm.ip_address,
        mac_address=vm.mac_address,
        image=vm.image,
        reason=vm.reason,
        policy=vm.policy,
    )


def entry_of(record: VmRecord, now_s: float) -> VmEntry:
    """The VM again, as a new leader finds it."""
    return VmEntry(
        vm_id=record.vm_id,
        name=record.name,
        demand=record.demand,
        state=record.state,
        task_id=record.task_id,
        generation=record.generation,
        virtual_cluster=record.virtual_cluster,
        image=record.image,
        template=record.template,
        ip_address=record.ip_address,
        mac_address=record.mac_address,
        pin_host=record.pin_host,
        pin_manager=record.pin_manager,
        manager_id=record.manager_id,
        host_id=record.host_id,
        waits_s=now_s,
        recorded=(record.state, record.host_id, record.generation),
        policy=record.policy,
        restarts_ms=record.restarts_ms,
        highest=record.highest,
        left=record.left,
        moved_ms=record.moved_ms,
        stuck_ms=record.stuck_ms,
        was=record.state,
    )


def adopted(status: VmStatus, now_s: float) -> VmEntry:
    """A VM of which only its manager knows; its state is taken from the report next."""
    return VmEntry(
        vm_id=status.vm_id,
        name=status.name,
        demand=status.demand,
        state=VmState.PENDING,
        task_id=status.cause if status.managed else "",
        generation=status.generation,
        managed=status.managed,
        image=status.image,
        ip_address=status.ip_address,
        mac_address=status.mac_address,
        host_id=status.host_id,
        waits_s=now_s,
        policy=status.policy,
    )
