"""Every call of Snooze that a client or its web interface makes, on every daemon that takes it."""

import json
import re
import uuid
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.legacy.conftest import Answer, Wire

    Names = Callable[[], str]

JSON = {"Accept": "application/json", "Content-Type": "application/json"}
DAEMONS = ("bootstrap node", "leader", "another manager")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
CAPACITY_FREE = [-1.0, -1.0, -1.0, -1.0]


def is_true(answer: "Answer") -> bool:
    return (answer.status, answer.text) == (200, "true")


def is_false(answer: "Answer") -> bool:
    return (answer.status, answer.text) == (200, "false")


def is_nothing(answer: "Answer") -> bool:
    """What a POST without a result answers."""
    return (answer.status, answer.text) == (200, "")


def name_of(vm: Any) -> str:
    name: str = vm["virtualMachineLocation"]["virtualMachineId"]
    return name


@pytest.fixture(params=DAEMONS)
def url(request: pytest.FixtureRequest, wire: "Wire") -> str:
    """Of each daemon that a client may have the address of."""
    name: str = request.param
    return wire.everybody[name]


def other_host(wire: "Wire", vm: Any) -> str:
    here: str = vm["virtualMachineLocation"]["localControllerId"]
    return next(host for host in wire.hosts if host != here)


# ---------------------------------------------------------------- who is there


def test_the_leader_is_described(wire: "Wire", url: str) -> None:
    answer = wire.ask(url, "GET", "/bootstrap?getGroupLeaderDescription")
    leader = answer.of("GroupManagerDescription")
    control = leader["listenSettings"]["controlDataAddress"]
    assert f"http://{control['address']}:{control['port']}" == wire.leader
    assert leader["heartbeatAddress"] == {"address": "UNKNOWN", "port": -1}
    assert UUID.fullmatch(leader["id"])


def test_the_complete_hierarchy(wire: "Wire", url: str, vm: Any) -> None:
    tree = wire.ask(url, "GET", "/bootstrap?getCompleteHierarchy").of(
        "GroupLeaderRepositoryInformation"
    )
    managers = tree["groupManagerDescriptions"]
    assert len(managers) == 2
    found = [
        (manager["id"], host_id, name)
        for manager in managers
        for host_id, host in manager["localControllers"].items()
        for name in host["virtualMachineMetaData"]
    ]
    where = vm["virtualMachineLocation"]
    assert (where["groupManagerId"], where["localControllerId"], name_of(vm)) in found
    assert {host for _, host, _ in found} <= set(wire.hosts)
    listed = [host for manager in managers for host in manager["localControllers"]]
    assert sorted(listed) == sorted(wire.hosts)


@pytest.mark.parametrize("resource", ["/bootstrap", "/groupmanager"])
def test_all_hosts_are_listed(wire: "Wire", url: str, resource: str, vm: Any) -> None:
    answer = wire.ask(url, "GET", f"{resource}?getLocalControllerList")
    hosts = answer.of("LocalControllerList")["localControllers"]
    assert sorted(host["id"] for host in hosts) == sorted(wire.hosts)
    assert all(host["virtualMachineMetaData"] == {} for host in hosts)


def test_the_leaders_repository(wire: "Wire", url: str) -> None:
    answer = wire.ask(url, "POST", "/groupmanager?getGroupLeaderRepositoryInformation", "5")
    managers = answer.of("GroupLeaderRepositoryInformation")["groupManagerDescriptions"]
    assert len(managers) == 2
    for manager in managers:
        [summary] = manager["summaryInformation"].values()
        assert len(summary["activeCapacity"]) == 4
        assert manager["localControllers"] == {}
        again = wire.ask(url, "POST", "/groupmanager?getGroupManagerDescription", manager["id"])
        assert again.of("GroupManagerDescription")["id"] == manager["id"]
    unknown = wire.ask(url, "POST", "/groupmanager?getGroupManagerDescription", "never-was")
    assert is_nothing(unknown)


