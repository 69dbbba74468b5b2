"""Partitions moved to other brokers, which confluent-kafka cannot do."""

from collections.abc import Mapping, Sequence

from kio.schema.alter_partition_reassignments.v0.request import (
    AlterPartitionReassignmentsRequest,
    ReassignablePartition,
    ReassignableTopic,
)
from kio.schema.alter_partition_reassignments.v0.response import AlterPartitionReassignmentsResponse

from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.settings import ConnectionSettings
from tests.support.kafka_cluster import KafkaCluster
from tests.support.waiting import wait_for


def reassign(kafka: KafkaCluster, topics: Mapping[str, Sequence[Sequence[int]]]) -> None:
    """Begins to move partitions: for each topic the brokers of each of its partitions, the preferred leader first."""
    client = Cluster(ConnectionSettings.from_properties(kafka.bootstrap_servers, {}), retry_seconds=30)
    request = AlterPartitionReassignmentsRequest(
        topics=tuple(
            ReassignableTopic(
                name=topic,  # type: ignore[arg-type]
                partitions=tuple(
                    ReassignablePartition(partition_index=number, replicas=tuple(brokers))  # type: ignore[arg-type]
                    for number, brokers in enumerate(places)
                ),
            )
            for topic, places in topics.items()
        )
    )
    answer = client.ask_any("moving partitions", request, AlterPartitionReassignmentsResponse)
    client.close()
    assert not answer.error_code, answer
    assert not any(part.error_code for topic in answer.responses for part in topic.partitions), answer


def wait_reassigned(kafka: KafkaCluster, topics: Mapping[str, Sequence[Sequence[int]]]) -> None:
    """Waits until the partitions are where `reassign` sent them, in sync, and one of their brokers leads each."""

    def moved() -> bool:
        for topic, places in topics.items():
            for number, brokers in enumerate(places):
                part = kafka.partition(topic, number)
                if (
                    set(part.replicas) != set(brokers)
                    or set(part.isr) != set(brokers)
                    or part.leader not in brokers
                ):
                    return False
        return True

    wait_for(moved, 90, "all partitions to be moved")
