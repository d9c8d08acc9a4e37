"""The libcloud driver against a fake cluster, by libcloud's own checks and ours."""

# libcloud declares few of its types.
# pyright: reportUnknownMemberType=false
import unittest

import pytest
from libcloud.common.exceptions import BaseHTTPError
from libcloud.common.types import LibcloudError
from libcloud.compute.base import NodeDriver
from libcloud.compute.providers import get_driver
from libcloud.compute.types import NodeState
from libcloud.test.compute import TestCaseMixin as LibcloudChecks

from snooze.client.fake_cluster import Failure, FakeCluster
from snooze.client.libcloud_driver import NODE_STATES, SnoozeNodeDriver, register
from snooze.common.api import VmRequest
from snooze.common.vm_lifecycle import VmState


@pytest.fixture
def driver(fake: FakeCluster) -> SnoozeNodeDriver:
    host, port = fake.url.removeprefix("http://").split(":")
    return SnoozeNodeDriver(host, port)


def test_libclouds_own_checks(fake: FakeCluster, driver: SnoozeNodeDriver) -> None:
    class Checks(LibcloudChecks, unittest.TestCase):
        def setUp(self) -> None:
            self.driver: NodeDriver = driver
            fake.vms.clear()
            fake.add_vm("existing")

    outcome = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Checks).run(outcome)
    assert [text for _, text in outcome.errors + outcome.failures] == []
    assert outcome.testsRun >= 9


def test_it_is_found_by_its_name() -> None:
    register()
    register()
    assert get_driver("snooze") is SnoozeNodeDriver


def test_every_state_is_mapped() -> None:
    assert set(NODE_STATES) == set(VmState)
    known = {value for name, value in vars(NodeState).items() if name.isupper()}
    assert set(NODE_STATES.values()) <= known


def test_a_node_from_creation_to_destruction(fake: FakeCluster, driver: SnoozeNodeDriver) -> None:
    node = driver.create_node(
        "web", driver.list_sizes()[2], driver.list_images()[0], ex_rx_kib_s=100
    )
    assert (node.name, node.state, node.private_ips) == ("web", "running", ["192.168.122.10"])
    assert node.extra["hostname"] == "host-1"

    def state() -> object:
        return driver.list_nodes()[0].state

    assert driver.ex_suspend_node(node)
    assert state() == NodeState.PAUSED
    assert driver.ex_resume_node(node)
    assert driver.reboot_node(node)
    assert state() == NodeState.RUNNING
    assert driver.stop_node(node)
    assert state() == NodeState.STOPPED
    assert driver.start_node(node)
    host_2 = driver.list_locations()[1]
    assert driver.ex_migrate_node(node, host_2)
    assert driver.ex_get_node("web").extra["host_id"] == host_2.id == "lc-2"
    assert driver.ex_migrate_node(node, "host-1")
    assert driver.ex_resize_node(node, driver.ex_size(4, 4096))
    assert driver.ex_get_node(str(node.id)).extra["demand"][:2] == [4, 4 * 1024**2]
    assert node.destroy()
    assert driver.list_nodes() == []


def test_templates_and_virtual_clusters(fake: FakeCluster, driver: SnoozeNodeDriver) -> None:
    fake.add_vm("theirs", managed=False)
    node = driver.create_node(ex_libvirt_template="<domain><name>db</name></domain>")
    assert node.state == NodeState.RUNNING
    requests = [VmRequest(name=f"web-{n}", image="tiny.qcow2") for n in (1, 2)]
    assert [node.name for node in driver.ex_create_nodes(requests, "shop")] == ["web-1", "web-2"]
    assert len(driver.list_nodes()) == 3
    assert len(driver.list_nodes(ex_unmanaged=True)) == 4
    assert {vm.virtual_cluster for vm in fake.vms.values()} == {"", "shop"}


def test_what_goes_wrong(fake: FakeCluster, driver: SnoozeNodeDriver) -> None:
    size, image = driver.list_sizes()[0], driver.list_images()[0]
    with pytest.raises(ValueError, match="name, size and image"):
        driver.create_node("web")
    with pytest.raises(ValueError, match="says the image"):
        driver.create_node(size=size, ex_libvirt_template="<domain/>")
    node = driver.create_node("web", size, image)
    with pytest.raises(BaseHTTPError, match=r"vms\[0\].name: 'web' is taken") as caught:
        driver.create_node("web", size, image)
    assert caught.value.code == 422
    fake.capacity_vms = 0
    with pytest.raises(LibcloudError, match="no host has room"):
        driver.create_node("db", size, image)
    driver.destroy_node(node)
    with pytest.raises(BaseHTTPError, match="no VM is called") as caught:
        driver.destroy_node(node)
    assert caught.value.code == 404


def test_what_is_not_snooze(fake: FakeCluster, driver: SnoozeNodeDriver) -> None:
    fake.fail_next(Failure.NONSENSE)
    with pytest.raises(LibcloudError):
        driver.list_nodes()
    fake.fail_next(Failure.FOREIGN)
    with pytest.raises(BaseHTTPError, match="Not Found"):
        driver.list_nodes()


def test_every_order_has_a_key(fake: FakeCluster, driver: SnoozeNodeDriver) -> None:
    fake.add_vm("web")
    (node,) = driver.list_nodes()
    driver.reboot_node(node)
    driver.reboot_node(node)
    keys = [key for method, _, key in fake.requests if method == "POST"]
    assert len(set(keys)) == 2


def test_a_task_without_end(fake: FakeCluster, driver: SnoozeNodeDriver) -> None:
    fake.add_vm("web")
    fake.stuck = True
    driver.task_timeout_s = 0.05
    with pytest.raises(LibcloudError, match="it goes on"):
        driver.reboot_node(driver.list_nodes()[0])
