"""Each thing that a check of the record finds, and that it finds nothing else."""

import msgspec
import pytest

from snooze.common.api import TaskState
from snooze.common.record_check import LARGE_BYTES, check
from snooze.common.record_layout import host_path, task_path, vm_path
from snooze.common.records import HostRecord, TaskRecord, TaskVmRecord, VmRecord, encode
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import Address

TASK = TaskRecord(
    "t1", TaskState.RUNNING, 1, (TaskVmRecord("aa11", "web", VmState.RUNNING, "h1", "10.0.0.1"),)
)
VM = VmRecord(
    "aa11",
    "web",
    Capacity(1.0, 1024.0),
    VmState.RUNNING,
    "t1",
    ip_address="10.0.0.1",
    host_id="h1",
    manager_id="m1",
)
HOST = HostRecord("h1", "one", Address("10.0.0.9", 5002), "m1", 3)
change = msgspec.structs.replace

GOOD = {
    host_path("h1"): encode(HOST),
    vm_path("aa11"): encode(VM),
    task_path("t1"): encode(TASK),
}


def test_a_good_record_has_no_findings() -> None:
    report = check(GOOD, ["m1"])
    assert report.findings == []
    assert [(total.kind, total.count) for total in report.totals] == [
        ("hosts", 1),
        ("vms", 1),
        ("tasks", 1),
    ]
    assert report.totals[1].bytes == report.totals[1].largest_bytes == len(encode(VM))


@pytest.mark.parametrize(
    ("more", "managers", "where", "what"),
    [
        ({vm_path("bb22"): b"\x02rubbish"}, ["m1"], vm_path("bb22"), "cannot be read"),
        ({vm_path("bb22"): b"\x63" + encode(VM)[1:]}, ["m1"], vm_path("bb22"), "schema 99"),
        ({"/vms/aa11": encode(VM)}, ["m1"], "/vms/aa11", "belongs to"),
        (
            {vm_path("bb22"): encode(change(VM, vm_id="bb22", ip_address=""))},
            ["m1"],
            vm_path("bb22"),
            "name web is also that of",
        ),
        (
            {vm_path("bb22"): encode(change(VM, vm_id="bb22", name="other"))},
            ["m1"],
            vm_path("bb22"),
            "address 10.0.0.1 is also",
        ),
        (
            {vm_path("aa11"): encode(change(VM, host_id="h2"))},
            ["m1"],
            vm_path("aa11"),
            "its host h2 is not in the record",
        ),
        (
            {vm_path("aa11"): encode(change(VM, state=VmState.PENDING, task_id="t9"))},
            ["m1"],
            vm_path("aa11"),
            "its task t9 is not",
        ),
        (
            {
                task_path("t2"): encode(
                    change(TASK, task_id="t2", vms=(TaskVmRecord("cc", "x", VmState.PENDING),))
                )
            },
            ["m1"],
            task_path("t2"),
            "its VM x",
        ),
        ({}, ["m2"], host_path("h1"), "group manager m1 is not up"),
        (
            {host_path("h2"): encode(change(HOST, host_id="h2"))},
            ["m1"],
            host_path("h2"),
            "hostname one is also",
        ),
        (
            {vm_path("aa11"): encode(change(VM, template=b"\0" * LARGE_BYTES))},
            ["m1"],
            vm_path("aa11"),
            "unusually many",
        ),
    ],
)
def test_each_fault_is_found_where_it_is(
    more: dict[str, bytes], managers: list[str], where: str, what: str
) -> None:
    findings = check({**GOOD, **more}, managers).findings
    about = [finding for finding in findings if what in finding.what]
    assert [finding.path for finding in about] == [where] or where == "/vms/aa11"
    assert about
    assert about[0].advice


def test_nobody_is_asked_for_managers_that_are_all_down() -> None:
    assert check(GOOD, []).findings == []
