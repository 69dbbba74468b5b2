"""Positions moved to where a restore put the records: a real consumer then reads exactly what it had not seen."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from confluent_kafka import Producer

from kafka_backup import ConfigurationError, RefusedError
from kafka_backup.cli import main
from tests.support.engine import capture, open_engine, restore
from tests.support.groups import (
    commit,
    consumer,
    filled_topic,
    plan_reset,
    poll,
    positions,
    positions_of,
    read_and_commit,
    read_on,
    reading,
    reset,
    set_positions,
)
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord, Record
from tests.support.topics import delete_topic, ends, new_topic, produce, read_topic
from tests.support.waiting import wait_for


def new_group() -> str:
    return f"group-{secrets.token_hex(4)}"


def transactions(kafka: KafkaCluster, topic: str, outcomes: Sequence[bool], size: int = 5) -> None:
    """Transactions of `size` records each, committed or aborted; the values number them."""
    producer = Producer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "transactional.id": secrets.token_hex(4),
            "log_level": 0,
        }
    )
    producer.init_transactions(60)
    for number, committed in enumerate(outcomes):
        producer.begin_transaction()
        for i in range(size):
            producer.produce(topic, b"t%d-%d" % (number, i), b"k%d-%d" % (number, i), partition=0)
        producer.flush(60)
        producer.commit_transaction(60) if committed else producer.abort_transaction(60)


def compacted_topic(kafka: KafkaCluster) -> str:
    """One partition whose cleaner has left gaps, between batches and inside of them."""
    topic = new_topic(
        kafka,
        config={
            "cleanup.policy": "compact",
            "min.cleanable.dirty.ratio": "0.01",
            "segment.ms": "100",
            "min.compaction.lag.ms": "0",
            "delete.retention.ms": "86400000",
        },
    )
    for i in range(0, 60, 10):
        produce(
            kafka.bootstrap_servers,
            topic,
            [NewRecord(b"v%d" % n, b"k%d" % (n % 7)) for n in range(i, i + 10)],
        )
    time_out = time.monotonic() + 180
    while True:
        time.sleep(0.3)
        produce(kafka.bootstrap_servers, topic, [NewRecord(b"roll", b"roll-%d" % time.monotonic_ns())])
        records = read_topic(kafka.bootstrap_servers, topic)[0]
        if sum(record.value != b"roll" for record in records) <= 20:
            return topic
        assert time.monotonic() < time_out, "the cleaner did not run"


def mixed_topic(kafka: KafkaCluster) -> str:
    """Plain records, committed and aborted transactions, and deleted records at the beginning."""
    topic = filled_topic(kafka, records=20)
    transactions(kafka, topic, [True, False, False, True])
    produce(kafka.bootstrap_servers, topic, [NewRecord(b"end-%d" % i) for i in range(5)])
    return topic


def unread(records: Sequence[Record], position: int) -> list[bytes]:
    """The values from a position on."""
    return [record.value or b"" for record in records if record.offset >= position]


@pytest.mark.parametrize("make", [mixed_topic, compacted_topic], ids=["transactions", "compacted"])
def test_every_position_reads_on_exactly(kafka: KafkaCluster, tmp_path: Path, make: object) -> None:
    """What: a group at every offset of a topic with gaps, markers and aborted records; after a restore each reads on.

    Why: a committed position may be any offset: a marker's, an aborted record's, one that the cleaner took.
    Risk: a position that is wrong by one is a record that is lost or done twice.
    """
    topic = make(kafka)  # type: ignore[operator]
    start, end = ends(kafka.bootstrap_servers, topic)[0]
    at = {f"{new_group()}-{offset}": offset for offset in range(start, end + 1)}
    set_positions(kafka, {group: {(topic, 0): offset} for group, offset in at.items()})
    source = read_topic(kafka.bootstrap_servers, topic)[0]
    expected = {group: unread(source, offset) for group, offset in at.items()}
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        saved = engine.captures()[-1].groups
        assert saved is not None
        restore(engine, "r1", topic)
        report = reset(engine, *at, snapshot_id=saved.snapshot_id, restore_id="r1")
        assert report.status == "verified"
        again = reset(engine, *at, snapshot_id=saved.snapshot_id, restore_id="r1")
        assert again.status == "unchanged"
    target = f"restored-{topic}"
    restored = read_topic(kafka.bootstrap_servers, target)[0]
    now = positions_of(kafka, at)
    for group, offset in at.items():
        assert now[group] == {(topic, 0): offset, (target, 0): now[group][target, 0]}
        assert unread(restored, now[group][target, 0]) == expected[group], offset
    for group in list(at)[3 :: max(1, len(at) // 3)]:  # real consumers, a few of them
        assert read_on(kafka.bootstrap_servers, group, target)[0] == expected[group]


def test_a_time_bounded_restore_moves_groups_into_it(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: records from the middle are restored; groups before, in and after them read on within them.

    Why: a restore of one hour has records of that hour only.
    Risk: a group that was before the hour begins after it, and the other way round.
    """
    topic = new_topic(kafka, config={"retention.ms": -1})
    base = 1_700_000_000_000
    produce(
        kafka.bootstrap_servers, topic, [NewRecord(b"%d" % i, timestamp=base + 1000 * i) for i in range(30)]
    )
    at = {f"{new_group()}-{offset}": offset for offset in (0, 9, 10, 15, 20, 21, 30)}
    set_positions(kafka, {group: {(topic, 0): offset} for group, offset in at.items()})
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        snapshot = engine.groups.snapshot([f"{group}" for group in at]).snapshot
        restore(engine, "r1", topic, from_ms=base + 10_000, until_ms=base + 20_000)
        planned = plan_reset(engine, *at, snapshot_id=snapshot.snapshot_id, restore_id="r1")
        for group in planned.plan.groups:
            (position,) = group.positions
            assert position.source_offset == at[group.group]
            assert position.remaining == len([i for i in range(10, 21) if i >= at[group.group]])
        engine.groups.reset(planned.plan)
    for group, offset in at.items():
        expected = [b"%d" % i for i in range(10, 21) if i >= offset]
        assert read_on(kafka.bootstrap_servers, group, f"restored-{topic}")[0] == expected


