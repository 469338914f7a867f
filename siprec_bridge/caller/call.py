"""One call, readable top to bottom: dial, talk, hang up, tell what the server did."""

import asyncio
import contextlib
import secrets
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from siprec_bridge.caller.audio import RATE, CallError, Leg
from siprec_bridge.caller.handshake import Handshaker
from siprec_bridge.caller.messages import (
    PAYLOAD_TYPES,
    Identity,
    ack_of_refusal,
    answer_to,
    in_dialog,
    invite,
)
from siprec_bridge.caller.target import Target
from siprec_bridge.caller.wire import Wire, connect
from siprec_bridge.rtp import SrtpSender, available_suites, build_packet, encode_g711
from siprec_bridge.sdp import SUITES, Crypto, MalformedSdp, Media, read_crypto
from siprec_bridge.sdp import parse as parse_sdp
from siprec_bridge.sip import (
    MalformedMessage,
    Request,
    Response,
    Timers,
    answer_challenge,
    parse,
    serialize,
)
from siprec_bridge.sip.transaction import Action, Input, Transaction

_PACKET = RATE // 50  # samples in 20 ms
_RING_TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True)
class CallPlan:
    """Whom to call, who talks, and how. `codec` is pcmu or pcma; `rate` 2.0 talks twice as fast.

    `srtp` is the suite to encrypt the media with; None: plain RTP. With `dtls` the suite and its
    keys are agreed on with the server, on the way of the media.
    """

    target: Target
    legs: Sequence[Leg]
    codec: str = "pcmu"
    rate: float = 1.0
    tls: ssl.SSLContext | None = None  # None: over TLS, take any certificate
    credentials: tuple[str, str] | None = None  # user and password, for a server that asks
    srtp: str | None = None
    dtls: bool = False


@dataclass(frozen=True, slots=True)
class CallReport:
    """What the server answered. `problems` are its breaches of what an SRS must do."""

    call_id: str
    status: int
    reason: str
    setup_seconds: float
    server: str
    media: tuple[Media, ...] = ()
    packets: tuple[int, ...] = ()
    talk_seconds: float = 0.0
    hung_up_by: str = "us"
    bye_status: int | None = None
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the call was recorded as far as a caller can tell."""
        return 200 <= self.status < 300 and not self.problems


@dataclass(slots=True)
class _Dialog:
    """The caller's state while the call lasts."""

    me: Identity
    wire: Wire
    responses: asyncio.Queue[Response] = field(default_factory=lambda: asyncio.Queue(100))
    remote_bye: asyncio.Event = field(default_factory=asyncio.Event)
    ack: bytes = b""  # repeated for a 2xx that comes again


async def place_call(
    plan: CallPlan, *, on_status: Callable[[str], None] | None = None
) -> CallReport:
    """Place the call and stay in it until everything is said.

    Raises CallError when nobody answers or the network does not let us. A refusal is a report.
    """
    say = on_status or (lambda _: None)
    if plan.codec not in PAYLOAD_TYPES:
        raise CallError(f"codec {plan.codec}: pcmu or pcma")
    if plan.srtp is not None and plan.srtp not in available_suites():
        raise CallError(f"SRTP suite {plan.srtp}: " + ", ".join(available_suites()))
    if plan.srtp is not None and plan.dtls:
        raise CallError("SRTP keys in SDP or by DTLS, not both")
    if not 1 <= len(plan.legs) <= 16:
        raise CallError("one to sixteen participants")
    wire = await connect(plan.target, plan.tls)
    try:
        with _rtp_sockets(wire.local_host, len(plan.legs)) as sockets:
            return await _call(plan, wire, sockets, say)
    finally:
        wire.close()


