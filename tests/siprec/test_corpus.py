"""Messages of real products, where the corpus lies beside the checkout."""

import contextlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from harness.src import PEER, new_server
from siprec_bridge import sdp, sip
from siprec_bridge.sdp import MediaPolicy
from siprec_bridge.siprec import (
    MalformedMetadata,
    RecordingSession,
    parse_body,
    parse_metadata,
)
from siprec_bridge.siprec.extensions import call_ids_of_headers

CORPUS = Path(os.environ.get("SIPREC_SHARED", Path(__file__).parents[3] / "shared")) / "corpus"
EXPECT: dict[str, Any] = json.loads((CORPUS / "EXPECT.json").read_text()) if CORPUS.is_dir() else {}
# Answers of an SRS, whose body type is for SRCs only.
NOT_FOR_US = {"rfc7866_1.sip"}
MESSAGES = sorted(name for name in EXPECT if name.endswith(".sip") and name not in NOT_FOR_US)


INVITES = [name for name in MESSAGES if EXPECT[name]["start"].startswith("INVITE")]


@pytest.mark.skipif(not INVITES, reason="the corpus is not here")
@pytest.mark.parametrize("name", INVITES)
def test_a_real_invite_is_answered_line_by_line(name: str) -> None:
    message = sip.parse((CORPUS / name).read_bytes())
    assert isinstance(message, sip.Request)
    to = message.headers.get("To") or ""
    message.headers.set("To", to.partition(";tag=")[0])  # as the first of its dialog
    srs = new_server()

    outputs = srs.receive(sip.serialize(message), PEER, 0.0)

    (invite,) = [one for one in outputs if isinstance(one, sip.InviteReceived)]
    request = invite.request
    body = parse_body(request.content_type, request.headers.get("Content-Encoding"), request.body)
    session = RecordingSession("s", MediaPolicy(), sdp_session_id=1)
    try:
        changes = session.offer(body, datetime(2026, 5, 4, tzinfo=UTC))
    except sip.Refused:
        assert body.sdp is not None
        offered = sdp.parse(body.sdp).media
        assert not any(
            one.protocol in ("RTP/AVP", "RTP/AVPF")
            and {codec.name for codec in one.codecs} & {"PCMU", "PCMA"}
            for one in offered
            if one.kind == "audio" and one.port
        )
        return
    ports = {one.index: 20000 + 2 * one.index for one in changes.opened}
    answer = sdp.parse(session.answer(ports, "192.0.2.1"))
    if body.sdp is None:
        assert len(answer.media) == 2
        return
    offer = sdp.parse(body.sdp)
    assert len(answer.media) == len(offer.media)
    for asked, answered in zip(offer.media, answer.media, strict=True):
        assert (answered.kind, answered.label) == (asked.kind, asked.label)
        assert answered.direction in ("recvonly", "inactive")
        if answered.port:
            assert set(answered.formats) <= set(asked.formats)


@pytest.mark.skipif(not MESSAGES, reason="the corpus is not here")
def test_vendors_names_for_the_call_are_found() -> None:
    found: dict[str, set[str]] = {}
    kept = 0
    for name in MESSAGES:
        message = sip.parse((CORPUS / name).read_bytes())
        ids = call_ids_of_headers(message.headers)
        body = parse_body(message.content_type, None, message.body)
        if body.metadata is not None:
            with contextlib.suppress(MalformedMetadata):
                metadata = parse_metadata(body.metadata)
                ids |= metadata.call_ids
                kept += len(metadata.extensions)
        for kind, value in ids.items():
            found.setdefault(kind, set()).add(value)

    assert "00391770615DEF95" in found["ucid"]
    assert "0648881792-0000065536-0000001647-0185272330" in found["cisco_guid"]
    assert "00057063891633546180" in found["cisco_gucid"]
    assert any(value.startswith("callhalf-aae89a7c") for value in found["call_id"])
    assert any(value.startswith("tracking-id-aae89a7c") for value in found["tracking_id"])
    assert {"broadworks_correlation", "session_id", "user_to_user", "acme_call_id"} <= set(found)
    assert kept > 10


@pytest.mark.skipif(not MESSAGES, reason="the corpus is not here")
@pytest.mark.parametrize("name", MESSAGES)
def test_what_a_real_message_says_is_understood(name: str) -> None:
    expected = EXPECT[name]

    message = sip.parse((CORPUS / name).read_bytes())
    body = parse_body(message.content_type, message.headers.get("Content-Encoding"), message.body)

    if expected.get("sdp"):
        assert body.sdp is not None
        labels = [one.label for one in sdp.parse(body.sdp).media]
        assert labels == [one["label"] for one in expected["sdp"]]
    wanted = expected.get("metadata") or {}
    if "participants" not in wanted:
        return
    assert body.metadata is not None
    metadata = parse_metadata(body.metadata)
    people = [(one.id, one.aor, one.name) for one in metadata.participants]
    assert people == [
        (one["id"], one["aor"].strip(), one["name"].strip()) for one in wanted["participants"]
    ]
    senders: dict[str, list[str]] = {}
    for association in metadata.associations:
        for stream in association.sends:
            senders.setdefault(stream, []).append(association.participant_id)
    streams = [(one.id, one.label, senders.get(one.id, [])) for one in metadata.streams]
    assert streams == [(one["id"], one["label"], one["sent_by"]) for one in wanted["streams"]]
    assert list(metadata.groups) == wanted["groups"]
    assert [one.id for one in metadata.sessions] == wanted["sessions"]
