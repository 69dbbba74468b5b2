"""Restores in place: nothing is deleted that is not captured and proved, and every step can be taken again."""

from __future__ import annotations

import secrets
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
    restore_in_place,
)
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.topics import delete_topic
from kafka_backup.partition_capture import PartitionCapture
from kafka_backup.repository.restore_folder import RestoreFolder
from kafka_backup.repository.stores import open_store
from tests.support.engine import capture, open_engine, restore, restored_as
from tests.support.groups import commit, positions_of
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord, renumbered
from tests.support.topics import new_topic, produce, read_topic
from tests.support.waiting import wait_for
from tests.unit.repositories import batch
from tests.unit.repositories import capture as stored_capture

SOON = int(time.time() * 1000) + 1_800_000
"""The time of the first record: later than any group snapshot here, so that the moments among the records are, too."""


def _write(kafka: KafkaCluster, topic: str, start: int, count: int, *, partition: int = 0) -> None:
    records = [NewRecord(b"v%d" % i, b"k%d" % i, timestamp=SOON + i) for i in range(start, start + count)]
    produce(kafka.bootstrap_servers, topic, records, partition=partition)


def _topic_id(kafka: KafkaCluster, topic: str) -> str:
    with open_engine(kafka, Path("/nowhere")) as engine:
        return engine._source.cluster.metadata([topic]).topics[topic].topic_id


def _request(topic: str, **wanted: object) -> RestoreRequest:
    return RestoreRequest(restore_id="r", topics=(topic,), replace=True, **wanted)


def _run(engine: Engine, request: RestoreRequest) -> RestoreReport:
    return engine.restore(engine.plan_restore(request))


def test_a_topic_is_put_back_in_its_place(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a topic put back to a moment after its last capture, with a group: all until then, none later, both kept.

    It matters because the records between the last scheduled capture and the accident are in the topic alone.
    Planned before the final capture, the restore would leave them out and call that the state of the moment.
    """
    topic = new_topic(kafka, config={"retention.ms": 400 * 86_400_000})
    groups = [f"group-{secrets.token_hex(4)}" for _ in range(3)]
    _write(kafka, topic, 0, 100)
    for group in groups:
        commit(kafka.bootstrap_servers, group, {(topic, 0): 40})
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        _write(kafka, topic, 100, 100)
        # The final capture saves the positions again, as it does the records.
        for group, position in zip(groups, (120, 170, 170), strict=True):
            commit(kafka.bootstrap_servers, group, {(topic, 0): position})
        everything = restored_as(kafka, topic)
        old = _topic_id(kafka, topic)
        without = engine.plan_restore(RestoreRequest(restore_id="x", topics=(topic,)))
        assert [problem.kind for problem in without.problems] == ["target_not_empty"]
        assert "--replace" in without.problems[0].detail
        request = _request(topic, until_ms=SOON + 149, groups=tuple(groups[:2]))
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
        assert {note.kind for note in plan.notes} == {"replaced", "positions_of_final_capture"}
        assert read_topic(kafka.bootstrap_servers, topic) == everything
        report = engine.restore(plan)
        assert report.topics[0].replaced_topic_id == old
        assert engine.restore(engine.plan_restore(request)) == report
        assert read_topic(kafka.bootstrap_servers, topic) == {0: everything[0][:150]}
        assert _topic_id(kafka, topic) == report.topics[0].target_topic_id != old
        # Of the third group nothing was asked: its position went with the topic.
        found = positions_of(kafka, groups)
        assert [found[group].get((topic, 0)) for group in groups] == [120, 150, None]
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


@pytest.mark.parametrize("moment", ["while planning", "before the deletion", "in a new partition"])
def test_a_topic_that_is_still_written_is_not_deleted(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Tests a record that is written after the final capture, early, at the last moment, in a partition of its own.

    It matters because an application that was not stopped writes on, and adds partitions where it lacks some.
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
        admin = kafka.admin()

        def writing(*args: object) -> None:
            real(*args)
            if moment == "in a new partition":
                admin.create_partitions([NewPartitions(topic, 2)])[topic].result(30)
                wait_for(lambda: kafka.leader_of(topic, 1) > 0, 30, "the new partition")
                _write(kafka, topic, 30, 1, partition=1)
            else:
                _write(kafka, topic, 30, 1)

        monkeypatch.setattr(owner, name, writing)
        request = _request(topic, until_ms=SOON + 29)
        with pytest.raises(RefusedError, match=rf"{topic}.*(stop|Stop) whoever writes"):
            _run(engine, request)
        assert _topic_id(kafka, topic) == old
        assert sum(map(len, read_topic(kafka.bootstrap_servers, topic).values())) == 31
        monkeypatch.setattr(owner, name, real)
        report = _run(engine, request)
        assert sum(part.records for part in report.topics[0].partitions) == 30
        restore(engine, "back", topic, prefix="back-", incarnation=old)
        assert sum(map(len, read_topic(kafka.bootstrap_servers, f"back-{topic}").values())) == 31


def test_a_topic_that_is_written_while_another_is_deleted_is_captured_again(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests two topics, the second of which gets a record right after the first was deleted: said, and completed.

    It matters because one application may write into several topics, and stop with one of them.
    The one that is gone already could be captured again, as an empty one, and the positions on it be lost.
    """
    topics = [new_topic(kafka) for _ in range(2)]
    for topic in topics:
        _write(kafka, topic, 0, 30)
    group, written = f"group-{secrets.token_hex(4)}", ""
    commit(kafka.bootstrap_servers, group, {(topic, 0): 12 for topic in topics})

    def deleting(cluster: Cluster, topic: str, topic_id: str) -> None:
        nonlocal written
        delete_topic(cluster, topic, topic_id)
        monkeypatch.setattr(restore_in_place, "delete_topic", delete_topic)
        (written,) = set(topics) - {topic}
        _write(kafka, written, 30, 1)

    monkeypatch.setattr(restore_in_place, "delete_topic", deleting)
    wanted = {"replace": True, "until_ms": SOON + 29, "groups": (group,)}
    request = RestoreRequest(restore_id="r", topics=tuple(topics), **wanted)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, *topics)
        old = {topic: _topic_id(kafka, topic) for topic in topics}
        with pytest.raises(RefusedError, match=r"is still written.*\[31\].*is deleted already"):
            _run(engine, request)
        report = _run(engine, request)
        assert {topic.target: topic.replaced_topic_id for topic in report.topics} == old
        for topic in topics:
            values = [record.value for record in read_topic(kafka.bootstrap_servers, topic)[0]]
            assert values == [b"v%d" % i for i in range(30)]
        assert positions_of(kafka, [group]) == {group: {(topic, 0): 12 for topic in topics}}
        restore(engine, "back", written, prefix="back-", incarnation=old[written])
    assert len(read_topic(kafka.bootstrap_servers, f"back-{written}")[0]) == 31


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
                _run(engine, _request(topic, from_ms=SOON + 40))
            path.write_bytes(data)
            assert read_topic(kafka.bootstrap_servers, topic) == everything
        _run(engine, _request(topic, from_ms=SOON + 40))
    assert read_topic(kafka.bootstrap_servers, topic) == {0: renumbered(everything[0][40:])}


