"""Snooze as a compute provider of Apache libcloud (3.8 and later).

::

    from libcloud.compute.providers import get_driver
    from snooze.client.libcloud_driver import register

    register()
    driver = get_driver("snooze")("front-door", 5000)
    node = driver.create_node("web", driver.list_sizes()[1], driver.list_images()[0])
    driver.ex_migrate_node(node, driver.list_locations()[0])

A node's ``id`` is the VM's ``vm_id``, a location is a host, an image is a master image of the
cluster. libcloud's own calls wait until the cluster has done what was asked and then return; what
went wrong is a ``LibcloudError`` (``NoSuchNode`` and the like are HTTP errors with a ``code``).

The driver of 2013 (``libcloud/compute/drivers/snooze.py``) spoke Snooze's original calls; this one
speaks ``/v1``. ``Driver(host, port)`` is called alike.
"""
# libcloud declares few of its types; what crosses into our code is named where it does.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec
from libcloud.common.base import ConnectionKey, JsonResponse
from libcloud.common.types import LibcloudError
from libcloud.compute.base import Node, NodeDriver, NodeImage, NodeLocation, NodeSize
from libcloud.compute.providers import set_driver
from libcloud.compute.types import NodeState

from snooze.client.async_sdk import failure
from snooze.client.transport import NOT_JSON
from snooze.common.api import (
    API_PREFIX,
    TASK_ENDED,
    ClusterRequest,
    CommandRequest,
    ErrorBody,
    HostView,
    ImageView,
    TaskView,
    VmRequest,
    VmView,
)
from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.vm_lifecycle import VmCommand, VmState

T = TypeVar("T")

PROVIDER: Final = "snooze"
WAIT_S: Final = 20
"""One long poll; well below libcloud's time-out of a request (60 s)."""

TASK_TIMEOUT_S: Final = 600.0
POLL_PAUSE_S: Final = 0.05

NODE_STATES: Final[dict[VmState, NodeState]] = {
    VmState.PENDING: NodeState.PENDING,
    VmState.STARTING: NodeState.STARTING,
    VmState.RUNNING: NodeState.RUNNING,
    VmState.PAUSED: NodeState.PAUSED,
    VmState.STOPPING: NodeState.STOPPING,
    VmState.STOPPED: NodeState.STOPPED,
    VmState.MIGRATING: NodeState.MIGRATING,
    VmState.DESTROYING: NodeState.STOPPING,
    VmState.DESTROYED: NodeState.TERMINATED,
    VmState.FAILED: NodeState.ERROR,
    VmState.UNREACHABLE: NodeState.UNKNOWN,
}

SIZES: Final[dict[str, tuple[int, int]]] = {
    "tiny": (1, 128),
    "small": (1, 512),
    "medium": (2, 2048),
    "large": (4, 4096),
    "xlarge": (8, 8192),
}
"""vCPUs and MiB. Snooze takes any; these are those of the driver of 2013 and one more."""


def register() -> None:
    """Make ``get_driver("snooze")`` find this driver; a repeat does nothing."""
    try:
        _untyped(set_driver)(PROVIDER, SnoozeNodeDriver.__module__, SnoozeNodeDriver.__name__)
    except AttributeError as error:
        if "already registered" not in str(error):
            raise


class SnoozeResponse(JsonResponse):
    """An answer of ``/v1``; refusals keep the server's sentence and problems."""

    def success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= int(self.status) < 300

    def parse_error(self) -> str:
        """The server's sentence, with each problem."""
        body = str(self.body or "")
        try:
            report = msgspec.json.decode(body, type=ErrorBody).error
        except NOT_JSON:
            return f"{self.status}: {body[:200]}"
        told = "".join(f"; {problem.where}: {problem.message}" for problem in report.problems)
        return f"{report.message}{told}"


class SnoozeConnection(ConnectionKey):
    """Plain HTTP(S) to a front door; every order carries an idempotency key."""

    responseCls = SnoozeResponse  # noqa: N815 (libcloud's name)

    def add_default_headers(self, headers: dict[str, str]) -> dict[str, str]:
        """JSON both ways, and a key under which a repeated order is the same order."""
        headers["Accept"] = "application/json"
        if self.method == "POST":
            headers["Content-Type"] = "application/json"
            headers.setdefault("Idempotency-Key", uuid.uuid4().hex)
        return headers

    def get(self, path: str, kind: type[T]) -> T:
        """What ``GET /v1`` + ``path`` answers."""
        return self._ask("GET", path, None, kind)

    def post(self, path: str, body: bytes) -> TaskView:
        """The task that ``POST /v1`` + ``path`` begins."""
        return self._ask("POST", path, body, TaskView)

    def _ask(self, method: str, path: str, body: bytes | None, kind: type[T]) -> T:
        answer = _untyped(self.request)(API_PREFIX + path, method=method, data=body)
        try:
            return msgspec.json.decode(str(getattr(answer, "body", "")), type=kind)
        except NOT_JSON as error:
            raise LibcloudError(f"not an answer of Snooze: {error}") from error


