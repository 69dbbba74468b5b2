"""Expiry: old captures go, and never anything that is needed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafka_backup import retention
from kafka_backup.errors import ConfigurationError, KafkaBackupError, RefusedError, WriterConflictError
from kafka_backup.progress import StopToken
from kafka_backup.repository import layout
from kafka_backup.repository.documents import Commit
from kafka_backup.repository.group_documents import GroupSnapshot
from kafka_backup.repository.group_store import GroupStore
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import (
    PlannedPartition,
    PlannedTopic,
    RestorePlan,
    RestoreRequest,
)
from kafka_backup.repository.store import Store
from kafka_backup.restore import abandon
from kafka_backup.retention import ExpirePlan, ExpireReport, RetentionPolicy
from kafka_backup.times import time_in_id
from kafka_backup.verify import verify
from tests.unit.faults import Fault, FaultyStore, ProcessDied
from tests.unit.histories import (
    DAY,
    EPOCH,
    Cluster,
    capture,
    check_captures,
    read,
    segment_keys,
    whole_captures,
)
from tests.unit.plain_store import PlainStore
from tests.unit.repositories import copy_of, memory_store
from tests.unit.scheduler import in_one_thread


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with in_one_thread():
        yield


def opened(store: Store) -> Repository:
    return Repository.open(store, cluster_id=None, create=False)


def planned(store: Store, *, unfinished: bool = False, **policy: int) -> ExpirePlan:
    return retention.plan(opened(store), RetentionPolicy(**policy), unfinished=unfinished, stop=StopToken())


def expire(store: Store, *, unfinished: bool = False, **policy: int) -> ExpireReport:
    plan = planned(store, unfinished=unfinished, **policy)
    return retention.run(plan, repository=opened(store), stop=StopToken())


def is_right(store: Store) -> bool:
    report = verify(opened(store), selection=None, level="data", stop=None)
    assert {problem.kind for problem in report.problems} <= {"lost", "truncated"}, report.problems
    return True


def pin(store: Store, capture_id: str, *, restore_id: str = "r1") -> RestorePlan:
    """Store the plan of a restore of a whole capture."""
    repository = opened(store)
    topics = []
    for entry in repository.capture(capture_id).topics:
        log = repository.commit_log(entry.topic, entry.topic_id)
        partitions = [
            PlannedPartition(
                partition=partition,
                source_start=log.whole_from(partition, until_commit=entry.head),
                source_end=log.ranges_with_commits(partition, entry.head)[-1][1].end,
                segments=0,
                raw_bytes=0,
                batches=0,
                reencoded_batches=0,
                records=0,
            )
            for partition in log.partitions
            if log.ranges_with_commits(partition, entry.head)
        ]
        topics.append(
            PlannedTopic(
                source=entry.topic,
                source_topic_id=entry.topic_id,
                target="t",
                target_topic_id=None,
                target_configuration={},
                head=entry.head,
                head_sha256=entry.head_sha256,
                configured_by=entry.head,
                partition_count=2,
                replication_factor=1,
                configuration={},
                not_applied={},
                retention_ms=-1,
                retention_bytes=-1,
                max_batch_bytes=1,
                partitions=tuple(partitions),
            )
        )
    plan = RestorePlan(
        request=RestoreRequest(restore_id=restore_id),
        nonce="n",
        planned_at=1,
        repository_id="x",
        target_cluster_id="t",
        topics=tuple(topics),
    )
    repository.restore_folder(restore_id).put_plan(plan)
    return plan


def read_plan(store: Store, plan: RestorePlan) -> dict[tuple[str, int], dict[int, bytes]]:
    """What a restore with this plan reads; fails if anything is missing."""
    repository = opened(store)
    return {
        (topic.source, part.partition): read(
            store,
            repository.commit_log(topic.source, topic.source_topic_id),
            part.partition,
            head=topic.head,
            start=part.source_start,
        )
        for topic in plan.topics
        for part in topic.partitions
    }


def aged_topic(store: Store, *, captures: int = 4) -> tuple[Cluster, list[str]]:
    """A topic that holds its last ten records, and captures of it after each five new ones."""
    cluster = Cluster()
    log = cluster.create("orders").logs[0]
    ids = []
    for _ in range(captures):
        log.produce(5)
        log.delete_below(log.end - 10)
        ids.append(capture(store, cluster))
    return cluster, ids


def test_without_settings_everything_stays() -> None:
    """An expiry that is told nothing lets nothing go.

    It matters because a setting can be missing by mistake.
    A default that deletes would empty a repository that nobody meant to touch.
    """
    store = memory_store()
    cluster, ids = aged_topic(store)
    before = [(info.key, info.size) for info in store.list("")]
    report = expire(store)
    assert (report.captures, report.deleted, report.freed_bytes) == ([], 0, 0)
    assert [(info.key, info.size) for info in store.list("")] == before
    check_captures(store, cluster, whole=ids)


@pytest.mark.parametrize("policy", [{"keep_captures": 0}, {"keep_captures": -1}, {"keep_days": -1}])
def test_settings_that_make_no_sense(policy: dict[str, int]) -> None:
    """Keeping no capture, or a number below zero, is a wrong request.

    It matters because 0 can come from an empty variable.
    Everything would be let go at once.
    """
    with pytest.raises(ConfigurationError):
        RetentionPolicy(**policy)


def test_a_plan_changes_nothing() -> None:
    """A plan says what would go, and how much, and leaves every object as it was.

    It matters because expire is dry by default.
    Somebody who only looks would delete.
    """
    store = memory_store()
    aged_topic(store)
    before = [(info.key, store.get(info.key)) for info in store.list("")]
    plan = planned(store, keep_captures=1)
    assert [(info.key, store.get(info.key)) for info in store.list("")] == before
    report = retention.run(plan, repository=opened(store), stop=StopToken())
    assert report.deleted == len(plan.deletes) > 0
    assert report.freed_bytes == sum(info.size for info in plan.deletes)
    assert sum(
        size for _, size in ((k, len(d)) for k, d in before if k not in segment_keys(store) and ".log" in k)
    ) == (report.freed_bytes)


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 9])
def test_captures_that_stay_give_back_what_they_held(keep: int) -> None:
    """Of four captures the newest ones stay whole, and only what none of them needs is deleted.

    It matters because that is all that retention may do.
    A segment counted by the capture that wrote it, not by those that need it, would be missing from the newest.
    """
    store = memory_store()
    cluster, ids = aged_topic(store)
    report = expire(store, keep_captures=keep)
    assert report.captures == ids[:-keep]
    check_captures(store, cluster, whole=ids[-keep:])
    # The topic held 10 records each time: a capture that stays needs its own segment and the one before.
    assert len(segment_keys(store)) == min(4, keep + 1)
    assert is_right(store)
    again = expire(store, keep_captures=keep)
    assert (again.captures, again.deleted) == ([], 0)


@pytest.mark.parametrize("late", [0, 9 * DAY, 10_000 * DAY])
@pytest.mark.parametrize(("days", "expected"), [(0, 1), (1, 1), (9, 1), (10, 2), (29, 3), (30, 4)])
def test_captures_are_kept_for_days(
    monkeypatch: pytest.MonkeyPatch, days: int, expected: int, late: int
) -> None:
    """Captures of the last so many days stay, counted back from the newest, whenever the expiry runs.

    It matters because backups can have stood still for a while, and the clock of the expiry can be years ahead.
    Every capture but one would be gone on the day it is needed.
    """
    store = memory_store()
    cluster = Cluster()
    log = cluster.create("orders").logs[0]
    ids = []
    for _ in range(4):
        log.produce(5)
        log.delete_below(log.end - 5)
        ids.append(capture(store, cluster))
        cluster.now += 10 * DAY - 1000
    newest = opened(store).capture(ids[-1]).started_at
    monkeypatch.setattr(retention, "_now", lambda: newest + late)
    report = expire(store, keep_days=days)
    assert report.captures == ids[: 4 - expected]
    check_captures(store, cluster, whole=ids[4 - expected :])


def test_either_setting_keeps_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """With both settings a capture stays that one of them keeps.

    It matters because two wishes to keep must not add up to less.
    "The last 3" would be lost when they are older than the days, or the other way round.
    """
    store = memory_store()
    _, ids = aged_topic(store)
    monkeypatch.setattr(retention, "_now", lambda: EPOCH + 100 * DAY)
    assert planned(store, keep_captures=3, keep_days=0).captures == ids[:1]
    assert planned(store, keep_captures=1, keep_days=1000).captures == []


def test_a_capture_from_the_future_stops_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture that has not begun yet is refused with its time, and nothing is let go.

    It matters because a clock that was wrong once makes one capture the newest for years.
    Every real capture after it would count as older, and go.
    """
    store = memory_store()
    _, ids = aged_topic(store)
    monkeypatch.setattr(retention, "_now", lambda: EPOCH - 2 * DAY)
    with pytest.raises(
        RefusedError, match=rf"{ids[-1]} began at 2023-11-14T22:13:24.000Z, which has not come yet"
    ):
        planned(store, keep_captures=1)


