"""Calls at a desk with real media and a real live process: paused, without a recogniser, killed."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from structlog.testing import capture_logs

from harness.desk import Office, office
from harness.live_recogniser import RATE, Heard, LiveRecogniser, live_recogniser, until
from harness.rtp import loudest_frequency, packets, send, tone
from harness.src import PEER, multipart, request
from siprec_bridge import sdp
from siprec_bridge.live.desk import LiveDesk
from siprec_bridge.live.recogniser import Wanted
from siprec_bridge.media import MediaEngine
from siprec_bridge.sip import DialogEnded, DialogId, InviteReceived, Request, parse
from siprec_bridge.siprec import PauseOrder
from siprec_bridge.store import Database, Event, SessionRow, outbox, recordings
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcription import Rules
from siprec_bridge.transcription.rules import facts_of_call

DIALOG = DialogId("call-1", "ours", "src")
VOICE = packets(tone(440, 6.0))
SECRET = packets(tone(1000, 6.0))


@dataclass
class Live:
    """A call that is on, its first stream, and the recogniser that hears it."""

    here: Office
    desk: LiveDesk
    ears: LiveRecogniser
    session: str
    port: int

    @property
    def heard(self) -> Heard:
        """The latest connection of the stream that is spoken on."""
        return max(self.ears.streams, key=lambda one: len(one.pcm) > 0)

    def count(self, name: str, **labels: str) -> float:
        return self.here.metrics.registry.get_sample_value(f"siprec_live_{name}", labels) or 0.0

    async def lines(self) -> list[dict[str, Any]]:
        """The settled ones."""
        events = await self.here.database.read(partial(outbox.since, seq=0, limit=100))
        return [json.loads(one.body) for one in events if one.type == "transcript.partial"]

    async def settled(self, count: int) -> list[dict[str, Any]]:
        async with asyncio.timeout(30):
            while len(lines := await self.lines()) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return lines

    async def hang_up(self) -> SessionRow:
        self.here.service.on_sip(DialogEnded(DIALOG, "bye"))
        async with asyncio.timeout(30):
            while True:
                (row,) = await self.here.database.read(partial(recordings.listing, limit=2))
                if row.state == "finished":
                    return row
                await asyncio.sleep(0.02)


@asynccontextmanager
async def call(folder: Path, ears: LiveRecogniser, processes: int = 1) -> AsyncIterator[Live]:
    """A call with two streams, answered; each in a process of its own if there may be two."""

    class Nobody:
        async def pass_on(self, event: Event) -> None:
            pass

    desks: list[LiveDesk] = []

    def live(database: Database, media: MediaEngine, metrics: Metrics) -> LiveDesk:
        desk = LiveDesk(
            database, media, Nobody(), metrics, mode="on", wanted=Wanted(ears.url, 60.0),
            choose=lambda document, peer: Rules().choose(facts_of_call(document, peer)),
            sinks=[], clock=lambda: datetime.now(UTC), processes=processes,
        )  # fmt: skip
        desk.engine.full = 0.001
        desks.append(desk)
        return desk

    async with office(folder, live=live) as here:
        invite = parse(
            request("INVITE", body=multipart(), content_type="multipart/mixed;boundary=b")
        )
        assert isinstance(invite, Request)
        here.service.on_sip(InviteReceived("i1", DIALOG, invite, PEER, True))
        await until(lambda: "i1" in here.phone.answers)
        port = sdp.parse(here.phone.answers["i1"].body).media[0].port
        (row,) = await here.database.read(partial(recordings.listing, limit=2))
        yield Live(here, desks[0], ears, row.id, port)


def tones_in(heard: Heard) -> set[int]:
    """The tones in what was heard, to the next hundred, by tenths of a second."""
    step = RATE // 10
    audio = heard.audio
    found = {
        round(loudest_frequency(audio[at : at + step], RATE) / 100) * 100
        for at in range(0, len(audio) - step, step)
    }
    return found - {0}


async def test_nothing_of_a_paused_stretch_is_sent_and_times_go_on(tmp_path: Path) -> None:
    async with live_recogniser() as ears, call(tmp_path, ears) as one:
        await until(lambda: len(ears.streams) == 2)
        send(VOICE[:75], one.port)
        await until(lambda: any(len(heard.audio) >= RATE for heard in ears.streams))
        await one.here.service.pause(one.session, PauseOrder(by="agent 7"))
        send(SECRET[75:150], one.port)
        (first,) = await one.settled(1)
        await one.here.service.resume(one.session, PauseOrder())
        send(VOICE[150:225], one.port)
        row = await one.hang_up()
        _, second = await one.settled(2)
        await until(lambda: one.heard.stopped)
        heard = one.heard

    assert tones_in(heard) == {400}
    assert (first["utterance"], second["utterance"]) == (0, 1)
    assert second["start"] >= first["start"] + 1.5
    assert json.loads(row.document)["streams"][0]["pauses"]


async def test_without_a_recogniser_the_call_is_recorded_and_that_is_told_once(
    tmp_path: Path,
) -> None:
    with capture_logs() as log:
        async with live_recogniser() as ears:
            await ears.stop()
            async with call(tmp_path, ears) as one:
                send(VOICE[:50], one.port)
                await until(lambda: one.count("connections_total", result="failed") >= 4)
                available = one.count("recogniser_available")
                await ears.start()
                await until(lambda: one.count("streams") == 2)
                send(VOICE[50:150], one.port)
                await one.settled(1)
                row = await one.hang_up()
                lines = await one.lines()

    told = [line["event"] for line in log if line["event"].startswith("live.recogniser")]
    assert told == ["live.recogniser_away", "live.recogniser_back"]
    assert available == 0
    assert len(lines) >= 1
    assert json.loads(row.audio or "")["legs"][0]["duration"] == 3.0


async def test_a_live_process_that_is_killed_comes_back_and_the_recording_knows_nothing_of_it(
    tmp_path: Path,
) -> None:
    async with live_recogniser() as ears, call(tmp_path, ears) as one:
        await until(lambda: len(ears.streams) == 2)
        send(VOICE[:75], one.port)
        (first,) = await one.settled(1)
        (pid,) = one.desk.engine.pids
        os.kill(pid, signal.SIGKILL)
        await until(lambda: len(ears.streams) == 4)
        await until(lambda: one.count("streams") == 2)
        send(VOICE[75:150], one.port)
        row = await one.hang_up()
        _, second = await one.settled(2)
        restarts = one.count("process_restarts_total")
        again = max(ears.streams[2:], key=lambda heard: len(heard.audio)).audio

    assert (first["utterance"], second["utterance"]) == (0, 1)
    assert restarts == 1
    assert 1.0 <= np.count_nonzero(np.abs(again) > 100) / RATE <= 1.6  # not what was said before
    assert json.loads(row.audio or "")["legs"][0]["duration"] == 3.0


async def test_of_two_live_processes_one_that_is_killed_leaves_the_others_streams_alone(
    tmp_path: Path,
) -> None:
    async with live_recogniser() as ears, call(tmp_path, ears, processes=2) as one:
        await until(lambda: len(ears.streams) == 2)
        send(VOICE[:75], one.port)
        await one.settled(1)
        heard = one.heard
        first, second = one.desk.engine.pids
        os.kill(second, signal.SIGKILL)  # of the stream that nobody speaks on
        await until(lambda: len(ears.streams) == 3)
        await until(lambda: one.count("streams") == 2)
        send(VOICE[75:150], one.port)
        await one.hang_up()
        lines = await one.settled(2)
        (again,) = ears.streams[2:]
        pids = one.desk.engine.pids
        await until(lambda: one.count("streams") == 0)

    assert [line["utterance"] for line in lines] == [0, 1]
    assert heard.stopped
    assert 2.5 <= np.count_nonzero(np.abs(heard.audio) > 100) / RATE <= 3.1
    assert not np.abs(again.audio).max(initial=0)
    assert pids[0] == first
    assert pids[1] != second
    assert one.count("process_restarts_total") == 1


async def test_a_recogniser_without_room_leaves_streams_out_and_the_log_says_which(
    tmp_path: Path,
) -> None:
    with capture_logs() as log:
        async with live_recogniser(status=429) as ears, call(tmp_path, ears) as one:
            send(VOICE[:50], one.port)
            await until(lambda: one.count("connections_total", result="full") >= 4)
            row = await one.hang_up()

    assert len([line for line in log if line["event"] == "live.no_room"]) == 2
    assert json.loads(row.audio or "")["legs"][0]["duration"] == 1.0
