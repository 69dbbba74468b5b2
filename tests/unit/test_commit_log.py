"""The commit log: a chain that only grows, and the lock of its writers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kafka_backup.errors import DamagedError, WriterConflictError
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import LostSpan, OffsetSpan, sha256_of
from kafka_backup.repository.layout import commit_key
from kafka_backup.repository.store import ObjectInfo, Store
from tests.unit.faults import Fault, FaultyStore
from tests.unit.repositories import (
    TOPIC,
    TOPIC_ID,
    append,
    batch,
    capture,
    live_records,
    memory_store,
    part,
    replace_object,
    write_segment,
)


def key(number: int) -> str:
    return commit_key(TOPIC, TOPIC_ID, number)


def opened(store: Store) -> CommitLog:
    return CommitLog.open(store, TOPIC, TOPIC_ID)


def three_commits(store: Store) -> CommitLog:
    log = opened(store)
    for number in range(3):
        entry = write_segment(store, batch(number * 10, 10), capture_id=f"capture-{number}")
        append(log, part(number * 10, number * 10 + 10, segments=[entry]), capture_id=f"capture-{number}")
    return log


def test_an_empty_log() -> None:
    """A log without commits is empty, and says so.

    It matters because the first capture begins at the log start, not at offset 0.
    "Never captured" could be taken for "captured up to 0".
    """
    log = opened(memory_store())
    assert (log.head, log.head_sha256, log.commits, log.end_of(0)) == (None, None, (), None)
    assert log.ranges(0) == []
    assert log.segments(0) == []
    assert log.records(0) == 0


def test_commits_chain_and_read_back() -> None:
    """Commits that were appended read back the same, each naming the SHA-256 of the one before.

    It matters because the chain is what shows that a commit was changed or replaced.
    State kept in memory could differ from what another machine reads.
    """
    store = memory_store()
    written = three_commits(store)
    log = opened(store)
    assert log.commits == written.commits
    assert (log.head, log.head_sha256) == (2, written.head_sha256)
    for number in range(3):
        assert log.sha256_of(number) == sha256_of(store.get(key(number)))
        previous = log.sha256_of(number - 1) if number else None
        assert log.commits[number].previous_sha256 == previous
        assert log.uri(number) == f"{store.url}/{key(number)}"
    assert log.end_of(0) == 30
    assert log.end_of(1) is None
    assert log.records(0) == 30
    assert [record.offset for record in live_records(store, log)] == list(range(30))
    assert [record.offset for record in live_records(store, log, until_commit=1)] == list(range(20))


def test_of_two_writers_one_stops() -> None:
    """Two runs that saw the same head: the second to commit is stopped, and nothing of it is visible.

    It matters because schedules overlap, and people run backups by hand.
    Both runs' records would be in the log, and a restore would write them twice.
    """
    store = memory_store()
    three_commits(store)
    ours, theirs = opened(store), opened(store)
    theirs_entry = write_segment(store, batch(30, 4), capture_id="theirs")
    ours_entry = write_segment(store, batch(30, 5), capture_id="ours")
    append(theirs, part(30, 34, segments=[theirs_entry]), capture_id="theirs", nonce="theirs")
    with pytest.raises(WriterConflictError, match="another writer committed 3 of orders"):
        append(ours, part(30, 35, segments=[ours_entry]), capture_id="ours", nonce="ours")
    log = opened(store)
    assert log.commits == theirs.commits
    assert [record.offset for record in live_records(store, log)] == list(range(34))


def test_a_stale_listing_does_not_hide_the_head() -> None:
    """The head is found although the listing lacks the newest commits.

    It matters because some stores list what was written only after a while.
    A run would begin at the old end and collide with a commit that it could not see.
    """
    store = memory_store()
    three_commits(store)

    class Stale(FaultyStore):
        def list(self, folder: str, start_after: str = "") -> Iterator[ObjectInfo]:
            return (info for info in store.list(folder, start_after) if info.key == key(0))

    assert opened(Stale(store)).head == 2


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("data", [b"", b"{}", b"not JSON", b'{"format_version":2}', b"\xff\xfe"])
def test_an_unreadable_commit_is_damage(number: int, data: bytes) -> None:
    """A commit that cannot be read is damage, the newest one too.

    It matters because a commit is all that makes its records exist.
    Taken for "not there", the newest commit's records would be lost without a word.
    """
    store = memory_store()
    three_commits(store)
    replace_object(store, key(number), data)
    with pytest.raises(DamagedError, match=key(number)):
        opened(store)


@pytest.mark.parametrize("number", [0, 1])
def test_a_missing_commit_is_damage(number: int) -> None:
    """A commit that is missing below the head is damage.

    It matters because its records would be missing from every restore.
    Reading could stop at the gap and take it for the head.
    """
    store = memory_store()
    three_commits(store)
    store.delete(key(number))
    with pytest.raises(DamagedError, match=f"{key(number)} is missing"):
        opened(store)


def test_a_replaced_commit_is_damage() -> None:
    """A commit that was changed, or comes from elsewhere, breaks the chain.

    It matters because whoever can write to the store can change a ledger or an offset.
    A change would be believed as long as it is good JSON.
    """
    store = memory_store()
    log = three_commits(store)
    original = {number: store.get(key(number)) for number in range(3)}
    changed = log.commits[1].model_copy(update={"committed_at": 99})
    elsewhere = log.commits[1].incarnation.model_copy(update={"topic": "payments"})
    for number, data, reason in [
        (1, changed.to_bytes(), "follows a commit with SHA-256"),
        (2, original[1], "says that it is commit 1"),
        (1, log.commits[1].model_copy(update={"incarnation": elsewhere}).to_bytes(), "belongs to payments"),
    ]:
        replace_object(store, key(number), data)
        with pytest.raises(DamagedError, match=reason):
            opened(store)
        replace_object(store, key(number), original[number])
    assert opened(store).head == 2


@pytest.mark.parametrize("start", [29, 31, 0])
def test_ranges_are_contiguous(start: int) -> None:
    """A range that does not begin where the last one ended is neither written nor read.

    It matters because every offset must be in exactly one range.
    An overlap would be restored twice, a hole not at all.
    """
    store = memory_store()
    log = three_commits(store)
    with pytest.raises(ValueError, match=f"begins at offset {start}, but the commits before it end at 30"):
        append(log, part(start, start + 5))
    assert opened(store).head == 2
    wrong = log.commits[2].model_copy(
        update={"number": 3, "previous_sha256": log.head_sha256, "partitions": (part(start, start + 5),)}
    )
    replace_object(store, key(3), wrong.to_bytes())
    with pytest.raises(DamagedError, match="begins at offset"):
        opened(store)


def test_recorded_exceptions_to_contiguity() -> None:
    """Offsets skipped on purpose and a truncated log are accepted where the range says so, and only there.

    It matters because these are the two ways in which a range may begin elsewhere.
    A hole could be explained by a record of something else.
    """
    store = memory_store()
    log = three_commits(store)
    for wrong in (
        part(40, 45, not_captured=OffsetSpan(start=31, end=40)),
        part(25, 45, truncated_to=24),
        part(40, 45, truncated_to=40),
    ):
        with pytest.raises(ValueError, match="does not fit"):
            append(log, wrong)
    append(log, part(40, 45, not_captured=OffsetSpan(start=30, end=40)))
    append(log, part(25, 50, truncated_to=25))
    assert opened(store).end_of(0) == 50


def test_lost_offsets_lie_inside_a_range() -> None:
    """Lost offsets are part of their range, so the next range begins where it ended.

    It matters because a loss must stay visible forever.
    A range that begins after the loss would hide it.
    """
    store = memory_store()
    log = three_commits(store)
    lost = LostSpan(start=30, end=50, reason="retention")
    append(log, part(30, 50, lost=[lost]))
    assert [range_.lost for range_ in opened(store).ranges(0)][-1] == (lost,)
    assert opened(store).end_of(0) == 50


def test_segments_must_lie_in_their_range() -> None:
    """A segment out of order, or beyond its range, is refused.

    It matters because a restore reads the segments in the order of their offsets.
    A segment could be restored twice, or records that no ledger accounts for.
    """
    store = memory_store()
    log = opened(store)
    low = write_segment(store, batch(0, 10))
    high = write_segment(store, batch(10, 10), index=1)
    for segments in ([high, low], [low, low]):
        with pytest.raises(ValueError, match="out of place"):
            append(log, part(0, 20, segments=segments))
    with pytest.raises(ValueError, match="out of place"):
        append(log, part(0, 19, segments=[low, high]))
    with pytest.raises(ValueError, match="out of place"):
        append(log, part(10, 20, segments=[low, high]))
    append(log, part(5, 20, segments=[low, high]))
    assert [record.offset for record in live_records(store, log)] == list(range(5, 20))


def test_partitions_are_named_once_and_exist() -> None:
    """A commit names each partition at most once, and none that the topic does not have.

    It matters because two ranges of one partition would both be restored.
    A bug in a writer would double records.
    """
    log = opened(memory_store())
    with pytest.raises(ValueError, match="named twice"):
        append(log, part(0, 1, partition=1), part(0, 1, partition=1))
    with pytest.raises(ValueError, match="no such partition"):
        append(log, part(0, 1, partition=2))


def test_an_older_state_still_has_what_was_truncated() -> None:
    """After an unclean election the log goes on below its old end; an older capture keeps its records.

    It matters because the truncated records were acknowledged once, and exist nowhere else.
    A restore of the newest state would mix both histories, or one of the older state lose its own.
    """
    store = memory_store()
    log = opened(store)
    append(log, part(0, 20, segments=[write_segment(store, batch(0, 20, value=b"old"))]))
    new = write_segment(store, batch(12, 3, value=b"new"), capture_id="later")
    append(log, part(12, 15, truncated_to=12, segments=[new]), capture_id="later")
    log = opened(store)
    newest = [(record.offset, record.value) for record in live_records(store, log)]
    assert newest == [(n, b"old") for n in range(12)] + [(n, b"new") for n in range(12, 15)]
    older = [record.value for record in live_records(store, log, until_commit=0)]
    assert older == [b"old"] * 20


@pytest.mark.parametrize("fault", list(Fault))
def test_every_failure_of_a_capture(fault: Fault) -> None:
    """Captures whose store fails, lies or dies at any call leave a whole log, and the next run goes on.

    It matters because a machine can die at any moment, and the log is all that is left.
    Records could be missing or doubled after the second run, or the log be unreadable.
    """
    first = {0: [batch(0, 5), batch(5, 5)], 1: [batch(0, 3)]}
    counted = FaultyStore(memory_store())
    capture(counted, first)
    for at in range(1, counted.calls + 1):
        store = memory_store()
        faulty = FaultyStore(store, fault, at)
        try:
            capture(faulty, first, capture_id="first", nonce="n1")
        except BaseException as error:  # noqa: BLE001 - a dying process raises what nobody may catch
            assert not isinstance(error, WriterConflictError | DamagedError)
        log = opened(store)
        assert log.end_of(0) in (None, 10)
        if log.head is None:
            capture(store, first, capture_id="again", nonce="n2")
        capture(store, {0: [batch(10, 2)], 1: []}, capture_id="second", nonce="n3")
        log = opened(store)
        assert [record.offset for record in live_records(store, log, 0)] == list(range(12))
        assert [record.offset for record in live_records(store, log, 1)] == list(range(3))