def test_what_no_capture_can_hold_forbids_a_replacement(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests an open transaction, single partitions, and a repository of another cluster: told at once, nothing deleted.

    It matters because each of them means that a part of the topic would be in no capture.
    A final capture that ends below the end of the log looks complete.
    """
    topic = new_topic(kafka, 2)
    _write(kafka, topic, 0, 10)
    before = _topic_id(kafka, topic)
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
    of_another_cluster = f"file://{tmp_path / 'elsewhere'}"
    stored_capture(open_store(of_another_cluster), {p: [batch(0, 5)] for p in range(2)}, topic=topic)
    with open_engine(kafka, of_another_cluster) as engine:
        plan = engine.plan_restore(_request(topic))
        assert [problem.kind for problem in plan.problems] == ["replace_elsewhere"]
        with pytest.raises(RefusedError, match=r"holds backups of cluster.*cannot be captured into it"):
            engine.restore(plan)
    assert _topic_id(kafka, topic) == before


def test_a_final_capture_that_fails_deletes_nothing(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests a final capture that cannot be completed: its error ends the restore, the topic stays.

    It matters because the capture is all that will be left of the topic.
    A failed partition is an event among others, and easily overlooked.
    """
    topic = new_topic(kafka)
    _write(kafka, topic, 0, 10)
    with open_engine(kafka, tmp_path, cluster={"retry_seconds": 1}) as engine:
        capture(engine, topic)
        _write(kafka, topic, 10, 10)

        def fail(*_: object) -> None:
            raise UnreachableError("the broker is gone")

        monkeypatch.setattr(PartitionCapture, "_responses", fail)
        with pytest.raises(UnreachableError, match="the broker is gone"):
            _run(engine, _request(topic))
    assert len(read_topic(kafka.bootstrap_servers, topic)[0]) == 20
