"""Where audio and results lie: a shared directory, or whatever fsspec has a name for (s3://…).

Blocking. Whoever forks makes a store of its own afterwards: fsspec's remote file systems keep a
thread, which a fork does not take along.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from siprec_wrappers.farm.job import audio_key

# There a put is visible whole or not at all; elsewhere a part is written first, then renamed.
_WHOLE_PUTS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})


class StoreError(OSError):
    """The store cannot be reached or refuses."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An object: its name below the folder that was listed, when it was written (Unix time)."""

    name: str
    modified: float
    size: int


class Store(Protocol):
    """Objects by key (`folder/name`). Whatever is read was written whole.

    All methods raise StoreError; `get` and `fetch` raise FileNotFoundError for what is not there.
    """

    def check(self) -> None:
        """Raise StoreError when the store is not to be reached."""
        ...

    def put(self, key: str, data: bytes, *, durable: bool = False) -> None:
        """Write or replace an object. `durable`: it survives a crash once this returns."""
        ...

    def add_audio(self, path: Path) -> str:
        """Write an object that is named by its content; returns its key."""
        ...

    def get(self, key: str) -> bytes:
        """What an object holds."""
        ...

    def fetch(self, key: str, folder: Path) -> Path:
        """A local file that holds the object: its own, or a copy in `folder`. Not to be written."""
        ...

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        ...

    def modified(self, key: str) -> float | None:
        """When the store says that it was written (Unix time of its clock); None: it does not say."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        ...

    def entries(self, folder: str) -> list[Entry]:
        """What lies in a folder; none when there is no such folder."""
        ...


def open_store(url: str) -> Store:
    """The store that a URL names; a plain path is a directory. Raises StoreError."""
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        return DirectoryStore(Path(unquote(parts.path)).expanduser().absolute())
    return RemoteStore(url)


class DirectoryStore:
    """A directory that all see under the same path, or each under its own.

    Not by fsspec: to import it costs a client more CPU than all else that it does.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def check(self) -> None:
        """See Store. The directory is never made: a mount that is missing must not be hidden."""
        if not self._root.is_dir():
            raise StoreError(f"{self._root} is no directory")

    def put(self, key: str, data: bytes, *, durable: bool = False) -> None:
        """See Store."""
        with self._part(key) as part, part.open("xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())

    def add_audio(self, path: Path) -> str:
        """See Store. Without fsync: should it be lost, its job is lost with it and comes again."""
        self.check()
        with _as_store_errors("audio"):
            self._share(self._root / "audio", 0o070, make=True)
            part = self._root / "audio" / f".{secrets.token_hex(8)}.part"
            try:
                # At once: either takes as long as all the rest of the client's work.
                copying = _Copying(path, part)
                key = audio_key(_digest(path), path.suffix)
                copying.finish()
                self._share(part, 0o040)
                part.replace(self._root / key)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        return key

    def get(self, key: str) -> bytes:
        """See Store."""
        with _as_store_errors(key):
            return (self._root / key).read_bytes()

    def fetch(self, key: str, folder: Path) -> Path:
        """See Store: the object's own file."""
        with _as_store_errors(key):
            path = self._root / key
            path.stat()
            return path

    def exists(self, key: str) -> bool:
        """See Store."""
        with _as_store_errors(key):
            try:
                (self._root / key).stat()
            except FileNotFoundError:
                return False
            return True

    def modified(self, key: str) -> float | None:
        """See Store. Of a network's file system it is the server's clock."""
        with _as_store_errors(key), contextlib.suppress(FileNotFoundError):
            return (self._root / key).stat().st_mtime
        return None

    def delete(self, key: str) -> None:
        """See Store."""
        with _as_store_errors(key), contextlib.suppress(FileNotFoundError):
            (self._root / key).unlink()

    def entries(self, folder: str) -> list[Entry]:
        """See Store."""
        found = []
        with _as_store_errors(folder):
            try:
                names = list(os.scandir(self._root / folder))
            except FileNotFoundError:
                return []
            for one in names:
                with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                    about = one.stat()
                    found.append(Entry(one.name, about.st_mtime, about.st_size))
        return found

    def _share(self, path: Path, bits: int, *, make: bool = False) -> None:
        """Give the group what it may do with the root, whatever our umask: others have other users."""
        if make:
            try:
                path.mkdir()
            except FileExistsError:
                return
        allowed = self._root.stat().st_mode & bits
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode | allowed != mode:
            with contextlib.suppress(PermissionError):  # a file system with rights of its own
                path.chmod(mode | allowed)

    @contextlib.contextmanager
    def _part(self, key: str) -> Iterator[Path]:
        target = self._root / key
        with _as_store_errors(key):
            self.check()
            self._share(target.parent, 0o070, make=True)
            part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
            try:
                yield part
                self._share(part, 0o040)
                part.replace(target)
            except BaseException:
                part.unlink(missing_ok=True)
                raise


class _Copying:
    """A copy that is being made."""

    def __init__(self, source: Path, target: Path) -> None:
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, args=(source, target), daemon=True)
        self._thread.start()

    def _run(self, source: Path, target: Path) -> None:
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            self._error = error

    def finish(self) -> None:
        """Return when it is made. Raises OSError."""
        self._thread.join()
        if self._error is not None:
            raise self._error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class RemoteStore:
    """Any other file system of fsspec. Credentials and endpoint come from its own settings."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise StoreError("a store that is no directory needs siprec-bridge[farm]") from error

        protocol = url.partition(":")[0]
        try:
            self._fs: Any = fsspec.filesystem(
                protocol, use_listings_cache=False, skip_instance_cache=True
            )
        except (ImportError, ValueError) as error:
            raise StoreError(f"{url}: {error}") from error
        self._root: str = self._fs._strip_protocol(url).rstrip("/")
        self._whole_puts = protocol in _WHOLE_PUTS

    def check(self) -> None:
        """See Store."""
        # An object store has no folder before something is in it, but a bucket.
        place = self._root.partition("/")[0] if self._whole_puts else self._root
        with _as_store_errors(place):
            if not self._fs.exists(place):
                raise StoreError(f"{place} is not there")

    def put(self, key: str, data: bytes, *, durable: bool = False) -> None:
        """See Store. What such a store has, it keeps."""
        with self._target(key) as target:
            self._fs.pipe_file(target, data)

    def add_audio(self, path: Path) -> str:
        """See Store."""
        key = audio_key(_digest(path), path.suffix)
        with self._target(key) as target:
            self._fs.put_file(str(path), target)
        return key

    def get(self, key: str) -> bytes:
        """See Store."""
        with _as_store_errors(key):
            data: bytes = self._fs.cat_file(f"{self._root}/{key}")
            return data

    def fetch(self, key: str, folder: Path) -> Path:
        """See Store: a copy."""
        local = folder / key.rpartition("/")[2]
        with _as_store_errors(key):
            self._fs.get_file(f"{self._root}/{key}", str(local))
        return local

    def exists(self, key: str) -> bool:
        """See Store."""
        with _as_store_errors(key):
            try:
                self._fs.info(f"{self._root}/{key}")
            except FileNotFoundError:
                return False
            return True

    def modified(self, key: str) -> float | None:
        """See Store."""
        with _as_store_errors(key), contextlib.suppress(FileNotFoundError):
            return _modified(self._fs.info(f"{self._root}/{key}"))
        return None

    def delete(self, key: str) -> None:
        """See Store."""
        with _as_store_errors(key), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{key}")

    def entries(self, folder: str) -> list[Entry]:
        """See Store."""
        with _as_store_errors(folder):
            try:
                listed = self._fs.ls(f"{self._root}/{folder}", detail=True)
            except FileNotFoundError:
                return []
            return [
                # Unknown: never old enough to be removed.
                Entry(name, _modified(one) or time.time(), int(one.get("size") or 0))
                for one in listed
                if one["type"] == "file" and (name := one["name"].rpartition("/")[2])
            ]

    @contextlib.contextmanager
    def _target(self, key: str) -> Iterator[str]:
        with _as_store_errors(key):
            target = f"{self._root}/{key}"
            if self._whole_puts:
                yield target
                return
            folder, _, name = target.rpartition("/")
            self._fs.makedirs(folder, exist_ok=True)
            part = f"{folder}/.{name}.{secrets.token_hex(4)}.part"
            yield part
            self._fs.mv(part, target)


def _modified(info: dict[str, Any]) -> float | None:
    for field in ("LastModified", "mtime", "updated", "last_modified", "created"):
        value = info.get(field)
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, datetime):
            return value.timestamp()
    return None


@contextlib.contextmanager
def _as_store_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, StoreError):
        raise
    except OSError as error:
        raise StoreError(f"store: {what}: {error.strerror or error}") from error
    except Exception as error:
        raise StoreError(f"store: {what}: {type(error).__name__}: {error}") from error


def tidy(store: Store, older_than: float, clock_ahead: float = 0.0) -> int:
    """Remove what was written more than `older_than` seconds ago; returns how many objects.

    By the store's clock: ours may be `clock_ahead` seconds ahead of it.
    """
    horizon = time.time() - clock_ahead - older_than
    removed = 0
    for folder in ("audio", "results", "failures", "cancelled", "waiting", "workers"):
        for entry in store.entries(folder):
            if entry.modified < horizon:
                store.delete(f"{folder}/{entry.name}")
                removed += 1
    return removed
