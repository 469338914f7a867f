"""Real sockets around the machine: framing, admission, peers that misbehave."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest
from structlog.testing import capture_logs

from harness.bridge import eventually
from harness.hosts import has_ipv6
from harness.src import multipart, new_server, request
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.signalling import Admission, Listener
from siprec_bridge.signalling.stream import StreamConnection
from siprec_bridge.sip import InviteReceived, Output, RequestReceived
from siprec_bridge.telemetry import Metrics

OPTIONS = request("OPTIONS").replace(b"192.0.2.10:5070;", b"127.0.0.1:5070;")


@asynccontextmanager
async def listening(
    admission: Admission | None = None, hosts: Sequence[str] = ("127.0.0.1",)
) -> AsyncIterator[tuple[Listener, list[Output], Metrics]]:
    """A listener that answers OPTIONS and takes note of the rest."""
    events: list[Output] = []
    metrics = Metrics()

    def on_event(event: Output) -> None:
        events.append(event)
        if isinstance(event, RequestReceived):
            listener.respond(event.id, 200)

    listener = Listener(new_server(), on_event, metrics, admission)
    await listener.start(hosts, udp_ports=[0], tcp_ports=[0])
    try:
        yield listener, events, metrics
    finally:
        await listener.stop()


async def connect(listener: Listener) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    tcp = next(one for one in listener.endpoints if one.transport == "tcp")
    return await asyncio.open_connection(tcp.host, tcp.port)


def ask_udp(listener: Listener, data: bytes) -> socket.socket:
    udp = next(one for one in listener.endpoints if one.transport == "udp")
    one = socket.socket(socket.AF_INET6 if ":" in udp.host else socket.AF_INET, socket.SOCK_DGRAM)
    one.setblocking(False)
    one.sendto(data, (udp.host, udp.port))
    return one


async def answer(one: socket.socket) -> bytes:
    async with asyncio.timeout(30):
        return await asyncio.get_running_loop().sock_recv(one, 65536)


def place(listener: Listener) -> tuple[str, int]:
    udp = next(one for one in listener.endpoints if one.transport == "udp")
    return udp.host, udp.port


def malformed(metrics: Metrics, transport: str = "udp") -> float:
    labels = {"transport": transport}
    return metrics.registry.get_sample_value("siprec_sip_malformed_total", labels) or 0


def status(data: bytes) -> int:
    return int(data.split()[1])


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")),
    ],
)
async def test_udp_is_answered_where_it_came_from(host: str) -> None:
    async with listening(hosts=[host]) as (listener, _, _):
        with ask_udp(listener, OPTIONS) as one:
            assert status(await answer(one)) == 200


async def test_an_answer_that_is_not_acknowledged_is_sent_again_in_time() -> None:
    async with listening() as (listener, events, _):
        loop = asyncio.get_running_loop()
        with ask_udp(listener, request("INVITE", body=multipart())) as one:
            await answer(one)
            (invite,) = events
            assert isinstance(invite, InviteReceived)
            begun = loop.time()
            listener.respond(invite.id, 200)
            first, again = await answer(one), await answer(one)
            waited = loop.time() - begun

    assert status(first) == 200
    assert again == first
    assert waited >= 0.5


@pytest.mark.parametrize("maddr", [b"a" * 70, b"a\0b", b"\xff", b"127.0.0.1:x"])
async def test_an_address_that_nobody_can_send_to_does_not_close_the_port(maddr: bytes) -> None:
    async with listening() as (listener, _, _):
        with ask_udp(listener, OPTIONS.replace(b";rport", b";maddr=" + maddr)):
            pass
        with ask_udp(listener, OPTIONS.replace(b"z9hG4bK1", b"z9hG4bK2")) as one:
            assert status(await answer(one)) == 200


async def test_several_messages_in_pieces_on_one_connection_are_all_answered() -> None:
    async with listening() as (listener, _, _):
        reader, writer = await connect(listener)
        stream = b"".join(
            request("OPTIONS", branch=f"z9hG4bK{number}", number=number + 1, transport="TCP")
            for number in range(5)
        )
        for start in range(0, len(stream), 100):
            writer.write(stream[start : start + 100])
            await writer.drain()
        heads = [await reader.readuntil(b"\r\n\r\n") for _ in range(5)]
        writer.write(b"\r\n\r\n")
        pong = await reader.readexactly(2)
        writer.close()

    assert [status(head) for head in heads] == [200] * 5
    assert pong == b"\r\n"


async def test_a_message_of_64_kb_is_taken_over_tcp() -> None:
    body = multipart() + b"\r\n" + b"x" * 60_000
    async with listening() as (listener, events, _):
        _, writer = await connect(listener)
        writer.write(request("INVITE", body=body, transport="TCP"))
        await eventually(lambda: bool(events), "an INVITE")
        writer.close()

    (invite,) = events
    assert isinstance(invite, InviteReceived)
    assert len(invite.request.body) == len(body)


HUGE = request("INVITE", transport="TCP").replace(b"Content-Length: 0", b"Content-Length: 70000")
ENDLESS = request("INVITE", transport="TCP").replace(b"Max-Forwards", b"X: %b\r\n" % (b"x" * 70000))


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (HUGE, 413),
        (ENDLESS, 513),
        (request("INVITE", transport="TCP").replace(b"Length: 0", b"Length: many"), 400),
    ],
)
async def test_a_message_that_is_too_large_is_answered_and_its_connection_closed(
    broken: bytes, expected: int
) -> None:
    async with listening() as (listener, events, _):
        with capture_logs() as logs:
            reader, writer = await connect(listener)
            # More than we ever read: what lies unread must not take the answer along.
            writer.write(request("OPTIONS", transport="TCP") + broken + b"x" * 300_000)
            async with asyncio.timeout(10):
                heads = (await reader.read()).split(b"\r\n\r\n")
            writer.close()
            await eventually(lambda: not listener._connections, "the end of the connection")
        with ask_udp(listener, OPTIONS) as one:
            assert status(await answer(one)) == 200

    assert [status(head) for head in heads if head] == [200, expected]
    assert [(one["event"], one["more_before"]) for one in logs] == [("sip.malformed", 0)]
    assert all(isinstance(one, RequestReceived) for one in events)


async def test_a_large_message_of_no_sip_at_all_is_hung_up_on() -> None:
    async with listening() as (listener, _, _):
        reader, writer = await connect(listener)
        writer.write(b"\xff" * 70_000)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


async def test_a_datagram_that_says_to_be_larger_than_it_is_is_answered() -> None:
    async with listening() as (listener, _, _):
        with ask_udp(
            listener, OPTIONS.replace(b"Content-Length: 0", b"Content-Length: 99999")
        ) as one:
            assert status(await answer(one)) == 400


async def test_garbage_costs_a_line_a_connection_and_is_counted() -> None:
    garbage = b"GET / HTTP/1.0\r\n\r\n" * 500
    async with listening() as (listener, _, metrics):
        with capture_logs() as logs:
            for _ in range(2):
                _, writer = await connect(listener)
                writer.write(garbage)
                writer.close()
                await writer.wait_closed()
            await eventually(lambda: len(logs) >= 4, "the log")
        counted = malformed(metrics, "tcp")

    assert (
        sorted(one["event"] for one in logs) == ["sip.malformed"] * 2 + ["sip.malformed_more"] * 2
    )
    assert [one["messages"] for one in logs if "messages" in one] == [499, 499]
    assert counted == 1000


async def test_garbage_in_datagrams_costs_a_line_a_minute() -> None:
    async with listening() as (listener, _, metrics):
        with capture_logs() as logs:
            with ask_udp(listener, b"garbage") as one:
                for _ in range(50):
                    one.sendto(b"garbage", place(listener))
            await eventually(lambda: malformed(metrics) >= 2, "garbage")
            with ask_udp(listener, OPTIONS) as last:
                await answer(last)

    assert [one["event"] for one in logs] == ["sip.malformed"]


async def test_a_peer_that_never_reads_loses_its_connection_and_stalls_nobody() -> None:
    async with listening() as (listener, events, _):
        _, stuck = await connect(listener)
        lost = asyncio.create_task(stuck.wait_closed())
        flood = b"".join(
            request("OPTIONS", branch=f"z9hG4bK{number}", transport="TCP") for number in range(2000)
        )
        with ask_udp(listener, OPTIONS) as one:
            assert status(await answer(one)) == 200
        for _ in range(40):
            stuck.write(flood)
            await asyncio.sleep(0)
            if stuck.is_closing():
                break
        with ask_udp(listener, OPTIONS.replace(b"z9hG4bK1", b"z9hG4bKagain")) as one:
            assert status(await answer(one)) == 200
        stuck.transport.abort()
        lost.cancel()
        await asyncio.gather(lost, return_exceptions=True)

    assert events


async def test_idle_connections_leave_room_for_who_has_something_to_say() -> None:
    metrics = Metrics()
    listener = Listener(new_server(), lambda event: None, metrics, most_connections=3)
    await listener.start(["127.0.0.1"], udp_ports=[], tcp_ports=[0])
    try:
        first, talking = await connect(listener)
        others = [await connect(listener) for _ in range(2)]
        talking.write(request("REGISTER", transport="TCP"))
        assert (await first.readline()).startswith(b"SIP/2.0 405")

        with capture_logs() as logs:
            others += [await connect(listener) for _ in range(2)]
            async with asyncio.timeout(30):
                closed = [await one.read() for one, _ in others[:2]]
            talking.write(request("REGISTER", branch="z9hG4bK2", transport="TCP"))
            while not (line := await first.readline()).startswith(b"SIP/2.0"):
                assert line
    finally:
        await listener.stop()
        for _, writer in [(first, talking), *others]:
            writer.close()

    assert closed == [b"", b""]
    crowded_out = metrics.registry.get_sample_value("siprec_sip_connections_crowded_out_total")
    assert crowded_out == 2
    assert [one["event"] for one in logs] == ["sip.too_many_connections"]


async def test_those_who_may_not_talk_to_us_crowd_nobody_out_who_may() -> None:
    listener = Listener(
        new_server(),
        lambda event: None,
        Metrics(),
        Admission([ip_network("127.0.0.2/32")], forbid=True),
        most_connections=2,
    )
    await listener.start(["127.0.0.1"], udp_ports=[], tcp_ports=[0])
    (place,) = listener.endpoints
    try:
        reader, known = await asyncio.open_connection(
            place.host, place.port, local_addr=("127.0.0.2", 0)
        )
        strangers = [await connect(listener) for _ in range(2)]
        async with asyncio.timeout(30):
            assert await strangers[-1][0].read() == b""
        known.write(request("REGISTER", transport="TCP"))
        async with asyncio.timeout(30):
            assert (await reader.readline()).startswith(b"SIP/2.0 405")
    finally:
        await listener.stop()
        for writer in (known, *(one for _, one in strangers)):
            writer.close()


async def test_a_message_that_never_ends_does_not_last_by_coming_slowly() -> None:
    heard: list[StreamConnection] = []
    connection = StreamConnection(
        1,
        lambda data, peer: None,
        lambda broken, peer: None,
        lambda one: None,
        heard.append,
        lambda one: None,
    )
    server = await asyncio.get_running_loop().create_server(lambda: connection, "127.0.0.1", 0)
    there = socket.create_connection(server.sockets[0].getsockname())
    there.sendall(b"OPTIONS sip:a SIP/2.0\r\n")
    await eventually(lambda: connection._patience is not None, "the watch")
    assert connection._patience is not None
    until = connection._patience.when()

    there.sendall(b"X-Slow: 1\r\n")

    await eventually(lambda: len(heard) > 1, "more of it")
    assert connection._patience.when() == until
    there.close()
    connection.close()
    server.close()


async def test_sources_that_are_not_allowed_learn_nothing() -> None:
    admission = Admission([ip_network("192.0.2.0/24")])
    async with listening(admission) as (listener, events, metrics):
        with ask_udp(listener, OPTIONS) as one:
            reader, writer = await connect(listener)
            writer.write(OPTIONS)
            async with asyncio.timeout(30):
                assert await reader.read() == b""  # closed without a word
            writer.close()
            with pytest.raises(BlockingIOError):
                one.recv(100)

        def refused(transport: str) -> float | None:
            labels = {"transport": transport}
            return metrics.registry.get_sample_value("siprec_sip_unadmitted_total", labels)

        assert (refused("udp"), refused("tcp")) == (1, 1)
    assert events == []


async def test_by_policy_they_are_told_that_they_are_forbidden() -> None:
    admission = Admission([ip_network("192.0.2.0/24")], forbid=True)
    async with listening(admission) as (listener, events, _):
        with ask_udp(listener, OPTIONS) as one:
            assert status(await answer(one)) == 403
        reader, writer = await connect(listener)
        writer.write(OPTIONS)
        assert status(await reader.readuntil(b"\r\n\r\n")) == 403
        writer.close()
        with ask_udp(listener, b"garbage") as silent, ask_udp(listener, OPTIONS) as one:
            await answer(one)  # so that the garbage has been dealt with
            with pytest.raises(BlockingIOError):
                silent.recv(100)

    assert events == []


@pytest.mark.parametrize(
    ("allowed", "host", "admitted"),
    [
        ([], "203.0.113.9", True),
        (["192.0.2.10"], "192.0.2.10", True),
        (["192.0.2.10"], "192.0.2.11", False),
        (["192.0.2.0/24", "2001:db8::/32"], "2001:db8::5", True),
        (["192.0.2.0/24"], "::ffff:192.0.2.7", True),
        (["192.0.2.0/24"], "2001:db8::5", False),
        (["fe80::/10"], "fe80::1%eth0", True),
    ],
)
def test_networks_of_both_families(allowed: list[str], host: str, admitted: bool) -> None:
    assert Admission([ip_network(one) for one in allowed]).admits(host) is admitted


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("hosts", [["127.0.0.1", "::1"], ["0.0.0.0", "::"]])
async def test_every_port_is_bound_at_every_host_and_each_answers_for_itself(
    hosts: list[str],
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    events: list[Output] = []
    listener = Listener(new_server(), events.append, Metrics())
    await listener.start(hosts, udp_ports=[port], tcp_ports=[port])

    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as one:
            one.sendto(request("OPTIONS", branch=f"z9hG4bKu{host}"), (host, port))
        _, writer = await asyncio.open_connection(host, port)
        writer.write(request("OPTIONS", branch=f"z9hG4bKt{host}", transport="TCP"))
        writer.close()
        await writer.wait_closed()
    await eventually(lambda: len(events) == 4, "four requests")
    bound = {(one.transport, one.host, one.port) for one in listener.endpoints}
    await listener.stop()

    came = {(one.peer.transport, one.peer.local_host) for one in events
            if isinstance(one, RequestReceived)}  # fmt: skip
    assert bound == {(kind, host, port) for kind in ("udp", "tcp") for host in hosts}
    assert came == {(kind, host) for kind in ("udp", "tcp") for host in ("127.0.0.1", "::1")}


async def test_a_port_that_is_taken_is_named() -> None:
    async with listening() as (listener, _, _):
        port = listener.endpoints[0].port
        other = Listener(new_server(), lambda event: None, Metrics())

        with pytest.raises(ConfigurationError) as error:
            await other.start(["127.0.0.1"], udp_ports=[port], tcp_ports=[])

    assert error.value.setting == f"PORTS={port}"


async def test_where_udp_cannot_be_bound_tcp_is_given_back() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        listener = Listener(new_server(), lambda event: None, Metrics())

        with pytest.raises(ConfigurationError):
            await listener.start(["127.0.0.1"], udp_ports=[port], tcp_ports=[port])

    await listener.start(["127.0.0.1"], udp_ports=[port], tcp_ports=[port])
    await listener.stop()


async def test_a_port_whose_connections_we_closed_can_be_bound_again_at_once() -> None:
    async with listening() as (listener, _, _):
        port = listener.endpoints[0].port
        reader, writer = await connect(listener)
        await listener.stop()
        assert await reader.read() == b""
        writer.close()

    again = Listener(new_server(), lambda event: None, Metrics())
    await again.start(["127.0.0.1"], udp_ports=[port], tcp_ports=[port])
    await again.stop()
