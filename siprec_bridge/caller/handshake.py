"""Keys by DTLS: the caller's side, which begins. RFC 5763 §5, RFC 5764."""

import asyncio
import contextlib
import socket
from collections.abc import Sequence

from siprec_bridge.rtp import SrtpSender
from siprec_bridge.sdp import Attribute, Fingerprint, Media, SessionDescription, read_dtls

_PATIENCE_S = 10.0
_ROUND_S = 0.25  # between looks at what has to be sent again
_LARGEST = 2048


class Handshaker:
    """Has a certificate of its own, made for the call."""

    def __init__(self) -> None:
        from siprec_bridge.dtls import Certificate, Client

        certificate = Certificate.make()
        self._client = Client(certificate.pem)
        self.fingerprint: Fingerprint = certificate.fingerprint

    async def agree(
        self, sockets: Sequence[socket.socket], answer: SessionDescription, host: str
    ) -> tuple[list[SrtpSender | None], tuple[str, ...]]:
        """What encrypts for each m-line that was answered, and what went wrong.

        `host` is where the media goes that the answer names no address for.
        """
        media = answer.media
        outcomes = await asyncio.gather(
            *(
                self._agree(one, line, answer.attributes, line.connection or host)
                for one, line in zip(sockets, media, strict=False)
                if line.port
            )
        )
        senders: list[SrtpSender | None] = []
        problems: list[str] = []
        found = iter(outcomes)
        for number, line in enumerate(media[: len(sockets)], 1):
            outcome = next(found) if line.port else None
            senders.append(outcome if isinstance(outcome, SrtpSender) else None)
            if isinstance(outcome, str):
                problems.append(f"stream {number}: {outcome}")
        return senders, tuple(problems)

    async def _agree(
        self, one: socket.socket, line: Media, session: Sequence[Attribute], host: str
    ) -> SrtpSender | str:
        parameters = read_dtls(line.attributes, session, setups=("passive",))
        if isinstance(parameters, str):
            return f"no DTLS-SRTP in the answer: {parameters}"
        association = self._client.greet(parameters.fingerprints)
        loop = asyncio.get_running_loop()
        out = association.advance()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                while True:
                    try:
                        for datagram in out:
                            one.sendto(datagram, (host, line.port))
                    except (OSError, TypeError) as error:  # TypeError: what cannot even be a name
                        return f"no handshake with {host}: {error}"
                    if association.failure is not None:
                        return f"the handshake failed: {association.failure}"
                    if association.keys is not None:
                        return SrtpSender(association.keys.suite, association.keys.local)
                    try:
                        async with asyncio.timeout(_ROUND_S):
                            out = association.receive(await loop.sock_recv(one, _LARGEST))
                    except TimeoutError:
                        out = association.advance()
        return "nobody answered the handshake"
