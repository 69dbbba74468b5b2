"""How large the logs of partitions are on the brokers' disks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kio.schema.describe_log_dirs.v3.request import DescribableLogDirTopic, DescribeLogDirsRequest
from kio.schema.describe_log_dirs.v3.response import DescribeLogDirsResponse

from kafka_backup.errors import KafkaBackupError
from kafka_backup.kafka.cluster import Cluster, Partition, by_topic


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSize:
    """Bytes of one replica's log segments."""

    bytes: int


def log_sizes(
    cluster: Cluster, partitions: Sequence[Partition], *, deadline: float | None = None
) -> Mapping[Partition, LogSize | KafkaBackupError]:
    """Ask each leader for the size of its own log (DescribeLogDirs; needs DESCRIBE on the cluster).

    Args:
        cluster: whose brokers are asked.
        partitions: topic and number.
        deadline: seconds; partitions that have no answer by then carry their last error.
    """
    return cluster.ask_leaders(list(partitions), _question, DescribeLogDirsResponse, _read, deadline)


def _question(group: Sequence[Partition], _epochs: Mapping[Partition, int]) -> DescribeLogDirsRequest:
    return DescribeLogDirsRequest(
        topics=tuple(
            DescribableLogDirTopic(topic=topic, partitions=tuple(numbers))  # type: ignore[arg-type]
            for topic, numbers in by_topic(group).items()
        )
    )


def _read(
    answer: DescribeLogDirsResponse, epochs: Mapping[Partition, int]
) -> Iterator[tuple[Partition, LogSize | int]]:
    if answer.error_code:
        yield from ((key, int(answer.error_code)) for key in epochs)
    for result in answer.results:
        for topic in result.topics:
            for part in topic.partitions:
                if not part.is_future_key:
                    size = LogSize(bytes=int(part.partition_size))
                    key = str(topic.name), int(part.partition_index)
                    yield key, int(result.error_code) or size
