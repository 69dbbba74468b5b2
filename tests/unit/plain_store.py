"""A store that is a dictionary: as strict as any (`test_stores.py` holds it to the contract), and the quickest."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Self

from kafka_backup.records import Buffer
from kafka_backup.repository.cloud_store import CloudReader
from kafka_backup.repository.store import (
    ObjectExistsError,
    ObjectInfo,
    ObjectNotFoundError,
    check_folder,
    check_key,
)


class PlainStore:
    """A `Store`. `objects` is what it holds at first."""

    def __init__(self, url: str, objects: Mapping[str, bytes] = MappingProxyType({})) -> None:
        self.url = url
        self._objects = dict(objects)
        self._lock = threading.Lock()

    def copy(self, url: str) -> PlainStore:
        """Another store with the same objects."""
        with self._lock:
            return PlainStore(url, self._objects)

    def create(self, key: str) -> PlainWriter:
        return PlainWriter(self, check_key(key))

    def put(self, key: str, data: bytes) -> None:
        with self._lock:
            if key in self._objects:
                raise ObjectExistsError(f"{self.url}/{key} exists already; nothing was changed")
            self._objects[key] = data

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        try:
            return self._objects[check_key(key)][start:end]
        except KeyError:
            raise ObjectNotFoundError(f"{self.url}/{key} does not exist") from None

    def open(self, key: str) -> CloudReader:
        return CloudReader(memoryview(self.get(key)))

    def size(self, key: str) -> int | None:
        data = self._objects.get(check_key(key))
        return None if data is None else len(data)

    def list(self, folder: str, start_after: str = "") -> Iterator[ObjectInfo]:
        check_folder(folder)
        with self._lock:
            found = sorted(
                (key, len(data))
                for key, data in self._objects.items()
                if key.startswith(folder) and key > start_after
            )
        return (ObjectInfo(key=key, size=size) for key, size in found)

    def folders(self, folder: str) -> Sequence[str]:
        check_folder(folder)
        with self._lock:
            below = [key.removeprefix(folder) for key in self._objects if key.startswith(folder)]
        return sorted({rest.partition("/")[0] for rest in below if "/" in rest})

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(check_key(key), None)

    def leftovers(self, *, remove: bool) -> Sequence[ObjectInfo]:
        return ()


class PlainWriter:
    """An `ObjectWriter`."""

    def __init__(self, store: PlainStore, key: str) -> None:
        self._store = store
        self._key = key
        self._data = bytearray()

    def write(self, data: Buffer) -> None:
        self._data += data

    def commit(self) -> None:
        self._store.put(self._key, bytes(self._data))
        self.abort()

    def abort(self) -> None:
        self._data = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()
