"""The spool: what arrived for one stream, appended as it came. THE TRUTH of a recording.

    magic | one JSON line: SpoolHeader | records: kind u8, flags u8, length u16, arrival u64, bytes

Numbers are little-endian, arrivals nanoseconds since 1970 (UTC). Nothing is ever rewritten: a
file that ends in the middle of a record, since its writer was killed, is whole up to there. One that
lost pages in its middle, which are zeros after a power cut, is read on from the next record behind them.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from siprec_bridge.sdp import Codec

MAGIC = b"SIPREC-SPOOL-1\n"
RECORD = np.dtype([("kind", "u1"), ("flags", "u1"), ("length", "<u2"), ("arrival", "<u8")])
# Kinds of records: a datagram; a JSON object with the member "event"; a datagram of RTCP that tells
# a source's clock or its end, in plain text.
RTP, EVENT, RTCP = 0, 1, 2
_CHUNK = 1 << 20
_MOST_PIECES = 1000  # of one system call
_LONGEST_HEADER = 1 << 20
_LAST_KIND = 15
_LONGEST_BODY = (1 << 16) - 1
_LATEST_NS = 1 << 62  # in 2116
_LONGEST_SURE = 2048  # octets of a datagram: a longer one may be something else
_DAY_NS = 24 * 3600 * 1_000_000_000
_SEARCHED = 1 << 16  # octets at a time
_PENDING_LIMIT = 4 << 20  # kept in memory while the disk is full: minutes of G.711


class MalformedSpool(Exception):
    """A file that is no spool; one that is cut short is none of these."""


@dataclass(frozen=True, slots=True)
class SpoolHeader:
    """Which stream the file belongs to, so that it can be finished without the database."""

    stream_id: str
    session_id: str
    index: int
    label: str
    codecs: tuple[Codec, ...]
    opened_ns: int


@dataclass(frozen=True, slots=True)
class Packets:
    """Datagrams in order of arrival: `data` holds them, the arrays say where. Shapes (n,)."""

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    arrivals_ns: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SpoolEvent:
    """Something that happened to the stream between two packets."""

    name: str  # paused, resumed, reopened, codecs
    at_ns: int
    codecs: tuple[Codec, ...] = ()


@dataclass(frozen=True, slots=True)
class ControlPacket:
    """A datagram of RTCP."""

    data: bytes
    at_ns: int


class SpoolWriter:
    """Appends to a spool; makes it when it is not there. `write` needs no copy of the data.

    As long as `write` takes all, whole records may be written to `descriptor` as well: a worker does
    so for nearly all packets, and calls `mend` when one did not go.
    What is there and no spool is set aside. Raises OSError when there is no room for a new one, of
    which nothing is left, and when it cannot be known what is in an old one.
    """

    def __init__(self, path: Path, header: SpoolHeader) -> None:
        self._pending: list[bytes] = []
        self._pending_size = 0
        self.dropped = 0  # octets that found no room for too long, and are lost
        size = 0
        try:
            size = _whole_size(path)
        except FileNotFoundError:
            pass
        except MalformedSpool:
            path.rename(path.with_suffix(".damaged.spool"))  # finishing tells of it
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self.descriptor = os.open(path, flags, 0o640)
        try:
            os.ftruncate(self.descriptor, size)
        except OSError:
            os.close(self.descriptor)
            raise
        self.reopened = size > 0
        if not self.reopened:
            line = json.dumps(_header_to_json(header)).encode()
            if (cause := self._append([MAGIC + line + b"\n"])) is not None:
                os.close(self.descriptor)
                path.unlink(missing_ok=True)
                raise OSError(errno.ENOSPC, cause, str(path))

    def write(self, pieces: list[memoryview] | list[bytes]) -> str | None:
        """Append whole records; returns why the disk does not take them, or None.

        What it did not take is tried again at the next call.
        """
        if self._pending:
            cause = self._append([b"".join(self._pending)])
            if cause is not None:
                self._keep(pieces)
                return cause
            self._pending, self._pending_size = [], 0
        cause = self._append(pieces)
        if cause is not None:
            self._keep(pieces)
        return cause

    def mend(self, records: memoryview, written: int) -> str | None:
        """As `write`, after the file took only so many octets of these records."""
        if written:  # no half record; `write` says why
            with contextlib.suppress(OSError):
                os.ftruncate(self.descriptor, os.fstat(self.descriptor).st_size - written)
        return self.write([records])

    def event(self, name: str, at_ns: int, codecs: tuple[Codec, ...] = ()) -> None:
        """Append an event, or several where a record has no room for all of its codecs."""
        told = {"event": name, "codecs": [_codec_to_json(one) for one in codecs]}
        body = json.dumps(told).encode()
        half = len(codecs) // 2
        if len(body) <= _LONGEST_BODY:
            self.write([_record(EVENT, at_ns, body)])
        elif half:
            self.event(name, at_ns, codecs[:half])
            self.event(name, at_ns, codecs[half:])
        else:  # no codec has parameters that long
            self.event(name, at_ns, tuple(replace(one, fmtp="") for one in codecs))

    def rtcp(self, at_ns: int, data: bytes) -> str | None:
        """Append a datagram of RTCP; returns as `write`."""
        return self.write([_record(RTCP, at_ns, data)])

    def close(self) -> None:
        """Make everything durable and close the file."""
        file = self.detach()
        with contextlib.suppress(OSError):  # a full disk: what is written is written
            os.fsync(file)
        os.close(file)

    def detach(self) -> int:
        """Write what waits, for the last time; the file is the caller's, to sync and to close."""
        if self._pending:
            self.write([])
        return self.descriptor

    def _append(self, pieces: list[memoryview] | list[bytes]) -> str | None:
        total = len(pieces[0]) if len(pieces) == 1 else sum(map(len, pieces))
        if not total:
            return None
        size = None
        try:
            size = os.fstat(self.descriptor).st_size
            if len(pieces) <= _MOST_PIECES:
                written = os.writev(self.descriptor, pieces)
            else:
                written = sum(
                    os.writev(self.descriptor, pieces[start : start + _MOST_PIECES])
                    for start in range(0, len(pieces), _MOST_PIECES)
                )
        except OSError as error:
            written, cause = -1, error.strerror
        else:
            cause = "no space left"
        if written == total:
            return None
        if size is None:  # the file system is not there: nothing was written
            return cause
        try:
            os.ftruncate(self.descriptor, size)  # no half record may be in the middle
        except OSError as error:
            return f"{cause}; {error.strerror}"
        return cause

    def _keep(self, pieces: list[memoryview] | list[bytes]) -> None:
        data = b"".join(pieces)
        if self._pending_size + len(data) > _PENDING_LIMIT:
            self.dropped += len(data)
            return
        self._pending.append(data)
        self._pending_size += len(data)


