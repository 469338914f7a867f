"""Messages of real products, where the corpus lies beside the checkout.

An independent reader has said what is in each of them. Where we see something else, a table here
says what and why; nothing else may differ.
"""

import json
import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from harness.src import PEER, new_server, request, responses
from siprec_bridge import sdp, sip
from siprec_bridge.sdp import MediaPolicy
from siprec_bridge.sip import SipServer
from siprec_bridge.siprec import (
    MalformedMetadata,
    Metadata,
    RecordingSession,
    parse_body,
    parse_metadata,
    read_fork,
)
from siprec_bridge.siprec.extensions import call_ids_of_headers

CORPUS = Path(os.environ.get("SIPREC_SHARED", Path(__file__).parents[3] / "shared")) / "corpus"
EXPECT: dict[str, Any] = json.loads((CORPUS / "EXPECT.json").read_text()) if CORPUS.is_dir() else {}
START = datetime(2026, 5, 4, tzinfo=UTC)

pytestmark = pytest.mark.skipif(not EXPECT, reason="the corpus is not here")


def named(method: str) -> list[str]:
    return sorted(name for name in EXPECT if EXPECT[name].get("start", "").startswith(method))


@dataclass(frozen=True)
class Difference:
    """What we make of a message in place of what is expected, and why that is right."""

    ours: dict[str, Any]
    why: str


DIFFERENCES = {
    "broadworks_23.xml": Difference(
        {
            "metadata": {
                "namespace": "urn:ietf:params:xml:ns:siprec",
                "datamode": "complete",
                "sessions": ["urn:uuid:387c9212-bc78-45cb-b1a1-bb6c5030c38b"],
                "sipSessionID": [],
                "participants": [
                    {
                        "id": "urn:uuid:51504ec2-a6a7-40fa-8218-da33476f74de",
                        "aor": "sip:sub_00403715",
                        "name": "",
                    },
                    {
                        "id": "urn:uuid:ce173ed3-f8ed-41fc-9497-76d1c5b2d5f4",
                        "aor": "sip:238@10.255.2.40",
                        "name": "",
                    },
                ],
                "streams": [
                    {
                        "id": "urn:uuid:74ca548a-0d5a-44b1-b95d-dfa169d497cc",
                        "label": "1",
                        "sent_by": ["urn:uuid:51504ec2-a6a7-40fa-8218-da33476f74de"],
                    },
                    {
                        "id": "urn:uuid:a96d28a7-cf28-48c9-99e5-82d29d97b289",
                        "label": "2",
                        "sent_by": ["urn:uuid:ce173ed3-f8ed-41fc-9497-76d1c5b2d5f4"],
                    },
                ],
                "groups": ["urn:uuid:72561964-fe38-4eb5-be01-903ca224ca06"],
            }
        },
        "a strict reader stops at the NUL behind the document; we cut it off",
    ),
    "rfc7866_1.sip": Difference(
        {"refused": 415},
        "a request for metadata, as a recording server sends it: it is not for us to answer",
    ),
}


@dataclass(frozen=True)
class Answer:
    """Which m-lines are accepted, where it is not all of them. None: 488 with this Warning."""

    accepted: list[bool] | None
    why: str


ANSWERS = {
    "ciscocube_8.sip": Answer([True, True, False, False], "video is not recorded"),
    "rfc7865_amazonchime_1.sip": Answer([True, False, True, False], "video is not recorded"),
    "rfc7865_amazonchime_2.sip": Answer([True, False, True, False], "video is not recorded"),
    "rfc7865_amazonchime_3.sip": Answer([True, False, True, False], "video is not recorded"),
}

# Offers that say where they want the media, and that this is nowhere.
HELD = {
    "broadworks_2.sip": "c=IN IP4 0.0.0.0",
    "metaswitch_11.sip": "c=IN IP4 0.0.0.0",
    "metaswitch_19.sip": "c=IN IP4 0.0.0.0",
    "metaswitch_22.sip": "c=IN IP4 0.0.0.0",
}

