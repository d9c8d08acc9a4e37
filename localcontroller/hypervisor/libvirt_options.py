"""What a daemon's settings say to the libvirt driver."""

from dataclasses import dataclass, field

from snooze.common.template_policy import TemplatePolicy
from snooze.localcontroller.domain_xml import AdaptOptions
from snooze.localcontroller.images import ImageOptions


@dataclass(frozen=True, slots=True)
class LibvirtOptions:
    """How to reach a libvirt, and how to treat it.

    Attributes:
        uri: ``qemu:///system``, ``qemu+tcp://HOST/system``, ``qemu+tls://``, ``qemu+ssh://``,
            ``test:///default``, ``test:///FILE``, ``test+tcp://HOST/default``, ...
        peer_uri: by which the libvirt of another host reaches this one for a migration; empty:
            ``uri`` if that names a host, else ``qemu+tcp://HOSTNAME/system``.
        data_uri: ``tcp://ADDRESS`` to which the memory of an incoming guest is sent; empty: as
            this host's qemu.conf says.
        call_timeout_s: of every call but those that start a guest or talk to its disks.
        start_timeout_s: of these.
        keepalive_interval_s, keepalive_count: a silent peer is given up after about
            ``interval * (count + 1)`` seconds.
        workers: threads for blocking calls.
        max_waiting: calls that may wait for a thread.
        max_migrations: leaving at the same time; each has a thread of its own.
        remove_disks: whether ``destroy`` removes the disk made for a VM, and a migration that
            copied disks those left at the source.
        modelled_cpu_share: what a running VM is said to use of its vCPUs where libvirt can not
            measure (the test driver).
    """

    uri: str = "qemu:///system"
    peer_uri: str = ""
    data_uri: str = ""
    connect_timeout_s: float = 10.0
    call_timeout_s: float = 30.0
    start_timeout_s: float = 120.0
    keepalive_interval_s: int = 3
    keepalive_count: int = 3
    reconnect_min_s: float = 0.2
    reconnect_max_s: float = 5.0
    workers: int = 8
    max_waiting: int = 1000
    max_migrations: int = 8
    remove_disks: bool = True
    modelled_cpu_share: float = 0.5
    adapt: AdaptOptions = field(default_factory=AdaptOptions)
    policy: TemplatePolicy = field(default_factory=TemplatePolicy)
    images: ImageOptions = field(default_factory=ImageOptions)


def host_file(cpus: int, memory_kib: int) -> str:
    """A file for ``test:///FILE``: a host of this size without any domain."""
    return (
        f"<node><cpu><mhz>2400</mhz><model>x86_64</model><active>{cpus}</active>"
        f"<nodes>1</nodes><sockets>1</sockets><cores>{cpus}</cores><threads>1</threads></cpu>"
        f"<memory>{memory_kib}</memory></node>\n"
    )
