"""The ring where packets pass a network card and a bridge: each once, in pieces or merged."""

import json
import os
import shutil
import subprocess
import sys

import pytest

FAR = """
import socket, struct
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.settimeout(0.05)
while True:  # until the way is there
    one.sendto(b"", ("10.99.0.1", 20001))
    try:
        one.recv(10)
        break
    except OSError:
        pass
for number in range(20):
    one.sendto(bytes([0x80, 0, 0, number]) + bytes(168), ("10.99.0.1", 20000))
one.sendto(bytes(2000), ("10.99.0.1", 20000))
one.setsockopt(socket.IPPROTO_UDP, 103, 172)  # UDP_SEGMENT
one.sendto(bytes(10 * 172), ("10.99.0.1", 20000))
# With the tag of VLAN 0: a priority, and no network of its own.
ends = bytes([10, 99, 0, 2]) + bytes([10, 99, 0, 1])
udp = struct.pack("!4H", 5555, 20000, 8 + 160, 0) + bytes(160)
words = [0x4500, 20 + len(udp), 0, 0, 0x4011, 0, *struct.unpack("!4H", ends)]
words[5] = 0xFFFF - sum(words) % 0xFFFF
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
    raw.bind(("vb", 0))
    # Of VLAN 5, which has no interface here: it is nobody's.
    for tag in ("a005", "a000"):
        frame = bytes.fromhex("020000000001") + raw.getsockname()[4] + bytes.fromhex("8100" + tag + "0800")
        raw.send(frame + struct.pack("!10H", *words) + udp)
"""
NEAR = """
import json, socket, subprocess, sys
from siprec_bridge.receiver.ring import Ring
from siprec_bridge.receiver.arena import Arena

lengths = []
for interfaces in ([], ["br0"], ["va"]):
    ring, arena = Ring(20000, 20001, interfaces, 1 << 24), Arena()
    ring.open("10.99.0.1", 20000, 0)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hello,
    ):
        one.bind(("10.99.0.1", 20000))
        hello.bind(("10.99.0.1", 20001))
        far = subprocess.Popen(["ip", "netns", "exec", "far", sys.executable, "-c", sys.argv[1]])
        hello.sendto(b"go on", hello.recvfrom(10)[1])
        far.wait()
        ring.settle()
        lengths.append([one for _ in ring.take(arena) for one in arena.lengths.tolist()])
    ring.stop()
print(json.dumps(lengths))
"""
SET_UP = """
set -e
mount --make-rprivate / && mount -t tmpfs none /run && mount -t sysfs none /sys
ip netns add far
ip link add va address 02:00:00:00:00:01 type veth peer name vb && ip link set vb netns far
ip link add br0 address 02:00:00:00:00:01 type bridge
ip link set va master br0 up
ip address add 10.99.0.1/24 dev br0 && ip link set br0 up
ip -n far address add 10.99.0.2/24 dev vb && ip -n far link set vb up
"""
MANY_PORTS = """
for number in $(seq 130); do
    echo link add x$number type veth peer name y$number
    echo link set x$number master br0
    echo link set y$number master br0
done | ip -batch -
"""
ALONE = ("unshare", "--net", "--mount", "sh", "-c")


def _refusal() -> str | None:
    if os.getuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        return "network namespaces want root, unshare and ip"
    done = subprocess.run([*ALONE, SET_UP], capture_output=True, text=True, check=False)
    return done.stderr.strip() or None if done.returncode else None


@pytest.mark.parametrize("more", ["", MANY_PORTS], ids=["two ports", "hundreds of ports"])
def test_each_packet_comes_once_at_a_bridge_whole_and_in_its_place(more: str) -> None:
    if refusal := _refusal():
        pytest.skip(refusal)

    done = subprocess.run(
        [*ALONE, f'{SET_UP}{more}exec "$0" "$@"', sys.executable, "-c", NEAR, FAR],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip

    assert json.loads(done.stdout) == 3 * [20 * [172] + [2000] + 10 * [172] + [160]]
