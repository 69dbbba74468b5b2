"""Many topics, most of them idle: few requests, little time and memory; and what a person sees meanwhile."""

from __future__ import annotations

import json
import os
import pty
import re
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewTopic

from kafka_backup import CaptureFinished, TopicCommitted, TopicUnchanged
from kafka_backup.kafka.connection import Connection
from tests.support.engine import open_engine
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.shell import COMMAND, Shell
from tests.support.topics import delete_topic, new_topic, produce

TOPICS, PARTITIONS = 1000, 5
_WEIGHED = """
import pathlib, re
from kafka_backup.cli import main
try:
    main()
finally:
    status = pathlib.Path("/proc/self/status").read_text()
    pathlib.Path("peak").write_text(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])
"""
"""The command line, which leaves its peak memory behind. (What the kernel says of a child counts its parent too.)"""


@pytest.fixture(scope="module")
def crowded() -> Iterator[KafkaCluster]:
    """A broker with 1,000 topics of 5 partitions; every hundredth partition holds a record."""
    with KafkaCluster(1, heap="512m") as kafka:
        admin = kafka.admin()
        names = [f"many-{number:04}" for number in range(TOPICS)]
        for start in range(0, TOPICS, 250):
            topics = [NewTopic(name, PARTITIONS, 1) for name in names[start : start + 250]]
            for future in admin.create_topics(topics, request_timeout=120).values():
                future.result(120)
        producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0})
        for name in names[::20]:
            producer.produce(name, b"x", partition=0)
        assert producer.flush(60) == 0
        assert kafka.partition(names[-1], PARTITIONS - 1, timeout=240).leader == 1
        yield kafka


def test_a_thousand_topics_cost_a_few_requests(
    crowded: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: three captures of 5,000 partitions: the first, one where nothing is new, one with one new record.

    Why: most topics of most clusters are idle, and a capture runs every few minutes.
    Risk: a request for each partition: minutes of nothing, and a broker that does nothing else.
    """
    asked: Counter[str] = Counter()
    request = Connection.request

    def counted(self: Connection, payload: object, *args: object, **more: object) -> object:
        asked[type(payload).__name__] += 1
        return request(self, payload, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Connection, "request", counted)
    with open_engine(crowded, tmp_path, consumer_groups=[]) as engine:
        first = list(engine.backup())
        assert sum(isinstance(event, TopicCommitted) for event in first) == TOPICS
        for changed in (0, 1):
            if changed:
                produce(crowded.bootstrap_servers, "many-0007", [NewRecord(b"x")], partition=4)
            asked.clear()
            events = list(engine.backup())
            assert sum(isinstance(event, TopicUnchanged) for event in events) == TOPICS - changed
            assert sum(isinstance(event, TopicCommitted) for event in events) == changed
            assert isinstance(events[-1], CaptureFinished)
            assert events[-1].status == "complete"
            # Log starts, last stable offsets and high watermarks: one request for each, whatever the number.
            assert asked["ListOffsetsRequest"] == 3
            assert sum(asked.values()) < 20


def test_a_thousand_topics_fit_into_memory(crowded: KafkaCluster, tmp_path: Path) -> None:
    """What: peak memory of the process, for the first capture and one where nothing is new.

    Why: it runs beside other things, in a container with a limit.
    Risk: a process that is killed when the cluster grows.
    """
    Shell(tmp_path, crowded.bootstrap_servers, retry_seconds=60)
    for expected in ("committed", "unchanged"):
        with (tmp_path / "answer").open("w") as answer:
            command = [sys.executable, "-c", _WEIGHED, "backup", "--json"]
            subprocess.run(command, cwd=tmp_path, stdout=answer, check=True, timeout=120)
        found = json.loads((tmp_path / "answer").read_text())
        assert Counter(topic["status"] for topic in found["topics"]) == {expected: TOPICS}
        assert int((tmp_path / "peak").read_text()) < 250 << 10  # KiB


def test_large_partitions_fit_into_memory(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: peak memory of a capture and of a verified restore of eight partitions of 49 MB each, at once.

    Why: the container that a restore runs in is the small one that the captures ran in.
    Risk: whole segments, or all that is on its way, held in memory: a restore that is killed each time it is tried.
    """
    topic = new_topic(kafka, 8)
    for partition in range(8):
        records = [NewRecord(secrets.token_bytes(900_000)) for _ in range(54)]
        produce(kafka.bootstrap_servers, topic, records, partition=partition)
    Shell(tmp_path, kafka.bootstrap_servers, consumer_groups=[])
    for command, megabytes in (
        (["backup", "--topic", topic], 250),
        (["restore", "--id", "r", "--topic", topic, "--prefix", "restored-", "--execute"], 400),
    ):
        weighed = [sys.executable, "-c", _WEIGHED, *command, "--json"]
        # What coverage takes is not ours.
        bare = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        subprocess.run(weighed, cwd=tmp_path, stdout=subprocess.DEVNULL, check=True, timeout=120, env=bare)
        assert 100 << 10 < int((tmp_path / "peak").read_text()) < megabytes * 1_000_000 // 1024  # KiB
    delete_topic(kafka, topic)
    delete_topic(kafka, f"restored-{topic}")


def test_a_person_sees_bytes_records_rate_lag_and_time_left(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: stderr of a capture on a terminal, slowed down so that it lasts.

    Why: a first capture takes hours, and somebody asks how long.
    Risk: a screen that says nothing until the end.
    """
    topic = new_topic(kafka)
    records = [NewRecord(secrets.token_bytes(1000)) for _ in range(3000)]
    produce(kafka.bootstrap_servers, topic, records, config={"batch.size": 50_000})
    Shell(tmp_path, kafka.bootstrap_servers, max_bytes_per_second="500KB", consumer_groups=[])
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "200", "TERM": "xterm"}
    process = subprocess.Popen(
        [*COMMAND, "backup", "--topic", topic],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            seen += chunk
    except OSError:  # the other end of a terminal is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode(errors="replace"))
    row = rf"{topic}.*?\d+% [\d.]+ MB +[\d,]+ records +[\d.]+ [kM]?B/s +lag ([\d,]+) +\d:\d\d:\d\d"
    lags = [int(shown[1].replace(",", "")) for shown in re.finditer(row, text)]
    assert any(0 < lag < 3000 for lag in lags), text
