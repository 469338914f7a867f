"""SRTP as it comes: lost, repeated, wrapped around, under several sources and keys."""

import pytest

from siprec_bridge.rtp import (
    NotAuthentic,
    Replayed,
    SrtpReceiver,
    SrtpSender,
    available_suites,
    build_packet,
)

CM80, CM32, GCM = "AES_CM_128_HMAC_SHA1_80", "AES_CM_128_HMAC_SHA1_32", "AEAD_AES_256_GCM"
KEY, OTHER = bytes(range(44)), bytes(range(100, 144))
RR = bytes.fromhex("80c9000100000005")


def size(suite: str) -> int:
    return {"AEAD_AES_128_GCM": 28, "AEAD_AES_256_GCM": 44}.get(suite, 30)


def rtp(index: int, ssrc: int = 1) -> bytes:
    """A packet whose sequence number is what is left of the index."""
    return build_packet(0, index & 0xFFFF, 160 * index, ssrc, index.to_bytes(8) * 20)


def sender(suite: str = CM80, key: bytes = KEY) -> SrtpSender:
    return SrtpSender(suite, key[: size(suite)])


def receiver(
    suite: str = CM80, key: bytes = KEY, mki: int = 0, rollovers: dict[int, int] | None = None
) -> SrtpReceiver:
    return SrtpReceiver(suite, key[: size(suite)], mki, rollovers)


def sent(indices: range, *, one: SrtpSender | None = None, ssrc: int = 1) -> list[bytes]:
    source = one or sender()
    return [source.protect(rtp(index, ssrc)) for index in indices]


@pytest.mark.parametrize("suite", available_suites())
def test_what_was_encrypted_comes_out_as_it_was(suite: str) -> None:
    there, here = sender(suite), receiver(suite)

    assert here.unprotect(there.protect(rtp(5))) == rtp(5)
    assert here.unprotect_rtcp(there.protect_rtcp(RR)) == RR


def test_another_key_or_a_changed_octet_is_not_authentic() -> None:
    here, packet = receiver(), sender().protect(rtp(5))
    broken = packet[:20] + bytes([packet[20] ^ 1]) + packet[21:]

    for bad in (sender(key=OTHER).protect(rtp(5)), broken, packet[:14], b"\x80" * 12, bytes(1600)):
        with pytest.raises(NotAuthentic):
            here.unprotect(bad)
    with pytest.raises(NotAuthentic):
        here.unprotect_rtcp(sender(key=OTHER).protect_rtcp(RR))
    assert here.unprotect(packet) == rtp(5)


def test_what_comes_again_is_told_from_what_comes_late() -> None:
    here, packets = receiver(), sent(range(100, 110))
    order = [*packets[:5], *packets[6:], packets[5]]

    assert [here.unprotect(one)[-1] for one in order] == [100, 101, 102, 103, 104, 106, 107, 108, 109, 105]  # fmt: skip
    with pytest.raises(Replayed):
        here.unprotect(packets[5])


def test_the_roll_over_counter_follows_and_is_told() -> None:
    here = receiver()

    for index, packet in enumerate(sent(range(65500, 65600)), 65500):
        assert here.unprotect(packet) == rtp(index)
    assert here.turned == [(1, 1)]


def test_sources_under_one_key_have_their_own_counters() -> None:
    here, source = receiver(), sender()
    packets = sent(range(65530, 65540), one=source, ssrc=1) + sent(range(10), one=source, ssrc=2)

    assert [here.unprotect(one) for one in packets] == [
        *(rtp(index, 1) for index in range(65530, 65540)),
        *(rtp(index, 2) for index in range(10)),
    ]


