"""Captures, restores and expiries at the same time, in hundreds of orders: nothing referenced is ever gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from kafka_backup import restore, restore_plan, retention
from kafka_backup import verify as verification
from kafka_backup.errors import RefusedError, WriterConflictError
from kafka_backup.progress import StopToken
from kafka_backup.repository.documents import Commit, sha256_of
from kafka_backup.repository.expiry import pinned
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import (
    RestoreAttempt,
    RestorePlan,
    RestoreReport,
    RestoreRequest,
)
from kafka_backup.repository.store import Store
from kafka_backup.restore_target import TargetTopic
from kafka_backup.retention import RetentionPolicy
from tests.unit.histories import Cluster, capture, check_captures, read
from tests.unit.plain_store import PlainStore
from tests.unit.repositories import copy_of, memory_store
from tests.unit.scheduler import Actor, Killed, in_one_thread, run_at_random, run_to_end

KEEP = 2


class _Target:
    """A target cluster on which everything is as it should be."""

    largest_batch = 1 << 20

    def __init__(self, *_args: object) -> None:
        pass

    def check_rights(self, _targets: object) -> None:
        pass

    def replication_factor(self, _topic: str, _target: str, wanted: int) -> int:
        return wanted

    def look(self, *_args: object, **_kwargs: object) -> TargetTopic:
        return TargetTopic(defaults={"retention.ms": "-1"})

    def configuration(self, *_args: object, **_kwargs: object) -> dict[str, str]:
        return {}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(restore_plan, "TargetPreflight", _Target)
    with in_one_thread():
        yield


def opened(store: Store) -> Repository:
    return Repository.open(store, cluster_id=None, create=False)


@dataclass
class World:
    """A repository with a history, and everything that goes on in it.

    Attributes:
        restored: what each finished restore has read, by its id.
    """

    store: PlainStore = field(default_factory=memory_store)
    cluster: Cluster = field(default_factory=Cluster)
    ids: list[str] = field(default_factory=list)
    restored: dict[str, RestorePlan] = field(default_factory=dict)
    _restores: int = 0

    @classmethod
    def make(cls) -> World:
        """A world of its own with the same beginning."""
        known = cls._beginning()
        return cls(store=copy_of(known.store), cluster=deepcopy(known.cluster), ids=list(known.ids))

    @classmethod
    @cache
    def _beginning(cls) -> World:
        """Two topics, one of which forgets what is old; an old incarnation; what a killed capture left."""
        world = cls()
        world.cluster.create("orders").logs[0].produce(5)
        world.ids.append(capture(world.store, world.cluster))
        world.cluster.create("orders")
        world.cluster.create("payments")
        for _ in range(3):
            for topic in world.cluster.topics.values():
                topic.logs[0].produce(5)
            log = world.cluster.topics["payments"].logs[0]
            log.delete_below(log.end - 7)
            world.ids.append(capture(world.store, world.cluster))
        world.cluster.topics["orders"].logs[1].produce(3)
        capture(world.store, world.cluster, "orders", commits=False)
        world.change()
        world.ids.append(capture(world.store, world.cluster))
        world.change()
        return world

    def change(self) -> None:
        """Something happens in the cluster."""
        for topic in self.cluster.topics.values():
            topic.logs[0].produce(4)
        log = self.cluster.topics["payments"].logs[0]
        log.delete_below(log.end - 7)

    def capture(self, store: Store) -> None:
        """Capture everything, in two commits for each topic."""
        self.ids.append(capture(store, self.cluster, pieces=2))

    def restore(self, **wanted: Any) -> Callable[[Store], None]:
        """Restore what a request asks for."""
        self._restores += 1
        restore_id = f"r{self._restores}"
        request = RestoreRequest(restore_id=restore_id, prefix="x-", **wanted)
        target: Any = SimpleNamespace(survey=lambda _topics: SimpleNamespace(cluster_id="t"))

        def run(store: Store) -> None:
            repository = opened(store)
            plan = restore_plan.plan(request, repository=repository, cluster=target, admin=target)
            if plan.problems:
                raise RefusedError(plan.problems[0].kind)
            folder = repository.restore_folder(restore_id)
            plan = restore._pinned(plan, repository=repository, folder=folder, cluster=target, admin=target)
            folder.put_attempt(
                RestoreAttempt(
                    restore_id=restore_id,
                    attempt=1,
                    nonce="n",
                    started_at=1,
                    plan_sha256=sha256_of(plan.to_bytes()),
                    targets=(),
                )
            )
            for topic in plan.topics:
                log = repository.commit_log(topic.source, topic.source_topic_id)
                for part in topic.partitions:
                    found = read(store, log, part.partition, head=topic.head, start=part.source_start)
                    assert sorted(found) == list(range(min(found, default=0), max(found, default=-1) + 1))
                    assert len(found) == part.records, (restore_id, topic.source, part)
            folder.put_report(
                RestoreReport(
                    restore_id=restore_id,
                    attempt=1,
                    status="verified",
                    started_at=1,
                    verified_at=1,
                    ended_at=2,
                    target_cluster_id="t",
                    topics=(),
                    seconds=0.0,
                )
            )
            self.restored[restore_id] = plan

        return run

    def expire(self, store: Store) -> None:
        """Keep the newest captures."""
        plan = retention.plan(
            opened(store), RetentionPolicy(keep_captures=KEEP), unfinished=False, stop=StopToken()
        )
        retention.run(plan, repository=opened(store), stop=StopToken())

    def expire_all(self, store: Store) -> None:
        """The same, and everything that is not committed, which stops captures that run."""
        plan = retention.plan(
            opened(store), RetentionPolicy(keep_captures=KEEP), unfinished=True, stop=StopToken()
        )
        retention.run(plan, repository=opened(store), stop=StopToken())

    def verify(self, store: Store) -> None:
        """Prove the repository, while others change it."""
        report = verification.verify(opened(store), selection=None, level="data", stop=None)
        assert {problem.kind for problem in report.problems} <= {"lost", "truncated"}, report.problems

    def start(self, name: str, work: Callable[[Store], None]) -> Actor:
        return Actor(name, _Guarded(self.store), work)

    def check(self, *actors: Actor) -> None:
        """What must hold whatever has happened."""
        for actor in actors:
            # A restore that comes too late is refused; a capture that lost its place stops. No other way out.
            assert actor.error is None or isinstance(actor.error, RefusedError | Killed), (
                actor.name,
                actor.error,
                actor.calls[-5:],
            )
            if isinstance(actor.error, WriterConflictError):
                assert actor.name.startswith("capture"), (actor.name, actor.error)
        repository = opened(self.store)
        expired = {capture_id for expiry in repository.expiries() for capture_id in expiry.captures}
        kept = [capture_id for capture_id in repository.capture_ids() if capture_id not in expired]
        assert repository.capture_ids()[-1] in kept
        check_captures(self.store, self.cluster, whole=kept)
        for plan in repository.pins():
            self.check_plan(plan)
        self.verify(self.store)

    def check_plan(self, plan: RestorePlan) -> None:
        """A stored plan of a restore that was begun still finds all that it reads."""
        folder = opened(self.store).restore_folder(plan.request.restore_id)
        if folder.newest_attempt() is None:
            return
        for topic in plan.topics:
            log = opened(self.store).commit_log(topic.source, topic.source_topic_id)
            for part in topic.partitions:
                read(self.store, log, part.partition, head=topic.head, start=part.source_start)


class _Guarded:
    """A store that looks at each deletion: it was named by a sweep, and nobody still reads the object."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def delete(self, key: str) -> None:
        _, topic, topic_id, *_ = key.split("/")
        log = opened(self._store).commit_log(topic, topic_id)
        assert key in log.swept, f"{key} is deleted before a sweep names it"
        begun = [
            plan
            for plan in opened(self._store).pins()
            if opened(self._store).restore_folder(plan.request.restore_id).newest_attempt() is not None
        ]
        assert key not in pinned(log, begun), f"{key} is deleted under a restore"
        self._store.delete(key)


