"""Snooze's messages against a naive decoder, and against mutations and random bytes.

``SCHEMA`` is the reference's section 1.1 copied out by hand: names, kinds and defaults. The naive
decoder below knows nothing but it and Python's json.
"""

import contextlib
import functools
import json
import math
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from snooze.common import snooze_api
from snooze.common.errors import InvalidRequest

Document = dict[str, Any]

LOCATION = {
    "virtualMachineId": "text",
    "localControllerId": "text",
    "localControllerControlDataAddress": "NetworkAddress",
    "groupManagerId": "text",
    "groupManagerControlDataAddress": "NetworkAddress",
}

# A member is: its kind, or (kind, default), or (kind, default, aliases).
SCHEMA: dict[str, dict[str, Any]] = {
    "NetworkAddress": {"address": "text", "port": ("int", -1)},
    "ListenSettings": {
        "controlDataAddress": "NetworkAddress",
        "monitoringDataAddress": "NetworkAddress",
    },
    "VirtualMachineLocation": LOCATION,
    "LocalControllerLocation": {
        "localControllerId": "text",
        "groupManagerId": "text",
        "groupManagerControlDataAddress": "NetworkAddress",
    },
    "NetworkDemand": {"rxBytes": "double", "txBytes": "double"},
    "VirtualMachineTemplate": {
        "libVirtTemplate": ("text", None, "libVirtDescription"),
        "networkCapacityDemand": "NetworkDemand",
        "vcpus": ("int", 1, "vcpuDemand"),
        "memory": ("int", 131072, "memoryDemand"),
        "imageId": ("text", None, "imageIdentifier"),
        "name": ("text", None),
        "hostId": "text",
    },
    "VirtualClusterSubmissionRequest": {"virtualMachineTemplates": "VirtualMachineTemplate[]"},
    "VirtualMachineImage": {
        "name": "text",
        "path": "text",
        "format": ("text", "raw"),
        "capacity": "int",
        "allocation": "int",
        "backingStore": ("text", None),
    },
    "VirtualMachineImageList": {"images": "VirtualMachineImage[]"},
    "VirtualMachineMonitoringData": {"timeStamp": "int", "usedCapacity": "double[]"},
    "VirtualMachineMetaData": {
        "ipAddress": "text",
        "xmlRepresentation": "text",
        "status": ("VirtualMachineStatus", "UNKNOWN"),
        "errorCode": ("VirtualMachineErrorCode", "UNKNOWN"),
        "isAssigned": ("bool", False, "assigned"),
        "virtualMachineLocation": "VirtualMachineLocation",
        "groupManagerControlDataAddress": "NetworkAddress",
        "image": "VirtualMachineImage",
        "usedCapacity": "VirtualMachineMonitoringData{ms}",
        "requestedCapacity": "double[]",
    },
    "VirtualMachineSubmissionRequest": {"virtualMachineMetaData": "VirtualMachineMetaData[]"},
    "VirtualMachineSubmissionResponse": {"virtualMachineMetaData": "VirtualMachineMetaData[]"},
    "VirtualClusterSubmissionResponse": {
        "virtualMachineMetaData": "VirtualMachineMetaData[]",
        "errorCode": ("VirtualClusterErrorCode", None),
    },
    "MetaDataRequest": {
        "virtualMachineLocation": "VirtualMachineLocation",
        "numberOfMonitoringEntries": "int",
    },
    "VirtualMachineDiscoveryResponse": {
        "localControllerId": "text",
        "groupManagerAddress": "NetworkAddress",
    },
    "MigrationRequest": {
        "sourceVirtualMachineLocation": ("VirtualMachineLocation", ..., "oldLocation"),
        "destinationVirtualMachineLocation": ("VirtualMachineLocation", ..., "newLocation"),
        "destinationHypervisorSettings": ("HypervisorSettings", None),
        "migrated": "bool",
    },
    "ClientMigrationRequestSimple": {"virtualMachineId": "text", "localControllerId": "text"},
    "ClientMigrationRequest": {
        "oldLocation": "VirtualMachineLocation",
        "newLocation": "VirtualMachineLocation",
    },
    "ResizeRequest": {
        "virtualMachineLocation": "VirtualMachineLocation",
        "resizedCapacity": ("double[]", [-1.0, -1.0, -1.0, -1.0]),
    },
    "HostListRequest": {
        "start": ("text", None),
        "limit": ("int", 100),
        "groupManagerId": ("text", None),
        "localControllerId": ("text", None),
        "numberOfMonitoringEntries": "int",
    },
    "MigrationSettings": {"method": ("MigrationMethod", None), "timeout": "int"},
    "HypervisorSettings": {
        "driver": ("HypervisorDriver", None),
        "transport": ("HypervisorTransport", None),
        "port": ("int", -1),
        "migration": "MigrationSettings",
    },
    "WakeupSettings": {"driver": ("WakeupDriver", None), "options": "text"},
    "LocalControllerDescription": {
        "id": "text",
        "hostname": "text",
        "status": ("LocalControllerStatus", "UNKNOWN"),
        "isAssigned": ("bool", False, "assigned"),
        "controlDataAddress": "NetworkAddress",
        "hypervisorSettings": "HypervisorSettings",
        "wakeupSettings": "WakeupSettings",
        "location": "LocalControllerLocation",
        "totalCapacity": "double[]",
        "virtualMachineMetaData": "VirtualMachineMetaData{}",
        "assignedVirtualMachines": "VirtualMachineMetaData[]",
    },
    "LocalControllerList": {"localControllers": "LocalControllerDescription[]"},
    "GroupManagerSummaryInformation": {
        "timeStamp": "int",
        "activeCapacity": "double[]",
        "passiveCapacity": "double[]",
        "requestedCapacity": "double[]",
        "usedCapacity": "double[]",
        "legacyIpAddresses": "text[]",
        "localControllers": "LocalControllerDescription[]",
    },
    "GroupManagerDescription": {
        "id": "text",
        "hostname": "text",
        "isAssigned": ("bool", False, "assigned"),
        "listenSettings": "ListenSettings",
        "heartbeatAddress": "NetworkAddress",
        "virtualMachines": "VirtualMachineMetaData[]",
        "summaryInformation": "GroupManagerSummaryInformation{ms}",
        "localControllers": "LocalControllerDescription{}",
    },
    "GroupLeaderRepositoryInformation": {"groupManagerDescriptions": "GroupManagerDescription[]"},
    "GroupManagerRepositoryInformation": {
        "localControllerDescriptions": "LocalControllerDescription[]"
    },
    "AssignedGroupManager": {
        "localControllerId": ("text", None),
        "groupManager": ("GroupManagerDescription", None),
    },
    "VirtualMachinesList": {"virtualMachines": "VirtualMachineMetaData[]"},
}

