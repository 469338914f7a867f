"""Transactions as tables: what each state does with each input. RFC 3261 §17, RFC 6026.

`{state: {input: (next state, actions)}}`. An input that a state does not list changes nothing:
that is how retransmissions and late messages are absorbed.
"""

from dataclasses import dataclass, field
from enum import Enum, auto


@dataclass(frozen=True, slots=True)
class Timers:
    """Seconds. RFC 3261 table 4."""

    t1: float = 0.5
    t2: float = 4.0
    t4: float = 5.0

    @property
    def lifetime(self) -> float:
        """64·T1: how long a transaction waits for its other side."""
        return 64 * self.t1


class State(Enum):
    """States of all kinds of transactions."""

    TRYING = auto()
    PROCEEDING = auto()
    COMPLETED = auto()
    CONFIRMED = auto()
    ACCEPTED = auto()
    TERMINATED = auto()


class Input(Enum):
    """What can happen to a transaction."""

    REQUEST = auto()  # the request came again
    ACK = auto()
    PROVISIONAL = auto()  # a 1xx: from us as a server, from the peer as a client
    SUCCESS = auto()
    FAILURE = auto()
    RETRANSMIT = auto()  # timer A, E or G
    EXPIRE = auto()  # timer B, F or H: the other side is silent
    LINGER = auto()  # timer D, I, J, K or L: nothing can come any more


class Action(Enum):
    """What a transaction has done for it."""

    SEND = auto()  # the message that caused the input
    RESEND = auto()  # the last message again
    REPEAT = auto()  # start to retransmit, until told to stop
    EXPECT = auto()  # start to wait for the other side
    QUIET = auto()  # stop both
    WAIT_SHORT = auto()  # linger for what is still under way: T4
    WAIT_LONG = auto()  # linger for 64·T1
    PASS = auto()  # tell the user of the transaction
    FAIL = auto()  # tell it that no answer came


Table = dict[State, dict[Input, tuple[State, tuple[Action, ...]]]]

# RFC 3261 figure 7, with the Accepted state of RFC 6026 §7.1. The 2xx itself is retransmitted
# by the dialog. A repeated INVITE gets it at once, since that peer has not seen it.
INVITE_SERVER: Table = {
    State.PROCEEDING: {
        Input.REQUEST: (State.PROCEEDING, (Action.RESEND,)),
        Input.PROVISIONAL: (State.PROCEEDING, (Action.SEND,)),
        Input.SUCCESS: (State.ACCEPTED, (Action.SEND, Action.WAIT_LONG)),
        Input.FAILURE: (State.COMPLETED, (Action.SEND, Action.REPEAT, Action.EXPECT)),
    },
    State.COMPLETED: {
        Input.REQUEST: (State.COMPLETED, (Action.RESEND,)),
        Input.RETRANSMIT: (State.COMPLETED, (Action.RESEND,)),
        Input.ACK: (State.CONFIRMED, (Action.QUIET, Action.WAIT_SHORT)),
        Input.EXPIRE: (State.TERMINATED, ()),
    },
    State.CONFIRMED: {Input.LINGER: (State.TERMINATED, ())},
    State.ACCEPTED: {
        Input.REQUEST: (State.ACCEPTED, (Action.RESEND,)),
        Input.ACK: (State.ACCEPTED, (Action.PASS,)),
        Input.LINGER: (State.TERMINATED, ()),
    },
    State.TERMINATED: {},
}

# RFC 3261 figure 8.
SERVER: Table = {
    State.TRYING: {
        Input.PROVISIONAL: (State.PROCEEDING, (Action.SEND,)),
        Input.SUCCESS: (State.COMPLETED, (Action.SEND, Action.WAIT_LONG)),
        Input.FAILURE: (State.COMPLETED, (Action.SEND, Action.WAIT_LONG)),
    },
    State.PROCEEDING: {
        Input.REQUEST: (State.PROCEEDING, (Action.RESEND,)),
        Input.PROVISIONAL: (State.PROCEEDING, (Action.SEND,)),
        Input.SUCCESS: (State.COMPLETED, (Action.SEND, Action.WAIT_LONG)),
        Input.FAILURE: (State.COMPLETED, (Action.SEND, Action.WAIT_LONG)),
    },
    State.COMPLETED: {
        Input.REQUEST: (State.COMPLETED, (Action.RESEND,)),
        Input.LINGER: (State.TERMINATED, ()),
    },
    State.TERMINATED: {},
}

# RFC 3261 figure 5; a 2xx is passed on each time, since each needs its ACK (RFC 6026 §7.2).
INVITE_CLIENT: Table = {
    State.TRYING: {
        Input.RETRANSMIT: (State.TRYING, (Action.RESEND,)),
        Input.EXPIRE: (State.TERMINATED, (Action.FAIL,)),
        Input.PROVISIONAL: (State.PROCEEDING, (Action.QUIET, Action.PASS)),
        Input.SUCCESS: (State.ACCEPTED, (Action.QUIET, Action.PASS, Action.WAIT_LONG)),
        Input.FAILURE: (State.COMPLETED, (Action.QUIET, Action.PASS, Action.WAIT_LONG)),
    },
    State.PROCEEDING: {
        Input.PROVISIONAL: (State.PROCEEDING, (Action.PASS,)),
        Input.SUCCESS: (State.ACCEPTED, (Action.QUIET, Action.PASS, Action.WAIT_LONG)),
        Input.FAILURE: (State.COMPLETED, (Action.QUIET, Action.PASS, Action.WAIT_LONG)),
    },
    State.COMPLETED: {
        Input.FAILURE: (State.COMPLETED, (Action.RESEND,)),  # the ACK again
        Input.LINGER: (State.TERMINATED, ()),
    },
    State.ACCEPTED: {
        Input.SUCCESS: (State.ACCEPTED, (Action.PASS,)),
        Input.LINGER: (State.TERMINATED, ()),
    },
    State.TERMINATED: {},
}

