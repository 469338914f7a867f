"""Takes out of a session what its policy names, before anything of it is stored or delivered.

What is planned stands on disk before a file is touched: killed in between, the next try covers at
least as much. Text is committed after the audio is covered, so whoever hears of a transcript
finds no recording of what is not in it.
"""

import asyncio
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import structlog

from siprec_bridge.media import Cover, FinishedAudio, silence, write_atomically
from siprec_bridge.recording.orders import AUDIO, Orders
from siprec_bridge.redaction import KINDS, Kind, Policy
from siprec_bridge.siprec import SessionDocument
from siprec_bridge.store import SessionRow, StoreError
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcript import Conversation, Redaction
from siprec_bridge.vault import Recipients, encrypt_bytes, original_name

if TYPE_CHECKING:
    from siprec_bridge.redaction.conversation import Redacted

log = structlog.get_logger()

CoverMode = Literal["silence", "beep", "keep"]


class Redactor:
    """`default`: for sessions for which no rule says otherwise. `cover`: what audio gets; keep: none.

    `originals`: to whom conversations are kept as they were said; None: they are not.
    """

    def __init__(
        self,
        default: Policy,
        orders: Orders,
        metrics: Metrics,
        *,
        cover: CoverMode = "silence",
        originals: Recipients | None = None,
    ) -> None:
        self._default = default
        self._orders = orders
        self._metrics = metrics
        self._cover = cover
        self._originals = originals

    @property
    def kinds(self) -> frozenset[Kind]:
        """All that is taken out of any call."""
        return self._default.kinds | self._orders.rules.redact

    def kinds_of(self, document: SessionDocument, peer: str) -> frozenset[Kind]:
        """What is taken out of a session, as far as it is known by now."""
        ruled = self._orders.choose(document, peer).wish.redact
        return self._default.kinds if ruled is None else frozenset(ruled)

    def policy_of(self, document: SessionDocument, peer: str) -> Policy:
        """What is taken out of a session, and how it is known."""
        return replace(self._default, kinds=self.kinds_of(document, peer))

    @property
    def cover(self) -> CoverMode:
        """What audio gets in place of what is taken out."""
        return self._cover

    @property
    def originals(self) -> Recipients | None:
        """To whom conversations are kept as they were said."""
        return self._originals

    def conceal(self, text: str) -> str:
        """A recogniser's own words, which may repeat what it heard."""
        from siprec_bridge.redaction.conversation import redact_text

        return redact_text(text, replace(self._default, kinds=self.kinds))

    def mark(self, audio: FinishedAudio, document: SessionDocument, peer: str) -> FinishedAudio:
        """Note what is to be taken out of a session that has just ended.

        Decided once: another policy from tomorrow on does not uncover what was covered.
        """
        kinds = self.kinds_of(document, peer)
        if not kinds:
            return audio
        return replace(
            audio,
            redact=tuple(kind for kind in KINDS if kind in kinds),
            withheld=self._cover != "keep" and bool(audio.legs),
        )

    async def redact(
        self, row: SessionRow, conversation: Conversation
    ) -> tuple[Conversation, FinishedAudio | None]:
        """The conversation as it may be stored, and the session's audio if that is another now.

        A file that is gone or no audio leaves the audio withheld. Raises StoreError when the disk
        does not take what is covered.
        """
        audio = AUDIO.validate_json(row.audio or "")
        if not audio.redact:
            return conversation, None
        kinds = frozenset(cast(tuple[Kind, ...], audio.redact))
        policy = replace(self._default, kinds=kinds)
        redacted = await asyncio.to_thread(_without, conversation, policy)
        covered: FinishedAudio | None = None
        if self._cover != "keep":
            try:
                covered = await asyncio.to_thread(
                    _cover, row, audio, redacted.conversation.redactions, self._cover
                )
            except OSError as error:
                raise StoreError(f"the audio is not covered: {error}") from error
        for one in redacted.redactions:
            self._metrics.redactions_total.labels(kind=one.kind).inc()
        if covered is None:
            return redacted.conversation, None
        fresh = sum(one.end - one.start for one in redacted.redactions)
        self._metrics.audio_redacted_seconds_total.inc(fresh)
        if redacted.redactions:
            log.info(
                "session.redacted",
                session_id=row.id,
                sip_call_id=row.sip_call_id,
                kinds=sorted({one.kind for one in redacted.redactions}),
                count=len(redacted.redactions),
                audio_seconds=round(fresh, 3),
            )
        whole = redacted.conversation.model_copy(update={"redactions": covered.redactions})
        return whole, covered

    async def keep_original(self, row: SessionRow, said: Conversation, version: int) -> bool:
        """Keep what was said as it was said, if that is wanted: encrypted from the first octet.

        False: it is not kept. Raises StoreError when the disk does not take it.
        """
        if self._originals is None:
            return False
        target = Path(row.folder) / original_name(row.id, version)
        try:
            return await asyncio.to_thread(_encrypt, said, target, self._originals)
        except OSError as error:
            raise StoreError(f"the original is not kept: {error}") from error


