"""Feeds a capture through the code of live calls: its SIP to the machine and the recorders, its RTP
into spools, with the capture's time in place of the clock.
"""

import asyncio
import itertools
import secrets
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Unpack

from siprec_bridge import __version__
from siprec_bridge.media import (
    FinishedAudio,
    Finisher,
    OfflineMedia,
    Stretches,
    decodable,
    finish_session,
)
from siprec_bridge.receiver.packets import CUT, Address, Datagram
from siprec_bridge.recording import Archive, Desk, Orders, RecordingService
from siprec_bridge.replay.call import Line, ReplayedCall
from siprec_bridge.replay.dialogs import (
    CapturedDialog,
    DialogKey,
    Dialogs,
    find_dialogs,
    number_of,
    read_message,
    tags_of,
)
from siprec_bridge.replay.report import (
    CallResult,
    Refusal,
    Report,
)
from siprec_bridge.replay.results import clean, moment, outcome, recorded, unclaimed, why_nothing
from siprec_bridge.replay.rewrite import agreement, with_to_tag, without_timer
from siprec_bridge.replay.traffic import Traffic, WireMessage
from siprec_bridge.rtp import available_suites
from siprec_bridge.sdp import (
    EVENTS,
    NOISE,
    Crypto,
    MalformedSdp,
    Media,
    MediaPolicy,
    read_crypto,
)
from siprec_bridge.sdp import parse as parse_sdp
from siprec_bridge.sip import (
    AliasAsked,
    AnswerContent,
    Content,
    DialogEnded,
    DialogId,
    InviteReceived,
    Malformed,
    Output,
    Peer,
    Refused,
    Request,
    RequestId,
    RequestSeen,
    Response,
    ResponseSent,
    Send,
    SipServer,
    serialize,
)
from siprec_bridge.siprec import parse_body
from siprec_bridge.store import Database, SessionRow, recordings
from siprec_bridge.telemetry import Metrics

_SAMPLE_RATE = 16_000  # Hz: what a recogniser gets
_PATIENCE_S = 1800.0  # real time that the recording code has for one message
_LONGEST_SILENCE_S = 86_400.0  # a longer gap is a broken clock: its timers run at once
_LONGEST_GAP_NS = 4 * 3600 * 1_000_000_000
_NO_VOICE = (EVENTS, NOISE)
_OTHER_RTP = "RTP of other streams"


class ReplayFailed(Exception):
    """Nothing was wrong with the capture; the files could not be written."""


class _InlineFinisher(Finisher):
    """Finishes in a thread: there is no call whose signalling it could hold up."""

    def __init__(self) -> None:
        super().__init__()
        self.trouble: str | None = None
        self.audio: dict[str, FinishedAudio] = {}

    async def finish(
        self,
        folder: Path,
        session_id: str,
        sample_rate: int,
        expected: Mapping[int, Stretches] | None = None,
    ) -> FinishedAudio:
        """As `finish_session`; a disk that takes no more ends the replay, not this call."""
        audio = FinishedAudio(())
        try:
            audio = await asyncio.to_thread(
                finish_session, folder, session_id, sample_rate, expected=expected
            )
        except OSError as error:
            self.trouble = error.strerror or str(error)
        self.audio[session_id] = audio
        return audio


async def replay(file: Path, out: Path, srs: Sequence[str] = ()) -> Report:
    """Replay a capture into the folder `out`, where nothing of another replay may be.

    `srs` names servers (HOST or HOST:PORT) whose calls are all recording sessions, whatever they
    look like. Raises UnreadableCapture and ReplayFailed.
    """
    traffic = Traffic(file)
    dialogs = find_dialogs(traffic, tuple(srs))
    try:
        await asyncio.to_thread(out.mkdir, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".replay-", dir=out) as room:
            database = Database(f"sqlite:///{Path(room) / 'replay.db'}")
            await database.start()
            try:
                report = await _Replay(traffic, dialogs, out, database).run()
            finally:
                await database.stop()
        report.write(out / "report.json")
    except OSError as error:
        raise ReplayFailed(f"{out}: {error.strerror or error}") from error
    return report


