"""Datagrams go in and out of the arena as they are, whatever their lengths."""

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from siprec_bridge.receiver.arena import lay, put_back, take_out

DATAGRAMS = st.lists(st.binary(max_size=40), min_size=1, max_size=30)
_ROOM, _HEAD = 64, 12


def at_slots(
    datagrams: list[bytes],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    data = np.full(_ROOM * (len(datagrams) + 1), 0xEE, np.uint8)
    offsets = np.arange(len(datagrams), dtype=np.int64) * _ROOM + 16
    for offset, one in zip(offsets.tolist(), datagrams, strict=True):
        data[offset : offset + len(one)] = np.frombuffer(one, np.uint8)
    return data, offsets, np.array([len(one) for one in datagrams], np.int64)


@given(DATAGRAMS)
def test_what_is_taken_out_is_what_lies_there(datagrams: list[bytes]) -> None:
    assert take_out(*at_slots(datagrams)) == datagrams


@given(DATAGRAMS, st.data())
def test_what_is_put_back_changes_nothing_beside_it(
    datagrams: list[bytes], more: st.DataObject
) -> None:
    data, offsets, _ = at_slots(datagrams)
    shorter = [one[: more.draw(st.integers(0, len(one)))] for one in datagrams]
    changed = [bytes(octet ^ 0xFF for octet in one) for one in shorter]
    expected, _, _ = at_slots(
        [there + was[len(there) :] for there, was in zip(changed, datagrams, strict=True)]
    )

    lengths = put_back(data, offsets, changed)

    assert lengths.tolist() == [len(one) for one in changed]
    assert data.tobytes() == expected.tobytes()


@given(DATAGRAMS)
def test_laid_end_to_end_each_has_room_for_a_head(datagrams: list[bytes]) -> None:
    packed, places = lay(*at_slots(datagrams))

    starts, ends = places[:-1].tolist(), places[1:].tolist()
    assert (starts[0], ends[-1]) == (0, len(packed))
    found = [packed[start + _HEAD : end].tobytes() for start, end in zip(starts, ends, strict=True)]
    assert found == datagrams
