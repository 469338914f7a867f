"""SIPp as the SRC, over UDP and TCP, with audio of the sample call as G.711."""

import asyncio
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from harness.bridge import Bridge, listening, of_type, running_bridge
from harness.calls import SAMPLE, finals
from harness.recognisers import recogniser
from harness.rtp import read_wav
from harness.sipp import run_sipp

pytestmark = pytest.mark.peer

HERE = Path(__file__).parent


async def sipp(
    bridge: Bridge, scenario: str, transport: str, folder: Path, **words: str
) -> tuple[int, str]:
    """Run a scenario once; returns SIPp's exit code and what it says about errors."""
    address = bridge.udp if transport == "udp" else bridge.tcp
    return await run_sipp(address, scenario, transport, folder, words=words)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_a_call_with_hold_and_a_change_of_speaker_is_recorded(
    tmp_path: Path, transport: str
) -> None:
    speaks = str(recogniser(tmp_path, "speaks"))
    sender = f"env PYTHONPATH={HERE.parent} {sys.executable} {HERE / 'send_g711.py'}"
    sender += f" {SAMPLE / 'alice.wav'} {SAMPLE / 'bob.wav'}"
    async with (
        running_bridge(tmp_path / "data", WHISPER_BINARY_PATH=speaks) as bridge,
        listening(bridge) as events,
    ):
        code, errors = await sipp(
            bridge, "recorded_call.xml", transport, tmp_path,
            sender=sender, done=str(tmp_path / "done"), talk="4000",
        )  # fmt: skip
        assert (code, errors) == (0, "")
        (final,) = await finals(bridge, events)

    assert (tmp_path / "done").exists()
    data = final["data"]
    assert [one["name"] for one in data["participants"]] == ["Anna", "Bernd", "Clara"]
    assert [(one["label"], one["participant"]["name"]) for one in data["utterances"]] == [
        ("11", "Anna"),
        ("22", "Bernd"),
    ]
    (paused,) = of_type(events, "session.paused")
    assert paused["data"]["labels"] == ["11"]
    (updated,) = of_type(events, "session.updated")
    assert len(updated["data"]["participants"]) == 3
    folder = tmp_path / "data" / "recordings" / str(final["subject"])
    for leg, name in zip(data["legs"], ("alice", "bob"), strict=True):
        rate, pcm = read_wav(folder / leg["audio"])
        _, said = read_wav(SAMPLE / f"{name}.wav")
        assert len(pcm) / rate == pytest.approx(len(said) / 8000, abs=0.02)
        heard = pcm[::2][: len(said)].astype(np.float64)
        likeness = np.corrcoef(heard, said[: len(heard)].astype(np.float64))[0, 1]
        assert likeness > 0.95


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_an_invite_without_metadata_is_recorded_and_video_is_refused(
    tmp_path: Path, transport: str
) -> None:
    silent = str(recogniser(tmp_path, "is_silent"))
    async with (
        running_bridge(tmp_path / "data", WHISPER_BINARY_PATH=silent) as bridge,
        listening(bridge) as events,
    ):
        code, errors = await sipp(bridge, "late_cancel.xml", transport, tmp_path)
        assert (code, errors) == (0, "")
        (final,) = await finals(bridge, events)

    assert [one["name"] for one in final["data"]["participants"]] == ["Carl", "Dora"]
    assert final["data"]["utterances"] == []
    (started,) = of_type(events, "session.started")
    assert [one["label"] for one in started["data"]["streams"]] == ["1"]


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_an_src_that_is_asked_to_authenticates_and_is_recorded(
    tmp_path: Path, transport: str
) -> None:
    silent = str(recogniser(tmp_path, "is_silent"))
    async with running_bridge(
        tmp_path / "data",
        WHISPER_BINARY_PATH=silent,
        SIP_AUTH_USERS="sbc:secret",
        SIP_AUTH_ALGORITHMS="MD5",  # SIPp looks at the first challenge only, and knows no other
    ) as bridge:
        code, errors = await sipp(bridge, "authenticated_call.xml", transport, tmp_path)
        assert (code, errors) == (0, "")
        await bridge.wait_for_log("session.archived")

    assert len(bridge.logged("session.started")) == 1


async def test_scanners_and_garbage_do_no_harm(tmp_path: Path) -> None:
    speaks = str(recogniser(tmp_path, "speaks"))
    async with running_bridge(tmp_path / "data", WHISPER_BINARY_PATH=speaks) as bridge:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            for data in (b"\0" * 100, b"INVITE\r\n\r\n", b"SIP/2.0 200\r\n\r\n", bytes(range(256))):
                one.sendto(data, bridge.udp)
        _, writer = await asyncio.open_connection(*bridge.tcp)
        writer.write(b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n")
        await writer.drain()
        await bridge.wait_for_log("sip.malformed", 2)
        writer.close()
        status, _ = await bridge.get("/health/ready")
        _, metrics = await bridge.get("/metrics")

    assert status == 200
    assert 'siprec_sip_malformed_total{transport="udp"}' in metrics
