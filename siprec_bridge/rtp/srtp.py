"""Secure RTP and RTCP by libsrtp: packets of one stream, several sources. RFC 3711, RFC 7714.

What libsrtp's Python binding leaves out is here: the MKI, a roll-over counter to begin with, and
packets under the previous key while a new one takes over.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pylibsrtp import Error, Policy, Session

_PROFILES = {
    "AES_CM_128_HMAC_SHA1_80": Policy.SRTP_PROFILE_AES128_CM_SHA1_80,
    "AES_CM_128_HMAC_SHA1_32": Policy.SRTP_PROFILE_AES128_CM_SHA1_32,
    "AEAD_AES_128_GCM": Policy.SRTP_PROFILE_AEAD_AES_128_GCM,
    "AEAD_AES_256_GCM": Policy.SRTP_PROFILE_AEAD_AES_256_GCM,
}
_KEY_SIZES = {"AEAD_AES_128_GCM": 28, "AEAD_AES_256_GCM": 44}  # others 30
# Octets behind the MKI: the tag of RTP, of RTCP. GCM has its tag in the cipher text.
_TAGS = {"AES_CM_128_HMAC_SHA1_80": (10, 10), "AES_CM_128_HMAC_SHA1_32": (4, 10)}
_WINDOW = 1024  # packets: as far back as duplicates are told from late ones
_STRIDE = 0x7000  # a step that cannot be taken for one backwards
_TRIES = 50  # that a remembered roll-over counter gets
_SHORTEST = 12


class NotAuthentic(Exception):
    """Not encrypted with a key of this stream, or changed on the way."""


class Replayed(Exception):
    """It has come before, or is too old to tell."""


def available_suites() -> tuple[str, ...]:
    """What this build of libsrtp can do; GCM is a choice of who built it."""
    found = []
    for suite in _PROFILES:
        try:
            Session(_policy(suite, bytes(_KEY_SIZES.get(suite, 30)), Policy.SSRC_ANY_INBOUND))
        except Error:
            continue
        found.append(suite)
    return tuple(found)


@dataclass(eq=False, slots=True)
class _Context:
    """One master key. `highest`: per source, roll-over counter and sequence number in one."""

    suite: str
    key: bytes = field(repr=False)
    mki_length: int
    remembered: dict[int, int]
    session: Session = field(repr=False)
    highest: dict[int, int] = field(default_factory=dict)
    tries: int = 0


class SrtpReceiver:
    """Decrypts what comes for one stream.

    `rollovers`: where the roll-over counters of its sources stood, for a receiver that goes on
    with what another began. `turned` collects (SSRC, counter) each time that one has moved.
    """

    def __init__(
        self,
        suite: str,
        key: bytes,
        mki_length: int = 0,
        rollovers: Mapping[int, int] | None = None,
    ) -> None:
        self._contexts = [_context(suite, key, mki_length, dict(rollovers or {}))]
        self.turned: list[tuple[int, int]] = []

    def __repr__(self) -> str:
        return f"SrtpReceiver({self._contexts[0].suite})"

    def rekey(self, suite: str, key: bytes, mki_length: int = 0) -> None:
        """Take another key; the one before stays for packets that are on their way."""
        old = self._contexts[0]
        rollovers = old.remembered | {ssrc: at >> 16 for ssrc, at in old.highest.items()}
        self._contexts = [_context(suite, key, mki_length, rollovers), old]

    def unprotect(self, packet: bytes) -> bytes:
        """The RTP packet in an SRTP packet. Raises NotAuthentic, Replayed."""
        if len(packet) < _SHORTEST:
            raise NotAuthentic
        ssrc = int.from_bytes(packet[8:12])
        sequence = packet[2] << 8 | packet[3]
        *others, last = self._contexts
        for context in others:
            try:
                return self._unprotect(context, packet, ssrc, sequence)
            except NotAuthentic:
                continue
        return self._unprotect(last, packet, ssrc, sequence)

    def unprotect_run(self, packets: Sequence[bytes]) -> list[bytes]:
        """The RTP packets in the first of these, one at least and all of one source.

        As far as they are the usual ones: under the newest key that it is known to use, without an
        MKI. The first that is not, or cannot be opened, is left to `unprotect`, with all after it.
        """
        number = int.from_bytes(packets[0][8:_SHORTEST])
        context = next((one for one in self._contexts if number in one.highest), None)
        if context is None or context.mki_length:
            return []
        highest = context.highest[number]
        plain: list[bytes] = []
        add = plain.append
        try:
            for packet in map(context.session.unprotect, packets):
                add(packet)
        except (Error, ValueError):
            pass
        if plain:  # the last one is as far as it has come, or will have come with the next run
            last = plain[-1][2] << 8 | plain[-1][3]
            self._advance(context, number, highest, (last - highest + 0x8000) % 0x10000 - 0x8000)
        return plain

    def unprotect_rtcp(self, packet: bytes) -> bytes:
        """The RTCP packet in an SRTCP packet. Raises NotAuthentic, Replayed."""
        for context in self._contexts:
            tag = _TAGS.get(context.suite, (0, 0))[1]
            try:
                return context.session.unprotect_rtcp(_bare(packet, context.mki_length, tag))
            except Error as error:
                if str(error).startswith("replay"):
                    raise Replayed from None
            except ValueError:
                pass
        raise NotAuthentic

    def _unprotect(self, context: _Context, packet: bytes, ssrc: int, sequence: int) -> bytes:
        if context.mki_length:
            packet = _bare(packet, context.mki_length, _TAGS.get(context.suite, (0, 0))[0])
        highest = context.highest.get(ssrc)
        if highest is None:
            return self._begin(context, packet, ssrc, sequence)
        plain = _open(context.session, packet)
        self._advance(context, ssrc, highest, (sequence - highest + 0x8000) % 0x10000 - 0x8000)
        return plain

    def _advance(self, context: _Context, ssrc: int, highest: int, step: int) -> None:
        """Note how far a source has come: `step` packets from the highest so far."""
        if step > 0:
            context.highest[ssrc] = highest + step
            if (highest + step) >> 16 != highest >> 16:
                self.turned.append((ssrc, (highest + step) >> 16))

    def _begin(self, context: _Context, packet: bytes, ssrc: int, sequence: int) -> bytes:
        """The first packet of a source: find out where its roll-over counter stands.

        A new key does not set it back (RFC 3711 §3.3.1), though some senders do so.
        """
        known = context.remembered.get(ssrc, 0)
        candidates = (known, known + 1, 0) if known and context.tries < _TRIES else (0,)
        for number, rollovers in enumerate(candidates, 1):
            if rollovers:
                context.tries += 1
                _walk(context, ssrc, (rollovers << 16) + sequence)
            try:
                plain = _open(context.session, packet)
            except NotAuthentic:
                if rollovers:
                    context.session.remove_stream(ssrc)
                if number == len(candidates):
                    raise
                continue
            context.highest[ssrc] = (rollovers << 16) + sequence
            if rollovers != known:
                self.turned.append((ssrc, rollovers))
            return plain
        raise NotAuthentic


class SrtpSender:
    """Encrypts what we send, of any source."""

    def __init__(self, suite: str, key: bytes) -> None:
        self._session = Session(_policy(suite, key, Policy.SSRC_ANY_OUTBOUND))

    def protect(self, packet: bytes) -> bytes:
        """An SRTP packet."""
        return self._session.protect(packet)

    def protect_rtcp(self, packet: bytes) -> bytes:
        """An SRTCP packet."""
        return self._session.protect_rtcp(packet)


def _context(suite: str, key: bytes, mki_length: int, remembered: dict[int, int]) -> _Context:
    session = Session(_policy(suite, key, Policy.SSRC_ANY_INBOUND))
    return _Context(suite, key, mki_length, remembered, session)


def _policy(suite: str, key: bytes, kind: int) -> Policy:
    policy = Policy(key, kind, 0, _PROFILES[suite])
    policy.window_size = _WINDOW
    return policy


def _open(session: Session, packet: bytes) -> bytes:
    try:
        return session.unprotect(packet)
    except Error as error:
        if str(error).startswith("replay"):
            raise Replayed from None
    except ValueError:  # longer than libsrtp's binding has room for
        pass
    raise NotAuthentic


def _walk(context: _Context, ssrc: int, target: int) -> None:
    """Bring a new source's counter to just below an index, by packets made up on the way.

    Two or three a turn. The binding has no srtp_set_stream_roc.
    """
    sender = Session(_policy(context.suite, context.key, Policy.SSRC_ANY_OUTBOUND))
    end = target - _WINDOW - 1  # outside the window: it must not look like one that has come
    for index in (*range(0, end, _STRIDE), end):
        packet = struct.pack("!BBHII", 0x80, 0, index & 0xFFFF, 0, ssrc)
        context.session.unprotect(sender.protect(packet))


def _bare(packet: bytes, mki_length: int, tag: int) -> bytes:
    """The packet without its MKI, which lies before the tag. RFC 3711 §3.1."""
    if not mki_length:
        return packet
    end = len(packet) - tag
    return packet[: max(0, end - mki_length)] + packet[end:]
