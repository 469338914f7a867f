"""The farm's HTTP side: nodes that reach no broker, tokens, leases, and the metrics."""

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.certificates import Authority
from harness.farm import Farm, Part, audio, farm, until
from harness.rabbitmq import RabbitMq
from harness.recognisers import calls, is_alive, recogniser

pytestmark = pytest.mark.peer

SECRET = "a secret of the tests, forty octets long"


@pytest.fixture
def one_farm(tmp_path: Path, rabbitmq: RabbitMq) -> Iterator[Farm]:
    (tmp_path / "key").write_text(SECRET)
    with farm(tmp_path / "farm", rabbitmq) as made:
        yield made


def dispatcher(one: Farm, *options: str) -> tuple[Part, str]:
    part = one.part("dispatcher", "--port", "0", "--key", str(one.folder.parent / "key"), *options)
    return part, address(part)


def address(part: Part) -> str:
    until(lambda: "listening on " in part.log() or part.process.poll() is not None, "a listener")
    assert part.process.poll() is None, part.log()
    return part.log().partition("listening on ")[2].split()[0]


def token(one: Farm, name: str = "node-1", valid: str = "1h") -> str:
    done = one.run("token", name, "--key", str(one.folder.parent / "key"), "--valid", valid)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def node(one: Farm, url: str, command: Path, bearer: str | None, *options: str) -> Part:
    if bearer is not None:
        file = one.folder / f"token-{hash(bearer)}"
        file.write_text(bearer)
        options = ("--token", str(file), *options)
    # A node knows neither broker nor store.
    return one.part(
        "node", "--dispatcher", url, *options, COMMAND=str(command), BROKER="", STORE=""
    )


def ask(
    url: str, bearer: str | None, method: str = "POST", body: bytes = b'{"wait": 10}'
) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {bearer}"} if bearer is not None else {}
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_a_node_without_broker_or_store_does_a_job_and_passes_on_an_error(
    tmp_path: Path, one_farm: Farm
) -> None:
    works = recogniser(tmp_path, "fails_until_told")
    part, url = dispatcher(one_farm)
    worker = node(one_farm, url, works, token(one_farm))

    failed = one_farm.run(*one_farm.call(audio(tmp_path / "a.wav", 2.0)))
    works.with_suffix(".works").touch()
    done = one_farm.run(*one_farm.call(tmp_path / "a.wav"))
    code = worker.stop()

    assert (failed.returncode, done.returncode, code) == (1, 0, 0), worker.log()
    assert "a.wav: exit code 3" in failed.stderr
    assert one_farm.text("a") == "hello there"
    assert one_farm.depth()[0] == one_farm.depth(dead=True)[0] == 0
    assert one_farm.kept("waiting") == []
    assert "Traceback" not in part.log()


def test_only_a_token_that_is_ours_and_not_over_gets_in(tmp_path: Path, one_farm: Farm) -> None:
    part, url = dispatcher(one_farm)
    good, short = token(one_farm), token(one_farm, valid="1s")
    (one_farm.folder.parent / "key").write_text("another secret, as long as the first one")
    forged = token(one_farm)
    unsigned = f"eyJhbGciOiJub25lIn0.{good.split('.')[1]}."
    time.sleep(max(0.0, 2.0 - time.time() % 1))  # `exp` counts in whole seconds

    refused = [ask(f"{url}/v1/work", one)[0] for one in (None, "", "x", short, forged, unsigned)]
    works, _ = ask(f"{url}/v1/work", good, body=b'{"wait": 0}')
    odd, _ = ask(f"{url}/v1/work", good, body=b'["wait"]')
    health, _ = ask(f"{url}/health", None, "GET", b"")
    late = node(one_farm, url, recogniser(tmp_path, "speaks"), short)

    assert refused == [401] * 6
    assert (works, odd, health) == (204, 400, 200)
    assert late.process.wait(20) == 1
    assert "not let in" in late.log()
    assert "refused: " in part.log()
    assert "Traceback" not in part.log()


def test_a_job_whose_node_falls_silent_goes_to_another_when_the_lease_is_over(
    tmp_path: Path, one_farm: Farm
) -> None:
    part, url = dispatcher(one_farm, "--lease", "3s")
    first, second = token(one_farm, "silent"), token(one_farm, "other")
    client = one_farm.client(audio(tmp_path / "a.wav"))
    status, body = ask(f"{url}/v1/work", first)
    lease = json.loads(body)["lease"]
    ours, renewed = ask(f"{url}/v1/work/{lease}/renew", first, body=b"")
    theirs, _ = ask(f"{url}/v1/work/{lease}/renew", second, body=b"")
    garbage, _ = ask(f"{url}/v1/work/{lease}/result", first, "PUT", b'"text"')

    node(one_farm, url, recogniser(tmp_path, "speaks"), second)

    assert client.process.wait(20) == 0, client.log()
    over, _ = ask(f"{url}/v1/work/{lease}/result", first, "PUT", b'{"text": "too late"}')
    assert (status, theirs, ours, garbage, over) == (200, 404, 200, 400, 404)
    assert json.loads(renewed) == {"cancelled": False}
    assert one_farm.text("a") == "hello there"
    assert "silent: lease of" in part.log()


