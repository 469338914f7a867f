"""A worker between a bridge and a network that do their worst: an honest call beside it loses nothing."""

import shutil
import socket
import struct
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from pylibsrtp import Error

from harness.hosts import has_ipv6
from harness.media import spec, spooled
from harness.rtp import packets, tone
from siprec_bridge.dtls import Certificate
from siprec_bridge.media import DtlsTask, StreamSpec
from siprec_bridge.receiver.control import Configuration, SourcePolicy, decode, encode
from siprec_bridge.receiver.worker import Worker
from siprec_bridge.rtp import SrtpSender, available_suites
from siprec_bridge.sdp import SUITES, Codec, StreamKeys

OURS, THEIRS = Certificate.make(), Certificate.make()
VOICE = packets(tone(440, 20.0))
NAMES = [f"s1-{number}" for number in range(1, 4)]
HOSTS = st.sampled_from(["127.0.0.1", "::1"] if has_ipv6() else ["127.0.0.1"])
KEY = bytes(range(64))

codecs = st.builds(
    Codec,
    st.integers(0, 127),
    st.sampled_from(["PCMU", "PCMA", "G722", "OPUS", "L16", "TELEPHONE-EVENT", "CN"]),
    st.one_of(st.sampled_from([8000, 16000, 44100, 48000]), st.integers(1, 1_000_000)),
    st.integers(1, 255),
    st.sampled_from(["", "0-16", "é" * 12_000]),
)
keys = st.builds(
    lambda suite, shift, mki: StreamKeys(
        suite, KEY[shift : shift + SUITES[suite]], KEY[shift : shift + SUITES[suite]], mki
    ),
    st.sampled_from(available_suites()),
    st.integers(0, 1),
    st.sampled_from([0, 0, 1, 128]),
)
addresses = st.one_of(
    st.none(),
    st.tuples(
        st.one_of(
            st.sampled_from(
                ["127.0.0.1", "::1", "127.0.0.2", "0.0.0.0", "255.255.255.255", "224.0.0.1", "ff02::1",
                 "::ffff:127.0.0.1", "fe80::1", "fe80::1%lo", "", "example.invalid"]
            ),
            st.text(max_size=5).map("fe80::1%{}".format),
        ),
        st.one_of(st.sampled_from([0, 1, 9, 65535, 65536]), st.integers(0, 65536)),
    ),
)  # fmt: skip
numbers = st.one_of(st.sampled_from([0, 1, 0x7FFF, 0xFFFF]), st.integers(0, 0xFFFF))
stamps = st.one_of(st.sampled_from([0, 160, 0x7FFFFFFF, 0xFFFFFFFF]), st.integers(0, 2**32 - 1))
rtp = st.builds(
    lambda first, second, number, stamp, ssrc, rest: (
        struct.pack("!BBHII", first, second, number, stamp, ssrc) + rest
    ),
    st.one_of(st.just(0x80), st.integers(0x80, 0xBF)),
    st.integers(0, 255),
    numbers,
    stamps,
    st.one_of(st.integers(0, 3), stamps),
    st.binary(max_size=80),
)
rtcp = st.builds(
    lambda parts: b"".join(
        struct.pack("!BBH", 0x80 | count, kind, words) + body for count, kind, words, body in parts
    ),
    st.lists(
        st.tuples(
            st.integers(0, 31),
            st.sampled_from([192, 200, 200, 201, 202, 203, 204, 223]),
            st.one_of(st.integers(0, 8), st.just(0xFFFF)),
            st.one_of(st.binary(max_size=40), st.binary(min_size=24, max_size=24)),
        ),
        min_size=1,
        max_size=4,
    ),
)
dtls = st.builds(
    lambda kind, hello, rest: bytes([kind]) + hello + rest,
    st.integers(20, 63),
    st.sampled_from([b"\xfe\xfd" + bytes(10) + b"\x01", b"\xfe\xff" + bytes(8) + b"\x00\x40\x01"]),
    st.binary(max_size=120),
)
runs = st.builds(
    lambda start, count, ssrc: [
        struct.pack("!BBHII", 0x80, 0, (start + one) & 0xFFFF, one * 160, ssrc) + bytes(160)
        for one in range(count)
    ],
    numbers,
    st.integers(1, 40),
    st.integers(0, 3),
)
datagrams = st.one_of(
    runs,
    st.lists(
        st.one_of(rtp, rtcp, dtls, st.binary(max_size=40), st.binary(min_size=2049, max_size=2060)),
        max_size=8,
    ),
)


