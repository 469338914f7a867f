"""A capture through the code of live calls: what is recorded, what is told."""

import base64
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from harness.capture import (
    SRC,
    SRC_MEDIA,
    SRS,
    SRS_TAG,
    START_S,
    Sent,
    answer,
    call,
    ethernet,
    frames,
    in_order,
    ip,
    pcap,
    pcapng,
    signalling,
    srs_sdp,
    tcp,
    voices,
)
from harness.codecs import streams
from harness.rtp import loudest_frequency, packets, read_wav, tone
from harness.src import OFFER, multipart, request
from siprec_bridge.cli import app
from siprec_bridge.receiver.packets import Address
from siprec_bridge.replay import (
    CallResult,
    ReplayFailed,
    Report,
    UnreadableCapture,
    replay,
    report_lines,
)
from siprec_bridge.rtp import SrtpSender
from siprec_bridge.sdp import write_crypto

CORPUS = Path(os.environ.get("SIPREC_SHARED", Path(__file__).parents[3] / "shared")) / "corpus"
needs_corpus = pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus is not here")
G728_OFFER = OFFER.replace("RTP/AVP 8", "RTP/AVP 15")


async def replayed(folder: Path, data: bytes, **options: object) -> Report:
    file = folder / "one.pcap"
    file.write_bytes(data)
    return await replay(file, folder / "out", **options)  # type: ignore[arg-type]


async def one_call(folder: Path, sent: list[Sent]) -> CallResult:
    report = await replayed(folder, pcap(frames(sent)))
    (only,) = report.calls
    return only


