"""Objects as files. Create-only by link(2), durable by fsync(2), whole or not there at all.

An object is written to a temporary file beside its place, synced, and linked to its name; link
fails where the name exists, so two writers cannot both win. The name, and each folder on the way to
it, is durable only once the folder that holds it is synced too. A temporary file that a crash left
behind has a name that no key can have, so it is never listed; and nobody holds its lock any more, so it
can be told from that of a writer at work.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from kafka_backup.errors import AuthorizationError, ConfigurationError, KafkaBackupError, UnreachableError
from kafka_backup.records import Buffer
from kafka_backup.repository.store import (
    ObjectExistsError,
    ObjectInfo,
    ObjectNotFoundError,
    check_folder,
    check_key,
)

_TEMPORARY = "tmp~"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_UNUSABLE = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EOPNOTSUPP}


class FileStore:
    """A `Store` in a folder of a local or mounted file system that has hard links."""

    def __init__(self, path: str | Path) -> None:
        """Use the folder `path` (absolute), which is made with the first object."""
        self._root = os.path.abspath(path)
        self._durable: set[str] = set()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"FileStore({self.url!r})"

    @property
    def url(self) -> str:
        """See `Store`."""
        return Path(self._root).as_uri()

    def create(self, key: str) -> FileWriter:
        """See `Store`."""
        return FileWriter(self, self._path(key))

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """See `Store`."""
        path = self._path(key)
        with _errors(path), open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            buffer = bytearray(max(0, min(size, size if end is None else end) - start))
            filled = _fill(file.fileno(), memoryview(buffer), start)
            return bytes(buffer if filled == len(buffer) else buffer[:filled])

    def open(self, key: str) -> FileReader:
        """See `Store`."""
        return FileReader(self._path(key))

    def size(self, key: str) -> int | None:
        """See `Store`."""
        path = self._path(key)
        try:
            with _errors(path):
                return os.stat(path).st_size
        except ObjectNotFoundError:
            return None

    def list(self, folder: str, start_after: str = "") -> Iterator[ObjectInfo]:
        """See `Store`."""
        yield from self._walk(check_folder(folder), start_after)

    def _walk(self, folder: str, start_after: str) -> Iterator[ObjectInfo]:
        # A folder sorts as "name/": "a-b/x" comes before "a/x", as in a store without folders.
        for name in sorted(self._entries(folder)):
            key = folder + name
            if name.endswith("/"):
                if key > start_after or start_after.startswith(key):
                    yield from self._walk(key, start_after)
            elif key > start_after:
                path = os.path.join(self._root, key)
                with _errors(path):
                    try:
                        size = os.stat(path).st_size
                    except FileNotFoundError:
                        continue
                yield ObjectInfo(key=key, size=size)

    def _entries(self, folder: str) -> Sequence[str]:
        path = os.path.join(self._root, folder)
        with _errors(path):
            try:
                with os.scandir(path) as entries:
                    return [
                        f"{entry.name}/" if entry.is_dir() else entry.name
                        for entry in entries
                        if not entry.name.startswith(_TEMPORARY)
                    ]
            except (FileNotFoundError, NotADirectoryError):
                return []

    def folders(self, folder: str) -> Sequence[str]:
        """See `Store`."""
        return sorted(name[:-1] for name in self._entries(check_folder(folder)) if name.endswith("/"))

    def delete(self, key: str) -> None:
        """See `Store`."""
        path = self._path(key)
        with _errors(path):
            try:
                os.unlink(path)
            except FileNotFoundError:
                return
            _sync_folder(os.path.dirname(path))

    def leftovers(self, *, remove: bool) -> Sequence[ObjectInfo]:
        """See `Store`. A writer holds the lock of its temporary file; what can be locked has none."""
        found = []
        for folder, _, names in os.walk(self._root):
            for name in names:
                if name.startswith(_TEMPORARY):
                    path = os.path.join(folder, name)
                    with _errors(path):
                        size = _size_if_left(path, remove=remove)
                    if size is not None:
                        found.append(ObjectInfo(key=os.path.relpath(path, self._root), size=size))
        return found

    def make_folder(self, folder: str) -> None:
        """Make a folder and those above it, so that their names survive a power cut.

        A folder that is there already may have been made a moment ago by a process that has not
        synced it yet; so each one inside the root is synced once by each process that relies on it.
        """
        with self._lock:
            chain = []
            while folder not in self._durable and folder != os.path.dirname(folder):
                chain.append(folder)
                folder = os.path.dirname(folder)
            for path in reversed(chain):
                made = not os.path.isdir(path) and _make_folder(path)
                if made or path.startswith(f"{self._root}/"):
                    _sync_folder(os.path.dirname(path))
                self._durable.add(path)

    def _path(self, key: str) -> str:
        return os.path.join(self._root, check_key(key))


class FileReader:
    """An `ObjectReader` for one file."""

    def __init__(self, path: str) -> None:
        self._path = path
        with _errors(path):
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.fstat(self._file).st_size
        self._open = True

    def read_into(self, buffer: memoryview, start: int) -> int:
        """See `ObjectReader`."""
        with _errors(self._path):
            return _fill(self._file, buffer, start)

    def close(self) -> None:
        """See `ObjectReader`."""
        if self._open:
            self._open = False
            os.close(self._file)


class FileWriter:
    """An `ObjectWriter` for one file."""

    def __init__(self, store: FileStore, path: str) -> None:
        self._path = path
        self._folder = os.path.dirname(path)
        with _errors(path, writes=True):
            store.make_folder(self._folder)
            self._file = self._create()
        self._open = True

    def _create(self) -> int:
        while True:
            self._temporary = os.path.join(self._folder, f"{_TEMPORARY}{secrets.token_hex(8)}")
            file = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            _lock(file, wait=True)
            # Before we had the lock it may have been taken for a leftover.
            if os.fstat(file).st_nlink:
                return file
            os.close(file)

    def write(self, data: Buffer) -> None:
        """See `ObjectWriter`."""
        view = memoryview(data).cast("B")
        with _errors(self._path):
            while len(view):
                view = view[os.write(self._file, view) :]

    def commit(self) -> None:
        """See `ObjectWriter`."""
        with _errors(self._path, writes=True):
            os.fsync(self._file)
            try:
                os.link(self._temporary, self._path)
            finally:
                # Also where the name exists: it may be our own, from a try whose sync failed.
                _sync_folder(self._folder)
        self.abort()

    def abort(self) -> None:
        """See `ObjectWriter`."""
        if self._open:
            self._open = False
            with _errors(self._temporary):
                # In this order: without its lock it would be taken for a leftover.
                try:
                    with suppress(FileNotFoundError):
                        os.unlink(self._temporary)
                finally:
                    os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def _fill(file: int, view: memoryview, start: int) -> int:
    """Read from `start` on until the view is full or the file ends; return the bytes read."""
    filled = 0
    while filled < len(view):
        count = os.preadv(file, [view[filled:]], start + filled)
        if count == 0:
            break
        filled += count
    return filled


def _lock(file: int, *, wait: bool) -> bool:
    """Lock a file for as long as it is open; False if somebody else has it, or there are no locks here."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, *_NO_LOCKS):
            return False
        raise
    return True


