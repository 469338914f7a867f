"""When a recogniser is suspected, probed and found to work again; and how fast it is."""

import pytest

from siprec_bridge.transcription.circuit import Circuit
from siprec_bridge.transcription.pace import Pace


def test_failures_alike_in_a_row_make_a_suspicion_and_open_nothing() -> None:
    circuit = Circuit(3)
    for job in "abc":
        circuit.failed("exit_code", [job])

    assert circuit.is_suspicious
    assert not circuit.is_open


def test_a_transcript_or_another_reason_begins_a_new_row() -> None:
    circuit = Circuit(2)
    circuit.failed("exit_code", ["a"])
    circuit.failed("timeout", ["b"])
    after_another_reason = circuit.is_suspicious
    circuit.worked()
    circuit.failed("timeout", ["c"])

    assert not after_another_reason
    assert not circuit.is_suspicious


def test_a_failed_probe_opens_it_and_tells_what_was_spent_in_vain() -> None:
    circuit = Circuit(3)
    circuit.failed("exit_code", ["a", "c"])
    circuit.worked()
    circuit.failed("timeout", ["a", "c"])
    for jobs in (["a"], ["a", "b"], ["a"]):  # this row: those before failed by themselves
        circuit.failed("exit_code", jobs)

    spent = circuit.broke("exit code 1", 100.0)

    assert spent == {"a": 3, "b": 1}
    assert circuit.is_open
    assert not circuit.is_suspicious
    assert circuit.broke("exit code 1", 200.0) == {}
    assert circuit.opened_at == 100.0


def test_probes_come_at_growing_intervals_up_to_five_minutes_until_one_works() -> None:
    circuit = Circuit(1)
    waits = []
    for _ in range(9):
        circuit.broke("exit code 1", 0.0)
        waits.append(circuit.wait(0.0))
    circuit.worked()
    circuit.broke("exit code 1", 0.0)

    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert (circuit.wait(0.0), circuit.wait(9.0)) == (5, 0)


def test_with_no_limit_of_failures_nothing_is_suspected() -> None:
    circuit = Circuit(0)
    for _ in range(100):
        circuit.failed("exit_code", ["a"])

    assert not circuit.is_suspicious
    assert not circuit.is_used


def test_the_pace_is_unknown_until_a_run_and_then_follows_the_latest_ones() -> None:
    pace = Pace()
    unknown = pace.ratio
    pace.note(60, 0)
    pace.note(100, 10)
    first = pace.ratio
    for _ in range(50):
        pace.note(20, 10)

    assert unknown is None
    assert first == 10
    assert pace.ratio == pytest.approx(2, rel=0.05)
