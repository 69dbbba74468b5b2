"""What keeps a capture from the high watermark: transactions that are open."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from kafka_backup.errors import CancelledError, KafkaBackupError
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.transactions import OpenTransaction, open_transactions, opened_at
from kafka_backup.progress import TransactionOpen
from kafka_backup.topic_capture import TopicState

_log = logging.getLogger(__name__)

_AGES_READ = 20
"""Partitions whose open transactions are looked at in the log, to tell their ages exactly."""


def held_back(
    cluster: Cluster, topics: Iterable[TopicState], *, capture_id: str, deadline: float
) -> Iterator[TransactionOpen]:
    """Name the transactions that hold back last stable offsets: one that hangs holds them for ever.

    Args:
        cluster: where the topics are.
        topics: whose ends are known.
        capture_id: of the running capture.
        deadline: seconds; who does not answer by then is only logged: the capture misses nothing by it.
    """
    lagging = {
        (topic.name, state.number): (topic, state.ends)
        for topic in topics
        for state in topic.partitions.values()
        if state.ends is not None and state.ends.last_stable_offset < state.ends.high_watermark
    }
    if not lagging:
        return
    found = open_transactions(cluster, list(lagging), deadline=deadline)
    for place, ((name, partition), transactions) in enumerate(found.items()):
        topic, ends = lagging[name, partition]
        fields = {"topic": name, "partition": partition}
        if isinstance(transactions, KafkaBackupError):
            _log.warning("open transactions cannot be asked for: %s", transactions, extra={"fields": fields})
            continue
        for transaction in transactions:
            exact = place < _AGES_READ
            yield TransactionOpen(
                capture=capture_id,
                topic=name,
                partition=partition,
                producer_id=transaction.producer_id,
                producer_epoch=transaction.producer_epoch,
                first_offset=transaction.first_offset,
                opened_at=_opened_at(cluster, topic, partition, transaction)
                if exact
                else transaction.last_timestamp,
                held_back=ends.high_watermark - ends.last_stable_offset,
            )


def _opened_at(cluster: Cluster, topic: TopicState, partition: int, transaction: OpenTransaction) -> int:
    try:
        return opened_at(cluster, topic.name, topic.incarnation.topic_id, partition, transaction)
    except CancelledError:
        raise
    except KafkaBackupError as error:
        fields = {"topic": topic.name, "partition": partition}
        _log.warning("the age of a transaction is not known: %s", error, extra={"fields": fields})
        return transaction.last_timestamp
