"""Brokers that lose what was on their disk, without a replica that has it: loud, and what comes after is captured."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.engine import restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.shell import Shell
from tests.support.topics import new_topic, produce, read_topic
from tests.support.waiting import wait_for

GROWN = (0, 30, 100, 150)
"""Records after the disk was lost: none, fewer than before, as many, more."""


def _write(kafka: KafkaCluster, topic: str, partition: int, count: int, start: int) -> None:
    """A batch for each record, so that a log can be cut between any two."""
    records = [NewRecord(b"value-%d" % number * 10) for number in range(start, start + count)]
    config = {"batch.num.messages": 1}
    produce(kafka.bootstrap_servers, topic, records, partition=partition, config=config)


def test_a_broker_that_lost_its_disk(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: kill -9, and the logs of captured partitions come back empty or cut in the middle; then they grow again.

    Why: with one replica, or a power cut before a flush, no election tells of it: the leader is the same broker.
    Risk: the end is past ours again, and the records below it are never captured.
    """
    topic = new_topic(kafka, 2 * len(GROWN), config={"retention.ms": -1})
    for partition in range(2 * len(GROWN)):
        _write(kafka, topic, partition, 100, 0)
    shell = Shell(tmp_path, kafka.bootstrap_servers, retry_seconds=60, consumer_groups=[])
    before = shell.json("backup", "--topic", topic)
    epochs = [kafka.partition(topic, partition).epoch for partition in range(2 * len(GROWN))]
    folder = f"/var/lib/kafka/data/{topic}"
    for number in range(len(GROWN)):
        torn = f"{folder}-{len(GROWN) + number}/00000000000000000000.log"
        script = f"rm -rf {folder}-{number} && truncate -s $(($(stat -c %s {torn}) / 2)) {torn}"
        result = kafka.node(1).exec_run(["sh", "-c", script])
        assert result.exit_code == 0, result.output
    kafka.kill(1)
    kafka.start(1)
    for partition, epoch in enumerate(epochs):

        def is_led_again(partition: int = partition, epoch: int = epoch) -> bool:
            found = kafka.partition(topic, partition)
            return found.leader == 1 and found.epoch > epoch

        wait_for(is_led_again, 60, "a new leader epoch")
        _write(kafka, topic, partition, GROWN[partition % len(GROWN)], 1000)
    loud = shell.run("backup", "--topic", topic, "--json", code=4)
    parts = json.loads(loud.stdout)["topics"][0]["partitions"]
    held = read_topic(kafka.bootstrap_servers, topic)
    for part in parts:
        number, grown = part["partition"], GROWN[part["partition"] % len(GROWN)]
        assert part["truncated"]["end"] == 100
        assert part["start"] == part["truncated"]["start"] < 100
        assert (part["start"] == 0) == (number < len(GROWN))
        assert (part["records"], part["end"]) == (grown, part["start"] + grown)
        assert f"{topic} [{number}]: the log was cut back to offset {part['start']}" in loud.stderr
        assert len(held[number]) == part["end"]
    shell.json("backup", "--topic", topic)
    problems = shell.json("verify", "--level", "data", code=4)["problems"]
    assert [problem["kind"] for problem in problems] == ["truncated"] * len(parts)
    shell.json("restore", "--id", "new", "--topic", topic, "--prefix", "new-", "--execute")
    assert read_topic(kafka.bootstrap_servers, f"new-{topic}") == restored_as(kafka, topic)
    old = ("--id", "old", "--prefix", "old-", "--capture", before["capture"])
    shell.json("restore", "--topic", topic, *old, "--execute")
    assert {len(records) for records in read_topic(kafka.bootstrap_servers, f"old-{topic}").values()} == {100}
