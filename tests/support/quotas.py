"""Client quotas, which confluent-kafka cannot set."""

from kio.schema.alter_client_quotas.v1.request import (
    AlterClientQuotasRequest,
    EntityData,
    EntryData,
    OpData,
)
from kio.schema.alter_client_quotas.v1.response import AlterClientQuotasResponse

from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.settings import ConnectionSettings
from tests.support.kafka_cluster import KafkaCluster


def set_quota(
    kafka: KafkaCluster, client_id: str, bytes_per_second: int, *, key: str = "consumer_byte_rate"
) -> None:
    """Limits what brokers send to a client id; or what they take from it, with `producer_byte_rate`."""
    client = Cluster(ConnectionSettings.from_properties(kafka.bootstrap_servers, {}), retry_seconds=10)
    request = AlterClientQuotasRequest(
        entries=(
            EntryData(
                entity=(EntityData(entity_type="client-id", entity_name=client_id),),
                ops=(OpData(key=key, value=float(bytes_per_second), remove=False),),  # type: ignore[arg-type]
            ),
        ),
        validate_only=False,
    )
    answer = client.ask_any("setting a quota", request, AlterClientQuotasResponse)
    assert not any(entry.error_code for entry in answer.entries)
    client.close()
