"""SRTP among what a sweep has taken: RTP is put in its place."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from siprec_bridge.receiver.arena import Arena, Ints, put_back, strings, take_out
from siprec_bridge.receiver.handshakes import Handshakes, is_dtls
from siprec_bridge.receiver.live import LiveStream
from siprec_bridge.receiver.sources import Sources
from siprec_bridge.receiver.sweep import Receiver
from siprec_bridge.receiver.uplink import Uplink
from siprec_bridge.rtp import HEADER_SIZE, NotAuthentic, Replayed

_SSRC = 8  # where it is in a header, of SRTP too


class Decryption:
    """Opens the packets of the streams that are secure.

    What is no RTP at all stays, and so does RTCP. The order of arrival is kept, and a paused stream
    is decrypted too: roll-over counters follow what is sent, not what is recorded.
    """

    def __init__(
        self,
        arena: Arena,
        receiver: Receiver,
        sources: Sources,
        handshakes: Handshakes,
        uplink: Uplink,
    ) -> None:
        self._arena = arena
        self._receiver = receiver
        self._sources = sources
        self._handshakes = handshakes
        self._uplink = uplink

    def take(
        self, streams: Sequence[LiveStream], secure: npt.NDArray[np.bool_], counts: Ints
    ) -> dict[int, int]:
        """Decrypt in the arena what came for these streams, the ones of all that are `secure`.

        `counts`: datagrams of each stream that was taken, shape (m,) as `secure`. What cannot be
        opened is emptied; returns how many these were, by the stream's first slot.
        """
        arena = self._arena
        slots = np.flatnonzero(np.repeat(secure, counts))
        offsets, lengths, each = arena.offsets[slots], arena.lengths[slots], counts[secure]
        packets = take_out(arena.data, offsets, lengths)
        alike = _of_one_source(arena.data, offsets, lengths, np.cumsum(each) - each)
        dropped: dict[int, int] = {}
        start = 0
        for stream, count, one in zip(streams, each.tolist(), alike.tolist(), strict=True):
            stop = start + count
            run: list[bytes] = []
            if stream.srtp is not None and one:
                run = stream.srtp.unprotect_run(packets[start:stop])
            packets[start : start + len(run)] = run
            if len(run) < count:
                first = int(slots[start])
                dropped[first] = self._open(stream, packets, start + len(run), stop, first - start)
            if stream.srtp is not None and stream.srtp.turned:
                for ssrc, rollovers in stream.srtp.turned:
                    self._uplink.tell_of(stream, "turned", ssrc=ssrc, rollovers=rollovers)
                stream.srtp.turned.clear()
            start = stop
        arena.lengths[slots] = put_back(arena.data, offsets, packets)
        return dropped

    def _open(
        self, stream: LiveStream, packets: list[bytes], start: int, stop: int, ahead: int
    ) -> int:
        """Decrypt a stream's packets one by one, in place; returns how many are dropped.

        DTLS among them is dealt with, and what comes ahead of the keys is lost. `ahead`: slots ahead
        of `packets[0]`.
        """
        repeated = early = unauthenticated = handshake = 0
        for place in range(start, stop):
            packet = packets[place]
            if stream.spec.dtls is not None and is_dtls(packet):
                handshake += 1
                packets[place] = b""
                high, low = self._arena.sources[place + ahead].tolist()
                if self._sources.takes(stream, (high, low)):
                    address = self._receiver.address(place + ahead)
                    self._handshakes.take(stream, packet, address)
                continue
            if len(packet) < HEADER_SIZE or packet[0] >> 6 != 2 or 192 <= packet[1] <= 223:
                continue
            plain = b""
            if stream.srtp is None:
                early += 1
            else:
                try:
                    plain = stream.srtp.unprotect(packet)
                except Replayed:
                    repeated += 1
                except NotAuthentic:
                    unauthenticated += 1
            packets[place] = plain
        counters = self._uplink.counters
        if not stream.paused:
            stream.sequence.duplicates += repeated
            counters.duplicates += repeated
        if unauthenticated and not stream.told_not_authentic:
            stream.told_not_authentic = True
            self._uplink.tell_of(stream, "not_authentic")
        stream.unauthenticated += early + unauthenticated
        counters.unauthenticated += early + unauthenticated
        return repeated + early + unauthenticated + handshake


def _of_one_source(
    data: npt.NDArray[np.uint8], offsets: Ints, lengths: Ints, starts: Ints
) -> npt.NDArray[np.bool_]:
    """For each stream, by its packets' starts, whether all are long enough and have the same SSRC."""
    whole = lengths >= HEADER_SIZE
    sources = np.zeros(len(offsets), np.uint32)
    sources[whole] = strings(data, 4)[offsets[whole] + _SSRC].view(np.uint32)
    alike = whole.copy()
    alike[1:] &= sources[1:] == sources[:-1]
    alike[starts] = whole[starts]
    of_one: npt.NDArray[np.bool_] = np.logical_and.reduceat(alike, starts)
    return of_one
