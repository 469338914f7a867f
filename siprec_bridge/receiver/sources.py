"""Who may send on a stream's port: strangers' packets are dropped, a flood of them by the kernel."""

from collections.abc import Mapping

import numpy as np

from siprec_bridge.receiver.arena import Arena, Ints
from siprec_bridge.receiver.control import SourcePolicy
from siprec_bridge.receiver.live import LiveStream
from siprec_bridge.receiver.sweep import NOBODY, Source, address_of, shield, source_of
from siprec_bridge.receiver.uplink import Uplink
from siprec_bridge.rtp import Batch


class Sources:
    """Learns and locks the source of each stream, by policy."""

    def __init__(self, arena: Arena, uplink: Uplink, policy: SourcePolicy) -> None:
        self._arena = arena
        self._uplink = uplink
        self._policy = policy
        self._usual = np.zeros((0, 2), np.uint64)  # by row: whose packets need no second look

    def open(self, stream: LiveStream) -> None:
        """Begin with a stream: its row was another's before."""
        self.forget(stream)
        self.expect(stream)

    def expect(self, stream: LiveStream) -> None:
        """Take over where the SRC says that it is; what was learned holds until it says more."""
        spec = stream.spec
        hosts = [spec.rtcp[0] if spec.rtcp is not None else None]
        if self._policy == "learned":
            hosts.append(spec.peer)
        homes = frozenset(
            one for host in hosts if host is not None and (one := source_of(host)) is not None
        )
        if homes != stream.homes:
            stream.homes = homes
            self.forget(stream)

    def forget(self, stream: LiveStream) -> None:
        """Lock the stream to no source any more."""
        self._take_only(stream, NOBODY)

    def takes(self, stream: LiveStream, source: Source) -> bool:
        """Whether datagrams from there are the stream's."""
        return not stream.guests or source in stream.guests

    def turn_away(
        self, streams: Mapping[int, LiveStream], starts: Ints, of: Ints, batch: Batch
    ) -> dict[int, int]:
        """Mark what strangers sent as not valid; how many of each stream, by its first slot.

        `streams`: by row. `starts`: the slots, shape (m,). `of`: the row of each packet's stream,
        shape (n,).
        """
        if self._policy == "any":
            return {}
        sources, usual = self._arena.sources[: len(of)], self._usual[of[starts]]
        # By columns: `any` over so short an axis costs ten times as much.
        high, low = sources[:, 0], sources[:, 1]
        other = np.zeros(len(of), np.bool_)
        other[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        other[starts] = (high[starts] != usual[:, 0]) | (low[starts] != usual[:, 1])
        if not other.any():
            return {}
        found = np.flatnonzero(np.logical_or.reduceat(other, starts))
        ends = np.append(starts[1:], len(of))
        return {
            start: self._turn_away_from(streams[row], start, end, batch)
            for row, start, end in zip(
                of[starts[found]].tolist(),
                starts[found].tolist(),
                ends[found].tolist(),
                strict=True,
            )
        }

    def count_strangers(self, stream: LiveStream, source: Source, count: int) -> None:
        """Count datagrams that were dropped; the first ones of a stream are told."""
        if not stream.strangers:
            self._uplink.tell_of(stream, "stranger", cause=address_of(source))
        stream.strangers += count
        self._uplink.counters.strangers += count

    def count_drops(self, stream: LiveStream, told: int, waiting: int) -> None:
        """Tell what the kernel had no room for from what it kept out.

        It counts both in one; but only where many were waiting can there have been no room.
        """
        more = (told - stream.drops) & 0xFFFFFFFF
        stream.drops = told
        if stream.guests and waiting < stream.room:
            stream.strangers += more
            self._uplink.counters.strangers += more
        else:
            stream.kernel_drops += more
            self._uplink.counters.kernel_drops += more

    def _take_only(self, stream: LiveStream, source: Source) -> None:
        """Lock a stream to a source, or (nobody) to none."""
        stream.source = source
        if stream.row >= len(self._usual):
            more = np.zeros((2 * stream.row + 64 - len(self._usual), 2), np.uint64)
            self._usual = np.concatenate((self._usual, more))
        self._usual[stream.row] = source
        guests: frozenset[Source] = frozenset()
        if self._policy != "any" and (source != NOBODY or self._is_strict(stream)):
            guests = stream.homes | ({source} - {NOBODY})
        if guests != stream.guests:
            stream.guests = guests
            # Kept out by the kernel, a flood takes none of the room of what is to be recorded.
            if not stream.by_ring:
                shield(stream.rtp, guests)

    def _is_strict(self, stream: LiveStream) -> bool:
        """Whether it comes from home only. Without one it cannot: it is learned then."""
        return self._policy == "signalled" and bool(stream.homes)

    def _turn_away_from(self, stream: LiveStream, start: int, stop: int, batch: Batch) -> int:
        """Learn from the sources of a stream's packets which is its own; the others' go.

        Home comes first. Elsewhere a source is believed when it sends two packets in sequence
        (RFC 3550 A.1); as long as none is, all are taken.
        """
        sources = [(high, low) for high, low in self._arena.sources[start:stop].tolist()]
        valid = batch.valid[start:stop]
        by_source: dict[Source, list[int]] = {}
        for at in np.flatnonzero(valid).tolist():
            by_source.setdefault(sources[at], []).append(start + at)
        home = next((one for one in by_source if one in stream.homes), None)
        if home is not None:
            if stream.source not in stream.homes:
                self._take_only(stream, home)
        elif stream.source == NOBODY and not self._is_strict(stream):
            for one, slots in by_source.items():
                if bool((np.diff(batch.sequence[slots]) == 1).any()):
                    self._take_only(stream, one)
                    self._uplink.tell_of(stream, "learned", cause=address_of(one))
                    break
        if not stream.guests:
            return 0
        # What failed to decrypt is counted already.
        lengths = self._arena.lengths[start:stop].tolist()
        strange = [
            at
            for at, one in enumerate(sources)
            if one not in stream.guests and (lengths[at] or not stream.secure)
        ]
        if strange:
            places = np.array(strange) + start
            batch.valid[places] = batch.rtcp[places] = False
            self.count_strangers(stream, sources[strange[0]], len(strange))
        return len(strange)