def frequency(file: Path) -> float:
    rate, pcm = read_wav(file)
    return loudest_frequency(pcm[rate // 2 : rate], rate)


async def test_a_captured_call_is_recorded_as_if_it_came_in_live(tmp_path: Path) -> None:
    report = await replayed(tmp_path, pcap(frames(call())))

    (only,) = report.calls
    out = tmp_path / "out"
    assert report.ok
    assert (only.status, only.captured_status, only.end_cause) == (200, 200, "bye")
    assert only.at.timestamp() == START_S
    assert only.duration == 2.5
    assert [(one.label, one.speakers, one.codec) for one in only.streams] == [
        ("96", ("Alice",), "PCMU"),
        ("97", ("Bob",), "PCMA"),
    ]
    assert [(one.packets, one.lost, one.duration) for one in only.streams] == [(100, 0, 2.0)] * 2
    assert [round(frequency(out / str(one.file)), -1) for one in only.streams] == [440, 880]
    assert read_wav(out / str(only.stereo))[1].shape == (16000, 2)
    document = json.loads((out / "call-1" / "session.json").read_text())
    assert [one["name"] for one in document["participants"]] == ["Alice", "Bob"]
    assert json.loads((out / "report.json").read_text())["calls"][0]["id"] == "call-1"
    assert not report.warnings
    assert not only.warnings
    assert sorted(one.name for one in out.iterdir()) == [
        "call-1", "call-1.ladder.txt", "report.json",
    ]  # fmt: skip


async def test_the_ladder_shows_our_answers_beside_the_captured_ones(tmp_path: Path) -> None:
    only = await one_call(tmp_path, call())

    ladder = (tmp_path / "out" / only.ladder).read_text()
    titles = [
        line.partition("192.0.2.10:5070 ")[2]
        for line in ladder.splitlines()
        if "5070 " in line[:40]
    ]
    assert titles == [
        "--> INVITE sip:srs@192.0.2.1 SIP/2.0",
        "<-- SIP/2.0 100 Trying   (the bridge)",
        "<-- SIP/2.0 200 OK   (the bridge)",
        "<-- SIP/2.0 200 OK   (the captured server)",
        "--> ACK sip:srs@192.0.2.1 SIP/2.0",
        "--> BYE sip:srs@192.0.2.1 SIP/2.0",
        "<-- SIP/2.0 200 OK   (the bridge)",
        "<-- SIP/2.0 200 OK   (the captured server)",
    ]


async def test_a_call_over_tcp_in_pcapng_with_media_on_another_interface(tmp_path: Path) -> None:
    sequence = {SRC: 1000, SRS: 5000}
    wire: list[tuple[int, float, bytes]] = []
    for one in signalling():
        for start in range(0, len(one.payload), 900):
            piece = one.payload[start : start + 900]
            segment = tcp(one.source, one.destination, sequence[one.source], piece, 0x18)
            sequence[one.source] += len(piece)
            wire.append(
                (0, one.at, ethernet(ip(one.source.host, one.destination.host, 6, segment)))
            )
    wire += [(1, at, data) for at, data in frames(voices(), 276)]
    wire.sort(key=lambda one: one[1])

    report = await replayed(tmp_path, pcapng(wire, [(1, 6), (276, 9)]))

    (only,) = report.calls
    assert (only.transport, only.status, only.end_cause) == ("tcp", 200, "bye")
    assert [one.packets for one in only.streams] == [100, 100]


def locked(sent: list[Sent], suite: str, keys: dict[int, bytes]) -> list[Sent]:
    """The RTP among it encrypted, by the key of its port."""
    senders = {port: SrtpSender(suite, key) for port, key in keys.items()}
    return [
        replace(one, payload=senders[one.destination.port].protect(one.payload))
        if one.destination.port in senders
        else one
        for one in sent
    ]


async def test_encrypted_media_is_read_with_the_line_that_the_captured_server_took(
    tmp_path: Path,
) -> None:
    suite, unused = "AES_CM_128_HMAC_SHA1_80", "AEAD_AES_128_GCM"
    keys = {40000: bytes(range(30)), 40002: bytes(range(30, 60))}
    lines = [
        f"a=crypto:1 {write_crypto('', unused, bytes(28)).strip()}\r\n"
        f"a=crypto:{write_crypto('2', suite, key)}\r\na=label"
        for key in keys.values()
    ]
    offer = OFFER.replace("RTP/AVP", "RTP/SAVP").replace("a=label", "a={}")
    for line in lines:
        offer = offer.replace("a={}", line, 1)
    theirs = srs_sdp("40000 RTP/SAVP 0", "40002 RTP/SAVP 8").replace(
        "a=recvonly", f"a=crypto:{write_crypto('2', suite, bytes(30))}\r\na=recvonly"
    )

    only = await one_call(tmp_path, locked(call(offer=offer, sdp=theirs), suite, keys))

    out = tmp_path / "out"
    assert [(one.packets, one.lost, one.duration) for one in only.streams] == [(100, 0, 2.0)] * 2
    assert [round(frequency(out / str(one.file)), -1) for one in only.streams] == [440, 880]
    assert only.warnings == ()
    texts = [one.read_bytes() for one in out.rglob("*") if one.is_file()]
    for key in keys.values():
        assert not any(base64.b64encode(key) in text for text in texts)


async def test_packets_that_no_captured_key_opens_are_told(tmp_path: Path) -> None:
    suite = "AES_CM_128_HMAC_SHA1_80"
    line = f"a=crypto:{write_crypto('1', suite, bytes(30))}\r\na=label"
    offer = OFFER.replace("RTP/AVP", "RTP/SAVP").replace("a=label", line)
    other = {40000: bytes(range(30)), 40002: bytes(range(30))}

    theirs = srs_sdp("40000 RTP/SAVP 0", "40002 RTP/SAVP 8").replace(
        "a=recvonly", f"a=crypto:{write_crypto('1', suite, bytes(30))}\r\na=recvonly"
    )

    only = await one_call(tmp_path, locked(call(offer=offer, sdp=theirs), suite, other))

    assert "stream 96: 100 packets that its key does not open" in only.warnings


async def test_a_hold_is_followed_at_the_capture_s_own_time(tmp_path: Path) -> None:
    held = request(
        "INVITE", number=2, branch="z9hG4bKh", to_tag=SRS_TAG,
        body=multipart(sdp=OFFER.replace("a=sendonly", "a=inactive", 1)),
    )  # fmt: skip
    sent = [
        *call(bye=None),
        Sent(1.29, SRC, SRS, held),
        Sent(1.295, SRS, SRC, answer(held, srs_sdp("40000 RTP/AVP 0", "40002 RTP/AVP 8"))),
    ]

    only = await one_call(tmp_path, in_order(sent))

    assert [one.packets for one in only.streams] == [50, 100]
    assert only.end_cause == "the end of the capture"
    assert "the capture ends before the call does" in only.warnings


async def test_codecs_that_are_not_decoded_are_named(tmp_path: Path) -> None:
    theirs = srs_sdp("40000 RTP/AVP 0", "40002 RTP/AVP 15")
    report = await replayed(
        tmp_path, pcap(frames([*signalling(offer=G728_OFFER, sdp=theirs), *voices()]))
    )

    (only,) = report.calls
    assert not report.ok
    assert [(one.index, one.codecs, one.reason) for one in only.refused_streams] == [
        (1, ("G728",), "no codec in common")
    ]
    assert any("m-line 2: NOT RECORDED" in line and "G728" in line for line in report_lines(report))


async def test_rtp_of_a_codec_that_the_captured_server_chose_and_we_cannot_decode(
    tmp_path: Path,
) -> None:
    offer = OFFER.replace("RTP/AVP 8", "RTP/AVP 8 15")
    g728 = [replace(one, payload=one.payload[:1] + b"\x0f" + one.payload[2:]) for one in voices()]
    theirs = srs_sdp("40000 RTP/AVP 0", "40002 RTP/AVP 15")

    only = await one_call(tmp_path, in_order([*signalling(offer=offer, sdp=theirs), *g728]))

    assert (
        "stream 97: 100 packets of G728 (payload type 15), which the bridge does not decode"
    ) in only.warnings


async def test_a_call_that_we_would_refuse_is_told_with_the_reason(tmp_path: Path) -> None:
    offer = OFFER.replace("RTP/AVP 0 101", "RTP/SAVP 0 101").replace("RTP/AVP 8", "RTP/SAVP 8")
    report = await replayed(tmp_path, pcap(frames(call(offer=offer))))

    (only,) = report.calls
    assert not report.ok
    assert (only.status, only.captured_status, only.folder) == (488, 200, None)
    assert "no crypto line" in only.refusals[0].reason
    assert "the captured server answered 200" in only.warnings
    assert report.ignored["RTP of streams not recorded"] == 200


async def test_only_the_last_hop_of_a_proxied_call_is_taken(tmp_path: Path) -> None:
    proxy = Address("192.0.2.5", 5060)
    sent: list[Sent] = []
    for one in call():
        if one.source == SRC:
            via = b"Via: SIP/2.0/UDP 192.0.2.5:5060;branch=z9hG4bKp" + str(one.at).encode()
            behind = one.payload.replace(b"\r\nVia:", b"\r\n" + via + b"\r\nVia:", 1)
            sent += [
                replace(one, destination=proxy),
                Sent(one.at + 0.001, proxy, SRS, behind),
            ]
        elif one.source == SRS:
            sent += [
                replace(one, destination=proxy),
                Sent(one.at + 0.001, proxy, SRC, one.payload),
            ]
        else:
            sent.append(one)

    report = await replayed(tmp_path, pcap(frames(in_order(sent))))

    (only,) = report.calls
    assert (only.source, only.srs) == (str(proxy), str(SRS))
    assert (only.status, only.end_cause) == (200, "bye")
    assert [one.packets for one in only.streams] == [100, 100]
    assert report.ignored["SIP messages on their way to or from a proxy"] == 3


async def test_an_invite_that_was_only_asked_for_a_password_is_no_call(tmp_path: Path) -> None:
    first = request("INVITE", branch="z9hG4bK0", number=1, body=multipart())
    again = request("INVITE", branch="z9hG4bK1", number=2, body=multipart())
    ack = request("ACK", branch="z9hG4bK0", number=1, to_tag="challenge")
    sent = [
        Sent(-0.3, SRC, SRS, first),
        Sent(-0.2, SRS, SRC, answer(first, "", status="401 Unauthorized", tag="challenge")),
        Sent(-0.1, SRC, SRS, ack),
        Sent(0.0, SRC, SRS, again),
        Sent(0.1, SRS, SRC, answer(again, srs_sdp("40000 RTP/AVP 0", "40002 RTP/AVP 8"))),
        Sent(0.2, SRC, SRS, request("ACK", number=2, branch="z9hG4bKa", to_tag=SRS_TAG)),
        Sent(2.5, SRC, SRS, request("BYE", number=3, branch="z9hG4bKb", to_tag=SRS_TAG)),
    ]

    report = await replayed(tmp_path, pcap(frames(in_order([*sent, *voices()]))))

    (only,) = report.calls
    assert (only.status, only.end_cause) == (200, "bye")
    assert [one.packets for one in only.streams] == [100, 100]
    assert report.ignored["INVITEs that were only asked for a password, and their ACKs"] == 2


async def test_a_capture_of_the_src_s_side_alone_still_shows_what_we_answer(
    tmp_path: Path,
) -> None:
    only = await one_call(tmp_path, [one for one in call() if one.source == SRC])

    assert (only.status, only.captured_status, only.end_cause) == (200, None, "bye")
    assert any("nothing tells where its RTP went" in text for text in only.warnings)


async def test_a_hang_up_by_the_captured_server_ends_the_recording(tmp_path: Path) -> None:
    bye = (
        b"BYE sip:src@192.0.2.10:5070 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKs\r\n"
        b"From: <sip:srs@192.0.2.1>;tag=theirs\r\nTo: <sip:src@192.0.2.10>;tag=src\r\n"
        b"Call-ID: call-1\r\nCSeq: 1 BYE\r\n\r\n"
    )
    sent = in_order([*call(bye=None), Sent(1.29, SRS, SRC, bye)])

    only = await one_call(tmp_path, sent)

    assert (only.end_cause, only.duration) == ("terminated", 1.29)
    assert [one.packets for one in only.streams] == [50, 50]
    assert "the captured server hung up, so we do" in only.warnings


@pytest.mark.parametrize(
    ("taken", "end"), [("", "bye"), ("Session-Expires: 90;refresher=uac", "session_expired")]
)
async def test_a_session_timer_runs_if_the_captured_server_took_it(
    tmp_path: Path, taken: str, end: str
) -> None:
    timer = ["Session-Expires: 90;refresher=uac", "Supported: timer"]
    first, _, *rest = signalling(bye=300.0)
    invite = request("INVITE", headers=timer, body=multipart())
    sdp = srs_sdp("40000 RTP/AVP 0", "40002 RTP/AVP 8")
    ok = Sent(0.1, SRS, SRC, answer(invite, sdp, extra=taken))

    only = await one_call(tmp_path, [replace(first, payload=invite), ok, *rest])

    assert only.end_cause == end
    assert (
        "the captured server took no session timer, so none runs here either" in only.warnings
    ) == (not taken)


async def test_no_ack_is_told_without_any_real_waiting(tmp_path: Path) -> None:
    late = Sent(60.0, SRC, SRS, request("OPTIONS", to_tag=SRS_TAG, number=9, branch="z9hG4bKo"))
    sent = [one for one in call(bye=None) if not one.payload.startswith(b"ACK")]

    only = await one_call(tmp_path, [*sent, late])

    assert only.end_cause == "ack_timeout"
    assert only.duration == 32


async def test_media_that_goes_to_another_address_than_the_sdp_says_is_found_behind_a_nat(
    tmp_path: Path,
) -> None:
    theirs = srs_sdp("40000 RTP/AVP 0", "40002 RTP/AVP 8", host="198.51.100.7")

    only = await one_call(tmp_path, in_order([*signalling(sdp=theirs), *voices()]))

    assert [one.packets for one in only.streams] == [100, 100]


ORDINARY = "v=0\r\no=- 1 1 IN IP4 192.0.2.10\r\ns=-\r\nc=IN IP4 192.0.2.10\r\nt=0 0\r\nm=audio 30000 RTP/AVP 0\r\n"


def ordinary_call() -> list[Sent]:
    invite = request("INVITE", body=ORDINARY.encode(), content_type="application/sdp")
    invite = invite.replace(b";+sip.src", b"")
    ok = answer(invite, srs_sdp("40000 RTP/AVP 0")).replace(b";+sip.srs", b"")
    return in_order([Sent(0, SRC, SRS, invite), Sent(0.1, SRS, SRC, ok), *voices()])


async def test_ordinary_calls_are_left_out_unless_their_server_is_named(tmp_path: Path) -> None:
    data = pcap(frames(ordinary_call()))
    left_out = await replayed(tmp_path, data)
    taken = await replay(tmp_path / "one.pcap", tmp_path / "named", srs=["192.0.2.1"])

    assert left_out.calls == ()
    assert "1 calls, none of which asks for a recording session" in left_out.warnings[0]
    assert [(one.status, one.streams[0].packets) for one in taken.calls] == [(200, 100)]


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (voices(), "RTP but no SIP in this capture"),
        (signalling()[2:], "no INVITE in this capture"),
        ([Sent(0, SRC_MEDIA, SRS, b"\0\0\0\0")], "neither SIP nor RTP"),
        ([], "neither SIP nor RTP"),
    ],
)
async def test_a_capture_without_a_call_says_what_is_missing(
    tmp_path: Path, sent: list[Sent], why: str
) -> None:
    report = await replayed(tmp_path, pcap(frames(sent)))

    assert not report.ok
    assert why in report.warnings[0]


