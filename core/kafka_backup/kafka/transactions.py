"""Transactions that are open: what keeps the last stable offset below the high watermark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kio.schema.describe_producers.v0.request import DescribeProducersRequest, TopicRequest
from kio.schema.describe_producers.v0.response import DescribeProducersResponse

from kafka_backup.errors import KafkaBackupError
from kafka_backup.kafka.cluster import Cluster, Partition, by_topic
from kafka_backup.kafka.fetch import PartitionFetcher

_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenTransaction:
    """A transaction without an end in a partition's log (KIP-664).

    Attributes:
        first_offset: of its first record in this partition.
        last_timestamp: of its producer's last record here, ms.
    """

    producer_id: int
    producer_epoch: int
    first_offset: int
    last_timestamp: int


def open_transactions(
    cluster: Cluster, partitions: Sequence[Partition], *, deadline: float
) -> Mapping[Partition, Sequence[OpenTransaction] | KafkaBackupError]:
    """Ask the leaders for the open transactions of each partition, oldest first; one request per broker."""

    def payload(group: Sequence[Partition], _epochs: Mapping[Partition, int]) -> DescribeProducersRequest:
        return DescribeProducersRequest(
            topics=tuple(
                TopicRequest(name=topic, partition_indexes=tuple(numbers))  # type: ignore[arg-type]
                for topic, numbers in by_topic(group).items()
            )
        )

    def read(
        answer: DescribeProducersResponse, _epochs: Mapping[Partition, int]
    ) -> Iterator[tuple[Partition, Sequence[OpenTransaction] | int]]:
        for topic in answer.topics:
            for part in topic.partitions:
                found = [
                    OpenTransaction(
                        producer_id=int(producer.producer_id),
                        producer_epoch=int(producer.producer_epoch),
                        first_offset=int(producer.current_txn_start_offset),
                        last_timestamp=int(producer.last_timestamp),
                    )
                    for producer in part.active_producers
                    if producer.current_txn_start_offset >= 0
                ]
                found.sort(key=lambda transaction: transaction.first_offset)
                yield (str(topic.name), int(part.partition_index)), int(part.error_code) or found

    return cluster.ask_leaders(list(partitions), payload, DescribeProducersResponse, read, deadline)


def opened_at(
    cluster: Cluster, topic: str, topic_id: str, partition: int, transaction: OpenTransaction
) -> int:
    """Return the time (ms) of a transaction's first record.

    Raises:
        KafkaBackupError: it cannot be read now.
    """
    fetcher = PartitionFetcher(
        cluster,
        topic,
        topic_id,
        partition,
        start=transaction.first_offset,
        end=transaction.first_offset + 1,
        isolation="read_uncommitted",
        retry_seconds=_PATIENCE_SECONDS,
        check_stop=lambda: None,
        max_bytes=1,
    )
    with fetcher:
        _, header = next(iter(fetcher)).batches[0]
    return header.max_timestamp if header.is_log_append_time else header.base_timestamp
