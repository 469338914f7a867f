"""The AMQP sink and its relay at a real RabbitMQ: what arrives, and what the broker can refuse."""

from pathlib import Path
from typing import Any

import pytest

from harness.bridge import eventually
from harness.certificates import Authority
from harness.deliveries import NOW, bound_queue, delivering, drained, event, ids, take
from harness.proxy import proxy_to
from harness.rabbitmq import CERTIFIED, RabbitMq
from siprec_bridge.delivery import AmqpSink, Brokers, BrokerTls, Unreachable, envelope
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.store import Event
from siprec_bridge.telemetry import Metrics

pytestmark = pytest.mark.peer


async def test_a_full_queue_holds_back_its_session_in_order_and_no_other(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    name = "full"
    ours = [event("s1", number) for number in range(3)]
    others = [event(f"t{number}", number) for number in range(100)]
    full: dict[str, str | int] = {"x-max-length": 1, "x-overflow": "reject-publish"}
    async with (
        bound_queue(rabbitmq, name, "#.s1", arguments=full) as queue,
        bound_queue(rabbitmq, name, "#", queue_name="others") as everything,
        delivering(tmp_path, rabbitmq, name) as delivery,
    ):
        await delivery.publish(*ours, *others)
        await take(everything, distinct=102)  # 1 and 2 of s1 too: a nack speaks for all queues
        await eventually(lambda: delivery.count("retried") >= 1, "a nack")
        assert delivery.count("delivered") == 101

        heard = await take(queue, distinct=3)

        await eventually(lambda: delivery.count("delivered") == 103, "all of them")
    assert list(dict.fromkeys(ids(heard))) == [one.id for one in ours]


async def test_an_event_that_is_too_large_is_parked_and_its_neighbours_arrive(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    large = event("s1", 0, filling=1_500_000)
    small = [event(f"s{number % 7}", number) for number in range(1, 40)]
    async with (
        bound_queue(rabbitmq, "large") as queue,
        delivering(tmp_path, rabbitmq, "large") as delivery,
    ):
        await delivery.publish(large, *small)

        heard = await take(queue, distinct=39)

        await eventually(lambda: delivery.count("parked") == 1, "the parking")
        await eventually(lambda: delivery.count("delivered") == 39, "the others' confirms")
        await drained(delivery)
        (parked,) = await delivery.parked()
    assert set(ids(heard)) == {one.id for one in small}
    assert parked.event.id == large.id
    assert "larger than" in parked.reason


async def test_a_broker_that_does_not_let_us_in_is_named_with_its_reason(
    rabbitmq: RabbitMq,
) -> None:
    wrong = {
        rabbitmq.url.replace("guest:guest", "guest:wrong"): "ACCESS_REFUSED",
        f"{rabbitmq.url}nowhere": "virtual host nowhere",
        "amqp://127.0.0.1:1/": "Connect call failed",
    }
    for url, reason in wrong.items():
        sink = AmqpSink(Brokers(url), Metrics())

        with pytest.raises(Unreachable, match=reason):
            await sink.connect()


async def test_the_first_host_that_lets_us_in_is_taken_and_after_a_loss_the_next(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    sent = [event("s", number) for number in range(2)]
    async with (
        bound_queue(rabbitmq, "hosts") as queue,
        proxy_to(rabbitmq.port) as first,
        proxy_to(rabbitmq.port) as second,
    ):
        urls = [f"amqp://guest:guest@127.0.0.1:{port}/" for port in (1, first.port, second.port)]
        async with delivering(tmp_path, Brokers(", ".join(urls)), "hosts") as delivery:
            await delivery.publish(sent[0])
            await take(queue, distinct=1)
            reached = (first.connections, second.connections)
            first.cut()
            await eventually(lambda: second.connections == 1, "the next host")
            await delivery.publish(sent[1])
            await take(queue, distinct=1)

        assert reached == (1, 0)
        assert (first.connections, second.connections) == (1, 1)


async def test_a_certificate_logs_in_over_tls(tmp_path: Path, rabbitmq: RabbitMq) -> None:
    assert rabbitmq.authority is not None
    certificate, key = rabbitmq.authority.sign(CERTIFIED)
    tls = BrokerTls(rabbitmq.authority.ca, certificate, key)
    sent = event("s", 1)
    async with (
        bound_queue(rabbitmq, "external") as queue,
        delivering(
            tmp_path, Brokers(rabbitmq.tls_url, tls=tls, external=True), "external"
        ) as delivery,
    ):
        await delivery.publish(sent)
        (message,) = await take(queue, distinct=1)

    assert message.message_id == sent.id


async def test_a_broker_whose_certificate_nobody_signed_or_that_does_not_know_ours_gets_nothing(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    assert rabbitmq.authority is not None
    stranger = Authority(tmp_path / "other").sign(CERTIFIED)
    unknown = rabbitmq.authority.sign("nobody")
    ca = rabbitmq.authority.ca
    for tls, reason in (
        (BrokerTls(), "CERTIFICATE_VERIFY_FAILED|certificate verify failed"),
        (BrokerTls(ca, *unknown), "ACCESS_REFUSED"),
        (BrokerTls(ca, *stranger), "alert|closed|reset|Read 0 bytes"),
    ):
        sink = AmqpSink(Brokers(rabbitmq.tls_url, tls=tls, external=tls.certificate is not None),
                        Metrics())  # fmt: skip

        with pytest.raises(Unreachable, match=reason):
            await sink.connect()


@pytest.mark.parametrize(
    ("urls", "arguments", "named"),
    [
        ("http://broker/", {}, "AMQP_URL"),
        ("amqp://a/,amqps://b/", {"tls": BrokerTls()}, "AMQP_URL"),
        ("amqps://a/", {"tls": BrokerTls(Path("/nowhere.pem"))}, "AMQP_TLS_CA_PATH"),
        ("amqps://a/", {"external": True}, "AMQP_AUTH"),
        ("amqp://a/?certfile=a.pem", {"external": True}, "AMQP_AUTH"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(
    urls: str, arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Brokers(urls, **arguments)


async def test_a_call_s_tenant_and_direction_are_a_second_key(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    def of(session: str, **call_ids: str) -> Event:
        return envelope.session_updated(
            envelope.SessionFacts(session, 'x"call_ids":', NOW, call_ids=call_ids), 1
        )

    sent = [
        of("s1", tenant="ACME.Corp/1", direction="inbound"),
        of("s2", tenant="other", direction="inbound"),
        of("s3", direction="outbound"),
        of("s4"),
    ]
    name = "tenants"
    async with (
        bound_queue(rabbitmq, name) as everything,
        bound_queue(rabbitmq, name, "call.acme_corp_1.*.session.#", queue_name="acme") as acme,
        bound_queue(rabbitmq, name, "call.*.inbound.#", queue_name="inbound") as inbound,
        bound_queue(rabbitmq, name, "call.-.outbound.#", queue_name="outbound") as outbound,
        delivering(tmp_path, rabbitmq, name) as delivery,
    ):
        await delivery.publish(*sent)
        all_ = await take(everything, distinct=4)
        got = {
            queue.name: ids(await take(queue, distinct))
            for queue, distinct in ((acme, 1), (inbound, 2), (outbound, 1))
        }

    assert [one.routing_key for one in all_] == [f"session.updated.s{n}" for n in (1, 2, 3, 4)]
    first, second, third, _ = (one.id for one in sent)
    assert got["acme"] == [first]
    assert set(got["inbound"]) == {first, second}
    assert got["outbound"] == [third]
