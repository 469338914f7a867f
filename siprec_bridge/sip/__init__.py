"""SIP as a recording server needs it: messages, transactions and dialogs of a UAS. RFC 3261.

Bytes and time in, outputs out. Refuses to know sockets, clocks, SDP and what a body means.
"""

from siprec_bridge.sip.dialog import DialogId
from siprec_bridge.sip.digest import DigestAuthority, answer_challenge
from siprec_bridge.sip.errors import MalformedMessage, Refused
from siprec_bridge.sip.events import (
    AckReceived,
    AliasAsked,
    DialogEnded,
    InviteCancelled,
    InviteReceived,
    Malformed,
    NextServerWanted,
    Output,
    RequestAnswered,
    RequestId,
    RequestReceived,
    RequestSeen,
    ResponseSent,
    Send,
    UpdateReceived,
)
from siprec_bridge.sip.framing import BrokenStream, KeepAlive, StreamFramer
from siprec_bridge.sip.headers import Headers, NameAddr, parse_name_addr, readable, split_params
from siprec_bridge.sip.message import Request, Response, parse, serialize
from siprec_bridge.sip.peer import Peer
from siprec_bridge.sip.server import AnswerContent, Content, SipServer
from siprec_bridge.sip.transaction import Timers
from siprec_bridge.sip.uri import Uri, is_address, parse_uri

__all__ = [
    "AckReceived",
    "AliasAsked",
    "AnswerContent",
    "BrokenStream",
    "Content",
    "DialogEnded",
    "DialogId",
    "DigestAuthority",
    "Headers",
    "InviteCancelled",
    "InviteReceived",
    "KeepAlive",
    "Malformed",
    "MalformedMessage",
    "NameAddr",
    "NextServerWanted",
    "Output",
    "Peer",
    "Refused",
    "Request",
    "RequestAnswered",
    "RequestId",
    "RequestReceived",
    "RequestSeen",
    "Response",
    "ResponseSent",
    "Send",
    "SipServer",
    "StreamFramer",
    "Timers",
    "UpdateReceived",
    "Uri",
    "answer_challenge",
    "is_address",
    "parse",
    "parse_name_addr",
    "parse_uri",
    "readable",
    "serialize",
    "split_params",
]
