"""Metadata in every dialect that we know, and what it makes of a recording session."""

from datetime import UTC, datetime, timedelta

import pytest

from harness.src import METADATA, OFFER
from siprec_bridge.sdp import MediaPolicy
from siprec_bridge.siprec import (
    Attendance,
    Body,
    CommunicationSession,
    MalformedMetadata,
    Metadata,
    RecordingSession,
    SessionDocument,
    parse_metadata,
)

START = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
RFC = "urn:ietf:params:xml:ns:recording:1"
THIRD = "m=audio 30004 RTP/AVP 0\r\na=sendonly\r\na=label:98\r\n"


def later(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def partial(content: str) -> Body:
    xml = f'<recording xmlns="{RFC}"><datamode>partial</datamode>{content}</recording>'
    return Body(metadata=xml.encode())


def started(metadata: str = METADATA, offer: str = OFFER) -> RecordingSession:
    session = RecordingSession("s", MediaPolicy(), sdp_session_id=7)
    session.offer(Body(sdp=offer.encode(), metadata=metadata.encode()), START)
    return session


def heard(session: RecordingSession, at: datetime = START) -> dict[str, list[str]]:
    """Who is on each stream at a time, by label."""
    return {
        stream.label: [
            one.participant_id
            for one in stream.presences
            if one.since <= at and (one.until is None or at < one.until)
        ]
        for stream in session.document().streams
    }


DIALECTS = {
    "RFC 7865": METADATA,
    "prefixes": METADATA.replace("</", "</r:").replace("<", "<r:").replace("<r:/r:", "</r:")
    .replace("<r:?", "<?").replace("xmlns=", "xmlns:r="),
    "draft, RFC's elements": METADATA.replace(RFC, "urn:ietf:params:xml:ns:recording")
    .replace("group_id", "id").replace("<stream stream_id", "<stream id"),
    "draft, senders inside": (
        '<recording xmlns="urn:ietf:params:xml:ns:recording"><dataMode>complete</dataMode>'
        '<group id="g1"/><session id="s1" group="g1"/>'
        '<participant id="p1" session="s1"><aor> sip:alice@example.com </aor><name>Alice </name>'
        "<send>t1</send></participant>"
        '<participant id="p2" session="s1"><aor>sip:bob@example.com</aor><name>Bob</name>'
        "<send><id>t2</id></send></participant>"
        '<stream id="t1" session="s1"><label>96</label></stream>'
        '<stream id="t2" session="s1"><label>97</label></stream></recording>'
    ),
    "siprec namespace": (
        '<recording_metadata xmlns="urn:ietf:params:xml:ns:siprec"><recording id="r"/>'
        '<group id="g1" recording="r"><initiator>sip:x@y</initiator></group>'
        '<session id="s1" group="g1"/>'
        '<participant id="p1"><nameID aor="sip:alice@example.com"><name>Alice</name></nameID>'
        "<send><id>t1</id></send></participant>"
        '<participant id="p2"><nameID aor="sip:bob@example.com"><name>Bob</name></nameID>'
        "<send><id>t2</id></send></participant>"
        '<stream id="t1"><label>96</label></stream><stream id="t2"><label>97</label></stream>'
        "</recording_metadata>"
    ),
    "no namespace": METADATA.replace(f' xmlns="{RFC}"', ""),
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_says_the_same(dialect: str) -> None:
    document = started(DIALECTS[dialect]).document()

    speakers = [document.speaker(label, START) for label in ("96", "97")]
    assert [one and (one.id, one.aor, one.name) for one in speakers] == [
        ("p1", "sip:alice@example.com", "Alice"),
        ("p2", "sip:bob@example.com", "Bob"),
    ]
    assert (document.group_id, document.communication_sessions) == ("g1", ("s1",))
    assert (document.warnings, document.extensions) == ((), ())


@pytest.mark.parametrize(
    ("written", "mode"),
    [
        ("<datamode>partial</datamode>", "partial"),
        ("<dataMode> Partial\n</dataMode>", "partial"),
        ("<DataMode>PARTIAL</DataMode>", "partial"),
        ("<datamode>complete</datamode>", "complete"),
        ("<datamode/>", "complete"),
        ("", "complete"),
    ],
)
def test_a_document_is_complete_unless_it_says_partial(written: str, mode: str) -> None:
    assert parse_metadata(f"<recording>{written}</recording>".encode()).mode == mode


def test_what_a_partial_document_does_not_mention_stays() -> None:
    session = started()

    session.offer(
        partial(
            '<participant participant_id="p2"><nameID aor="sip:b2@example.com"/></participant>'
            '<participant participant_id="p1"><nameID><name>Alicia</name></nameID></participant>'
        ),
        later(1),
        invite=False,
    )
    session.offer(
        partial(
            '<participantstreamassoc participant_id="p1"><recv>t2</recv></participantstreamassoc>'
        ),
        later(2),
        invite=False,
    )

    document = session.document()
    assert [(one.name, one.aor) for one in document.participants] == [
        ("Alicia", "sip:alice@example.com"),
        ("Bob", "sip:b2@example.com"),
    ]
    assert (document.group_id, document.communication_sessions) == ("g1", ("s1",))
    assert heard(session, later(1.5)) == {"96": ["p1"], "97": ["p2"]}
    assert heard(session, later(3)) == {"96": [], "97": ["p2"]}  # Alice listens only


def test_what_a_complete_document_does_not_mention_is_over() -> None:
    session = started()

    session.offer(
        Body(metadata=METADATA.replace("p2", "p3").replace("Bob", "Carol").encode()),
        later(5),
        invite=False,
    )

    assert heard(session, later(1)) == {"96": ["p1"], "97": ["p2"]}
    assert heard(session, later(6)) == {"96": ["p1"], "97": ["p3"]}
    # What Bob said still needs his name.
    assert [one.name for one in session.document().on_stream("97")] == ["Bob", "Carol"]


def test_sessions_and_their_people_come_and_go_in_one_recording_session() -> None:
    """Persistent recording: the dialog outlives each of the calls in it."""
    second = (
        METADATA.replace("s1", "s2").replace("p1", "p3").replace("p2", "p4")
        .replace("Alice", "Carol").replace("Bob", "Dave")
    )  # fmt: skip
    nobody = f'<recording xmlns="{RFC}"/>'
    session = started()

    for at, metadata in ((10, nobody), (20, second), (30, nobody)):
        session.offer(Body(metadata=metadata.encode()), later(at), invite=False)

    then = [heard(session, later(seconds)) for seconds in (5, 15, 25, 35)]
    assert then == [
        {"96": ["p1"], "97": ["p2"]}, {"96": [], "97": []},
        {"96": ["p3"], "97": ["p4"]}, {"96": [], "97": []},
    ]  # fmt: skip
    document = session.document()
    assert document.communication_sessions == ("s1", "s2")
    assert len(session.streams_open()) == 2
    spoke = document.speaker("96", later(25))
    assert spoke is not None
    assert spoke.name == "Carol"


def test_sessions_come_in_part_and_are_left_by_their_people_alone() -> None:
    session = started(offer=OFFER + THIRD)
    carol = (
        '<session session_id="s2"/><participant participant_id="p3"/>'
        '<stream stream_id="t3" session_id="s2"><label>98</label></stream>'
        '<participantstreamassoc participant_id="p3"><send>t3</send></participantstreamassoc>'
        '<participantstreamassoc participant_id="p1"><send>t1</send><send>t3</send>'
        "</participantstreamassoc>"
    )
    left = (
        '<participantsessionassoc participant_id="p1" session_id="s2">'
        "<disassociate-time>2026-05-04T12:00:20Z</disassociate-time></participantsessionassoc>"
    )

    session.offer(partial(carol), later(10), invite=False)
    session.offer(partial(left), later(20), invite=False)

    assert heard(session, later(15)) == {"96": ["p1"], "97": ["p2"], "98": ["p1", "p3"]}
    assert heard(session, later(25)) == {"96": ["p1"], "97": ["p2"], "98": ["p3"]}
    assert session.document().communication_sessions == ("s1", "s2")


@pytest.mark.parametrize(
    "over",
    [
        '<participantstreamassoc participant_id="p2"><send>t2</send>'
        "<disassociate-time>2026-05-04T12:00:10Z</disassociate-time></participantstreamassoc>",
        '<participantsessionassoc participant_id="p2" session_id="s1">'
        "<disassociate-time>x</disassociate-time></participantsessionassoc>",
        '<participantsessionassoc participant_id="p2">'
        "<disassociate-time>x</disassociate-time></participantsessionassoc>",
        '<participantstreamassoc participant_id="p2"/>',
    ],
    ids=["stream", "session", "any session", "nothing left"],
)
def test_who_is_disassociated_is_heard_no_more(over: str) -> None:
    session = started()

    session.offer(partial(over), later(10), invite=False)

    assert heard(session, later(5)) == {"96": ["p1"], "97": ["p2"]}
    assert heard(session, later(15)) == {"96": ["p1"], "97": []}


def test_what_the_src_says_of_its_sessions_is_kept_with_its_own_times() -> None:
    said = (
        "<start-time>2026-05-04T13:59:58+02:00</start-time><reason>compliance</reason>"
        "<sipSessionID>a1;remote=b2</sipSessionID></session>"
        '<participantsessionassoc participant_id="p1" session_id="s1">'
        "<associate-time>2026-05-04T11:59:59Z</associate-time></participantsessionassoc>"
    )
    first = METADATA.replace("</group-ref></session>", f"</group-ref>{said}").replace(
        "<name>Alice", '<name xml:lang="it">Alice'
    )
    over = (
        '<session session_id="s1"><stop-time>2026-05-04T12:00:30Z</stop-time></session>'
        '<participantsessionassoc participant_id="p1" session_id="s1">'
        "<disassociate-time>2026-05-04T12:00:29Z</disassociate-time></participantsessionassoc>"
    )
    back = (
        '<participantsessionassoc participant_id="p1" session_id="s1">'
        "<associate-time>2026-05-04T12:01:00Z</associate-time></participantsessionassoc>"
    )

    session = started(first)
    session.offer(partial(over), later(31), invite=False)
    session.offer(partial(back), later(62), invite=False)

    document = session.document()
    assert document.described_sessions == (
        CommunicationSession(
            id="s1",
            sip_session_ids=("a1;remote=b2",),
            group_id="g1",
            reason="compliance",
            started_at=later(-2),
            ended_at=later(30),
            participants=(
                Attendance(participant_id="p1", since=later(-1), until=later(29)),
                Attendance(participant_id="p1", since=later(60)),
            ),
        ),
    )
    assert [one.name_language for one in document.participants] == ["it", None]


@pytest.mark.parametrize("time", ["", "now", "0001-01-01T00:00:00Z", "2026-13-01T00:00:00Z"])
def test_a_time_that_is_none_is_left_out(time: str) -> None:
    session = started(
        METADATA.replace("</group-ref>", f"</group-ref><start-time>{time}</start-time>")
    )

    (described,) = session.document().described_sessions
    assert described.started_at is None
    assert session.warnings == ()


def test_people_who_come_and_go_for_ever_are_not_remembered_for_ever() -> None:
    session = started()
    for minute in range(700):
        time = later(60 * minute).isoformat()
        session.offer(
            partial(
                '<participantsessionassoc participant_id="p1" session_id="s1">'
                f"<associate-time>{time}</associate-time></participantsessionassoc>"
                f'<session session_id="call {minute}"/>'
            ),
            later(60 * minute),
            invite=False,
        )

    described = session.document().described_sessions
    assert (len(described), described[-1].id) == (500, "call 699")


def test_what_a_stream_carries_and_what_the_parties_were_told_is_kept() -> None:
    session = started(
        METADATA.replace(
            "<label>96</label>", "<label>96</label><content-type>audio</content-type>"
        ),
        OFFER.replace("a=label:96", "a=label:96\r\na=record:on\r\na=recordpref:nopreference"),
    )
    before = [(one.content_type, one.record, one.recordpref) for one in session.document().streams]

    session.offer(
        Body(sdp=OFFER.replace("a=label:96", "a=label:96\r\na=record:paused").encode()), later(9)
    )

    assert before == [("audio", "on", "nopreference"), (None, None, None)]
    assert [one.record for one in session.document().streams] == ["paused", None]


def test_who_came_back_is_there() -> None:
    back = (
        "<participantsessionassoc participant_id='p2' session_id='s1'>{}</participantsessionassoc>"
    )
    over = "<disassociate-time>2026-05-04T12:00:00Z</disassociate-time>"

    session = started(
        METADATA.replace("</recording>", back.format(over) + back.format("") + "</recording>")
    )

    assert heard(session) == {"96": ["p1"], "97": ["p2"]}


def test_streams_may_be_crossed_and_shared() -> None:
    crossed = (
        METADATA.replace("<send>t1</send>", "<send>tx</send>")
        .replace("<send>t2</send>", "<recv>t2</recv><send>t1</send>")
        .replace("<send>tx</send>", "<send>t2</send><recv>t1</recv>")
    )
    mixed = METADATA.replace("<send>t2</send>", "<send>t1</send>")

    assert heard(started(crossed)) == {"96": ["p2"], "97": ["p1"]}
    assert heard(started(mixed)) == {"96": ["p1", "p2"], "97": []}


def test_without_any_sender_the_order_is_taken_and_said_to_be_a_guess() -> None:
    silent = METADATA[: METADATA.index("<participantstreamassoc")] + "</recording>"
    mixed = silent.replace('<stream stream_id="t2" session_id="s1"><label>97</label></stream>', "")

    guessed, unknown = started(silent), started(mixed)

    assert heard(guessed) == {"96": ["p1"], "97": ["p2"]}
    assert guessed.warnings == (
        "metadata names no sender: participants matched to streams by order",
    )
    assert heard(unknown) == {"96": [], "97": []}  # nothing says who of the two


def test_labels_join_whatever_else_is_in_the_offer() -> None:
    """Neither the place of an m-line nor its payload type has a say."""
    offer = (
        OFFER.replace("label:96", "label:x")
        .replace("label:97", "label:96")
        .replace("label:x", "label:97")
    )
    offer += "m=audio 30006 RTP/AVP 0\r\na=label:0\r\n"

    session = started(offer=offer)

    assert heard(session) == {"97": ["p2"], "96": ["p1"], "0": []}
    assert session.warnings == ()


def test_a_stream_without_m_line_waits_for_it() -> None:
    metadata = METADATA.replace(
        "</recording>",
        '<participant participant_id="p3"/><stream stream_id="t3"><label>98</label></stream>'
        '<participantstreamassoc participant_id="p3"><send>t3</send></participantstreamassoc>'
        "</recording>",
    )
    session = started(metadata)
    before = session.warnings

    session.offer(Body(sdp=(OFFER + THIRD).encode()), later(5))

    assert before == ("metadata names label 98, SDP does not",)
    assert heard(session, later(6)) == {"96": ["p1"], "97": ["p2"], "98": ["p3"]}


VENDOR = (
    '<v:data xmlns:v="urn:vendor" a="1&amp;2"><v:participant id="vp"><v:aor>sip:v@v</v:aor>'
    '<v:send>t1</v:send></v:participant><v:session id="vs"/><v:datamode>partial</v:datamode>'
    "<v:ucid>00FA080019001C5D</v:ucid><!-- why --></v:data>"
)
UNQUALIFIED = (
    '<extensiondata><participant participant_id="vp"/><stream id="vt"><label>7</label></stream>'
    "</extensiondata>"
)


@pytest.mark.parametrize("vendor", [VENDOR, UNQUALIFIED], ids=["namespace", "extensiondata"])
@pytest.mark.parametrize(
    "place", ["</recording>", "</session>", "</participant>", "</stream>", "</nameID>"]
)
def test_vendors_elements_are_kept_anywhere_and_never_taken_for_the_metadata_s_own(
    vendor: str, place: str
) -> None:
    plain = started().document()

    document = started(METADATA.replace(place, vendor + place, 1)).document()

    assert document.model_copy(update={"extensions": (), "call_ids": {}}) == plain
    (kept,) = document.extensions
    assert all(word in kept for word in ("participant", "vp"))
    assert document.call_ids == ({"ucid": "00FA080019001C5D"} if vendor is VENDOR else {})


IDS = ("hVpd7YQgRW2nD22h7q60JQ==", "urn:uuid:1f2-3", "abc@192.0.2.1", "0", "a/b+c:d", "Jürgen")


@pytest.mark.parametrize("id", IDS)
def test_ids_are_opaque(id: str) -> None:
    metadata = METADATA
    for name in ("p1", "t1", "s1", "g1"):
        metadata = metadata.replace(name, id + name)

    session = started(metadata)

    assert heard(session) == {"96": [f"{id}p1"], "97": ["p2"]}
    document = SessionDocument.model_validate_json(session.document().model_dump_json())
    assert (document.group_id, document.communication_sessions) == (f"{id}g1", (f"{id}s1",))


@pytest.mark.parametrize(
    "time",
    ["2010-12-16T23:41:07Z", "2010-12-16T23:41:07", "2010-12-16T23:41:07.123+05:30",
     "1970-01-01T00:00:00Z", "Thu Dec 16 2010", ""],
)  # fmt: skip
def test_no_form_of_a_time_matters(time: str) -> None:
    stamped = METADATA
    for name in ("session", "participant", "stream", "participantstreamassoc"):
        stamped = stamped.replace(f"</{name}>", f"<associate-time>{time}</associate-time></{name}>")

    assert started(stamped).document() == started().document()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"\xef\xbb\xbf", b""),
        (b"\r\n \t\r\n", b""),
        (b"\r\n\xef\xbb\xbf", b"\r\n\0"),
        (b"", b"\0"),
        (b"", b"\0\0\0\r\n"),
        (b"", b"\r\nleft over"),
        (b"", b"\r\n<!-- the end -->\r\n"),
    ],
)
def test_what_stands_around_the_document_does_not_matter(before: bytes, after: bytes) -> None:
    assert parse_metadata(before + METADATA.encode() + after) == parse_metadata(METADATA.encode())


