"""What somebody asked for and did not get is said, by commands alone: names, filters, times, clocks, absences."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition

from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord, renumbered
from tests.support.shell import Shell
from tests.support.topics import delete_topic, new_topic, produce, read_topic

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
YEAR_2100 = 4_102_444_800_000


@pytest.fixture
def shell(kafka: KafkaCluster, tmp_path: Path) -> Shell:
    """A shell whose configuration names the broker."""
    return Shell(tmp_path, kafka.bootstrap_servers, retry_seconds=10, consumer_groups=[])


def write(kafka: KafkaCluster, topic: str, count: int, **record: Any) -> None:
    produce(kafka.bootstrap_servers, topic, [NewRecord(b"%d" % n, **record) for n in range(count)])


def remove(kafka: KafkaCluster, topic: str, below: int) -> None:
    admin = kafka.admin()
    admin.delete_records([TopicPartition(topic, 0, below)])[TopicPartition(topic, 0)].result(30)


def window(start: int, end: int) -> str:
    return f"{start}/{end}"


def statuses(document: dict[str, list[dict[str, str]]]) -> dict[str, str]:
    return {topic["topic"]: topic["status"] for topic in document["topics"]}


def test_a_topic_that_is_named_and_excluded(kafka: KafkaCluster, shell: Shell) -> None:
    """What: `--topic` names a topic that the configuration excludes, alone and beside another.

    Why: whoever types a name believes that it is saved.
    Risk: exit code 0, and a capture of the other topic only.
    """
    named, other = new_topic(kafka), new_topic(kafka)
    shell.configure(kafka.bootstrap_servers, exclude=[f"{named[:-1]}*"])
    for topics in ([named], [named, other]):
        arguments = [text for topic in topics for text in ("--topic", topic)]
        said = shell.run("backup", *arguments, code=2).stderr
        assert f"topic {named!r} was named, and the configuration excludes it ({named[:-1]}*)" in said
    assert not shell.repository.exists()


def test_a_filter_that_matches_nothing_is_named(kafka: KafkaCluster, shell: Shell) -> None:
    """What: two filters, one of them with a slip in it.

    Why: wildcards may match nothing, and a slip in one looks the same.
    Risk: a topic that no capture ever takes, green for months.
    """
    topic = new_topic(kafka)
    shell.configure(kafka.bootstrap_servers, topics=[topic, "oders-*", "/^__consumer/"], consumer_groups=[])
    done = shell.run("backup", "--json")
    assert statuses(json.loads(done.stdout)) == {topic: "committed"}
    for slip in ("oders-*", "/^__consumer/"):
        assert f"no topic of the cluster matches the filter {slip}" in done.stderr
    assert topic not in done.stderr


def test_what_a_start_leaves_out_is_told(kafka: KafkaCluster, shell: Shell) -> None:
    """What: `backup.start` between two records; and one that has not come yet, as from a wrong unit.

    Why: it is the one setting that leaves records out on purpose.
    Risk: a repository without a record, and exit code 0.
    """
    topic = new_topic(kafka, config={"retention.ms": -1})
    now = int(time.time() * 1000)
    write(kafka, topic, 3, timestamp=now - 10 * DAY_MS)
    write(kafka, topic, 4, timestamp=now - DAY_MS)
    shell.configure(kafka.bootstrap_servers, start=now * 1000, consumer_groups=[])
    assert "backup.start is in the future" in shell.run("backup", "--topic", topic, code=2).stderr
    assert not shell.repository.exists()
    shell.configure(kafka.bootstrap_servers, start=now - 2 * DAY_MS, consumer_groups=[])
    done = shell.run("backup", "--topic", topic, "--json")
    assert f"{topic} [0]: offsets [0, 3) are left out, as backup.start says" in done.stderr
    (part,) = json.loads(done.stdout)["topics"][0]["partitions"]
    assert (part["records"], part["not_captured"]) == (4, {"start": 0, "end": 3})
    assert "left out" not in shell.run("backup", "--topic", topic).stderr


def test_a_capture_by_a_wrong_clock_holds_no_window(
    kafka: KafkaCluster, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: one capture by a clock that is two days ahead, then windows as usual; and a clock that was behind.

    Why: an older window is a no-op if a later capture holds it, and only clocks tell which is later.
    Risk: every run of two days does nothing, with exit code 0, while retention deletes.
    """
    topic = new_topic(kafka)
    write(kafka, topic, 10)
    now = int(time.time() * 1000)
    clock = time.time_ns
    for off in (2 * DAY_MS, -2 * DAY_MS):
        with monkeypatch.context() as patched:
            patched.setattr("time.time_ns", lambda off=off: clock() + off * 1_000_000)
            wrong = window(now + off - HOUR_MS, now + off)
            assert shell.json("backup", "--topic", topic, "--window", wrong)["status"] == "complete"
    write(kafka, topic, 5)
    asked = ("backup", "--topic", topic, "--window", window(now - HOUR_MS, now))
    answer = shell.json(*asked)
    assert (answer["status"], answer["topics"][0]["records"]) == ("complete", 5)
    older = ("backup", "--topic", topic, "--window", window(now - 2 * HOUR_MS, now - HOUR_MS))
    held = shell.json(*older)
    assert (held["status"], held["capture"]) == ("held", answer["capture"])
    assert "which has not come yet" in shell.run("expire", "--keep-captures", "1", "--execute", code=5).stderr
    assert shell.json("verify", "--level", "data")["records"] == 15


