"""Webhooks at real servers: what is sent and signed, and what becomes of each answer."""

import asyncio
import base64
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from aiohttp import web
from pydantic import SecretStr
from structlog.testing import capture_logs

from harness.bridge import eventually
from harness.certificates import Authority
from harness.deliveries import drained
from harness.webhooks import OTHER_SECRET, SECRET, Endpoint, Posted, receiving
from siprec_bridge.delivery import (
    Hook,
    Relay,
    Unreachable,
    WebhookSink,
    envelope,
    load_hooks,
    webhook,
)
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.store import Database, Event, outbox
from siprec_bridge.telemetry import Metrics

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


def event(session: str, number: int) -> Event:
    return envelope.session_updated(envelope.SessionFacts(session, "c", NOW), number)


def hook(url: str, name: str = "crm", **more: object) -> Hook:
    return Hook.model_validate({"name": name, "url": url, "secrets": SECRET} | more)


@dataclass
class Delivery:
    """Relays at work between an outbox and webhooks."""

    database: Database
    hooks: Sequence[Hook]
    metrics: Metrics

    async def publish(self, *events: Event) -> None:
        recipients = [one.recipient for one in self.hooks]
        await self.database.write(lambda c: outbox.append(c, events, recipients))

    async def backlog(self, which: int = 0) -> outbox.SinkBacklog:
        return await self.database.read(lambda c: outbox.backlog(c, self.hooks[which].sink))

    async def parked(self, which: int = 0) -> list[outbox.ParkedEvent]:
        return await self.database.read(lambda c: outbox.parked(c, self.hooks[which].sink, 100))

    def count(self, result: str, which: int = 0) -> float:
        return self._value("siprec_deliveries_total", which, result=result)

    def answers(self, answer: str, which: int = 0) -> float:
        return self._value("siprec_webhook_answers_total", which, answer=answer)

    def _value(self, name: str, which: int, **labels: str) -> float:
        labels["sink"] = self.hooks[which].sink
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def delivering(folder: Path, *hooks: Hook) -> AsyncIterator[Delivery]:
    database = Database(f"sqlite:///{folder / 'events.db'}")
    await database.start()
    metrics = Metrics()
    sinks = [WebhookSink(one, metrics) for one in hooks]
    relays = [
        Relay(
            database, sink, metrics,
            sessions_at_once=sink.hook.concurrency, patience=sink.hook.retry_for,
        )
        for sink in sinks
    ]  # fmt: skip
    for relay in relays:
        database.on_commit(relay.wake)
    running = [asyncio.create_task(relay.run()) for relay in relays]
    try:
        yield Delivery(database, hooks, metrics)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for sink in sinks:
            await sink.close()
        await database.stop()


def by_openssl(secret: str, posted: Posted) -> str:
    """The signature as a program that knows nothing of ours makes it."""
    key = base64.b64decode(secret.removeprefix("whsec_")).hex()
    signed = f"{posted.id}.{posted.headers['webhook-timestamp']}.".encode() + posted.body
    command = ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{key}", "-binary"]
    done = subprocess.run(command, input=signed, capture_output=True, check=True)
    return "v1," + base64.b64encode(done.stdout).decode()