def test_a_managers_own_repository(wire: "Wire", vm: Any) -> None:
    """Each manager answers for its own hosts: that is how the old driver lists nodes."""
    seen: dict[str, str] = {}
    for name in ("leader", "another manager"):
        url = wire.everybody[name]
        answer = wire.ask(url, "POST", "/groupmanager?getGroupManagerRepositoryInformation", "5")
        for host in answer.of("GroupManagerRepositoryInformation")["localControllerDescriptions"]:
            for known in host["virtualMachineMetaData"].values():
                assert known["virtualMachineLocation"]["localControllerId"] == host["id"]
                seen[name_of(known)] = url
            own = wire.ask(
                url, "POST", "/groupmanager?getLocalControllerDescription", host["id"]
            ).of("LocalControllerDescription")
            assert own["virtualMachineMetaData"] == {}
            address = host["controlDataAddress"]
            has = wire.ask(url, "POST", "/groupmanager?hasLocalController", address)
            assert has.text == host["id"]
    manager = seen[name_of(vm)]
    address = vm["groupManagerControlDataAddress"]
    assert manager == f"http://{address['address']}:{address['port']}"
    where = wire.ask(manager, "POST", "/groupmanager?searchVirtualMachine", name_of(vm))
    assert where.text == vm["virtualMachineLocation"]["localControllerId"]
    location = vm["virtualMachineLocation"]
    assert is_true(wire.ask(manager, "POST", "/groupmanager?hasVirtualMachine", location))

    absent = {"virtualMachineId": "never-was"}
    assert is_false(wire.ask(manager, "POST", "/groupmanager?hasVirtualMachine", absent))
    for method, body in (
        ("searchVirtualMachine", "never-was"),
        ("getLocalControllerDescription", "never-was"),
        ("hasLocalController", {"address": "127.0.0.1", "port": 1}),
    ):
        assert is_nothing(wire.ask(manager, "POST", f"/groupmanager?{method}", body)), method


def test_a_vm_is_discovered(wire: "Wire", url: str, vm: Any) -> None:
    found = wire.ask(url, "POST", "/groupmanager?discoverVirtualMachine", name_of(vm)).of(
        "VirtualMachineDiscoveryResponse"
    )
    assert found["localControllerId"] == vm["virtualMachineLocation"]["localControllerId"]
    assert found["groupManagerAddress"] == vm["groupManagerControlDataAddress"]
    assert is_nothing(wire.ask(url, "POST", "/groupmanager?discoverVirtualMachine", "never-was"))


# ---------------------------------------------------------------- the lists of the web interface


def test_lists_with_numbers_as_text(wire: "Wire", url: str, vm: Any) -> None:
    request = {"limit": "5", "numberOfMonitoringEntries": "5", "start": None}
    managers = wire.ask(url, "POST", "/bootstrap?getGroupManagerDescriptions", request)
    ids = [manager["id"] for manager in managers.of("GroupManagerDescriptions")]
    assert len(ids) == 2

    manager = vm["virtualMachineLocation"]["groupManagerId"]
    hosts = wire.ask(
        url,
        "POST",
        "/bootstrap?getLocalControllerDescriptions",
        {**request, "groupManagerId": manager},
    ).of("LocalControllerDescriptions")
    assert {host["location"]["groupManagerId"] for host in hosts} == {manager}
    everywhere = wire.ask(
        url, "POST", "/bootstrap?getLocalControllerDescriptions", {"groupManagerId": ""}
    ).of("LocalControllerDescriptions")
    assert sorted(host["id"] for host in everywhere) == sorted(wire.hosts)

    host = vm["virtualMachineLocation"]["localControllerId"]
    vms = wire.ask(
        url,
        "POST",
        "/bootstrap?getVirtualMachineDescriptions",
        {**request, "localControllerId": host},
    ).of("VirtualMachinesList")["virtualMachines"]
    assert name_of(vm) in {name_of(each) for each in vms}


def test_lists_by_pages(wire: "Wire", url: str) -> None:
    target = "/bootstrap?getLocalControllerDescriptions"
    seen: list[str] = []
    start: str | None = None
    while page := wire.ask(url, "POST", target, {"start": start, "limit": 1}).json:
        [host] = page
        seen.append(host["id"])
        start = host["id"] + "!"
    assert seen == sorted(wire.hosts)