async def _call(
    plan: CallPlan, wire: Wire, sockets: Sequence[socket.socket], say: Callable[[str], None]
) -> CallReport:
    target = plan.target
    me = Identity(
        call_id=uuid.uuid4().hex,
        tag=secrets.token_hex(6),
        address=wire.local_host,
        port=wire.local_port,
        transport=target.transport,
        target=target.uri,
    )
    dialog = _Dialog(me, wire)
    listening = asyncio.create_task(_listen(dialog), name="caller's SIP")
    try:
        begun = time.monotonic()
        ports = [one.getsockname()[1] for one in sockets]
        size = SUITES[plan.srtp] if plan.srtp is not None else 0
        keys = [secrets.token_bytes(size) for _ in ports] if size else []
        handshaker = Handshaker() if plan.dtls else None
        answer, number = await _dial(plan, dialog, ports, keys, handshaker, say)
        setup = time.monotonic() - begun
        server = answer.headers.get("Server") or answer.headers.get("User-Agent") or "unnamed"
        report = CallReport(me.call_id, answer.status, answer.reason, setup, server)
        if answer.status >= 300:
            return report
        dialog.ack = serialize(in_dialog(me, secrets.token_hex(8), "ACK", number, answer))
        wire.send(dialog.ack)
        media, problems = _check_answer(answer, len(plan.legs), plan.srtp)
        senders: list[SrtpSender | None] = [None] * len(sockets)
        if plan.srtp is not None:
            senders = [
                SrtpSender(plan.srtp, key) if one.port and _agrees(one, plan.srtp) else None
                for key, one in zip(keys, media, strict=False)
            ]
        if handshaker is not None:
            senders, more = await handshaker.agree(
                sockets, parse_sdp(answer.body), plan.target.host
            )
            problems += more
        say(f"answered {answer.status} after {setup * 1000:.0f} ms, talking")
        talked = time.monotonic()
        packets, unsent = await _talk(plan, sockets, media, senders, dialog.remote_bye)
        problems += unsent
        by_peer = dialog.remote_bye.is_set()
        bye_status: int | None = None
        if not by_peer:
            bye = in_dialog(me, secrets.token_hex(8), "BYE", number + 1, answer)
            bye_status = (await _transact(dialog, bye, say)).status
            if bye_status != 200:
                problems += (f"BYE was answered {bye_status}",)
        return CallReport(
            me.call_id,
            answer.status,
            answer.reason,
            setup,
            server,
            media,
            tuple(packets),
            time.monotonic() - talked,
            "them" if by_peer else "us",
            bye_status,
            problems,
        )
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def _dial(
    plan: CallPlan,
    dialog: _Dialog,
    ports: Sequence[int],
    keys: Sequence[bytes],
    handshaker: Handshaker | None,
    say: Callable[[str], None],
) -> tuple[Response, int]:
    """Send the INVITE, and once more with credentials when the server asks for them.

    Returns the answer and the number of the INVITE that it is to.
    """
    me = dialog.me

    async def attempt(number: int, authorization: str | None) -> Response:
        branch = secrets.token_hex(8)
        request = invite(
            me, branch, number, plan.legs, ports, plan.codec, authorization,
            suite=plan.srtp, keys=keys,
            fingerprint=handshaker.fingerprint if handshaker is not None else None,
        )  # fmt: skip
        answer = await _transact(dialog, request, say)
        if answer.status >= 300:
            dialog.wire.send(serialize(ack_of_refusal(me, branch, number, answer)))
        return answer

    answer = await attempt(1, None)
    authorization = _authorization(plan, me, answer)
    if authorization is None:
        return answer, 1
    return await attempt(2, authorization), 2


def _authorization(plan: CallPlan, me: Identity, answer: Response) -> str | None:
    """Our answer to a 401's challenge; None: it is no 401, or we have no credentials."""
    if answer.status != 401 or plan.credentials is None:
        return None
    user, password = plan.credentials
    answers = (
        answer_challenge(
            challenge, method="INVITE", uri=me.target, user=user, password=password,
            cnonce=secrets.token_hex(8),
        )
        for challenge in answer.headers.get_all("WWW-Authenticate")
    )  # fmt: skip
    return next((one for one in answers if one is not None), None)


async def _transact(dialog: _Dialog, request: Request, say: Callable[[str], None]) -> Response:
    """Send a request until its final answer comes. Raises CallError when none does."""
    loop = asyncio.get_running_loop()
    data = serialize(request)
    transaction = Transaction.client(
        data,
        invite=request.method == "INVITE",
        timers=Timers(),
        reliable=dialog.wire.reliable,
        now=loop.time(),
    )
    dialog.wire.send(data)
    give_up = loop.time() + _RING_TIMEOUT_S
    while loop.time() < give_up:
        wait = max(0.0, min(transaction.deadline or give_up, give_up) - loop.time())
        try:
            async with asyncio.timeout(wait):
                response = await dialog.responses.get()
        except TimeoutError:
            for actions in transaction.expired(loop.time()):
                if Action.RESEND in actions:
                    dialog.wire.send(data)
                if Action.FAIL in actions:
                    raise CallError(f"no answer to {request.method}") from None
            continue
        if response.cseq != request.cseq:
            continue
        if response.status < 200:
            transaction.step(Input.PROVISIONAL, loop.time())
            say(f"{response.status} {response.reason}")
            continue
        return response
    raise CallError(f"no final answer to {request.method}")


async def _listen(dialog: _Dialog) -> None:
    """Take what the server sends: answers to the queue, its requests answered at once."""
    while True:
        data = await dialog.wire.receive()
        try:
            message = parse(data)
        except MalformedMessage:
            continue
        if message.call_id != dialog.me.call_id:
            continue
        if isinstance(message, Response):
            if dialog.ack and message.cseq.method == "INVITE" and 200 <= message.status < 300:
                dialog.wire.send(dialog.ack)
            elif not dialog.responses.full():
                dialog.responses.put_nowait(message)
            continue
        if message.method == "ACK":
            continue
        known = message.method in ("BYE", "OPTIONS", "UPDATE", "INFO")
        status, reason = (200, "OK") if known else (488, "Not Acceptable Here")
        dialog.wire.send(serialize(answer_to(message, status, reason, dialog.me.tag)))
        if message.method == "BYE":
            dialog.remote_bye.set()


