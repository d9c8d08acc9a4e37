"""The original's option strings, our own, and what is refused."""

from pathlib import Path

import pytest

from snooze.common.errors import InvalidRequest, PreconditionError
from snooze.common.power_options import (
    CommandOptions,
    IpmiOptions,
    RedfishOptions,
    SimulatedOptions,
    WolOptions,
    parse_power,
    shown_options,
)
from snooze.common.secret import MAX_FILE_BYTES, NO_SECRET, Secret
from snooze.common.settings_power import WakeupSettings
from snooze.common.wire import PowerDescription

MAC = bytes.fromhex("525400123456")


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        (
            "-I lanplus -H BMC_IP -U user -P password",
            IpmiOptions("BMC_IP", "user", Secret("password")),
        ),
        (
            "-H 10.0.0.9 -U admin -f /etc/snooze/bmc -p 6230 -C 3 -L operator",
            IpmiOptions("10.0.0.9", "admin", Secret(file="/etc/snooze/bmc"), 6230, 3),
        ),
        ("-H fe80::1 -Uadmin -P'ge heim'", IpmiOptions("fe80::1", "admin", Secret("ge heim"))),
        ("-H b -U u -P -v", IpmiOptions("b", "u", Secret("-v"))),
        ("-H b -C 17 -N 1 -R 2 -v", IpmiOptions("b", "", NO_SECRET)),
        ("-H b -y 00ff", IpmiOptions("b", "", NO_SECRET, kg=Secret("00ff"), kg_is_hex=True)),
    ],
)
def test_ipmi(options: str, meant: IpmiOptions) -> None:
    assert parse_power("IPMI", options) == meant


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ("https://bmc -U u -P p", RedfishOptions("https://bmc", "u", Secret("p"))),
        (
            "-U u -f /x https://10.0.0.9:8443/redfish/v1/ --system 1 --auth session",
            RedfishOptions("https://10.0.0.9:8443", "u", Secret(file="/x"), "1", "session"),
        ),
        (
            "https://bmc --ca-file /ca.pem",
            RedfishOptions("https://bmc", "", NO_SECRET, ca_file="/ca.pem"),
        ),
        ("http://bmc --insecure", RedfishOptions("http://bmc", "", NO_SECRET, verify=False)),
    ],
)
def test_redfish(options: str, meant: RedfishOptions) -> None:
    assert parse_power("REDFISH", options) == meant


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ("52:54:00:12:34:56", WolOptions((MAC,))),
        ("52-54-00-12-34-56 525400123456", WolOptions((MAC,))),
        ("-i 10.0.0.255 52:54:00:12:34:56", WolOptions((MAC,), "10.0.0.255")),
        ("-i eth0 -p 7 52:54:00:12:34:56", WolOptions((MAC,), interface="eth0", port=7)),
        (
            "-i eth0 -i 10.0.0.255 52:54:00:12:34:56",
            WolOptions((MAC,), "10.0.0.255", "eth0"),
        ),
    ],
)
def test_wake_on_lan(options: str, meant: WolOptions) -> None:
    assert parse_power("WOL", options) == meant


def test_commands() -> None:
    options = """--on "wake 'node 7'" --off=halt --status 'ipmitool chassis status'"""
    assert parse_power("COMMAND", options) == CommandOptions(
        ("wake", "node 7"), ("halt",), ("ipmitool", "chassis", "status")
    )
    assert parse_power("kapower3", "-m node-7") == CommandOptions(
        ("kapower3", "-m", "node-7", "--on", "--no-wait")
    )


def test_the_simulated() -> None:
    assert parse_power("test", "") == SimulatedOptions()
    assert parse_power("test", "h7") == SimulatedOptions("h7")