# ---------------------------------------------------------------- submissions


def test_a_submission_is_readable_by_every_daemon_and_again(
    wire: "Wire", url: str, names: "Names"
) -> None:
    name = names()
    [vm] = wire.start(name, url=url, networkCapacityDemand={"rxBytes": "128", "txBytes": 64.5})
    assert name_of(vm) == name
    assert (vm["status"], vm["errorCode"], vm["isAssigned"]) == ("RUNNING", "UNKNOWN", True)
    assert vm["requestedCapacity"] == [1.0, 65536.0, 128.0, 64.5]
    assert (
        vm["groupManagerControlDataAddress"]
        == (vm["virtualMachineLocation"]["groupManagerControlDataAddress"])
    )
    for other in wire.everybody.values():
        assert wire.metadata(vm, other)["virtualMachineLocation"] == vm["virtualMachineLocation"]


@pytest.mark.parametrize("resource", ["/bootstrap", "/groupmanager"])
def test_both_resources_take_submissions(
    wire: "Wire", url: str, resource: str, names: "Names"
) -> None:
    domain = f"<domain type='kvm'><name>{names()}</name><memory>65536</memory></domain>"
    body = {"virtualMachineTemplates": [{"libVirtDescription": domain, "type": "raw"}]}
    task = wire.ask(url, "POST", f"{resource}?startVirtualCluster", body)
    assert task.status == 200
    assert UUID.fullmatch(task.text), "bare text without quotes"
    assert task.label == "application/json", "labelled as the original does"

    def poll() -> "Answer | None":
        answer = wire.ask(url, "POST", f"{resource}?getVirtualClusterResponse", task.text)
        assert answer.status == 200
        assert answer.text or answer.headers["content-length"] == "0", "pending is an empty 200"
        return answer if answer.text else None

    first = wire.until(poll, "the response")
    second = poll()
    assert second is not None
    for answer in (first, second):
        [vm] = answer.of("VirtualClusterSubmissionResponse")["virtualMachineMetaData"]
        assert vm["status"] == "RUNNING"


def test_an_unknown_task_is_told_from_a_pending_one(wire: "Wire", url: str) -> None:
    for task in ("never-was", str(uuid.uuid4())):
        answer = wire.ask(url, "POST", "/groupmanager?getVirtualClusterResponse", task)
        response = answer.of("VirtualClusterSubmissionResponse")
        assert response == {"errorCode": "GENERAL_EXCEPTION", "virtualMachineMetaData": []}


def test_templates_without_xml(wire: "Wire", names: "Names") -> None:
    by_fields, as_driver_v1 = names(), names()
    demand = {"txBytes": "12800", "rxBytes": "12800"}
    answer = wire.submit(
        [
            {"name": by_fields, "vcpus": 2, "memory": 131072, "imageId": "tiny.qcow2"},
            {
                "type": "id_based",
                "name": as_driver_v1,
                "imageIdentifier": "tiny.qcow2",
                "vcpuDemand": "1",
                "memoryDemand": "128000",
                "networkCapacityDemand": demand,
            },
        ]
    )
    first, second = answer["virtualMachineMetaData"]
    assert [first["status"], second["status"]] == ["RUNNING", "RUNNING"]
    assert first["requestedCapacity"] == [2.0, 131072.0, 0.0, 0.0]
    assert second["requestedCapacity"] == [1.0, 128000.0, 12800.0, 12800.0]
    assert first["image"]["name"] == "tiny.qcow2"


def test_a_pinned_vm_and_one_pinned_to_nowhere(wire: "Wire", names: "Names") -> None:
    host = sorted(wire.hosts)[-1]
    [vm] = wire.start(names(), hostId=host)
    assert vm["virtualMachineLocation"]["localControllerId"] == host
    [lost] = wire.start(names(), hostId="never-was")
    assert (lost["status"], lost["errorCode"]) == ("ERROR", "INVALID_HOST_ID")


