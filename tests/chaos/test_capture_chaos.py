"""Captures of a cluster whose brokers die, freeze and lie: complete, or loud."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from kafka_backup import BackupEvent, CaptureFinished, TopicCommitted, TopicFailed
from kafka_backup.kafka.fetch import FetchedPartition
from kafka_backup.partition_capture import PartitionCapture
from kafka_backup.repository.documents import OffsetSpan
from tests.support.engine import capture, committed, in_the_middle, open_engine, restore, restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.shell import Shell
from tests.support.topics import new_topic, produce, read_topic
from tests.support.waiting import wait_for

GROWN = (0, 20, 50, 80)
"""Records after an unclean election took 50: to less than the old end, to exactly it, to more."""
TUNED = {"socket.timeout.ms": 5000, "request.timeout.ms": 4000}


def _records(count: int, start: int = 0) -> list[NewRecord]:
    return [NewRecord(b"value-%d" % number * 10) for number in range(start, start + count)]


def test_a_leader_that_was_cut_off_does_not_end_a_capture_too_early(
    kafka3: KafkaCluster, tmp_path: Path
) -> None:
    """What: captures that know the cut-off leader only: while it is cut off, and just when it is back.

    Why: it goes on naming itself leader, with an end from before the cut, and so it was measured.
    Risk: acknowledged records that are not in the capture, and exit code 0.
    """
    topic = new_topic(kafka3)
    produce(kafka3.bootstrap_servers, topic, _records(100), config=TUNED)
    leader = kafka3.leader_of(topic)
    other = next(each for each in kafka3.ids if each != leader)
    only = {"bootstrap_servers": f"127.0.0.1:{kafka3.ports[leader]}"}
    kafka3.disconnect(leader)
    try:
        wait_for(lambda: kafka3.leader_of(topic, via=other) not in (leader, -1), 60, "a new leader")
        produce(kafka3.bootstrap_servers_without(leader), topic, _records(50, 100), config=TUNED)
        assert kafka3.leader_of(topic, via=leader) == leader  # it lies
        with open_engine(kafka3, tmp_path / "cut-off", cluster=only) as engine:
            assert committed(capture(engine, topic), topic).records == 150
    finally:
        kafka3.connect(leader)
    for number in range(5):
        with open_engine(kafka3, tmp_path / f"back-{number}", cluster=only) as engine:
            assert committed(capture(engine, topic), topic).records == 150
    wait_for(lambda: kafka3.in_sync(topic) == 3, 60, "the healed broker to be in sync")


class Unclean:
    """A topic on two of three brokers; one is killed, the other takes its place without its last records."""

    def __init__(self, kafka: KafkaCluster, partitions: int) -> None:
        self.kafka = kafka
        self.leader, self.follower, _ = kafka.ids
        self.dead = 0
        settings = {"unclean.leader.election.enable": "true", "min.insync.replicas": 1, "retention.ms": -1}
        places = [[self.leader, self.follower]] * partitions
        self.topic = new_topic(kafka, partitions, assignment=places, config={**settings})

    @property
    def servers(self) -> str:
        """Those that are alive."""
        return self.kafka.bootstrap_servers_without(self.dead)

    def write(self, count: int, start: int, partition: int = 0) -> None:
        """In batches of a few records."""
        config = {**TUNED, "batch.size": 4096}
        produce(self.servers, self.topic, _records(count, start), partition=partition, config=config)

    def kill_follower(self) -> None:
        """From now on only the leader has what is written."""
        self.kafka.kill(self.follower)
        self.dead = self.follower
        wait_for(lambda: self.kafka.partition(self.topic).isr == [self.leader], 60, "a smaller ISR")

    def elect_follower(self) -> None:
        """The leader dies, and the other comes back."""
        self.kafka.kill(self.leader)
        self.kafka.start(self.follower)
        self.dead = self.leader
        wait_for(lambda: self.kafka.leader_of(self.topic) == self.follower, 60, "an unclean election")

    def heal(self) -> None:
        """All are back."""
        for each in (self.leader, self.follower):
            self.kafka.node(each).reload()
            if self.kafka.node(each).status != "running":
                self.kafka.start(each)
        self.dead = 0
        wait_for(lambda: self.kafka.in_sync(self.topic) == 2, 60, "the healed broker to be in sync")


def test_backup_with_unclean_leader_election_enabled(kafka3: KafkaCluster, tmp_path: Path) -> None:
    """What: an unclean election takes records away that were captured; the log stays short, or grows again.

    Why: the cluster forgets acknowledged records then, and writes others over their offsets.
    Risk: the new records below our old end are never captured, or two histories are mixed in one restore.
    """
    cluster = Unclean(kafka3, len(GROWN))
    topic = cluster.topic
    for partition in range(len(GROWN)):
        cluster.write(100, 0, partition)
    try:
        cluster.kill_follower()
        for partition in range(len(GROWN)):
            cluster.write(50, 1000, partition)
        shell = Shell(tmp_path, cluster.servers, retry_seconds=60)
        before = shell.json("backup", "--topic", topic)
        cluster.elect_follower()
        for partition, count in enumerate(GROWN):
            cluster.write(count, 2000, partition)
        shell.configure(cluster.servers, retry_seconds=60)
        loud = shell.run("backup", "--topic", topic, "--json", code=4)
    finally:
        cluster.heal()
    assert [part["records"] for part in before["topics"][0]["partitions"]] == [150] * len(GROWN)
    after = json.loads(loud.stdout)
    assert after["status"] == "lossy"
    for part, count in zip(after["topics"][0]["partitions"], GROWN, strict=True):
        assert (part["start"], part["end"], part["records"]) == (100, 100 + count, count)
        assert part["truncated"] == {"start": 100, "end": 150}
        assert f"{topic} [{part['partition']}]: the log was cut back to offset 100" in loud.stderr
    shell.json("backup", "--topic", topic)
    problems = shell.json("verify", "--level", "data", code=4)["problems"]
    assert [problem["kind"] for problem in problems] == ["truncated"] * len(GROWN)
    shell.json("restore", "--id", "new", "--topic", topic, "--prefix", "new-", "--execute")
    assert read_topic(kafka3.bootstrap_servers, f"new-{topic}") == restored_as(kafka3, topic)
    old = ("--id", "old", "--prefix", "old-", "--capture", before["capture"])
    shell.json("restore", "--topic", topic, *old, "--execute")
    wanted = [record.value for record in [*_records(100), *_records(50, 1000)]]
    for records in read_topic(kafka3.bootstrap_servers, f"old-{topic}").values():
        assert [record.value for record in records] == wanted


def test_an_unclean_election_during_a_capture(
    kafka3: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: while a capture is in the middle of a partition, an unclean election changes what it has read.

    Why: a first capture takes hours, and the old end of the log is its promise.
    Risk: records of both histories in one range, with every CRC right, and exit code 0.
    """
    cluster = Unclean(kafka3, 1)
    topic = cluster.topic
    cluster.write(1000, 0)
    reached, go_on = threading.Event(), threading.Event()
    take = PartitionCapture._take

    def slowly(self: PartitionCapture, fetched: FetchedPartition) -> None:
        take(self, fetched)
        if self._position > 1100 and not reached.is_set():
            reached.set()
            assert go_on.wait(120)

    monkeypatch.setattr(PartitionCapture, "_take", slowly)
    events: list[BackupEvent] = []
    try:
        cluster.kill_follower()
        cluster.write(3000, 10_000)
        settings = {"bootstrap_servers": cluster.servers, "retry_seconds": 60}
        with open_engine(kafka3, tmp_path, cluster=settings, segment_bytes=1 << 16) as engine:
            run = threading.Thread(target=lambda: events.extend(engine.backup([topic])))
            run.start()
            assert reached.wait(60)
            cluster.elect_follower()
            cluster.write(200, 20_000)
            go_on.set()
            run.join(180)
            assert not run.is_alive()
    finally:
        go_on.set()
        cluster.heal()
    commits = [event for event in events if isinstance(event, TopicCommitted)]
    (whole, cut) = (commits[0].partitions[0], commits[-1].partitions[0])
    assert whole.start == 0
    assert whole.end > 1100
    assert cut.truncated == OffsetSpan(start=1000, end=commits[-2].partitions[0].end)
    assert (cut.start, cut.end, cut.records) == (1000, 1200, 200)
    assert isinstance(events[-1], CaptureFinished)
    assert events[-1].status == "lossy"
    with open_engine(kafka3, tmp_path) as engine:
        restore(engine, "r", topic)
        assert {problem.kind for problem in engine.verify(level="data").problems} == {"truncated"}
    assert read_topic(kafka3.bootstrap_servers, f"restored-{topic}") == restored_as(kafka3, topic)


