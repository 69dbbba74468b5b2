"""Restores in place: nothing is deleted that is not captured and proved, and every step can be taken again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewPartitions

from kafka_backup import (
    DamagedError,
    Engine,
    RefusedError,
    RestoreReport,
    RestoreRequest,
    UnreachableError,
    partition_restore,
    restore_topics,
)
from kafka_backup.kafka.topics import TopicAdmin
from kafka_backup.partition_capture import PartitionCapture
from kafka_backup.repository.restore_folder import RestoreFolder
from tests.support.engine import capture, open_engine, restore, restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord, renumbered
from tests.support.topics import ends, new_topic, produce, read_topic

NOW = int(time.time() * 1000)


@pytest.fixture(autouse=True)
def quick_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a dead run is still on its way here: runs die between their requests."""
    monkeypatch.setattr(partition_restore, "_SETTLE_SECONDS", 0.5)


def _write(kafka: KafkaCluster, topic: str, start: int, count: int, *, partition: int = 0) -> None:
    records = [NewRecord(b"v%d" % i, b"k%d" % i, timestamp=NOW + i) for i in range(start, start + count)]
    produce(kafka.bootstrap_servers, topic, records, partition=partition)


def _topic_id(kafka: KafkaCluster, topic: str) -> str:
    with open_engine(kafka, Path("/nowhere")) as engine:
        return engine._source.cluster.metadata([topic]).topics[topic].topic_id


def _request(topic: str, **wanted: object) -> RestoreRequest:
    return RestoreRequest(restore_id="r", topics=(topic,), replace=True, **wanted)


def _run(engine: Engine, request: RestoreRequest) -> RestoreReport:
    return engine.restore(engine.plan_restore(request))


