"""Encrypted calls at a real bridge: over TLS and UDP, by policy, and with keys that do not fit."""

import asyncio
import base64
import re
import shutil
import socket
from pathlib import Path

import pytest

from harness.bridge import Bridge, listening, running_bridge
from harness.calls import call, finals, tones
from harness.certificates import Authority
from harness.recognisers import recogniser
from harness.rtp import loudest_frequency, packets, read_wav, tone
from harness.src import OFFER, multipart, request
from siprec_bridge.caller import CallPlan, parse_target, place_call
from siprec_bridge.dtls import Certificate
from siprec_bridge.rtp import SrtpSender
from siprec_bridge.sdp import fingerprint_of, write_crypto
from siprec_bridge.sdp import parse as parse_sdp
from siprec_bridge.sip import Response
from siprec_bridge.sip import parse as parse_sip

pytestmark = pytest.mark.peer

CM80, GCM = "AES_CM_128_HMAC_SHA1_80", "AEAD_AES_256_GCM"


async def legs(bridge: Bridge) -> list[tuple[float, float]]:
    """Pitch and length of each party's recording."""
    await bridge.wait_for_log("session.archived")
    found = []
    for path in sorted((bridge.data / "recordings").rglob("*-[01].wav")):
        rate, pcm = read_wav(path)
        found.append((round(loudest_frequency(pcm[:rate], rate), -1), round(len(pcm) / rate, 1)))
    return found


async def invited(phone: socket.socket, bridge: Bridge, offer: str) -> Response:
    """The final answer to an INVITE with this offer; the socket is connected to the bridge then."""
    loop = asyncio.get_running_loop()
    phone.setblocking(False)
    phone.connect(bridge.udp)
    await loop.sock_sendall(phone, request("INVITE", body=multipart(sdp=offer)))
    async with asyncio.timeout(10):
        answer = parse_sip(await loop.sock_recv(phone, 65536))
        while not isinstance(answer, Response) or answer.status < 200:
            answer = parse_sip(await loop.sock_recv(phone, 65536))
    return answer


@pytest.mark.parametrize("suite", [CM80, "AES_CM_128_HMAC_SHA1_32", GCM])
async def test_an_encrypted_call_over_udp_is_recorded(tmp_path: Path, suite: str) -> None:
    async with running_bridge(tmp_path / "data") as bridge:
        report = await call(bridge, srtp=suite)

        heard = await legs(bridge)
        _, metrics = await bridge.get("/metrics")

    assert [one.protocol for one in report.media] == ["RTP/SAVP", "RTP/SAVP"]
    assert heard == [(440, 2.0), (1000, 2.5)]
    assert "siprec_srtp_packets_unauthenticated_total 0.0" in metrics


