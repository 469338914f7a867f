"""Keys that were pressed, from the packets of telephone-event. RFC 4733 §2.

Each packet of an event has the event's first timestamp and its duration so far; the last one, with
the end bit, is sent three times. The timestamp tells events apart and the longest duration counts,
so the end bit is of no need: whatever is lost, repeated or late, one key is one event.
"""

from dataclasses import dataclass

KEYS = "0123456789*#ABCD"  # events 0 to 15. RFC 4733 §3.2
_SIZE = 4
_OPEN = 8  # events that late packets may still belong to
_MOST = 10_000  # a stream's events beyond that are somebody's noise
_SEGMENT = 0xFFFF  # no event is longer: it goes on as another one. RFC 4733 §2.5.1.3


@dataclass(slots=True)
class KeyEvent:
    """A key: RTP `timestamp` and `duration` in ticks; `arrival_ns` of its first packet.

    `position` is its owner's.
    """

    key: str
    ssrc: int
    timestamp: int
    duration: int
    arrival_ns: int
    clock_rate: int
    position: int = 0


class KeyReader:
    """Collects the keys of one stream. `take` returns an event when its first packet is seen."""

    def __init__(self) -> None:
        self._recent: list[KeyEvent] = []
        self.events: list[KeyEvent] = []

    def take(
        self, ssrc: int, timestamp: int, arrival_ns: int, payload: bytes, clock_rate: int
    ) -> KeyEvent | None:
        """Take a packet; what is no key, or is known already, gives nothing."""
        if len(payload) < _SIZE or payload[0] >= len(KEYS):
            return None
        key = KEYS[payload[0]]
        duration = int.from_bytes(payload[2:4], "big")
        for event in reversed(self._recent):
            if event.ssrc != ssrc or event.key != key:
                continue
            offset = (timestamp - event.timestamp) & 0xFFFFFFFF
            # A long key: its next segment begins where the one before it is full, whose last packets
            # may have been lost.
            if offset % _SEGMENT == 0 and offset <= event.duration + clock_rate:
                event.duration = max(event.duration, offset + duration)
                return None
        if len(self.events) >= _MOST:
            return None
        event = KeyEvent(key, ssrc, timestamp, duration, arrival_ns, clock_rate)
        self._recent = [*self._recent[1 - _OPEN :], event]
        self.events.append(event)
        return event
