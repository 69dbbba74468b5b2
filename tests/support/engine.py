"""An engine on a test's broker and repository, and what tests ask of it again and again."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from kafka_backup import (
    BackupEvent,
    CaptureFinished,
    Engine,
    EngineConfig,
    RestoreReport,
    RestoreRequest,
    TopicCommitted,
    TopicFailed,
    Window,
    parse_config,
)
from kafka_backup.kafka.fetch import FetchedPartition
from kafka_backup.partition_capture import PartitionCapture
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import Record, renumbered
from tests.support.topics import read_topic

NEAR: Mapping[str, str] = {"request.timeout.ms": "1000"}
"""Properties for brokers that are near: a restore that is continued waits a second, until nothing is on its way, not ten."""


def engine_config(
    kafka: KafkaCluster,
    repository: Path | str,
    *,
    cluster: Mapping[str, object] | None = None,
    **backup: object,
) -> EngineConfig:
    """A configuration for this broker; `repository` is a folder, or a URL."""
    url = f"file://{repository}" if isinstance(repository, Path) else repository
    return parse_config(
        {
            "cluster": {
                "bootstrap_servers": kafka.bootstrap_servers,
                "retry_seconds": 30,
                "properties": NEAR,
                **(cluster or {}),
            },
            "repository": {"url": url},
            "backup": backup,
        },
        source="test",
    )


def open_engine(
    kafka: KafkaCluster,
    repository: Path | str,
    *,
    cluster: Mapping[str, object] | None = None,
    **backup: object,
) -> Engine:
    """An engine for this broker."""
    return Engine.open(engine_config(kafka, repository, cluster=cluster, **backup))


def capture(engine: Engine, *topics: str, window: Window | None = None) -> Sequence[BackupEvent]:
    """Runs one capture of these topics to its end; fails on the first failed partition."""
    events = list(engine.backup(topics, window=window))
    for event in events:
        if isinstance(event, TopicFailed):
            raise event.error
    assert isinstance(events[-1], CaptureFinished)
    return events


def in_the_middle(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Does something once, between the first response that a capture gets for a partition and the next.

    With `segment_bytes=1 << 16` a response holds 64 KiB.
    """
    take = PartitionCapture._take
    done: list[bool] = []

    def taken(self: PartitionCapture, fetched: FetchedPartition) -> None:
        take(self, fetched)
        if not done:
            done.append(True)
            action()

    monkeypatch.setattr(PartitionCapture, "_take", taken)


def committed(events: Sequence[BackupEvent], topic: str) -> TopicCommitted:
    """The one commit of a topic among a capture's events."""
    (found,) = [event for event in events if isinstance(event, TopicCommitted) and event.topic == topic]
    return found


def restore(engine: Engine, restore_id: str, *topics: str, **request: object) -> RestoreReport:
    """Plans and runs a restore under the prefix ``restored-``, unless told otherwise."""
    wanted: Mapping[str, object] = {"prefix": "restored-", **request}
    plan = engine.plan_restore(RestoreRequest(restore_id=restore_id, topics=topics, **wanted))
    return engine.restore(plan)


def restored_as(kafka: KafkaCluster, source: str) -> dict[int, list[Record]]:
    """What a whole restore of `source` must hold, by an independent client: its records, renumbered."""
    found = read_topic(kafka.bootstrap_servers, source)
    return {partition: renumbered(records) for partition, records in found.items()}