def test_a_dispatcher_whose_broker_cut_it_off_takes_a_result_and_gives_back_what_is_over(
    tmp_path: Path, one_farm: Farm
) -> None:
    part, url = dispatcher(one_farm, "--lease", "10s")  # the broker needs some of it to cut
    bearer = token(one_farm)
    done, open_ = (one_farm.client(audio(tmp_path / f"{n}.wav", tone=n)) for n in range(2))
    until(lambda: one_farm.depth()[0] == 2, "two jobs in the queue")
    first, _ = (json.loads(ask(f"{url}/v1/work", bearer)[1]) for _ in range(2))

    one_farm.broker.ctl("close_all_connections", "maintenance")
    handed_in, _ = ask(
        f"{url}/v1/work/{first['lease']}/result", bearer, "PUT", b'{"text": "one", "segments": []}'
    )
    until(lambda: "lease of" in part.log() or part.process.poll() is not None, "the lease's end")
    node(one_farm, url, recogniser(tmp_path, "speaks"), bearer)

    assert handed_in == 204
    assert (done.process.wait(20), open_.process.wait(20)) == (0, 0), part.log()
    assert part.process.poll() is None, part.log()
    assert "Traceback" not in part.log()


@pytest.mark.parametrize(
    "body", [b'{"wait": NaN}', b'{"wait": 1' + 400 * b"0" + b"}", 100_000 * b"["], ids=len
)
def test_a_node_that_asks_for_nonsense_is_told_so(one_farm: Farm, body: bytes) -> None:
    part, url = dispatcher(one_farm)

    status, told = ask(f"{url}/v1/work", token(one_farm), body=body)

    assert (status, json.loads(told)) == (400, {"error": 'expected {"wait": seconds}'})
    assert "Traceback" not in part.log()


def test_a_cancelled_job_ends_at_its_node(tmp_path: Path, one_farm: Farm) -> None:
    hangs = recogniser(tmp_path, "hangs")
    _, url = dispatcher(one_farm, "--lease", "1s")
    node(one_farm, url, hangs, token(one_farm))
    client = one_farm.client(audio(tmp_path / "a.wav"))
    until(lambda: bool(calls(hangs)), "the job at the node")

    assert client.stop() == 1

    run = calls(hangs)[0]["pid"]
    assert isinstance(run, int)
    until(lambda: not is_alive(run), "the end of the run")
    until(lambda: one_farm.depth()[0] == 0 and not one_farm.kept("waiting"), "nothing left")


def test_a_dispatcher_that_is_killed_loses_no_job(tmp_path: Path, one_farm: Farm) -> None:
    slow = recogniser(tmp_path, "waits_for_leave")
    first, url = dispatcher(one_farm)
    node(one_farm, url, slow, token(one_farm))
    client = one_farm.client(audio(tmp_path / "a.wav"))
    until(lambda: bool(calls(slow)), "the job at the node")

    first.kill9()
    slow.with_suffix(".go").touch()
    _, again = dispatcher(one_farm)
    node(one_farm, again, slow, token(one_farm))

    assert client.process.wait(30) == 0, client.log()
    assert one_farm.depth(dead=True)[0] == 0


def test_nodes_may_prove_themselves_by_certificate(tmp_path: Path, one_farm: Farm) -> None:
    authority = Authority(tmp_path / "ca")
    server, server_key = authority.sign("dispatcher")
    mine, my_key = authority.sign("node-7", serial=2)
    part = one_farm.part(
        "dispatcher", "--port", "0", "--tls-cert", str(server),
        "--tls-key", str(server_key), "--client-ca", str(authority.ca),
    )  # fmt: skip
    url = address(part)
    node(
        one_farm, url, recogniser(tmp_path, "speaks"), None, "--ca", str(authority.ca),
        "--tls-cert", str(mine), "--tls-key", str(my_key),
    )  # fmt: skip

    done = one_farm.run(*one_farm.call(audio(tmp_path / "a.wav")))
    nobody = ssl.create_default_context(cafile=authority.ca)
    with pytest.raises(OSError, match=r"(?i)certificate|reset|EOF|closed"):
        urllib.request.urlopen(f"{url}/v1/work", b"", timeout=10, context=nobody)

    assert done.returncode == 0, part.log()
    assert "node-7 takes" in part.log()


def test_metrics_tell_what_an_autoscaler_wants_to_know(tmp_path: Path, one_farm: Farm) -> None:
    slow = recogniser(tmp_path, "waits_for_leave")
    part = one_farm.part("exporter", "--port", "0")
    url = address(part)
    for number in range(2):
        one_farm.client(audio(tmp_path / f"{number}.wav", 1.5, number))
    until(lambda: one_farm.depth()[0] == 2, "two jobs in the queue")
    before = scrape(url)
    one_farm.worker(slow)
    until(lambda: scrape(url).get("whisper_farm_busy_workers") == 1, "a busy worker")
    during = scrape(url)
    slow.with_suffix(".go").touch()
    until(lambda: done_jobs(scrape(url)) == 2, "both jobs done")
    after = scrape(url)
    one_farm.store.rename(one_farm.store.with_name("away"))
    away = scrape(url)

    assert before["whisper_farm_queued_jobs"] == before["whisper_farm_open_jobs"] == 2
    assert before["whisper_farm_open_audio_seconds"] == 3.0
    assert before["whisper_farm_oldest_job_seconds"] > 0
    assert before["whisper_farm_workers"] == before["whisper_farm_dead_jobs"] == 0
    assert "whisper_farm_eta_seconds" not in before
    assert (during["whisper_farm_queued_jobs"], during["whisper_farm_workers"]) == (1, 1)
    assert after["whisper_farm_open_jobs"] == after["whisper_farm_eta_seconds"] == 0
    audio_done = [v for n, v in after.items() if n.startswith("whisper_farm_worker_audio")]
    busy = [v for n, v in after.items() if n.startswith("whisper_farm_worker_busy")]
    assert audio_done == [3.0]
    assert busy[0] > 0
    assert away["whisper_farm_up"] == 0


def scrape(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name: float(value) for name, _, value in pairs}


def done_jobs(metrics: dict[str, float]) -> float:
    return sum(
        value
        for name, value in metrics.items()
        if name.startswith("whisper_farm_worker_jobs_total") and 'result="done"' in name
    )