def test_a_signature_is_that_of_the_published_example() -> None:
    (key,) = hook("https://h/").keys()

    made = webhook.signature(
        [key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )

    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_an_event_is_posted_as_listeners_get_it_and_signed_with_every_key(
    tmp_path: Path,
) -> None:
    async with (
        Endpoint().serving() as endpoint,
        delivering(tmp_path, hook(endpoint.url, secrets=[SECRET, OTHER_SECRET])) as delivery,
    ):
        await delivery.publish(event("s1", 0))
        await eventually(lambda: delivery.count("delivered") == 1, "the delivery")
        stored = await delivery.database.read(lambda c: outbox.since(c, 0, 9))

    (posted,) = endpoint.posted
    assert posted.body.decode() == envelope.structured(stored[0])
    assert posted.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert posted.id == stored[0].id == json.loads(posted.body)["id"]
    assert abs(int(posted.headers["webhook-timestamp"]) - datetime.now(UTC).timestamp()) < 60
    assert posted.headers["webhook-signature"].split() == [
        by_openssl(secret, posted) for secret in (SECRET, OTHER_SECRET)
    ]
    assert delivery.answers("2xx") == 1


async def test_a_receiver_that_is_killed_under_load_misses_nothing_and_knows_what_came_again(
    tmp_path: Path,
) -> None:
    sent = [event(f"s{n % 40}", n) for n in range(1200)]
    async with receiving(tmp_path / "receiver") as receiver:
        only = hook(receiver.url, secrets=(), secret_file=str(receiver.secret_file), concurrency=16)
        async with delivering(tmp_path, only) as delivery:
            for start in range(0, 1200, 300):
                await delivery.publish(*sent[start : start + 300])
                if start in (300, 600):
                    goal = start
                    await eventually(lambda goal=goal: delivery.count("delivered") > goal, "some")  # type: ignore[misc]
                    await receiver.kill()
                    await eventually(lambda: delivery.count("retried") > 0, "a failure")
                    await receiver.start()
            await eventually(lambda: delivery.count("delivered") == 1200, "all of them")
            backlog = await delivery.backlog()
        received = receiver.received()

    distinct = {id for id, _, _, _ in received}
    assert len(received) == len(distinct) == 1200
    assert distinct == {one.id for one in sent}  # missing: 0
    assert (backlog.parked, delivery.count("parked")) == (0, 0)
    for session in {session for _, session, _, _ in received}:
        own = [sequence for _, one, sequence, _ in received if one == session]
        assert own == sorted(own)


async def test_the_example_receiver_refuses_what_is_not_signed_with_its_key(
    tmp_path: Path,
) -> None:
    async with receiving(tmp_path / "receiver", OTHER_SECRET) as receiver:
        async with delivering(tmp_path, hook(receiver.url)) as delivery:
            await delivery.publish(event("s1", 0))
            await eventually(lambda: delivery.answers("4xx") >= 1, "a refusal")
        received = receiver.received()

    assert received == []
    assert delivery.count("parked") == 0  # somebody gives one side the other's key, then it goes


async def test_nothing_is_sent_before_the_time_that_a_429_names(tmp_path: Path) -> None:
    async def answer(posted: Posted) -> web.Response:
        if len(endpoint.posted) > 1:
            return web.Response(status=204)
        return web.Response(status=429, headers={"Retry-After": "2"})

    endpoint = Endpoint(answer)
    async with endpoint.serving(), delivering(tmp_path, hook(endpoint.url)) as delivery:
        await delivery.publish(event("s1", 0))
        await eventually(lambda: len(endpoint.posted) == 1, "the first try")
        await delivery.publish(event("s2", 1))

        await eventually(lambda: delivery.count("delivered") == 2, "both")

    first, *later = [one.at for one in endpoint.posted]
    assert min(later) - first >= 2.0


async def test_a_retry_after_may_be_a_date(tmp_path: Path) -> None:
    at = datetime.now(UTC) + timedelta(seconds=40)

    async def answer(_: Posted) -> web.Response:
        when = format_datetime(at, usegmt=True)
        return web.Response(status=503, headers={"Retry-After": when})

    async with Endpoint(answer).serving() as endpoint:
        sink = WebhookSink(hook(endpoint.url), Metrics())
        await sink.connect()
        with pytest.raises(Unreachable) as outage:
            await sink.publish(event("s1", 0))
        await sink.close()

    assert 30 < outage.value.retry_after_s <= 40


async def test_an_event_that_was_taken_is_delivered_whatever_stands_beside_the_answer(
    tmp_path: Path,
) -> None:
    when = "Thu, 01 Jan 2026 00:00:00 +9999999999999"  # a zone beyond what a date can have

    async def answer(_: Posted) -> web.Response:
        return web.Response(status=204, headers={"Retry-After": when})

    endpoint = Endpoint(answer)
    async with endpoint.serving(), delivering(tmp_path, hook(endpoint.url)) as delivery:
        await delivery.publish(event("s1", 0))
        await eventually(lambda: delivery.count("delivered") == 1, "its delivery")

    assert len(endpoint.posted) == 1


async def test_an_endpoint_that_hangs_holds_up_no_other_and_gets_its_events_later(
    tmp_path: Path,
) -> None:
    hang = asyncio.Event()

    async def hangs(_: Posted) -> web.Response:
        await hang.wait()
        return web.Response(status=204)

    slow, quick = Endpoint(hangs), Endpoint()
    async with (
        slow.serving(),
        quick.serving(),
        delivering(
            tmp_path, hook(slow.url, "slow", timeout="500ms"), hook(quick.url, "quick")
        ) as delivery,
    ):
        await delivery.publish(*(event(f"s{n}", n) for n in range(100)))

        await eventually(lambda: delivery.count("delivered", 1) == 100, "all at the quick one")
        await eventually(lambda: delivery.answers("timeout") >= 8, "timeouts at the slow one")
        assert delivery.count("delivered") == 0
        assert len(slow.posted) < 60  # a few rounds of eight, however long that took
        hang.set()
        await eventually(lambda: delivery.count("delivered") == 100, "all at the slow one")


async def test_an_event_that_is_not_taken_is_parked_while_others_go_on_and_can_be_sent_again(
    tmp_path: Path,
) -> None:
    poison = {event("s1", 1).id: 422, event("s2", 4).id: 410}

    async def answer(posted: Posted) -> web.Response:
        return web.Response(status=poison.get(posted.id, 200))

    endpoint = Endpoint(answer)
    async with endpoint.serving(), delivering(tmp_path, hook(endpoint.url)) as delivery:
        await delivery.publish(*(event("s1", n) for n in range(3)))
        await delivery.publish(*(event("s2", n) for n in range(3, 6)))
        await eventually(lambda: delivery.count("parked") == 2, "the parking")
        await eventually(lambda: delivery.count("delivered") == 4, "the others")
        parked = {one.event.id: one.reason for one in await delivery.parked()}
        poison.clear()

        sink = delivery.hooks[0].sink
        again = await delivery.database.write(lambda c: outbox.resend(c, sink, reason="gone"))
        await eventually(lambda: delivery.count("delivered") == 5, "the one that was sent again")
        left = await delivery.parked()

    assert parked == {
        event("s1", 1).id: "answered 422 Unprocessable Entity",
        event("s2", 4).id: "answered 410 Gone",
    }
    assert again == 1
    assert [one.event.id for one in left] == [event("s1", 1).id]


async def test_one_that_hangs_holds_back_its_own_session_only(tmp_path: Path) -> None:
    stuck = event("s1", 0).id

    async def answer(posted: Posted) -> web.Response:
        if posted.id == stuck:
            await asyncio.sleep(30)
        return web.Response(status=204)

    endpoint = Endpoint(answer)
    async with endpoint.serving(), delivering(tmp_path, hook(endpoint.url)) as delivery:
        await delivery.publish(event("s1", 0), event("s1", 1))
        await eventually(lambda: len(endpoint.posted) == 1, "the one that hangs")

        for number in range(2, 12):
            await delivery.publish(event(f"s{number}", number))
        await eventually(lambda: delivery.count("delivered") == 10, "all others")

    assert event("s1", 1).id not in endpoint.took


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (500, "answered 500 Internal Server Error"),
        (404, "answered 404 Not Found"),
        (302, "answered 302 Found: redirects are not followed, correct the url"),
        (429, "answered 429 Too Many Requests"),
        (599, "answered 599"),
    ],
)
async def test_an_event_that_has_failed_for_too_long_is_parked_with_the_last_reason(
    tmp_path: Path, status: int, reason: str
) -> None:
    elsewhere = Endpoint()

    async def answer(_: Posted) -> web.Response:
        return web.Response(status=status, headers={"Location": elsewhere.url})

    endpoint = Endpoint(answer)
    async with (
        elsewhere.serving(),
        endpoint.serving(),
        delivering(tmp_path, hook(endpoint.url, retry_for="200ms")) as delivery,
    ):
        await delivery.publish(event("s1", 0), event("s2", 1))
        await eventually(lambda: delivery.count("parked") == 2, "the parking")
        parked = await delivery.parked()

    assert {one.reason for one in parked} == {reason}
    assert min(one.attempts for one in parked) >= 2
    assert elsewhere.posted == []


