"""Records: what is written is read again, by this version; what cannot be read says why."""

import hashlib
import zlib

import msgspec
import pytest

from snooze.client.demo_template import SEED_TEMPLATE
from snooze.common import records
from snooze.common.api import TaskState
from snooze.common.errors import ErrorReport, ExecutionError
from snooze.common.records import (
    MAX_TEMPLATE_BYTES,
    SCHEMA,
    HostRecord,
    TaskRecord,
    TaskVmRecord,
    VmRecord,
    decode,
    encode,
    pack_template,
    unpack_template,
)
from snooze.common.resources import Capacity
from snooze.common.template_dictionary import TEMPLATE_DICTIONARY
from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import Address

XML = "<domain>" + "<!-- æøå -->" * 100 + "</domain>"

HOST = HostRecord("h1", "one", Address("10.0.0.1", 5000), "gm1", 7, away=True)
VM = VmRecord(
    "a",
    "web",
    Capacity(2.0, 1024.0, 3.0, 4.0),
    VmState.RUNNING,
    "task",
    generation=3,
    template=pack_template(XML),
    ip_address="10.0.0.2",
    mac_address="54:56:0a:00:00:02",
    host_id="h1",
)
TASK = TaskRecord(
    "task",
    TaskState.PARTIAL,
    1000,
    (
        TaskVmRecord("a", "web", VmState.RUNNING, "h1", "10.0.0.2"),
        TaskVmRecord("b", "db", VmState.FAILED, error=ErrorReport("start_failed", "no disk")),
    ),
    ended_ms=2000,
    key="k",
)


@pytest.mark.parametrize("record", [HOST, VM, TASK], ids=lambda record: type(record).__name__)
def test_what_is_written_is_read_again(record: HostRecord | VmRecord | TaskRecord) -> None:
    assert decode(encode(record), type(record)) == record


def test_a_value_begins_with_its_schema() -> None:
    assert encode(HOST)[0] == SCHEMA


def test_a_record_without_what_later_versions_added_is_read() -> None:
    """Fields are only added with a default; the first release's records stay readable."""
    first = {"host_id": "h", "hostname": "n", "control": ["a", 1], "manager_id": "m", "epoch": 2}
    data = bytes([1]) + msgspec.msgpack.encode(first)
    assert decode(data, HostRecord) == HostRecord("h", "n", Address("a", 1), "m", 2)


def test_what_later_versions_may_add_is_not_minded() -> None:
    first = {**msgspec.to_builtins(HOST), "colour": "blue"}
    assert decode(bytes([1]) + msgspec.msgpack.encode(first), HostRecord) == HOST


def test_a_newer_schema_is_refused_with_advice() -> None:
    with pytest.raises(ExecutionError, match="upgrade"):
        decode(bytes([SCHEMA + 1]) + encode(HOST)[1:], HostRecord)


@pytest.mark.parametrize("data", [b"", bytes([SCHEMA]), bytes([SCHEMA]) + b"\xc1", b"\x01\x80"])
def test_what_cannot_be_read_names_the_kind(data: bytes) -> None:
    with pytest.raises(ExecutionError, match="HostRecord"):
        decode(data, HostRecord)


def test_older_schemas_are_upgraded_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_to_second(fields: dict[str, object]) -> dict[str, object]:
        return {**fields, "hostname": fields.pop("name")}

    def second_to_third(fields: dict[str, object]) -> dict[str, object]:
        return {**fields, "epoch": 5}

    monkeypatch.setattr(records, "SCHEMA", 3)
    monkeypatch.setattr(records, "_UPGRADES", {1: first_to_second, 2: second_to_third})
    old = {"host_id": "h", "name": "n", "control": ["a", 1], "manager_id": "m"}
    assert decode(bytes([1]) + msgspec.msgpack.encode(old), HostRecord) == HostRecord(
        "h", "n", Address("a", 1), "m", 5
    )
    with pytest.raises(ExecutionError):
        decode(bytes([0]) + msgspec.msgpack.encode(old), HostRecord)


def test_a_record_has_all_that_a_host_needs_to_start_the_vm() -> None:
    spec = VM.spec()
    assert (spec.vm_id, spec.name, spec.generation, spec.demand) == ("a", "web", 3, VM.demand)
    assert (spec.libvirt_xml, spec.ip_address) == (XML, "10.0.0.2")


# ---------------------------------------------------------------- templates


@pytest.mark.parametrize("xml", ["", "<domain/>", XML])
def test_templates_are_packed_and_unpacked(xml: str) -> None:
    assert unpack_template(pack_template(xml)) == xml
    assert len(pack_template(XML)) < len(XML) / 5


def test_a_bomb_is_not_unpacked() -> None:
    bomb = zlib.compress(b" " * (MAX_TEMPLATE_BYTES + 1))
    with pytest.raises(ExecutionError, match="larger"):
        unpack_template(bomb)
    assert len(unpack_template(zlib.compress(b" " * MAX_TEMPLATE_BYTES))) == MAX_TEMPLATE_BYTES


@pytest.mark.parametrize("packed", [b"rubbish", zlib.compress(b"\xff")])
def test_a_torn_template_says_so(packed: bytes) -> None:
    with pytest.raises(ExecutionError, match="cannot be read"):
        unpack_template(packed)


OLD_VM = bytes.fromhex(
    "018aa5766d5f6964d9206162616261626162616261626162616261626162616261626162616261626162a46e616d65"
    "a57765622d31a664656d616e6494cb4000000000000000ce00200000cd03e8cd03e8a57374617465a772756e6e696e"
    "67a77461736b5f6964d92431313131313131312d323232322d333333332d343434342d353535353535353535353535"
    "aa67656e65726174696f6e02a874656d706c617465c42e789cb349c9cf4dcccc5328a92c48b555cf2ecb55b7b3c94b"
    "cc4db52b4f4dd235b4d107b36df421aaec0078f40fd0aa69705f61646472657373a831302e302e302e37aa6d616e61"
    "6765725f6964a26d31a7686f73745f6964a26831"
)
"""Written by the version before schema 2."""
OLD_TASK = bytes.fromhex(
    "0186a77461736b5f6964a27431a57374617465a4646f6e65aa637265617465645f6d737ba3766d739196d920616261"
    "6261626162616261626162616261626162616261626162616261626162a57765622d31a772756e6e696e67a26831a8"
    "31302e302e302e37c0a8656e6465645f6d73cd01c8a36b6579a36b6579"
)


def test_what_schema_1_wrote_is_read() -> None:
    vm = decode(OLD_VM, VmRecord)
    assert (vm.vm_id, vm.name, vm.generation, vm.ip_address) == ("ab" * 16, "web-1", 2, "10.0.0.7")
    assert vm.spec().libvirt_xml == "<domain type='kvm'><name>web-1</name></domain>"
    assert decode(encode(vm), VmRecord) == vm
    task = decode(OLD_TASK, TaskRecord)
    assert (task.task_id, task.state, task.key) == ("t1", TaskState.DONE, "key")
    assert task.vms[0].ip_address == "10.0.0.7"


def test_the_dictionary_never_changes() -> None:
    """What was written with it could not be read any more."""
    digest = hashlib.sha256(TEMPLATE_DICTIONARY).hexdigest()
    assert digest == "aaf735cdd4c5420c1e93ef9d7628e7aec8ef68767bf9cd9a6e981de38e56fd27"


def test_a_usual_template_takes_little() -> None:
    assert len(pack_template(SEED_TEMPLATE)) < len(zlib.compress(SEED_TEMPLATE.encode(), 9)) / 2
