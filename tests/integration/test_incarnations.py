"""Topics that are deleted, made again, grown, changed or idle, between captures and during one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from confluent_kafka.admin import NewPartitions

from kafka_backup import (
    BackupEvent,
    BrokerError,
    CaptureFinished,
    Engine,
    TopicCommitted,
    TopicFailed,
    TopicMissingError,
    TopicRecreated,
    TopicUnchanged,
)
from kafka_backup.backup import _Capture
from kafka_backup.kafka.topics import TopicAdmin
from tests.support.engine import capture, committed, in_the_middle, open_engine, restore, restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import alter_config, delete_topic, new_topic, produce, read_topic
from tests.support.waiting import wait_for


def _records(count: int, start: int = 0) -> list[NewRecord]:
    return [NewRecord(b"value-%d" % number * 20) for number in range(start, start + count)]


def _write(kafka: KafkaCluster, topic: str, count: int, start: int = 0, *, partition: int = 0) -> None:
    """In many batches, so that a capture needs several responses."""
    config = {"batch.size": 8192}
    produce(kafka.bootstrap_servers, topic, _records(count, start), partition=partition, config=config)


def _add_partitions(kafka: KafkaCluster, topic: str, total: int) -> None:
    admin = kafka.admin()
    admin.create_partitions([NewPartitions(topic, total)])[topic].result(30)
    wait_for(lambda: all(kafka.leader_of(topic, each) > 0 for each in range(total)), 30, "leaders")


def _values(kafka: KafkaCluster, topic: str) -> list[bytes | None]:
    return [record.value for record in read_topic(kafka.bootstrap_servers, topic)[0]]


@pytest.mark.parametrize("count", [0, 5, 10, 25])
def test_a_topic_that_was_made_again_begins_anew(kafka: KafkaCluster, tmp_path: Path, count: int) -> None:
    """What: a topic of 10 records, deleted and made again with none, fewer, as many, more.

    Why: offsets start again at 0 and mean other records, whatever the ends say.
    Risk: the new records below the old end are never captured; or both are mixed in one restore.
    """
    topic = new_topic(kafka)
    _write(kafka, topic, 10)
    with open_engine(kafka, tmp_path) as engine:
        first = committed(capture(engine, topic), topic)
        delete_topic(kafka, topic)
        new_topic(kafka, name=topic)
        if count:
            _write(kafka, topic, count, 1000)
        events = capture(engine, topic)
        second = committed(events, topic)
        assert (second.commit, second.records, second.partitions[0].start) == (0, count, 0)
        (noted,) = [event for event in events if isinstance(event, TopicRecreated)]
        assert (noted.previous_topic_id, noted.topic_id) == (first.topic_id, second.topic_id)
        (unchanged,) = [event for event in capture(engine, topic) if isinstance(event, TopicUnchanged)]
        assert unchanged.topic_id == second.topic_id
        restore(engine, "new", topic, prefix="new-", incarnation=second.topic_id)
        restore(engine, "old", topic, prefix="old-", incarnation=first.topic_id)
        assert engine.verify(level="data").status == "ok"
    assert read_topic(kafka.bootstrap_servers, f"new-{topic}") == restored_as(kafka, topic)
    assert _values(kafka, f"old-{topic}") == [record.value for record in _records(10)]


def test_a_topic_that_is_made_again_during_a_capture_is_never_mixed(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: while a capture reads a topic, somebody deletes it and makes it again with more records.

    Why: the broker goes on answering under the same name.
    Risk: a log of one id that ends with the records of another, or a green run that has neither.
    """
    topic = new_topic(kafka)
    _write(kafka, topic, 3000)

    def recreate() -> None:
        delete_topic(kafka, topic)
        new_topic(kafka, name=topic)
        _write(kafka, topic, 4000, 10_000)

    in_the_middle(monkeypatch, recreate)
    with open_engine(kafka, tmp_path, segment_bytes=1 << 16) as engine:
        events = list(engine.backup([topic]))
        (failed,) = [event for event in events if isinstance(event, TopicFailed)]
        assert isinstance(failed.error, BrokerError)
        assert "re-created" in str(failed.error)
        assert isinstance(events[-1], CaptureFinished)
        assert events[-1].status == "partial"
        old = next(event for event in events if isinstance(event, TopicCommitted))
        second = committed(capture(engine, topic), topic)
        assert second.topic_id != old.topic_id
        assert second.records == 4000
        restore(engine, "new", topic, prefix="new-", incarnation=second.topic_id)
        restore(engine, "old", topic, prefix="old-", incarnation=old.topic_id)
        assert engine.verify(level="data").status == "ok"
    assert read_topic(kafka.bootstrap_servers, f"new-{topic}") == restored_as(kafka, topic)
    kept = _values(kafka, f"old-{topic}")
    assert 0 < len(kept) < 3000
    assert kept == [record.value for record in _records(len(kept))]


