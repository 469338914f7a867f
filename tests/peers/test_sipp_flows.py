"""The flows of RFC 8068 and the odd corners of RFC 3261, played by SIPp at one bridge.

The bridge is shared, so that calls are told apart by Call-ID only, as in service.
"""

import asyncio
import itertools
import json
import signal
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from harness.bridge import Bridge, Events, eventually, listening, of_type, running_bridge
from harness.recognisers import recogniser
from harness.rtp import loudest_frequency, read_wav
from harness.sipp import Speaker, run_sipp
from siprec_bridge import sdp, sip

pytestmark = [pytest.mark.peer, pytest.mark.asyncio(loop_scope="module")]

Session = dict[str, Any]

_LATE_S = 0.35  # that SIPp's media, or our look at the clock, may be late on a busy machine
VOICES = {"alice": 440.0, "bob": 1000.0, "carol": 1600.0, "dave": 2200.0}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bridge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bridge]:
    """One bridge for all flows."""
    folder = tmp_path_factory.mktemp("bridge")
    silent = str(recogniser(folder, "is_silent"))
    async with running_bridge(
        folder / "data", WHISPER_BINARY_PATH=silent, SHUTDOWN_TIMEOUT="1s"
    ) as running:
        yield running


async def play(
    bridge: Bridge,
    scenario: str,
    folder: Path,
    *options: str,
    transport: str = "udp",
    timeout_s: int = 30,
    **words: str,
) -> str:
    """Play a scenario that has to end well, with voices; returns the Call-ID (of call 1).

    Again, twice at most, where the machine was too busy for voices in real time.
    """
    tries = 3
    while True:
        own = folder / str(tries)
        own.mkdir()
        voices = own / "voices"
        name = f"{folder.name}-{tries}-{Path(scenario).stem}"
        speaker = Speaker(voices, VOICES)
        speaking = asyncio.create_task(speaker.speak())
        try:
            code, errors = await run_sipp(
                bridge.udp if transport == "udp" else bridge.tcp,
                scenario, transport, own, "-cid_str", f"{name}-%u", *options,
                timeout_s=timeout_s, words={"voices": str(voices)} | words,
            )  # fmt: skip
        finally:
            speaking.cancel()
            (problem,) = await asyncio.gather(speaking, return_exceptions=True)
        assert isinstance(problem, asyncio.CancelledError), problem
        tries -= 1
        if speaker.late < _LATE_S / 2 or not tries:
            break
    assert code == 0, errors
    assert errors == "" or "-lost" in options  # SIPp notes each message that comes too late
    return f"{name}-1"


async def recorded(bridge: Bridge, call_id: str) -> Session:
    """What the API tells of a call, once its audio is archived."""
    await eventually(
        lambda: any(one["sip_call_id"] == call_id for one in bridge.logged("session.archived")),
        f"archived session of {call_id}",
        bridge,
    )
    _, text = await bridge.get(f"/api/sessions?call_id={call_id}")
    (listed,) = json.loads(text)["sessions"]
    _, text = await bridge.get(f"/api/sessions/{listed['id']}")
    session: Session = json.loads(text)
    return session


async def messages(
    bridge: Bridge, session: Session
) -> list[tuple[bool, sip.Request | sip.Response]]:
    """The session's SIP messages and whether we sent them, once the last one is stored."""
    async with asyncio.timeout(10):
        while True:
            _, text = await bridge.get(f"/api/sessions/{session['id']}/ladder")
            told = json.loads(text)["messages"]
            parsed = [(one["sent"], sip.parse(one["text"].encode())) for one in told]
            if any(sent and one.cseq.method == "BYE" for sent, one in parsed):
                return parsed
            await asyncio.sleep(0.05)


async def answers(bridge: Bridge, session: Session) -> list[sdp.SessionDescription]:
    """Our descriptions, in order, without retransmissions."""
    sent = [one for ours, one in await messages(bridge, session) if ours and one.body]
    return [sdp.parse(one.body) for one in {str(one.cseq): one for one in sent}.values()]


def story(events: Events, call_id: str) -> list[str]:
    """What a listener heard of the recording session, without the transcript."""
    return [
        one["type"]
        for one in events
        if one["data"].get("sip_call_id") == call_id and one["type"].startswith("session.")
    ]


