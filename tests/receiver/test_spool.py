"""The spool's format, and what becomes of it when its writer dies."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.bridge import eventually
from harness.rtp import packets, read_wav, tone
from siprec_bridge.media import finish, finish_session
from siprec_bridge.receiver.spool import (
    MAGIC,
    RTP,
    MalformedSpool,
    Packets,
    SpoolEvent,
    SpoolHeader,
    SpoolReader,
    SpoolTail,
    SpoolWriter,
    _record,
)
from siprec_bridge.sdp import Codec

CODECS = (Codec(0, "PCMU", 8000), Codec(8, "PCMA", 8000))
SECOND = 1_000_000_000
anywhere = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def header(index: int = 0) -> SpoolHeader:
    return SpoolHeader(f"s-{index}", "s", index, str(index + 1), CODECS, 5 * SECOND)


def record(data: bytes, number: int, start: float = 10.0) -> bytes:
    return _record(RTP, round((start + 0.02 * number) * SECOND), data)


def write(folder: Path, datagrams: list[bytes], index: int = 0, start: float = 10.0) -> Path:
    path = folder / f"s-{index}.spool"
    writer = SpoolWriter(path, header(index))
    writer.write([record(one, number, start) for number, one in enumerate(datagrams)])
    writer.close()
    return path


def read(path: Path) -> list[bytes]:
    return [
        part.data[offset : offset + length].tobytes()
        for part in SpoolReader(path)
        if isinstance(part, Packets)
        for offset, length in zip(part.offsets.tolist(), part.lengths.tolist(), strict=True)
    ]


@anywhere
@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(0, 4000))
def test_a_file_cut_anywhere_reads_up_to_its_last_whole_record(
    tmp_path: Path, datagrams: list[bytes], cut: int
) -> None:
    (tmp_path / "s-0.spool").unlink(missing_ok=True)
    path = write(tmp_path, datagrams)
    whole = path.read_bytes()
    start = len(whole) - sum(12 + len(one) for one in datagrams)
    path.write_bytes(whole[: start + cut])

    got = read(path)

    assert got == datagrams[: len(got)]
    assert sum(12 + len(one) for one in datagrams[: len(got) + 1]) > cut or got == datagrams


@anywhere
@given(st.binary(max_size=200))
def test_any_file_is_a_spool_or_malformed(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.spool"
    for content in (data, MAGIC + data, write(tmp_path, []).read_bytes() + data):
        path.write_bytes(content)
        try:
            list(SpoolReader(path))
        except MalformedSpool:
            continue


@anywhere
@given(st.integers(0, 200 * 184), st.sampled_from([100, 4096, 20_000]))
def test_pages_that_a_power_cut_took_cost_what_was_on_them_and_nothing_behind(
    tmp_path: Path, lost_at: int, lost: int
) -> None:
    (tmp_path / "s-0.spool").unlink(missing_ok=True)
    voice = [number.to_bytes(2, "big") + bytes(range(170)) for number in range(200)]
    path = write(tmp_path, voice, start=1.7e9)
    whole = path.read_bytes()
    start = len(whole) - 200 * 184
    lost = min(lost, 200 * 184 - lost_at)
    at = start + lost_at
    path.write_bytes(whole[:at] + bytes(lost) + whole[at + lost :])
    intact = {
        one
        for number, one in enumerate(voice)
        if (number + 1) * 184 <= lost_at or number * 184 >= lost_at + lost
    }

    got = read(path)

    assert [one for one in got if one in intact] == [one for one in voice if one in intact]
    assert len(got) <= len(intact) + 2  # the ends of what was lost may look like records


def test_a_writer_goes_on_behind_the_half_record_of_a_dead_one(tmp_path: Path) -> None:
    path = write(tmp_path, [b"one", b"two"])
    path.write_bytes(path.read_bytes()[:-1])

    writer = SpoolWriter(path, header())
    writer.event("reopened", 20 * SECOND)
    writer.write([record(b"three", 3)])
    writer.close()

    assert writer.reopened
    assert read(path) == [b"one", b"three"]
    assert [one.name for one in SpoolReader(path) if isinstance(one, SpoolEvent)] == ["reopened"]


def test_a_writer_deletes_nothing_that_it_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, [b"one", b"two"])

    def no_file_left(self: Path, *_: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as crowded:
        crowded.setattr(Path, "open", no_file_left)
        with pytest.raises(OSError, match="Too many open files"):
            SpoolWriter(path, header())

    assert read(path) == [b"one", b"two"]


def test_what_is_there_and_no_spool_is_set_aside_and_told_of(tmp_path: Path) -> None:
    path = tmp_path / "s-0.spool"
    path.write_bytes(b"whatever this is")

    write(tmp_path, packets(tone(440, 0.2)))
    audio = finish_session(tmp_path, "s", 8000)

    assert [leg.packets for leg in audio.legs] == [10]
    assert audio.damaged == ("s-0.damaged.spool",)
    assert (tmp_path / "s-0.damaged.spool").read_bytes() == b"whatever this is"


def test_what_a_full_disk_did_not_take_is_written_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s-0.spool"
    writer = SpoolWriter(path, header())
    writev, room = os.writev, [0]

    def little_room(file: int, pieces: list[bytes]) -> int:
        if room[0]:
            return writev(file, pieces)
        writev(file, [b"".join(pieces)[:5]])  # a part of it, as a disk that fills up does
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", little_room)
    causes = [writer.write([record(b"one", 1)]), writer.write([record(b"two", 2)])]
    room[0] = 1
    causes.append(writer.write([record(b"three", 3)]))
    writer.close()

    assert causes == ["No space left on device", "No space left on device", None]
    assert read(path) == [b"one", b"two", b"three"]


def test_a_spool_that_there_is_no_room_to_begin_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s-0.spool"

    def no_room(file: int, pieces: list[bytes]) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "writev", no_room)
        with pytest.raises(OSError, match="No space left"):
            SpoolWriter(path, header())

    assert not path.exists()
    SpoolWriter(path, header()).close()
    assert read(path) == []


def test_finishing_again_changes_nothing_and_finishing_needs_only_the_folder(
    tmp_path: Path,
) -> None:
    write(tmp_path, packets(tone(440, 2.0)), 0, 10.0)
    write(tmp_path, packets(tone(1000, 1.0), codec="PCMA"), 1, 11.5)
    (tmp_path / "s-2.spool").write_bytes(b"no spool at all")
    (tmp_path / ".finishing-old").mkdir()

    first = finish_session(tmp_path, "s", 16000)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = finish_session(tmp_path, "s", 16000)

    assert again == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps
    assert first.damaged == ("s-2.spool",)
    assert not (tmp_path / ".finishing-old").exists()
    assert [(leg.label, leg.started_at.timestamp(), leg.packets) for leg in first.legs] == [
        ("1", 10.0, 100),
        ("2", 11.5, 50),
    ]
    assert first.stereo is not None
    rate, both = read_wav(tmp_path / first.stereo)
    assert len(both) == round(2.5 * rate)
    assert not both[: round(1.5 * rate), 1].any()
    assert both[round(1.5 * rate) :, 1].any()


def test_a_disk_that_takes_audio_in_parts_gets_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, packets(tone(440, 1.0)))
    pwrite = os.pwrite

    def some(file: int, data: bytes, at: int) -> int:
        return pwrite(file, data[:1000], at)  # as where room runs out, and comes back

    monkeypatch.setattr(os, "pwrite", some)
    (leg,) = finish_session(tmp_path, "s", 8000).legs

    _, heard = read_wav(tmp_path / leg.file)
    assert abs(heard.astype(int) - tone(440, 1.0).astype(int)).max() < 1100


def test_finishing_at_another_rate_makes_the_files_anew(tmp_path: Path) -> None:
    write(tmp_path, packets(tone(440, 1.0)))

    for rate in (16000, 8000, 44100):
        (leg,) = finish_session(tmp_path, "s", rate).legs
        assert read_wav(tmp_path / leg.file)[0] == rate
        assert leg.duration == pytest.approx(1.0, abs=0.001)


def test_a_codec_that_changes_in_mid_call_and_foreign_payloads_are_dealt_with(
    tmp_path: Path,
) -> None:
    pcm = tone(440, 2.0)
    first = packets(pcm[:8000])
    second = packets(pcm[8000:], codec="PCMA", first_sequence=150, first_timestamp=9000)
    foreign = [bytes([0x80, 96]) + one[2:] for one in first[:3]]
    path = write(tmp_path, [*first, *second, *foreign])

    (leg,) = finish_session(tmp_path, "s", 8000).legs

    _, heard = read_wav(tmp_path / leg.file)
    assert path.exists()
    assert (leg.packets, leg.foreign) == (100, 3)
    assert len(heard) == 16000
    assert abs(heard.astype(int) - pcm.astype(int)).max() < 1100


def test_a_clock_that_went_wild_ends_in_a_file_of_bounded_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finish, "_LONGEST_LINE_S", 60)
    writer = SpoolWriter(tmp_path / "s-0.spool", header())
    sent = packets(tone(440, 1.0))
    writer.write([record(one, 5_000 * number) for number, one in enumerate(sent)])
    writer.close()
    write(tmp_path, sent, 1, start=1e9)

    audio = finish_session(tmp_path, "s", 8000)

    assert [leg.duration for leg in audio.legs] == [60.0, 1.0]
    assert audio.duration == 60.0


async def test_the_finishing_process_ends_with_a_bridge_that_was_killed(tmp_path: Path) -> None:
    bridge = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _FINISH_AND_WAIT, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert bridge.stdout is not None
    finisher = int(await bridge.stdout.readline())
    bridge.kill()
    await bridge.wait()

    await eventually(lambda: not Path(f"/proc/{finisher}").exists(), "its end")


_FINISH_AND_WAIT = """
import asyncio, multiprocessing, pathlib, sys
from siprec_bridge.media.finisher import Finisher