def test_a_whole_recovery_on_two_partitions_and_both_protocols(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: consumers of both protocols are half way; the topic is restored, the groups are moved, they read on.

    Why: this is the bad day from end to end.
    Risk: a record that no consumer sees again, or one that is seen twice.
    """
    topic = filled_topic(kafka, 2, records=50)
    groups = {new_group(): protocol for protocol in ("classic", "consumer")}
    seen = {
        group: read_and_commit(kafka.bootstrap_servers, group, topic, 37, protocol=protocol)
        for group, protocol in groups.items()
    }
    everything = sorted(b"%d-%d" % (p, i) for p in range(2) for i in range(50))
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        saved = engine.captures()[-1].groups
        assert saved is not None
        restore(engine, "r1", topic)
        report = reset(engine, *groups, snapshot_id=saved.snapshot_id, restore_id="r1", atomic=True)
        assert report.status == "verified"
    for group, protocol in groups.items():
        rest = read_on(kafka.bootstrap_servers, group, f"restored-{topic}", protocol=protocol)
        assert sorted([*seen[group], *rest[0], *rest[1]]) == everything


def test_groups_that_cannot_be_moved_are_refused_by_name(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: an active group, an absent one, another incarnation, a topic that was not restored, a lost target.

    Why: each of them would end with a consumer at a number that means nothing.
    Risk: a translation that skips what it does not understand, and says verified.
    """
    topic, other, group = filled_topic(kafka), filled_topic(kafka), new_group()
    commit(kafka.bootstrap_servers, group, {(topic, 0): 5, (other, 0): 6})
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic, other)
        snapshot = engine.groups.snapshot([group]).snapshot.snapshot_id
        through = {"snapshot_id": snapshot, "restore_id": "r1"}
        with pytest.raises(ConfigurationError, match="r1 does not exist"):
            plan_reset(engine, group, **through)
        restore(engine, "r1", topic)
        with pytest.raises(ConfigurationError, match="no-such"):
            plan_reset(engine, "no-such", **through)
        with pytest.raises(ConfigurationError, match=other):
            plan_reset(engine, group, topics=(other,), **through)
        target = f"restored-{topic}"
        with reading(kafka.bootstrap_servers, group, topic):
            (problem,) = plan_reset(engine, group, **through).plan.problems
            assert problem.kind == "group_active"
        plan = plan_reset(engine, group, **through).plan
        assert [(p.topic, p.offset) for g in plan.groups for p in g.positions] == [(target, 5)]
        delete_topic(kafka, topic)
        new_topic(kafka, name=topic)
        commit(kafka.bootstrap_servers, group, {(topic, 0): 0})
        late = engine.groups.snapshot([group]).snapshot.snapshot_id
        (problem,) = plan_reset(engine, group, snapshot_id=late, restore_id="r1").plan.problems
        assert problem.kind == "another_incarnation"
        delete_topic(kafka, target)
        (problem,) = plan_reset(engine, group, **through).plan.problems
        assert (problem.kind, target in problem.detail) == ("another_incarnation", True)
        with pytest.raises(RefusedError, match=target):
            engine.groups.reset(plan)