SCALARS = {"text": "UNKNOWN", "int": 0, "double": 0.0, "bool": False}


def members(name: str) -> list[tuple[str, str, Any, str | None]]:
    """Each member's name, kind, default (or ... for that of its kind) and alias."""
    rows: list[tuple[str, str, Any, str | None]] = []
    for member, row in SCHEMA[name].items():
        parts: list[Any] = [row, ..., None] if isinstance(row, str) else [*row, None]
        rows.append((member, parts[0], parts[1], parts[2]))
    return rows


# The naive decoder


def default_of(kind: str) -> Any:
    if kind.endswith("[]"):
        return []
    if kind.endswith("}"):
        return {}
    return SCALARS[kind] if kind in SCALARS else naive(kind, {})


def naive(kind: str, value: Any) -> Any:
    """What an accepted document means, with every member."""
    if kind.endswith("[]"):
        return [naive(kind.removesuffix("[]"), item) for item in value]
    if kind.endswith("{}"):
        return {key: naive(kind.removesuffix("{}"), item) for key, item in value.items()}
    if kind.endswith("{ms}"):
        return {str(int(key)): naive(kind[:-4], item) for key, item in value.items()}
    if kind == "text":
        return value if isinstance(value, str) else json.dumps(value)
    if kind == "int":
        return int(float(value)) if "." in str(value) else int(value or 0)
    if kind == "double":
        return float(value or 0)
    if kind == "bool":
        return value.strip() == "true" if isinstance(value, str) else bool(value)
    if kind not in SCHEMA:
        return value
    result: Document = {}
    for member, inner, default, alias in members(kind):
        given_value = value.get(member)
        if given_value is None and alias:
            given_value = value.get(alias)
        if given_value is not None:
            result[member] = naive(inner, given_value)
        else:
            result[member] = default_of(inner) if default is ... else default
    return result