async def test_an_endpoint_that_is_away_for_too_long_has_its_events_parked(tmp_path: Path) -> None:
    async with Endpoint().serving() as endpoint:
        pass  # gone before anybody comes
    async with delivering(tmp_path, hook(endpoint.url, retry_for="200ms")) as delivery:
        await delivery.publish(event("s1", 0))
        await eventually(lambda: delivery.count("parked") == 1, "the parking")
        (parked,) = await delivery.parked()

    assert "Connect call failed" in parked.reason
    assert parked.failing_since is not None
    assert delivery.answers("unreachable") >= 2


async def test_each_webhook_gets_the_types_that_it_wants(tmp_path: Path) -> None:
    ended = envelope.session_ended(
        envelope.SessionFacts("s1", "c", NOW), started_at=NOW, cause="bye"
    )
    some, every = Endpoint(), Endpoint()
    async with (
        some.serving(),
        every.serving(),
        delivering(
            tmp_path, hook(some.url, "some", types="session.ended*"), hook(every.url, "every")
        ) as delivery,
    ):
        await delivery.publish(event("s1", 0), ended, event("s1", 1))
        await eventually(lambda: len(every.took) == 3, "all events")
        await eventually(lambda: len(some.took) == 1, "the wanted one")
        await drained(delivery)  # the unwanted ones do not wait

    assert some.took == [ended.id]


