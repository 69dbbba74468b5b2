"""What is lost is said loudly, again and again, until somebody accepts it: by commands alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.shell import Shell
from tests.support.topics import delete_topic, new_topic, produce


@pytest.fixture
def shell(kafka: KafkaCluster, tmp_path: Path) -> Shell:
    """A shell whose configuration names the broker."""
    return Shell(tmp_path, kafka.bootstrap_servers, retry_seconds=10)


def write(kafka: KafkaCluster, topic: str, count: int) -> None:
    produce(kafka.bootstrap_servers, topic, [NewRecord(b"%d" % number) for number in range(count)])


def remove(kafka: KafkaCluster, topic: str, below: int) -> None:
    admin = kafka.admin()
    admin.delete_records([TopicPartition(topic, 0, below)])[TopicPartition(topic, 0)].result(30)


def statuses(document: dict[str, list[dict[str, str]]]) -> dict[str, str]:
    return {topic["topic"]: topic["status"] for topic in document["topics"]}


def test_a_loss_is_repeated_until_it_is_accepted(kafka: KafkaCluster, shell: Shell) -> None:
    """What: DeleteRecords overtakes two captures; the first loss is accepted, with a reason.

    Why: a loss that nobody can end is switched off, one that ends by itself is never seen.
    Risk: verify that stays green over a loss, or an acceptance that covers what is lost later.
    """
    topic = new_topic(kafka)
    write(kafka, topic, 10)
    shell.json("backup", "--topic", topic)
    write(kafka, topic, 10)
    remove(kafka, topic, 15)
    lossy = shell.run("backup", "--topic", topic, code=4)
    assert f"{topic} [0]: offsets [10, 15) are lost (retention)" in lossy.stderr
    shell.json("backup", "--topic", topic)
    (loss,) = shell.json("losses", "list")["losses"]
    assert (loss["start"], loss["end"], loss["kind"], loss["accepted"]) == (10, 15, "lost", False)
    (problem,) = shell.json("verify", code=4)["problems"]
    assert problem["kind"] == "lost"
    for wrong in (
        ["no-such-capture", "--reason", "r"],
        [loss["capture"], "--reason", " "],
        [loss["capture"]],
    ):
        shell.run("losses", "accept", *wrong, code=2)
    accepted = shell.json("losses", "accept", loss["capture"], "--reason", "retention was too short")
    assert [each["accepted"] for each in accepted["losses"]] == [True]
    assert shell.json("losses", "accept", loss["capture"], "--reason", "again") == accepted
    assert len([path for path in shell.files() if "accepted" in path.parts]) == 1
    assert shell.json("verify", "--level", "data")["status"] == "ok"
    write(kafka, topic, 10)
    remove(kafka, topic, 22)
    shell.json("backup", "--topic", topic, code=4)
    assert len(shell.json("verify", code=4)["problems"]) == 1


def test_a_topic_that_vanished_is_named_until_that_is_accepted(kafka: KafkaCluster, shell: Shell) -> None:
    """What: of two topics, named exactly and by a pattern, one is deleted; that is accepted; it comes back.

    Why: a topic deleted by mistake must be noticed, and one deleted on purpose must not fail for ever.
    Risk: captures that are green without the topic, or that its second deletion counts as accepted.
    """
    stays, goes = new_topic(kafka, name="gone-1"), new_topic(kafka, name="gone-2")
    write(kafka, goes, 5)
    exact = ("backup", "--topic", stays, "--topic", goes)
    first = shell.json(*exact)
    delete_topic(kafka, goes)
    for arguments in (exact, ("backup", "--topic", "gone-*")):
        write(kafka, stays, 3)
        answer = shell.json(*arguments, code=4)
        assert statuses(answer) == {stays: "committed", goes: "missing"}
        assert [(each["topic"], each["kind"]) for each in answer["failures"]] == [(goes, "missing")]
        assert "--accept-missing" in answer["failures"][0]["message"]
    assert statuses(shell.json(*exact, "--accept-missing")) == {stays: "unchanged", goes: "missing"}
    assert statuses(shell.json("backup", "--topic", "gone-*")) == {stays: "unchanged", goes: "missing"}
    assert statuses(shell.json("backup", "--topic", goes)) == {goes: "missing"}
    new_topic(kafka, name=goes)
    write(kafka, goes, 2)
    again = shell.run(*exact)
    assert f"note: {goes} was deleted and made again" in again.stderr
    delete_topic(kafka, goes)
    answer = shell.json(*exact, code=4)
    old = {topic["topic"]: topic["topic_id"] for topic in first["topics"]}
    assert old[goes] not in answer["failures"][0]["message"]
    shell.json("verify", "--level", "data")
