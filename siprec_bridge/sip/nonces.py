"""Which counts of which nonces were used: an answer to a challenge is good once. RFC 7616 §3.4."""

from math import inf

_WINDOW = 64  # counts below the highest one that may still come: datagrams overtake one another
_ALL = (1 << _WINDOW) - 1


class NonceCounts:
    """Remembers up to `most` nonces; those issued before one that was forgotten are used up."""

    def __init__(self, most: int = 20_000) -> None:
        self._most = most
        self._used: dict[str, tuple[float, int, int]] = {}  # issued at, highest count, those below
        self._forgotten = -inf

    def __len__(self) -> int:
        return len(self._used)

    def take(self, nonce: str, issued: float, count: int, *, oldest: float) -> bool:
        """Note a use of a nonce that we issued then; False: that count of it was used before.

        Nonces that were issued before `oldest` are not taken by anybody and are forgotten.
        """
        if issued <= self._forgotten:
            return False
        _, highest, seen = self._used.get(nonce, (issued, 0, 0))
        if count > highest:
            seen = (seen << min(count - highest, _WINDOW) | 1) & _ALL
            highest = count
        else:
            place = 1 << min(highest - count, _WINDOW)
            if place > _ALL or seen & place:
                return False
            seen |= place
        self._used[nonce] = (issued, highest, seen)
        self._forget(oldest)
        return True

    def _forget(self, oldest: float) -> None:
        while self._used:
            nonce, (issued, _, _) = next(iter(self._used.items()))
            if issued >= oldest and len(self._used) <= self._most:
                return
            del self._used[nonce]
            self._forgotten = max(self._forgotten, issued)