@pytest.mark.parametrize(
    ("driver", "options", "said"),
    [
        ("IPMI", "", "-H HOST"),
        ("IPMI", "-H", "lacks its value"),
        ("IPMI", "-H b -Z geheim", "not known"),
        ("IPMI", "-H b -P ge heim", "stray word"),
        ("IPMI", "-H b -P 'geheim", "split"),
        ("IPMI", "-H b -P geheim -f /geheim", "exclude"),
        ("IPMI", "-H b -f geheim", "absolute"),
        ("IPMI", "-H b -p 0", "port"),
        ("IPMI", "-H b -p 65536", "port"),
        ("IPMI", "-H b -p ٦", "port"),
        ("IPMI", "-H b -H b", "twice"),
        ("IPMI", "-H -oProxy=geheim;b", "-H HOST"),
        ("IPMI", "-H b -I open", "-I"),
        ("IPMI", "-H b -C 0", "-C"),
        ("IPMI", "-H b -L ROOT", "-L"),
        ("IPMI", "-H b\n-P geheim", "unprintable"),
        ("IPMI", "-H b -P " + "geheim" * 1000, "longer"),
        ("REDFISH", "", "one URL"),
        ("REDFISH", "ftp://geheim", "URL"),
        ("REDFISH", "https://u:geheim@bmc", "no user or password"),
        ("REDFISH", "https://bmc/geheim", "without a path"),
        ("REDFISH", "https://bmc --system ../geheim", "--system"),
        ("REDFISH", "https://bmc --system ..", "--system"),
        ("REDFISH", "https://bmc --ca-file /geheim --insecure", "exclude"),
        ("REDFISH", "https://bmc --auth geheim", "--auth"),
        ("WOL", "", "MAC"),
        ("WOL", "52:54:00:12:34", "MAC"),
        ("WOL", "52:54-00:12:34:56", "MAC"),
        ("WOL", " ".join(["52:54:00:12:34:56"] * 9), "1 to 8"),
        ("WOL", "-i a/b 52:54:00:12:34:56", "-i"),
        ("COMMAND", "", "at least one"),
        ("COMMAND", "reboot geheim", "stray"),
        ("COMMAND", "--on ''", "empty"),
        ("COMMAND", '--on "a \'geheim"', "split"),
        ("test", "a geheim", "one name"),
        ("bell", "geheim", "no power driver"),
    ],
)
def test_what_is_refused_is_not_repeated(driver: str, options: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        parse_power(driver, options)
    assert "geheim" not in str(caught.value)


def password_file(folder: Path, text: bytes, mode: int = 0o600) -> Secret:
    path = folder / "bmc"
    path.write_bytes(text)
    path.chmod(mode)
    return Secret(file=str(path))


class TestPasswordFiles:
    def test_its_first_line_is_the_password(self, tmp_path: Path) -> None:
        assert password_file(tmp_path, b"ge heim \r\nrest").read() == "ge heim "
        assert password_file(tmp_path, b"geheim", 0o640).read() == "geheim"

    def test_it_is_read_each_time(self, tmp_path: Path) -> None:
        secret = password_file(tmp_path, b"old")
        assert secret.read() == "old"
        password_file(tmp_path, b"new")
        assert secret.read() == "new"

    @pytest.mark.parametrize("mode", [0o604, 0o602, 0o666])
    def test_one_open_to_all_is_refused(self, mode: int, tmp_path: Path) -> None:
        with pytest.raises(PreconditionError, match="chmod o="):
            password_file(tmp_path, b"geheim", mode).read()

    @pytest.mark.parametrize("text", [b"", b"\nsecond", b"\xff\xfe", b"\r\n"])
    def test_one_without_a_password_is_refused(self, text: bytes, tmp_path: Path) -> None:
        with pytest.raises(PreconditionError, match="bmc"):
            password_file(tmp_path, text).read()

    def test_a_pipe_does_not_hold_us_up(self, tmp_path: Path) -> None:
        import os

        os.mkfifo(tmp_path / "pipe", 0o600)
        for path in (tmp_path / "pipe", tmp_path, tmp_path / "none", Path("/dev/zero")):
            with pytest.raises(PreconditionError):
                Secret(file=str(path)).read()

    def test_a_huge_one_is_read_in_part(self, tmp_path: Path) -> None:
        assert len(password_file(tmp_path, b"x" * 100_000).read()) == MAX_FILE_BYTES

    def test_nothing_is_shown(self) -> None:
        assert "geheim" not in repr(Secret("geheim"))
        assert "geheim" not in repr(parse_power("IPMI", "-H b -P geheim -k geheim"))
        assert "geheim" not in repr(parse_power("COMMAND", "--on 'wake -P geheim'"))


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (
            "--on '/opt/pdu -p geheim 7' --status 'curl -u a:geheim x'",
            "--on /opt/pdu... --status curl...",
        ),
        ("--off '/opt/my pdu' geheim", "***"),
        ("", ""),
    ],
)
def test_of_commands_only_the_programs_are_shown(options: str, shown: str) -> None:
    assert shown_options("COMMAND", options) == shown
    for told in (
        PowerDescription("COMMAND", options),
        WakeupSettings(driver="COMMAND", options=options),
    ):
        assert "geheim" not in repr(told)
