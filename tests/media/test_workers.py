"""Several workers: how streams are spread, and what the death of one is to the others."""

import asyncio
import os
import signal
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from harness.bridge import eventually
from harness.media import engine, received, spec, spooled
from harness.ports import rtp_ports
from harness.rtp import packets, send, tone
from siprec_bridge.media import MediaUnavailable, NoPortLeft, supervisor
from siprec_bridge.receiver.control import SWEEP_S
from siprec_bridge.receiver.ports import shares
from siprec_bridge.receiver.worker import Worker

PORTS = rtp_ports()
HALF = (PORTS[0] + PORTS[1] + 1) // 2
VOICE = packets(tone(440, 4.0))


@pytest.mark.parametrize(
    ("first", "last", "workers", "expected"),
    [
        (20000, 29999, 1, [(20000, 29999)]),
        (20000, 29999, 2, [(20000, 24999), (25000, 29999)]),
        (20001, 20014, 3, [(20002, 20005), (20006, 20009), (20010, 20013)]),
        (20000, 20009, 2, [(20000, 20003), (20004, 20009)]),
        (20000, 20006, 2, [(20000, 20005)]),
        (20000, 20003, 64, [(20000, 20003)]),
        (20000, 20001, 2, [(20000, 20001)]),
    ],
)
def test_a_range_of_ports_is_split_evenly_and_each_share_has_room_for_a_call(
    first: int, last: int, workers: int, expected: list[tuple[int, int]]
) -> None:
    assert shares(first, last, workers) == expected


async def test_sessions_are_spread_and_the_streams_of_each_stay_together(tmp_path: Path) -> None:
    async with engine(workers=2) as (media, _, metrics):
        ports = {
            name: await asyncio.gather(
                *(media.open(spec(tmp_path, index, session=name)) for index in (0, 1))
            )
            for name in ("a", "b")
        }

        assert len(media.pids) == media.alive == media.workers == 2
        assert metrics.registry.get_sample_value("siprec_media_workers") == 2
        assert metrics.registry.get_sample_value("siprec_media_workers_alive") == 2
    halves = [{port.rtp_port >= HALF for port in pair} for pair in ports.values()]
    assert sorted(map(sorted, halves)) == [[False], [True]]


async def test_a_worker_without_ports_passes_streams_on_until_none_is_left(tmp_path: Path) -> None:
    first, last = rtp_ports(8)
    async with engine(workers=2, ports=(first, last)) as (media, _, _):
        opened = [(await media.open(spec(tmp_path, index))).rtp_port for index in range(4)]

        with pytest.raises(NoPortLeft):
            await media.open(spec(tmp_path, 4))
        await media.close(["s1-2"])
        again = await media.open(spec(tmp_path, 5))

    assert sorted(opened) == [first, first + 2, first + 4, first + 6]
    assert again.rtp_port == opened[2]


async def test_a_port_to_which_a_call_that_is_over_goes_on_sending_is_given_to_no_other(
    tmp_path: Path,
) -> None:
    first, last = rtp_ports(8)
    async with engine(ports=(first, last)) as (media, _, metrics):
        ports = [(await media.open(spec(tmp_path, 0))).rtp_port]
        send(VOICE[:1], first + 2)  # nobody was told of it: a bridge before this one may have been
        ports.append((await media.open(spec(tmp_path, 1))).rtp_port)
        send(VOICE, ports[1])
        await received(metrics, len(VOICE))
        ports += [(await media.open(spec(tmp_path, index))).rtp_port for index in (2, 3)]
        await media.close([f"s1-{index}" for index in range(4)])

    assert ports == [first, first + 4, first + 6, first + 2]  # rather that one than none
    assert spooled(spec(tmp_path, 1).spool) == VOICE
    assert spooled(spec(tmp_path, 3).spool) == []


async def test_a_range_too_small_for_the_workers_is_said_and_makes_fewer(tmp_path: Path) -> None:
    with capture_logs() as lines:
        async with engine(workers=8, ports=rtp_ports(8)) as (media, _, _):
            assert media.workers == 2
            await media.open(spec(tmp_path))

    (line,) = [one for one in lines if one["event"] == "media.fewer_workers"]
    assert (line["workers"], line["wanted"]) == (2, 8)


async def test_a_killed_worker_is_flagged_to_its_sessions_and_hurts_no_other(
    tmp_path: Path,
) -> None:
    hit, other = spec(tmp_path, session="hit"), spec(tmp_path, session="other")
    async with engine(workers=2) as (media, events, metrics):
        hit_port, other_port = await media.open(hit), await media.open(other)
        assert (hit_port.rtp_port < HALF) != (other_port.rtp_port < HALF)
        for port in (hit_port, other_port):
            send(VOICE[:100], port.rtp_port)
        await received(metrics, 200)
        victim, survivor = media.pids if hit_port.rtp_port < HALF else media.pids[::-1]

        os.kill(victim, signal.SIGKILL)
        send(VOICE[100:150], other_port.rtp_port)
        await eventually(
            lambda: any(one.name == "interrupted" for one in events) and media.alive == 2,
            "a new worker",
        )
        for port, start in ((hit_port, 100), (other_port, 150)):
            send(VOICE[start:], port.rtp_port)
        await received(metrics, 400)
        reports = await media.close([f"{one.session_id}-0" for one in (hit, other)])

        assert survivor in media.pids
        assert victim not in media.pids
        assert metrics.registry.get_sample_value("siprec_media_worker_restarts_total") == 1
    assert [one.packets for one in reports] == [100, 200]
    assert spooled(hit.spool) == VOICE
    assert spooled(other.spool) == VOICE
    (told,) = [one for one in events if one.name == "interrupted"]
    assert told.session_id == "hit"
    assert told.seconds is not None
    assert 0.1 <= told.seconds < 10


