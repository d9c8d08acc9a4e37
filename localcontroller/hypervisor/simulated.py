"""The shipped fake: a hypervisor without guests, on a ``SimulatedWorld``.

It keeps every promise of the port, checks templates as libvirt's driver does, and costs next to
nothing, so that a thousand hosts live in one process.
"""

import asyncio
import uuid
from typing import Final

import msgspec

from snooze.common.domain_template import compose, read_template
from snooze.common.errors import (
    Conflict,
    ExecutionError,
    InvalidRequest,
    NotFound,
    RemoteError,
)
from snooze.common.resources import KIB_PER_MIB, Capacity
from snooze.common.template_policy import DEFAULT_POLICY, TemplatePolicy, judge
from snooze.common.usage import HostUsage, VmUsage
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import LooseDisk, MigrationProgress, MigrationTicket, VmReport, VmSpec
from snooze.localcontroller.domain_xml import check_spec
from snooze.localcontroller.hypervisor.port import (
    ChangeCallback,
    ChangeKind,
    ConnectionCallback,
    ConnectionChange,
    Feature,
    GuestSupport,
    HypervisorDescription,
    MigrationOffer,
    MigrationOptions,
    ProgressCallback,
    VmChange,
)
from snooze.localcontroller.hypervisor.simulated_world import (
    HostListener,
    SimulatedHost,
    SimulatedVm,
    SimulatedWorld,
)

_FEATURES: Final = frozenset({Feature.LIVE_MIGRATION, Feature.MEASURED_USAGE, Feature.SHARED_STATE})
_ACTIVE: Final = frozenset({VmState.RUNNING, VmState.PAUSED, VmState.MIGRATING})


