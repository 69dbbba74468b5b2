"""Objects in S3, GCS, Azure, and in memory, through obstore (the Rust object_store)."""

from __future__ import annotations

import mmap
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from io import FileIO
from types import TracebackType
from typing import Any, Self, cast

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)
from obstore.store import MemoryStore, from_url

from kafka_backup.errors import AuthorizationError, ConfigurationError, KafkaBackupError, UnreachableError
from kafka_backup.records import Buffer
from kafka_backup.repository.store import (
    ObjectExistsError,
    ObjectInfo,
    ObjectNotFoundError,
    check_folder,
    check_key,
)

_SPOOL_BYTES = 1 << 20
_SWITCHES = frozenset(
    {
        "allow_http",
        "allow_invalid_certificates",
        "http1_only",
        "http2_only",
        "http2_keep_alive_while_idle",
        "randomize_addresses",
    }
)
_CLIENT_OPTIONS = frozenset(
    {
        "connect_timeout",
        "default_content_type",
        "http2_keep_alive_interval",
        "http2_keep_alive_timeout",
        "pool_idle_timeout",
        "pool_max_idle_per_host",
        "proxy_ca_certificate",
        "proxy_excludes",
        "proxy_url",
        "read_timeout",
        "root_certificate",
        "timeout",
        "user_agent",
    }
)
"""obstore takes these apart from the store's own options, and panics where they are mixed."""
# A request carries a whole segment, so it may take longer than obstore's 30 s.
_CLIENT_DEFAULTS = {"connect_timeout": "5s", "timeout": "120s"}
# S3 demands a checksum of what it is to keep under Object Lock, and checks it on arrival everywhere.
_S3_DEFAULTS = {"checksum_algorithm": "SHA256"}

_DENIED = (PermissionDeniedError, UnauthenticatedError)
_DENIALS = ("401 Unauthorized", "403 Forbidden", "(code: AccessDenied)")
"""In errors that obstore gives no kind: of listings, and of bulk requests, which each deletion is."""

_memory: dict[str, MemoryStore] = {}
_memory_lock = threading.Lock()


def open_memory_store(name: str) -> CloudStore:
    """Return the store in this process's memory that everybody shares who names it `name`."""
    with _memory_lock:
        return CloudStore(
            f"memory://{name}", _memory.setdefault(name, MemoryStore()), spool_bytes=sys.maxsize
        )


def open_cloud_store(url: str, options: Mapping[str, str], *, retry_seconds: float) -> CloudStore:
    """Return the store at an s3://, gs:// or az:// URL; see `open_store`."""
    client: dict[str, object] = dict(_CLIENT_DEFAULTS)
    config: dict[str, str] = dict(_S3_DEFAULTS) if url.startswith("s3:") else {}
    for name, value in options.items():
        if name in _SWITCHES:
            if value.lower() not in ("true", "false"):
                raise ConfigurationError(f"repository option {name!r}: write true or false")
            client[name] = value.lower() == "true"
        elif name in _CLIENT_OPTIONS:
            client[name] = value
        else:
            config[name] = value
    try:
        store = from_url(
            url,
            config=cast("Any", config),
            client_options=cast("Any", client),
            retry_config={"max_retries": 10, "retry_timeout": timedelta(seconds=retry_seconds)},
        )
    except UnknownConfigurationKeyError as error:
        raise ConfigurationError(f"repository options: {_first_line(error)}") from None
    except (BaseError, ValueError, TypeError) as error:
        raise ConfigurationError(f"repository {url}: {_first_line(error)}") from None
    return CloudStore(url.rstrip("/"), store)


class CloudStore:
    """A `Store` on obstore. Conditional creation is one PUT with ``If-None-Match: *``."""

    def __init__(self, url: str, store: Any, *, spool_bytes: int = _SPOOL_BYTES) -> None:
        """Wrap a store of obstore; objects above `spool_bytes` wait in a temporary file until they are sent."""
        self._url = url
        self._store = store
        self._spool_bytes = spool_bytes

    def __repr__(self) -> str:
        return f"CloudStore({self._url!r})"

    @property
    def url(self) -> str:
        """See `Store`."""
        return self._url

    def create(self, key: str) -> CloudWriter:
        """See `Store`."""
        return CloudWriter(self._url, self._store, check_key(key), self._spool_bytes)

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """See `Store`."""
        check_key(key)
        with _errors(self._url, key):
            if start == 0 and end is None:
                return bytes(obstore.get(self._store, key).bytes())
            if end is None:
                return bytes(obstore.get(self._store, key, options={"range": {"offset": start}}).bytes())
            return bytes(obstore.get_range(self._store, key, start=start, end=end))

    def open(self, key: str) -> CloudReader:
        """See `Store`."""
        check_key(key)
        with _errors(self._url, key):
            return CloudReader(memoryview(obstore.get(self._store, key).bytes()))

    def size(self, key: str) -> int | None:
        """See `Store`."""
        check_key(key)
        try:
            with _errors(self._url, key):
                return obstore.head(self._store, key)["size"]
        except ObjectNotFoundError:
            return None

    def list(self, folder: str, start_after: str = "") -> Iterator[ObjectInfo]:
        """See `Store`."""
        check_folder(folder)
        found: list[tuple[bytes, int]] = []
        with _listing_errors(self._url, folder):
            pages = obstore.list(self._store, folder or None, offset=start_after or None, chunk_size=1000)
            for page in pages:
                found += [(info["path"].encode(), info["size"]) for info in page]
        # Not every store lists in order of keys, or leaves out what is not after the offset.
        found.sort()
        for path, size in found:
            key = path.decode()
            if key > start_after and key.startswith(folder):
                yield ObjectInfo(key=key, size=size)

    def folders(self, folder: str) -> Sequence[str]:
        """See `Store`."""
        check_folder(folder)
        with _listing_errors(self._url, folder):
            found = obstore.list_with_delimiter(self._store, folder or None)
        return sorted(prefix.rstrip("/").rsplit("/", 1)[-1] for prefix in found["common_prefixes"])

    def delete(self, key: str) -> None:
        """See `Store`."""
        check_key(key)
        try:
            with _errors(self._url, key):
                obstore.delete(self._store, key)
        except ObjectNotFoundError:
            return

    def leftovers(self, *, remove: bool) -> Sequence[ObjectInfo]:
        """See `Store`. An object is sent in one request, so nothing is left of one that was not sent."""
        return ()