def heard(bridge: Bridge, session: Session, leg: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Who is on a leg's audio, in order, and for how many seconds; "" is silence."""
    rate, pcm = read_wav(bridge.data / "recordings" / session["id"] / leg["file"])
    window = rate // 50
    pitches = [
        loudest_frequency(pcm[start : start + window], rate) for start in range(0, len(pcm), window)
    ]
    names = [
        min(VOICES, key=lambda name: abs(VOICES[name] - pitch)) if pitch else ""
        for pitch in pitches
    ]
    runs = [(name, len(list(run)) / 50) for name, run in itertools.groupby(names)]
    # A window that a voice begins or ends in is no sign of anybody.
    return [(name, length) for name, length in runs if length >= 0.06]


def legs(session: Session) -> dict[str, dict[str, Any]]:
    """Its audio files, by label."""
    return {one["label"]: one for one in session["audio"]["legs"]}


def streams(session: Session) -> dict[str, dict[str, Any]]:
    """The streams of its document, by label."""
    return {one["label"]: one for one in session["document"]["streams"]}


def names(session: Session) -> dict[str, str]:
    """The participants of its document, by id."""
    return {one["id"]: one["name"] for one in session["document"]["participants"]}


def on(stream: Mapping[str, Any]) -> list[str]:
    """Who was on a stream, in order of arrival."""
    return [one["participant_id"] for one in stream["presences"]]


def seconds(since: str, until: str) -> float:
    """Between two times of the API."""
    return (datetime.fromisoformat(until) - datetime.fromisoformat(since)).total_seconds()


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_what_is_said_on_hold_is_not_recorded_and_the_hold_keeps_its_length(
    bridge: Bridge, tmp_path: Path, transport: str
) -> None:
    async with listening(bridge) as events:
        call_id = await play(bridge, "hold_and_resume.xml", tmp_path, transport=transport)
        session = await recorded(bridge, call_id)
        await eventually(lambda: "session.ended" in story(events, call_id), "the end", bridge)

    assert session["peer"].startswith(transport)
    assert session["end_cause"] == "bye"
    assert story(events, call_id) == [
        "session.started", "session.paused", "session.resumed", "session.ended",
    ]  # fmt: skip
    mine = [one for one in events if one["subject"] == session["id"]]
    (paused,), (resumed,) = of_type(mine, "session.paused"), of_type(mine, "session.resumed")
    assert paused["data"]["labels"] == resumed["data"]["labels"] == ["1"]
    (before, _), (quiet, hold), (after, _) = heard(bridge, session, legs(session)["1"])
    assert (before, quiet, after) == ("alice", "", "alice")
    assert hold == pytest.approx(seconds(paused["time"], resumed["time"]), abs=_LATE_S)
    assert hold > 0.8
    ((other, length),) = heard(bridge, session, legs(session)["2"])
    assert (other, length > hold + 1.0) == ("bob", True)
    ours = await answers(bridge, session)
    assert [one.media[0].direction for one in ours] == ["recvonly", "inactive", "recvonly"]
    assert len({(one.media[0].port, one.media[1].port) for one in ours}) == 1
    assert [int(one.origin.split()[2]) for one in ours] == [0, 1, 2]


async def test_who_takes_a_stream_over_is_on_it_from_the_moment_that_he_is_heard(
    bridge: Bridge, tmp_path: Path
) -> None:
    call_id = await play(bridge, "transfer_in_dialog.xml", tmp_path)
    session = await recorded(bridge, call_id)

    assert names(session) == {"alice": "Alice", "bob": "Bob", "carol": "Carol"}
    assert on(streams(session)["1"]) == ["alice"]
    bob, carol = streams(session)["2"]["presences"]
    assert (bob["participant_id"], carol["participant_id"]) == ("bob", "carol")
    assert bob["until"] == carol["since"]
    leg = legs(session)["2"]
    (first, length), (second, _) = heard(bridge, session, leg)
    assert (first, second) == ("bob", "carol")
    heard_at = datetime.fromisoformat(leg["started_at"]) + timedelta(seconds=length)
    assert abs((heard_at - datetime.fromisoformat(carol["since"])).total_seconds()) < _LATE_S


async def test_a_transfer_by_a_second_recording_session_keeps_the_group(
    bridge: Bridge, tmp_path: Path
) -> None:
    call_id = await play(bridge, "transfer_by_new_session.xml", tmp_path)
    first, second = await recorded(bridge, call_id), await recorded(bridge, f"again///{call_id}")

    for session in (first, second):
        assert session["end_cause"] == "bye"
        assert session["document"]["group_id"] == "group-1"
        assert session["document"]["communication_sessions"] == ["cs-1"]
    assert on(streams(first)["2"]) == ["bob"]
    assert on(streams(second)["2"]) == ["carol"]
    assert seconds(first["ended_at"], second["started_at"]) > 0


async def test_a_conference_gets_a_third_stream_and_its_slot_goes_to_the_next(
    bridge: Bridge, tmp_path: Path
) -> None:
    async with listening(bridge) as events:
        call_id = await play(bridge, "conference.xml", tmp_path)
        session = await recorded(bridge, call_id)
        await eventually(lambda: "session.ended" in story(events, call_id), "the end", bridge)

    assert names(session) == {"alice": "Alice", "bob": "Bob", "carol": "Carol", "dave": "Dave"}
    updates = [one for one in events if one["subject"] == session["id"]]
    states = [
        [stream["state"] for stream in one["data"]["streams"]]
        for one in of_type(updates, "session.updated")
    ]
    assert states == [["active"] * 3, ["active", "active", "closed"], ["active"] * 3]
    ours = await answers(bridge, session)
    assert [len(one.media) for one in ours] == [2, 3, 3, 3]
    assert len({(one.media[0].port, one.media[1].port) for one in ours}) == 1
    assert [one.media[2].port > 0 for one in ours[1:]] == [True, False, True]
    # The slot's track goes on under its first label, as the audio does.
    assert session["warnings"] == []
    carol, dave = streams(session)["3"]["presences"]
    assert (carol["participant_id"], dave["participant_id"]) == ("carol", "dave")
    (first, _), (nobody, gap), (second, _) = heard(bridge, session, legs(session)["3"])
    assert (first, nobody, second) == ("carol", "", "dave")
    assert gap == pytest.approx(seconds(carol["until"], dave["since"]), abs=_LATE_S)
    assert gap > 0.2


async def test_an_invite_without_an_offer_gets_ours(bridge: Bridge, tmp_path: Path) -> None:
    call_id = await play(bridge, "late_offer.xml", tmp_path)
    session = await recorded(bridge, call_id)

    (offer,) = await answers(bridge, session)
    assert [(one.direction, one.label) for one in offer.media] == [
        ("recvonly", "1"), ("recvonly", "2"),
    ]  # fmt: skip
    assert [on(streams(session)[label]) for label in ("1", "2")] == [["alice"], ["bob"]]
    for label, who in (("1", "alice"), ("2", "bob")):
        ((name, length),) = heard(bridge, session, legs(session)[label])
        assert (name, length > 0.7) == (who, True)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_an_invite_that_is_cancelled_in_time_leaves_nothing(
    bridge: Bridge, tmp_path: Path, transport: str
) -> None:
    sent = tmp_path / "sent"
    bridge.process.send_signal(signal.SIGSTOP)
    try:
        playing = asyncio.create_task(
            play(bridge, "cancel.xml", tmp_path, transport=transport, sent=str(sent))
        )
        await eventually(lambda: sent.exists() or playing.done(), "CANCEL", bridge)
    finally:
        bridge.process.send_signal(signal.SIGCONT)
    call_id = await playing
    session = await recorded(bridge, call_id)

    # It was stored before the CANCEL came: it ends at once, and nothing was recorded.
    assert (session["end_cause"], session["audio"]["legs"]) == ("cancelled", [])


async def test_a_session_timer_is_negotiated_and_refreshed(bridge: Bridge, tmp_path: Path) -> None:
    async with listening(bridge) as events:
        call_id = await play(bridge, "session_timer.xml", tmp_path)
        session = await recorded(bridge, call_id)
        await eventually(lambda: "session.ended" in story(events, call_id), "the end", bridge)

    assert session["end_cause"] == "bye"
    assert story(events, call_id) == ["session.started", "session.ended"]
    ours = await answers(bridge, session)
    assert len({(one.origin, one.media[0].port) for one in ours}) == 1


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_session_whose_refresher_died_ends_with_what_was_recorded(
    bridge: Bridge, tmp_path: Path
) -> None:
    folders = [tmp_path / "dead", tmp_path / "ours", tmp_path / "offered"]
    for one in folders:
        one.mkdir()
    dead, ours, offered = await asyncio.gather(
        play(bridge, "dead_refresher.xml", folders[0], timeout_s=80),
        play(bridge, "refreshed_by_us.xml", folders[1], timeout_s=80),
        play(bridge, "refreshed_by_reinvite.xml", folders[2], timeout_s=80),
    )
    expired, kept = await recorded(bridge, dead), await recorded(bridge, ours)
    again = await recorded(bridge, offered)

    causes = [one["end_cause"] for one in (expired, kept, again)]
    assert causes == ["session_expired", "bye", "bye"]
    assert seconds(expired["started_at"], expired["ended_at"]) == pytest.approx(60, abs=2)
    assert seconds(kept["started_at"], kept["ended_at"]) == pytest.approx(45, abs=2)
    assert seconds(again["started_at"], again["ended_at"]) == pytest.approx(45, abs=2)
    ((name, length),) = heard(bridge, expired, legs(expired)["1"])
    assert (name, length > 58) == ("alice", True)


async def test_calls_over_a_network_that_loses_a_tenth_are_recorded_once_each(
    bridge: Bridge, tmp_path: Path
) -> None:
    calls = 40
    call_id = await play(
        bridge, "short_call.xml", tmp_path, "-m", str(calls), "-r", "20", "-lost", "10"
    )
    sessions = [
        await recorded(bridge, f"{call_id.removesuffix('1')}{number}")
        for number in range(1, calls + 1)
    ]

    assert {one["end_cause"] for one in sessions} == {"bye"}
    started = [str(one["sip_call_id"]) for one in bridge.logged("session.started")]
    assert sum(one.startswith(call_id.removesuffix("1")) for one in started) == calls


async def test_reinvites_that_overlap_are_both_answered_and_the_call_goes_on(
    bridge: Bridge, tmp_path: Path
) -> None:
    async with listening(bridge) as events:
        call_id = await play(bridge, "overlapping_reinvites.xml", tmp_path)
        session = await recorded(bridge, call_id)
        await eventually(lambda: "session.ended" in story(events, call_id), "the end", bridge)

    told = await messages(bridge, session)
    acknowledged = [one.cseq.number for _, one in told if isinstance(one, sip.Request)
                    and one.method == "ACK"]  # fmt: skip
    taken = [
        str(one.cseq) for _, one in told if isinstance(one, sip.Response) and one.status == 200
    ]
    assert acknowledged == [1, 3]
    # Each 200 once: the ACK of the third counts for the second, too.
    assert taken == ["1 INVITE", "2 INVITE", "3 INVITE", "4 BYE"]
    assert session["end_cause"] == "bye"
    assert story(events, call_id) == [
        "session.started", "session.paused", "session.resumed", "session.ended",
    ]  # fmt: skip
    assert legs(session)["1"]["duration"] > 1.0


async def test_metadata_and_sdp_may_come_alone(bridge: Bridge, tmp_path: Path) -> None:
    call_id = await play(bridge, "updates.xml", tmp_path)
    session = await recorded(bridge, call_id)

    assert on(streams(session)["1"]) == ["alice"]
    assert on(streams(session)["2"]) == ["bob", "carol", "dave"]
    left, right = streams(session)["1"], streams(session)["2"]
    assert seconds(right["closed_at"], left["closed_at"]) > 0.2
    ours = await answers(bridge, session)
    assert [[media.port > 0 for media in one.media] for one in ours] == [
        [True, True], [True, True], [True, False],
    ]  # fmt: skip


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_what_cannot_be_recorded_is_refused_by_its_cause(
    bridge: Bridge, tmp_path: Path, transport: str
) -> None:
    call_id = await play(bridge, "refusals.xml", tmp_path, transport=transport)

    refused = [one["status"] for one in bridge.logged("refused") if one["sip_call_id"] == call_id]
    assert refused == [488, 415]
    _, text = await bridge.get(f"/api/sessions?call_id={call_id}")
    assert json.loads(text)["sessions"] == []