async def test_two_calls_at_once_and_a_reused_port_are_kept_apart(tmp_path: Path) -> None:
    later = [
        replace(one, at=one.at + 10, payload=one.payload.replace(b"z9hG4bK", b"z9hG4bKx"))
        for one in [*signalling(call_id="call-2"), *voices(1.0)]
    ]
    report = await replayed(tmp_path, pcap(frames([*call(), *in_order(later)])))

    assert [(one.sip_call_id, one.streams[0].packets) for one in report.calls] == [
        ("call-1", 100),
        ("call-2", 50),
    ]


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["replay", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (pcap(frames(call())), 0, "1 of 1 calls recorded"),
        (pcap(frames(call(offer=G728_OFFER))), 1, "NOT RECORDED"),
        (pcap(frames(voices())), 1, "0 of 0 calls recorded"),
        (pcap(frames(call()))[:-9], 0, "the capture is damaged"),
    ],
)
def test_the_command_tells_what_came_of_it(
    tmp_path: Path, data: bytes, code: int, said: str
) -> None:
    file = tmp_path / "one.pcap"
    file.write_bytes(data)

    status, out, _ = run(str(file), "--out", str(tmp_path / "out"))

    assert status == code
    assert said in out
    assert "Traceback" not in out
    for line in (tmp_path / "out" / "bridge.log").read_text().splitlines():
        assert json.loads(line)["level"] in ("info", "warning")