def test_a_topic_that_is_deleted_during_a_capture_fails_it(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: while a capture reads a topic, somebody deletes it; another topic is captured beside it.

    Why: what was read before is all that is left of it.
    Risk: the capture hangs, says complete, or throws away what it has.
    """
    topic, other = new_topic(kafka, name="deleted-1"), new_topic(kafka, name="deleted-2")
    _write(kafka, topic, 3000)
    _write(kafka, other, 10)
    in_the_middle(monkeypatch, lambda: delete_topic(kafka, topic))
    quick = {"retry_seconds": 4}
    with open_engine(
        kafka, tmp_path, cluster=quick, segment_bytes=1 << 16, max_concurrent_partitions=1
    ) as engine:
        events = list(engine.backup([topic, other]))
        (failed,) = [event for event in events if isinstance(event, TopicFailed)]
        assert (failed.topic, failed.error.exit_code) == (topic, 3)
        assert committed(events, other).records == 10
        kept = sum(event.records for event in events if isinstance(event, TopicCommitted))
        assert 10 < kept < 3010
        (failed,) = [e for e in engine.backup([topic, other]) if isinstance(e, TopicFailed)]
        assert isinstance(failed.error, TopicMissingError)


def test_partitions_that_are_added_belong_to_the_next_capture(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: partitions added between two captures, and during one, with records in them.

    Why: producers use a new partition at once, from offset 0 on.
    Risk: a partition that no capture ever begins, or one that begins at its end.
    """
    topic = new_topic(kafka)
    _write(kafka, topic, 3000)

    def grow() -> None:
        _add_partitions(kafka, topic, 3)
        _write(kafka, topic, 7, partition=2)

    with open_engine(kafka, tmp_path, segment_bytes=1 << 16) as engine:
        with monkeypatch.context() as patched:
            in_the_middle(patched, grow)
            assert len(committed(capture(engine, topic), topic).partitions) == 1
        second = committed(capture(engine, topic), topic)
        assert [(p.start, p.records) for p in second.partitions] == [(3000, 0), (0, 0), (0, 7)]
        _add_partitions(kafka, topic, 4)
        third = committed(capture(engine, topic), topic)
        assert [(p.start, p.records) for p in third.partitions][3] == (0, 0)
        (unchanged,) = [event for event in capture(engine, topic) if isinstance(event, TopicUnchanged)]
        assert unchanged.commit == third.commit
        restore(engine, "r", topic)
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == restored_as(kafka, topic)


def test_a_topic_that_is_created_during_a_capture_belongs_to_the_next(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: a topic that matches the selection is created while another one is captured.

    Why: a capture is the state of one moment, its beginning.
    Risk: half of a topic in a capture, or none of it in the next.
    """
    first, second = "born-1", "born-2"
    new_topic(kafka, name=first)
    _write(kafka, first, 3000)

    def create() -> None:
        new_topic(kafka, name=second)
        _write(kafka, second, 20)

    with open_engine(kafka, tmp_path, segment_bytes=1 << 16) as engine:
        with monkeypatch.context() as patched:
            in_the_middle(patched, create)
            events = capture(engine, "born-*")
        assert {event.topic for event in events if isinstance(event, TopicCommitted)} == {first}
        assert committed(capture(engine, "born-*"), second).records == 20
        _same_after_restore(kafka, engine, second)


def test_an_idle_topic_whose_configuration_changed_is_committed(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: no new record, but another setting; and an empty topic, at first sight and later.

    Why: a restore brings the topic's settings back, so the newest ones must be known.
    Risk: a topic without traffic keeps the settings of the day when it was first seen.
    """
    topic = new_topic(kafka)
    with open_engine(kafka, tmp_path) as engine:
        assert committed(capture(engine, topic), topic).commit == 0
        (unchanged,) = [event for event in capture(engine, topic) if isinstance(event, TopicUnchanged)]
        assert unchanged.commit == 0
        alter_config(kafka, topic, retention_ms=123456789)
        again = committed(capture(engine, topic), topic)
        assert (again.commit, again.records) == (1, 0)
        (log,) = engine.commit_logs(topic)
        saved = log.commits[1].incarnation.configuration["retention.ms"]
        assert (saved.value, saved.source) == ("123456789", "DYNAMIC_TOPIC_CONFIG")
        assert log.commits[0].incarnation.configuration["retention.ms"].value != "123456789"


def _same_after_restore(kafka: KafkaCluster, engine: Engine, topic: str) -> None:
    restore(engine, "r", topic)
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == restored_as(kafka, topic)


@pytest.mark.parametrize("count", [0, 10], ids=["never captured, now empty", "captured, now as many records"])
def test_a_topic_that_is_made_again_before_its_ends_are_asked(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """What: a topic of 10 records is made again between the list of topics and their ends, as if nothing had changed.

    Why: in between lie the positions of all groups, which takes seconds; and ends are asked by name.
    Risk: the first incarnation is committed as an empty topic, or is "unchanged", and the capture says complete.
    """
    topic = new_topic(kafka)
    _write(kafka, topic, 10)
    ask = _Capture._ask_ends
    made_again: list[str] = []

    def late(self: _Capture) -> Iterator[BackupEvent]:
        if not made_again:
            delete_topic(kafka, topic)
            made_again.append(new_topic(kafka, name=topic))
            _write(kafka, topic, count, 1000)
        return ask(self)

    with open_engine(kafka, tmp_path, consumer_groups=[]) as engine:
        if count:
            capture(engine, topic)
        monkeypatch.setattr(_Capture, "_ask_ends", late)
        events = list(engine.backup([topic]))
        (failed,) = [event for event in events if isinstance(event, TopicFailed)]
        assert "re-created" in str(failed.error)
        assert not [event for event in events if isinstance(event, TopicCommitted | TopicUnchanged)]
        assert committed(capture(engine, topic), topic).records == count


def test_a_topic_whose_settings_cannot_be_read_fails_alone(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: of two topics, one is deleted between the list of topics and the question for their settings.

    Why: settings come from another request, by name, and one topic's trouble is no other's.
    Risk: no topic is captured; or the topic is captured without its settings, and restored with others.
    """
    goes, stays = new_topic(kafka), new_topic(kafka)
    for topic in (goes, stays):
        _write(kafka, topic, 10)
    describe = TopicAdmin.describe_each

    def late(self: TopicAdmin, topics: Sequence[str], **more: Callable[[], None]) -> object:
        delete_topic(kafka, goes)
        return describe(self, topics, **more)

    with open_engine(kafka, tmp_path, consumer_groups=[]) as engine:
        with monkeypatch.context() as patched:
            patched.setattr(TopicAdmin, "describe_each", late)
            events = list(engine.backup([goes, stays]))
        (failed,) = [event for event in events if isinstance(event, TopicFailed)]
        assert failed.topic == goes
        assert "settings" in str(failed.error)
        assert committed(events, stays).records == 10
        assert not [event for event in events if isinstance(event, TopicCommitted) and event.topic == goes]
        assert isinstance(events[-1], CaptureFinished)
        assert events[-1].status == "partial"