class Bridge(RuleBasedStateMachine):
    """What a bridge may say, and what anybody may send; commands go by the control socket."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.ours, self.theirs = socket.socketpair()
        self.worker = Worker(self.theirs)
        self.specs: dict[str, StreamSpec] = {}
        self.ports: dict[str, int] = {}
        self.heard = b""
        self.number = self.sent = 0
        self.now = time.monotonic()

    @initialize(policy=st.sampled_from(["any", "learned", "signalled"]), fast=st.booleans())
    def start(self, policy: SourcePolicy, fast: bool) -> None:
        configuration = Configuration(16384, 32767, fast, 5.0, policy)
        self.ask(do="configure", configuration=configuration.to_json())
        self.honest = spec(self.folder, home="127.0.0.1")
        reply = self.ask(do="open", spec=self.honest.to_json(), port=None, rollovers=[])
        self.port = reply["port"][1]

    def ask(self, **command: Any) -> dict[str, Any]:
        """The worker's answer, which is no refusal."""
        self.number += 1
        line = encode({"id": self.number, **command})
        for start in range(0, len(line), 1 << 15):
            self.ours.sendall(line[start : start + (1 << 15)])
            assert self.worker._take_commands()
        self.ours.settimeout(10)
        while True:
            *lines, self.heard = self.heard.split(b"\n")
            for place, told in enumerate(lines):
                message = decode(told)
                if message.get("id") == self.number:
                    self.heard = b"\n".join([*lines[place + 1 :], self.heard])
                    assert "error" not in message, message
                    return message
                if message.get("event") == "counters":
                    assert all(one >= 0 for one in message["counters"].values()), message
            self.heard += self.ours.recv(1 << 16)

    def spec(self, name: str, host: str, **options: Any) -> StreamSpec:
        if options.pop("by_dtls"):
            options["dtls"] = DtlsTask((THEIRS.fingerprint,), OURS.pem)
        index = int(name[-1])
        return replace(spec(self.folder, index, host), **options)

    @rule(
        name=st.sampled_from(NAMES), host=HOSTS, codecs=st.lists(codecs, max_size=7).map(tuple),
        keys=st.one_of(st.none(), keys), rtcp=addresses, rtcp_mux=st.booleans(),
        peer=st.sampled_from([None, "127.0.0.1", "nobody", "fe80::1%x"]), by_dtls=st.booleans(),
        paused=st.booleans(), rollovers=st.sampled_from([[], [[1, 1], [2, 3]]]),
    )  # fmt: skip
    def open(self, name: str, host: str, paused: bool, rollovers: Any, **options: Any) -> None:
        one = self.spec(name, host, **options)
        if name in self.specs:
            one = replace(one, host=self.specs[name].host)
            self.ask(do="update", spec=one.to_json())
        else:
            reply = self.ask(
                do="open", spec=one.to_json(), port=None, rollovers=rollovers, paused=paused
            )
            self.ports[name] = reply["port"][1]
        self.specs[name] = one

    @rule(name=st.sampled_from(NAMES), paused=st.booleans(), back=st.integers(0, 10**10))
    def pause(self, name: str, paused: bool, back: int) -> None:
        self.ask(do="pause", stream=name, paused=paused, at_ns=time.time_ns() - back)

    @rule(names=st.lists(st.sampled_from(NAMES), unique=True))
    def close(self, names: list[str]) -> None:
        reports = self.ask(do="close", streams=names)["reports"]
        assert {one["stream_id"] for one in reports} == set(names) & set(self.specs)
        for one in names:
            self.specs.pop(one, None)

    @rule(
        name=st.sampled_from(NAMES), data=datagrams, beside=st.booleans(), locked=st.booleans(),
        source=st.sampled_from(["127.0.0.1", "127.0.0.2"]),
    )  # fmt: skip
    def send(self, name: str, data: list[bytes], beside: bool, locked: bool, source: str) -> None:
        one = self.specs.get(name)
        if one is None:
            return
        if locked and one.keys is not None:
            sender = SrtpSender(one.keys.suite, one.keys.remote)
            mki = bytes(one.keys.mki_length)
            data = [self.lock(sender, each, mki) for each in data]
        family = socket.AF_INET6 if ":" in one.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((source if family == socket.AF_INET else "::1", 0))
            for each in data:
                sock.sendto(each, (one.host, self.ports[name] + beside))

    @staticmethod
    def lock(sender: SrtpSender, packet: bytes, mki: bytes) -> bytes:
        try:
            if len(packet) > 1 and 192 <= packet[1] <= 223:
                return sender.protect_rtcp(packet)
            return sender.protect(packet) + mki
        except (Error, ValueError):  # it is none that can be encrypted
            return packet

    @rule(later=st.sampled_from([0.0, 0.2, 6.0, 3600.0]))
    def sweep(self, later: float) -> None:
        self.now = max(self.now, time.monotonic()) + later
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for each in VOICE[self.sent : self.sent + 3]:
                sock.sendto(each, ("127.0.0.1", self.port))
        self.sent += 3
        self.worker.sweep(self.now)

    @rule(hours=st.integers(-50, 50))
    def set_the_clock(self, hours: int) -> None:
        self.worker._clock._offset_ns += hours * 3600 * 10**9

    def teardown(self) -> None:
        try:
            if self.number:
                (report,) = self.ask(do="close", streams=[self.honest.stream_id])["reports"]
                assert (report["packets"], report["lost"]) == (min(self.sent, len(VOICE)), 0)
                assert spooled(self.honest.spool) == VOICE[: self.sent]
        finally:
            self.worker.stop()
            self.ours.close()
            self.theirs.close()
            shutil.rmtree(self.folder)


# Thousands of examples found no more; without shrinking, which takes minutes, one that fails is told.
TestWorker = Bridge.TestCase
TestWorker.settings = settings(
    max_examples=20, stateful_step_count=40, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)