@pytest.mark.parametrize(("known", "now"), [(3, 3), (2, 3)], ids=["told", "told one turn ago"])
@pytest.mark.parametrize("suite", [CM80, CM32, GCM])
def test_a_receiver_that_goes_on_for_another_finds_the_counter(
    suite: str, known: int, now: int
) -> None:
    source = sender(suite)
    whole = sent(range(0, (now << 16) + 3000, 1000), one=source)
    here = receiver(suite, rollovers={1: known})

    assert here.unprotect(whole[-1]) == rtp(((now << 16) + 2999) // 1000 * 1000)
    assert here.turned == ([] if known == now else [(1, now)])


def test_without_the_counter_such_packets_stay_closed() -> None:
    whole = sent(range(0, 200_000, 1000))

    with pytest.raises(NotAuthentic):
        receiver().unprotect(whole[-1])


@pytest.mark.parametrize("keeps_counting", [True, False])
def test_a_new_key_is_taken_with_packets_of_the_old_one_on_their_way(keeps_counting: bool) -> None:
    here = receiver()
    before = sent(range(65000, 66000))
    new = sender(key=OTHER)
    after = sent(range(66000, 66100), one=new)
    if keeps_counting:
        new = sender(key=OTHER)
        after = sent(range(30000, 66100), one=new)[-100:]
    for packet in before[:-2]:
        here.unprotect(packet)

    here.rekey(CM80, OTHER[:30])

    mixed = [after[0], before[-2], after[1], before[-1], *after[2:]]
    assert [here.unprotect(one) for one in mixed] == [
        rtp(66000), rtp(65998), rtp(66001), rtp(65999), *(rtp(index) for index in range(66002, 66100)),
    ]  # fmt: skip


@pytest.mark.parametrize(("suite", "tag"), [(CM80, 10), (CM32, 4), (GCM, 0)])
def test_a_key_name_in_each_packet_is_taken_out(suite: str, tag: int) -> None:
    source, here = sender(suite), receiver(suite, mki=4)
    packet, report = source.protect(rtp(5)), source.protect_rtcp(RR)
    rtcp_tag = 10 if tag else 0

    def named(data: bytes, tag: int) -> bytes:
        return data[: len(data) - tag] + b"MKI1" + data[len(data) - tag :]

    assert here.unprotect(named(packet, tag)) == rtp(5)
    assert here.unprotect_rtcp(named(report, rtcp_tag)) == RR


def test_a_wrong_memory_of_the_counter_is_given_up() -> None:
    here = receiver(rollovers={1: 7})

    assert here.unprotect(sender().protect(rtp(5))) == rtp(5)


def test_no_repr_shows_a_key() -> None:
    assert KEY[:8] not in repr(receiver()).encode()
    assert repr(receiver()) == f"SrtpReceiver({CM80})"


@pytest.mark.parametrize("suite", available_suites())
def test_a_run_of_packets_is_opened_as_each_by_itself_would_be(suite: str) -> None:
    alone, together = receiver(suite), receiver(suite)
    indices = range(0x10000 - 10, 0x10000 + 30)
    source = sender(suite)
    packets = sent(indices, one=source)
    packets[9], packets[10] = packets[10], packets[9]  # out of order where the numbers begin anew
    assert together.unprotect_run(packets[:1]) == []  # a source that is not known yet
    assert together.unprotect(packets[0]) == alone.unprotect(packets[0]) == rtp(indices[0])
    broken = packets[20][:-1] + bytes([packets[20][-1] ^ 1])

    run = together.unprotect_run([*packets[1:20], broken, *packets[21:]])

    assert run == [alone.unprotect(one) for one in packets[1:20]]
    assert together.turned == alone.turned == [(1, 1)]
    with pytest.raises(NotAuthentic):
        together.unprotect(broken)
    assert together.unprotect_run(packets[21:23]) == [rtp(one) for one in indices[21:23]]
    with pytest.raises(Replayed):
        together.unprotect(packets[5])


def test_runs_are_opened_again_from_the_first_packet_under_a_new_key_on() -> None:
    here = receiver()
    old, new = sent(range(40)), sent(range(40, 80), one=sender(key=OTHER))
    here.unprotect(old[0])
    here.rekey(CM80, OTHER[:30])

    assert here.unprotect_run(old[1:30]) == [rtp(index) for index in range(1, 30)]
    assert here.unprotect_run([old[30], new[0], old[31]]) == [rtp(30)]
    assert here.unprotect(new[0]) == rtp(40)
    assert here.unprotect_run([*new[1:20], old[31], *new[20:]]) == [
        rtp(index) for index in range(41, 60)
    ]
    assert here.unprotect(old[31]) == rtp(31)
    assert here.unprotect_run(new[20:]) == [rtp(index) for index in range(60, 80)]
    with pytest.raises(Replayed):
        here.unprotect(new[30])
