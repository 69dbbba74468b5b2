"""Which incarnation and which commit a restore takes, and whether its objects are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from kafka_backup.errors import ConfigurationError, DamagedError, RefusedError
from kafka_backup.repository.documents import ConfigurationValue
from kafka_backup.repository.layout import capture_key, commit_key
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import RestorePlan, RestoreRequest
from kafka_backup.repository.store import ObjectInfo, Store
from kafka_backup.restore_findings import Findings, refusal
from kafka_backup.restore_source import SourceTopic, check_objects, find_sources, source_segments
from tests.unit.faults import FaultyStore
from tests.unit.repositories import TOPIC, append, batch, capture, memory_store, part, replace_object

FIRST, SECOND = "AbCdEfGhIjKlMnOpQrSt01", "AbCdEfGhIjKlMnOpQrSt02"
LIVED, RECREATED = 2_000, 9_000
"""When the first incarnation was captured, and the second one."""


def _two_incarnations(store: Store, *, first: int = 3, second: int = 3) -> None:
    """Two incarnations of one topic; record n has the time 1,000 + n, the second's begin at 8,000."""
    capture(store, {0: [batch(0, first)] if first else []}, capture_id="c1", topic_id=FIRST, started_at=LIVED)
    capture(
        store,
        {0: [batch(7_000, second)] if second else []},
        capture_id="c2",
        topic_id=SECOND,
        started_at=RECREATED,
    )


def _find(store: Store, **request: object) -> tuple[Sequence[SourceTopic], Findings]:
    findings = Findings()
    repository = Repository.open(store, cluster_id=None, create=False)
    return find_sources(RestoreRequest(restore_id="r", **request), repository, findings), findings


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"until_ms": LIVED}, FIRST),
        ({"until_ms": 1}, FIRST),
        ({"until_ms": 5_000}, FIRST),
        ({"until_ms": RECREATED}, SECOND),
        ({"until_ms": 10**13}, SECOND),
        ({"capture": "c1"}, FIRST),
        ({"capture": "c2"}, SECOND),
        ({"incarnation": FIRST}, FIRST),
        ({"incarnation": SECOND, "until_ms": 1}, SECOND),
    ],
    ids=str,
)
def test_the_incarnation_is_the_one_that_was_live(request_: dict[str, object], expected: str) -> None:
    """Tests each way to say a moment: the incarnation that lived then is restored, and the other is named.

    It matters because a topic that was deleted and made again has one name and two histories.
    The newest one taken always would restore the accident instead of what was before it.
    """
    store = memory_store()
    _two_incarnations(store)
    (source,), findings = _find(store, **request_)
    assert source.log.topic_id == expected
    assert findings.problems == []
    (note,) = findings.notes
    assert note.kind == "incarnations"
    assert ({FIRST, SECOND} - {expected}).pop() in note.detail


@pytest.mark.parametrize(
    ("first", "second", "request_"),
    [
        (3, 3, {}),
        (3, 0, {}),
        (3, 0, {"until_ms": RECREATED}),
        (3, 0, {"capture": "c2"}),
        (3, 3, {"from_ms": 5}),
        # Captured the last time before it, and the next one holds records of that time.
        (3, 3, {"until_ms": 8_500}),
    ],
    ids=str,
)
def test_several_incarnations_are_refused_with_the_list(
    first: int, second: int, request_: dict[str, object]
) -> None:
    """Tests that a topic with two histories is refused where only the user can know, naming both.

    It matters because someone deletes a topic and a client makes it again, empty, within seconds.
    A restore of the newest would say "0 records, verified".
    """
    store = memory_store()
    _two_incarnations(store, first=first, second=second)
    sources, findings = _find(store, **request_)
    assert sources == []
    (problem,) = findings.problems
    assert problem.kind == "several_incarnations"
    assert f"{FIRST} ({first} records" in problem.detail
    assert f"{SECOND} (" in problem.detail
    assert "--incarnation" in problem.detail


def test_an_empty_incarnation_before_the_data_needs_no_question() -> None:
    """Tests that an older incarnation without records does not ask anything of the user.

    It matters because most topics are made, found wrong, and made again, before they are used.
    A question that has one answer teaches people to answer without reading.
    """
    store = memory_store()
    _two_incarnations(store, first=0)
    (source,), findings = _find(store)
    assert (source.log.topic_id, findings.problems) == (SECOND, [])


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        ({"incarnation": "AbCdEfGhIjKlMnOpQrSt03"}, "no_such_incarnation"),
        ({"incarnation": FIRST, "capture": "c2"}, "no_such_incarnation"),
    ],
    ids=str,
)
def test_an_incarnation_that_is_not_there_is_refused(request_: dict[str, object], kind: str) -> None:
    """Tests an unknown topic id, and one that the named capture did not see.

    It matters because the two answers to "which state?" contradict each other.
    Ignoring one of them restores something that nobody asked for.
    """
    store = memory_store()
    _two_incarnations(store)
    _, findings = _find(store, **request_)
    assert kind in [problem.kind for problem in findings.problems]


def test_the_configuration_is_that_of_the_moment() -> None:
    """Tests that settings, like records, are those of `until`; the records of later captures stay included.

    It matters because "as it was before the mistake" includes the mistake of setting retention to one minute.
    The newest settings would delete what was just restored.
    """
    store = memory_store()
    log = capture(store, {0: [batch(0, 3)]}, started_at=2_000)
    incarnation = log.commits[0].incarnation
    changed = {"retention.ms": ConfigurationValue(value="60000", source="DYNAMIC_TOPIC_CONFIG")}
    log.append(
        nonce="n",
        capture_id="later",
        window=None,
        committed_at=3_000,
        incarnation=incarnation.model_copy(update={"configuration": changed}),
        partitions=[part(3, 3)],
    )
    for until, number in ((1, 0), (2_000, 0), (2_999, 0), (3_000, 1), (None, 1)):
        (source,), _ = _find(store, until_ms=until)
        assert (source.configured.number, source.head) == (number, 1)
    (source,), _ = _find(store, until_ms=10**13, capture="20260102T030405006Z-0a1b2c3d")
    assert (source.configured.number, source.head) == (0, 0)


