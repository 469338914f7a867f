"""Messages of real products, where the corpus lies beside the checkout."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from siprec_bridge import sdp, sip
from siprec_bridge.siprec import parse_body, parse_metadata

CORPUS = Path(os.environ.get("SIPREC_SHARED", Path(__file__).parents[3] / "shared")) / "corpus"
EXPECT: dict[str, Any] = json.loads((CORPUS / "EXPECT.json").read_text()) if CORPUS.is_dir() else {}
# Answers of an SRS, whose body type is for SRCs only.
NOT_FOR_US = {"rfc7866_1.sip"}
MESSAGES = sorted(name for name in EXPECT if name.endswith(".sip") and name not in NOT_FOR_US)


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
