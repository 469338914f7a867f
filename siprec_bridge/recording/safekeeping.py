"""What is to become of a session's files, and the stores that they may lie in."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from siprec_bridge.provider import ConfigurationError
from siprec_bridge.vault import Layout, ObjectError, ObjectStore, Recipients, open_store


class NotInStore(Exception):
    """The session's files are in no store, or cannot be had: says why."""


@dataclass(frozen=True, slots=True)
class Safekeeping:
    """What is to become of the files.

    `store`: where they go; None: they stay here. `recipients`: whose public keys they are encrypted
    to; None: they are not. `keep_local`: after that time in the store they go here; None: never.
    `after_transcription`: nothing leaves the machine before. `plain_for`: after that time files
    are encrypted although nobody has transcribed them; None: never.
    """

    store: ObjectStore | None = None
    recipients: Recipients | None = None
    layout: Layout = Layout("{year}/{month}/{day}/{session}")  # noqa: RUF009  frozen, too
    keep_local: timedelta | None = None
    after_transcription: bool = False
    plain_for: timedelta | None = None

    @property
    def wanted(self) -> bool:
        """Whether sessions are to be entered."""
        return self.store is not None or self.recipients is not None


class Stores:
    """Opens stores by their URL: a session's objects may be in another than new ones go to."""

    def __init__(self, store: ObjectStore | None, options: Mapping[str, object]) -> None:
        self._options = options
        self._open = {store.place: store} if store is not None else {}

    def at(self, place: str) -> ObjectStore:
        """Raises ObjectError."""
        if place not in self._open:
            try:
                self._open[place] = open_store(place, self._options)
            except ConfigurationError as error:
                raise ObjectError(str(error)) from error
        return self._open[place]