def test_the_command_prints_json(tmp_path: Path) -> None:
    file = tmp_path / "one.pcap"
    file.write_bytes(pcap(frames(call())))

    status, out, _ = run(str(file), "--out", str(tmp_path / "out"), "--json")

    assert status == 0
    assert json.loads(out)["calls"][0]["streams"][1]["speakers"] == ["Bob"]


@pytest.mark.parametrize("content", [None, b"no capture"])
def test_a_file_that_cannot_be_read_is_one_line_and_exit_code_2(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "one.pcap"
    if content is not None:
        file.write_bytes(content)

    status, out, error = run(str(file), "--out", str(tmp_path / "out"))

    assert (status, out) == (2, "")
    assert error.startswith("siprec-bridge: ")
    assert error.count("\n") == 1


async def test_a_folder_that_cannot_be_written_is_our_own_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")

    with pytest.raises(ReplayFailed, match="File exists"):
        await replayed(tmp_path, pcap(frames(call())))


def test_what_is_there_already_is_not_written_over(tmp_path: Path) -> None:
    file = tmp_path / "one.pcap"
    file.write_bytes(pcap(frames(call())))

    result = CliRunner().invoke(app, ["replay", str(file), "--out", str(tmp_path)])

    assert "not an empty folder" in str(result.exception)


SMALL = pcap(frames(in_order([*signalling(), *voices(0.2)])))


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(24, len(SMALL)), st.binary(max_size=4)), max_size=8),
    st.integers(0, len(SMALL)),
)
async def test_any_damage_ends_in_a_report_or_our_own_error(
    changes: list[tuple[int, bytes]], length: int
) -> None:
    data = bytearray(SMALL)
    for at, octets in changes:
        data[at : at + len(octets)] = octets
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = await replayed(Path(folder), bytes(data[: max(length, len(data) // 2)]))
        except UnreadableCapture:
            return

        assert report.calls or report.warnings
        assert report_lines(report)


# Captures of real products


@needs_corpus
async def test_opensips_and_rtpengine_with_a_tone_for_each_party(tmp_path: Path) -> None:
    report = await replay(CORPUS / "pcap" / "opensips_siprec_sip_rtp.pcap", tmp_path / "out")

    (only,) = report.calls
    assert report.ok
    assert [one.speakers for one in only.streams] == [("Alice Example",), ("Bob Example",)]
    found = [frequency(tmp_path / "out" / str(one.file)) for one in only.streams]
    assert found == [pytest.approx(440, abs=3), pytest.approx(880, abs=3)]


@needs_corpus
async def test_opensips_behind_kamailio_without_media(tmp_path: Path) -> None:
    report = await replay(CORPUS / "pcap" / "opensips_via_kamailio_sip.pcap", tmp_path / "out")

    (only,) = report.calls
    assert (only.status, only.end_cause) == (200, "bye")
    assert [one.packets for one in only.streams] == [0, 0]
    assert "stream 1: no RTP in the capture" in only.warnings


@needs_corpus
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("drachtio_g711a", "payload type 8 (PCMA)"),
        ("miarec_09a_2833_dtmf", "payload type 0 (PCMU)"),
        ("miarec_10a_g722", "payload type 9 (G722)"),
    ],
)
async def test_captures_of_rtp_alone_say_so_and_name_the_codec(
    tmp_path: Path, name: str, kind: str
) -> None:
    report = await replay(CORPUS / "pcap" / f"{name}.pcap", tmp_path / "out")

    assert report.calls == ()
    assert "RTP but no SIP" in report.warnings[0]
    assert report.ignored[f"RTP of other streams, {kind}"] > 200


async def test_a_stream_of_a_megabyte_of_packets_is_read_without_holding_it(
    tmp_path: Path,
) -> None:
    long = [
        Sent(0.3 + 0.02 * number, SRC_MEDIA, Address(SRS.host, 40000), data)
        for number, data in enumerate(packets(tone(440, 60)))
    ]

    only = await one_call(tmp_path, in_order([*signalling(bye=70.0), *long]))

    assert (only.streams[0].packets, only.streams[0].duration) == (3000, 60.0)


async def test_a_codec_that_was_offered_later_may_be_sent_at_any_moment(tmp_path: Path) -> None:
    """G.729 is the SRC's first choice, then it sends G.711, and G.722 from its first second on."""
    offer = OFFER.replace("RTP/AVP 8", "RTP/AVP 18 8 9")
    g722 = iter(streams()["G722"].payloads)
    sent = [
        replace(one, payload=one.payload[:1] + b"\x09" + one.payload[2:12] + next(g722))
        if one.destination.port == 40002 and one.at > 1.3
        else one
        for one in voices()
    ]
    theirs = srs_sdp("40000 RTP/AVP 0", "40002 RTP/AVP 18 8 9")

    only = await one_call(tmp_path, in_order([*signalling(offer=offer, sdp=theirs), *sent]))

    assert only.warnings == ()
    assert [(one.codec, one.duration) for one in only.streams] == [
        ("PCMU", 2.0),
        ("PCMA, G722", 2.0),
    ]
    rate, both = read_wav(tmp_path / "out" / str(only.stereo))
    assert rate == 16000
    assert loudest_frequency(both[1000:15000, 1], rate) == pytest.approx(880, abs=2)
    assert loudest_frequency(both[18000:, 1], rate) in (
        pytest.approx(440, abs=2),
        pytest.approx(5000, abs=2),
    )
