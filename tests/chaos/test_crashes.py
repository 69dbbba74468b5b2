"""kill -9 at every named point, and at any moment: what is stored stays whole, and the same command goes on to the end."""

from __future__ import annotations

import os
import random
import re
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard
from confluent_kafka import Producer, TopicPartition

from kafka_backup import Engine
from tests.support.engine import capture, open_engine
from tests.support.forked import Forked
from tests.support.groups import Positions, commit, group_client, positions, set_positions
from tests.support.kafka_cluster import KafkaCluster
from tests.support.mortal import POINTS
from tests.support.records import NewRecord, Record, decode_records, renumbered
from tests.support.shell import Shell
from tests.support.together import try_all
from tests.support.topics import ends, new_topic, produce, read_topic, topic_config

CRASHES = int(os.environ.get("CRASHES", "30"))
"""Random moments to kill at; `make crashes CRASHES=300` tries more."""
AT_ONCE = 8
"""A resumed restore mostly waits until nothing of the run before can be on its way any more."""
SETTINGS = {"retention.ms": str(10**12), "max.message.bytes": "2000000"}


@dataclass(frozen=True)
class Source:
    """A topic and what consumers see of it."""

    kafka: KafkaCluster
    topic: str
    records: dict[int, list[Record]]
    starts: dict[int, int]


def _records(first: int, count: int) -> list[NewRecord]:
    now = int(time.time() * 1000)
    return [
        NewRecord(b"%06d " % i + secrets.token_bytes(1000), b"key %d" % i, [(b"h", None)], now + i)
        for i in range(first, first + count)
    ]


def _transactions(kafka: KafkaCluster, topic: str) -> None:
    producer = Producer(
        {"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": topic, "log_level": 0}
    )
    producer.init_transactions(60)
    for end in (producer.abort_transaction, producer.commit_transaction):
        producer.begin_transaction()
        for i in range(20):
            producer.produce(topic, b"%d" % i, partition=0)
        producer.flush(60)
        end(60)


def _source(kafka: KafkaCluster, topic: str) -> Source:
    known = ends(kafka.bootstrap_servers, topic)
    return Source(
        kafka, topic, read_topic(kafka.bootstrap_servers, topic), {p: s for p, (s, _) in known.items()}
    )


@pytest.fixture(scope="module")
def source(kafka: KafkaCluster) -> Source:
    """Three partitions, each of many small batches and several segments; aborted records among them."""
    topic = new_topic(kafka, 3, config=SETTINGS)
    for partition in range(3):
        produce(
            kafka.bootstrap_servers,
            topic,
            _records(0, 400),
            partition=partition,
            config={"batch.size": 12000},
        )
    _transactions(kafka, topic)
    return _source(kafka, topic)


def _shell(kafka: KafkaCluster, folder: Path) -> Shell:
    folder.mkdir(parents=True, exist_ok=True)
    return Shell(folder, kafka.bootstrap_servers, retry_seconds=60, segment_bytes="64KiB", compression="zstd")


def _stored(engine: Engine, source: Source) -> dict[int, list[tuple[int, bytes | None, bytes | None]]]:
    """Offset, key and value of what a repository holds of each partition, by the tests' own decoder."""
    (log,) = engine.commit_logs(source.topic)
    found = {}
    for partition in source.records:
        found[partition] = [
            (record.offset, record.key, record.value)
            for segment in log.segments(partition)
            for record in decode_records(
                zstandard.ZstdDecompressor().decompressobj().decompress(engine._store.get(segment.key))
            )
            if segment.start <= record.offset < segment.end
        ]
    return found


def _check_repository(shell: Shell, source: Source, *, whole: bool) -> None:
    """It verifies; and once a capture has ended, it holds exactly what consumers see."""
    with open_engine(source.kafka, shell.repository) as engine:
        report = engine.verify(level="data")
        assert report.status == "ok", report.problems
        if whole:
            stored = _stored(engine, source)
            for partition, records in source.records.items():
                kept = [one for one in stored[partition] if one[0] >= source.starts[partition]]
                assert kept == [(r.offset, r.key, r.value) for r in records]


def _check_restored(source: Source, prefix: str) -> None:
    target = prefix + source.topic
    expected = {partition: renumbered(records) for partition, records in source.records.items()}
    assert read_topic(source.kafka.bootstrap_servers, target) == expected
    assert topic_config(source.kafka.admin(), target) == SETTINGS


def _start(shell: Shell, arguments: Sequence[str], *, point: str | None = None) -> Forked:
    return Forked("--config", str(shell.folder / "kafka-backup.yaml"), *arguments, point=point)