def test_captures_count_for_each_topic() -> None:
    """Captures of other topics push none out: of each topic the newest so many stay.

    It matters because a large cluster is captured in parts, each a capture of its own.
    Twenty parts a day would leave one topic's only capture outside "the newest 10".
    """
    store = memory_store()
    cluster = Cluster()
    ids: dict[str, list[str]] = {"a": [], "b": []}
    for name in ids:
        cluster.create(name)
    for name in ("a", "a", "b", "b", "b", "b"):
        log = cluster.topics[name].logs[0]
        log.produce(5)
        log.delete_below(log.end - 5)
        ids[name].append(capture(store, cluster, name))
    assert expire(store, keep_captures=2).captures == ids["b"][:2]
    check_captures(store, cluster, whole=[*ids["a"], *ids["b"][2:]])


def test_what_kafka_still_held_is_never_deleted() -> None:
    """A topic that forgets nothing keeps every segment, whatever is let go.

    It matters because the newest capture of such a topic needs everything from its beginning.
    Deleted by age, the newest capture would come back short: the worst that this software can do.
    """
    store = memory_store()
    cluster = Cluster()
    log = cluster.create("orders").logs[0]
    ids = []
    for _ in range(5):
        log.produce(5)
        ids.append(capture(store, cluster))
    report = expire(store, keep_captures=1, keep_days=0)
    assert (report.captures, report.deleted) == (ids[:-1], 0)
    check_captures(store, cluster, whole=ids)