class SpoolReader:
    """Reads a spool from start to end in constant memory."""

    def __init__(self, path: Path) -> None:
        """Raises MalformedSpool, or OSError when it cannot be read."""
        self.path = path
        with path.open("rb") as file:
            self.header = _read_header(file)
            self._start = file.tell()

    def __iter__(self) -> Iterator[Packets | SpoolEvent | ControlPacket]:
        """Runs of packets, and events, in order. A cut-off end is left out.

        RTCP is in order among itself only: it does not break a run of packets.
        """
        with self.path.open("rb") as file:
            file.seek(self._start)
            rest = b""
            while chunk := file.read(_CHUNK):
                chunk = rest + chunk
                used, found = _parse(chunk)
                yield from found
                rest = chunk[used:]


class SpoolTail:
    """Reads on in a spool that is being written, as much at a time as `read` is asked for."""

    def __init__(self, path: Path) -> None:
        """Raises MalformedSpool, or OSError when it cannot be read."""
        with path.open("rb") as file:
            self.header = _read_header(file)
            self.at = file.tell()  # up to here it was read
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, limit: int = _CHUNK) -> tuple[list[Packets | SpoolEvent | ControlPacket], bool]:
        """What was appended since, as SpoolReader gives it, and whether there may be more already.

        Raises OSError.
        """
        chunk = os.pread(self._file, limit, self.at)
        used, found = _parse(chunk)
        self.at += used
        return found, len(chunk) == limit and used > 0

    @property
    def size(self) -> int:
        """Octets of the file now. Raises OSError."""
        return os.fstat(self._file).st_size

    def close(self) -> None:
        """Give the file back."""
        os.close(self._file)


def write_records(
    heads: npt.NDArray[np.void], lengths: npt.NDArray[np.int64], arrivals: npt.NDArray[np.int64]
) -> None:
    """Fill the record heads, dtype RECORD and shape (n,), of n datagrams."""
    heads["kind"], heads["flags"] = RTP, 0
    heads["length"], heads["arrival"] = lengths, arrivals


def _record(kind: int, at_ns: int, body: bytes) -> bytes:
    head = np.zeros(1, RECORD)
    head["kind"], head["length"], head["arrival"] = kind, len(body), at_ns
    return head.tobytes() + body


