"""Captures of a cluster whose brokers die, freeze and lie: complete, or loud."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.engine import capture, committed, open_engine, restored_as
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


def test_backup_with_unclean_leader_election_enabled(kafka3: KafkaCluster, tmp_path: Path) -> None:
    """What: an unclean election takes records away that were captured; the log stays short, or grows again.

    Why: the cluster forgets acknowledged records then, and writes others over their offsets.
    Risk: the new records below our old end are never captured, or two histories are mixed in one restore.
    """
    leader, follower, _ = kafka3.ids
    unclean = {"unclean.leader.election.enable": "true", "min.insync.replicas": 1, "retention.ms": -1}
    topic = new_topic(kafka3, len(GROWN), assignment=[leader, follower], config=unclean)

    def write(count: int, start: int, partition: int, *, without: int) -> None:
        servers = kafka3.bootstrap_servers_without(without)
        produce(servers, topic, _records(count, start), partition=partition, config=TUNED)

    for partition in range(len(GROWN)):
        write(100, 0, partition, without=0)
    kafka3.kill(follower)
    try:
        wait_for(
            lambda: kafka3.partition(topic, 3, via=leader).isr == [leader], 60, "the follower to be left out"
        )
        for partition in range(len(GROWN)):
            write(50, 1000, partition, without=follower)
        shell = Shell(tmp_path, kafka3.bootstrap_servers_without(follower), retry_seconds=60)
        before = shell.json("backup", "--topic", topic)
        kafka3.kill(leader)
        kafka3.start(follower)
        wait_for(lambda: kafka3.leader_of(topic, 3, via=follower) == follower, 60, "an unclean election")
        for partition, count in enumerate(GROWN):
            write(count, 2000, partition, without=leader)
        shell.configure(kafka3.bootstrap_servers_without(leader), retry_seconds=60)
        loud = shell.run("backup", "--topic", topic, "--json", code=4)
    finally:
        kafka3.start(leader)
    wait_for(lambda: kafka3.in_sync(topic, 3) == 2, 60, "the healed broker to be in sync")
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
