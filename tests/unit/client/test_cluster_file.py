"""Virtual clusters from files and options."""

import json
from pathlib import Path

import pytest

from snooze.client import cluster_file
from snooze.client.cluster_file import VmOptions, from_file, from_options, from_templates
from snooze.common.api import ClusterRequest, VmRequest
from snooze.common.errors import InvalidRequest

XML = "<domain type='kvm'><name>db</name></domain>"

TOML = """
name = "shop"

[[vms]]
name = "web"
count = 2
vcpus = 2
memory = "2G"
image = "debian.qcow2"

[[vms]]
template = "db.xml"
rx = "10M"
tx = 12800
host = "host-3"
"""


def test_a_cluster_in_toml(tmp_path: Path) -> None:
    (tmp_path / "db.xml").write_text(XML)
    (tmp_path / "shop.toml").write_text(TOML)
    web = VmRequest(name="web-1", vcpus=2, memory_kib=2 * 1024**2, image="debian.qcow2")
    assert from_file(str(tmp_path / "shop.toml")) == ClusterRequest(
        [
            web,
            VmRequest(name="web-2", vcpus=2, memory_kib=2 * 1024**2, image="debian.qcow2"),
            VmRequest(libvirt_xml=XML, rx_kib_s=10240, tx_kib_s=12800, host="host-3"),
        ],
        "shop",
    )


def test_the_apis_own_json_is_a_cluster_file(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    request = {
        "name": "n",
        "partial": True,
        "vms": [{"libvirt_xml": XML, "rx_kib_s": 1.5, "tx_kib_s": 2}, {"memory_kib": 1024}],
    }
    path.write_text(json.dumps(request))
    assert from_file(str(path)) == ClusterRequest(
        [VmRequest(libvirt_xml=XML, rx_kib_s=1.5, tx_kib_s=2), VmRequest(memory_kib=1024)],
        "n",
        partial=True,
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"vms": [', "not a virtual cluster in JSON"),
        ('{"x": ' + "[" * 100_000, "not a virtual cluster in JSON"),
        ('{"vms": []}', "names no VM"),
        ('{"vms": [{"cpus": 2}]}', "cpus"),
        ('{"vms": [{"vcpus": "two"}]}', "vcpus"),
        ('{"vms": [{"memory": "2G", "memory_kib": 4}]}', "memory and memory_kib"),
        ('{"vms": [{"rx": 1, "rx_kib_s": 2}]}', "rx and rx_kib_s"),
        ('{"vms": [{"template": "t.xml", "libvirt_xml": "<domain/>"}]}', "template and libvirt"),
        ('{"vms": [{"libvirt_xml": "<domain/>", "count": 2}]}', "a template has one name"),
        ('{"vms": [{"name": "a", "count": 0}]}', "count: 0"),
        ('{"vms": [{"name": "a", "count": 100001}]}', "count: 100001"),
        ('{"vms": [{"template": "absent.xml"}]}', "absent.xml cannot be read"),
        ('{"vms": [{"memory": "2"}]}', "no unit"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "cluster.json"
    path.write_text(content)
    with pytest.raises(InvalidRequest) as caught:
        from_file(str(path))
    told = caught.value.message + "".join(problem.message for problem in caught.value.problems)
    assert message in told


def test_every_wrong_vm_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text('[[vms]]\nmemory = "x"\n[[vms]]\nname = "ok"\n[[vms]]\nrx = "y"\n')
    with pytest.raises(InvalidRequest) as caught:
        from_file(str(path))
    assert [problem.where for problem in caught.value.problems] == ["vms[0]", "vms[2]"]


def test_templates(tmp_path: Path) -> None:
    path = tmp_path / "db.xml"
    path.write_bytes(b"\xef\xbb\xbf" + XML.encode())
    (request,) = from_templates([str(path)], VmOptions(rx="1M", host="host-1"))
    assert request == VmRequest(libvirt_xml=XML, rx_kib_s=1024, host="host-1")
    with pytest.raises(InvalidRequest) as caught:
        from_templates([str(path)], VmOptions(name="a", vcpus=2, count=3))
    assert [problem.where for problem in caught.value.problems] == ["--name", "--vcpus", "--count"]


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latin = tmp_path / "latin.xml"
    latin.write_bytes(b"<name>caf\xe9</name>")
    monkeypatch.setattr(cluster_file, "MAX_FILE_BYTES", 1024)
    empty = tmp_path / "empty.xml"
    empty.write_text(" \n")
    large = tmp_path / "large.xml"
    large.write_bytes(b" " * 1025)
    for path, message in (
        (tmp_path, "directory"),
        (tmp_path / "absent", "No such file"),
        (latin, "UTF-8"),
        (large, "larger"),
        (empty, "empty.xml is empty"),
        ("a\0b", "cannot be read"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            from_templates([str(path)], VmOptions())


def test_options() -> None:
    requests = from_options(VmOptions("web", 2, None, "", "debian", tx="10M"))
    assert requests == [
        VmRequest(name=f"web-{n}", vcpus=1, memory_kib=512 * 1024, image="debian", tx_kib_s=10240)
        for n in (1, 2)
    ]
    with pytest.raises(InvalidRequest) as caught:
        from_options(VmOptions())
    assert [problem.where for problem in caught.value.problems] == ["--name", "--image"]