async def test_an_encrypted_call_over_tls_is_transcribed_where_only_that_is_taken(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.sign("bridge")
    async with (
        running_bridge(
            tmp_path / "data", WHISPER_BINARY_PATH=str(recogniser(tmp_path, "speaks")),
            TLS_PORT="0", TLS_CERT_PATH=str(certificate), TLS_KEY_PATH=str(key),
            SRTP="require", SRTP_SDES_ONLY_OVER_TLS="true",
        ) as bridge,
        listening(bridge) as events,
    ):  # fmt: skip
        places = bridge.ready["sip_tls"]
        assert isinstance(places, list)
        host, port = bridge.udp
        secure = CallPlan(parse_target(f"sips:{places[0]}"), tones(0.5), rate=20.0, srtp=CM80)
        report = await place_call(secure)
        (final,) = await finals(bridge, events)
        unsafe = CallPlan(parse_target(f"{host}:{port}"), tones(0.5), rate=20.0, srtp=CM80)
        over_udp = await place_call(unsafe)
        plain = await place_call(CallPlan(parse_target(f"{host}:{port}"), tones(0.5), rate=20.0))

    assert report.ok
    assert len(final["data"]["utterances"]) == 2
    assert (over_udp.status, plain.status) == (488, 488)


async def test_media_under_another_key_is_counted_and_not_recorded(tmp_path: Path) -> None:
    told, used = bytes(range(30)), bytes(range(30, 60))
    crypto = f"a=crypto:{write_crypto('1', CM80, told)}\r\na=label"
    offer = OFFER.replace("RTP/AVP", "RTP/SAVP").replace("a=label", crypto)
    sender = SrtpSender(CM80, used)
    async with running_bridge(tmp_path / "data") as bridge:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
            answer = await invited(phone, bridge, offer)
            ours = parse_sdp(answer.body).media
            tag = (answer.headers.get("To") or "").partition(";tag=")[2]
            phone.send(request("ACK", to_tag=tag, branch="z9hG4bK2"))
            for packet in packets(tone(440, 1.0)):
                phone.sendto(sender.protect(packet), ("127.0.0.1", ours[0].port))
            await bridge.wait_for_log("stream.not_authentic")
            phone.send(request("BYE", number=2, to_tag=tag, branch="z9hG4bK3"))
            await bridge.wait_for_log("session.archived")
        _, metrics = await bridge.get("/metrics")
        (session,) = bridge.logged("session.started")
        where, ladder = f"/api/sessions/{session['session_id']}/ladder", ""
        async with asyncio.timeout(20):  # it is stored a second later
            while "inline:" not in ladder:
                await asyncio.sleep(0.1)
                _, ladder = await bridge.get(where)
        assert bridge.process.returncode is None
        log = bridge.log_file.read_text()
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    kept = b"".join(path.read_bytes() for path in files)

    assert answer.status == 200
    assert "siprec_srtp_packets_unauthenticated_total 50.0" in metrics
    assert log.count("stream.not_authentic") == 1
    assert not any(path.suffix == ".wav" for path in files)
    assert "inline:***" in ladder
    ours_text = ours[0].crypto_lines[0].partition("inline:")[2]
    for secret in (base64.b64encode(told).decode(), ours_text):
        assert secret not in ladder + log
        assert secret.encode() not in kept
        assert base64.b64decode(secret) not in kept


async def test_a_call_with_keys_by_dtls_is_recorded(tmp_path: Path) -> None:
    host_keys = Certificate.make()
    pem = tmp_path / "ours.pem"
    pem.write_bytes(host_keys.pem)
    async with running_bridge(
        tmp_path / "data", DTLS_CERT_PATH=str(pem), DTLS_KEY_PATH=str(pem), SRTP="require",
        SRTP_SDES_ONLY_OVER_TLS="true",
    ) as bridge:  # fmt: skip
        report = await call(bridge, dtls=True)

        heard = await legs(bridge)
        _, metrics = await bridge.get("/metrics")
        suites = [line["suite"] for line in bridge.logged("stream.keyed")]

    assert [one.protocol for one in report.media] == ["UDP/TLS/RTP/SAVP"] * 2
    assert {one.attribute("fingerprint") for one in report.media} == {str(host_keys.fingerprint)}
    assert heard == [(440, 2.0), (1000, 2.5)]
    assert suites == ["AEAD_AES_256_GCM"] * 2
    assert 'siprec_dtls_handshakes_total{outcome="done"} 2.0' in metrics
    assert "siprec_srtp_packets_unauthenticated_total 0.0" in metrics


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")
@pytest.mark.parametrize(
    ("profile", "suite", "size", "is_theirs"),
    [
        ("SRTP_AES128_CM_SHA1_80", CM80, (16, 14), True),
        ("SRTP_AEAD_AES_256_GCM", GCM, (32, 12), True),
        ("SRTP_AES128_CM_SHA1_80", CM80, (16, 14), False),
    ],
    ids=["AES-CM", "GCM", "another certificate"],
)
async def test_openssl_s_own_client_agrees_on_keys_and_is_recorded_with_its_certificate_only(
    tmp_path: Path, profile: str, suite: str, size: tuple[int, int], is_theirs: bool
) -> None:
    theirs = Certificate.make()
    pem = tmp_path / "theirs.pem"
    pem.write_bytes(theirs.pem)
    named = theirs.fingerprint if is_theirs else fingerprint_of(b"another one")
    lines = f"a=setup:active\r\na=fingerprint:{named}\r\na=label"
    offer = OFFER.replace("RTP/AVP", "UDP/TLS/RTP/SAVP").replace("a=label", lines)
    key, salt = size
    async with running_bridge(tmp_path / "data") as bridge:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
            answer = await invited(phone, bridge, offer)
            ours = parse_sdp(answer.body).media[0]
            tag = (answer.headers.get("To") or "").partition(";tag=")[2]
            phone.send(request("ACK", to_tag=tag, branch="z9hG4bK2"))
            client = await asyncio.create_subprocess_exec(
                "openssl", "s_client", "-dtls1_2", "-connect", f"127.0.0.1:{ours.port}",
                "-cert", str(pem), "-key", str(pem), "-use_srtp", profile,
                "-keymatexport", "EXTRACTOR-dtls_srtp", "-keymatexportlen", str(2 * (key + salt)),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            try:
                if is_theirs:
                    await bridge.wait_for_log("stream.keyed")
                else:
                    await bridge.wait_for_log("stream.handshake_failed")
                out, _ = await asyncio.wait_for(client.communicate(b"Q\n"), 20)
            finally:
                if client.returncode is None:
                    client.kill()
                    await client.wait()
            text = out.decode()
            found = re.search(r"Keying material: ([0-9A-F]+)", text)
            exported = bytes.fromhex(found[1]) if found else bytes(2 * (key + salt))
            sender = SrtpSender(suite, exported[:key] + exported[2 * key : 2 * key + salt])
            for packet in packets(tone(440, 1.0)):
                phone.sendto(sender.protect(packet), ("127.0.0.1", ours.port))
            await bridge.wait_for_log("stream.started" if is_theirs else "session.updated")
            phone.send(request("BYE", number=2, to_tag=tag, branch="z9hG4bK3"))
            await bridge.wait_for_log("session.archived")
        (session,) = bridge.logged("session.started")
        _, document = await bridge.get(f"/api/sessions/{session['session_id']}")
        log = bridge.log_file.read_text()
    audio = sorted((tmp_path / "data" / "recordings").rglob("*-0.wav"))

    assert ours.attribute("setup") == "passive"
    assert exported.hex() not in log.lower()
    if is_theirs:
        assert f"SRTP Extension negotiated, profile={profile}" in text
        rate, pcm = read_wav(audio[0])
        assert (round(loudest_frequency(pcm, rate), -1), len(pcm) / rate) == (440, 1.0)
    else:
        assert audio == []
        assert "its certificate is not the one of the SDP" in document
