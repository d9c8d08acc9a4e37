"""A real Linux that boots in seconds, where a guest's agent, its power button or network is needed.

Debian's cloud kernel, busybox and qemu's guest agent with its libraries, packed into one initial
file system; no disk. The packages are fetched by ``apt-get download`` and only unpacked, nothing is
installed; what was made is kept below ``~/.cache`` and made anew when Debian's kernel or we change.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.sax.saxutils import quoteattr

from snooze.common.errors import PreconditionError

MEMORY_KIB: Final = 128 * 1024
"""96 MiB are enough without the agent."""
_INIT: Final = Path(__file__).with_name("linux_init.sh")
_KERNEL: Final = "linux-image-cloud-amd64"
_AGENT: Final = "qemu-guest-agent"
_BUSYBOX: Final = Path("/bin/busybox")
_MODULES: Final = (
    *("virtio/virtio_ring", "virtio/virtio", "virtio/virtio_pci_legacy_dev"),
    *("virtio/virtio_pci_modern_dev", "virtio/virtio_pci", "virtio/virtio_balloon"),
    *("net/failover", "net/net_failover", "net/virtio_net", "char/virtio_console"),
    *("input/evdev", "acpi/button"),
)
"""In the order of loading."""
_FETCH_S: Final = 300.0
"""27 MB; three seconds from a near mirror."""


@dataclass(frozen=True, slots=True)
class LinuxGuest:
    """What it boots from."""

    kernel: Path
    initrd: Path

    def copy(self, folder: Path) -> "LinuxGuest":
        """The same files in another folder."""
        folder.mkdir(exist_ok=True)
        return LinuxGuest(
            Path(shutil.copy(self.kernel, folder)), Path(shutil.copy(self.initrd, folder))
        )

    def template(self, name: str, domain_type: str = "qemu", bridge: str = "br0") -> str:
        """A template for a guest of that name."""
        return f"""<domain type='{domain_type}'>
  <name>{name}</name>
  <memory unit='KiB'>{MEMORY_KIB}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{self.kernel}</kernel>
    <initrd>{self.initrd}</initrd>
    <cmdline>console=ttyS0 quiet panic=1 mitigations=off</cmdline>
  </os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <interface type='bridge'>
      <source bridge={quoteattr(bridge)}/><model type='virtio'/><rom enabled='no'/>
    </interface>
    <serial type='pty'/>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
  </devices>
</domain>"""


def linux_guest() -> LinuxGuest:
    """The guest, fetched and packed if it is not at hand; without a mirror, the last that was made.

    Raises:
        PreconditionError: it cannot be; says what to do.
    """
    for path, package in ((_BUSYBOX, "busybox-static"), (Path("/usr/bin/cpio"), "cpio")):
        if not path.exists():
            raise PreconditionError(f"a Linux guest needs more: apt-get install {package}")
    mark = hashlib.sha256(_INIT.read_bytes() + repr(_MODULES).encode()).hexdigest()[:12]
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    cache = Path(base, "snooze-lab")
    try:
        kept = _kept(cache, mark)
    except PreconditionError:
        try:  # apt's lists may be older than the mirror
            _run("apt-get", "update", "-q")
            kept = _kept(cache, mark)
        except PreconditionError:
            older = sorted(cache.glob(f"linux-image-*-{mark}"))
            if not older:
                raise
            kept = older[-1]
    return LinuxGuest(kept / "kernel", kept / "initrd")


def _kept(cache: Path, mark: str) -> Path:
    """The folder of the newest kernel's guest; made if it is not there."""
    kernel = _newest_kernel()
    kept = cache / f"{kernel}-{mark}"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="making-") as folder:
            made = Path(folder, "made")
            _make(kernel, Path(folder), made)
            try:
                made.rename(kept)
            except OSError:
                if not kept.exists():  # else another lab was quicker
                    raise
    return kept


def _newest_kernel() -> str:
    """The package that Debian's cloud kernel is at present."""
    said = _run("apt-cache", "depends", _KERNEL)
    match = re.search(r"Depends: (linux-image-[a-z0-9.+-]+)", said)
    if match is None:
        raise PreconditionError(f"a Linux guest cannot be made: apt knows no {_KERNEL}")
    return match[1]


def _make(kernel: str, folder: Path, made: Path) -> None:
    """Fetch, unpack and pack."""
    _run("apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", kernel, _AGENT, cwd=folder)
    unpacked, root = folder / "unpacked", folder / "root"
    for package in folder.glob("*.deb"):
        _run("dpkg-deb", "--extract", str(package), str(unpacked))
    for name in ("bin", "sbin", "modules"):
        (root / name).mkdir(parents=True)
    shutil.copy(_BUSYBOX, root / "bin/busybox")
    shutil.copy(_INIT, root / "init")
    (root / "init").chmod(0o755)
    for module in _MODULES:
        name = f"{Path(module).name}.ko"
        [found] = unpacked.glob(f"lib/modules/*/kernel/**/{name}")
        shutil.copy(found, root / "modules" / name)
    order = "".join(f"{Path(module).name}.ko\n" for module in _MODULES)
    (root / "modules/order").write_text(order)
    agent = unpacked / "usr/sbin/qemu-ga"
    shutil.copy(agent, root / "sbin/qemu-ga")
    for library in _libraries(agent):
        (root / library.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, root / library.lstrip("/"))
    made.mkdir()
    [image] = unpacked.glob("boot/vmlinuz-*")
    shutil.copy(image, made / "kernel")
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with (made / "initrd").open("wb") as initrd:  # not packed: unpacking takes the guest longer
        subprocess.run(
            ("cpio", "--create", "--quiet", "--format=newc", "--owner=0:0"),
            input=names.encode(),
            stdout=initrd,
            cwd=root,
            check=True,
            timeout=60,
        )


def _libraries(program: Path) -> Sequence[str]:
    """The files that a program loads; of this machine, which is no newer than its packages.

    Raises:
        PreconditionError: names those that are missing.
    """
    said = _run("ldd", str(program))
    missing = re.findall(r"(\S+) => not found", said)
    if missing:
        raise PreconditionError(
            f"{_AGENT} needs {', '.join(missing)}: apt-get install --no-install-recommends {_AGENT}"
        )
    return re.findall(r"(/\S+) \(0x", said)


def _run(*command: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=cwd,
            timeout=_FETCH_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PreconditionError(f"a Linux guest cannot be made: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise PreconditionError(
            f"a Linux guest cannot be made: {command[0]}: {' '.join(said)}; "
            "it is made of Debian's packages, so apt-get has to reach a mirror"
        )
    return done.stdout
