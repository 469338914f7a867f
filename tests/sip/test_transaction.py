"""Each kind of transaction against RFC 3261's timers, second by second."""

import pytest

from siprec_bridge.sip.transaction import Action, Input, State, Timers, Transaction

TIMERS = Timers()  # T1 0.5 s, T2 4 s, T4 5 s
SENT = b"sent"


def play(transaction: Transaction, until: float) -> list[tuple[float, Action]]:
    """Let its timers run; what it wanted done, and when."""
    done = []
    while (at := transaction.deadline) is not None and at <= until:
        done += [(at, action) for actions in transaction.expired(at) for action in actions]
    return done


def times(done: list[tuple[float, Action]], wanted: Action) -> list[float]:
    return [at for at, action in done if action is wanted]


def client(*, invite: bool, reliable: bool = False) -> Transaction:
    return Transaction.client(SENT, invite=invite, timers=TIMERS, reliable=reliable, now=0.0)


def server(*, invite: bool, reliable: bool = False) -> Transaction:
    return Transaction.server(invite=invite, timers=TIMERS, reliable=reliable)


def test_an_invite_is_repeated_at_doubling_intervals_until_timer_b() -> None:
    transaction = client(invite=True)
    done = play(transaction, 100)
    assert times(done, Action.RESEND) == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert times(done, Action.FAIL) == [32.0]
    assert transaction.terminated
    assert transaction.deadline is None


def test_another_request_is_repeated_every_t2_at_most_until_timer_f() -> None:
    done = play(client(invite=False), 100)
    assert times(done, Action.RESEND) == [0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]
    assert times(done, Action.FAIL) == [32.0]


def test_after_a_provisional_answer_a_request_is_repeated_every_t2() -> None:
    transaction = client(invite=False)
    assert Action.PASS in transaction.step(Input.PROVISIONAL, 0.1)
    done = play(transaction, 100)
    assert times(done, Action.RESEND) == [0.5, 4.5, 8.5, 12.5, 16.5, 20.5, 24.5, 28.5]
    assert times(done, Action.FAIL) == [32.0]


def test_an_invite_that_is_being_tried_waits_for_its_answer_without_a_limit() -> None:
    transaction = client(invite=True)
    transaction.step(Input.PROVISIONAL, 0.1)
    assert transaction.deadline is None
    assert Action.PASS in transaction.step(Input.SUCCESS, 100.0)


@pytest.mark.parametrize("invite", [True, False])
def test_over_a_stream_nothing_is_repeated_but_the_wait_is_the_same(invite: bool) -> None:
    done = play(client(invite=invite, reliable=True), 100)
    assert done == [(32.0, Action.FAIL)]


@pytest.mark.parametrize("what", [Input.SUCCESS, Input.FAILURE])
def test_an_answered_request_absorbs_repeated_answers_for_t4(what: Input) -> None:
    transaction = client(invite=False)
    assert Action.PASS in transaction.step(what, 1.0)
    assert transaction.step(what, 2.0) == ()
    assert transaction.deadline == 1.0 + TIMERS.t4
    assert play(transaction, 100) == []
    assert transaction.terminated


@pytest.mark.parametrize("what", [Input.SUCCESS, Input.FAILURE])
def test_over_a_stream_an_answered_request_is_done_at_once(what: Input) -> None:
    transaction = client(invite=False, reliable=True)
    transaction.step(what, 1.0)
    assert transaction.deadline == 1.0


def test_a_refused_invite_has_its_ack_sent_again_for_each_repeated_refusal() -> None:
    transaction = client(invite=True)
    assert Action.PASS in transaction.step(Input.FAILURE, 1.0)
    assert transaction.step(Input.FAILURE, 1.5) == (Action.RESEND,)
    assert transaction.deadline == 1.0 + TIMERS.lifetime


def test_each_2xx_of_an_invite_is_passed_on_since_each_needs_its_ack() -> None:
    transaction = client(invite=True, reliable=True)
    assert Action.PASS in transaction.step(Input.SUCCESS, 1.0)
    assert transaction.step(Input.SUCCESS, 2.0) == (Action.PASS,)
    assert transaction.deadline == 1.0 + TIMERS.lifetime  # on any transport: RFC 6026 §7.2


def test_a_refusal_of_an_invite_is_repeated_until_its_ack_and_given_up_at_timer_h() -> None:
    transaction = server(invite=True)
    assert Action.SEND in transaction.step(Input.FAILURE, 0.0, b"486")
    assert transaction.message == b"486"
    done = play(transaction, 100)
    assert times(done, Action.RESEND) == [0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]
    assert transaction.terminated


def test_the_ack_of_a_refusal_stops_it_and_later_ones_are_absorbed_for_t4() -> None:
    transaction = server(invite=True)
    transaction.step(Input.FAILURE, 0.0, b"486")
    transaction.step(Input.ACK, 1.0)
    assert transaction.state is State.CONFIRMED
    assert transaction.step(Input.REQUEST, 2.0) == transaction.step(Input.ACK, 2.0) == ()
    assert transaction.deadline == 1.0 + TIMERS.t4
    assert play(transaction, 100) == []
    assert transaction.terminated


def test_over_a_stream_a_refusal_goes_once_and_is_forgotten_with_its_ack() -> None:
    transaction = server(invite=True, reliable=True)
    transaction.step(Input.FAILURE, 0.0, b"486")
    assert transaction.deadline == TIMERS.lifetime
    transaction.step(Input.ACK, 1.0)
    assert transaction.deadline == 1.0


@pytest.mark.parametrize("reliable", [True, False])
def test_an_accepted_invite_is_remembered_for_its_ack_on_any_transport(reliable: bool) -> None:
    transaction = server(invite=True, reliable=reliable)
    transaction.step(Input.SUCCESS, 1.0, b"200")
    assert transaction.step(Input.REQUEST, 2.0) == (Action.RESEND,)
    assert transaction.step(Input.ACK, 3.0) == (Action.PASS,)
    assert transaction.deadline == 1.0 + TIMERS.lifetime


@pytest.mark.parametrize("what", [Input.SUCCESS, Input.FAILURE])
@pytest.mark.parametrize(("reliable", "kept"), [(False, 32.0), (True, 0.0)])
def test_a_repeated_request_gets_the_same_answer_for_timer_j(
    what: Input, reliable: bool, kept: float
) -> None:
    transaction = server(invite=False, reliable=reliable)
    assert transaction.step(Input.REQUEST, 0.5) == ()  # there is no answer yet
    transaction.step(what, 1.0, b"answer")
    assert transaction.step(Input.REQUEST, 1.0) == (Action.RESEND,)
    assert transaction.message == b"answer"
    assert transaction.deadline == 1.0 + kept
    play(transaction, 100)
    assert transaction.terminated
    assert transaction.step(Input.REQUEST, 101.0) == ()