class SnoozeNodeDriver(NodeDriver):
    """One cluster.

    Args:
        host: a front door.
        port: its port; text is taken too.
        secure: https.
        timeout: seconds for one request.
        task_timeout_s: how long a call waits for the cluster to do what was asked.
    """

    type = PROVIDER
    api_name = "snooze"
    name = "Snooze"
    website = "https://snooze.inria.fr"
    connectionCls = SnoozeConnection  # noqa: N815 (libcloud's name)
    connection: SnoozeConnection

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int | str = 5000,
        secure: bool = False,
        *,
        timeout: float = 60.0,
        task_timeout_s: float = TASK_TIMEOUT_S,
        **kwargs: Any,
    ) -> None:
        _untyped(super().__init__)(
            "", None, secure, host=host, port=int(port), timeout=timeout, **kwargs
        )
        self.task_timeout_s = task_timeout_s

    # What there is ----------------------------------------------------------------------------

    def list_nodes(self, ex_unmanaged: bool = False) -> list[Node]:
        """The cluster's VMs; with ``ex_unmanaged`` also the domains that others run there."""
        vms = self.connection.get("/vms", list[VmView])
        return [self._node(vm) for vm in vms if vm.managed or ex_unmanaged]

    def ex_get_node(self, node_id: str) -> Node:
        """One VM by its id or name; its XML is in ``extra``."""
        return self._node(self.connection.get(f"/vms/{_segment(node_id)}", VmView))

    def list_sizes(self, location: NodeLocation | None = None) -> list[NodeSize]:
        """Some usual sizes, smallest first; ``ex_size`` makes any other."""
        return [self.ex_size(vcpus, ram_mib, name) for name, (vcpus, ram_mib) in SIZES.items()]

    def ex_size(self, vcpus: int, ram_mib: int, name: str = "") -> NodeSize:
        """A size of any shape."""
        name = name or f"{vcpus}x{ram_mib}"
        return NodeSize(name, name, ram_mib, 0, 0, 0.0, self, extra={"vcpus": vcpus})

    def list_images(self, location: NodeLocation | None = None) -> list[NodeImage]:
        """The master images; sizes in ``extra`` are in bytes."""
        return [
            NodeImage(image.name, image.name, self, extra=_builtins(image))
            for image in self.connection.get("/images", list[ImageView])
        ]

    def list_locations(self) -> list[NodeLocation]:
        """The hosts; capacities in ``extra`` are ``[cores, KiB, KiB/s in, KiB/s out]``."""
        return [
            NodeLocation(host.id, host.hostname, "", self, extra=_builtins(host))
            for host in self.connection.get("/hosts", list[HostView])
        ]

    # What to do -------------------------------------------------------------------------------

    def create_node(
        self,
        name: str = "",
        size: NodeSize | None = None,
        image: NodeImage | None = None,
        location: NodeLocation | None = None,
        auth: object = None,
        *,
        ex_libvirt_template: str = "",
        ex_rx_kib_s: float = 0.0,
        ex_tx_kib_s: float = 0.0,
    ) -> Node:
        """Start one VM from an image and a size, or from the text of a libvirt domain.

        Returns when it runs. With ``location`` it starts on that host.
        """
        if ex_libvirt_template:
            if image or size:
                raise ValueError("ex_libvirt_template says the image and the size")
            request = VmRequest(libvirt_xml=ex_libvirt_template)
        elif name and size is not None and image is not None:
            request = VmRequest(
                name=name, vcpus=_vcpus(size), memory_kib=_kib(size), image=str(image.id)
            )
        else:
            raise ValueError("create_node needs name, size and image, or ex_libvirt_template")
        request = msgspec.structs.replace(
            request,
            rx_kib_s=ex_rx_kib_s,
            tx_kib_s=ex_tx_kib_s,
            host=str(location.id) if location else "",
        )
        return self.ex_create_nodes([request])[0]

    def ex_create_nodes(self, requests: Sequence[VmRequest], name: str = "") -> list[Node]:
        """Start a virtual cluster: all VMs are checked before any starts.

        Raises:
            LibcloudError: if any of them did not start; it names them. The others run.
        """
        body = msgspec.json.encode(ClusterRequest(list(requests), name))
        task = self._wait(self.connection.post("/virtual-clusters", body))
        return [self.ex_get_node(vm.vm_id or vm.name) for vm in task.vms]

    def destroy_node(self, node: Node) -> bool:
        """Remove the VM, running or not."""
        return self._order(node, VmCommand.DESTROY)

    def reboot_node(self, node: Node) -> bool:
        """Ask the guest to reboot."""
        return self._order(node, VmCommand.REBOOT)

    def start_node(self, node: Node) -> bool:
        """Start a VM that is stopped or failed."""
        return self._order(node, VmCommand.START)

    def stop_node(self, node: Node) -> bool:
        """Ask the guest to shut down, and wait until it has."""
        self._order(node, VmCommand.SHUTDOWN)
        deadline_s = SYSTEM_CLOCK.monotonic_s() + self.task_timeout_s
        pause = threading.Event()
        while (state := self.ex_get_node(str(node.id)).state) == NodeState.STOPPING:
            if SYSTEM_CLOCK.monotonic_s() > deadline_s:
                raise LibcloudError("the guest does not shut down", driver=self)
            pause.wait(POLL_PAUSE_S)
        return bool(state == NodeState.STOPPED)

    def ex_suspend_node(self, node: Node) -> bool:
        """Pause the VM; its memory stays on its host."""
        return self._order(node, VmCommand.SUSPEND)

    def ex_resume_node(self, node: Node) -> bool:
        """Let a paused VM run again."""
        return self._order(node, VmCommand.RESUME)

    def ex_migrate_node(self, node: Node, location: NodeLocation | str) -> bool:
        """Move the running VM to another host: a location, or a host's id or name."""
        host = str(location.id) if isinstance(location, NodeLocation) else location
        return self._order(node, VmCommand.MIGRATE, CommandRequest(host=host))

    def ex_resize_node(self, node: Node, size: NodeSize) -> bool:
        """Give the running VM the vCPUs and the memory of ``size``."""
        request = CommandRequest(vcpus=_vcpus(size), memory_kib=_kib(size))
        return self._order(node, VmCommand.RESIZE, request)

    # How --------------------------------------------------------------------------------------

    def _order(self, node: Node, command: VmCommand, request: CommandRequest | None = None) -> bool:
        body = msgspec.json.encode(request or CommandRequest())
        self._wait(
            self.connection.post(
                f"/vms/{_segment(str(node.id))}/{command.value}?wait_s={WAIT_S}", body
            )
        )
        return True

    def _wait(self, task: TaskView) -> TaskView:
        """The task when it has ended well."""
        deadline_s = SYSTEM_CLOCK.monotonic_s() + self.task_timeout_s
        pause = threading.Event()
        while task.state not in TASK_ENDED:
            if SYSTEM_CLOCK.monotonic_s() > deadline_s:
                raise LibcloudError(f"task {task.id} has not ended; it goes on", driver=self)
            pause.wait(POLL_PAUSE_S)
            task = self.connection.get(f"/tasks/{_segment(task.id)}?wait_s={WAIT_S}", TaskView)
        error = failure(task)
        if error is not None:
            told = "".join(f"; {problem.where}: {problem.message}" for problem in error.problems)
            raise LibcloudError(f"{error.message}{told}", driver=self)
        return task

    def _node(self, vm: VmView) -> Node:
        return Node(
            id=vm.vm_id,
            name=vm.name,
            state=NODE_STATES[vm.state],
            public_ips=[],
            private_ips=[vm.ip_address] if vm.ip_address else [],
            driver=self,
            extra=_builtins(vm),
        )


def _untyped(function: Callable[..., object]) -> Callable[..., object]:
    """A function of libcloud whose declared types are missing or wrong."""
    return function


def _vcpus(size: NodeSize) -> int:
    extra: dict[str, Any] = size.extra
    return int(extra.get("vcpus", 1))


def _kib(size: NodeSize) -> int:
    return int(size.ram) * 1024


def _segment(text: str) -> str:
    return quote(text, safe="")


def _builtins(value: msgspec.Struct) -> dict[str, Any]:
    """The API's own names and values, for ``extra``."""
    converted: dict[str, Any] = msgspec.to_builtins(value)
    return converted