def test_a_topic_is_put_back_in_its_place(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a topic put back to a moment after its last capture: all records until then, none later, and both kept.

    It matters because the records between the last scheduled capture and the accident are in the topic alone.
    Planned before the final capture, the restore would leave them out and call that the state of the moment.
    """
    topic = new_topic(kafka, config={"retention.ms": 400 * 86_400_000})
    _write(kafka, topic, 0, 100)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        _write(kafka, topic, 100, 100)
        everything = restored_as(kafka, topic)
        old = _topic_id(kafka, topic)
        without = engine.plan_restore(RestoreRequest(restore_id="x", topics=(topic,)))
        assert [problem.kind for problem in without.problems] == ["target_not_empty"]
        assert "--replace" in without.problems[0].detail
        request = _request(topic, until_ms=NOW + 149)
        plan = engine.plan_restore(request)
        assert plan.problems == ()
        assert [step.action for step in plan.steps] == [
            "capture",
            "prove",
            "delete",
            "create",
            "write",
            "configure",
        ]
        assert {note.kind for note in plan.notes} == {"replaced"}
        assert read_topic(kafka.bootstrap_servers, topic) == everything
        report = engine.restore(plan)
        assert report.topics[0].replaced_topic_id == old
        assert engine.restore(engine.plan_restore(request)) == report
        assert read_topic(kafka.bootstrap_servers, topic) == {0: everything[0][:150]}
        assert _topic_id(kafka, topic) == report.topics[0].target_topic_id != old
        # What was taken away is still in the repository.
        restore(engine, "back", topic, prefix="back-", incarnation=old)
        assert read_topic(kafka.bootstrap_servers, f"back-{topic}") == everything


def test_the_partitions_of_the_moment_come_back(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a topic that was given more partitions by mistake: replaced by one with as many as it had.

    It matters because partitions cannot be taken away again in any other way.
    Keys that moved to other partitions would never be in order again.
    """
    topic = new_topic(kafka)
    _write(kafka, topic, 0, 50)
    with open_engine(kafka, tmp_path) as engine:
        first = capture(engine, topic)[-1].capture  # type: ignore[union-attr]
        before = restored_as(kafka, topic)
        admin = kafka.admin()
        admin.create_partitions([NewPartitions(topic, 3)])[topic].result(30)
        _write(kafka, topic, 50, 50, partition=2)
        _run(engine, _request(topic, capture=first))
        assert read_topic(kafka.bootstrap_servers, topic) == before


class Killed(BaseException):
    """The process ends here; nothing in the engine may catch it."""


STEPS = [
    (Engine, "_final_capture", "after"),
    (RestoreFolder, "put_plan", "after"),
    (restore_topics, "delete_topic", "before"),
    (restore_topics, "delete_topic", "after"),
    (TopicAdmin, "create_topic", "after"),
    (TopicAdmin, "alter_configs", "before"),
    (RestoreFolder, "put_attempt", "after"),
    (RestoreFolder, "put_verification", "before"),
    (RestoreFolder, "put_report", "before"),
]


@pytest.mark.parametrize(
    ("owner", "name", "when"), STEPS, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_replacement_that_dies_at_a_step_is_completed(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, when: str
) -> None:
    """Tests that a restore in place which dies at each of its steps is completed by the same command.

    It matters because in between the topic does not exist, and its data is in the repository alone.
    A run that cannot go on there, or deletes what it has just made, is the disaster itself.
    """
    topic = new_topic(kafka, 2)
    for partition in range(2):
        _write(kafka, topic, 0, 60, partition=partition)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        for partition in range(2):
            _write(kafka, topic, 60, 60, partition=partition)
        everything = restored_as(kafka, topic)
        old = _topic_id(kafka, topic)
        request = _request(topic, until_ms=NOW + 89)
        real = getattr(owner, name)

        def dying(*args: object, **kwargs: object) -> object:
            if when == "after":
                real(*args, **kwargs)
            elif name == "alter_configs" and kwargs.get("validate_only"):
                return real(*args, **kwargs)
            raise Killed

        monkeypatch.setattr(owner, name, dying)
        with pytest.raises(Killed):
            _run(engine, request)
        monkeypatch.setattr(owner, name, real)
        report = _run(engine, request)
        assert report.topics[0].replaced_topic_id == old
        assert _run(engine, request) == report
        assert read_topic(kafka.bootstrap_servers, topic) == {
            p: records[:90] for p, records in everything.items()
        }
        restore(engine, "back", topic, prefix="back-", incarnation=old)
        assert read_topic(kafka.bootstrap_servers, f"back-{topic}") == everything


@pytest.mark.parametrize("moment", ["while planning", "before the deletion"])
def test_a_topic_that_is_still_written_is_not_deleted(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Tests a record that is written after the final capture, early and at the last moment: nothing is deleted.

    It matters because an application that was not stopped writes on.
    Its records would be deleted with the topic, and be in no capture.
    """
    topic = new_topic(kafka)
    _write(kafka, topic, 0, 30)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        old = _topic_id(kafka, topic)
        owner, name = (
            (Engine, "_final_capture") if moment == "while planning" else (RestoreFolder, "put_plan")
        )
        real = getattr(owner, name)

        def writing(*args: object) -> None:
            real(*args)
            _write(kafka, topic, 30, 1)

        monkeypatch.setattr(owner, name, writing)
        request = _request(topic, until_ms=NOW + 29)
        with pytest.raises(RefusedError, match=rf"{topic}.*(stop|Stop) whoever writes"):
            _run(engine, request)
        assert _topic_id(kafka, topic) == old
        assert len(read_topic(kafka.bootstrap_servers, topic)[0]) == 31
        monkeypatch.setattr(owner, name, real)
        report = _run(engine, request)
        assert report.topics[0].partitions[0].records == 30
        restore(engine, "back", topic, prefix="back-", incarnation=old)
        assert len(read_topic(kafka.bootstrap_servers, f"back-{topic}")[0]) == 31


def test_nothing_is_deleted_whose_backup_is_damaged(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a flipped byte in a segment, one that the restore needs and one that it does not: the topic stays.

    It matters because the topic itself is the only sound copy then.
    Found after the deletion, the damage would be final.
    """
    topic = new_topic(kafka)
    _write(kafka, topic, 0, 30)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        _write(kafka, topic, 30, 30)
        capture(engine, topic)
        everything = read_topic(kafka.bootstrap_servers, topic)
        for path in sorted((tmp_path / "topics" / topic).glob("*/0/*.log*")):
            data = path.read_bytes()
            path.chmod(0o600)
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            with pytest.raises(DamagedError, match=path.name):
                _run(engine, _request(topic, from_ms=NOW + 40))
            path.write_bytes(data)
            assert read_topic(kafka.bootstrap_servers, topic) == everything
        _run(engine, _request(topic, from_ms=NOW + 40))
    assert read_topic(kafka.bootstrap_servers, topic) == {0: renumbered(everything[0][40:])}


def test_what_no_capture_can_hold_forbids_a_replacement(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests an open transaction, single partitions, and a repository of another cluster: told at once, nothing deleted.

    It matters because each of them means that a part of the topic would be in no capture.
    A final capture that ends below the end of the log looks complete.
    """
    topic, elsewhere = new_topic(kafka, 2), tmp_path / "elsewhere"
    _write(kafka, topic, 0, 10)
    producer = Producer(
        {"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": f"t-{topic}", "log_level": 0}
    )
    with open_engine(kafka, tmp_path / "here") as engine:
        capture(engine, topic)
        producer.init_transactions(60)
        producer.begin_transaction()
        producer.produce(topic, b"open", partition=0)
        producer.flush(30)
        plan = engine.plan_restore(_request(topic, partitions=(0,)))
        assert {problem.kind for problem in plan.problems} == {"open_transaction", "replace_partitions"}
        with pytest.raises(RefusedError, match="open transaction"):
            engine.restore(plan)
        producer.abort_transaction(60)
        assert engine.plan_restore(_request(topic)).problems == ()
    with KafkaCluster(1) as other:
        new_topic(other, name=topic)
        _write(other, topic, 0, 5)
        target = {"bootstrap_servers": other.bootstrap_servers}
        with open_engine(kafka, tmp_path / "here") as source, open_engine(kafka, elsewhere) as engine:
            moved = engine.config.model_copy(
                update={
                    "target": engine.config.cluster.model_copy(update=target),
                    "repository": source.config.repository,
                }
            )
            with Engine.open(moved) as engine:
                plan = engine.plan_restore(_request(topic))
                assert "replace_elsewhere" in {problem.kind for problem in plan.problems}
                with pytest.raises(
                    RefusedError, match=r"holds backups of cluster|cannot be captured into it"
                ):
                    engine.restore(plan)
        assert sum(end for _, end in ends(other.bootstrap_servers, topic).values()) == 5


def test_a_final_capture_that_fails_deletes_nothing(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests a final capture that cannot be completed: its error ends the restore, the topic stays.

    It matters because the capture is all that will be left of the topic.
    A failed partition is an event among others, and easily overlooked.
    """
    topic = new_topic(kafka)
    _write(kafka, topic, 0, 10)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        _write(kafka, topic, 10, 10)

        def fail(*_: object) -> None:
            raise UnreachableError("the broker is gone")

        monkeypatch.setattr(PartitionCapture, "_responses", fail)
        with pytest.raises(UnreachableError, match="the broker is gone"):
            _run(engine, _request(topic))
    assert len(read_topic(kafka.bootstrap_servers, topic)[0]) == 20