class CloudReader:
    """An `ObjectReader` that holds what it fetched."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self.size = len(content)

    def read_into(self, buffer: memoryview, start: int) -> int:
        """See `ObjectReader`."""
        found = self._content[start : start + len(buffer)]
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        """See `ObjectReader`."""
        self._content = memoryview(b"")


class CloudWriter:
    """An `ObjectWriter` that sends everything in one request; large objects wait in a temporary file."""

    def __init__(self, url: str, store: Any, key: str, spool_bytes: int) -> None:
        self._spool_bytes = spool_bytes
        self._url = url
        self._store = store
        self._key = key
        self._memory = bytearray()
        self._file: FileIO | None = None

    def write(self, data: Buffer) -> None:
        """See `ObjectWriter`."""
        if self._file is None and len(self._memory) + len(data) <= self._spool_bytes:
            self._memory += data
            return
        folder = _temporary_folder()
        try:
            if self._file is None:
                # Without a buffer: what does not fit is known here, not when the file is sent or closed.
                self._file = tempfile.TemporaryFile("w+b", buffering=0, dir=folder)  # noqa: SIM115 - closed by abort
                _write_all(self._file, self._memory)
                self._memory = bytearray()
            _write_all(self._file, data)
        except OSError as error:
            raise UnreachableError(
                f"{self._url}/{self._key}: the temporary file in {folder} cannot be written ({error.strerror}); make "
                "room there or set TMPDIR, then run again"
            ) from error

    def commit(self) -> None:
        """See `ObjectWriter`."""
        try:
            self._send()
        except AuthorizationError:
            # Some stores deny to replace a locked object, where others say that it exists.
            if CloudStore(self._url, self._store).size(self._key) is None:
                raise
            raise ObjectExistsError(f"{self._url}/{self._key} exists already; nothing was changed") from None
        self.abort()

    def _send(self) -> None:
        with _errors(self._url, self._key, writes=True):
            if self._file is None:
                self._put(bytes(self._memory))
            else:
                # Never closed by us: it ends when the last piece of the request lets go of it.
                self._put(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))

    def _put(self, content: bytes | mmap.mmap) -> None:
        obstore.put(self._store, self._key, cast("Any", content), mode="create", use_multipart=False)

    def abort(self) -> None:
        """See `ObjectWriter`."""
        self._memory = bytearray()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def _temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except OSError as error:
        raise ConfigurationError(
            f"large objects wait in a temporary file until they are sent, and nowhere can one be made ({error.strerror}); "
            "set TMPDIR to a folder that can be written"
        ) from error


def _write_all(file: FileIO, data: Buffer) -> None:
    view = memoryview(data).cast("B")
    while len(view):
        view = view[file.write(view) :]


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]


@contextmanager
def _errors(url: str, key: str, *, writes: bool = False) -> Iterator[None]:
    place = f"{url}/{key}"
    try:
        yield
    except AlreadyExistsError:
        raise ObjectExistsError(f"{place} exists already; nothing was changed") from None
    except FileNotFoundError:
        if writes:
            raise _no_such_store(url) from None
        raise ObjectNotFoundError(f"{place} does not exist") from None
    except BaseError as error:
        raise _translated(error, place) from error


@contextmanager
def _listing_errors(url: str, folder: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise _no_such_store(url) from None
    except BaseError as error:
        # A listing of nothing is empty; obstore gives S3's NoSuchBucket as an error of no kind.
        if "404 Not Found" in _first_line(error):
            raise _no_such_store(url) from error
        raise _translated(error, f"{url}/{folder}") from error


def _no_such_store(url: str) -> KafkaBackupError:
    return ConfigurationError(f"repository {url}: the bucket or container does not exist; create it first")


def _translated(error: BaseError, place: str) -> KafkaBackupError:
    reason = _first_line(error)
    match error:
        case _ if isinstance(error, _DENIED) or any(word in reason for word in _DENIALS):
            return AuthorizationError(
                f"{place}: the store denies it; check the credentials and rights ({reason})"
            )
        case NotSupportedError() | InvalidPathError():
            return ConfigurationError(f"{place}: the store cannot do what a repository needs ({reason})")
    return UnreachableError(f"{place}: the store did not answer as it should; run again ({reason})")
