"""What a reset does to real consumer groups, one at a time: never more, never less, never twice."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from kafka_backup import ConfigurationError, RefusedError
from tests.support.engine import open_engine
from tests.support.groups import (
    commit,
    consumer,
    filled_topic,
    plan_reset,
    positions,
    read_and_commit,
    read_on,
    reading,
    reset,
    states,
)
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import delete_topic, new_topic, produce
from tests.support.waiting import wait_for


def new_group() -> str:
    return f"group-{secrets.token_hex(4)}"


def test_offset_reset_idempotence(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: a group that read 5 of 10 records is reset to 3, twice; the second time nothing is changed.

    Why: whoever is not sure whether a command worked runs it again.
    Risk: a second run that moves the group on from where the first one put it.
    """
    topic, group = filled_topic(kafka, records=10), new_group()
    assert len(read_and_commit(kafka.bootstrap_servers, group, topic, 5)) == 5
    assert positions(kafka, group) == {(topic, 0): 5}
    with open_engine(kafka, tmp_path) as engine:
        first = reset(engine, group, to="offset", to_offset=3)
        assert first.status == "verified"
        assert positions(kafka, group) == {(topic, 0): 3}
        second = reset(engine, group, to="offset", to_offset=3)
        assert (second.status, second.reset_id) == ("unchanged", None)
    assert positions(kafka, group) == {(topic, 0): 3}
    assert [path.name for path in (tmp_path / "resets").iterdir()] == [first.reset_id]
    assert read_on(kafka.bootstrap_servers, group, topic) == {0: [b"0-%d" % i for i in range(3, 10)]}


