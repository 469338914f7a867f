"""The container's objects, those parameters of them that a recorder can fill in.

What is None is left out. Parties, dialogs and attachments refer to one another by index.
"""

import base64
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

MEDIA_TYPE: Final = "application/vcon"

PartyEventName = Literal["join", "drop", "hold", "unhold", "mute", "unmute", "keydown", "keyup"]
# A party, the parties that are mixed, or nobody on this channel.
OnChannel = int | tuple[int, ...] | None


def _date(value: datetime) -> str:
    """RFC 3339, in UTC; without a fraction where it is zero (RFC 8620 §1.4)."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


Date = Annotated[datetime, PlainSerializer(_date, return_type=str)]


class _Object(BaseModel):
    model_config = ConfigDict(frozen=True)


class Party(_Object):
    """§4.2. One without parameters stands for somebody of whom nothing is known."""

    tel: str | None = None
    sip: str | None = None
    mailto: str | None = None
    name: str | None = None
    validation: str | None = None
    uuid: str | None = None
    type: str | None = None


class PartyEvent(_Object):
    """§4.3.13."""

    party: int
    time: Date
    event: PartyEventName
    button: str | None = None


class SessionId(_Object):
    """Both halves of a SIP Session-ID, RFC 7989 §5."""

    local: str
    remote: str


class Dialog(_Object):
    """§4.3. With `encoding` the body is written behind it, see `written`."""

    type: Literal["recording", "recording-set"]
    start: Date
    duration: float | None = None
    parties: tuple[OnChannel, ...]
    originator: int
    recordings: tuple[int, ...] | None = None
    recording_set: int | None = None
    mediatype: str | None = None
    filename: str | None = None
    session_id: SessionId | None = None
    party_history: tuple[PartyEvent, ...] | None = None
    encoding: Literal["base64url"] | None = None
    url: str | None = None
    content_hash: str | None = None


class Analysis(_Object):
    """§4.5, inline."""

    type: Literal["transcript"]
    dialog: tuple[int, ...]
    mediatype: str
    vendor: str
    product: str | None = None
    schema_: str = Field(serialization_alias="schema")
    encoding: Literal["json"] = "json"
    body: Any


class Attachment(_Object):
    """§4.4, inline."""

    purpose: str
    start: Date
    party: int
    dialog: int
    mediatype: str
    encoding: Literal["json", "none"]
    body: Any


class Redacted(_Object):
    """§4.1.8.1. Without a uuid: there is no version that is less redacted."""

    uuid: str | None = None
    type: str


class Vcon(_Object):
    """§4.1, the unsigned form."""

    # Deprecated once the draft is an RFC; until then readers go by it.
    vcon: Literal["0.4.0"] = "0.4.0"
    uuid: str
    created_at: Date
    updated_at: Date
    subject: str | None = None
    redacted: Redacted | None = None
    parties: tuple[Party, ...]
    dialog: tuple[Dialog, ...]
    analysis: tuple[Analysis, ...] | None = None
    attachments: tuple[Attachment, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        """For `json.dumps`, all but bodies that are written behind it."""
        return self.model_dump(mode="json", exclude_none=True, by_alias=True)


def content_hash(sha512: bytes) -> str:
    """A SHA-512 digest as a reference to a file outside carries it. §2.2."""
    return f"sha512-{base64.urlsafe_b64encode(sha512).decode().rstrip('=')}"
