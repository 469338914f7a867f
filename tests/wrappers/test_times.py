"""How long a run may take, as it is written for every wrapper."""

import pytest

from siprec_bridge.provider import parse_duration
from siprec_wrappers.contract import seconds_in


@pytest.mark.parametrize(
    "text", ["90", "90s", " 20M ", "1h30m", "1.5h", "1d", "1500ms", "1h0m30s", "0.5"]
)
def test_times_are_those_of_the_bridge(text: str) -> None:
    assert seconds_in(text) == parse_duration(text)


@pytest.mark.parametrize(
    "text", ["", "soon", "0", "0s", "-5", "5 m", "m", "1,5h", "nan", "1e9", "9" * 400]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a duration such as"):
        seconds_in(text)
