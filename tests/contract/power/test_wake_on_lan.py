"""Magic packets on a real Ethernet of two cards, in a network namespace of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from snooze.common.errors import RemoteError
from snooze.common.power_options import WolOptions, parse_power
from snooze.groupmanager.power.wake_on_lan import REPEATS, WakeOnLanController, magic_packet

ROOT = Path(__file__).parents[3]
MAC = "52:54:00:12:34:56"

SCRIPT = """
import asyncio, socket, subprocess, sys

for command in (
    "ip link set lo up",
    "ip link add near type veth peer name far",
    "ip addr add 10.9.9.1/24 dev near",
    "ip link set near up",
    "ip link set far up",
):
    subprocess.run(command.split(), check=True)

from snooze.common.power_options import parse_power
from snooze.groupmanager.power.wake_on_lan import WakeOnLanController

ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
ear.bind(("far", 0))
asyncio.run(WakeOnLanController(parse_power("WOL", sys.argv[1])).on())
ear.settimeout(1.0)
packet = bytes.fromhex("ff" * 6 + sys.argv[2].replace(":", "") * 16)
found = {}
while True:
    try:
        frame = ear.recv(2048)
    except TimeoutError:
        break
    if packet in frame:
        to, kind = frame[:6].hex(), frame[12:14].hex()
        found[kind] = found.get(kind, 0) + 1
        assert to == "ff" * 6, to
        assert kind != "0842" or frame[14:] == packet
        assert kind != "0800" or frame[36:38] == (9).to_bytes(2), frame[36:38]
print(" ".join(f"{kind}:{count}" for kind, count in sorted(found.items())))
"""


@pytest.mark.parametrize(
    ("options", "heard"),
    [
        (f"-i near {MAC}", f"0800:{REPEATS} 0842:{REPEATS}"),
        (f"-i near -i 10.9.9.255 {MAC}", f"0800:{REPEATS} 0842:{REPEATS}"),
        (f"-i 10.9.9.255 {MAC}", f"0800:{REPEATS}"),
        (f"-i near 52:54:00:12:34:55 {MAC}", f"0800:{REPEATS} 0842:{REPEATS}"),
    ],
)
def test_packets_arrive_by_both_ways(options: str, heard: str) -> None:
    if os.geteuid():
        pytest.skip("namespaces take root")
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-P", "-c", SCRIPT, options, MAC],
        env={**os.environ, "PYTHONPATH": str(ROOT / "typings")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == heard


async def test_where_no_way_leads_anywhere_it_is_said() -> None:
    meant = parse_power("WOL", f"-i nosuchcard {MAC}")
    assert isinstance(meant, WolOptions)
    with pytest.raises(RemoteError, match=r"by UDP .*as a raw frame"):
        await WakeOnLanController(meant).on()


def test_the_packet() -> None:
    packet = magic_packet(bytes.fromhex("525400123456"))
    assert len(packet) == 102
    assert packet[:12].hex() == "ffffffffffff525400123456"
