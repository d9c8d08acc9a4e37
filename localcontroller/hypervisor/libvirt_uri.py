"""libvirt's addresses: never asking anybody, reachable from elsewhere, and what to do about a no.

Source: https://libvirt.org/uri.html (transports and their parameters).
"""

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

_MAX_SAID: Final = 400

_NO_ROUTE: Final = (
    "Connection refused|No route to host|timed out|resolve|address associated|Name or service"
)
_ADVICE: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "ssh",
        "Host key verification failed|HOST IDENTIFICATION",
        "the key of {host} is not the one in known_hosts of the user this daemon runs as; "
        "check it, then add it there (ssh-keyscan {host})",
    ),
    (
        "ssh",
        "Permission denied",
        "{host} refused the key: its public half belongs into authorized_keys of {user} there, "
        "its private half is named by keyfile=, and it has no passphrase or an agent has it",
    ),
    (
        "ssh",
        "not found|virt-ssh-helper",
        "on {host}, libvirt has to run, with virt-ssh-helper (libvirt 6.8 or newer) or nc",
    ),
    ("ssh", "cannot execute binary", "ssh, or what command= names, has to be installed here"),
    ("ssh", _NO_ROUTE, "{host} has to be up and run sshd on port {port}"),
    (
        "ssh",
        "client socket is closed|Connection reset|End of file",
        "ssh itself failed; as the user this daemon runs as, try: "
        "ssh -o BatchMode=yes -p {port} {user}@{host} virsh version",
    ),
    (
        "tls",
        "Failed to verify peer",
        "the certificate of {host} has expired, or is not signed by the CA in our cacert.pem, or "
        "does not name {host} as the URI does (subjectAltName)",
    ),
    (
        "tls",
        "TLS confirmation|TLS handshake|TLS session",
        "{host} refused our clientcert.pem: the CA it trusts has to have signed it, and "
        "tls_allowed_dn_list, if set, has to name it",
    ),
    (
        "tls",
        "certificate|private key|[.]pem",
        "cacert.pem, clientcert.pem and clientkey.pem of this side lie where pkipath= says, else "
        "below /etc/pki",
    ),
    (
        "tls",
        _NO_ROUTE,
        "{host} has to be up and its libvirt to listen with TLS on port {port} "
        "(libvirtd-tls.socket)",
    ),
    (
        "tcp",
        _NO_ROUTE,
        "{host} has to be up and its libvirt to listen on port {port} (libvirtd-tcp.socket)",
    ),
    (
        "",
        "Permission denied|access denied|authentication",
        "the user this daemon runs as has to be in the group libvirt",
    ),
    ("", "Failed to connect socket", "libvirtd or virtqemud has to run on this host"),
)
"""Transport, what libvirt or its helper says, what to do; the first that fits."""

_PORTS: Final = {"ssh": 22, "tls": 16514, "tcp": 16509}


def transport_of(uri: str) -> str:
    """``ssh``, ``tls``, ``tcp``, ...; empty for a local socket. A host alone means TLS."""
    parts = _split(uri)
    transport = parts.scheme.partition("+")[2]
    if not transport and parts.netloc:
        return "tls"
    return "" if transport == "unix" else transport


def without_questions(uri: str) -> str:
    """The same address with ``no_tty=1`` for ssh: it fails (BatchMode) where it would ask."""
    if transport_of(uri) != "ssh":
        return uri
    address, _, query = uri.partition("?")
    kept = [part for part in query.split("&") if part and not part.startswith("no_tty=")]
    return f"{address}?{'&'.join((*kept, 'no_tty=1'))}"


def is_local(uri: str) -> bool:
    """Whether the hypervisor is this machine's: only then our kernel tells of it."""
    return (_split(uri).hostname or "localhost") in {"localhost", "127.0.0.1", "::1"}


def peer_uri(uri: str, hostname: str) -> str:
    """By which the libvirt of another host reaches the hypervisor at ``uri``.

    Args:
        hostname: the hypervisor's own name, for an address that only means something here.
    """
    host = _split(uri).hostname or ""
    if not host or host == "localhost" or host.startswith("127.") or host == "::1":
        return f"qemu+tcp://{hostname}/system"
    return without_questions(uri)


def explain(uri: str, said: str) -> str:
    """One line: why there is no connection to ``uri``, in libvirt's words, and what to do."""
    line = " ".join(re.sub(r"@{2,}", " ", said).split())
    if len(line) > _MAX_SAID:
        line = f"{line[: _MAX_SAID // 2]} ... {line[-_MAX_SAID // 2 :]}"
    text = f"cannot connect to {uri}: {line}"
    transport, parts = transport_of(uri), _split(uri)
    for kind, words, advice in _ADVICE:
        if kind == transport and re.search(words, said):
            port = parts.port or _PORTS.get(transport, 0)
            host, user = parts.hostname or "this host", parts.username or "our user"
            return f"{text} [{advice.format(host=host, port=port, user=user)}]"
    return text


def _split(uri: str) -> SplitResult:
    """The parts; none of an address that is malformed, about which libvirt itself complains."""
    try:
        parts = urlsplit(uri)
        parts.port  # noqa: B018  # may raise, too
    except ValueError:
        return urlsplit("")
    return parts
