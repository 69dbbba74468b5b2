"""Captures by the engine of a scripted cluster, whose calls come in the same order each time, and what must hold after."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from kafka_backup import backup
from kafka_backup.config import BackupConfig
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.metadata import topic_id_text
from kafka_backup.kafka.topics import ConfigValue
from kafka_backup.progress import StopToken
from kafka_backup.repository import layout
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.store import Store
from kafka_backup.selection import TopicSelection
from kafka_backup.verify import verify
from tests.support.scripted_cluster import ScriptedTopic
from tests.unit.repositories import batch, live_records

TOPIC = "orders"
VALUE = bytes(50_000)
"""Two batches of one record make a segment: segments are closed at 64 KiB."""


def scripted_topic() -> ScriptedTopic:
    """Five records in the first partition, two in the second, one batch each; nothing in the third."""
    made = ScriptedTopic(TOPIC, uuid.UUID(int=7))
    for partition, count in enumerate((5, 2, 0)):
        made.partitions[partition] = [(n, n, batch(n, 1, value=VALUE)) for n in range(count)]
    return made


class _Admin:
    """Describes every topic as one without settings of its own."""

    def describe_each(self, topics: Sequence[str], **_: object) -> Mapping[str, Mapping[str, ConfigValue]]:
        return {name: {} for name in topics}


def capture(cluster: Cluster, store: Store) -> list[Any]:
    """One capture by the engine, one partition after the other, so that calls come in the same order each time."""
    return list(
        backup.run(
            cluster=cluster,
            admin=_Admin(),  # type: ignore[arg-type]
            store=store,
            selection=TopicSelection.parse([TOPIC]),
            settings=BackupConfig(consumer_groups=(), segment_bytes="64KiB", max_concurrent_partitions=1),
            retry_seconds=10,
            window=None,
            accept_missing=False,
            stop=StopToken(),
        )
    )


def check(store: Store, topic: ScriptedTopic, *, whole: bool) -> None:
    """What is committed is whole, in order, without hole or duplicate; with `whole` it is all that there is."""
    keys = [info.key for info in store.list("")]
    if layout.REPOSITORY not in keys:
        assert not whole
        return
    repository = Repository.open(store, cluster_id=None, create=False)
    log = repository.commit_log(TOPIC, topic_id_text(topic.topic_id))
    for partition in topic.partitions:
        found = [record.offset for record in live_records(store, log, partition)]
        assert found == list(range(len(found)))
        if whole:
            assert len(found) == topic.end(partition)
    report = verify(repository, selection=None, level="data", stop=None)
    assert report.status == "ok", report.problems