NOT_IN_A_CALL = {"broadworks_4.sip": "its To has no tag: 481, as RFC 3261 has it"}

NO_SENDER = "metadata names no sender: participants matched to streams by order"
NO_LABEL = "labels of metadata and SDP differ: matched by order"
# Messages that leave open who is on which stream: what we take for it, as our warnings tell.
GUESSES = {
    "drachtio_1.sip": (NO_SENDER, NO_LABEL),
    "drachtio_2.sip": (NO_SENDER, NO_LABEL),
    "drachtio_3.sip": (NO_LABEL,),
    "ffeldhaus_2.sip": (NO_SENDER, NO_LABEL),
    "ffeldhaus_4.sip": (NO_SENDER, NO_LABEL),
    "opensips_4.sip": (NO_SENDER,),
    "opensips_5.sip": (NO_SENDER,),
    "opensips_6.sip": (NO_SENDER,),
}


def expected(name: str) -> dict[str, Any]:
    """What is expected of a message, in our spelling: blanks and defaults as RFC 7865 has them."""
    if name in DIFFERENCES:
        return DIFFERENCES[name].ours
    wanted = dict(EXPECT[name])
    wanted.pop("metadata_ct", None)  # either of its types
    if "sdp" in wanted:
        wanted["sdp"] = [one | {"dir": one["dir"] or "sendrecv"} for one in wanted["sdp"]]
    metadata = wanted.get("metadata")
    if metadata is not None and "xml_error" in metadata:
        wanted["metadata"] = "not well-formed"
    elif metadata is not None:
        wanted["metadata"] = {
            "namespace": metadata["root"][1:].partition("}")[0],
            "datamode": metadata["datamode"] or "complete",
            "sessions": metadata["sessions"],
            "sipSessionID": [" ".join(one.split()) for one in metadata["sipSessionID"]],
            "participants": [
                {key: value.strip() for key, value in one.items()}
                for one in metadata["participants"]
            ],
            "streams": metadata["streams"],
            "groups": metadata["groups"],
        }
    return wanted


def understood(name: str) -> dict[str, Any]:
    """What we make of a message, in the form of `expected`."""
    data = (CORPUS / name).read_bytes()
    if name.endswith(".xml"):
        return {"metadata": read(data)}
    message = sip.parse(data)
    assert isinstance(message, sip.Request)
    found: dict[str, Any] = {
        "start": f"{message.method} {message.uri} SIP/2.0",
        "call_id": message.call_id,
    }
    try:
        body = parse_body(
            message.content_type, message.headers.get("Content-Encoding"), message.body
        )
    except sip.Refused as refused:
        return {"refused": refused.status}
    if body.sdp is not None:
        found["sdp"] = [media_line(one) for one in sdp.parse(body.sdp).media]
    if body.metadata is not None:
        found["metadata"] = read(body.metadata)
    if body.others:
        found["other"] = [one.content_type for one in body.others]
    return found


def media_line(media: sdp.Media) -> dict[str, Any]:
    return {
        "m": f"m={media.kind} {media.port} {media.protocol} {' '.join(media.formats)}",
        "label": media.label,
        "dir": media.direction,
        "crypto": sum(key == "crypto" for key, _ in media.attributes),
    }


def read(xml: bytes) -> dict[str, Any] | str:
    try:
        metadata = parse_metadata(xml)
    except MalformedMetadata as error:
        return str(error).partition(":")[0]
    return {
        "namespace": metadata.namespace,
        "datamode": metadata.mode,
        "sessions": [one.id for one in metadata.sessions],
        "sipSessionID": [id for one in metadata.sessions for id in one.sip_session_ids],
        "participants": [
            {"id": one.id, "aor": one.aor, "name": one.name} for one in metadata.participants
        ],
        "streams": [
            {"id": one.id, "label": one.label, "sent_by": senders(metadata, one.id)}
            for one in metadata.streams
        ],
        "groups": list(metadata.groups),
    }