def test_a_deleted_topic_keeps_its_last_state() -> None:
    """A topic that is gone from the cluster stays as the last capture saw it, however long ago.

    It matters because the repository is then the only place where it is.
    A topic deleted by mistake would be gone for good some captures later.
    """
    store = memory_store()
    cluster = Cluster()
    cluster.create("orders").logs[0].produce(5)
    cluster.create("other")
    last = capture(store, cluster)
    del cluster.topics["orders"]
    for _ in range(3):
        cluster.topics["other"].logs[0].produce(1)
        capture(store, cluster)
    expire(store, keep_captures=1, keep_days=0)
    check_captures(store, cluster, whole=[last])


@pytest.mark.parametrize("again", [0, 3])
def test_a_topic_that_was_made_again(again: int) -> None:
    """The state of an incarnation goes with its captures, unless the newer ones hold nothing.

    It matters because a client makes a deleted topic again, empty, without being asked.
    The empty one would count as "the newest data", and the topic's real data would be deleted.
    """
    store = memory_store()
    cluster = Cluster()
    cluster.create("orders").logs[0].produce(5)
    first = capture(store, cluster)
    cluster.create("orders").logs[0].produce(again)
    second = capture(store, cluster)
    report = expire(store, keep_captures=1)
    told = {capture_id: whole for capture_id, _, whole in whole_captures(store)}
    assert report.captures == [first]
    assert told == {first: not again, second: True}
    assert report.deleted == (1 if again else 0)
    check_captures(store, cluster, whole=[second])
    assert is_right(store)


def test_what_an_election_cut_off_goes_with_its_captures() -> None:
    """Segments that only captures before an unclean election need are deleted when these go.

    It matters because the newer captures must not lose what both histories share.
    The whole old history would stay for ever, or the shared part be deleted.
    """
    store = memory_store()
    cluster = Cluster()
    log = cluster.create("orders").logs[0]
    log.produce(10)
    capture(store, cluster)
    log.produce(10)
    old = capture(store, cluster)
    log.cut_back(5)
    log.produce(3)
    new = capture(store, cluster)
    check_captures(store, cluster, whole=[old, new])
    assert expire(store, keep_captures=1).deleted == 1
    check_captures(store, cluster, whole=[new])
    assert [whole for _, _, whole in whole_captures(store)] == [True, False, True]
    assert is_right(store)