def test_a_damaged_log_does_not_hide_the_other_findings() -> None:
    """Tests one topic whose log is damaged beside one with two histories: both are told, as damage.

    It matters because on a bad day every round of "fix one thing, find the next" costs an hour.
    The first error alone would be shown.
    """
    store = memory_store()
    _two_incarnations(store)
    capture(store, {0: [batch(0, 3)]}, topic="payments", topic_id=FIRST, capture_id="c3")
    replace_object(store, commit_key("payments", FIRST, 0), b"{}")
    sources, findings = _find(store)
    assert sources == []
    assert [problem.kind for problem in findings.problems] == ["damaged_log", "several_incarnations"]
    plan = RestorePlan(
        request=RestoreRequest(restore_id="r"),
        nonce="n",
        planned_at=1,
        repository_id="x",
        target_cluster_id="t",
        topics=(),
        problems=tuple(findings.problems),
    )
    refused = refusal(plan)
    assert isinstance(refused, DamagedError)
    assert all(problem.detail in str(refused) for problem in findings.problems)
    assert isinstance(refusal(plan.model_copy(update={"problems": plan.problems[1:]})), RefusedError)
    assert refusal(plan.model_copy(update={"problems": ()})) is None


def test_an_interrupted_first_capture_is_not_an_empty_topic() -> None:
    """Tests a topic that has segments and no commit: it is named, not left out.

    It matters because somebody restores "everything" and relies on it.
    A topic without a commit is in no list; leaving it out would be silent.
    """
    store = memory_store()
    log = capture(store, {0: [batch(0, 3)]}, topic=TOPIC)
    store.delete(commit_key(TOPIC, log.topic_id, 0))
    for key in [capture_key("20260102T030405006Z-0a1b2c3d")]:
        store.delete(key)
    sources, findings = _find(store)
    assert (sources, [problem.kind for problem in findings.problems]) == ([], ["not_captured"])


def test_internal_topics_are_restored_only_when_named() -> None:
    """Tests that "all topics" does not mean Kafka's own, while a user's own with underscores is one of all.

    It matters because __consumer_offsets is captured for the history of positions.
    "Restore everything" would always be refused, or leave out a topic that only looks internal.
    """
    store = memory_store()
    capture(store, {0: [batch(0, 3)]}, topic="__consumer_offsets", capture_id="c1")
    capture(store, {0: [batch(0, 3)]}, topic="__heartbeat", capture_id="c2")
    sources, _ = _find(store)
    assert [source.topic for source in sources] == ["__heartbeat"]
    sources, _ = _find(store, topics=("__consumer_offsets",))
    assert [source.topic for source in sources] == ["__consumer_offsets"]
    store.delete(capture_key("c2"))
    with pytest.raises(ConfigurationError, match="nothing to restore"):
        _find(store, capture="c1")


class _CountingStore(FaultyStore):
    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.asked: list[str] = []

    def size(self, key: str) -> int | None:
        self.asked.append(key)
        return super().size(key)

    def list(self, folder: str, start_after: str = "") -> Iterator[ObjectInfo]:
        self.asked.append(folder)
        return super().list(folder, start_after)


def test_objects_are_looked_up_by_listing() -> None:
    """Tests that 300 segments cost one listing, one more for each chosen partition, and that flaws are named.

    It matters because a topic of years has 10,000 segments, and one question each takes minutes.
    A listing misread would find nothing wrong, or everything.
    """
    store = memory_store()
    partitions = {p: [batch(i * 2, 2) for i in range(150)] for p in range(2)}
    log = capture(store, partitions)
    source = SourceTopic.at(TOPIC, log, 0, until_ms=None)

    def look(*wanted: int) -> tuple[list[str], Findings]:
        counting, findings = _CountingStore(store), Findings()
        segments = [
            s for p in wanted for s in source_segments(log, head=0, partition=p, start=0, from_ms=None)
        ]
        check_objects(source, segments, counting, findings.problem)
        return counting.asked, findings

    folder = f"topics/{TOPIC}/{log.topic_id}/"
    asked, findings = look(0, 1)
    assert (asked, findings.problems) == ([folder], [])
    assert look(1)[0] == [f"{folder}1/"]
    missing, short = log.segments(1)[7].key, log.segments(1)[8].key
    store.delete(missing)
    replace_object(store, short, store.get(short)[:-1])
    asked, findings = look(0, 1)
    assert sorted((problem.kind, problem.partition) for problem in findings.problems) == [
        ("damaged_object", 1),
        ("missing_object", 1),
    ]
    assert all(key in p.detail for key, p in zip((short, missing), findings.problems, strict=True))
    assert "source offsets [14, 16)" in findings.problems[1].detail
    # A listing may be stale: what it lacks is asked for by name.
    assert asked == [folder, missing]


def test_ranges_without_a_segment_are_sources_too() -> None:
    """Tests a topic that was captured empty.

    It matters because empty topics are part of a cluster.
    A restore must make them, and not take them for topics that were never captured.
    """
    store = memory_store()
    log = capture(store, {0: [], 1: []})
    append(log, part(0, 0), capture_id="c2")
    (source,), findings = _find(store)
    assert (source.head, len(source.ranges[0]), findings.problems) == (1, 2, [])