def _encrypt(said: Conversation, target: Path, recipients: Recipients) -> bool:
    if not target.parent.is_dir():  # deleted meanwhile
        return False
    encrypt_bytes(said.model_dump_json(indent=1).encode(), target, recipients)
    return True


def _without(conversation: Conversation, policy: Policy) -> "Redacted":
    # Only now: most bridges take nothing out, and need none of its libraries.
    from siprec_bridge.redaction.conversation import redact_conversation

    return redact_conversation(conversation, policy)


def _cover(
    row: SessionRow, audio: FinishedAudio, found: tuple[Redaction, ...], cover: Cover
) -> FinishedAudio:
    """Cover the audio, delete what it was made from, and return what it is now."""
    folder = Path(row.folder)
    summary = folder / f"{row.id}.audio.json"
    planned = _planned(summary)
    before = planned.redactions if planned is not None else ()
    all_of_it = tuple(
        sorted({*audio.redactions, *before, *found}, key=lambda one: (one.start, one.end, one.kind))
    )
    done = planned is not None and not planned.withheld and planned.redact == audio.redact
    if done and planned is not None and all_of_it == planned.redactions:
        return planned
    if all_of_it:
        # Its files are about to change: until then this is the plan, and nobody is shown them.
        plan = replace(audio, redactions=all_of_it, withheld=True)
        write_atomically(summary, AUDIO.dump_json(plan, indent=1))
        try:
            audio = silence(folder, audio, spans_of(audio, all_of_it, row.started_at), cover)
        except (ValueError, FileNotFoundError) as error:
            # No later try can cover it: it is shown to nobody, and what it was made from is kept.
            log.error("session.not_covered", session_id=row.id, cause=str(error))
            return plan
    for spool in folder.glob("*.spool*"):  # encrypted ones, too
        spool.unlink(missing_ok=True)
    covered = replace(audio, redactions=all_of_it, withheld=False)
    if folder.is_dir():  # a session without streams has none
        write_atomically(summary, AUDIO.dump_json(covered, indent=1))
    return covered


def spans_of(
    audio: FinishedAudio, redactions: tuple[Redaction, ...], origin: datetime
) -> dict[str, list[tuple[float, float]]]:
    """Times of a session as those of its legs' files, by label."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for leg in audio.legs:
        offset = (leg.started_at - origin).total_seconds()
        spans[leg.label] = [
            (max(0.0, one.start - offset), min(leg.duration, one.end - offset))
            for one in redactions
            if one.label == leg.label and one.end > offset
        ]
    return spans


def _planned(summary: Path) -> FinishedAudio | None:
    try:
        return AUDIO.validate_json(summary.read_bytes())
    except (OSError, ValueError):
        return None