async def main():
    await Finisher().finish(pathlib.Path(sys.argv[1]), "s", 8000)
    print(multiprocessing.active_children()[0].pid, flush=True)
    await asyncio.sleep(60)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_a_tail_reads_on_with_the_writer_and_takes_no_half_record(tmp_path: Path) -> None:
    voice = packets(tone(440, 0.2))
    writer = SpoolWriter(tmp_path / "s-0.spool", header())
    tail = SpoolTail(tmp_path / "s-0.spool")
    whole = b"".join(record(one, number) for number, one in enumerate(voice))
    got: list[bytes | str] = []
    for start in range(0, len(whole), 500):
        writer.write([whole[start : start + 500]])
        if start + 500 >= len(whole):
            writer.event("paused", 11 * SECOND)
        more = True
        while more:
            parts, more = tail.read(1000)
            for part in parts:
                if isinstance(part, Packets):
                    got += [
                        part.data[at : at + length].tobytes()
                        for at, length in zip(part.offsets, part.lengths, strict=True)
                    ]
                elif isinstance(part, SpoolEvent):
                    got.append(part.name)
    tail.close()
    writer.close()

    assert got == [*voice, "paused"]


def test_a_tail_of_what_is_no_spool_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.spool").touch()

    with pytest.raises(MalformedSpool):
        SpoolTail(tmp_path / "empty.spool")
