"""Verify: a whole repository passes, and every kind of damage is found and named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kafka_backup.errors import CancelledError, ConfigurationError
from kafka_backup.progress import StopToken, VerifyProgress
from kafka_backup.repository.checkpoints import Checkpoint
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import Commit, Ledger, LostSpan
from kafka_backup.repository.layout import capture_key, checkpoint_key, commit_key
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.store import Store
from kafka_backup.selection import TopicSelection
from kafka_backup.verify import Level, VerifyReport, verify
from tests.unit.repositories import (
    TOPIC,
    TOPIC_ID,
    append,
    batch,
    capture,
    memory_store,
    part,
    replace_object,
    write_segment,
)


def repository() -> Store:
    """Two topics, two captures, two partitions; one topic compressed."""
    store = memory_store()
    for topic, compression in (("orders", "none"), ("payments", "zstd")):
        capture(
            store,
            {0: [batch(0, 5) + batch(5, 5), batch(10, 3)], 1: [batch(0, 4)]},
            capture_id=f"{topic}-1",
            topic=topic,
            compression=compression,  # type: ignore[arg-type]
        )
        capture(
            store,
            {0: [batch(13, 7)], 1: []},
            capture_id=f"{topic}-2",
            topic=topic,
            compression=compression,  # type: ignore[arg-type]
        )
    return store


def check(store: Store, *, level: str = "data", topics: tuple[str, ...] | None = None) -> VerifyReport:
    return verify(
        Repository.open(store, cluster_id=None, create=False),
        selection=None if topics is None else TopicSelection.parse(topics),
        level=level,  # type: ignore[arg-type]
        stop=None,
    )


def found(report: VerifyReport) -> set[tuple[str, str]]:
    return {(problem.kind, problem.object) for problem in report.problems}


@pytest.mark.parametrize("level", ["structure", "data"])
def test_a_whole_repository_passes(level: str) -> None:
    """A repository that nobody touched is ok, and everything in it was counted.

    It matters because a false alarm teaches people to ignore alarms.
    A check that looks at nothing would pass too.
    """
    store = repository()
    write_segment(store, batch(20, 5), capture_id="interrupted")
    report = check(store, level=level)
    assert (report.status, report.problems) == ("ok", ())
    assert (report.topics, report.commits, report.segments, report.records) == (2, 4, 8, 48)
    segments = [
        info for info in store.list("topics/") if ".log" in info.key and "interrupted" not in info.key
    ]
    assert report.stored_bytes == sum(info.size for info in segments)


@pytest.mark.parametrize(("level", "told"), [("structure", 2), ("data", 10)])
def test_progress_is_told(level: Level, told: int) -> None:
    """A verification says how far it is: after each topic, and after each segment that it reads.

    It matters because reading a repository can take hours.
    Somebody would end it, because nothing seems to happen.
    """
    heard: list[VerifyProgress] = []
    report = verify(
        Repository.open(repository(), cluster_id=None, create=False),
        selection=None,
        level=level,
        stop=None,
        on_progress=heard.append,
    )
    assert len(heard) == told
    assert [each.stored_bytes for each in heard] == sorted(each.stored_bytes for each in heard)
    last = heard[-1]
    assert (last.topics_done, last.topics_total, last.segments) == (2, 2, report.segments)
    assert last.stored_bytes == report.stored_bytes


def _segment(topic: str, number: int) -> Callable[[Store], str]:
    def key(store: Store) -> str:
        keys = [info.key for info in store.list(f"topics/{topic}/{TOPIC_ID}/0/")]
        return keys[number]

    return key


def test_a_checkpoint_that_lies_is_found() -> None:
    """A checkpoint that captures would believe, and that says something else than the commits, is a problem.

    It matters because a capture begins where the checkpoint says.
    A wrong end would skip records, and verify would call the repository ok.
    """
    store = memory_store()
    for number in range(10):
        capture(store, {0: [batch(number * 5, 5)]}, capture_id=f"c{number}")
    key = checkpoint_key(TOPIC, TOPIC_ID, 9)
    checkpoint = Checkpoint.from_bytes(store.get(key), key="")
    assert check(store, level="structure").status == "ok"
    state = checkpoint.to_state()
    state.partitions[0].end = 55
    replace_object(store, key, Checkpoint.of(state, topic=TOPIC, topic_id=TOPIC_ID).to_bytes())
    report = check(store, level="structure")
    assert (report.status, found(report)) == ("damaged", {("checkpoint", key)})
    replace_object(store, key, b"garbage")
    assert check(store, level="structure").status == "ok"


def _flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("topic", ["orders", "payments"])
@pytest.mark.parametrize(
    ("damage", "kind", "levels"),
    [
        (None, "missing", ["structure", "data"]),
        (lambda data: data[:-1], "size", ["structure", "data"]),
        (lambda data: b"", "size", ["structure", "data"]),
        (lambda data: data + b"x", "size", ["structure", "data"]),
        (_flip, "sha256", ["data"]),
        (lambda data: bytes(len(data)), "sha256", ["data"]),
    ],
)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_damaged_segments_are_found(
    topic: str, number: int, damage: Callable[[bytes], bytes] | None, kind: str, levels: list[str]
) -> None:
    """A segment that is missing, of another size, or changed in one bit is found and named.

    It matters because this is what verify is for: to know before the bad day.
    "ok" would be printed over a repository that cannot be restored.
    """
    store = repository()
    key = _segment(topic, number)(store)
    data = store.get(key)
    store.delete(key)
    if damage is not None:
        replace_object(store, key, damage(data))
    for level in ("structure", "data"):
        report = check(store, level=level)
        if level in levels:
            assert report.status == "damaged"
            assert found(report) == {(kind, key)}
        else:
            assert report.status == "ok"


def _key(number: int) -> str:
    return commit_key("orders", TOPIC_ID, number)


def _change(store: Store, number: int, **changes: object) -> None:
    commit = Commit.from_bytes(store.get(_key(number)), key="")
    replace_object(store, _key(number), commit.model_copy(update=changes).to_bytes())


def _shift(store: Store) -> None:
    commit = Commit.from_bytes(store.get(_key(1)), key="")
    first = commit.partitions[0]
    shifted = first.model_copy(update={"start": 12, "ledger": Ledger(records=8)})
    _change(store, 1, partitions=(shifted, *commit.partitions[1:]))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda s: s.delete(_key(0)), {("missing", _key(0)), ("head", capture_key("orders-1"))}),
        (lambda s: s.delete(_key(1)), {("head", capture_key("orders-2"))}),
        (
            lambda s: replace_object(s, _key(0), b"{}"),
            {("unreadable", _key(0)), ("chain", _key(1)), ("head", capture_key("orders-1"))},
        ),
        (
            lambda s: replace_object(s, _key(1), b"{}"),
            {("unreadable", _key(1)), ("head", capture_key("orders-2"))},
        ),
        (
            lambda s: _change(s, 0, committed_at=99),
            {("chain", _key(1)), ("head", capture_key("orders-1"))},
        ),
        (lambda s: _change(s, 1, committed_at=99), {("head", capture_key("orders-2"))}),
        (
            lambda s: replace_object(s, _key(1), s.get(commit_key("payments", TOPIC_ID, 1))),
            {("foreign", _key(1)), ("chain", _key(1)), ("head", capture_key("orders-2"))},
        ),
        (_shift, {("chain", _key(1)), ("ledger", _key(1)), ("head", capture_key("orders-2"))}),
        (
            lambda s: replace_object(s, capture_key("orders-1"), b"x"),
            {("unreadable", capture_key("orders-1"))},
        ),
        (
            lambda s: replace_object(s, capture_key("x"), s.get(capture_key("orders-1"))),
            {("unreadable", capture_key("x"))},
        ),
    ],
)
def test_damaged_documents_are_found(damage: Callable[[Store], None], expected: set[tuple[str, str]]) -> None:
    """A commit or capture that is missing, unreadable, changed or of another log is found and named.

    It matters because commits are what makes records exist.
    A log that was cut short looks like an older, whole one.
    """
    store = repository()
    damage(store)
    report = check(store, level="structure")
    assert report.status == "damaged"
    kinds_and_objects = found(report)
    assert expected <= kinds_and_objects
    assert {object_ for _, object_ in kinds_and_objects if "payments/" in object_} == set()


def test_all_problems_are_found_at_once() -> None:
    """Several damages in several topics are all in one report.

    It matters because people put a repository together again from copies, once.
    They would have to run verify again after each repair.
    """
    store = repository()
    missing = _segment("orders", 0)(store)
    store.delete(missing)
    flipped = _segment("payments", 2)(store)
    replace_object(store, flipped, _flip(store.get(flipped)))
    store.delete(_key(1))
    report = check(store)
    assert found(report) == {
        ("missing", missing),
        ("sha256", flipped),
        ("head", capture_key("orders-2")),
    }


def _log(store: Store) -> CommitLog:
    return Repository.open(store, cluster_id="cluster-1", create=True).commit_log(TOPIC, TOPIC_ID)


def test_lost_offsets_make_it_lossy() -> None:
    """Offsets that were lost before a capture are repeated by every verify, and are not damage.

    It matters because a loss must not be forgotten, and not be confused with a bad disk.
    "ok" would hide it, "damaged" would send people to look for a copy.
    """
    store = memory_store()
    log = _log(store)
    entry = write_segment(store, batch(0, 20))
    append(log, part(5, 20, segments=[entry]))
    late = write_segment(store, batch(25, 10), capture_id="c2")
    append(
        log,
        part(20, 35, segments=[late], lost=[LostSpan(start=20, end=28, reason="retention")]),
        capture_id="c2",
    )
    report = check(store)
    assert report.status == "lossy"
    (problem,) = report.problems
    assert (problem.kind, problem.object) == ("lost", commit_key(TOPIC, TOPIC_ID, 1))
    assert "orders [0]: offsets [20, 28) were lost (retention)" in problem.detail


@pytest.mark.parametrize(("start", "level"), [(5, "data"), (0, "structure")])
def test_a_ledger_that_its_records_contradict(start: int, level: str) -> None:
    """A ledger that counts other records than the segments hold is found, by counting them.

    It matters because the ledger's sum is checked when it is written, its terms only here.
    A lost record could be booked as a control record.
    """
    store = memory_store()
    log = _log(store)
    entry = write_segment(store, batch(0, 20))
    good = part(start, 20, segments=[entry])
    wrong = good.model_copy(update={"ledger": Ledger(records=19 - start, control=1)})
    append(log, wrong)
    report = check(store, level=level)
    assert found(report) == {("ledger", commit_key(TOPIC, TOPIC_ID, 0))}


def test_only_selected_topics() -> None:
    """Only the selected topics are checked, and a selection of nothing is an error.

    It matters because a check of one topic must not read terabytes of others.
    A misspelt name would report "ok" for nothing.
    """
    store = repository()
    store.delete(_segment("orders", 0)(store))
    assert check(store, topics=("payments",)).status == "ok"
    assert check(store, topics=("orders",)).status == "damaged"
    for wrong in ("nothing-*", "order"):
        with pytest.raises(ConfigurationError):
            check(store, topics=(wrong,))


def test_stops_when_asked() -> None:
    """A verify that is asked to stop raises CancelledError.

    It matters because reading a repository can take hours.
    A stopped check could report "ok" for what it did not read.
    """
    stop = StopToken()
    stop.stop()
    with pytest.raises(CancelledError):
        verify(
            Repository.open(repository(), cluster_id=None, create=False),
            selection=None,
            level="data",
            stop=stop,
        )
