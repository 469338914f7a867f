"""Why a stream is not recorded now: the SRC's hold, and what somebody told us to pause."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from siprec_bridge.siprec.document import Pause

_MAX_PAUSES = 200  # the newest ones of a stream: an SRC may hold and resume for ever


@dataclass(frozen=True, slots=True)
class PauseOrder:
    """Record nothing of the session, of one stream, or of one participant, until that is lifted.

    A participant takes it along to whichever stream he is on, and silences all of a mixed one.
    """

    label: str | None = None
    participant_id: str | None = None
    by: str | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.label is not None and self.participant_id is not None:
            raise ValueError("a stream or a participant, not both")

    @property
    def target(self) -> tuple[str | None, str | None]:
        """What it is about: of two with the same target, the first one holds."""
        return self.label, self.participant_id

    def covers(self, label: str, present: Iterable[str]) -> bool:
        """Whether a stream with these participants on it must not be recorded."""
        if self.participant_id is not None:
            return self.participant_id in present
        return self.label is None or self.label == label

    def begin(self, at: datetime) -> Pause:
        """The pause that it makes of a stream."""
        return Pause(
            cause="operator" if self.participant_id is None else "mute",
            since=at,
            participant_id=self.participant_id,
            by=self.by,
            reason=self.reason,
        )


def follow(
    pauses: Iterable[Pause], *, on_hold: bool, orders: Iterable[PauseOrder], at: datetime
) -> list[Pause]:
    """A stream's pauses with those ended that hold no longer, and those begun that do now."""
    wanted = [order.begin(at) for order in orders]
    if on_hold:
        wanted.insert(0, Pause(cause="hold", since=at))
    keys = [_key(one) for one in wanted]
    held = [
        one if one.until is not None or _key(one) in keys else one.model_copy(update={"until": at})
        for one in pauses
    ]
    going_on = [_key(one) for one in held if one.until is None]
    held += [one for one in wanted if _key(one) not in going_on]
    return held[-_MAX_PAUSES:]


def _key(pause: Pause) -> tuple[object, ...]:
    return pause.cause, pause.participant_id, pause.by, pause.reason