def test_a_restore_keeps_what_it_reads() -> None:
    """What a stored plan reads stays until the restore has ended, and goes with the next expiry after that.

    It matters because a restore may run for days.
    Its segments would vanish in the middle; or, kept by age, a day too early.
    """
    store = memory_store()
    cluster, ids = aged_topic(store)
    plan = pin(store, ids[0])
    expected = read_plan(store, plan)
    report = expire(store, keep_captures=1)
    assert (report.deleted, report.pinned) == (1, 1)
    assert read_plan(store, plan) == expected
    assert expected["orders", 0] == cluster.captured[ids[0]]["orders"][0]
    assert [whole for _, _, whole in whole_captures(store)] == [False, False, False, True]
    assert is_right(store)
    assert expire(store).deleted == 0
    abandon("r1", repository=opened(store))
    report = expire(store)
    assert (report.deleted, report.pinned) == (1, 0)
    assert is_right(store)


def test_what_interrupted_captures_left_is_deleted() -> None:
    """Segments of a killed capture go once the log has moved on past them, or the capture has ended.

    It matters because every kill leaves up to a commit's worth of segments behind.
    They would be paid for for ever.
    """
    store = memory_store()
    cluster = Cluster()
    log = cluster.create("orders").logs[0]
    log.produce(5)
    first = capture(store, cluster)
    log.produce(5)
    capture(store, cluster, commits=False, capture_id=f"{first[:-8]}killed")
    before = segment_keys(store)
    plan = planned(store)
    assert (len(plan.logs[0].unfinished), len(plan.deletes)) == (1, 0)
    assert expire(store).deleted == 0
    last = capture(store, cluster)
    assert expire(store).deleted == 1
    assert len(segment_keys(store)) == 2
    assert len(segment_keys(store) & before) == 1
    check_captures(store, cluster, whole=[first, last])
    assert is_right(store)


def test_a_capture_that_has_not_ended_yet_counts() -> None:
    """What a capture has committed stays whole although its capture object comes only later.

    It matters because a capture writes that object last, after hours.
    The state that it will name could expire before anybody can ask for it.
    """
    store = memory_store()
    cluster = Cluster()
    cluster.create("b").logs[0].produce(1)
    capture(store, cluster, "b")
    log = cluster.create("a").logs[0]
    log.produce(5)
    capture(store, cluster, "b")
    capture(store, cluster, "a", ends=False)
    log.produce(5)
    log.delete_below(5)
    capture(store, cluster, "a", ends=False)
    assert len(expire(store, keep_captures=1).captures) == 1
    topic_id = cluster.topics["a"].topic_id
    assert opened(store).commit_log("a", topic_id).is_whole(0, until_commit=0)
    assert is_right(store)


def test_what_may_belong_to_a_running_capture_is_left_alone() -> None:
    """Without being told to, expiry neither deletes what a running capture stored nor takes its place in the log.

    It matters because expiry runs on a schedule, beside long captures.
    Each one would lose its work and fail, every night.
    """
    store = memory_store()
    cluster = Cluster()
    cluster.create("orders").logs[0].produce(5)
    capture(store, cluster)
    repository = opened(store)
    ((name, topic_id),) = repository.topics()
    running = repository.commit_log(name, topic_id)
    cluster.topics["orders"].logs[0].produce(5)
    capture(store, cluster, commits=False, capture_id="running")
    assert expire(store, keep_captures=1).deleted == 0
    assert running.append_sweep(nonce="n", expiry_id="e", committed_at=1, names=[]).number == 1


def test_told_to_it_stops_a_running_capture() -> None:
    """With `unfinished` everything uncommitted goes, and a capture that still runs is stopped at its commit.

    It matters because only then may its segments be deleted.
    Its commit would name objects that are gone.
    """
    store = memory_store()
    cluster = Cluster()
    cluster.create("orders").logs[0].produce(5)
    first = capture(store, cluster)
    cluster.topics["orders"].logs[0].produce(5)
    swept: list[int] = []

    class Late(FaultyStore):
        """Expires just before the capture's commit."""

        def create(self, key: str):  # type: ignore[no-untyped-def]
            if "/commits/" in key and not swept:
                swept.append(expire(store, unfinished=True).deleted)
            return super().create(key)

    with pytest.raises(WriterConflictError):
        capture(Late(store), cluster, capture_id="running")
    assert swept == [1]
    last = capture(store, cluster)
    check_captures(store, cluster, whole=[first, last])
    assert is_right(store)