def _check_answer(
    answer: Response, count: int, suite: str | None
) -> tuple[tuple[Media, ...], tuple[str, ...]]:
    """The answered m-lines, and what is wrong with them."""
    try:
        media = parse_sdp(answer.body).media
    except MalformedSdp as error:
        raise CallError(f"the answer's SDP cannot be read: {error}") from error
    problems: list[str] = []
    if len(media) != count:
        problems.append(f"{count} m-lines were offered, {len(media)} answered")
    for number, one in enumerate(media[:count], 1):
        if one.port == 0:
            problems.append(f"stream {number} was refused")
        elif one.label != str(number):
            problems.append(f"stream {number}: its label came back as {one.label}")
        elif one.direction not in ("recvonly", "inactive"):
            problems.append(f"stream {number}: the answer is {one.direction}, not recvonly")
        if one.port and suite is not None and not _agrees(one, suite):
            problems.append(f"stream {number}: no key for {suite} in the answer (RFC 4568 §5.1.2)")
    contacts = " ".join(answer.headers.get_all("Contact"))
    if "+sip.srs" not in contacts:
        problems.append("its Contact has no +sip.srs (RFC 7866 §6.1.2)")
    return media, tuple(problems)


def _agrees(answered: Media, suite: str) -> bool:
    """Whether the answer takes our crypto line: one line, of its tag and suite."""
    lines = [read_crypto(line) for line in answered.crypto_lines]
    return [(one.tag, one.suite) for one in lines if isinstance(one, Crypto)] == [("1", suite)]


async def _talk(
    plan: CallPlan,
    sockets: Sequence[socket.socket],
    media: Sequence[Media],
    senders: Sequence[SrtpSender | None],
    stop: asyncio.Event,
) -> tuple[list[int], tuple[str, ...]]:
    """Send every leg's packets at the pace of speech; returns how many went out on each.

    And which ones did not, where there is no way to the place that the answer names.
    """
    payload_type, name = PAYLOAD_TYPES[plan.codec], plan.codec.upper()
    voices = [encode_g711(name, leg.pcm) for leg in plan.legs]
    secure = plan.srtp is not None or plan.dtls
    refused = [Media("audio", 0, "RTP/AVP", ())] * len(voices)
    goals = [
        (one.connection or plan.target.host, one.port)
        if one.port and (sender is not None or not secure)
        else None
        for one, sender in zip(
            [*media, *refused][: len(voices)], [*senders, *[None] * len(voices)], strict=False
        )
    ]
    starts = [(secrets.randbits(16), secrets.randbits(32), secrets.randbits(32)) for _ in voices]
    sent = [0] * len(voices)
    unsent: dict[int, str] = {}
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for tick in range(max((len(voice) + _PACKET - 1) // _PACKET for voice in voices)):
        pause = begun + tick * 0.02 / plan.rate - loop.time()
        if pause > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await stop.wait()
        if stop.is_set():
            break
        for index, (voice, goal) in enumerate(zip(voices, goals, strict=True)):
            payload = voice[tick * _PACKET : (tick + 1) * _PACKET]
            if not payload or goal is None:
                continue
            sequence, timestamp, ssrc = starts[index]
            packet = build_packet(
                payload_type,
                sequence + tick,
                timestamp + tick * _PACKET,
                ssrc,
                payload,
                marker=tick == 0,
            )
            if secure and (sender := senders[index]) is not None:
                packet = sender.protect(packet)
            try:
                sockets[index].sendto(packet, goal)
                sent[index] += 1
            except (BlockingIOError, ConnectionRefusedError):
                pass
            except (OSError, TypeError) as error:  # TypeError: what cannot even be a name
                cause = getattr(error, "strerror", None) or str(error)
                unsent[index] = f"stream {index + 1}: nothing can be sent to {goal[0]}: {cause}"
    return sent, tuple(unsent.values())


@contextlib.contextmanager
def _rtp_sockets(host: str, count: int) -> Iterator[list[socket.socket]]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(count):
            one = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            one.bind((host, 0))
            one.setblocking(False)
            sockets.append(one)
        yield sockets


def report_lines(report: CallReport) -> list[str]:
    """The report for a terminal."""
    lines = [
        f"{report.status} {report.reason} from {report.server} "
        f"after {report.setup_seconds * 1000:.0f} ms (Call-ID {report.call_id})"
    ]
    for number, one in enumerate(report.media, 1):
        address = f"{one.connection}:{one.port}" if one.port else "refused"
        codecs = ", ".join(codec.name for codec in one.codecs)
        sent = report.packets[number - 1] if number <= len(report.packets) else 0
        lines.append(
            f"stream {number}: {address} {one.protocol} {codecs} {one.direction}, label {one.label}, "
            f"{sent} packets sent"
        )
    if report.media:
        end = "the server hung up" if report.hung_up_by == "them" else f"BYE {report.bye_status}"
        lines.append(f"{report.talk_seconds:.1f} s of talk, then {end}")
    return [*lines, *(f"problem: {one}" for one in report.problems)]
