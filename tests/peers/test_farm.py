"""The farm at a real RabbitMQ: workers and brokers that are killed, poison, and nothing lost."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from harness.bridge import listening, running_bridge
from harness.calls import SAMPLE, call, finals, tones
from harness.farm import PROGRAM, Farm, audio, farm, until
from harness.rabbitmq import RabbitMq
from harness.recognisers import calls, is_alive, recogniser
from siprec_bridge.doctor import word_error_rate
from siprec_wrappers.farm.broker import Broker

pytestmark = pytest.mark.peer


@pytest.fixture
def one_farm(tmp_path: Path, rabbitmq: RabbitMq) -> Iterator[Farm]:
    with farm(tmp_path / "farm", rabbitmq) as made:
        yield made


def test_it_keeps_the_contract_and_an_answer_that_is_there_needs_no_broker(
    tmp_path: Path, one_farm: Farm
) -> None:
    speaks = recogniser(tmp_path, "speaks")
    worker = one_farm.worker(speaks)
    files = [audio(tmp_path / f"call {leg}.wav", 0.1, tone) for tone, leg in enumerate("ab")]

    first = one_farm.run(*one_farm.call(*files), "--language", "en", "--beam_size", "5")
    subtitles = one_farm.run(
        str(files[0]), "--language", "en", "--beam_size", "5",
        "--output_dir", str(tmp_path / "srt"), "--output_format", "srt",
    )  # fmt: skip
    code = worker.stop()
    one_farm.environment["WHISPER_FARM_BROKER"] = "amqp://127.0.0.1:1/"
    again = one_farm.run(
        *one_farm.call(*files, out="again"), "--language", "en", "--beam_size", "5"
    )

    assert (first.returncode, first.stderr, code) == (0, "", 0)
    assert "celery" not in one_farm.broker.ctl("list_queues", "name")
    assert (again.returncode, again.stderr) == (0, "")
    assert [one_farm.text(f"call {leg}", "again") for leg in "ab"] == ["hello there"] * 2
    assert subtitles.returncode == 0
    assert (tmp_path / "srt" / "call a.srt").read_text() == (
        "1\n00:00:00,200 --> 00:00:00,800\nhello there\n\n"
    )
    runs = calls(speaks)
    assert len(runs) == 2
    arguments = runs[0]["arguments"]
    assert isinstance(arguments, list)
    assert arguments[1:7] == ["--model", "base", "--language", "en", "--beam_size", "5"]
    assert one_farm.kept("waiting") == one_farm.kept("workers") == []


def test_the_stand_in_gives_real_text_through_it(one_farm: Farm) -> None:
    one_farm.worker(Path(PROGRAM).with_name("whisper-standin"))

    done = one_farm.run(*one_farm.call(SAMPLE / "alice.wav"))

    said = json.loads((SAMPLE / "transcript.json").read_text())
    expected = " ".join(line["text"] for line in said if line["speaker"] == "alice")
    assert done.returncode == 0, done.stderr
    assert word_error_rate(expected, one_farm.text("alice")) <= 0.2


async def test_a_bridge_has_its_calls_transcribed_by_the_farm(
    tmp_path: Path, one_farm: Farm
) -> None:
    speaks = recogniser(tmp_path, "speaks")
    await asyncio.to_thread(one_farm.worker, speaks)
    farms = {n: v for n, v in one_farm.environment.items() if n.startswith("WHISPER_FARM_")}

    async with (
        running_bridge(tmp_path / "data", WHISPER_BINARY_PATH=PROGRAM, **farms) as bridge,
        listening(bridge) as events,
    ):
        await call(bridge, legs=tones(0.5))
        said = await finals(bridge, events)

    assert len(said) == 1
    assert json.dumps(said[0]).count("hello there") >= 2
    assert len(calls(speaks)) == 2


def test_a_job_whose_worker_is_killed_is_done_once_by_another(
    tmp_path: Path, one_farm: Farm
) -> None:
    hangs, speaks = recogniser(tmp_path, "hangs"), recogniser(tmp_path, "speaks")
    first = one_farm.worker(hangs)
    client = one_farm.client(audio(tmp_path / "a.wav"))
    until(lambda: bool(calls(hangs)), "the job at the first worker")
    one_farm.worker(speaks)

    os.kill(first.process.pid, signal.SIGKILL)  # not its child: the kernel ends that

    assert client.process.wait(30) == 0, client.log()
    assert one_farm.text("a") == "hello there"
    run = calls(hangs)[0]["pid"]
    assert isinstance(run, int)
    until(lambda: not is_alive(run), "the end of the dead worker's recogniser")
    assert len(calls(hangs)) == len(calls(speaks)) == 1
    assert len(one_farm.kept("results")) == 1
    assert one_farm.depth() == (0, 1)
    assert one_farm.depth(dead=True)[0] == 0


def test_a_job_that_kills_every_worker_is_dead_and_its_client_is_told(
    tmp_path: Path, one_farm: Farm
) -> None:
    speaks = recogniser(tmp_path, "speaks")
    poison = tmp_path / "poison"
    poison.write_text(
        f"#!/bin/sh\ncase $(dirname $1)/$(head -c 46 $1 | tail -c 2) in *AA) "
        f'kill -9 $PPID; sleep 9;; esac\nexec {speaks} "$@"\n'
    )
    poison.chmod(0o755)
    worker = one_farm.worker(poison)

    bad = one_farm.run(*one_farm.call(audio(tmp_path / "bad.wav", 0.1, 0x4141)))
    good = one_farm.run(*one_farm.call(audio(tmp_path / "good.wav", 0.1, 7)))
    status = json.loads(one_farm.run("status", "--json").stdout)
    listed = one_farm.run("dead", "list")
    poison.write_text(f'#!/bin/sh\nexec {speaks} "$@"\n')
    retried = one_farm.run("dead", "retry")
    until(lambda: len(one_farm.kept("results")) == 2, "the retried job's result")
    cured = one_farm.run(*one_farm.call(tmp_path / "bad.wav"))

    assert bad.returncode == 1
    assert "bad.wav: given up: 3 workers that took it were lost with it" in bad.stderr
    assert good.returncode == 0, good.stderr
    assert (status["dead"], status["queued"], status["open"]) == (1, 0, 0)
    assert "given up: 3 workers" in listed.stdout
    assert "queued again" in retried.stdout
    assert cured.returncode == 0
    assert one_farm.depth(dead=True)[0] == 0
    assert worker.process.poll() is None


def test_what_the_broker_itself_gives_up_is_told_too(tmp_path: Path, one_farm: Farm) -> None:
    """Workers that die before they can look at the delivery count."""
    client = one_farm.client(audio(tmp_path / "a.wav"))
    until(lambda: one_farm.depth()[0] == 1, "the job in the queue")
    for _ in range(4):  # 3 attempts and the one that finds them used up
        taker = Broker(one_farm.settings)
        until(partial(_take, taker, one_farm.settings.queue), "a delivery")
        taker.close()

    assert client.process.wait(20) == 1
    assert "given up by the broker" in client.log()
    assert one_farm.depth(dead=True)[0] == 1


def _take(broker: Broker, queue: str) -> bool:
    """Take a message, as a worker that is gone before it has looked at it."""
    return broker._channel.basic_get(queue) is not None


def test_a_failed_run_passes_its_error_on_and_is_not_repeated(
    tmp_path: Path, one_farm: Farm
) -> None:
    fails = recogniser(tmp_path, "exits_1")
    one_farm.worker(fails)

    done = one_farm.run(*one_farm.call(audio(tmp_path / "a.wav")))

    assert done.returncode == 1
    assert "a.wav: out of memory on GPU 3" in done.stderr
    assert len(calls(fails)) == 1
    assert one_farm.depth(dead=True)[0] == 0


def test_a_client_that_is_stopped_cancels_what_waits_and_what_runs(
    tmp_path: Path, one_farm: Farm
) -> None:
    hangs = recogniser(tmp_path, "hangs")
    one_farm.worker(hangs)
    running = one_farm.client(audio(tmp_path / "a.wav", 0.1, 1))
    until(lambda: bool(calls(hangs)), "the job at the worker")
    waiting = one_farm.client(audio(tmp_path / "b.wav", 0.1, 2))
    until(lambda: one_farm.depth()[0] == 1, "the second job in the queue")

    codes = [waiting.stop(), running.stop()]

    run = calls(hangs)[0]["pid"]
    assert isinstance(run, int)
    until(lambda: not is_alive(run), "the end of the run")
    until(lambda: one_farm.depth()[0] == 0, "an empty queue")
    assert codes == [1, 1]
    assert len(calls(hangs)) == 1
    assert one_farm.kept("results") == one_farm.kept("waiting") == []


def test_a_broker_killed_in_mid_job_loses_nothing(tmp_path: Path, one_farm: Farm) -> None:
    slow = recogniser(tmp_path, "waits_for_leave")
    broker = one_farm.broker
    one_farm.worker(slow)
    first = one_farm.client(audio(tmp_path / "a.wav", 0.1, 1))
    until(lambda: bool(calls(slow)), "the job at the worker")
    second = one_farm.client(audio(tmp_path / "b.wav", 0.1, 2))
    until(lambda: one_farm.depth()[0] == 1, "the second job in the queue")
    broker.write_down()

    broker.kill9()
    late = one_farm.run(*one_farm.call(audio(tmp_path / "c.wav", 0.1, 3)))
    slow.with_suffix(".go").touch()
    ended_without_it = first.process.wait(20)
    broker.start()

    assert (ended_without_it, second.process.wait(40)) == (0, 0), second.log()
    assert (late.returncode, "broker" in late.stderr) == (127, True)
    assert one_farm.text("a") == one_farm.text("b") == "hello there"
    until(lambda: one_farm.depth()[0] == 0, "an empty queue")
    assert len(calls(slow)) == 2


def test_a_store_that_is_away_holds_work_up_but_loses_none(tmp_path: Path, one_farm: Farm) -> None:
    slow = recogniser(tmp_path, "waits_for_leave")
    worker = one_farm.worker(slow)
    client = one_farm.client(audio(tmp_path / "a.wav"))
    until(lambda: bool(calls(slow)), "the job at the worker")
    away = one_farm.store.with_name("away")

    one_farm.store.rename(away)
    slow.with_suffix(".go").touch()
    until(lambda: "waits for the store" in worker.log(), "a worker that waits")
    refused = one_farm.run(*one_farm.call(audio(tmp_path / "b.wav")))
    away.rename(one_farm.store)

    assert client.process.wait(20) == 0, client.log()
    assert refused.returncode == 127
    assert "is no directory" in refused.stderr


def test_a_worker_that_is_stopped_ends_its_job_first(tmp_path: Path, one_farm: Farm) -> None:
    slow = recogniser(tmp_path, "waits_for_leave")
    worker = one_farm.worker(slow)
    client = one_farm.client(audio(tmp_path / "a.wav"))
    until(lambda: bool(calls(slow)), "the job at the worker")

    worker.process.terminate()
    until(lambda: "Warm shutdown" in worker.log(), "the shutdown")
    slow.with_suffix(".go").touch()

    assert client.process.wait(20) == 0
    assert worker.process.wait(20) == 0
    assert one_farm.depth() == (0, 0)


def test_without_a_worker_the_job_may_wait(tmp_path: Path, rabbitmq: RabbitMq) -> None:
    with farm(tmp_path / "farm", rabbitmq, TIMEOUT="1s") as one:
        done = one.run(*one.call(audio(tmp_path / "a.wav")))
        kept = one.kept("cancelled")

    assert done.returncode == 127
    assert "no worker is there" in done.stderr
    assert len(kept) == 1


def test_a_worker_says_what_it_lacks(one_farm: Farm) -> None:
    one_farm.environment["WHISPER_FARM_COMMAND"] = "/no/such/whisper"
    no_program = one_farm.run("worker")
    one_farm.environment["WHISPER_FARM_COMMAND"] = "true"
    shutil.rmtree(one_farm.store)
    no_store = one_farm.run("worker")

    assert (no_program.returncode, no_store.returncode) == (127, 127)
    assert "/no/such/whisper: no such program" in no_program.stderr
    assert "is no directory" in no_store.stderr