def _size_if_left(path: str, *, remove: bool) -> int | None:
    """What a temporary file takes up, if no writer has it any more."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        if not _lock(file, wait=False):
            return None
        found = os.fstat(file)
        if remove and found.st_nlink:
            os.unlink(path)
        # With two links it is an object too, of a writer that died just after it had made one.
        return found.st_size if found.st_nlink == 1 else 0
    finally:
        os.close(file)


def _make_folder(path: str) -> bool:
    try:
        os.mkdir(path)
    except FileExistsError:
        return False
    except FileNotFoundError:  # as in /proc, where nobody can make one
        raise ConfigurationError(
            f"{path}: no folder can be made there; choose another one for the repository"
        ) from None
    return True


def _sync_folder(path: str) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _errors(path: str, *, writes: bool = False) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _translated(error, path, writes=writes) from error


def _translated(error: OSError, path: str, *, writes: bool) -> KafkaBackupError:
    """The error of this package that tells the caller what to do about an error of the system."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    match error.errno:
        case errno.EEXIST:
            return ObjectExistsError(f"{path} exists already; nothing was changed")
        case errno.ENOENT if writes:
            return UnreachableError(
                f"{path} cannot be made: its folder, or what was written of it, was removed meanwhile; look who cleans "
                "up there and whether that disk is still mounted, then run again"
            )
        case errno.ENOENT:
            return ObjectNotFoundError(f"{path} does not exist")
        case number if number in _DENIED:
            return AuthorizationError(
                f"{path}: {reason}; give this user the right to read and write there, on a file system with hard "
                "links"
            )
        case number if number in _FULL:
            return UnreachableError(f"{path}: {reason}; make room there and run again")
        case number if number in _UNUSABLE:
            return ConfigurationError(f"{path}: {reason}; choose another folder for the repository")
    return UnreachableError(f"{path}: {reason}; check that disk, then run again")
