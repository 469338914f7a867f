"""Our own requests in dialogs while they are under way: sent, sent elsewhere, and answered.

RFC 3261 §8.1.3 and §17.1, RFC 3263 §4.3.
"""

from collections.abc import Callable, Mapping, Sequence

from siprec_bridge.sip.asked import Asked, acknowledge, ask
from siprec_bridge.sip.dialog import CHANGES, Dialog, DialogId
from siprec_bridge.sip.errors import MalformedMessage
from siprec_bridge.sip.events import NextServerWanted, Output, Send
from siprec_bridge.sip.identity import Identity
from siprec_bridge.sip.message import REASONS, Request, Response, parse
from siprec_bridge.sip.peer import Peer
from siprec_bridge.sip.transaction import Action, Input, Timers


class Client:
    """A user agent client. `schedule` has `run` called when something of a request is due.

    `on_answer` gets the final answer to each request, a 408 without headers where none came.
    """

    def __init__(
        self,
        identity: Identity,
        timers: Timers,
        dialogs: Mapping[DialogId, Dialog],
        schedule: Callable[[Asked], None],
        on_answer: Callable[[Asked, Response, float], list[Output]],
    ) -> None:
        self._identity = identity
        self._timers = timers
        self._dialogs = dialogs
        self._schedule = schedule
        self._answered = on_answer
        self._asked: dict[str, Asked] = {}  # by branch

    def knows(self, asked: Asked) -> bool:
        """Whether it is still under way."""
        return self._asked.get(asked.branch) is asked

    def send(
        self,
        dialog: Dialog,
        method: str,
        now: float,
        extra: Sequence[tuple[str, str]] = (),
        content_type: str | None = None,
        body: bytes = b"",
        *,
        refresh: bool = False,
    ) -> list[Output]:
        """Send the next request in a dialog; `refresh`: that of its session timer."""
        asked = ask(
            dialog,
            method,
            branch=self._identity.branch(),
            contact=self._identity.contact_for(dialog.peer, secure=dialog.secure),
            user_agent=self._identity.product,
            extra=extra,
            content_type=content_type,
            body=body,
            refresh=refresh,
            timers=self._timers,
            now=now,
        )
        return self._send_asked(asked)

    def take(self, response: Response, peer: Peer, now: float) -> list[Output]:
        """Take a response; one to nothing that we asked is passed over."""
        asked = self._asked.get(response.via.branch)
        if asked is None or response.cseq.method != asked.method:
            return []
        actions = asked.transaction.step(_input_of(response.status), now)
        self._schedule(asked)
        if response.status < 200 or not actions:
            return []
        if asked.ack:
            return [Send(asked.ack, asked.peer)]  # the one before was lost
        dialog = self._dialogs.get(asked.dialog)
        if dialog is not None and asked.method in CHANGES and response.status < 300:
            dialog.follow_answer(response)
        out: list[Output] = []
        if asked.method == "INVITE":
            asked.ack = acknowledge(asked, response, dialog, self._identity.branch())
            out.append(Send(asked.ack, asked.peer))
        if response.status == 503:
            return out + self._fail(asked, response, peer, now)
        return out + self._answered(asked, response, now)

    def redirect(self, branch: str, server: tuple[str, int] | None, now: float) -> list[Output]:
        """Answer NextServerWanted: an address and port to try next; None: there is none."""
        asked = self._asked.get(branch)
        if asked is None or asked.failure is None:
            return []
        failure, asked.failure = asked.failure, None
        self._linger(asked)
        if server is None:
            return self._give_up(asked, failure, now)
        fresh = self._identity.branch()
        return self._send_asked(asked.at(server, fresh, self._timers, now))

    def undeliverable(self, data: bytes, now: float) -> list[Output]:
        """Take back a message for which there is no connection. RFC 3261 §8.1.3.1."""
        try:
            message = parse(data)
        except MalformedMessage:
            return []
        asked = self._asked.get(message.via.branch) if isinstance(message, Request) else None
        if asked is None or Action.FAIL not in asked.transaction.step(Input.EXPIRE, now):
            return []
        self._linger(asked)
        failure = Response(408, REASONS[408])
        if asked.peer.flow:  # all servers of its place have been tried
            return self._answered(asked, failure, now)
        return self._fail(asked, failure, None, now)

    def run(self, asked: Asked, now: float) -> list[Output]:
        """Do what is due for a request."""
        if asked.failure is not None:
            return self.redirect(asked.branch, None, now)
        if asked.forget_at is not None and asked.forget_at <= now:
            self._asked.pop(asked.branch, None)
            return []
        out: list[Output] = []
        for actions in asked.transaction.expired(now):
            if Action.RESEND in actions:
                out.append(Send(asked.transaction.message, asked.peer))
            if Action.FAIL in actions:
                out += self._fail(asked, Response(408, REASONS[408]), None, now)
        if asked.failure is None:
            self._linger(asked)
        return out

    def abandon(self, dialog: DialogId, now: float) -> None:
        """The dialog is over: an INVITE's answer is still to be acknowledged, but may never come."""
        for asked in [one for one in self._asked.values() if one.dialog == dialog]:
            if asked.method == "INVITE" and not asked.ack:
                asked.forget_at = now + self._timers.lifetime
                self._schedule(asked)

    def _send_asked(self, asked: Asked) -> list[Output]:
        self._asked[asked.branch] = asked
        self._schedule(asked)
        if asked.unsent:
            return [NextServerWanted(asked.branch, asked.peer, asked.failed)]
        return [Send(asked.transaction.message, asked.peer)]

    def _fail(
        self, asked: Asked, failure: Response, source: Peer | None, now: float
    ) -> list[Output]:
        """A 503 or no answer: another server of the peer's may serve it. RFC 3263 §4.3."""
        if not asked.may_go_elsewhere:
            return self._give_up(asked, failure, now)
        asked.fail(failure, source, now)
        self._asked[asked.branch] = asked
        self._schedule(asked)
        return [NextServerWanted(asked.branch, asked.peer, asked.failed)]

    def _give_up(self, asked: Asked, failure: Response, now: float) -> list[Output]:
        """No server of the peer's serves it; but answers may still get through to him."""
        if asked.way_back is None:
            return self._answered(asked, failure, now)
        fresh = self._identity.branch()
        return self._send_asked(asked.back(asked.way_back, fresh, self._timers, now))

    def _linger(self, asked: Asked) -> None:
        """Keep a request as long as its answer may come again."""
        if asked.transaction.terminated or asked.unsent:
            self._asked.pop(asked.branch, None)
        self._schedule(asked)


def _input_of(status: int) -> Input:
    if status < 200:
        return Input.PROVISIONAL
    return Input.SUCCESS if status < 300 else Input.FAILURE