def senders(metadata: Metadata, stream: str) -> list[str]:
    return [one.participant_id for one in metadata.associations if stream in one.sends]


def first_invite(name: str) -> sip.Request:
    """The INVITE as the first one of its dialog."""
    message = sip.parse((CORPUS / name).read_bytes())
    assert isinstance(message, sip.Request)
    message.headers.set("To", (message.headers.get("To") or "").partition(";tag=")[0])
    return message


def session_of(name: str) -> RecordingSession:
    """The session that an INVITE starts. Raises Refused."""
    invite = first_invite(name)
    session = RecordingSession(
        "s", MediaPolicy(), sdp_session_id=1, fork=read_fork(invite), new_key=secrets.token_bytes
    )
    session.offer(parse_body(invite.content_type, None, invite.body), START)
    return session


def test_every_message_of_the_corpus_is_expected_and_nothing_else() -> None:
    files = {one.name for one in CORPUS.iterdir() if one.suffix in (".sip", ".xml")}

    assert files == set(EXPECT)
    assert {*DIFFERENCES, *ANSWERS, *GUESSES, *HELD, *NOT_IN_A_CALL} <= files
    assert sum("metadata" in one for one in EXPECT.values()) > 50
    assert sum("sdp" in one for one in EXPECT.values()) > 50


@pytest.mark.parametrize("name", sorted(EXPECT))
def test_what_a_real_message_says_is_understood(name: str) -> None:
    assert understood(name) == expected(name)


@pytest.mark.parametrize("name", named("INVITE"))
def test_a_real_invite_is_answered_line_by_line(name: str) -> None:
    invite = first_invite(name)
    offered = EXPECT[name].get("sdp")
    wanted = ANSWERS.get(name, Answer([True] * len(offered or ()), ""))
    srs = new_server()
    (received,) = (
        one for one in srs.receive(sip.serialize(invite), PEER, 0.0)
        if isinstance(one, sip.InviteReceived)
    )  # fmt: skip

    if wanted.accepted is None:
        with pytest.raises(sip.Refused) as refused:
            session_of(name)
        assert refused.value.status == 488
        assert refused.value.headers == (("Warning", wanted.why),)
        return
    session = session_of(name)
    body = session.answer(dict.fromkeys(session.streams_open(), 20000), "192.0.2.1")
    (ok,) = responses(srs.respond(received.id, 200, now=0.0, body=body))

    answer = sdp.parse(ok.body)
    if offered is None:
        # A built-in bridge forks one party's voice a call.
        assert [(one.kind, one.direction) for one in answer.media] == [("audio", "recvonly")]
    else:
        assert [one.port != 0 for one in answer.media] == wanted.accepted
        for asked, line in zip(offered, answer.media, strict=True):
            kind, _, protocol, *formats = asked["m"].removeprefix("m=").split()
            assert (line.kind, line.protocol, line.label) == (kind, protocol, asked["label"])
            assert set(line.formats) <= set(formats)
            sends = (asked["dir"] or "sendrecv") in ("sendonly", "sendrecv")
            sends = sends and name not in HELD
            assert line.direction == ("recvonly" if sends and line.port else "inactive")
    assert "+sip.srs" in (ok.headers.get("Contact") or "")
    assert ("Session-Expires" in ok.headers) == ("Session-Expires" in invite.headers)
    assert ok.headers.get_all("Record-Route") == invite.headers.get_all("Record-Route")


REFUSED = {name for name, one in ANSWERS.items() if one.accepted is None}


