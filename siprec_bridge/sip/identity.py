"""What we call ourselves in messages: Contact, tags, branches and product."""

from collections.abc import Callable
from dataclasses import dataclass

from siprec_bridge.sip.peer import Peer

MAGIC = "z9hG4bK"  # what a branch begins with. RFC 3261 §8.1.1.7


@dataclass(frozen=True, slots=True)
class Identity:
    """`token` gives unique random text, `contact` the Contact value for a flow."""

    token: Callable[[], str]
    contact: Callable[[Peer], str]
    product: str

    def branch(self) -> str:
        """That of a new transaction."""
        return f"{MAGIC}{self.token()}"

    def contact_for(self, peer: Peer, *, secure: bool) -> str:
        """Our Contact; a SIPS one for who asked by SIPS. RFC 3261 §12.1.1, RFC 5630 §3.1.4."""
        contact = self.contact(peer)
        if not secure or peer.transport != "tls":
            return contact
        return contact.replace("<sip:", "<sips:", 1).replace(";transport=tls", "", 1)
