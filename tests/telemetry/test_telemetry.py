"""Metrics that are written, logs without secrets, health that cannot hang."""

import asyncio
import io
import json
import logging
import re
from pathlib import Path

import pytest
import structlog

from siprec_bridge.telemetry import Health, Metrics, configure_logs, masked
from siprec_bridge.telemetry import health as health_module

ROOT = Path(__file__).parents[2]


def test_every_metric_of_the_catalogue_is_written_somewhere() -> None:
    names = [name for name in vars(Metrics()) if name not in ("registry",)]
    package = Path(health_module.__file__).parents[1]
    sources = "\n".join(
        path.read_text() for path in package.rglob("*.py") if path.name != "metrics.py"
    )
    sources += "\n_metrics.build_info.labels"  # written by the catalogue itself

    unwritten = [name for name in names if not re.search(rf"metrics\.{name}\b", sources)]

    assert len(names) > 35
    assert unwritten == []


def test_every_metric_is_documented() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()

    for family in Metrics().registry.collect():
        if family.name.startswith("siprec_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            assert f"| `{name}` | {family.type} |" in text


def test_nothing_else_is_scraped() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    metrics = Metrics()
    metrics.sip_requests_total.labels(transport="udp", method="INVITE").inc()

    scraped = re.findall(
        r"^(siprec_\w+?)(?:_bucket|_sum|_count)?[{ ]", metrics.render().decode(), re.M
    )

    assert "siprec_sip_requests_total" in scraped
    assert [name for name in scraped if f"| `{name}` |" not in text] == []


@pytest.fixture
def lines() -> io.StringIO:
    out = io.StringIO()
    configure_logs("info", "json", out)
    return out


def logged(lines: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def test_a_line_is_json_with_its_fields(lines: io.StringIO) -> None:
    structlog.get_logger().info("a.thing", seconds=1.5)
    structlog.get_logger().debug("not.shown")
    logging.getLogger("some.library").warning("careful %s", "now")

    first, second = logged(lines)

    assert (first["event"], first["seconds"], first["level"]) == ("a.thing", 1.5, "info")
    assert (second["event"], second["level"]) == ("careful now", "warning")


def test_a_field_that_json_has_no_form_for_ends_nothing(lines: io.StringIO) -> None:
    structlog.get_logger().info("a.thing", counts={("a", 1): 2, "all": 2}, when=Path("x"))

    (line,) = logged(lines)

    assert (line["counts"], line["when"]) == ({"all": 2}, "x")


def test_what_a_library_warns_of_is_told_by_its_cause_and_what_fails_with_its_traceback(
    lines: io.StringIO,
) -> None:
    library = logging.getLogger("some.library")
    for log in (library.warning, library.error):
        try:
            raise ConnectionResetError("reset by the peer at amqp://user:hunter2@host")
        except ConnectionResetError:
            log("the reader ended", exc_info=True)

    warned, failed = logged(lines)

    cause = "ConnectionResetError: reset by the peer at amqp://user:***@host"
    assert warned["cause"] == cause
    assert "exception" not in warned
    assert str(failed["exception"]).startswith("Traceback")


@pytest.mark.parametrize(
    ("fields", "secret"),
    [
        ({"password": "hunter2"}, "hunter2"),
        ({"authorization": "Digest x"}, "Digest x"),
        ({"url": "amqp://bridge:hunter2@broker/"}, "hunter2"),
        ({"sdp": "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:c2VjcmV0a2V5"}, "c2VjcmV0a2V5"),
        ({"sdp": "a=crypto:1 AES_CM_128_HMAC_SHA1_80 INLINE:c2VjcmV0a2V5"}, "c2VjcmV0a2V5"),
        ({"line": "< Authorization: Bearer hunter2"}, "hunter2"),
        ({"path": f"/ws/transcripts?ticket=siprec_{'Ab-_' * 10}abc&final=true"}, "Ab-_"),
        ({"cause": "bad whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}, "MfKQ9r8"),
        ({"header": 'Digest response="6629fae49393a05397450978507c4ef1"'}, "6629fae"),
        ({"sip": "INFO sip:a SIP/2.0\r\nc: application/dtmf-relay\r\n\r\nSignal=#\r\n"}, "#"),
    ],
)
def test_secrets_are_masked(lines: io.StringIO, fields: dict[str, str], secret: str) -> None:
    structlog.get_logger().info("a.thing", **fields)

    assert secret not in lines.getvalue()
    assert "***" in lines.getvalue()


def test_a_message_that_only_takes_pressed_keys_is_shown_whole() -> None:
    message = "INVITE sip:a SIP/2.0\r\nAccept: application/dtmf-relay\r\n\r\nv=0\r\n"

    assert masked(message) == message


def test_an_exception_is_one_line(lines: io.StringIO) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        structlog.get_logger().exception("it.broke")

    (line,) = logged(lines)
    assert "ValueError: two" in str(line["exception"])


def test_on_a_terminal_an_exception_shows_no_variables_and_is_masked() -> None:
    stream = io.StringIO()
    configure_logs("debug", "console", stream)
    crypto = "inline:c2VjcmV0a2V5"
    try:
        raise ValueError(f"a line of {crypto}")
    except ValueError:
        structlog.get_logger().exception("it.broke")

    assert "ValueError: a line of inline:***" in stream.getvalue()
    assert "c2VjcmV0a2V5" not in stream.getvalue()


async def test_what_calls_do_not_need_degrades_and_keeps_nobody_from_calling() -> None:
    health = Health()

    async def works() -> str | None:
        return None

    async def away() -> str | None:
        return "not connected"

    health.register("sip", works)
    health.register("amqp", away, vital=False)
    report = await health.report()

    assert (report.ready, report.degraded) == (True, True)
    assert report.facts == {"sip": None, "amqp": "not connected"}


async def test_a_check_that_hangs_or_breaks_counts_as_trouble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health_module, "_CHECK_TIMEOUT_S", 0.05)
    health = Health()

    async def fine() -> None:
        return None

    async def hangs() -> str | None:
        await asyncio.sleep(60)
        return None

    async def breaks() -> str | None:
        raise RuntimeError("oh")

    health.register("fine", fine)
    before = await health.report()
    health.register("hangs", hangs)
    health.register("breaks", breaks)
    after = await health.report()

    assert (before.ready, before.degraded) == (True, False)
    assert (after.ready, after.degraded) == (False, True)
    assert after.facts == {
        "fine": None, "hangs": "no answer within 0.05 s", "breaks": "RuntimeError: oh",
    }  # fmt: skip