def test_an_expired_capture_stays_by_name() -> None:
    """A capture that was let go keeps its object, and a second expiry does not count it again.

    It matters because a restore of it must be refused by name, not as "unknown".
    People would look for a capture that "never existed".
    """
    store = memory_store()
    _, ids = aged_topic(store)
    expire(store, keep_captures=1)
    assert [capture.capture_id for capture in opened(store).captures()] == ids
    (expiry,) = opened(store).expiries()
    assert (expiry.captures, expiry.keep_captures, expiry.keep_days) == (tuple(ids[:-1]), 1, None)
    assert planned(store, keep_captures=1).captures == []


def test_commits_are_never_deleted() -> None:
    """After any expiry all commits are there, and say what was deleted.

    It matters because they are the history, and the lock.
    A deleted commit would break the chain for every reader.
    """
    store = memory_store()
    aged_topic(store)
    gone = segment_keys(store)
    expire(store, keep_captures=1)
    gone -= segment_keys(store)
    ((name, topic_id),) = opened(store).topics()
    commits = opened(store).commit_log(name, topic_id).commits
    assert [commit.action for commit in commits] == ["capture"] * 4 + ["expire", "sweep"]
    folder = layout.incarnation_folder(name, topic_id)
    assert {folder + each for each in commits[-1].swept} == gone
    assert commits[-2].expired == commits[-1].swept
    assert commits[-2].kept_from == 3


def test_many_names_become_several_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """More names than a commit should hold are spread over several commits.

    It matters because a year of captures can expire at once.
    One object of hundreds of megabytes would have to be read by every capture after it.
    """
    monkeypatch.setattr(retention, "_NAMES_PER_COMMIT", 3)
    store = memory_store()
    cluster, ids = aged_topic(store, captures=12)
    assert expire(store, keep_captures=1).deleted == 10
    ((name, topic_id),) = opened(store).topics()
    actions = [commit.action for commit in opened(store).commit_log(name, topic_id).commits[12:]]
    assert actions == ["expire"] * 4 + ["sweep"] * 4
    check_captures(store, cluster, whole=ids[-1:])
    assert is_right(store)


@pytest.fixture(scope="module")
def interruptible() -> tuple[PlainStore, Cluster, list[str], RestorePlan]:
    """A repository in which an expiry has everything to do: captures that go, a pin, a capture that was killed."""
    store = memory_store()
    cluster, ids = aged_topic(store, captures=5)
    plan = pin(store, ids[0])
    cluster.topics["orders"].logs[0].produce(5)
    capture(store, cluster, commits=False, capture_id=f"{ids[-1][:-8]}killed")
    ids.append(capture(store, cluster))
    return store, cluster, ids, plan


@pytest.mark.parametrize("fault", list(Fault))
def test_every_failure_of_an_expiry(
    fault: Fault, interruptible: tuple[PlainStore, Cluster, list[str], RestorePlan]
) -> None:
    """An expiry whose store fails, lies or dies at any call harms nothing, and the next one completes it.

    It matters because an expiry is the only thing that deletes.
    Something could be deleted before its commit, or stay for ever after it.
    """
    original, cluster, ids, plan = interruptible
    expected = read_plan(original, plan)
    finished = copy_of(original)
    counting = FaultyStore(finished)
    assert expire(counting, keep_captures=2).deleted == 3
    right = segment_keys(finished)
    checked = set()
    for at in range(1, counting.calls + 1):
        store = copy_of(original)
        try:
            expire(FaultyStore(store, fault, at), keep_captures=2)
        except (KafkaBackupError, ProcessDied) as error:
            assert not isinstance(error, WriterConflictError)
        # Nothing but the store outlives the failure: what it left twice needs to be looked at once.
        keys = [info.key for info in store.list("")]
        expiries = [key for key in keys if key.startswith(layout.EXPIRIES)]
        left = (len(expiries), frozenset(keys) - frozenset(expiries))
        if left in checked:
            continue
        checked.add(left)
        check_captures(store, cluster, whole=ids[-2:])
        assert is_right(store)
        expire(store, keep_captures=2)
        assert segment_keys(store) == right
        assert read_plan(store, plan) == expected
        check_captures(store, cluster, whole=ids[-2:])
        assert is_right(store)
        assert expire(store, keep_captures=2).deleted == 0
    # Nothing done, written down, expired, swept, each deletion. An answer that comes twice stops nothing.
    assert len(checked) >= (1 if fault is Fault.TOLD_TWICE else 5)


