"""Backups, restores, expiries, resets and verifications of one repository, all at the same time."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kafka_backup import Engine, RestoreRequest, WriterConflictError
from kafka_backup.progress import TopicFailed
from kafka_backup.retention import RetentionPolicy
from tests.support.engine import engine_config, restored_as
from tests.support.groups import commit, positions, reset
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import new_topic, produce, read_topic

ROUNDS = 4
TRIES = 50
"""An operation that always meets another writer is a bug, too."""


def until_done(work: Callable[[], object]) -> None:
    """Runs it again while another writer was faster: that is the answer that it is meant to give."""
    for _ in range(TRIES):
        try:
            work()
            return
        except WriterConflictError:
            continue
    raise AssertionError(f"another writer was faster {TRIES} times")


def at_the_same_time(*operations: Callable[[int], None]) -> None:
    """Runs each operation `ROUNDS` times in a thread of its own; every round begins together."""
    barrier = threading.Barrier(len(operations))

    def loop(operation: Callable[[int], None]) -> None:
        finished = False
        try:
            for number in range(ROUNDS):
                barrier.wait(120)
                operation(number)
            finished = True
        finally:
            if not finished:
                barrier.abort()

    with ThreadPoolExecutor(len(operations)) as pool:
        errors = [future.exception() for future in [pool.submit(loop, each) for each in operations]]
    for error in errors:
        if error is not None and not isinstance(error, threading.BrokenBarrierError):
            raise error
    assert errors == [None] * len(operations)


@pytest.mark.timeout(400)
def test_concurrent_operations(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests producers, captures, restores, expiries, resets and verifications that run at the same time.

    Schedules, sensors and people start things without asking each other, on several machines.
    Could go wrong: an expiry deletes what a restore reads, a capture skips records, a report is wrong.
    """
    topic = new_topic(kafka, 2)
    group = f"g-{topic}"
    config = engine_config(kafka, tmp_path / "repository", topics=[topic], consumer_groups=[group])

    def write(number: int) -> None:
        for partition in range(2):
            records = [NewRecord(b"%d-%d" % (number, i), b"k", []) for i in range(400)]
            produce(kafka.bootstrap_servers, topic, records, partition=partition)

    def back_up(_number: int = 0) -> None:
        def once() -> None:
            with Engine.open(config) as engine:
                for event in engine.backup():
                    if isinstance(event, TopicFailed):
                        raise event.error

        until_done(once)

    def restore(number: int) -> None:
        request = RestoreRequest(restore_id=f"r{number}", topics=(topic,), prefix=f"copy-{number}-")
        with Engine.open(config) as engine:
            report = engine.restore(engine.plan_restore(request))
        assert report.status == "verified"

    def expire(_number: int) -> None:
        def once() -> None:
            with Engine.open(config) as engine:
                engine.expire(engine.plan_expire(RetentionPolicy(keep_captures=1)))

        until_done(once)

    def move_groups(number: int) -> None:
        with Engine.open(config) as engine:
            reset(engine, group, to="offset", to_offset=number * 10, topics=(topic,))

    def verify(_number: int) -> None:
        with Engine.open(config) as engine:
            assert engine.verify(level="data").status == "ok"

    write(-1)
    commit(kafka.bootstrap_servers, group, {(topic, 0): 1, (topic, 1): 1})
    back_up()
    at_the_same_time(write, back_up, restore, expire, move_groups, verify)

    whole = read_topic(kafka.bootstrap_servers, topic)
    for number in range(ROUNDS):
        copy = read_topic(kafka.bootstrap_servers, f"copy-{number}-{topic}")
        for partition, records in copy.items():
            assert records == whole[partition][: len(records)]
            assert len(records) >= 400
    assert positions(kafka, group) == {(topic, 0): (ROUNDS - 1) * 10, (topic, 1): (ROUNDS - 1) * 10}
    back_up()
    with Engine.open(config) as engine:
        engine.restore(engine.plan_restore(RestoreRequest(restore_id="all", topics=(topic,), prefix="all-")))
    assert read_topic(kafka.bootstrap_servers, f"all-{topic}") == restored_as(kafka, topic)
    verify(0)