def test_timestamps_decide_nothing(kafka: KafkaCluster, shell: Shell) -> None:
    """What: records a month old, of the year 2100, of 1970 and of now, captured by one-hour windows.

    Why: producers choose timestamps, and replays and wrong clocks choose badly.
    Risk: records that lie outside of every window are in no capture, or one from the future ends all captures.
    """
    settings = {"message.timestamp.after.max.ms": 2**63 - 1, "retention.ms": -1}
    topic = new_topic(kafka, config=settings)
    now = int(time.time() * 1000)
    taken = 0
    for count, timestamp in (
        (3, now - 30 * DAY_MS),
        (1, YEAR_2100),
        (4, 1),
        (5, now - 30 * DAY_MS),
        (2, now),
    ):
        write(kafka, topic, count, timestamp=timestamp)
        end = int(time.time() * 1000)
        answer = shell.json("backup", "--topic", topic, "--window", window(end - HOUR_MS, end))
        (part,) = answer["topics"][0]["partitions"]
        assert (part["start"], part["records"]) == (taken, count)
        taken += count
    shell.json("restore", "--id", "r", "--topic", topic, "--prefix", "all-", "--execute")
    held = read_topic(kafka.bootstrap_servers, topic)[0]
    assert len(held) == taken
    assert read_topic(kafka.bootstrap_servers, f"all-{topic}")[0] == renumbered(held)


def test_committed_aborted_committed_open(kafka: KafkaCluster, shell: Shell) -> None:
    """What: 10 records committed, 10 aborted, 10 committed, 5 in an open transaction; then it is committed.

    Why: consumers see 20 of these 35, and 5 more later.
    Risk: aborted records restored as data, or the open ones left out for ever.
    """
    topic = new_topic(kafka)
    producer = Producer(
        {"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": topic, "log_level": 0}
    )
    producer.init_transactions(60)
    for count, end in (
        (10, producer.commit_transaction),
        (10, producer.abort_transaction),
        (10, producer.commit_transaction),
        (5, None),
    ):
        producer.begin_transaction()
        for number in range(count):
            producer.produce(topic, b"%d" % number)
        assert producer.flush(60) == 0
        if end is not None:
            end(60)
    counts = ("start", "end", "records", "aborted", "control", "compacted", "lost")
    answer = shell.json("backup", "--topic", topic)
    (part,) = answer["topics"][0]["partitions"]
    assert [part[count] for count in counts] == [0, 33, 20, 10, 3, 0, 0]
    assert answer["open_transactions"][0]["first_offset"] == 33
    producer.commit_transaction(60)
    (part,) = shell.json("backup", "--topic", topic)["topics"][0]["partitions"]
    assert [part[count] for count in counts] == [33, 39, 5, 0, 1, 0, 0]
    stored = shell.json("records", topic, "--partition", "0")["records"]
    assert [each["offset"] for each in stored] == [
        r.offset for r in read_topic(kafka.bootstrap_servers, topic)[0]
    ]


def test_an_absence_is_accepted_once_and_for_that_topic_only(kafka: KafkaCluster, shell: Shell) -> None:
    """What: `--accept-missing` while nothing is missing, for other topics, twice, and before a second topic goes.

    Why: people put an option that helped once into their schedule, or type it too early.
    Risk: a topic that vanishes later counts as accepted.
    """
    first, second = new_topic(kafka, name="absent-1"), new_topic(kafka, name="absent-2")
    stays = new_topic(kafka, name="absent-3")
    for topic in (first, second, stays):
        write(kafka, topic, 3)
    everything = ("backup", "--topic", "absent-*")
    shell.json(*everything, "--accept-missing")
    delete_topic(kafka, first)
    assert statuses(shell.json(*everything, code=4))[first] == "missing"
    shell.json("backup", "--topic", stays, "--accept-missing")
    assert statuses(shell.json(*everything, code=4))[first] == "missing"
    for _ in range(2):
        assert statuses(shell.json(*everything, "--accept-missing"))[first] == "missing"
    shell.json(*everything)
    delete_topic(kafka, second)
    failed = shell.json(*everything, code=4)
    assert [each["topic"] for each in failed["failures"]] == [second]
    assert statuses(failed) == {first: "missing", second: "missing", stays: "unchanged"}
    for topic in (first, second):
        assert len(shell.json("records", topic, "--partition", "0")["records"]) == 3


def test_losses_are_accepted_in_any_order(kafka: KafkaCluster, shell: Shell) -> None:
    """What: three captures lose records; the last is accepted first, then the first, twice; then they expire.

    Why: an acceptance is for one capture, whatever came before or after.
    Risk: one acceptance silences another capture's loss, or is forgotten later.
    """
    topic = new_topic(kafka)
    captures = []
    for number in range(3):
        write(kafka, topic, 10)
        remove(kafka, topic, 10 * number + 5)
        captures.append(shell.json("backup", "--topic", topic, code=0 if number == 0 else 4)["capture"])
    # The first capture begins at the log start: what was deleted before anybody looked is no loss of ours.
    assert shell.run("losses", "accept", captures[0], "--reason", "r", code=2)

    def unaccepted() -> list[int]:
        return [each["start"] for each in shell.json("losses", "list")["losses"] if not each["accepted"]]

    assert unaccepted() == [10, 20]
    shell.json("losses", "accept", captures[2], "--reason", "known")
    assert unaccepted() == [10]
    assert [each["kind"] for each in shell.json("verify", code=4)["problems"]] == ["lost"]
    for reason in ("known too", "another reason"):
        shell.json("losses", "accept", captures[1], "--reason", reason)
    assert unaccepted() == []
    assert shell.json("verify", "--level", "data")["status"] == "ok"
    shell.json("expire", "--keep-captures", "1", "--execute")
    assert shell.json("verify", "--level", "data")["status"] == "ok"
    assert [each["accepted"] for each in shell.json("losses", "list")["losses"]] == [True, True]