def test_the_good_vms_of_a_submission_start_the_bad_are_told(wire: "Wire", names: "Names") -> None:
    good, huge, twice = names(), names(), names()

    def domain(name: str, memory_kib: int = 65536) -> dict[str, str]:
        xml = f"<domain type='kvm'><name>{name}</name><memory>{memory_kib}</memory></domain>"
        return {"libVirtTemplate": xml}

    answer = wire.submit(
        [domain(good), domain(huge, 2**32), {"libVirtTemplate": "<domain"}, domain(twice)]
    )
    vms: list[Any] = answer["virtualMachineMetaData"]
    assert [vm["status"] for vm in vms] == ["RUNNING", "ERROR", "ERROR", "RUNNING"]
    assert vms[1]["errorCode"] == "NOT_ENOUGH_GROUP_MANAGER_CAPACITY"
    assert vms[2]["errorCode"] == "INVALID_SUBMISSION_RESPONSE"
    [again] = wire.submit([domain(twice)])["virtualMachineMetaData"]
    assert (again["status"], again["errorCode"]) == ("ERROR", "ALREADY_RUNNING")
    assert wire.metadata(vms[3])["status"] == "RUNNING"


# ---------------------------------------------------------------- commands


def test_commands_by_name(wire: "Wire", url: str, vm: Any) -> None:
    """To the bootstrap node's resource, with a bare id."""
    name = name_of(vm)
    for command, status in (
        ("suspend", "PAUSED"),
        ("suspend", "PAUSED"),
        ("resume", "RUNNING"),
        ("reboot", "RUNNING"),
        ("shutdown", "OFFLINE"),
    ):
        assert is_true(wire.ask(url, "POST", f"/bootstrap?{command}VirtualMachine", name))
        wire.wait_for_status(vm, status)
    assert is_true(wire.ask(url, "POST", "/bootstrap?destroyVirtualMachine", name))
    assert wire.metadata(vm)["status"] == "OFFLINE"
    for command in ("suspend", "resume", "shutdown", "reboot", "destroy"):
        refused = wire.ask(url, "POST", f"/bootstrap?{command}VirtualMachine", name)
        assert is_false(refused)
        assert refused.headers["x-snooze-error"].startswith("not_found: ")


def test_commands_by_location(wire: "Wire", url: str, vm: Any) -> None:
    """To a group manager, also to one that the VM is not of."""
    location = vm["virtualMachineLocation"]
    for command, status in (
        ("suspend", "PAUSED"),
        ("resume", "RUNNING"),
        ("reboot", "RUNNING"),
        ("shutdown", "OFFLINE"),
    ):
        target = f"/groupmanager?{command}VirtualMachine"
        assert is_true(wire.ask(url, "POST", target, location))
        wire.wait_for_status(vm, status)
    assert is_true(wire.ask(url, "POST", "/groupmanager?destroyVirtualMachine", location))
    assert wire.metadata(vm, url)["status"] == "OFFLINE"
    assert is_false(wire.ask(url, "POST", "/groupmanager?destroyVirtualMachine", location))


def test_a_command_in_the_wrong_state_is_false_and_changes_nothing(wire: "Wire", vm: Any) -> None:
    name = name_of(vm)
    assert is_true(wire.ask(wire.front, "POST", "/bootstrap?suspendVirtualMachine", name))
    refused = wire.ask(wire.front, "POST", "/bootstrap?rebootVirtualMachine", name)
    assert is_false(refused)
    assert "paused" in refused.headers["x-snooze-error"]
    assert wire.metadata(vm)["status"] == "PAUSED"


def test_old_addresses_in_a_location_do_not_matter(wire: "Wire", vm: Any) -> None:
    stale = {
        **vm["virtualMachineLocation"],
        "groupManagerId": "gone",
        "localControllerId": "gone",
        "groupManagerControlDataAddress": {"address": "192.0.2.1", "port": 1},
        "localControllerControlDataAddress": None,
    }
    for url in wire.everybody.values():
        assert is_true(wire.ask(url, "POST", "/groupmanager?suspendVirtualMachine", stale))
        assert is_true(wire.ask(url, "POST", "/groupmanager?resumeVirtualMachine", stale))