@pytest.mark.parametrize(
    "name",
    [
        one
        for one in named("INVITE")
        if {"sdp", "metadata"} <= {*EXPECT[one]} and one not in REFUSED
    ],
)
def test_who_is_heard_on_each_stream_is_what_the_message_says(name: str) -> None:
    wanted = ANSWERS.get(name)
    lines, metadata = EXPECT[name]["sdp"], EXPECT[name]["metadata"]
    sent_by = {one["label"]: one["sent_by"] for one in metadata["streams"]}
    if name in GUESSES:
        people = [one["sent_by"] for one in metadata["streams"]]
        if NO_SENDER in GUESSES[name]:
            people = [[one["id"]] for one in metadata["participants"]]
        sent_by = dict(zip((one["label"] for one in lines), people, strict=True))

    document = session_of(name).document()

    heard = {
        one.label: [presence.participant_id for presence in one.presences]
        for one in document.streams
    }
    accepted = wanted.accepted if wanted and wanted.accepted else [True] * len(lines)
    assert heard == {
        line["label"] or str(index + 1): sent_by.get(line["label"], [])
        for index, (line, taken) in enumerate(zip(lines, accepted, strict=True))
        if taken
    }
    guesses = {one for one in document.warnings if "by order" in one}
    assert guesses == set(GUESSES.get(name, ()))


@pytest.mark.parametrize("name", named("BYE") + named("UPDATE") + named("ACK") + named("OPTIONS"))
def test_a_real_request_in_a_call_is_taken(name: str) -> None:
    message = sip.parse((CORPUS / name).read_bytes())
    assert isinstance(message, sip.Request)
    srs = SipServer(token=lambda: message.to.tag, contact=lambda peer: "<sip:srs@192.0.2.1>")
    invite = request("INVITE", call_id=message.call_id, from_tag=message.from_.tag)
    (received,) = (
        one for one in srs.receive(invite, PEER, 0.0) if isinstance(one, sip.InviteReceived)
    )
    srs.respond(received.id, 200, now=0.0)

    outputs = srs.receive((CORPUS / name).read_bytes(), PEER, 1.0)

    reported = {
        "BYE": sip.DialogEnded, "UPDATE": sip.UpdateReceived, "ACK": sip.AckReceived,
        "OPTIONS": sip.RequestReceived,
    }[message.method]  # fmt: skip
    taken = [type(one) for one in outputs if isinstance(one, reported)]
    answered = [one.status for one in responses(outputs)]
    if name in NOT_IN_A_CALL:
        assert (taken, answered) == ([], [481])
    else:
        assert (taken, answered) == ([reported], [200] if message.method == "BYE" else [])


def test_hold_and_resume_by_partial_metadata_as_the_rfc_shows_them() -> None:
    session = session_of("rfc7865_amazonchime_1.sip")
    alice, bob = (one.id for one in session.document().participants)

    for number in (2, 3):
        change = first_invite(f"rfc7865_amazonchime_{number}.sip")
        body = parse_body(change.content_type, None, change.body)
        session.offer(body, START + timedelta(seconds=10 * number))

    first, second = session.document().streams
    assert [(one.participant_id, one.since.second, one.until and one.until.second)
            for one in first.presences] == [(alice, 0, 20), (alice, 30, None)]  # fmt: skip
    assert [(one.participant_id, one.until) for one in second.presences] == [(bob, None)]
    assert not session.metadata_lost


def test_vendors_names_for_the_call_are_found() -> None:
    found: dict[str, set[str]] = {}
    kept = 0
    for name in EXPECT:
        data, ids = (CORPUS / name).read_bytes(), {}
        if name.endswith(".sip"):
            message = sip.parse(data)
            ids = call_ids_of_headers(message.headers)
            data = b""
            if "metadata" in EXPECT[name] and name not in DIFFERENCES:
                data = parse_body(message.content_type, None, message.body).metadata or b""
        if (
            data
            and "metadata" in EXPECT[name]
            and understood(name)["metadata"] != "not well-formed"
        ):
            metadata = parse_metadata(data)
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