@pytest.mark.parametrize(
    "xml",
    [
        '<!DOCTYPE r SYSTEM "http://192.0.2.1/x.dtd"><recording/>',
        '<!DOCTYPE r [<!ENTITY a "aaaa">]><recording>&a;</recording>',
        '<!DOCTYPE r [<!ENTITY a SYSTEM "file:///etc/passwd">]><recording>&a;</recording>',
        "<recording>" + "<a>" * 200 + "</a>" * 200 + "</recording>",
        "<recording>" + "<a/>" * 4000 + "</recording>",
        "<recording>" + " " * (1 << 20) + "</recording>",
        "<recording xmlns=urn:x/>",
        "<html/>",
        "SRS internal error",
    ],
    ids=["dtd", "entity", "file", "depth", "tags", "size", "unquoted", "other", "no XML"],
)
def test_what_is_no_metadata_or_too_much_of_it_is_noted_and_the_call_recorded(xml: str) -> None:
    with pytest.raises(MalformedMetadata):
        parse_metadata(xml.encode())

    session = started(xml)

    assert len(session.streams_open()) == 2
    assert session.metadata_lost
    assert session.warnings[0].startswith("metadata: ")


@pytest.mark.parametrize(
    "nameless",
    [
        "<stream><label>96</label></stream>",
        '<stream stream_id=" "><label>96</label></stream>',
        '<participant><nameID aor="sip:x@example.com"/><send>t1</send></participant>',
        '<session><group-ref>g2</group-ref></session><group id=""/>',
        '<participantstreamassoc participant_id=""><send>t1</send></participantstreamassoc>',
    ],
)
def test_what_has_no_id_says_nothing_of_anybody(nameless: str) -> None:
    document = METADATA.replace("</recording>", f"{nameless}</recording>")

    assert parse_metadata(document.encode()) == parse_metadata(METADATA.encode())


def test_an_empty_document_is_complete_and_says_nothing() -> None:
    assert parse_metadata(b"<recording/>") == Metadata()