def works(world: World) -> dict[str, Callable[[Store], None]]:
    return {
        "capture": world.capture,
        "restore the second": world.restore(capture=world.ids[1]),
        "restore the newest": world.restore(topics=("payments",)),
        "restore the old incarnation": world.restore(topics=("orders",), incarnation=f"{1:022}"),
        "expire": world.expire,
        "expire all": world.expire_all,
        "verify": world.verify,
    }


NAMES = list(works(World.make()))


def worth_a_pause(actor: Actor) -> list[int]:
    """Where to interrupt what an actor did: before each call that changes something, and some others."""
    return [
        number
        for number, call in enumerate(actor.calls)
        if number % 6 == 0 or call.startswith(("create", "delete"))
    ]


@pytest.mark.parametrize("other", ["capture", "expire", "expire all", "restore the old incarnation"])
@pytest.mark.parametrize(
    "paused", ["capture", "expire", "restore the newest", "restore the old incarnation", "verify"]
)
def test_one_is_paused_while_another_runs(paused: str, other: str) -> None:
    """Each kind of run is paused in many places, another one runs from beginning to end, then the first goes on.

    It matters because a machine can freeze anywhere for any time, and nothing here rests on clocks.
    A writer that wakes up could commit what was deleted, or delete what was committed meanwhile.
    """
    world = World.make()
    alone = world.start(paused, works(world)[paused])
    run_to_end(alone)
    world.check(alone)
    for calls in worth_a_pause(alone):
        world = World.make()
        all_works = works(world)
        first = world.start(paused, all_works[paused])
        for _ in range(calls):
            first.step()
        second = world.start(other, works(world)[other])
        run_to_end(second)
        run_to_end(first)
        world.check(first, second)
        after = world.start("expire", world.expire)
        run_to_end(after)
        world.check(after)