def test_offset_commit_under_rebalance(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: two members of one group read and commit, one joins late; a snapshot then holds all that they did.

    Why: positions are handed over in a rebalance, each partition to another member.
    Risk: a snapshot of one member's view, or from before the handing over.
    """
    topic, group = filled_topic(kafka, 3, records=30), new_group()
    members = [consumer(kafka.bootstrap_servers, group), consumer(kafka.bootstrap_servers, group)]
    read = set()

    def read_some() -> None:
        for member in members:
            message = member.poll(0.05)
            if message is not None and message.error() is None:
                read.add((message.partition(), message.offset()))

    def both_have_partitions() -> bool:
        read_some()
        return sorted(len(member.assignment()) for member in members) == [1, 2]

    members[0].subscribe([topic])
    wait_for(lambda: read_some() or len(read) >= 5, 60, "the first member's records")
    members[0].commit(asynchronous=False)
    members[1].subscribe([topic])
    wait_for(both_have_partitions, 60, "a rebalance")
    wait_for(lambda: read_some() or len(read) >= 60, 60, "records of both")
    for member in members:
        member.commit(asynchronous=False)
    with open_engine(kafka, tmp_path) as engine:
        (saved,) = engine.groups.snapshot([group]).snapshot.groups
    for member in members:
        member.close()
    assert saved.state == "Stable"
    assert {(p.topic, p.partition): p.offset for p in saved.positions} == positions(kafka, group)
    assert sum(p.offset for p in saved.positions) == len(read)


def test_verify_offset_commit_idempotence_under_rebalance(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: resets while consumers of the group join and leave: refused by name, and nothing is moved.

    Why: a position that is moved under a consumer is overwritten by its next commit, or skips what it holds.
    Risk: TxnOffsetCommit and older tools move the positions of an active group without a word.
    """
    topic, group = filled_topic(kafka, 3, records=10), new_group()
    read_and_commit(kafka.bootstrap_servers, group, topic, 12)
    before = positions(kafka, group)
    with open_engine(kafka, tmp_path) as engine:
        ready = plan_reset(engine, group, to="earliest")
        assert not ready.plan.problems
        for atomic in (False, True):
            with reading(kafka.bootstrap_servers, group, topic):
                planned = plan_reset(engine, group, to="earliest", atomic=atomic)
                (problem,) = planned.plan.problems
                assert (problem.kind, problem.group) == ("group_active", group)
                assert "rdkafka" in problem.detail
                with pytest.raises(RefusedError, match=group):
                    engine.groups.reset(ready.plan)  # planned before the consumer came
                assert positions(kafka, group) == before
        wait_for(lambda: states(kafka)[group] == "EMPTY", 60, "an empty group")
        assert reset(engine, group, to="earliest").status == "verified"
    assert sorted(positions(kafka, group).values()) == [0, 0, 0]
    assert sum(map(len, read_on(kafka.bootstrap_servers, group, topic).values())) == 30


def test_offset_reset_validates_high_watermark(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: offsets up to the high watermark are taken; beyond it, and below the log start, they are refused.

    Why: brokers store any number; a consumer beyond the end resets by its own policy, which may skip all.
    Risk: a check that is left to the broker, which has none; or one that is off by one.
    """
    topic, group = filled_topic(kafka, records=10), new_group()
    commit(kafka.bootstrap_servers, group, {(topic, 0): 5})
    admin = kafka.admin()
    admin.delete_records([TopicPartition(topic, 0, 2)])[TopicPartition(topic, 0)].result(30)
    with open_engine(kafka, tmp_path) as engine:
        for bad, words in ((100, "high watermark 10"), (11, "high watermark 10"), (1, "log start 2")):
            planned = plan_reset(engine, group, to="offset", to_offset=bad)
            (problem,) = planned.plan.problems
            assert problem.kind == "offset_out_of_range"
            assert words in problem.detail
            with pytest.raises(RefusedError, match=words):
                engine.groups.reset(planned.plan)
            assert positions(kafka, group) == {(topic, 0): 5}
        for bad, clamped in ((100, 10), (0, 2)):
            report = reset(engine, group, to="offset", to_offset=bad, clamp=True)
            assert report.status == "verified"
            assert positions(kafka, group) == {(topic, 0): clamped}
        for good in (10, 2):
            reset(engine, group, to="offset", to_offset=good)
            assert positions(kafka, group) == {(topic, 0): good}
    assert read_on(kafka.bootstrap_servers, group, topic)[0] == [b"0-%d" % i for i in range(2, 10)]


def test_to_a_time_an_end_and_a_beginning(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: earliest, latest, and times before, at, between and after records.

    Why: "from two o'clock on" is what people know on the bad day.
    Risk: the record at exactly that time left out; a time after the last record taken for the first.
    """
    topic, group = new_topic(kafka, 2), new_group()
    base = 1_700_000_000_000
    records = [NewRecord(b"%d" % i, timestamp=base + 1000 * i) for i in range(10)]
    produce(kafka.bootstrap_servers, topic, records)
    with open_engine(kafka, tmp_path) as engine:
        commit(kafka.bootstrap_servers, group, {(topic, 0): 7})
        for where, expected in (
            ({"to": "earliest"}, 0),
            ({"to": "latest"}, 10),
            ({"to": "time", "to_ms": base - 1}, 0),
            ({"to": "time", "to_ms": base + 3000}, 3),
            ({"to": "time", "to_ms": base + 3001}, 4),
            ({"to": "time", "to_ms": base + 9001}, 10),
        ):
            assert reset(engine, group, **where).status in ("verified", "unchanged")
            # Partition 1 had no position: the whole topic goes to that time, not only what was read before.
            assert positions(kafka, group) == {(topic, 0): expected, (topic, 1): 0}


def test_a_group_that_does_not_exist_is_made_when_its_topic_is_named(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    """What: a reset of an absent group: an error without a topic, all partitions of a named one.

    Why: a consumer that is yet to come shall begin at a certain place.
    Risk: a slip in the group's name that quietly makes a group which nobody uses.
    """
    topic, group = filled_topic(kafka, 2), new_group()
    with open_engine(kafka, tmp_path) as engine:
        with pytest.raises(ConfigurationError, match=group):
            plan_reset(engine, group, to="latest")
        with pytest.raises(ConfigurationError, match="no-such-topic"):
            plan_reset(engine, group, to="latest", topics=("no-such-topic",))
        assert reset(engine, group, to="offset", to_offset=4, topics=(topic,)).status == "verified"
        assert positions(kafka, group) == {(topic, 0): 4, (topic, 1): 4}
        with pytest.raises(ConfigurationError, match="no group"):
            plan_reset(engine, "no-such-*", to="latest")


def test_to_a_snapshot_puts_every_position_back(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: a group goes on after a snapshot, on partitions and topics new to it; then back to the snapshot.

    Why: a position that did not exist then would make the group skip what it had not read then.
    Risk: only what is in the snapshot is set, and the rest is left where it is now.
    """
    topic, other, group = filled_topic(kafka, 2), filled_topic(kafka), new_group()
    commit(kafka.bootstrap_servers, group, {(topic, 0): 5})
    with open_engine(kafka, tmp_path) as engine:
        snapshot = engine.groups.snapshot([group]).snapshot.snapshot_id
        young = filled_topic(kafka)
        now = {(topic, 0): 9, (topic, 1): 8, (other, 0): 7, (young, 0): 3}
        commit(kafka.bootstrap_servers, group, now)
        planned = plan_reset(engine, group, snapshot_id=snapshot)
        assert {(p.topic, p.partition): p.offset for p in planned.plan.groups[0].positions} == {
            (topic, 0): 5,
            (topic, 1): None,
            (other, 0): None,
        }
        report = engine.groups.reset(planned.plan)
        assert report.status == "verified"
        # The youngest topic was not there when the snapshot was taken: nothing is known of it.
        assert positions(kafka, group) == {(topic, 0): 5, (young, 0): 3}
        assert report.reset_id is not None
        engine.groups.rollback(engine.groups.plan_rollback(report.reset_id))
    assert positions(kafka, group) == now


def test_a_position_of_another_incarnation_is_refused(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: a snapshot of a topic that was deleted, and made again, since.

    Why: the same number means another record now.
    Risk: a consumer in the middle of data that it has never seen, everything before it skipped.
    """
    topic, group = filled_topic(kafka), new_group()
    commit(kafka.bootstrap_servers, group, {(topic, 0): 20})
    with open_engine(kafka, tmp_path) as engine:
        snapshot = engine.groups.snapshot([group]).snapshot.snapshot_id
        delete_topic(kafka, topic)
        for kind in ("no_such_topic", "another_incarnation"):
            planned = plan_reset(engine, group, snapshot_id=snapshot, clamp=True)
            assert [problem.kind for problem in planned.plan.problems] == [kind]
            with pytest.raises(RefusedError):
                engine.groups.reset(planned.plan)
            new_topic(kafka, name=topic) if kind == "no_such_topic" else None
            produce(kafka.bootstrap_servers, topic, [NewRecord(b"new") for _ in range(50)])
    assert positions(kafka, group) in ({}, {(topic, 0): 20})
