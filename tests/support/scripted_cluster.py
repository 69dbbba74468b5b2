"""A cluster of one scripted broker that holds plain topics in memory: enough for a capture, and quick."""

import datetime
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from kio.schema.errors import ErrorCode
from kio.schema.fetch.v13.response import FetchableTopicResponse, FetchResponse, PartitionData
from kio.schema.list_offsets.v7.response import (
    ListOffsetsPartitionResponse,
    ListOffsetsResponse,
    ListOffsetsTopicResponse,
)
from kio.schema.metadata.v12.response import (
    MetadataResponse,
    MetadataResponseBroker,
    MetadataResponsePartition,
    MetadataResponseTopic,
)

from tests.support.scripted_broker import ScriptedBroker

_NO_TIME = datetime.timedelta(0)
_EARLIEST = -2


@dataclass
class ScriptedTopic:
    """A topic: the batches of each partition, each with its first and last offset."""

    name: str
    topic_id: uuid.UUID
    partitions: dict[int, list[tuple[int, int, bytes]]] = field(default_factory=dict)

    def end(self, partition: int) -> int:
        """The offset after the last one."""
        batches = self.partitions[partition]
        return batches[-1][1] + 1 if batches else 0


class ScriptedCluster:
    """Answers metadata, offset and fetch requests for some topics; whoever asks may do everything."""

    def __init__(self, topics: Mapping[str, ScriptedTopic]) -> None:
        self.topics = topics
        self.broker = ScriptedBroker(
            {1: self._fetch, 2: self._list_offsets, 3: self._metadata, 23: lambda _: None}
        )

    def __enter__(self) -> Self:
        self.broker.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.broker.close()

    def _metadata(self, request: Any) -> MetadataResponse:
        wanted = None if request.topics is None else [str(topic.name) for topic in request.topics]
        return MetadataResponse(
            throttle_time=_NO_TIME,  # type: ignore[arg-type]
            brokers=(MetadataResponseBroker(node_id=1, host="127.0.0.1", port=self.broker.port),),  # type: ignore[arg-type]
            cluster_id="scripted",
            topics=tuple(self._described(name) for name in (self.topics if wanted is None else wanted)),
        )

    def _described(self, name: str) -> MetadataResponseTopic:
        topic = self.topics.get(name)
        if topic is None:
            return MetadataResponseTopic(
                error_code=ErrorCode.unknown_topic_or_partition,
                name=name,  # type: ignore[arg-type]
                topic_id=None,
                partitions=(),
            )
        return MetadataResponseTopic(
            error_code=ErrorCode.none,
            name=name,  # type: ignore[arg-type]
            topic_id=topic.topic_id,
            partitions=tuple(
                MetadataResponsePartition(
                    error_code=ErrorCode.none,
                    partition_index=number,  # type: ignore[arg-type]
                    leader_id=1,  # type: ignore[arg-type]
                    leader_epoch=0,  # type: ignore[arg-type]
                    replica_nodes=(1,),  # type: ignore[arg-type]
                    isr_nodes=(1,),  # type: ignore[arg-type]
                )
                for number in topic.partitions
            ),
        )

    def _list_offsets(self, request: Any) -> ListOffsetsResponse:
        def one(name: str, asked: Any) -> ListOffsetsPartitionResponse:
            number = int(asked.partition_index)
            end = self.topics[name].end(number)
            return ListOffsetsPartitionResponse(
                partition_index=number,  # type: ignore[arg-type]
                error_code=ErrorCode.none,
                offset=0 if int(asked.timestamp) == _EARLIEST else end,  # type: ignore[arg-type]
                leader_epoch=0,  # type: ignore[arg-type]
            )

        return ListOffsetsResponse(
            throttle_time=_NO_TIME,  # type: ignore[arg-type]
            topics=tuple(
                ListOffsetsTopicResponse(
                    name=topic.name, partitions=tuple(one(str(topic.name), part) for part in topic.partitions)
                )
                for topic in request.topics
            ),
        )

    def _fetch(self, request: Any) -> FetchResponse:
        by_id = {topic.topic_id: topic for topic in self.topics.values()}

        def one(topic: ScriptedTopic, asked: Any) -> PartitionData:
            number = int(asked.partition)
            end = topic.end(number)
            batches = [b for _, last, b in topic.partitions[number] if last >= int(asked.fetch_offset)]
            return PartitionData(
                partition_index=number,  # type: ignore[arg-type]
                error_code=ErrorCode.none,
                high_watermark=end,  # type: ignore[arg-type]
                last_stable_offset=end,  # type: ignore[arg-type]
                log_start_offset=0,  # type: ignore[arg-type]
                aborted_transactions=None,
                preferred_read_replica=-1,  # type: ignore[arg-type]
                records=b"".join(batches),
            )

        return FetchResponse(
            throttle_time=_NO_TIME,  # type: ignore[arg-type]
            error_code=ErrorCode.none,
            session_id=0,  # type: ignore[arg-type]
            responses=tuple(
                FetchableTopicResponse(
                    topic_id=topic.topic_id,
                    partitions=tuple(one(by_id[topic.topic_id], part) for part in topic.partitions),
                )
                for topic in request.topics
            ),
        )