@pytest.mark.parametrize("name", NAMES)
def test_one_dies_and_others_go_on(name: str) -> None:
    """Each kind of run is killed in many places; then a capture, an expiry and a restore go well.

    It matters because what is left behind must neither be lost nor stand in anybody's way.
    A half-done expiry could keep a capture from being restored, or be forgotten.
    """
    world = World.make()
    alone = world.start(name, works(world)[name])
    run_to_end(alone)
    for calls in [*worth_a_pause(alone), len(alone.calls)]:
        world = World.make()
        dying = world.start(name, works(world)[name])
        for _ in range(calls):
            dying.step()
        dying.kill()
        world.check(dying)
        for each in ("capture", "expire", "restore the newest", "expire all"):
            actor = world.start(each, works(world)[each])
            run_to_end(actor)
            assert actor.error is None, (each, actor.error)
            world.check(actor)


@pytest.mark.parametrize("seed", range(200))
def test_random_orders(seed: int) -> None:
    """Two captures, two expiries and three restores run at once, in random turns, and some are killed.

    It matters because three can meet in ways that two cannot.
    One order in a thousand is met within a month of schedules.
    """
    random = Random(seed)
    world = World.make()
    chosen = ["capture", "capture", "expire", random.choice(["expire", "expire all"]), "verify"]
    chosen += random.choices([name for name in NAMES if name.startswith("restore")], k=3)
    random.shuffle(chosen)
    actors = [world.start(name, works(world)[name]) for name in chosen]
    run_at_random(actors, random, may_die=seed % 2 == 0)
    world.check(*actors)
    for each in ("capture", "expire all"):
        actor = world.start(each, works(world)[each])
        run_to_end(actor)
        assert actor.error is None, (each, actor.error)
        world.check(actor)


def test_the_orders_are_worth_something() -> None:
    """Among the random orders there are restores that succeed and such that come too late, and captures that stop.

    It matters because a test of races that never meet proves nothing.
    The scheduler could let everybody run alone.
    """
    outcomes: set[tuple[str, str]] = set()
    for seed in range(60):
        random = Random(seed)
        world = World.make()
        chosen = ["capture", "capture", "expire all", "restore the old incarnation", "restore the newest"]
        actors = [world.start(name, works(world)[name]) for name in chosen]
        run_at_random(actors, random, may_die=False)
        outcomes |= {(actor.name, type(actor.error).__name__) for actor in actors}
        assert all(
            Commit.from_bytes(world.store.get(info.key), key="")
            for info in world.store.list("")
            if "/commits/" in info.key
        )
    assert outcomes == {
        ("capture", "NoneType"),
        ("capture", "WriterConflictError"),
        ("expire all", "NoneType"),
        ("restore the old incarnation", "NoneType"),
        ("restore the old incarnation", "RefusedError"),
        ("restore the newest", "NoneType"),
    }
