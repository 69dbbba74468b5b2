"""Plans on a real broker: everything that forbids a restore, at once and before a byte is written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from kafka_backup import DamagedError, RefusedError, RestoreRequest
from kafka_backup.repository.documents import ConfigurationValue
from kafka_backup.restore_target import TargetPreflight
from tests.support.engine import capture, open_engine, restore, restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import delete_topic, new_topic, produce, read_topic, topic_config

NOW = int(time.time() * 1000)


def _records(count: int, *, at: int = NOW) -> list[NewRecord]:
    return [NewRecord(f"v{i}".encode(), f"k{i}".encode(), timestamp=at + i) for i in range(count)]


def test_all_findings_are_told_at_once(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests five topics with a flaw each, and one with three: one refusal names them all, and writes nothing.

    It matters because each round of "fix one, find the next" costs time on the worst day.
    A check that returns at the first flaw of a topic hides the others of that topic.
    """
    names = ["filled", "narrow", "gone", "short", "sound"]
    topics = {name: new_topic(kafka) for name in names}
    for topic in topics.values():
        produce(kafka.bootstrap_servers, topic, _records(3))
    for name, partitions in (("filled", 1), ("narrow", 2)):
        new_topic(kafka, partitions, name=f"r-{topics[name]}")
        produce(kafka.bootstrap_servers, f"r-{topics[name]}", _records(1))
    before = set(kafka.admin().list_topics(timeout=60).topics)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, *topics.values())
        segments = {n: next((tmp_path / "topics" / topics[n]).glob("*/0/*.log*")) for n in names}
        segments["gone"].unlink()
        segments["narrow"].unlink()
        segments["short"].chmod(0o600)
        segments["short"].write_bytes(b"short")
        request = RestoreRequest(
            restore_id="r", topics=tuple(topics.values()), prefix="r-", replication_factor=2
        )
        plan = engine.plan_restore(request)
        found = {(name, p.kind) for p in plan.problems for name, topic in topics.items() if topic == p.topic}
        assert found == {
            ("filled", "target_not_empty"),
            ("narrow", "missing_object"),
            ("narrow", "partition_count"),
            ("narrow", "target_not_empty"),
            ("gone", "missing_object"),
            ("gone", "replication_factor"),
            ("short", "damaged_object"),
            ("short", "replication_factor"),
            ("sound", "replication_factor"),
        }
        with pytest.raises(DamagedError) as refused:
            engine.restore(plan)
        assert all(problem.detail in str(refused.value) for problem in plan.problems)
        sound = engine.plan_restore(request.model_copy(update={"topics": (topics["sound"],)}))
        with pytest.raises(RefusedError, match="--replication-factor 1"):
            engine.restore(sound)
        restore(engine, "r", topics["sound"], prefix="r-", replication_factor=1)
    made = set(kafka.admin().list_topics(timeout=60).topics) - before
    assert {name for name in made if not name.startswith("__")} == {f"r-{topics['sound']}"}
    assert len(read_topic(kafka.bootstrap_servers, f"r-{topics['filled']}")[0]) == 1


def test_the_incarnation_that_lived_then_is_restored(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a topic that was deleted and made again: by time, by capture, by id, and refused without any.

    It matters because the commonest disaster is a deleted topic that a client makes again at once.
    The newest incarnation would be restored, empty, and verified.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, _records(5))
    with open_engine(kafka, tmp_path) as engine:
        first = capture(engine, topic)[-1].capture  # type: ignore[union-attr]
        before = restored_as(kafka, topic)
        lived = int(time.time() * 1000)
        delete_topic(kafka, topic)
        new_topic(kafka, name=topic)
        capture(engine, topic)
        for request in ({}, {"until_ms": int(time.time() * 1000)}):
            plan = engine.plan_restore(
                RestoreRequest(restore_id="n", topics=(topic,), prefix="n-", **request)
            )
            assert [problem.kind for problem in plan.problems] == ["several_incarnations"]
            assert [
                topic_id in plan.problems[0].detail for topic_id in engine.repository().incarnations(topic)
            ]
        restore(engine, "t", topic, prefix="t-", until_ms=lived)
        restore(engine, "c", topic, prefix="c-", capture=first)
        old = engine.commit_logs(topic)[0].topic_id
        restore(engine, "i", topic, prefix="i-", incarnation=old)
    for prefix in "tci":
        assert read_topic(kafka.bootstrap_servers, f"{prefix}-{topic}") == before


