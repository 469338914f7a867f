"""Words, segments and the conversation they make: what the bridge delivers.

Times are seconds as float. In a `Transcript` they count from the first sample of the audio
file that was transcribed; in a `Conversation` from the start of the recording session, and
each utterance also carries its wall-clock time (aware, UTC).
"""

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def _readable(text: str) -> str:
    """Without halves of characters and NUL, which recognisers do write: no store or JSON takes them."""
    if not text.isascii():
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


Heard = Annotated[str, AfterValidator(_readable)]


class Value(BaseModel):
    """Frozen; unknown fields are ignored, so that a document of a newer version still reads."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Word(Value):
    """One spoken word with its place and the recogniser's confidence (0..1) where it gives one."""

    text: Heard
    start: float
    end: float
    probability: float | None = None


class Segment(Value):
    """A stretch of speech as the recogniser cut it; the three gates are Whisper's own figures."""

    text: Heard
    start: float
    end: float
    words: tuple[Word, ...] = ()
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    compression_ratio: float | None = None
    doubt: str | None = None  # why it may never have been said; the bridge's, not a provider's


class Suppressed(Value):
    """Text of a recogniser that was hardly said, and why: kept, but no part of any text."""

    text: str
    start: float
    end: float
    reason: str  # no_speech, low_confidence, compression, repeated or outside_speech
    label: str | None = None  # in a Conversation: of its stream


class Transcript(Value):
    """What a provider heard in one audio file. No speech is a valid transcript: no segments."""

    language: Heard | None = None
    segments: tuple[Segment, ...] = ()
    model: Heard | None = None  # as the recogniser names itself, where it does
    suppressed: tuple[Suppressed, ...] = ()
    speech: float | None = None  # seconds that a voice detector found; None: nobody looked

    @property
    def text(self) -> str:
        """All segments' text on one line."""
        return " ".join(segment.text.strip() for segment in self.segments if segment.text.strip())


class Participant(Value):
    """A party of the communication session. RFC 7865 §6.5."""

    id: str
    name: str | None = None
    aor: str | None = None
    name_language: str | None = None


class KeyPress(Value):
    """A key of a telephone, sent as RFC 4733 event; `*` may stand for any key that is not told."""

    key: str
    start: float
    duration: float


class Leg(Value):
    """One labelled stream of the recording session and its audio file."""

    label: str
    participants: tuple[Participant, ...] = ()
    offset: float = 0.0  # of the file's first sample in the session
    duration: float = 0.0
    audio: str | None = None  # file name below the session's folder
    language: str | None = None
    keys: tuple[KeyPress, ...] = ()
    # Seconds of detected speech. 0: the recogniser was not asked; None: nobody looked.
    speech: float | None = None


class Utterance(Value):
    """A segment placed in its conversation: who, when, what."""

    label: str
    participant: Participant | None = None  # None: nobody known on this stream at that time
    start: float
    end: float
    starts_at: datetime
    ends_at: datetime
    text: str
    language: str | None = None
    words: tuple[Word, ...] = ()
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    compression_ratio: float | None = None
    doubt: str | None = None  # why it may never have been said

    @property
    def line(self) -> str:
        """Who says what, for readers."""
        who = self.participant.name or self.participant.aor if self.participant else None
        return f"{who or f'stream {self.label}'}: {self.text}"


class Redaction(Value):
    """That something was taken out, and when it was said: never what. Seconds of the session.

    `kind`: card, cvv, email, phone, id or iban. The recording is silent there.
    """

    kind: str
    label: str
    start: float
    end: float


class RunFacts(Value):
    """How the text came about: one run of the recogniser. Status: success, error or timeout."""

    provider: str
    model: str
    status: str
    reason: str = "ok"  # short slug: ok, no_speech, no_audio, timeout, exit_code, no_output, …
    duration: float = 0.0
    exit_code: int | None = None
    stderr_tail: str = ""
    temp_bytes: int = 0
    output_format: str = "json"
    files: int = 1  # audio files in the same invocation


class Conversation(Value):
    """One document per session: all legs merged on the wall clock, in order of start."""

    session_id: str
    sip_call_id: str
    group_id: str | None = None
    call_ids: dict[str, str] = {}  # vendors' names for the call
    started_at: datetime
    ended_at: datetime
    duration: float
    participants: tuple[Participant, ...] = ()
    legs: tuple[Leg, ...] = ()
    utterances: tuple[Utterance, ...] = ()
    suppressed: tuple[Suppressed, ...] = ()
    redactions: tuple[Redaction, ...] = ()
    language: str | None = None  # None: no speech, or the legs differ
    provider: str
    model: str
    run: RunFacts | None = None

    @property
    def text(self) -> str:
        """All utterances' text, a line each, in order of start."""
        return "\n".join(utterance.text for utterance in self.utterances)

    @property
    def lines(self) -> str:
        """The same, with who says it."""
        return "\n".join(utterance.line for utterance in self.utterances)