async def test_both_sides_of_tls_show_their_certificates(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ours.ca)
    server.load_cert_chain(*theirs.sign("crm"))
    server.verify_mode = ssl.CERT_REQUIRED
    certificate, key = ours.sign("bridge")
    mutual = {"client_certificate": str(certificate), "client_key": str(key)}
    refused: list[str] = []
    async with Endpoint().serving(server) as endpoint:
        for more in ({}, {"ca": str(ours.ca)} | mutual, {"ca": str(theirs.ca)}):
            sink = WebhookSink(hook(endpoint.url, **more), Metrics())
            await sink.connect()
            try:
                await sink.publish(event("s1", 0))
            except Exception as error:  # noqa: BLE001  which one is told below
                refused.append(f"{type(error).__name__}: {error}")
            await sink.close()
        before = list(endpoint.took)
        async with delivering(
            tmp_path, hook(endpoint.url, ca=str(theirs.ca), **mutual)
        ) as delivery:
            await delivery.publish(event("s1", 1))
            await eventually(lambda: delivery.count("delivered") == 1, "the delivery")

    assert before == []
    assert len(refused) == 3
    assert all("certificate is not good" in one for one in refused[:2])
    assert endpoint.took == [event("s1", 1).id]


async def test_a_secret_that_is_added_to_its_file_signs_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "_LOOK_S", 0.0)
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    with capture_logs() as log:
        async with (
            Endpoint().serving() as endpoint,
            delivering(tmp_path, hook(endpoint.url, secrets=(), secret_file=str(file))) as delivery,
        ):

            async def publish() -> int:
                done = round(delivery.count("delivered"))
                await delivery.publish(event("s1", done))
                await eventually(lambda: delivery.count("delivered") > done, "the delivery")
                return len(endpoint.posted[-1].headers["webhook-signature"].split())

            alone = await publish()
            file.write_text(f"{SECRET}\n{OTHER_SECRET}\n")
            async with asyncio.timeout(30):
                while await publish() == 1:  # it was on its way already
                    pass
            file.write_text("whsec_broken\n")
            async with asyncio.timeout(30):
                while "webhook.not_reloaded" not in [line["event"] for line in log]:
                    await publish()
            after = await publish()

    assert (alone, after) == (1, 2)  # what is broken now goes on as it was


GOOD = f'[crm]\nurl = "https://h/p"\nsecrets = "{SECRET}"\n'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[crm]\nurl = 'https://h/p'\n", "crm: a secret is needed"),
        ("[crm]\nsecrets = 'x'\n", "crm: url: Field required"),
        (GOOD.replace("https", "ftp"), "crm: url: must be https"),
        (GOOD.replace("whsec_", "hush_"), "crm: secrets: whsec_ and the base64"),
        (GOOD.replace(SECRET, "whsec_c2hvcnQ="), "crm: secrets: whsec_ and the base64"),
        (GOOD + "types = ['transcript.fnial']\n", "crm: types: transcript.fnial: there are"),
        (GOOD + "timeout = 'soon'\n", "crm: timeout: a duration"),
        (GOOD + "concurency = 3\n", "crm: concurency: there is no such field"),
        (GOOD + "secret_file = '/nowhere'\n", "crm: secret_file /nowhere"),
        (GOOD + "ca = '/nowhere'\n", "crm: ca /nowhere: No such file"),
        (GOOD + "client_key = '/nowhere'\n", "crm: client_key needs client_certificate"),
        (GOOD.replace("https", "http") + "ca = '/x'\n", "crm: ca and client_certificate need"),
        (GOOD.replace("[crm]", "[C R]"), "cannot be read"),
        (GOOD.replace("[crm]", "[CRM]"), "CRM: name"),
        ("url = 'https://h/p'\n", "url is no table"),
    ],
)
def test_a_mistake_in_the_file_is_named_and_no_secret_is_shown(
    tmp_path: Path, text: str, named: str
) -> None:
    file = tmp_path / "webhooks.toml"
    file.write_text(text)

    with pytest.raises(ConfigurationError) as error:
        load_hooks(file)

    assert named in str(error.value)
    assert str(error.value).startswith(f"WEBHOOKS={file}: ")
    for secret in (SECRET, SECRET[8:], "c2hvcnQ"):
        assert secret not in str(error.value)


def test_the_example_file_says_what_the_code_takes(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "config" / "webhooks" / "webhooks.toml").read_text()
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.sign("bridge")
    (tmp_path / "secret").write_text(SECRET)
    for name, path in {
        "crm.secret": tmp_path / "secret", "ca.pem": authority.ca,
        "bridge.pem": certificate, "bridge.key": key,
    }.items():  # fmt: skip
        text = text.replace(f"/etc/siprec-bridge/{name}", str(path))
    file = tmp_path / "webhooks.toml"
    file.write_text(text)

    crm, wallboard = load_hooks(file)

    assert (crm.types, wallboard.types) == (
        ("transcript.final", "transcript.failed"),
        ("session.",),
    )
    assert (crm.retry_for, wallboard.retry_for) == (timedelta(days=3), timedelta(days=7))
    assert crm.url == SecretStr("https://crm.example.com/hooks/siprec")
    assert SECRET not in repr(crm)
    assert "hooks/siprec" not in WebhookSink(crm, Metrics()).address