def test_a_worker_whose_bridge_was_killed_ends_without_a_word() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"an answer that nobody reads\n")  # makes it a reset, and no end
        ours.close()

        Worker(theirs).run()


@pytest.mark.parametrize("paused", [False, True])
def test_what_comes_while_a_spool_is_looked_through_waits_at_its_port(
    tmp_path: Path, paused: bool
) -> None:
    stream = spec(tmp_path)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Worker(theirs)
        assert worker._do({"do": "bind", "ports": [["127.0.0.1", 29940, False]]}) == {}
        send(VOICE[:20], 29940)
        opening = {"do": "open", "spec": stream.to_json(), "port": 29940, "rollovers": []}
        reply = worker._do(opening | {"paused": paused})
        worker._close([stream.stream_id])

    assert reply == {"port": ["127.0.0.1", 29940, 29941]}
    assert spooled(stream.spool) == ([] if paused else VOICE[:20])


async def test_a_stream_on_hold_misses_nothing_when_its_worker_dies(tmp_path: Path) -> None:
    async with engine() as (media, events, _):
        await media.open(spec(tmp_path))
        await media.pause("s1-0", True, datetime.now(UTC))
        (pid,) = media.pids

        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: media.alive == 1 and media.pids != (pid,), "a new worker")

    assert [one.name for one in events] == []


async def test_while_a_worker_is_down_calls_go_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine(workers=2) as (media, _, metrics):
        first, _ = media.pids
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", "/bin/false")
            os.kill(first, signal.SIGKILL)
            await eventually(lambda: media.alive == 1, "the death of a worker")

            ports = [(await media.open(spec(tmp_path, n, session=f"s{n}"))) for n in range(3)]

            alive = metrics.registry.get_sample_value("siprec_media_workers_alive")
        await eventually(lambda: media.alive == 2, "the worker's return")
    assert alive == 1
    assert all(port.rtp_port >= HALF for port in ports)


async def test_when_all_are_down_openings_fail_and_what_ends_says_that_audio_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine(workers=2) as (media, events, metrics):
        port = await media.open(spec(tmp_path))
        send(VOICE[:50], port.rtp_port)
        await received(metrics, 50)
        with monkeypatch.context() as patched:
            patched.setattr(supervisor, "_LONGEST_PAUSE_S", 0.2)
            patched.setattr(supervisor, "REPLY_TIMEOUT_S", 1.0)
            patched.setattr(sys, "executable", "/bin/false")
            for pid in media.pids:
                os.kill(pid, signal.SIGKILL)
            await eventually(lambda: media.alive == 0, "the death of both")

            with pytest.raises(MediaUnavailable):
                await media.open(spec(tmp_path, 1))
            reports = await media.close(["s1-0"])
        await eventually(lambda: media.alive == 2, "their return")

        assert (await media.open(spec(tmp_path, 2))).rtp_port
    assert reports == []
    assert [one.name for one in events] == ["learned", "started", "interrupted"]
    assert spooled(spec(tmp_path).spool) == VOICE[:50]


async def test_a_worker_that_is_late_gets_no_new_streams(tmp_path: Path) -> None:
    async with engine(workers=2) as (media, _, metrics):
        slow, *_ = [await media.open(spec(tmp_path, n, session=f"s{n}")) for n in range(2)]
        more = await media.open(spec(tmp_path, 2, session="s1"))  # s1's worker has more streams
        stopped = media.pids[0 if slow.rtp_port < HALF else 1]
        os.kill(stopped, signal.SIGSTOP)
        try:
            await asyncio.sleep(4 * SWEEP_S)

            port = await media.open(spec(tmp_path, 3, session="new"))
        finally:
            os.kill(stopped, signal.SIGCONT)
        await eventually(
            lambda: bool(
                metrics.registry.get_sample_value("siprec_media_sweep_lateness_seconds_sum")
            ),
            "the lateness",
        )
    assert (port.rtp_port < HALF) == (more.rtp_port < HALF) != (slow.rtp_port < HALF)


async def test_a_worker_sweeps_more_often_while_somebody_listens_to_a_stream(
    tmp_path: Path,
) -> None:
    def sweeps() -> float:
        count = "siprec_media_sweep_lateness_seconds_count"
        return metrics.registry.get_sample_value(count) or 0.0

    async def often(wanted: bool) -> None:
        """Until it sweeps more often than each 0.2 s, or no more; a busy machine may be late."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(30):
            while True:
                begun, before = loop.time(), sweeps()
                await asyncio.sleep(0.8)
                rate = (sweeps() - before) / (loop.time() - begun)
                if rate and (rate > 6.5) == wanted:
                    return

    async with engine() as (media, _, metrics):
        await media.open(spec(tmp_path))
        await media.open(spec(tmp_path, 1))
        await often(False)
        await media.listen("s1-0")
        await often(True)
        os.kill(media.pids[0], signal.SIGKILL)
        await eventually(lambda: media.alive == 0, "its end")
        await eventually(lambda: media.alive == 1, "its return")
        await often(True)
        await media.close(["s1-0"])
        await often(False)


async def test_how_busy_and_how_late_workers_are_is_measured(tmp_path: Path) -> None:
    async with engine() as (media, _, metrics):
        port = await media.open(spec(tmp_path))
        send(VOICE, port.rtp_port)
        await received(metrics, 200)

        value = metrics.registry.get_sample_value
        assert value("siprec_media_sweep_lateness_seconds_count")
        assert 0 < (value("siprec_media_worker_busy_ratio", {"worker": "1"}) or 0) < 1