def _parse(chunk: bytes) -> tuple[int, list[Packets | SpoolEvent | ControlPacket]]:
    """The whole records at the front of a chunk, and how many octets they are."""
    found: list[Packets | SpoolEvent | ControlPacket] = []
    offsets: list[int] = []
    lengths: list[int] = []
    arrivals: list[int] = []
    data = np.frombuffer(chunk, np.uint8)

    def flush() -> None:
        if offsets:
            found.append(
                Packets(
                    data,
                    np.array(offsets, np.int64),
                    np.array(lengths, np.int64),
                    np.array(arrivals, np.uint64).astype(np.int64),
                )
            )
            offsets.clear()
            lengths.clear()
            arrivals.clear()

    at, end, size = 0, len(chunk), RECORD.itemsize
    while at + size <= end:
        arrival = int.from_bytes(chunk[at + 4 : at + 12], "little")
        if not 0 < arrival < _LATEST_NS or chunk[at] > _LAST_KIND or chunk[at + 1]:
            at = _next_record(data, at + 1)
            continue
        length = chunk[at + 2] | chunk[at + 3] << 8
        if at + size + length > end:
            break
        if chunk[at] == RTP:
            offsets.append(at + size)
            lengths.append(length)
            arrivals.append(arrival)
        elif chunk[at] == EVENT:
            flush()
            event = _read_event(chunk[at + size : at + size + length], arrival)
            if event is not None:
                found.append(event)
        elif chunk[at] == RTCP:
            found.append(ControlPacket(chunk[at + size : at + size + length], arrival))
        # Kinds of a later version are passed over.
        at += size + length
    flush()
    return at, found


def _next_record(data: npt.NDArray[np.uint8], start: int) -> int:
    """Where the next record begins, or may: one whose head could be one, with another behind it."""
    size = RECORD.itemsize
    heads: npt.NDArray[np.void] = np.ndarray(
        (max(0, len(data) - size + 1),), RECORD, data, strides=(1,)
    )

    def are_heads(some: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
        fits: npt.NDArray[np.bool_] = (some["kind"] <= _LAST_KIND) & (some["flags"] == 0)
        fits &= (some["arrival"] > 0) & (some["arrival"] < _LATEST_NS)
        fits &= (some["length"] <= _LONGEST_SURE) | (some["kind"] == EVENT)
        return fits

    for begin in range(start, len(heads), _SEARCHED):
        for at in (np.flatnonzero(are_heads(heads[begin : begin + _SEARCHED])) + begin).tolist():
            behind = at + size + int(heads["length"][at])
            if behind >= len(heads):
                return at
            apart = int(heads["arrival"][behind]) - int(heads["arrival"][at])
            if are_heads(heads[behind : behind + 1])[0] and abs(apart) < _DAY_NS:
                return at
    return max(start, len(heads))


def _read_event(body: bytes, at_ns: int) -> SpoolEvent | None:
    try:
        value = json.loads(body)
        return SpoolEvent(
            str(value["event"]), at_ns, tuple(_codec_from_json(one) for one in value["codecs"])
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _read_header(file: BinaryIO) -> SpoolHeader:
    if file.read(len(MAGIC)) != MAGIC:
        raise MalformedSpool("no spool")
    line = file.readline(_LONGEST_HEADER)
    try:
        value = json.loads(line)
        return SpoolHeader(
            stream_id=str(value["stream_id"]),
            session_id=str(value["session_id"]),
            index=int(value["index"]),
            label=str(value["label"]),
            codecs=tuple(_codec_from_json(one) for one in value["codecs"]),
            opened_ns=int(value["opened_ns"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MalformedSpool("its header cannot be read") from error


def _whole_size(path: Path) -> int:
    """Size up to the end of the last whole record; 0: it is empty. Raises OSError, MalformedSpool."""
    if not path.stat().st_size:
        return 0
    reader = SpoolReader(path)
    with path.open("rb") as file:
        file.seek(reader._start)
        size, rest = reader._start, b""
        while chunk := file.read(_CHUNK):
            chunk = rest + chunk
            used = _whole_records(chunk)
            size += used
            rest = chunk[used:]
    return size


def _whole_records(chunk: bytes) -> int:
    """Octets of the whole records at the front of a chunk.

    A tenth of the work of `_parse`: a worker that was started again goes through the spools of all
    its calls while their audio waits.
    """
    at, end, head = 0, len(chunk), RECORD.itemsize
    while at + head <= end:
        after = at + head + (chunk[at + 2] | chunk[at + 3] << 8)
        if after > end:
            break
        at = after
    return at


def _header_to_json(header: SpoolHeader) -> dict[str, object]:
    return {
        "stream_id": header.stream_id,
        "session_id": header.session_id,
        "index": header.index,
        "label": header.label,
        "codecs": [_codec_to_json(one) for one in header.codecs],
        "opened_ns": header.opened_ns,
    }


def _codec_to_json(codec: Codec) -> list[object]:
    return [codec.payload_type, codec.name, codec.clock_rate, codec.channels, codec.fmtp]


def _codec_from_json(value: list[object]) -> Codec:
    payload_type, name, rate, channels, fmtp = value
    return Codec(int(str(payload_type)), str(name), int(str(rate)), int(str(channels)), str(fmtp))