STEPS = st.one_of(
    st.tuples(st.just("produce"), st.integers(0, 1), st.integers(1, 6)),
    st.tuples(st.just("delete"), st.integers(0, 1), st.integers(0, 6)),
    st.tuples(st.just("cut"), st.integers(0, 1), st.integers(0, 6)),
    st.tuples(st.just("capture"), st.integers(1, 2), st.just(0)),
    st.tuples(st.just("die"), st.integers(1, 2), st.integers(0, 1)),
    st.tuples(st.just("again"), st.just(0), st.just(0)),
    st.tuples(st.just("pin"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("unpin"), st.just(0), st.just(0)),
    st.tuples(st.just("expire"), st.integers(1, 4), st.booleans()),
)


@given(st.lists(STEPS, max_size=25))
def test_any_history(steps: list[tuple[str, int, int]]) -> None:
    """Whatever a cluster and its captures went through, expiry leaves what is promised, and nothing else.

    It matters because deletions, elections, kills, restores and expiries meet in every order.
    One order that nobody thought of would delete the only copy.
    """
    store = memory_store()
    cluster = Cluster()
    topic = cluster.create("orders")
    ids = [capture(store, cluster)]
    pins: dict[str, tuple[RestorePlan, object]] = {}
    restores = 0
    for kind, first, second in [*steps, ("capture", 1, 0), ("expire", 1, True)]:
        log = topic.logs[first % 2]
        if kind == "produce":
            log.produce(second)
        elif kind == "delete":
            log.delete_below(log.log_start + second)
        elif kind == "cut":
            log.cut_back(log.end - second)
        elif kind == "capture":
            ids.append(capture(store, cluster, pieces=first))
        elif kind == "die":
            capture(store, cluster, pieces=first, ends=False, commits=bool(second))
        elif kind == "again":
            topic = cluster.create("orders")
        elif kind == "pin":
            whole = [capture_id for capture_id, _, is_whole in whole_captures(store) if is_whole]
            if whole:
                restores += 1
                name = f"r{restores}"
                plan = pin(store, whole[first % len(whole)], restore_id=name)
                pins[name] = (plan, read_plan(store, plan))
        elif kind == "unpin":
            for name in list(pins)[:1]:
                abandon(name, repository=opened(store))
                del pins[name]
        else:
            expire(store, keep_captures=first, unfinished=bool(second))
            check_captures(store, cluster, whole=ids[-first:])
            for plan, records in pins.values():
                assert read_plan(store, plan) == records
            assert is_right(store)
            assert expire(store, keep_captures=first, unfinished=bool(second)).deleted == 0
    # Nothing is left that nobody needs: all is named, and did not expire, or is pinned.
    promised, pinned, stored = set(), set(), segment_keys(store)
    for name, topic_id in opened(store).topics():
        log_ = opened(store).commit_log(name, topic_id)
        if log_.head is None:  # killed before its first commit: nothing is known of it
            stored = {key for key in stored if topic_id not in key}
        promised |= {
            log_.segment_key(commit, part.partition, entry)
            for commit in log_.commits
            for part in commit.partitions
            for entry in part.segments
        } - log_.expired
        for plan, _ in pins.values():
            pinned |= retention.pinned(log_, [plan])
    assert promised <= stored <= promised | pinned


def group_snapshot(store: Store, taken_at: int, *, capture_id: str | None = None) -> str:
    snapshot_id = f"{time_in_id(taken_at)}-{capture_id or '0a1b2c3d'}"
    GroupStore(store).put_snapshot(
        GroupSnapshot(
            snapshot_id=snapshot_id,
            nonce="n",
            capture_id=capture_id,
            cluster_id="c",
            taken_at=taken_at,
            ended_at=taken_at,
            include=("*",),
            exclude=(),
            incomplete=(),
            topics={},
            groups=(),
        )
    )
    return snapshot_id


def test_group_snapshots_go_with_the_captures_of_their_time() -> None:
    """Group snapshots from before the oldest capture that stays go too; not under a restore, and never the newest.

    It matters because each capture saves one, and nobody restores positions of a time without data.
    A restore could find its positions gone, or take older ones for those of its moment.
    """
    store = memory_store()
    cluster = Cluster()
    log = cluster.create("orders").logs[0]
    ids, snapshots = [], []
    for _ in range(4):
        log.produce(5)
        ids.append(capture(store, cluster))
        snapshots.append(group_snapshot(store, cluster.now + 1, capture_id=ids[-1]))
    groups = GroupStore(store)
    keys = [layout.group_snapshot_key(each) for each in snapshots]
    assert expire(store).deleted == 0
    pin(store, ids[-1])
    report = expire(store, keep_captures=2)
    assert (report.captures, report.deleted) == (ids[:2], 0)
    # Promised no more, and there all the same.
    assert groups.snapshot_ids() == snapshots[2:]
    assert [info.key for info in store.list(layout.GROUPS)] == keys
    assert is_right(store)
    abandon("r1", repository=opened(store))
    assert len(planned(store).deletes) == 2
    assert expire(store).deleted == 2
    assert [info.key for info in store.list(layout.GROUPS)] == keys[2:]
    assert is_right(store)
    for _ in range(3):
        log.produce(5)
        capture(store, cluster)
    assert expire(store, keep_captures=1).deleted == 1
    assert groups.snapshot_ids() == snapshots[3:]
    assert is_right(store)


def test_verify_finds_an_expiry_that_broke_its_promise() -> None:
    """Verify tells when a sweep names what had not expired, or an expiry what it promised to keep.

    It matters because a fault in expiry is the one that destroys silently.
    The commits would agree with the deletion, and verify call the repository ok.
    """

    def findings(change: str) -> set[str]:
        store = memory_store()
        aged_topic(store)
        repository = opened(store)
        ((name, topic_id),) = repository.topics()
        log = repository.commit_log(name, topic_id)
        names = [
            key.removeprefix(layout.incarnation_folder(name, topic_id)) for key in sorted(segment_keys(store))
        ]
        stamp = {"nonce": "n", "expiry_id": "e", "committed_at": 1}
        if change == "sweep":
            log.append_sweep(**stamp, names=names[:1])  # type: ignore[arg-type]
        elif change == "unknown":
            log.append_expiry(**stamp, names=["0/00000000000000000099-x-0.log"], kept_from=3)  # type: ignore[arg-type]
        else:
            log.append_expiry(**stamp, names=names[-2:], kept_from=3)  # type: ignore[arg-type]
        report = verify(opened(store), selection=None, level="structure", stop=None)
        assert report.status == "damaged"
        return {problem.kind for problem in report.problems}

    assert findings("sweep") == {"chain"}
    assert findings("unknown") == {"chain"}
    assert findings("promise") == {"expired"}


@pytest.mark.parametrize(
    "changes",
    [
        {"action": "sweep", "expired": ("0/00000000000000000000-x-0.log",)},
        {"action": "expire", "swept": ("0/00000000000000000000-x-0.log",)},
        {"action": "capture", "swept": ("0/00000000000000000000-x-0.log",)},
        {"action": "capture", "kept_from": 1},
        {"action": "sweep", "swept": ("../../captures/x.json",)},
        {"action": "sweep", "swept": ("0/../00000000000000000000-x-0.log",)},
        {"action": "sweep", "swept": ("commits/00000000000000000000.json",)},
        {"action": "sweep", "swept": ("0/00000000000000000000-../x-0.log",)},
        {"action": "delete"},
    ],
    ids=str,
)
def test_commits_that_could_delete_anything_else_are_refused(changes: dict[str, object]) -> None:
    """A commit that names something else than segments of its own topic, or does two things, is unreadable.

    It matters because what a sweep names is deleted.
    A changed commit could point at another topic, or at the commits themselves.
    """
    store = memory_store()
    aged_topic(store, captures=1)
    ((name, topic_id),) = opened(store).topics()
    commit = opened(store).commit_log(name, topic_id).commits[0]
    valid = commit.model_copy(update={"action": "sweep", "partitions": (), "window": None})
    Commit.from_bytes(valid.to_bytes(), key="")
    with pytest.raises(KafkaBackupError, match="not a readable commit"):
        Commit.from_bytes(valid.model_copy(update=changes).to_bytes(), key="")