@pytest.mark.parametrize("comes_back", [True, False])
def test_chaos_broker_failure_mid_backup(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    """What: kill -9 of the only broker in the middle of a capture; it comes back in time, or too late.

    Why: restarts happen, and a backup of hours must not begin anew.
    Risk: a hole or a double where the reading went on, or a success without the rest.
    """
    topic = new_topic(kafka, 3)
    for partition in range(3):
        config = {"batch.size": 8192}
        produce(kafka.bootstrap_servers, topic, _records(1500), partition=partition, config=config)

    def fail() -> None:
        kafka.kill(1)
        if comes_back:
            kafka.start(1, wait=False)

    patience = {"retry_seconds": 60 if comes_back else 2}
    try:
        with monkeypatch.context() as patched:
            in_the_middle(patched, fail)
            with open_engine(kafka, tmp_path, cluster=patience, segment_bytes=1 << 16) as engine:
                events = list(engine.backup([topic]))
    finally:
        if not comes_back:
            kafka.start(1)
    kafka.wait_ready([1])
    failures = [event for event in events if isinstance(event, TopicFailed)]
    assert isinstance(events[-1], CaptureFinished)
    if comes_back:
        assert not failures
        assert sum(event.records for event in events if isinstance(event, TopicCommitted)) == 4500
    else:
        assert events[-1].status == "partial"
        assert failures
        assert all(failure.error.exit_code == 3 and failure.error.retriable for failure in failures)
        assert all(str(failure.error).startswith(f"{topic} [{failure.partition}]") for failure in failures)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        assert engine.verify(level="data").status == "ok"
        restore(engine, "r", topic)
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == restored_as(kafka, topic)


def test_chaos_partition_leader_election_during_backup(
    kafka3: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: the leader is killed in the middle of a capture, and another takes over (more faults: `test_storms.py`).

    Why: clean elections lose nothing, so neither may a capture that lives through one.
    Risk: records twice or never where the new leader was asked, or an alarm for a log that was not cut back.
    """
    topic = new_topic(kafka3)
    produce(kafka3.bootstrap_servers, topic, _records(4000), config={**TUNED, "batch.size": 8192})
    leader = kafka3.leader_of(topic)
    others = [each for each in kafka3.ids if each != leader]

    def fail() -> None:
        kafka3.kill(leader)
        wait_for(lambda: kafka3.leader_of(topic, via=others[0]) in others, 60, "a new leader")

    cluster = {"properties": {"socket.timeout.ms": 4000}, "retry_seconds": 60}
    try:
        with monkeypatch.context() as patched:
            in_the_middle(patched, fail)
            with open_engine(kafka3, tmp_path, cluster=cluster, segment_bytes=1 << 16) as engine:
                events = capture(engine, topic)
    finally:
        kafka3.start(leader)
    wait_for(lambda: kafka3.in_sync(topic) == 3, 60, "the healed broker to be in sync")
    assert isinstance(events[-1], CaptureFinished)
    assert events[-1].status == "complete"
    assert sum(event.records for event in events if isinstance(event, TopicCommitted)) == 4000
    with open_engine(kafka3, tmp_path) as engine:
        produce(kafka3.bootstrap_servers, topic, _records(10, 4000), config=TUNED)
        assert committed(capture(engine, topic), topic).records == 10
        assert engine.verify(level="data").status == "ok"
        restore(engine, "r", topic)
    assert read_topic(kafka3.bootstrap_servers, f"restored-{topic}") == restored_as(kafka3, topic)


def test_partitions_without_a_leader_hold_up_nobody(kafka3: KafkaCluster, tmp_path: Path) -> None:
    """What: a broker is down that leads some partitions alone; the others are captured meanwhile.

    Why: one broken disk must not stop the backup of a whole cluster.
    Risk: no commit until the last partition is given up, or a failure that names nothing.
    """
    down, up, _ = kafka3.ids
    mixed = new_topic(kafka3, 2, assignment=[[down], [up]], config={"min.insync.replicas": 1})
    alone = new_topic(kafka3, assignment=[[down]], config={"min.insync.replicas": 1})
    other = new_topic(kafka3, assignment=[[up]], config={"min.insync.replicas": 1})
    for topic, partition in ((mixed, 0), (mixed, 1), (alone, 0), (other, 0)):
        produce(kafka3.bootstrap_servers, topic, _records(20), partition=partition, config=TUNED)
    servers = kafka3.bootstrap_servers_without(down)
    kafka3.kill(down)
    try:
        wait_for(lambda: kafka3.leader_of(alone, via=up) == -1, 60, "no leader")
        settings = {"bootstrap_servers": servers, "retry_seconds": 3}
        with open_engine(kafka3, tmp_path / "impatient", cluster=settings, consumer_groups=[]) as engine:
            events = list(engine.backup([mixed, alone, other]))
        failed = {(e.topic, e.partition): str(e.error) for e in events if isinstance(e, TopicFailed)}
        assert failed.keys() == {(mixed, 0), (alone, 0)}
        assert all("LEADER_NOT_AVAILABLE" in message for message in failed.values())
        saved = {e.topic: e.records for e in events if isinstance(e, TopicCommitted)}
        assert saved == {mixed: 20, other: 20}
        settings["retry_seconds"] = 120
        with open_engine(kafka3, tmp_path / "patient", cluster=settings, consumer_groups=[]) as engine:
            saved = {}
            for event in engine.backup([mixed, alone, other]):
                assert not isinstance(event, TopicFailed)
                if isinstance(event, TopicCommitted):
                    saved[event.topic] = saved.get(event.topic, 0) + event.records
                if saved == {mixed: 20, other: 20}:  # while the broker is still down
                    kafka3.start(down)
            assert saved == {mixed: 40, alone: 20, other: 20}
    finally:
        kafka3.node(down).reload()
        if kafka3.node(down).status != "running":
            kafka3.start(down)
    wait_for(lambda: kafka3.leader_of(alone) == down, 60, "the healed broker to lead again")
