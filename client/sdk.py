"""The Python SDK: ``AsyncSnooze`` for asyncio, ``Snooze`` for every other program.

::

    web = VmRequest(name="web", vcpus=2, memory_kib=2 * 1024 * 1024, image="debian-12")

    async with AsyncSnooze() as cluster:
        task = await cluster.wait(await cluster.submit([web]), check=True)

    with Snooze("http://front-door-1:5000,http://front-door-2:5000") as cluster:
        cluster.wait(cluster.migrate("web", "host-7"), check=True)
        print(cluster.vm("web").hostname)

What both promise:

- Without an address they look where ``client/settings.py`` says; of several addresses, the next
  one is tried when one does not answer.
- Every call ends within its time-out. A call is repeated only where that is safe: reads, and
  orders under one idempotency key, which the SDK always sends.
- Errors are the classes of ``snooze.common.errors`` with the server's own problems.
"""

from snooze.client.async_sdk import WAIT_TIMEOUT_S, AsyncSnooze, failure
from snooze.client.sync_sdk import Snooze
from snooze.common.api import ClusterRequest, CommandRequest, TaskState, TaskView, VmRequest, VmView
from snooze.common.vm_lifecycle import VmCommand, VmState

__all__ = [
    "WAIT_TIMEOUT_S",
    "AsyncSnooze",
    "ClusterRequest",
    "CommandRequest",
    "Snooze",
    "TaskState",
    "TaskView",
    "VmCommand",
    "VmRequest",
    "VmState",
    "VmView",
    "failure",
]
