"""What the files of a lab host say, and what its libvirt learned that the next one may know."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

CAPABILITIES: Final = "var/cache/libvirt/qemu/capabilities"

LIBVIRTD_CONF: Final = """\
listen_tls = 0
listen_tcp = 1
listen_addr = "0.0.0.0"
auth_tcp = "none"
auth_unix_ro = "none"
auth_unix_rw = "none"
host_uuid = "{uuid}"
keepalive_interval = 1
keepalive_count = 3
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""

QEMU_CONF: Final = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
keepalive_interval = 1
keepalive_count = 3
migration_address = "0.0.0.0"
migration_host = "{address}"
"""


def _kept_capabilities() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base, "snooze-lab", "qemu-capabilities")


def reuse_capabilities(own: Path) -> None:
    """Spare a new host the seconds in which libvirt asks every qemu what it can do.

    libvirt itself checks that what it kept still fits qemu, kernel and its own version.
    """
    if not own.exists():
        # another lab may be replacing it at this moment: then this host asks for itself
        with contextlib.suppress(OSError, shutil.Error):
            shutil.copytree(_kept_capabilities(), own)


def keep_capabilities(own: Path) -> None:
    """Keep what a host's libvirt learned for the hosts to come, if it is news."""
    kept = _kept_capabilities()
    if _newest(own) <= _newest(kept):
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=kept.parent))
    shutil.copytree(own, fresh, dirs_exist_ok=True)
    shutil.rmtree(kept, ignore_errors=True)
    try:
        fresh.rename(kept)
    except OSError:
        shutil.rmtree(fresh)  # another lab was quicker


def _newest(folder: Path) -> int:
    """When the youngest file below was written (ns); 0 if there is none."""
    return max((path.stat().st_mtime_ns for path in folder.rglob("*.xml")), default=0)
