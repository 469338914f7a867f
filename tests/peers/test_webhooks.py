"""A call's events at webhooks, and the outbox in an operator's hands."""

import asyncio
import json
from pathlib import Path

from aiohttp import web

from harness.bridge import command, eventually, listening, running_bridge
from harness.calls import call, finals, tones
from harness.deliveries import outbox_of
from harness.recognisers import recogniser
from harness.webhooks import SECRET, Endpoint, Posted, hooks_file, receiving
from siprec_bridge.doctor import examine_webhooks
from siprec_bridge.settings import load


async def test_webhooks_get_what_listeners_get_and_an_operator_deals_with_what_was_refused(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    refused: set[str] = {"session.started", "session.ended"}

    async def answer(posted: Posted) -> web.Response:
        kind = json.loads(posted.body)["type"]
        return web.Response(status=422 if kind in refused else 202)

    picky = Endpoint(answer)
    async with receiving(tmp_path / "receiver") as receiver, picky.serving():
        file = tmp_path / "webhooks.toml"
        file.write_text(
            f"[all]\nurl = '{receiver.url}'\nsecret_file = '{receiver.secret_file}'\n"
            f"[picky]\nurl = '{picky.url}?key=hunter2'\nsecrets = '{SECRET}'\n"
            "types = ['session.']\n"
        )
        environment = {
            "WEBHOOKS": str(file),
            "WHISPER_BINARY_PATH": str(recogniser(tmp_path, "speaks")),
        }
        async with running_bridge(data, **environment) as bridge, listening(bridge) as events:
            await call(bridge, legs=tones(0.5))
            await finals(bridge, events)
            await bridge.wait_for_log("delivery.parked", count=2)
            await eventually(lambda: len(receiver.received()) == len(events), "all events", bridge)
            async with asyncio.timeout(10):  # its answers are on their way to the outbox
                while (sinks := await outbox_of(bridge))["webhook:all"]["pending"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            _, listed = await bridge.get("/api/deliveries/webhook:picky/parked?limit=1")
            page = json.loads(listed)
            _, second = await bridge.get(
                f"/api/deliveries/webhook:picky/parked?after={page['next']}&reason=unprocess"
            )
            parked = page["parked"] + json.loads(second)["parked"]
            metrics = (await bridge.get("/metrics"))[1]
            shown = await command("deliveries", "parked", "webhook:picky", data=data)

            wrong = [
                await bridge.post(f"/api/deliveries/{path}", body)
                for path, body in (
                    ("webhook:picky/resend", {}),
                    ("webhook:picky/resend", {"id": "x", "all": True}),
                    ("webhook:picky/resend", {"id": "x"}),
                    ("webhook:picky/drop", {"all": True}),
                    ("nobody/resend", {"all": True}),
                )
            ]
            refused.clear()
            again = await bridge.post(
                "/api/deliveries/webhook:picky/resend", {"id": parked[0]["id"]}
            )
            await eventually(lambda: parked[0]["id"] in picky.took, "the event", bridge)
            dropped = await bridge.post(
                "/api/deliveries/webhook:picky/drop",
                {"reason": "422", "why": "typed in by hand", "by": "Ann"},
            )
            line = await bridge.wait_for_log("delivery.dropped")
            left = await outbox_of(bridge)
            logged = bridge.log_file.read_text()

    assert [json.loads(body) for body in receiver.bodies()] == events
    assert {one["type"] for one in parked} == {"session.started", "session.ended"}
    assert {one["reason"] for one in parked} == {"answered 422 Unprocessable Entity"}
    assert (sinks["webhook:all"]["pending"], sinks["webhook:picky"]["parked"]) == (0, 2)
    assert sinks["webhook:picky"]["configured"]
    assert 'siprec_outbox_parked{sink="webhook:picky"} 2.0' in metrics
    assert 'siprec_webhook_answers_total{answer="4xx",sink="webhook:picky"} 2.0' in metrics
    assert 'siprec_webhook_seconds_count{sink="webhook:picky"} 2.0' in metrics
    assert shown[0] == 0
    assert shown[1].count("422 Unprocessable Entity") == 2
    assert [status for status, _ in wrong] == [400, 400, 404, 400, 404]
    assert again == (202, '{"resent": 1}')
    assert dropped == (200, '{"dropped": 1}')
    assert (line["count"], line["by"], line["why"]) == (1, "Ann", "typed in by hand")
    assert left["webhook:picky"]["parked"] == 0
    assert SECRET not in logged
    assert "hunter2" not in logged


async def test_what_waits_for_a_sink_that_is_gone_is_told_at_the_start_and_can_be_dropped(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    async with Endpoint().serving() as endpoint:
        pass  # nobody is there any more
    file = hooks_file(tmp_path, endpoint.url, "old")
    speaks = str(recogniser(tmp_path, "speaks"))
    async with running_bridge(data, WEBHOOKS=file, WHISPER_BINARY_PATH=speaks) as bridge:
        async with listening(bridge) as events:
            await call(bridge, legs=tones(0.3))
            await finals(bridge, events)
        await bridge.wait_for_log("delivery.sink_unreachable")
        ready, told = await bridge.get("/health/ready")
        old = (await outbox_of(bridge))["webhook:old"]
        (finding,) = [one async for one in examine_webhooks(load({"WEBHOOKS": file}))]
    hooks_file(tmp_path, endpoint.url, "new")
    async with running_bridge(data, WEBHOOKS=file) as bridge:
        gone = await bridge.wait_for_log("delivery.sink_gone")
        left = (await outbox_of(bridge))["webhook:old"]
    _, dropped, audit = await command(
        "deliveries", "drop", "webhook:old", "--all", "--pending", "--why", "renamed", data=data
    )

    assert ready == 200  # a consumer that is away is no reason to take no calls
    assert json.loads(told)["degraded"]
    assert "Connect call failed" in json.loads(told)["facts"]["webhook:old"]
    assert "Connect call failed" in old["trouble"]
    assert "Connect call failed" in old["failing"]["reason"]
    assert str(finding).startswith("BAD   webhook     old: ")
    assert gone["sink"] == "webhook:old"
    assert (left["configured"], left["pending"]) == (False, len(events))
    assert dropped == f"{len(events)} dropped\n"
    assert "delivery.dropped" in audit
    assert "renamed" in audit
