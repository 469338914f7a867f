"""The body of an INVITE as an SBC sends it: two labelled streams and complete metadata."""

_PARTIES = (("alice", "Alice Example", "+12025550100"), ("bob", "Bob Example", "+12025550199"))
BOUNDARY = "part-of-call"
CONTENT_TYPE = f"multipart/mixed;boundary={BOUNDARY}"


def body(host: str = "127.0.0.1") -> str:
    """About 3.6 KB, with CRLF line ends."""
    parts = [
        f"Content-Type: application/sdp\n\n{_sdp(host)}",
        "Content-Type: application/rs-metadata+xml\n"
        f"Content-Disposition: recording-session\n\n{_metadata()}",
    ]
    text = "".join(f"--{BOUNDARY}\n{part}\n" for part in parts) + f"--{BOUNDARY}--\n"
    return text.replace("\n", "\r\n")


def _sdp(host: str) -> str:
    lines = [f"v=0\no=sbc 1 1 IN IP4 {host}\ns=-\nc=IN IP4 {host}\nt=0 0\n"]
    for index in range(len(_PARTIES)):
        lines.append(
            f"m=audio {40000 + 2 * index} RTP/AVP 8 0 18 101\n"
            "a=rtpmap:8 PCMA/8000\na=rtpmap:0 PCMU/8000\na=rtpmap:18 G729/8000\n"
            "a=fmtp:18 annexb=no\na=rtpmap:101 telephone-event/8000\na=fmtp:101 0-15\n"
            f"a=ptime:20\na=sendonly\na=label:{index + 1}\n"
        )
    return "".join(lines)


def _metadata() -> str:
    group, session = "7+OTCyoxTmqmqyA/1weDAg==", "hVpd7YQgRW2nD22h7q60JQ=="
    at = "2026-03-04T05:06:07Z"
    people = "".join(
        f'  <participant participant_id="{name}-srfBElmCRp2QB23b7Mpk0w==">\n'
        f'    <nameID aor="sip:{number}@example.com"><name xml:lang="en">{display}</name></nameID>\n'
        f"    <extensiondata><callingParty>{number}</callingParty></extensiondata>\n"
        "  </participant>\n"
        for name, display, number in _PARTIES
    )
    streams = "".join(
        f'  <stream stream_id="stream-{index}-UAAMm5GRQKSCMVvLyl4rFw==" session_id="{session}">\n'
        f"    <label>{index + 1}</label>\n  </stream>\n"
        for index in range(len(_PARTIES))
    )
    sessions = "".join(
        f'  <participantsessionassoc participant_id="{name}-srfBElmCRp2QB23b7Mpk0w=="'
        f' session_id="{session}">\n    <associate-time>{at}</associate-time>\n'
        "  </participantsessionassoc>\n"
        for name, *_ in _PARTIES
    )
    associations = "".join(
        f'  <participantstreamassoc participant_id="{name}-srfBElmCRp2QB23b7Mpk0w==">\n'
        f"    <send>stream-{index}-UAAMm5GRQKSCMVvLyl4rFw==</send>\n"
        f"    <recv>stream-{1 - index}-UAAMm5GRQKSCMVvLyl4rFw==</recv>\n"
        f"    <associate-time>{at}</associate-time>\n  </participantstreamassoc>\n"
        for index, (name, *_) in enumerate(_PARTIES)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<recording xmlns="urn:ietf:params:xml:ns:recording:1">\n'
        "  <datamode>complete</datamode>\n"
        f'  <group group_id="{group}"><associate-time>{at}</associate-time></group>\n'
        f'  <session session_id="{session}">\n'
        "    <sipSessionID>ab30317f1a784dc48ff824d0d3715d86;remote=47755a9de7794ba387653f2099600ef2"
        "</sipSessionID>\n"
        f"    <group-ref>{group}</group-ref>\n    <start-time>{at}</start-time>\n  </session>\n"
        f"{people}{streams}"
        f'  <sessionrecordingassoc session_id="{session}"><associate-time>{at}</associate-time>'
        "</sessionrecordingassoc>\n"
        f"{sessions}{associations}</recording>"
    )
