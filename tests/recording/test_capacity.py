"""The pace that one source may call at."""

from hypothesis import given
from hypothesis import strategies as st

from siprec_bridge.recording import Capacity


def test_a_burst_is_taken_and_what_is_beyond_the_rate_is_not() -> None:
    capacity = Capacity(max_call_rate=5)

    burst = [capacity.too_fast("192.0.2.1", 100.0) for _ in range(12)]
    later = [capacity.too_fast("192.0.2.1", 101.0) for _ in range(6)]

    assert burst == [False] * 10 + [True] * 2
    assert later == [False] * 5 + [True]


def test_a_source_that_calls_too_fast_takes_nothing_from_others() -> None:
    capacity = Capacity(max_call_rate=1)
    for _ in range(100):
        capacity.too_fast("192.0.2.1", 0.0)

    assert not capacity.too_fast("192.0.2.2", 0.0)


def test_made_up_sources_cost_no_memory() -> None:
    capacity = Capacity(max_call_rate=1)
    for number in range(20_000):
        capacity.too_fast(f"192.0.2.{number}", float(number))

    assert len(capacity._sources) <= 10_000


@given(st.lists(st.floats(0, 60), max_size=200), st.floats(0.1, 20))
def test_over_any_time_no_more_than_the_rate_and_a_burst_get_in(
    times: list[float], rate: float
) -> None:
    capacity = Capacity(max_call_rate=rate)

    taken = [at for at in sorted(times) if not capacity.too_fast("192.0.2.1", at)]

    if taken:
        assert len(taken) <= rate * (taken[-1] - taken[0]) + max(1.0, 2 * rate) + 1e-6
