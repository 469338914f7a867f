"""Every route of the API asks for its scope, and shows a limited token its own sessions only."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from harness.desk import office
from harness.provider import ScriptedProvider
from harness.tokens import Given, given
from siprec_bridge.access import COOKIE, Gate
from siprec_bridge.api import Api, seeing
from siprec_bridge.media import FinishedAudio, FinishedLeg
from siprec_bridge.recording import (
    Eraser,
    Keep,
    LateRedaction,
    Orders,
    Redactor,
    Retention,
    StoredAudio,
    Stores,
)
from siprec_bridge.recording.orders import AUDIO
from siprec_bridge.redaction import KINDS, Policy
from siprec_bridge.store import (
    Database,
    Event,
    JobRow,
    SessionRow,
    jobs,
    outbox,
    recordings,
    search,
)
from siprec_bridge.telemetry import Health
from siprec_bridge.transcription import Scheduler

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)

# A route that is missing here, or asks for something else, fails the first test.
SCOPES = {
    "GET /": None,
    "GET /health/live": None,
    "GET /health/ready": None,
    "GET /metrics": "metrics",
    "GET /api/login": None,
    "POST /api/login": None,
    "DELETE /api/login": None,
    "POST /api/tickets": "listen",
    "GET /api/sessions": "read",
    "GET /api/sessions/{id}": "read",
    "GET /api/groups/{id}": "read",
    "GET /api/groups/{id}/transcript": "read",
    "DELETE /api/sessions/{id}": "operate",
    "PUT /api/sessions/{id}/hold": "operate",
    "DELETE /api/sessions/{id}/hold": "operate",
    "GET /api/sessions/{id}/transcript": "read",
    "GET /api/sessions/{id}/transcriptions": "read",
    "POST /api/sessions/{id}/transcriptions": "operate",
    "GET /api/sessions/{id}/ladder": "read",
    "GET /api/sessions/{id}/audio/{name}": "read",
    "GET /api/sessions/{id}/vcon": "read",
    "POST /api/sessions/{id}/pause": "operate",
    "POST /api/sessions/{id}/resume": "operate",
    "GET /api/sessions/{id}/export": "read",
    "POST /api/sessions/{id}/redaction": "erase",
    "GET /api/erasures": "erase",
    "POST /api/erasures": "erase",
    "GET /api/search": "read",
    "GET /api/backlog": "read",
    "GET /api/deliveries": "read",
    "GET /api/deliveries/{sink}/parked": "read",
    "POST /api/deliveries/{sink}/resend": "operate",
    "POST /api/deliveries/{sink}/drop": "operate",
    "GET /api/events/{id}/data": "read",
    "GET /api/jobs": "read",
    "POST /api/jobs/{id}/retry": "operate",
}
GUARDED = {route: scope for route, scope in SCOPES.items() if scope is not None}
OF_A_SESSION = sorted(
    (one for one in SCOPES if "{id}" in one), key="DELETE /api/sessions/{id}".__eq__
)
EVERYTHING = given("root", "read,listen,operate,erase,metrics")
TOKENS = {scope: given(scope, scope) for scope in ("read", "listen", "operate", "erase", "metrics")}
SALES = given("sales", "read,listen,operate,erase", "participant=sip:*@sales.example.com")


def session(id: str, number: int, domain: str) -> SessionRow:
    people = [{"id": "p", "name": None, "aor": f"sip:agent@{domain}"}]
    leg = FinishedLeg("stream", 0, "1", "a.wav", NOW, 1.0, 16000, 50)
    return SessionRow(
        id, f"{id}@pbx", "finished", NOW + timedelta(minutes=number), "udp:192.0.2.1:5060", "/none",
        json.dumps({"session_id": id, "participants": people}), ended_at=NOW,
        audio=AUDIO.dump_json(FinishedAudio((leg,))).decode(),
        group_id=id,
    )  # fmt: skip


@dataclass
class Desk:
    database: Database
    api: Api
    url: str
    http: aiohttp.ClientSession

    async def ask(
        self, route: str, headers: Mapping[str, str], id: str = "s1", body: object = None
    ) -> tuple[int, Any]:
        method, path = route.split()
        path = path.replace("{id}", f"{id}.1" if "jobs" in path else id).replace("{name}", "a.wav")
        path = path.replace("{sink}", "amqp")
        sent = None if body is None and method == "GET" else body or {}
        async with self.http.request(method, self.url + path, headers=headers, json=sent) as answer:
            text = await answer.text(errors="replace")
            is_json = answer.content_type == "application/json"
            return answer.status, json.loads(text) if is_json else text


async def _nothing_runs(*_: object) -> Any:
    raise AssertionError("jobs are only listed here")


@asynccontextmanager
async def desk(folder: Path, *tokens: Given) -> AsyncIterator[Desk]:
    async with office(folder, receiving=False) as place:
        gate = Gate([one.token for one in tokens], place.metrics)
        retention = Retention(place.database, place.metrics, Keep(), clock=lambda: NOW)
        scheduler = Scheduler(
            place.database, [ScriptedProvider()], place.metrics,
            load=_nothing_runs, on_done=_nothing_runs, on_failed=_nothing_runs, clock=lambda: NOW,
        )  # fmt: skip
        stored = StoredAudio(place.database, Stores(None, {}), clock=lambda: NOW)
        orders = Orders("scripted", ("scripted",))
        redactor = Redactor(Policy(frozenset(KINDS)), orders, place.metrics)
        api = Api(
            place.database, place.metrics, Health(), place.service, retention, gate,
            orders, scheduler,
            Eraser(
                place.database, place.metrics, retention, stored, sinks=[], clock=lambda: NOW
            ),
            LateRedaction(
                place.database, place.metrics, redactor, stored, sinks=[], clock=lambda: NOW
            ),
            Stores(None, {}),
        )  # fmt: skip

        def insert(connection: Any) -> None:
            for number, (id, domain) in enumerate(
                [("s1", "sales.example.com"), ("s2", "example.com"), ("s3", "sales.example.com")]
            ):
                row = replace(session(id, number, domain), folder=str(folder))
                recordings.insert(connection, row)
                people = '{"participants": [{"name": "Caller"}]}'
                search.index(connection, id, row.started_at, people)
                created = NOW + timedelta(minutes=number)
                outbox.append(connection, [Event(id, id, "session.ended", created, "{}")], [])
                jobs.insert(connection, JobRow(f"{id}.1", id, "whisper", 1.0, created, "failed"))

        await place.database.write(insert)
        async with TestServer(api.application()) as server, aiohttp.ClientSession() as http:
            yield Desk(place.database, api, str(server.make_url("")).rstrip("/"), http)


async def test_without_tokens_a_strangers_name_gets_at_nothing_but_health_and_metrics(
    tmp_path: Path,
) -> None:
    strange = {"Host": "evil.example.net"}
    async with desk(tmp_path) as place:
        answers = {
            route: await place.ask(route, strange) for route in SCOPES if "audio" not in route
        }

    let_in = {route for route, (status, _) in answers.items() if status != 403}
    assert let_in == {route for route in answers if SCOPES[route] in (None, "metrics")}


async def test_each_route_asks_for_the_scope_that_this_table_says(tmp_path: Path) -> None:
    async with desk(tmp_path, EVERYTHING) as place:
        there = {f"{method} {path}": scope for method, path, _, scope in place.api.routes()}
        served = {
            f"{route.method} {route.resource.canonical}"
            for route in place.api.application().router.routes()
            if route.resource is not None and route.method != "HEAD"
        }

    assert there == SCOPES
    assert served == set(SCOPES)


async def test_without_a_token_only_open_routes_answer(tmp_path: Path) -> None:
    async with desk(tmp_path, EVERYTHING) as place:
        guarded = {route: (await place.ask(route, {}))[0] for route in GUARDED}
        wrong = await place.ask("GET /api/sessions", {"Authorization": "Bearer wrong"})
        live = await place.ask("GET /health/live", {})
        ready = await place.ask("GET /health/ready", {})
        facts = await place.ask("GET /health/ready", EVERYTHING.headers)
        page = await place.ask("GET /", {})
        who = await place.ask("GET /api/login", {})

    assert guarded == dict.fromkeys(GUARDED, 401)
    assert wrong == (401, {"error": "the token is wrong"})
    assert (live[0], page[0], who[0]) == (200, 200, 401)
    assert ready == (200, {"ready": True, "degraded": False})
    assert facts == (200, {"ready": True, "degraded": False, "facts": {}})


@pytest.mark.parametrize("scope", TOKENS)
async def test_a_token_opens_the_routes_of_its_scope_and_no_other(
    tmp_path: Path, scope: str
) -> None:
    async with desk(tmp_path, *TOKENS.values()) as place:
        answers = {
            route: (await place.ask(route, TOKENS[scope].headers, id="none"))[0]
            for route in GUARDED
        }

    assert {route for route, status in answers.items() if status == 403} == {
        route for route, wanted in GUARDED.items() if wanted != scope
    }
    opened = {status for route, status in answers.items() if GUARDED[route] == scope}
    assert opened <= {200, 201, 400, 404}


async def test_a_limited_token_sees_its_own_sessions_on_every_route_and_no_other(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path, SALES, EVERYTHING) as place:
        others = {route: await place.ask(route, SALES.headers, id="s2") for route in OF_A_SESSION}
        nothing = {route: await place.ask(route, SALES.headers, id="no") for route in OF_A_SESSION}
        own = {route: (await place.ask(route, SALES.headers, id="s1"))[0] for route in OF_A_SESSION}

    assert others == nothing  # nor does it learn that there is one
    assert {status for status, _ in others.values()} == {404}
    assert own == {
        "GET /api/sessions/{id}": 200,
        "GET /api/groups/{id}": 200,  # of its own name
        "GET /api/groups/{id}/transcript": 404,
        "PUT /api/sessions/{id}/hold": 200,
        "DELETE /api/sessions/{id}/hold": 200,
        "GET /api/sessions/{id}/transcript": 404,  # there is none
        "GET /api/sessions/{id}/transcriptions": 200,
        "POST /api/sessions/{id}/transcriptions": 202,
        "GET /api/sessions/{id}/ladder": 200,
        "POST /api/sessions/{id}/redaction": 200,
        "GET /api/sessions/{id}/export": 200,
        "GET /api/sessions/{id}/audio/{name}": 404,  # nor that
        "GET /api/sessions/{id}/vcon": 200,
        "POST /api/sessions/{id}/pause": 409,  # it is over
        "POST /api/sessions/{id}/resume": 409,
        "POST /api/jobs/{id}/retry": 202,
        "GET /api/events/{id}/data": 200,
        "DELETE /api/sessions/{id}": 409,  # it waits for its transcription, again
    }


async def test_a_limited_token_turns_the_pages_of_its_own_sessions(tmp_path: Path) -> None:
    async with desk(tmp_path, SALES) as place:
        _, first = await place.ask("GET /api/sessions?limit=1", SALES.headers)
        _, second = await place.ask(
            f"GET /api/sessions?limit=1&before={first['next']}", SALES.headers
        )
        _, third = await place.ask(
            f"GET /api/sessions?limit=1&before={second['next']}", SALES.headers
        )
        _, work = await place.ask("GET /api/jobs", SALES.headers)
        of_all = {
            (await place.ask(path, SALES.headers))[0]
            for path in ("GET /api/backlog", "GET /api/deliveries", "GET /api/deliveries/x/parked")
        }

    assert of_all == {403}  # they tell of all sessions
    assert [one["id"] for one in first["sessions"]] == ["s3"]
    assert [one["id"] for one in second["sessions"]] == ["s1"]
    assert (third["sessions"], third["next"]) == ([], None)
    assert [one["session_id"] for one in work["jobs"]] == ["s3", "s1"]


async def test_a_limited_token_finds_its_own_sessions_only(tmp_path: Path) -> None:
    async with desk(tmp_path, SALES, EVERYTHING) as place:
        _, own = await place.ask("GET /api/search?participant=caller", SALES.headers)
        _, every = await place.ask("GET /api/search?participant=caller", EVERYTHING.headers)

    assert [one["id"] for one in own["sessions"]] == ["s3", "s1"]
    assert [one["id"] for one in every["sessions"]] == ["s3", "s2", "s1"]


async def test_a_page_without_a_session_of_ones_own_says_where_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeing, "LARGEST_PAGE", 1)
    monkeypatch.setattr(seeing, "_MOST_LOOKED_AT", 1)
    pages, told = [], []
    async with desk(tmp_path, SALES) as place:
        path = "GET /api/sessions?limit=1"
        while True:
            _, page = await place.ask(path, SALES.headers)
            pages.append([one["id"] for one in page["sessions"]])
            if page["next"] is None:
                break
            told.append(page["next"].partition("~")[2])
            path = f"GET /api/sessions?limit=1&before={page['next']}"

    assert pages == [["s3"], [], ["s1"], []]
    assert told == ["s3", "0", "s1"]  # s2 is another's


async def test_of_sessions_that_began_at_once_none_is_left_out_between_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeing, "LARGEST_PAGE", 2)
    monkeypatch.setattr(seeing, "_MOST_LOOKED_AT", 2)
    pages = []
    async with desk(tmp_path, SALES) as place:
        for id, domain in (("s4", "sales.example.com"), ("s5", "example.com"), ("s6", "x.org")):
            add = partial(recordings.insert, row=session(id, 9, domain))
            await place.database.write(add)
        path = "GET /api/sessions"
        while True:
            _, page = await place.ask(path, SALES.headers)
            pages.append([one["id"] for one in page["sessions"]])
            if page["next"] is None:
                break
            path = f"GET /api/sessions?before={page['next']}"

    assert pages == [["s4"], ["s3"], ["s1"]]


@pytest.mark.parametrize(
    "path",
    [
        "/api/sessions?before=0001-01-01T00:00:00%2B14:00~x",
        "/api/jobs?before=9999-12-31T23:59:59-14:00~x",
        "/api/search?q=hello&from=0001-01-01T00:00:00%2B14:00",
        "/api/search?q=hello&to=9999-12-31T23:59:59-14:00",
    ],
)
async def test_a_time_that_is_none_in_utc_is_refused(tmp_path: Path, path: str) -> None:
    async with desk(tmp_path, EVERYTHING) as place:
        status, answer = await place.ask(f"GET {path}", EVERYTHING.headers)

    assert status == 400
    assert "must be" in answer["error"]


async def test_a_login_gives_a_cookie_that_scripts_cannot_read(tmp_path: Path) -> None:
    async with desk(tmp_path, SALES) as place:
        async with place.http.post(
            place.url + "/api/login", json={"token": SALES.secret}
        ) as answer:
            cookie = answer.headers["Set-Cookie"]
            body = await answer.json()
        carried = {"Cookie": cookie.partition(";")[0]}
        origin = {"Origin": place.url}
        read = await place.ask("GET /api/sessions/{id}", carried)
        foreign = await place.ask("PUT /api/sessions/{id}/hold", carried | {"Origin": "http://x"})
        nowhere = await place.ask("PUT /api/sessions/{id}/hold", carried)
        held = await place.ask("PUT /api/sessions/{id}/hold", carried | origin)
        _, who = await place.ask("GET /api/login", carried)
        out = await place.ask("DELETE /api/login", carried | origin)
        after = await place.ask("GET /api/sessions/{id}", carried)

    attributes = {part.strip().partition("=")[0] for part in cookie.split(";")}
    assert attributes == {COOKIE, "HttpOnly", "Max-Age", "Path", "SameSite"}
    assert "SameSite=Strict" in cookie
    assert SALES.secret not in cookie
    assert body == {"client": "sales", "scopes": ["erase", "listen", "operate", "read"]}
    assert who == body | {"restricted": True, "open": False}
    assert [read[0], held[0], out[0], after[0]] == [200, 200, 204, 401]
    assert foreign == (403, {"error": "this origin is not allowed: see HTTP_ORIGINS"})
    assert nowhere == (403, {"error": "an Origin header is needed with the cookie"})


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"token": "wrong"}, 401),
        ({"token": "x" * 2000}, 400),
        ({}, 400),
        ({"token": "t", "more": 1}, 400),
        ("token", 400),
    ],
)
async def test_a_wrong_login_is_refused_without_repeating_it(
    tmp_path: Path, body: object, status: int
) -> None:
    async with desk(tmp_path, SALES) as place:
        found, said = await place.ask("POST /api/login", {}, body=body)

    assert found == status
    assert set(said) == {"error"}
    assert "xxx" not in said["error"]


async def test_behind_a_proxy_that_speaks_tls_the_cookie_is_for_tls_alone(tmp_path: Path) -> None:
    async with desk(tmp_path, SALES) as place:
        origin = {"Origin": place.url.replace("http:", "https:")}
        async with place.http.post(
            place.url + "/api/login", json={"token": SALES.secret}, headers=origin
        ) as answer:
            cookie = answer.headers["Set-Cookie"]

    assert "; Secure" in cookie


async def test_wrong_logins_and_wrong_tokens_count_together(tmp_path: Path) -> None:
    async with desk(tmp_path, SALES) as place:
        for _ in range(5):
            await place.ask("POST /api/login", {}, body={"token": "wrong"})
            await place.ask("GET /api/jobs", {"Authorization": "Bearer wrong"})
        async with place.http.get(
            place.url + "/api/sessions", headers={"Authorization": "Bearer wrong"}
        ) as answer:
            limited, wait = answer.status, answer.headers["Retry-After"]
        _, body = await place.ask("POST /api/login", {}, body={"token": SALES.secret})
        live = await place.ask("GET /health/live", {})

    assert limited == 429
    assert int(wait) > 0
    assert body == {"error": "too many wrong tokens from here"}
    assert live[0] == 200


async def test_a_page_from_elsewhere_cannot_act_even_where_no_token_is_asked_for(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as place:
        retry = "POST /api/jobs/{id}/retry"
        foreign = await place.ask(retry, {"Origin": "http://evil.example.com"})
        program = await place.ask(retry, {})

    assert (foreign[0], program[0]) == (403, 202)


async def test_answers_are_not_for_caches_on_the_way(tmp_path: Path) -> None:
    async with (
        desk(tmp_path, SALES) as place,
        place.http.get(place.url + "/api/sessions", headers=SALES.headers) as answer,
    ):
        assert answer.headers["Cache-Control"] == "private, no-cache"
