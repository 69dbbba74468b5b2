"""Captures of a cluster whose brokers die, freeze and lie: complete, or loud."""

from __future__ import annotations

from pathlib import Path

from tests.support.engine import capture, committed, open_engine
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import new_topic, produce
from tests.support.waiting import wait_for

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