class _Replay:
    """Also the SIP side of the recorders: what they answer goes into the ladder."""

    def __init__(self, traffic: Traffic, dialogs: Dialogs, out: Path, database: Database) -> None:
        self._traffic = traffic
        self._dialogs = dialogs
        self._out = out
        self._database = database
        self._now_ns = 0
        self._now = 0.0
        self._latest_ns = 0
        self._calls: list[ReplayedCall] = []
        self._by_key: dict[DialogKey, list[ReplayedCall]] = {}
        self._by_dialog: dict[DialogId, ReplayedCall] = {}
        self._lines: dict[Address, Line] = {}
        self._rtcp: set[Address] = set()
        self._ignored: Counter[str] = Counter()
        self._current: ReplayedCall | None = None
        self._last_response: Response | None = None
        self._numbers = itertools.count(1)
        self._media = OfflineMedia(lambda: self._now_ns)
        self._finisher = _InlineFinisher()
        self._policy = MediaPolicy(decodable(), suites=available_suites())
        metrics = Metrics()
        self._server = SipServer(
            token=lambda: secrets.token_hex(8),
            contact=_contact,
            user_agent=f"siprec-bridge/{__version__}",
        )
        archive = Archive(
            database,
            self._finisher,
            Orders("none", ("none",)),
            metrics,
            sample_rate=_SAMPLE_RATE,
            sinks=[],
            clock=self._clock,
            transcribe=lambda: None,
        )
        self._service = RecordingService(
            Desk(
                signalling=self,
                media=self._media,
                database=database,
                archive=archive,
                metrics=metrics,
                policy=self._policy,
                recordings=out,
                sinks=[],
                clock=self._clock,
                address_for=lambda peer: peer.local_host,
                receive_at=lambda peer: peer.local_host,
            ),
            new_id=self._name,
        )

    async def run(self) -> Report:
        """The second pass."""
        for one in self._traffic:
            match one:
                case WireMessage():
                    await self._take(one)
                case Datagram():
                    self._take_datagram(one)
        await self._turn_clock(self._latest_ns)
        for dialog, call in list(self._by_dialog.items()):
            if call.session_id is not None and call.ended is None:
                call.warnings.append("the capture ends before the call does")
                self._perform(self._server.request(dialog, "BYE", now=self._now))
                call.ended = "the end of the capture"
        await self._settle()
        await self._service.stop(1.0)
        return await self._report()

    # As the recorders see it

    def respond(self, id: RequestId, status: int, **content: Unpack[AnswerContent]) -> None:
        """Answer a request."""
        self._perform(self._server.respond(id, status, now=self._now, **content))

    def request(self, dialog: DialogId, method: str, **content: Unpack[Content]) -> None:
        """Send a request in a dialog."""
        self._perform(self._server.request(dialog, method, now=self._now, **content))

    def _clock(self) -> datetime:
        return moment(self._now_ns)

    def _name(self) -> str:
        assert self._current is not None
        self._current.session_id = self._current.name
        return self._current.name

    # SIP

    async def _take(self, wire: WireMessage) -> None:
        message = read_message(wire.data)
        captured = self._dialogs.find(message) if message is not None else None
        if message is None or captured is None:
            if message is not None:
                self._ignored["SIP messages of other dialogs"] += 1
            return
        self._latest_ns = max(self._latest_ns, wire.at_ns)
        if isinstance(message, Response):
            self._take_captured_answer(captured, message, wire)
        elif tags_of(message)[0] != captured.key[1]:
            await self._take_request_of_srs(captured, message, wire)
        elif not captured.reaches_srs(message, wire.destination):
            self._ignored["SIP messages on their way to or from a proxy"] += 1
        elif captured.was_only_challenged(number_of(message)) and message.method in (
            "INVITE", "ACK",
        ):  # fmt: skip
            self._ignored["INVITEs that were only asked for a password, and their ACKs"] += 1
        else:
            await self._feed(captured, message, wire)

    async def _feed(self, captured: CapturedDialog, request: Request, wire: WireMessage) -> None:
        """Give the machine a request that went to the captured SRS."""
        await self._turn_clock(wire.at_ns)
        data = wire.data
        if request.method == "INVITE" and not tags_of(request)[1]:
            call = self._open(captured, request, wire)
        else:
            found = self._call_of(captured, request)
            if found is None:
                self._ignored["SIP messages of calls whose INVITE is not there"] += 1
                return
            call = found
            if call.dialog is not None:
                data = with_to_tag(data, call.dialog.local_tag)
        if captured.got_no_timer(request):
            untimed = without_timer(data)
            if untimed != data:
                call.warnings.append(
                    "the captured server took no session timer, so none runs here either"
                )
            data = untimed
        call.note_offer(request)
        call.write_ladder(wire.at_ns, f"{wire.source} -->", wire.data)
        peer = Peer(wire.transport, *wire.source, wire.flow, *wire.destination)
        self._current = call
        self._perform(self._server.receive(data, peer, self._now))
        await self._settle()

    def _open(self, captured: CapturedDialog, request: Request, wire: WireMessage) -> ReplayedCall:
        """The call of an initial INVITE; one that comes again has its call."""
        calls = self._by_key.setdefault(captured.key, [])
        number = number_of(request)
        for one in calls:
            if one.number == number:
                return one
        name = f"call-{next(self._numbers)}"
        call = ReplayedCall(
            name=name,
            captured=captured,
            number=number,
            at_ns=wire.at_ns,
            source=wire.source,
            srs=wire.destination,
            transport=wire.transport,
            ladder=self._out / f"{name}.ladder.txt",
        )
        calls.append(call)
        self._calls.append(call)
        return call

    def _call_of(
        self, captured: CapturedDialog, message: Request | Response
    ) -> ReplayedCall | None:
        """Which of our calls a message in a captured dialog belongs to."""
        calls = self._by_key.get(captured.key, [])
        from_tag, to_tag = tags_of(message)
        number = captured.tags.get(to_tag if from_tag == captured.key[1] else from_tag)
        if not to_tag:  # a CANCEL, or an answer to one
            number = number_of(message)
        exact = (one for one in calls if one.number == number)
        return next(exact, calls[-1] if calls else None)

    def _take_captured_answer(
        self, captured: CapturedDialog, response: Response, wire: WireMessage
    ) -> None:
        if not captured.is_answer(wire.source):
            return
        call = self._call_of(captured, response)
        if call is None:
            return
        call.write_ladder(wire.at_ns, f"{wire.destination} <--", wire.data, "the captured server")
        method, number = response.cseq.method, response.cseq.number
        if method == "INVITE" and number == call.number and response.status >= 200:
            call.captured_status = call.captured_status or response.status
        if method in ("INVITE", "UPDATE") and response.status < 300 and response.body:
            self._follow_answer(call, response, wire)

    def _follow_answer(self, call: ReplayedCall, response: Response, wire: WireMessage) -> None:
        """Learn where the captured SRS has its RTP sent."""
        try:
            content = response.headers.get("Content-Encoding")
            body = parse_body(response.content_type, content, response.body).sdp
            answer = parse_sdp(body) if body is not None else None
        except (Refused, MalformedSdp):
            call.warnings.append("the captured server's SDP cannot be read")
            return
        for index, media in enumerate(answer.media if answer is not None else ()):
            if media.port == 0:
                continue
            line = call.lines.setdefault(index, Line(call, index, {}))
            self._follow_keys(call, index, media)
            line.codecs |= {codec.payload_type: codec for codec in media.codecs}
            # Behind a NAT the packets do not go to the address in the SDP.
            for host in {media.connection or "", wire.source.host}:
                self._lines[Address(host, media.port)] = line
                if media.rtcp_port != media.port:
                    self._rtcp.add(Address(host, media.rtcp_port))

    def _follow_keys(self, call: ReplayedCall, index: int, answered: Media) -> None:
        """Decrypt with the offered key that the captured SRS took, which we might not have."""
        offered = call.offer.media[index : index + 1] if call.offer is not None else ()
        lines = [read_crypto(line) for line in answered.crypto_lines]
        if not offered or not offered[0].crypto_lines or call.session_id is None:
            return
        if not lines and "SAVP" in answered.protocol.upper():
            return  # a broken answer tells nothing
        tags = {one.tag for one in lines if isinstance(one, Crypto)}
        keys = (read_crypto(line) for line in offered[0].crypto_lines)
        key = next((one for one in keys if isinstance(one, Crypto) and one.tag in tags), None)
        stream = f"{call.session_id}-{index}"
        if key != call.keys.get(index):
            call.keys[index] = key
            self._media.set_keys(stream, key)

    async def _take_request_of_srs(
        self, captured: CapturedDialog, request: Request, wire: WireMessage
    ) -> None:
        call = self._call_of(captured, request)
        if call is None or not captured.is_answer(wire.source):
            return
        call.write_ladder(wire.at_ns, f"{wire.destination} <--", wire.data, "the captured server")
        if request.method == "BYE" and call.dialog is not None and call.ended is None:
            await self._turn_clock(wire.at_ns)
            call.warnings.append("the captured server hung up, so we do")
            self.request(call.dialog, "BYE")
            await self._settle()

    def _perform(self, outputs: list[Output]) -> None:
        answers: list[tuple[bytes, Peer]] = []
        for output in outputs:
            match output:
                case Send(data, peer):
                    self._send(data, peer, answers)
                case ResponseSent(method, status):
                    self._note_status(method, status)
                case InviteReceived(initial=True):
                    assert self._current is not None
                    self._current.dialog = output.dialog
                    self._by_dialog[output.dialog] = self._current
                    self._service.on_sip(output)
                case DialogEnded(dialog=dialog, cause=cause):
                    if (call := self._by_dialog.get(dialog)) is not None:
                        call.note_end(cause)
                    self._service.on_sip(output)
                case Malformed() | RequestSeen() | AliasAsked():
                    pass
                case _:
                    self._service.on_sip(output)
        for data, peer in answers:
            self._perform(self._server.receive(data, peer, self._now))

    def _send(self, data: bytes, peer: Peer, answers: list[tuple[bytes, Peer]]) -> None:
        message = read_message(data)
        if message is None:
            return
        captured = self._dialogs.find(message)
        call = self._call_for_sent(captured, message) if captured is not None else None
        if isinstance(message, Response):
            self._last_response = message
        else:
            # The SRC of the capture never got it: take it that it would have agreed.
            answers.append((serialize(agreement(message)), peer))
        if call is not None:
            where = f"{Address(peer.host, peer.port)} <--"
            call.write_ladder(self._now_ns, where, data, "the bridge")

    def _call_for_sent(
        self, captured: CapturedDialog, message: Request | Response
    ) -> ReplayedCall | None:
        tags = tags_of(message)
        for call in self._by_key.get(captured.key, []):
            if call.dialog is not None and call.dialog.local_tag in tags:
                return call
        return self._current or self._call_of(captured, message)

    def _note_status(self, method: str, status: int) -> None:
        response = self._last_response
        if response is None:
            return
        captured = self._dialogs.find(response)
        call = self._call_for_sent(captured, response) if captured is not None else None
        if call is None:
            return
        if method == "INVITE" and number_of(response) == call.number and call.status is None:
            call.status = status
        if status >= 400 and status != 487:
            why = [response.reason, *response.headers.get_all("Warning")]
            call.refusals.append(
                Refusal(moment(self._now_ns), method, status, clean("; ".join(why)))
            )

    async def _turn_clock(self, at_ns: int) -> None:
        """Let the machine's timers run up to a time of the capture."""
        if at_ns <= self._now_ns:
            return
        goal = at_ns / 1e9
        while (
            self._now and goal - self._now < _LONGEST_SILENCE_S
            and (due := self._server.next_deadline()) is not None and due <= goal
        ):  # fmt: skip
            self._now = max(self._now, due)
            self._now_ns = max(self._now_ns, round(self._now * 1e9))
            self._perform(self._server.advance(self._now))
            await self._settle()
        self._now, self._now_ns = goal, at_ns
        self._perform(self._server.advance(self._now))
        await self._settle()

    async def _settle(self) -> None:
        """Have the recorders do all that they have to do at this time."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._service.settled()
        except TimeoutError:
            raise ReplayFailed("a recording does not come to its end") from None
        trouble = self._media.trouble or self._finisher.trouble
        if trouble is not None:
            raise ReplayFailed(f"{self._out}: {trouble}")

    # RTP

    def _take_datagram(self, datagram: Datagram) -> None:
        payload = datagram.payload
        if len(payload) < 12 or payload[0] >> 6 != 2:
            self._ignored["UDP datagrams that are neither SIP nor RTP"] += 1
            return
        line = self._lines.get(datagram.destination)
        if 192 <= payload[1] <= 223:
            known = datagram.destination in self._rtcp or line is not None
            self._ignored["RTCP" if known else "RTCP of other streams"] += 1
            return
        if line is None:
            self._ignored[unclaimed(payload[1] & 0x7F)] += 1
            return
        near = min(abs(datagram.at_ns - at) for at in (line.latest_ns, self._now_ns))
        if near > _LONGEST_GAP_NS:  # else it would be hours of silence in the audio
            self._ignored["RTP at a time hours away from the rest of its stream"] += 1
            return
        line.latest_ns = datagram.at_ns
        self._latest_ns = max(self._latest_ns, datagram.at_ns)
        line.types[payload[1] & 0x7F] += 1
        session = line.call.session_id
        if session is None or not self._media.receive(
            f"{session}-{line.index}", payload, datagram.at_ns
        ):
            over = line.call.ended is not None
            self._ignored[
                "RTP after the end of its session" if over else "RTP of streams not recorded"
            ] += 1
        if self._media.trouble is not None:
            raise ReplayFailed(f"{self._out}: {self._media.trouble}")

    # What is told

    async def _report(self) -> Report:
        traffic = self._traffic
        results = [await self._result(call) for call in self._calls]
        ignored = self._ignored + traffic.ignored + self._dialogs.ignored
        warnings: list[str] = []
        if traffic.capture.damage is not None:
            warnings.append(f"the capture is damaged: {traffic.capture.damage}")
        if traffic.ignored[CUT]:
            warnings.append(f"{traffic.ignored[CUT]} {CUT}")
        if not results:
            warnings.append(why_nothing(ignored, len(self._dialogs.by_key)))
        return Report(
            file=str(traffic.path),
            out=str(self._out),
            frames=traffic.capture.frames,
            first_at=moment(traffic.first_ns) if traffic.first_ns is not None else None,
            last_at=moment(traffic.last_ns) if traffic.first_ns is not None else None,
            calls=tuple(results),
            warnings=tuple(warnings),
            ignored={what: count for what, count in ignored.items() if count},
        )

    async def _result(self, call: ReplayedCall) -> CallResult:
        name = call.session_id
        row: SessionRow | None = None
        if name is not None:
            row = await self._database.read(lambda connection: recordings.get(connection, name))
        if row is None:
            return outcome(call, self._policy)
        audio = self._finisher.audio.get(row.id, FinishedAudio(()))
        return recorded(call, row, audio, self._media.reports, self._policy, self._out)


def _contact(peer: Peer) -> str:
    return f"<sip:srs@{peer.local};transport={peer.transport}>;+sip.srs"
