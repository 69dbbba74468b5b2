"""Runs several actors on one store, one call at a time, in an order that a test decides."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from random import Random
from types import TracebackType
from typing import Any, Self, TypeVar

import pytest

from kafka_backup import retention, verify
from kafka_backup.records import Buffer
from kafka_backup.repository import checkpoints, commit_log, repository
from kafka_backup.repository.store import ObjectInfo, ObjectReader, ObjectWriter, Store

_T = TypeVar("_T")
_PATIENCE = 60.0


class InOneThread:
    """A ThreadPoolExecutor that has no threads, so that the order of calls is always the same."""

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def map(self, call: Callable[..., _T], *items: Iterable[Any]) -> Iterator[_T]:
        return iter([call(*each) for each in zip(*items, strict=False)])

    def submit(self, call: Callable[..., _T], *args: Any) -> Future[_T]:
        future: Future[_T] = Future()
        future.set_result(call(*args))
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


@contextmanager
def in_one_thread() -> Iterator[None]:
    """Everything that reads or deletes objects does it without threads: in the same order each time, and sooner."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (checkpoints, commit_log, repository, retention, verify):
            patch.setattr(module, "ThreadPoolExecutor", InOneThread)
        yield


class Actor:
    """A run of some work; it waits before each call to its store until it is let go.

    Attributes:
        name: for messages.
        error: what ended the work, if not its own end.
        calls: the calls that it has made.
    """

    def __init__(self, name: str, store: Store, work: Callable[[Store], object]) -> None:
        self.name = name
        self.error: BaseException | None = None
        self.ended = False
        self.calls: list[str] = []
        self._work = work
        self._store = SteppedStore(store, self)
        self._go = threading.Semaphore(0)
        self._waits = threading.Semaphore(0)
        self._killed = False
        self._is_alone = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._wait()

    def step(self) -> None:
        """Let it make one call, and come to the next."""
        self._go.release()
        self._wait()

    def run(self) -> None:
        """Let it make all of its calls."""
        if not self.ended:
            self._is_alone = True
            self.step()

    def kill(self) -> None:
        """End it as SIGKILL does: it makes no other call."""
        if not self.ended:
            self._killed = True
            self.step()

    def pause(self, call: str) -> None:
        """Called by the store, in the actor's thread."""
        if not self._is_alone:
            self._waits.release()
            self._go.acquire()
        if self._killed:
            raise Killed
        self.calls.append(call)

    def _run(self) -> None:
        try:
            self._work(self._store)
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.error = error
        self.ended = True
        self._waits.release()

    def _wait(self) -> None:
        assert self._waits.acquire(timeout=_PATIENCE), f"{self.name} hangs after {self.calls[-3:]}"


class Killed(BaseException):
    """Nothing in the program may catch it."""


class SteppedStore:
    """Passes every call on to a store, each when its actor is let go."""

    def __init__(self, store: Store, actor: Actor) -> None:
        self._store = store
        self._actor = actor

    @property
    def url(self) -> str:
        return self._store.url

    def create(self, key: str) -> ObjectWriter:
        return _SteppedWriter(self._store.create(key), key, self._actor)

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        self._actor.pause(f"get {key}")
        return self._store.get(key, start, end)

    def open(self, key: str) -> ObjectReader:
        self._actor.pause(f"read {key}")
        return self._store.open(key)

    def size(self, key: str) -> int | None:
        self._actor.pause(f"size {key}")
        return self._store.size(key)

    def list(self, folder: str, start_after: str = "") -> Iterator[ObjectInfo]:
        self._actor.pause(f"list {folder}")
        return iter(list(self._store.list(folder, start_after)))

    def folders(self, folder: str) -> Sequence[str]:
        self._actor.pause(f"folders {folder}")
        return self._store.folders(folder)

    def delete(self, key: str) -> None:
        self._actor.pause(f"delete {key}")
        self._store.delete(key)

    def leftovers(self, *, remove: bool) -> Sequence[ObjectInfo]:
        self._actor.pause("leftovers")
        return self._store.leftovers(remove=remove)


class _SteppedWriter:
    def __init__(self, writer: ObjectWriter, key: str, actor: Actor) -> None:
        self._writer = writer
        self._key = key
        self._actor = actor

    def write(self, data: Buffer) -> None:
        self._writer.write(data)

    def commit(self) -> None:
        self._actor.pause(f"create {self._key}")
        self._writer.commit()

    def abort(self) -> None:
        self._writer.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def run_to_end(actor: Actor) -> None:
    """Let an actor go on alone until it ends."""
    actor.run()
    assert actor.ended


def run_at_random(actors: Sequence[Actor], random: Random, *, may_die: bool) -> None:
    """Let actors go on in turns of random length until all have ended, or died."""
    while alive := [actor for actor in actors if not actor.ended]:
        actor = random.choice(alive)
        if may_die and random.random() < 0.02:
            actor.kill()
        for _ in range(random.choice([1, 1, 2, 5, 20])):
            if not actor.ended:
                actor.step()
