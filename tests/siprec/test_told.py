"""What the media side is told, in whatever order an SRC speaks, adds up to what the session says."""

from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from siprec_bridge import sdp
from siprec_bridge.sdp import MediaPolicy
from siprec_bridge.sip import Refused
from siprec_bridge.siprec import Body, Changes, PauseOrder, RecordingSession

HEAD = "v=0\r\no=- 1 1 IN IP4 192.0.2.9\r\ns=-\r\nc=IN IP4 192.0.2.9\r\nt=0 0\r\n"
LABELS = st.sampled_from(["1", "2", "a"])
LINES = st.builds(
    "m={} {} RTP/AVP {}\r\na=label:{}\r\na={}\r\n".format,
    st.sampled_from(["audio", "audio", "audio", "video"]),
    st.sampled_from(["5000", "5000", "0"]),
    st.sampled_from(["0", "0 8", "15"]),
    LABELS,
    st.sampled_from(["sendonly", "inactive"]),
)
SDP = st.lists(LINES, min_size=1, max_size=3).map(lambda lines: (HEAD + "".join(lines)).encode())
METADATA = st.builds(
    (
        '<recording xmlns="urn:ietf:params:xml:ns:recording:1"><datamode>{}</datamode>'
        '<participant participant_id="p"/><stream stream_id="t"><label>{}</label></stream>'
        '<participantstreamassoc participant_id="p"><send>t</send></participantstreamassoc>'
        "</recording>"
    ).format,
    st.sampled_from(["complete", "partial"]),
    LABELS,
).map(str.encode)
BODIES = st.builds(Body, st.none() | SDP, st.none() | METADATA)
ORDERS = st.one_of(
    st.just(PauseOrder()),
    st.builds(PauseOrder, label=LABELS),
    st.just(PauseOrder(participant_id="p")),
)


class WhatMediaIsTold(RuleBasedStateMachine):
    """`recorded`: the streams that media has open; True: it is to write what comes."""

    def __init__(self) -> None:
        super().__init__()
        self.session = RecordingSession("s", MediaPolicy(), sdp_session_id=1)
        self.recorded: dict[int, bool] = {}
        self.now = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
        self.takes_back = False  # the last change has not been answered yet

    def at(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now

    def tell(self, changes: Changes) -> None:
        for one in changes.opened:
            assert one.index not in self.recorded
            self.recorded[one.index] = True
        assert {one.index for one in changes.changed} <= set(self.recorded)
        for index in changes.paused:
            assert self.recorded[index]
            self.recorded[index] = False
        for index in changes.resumed:
            assert not self.recorded[index]
            self.recorded[index] = True
        for index in changes.closed:
            del self.recorded[index]

    def answer(self, changes: Changes, body: Body) -> None:
        if not changes.needs_answer:
            return
        ports = {index: 20000 + 2 * index for index in self.recorded}
        ours = sdp.parse(self.session.answer(ports, "192.0.2.1")).media
        assert {index for index, line in enumerate(ours) if line.port} == set(self.recorded)
        if body.sdp is not None:
            theirs = sdp.parse(body.sdp).media
            assert len(theirs) == len(ours)
            for offered, line in zip(theirs, ours, strict=True):
                assert set(line.formats) <= set(offered.formats)

    @initialize(body=BODIES)
    def is_called(self, body: Body) -> None:
        try:
            changes = self.session.offer(body, self.at())
        except Refused:
            body = Body()
            changes = self.session.offer(body, self.at())
        self.tell(changes)
        self.answer(changes, body)

    @rule(body=BODIES, invite=st.booleans())
    def changes(self, body: Body, invite: bool) -> None:
        try:
            changes = self.session.offer(body, self.at(), invite=invite)
        except Refused:
            return
        self.tell(changes)
        self.answer(changes, body)
        self.takes_back = invite

    @precondition(lambda self: self.takes_back)
    @rule()
    def cancels(self) -> None:
        self.tell(self.session.cancelled(self.at()))
        self.takes_back = False

    @rule(body=BODIES)
    def acknowledges(self, body: Body) -> None:
        self.takes_back = False
        try:
            changes = self.session.acknowledged(body, self.at())
        except Refused:  # which ends the call: it begins anew
            self.__init__()  # type: ignore[misc]
            return
        self.tell(changes)

    @rule(body=BODIES)
    def answers_our_refresh(self, body: Body) -> None:
        self.takes_back = False
        try:
            changes = self.session.refreshed(body, self.at())
        except Refused:
            changes = self.session.offer(Body(metadata=body.metadata), self.at(), invite=False)
        self.tell(changes)

    @rule(order=ORDERS, pause=st.booleans())
    def somebody_orders(self, order: PauseOrder, pause: bool) -> None:
        try:
            if pause:
                self.tell(self.session.pause(order, self.at()))
            else:
                self.tell(self.session.resume(*order.target, self.at()))
        except LookupError:
            return

    @invariant()
    def both_say_the_same(self) -> None:
        paused = {index for index, recorded in self.recorded.items() if not recorded}
        assert set(self.session.streams_open()) == set(self.recorded)
        assert set(self.session.streams_paused()) == paused
        for one in self.session.document().streams:
            open_presences = [p.participant_id for p in one.presences if p.until is None]
            assert len(set(open_presences)) == len(open_presences)
            assert (one.state == "paused") == any(pause.until is None for pause in one.pauses)
            assert (one.state == "active") == any(span.until is None for span in one.active)


TestWhatMediaIsTold = WhatMediaIsTold.TestCase
TestWhatMediaIsTold.settings = settings(max_examples=25, stateful_step_count=20)
