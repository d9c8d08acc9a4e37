"""What orders mean for a host, and which changes of a VM are worth a word; plain functions."""

from snooze.common.vm_lifecycle import VmCommand
from snooze.common.vms import VmReport
from snooze.common.wire import CommandVm, FinishIncoming, HostOrder, PrepareIncoming, StartVm


def differs(former: VmReport, report: VmReport) -> bool:
    """Whether a manager would want to hear of it; the XML may change its order by itself."""
    return _telling(former) != _telling(report)


def _telling(report: VmReport) -> tuple[object, ...]:
    place = report.name, report.generation, report.demand
    return *place, report.state, report.fenced, report.halted


def brings_in(order: HostOrder) -> bool:
    """Whether a VM is on here afterwards that may not have been before."""
    match order:
        case StartVm() | PrepareIncoming() | FinishIncoming():
            return True
        case CommandVm():
            return order.command is VmCommand.START
        case _:
            return False
