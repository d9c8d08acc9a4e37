"""Certificates for a lab: a throw-away CA, and libvirtds that listen with TLS.

Made by openssl when they are needed, good for a day, and gone with the folder they lie in. Nothing
is put into the machine's ``/etc/pki``: servers are told by libvirtd.conf where theirs are, clients
by ``pkipath`` in the URI.
"""

import subprocess
from pathlib import Path
from typing import Final
from urllib.parse import quote

from snooze.lab.host_files import LIBVIRTD_CONF, QEMU_CONF
from snooze.lab.hosts import LabHost

_DAYS: Final = "1"
_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")
# libvirt 9 refuses certificates without keyEncipherment, though no key of this kind enciphers one
_LEAF: Final = """\
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = {purpose}
"""
_CONF: Final = """\
ca_file = "{folder}/cacert.pem"
cert_file = "{folder}/servercert.pem"
key_file = "{folder}/serverkey.pem"
"""


class LabCa:
    """A certificate authority in ``folder``, which is made."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.certificate = folder / "cacert.pem"
        self._openssl(
            *("req", "-x509", *_KEY, "-keyout", "cakey.pem", "-out", "cacert.pem"),
            *("-days", _DAYS, "-subj", f"/CN={folder.name}"),
            *("-addext", "keyUsage=critical,keyCertSign"),
        )

    def server(self, host: LabHost) -> Path:
        """A folder with the host's certificate, which names its address and its name."""
        names = f"IP:{host.address},DNS:{host.name}"
        extensions = _LEAF.format(purpose="serverAuth") + f"subjectAltName = {names}\n"
        return self._issue(f"host-{host.name}", "server", extensions)

    def client(self, name: str, *trusted: "LabCa") -> Path:
        """A folder for ``pkipath``: the client's certificate and key, and the CAs it trusts.

        Args:
            trusted: CAs besides this one.
        """
        folder = self._issue(name, "client", _LEAF.format(purpose="clientAuth"))
        with (folder / "cacert.pem").open("a") as authorities:
            authorities.writelines(other.certificate.read_text() for other in trusted)
        return folder

    def _issue(self, name: str, kind: str, extensions: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        request, about = folder / "request.csr", folder / "extensions"
        about.write_text(extensions)
        key, certificate = folder / f"{kind}key.pem", folder / f"{kind}cert.pem"
        subject = ("-subj", f"/CN={name}")
        self._openssl("req", *_KEY, "-keyout", str(key), "-out", str(request), *subject)
        self._openssl(
            *("x509", "-req", "-in", str(request), "-CA", "cacert.pem", "-CAkey", "cakey.pem"),
            *("-CAcreateserial", "-days", _DAYS, "-extfile", str(about), "-out", str(certificate)),
        )
        (folder / "cacert.pem").write_text(self.certificate.read_text())
        return folder

    def _openssl(self, *arguments: str) -> None:
        done = subprocess.run(
            ("openssl", *arguments), cwd=self.folder, capture_output=True, timeout=30, check=False
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise RuntimeError(f"openssl {arguments[0]}: {said}")


def serve_tls(host: LabHost, ca: LabCa) -> None:
    """Let the host's libvirtd listen with TLS, too, from its next ``power_on``."""
    conf = LIBVIRTD_CONF.format(uuid=host.uuid).replace("listen_tls = 0", "listen_tls = 1")
    own = _CONF.format(folder=ca.server(host))
    host.configure(conf + own, QEMU_CONF.format(address=host.address))


def tls_uri(address: str, client: Path) -> str:
    """Of the libvirt at an address, for the client whose certificate lies in that folder."""
    return f"qemu+tls://{address}/system?pkipath={quote(str(client))}"
