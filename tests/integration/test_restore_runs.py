"""Runs of one restore: who owns it, and how it ends."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kafka_backup import RefusedError, RestoreRequest, WriterConflictError
from tests.support.engine import capture, open_engine
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import new_topic, produce

NOW = int(time.time() * 1000)


def test_abandoning_stops_a_run_that_is_at_work(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests that a restore given up while it writes stops at its next segment, and never goes on.

    It matters because expiry may delete its segments from that moment on.
    A run that did not look would end in the middle of a topic, with an error that names damage.
    """
    topic = new_topic(kafka)
    records = [NewRecord(f"{i:06d}".encode() * 20, timestamp=NOW + i) for i in range(20_000)]
    produce(kafka.bootstrap_servers, topic, records, config={"batch.size": 4_000})
    with open_engine(kafka, tmp_path, segment_bytes=1 << 18) as engine:
        capture(engine, topic)
        plan = engine.plan_restore(RestoreRequest(restore_id="r", topics=(topic,), prefix="restored-"))
        with pytest.raises(WriterConflictError, match="restore r was abandoned"):
            engine.restore(plan, on_progress=lambda _: engine.abandon_restore("r"))
        for again in (lambda: engine.restore(plan), lambda: engine.plan_restore(plan.request)):
            with pytest.raises(RefusedError, match="restore r was abandoned; use a new --id"):
                again()
        done = engine.abandon_restore("r")
        assert [target.topic for target in done.targets] == [f"restored-{topic}"]
