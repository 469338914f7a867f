"""Who may do what over HTTP and WebSocket: tokens with scopes, and which sessions they may see.

Refuses to know either protocol: it is given what a request carried, and answers with a client or
with the refusal to send. Nothing of it is on disk; what it is asked to keep is lost with the process.
"""

from siprec_bridge.access.gate import ANYONE, COOKIE, LOGIN_S, TICKET_S, Client, Gate, Refused
from siprec_bridge.access.tokens import SCOPES, Scope, Token, View, new_secret, read_tokens

__all__ = [
    "ANYONE",
    "COOKIE",
    "LOGIN_S",
    "SCOPES",
    "TICKET_S",
    "Client",
    "Gate",
    "Refused",
    "Scope",
    "Token",
    "View",
    "new_secret",
    "read_tokens",
]
