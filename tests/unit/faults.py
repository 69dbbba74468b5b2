"""A store that fails, lies or dies at a chosen call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from types import TracebackType
from typing import Self, TypeVar

from kafka_backup.errors import AuthorizationError, UnreachableError
from kafka_backup.records import Buffer
from kafka_backup.repository.store import ObjectExistsError, ObjectInfo, ObjectReader, ObjectWriter, Store

_T = TypeVar("_T")


class Fault(Enum):
    """What happens at the chosen call."""

    FAILS = "the store does not answer, and did nothing"
    REFUSED = "the store denies the right, and did nothing"
    ANSWER_LOST = "the store did it, and its answer is lost"
    TOLD_TWICE = "the store did it, the client tried again: it exists already"
    DIES_BEFORE = "the process dies before the call"
    DIES_AFTER = "the process dies after the call"


class ProcessDied(BaseException):
    """Nothing in the program may catch it."""


class FaultyStore:
    """Passes every call on to `store`, except that call number `at` (from 1) meets the fault.

    Attributes:
        calls: how many calls were made.
    """

    def __init__(self, store: Store, fault: Fault = Fault.FAILS, at: int = 0) -> None:
        self.calls = 0
        self._store = store
        self._fault = fault
        self._at = at
        self._dead = False

    @property
    def url(self) -> str:
        return self._store.url

    def do(self, call: Callable[[], _T], *, creates: bool = False) -> _T:
        if self._dead:
            raise ProcessDied
        self.calls += 1
        if self.calls != self._at:
            return call()
        if self._fault is Fault.FAILS:
            raise UnreachableError("the store does not answer")
        if self._fault is Fault.REFUSED:
            raise AuthorizationError("the store denies it")
        if self._fault is Fault.DIES_BEFORE:
            self._dead = True
            raise ProcessDied
        result = call()
        if self._fault is Fault.DIES_AFTER:
            self._dead = True
            raise ProcessDied
        if self._fault is Fault.ANSWER_LOST:
            raise UnreachableError("the store's answer is lost")
        if creates:
            raise ObjectExistsError("the object exists already")
        return result

    def create(self, key: str) -> ObjectWriter:
        return _FaultyWriter(self, self.do(lambda: self._store.create(key)))

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        return self.do(lambda: self._store.get(key, start, end))

    def open(self, key: str) -> ObjectReader:
        return _FaultyReader(self, self.do(lambda: self._store.open(key)))

    def size(self, key: str) -> int | None:
        return self.do(lambda: self._store.size(key))

    def list(self, folder: str, start_after: str = "") -> Iterator[ObjectInfo]:
        yield from self.do(lambda: list(self._store.list(folder, start_after)))

    def folders(self, folder: str) -> Sequence[str]:
        return self.do(lambda: self._store.folders(folder))

    def delete(self, key: str) -> None:
        self.do(lambda: self._store.delete(key))

    def leftovers(self, *, remove: bool) -> Sequence[ObjectInfo]:
        return self.do(lambda: self._store.leftovers(remove=remove))


class _FaultyReader:
    def __init__(self, store: FaultyStore, reader: ObjectReader) -> None:
        self._store = store
        self._reader = reader

    @property
    def size(self) -> int:
        return self._reader.size

    def read_into(self, buffer: memoryview, start: int) -> int:
        return self._store.do(lambda: self._reader.read_into(buffer, start))

    def close(self) -> None:
        self._reader.close()


class _FaultyWriter:
    def __init__(self, store: FaultyStore, writer: ObjectWriter) -> None:
        self._store = store
        self._writer = writer

    def write(self, data: Buffer) -> None:
        self._store.do(lambda: self._writer.write(data))

    def commit(self) -> None:
        self._store.do(self._writer.commit, creates=True)

    def abort(self) -> None:
        self._writer.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()
