"""Object stores: a directory, or s3://, gs:// and az:// by fsspec.

Blocking, and safe to use from several threads. An object is there whole or not at all. Memory does
not grow with its size.
"""

import base64
import binascii
import contextlib
import hashlib
import importlib
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol
from urllib.parse import unquote, urlsplit

from siprec_bridge.provider import ConfigurationError

BLOCK: Final = 1 << 24  # octets read, sent and held at once; a part of a multipart upload
_EXTRAS = {
    "s3": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}


class ObjectError(OSError):
    """The store cannot be reached or refuses."""


class NotThere(ObjectError):
    """There is no such object."""


class Damaged(ObjectError):
    """What the store has is not what it was given."""


class Interrupted(Exception):
    """We were told to stop."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What a file's content is known by; hexadecimal. `etag`: what S3 calls it, sent in our parts."""

    size: int
    sha256: str
    md5: str
    etag: str


class ObjectStore(Protocol):
    """Objects by key (`folder/name`). All methods raise ObjectError.

    `place` is its URL. `stop` ends the work early, in Interrupted.
    """

    place: str

    def put(self, key: str, source: Path, stop: threading.Event) -> Sums:
        """Write or replace an object with a file's content; durable when this returns."""
        ...

    def check(self, key: str, sums: Sums, stop: threading.Event) -> None:
        """Raise Damaged unless the object is this: by the store's checksum, else read back."""
        ...

    def proves(self, key: str, sums: Sums) -> bool:
        """Whether the store itself says that the object is this. False: not, or it cannot tell."""
        ...

    def size(self, key: str) -> int:
        """Octets of an object. Raises NotThere."""
        ...

    def read(self, key: str, start: int, end: int) -> bytes:
        """A stretch of an object. Raises NotThere."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        ...


def open_store(url: str, options: Mapping[str, object] | None = None) -> ObjectStore:
    """The store that a URL names; a plain path is a directory. Does not talk to it.

    `options` go to fsspec's file system as they are. Raises ConfigurationError.
    """
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        path = Path(unquote(parts.path)).expanduser().absolute()
        if parts.netloc or path == Path("/"):
            raise ConfigurationError(f"ARCHIVE_URL={url}", "write file:///folder, or /folder")
        return DirectoryStore(path)
    extra = _EXTRAS.get(parts.scheme)
    if extra is None:
        raise ConfigurationError(
            f"ARCHIVE_URL={url}", "s3://, gs://, az://, file:// or a directory is needed"
        )
    if not parts.netloc:
        raise ConfigurationError(f"ARCHIVE_URL={url}", "names no bucket or container")
    return RemoteStore(url, extra, options or {})


def sums_of(source: Path, stop: threading.Event | None = None) -> Sums:
    """Read a file and say what it is. Raises OSError, Interrupted."""
    with source.open("rb") as file:
        summing = _Summing()
        for block in _blocks(file, stop):
            summing.take(block)
    return summing.sums


class DirectoryStore:
    """A directory, on another disk or another machine's."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.place = root.as_uri()

    def put(self, key: str, source: Path, stop: threading.Event) -> Sums:
        """See ObjectStore."""
        with source.open("rb") as file, _as_object_errors(key):
            self._require()
            target = self._root / key
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
            summing = _Summing()
            try:
                with part.open("xb") as out:
                    for block in _blocks(file, stop):
                        summing.take(block)
                        out.write(block)
                    out.flush()
                    os.fsync(out.fileno())
                    # So that to read it back is to read the disk.
                    os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                part.replace(target)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            self._sync(target.parent)
            for old in target.parent.glob(f".{target.name}.*.part"):  # of one that was killed
                old.unlink(missing_ok=True)
        return summing.sums

    def check(self, key: str, sums: Sums, stop: threading.Event) -> None:
        """See ObjectStore."""
        with _as_object_errors(key):
            self._require()
            _compare(key, sums_of(self._root / key, stop), sums)

    def proves(self, key: str, sums: Sums) -> bool:
        """See ObjectStore: a directory knows no checksums."""
        return False

    def size(self, key: str) -> int:
        """See ObjectStore."""
        with _as_object_errors(key):
            self._require()
            return (self._root / key).stat().st_size

    def read(self, key: str, start: int, end: int) -> bytes:
        """See ObjectStore."""
        with _as_object_errors(key):
            self._require()
            with (self._root / key).open("rb") as file:
                file.seek(start)
                return file.read(end - start)

    def delete(self, key: str) -> None:
        """See ObjectStore. Folders that are empty then go, too, but not the root."""
        with _as_object_errors(key):
            self._require()
            target = self._root / key
            target.unlink(missing_ok=True)
            for folder in target.parents:
                if folder == self._root:
                    break
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    continue
                except OSError:  # something is in it
                    break

    def _require(self) -> None:
        """The root is never made: a mount that is missing must not look like an empty store."""
        if not self._root.is_dir():
            raise ObjectError(f"{self._root} is no directory")

    def _sync(self, folder: Path) -> None:
        """Make the names durable, those of new folders, too."""
        while True:
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if folder == self._root:
                return
            folder = folder.parent


