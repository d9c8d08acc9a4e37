"""Network addresses as people write them."""

import re

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,252})")


def parse_host_port(text: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[ipv6]:port``.

    Raises:
        ValueError: if it is neither; the message is for people.
    """
    host, colon, port_text = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f'"{text}" is not host:port')
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not re.fullmatch(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?", host):
            raise ValueError(f'"{text}" is not [ipv6-address]:port')
    elif not _HOST.fullmatch(host):
        raise ValueError(f'"{text}" is not host:port')
    if not re.fullmatch(r"[0-9]{1,5}", port_text) or not 1 <= int(port_text) <= 65535:
        raise ValueError(f'"{text}" has no port between 1 and 65535')
    return host, int(port_text)


def format_host_port(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
