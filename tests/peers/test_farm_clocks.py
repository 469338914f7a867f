"""The farm where a machine's clock is wrong: with S3, whose own clock tells who is."""

import re
from pathlib import Path

import pytest

from harness.farm import audio, farm, until
from harness.rabbitmq import RabbitMq
from harness.recognisers import calls, recogniser
from harness.s3 import S3

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (scripts/setup)"),
]


def off_by(seconds: int) -> dict[str, str]:
    """What sets a program's clock; libfaketime leaves its timers alone."""
    return {
        "LD_PRELOAD": str(LIBRARY), "FAKETIME": f"{seconds:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"
    }  # fmt: skip


def test_who_has_a_wrong_clock_says_so_with_the_cure(
    tmp_path: Path, rabbitmq: RabbitMq, s3: S3
) -> None:
    speaks = recogniser(tmp_path, "speaks")
    bucket = s3.new_bucket()
    store = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3.port}", "AWS_ACCESS_KEY_ID": "siprec",
        "AWS_SECRET_ACCESS_KEY": "of-no-use-elsewhere", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    with farm(tmp_path / "farm", rabbitmq, STORE=f"s3://{bucket}/farm", TIMEOUT="3s") as one:
        right = one.environment | store
        one.environment = right | off_by(90)
        worker = one.worker(speaks)
        until(lambda: "NTP" in worker.log(), "the worker's complaint")
        one.environment = right
        punctual = one.client(audio(tmp_path / "a.wav"))
        one.environment = right | off_by(-90)
        late = one.client(audio(tmp_path / "b.wav"))
        ends = [client.process.wait(30) for client in (punctual, late)]
        until(lambda: worker.log().count("] Discarding revoked") == 2, "jobs that are dropped")
        one.environment = right
        status = one.run("status")

    complaints = [line for line in worker.log().splitlines() if "NTP" in line]
    assert len(complaints) == 1
    assert "ERROR" in complaints[0]
    told = re.search(r"clock is (\d+) s ahead of the store's", complaints[0])
    assert told is not None
    assert 80 <= int(told[1]) <= 90  # less what the store's answer took
    assert "    its clock is " in status.stdout
    assert ends == [1, 1]
    assert "clock" not in punctual.log()
    assert "s behind the store's" in late.log()
    assert calls(speaks) == []
