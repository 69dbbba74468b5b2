"""Checkpoints and packs: a long log opens quickly, and exactly as if there were none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.errors import DamagedError, KafkaBackupError, WriterConflictError
from kafka_backup.repository.checkpoints import Checkpoint
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import Commit, LeaderEpoch
from kafka_backup.repository.layout import checkpoint_key, checkpoints_folder, commit_key, pack_key
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.store import Store
from tests.unit.faults import Fault, FaultyStore, ProcessDied
from tests.unit.repositories import (
    TOPIC,
    TOPIC_ID,
    append,
    capture,
    incarnation,
    memory_store,
    part,
    replace_object,
)

FOLDER = checkpoints_folder(TOPIC, TOPIC_ID)


def opened(store: Store, known_head: int = -1) -> CommitLog:
    return CommitLog.open(store, TOPIC, TOPIC_ID, known_head=known_head)


def grow(store: Store, commits: int, *, log: CommitLog | None = None) -> CommitLog:
    """Append commits; two partitions, of which the second takes part in each third commit."""
    log = log or opened(store)
    for _ in range(commits):
        number = 0 if log.head is None else log.head + 1
        parts = [part(number * 10, number * 10 + 10)]
        if number % 3 == 0:
            start = log.end_of(1) or 0
            parts.append(part(start, start + 1, partition=1))
        append(log, *parts, capture_id=f"c{number}", committed_at=1000 + number)
    return log


def without_caches(store: Store) -> CommitLog:
    """The log as it is read from the commits alone, in another store."""
    copy = memory_store()
    for info in store.list(""):
        if not info.key.startswith(FOLDER):
            replace_object(copy, info.key, store.get(info.key))
    return opened(copy)


def told(log: CommitLog) -> tuple[object, ...]:
    """Everything that a log tells."""
    return (
        log.head,
        log.head_sha256,
        log.began_at,
        log.incarnation,
        log.compacts,
        [log.state_of(p) for p in range(3)],
        log.commits,
        [log.sha256_of(number) for number in range(len(log.commits))],
        [log.ranges(p) for p in range(3)],
    )


@pytest.mark.parametrize("commits", [0, 1, 9, 10, 11, 19, 20, 99, 100, 101, 131, 1000, 1009])
def test_a_log_is_the_same_with_and_without_checkpoints(commits: int) -> None:
    """A log of any length tells the same, opened with its checkpoints and packs or from its commits alone.

    It matters because a capture begins where the checkpoint says, and a restore reads what the packs say.
    One commit left out at a pack's edge would be records that no restore brings back.
    """
    store = memory_store()
    grown = grow(store, commits)
    expected = told(without_caches(store))
    assert told(grown) == expected
    for known_head in {-1, 0, commits // 2, commits - 1, commits + 100}:
        assert told(opened(store, known_head)) == expected


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 3), max_size=3, unique=True),
            st.integers(0, 2),
            st.booleans(),
            st.integers(0, 9),
        ),
        max_size=35,
    )
)
def test_any_history_has_the_same_state(history: list[tuple[list[int], int, bool, int]]) -> None:
    """Whatever a log's commits hold, the state in a checkpoint is that of all commits together.

    It matters because a capture trusts it: ends, log starts, epochs, and whether the topic ever compacted.
    A field that is taken from the newest commit alone would forget what older ones said.
    """
    store = memory_store()
    log = opened(store)
    for number, (partitions, cut_by, compacts, log_start) in enumerate(history):
        policy = {
            "cleanup.policy": {"value": "compact" if compacts else "delete", "source": "DEFAULT_CONFIG"}
        }
        described = incarnation(partitions=4).model_dump() | {"configuration": policy}
        parts = []
        for partition in partitions:
            end = log.end_of(partition) or 0
            start = max(0, end - cut_by)
            made = part(start, start + 5, partition=partition, truncated_to=start if start < end else None)
            epochs = (LeaderEpoch(epoch=number, start_offset=start),)
            parts.append(made.model_copy(update={"leader_epochs": epochs, "log_start_offset": log_start}))
        log.append(
            nonce="n",
            capture_id=f"c{number}",
            window=None,
            committed_at=number,
            incarnation=type(incarnation()).model_validate(described),
            partitions=parts,
        )
    assert told(opened(store)) == told(without_caches(store)) == told(log)


def test_opening_does_not_read_old_commits() -> None:
    """A log of 2,009 commits opens with a few reads, and all its commits with a few more.

    It matters because a capture opens every topic's log, every time.
    Reading all commits, a year of hourly captures would make each one read 8,760 objects per topic.
    """
    store = memory_store()
    grow(store, 2009)
    counting = FaultyStore(store)
    log = opened(counting, known_head=2000)
    assert (log.head, log.end_of(0)) == (2008, 20090)
    reads = counting.calls
    assert reads <= 15
    assert len(log.commits) == 2009
    assert counting.calls - reads <= 15


def test_the_next_writer_goes_on_from_a_checkpoint() -> None:
    """Runs that each open the log and append one commit make the log that one run would have made.

    It matters because that is how a log grows.
    A pack made by a run that did not write the older commits could hold the wrong ones.
    """
    store = memory_store()
    for _ in range(123):
        grow(store, 1)
    one_run = memory_store()
    grow(one_run, 123)
    assert told(opened(store)) == told(opened(one_run))
    objects = [(info.key, store.get(info.key)) for info in store.list("")]
    assert objects == [(info.key, one_run.get(info.key)) for info in one_run.list("")]


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [None, lambda data: b"", lambda data: data[:-1], _flip, lambda data: data + b"x", lambda data: b"{}"],
)
def test_damaged_checkpoints_are_passed_over(damage: Callable[[bytes], bytes] | None) -> None:
    """Checkpoints and packs that are gone or damaged change nothing, one of them or all.

    It matters because they are caches: nothing may depend on them.
    A flipped bit in an end offset would make a capture skip records without a word.
    """
    store = memory_store()
    grow(store, 115)
    expected = told(without_caches(store))
    keys = [info.key for info in store.list(FOLDER)]
    assert len(keys) == 22
    originals = {key: store.get(key) for key in keys}
    for several in [*([key] for key in keys), keys]:
        for key in several:
            store.delete(key)
            if damage is not None:
                replace_object(store, key, damage(originals[key]))
        assert told(opened(store)) == expected
        assert grow(store, 0).end_of(0) == 1150
        for key in several:
            replace_object(store, key, originals[key])


def test_every_flipped_bit_of_a_checkpoint_is_noticed() -> None:
    """Whatever bit of the newest checkpoint is flipped, the log tells what it told before.

    It matters because digits and letters are one bit apart.
    A checkpoint that is still good JSON could be believed.
    """
    store = memory_store()
    grow(store, 10)
    expected = told(opened(store))
    key = checkpoint_key(TOPIC, TOPIC_ID, 9)
    original = store.get(key)
    for position in range(len(original)):
        changed = bytearray(original)
        changed[position] ^= 1 << position % 7
        replace_object(store, key, bytes(changed))
        assert told(opened(store)) == expected


def test_a_checkpoint_of_something_else_is_passed_over() -> None:
    """A checkpoint or pack of another log, another number or a replaced commit does not count.

    It matters because objects can be copied to the wrong place.
    A capture would begin at another topic's end.
    """
    store = memory_store()
    grow(store, 19)
    expected = told(without_caches(store))
    other = CommitLog.open(store, "payments", TOPIC_ID)
    for number in range(20):
        append(other, part(number, number + 1), capture_id=f"c{number}")
    elsewhere = checkpoint_key("payments", TOPIC_ID, 19)
    nine = checkpoint_key(TOPIC, TOPIC_ID, 9)
    for key, data in [
        (checkpoint_key(TOPIC, TOPIC_ID, 18), store.get(nine)),
        (checkpoint_key(TOPIC, TOPIC_ID, 18), store.get(elsewhere)),
        (
            pack_key(TOPIC, TOPIC_ID, last=18, count=10),
            store.get(pack_key(TOPIC, TOPIC_ID, last=9, count=10)),
        ),
        (
            pack_key(TOPIC, TOPIC_ID, last=18, count=10),
            store.get(pack_key("payments", TOPIC_ID, last=19, count=10)),
        ),
        (f"{FOLDER}notes.txt", b"nobody's"),
    ]:
        replace_object(store, key, data)
        assert told(opened(store)) == expected
    commit = Commit.from_bytes(store.get(commit_key(TOPIC, TOPIC_ID, 9)), key="")
    replace_object(store, commit_key(TOPIC, TOPIC_ID, 9), commit.model_copy(update={"nonce": "z"}).to_bytes())
    with pytest.raises(DamagedError, match="follows a commit with SHA-256"):
        opened(store)


def test_a_checkpoint_without_its_commit_is_damage() -> None:
    """A log that was cut short below a checkpoint is damaged, not shorter.

    It matters because the checkpoint proves that the commit was there.
    The next capture would write another commit with the same number: two histories.
    """
    store = memory_store()
    grow(store, 10)
    store.delete(commit_key(TOPIC, TOPIC_ID, 9))
    with pytest.raises(DamagedError, match=r"000009\.json is missing although"):
        opened(store)


def test_damage_below_a_checkpoint_is_found_when_it_is_read() -> None:
    """A changed or missing old commit is found by whoever reads it, unless a pack proves what it was.

    It matters because the chain, not the place where a commit was read, is what makes it right.
    A restore could take a changed commit's word.
    """
    store = memory_store()
    grow(store, 20)
    key = commit_key(TOPIC, TOPIC_ID, 4)
    original = store.get(key)
    commit = Commit.from_bytes(original, key="")
    expected = opened(store).commits
    for data in (b"", commit.model_copy(update={"committed_at": 7}).to_bytes(), None):
        store.delete(key)
        if data is not None:
            replace_object(store, key, data)
        assert opened(store).commits == expected
    replace_object(store, key, commit.model_copy(update={"committed_at": 7}).to_bytes())
    store.delete(pack_key(TOPIC, TOPIC_ID, last=9, count=10))
    assert opened(store).end_of(0) == 200
    with pytest.raises(DamagedError, match=r"000004\.json breaks the commit log"):
        _ = opened(store).commits
    store.delete(key)
    with pytest.raises(DamagedError, match=r"000004\.json"):
        _ = opened(store).commits


def test_lost_checkpoints_are_made_again() -> None:
    """Who opens a long log to write, and finds no checkpoint, makes one, and the packs.

    It matters because a topic that never changes appends nothing that would bring the next one.
    Each capture would read all its commits again.
    """
    store = memory_store()
    grow(store, 1234)
    expected = told(opened(store))
    for info in list(store.list(FOLDER)):
        store.delete(info.key)
    opened(store).renew_checkpoint()
    counting = FaultyStore(store)
    log = opened(counting)
    assert (log.head, counting.calls) == (1233, 5)
    assert told(log) == expected
    packs = [key for info in store.list(FOLDER) if (key := info.key).endswith(".zst")]
    assert packs == [
        pack_key(TOPIC, TOPIC_ID, last=last, count=count)
        for last, count in [(999, 1000), (1099, 100), (1199, 100), (1209, 10), (1219, 10), (1229, 10)]
    ]
    assert told(grow(store, 7, log=log)) == told(without_caches(store))


@pytest.mark.parametrize("fault", list(Fault))
def test_every_failure_around_a_checkpoint(fault: Fault) -> None:
    """A store that fails, lies or dies at any call of the tenth commit leaves a log that tells the truth.

    It matters because a machine can die between a commit and its checkpoint, and in the middle of either.
    A checkpoint of a commit that does not exist, or half a pack, would break every later run.
    """
    counted = FaultyStore(memory_store())
    grow(counted, 9)
    before = counted.calls
    grow(counted, 1)
    for at in range(1, counted.calls - before + 1):
        store = memory_store()
        grow(store, 9)
        faulty = FaultyStore(store, fault, at)
        try:
            grow(faulty, 1)
        except (KafkaBackupError, ProcessDied) as error:
            assert not isinstance(error, WriterConflictError | DamagedError)
        log = opened(store)
        assert log.head in (8, 9)
        assert told(log) == told(without_caches(store))
        assert told(grow(store, 25, log=log)) == told(without_caches(store)) == told(opened(store))


def test_checkpoints_need_no_delete_and_no_overwrite() -> None:
    """Runs that find another checkpoint in the place of theirs leave it alone and go on.

    It matters because captures have the rights to put, get and list only.
    A wrong checkpoint that cannot be replaced would stop every capture.
    """
    store = memory_store()
    key = checkpoint_key(TOPIC, TOPIC_ID, 9)
    replace_object(store, key, b"something else")
    log = grow(store, 12)
    assert store.get(key) == b"something else"
    assert told(opened(store)) == told(log)


def test_a_checkpoint_says_which_commit_it_follows() -> None:
    """The stored document names its commit's number and SHA-256.

    It matters because the format promises it, and other readers rely on it.
    A checkpoint could be matched with any commit.
    """
    store = memory_store()
    log = grow(store, 10)
    found = Checkpoint.from_bytes(store.get(checkpoint_key(TOPIC, TOPIC_ID, 9)), key="")
    assert (found.topic, found.topic_id, found.number) == (TOPIC, TOPIC_ID, 9)
    assert found.commit_sha256 == log.head_sha256


def test_logs_are_opened_in_the_order_asked_for() -> None:
    """The repository opens logs for writing many at a time, in the order asked for.

    It matters because a capture pairs each topic with its log by that order.
    One topic's capture would be appended to another's log.
    """
    store = memory_store()
    names = [f"topic-{number}" for number in range(30)]
    for name in names:
        capture(store, {0: []}, topic=name, capture_id=f"c-{name}")
    repository = Repository.open(store, cluster_id=None, create=False)
    wanted = [(name, TOPIC_ID) for name in reversed(names)]
    assert [(log.topic, log.topic_id) for log in repository.logs_to_append(wanted)] == wanted
