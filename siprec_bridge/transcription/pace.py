"""How fast a recogniser is: seconds of audio in a second of a run. Pure."""

from typing import Final

_KEPT: Final = 0.9  # of what was known before, with each run: about the last ten count


class Pace:
    """An average that forgets; long runs count for more than short ones."""

    def __init__(self) -> None:
        self._audio = 0.0
        self._seconds = 0.0

    def note(self, audio: float, seconds: float) -> None:
        """A run did so much audio in so many seconds."""
        if seconds <= 0:
            return
        self._audio = _KEPT * self._audio + audio
        self._seconds = _KEPT * self._seconds + seconds

    @property
    def ratio(self) -> float | None:
        """Audio per time of one run; None: nothing is known yet."""
        return self._audio / self._seconds if self._audio > 0 else None