class RemoteStore:
    """Whatever fsspec reaches in which a put is visible whole or not at all."""

    def __init__(self, url: str, extra: str, options: Mapping[str, object]) -> None:
        protocol = urlsplit(url).scheme
        try:
            self._fs: Any = _file_system(protocol)(
                **(_DEFAULTS.get(extra, {}) | dict(options)), use_listings_cache=False
            )
        except ImportError as error:
            raise ConfigurationError(
                f"ARCHIVE_URL={protocol}://…", f"needs: pip install 'siprec-bridge[{extra}]'"
            ) from error
        except Exception as error:  # each library has errors of its own for wrong options
            raise ConfigurationError(
                f"ARCHIVE_URL={url}", f"with ARCHIVE_OPTIONS: {error}"
            ) from error
        self._root: str = self._fs._strip_protocol(url).rstrip("/")
        self.place = f"{protocol}://{self._root}"

    def put(self, key: str, source: Path, stop: threading.Event) -> Sums:
        """See ObjectStore."""
        with source.open("rb") as file, _as_object_errors(self.place):
            summing = _Summing()
            target = self._fs.open(f"{self._root}/{key}", "wb", block_size=BLOCK)
            try:
                for block in _blocks(file, stop):
                    summing.take(block)
                    target.write(block)
                target.close()
            except BaseException as error:
                # It must not become an object with what was sent so far.
                with contextlib.suppress(Exception):
                    target.discard()
                target.closed = True
                if isinstance(error, FileNotFoundError):
                    raise ObjectError(f"{self.place}: no such bucket or container") from error
                raise
        return summing.sums

    def check(self, key: str, sums: Sums, stop: threading.Event) -> None:
        """See ObjectStore."""
        with _as_object_errors(key):
            info = self._info(key)
            if info.get("size") != sums.size:
                raise Damaged(f"{key}: the store has {info.get('size')} octets of {sums.size}")
            if _proven(info, sums):
                return
            summing = _Summing()
            for start in range(0, sums.size, BLOCK):
                if stop.is_set():
                    raise Interrupted
                summing.take(self.read(key, start, min(start + BLOCK, sums.size)))
            _compare(key, summing.sums, sums)

    def proves(self, key: str, sums: Sums) -> bool:
        """See ObjectStore."""
        try:
            with _as_object_errors(key):
                info = self._info(key)
        except NotThere:
            return False
        return bool(info.get("size") == sums.size and _proven(info, sums))

    def size(self, key: str) -> int:
        """See ObjectStore."""
        with _as_object_errors(key):
            return int(self._info(key)["size"])

    def read(self, key: str, start: int, end: int) -> bytes:
        """See ObjectStore."""
        if start >= end:
            return b""
        with _as_object_errors(key):
            data: bytes = self._fs.cat_file(f"{self._root}/{key}", start=start, end=end)
            return data

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        with contextlib.suppress(NotThere), _as_object_errors(key):
            self._fs.rm_file(f"{self._root}/{key}")

    def _info(self, key: str) -> dict[str, Any]:
        path = f"{self._root}/{key}"
        info: dict[str, Any] = self._fs.info(path)
        if info.get("type") != "file":
            raise FileNotFoundError(path)
        return info


def _file_system(protocol: str) -> Any:
    """The class. Raises ImportError: its extra is not installed."""
    if protocol in ("gs", "gcs"):
        # Not the one that is made by default: it asks by gRPC first what kind of bucket it is, for a
        # minute each time where gRPC does not get through, and in Rapid buckets half an object can
        # be seen.
        return importlib.import_module("gcsfs.core").GCSFileSystem
    import fsspec

    return fsspec.get_filesystem_class(protocol)


# A store that does not answer is told as such within a minute; we try again by ourselves.
_DEFAULTS: dict[str, dict[str, object]] = {
    "s3": {
        "config_kwargs": {
            "connect_timeout": 10,
            "read_timeout": 60,
            "retries": {"max_attempts": 2, "mode": "standard"},
        }
    }
}


def _proven(info: Mapping[str, Any], sums: Sums) -> bool:
    """By a checksum that the store has made of what it received."""
    etag = str(info.get("ETag") or "").strip('"')  # S3's, unless it encrypts by keys of its own
    if etag and etag == sums.etag:
        return True
    with contextlib.suppress(ValueError, binascii.Error):
        md5 = info.get("md5Hash")  # Google's
        return bool(md5) and base64.b64decode(str(md5)).hex() == sums.md5
    return False


def _compare(key: str, found: Sums, wanted: Sums) -> None:
    if found.size != wanted.size:
        raise Damaged(f"{key}: the store has {found.size} octets of {wanted.size}")
    if found.sha256 != wanted.sha256:
        raise Damaged(f"{key}: the store has other content than it was given")


def _blocks(file: BinaryIO, stop: threading.Event | None) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        if stop is not None and stop.is_set():
            raise Interrupted
        yield block


class _Summing:
    """Sums of what is taken in blocks of BLOCK octets."""

    def __init__(self) -> None:
        self._size = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._parts: list[bytes] = []

    def take(self, block: bytes) -> None:
        self._size += len(block)
        self._sha256.update(block)
        self._md5.update(block)
        self._parts.append(hashlib.md5(block, usedforsecurity=False).digest())

    @property
    def sums(self) -> Sums:
        md5 = self._md5.hexdigest()
        etag = md5
        if self._size >= BLOCK:
            joined = hashlib.md5(b"".join(self._parts), usedforsecurity=False)
            etag = f"{joined.hexdigest()}-{len(self._parts)}"
        return Sums(self._size, self._sha256.hexdigest(), md5, etag)


@contextlib.contextmanager
def _as_object_errors(key: str) -> Iterator[None]:
    try:
        yield
    except (ObjectError, Interrupted):
        raise
    except FileNotFoundError as error:
        raise NotThere(f"{key}: is not there") from error
    except OSError as error:
        raise ObjectError(f"{key}: {error.strerror or error}") from error
    except Exception as error:  # each store's library has errors of its own
        text = " ".join(str(error).split())
        raise ObjectError(f"{key}: {type(error).__name__}: {text}") from error