@pytest.mark.parametrize("form", ["bootstrap", "libcloud", "libcloud of January 2013"])
def test_migrations(wire: "Wire", url: str, vm: Any, form: str) -> None:
    there = other_host(wire, vm)
    old = vm["virtualMachineLocation"]
    new = {"virtualMachineId": "whatever", "localControllerId": there}
    target, body = {
        "bootstrap": (
            "/bootstrap?migrateVirtualMachine",
            {"virtualMachineId": name_of(vm), "localControllerId": there},
        ),
        "libcloud": (
            "/groupmanager?migrateVirtualMachine",
            {
                "sourceVirtualMachineLocation": old,
                "destinationVirtualMachineLocation": new,
                "destinationHypervisorSettings": None,
                "migrated": False,
            },
        ),
        "libcloud of January 2013": (
            "/groupmanager?migrateVirtualMachine",
            {"oldLocation": old, "newLocation": new},
        ),
    }[form]
    assert is_true(wire.ask(url, "POST", target, body))

    def arrived() -> bool:
        now: str = wire.metadata(vm)["virtualMachineLocation"]["localControllerId"]
        return now == there

    wire.until(arrived, "it is there")
    wire.wait_for_status(vm, "RUNNING")
    for nowhere in (there, "never-was"):
        again = {"virtualMachineId": name_of(vm), "localControllerId": nowhere}
        refused = wire.ask(url, "POST", "/bootstrap?migrateVirtualMachine", again)
        assert is_false(refused), "to where it is, or to nowhere"
        assert refused.headers["x-snooze-error"]


def test_resizes(wire: "Wire", url: str, vm: Any) -> None:
    target = "/groupmanager?resizeVirtualMachine"
    location = vm["virtualMachineLocation"]
    body = {"virtualMachineLocation": location, "resizedCapacity": [-1, "49152", 20.0, 10.0]}
    resized = wire.ask(url, "POST", target, body).of("VirtualMachineMetaData")
    assert resized["requestedCapacity"] == [1.0, 49152.0, 10.0, 20.0], "asked as tx, rx"
    assert wire.metadata(vm)["requestedCapacity"] == [1.0, 49152.0, 10.0, 20.0]
    for wrong in ([-1, 2**40, -1, -1], CAPACITY_FREE):
        refused = wire.ask(
            url, "POST", target, {"virtualMachineLocation": location, "resizedCapacity": wrong}
        )
        assert is_nothing(refused)
    assert wire.metadata(vm)["requestedCapacity"] == [1.0, 49152.0, 10.0, 20.0]


def test_reconfiguration_is_begun_where_it_is_asked_for(wire: "Wire", url: str) -> None:
    """True also where nothing is to be gained; false of a manager that is not there."""
    managers = wire.ask(url, "GET", "/bootstrap?getCompleteHierarchy").json
    manager = managers["groupManagerDescriptions"][0]["id"]
    assert wire.ask(url, "POST", "/bootstrap?startReconfiguration", manager).json is True
    assert is_false(wire.ask(url, "POST", "/bootstrap?startReconfiguration", "nobody"))
    assert wire.ask(url, "POST", "/groupmanager?startReconfiguration", "").json in (True, False)
    assert wire.ask(url, "POST", "/groupmanager?startReconfiguration").json in (True, False)


def test_a_managers_energy_saver_is_suspended_and_resumed(wire: "Wire", url: str) -> None:
    for name in ("suspendEnergySaver", "suspendEnergySaver", "resumeEnergySaver"):
        assert is_true(wire.ask(url, "GET", f"/groupmanager?{name}"))


# ---------------------------------------------------------------- metadata


