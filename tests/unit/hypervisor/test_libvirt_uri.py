"""libvirt's addresses, and what to do when nobody answers there."""

import pytest

from snooze.localcontroller.hypervisor.libvirt_uri import (
    explain,
    peer_uri,
    transport_of,
    without_questions,
)


@pytest.mark.parametrize(
    ("uri", "transport"),
    [
        ("qemu:///system", ""),
        ("qemu+unix:///system", ""),
        ("test:///default", ""),
        ("qemu+tcp://h/system", "tcp"),
        ("qemu+ssh://root@h/system", "ssh"),
        ("qemu://h/system", "tls"),
        ("qemu+tls://h:1/system?pkipath=/a", "tls"),
    ],
)
def test_the_transport_is_read_as_libvirt_does(uri: str, transport: str) -> None:
    assert transport_of(uri) == transport


def test_ssh_never_asks_anybody() -> None:
    assert without_questions("qemu+ssh://h/system") == "qemu+ssh://h/system?no_tty=1"
    asked = without_questions("qemu+ssh://h/system?no_tty=0&keyfile=/a%20b&proxy=native")
    assert asked == "qemu+ssh://h/system?keyfile=/a%20b&proxy=native&no_tty=1"
    assert without_questions(asked) == asked
    for other in ("qemu:///system", "qemu+tls://h/system?pkipath=/a", "test:///default"):
        assert without_questions(other) == other


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("qemu:///system", "qemu+tcp://me/system"),
        ("qemu+tcp://127.0.0.1/system", "qemu+tcp://me/system"),
        ("qemu+tls://localhost/system", "qemu+tcp://me/system"),
        ("qemu+tls://10.0.0.1/system?pkipath=/a", "qemu+tls://10.0.0.1/system?pkipath=/a"),
        ("qemu+ssh://root@h/system", "qemu+ssh://root@h/system?no_tty=1"),
    ],
)
def test_a_peer_uses_the_address_that_means_the_same_there(uri: str, expected: str) -> None:
    assert peer_uri(uri, "me") == expected


@pytest.mark.parametrize(
    ("uri", "said", "part"),
    [
        ("qemu+tls://h/system", "unable to connect to server: Connection refused", "port 16514"),
        ("qemu+tls://h:77/system", "unable to connect to server: Connection refused", "port 77"),
        ("qemu+tcp://h/system", "unable to connect to server: Connection refused", "-tcp.socket"),
        ("qemu+ssh://h/system", "ssh: connect to host h port 22: No route to host", "run sshd"),
        ("qemu+ssh://h/system", "sh: 1: nc: not found: Input/output error", "virt-ssh-helper"),
        ("qemu+ssh://h/system", "cannot execute binary ssh: No such file", "installed here"),
        ("qemu+ssh://u@h:2/system", "client socket is closed", "-p 2 u@h virsh"),
        ("qemu+tls://h/system", "Cannot read CA certificate '/a/cacert.pem'", "pkipath="),
        ("qemu:///system", "Failed to connect socket to '/x': Permission denied", "group libvirt"),
        ("qemu:///system", "Failed to connect socket to '/x': No such file", "has to run"),
    ],
)
def test_a_refusal_says_what_to_do(uri: str, said: str, part: str) -> None:
    text = explain(uri, said)
    assert text.startswith(f"cannot connect to {uri}: {said} [")
    assert part in text.partition(said)[2]


def test_what_nobody_knows_is_told_as_it_is_on_one_short_line() -> None:
    assert explain("qemu:///system", "it is\nMonday").endswith("qemu:///system: it is Monday")
    banner = "@" * 60 + "\n@ WARNING @\n" + "word " * 1000 + "Host key verification failed."
    text = explain("qemu+ssh://h/system", banner)
    assert "\n" not in text
    assert "@@" not in text
    assert len(text) < 800
    assert "ssh-keyscan h" in text


@pytest.mark.parametrize("uri", ["qemu+ssh://[h/system", "qemu+ssh://h:x/system"])
def test_a_malformed_address_is_left_for_libvirt_to_refuse(uri: str) -> None:
    assert without_questions(uri) == uri
    assert explain(uri, "no") == f"cannot connect to {uri}: no"