# Documents as liberal clients send them

TEXT = st.text(max_size=8)
INTS = st.integers(-(2**63), 2**63 - 1)
SMALL = st.integers(-(2**50), 2**50)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
UNKNOWN_MEMBERS = st.dictionaries(
    st.sampled_from(["type", "thresholds", "hostResources", "x"]),
    st.one_of(st.none(), TEXT, st.lists(INTS, max_size=2)),
    max_size=2,
)


def with_unknown_members(extra: Document, document: Document) -> Document:
    return {**extra, **document}


@functools.cache
def documents(kind: str) -> st.SearchStrategy[Any]:
    if kind.endswith("[]"):
        return st.lists(documents(kind.removesuffix("[]")), max_size=2)
    if kind.endswith("{}"):
        return st.dictionaries(TEXT, documents(kind.removesuffix("{}")), max_size=2)
    if kind.endswith("{ms}"):
        return st.dictionaries(INTS.map(str), documents(kind[:-4]), max_size=2)
    if kind == "text":
        return TEXT | INTS | st.booleans()
    if kind == "int":
        return st.one_of(INTS, INTS.map(str), SMALL.map(float), SMALL.map("  {}.0\n".format))
    if kind == "double":
        return st.one_of(FLOATS, FLOATS.map(str), SMALL, SMALL.map("{} ".format), st.just(""))
    if kind == "bool":
        return st.one_of(st.booleans(), st.sampled_from(["true", " false", "", 0, 1, 2.5]))
    if kind not in SCHEMA:
        return st.sampled_from([member.value for member in getattr(snooze_api, kind)])
    optional: dict[Any, st.SearchStrategy[Any]] = {}
    for member, inner, _, alias in members(kind):
        optional[member] = documents(inner) | st.none()
        if alias:
            optional[alias] = optional[member]
    known = st.fixed_dictionaries({}, optional=optional)
    return st.builds(with_unknown_members, UNKNOWN_MEMBERS, known)


NAMES = st.sampled_from(sorted(SCHEMA))
CASES = NAMES.flatmap(lambda name: st.tuples(st.just(name), documents(name)))


def message(name: str) -> type[Any]:
    kind: type[Any] = getattr(snooze_api, name)
    return kind


def test_every_message_is_in_the_schema() -> None:
    structs = {
        name
        for name in snooze_api.__all__
        if isinstance(getattr(snooze_api, name), type)
        and issubclass(getattr(snooze_api, name), msgspec.Struct)
    }
    assert structs == set(SCHEMA)


def test_an_empty_object_has_every_default() -> None:
    for name in SCHEMA:
        decoded = snooze_api.decode(message(name), b"{}")
        assert decoded == message(name)()
        assert json.loads(snooze_api.encode(decoded)) == naive(name, {})


@settings(max_examples=200, deadline=None)
@given(CASES)
def test_accepted_documents_mean_what_the_naive_decoder_says(case: tuple[str, Document]) -> None:
    name, document = case
    decoded = snooze_api.decode(message(name), json.dumps(document).encode())
    assert json.loads(snooze_api.encode(decoded)) == naive(name, document)


@settings(max_examples=200, deadline=None)
@given(CASES)
def test_what_was_written_is_read_back(case: tuple[str, Document]) -> None:
    name, document = case
    decoded = snooze_api.decode(message(name), json.dumps(document).encode())
    assert snooze_api.decode(message(name), snooze_api.encode(decoded)) == decoded