def test_metadata_has_samples_and_a_label_by_accept(wire: "Wire", url: str, vm: Any) -> None:
    target = "/groupmanager?getVirtualMachineMetaData"
    body = {"virtualMachineLocation": vm["virtualMachineLocation"]}

    def sampled() -> Any:
        wanted = {**body, "numberOfMonitoringEntries": "10"}
        found = wire.ask(url, "POST", target, wanted, JSON).of("VirtualMachineMetaData")
        return found if found["usedCapacity"] else None

    found = wire.until(sampled, "the VM is sampled")
    for time_ms, sample in found["usedCapacity"].items():
        assert int(time_ms) == sample["timeStamp"]
    times = [int(time_ms) for time_ms in found["usedCapacity"]]
    assert times == sorted(times, reverse=True)
    bare = wire.ask(url, "POST", target, body)
    assert (bare.status, bare.label) == (200, "text/plain"), "the old driver chokes on JSON here"
    assert bare.json["usedCapacity"] == {}, "none asked for"
    assert wire.ask(url, "POST", target, body, {"Accept": "*/*"}).label == "application/json"


def test_an_unknown_vm_is_offline_where_it_was_asked_for(wire: "Wire", url: str) -> None:
    location = {
        "virtualMachineId": "never-was",
        "localControllerId": "there",
        "groupManagerId": "above",
    }
    found = wire.ask(
        url,
        "POST",
        "/groupmanager?getVirtualMachineMetaData",
        {"virtualMachineLocation": location, "numberOfMonitoringEntries": 10},
        JSON,
    ).of("VirtualMachineMetaData")
    assert found["status"] == "OFFLINE"
    assert {**found["virtualMachineLocation"], **location} == found["virtualMachineLocation"]


# ---------------------------------------------------------------- a local controller


def test_a_local_controller_lists_and_commands_its_vms(wire: "Wire", vm: Any) -> None:
    where = vm["virtualMachineLocation"]
    url = wire.hosts[where["localControllerId"]]
    listed = wire.ask(url, "POST", "/localcontroller?getVirtualMachines", "5")
    mine = {name_of(each): each for each in listed.of("VirtualMachines")}
    assert mine[name_of(vm)]["virtualMachineLocation"] == where
    assert mine[name_of(vm)]["status"] == "RUNNING"
    for command, status in (
        ("suspendVirtualMachineOnRequest", "PAUSED"),
        ("resumeVirtualMachine", "RUNNING"),
        ("suspendVirtualMachineOnMigration", "PAUSED"),
        ("resumeVirtualMachine", "RUNNING"),
        ("rebootVirtualMachine", "RUNNING"),
        ("shutdownVirtualMachine", "OFFLINE"),
    ):
        assert is_true(wire.ask(url, "POST", f"/localcontroller?{command}", name_of(vm))), command
        wire.wait_for_status(vm, status)
    destroy = "/localcontroller?destroyVirtualMachine"
    assert is_true(wire.ask(url, "POST", destroy, name_of(vm)))
    wire.until(lambda: wire.metadata(vm)["status"] == "OFFLINE", "its manager knows")
    assert is_false(wire.ask(url, "POST", destroy, name_of(vm)))
    for power in ("suspendNodeToRam", "suspendNodeToDisk", "suspendNodeToBoth", "shutdownNode"):
        assert is_false(wire.ask(url, "GET", f"/localcontroller?{power}")), power


# ---------------------------------------------------------------- what is refused, and how


def test_verbs_paths_and_bodies_that_are_refused(wire: "Wire", url: str) -> None:
    for status, method, target, body, headers in (
        (405, "GET", "/groupmanager?startVirtualCluster", None, {}),
        (405, "POST", "/bootstrap?getCompleteHierarchy", "", {}),
        (405, "PUT", "/bootstrap?getCompleteHierarchy", "", {}),
        (405, "POST", "/groupmanager?restartVirtualMachine", "x", {}),
        (405, "POST", "/groupmanager", "{}", {}),
        (405, "GET", "/bootstrap?getcompletehierarchy", None, {}),
        (404, "GET", "/nothing", None, {}),
        (404, "GET", "/", None, {}),
        (404, "GET", "/localcontroller?shutdownNode", None, {}),
        (415, "POST", "/groupmanager?startVirtualCluster", "{", {}),
        (415, "POST", "/groupmanager?startVirtualCluster", "", {}),
        (415, "POST", "/groupmanager?startVirtualCluster", "[]", {}),
        (415, "POST", "/groupmanager?startVirtualCluster", '{"virtualMachineTemplates":5}', {}),
        (
            415,
            "POST",
            "/groupmanager?startVirtualCluster",
            '{"virtualMachineTemplates":[]}',
            {"Content-Type": "application/x-www-form-urlencoded"},
        ),
        (415, "POST", "/groupmanager?getGroupLeaderRepositoryInformation", "many", {}),
        (
            415,
            "POST",
            "/groupmanager?getVirtualMachineMetaData",
            '{"virtualMachineLocation":1}',
            {},
        ),
    ):
        answer = wire.ask(url, method, target, body, headers)
        assert answer.status == status, (method, target, body, answer)