def test_settings_that_the_target_cannot_have_are_listed(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a setting that needs more copies than the target has, and one that it refuses: listed, not applied.

    It matters because a topic that demands two in-sync copies of one is verified, and takes no more records.
    Refusing the whole restore instead would leave no way to get the records back.
    """
    topic = new_topic(kafka, config={"min.insync.replicas": 2, "retention.ms": -1, "segment.ms": 70_000})
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        # A broker of an older release took this value, the one at hand does not.
        log = engine.commit_logs(topic)[0]
        incarnation = log.commits[0].incarnation
        settings = {
            **incarnation.configuration,
            "segment.bytes": ConfigurationValue(value="20000", source="DYNAMIC_TOPIC_CONFIG"),
        }
        log.append(
            nonce="n",
            capture_id="older",
            window=None,
            committed_at=NOW,
            incarnation=incarnation.model_copy(update={"configuration": settings}),
            partitions=(),
        )
        plan = engine.plan_restore(RestoreRequest(restore_id="r", topics=(topic,), prefix="restored-"))
        assert [note.kind for note in plan.notes] == ["setting_refused"]
        assert "segment.bytes=20000" in plan.notes[0].detail
        report = engine.restore(plan)
    assert report.topics[0].not_applied == {"min.insync.replicas": "2", "segment.bytes": "20000"}
    assert topic_config(kafka.admin(), f"restored-{topic}") == {"retention.ms": "-1", "segment.ms": "70000"}


def test_a_batch_larger_than_the_targets_segments_is_restored(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a batch larger than the segment.bytes of an existing target, and of the saved configuration.

    It matters because a broker refuses such a batch, although it once took it under another setting.
    The restore would fail in the middle, on a topic that was fine for years.
    """
    topic = new_topic(kafka, config={"max.message.bytes": 4 << 20})
    large = [NewRecord(bytes(3 << 20), timestamp=NOW)] * 3
    produce(kafka.bootstrap_servers, topic, large, config={"message.max.bytes": 4 << 20})
    small = {"segment.bytes": str(1 << 20), "max.message.bytes": str(1 << 20)}
    with open_engine(kafka, tmp_path) as engine:
        engine._source.admin.alter_configs(topic, set=small, delete=())
        capture(engine, topic)
        new_topic(kafka, name=f"restored-{topic}", config={"segment.bytes": 1 << 20})
        restore(engine, "r", topic)
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == restored_as(kafka, topic)
    assert topic_config(kafka.admin(), f"restored-{topic}") == small


def test_a_target_that_appears_while_it_is_planned_is_told(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests a target that is created between two questions of the planner: said as that, and planned well again.

    It matters because two runs of one restore that are started together meet like this.
    The broker's answer, "exists already", would look like a flaw of the settings, or of our rights.
    """
    topic = new_topic(kafka)
    look = TargetPreflight.look

    def looked(*asked: Any, **named: Any) -> Any:
        found = look(*asked, **named)
        new_topic(kafka, name=f"restored-{topic}")
        return found

    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        request = RestoreRequest(restore_id="r", topics=(topic,), prefix="restored-")
        with monkeypatch.context() as patched:
            patched.setattr(TargetPreflight, "look", looked)
            plan = engine.plan_restore(request)
        assert [(p.kind, p.topic) for p in plan.problems] == [("target_appeared", topic)]
        assert engine.plan_restore(request).problems == ()


def test_a_target_filled_after_planning_is_left_alone(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests that records which appear in one partition after planning stop the restore before any write.

    It matters because minutes lie between reading a plan and saying yes.
    The other partitions would be written before the filled one is found, and nobody could take them apart.
    """
    topic = new_topic(kafka, 3)
    for partition in range(3):
        produce(kafka.bootstrap_servers, topic, _records(3), partition=partition)
    target = new_topic(kafka, 3)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        request = RestoreRequest(
            restore_id="r", topics=(topic,), rename=({"pattern": ".*", "replacement": target},)
        )
        plan = engine.plan_restore(request)
        produce(kafka.bootstrap_servers, target, _records(1), partition=2)
        with pytest.raises(RefusedError, match=rf"{target} \[2\].*nothing was written"):
            engine.restore(plan)
    assert [len(records) for records in read_topic(kafka.bootstrap_servers, target).values()] == [0, 0, 1]
