"""What SRTP costs the media worker: CPU of a sweep's work on a packet, plain and encrypted.

Packets are received over loopback, decrypted, and spooled, as in a worker; a suite after the other
in one run, several rounds, the best of each counts.
"""

import argparse
import resource
import socket
import tempfile
import time
from pathlib import Path

from siprec_bridge.receiver.control import Configuration, StreamSpec
from siprec_bridge.receiver.worker import Worker
from siprec_bridge.rtp import SrtpSender, available_suites, build_packet
from siprec_bridge.sdp import SUITES, Codec, StreamKeys

_SWEEPS, _PER_SWEEP = 25, 10  # as 20 ms packets swept every 200 ms
_ROUNDS = 5


def main() -> None:
    """Print µs of CPU a packet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=100)
    streams: int = parser.parse_args().streams
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * streams + 100)), hard))
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(_ROUNDS):
            for suite in ("plain", *available_suites()):
                cost = _measure(suite, streams, Path(folder) / f"{suite}-{number}")
                best[suite] = min(cost, best.get(suite, cost))
    print(f"{streams} streams, {_SWEEPS * _PER_SWEEP} packets each, best of {_ROUNDS}")
    for suite, cost in best.items():
        print(f"{suite:<26} {cost:5.2f} us a packet, {cost / best['plain']:.2f} times plain")


def _measure(suite: str, streams: int, folder: Path) -> float:
    ours, theirs = socket.socketpair()
    worker = Worker(theirs)
    configuration = Configuration(16384, 32767, True, 30.0, "learned")
    worker._do({"do": "configure", "configuration": configuration.to_json()})
    key = bytes(range(SUITES.get(suite, 0)))
    keys = StreamKeys(suite, key, key) if key else None
    ports: list[int] = []
    for index in range(streams):
        codecs = (Codec(0, "PCMU", 8000),)
        spec = StreamSpec(f"s-{index}", "s", index, str(index), codecs, folder, "127.0.0.1", keys)
        reply = worker._do({"do": "open", "spec": spec.to_json(), "port": None, "rollovers": []})
        port = reply["port"]
        assert isinstance(port, list)
        ports.append(port[1])
    senders = [SrtpSender(suite, key) if key else None for _ in ports]
    spent = 0.0
    with ours, theirs, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for sweep in range(_SWEEPS):
            for sender, port in zip(senders, ports, strict=True):
                for number in range(sweep * _PER_SWEEP, (sweep + 1) * _PER_SWEEP):
                    packet = build_packet(0, number, 160 * number, port, bytes(160))
                    packet = sender.protect(packet) if sender is not None else packet
                    out.sendto(packet, ("127.0.0.1", port))
            begun = time.process_time()
            worker._intake.sweep()
            spent += time.process_time() - begun
        reports = worker._close(list(worker._streams))
    expected = streams * _SWEEPS * _PER_SWEEP
    received = sum(one.packets for one in reports)
    assert received == expected, f"{received} of {expected} packets"
    return spent / expected * 1e6


if __name__ == "__main__":
    main()