def _run(shell: Shell, arguments: Sequence[str], *, point: str | None = None) -> None:
    """Run a command to its end, or to a point at which it dies."""
    with _start(shell, arguments, point=point) as process:
        code = process.wait(240)
        assert code == (0 if point is None else -9), f"{arguments} ended with {code}: {process.output}"


def _file(point: str) -> str:
    """A point's name as that of a file or a restore."""
    return re.sub(r"\W+", "-", point)


def _points(command: str) -> list[str]:
    return [point for point in POINTS if point.startswith(f"{command}:")]


def _backup(source: Source) -> list[str]:
    return ["backup", "--topic", source.topic]


def test_a_backup_killed_at_any_point_is_completed(source: Source, tmp_path: Path) -> None:
    """Tests kill -9 before and after each object that a backup stores.

    It matters because a backup runs for hours, and machines are restarted.
    A half-written capture could be taken for a whole one, or stand in the way of the next.
    """

    def attempt(point: str) -> None:
        shell = _shell(source.kafka, tmp_path / _file(point))
        _run(shell, _backup(source), point=point)
        if (shell.repository / "repository.json").exists():
            _check_repository(shell, source, whole=False)
        _run(shell, _backup(source))
        _check_repository(shell, source, whole=True)

    try_all(_points("backup"), attempt)