class SimulatedHypervisor(HostListener):
    """A ``Hypervisor`` on one host of a simulated world."""

    def __init__(
        self,
        world: SimulatedWorld,
        hostname: str,
        capacity: Capacity | None = None,
        policy: TemplatePolicy = DEFAULT_POLICY,
        host_id: str = "",
    ) -> None:
        """``host_id``: what notes beside disks call this host."""
        self.world = world
        self._host_id = host_id or hostname
        self.host: SimulatedHost = world.host(hostname, capacity)
        self._policy = policy
        self._open = False
        self._change_callbacks: list[ChangeCallback] = []
        self._connection_callbacks: list[ConnectionCallback] = []

    def on_change(self, callback: ChangeCallback) -> None:
        """See the port."""
        self._change_callbacks.append(callback)

    def on_connection(self, callback: ConnectionCallback) -> None:
        """See the port."""
        self._connection_callbacks.append(callback)

    async def open(self) -> None:
        """See the port."""
        if not self.host.up:
            raise RemoteError(f"the hypervisor of {self.host.name} does not answer")
        if not self._open:
            self._open = True
            self.host.listeners.append(self)

    async def close(self) -> None:
        """See the port."""
        if self._open:
            self._open = False
            self.host.listeners.remove(self)

    async def describe(self) -> HypervisorDescription:
        """See the port."""
        self._check_connected()
        return HypervisorDescription(
            kind="simulated",
            version="1",
            uri=f"simulated://{self.host.name}",
            hostname=self.host.name,
            host_uuid=uuid.uuid5(uuid.NAMESPACE_DNS, f"{self.world.seed}.{self.host.name}").hex,
            guests=(GuestSupport("x86_64", "hvm", ("kvm", "qemu", "test"), machines=("pc",)),),
            features=_FEATURES,
        )

    async def capacity(self) -> Capacity:
        """See the port."""
        self._check_connected()
        return self.host.capacity

    async def inventory(self) -> list[VmReport]:
        """See the port."""
        self._check_connected()
        await self.world.work(self.host, "inventory")
        self._check_connected()
        return [_report(vm) for vm in self.host.vms.values()]

    async def start(self, spec: VmSpec) -> VmReport:
        """See the port."""
        self._check_connected()
        present = self._present(spec)
        if present is not None and present.state in _ACTIVE:
            return _report(present)
        if present is None or present.spec.generation < spec.generation:
            vm, former = self._make_vm(spec), None
            self.host.drop(spec.vm_id)
            self.host.put(vm)
            self._claim_disk(spec, used=False)
        else:
            vm, former = present, present.state
            vm.state = VmState.STARTING
        try:
            await self.world.work(self.host, "start")
            self._check_connected()
        except BaseException:
            self._did_not_start(vm, former)
            raise
        try:
            return self._started(vm)
        except ExecutionError:
            if former is None and self.host.vms.get(spec.vm_id) is vm:
                self._unmake(vm)
            raise

    def _did_not_start(self, vm: SimulatedVm, former: VmState | None) -> None:
        """What was made for it is unmade; a definition that was there stays as it was."""
        if vm.state is not VmState.STARTING or self.host.vms.get(vm.spec.vm_id) is not vm:
            return
        if former is None or former is VmState.STARTING:
            self._unmake(vm)
        else:
            vm.state = former

    def _unmake(self, vm: SimulatedVm) -> None:
        self.host.drop(vm.spec.vm_id)
        disk = self.host.disks.get(vm.spec.vm_id)
        if disk is not None and not disk.used:
            del self.host.disks[vm.spec.vm_id]

    def _started(self, vm: SimulatedVm) -> VmReport:
        """The guest runs, unless somebody was quicker."""
        if self.host.vms.get(vm.spec.vm_id) is not vm:
            raise ExecutionError(f"VM {vm.spec.name!r} was removed while it started")
        if vm.state is not VmState.STARTING and vm.state not in _ACTIVE:
            raise ExecutionError(f"VM {vm.spec.name!r} was switched off while it started")
        self._claim_disk(vm.spec, used=True)
        if vm.state not in _ACTIVE:
            self._enter(vm, VmState.RUNNING, ChangeKind.STARTED, "booted")
        return self._answer("start", vm)

    async def start_again(self, vm_id: str) -> VmReport:
        """See the port."""
        vm = self._managed(vm_id)
        if vm.state not in _ACTIVE:
            await self.world.work(self.host, "start_again")
            self._check_connected()
            if self.host.vms.get(vm_id) is not vm:
                raise NotFound(f"VM {vm.spec.name!r} was removed while it started")
            self._enter(vm, VmState.RUNNING, ChangeKind.STARTED, "booted")
        return self._answer("start_again", vm)

    async def suspend(self, vm_id: str) -> VmReport:
        """See the port."""
        return await self._switch(vm_id, "suspend", VmState.PAUSED, ChangeKind.PAUSED)

    async def resume(self, vm_id: str) -> VmReport:
        """See the port."""
        return await self._switch(vm_id, "resume", VmState.RUNNING, ChangeKind.RESUMED)

    async def shutdown(self, vm_id: str) -> VmReport:
        """See the port; the simulated guest obeys at once."""
        vm = self._managed(vm_id)
        if vm.state in _ACTIVE:
            self._check_settled(vm, "shut down")
            await self.world.work(self.host, "shutdown")
            self._check_connected()
            self._enter(vm, VmState.STOPPED, ChangeKind.STOPPED, "shutdown")
        return self._answer("shutdown", vm)

    async def reboot(self, vm_id: str) -> VmReport:
        """See the port."""
        vm = self._managed(vm_id)
        if vm.state is not VmState.RUNNING:
            raise Conflict(f"cannot reboot VM {vm.spec.name!r}: it is {vm.state.value}")
        await self.world.work(self.host, "reboot")
        self._check_connected()
        return self._answer("reboot", vm)

    async def destroy(self, vm_id: str) -> None:
        """See the port."""
        self._check_connected()
        if vm_id not in self.host.vms:
            self.host.disks.pop(vm_id, None)
            return
        vm = self._managed(vm_id)
        self._check_settled(vm, "destroy")
        await self.world.work(self.host, "destroy")
        self._check_connected()
        if self.host.vms.get(vm_id) is vm:
            if vm.state in _ACTIVE:
                self._enter(vm, VmState.STOPPED, ChangeKind.STOPPED, "destroyed")
            self.host.drop(vm_id)
            self.host.disks.pop(vm_id, None)
            vm.state = VmState.DESTROYED
            self._tell(vm, ChangeKind.GONE, "undefined")
        self._answer("destroy", vm)

    async def power_off(self, vm_id: str) -> VmReport:
        """See the port."""
        vm = self._managed(vm_id)
        if vm.state in _ACTIVE:
            await self.world.work(self.host, "power_off")
            self._check_connected()
            self._enter(vm, VmState.STOPPED, ChangeKind.STOPPED, "destroyed")
        return self._answer("power_off", vm)

    async def discard(
        self, vm_id: str, generation: int, *, only_off: bool = False
    ) -> VmReport | None:
        """See the port."""
        self._check_connected()
        if vm_id not in self.host.vms:
            return None
        vm = self._managed(vm_id)
        self._check_settled(vm, "discard")
        await self.world.work(self.host, "discard")
        self._check_connected()
        if vm.spec.generation > generation or (only_off and vm.state in _ACTIVE):
            return self._answer("discard", vm)
        if self.host.vms.get(vm_id) is vm:
            if vm.state in _ACTIVE:
                self._enter(vm, VmState.STOPPED, ChangeKind.STOPPED, "destroyed")
            self.host.drop(vm_id)
            vm.state = VmState.DESTROYED
            self._tell(vm, ChangeKind.GONE, "undefined")
        self._answer("discard", vm)
        return None

    async def resize(self, vm_id: str, demand: Capacity) -> VmReport:
        """See the port."""
        vm = self._managed(vm_id)
        vcpus, memory_kib = round(demand.cpu_cores), round(demand.memory_kib)
        if vcpus < 1 or memory_kib < 1 or vcpus > vm.max_vcpus or memory_kib > vm.max_memory_kib:
            raise InvalidRequest(
                f"VM {vm.spec.name!r} can have 1 to {vm.max_vcpus} vCPUs and 1 to "
                f"{vm.max_memory_kib} KiB, not {vcpus} and {memory_kib}"
            )
        await self.world.work(self.host, "resize")
        self._check_connected()
        whole = Capacity(vcpus, memory_kib, demand.rx_kib_s, demand.tx_kib_s)
        vm.spec = msgspec.structs.replace(vm.spec, demand=whole)
        return self._answer("resize", vm)

    async def offer(self, vm_id: str, options: MigrationOptions) -> MigrationOffer:
        """See the port."""
        vm = self._managed(vm_id)
        if vm.state not in _ACTIVE:
            raise Conflict(f"cannot migrate VM {vm.spec.name!r}: it is {vm.state.value}")
        token = f"{self.host.generator.getrandbits(64):016x}"
        source_uuid = (await self.describe()).host_uuid
        return MigrationOffer(_report(vm), token, options.method, source_uuid)

    async def prepare_incoming(self, offer: MigrationOffer) -> MigrationTicket:
        """See the port."""
        description = await self.describe()
        report = offer.report
        if offer.source_uuid == description.host_uuid:
            raise Conflict(f"VM {report.name!r} is already on {self.host.name}")
        if self.host.names.get(report.name) is not None:
            raise Conflict(f"there is already a VM named {report.name!r} on {self.host.name}")
        await self.world.work(self.host, "prepare_incoming")
        self._check_connected()
        self.host.incoming[offer.token] = report.vm_id
        return MigrationTicket(report.vm_id, description.uri, token=offer.token)

    async def migrate_out(
        self,
        vm_id: str,
        ticket: MigrationTicket,
        options: MigrationOptions,
        on_progress: ProgressCallback,
    ) -> None:
        """See the port."""
        self._check_connected()
        if vm_id not in self.host.vms:
            return
        vm = self._managed(vm_id)
        if vm.state not in _ACTIVE:
            raise Conflict(f"cannot migrate VM {vm.spec.name!r}: it is {vm.state.value}")
        self._check_settled(vm, "migrate")
        before, vm.state = vm.state, VmState.MIGRATING
        try:
            last = await self._stream(vm, options, on_progress)
            await self.world.work(self.host, "migrate_out")
            self._check_connected()
            if vm.state is not VmState.MIGRATING:
                raise ExecutionError(f"VM {vm.spec.name!r} stopped while it was migrating")
            if self.world.migrations_halt:
                self._enter(vm, VmState.PAUSED, ChangeKind.PAUSED, "migration")
                vm.halted = True
                raise ExecutionError(f"the migration of {vm.spec.name!r} stopped half-way")
            self._hand_over(vm, before, ticket, last)
        finally:
            if vm.state is VmState.MIGRATING:
                vm.state = before
        self._answer("migrate_out", vm)

    async def finish_incoming(self, vm_id: str, ticket: MigrationTicket) -> VmReport:
        """See the port."""
        self._check_connected()
        await self.world.work(self.host, "finish_incoming")
        self._check_connected()
        vm = self.host.vms.get(vm_id)
        if vm is None or vm.state not in _ACTIVE:
            raise ExecutionError(f"VM {vm_id} has not arrived on {self.host.name}")
        self.host.incoming.pop(ticket.token, None)
        self._claim_disk(vm.spec, used=True)
        return self._answer("finish_incoming", vm)

    async def abort_incoming(self, vm_id: str, ticket: MigrationTicket) -> None:
        """See the port."""
        self._check_connected()
        self.host.incoming.pop(ticket.token, None)

    async def arrival(self, vm_id: str) -> MigrationProgress | None:
        """See the port."""
        self._check_connected()
        return self.host.arrivals.get(vm_id)

    async def loose_disks(self) -> list[LooseDisk]:
        """See the port."""
        self._check_connected()
        loose = [d for vm_id, d in self.host.disks.items() if vm_id not in self.host.vms]
        for disk in loose:
            if not disk.used:
                del self.host.disks[disk.vm_id]
        return [disk for disk in loose if disk.used]

    async def drop_disk(self, disk: LooseDisk, idle_s: float) -> None:
        """See the port."""
        self._check_connected()
        present = self.host.disks.get(disk.vm_id)
        if present is None:
            return
        idle_ms = self.world.clock.wall_ms() - present.changed_ms
        if disk.vm_id in self.host.vms or present != disk or idle_ms < idle_s * 1000:
            raise Conflict(f"the disk of VM {disk.vm_id} is in use on {self.host.name}")
        await self.world.work(self.host, "drop_disk")
        self.host.disks.pop(disk.vm_id, None)

    def _claim_disk(self, spec: VmSpec, *, used: bool) -> None:
        if spec.image:
            known = self.host.disks.get(spec.vm_id)
            now_ms = self.world.clock.wall_ms()
            used = used or (known is not None and known.used)
            disk = LooseDisk(spec.vm_id, spec.generation, self._host_id, now_ms, 0, used)
            self.host.disks[spec.vm_id] = disk

    async def usage(self) -> HostUsage:
        """See the port."""
        self._check_connected()
        await self.world.work(self.host, "usage")
        self._check_connected()
        taken_ms = self.world.clock.wall_ms()
        samples = [
            VmUsage(
                vm_id,
                taken_ms,
                Capacity(memory_kib=vm.spec.demand.memory_kib)
                if vm.state is VmState.PAUSED
                else self.world.load_of(vm),
            )
            for vm_id, vm in self.host.vms.items()
            if vm.state in _ACTIVE
        ]
        return HostUsage(samples)

    def connection_changed(self, connected: bool, reason: str) -> None:
        """Pass on what the host says of its connection."""
        change = ConnectionChange(connected, reason)
        for callback in self._connection_callbacks:
            callback(change)

    def vm_crashed(self, vm: SimulatedVm) -> None:
        """Pass on the crash."""
        self._call_back(vm, ChangeKind.CRASHED)

    def vm_stopped(self, vm: SimulatedVm) -> None:
        """Pass on that the guest switched itself off."""
        self._call_back(vm, ChangeKind.STOPPED)

    def _check_connected(self) -> None:
        if not self._open:
            raise RemoteError(f"the connection to {self.host.name} is closed")
        if not self.host.up:
            raise RemoteError(f"the hypervisor of {self.host.name} does not answer")

    def _managed(self, vm_id: str) -> SimulatedVm:
        self._check_connected()
        vm = self.host.vms.get(vm_id)
        if vm is None:
            raise NotFound(f"no VM {vm_id} on {self.host.name}")
        if not vm.managed:
            raise Conflict(f"domain {vm.spec.name!r} is not managed by us")
        return vm

    def _check_settled(self, vm: SimulatedVm, what: str) -> None:
        if vm.state is VmState.MIGRATING:
            raise Conflict(f"cannot {what} VM {vm.spec.name!r}: it is migrating")

    def _present(self, spec: VmSpec) -> SimulatedVm | None:
        """This VM if an earlier call left it here.

        Raises:
            Conflict: if the name is another's, or another generation forbids the start.
        """
        holder = self.host.names.get(spec.name)
        if holder is not None and holder != spec.vm_id:
            raise Conflict(f"there is already a VM named {spec.name!r} on {self.host.name}")
        vm = self.host.vms.get(spec.vm_id)
        if vm is None:
            return None
        present = vm.spec.generation
        if not vm.managed or present > spec.generation:
            raise Conflict(f"VM {spec.name!r} is here with generation {present}, which is higher")
        if present < spec.generation and vm.state in _ACTIVE:
            raise Conflict(f"VM {spec.name!r} still runs here with generation {present}")
        return vm

    def _make_vm(self, spec: VmSpec) -> SimulatedVm:
        check_spec(spec)
        xml = spec.libvirt_xml or compose(
            spec.name, spec.vcpus, spec.memory_kib, spec.image, mac_address=spec.mac_address
        )
        template = read_template(xml)
        problems = judge(template, self._policy)
        if problems:
            message = "; ".join(problem.message for problem in problems)
            raise InvalidRequest(f"the template is not allowed: {message}", problems=problems)
        macs = [nic.mac_address for nic in template.interfaces]
        return SimulatedVm(
            spec,
            VmState.STARTING,
            xml,
            self.world.clock.monotonic_s(),
            mac_address=spec.mac_address or next(iter(macs), ""),
            max_vcpus=max(template.max_vcpus, spec.vcpus),
            max_memory_kib=max(template.memory_kib, spec.memory_kib),
        )

    async def _switch(self, vm_id: str, method: str, target: VmState, kind: ChangeKind) -> VmReport:
        vm = self._managed(vm_id)
        if vm.state is not target:
            if vm.state not in (VmState.RUNNING, VmState.PAUSED):
                raise Conflict(f"cannot {method} VM {vm.spec.name!r}: it is {vm.state.value}")
            await self.world.work(self.host, method)
            self._check_connected()
            if vm.state in (VmState.RUNNING, VmState.PAUSED):
                self._enter(vm, target, kind, "by order")
        return self._answer(method, vm)

    async def _stream(
        self, vm: SimulatedVm, options: MigrationOptions, on_progress: ProgressCallback
    ) -> MigrationProgress:
        """Let the memory travel, within the time-out; the last report."""
        last = MigrationProgress(vm.spec.vm_id)
        settings = self.world.settings
        rate_kib_s = settings.migration_kib_s
        if options.bandwidth_mib_s:
            rate_kib_s = min(rate_kib_s, float(options.bandwidth_mib_s * KIB_PER_MIB))
        total = round(vm.spec.demand.memory_kib) * 1024
        step_s = total / 1024 / rate_kib_s / settings.migration_steps
        for step in range(1, settings.migration_steps + 1):
            if step * step_s > options.timeout_s:
                raise ExecutionError(
                    f"the migration of {vm.spec.name!r} took longer than {options.timeout_s:g} s "
                    "and was aborted; it still runs where it was"
                )
            await self.world.sleep(step_s)
            self._check_connected()
            if vm.state is not VmState.MIGRATING:
                raise ExecutionError(f"VM {vm.spec.name!r} stopped while it was migrating")
            done = total * step // settings.migration_steps
            last = MigrationProgress(
                vm.spec.vm_id,
                elapsed_ms=round(step * step_s * 1000),
                total_bytes=total,
                processed_bytes=done,
                remaining_bytes=total - done,
                downtime_ms=settings.downtime_ms,
                iteration=1,
            )
            on_progress(last)
        return last

    def _hand_over(
        self, vm: SimulatedVm, state: VmState, ticket: MigrationTicket, last: MigrationProgress
    ) -> None:
        """The instant at which the guest is no longer here but there."""
        target = self.world.find(ticket.uri.removeprefix("simulated://"))
        if target is None or not target.up or ticket.token not in target.incoming:
            raise ExecutionError(
                f"the destination of {vm.spec.name!r} is not ready; it still runs where it was"
            )
        self.host.drop(vm.spec.vm_id)
        vm.state = state
        target.put(vm)
        disk = self.host.disks.pop(vm.spec.vm_id, None)
        if disk is not None:
            target.disks[vm.spec.vm_id] = disk
        target.arrivals[vm.spec.vm_id] = last
        self._tell(vm, ChangeKind.MIGRATED_AWAY, "migrated")
        for listener in tuple(target.listeners):
            if isinstance(listener, SimulatedHypervisor):
                listener._call_back(vm, ChangeKind.STARTED)

    def _enter(self, vm: SimulatedVm, state: VmState, kind: ChangeKind, reason: str) -> None:
        vm.state, vm.reason, vm.interrupted, vm.halted = state, "", False, False
        self._tell(vm, kind, reason)

    def _tell(self, vm: SimulatedVm, kind: ChangeKind, reason: str) -> None:
        for listener in tuple(self.host.listeners):
            if isinstance(listener, SimulatedHypervisor):
                listener._call_back(vm, kind, reason)

    def _call_back(self, vm: SimulatedVm, kind: ChangeKind, reason: str = "") -> None:
        if not self._change_callbacks:
            return
        state = VmState.DESTROYED if kind is ChangeKind.MIGRATED_AWAY else vm.state
        change = VmChange(vm.spec.vm_id, vm.spec.name, kind, state, vm.managed, reason or vm.reason)
        loop = asyncio.get_running_loop()
        for callback in self._change_callbacks:
            loop.call_soon(callback, change)

    def _answer(self, method: str, vm: SimulatedVm) -> VmReport:
        """The report, or the error that was ordered for after the work."""
        error = self.host.take_failure(method, after=True)
        if error is not None:
            raise error
        return _report(vm)


def _report(vm: SimulatedVm) -> VmReport:
    spec = vm.spec
    return VmReport(
        spec.vm_id,
        spec.name,
        vm.state,
        spec.demand,
        spec.generation,
        vm.managed,
        spec.ip_address,
        vm.mac_address,
        spec.image,
        vm.xml,
        vm.reason,
        spec.policy,
        interrupted=vm.interrupted,
        halted=vm.halted,
    )
