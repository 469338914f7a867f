"""The ring: what comes out of it is what comes out of sockets."""

from pathlib import Path

import pytest

from harness.media import engine, received, spec, spooled
from harness.rtp import packets, send, tone
from siprec_bridge.receiver.ring import Ring

SIZE = 1 << 21
VOICE = packets(tone(440, 2.0))


def _refusal() -> str | None:
    try:
        Ring(20000, 20001, ("lo",), SIZE).stop()
    except OSError as error:
        return str(error)
    return None


REFUSAL = _refusal()
with_ring = pytest.mark.skipif(REFUSAL is not None, reason=f"no packet sockets here: {REFUSAL}")


@with_ring
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_what_came_is_in_the_spools_octet_by_octet(tmp_path: Path, host: str) -> None:
    longer = [one + bytes(index) for index, one in enumerate(VOICE)]
    async with engine(ring=SIZE) as (media, events, metrics):
        assert media.receiver == "Ring"
        specs = [spec(tmp_path, index, host) for index in range(3)]
        ports = [(await media.open(one)).rtp_port for one in specs]
        for plain, long in zip(VOICE, longer, strict=True):
            send([plain], ports[0], host)
            send([long], ports[1], host)
        await received(metrics, 2 * len(VOICE))
        send(VOICE[:1], ports[2], host)  # has to be waited for: its block is not full

        reports = await media.close([one.stream_id for one in specs])

    assert [spooled(one.spool) for one in specs] == [VOICE, longer, VOICE[:1]]
    assert [(one.packets, one.lost, one.malformed) for one in reports] == [
        (100, 0, 0), (100, 0, 0), (1, 0, 0),
    ]  # fmt: skip
    assert {one.name for one in events} == {"started", "learned"}