def test_a_position_ahead_of_the_capture_is_listed_and_clamped(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: a read_uncommitted reader is inside an open transaction when the capture ends before it.

    Why: its position lies beyond everything that was saved.
    Risk: a target offset beyond the target's end, where a consumer resets by its own policy.
    """
    topic, group = filled_topic(kafka, records=10), new_group()
    producer = Producer(
        {"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": group, "log_level": 0}
    )
    producer.init_transactions(60)
    producer.begin_transaction()
    for i in range(8):
        producer.produce(topic, b"open-%d" % i, partition=0)
    producer.flush(60)
    member = consumer(kafka.bootstrap_servers, group, isolation_level="read_uncommitted")
    member.subscribe([topic])
    assert len(poll(member, 15)) == 15
    member.commit(asynchronous=False)
    member.close()
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        producer.abort_transaction(60)
        saved = engine.captures()[-1].groups
        assert saved is not None
        restore(engine, "r1", topic)
        plan = plan_reset(engine, group, snapshot_id=saved.snapshot_id, restore_id="r1").plan
        ((position,),) = [each.positions for each in plan.groups]
        assert (position.source_offset, position.offset, position.clamped_from) == (15, 10, 15)
        assert engine.groups.reset(plan).status == "verified"
    assert positions(kafka, group)[f"restored-{topic}", 0] == 10


def test_moves_are_reported_by_the_command_line(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: the report of each move: group, topic, partition, source offset, target offset, records to read.

    Why: somebody has to look at it before it is done.
    Risk: numbers of the source where those of the target should stand.
    """
    (tmp_path / "kafka-backup.yaml").write_text(
        json.dumps(
            {
                "cluster": {"bootstrap_servers": kafka.bootstrap_servers, "retry_seconds": 30},
                "repository": {"url": f"file://{tmp_path}/repository"},
            }
        )
    )
    topic, group = mixed_topic(kafka), new_group()
    commit(kafka.bootstrap_servers, group, {(topic, 0): 23})
    with open_engine(kafka, tmp_path / "repository") as engine:
        capture(engine, topic)
        restore(engine, "r1", topic)
        saved = engine.captures()[-1].groups
        assert saved is not None
    command = ["--config", str(tmp_path / "kafka-backup.yaml"), "groups", "reset", "--group", group]
    asked = [*command, "--snapshot", saved.snapshot_id, "--restore", "r1"]
    shown = CliRunner().invoke(main, asked)
    assert (shown.exit_code, f"{topic} offset 23" in shown.stdout) == (0, True)
    for execute in ([], ["--execute"]):
        done = CliRunner().invoke(main, [*asked, "--json", *execute])
        assert done.exit_code == 0, done.output
        (row,) = json.loads(done.stdout)["groups"]
        assert (row["topic"], row["source_topic"], row["source_offset"]) == (f"restored-{topic}", topic, 23)
        assert (row["before"], row["after"]) == (None, 23)
        assert row["remaining"] == len(unread(read_topic(kafka.bootstrap_servers, topic)[0], 23))
    wait_for(lambda: positions(kafka, group)[f"restored-{topic}", 0] == 23)