# RFC 3261 figure 6.
CLIENT: Table = {
    State.TRYING: {
        Input.RETRANSMIT: (State.TRYING, (Action.RESEND,)),
        Input.EXPIRE: (State.TERMINATED, (Action.FAIL,)),
        Input.PROVISIONAL: (State.PROCEEDING, (Action.PASS,)),
        Input.SUCCESS: (State.COMPLETED, (Action.QUIET, Action.PASS, Action.WAIT_SHORT)),
        Input.FAILURE: (State.COMPLETED, (Action.QUIET, Action.PASS, Action.WAIT_SHORT)),
    },
    State.PROCEEDING: {
        Input.RETRANSMIT: (State.PROCEEDING, (Action.RESEND,)),
        Input.EXPIRE: (State.TERMINATED, (Action.FAIL,)),
        Input.PROVISIONAL: (State.PROCEEDING, (Action.PASS,)),
        Input.SUCCESS: (State.COMPLETED, (Action.QUIET, Action.PASS, Action.WAIT_SHORT)),
        Input.FAILURE: (State.COMPLETED, (Action.QUIET, Action.PASS, Action.WAIT_SHORT)),
    },
    State.COMPLETED: {Input.LINGER: (State.TERMINATED, ())},
    State.TERMINATED: {},
}


@dataclass(eq=False, slots=True)
class Transaction:
    """One run through a table, with its timers. Time is handed in as seconds of any clock."""

    table: Table
    state: State
    timers: Timers
    reliable: bool  # over TCP or TLS nothing is retransmitted, and lingering is short
    capped: bool = (
        True  # retransmission slows down to T2; an INVITE's (timer A) does not stop there
    )
    message: bytes = b""  # the last one sent
    _interval: float = 0.0
    _deadlines: dict[Input, float] = field(default_factory=dict)

    @classmethod
    def server(cls, *, invite: bool, timers: Timers, reliable: bool) -> "Transaction":
        """A transaction for a request that has just come."""
        table, state = (INVITE_SERVER, State.PROCEEDING) if invite else (SERVER, State.TRYING)
        return cls(table, state, timers, reliable)

    @classmethod
    def client(
        cls, message: bytes, *, invite: bool, timers: Timers, reliable: bool, now: float
    ) -> "Transaction":
        """A transaction for a request that is being sent now."""
        table = INVITE_CLIENT if invite else CLIENT
        transaction = cls(table, State.TRYING, timers, reliable, not invite, message)
        transaction._start(Action.REPEAT, now)
        transaction._start(Action.EXPECT, now)
        return transaction

    @property
    def deadline(self) -> float | None:
        """When `expired` has something to do."""
        return min(self._deadlines.values(), default=None)

    @property
    def terminated(self) -> bool:
        """Whether it can be forgotten."""
        return self.state is State.TERMINATED

    def step(self, what: Input, now: float, message: bytes = b"") -> tuple[Action, ...]:
        """Take an input; returns the actions of which SEND, RESEND, PASS and FAIL are the caller's.

        `message` is what SEND sends and RESEND repeats from then on.
        """
        row = self.table[self.state].get(what)
        if row is None:
            return ()
        self.state, actions = row
        for action in actions:
            self._start(action, now)
        if Action.SEND in actions:
            self.message = message
        if self.terminated:
            self._deadlines.clear()
        return actions

    def expired(self, now: float) -> list[tuple[Action, ...]]:
        """Run the timers that are due."""
        done: list[tuple[Action, ...]] = []
        for what in [one for one, at in self._deadlines.items() if at <= now]:
            if what not in self._deadlines:  # an earlier one has ended the transaction
                continue
            del self._deadlines[what]
            if what is Input.RETRANSMIT:
                limit = self.timers.t2 if self.capped else self.timers.lifetime
                slow = self.state is State.PROCEEDING  # timer E, once a 1xx has come
                self._interval = self.timers.t2 if slow else min(2 * self._interval, limit)
                self._deadlines[what] = now + self._interval
            done.append(self.step(what, now))
        return done

    def _start(self, action: Action, now: float) -> None:
        match action:
            case Action.REPEAT:
                if not self.reliable:
                    self._interval = self.timers.t1
                    self._deadlines[Input.RETRANSMIT] = now + self._interval
            case Action.EXPECT:
                self._deadlines[Input.EXPIRE] = now + self.timers.lifetime
            case Action.QUIET:
                self._deadlines.pop(Input.RETRANSMIT, None)
                self._deadlines.pop(Input.EXPIRE, None)
            case Action.WAIT_SHORT:
                self._deadlines[Input.LINGER] = now + (0.0 if self.reliable else self.timers.t4)
            case Action.WAIT_LONG:
                # An accepted INVITE is remembered on any transport: its ACK may take a while.
                kept = self.state is State.ACCEPTED or not self.reliable
                self._deadlines[Input.LINGER] = now + (self.timers.lifetime if kept else 0.0)
            case _:
                pass