def test_a_bare_key_is_found_among_other_parameters(wire: "Wire", url: str) -> None:
    for query in ("x=1&getCompleteHierarchy", "getCompleteHierarchy&_=1", "getCompleteHierarchy="):
        wire.ask(url, "GET", f"/bootstrap?{query}").of("GroupLeaderRepositoryInformation")


# ---------------------------------------------------------------- on the wire itself


def as_written(target: str, body: str = "", method: str = "POST", *headers: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: snooze", *headers]
    if method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join([*lines, "", ""]) + body).encode()


def test_targets_without_a_slash_kept_alive_and_pipelined(
    wire: "Wire", url: str, names: "Names"
) -> None:
    name = names()
    domain = f"<domain type='kvm'><name>{name}</name><memory>65536</memory></domain>"
    body = json.dumps({"virtualMachineTemplates": [{"libVirtTemplate": domain}]})
    accept = "Accept: application/json"
    answers = wire.talk(
        url,
        as_written("bootstrap?getGroupLeaderDescription", method="GET"),
        as_written("groupmanager?startVirtualCluster", body),
        as_written("groupmanager?getVirtualClusterResponse", "never-was"),
        as_written("/groupmanager?getGroupLeaderRepositoryInformation", "5"),
        as_written("http://snooze/bootstrap?getCompleteHierarchy", method="GET"),
        as_written("groupmanager?nonsense", "x"),
        as_written("bootstrap?suspendVirtualMachine", "never-was"),
        as_written("groupmanager?getGroupManagerDescription", "never-was", "POST", accept),
    )
    assert [answer.status for answer in answers] == [200, 200, 200, 200, 200, 405, 200, 200]
    leader, task, unknown, repository, tree, _, refused, nothing = answers
    assert leader.of("GroupManagerDescription")
    assert unknown.json["errorCode"] == "GENERAL_EXCEPTION"
    assert len(repository.json["groupManagerDescriptions"]) == 2
    assert tree.of("GroupLeaderRepositoryInformation")
    assert (refused.text, nothing.text) == ("false", "")
    [vm] = wire.outcome(task.text)["virtualMachineMetaData"]
    location = json.dumps(vm["virtualMachineLocation"])
    answers = wire.talk(
        url,
        *[as_written(f"groupmanager?{c}VirtualMachine", location) for c in ("suspend", "resume")],
        as_written(
            "groupmanager?getVirtualMachineMetaData", f'{{"virtualMachineLocation":{location}}}'
        ),
        as_written("groupmanager?destroyVirtualMachine", location),
    )
    assert [answer.status for answer in answers] == [200] * 4
    assert [answers[0].text, answers[1].text, answers[3].text] == ["true"] * 3
    assert (answers[2].label, answers[2].json["status"]) == ("text/plain", "RUNNING")


def test_a_local_controller_takes_them_too(wire: "Wire", vm: Any) -> None:
    url = wire.hosts[vm["virtualMachineLocation"]["localControllerId"]]
    paused, resumed, listed, refused, lost = wire.talk(
        url,
        as_written("localcontroller?suspendVirtualMachineOnRequest", name_of(vm)),
        as_written("localcontroller?resumeVirtualMachine", name_of(vm)),
        as_written("/localcontroller?getVirtualMachines", "0"),
        as_written("localcontroller?nonsense", "x"),
        as_written("groupmanager?getLocalControllerList", method="GET"),
    )
    assert is_true(paused)
    assert is_true(resumed)
    assert name_of(vm) in {name_of(each) for each in listed.of("VirtualMachines")}
    assert (refused.status, lost.status) == (405, 404)