@pytest.fixture(scope="module")
def captured(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A repository with the whole of the source."""
    shell = _shell(source.kafka, tmp_path_factory.mktemp("captured"))
    _run(shell, _backup(source))
    return shell


def _restore(source: Source, name: str) -> list[str]:
    return ["restore", "--id", name, "--topic", source.topic, "--prefix", f"{name}-", "--execute"]


def test_a_restore_killed_at_any_point_is_completed(source: Source, captured: Shell) -> None:
    """Tests kill -9 at each step of a restore: around each object it stores, each change of a topic, and in the writing.

    It matters because a restore is run when other things are failing, too.
    What was sent and not acknowledged could be there twice, or not at all, under a report that says "verified".
    """

    def attempt(point: str) -> None:
        arguments = _restore(source, _file(point))
        _run(captured, arguments, point=point)
        _run(captured, arguments)
        _check_restored(source, f"{_file(point)}-")

    try_all(_points("restore"), attempt, at_once=AT_ONCE)
    _check_repository(captured, source, whole=True)


def test_a_restore_killed_between_data_and_positions_is_completed(source: Source, captured: Shell) -> None:
    """Tests kill -9 at each step from the last of the data to the report, two groups in each restore.

    It matters because consumers are started after a restore, and begin wherever their group is.
    One group could be moved and the other not, or nobody could know whether they were.
    """
    points = _points("positions")
    names = {point: [f"{source.topic}-{_file(point)}-{who}" for who in "ab"] for point in points}
    at = {"a": {p: 100 + p for p in source.records}, "b": dict.fromkeys(source.records, 401)}
    set_positions(
        source.kafka,
        {
            name: {(source.topic, p): offset for p, offset in at[name[-1]].items()}
            for pair in names.values()
            for name in pair
        },
    )
    pattern = f"{source.topic}-*"
    _run(captured, ["groups", "snapshot", "--group", pattern])

    def attempt(point: str) -> None:
        target = f"{_file(point)}-{source.topic}"
        groups = [text for name in names[point] for text in ("--groups", name)]
        arguments = [*_restore(source, _file(point)), *groups]
        moved = {
            name: {
                (target, p): sum(record.offset < offset for record in source.records[p])
                for p, offset in at[name[-1]].items()
            }
            for name in names[point]
        }

        def there() -> dict[str, Positions]:
            with group_client(source.kafka) as client:  # the dead process may have left a transaction open
                found = client.fetch(names[point], stable=False)
            return {
                name: {part: at.offset for part, at in each.items() if part[0] == target}
                for name, each in found.items()
                if isinstance(each, Mapping)
            }

        _run(captured, arguments, point=point)
        for name, found in there().items():
            assert found in ({}, moved[name])
        _run(captured, arguments)
        assert there() == moved
        _check_restored(source, f"{_file(point)}-")

    try_all(points, attempt, at_once=AT_ONCE)


def test_a_replacement_killed_at_any_point_is_completed(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests kill -9 of a restore in place: in its final capture, around each deletion, and up to its groups and report.

    It matters because in between the topics do not exist, and their data and positions are in the repository alone.
    A run that cannot go on there, deletes what it has just made, or forgets who had read what, is the disaster itself.
    """

    def attempt(point: str) -> None:
        shell = _shell(kafka, tmp_path / _file(point))
        topics = [new_topic(kafka, config=SETTINGS) for _ in range(2)]
        group = f"{topics[0]}-readers"
        with open_engine(kafka, shell.repository) as engine:
            for first, read in ((0, 10), (60, 77)):
                for topic in topics:
                    more = _records(first, 60)
                    produce(kafka.bootstrap_servers, topic, more, config={"batch.size": 12000})
                commit(kafka.bootstrap_servers, group, {(topic, 0): read for topic in topics})
                if not first:
                    capture(engine, *topics)
        sources = [_source(kafka, topic) for topic in topics]
        arguments = ["restore", "--id", "r", "--groups", group, "--replace", "--execute"]
        arguments += [word for topic in topics for word in ("--topic", topic)]
        _run(shell, arguments, point=point)
        _run(shell, arguments)
        for source in sources:
            _check_restored(source, "")
            _check_repository(shell, source, whole=True)
        assert positions(kafka, group) == {(topic, 0): 77 for topic in topics}

    try_all(_points("replacement"), attempt, at_once=AT_ONCE)


@pytest.fixture(scope="module")
def expirable(kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Shell]:
    """A repository whose oldest capture holds segments that nobody needs any more."""
    topic = new_topic(kafka, 2, config=SETTINGS)
    shell = _shell(kafka, tmp_path_factory.mktemp("expirable"))
    for round_ in range(3):
        for partition in range(2):
            more = _records(round_ * 200, 200)
            produce(kafka.bootstrap_servers, topic, more, partition=partition, config={"batch.size": 12000})
        if round_ == 1:
            admin = kafka.admin()
            cut = [TopicPartition(topic, partition, 200) for partition in range(2)]
            for future in admin.delete_records(cut).values():
                future.result(30)
        _run(shell, ["backup", "--topic", topic])
    return _source(kafka, topic), shell


EXPIRE = ["expire", "--keep-captures", "1", "--execute"]


def _expirable_copy(expirable: tuple[Source, Shell], folder: Path) -> tuple[Source, Shell]:
    source, original = expirable
    shell = _shell(source.kafka, folder)
    shutil.copytree(original.repository, shell.repository)
    return source, shell


def test_an_expiry_killed_at_any_point_is_completed(expirable: tuple[Source, Shell], tmp_path: Path) -> None:
    """Tests kill -9 around each object that an expiry stores, and between its deletions.

    It matters because expiry is the one command that deletes.
    A segment could be gone that a commit still promises, and the repository be damaged for good.
    """

    def attempt(point: str) -> None:
        source, shell = _expirable_copy(expirable, tmp_path / _file(point))
        before = len(shell.segments())
        _run(shell, EXPIRE, point=point)
        _check_repository(shell, source, whole=True)
        _run(shell, EXPIRE)
        _check_repository(shell, source, whole=True)
        assert len(shell.segments()) < before - 2
        _run(shell, _backup(source))

    try_all(_points("expire"), attempt)


def test_killed_at_any_moment(
    source: Source, captured: Shell, expirable: tuple[Source, Shell], tmp_path: Path
) -> None:
    """Tests kill -9 of backups, restores and expiries at random moments of their lives.

    It matters because machines do not die at points that somebody thought of.
    Whatever lies between two named points could be the one place that cannot be continued.
    """
    seed = random.randrange(1 << 32)
    moments = random.Random(seed)
    began = time.monotonic()
    _run(captured, _restore(source, f"timed{seed}"))
    longest = time.monotonic() - began

    def attempt(name: str) -> None:
        if name.startswith("backup"):
            topic, shell, arguments = source, _shell(source.kafka, tmp_path / name), _backup(source)
        elif name.startswith("expire"):
            topic, shell = _expirable_copy(expirable, tmp_path / name)
            arguments = EXPIRE
        else:
            topic, shell, arguments = source, captured, _restore(source, name)
        with _start(shell, arguments) as process:
            code = process.wait(delays[name])
            assert code in (None, 0), f"it ended with {code} by itself: {process.output}"
        _run(shell, arguments)
        if name.startswith("restore"):
            _check_restored(source, f"{name}-")
        else:
            _check_repository(shell, topic, whole=True)

    names = [f"{('restore', 'backup', 'expire')[i % 3]}{i}-{seed}" for i in range(CRASHES)]
    delays = {name: moments.uniform(0, longest) for name in names}
    try_all(names, attempt, at_once=AT_ONCE)
