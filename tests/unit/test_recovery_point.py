"""Recovery points: which capture stands for "everything before is safe"."""

from __future__ import annotations

from kafka_backup.recovery_point import RecoveryPoint, recovery_points
from kafka_backup.repository.documents import Capture, CapturedTopic, CaptureFailure
from kafka_backup.repository.layout import capture_key
from kafka_backup.repository.repository import Repository
from tests.unit.faults import FaultyStore
from tests.unit.repositories import CLUSTER, TOPIC_ID, memory_store


def put(repository: Repository, number: int, topics: list[str], failed: list[str] | None = None) -> str:
    """Stores capture `number`, which began at that many seconds."""
    capture_id = f"2026010{number}T000000000Z-0a0b0c0d"
    repository.put_capture(
        Capture(
            capture_id=capture_id,
            nonce="n",
            started_at=number * 1000,
            ended_at=number * 1000 + 1,
            window=None,
            status="partial" if failed else "complete",
            topics=tuple(
                CapturedTopic(topic=name, topic_id=TOPIC_ID, head=0, head_sha256="0" * 64, changed=True)
                for name in topics
            ),
            failures=tuple(CaptureFailure(topic=name, partition=3, message="x") for name in failed or []),
        )
    )
    return capture_id


def test_newest_whole_capture_of_a_topic_is_its_recovery_point() -> None:
    """Tests topics that are in the newest capture, only in an older one, failed in the newest, and nowhere.

    It is the number that says how much would be lost now.
    Could go wrong: a capture that missed one partition counts, or one topic's age is told of all.
    """
    repository = Repository.open(memory_store(), cluster_id=CLUSTER, create=True)
    oldest = put(repository, 1, ["a", "b", "c"])
    middle = put(repository, 2, ["a", "c"])
    newest = put(repository, 3, ["a", "c"], failed=["c"])

    assert recovery_points(repository, ["a", "b", "c", "never"]) == {
        "a": RecoveryPoint(capture=newest, time=3000),
        "b": RecoveryPoint(capture=oldest, time=1000),
        "c": RecoveryPoint(capture=middle, time=2000),
    }
    assert recovery_points(repository, ["a"], before=newest)["a"].capture == middle
    assert recovery_points(repository, ["a"], before=oldest) == {}


def test_no_more_captures_are_read_than_needed() -> None:
    """Tests that the search ends with the last topic found.

    A year of hourly captures is 8,760 objects; a check asks every few minutes.
    Could go wrong: each question reads all of them.
    """
    read: list[str] = []

    class Counting(FaultyStore):
        def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
            read.append(key)
            return super().get(key, start, end)

    store = memory_store()
    repository = Repository.open(store, cluster_id=CLUSTER, create=True)
    put(repository, 1, ["a"])
    newest = put(repository, 2, ["a"])
    asked = Repository.open(Counting(store), cluster_id=CLUSTER, create=False)
    read.clear()
    recovery_points(asked, ["a"])
    assert read == [capture_key(newest)]
