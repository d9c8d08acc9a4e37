"""No password gets out, and no more than passwords is hidden."""

import pytest

from snooze.common.addresses import format_host_port, parse_host_port
from snooze.common.redaction import redact_options


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ("-I lanplus -H h -U user -P geheim", "-I lanplus -H h -U user -P ***"),
        ("-Pgeheim -H h", "-P*** -H h"),
        ("-P 'ge heim' -H h", "-P *** -H h"),
        ('-P "ge heim" -H h', "-P *** -H h"),
        ("-P 'geheim", "-P ***"),
        ("-k geheim -y geheim", "-k *** -y ***"),
        ("-p 623 -f /etc/password -L OPERATOR", "-p 623 -f /etc/password -L OPERATOR"),
        ("--password geheim --host h", "--password *** --host h"),
        ("--password=geheim", "--password=***"),
        ("password: geheim", "password: ***"),
        ("--password-file /etc/bmc", "--password-file /etc/bmc"),
        ("api_token=geheim x", "api_token=*** x"),
        ("https://user:geheim@bmc/redfish", "https://user:***@bmc/redfish"),
        ("https://user:ge@heim@bmc/redfish", "https://user:***@bmc/redfish"),
        ("--on 'curl -u admin:geheim http://pdu/on'", "--on 'curl -u admin:*** http://pdu/on'"),
        ("--user=admin:geheim", "--user=admin:***"),
        ("00:11:22:33:44:55", "00:11:22:33:44:55"),
        ("-m node-7", "-m node-7"),
        ("", ""),
    ],
)
def test_options(options: str, shown: str) -> None:
    assert redact_options(options) == shown


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("h1:5000", "h1", 5000),
        ("10.0.0.1:1", "10.0.0.1", 1),
        ("[fe80::1%eth0]:2", "fe80::1%eth0", 2),
    ],
)
def test_addresses_there_and_back(text: str, host: str, port: int) -> None:
    assert parse_host_port(text) == (host, port)
    assert format_host_port(host, port) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "h",
        "h:",
        ":1",
        "h:0",
        "h:65536",
        "h:-1",
        "h:1x",
        "::1",
        "fe80::1:5",
        "h h:1",
        "h:1\n",
        "[]:1",
        "[x]:1",
        "h/p:1",
        "h:٣",
        "http://h:1",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"host:port|ipv6|port between"):
        parse_host_port(text)
