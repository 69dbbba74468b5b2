"""Both clients of the engine at a listener of a broker."""

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.settings import ConnectionSettings
from kafka_backup.kafka.topics import TopicAdmin


def get_in(
    servers: str, properties: Mapping[str, str], *, oauth_cb: Callable[[str], Any] | None = None
) -> str:
    """Asks for metadata by our own connection, makes a topic by the admin client; returns the cluster's id.

    Raises:
        KafkaBackupError: as the first client that does not get in has it.
    """
    settings = ConnectionSettings.from_properties(servers, properties, oauth_cb=oauth_cb)
    cluster = Cluster(settings, retry_seconds=30)
    admin = TopicAdmin(cluster)
    try:
        cluster_id = cluster.metadata([]).cluster_id
        name = f"made-{secrets.token_hex(4)}"
        admin.create_topic(name, partitions=1, replication_factor=1, configs={})
        return cluster_id
    finally:
        cluster.close()
        admin.close()
