"""libcloud's own checks of a compute driver, against a living cluster."""

# libcloud declares few of its types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
import unittest
import uuid
from collections.abc import Iterator
from typing import Protocol
from urllib.parse import urlsplit

import pytest
from libcloud.compute.base import NodeDriver
from libcloud.compute.types import NodeState
from libcloud.test.compute import TestCaseMixin as LibcloudChecks

from snooze.client.libcloud_driver import SnoozeNodeDriver

DOMAIN = (
    "<domain type='kvm'><name>{name}</name><memory unit='KiB'>131072</memory><vcpu>1</vcpu>"
    "<os><type arch='x86_64'>hvm</type></os></domain>"
)


class LiveCluster(Protocol):
    """What the fixture ``live_cluster`` gives."""

    url: str


@pytest.fixture
def driver(live_cluster: LiveCluster) -> Iterator[SnoozeNodeDriver]:
    parts = urlsplit(live_cluster.url)
    connected = SnoozeNodeDriver(str(parts.hostname), parts.port or 80)
    before = {node.id for node in connected.list_nodes()}
    yield connected
    for node in connected.list_nodes():
        if node.id not in before and node.state != NodeState.TERMINATED:
            connected.destroy_node(node)


def test_libclouds_own_checks(driver: SnoozeNodeDriver) -> None:
    class Checks(LibcloudChecks, unittest.TestCase):
        def setUp(self) -> None:
            self.driver: NodeDriver = driver
            for node in driver.list_nodes():
                if node.name == "node-name":
                    driver.destroy_node(node)
            driver.create_node(ex_libvirt_template=DOMAIN.format(name=f"lc-{uuid.uuid4().hex[:8]}"))

    outcome = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Checks).run(outcome)
    assert [text for _, text in outcome.errors + outcome.failures] == []
    assert outcome.testsRun >= 9


def test_what_libcloud_cannot_check(driver: SnoozeNodeDriver) -> None:
    node = driver.create_node(ex_libvirt_template=DOMAIN.format(name=f"lc-{uuid.uuid4().hex[:8]}"))
    assert node.state == NodeState.RUNNING

    def state() -> object:
        return driver.ex_get_node(str(node.id)).state

    assert driver.ex_suspend_node(node)
    assert state() == NodeState.PAUSED
    assert driver.ex_resume_node(node)
    here = driver.ex_get_node(str(node.id)).extra["host_id"]
    there = next(place for place in driver.list_locations() if place.id != here)
    assert driver.ex_migrate_node(node, there)
    assert driver.ex_get_node(str(node.id)).extra["host_id"] == there.id
    assert driver.stop_node(node)
    assert state() == NodeState.STOPPED
    assert driver.start_node(node)
    assert state() == NodeState.RUNNING
    assert driver.destroy_node(node)