def all_floats(value: object) -> None:
    if isinstance(value, msgspec.Struct):
        for field in msgspec.structs.fields(type(value)):
            all_floats(getattr(value, field.name))
    elif isinstance(value, list):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            all_floats(item)  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(value, dict):
        for item in value.values():  # pyright: ignore[reportUnknownVariableType]
            all_floats(item)  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(value, float):
        assert math.isfinite(value)
    elif isinstance(value, int):
        assert -(2**63) <= value < 2**63
    elif isinstance(value, str):
        value.encode()  # No lone surrogate.


def attack(name: str, body: bytes) -> None:
    """Nothing but InvalidRequest comes out, and what is accepted can be used and answered."""
    with contextlib.suppress(InvalidRequest):
        decoded = snooze_api.decode(message(name), body)
        all_floats(decoded)
        assert snooze_api.decode(message(name), snooze_api.encode(decoded)) == decoded


SPITE = st.sampled_from(
    [
        b"null",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-1e-999",
        b'"1e400"',
        b'"NaN"',
        b"9223372036854775808",
        b"1" * 400,
        b"1" * 5000,
        b'"' + b"9" * 5000 + b'"',
        b"1.5",
        b"-0.0",
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b'"\\u0000"',
        b"[" * 2000,
        b'{"a":' * 2000,
        b"[null]",
        b"{}",
        b"[]",
        b"[[[]]]",
        b"true",
        b'""',
        b"\x00",
        b",",
        b'"',
        "\u0661".encode(),
        '"\u0661"'.encode(),
        b'"1_000"',
        b'"0x10"',
        b'{"":null}',
        b'{"1":{"timeStamp":"now"}}',
    ]
)


@settings(max_examples=300, deadline=None)
@given(NAMES, st.binary(max_size=80))
def test_random_bytes(name: str, body: bytes) -> None:
    attack(name, body)


@settings(max_examples=250, deadline=None)
@given(CASES, st.data())
def test_damaged_documents(case: tuple[str, Document], data: st.DataObject) -> None:
    name, document = case
    body = json.dumps(document).encode()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(body)))
        end = data.draw(st.integers(start, min(len(body), start + 12)))
        body = body[:start] + data.draw(SPITE | st.binary(max_size=4)) + body[end:]
    attack(name, body)


@settings(max_examples=250, deadline=None)
@given(NAMES, st.data())
def test_wrong_values_in_the_right_places(name: str, data: st.DataObject) -> None:
    def spiteful(kind: str, depth: int) -> bytes:
        if kind.endswith("[]") and data.draw(st.booleans()):
            return b"[" + spiteful(kind.removesuffix("[]"), depth) + b"]"
        if kind.endswith("}") and data.draw(st.booleans()):
            key = data.draw(st.sampled_from([b'"vm"', b'"12"', b'"-1.0"', b'""', b'"1e3"']))
            return b"{" + key + b":" + spiteful(kind.partition("{")[0], depth) + b"}"
        if kind in SCHEMA and depth < 4 and data.draw(st.integers(0, 3)):
            member, inner, _, alias = data.draw(st.sampled_from(members(kind)))
            key = json.dumps(alias if alias and data.draw(st.booleans()) else member).encode()
            return b"{" + key + b":" + spiteful(inner, depth + 1) + b"}"
        return data.draw(SPITE)

    attack(name, spiteful(name, 0))


@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode))
def test_bare_bodies(body: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        text = snooze_api.decode_text(body)
        assert text
        assert text == text.strip()
    with contextlib.suppress(InvalidRequest):
        assert -(2**63) <= snooze_api.decode_int(body) < 2**63


@given(st.text(min_size=1, max_size=20).filter(lambda text: text.strip() == text != '"'))
def test_an_id_may_be_bare_or_quoted(text: str) -> None:
    quoted = json.dumps(text).encode()
    assert snooze_api.decode_text(b" \r\n" + quoted + b"\n") == text
    if not (len(text) > 1 and text[0] == text[-1] == '"'):
        assert snooze_api.decode_text(text.encode() + b"\n") == text
