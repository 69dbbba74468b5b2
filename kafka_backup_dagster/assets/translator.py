"""What a topic looks like as a Dagster asset."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import dagster as dg

KINDS: Mapping[str, str] = MappingProxyType(
    {"s3": "s3", "s3a": "s3", "gs": "gcs", "az": "azure", "abfs": "azure", "file": "file", "memory": "memory"}
)
"""Dagster's name for the storage behind a repository URL's scheme."""


AssetContent = Literal["topic", "matching_topics", "consumer_groups"]


def storage_kind(repository_url: str) -> str | None:
    """Return the asset kind for a repository URL, None for a scheme that Dagster has no name for."""
    return KINDS.get(repository_url.partition("://")[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaBackupTranslatorData:
    """What a translator may know of one asset. It is known without a broker or a store.

    Attributes:
        cluster_name: how the people here call the cluster.
        content: what the asset holds: one topic, all topics that patterns match, or the positions of
            consumer groups.
        topic: the topic, where it is one.
        filters: the filters as configured: the topic alone, the patterns, or those of groups.
        storage_kind: the kind of object store, such as ``s3``, if known.
    """

    cluster_name: str
    content: AssetContent
    topic: str | None
    filters: tuple[str, ...]
    storage_kind: str | None = None


class KafkaBackupTranslator:
    """Turns topics into asset specs. Subclass it and override `get_asset_spec`.

    Example:
        class Mine(KafkaBackupTranslator):
            def get_asset_spec(self, data):
                return super().get_asset_spec(data).replace_attributes(group_name="backups")
    """

    def get_asset_spec(self, data: KafkaBackupTranslatorData) -> dg.AssetSpec:
        """Return the spec of a topic's backup.

        By default its key is ``kafka_backup/<cluster>/<topic>`` and it depends on the external
        asset ``kafka/<cluster>/<topic>``; the assets of patterns and of consumer groups are
        ``kafka_backup/<cluster>/matching_topics`` and ``.../consumer_groups``, and depend on nothing.
        """
        kinds = {"kafka"} | ({data.storage_kind} if data.storage_kind else set())
        if data.content == "consumer_groups":
            return dg.AssetSpec(
                key=["kafka_backup", data.cluster_name, "consumer_groups"],
                description=(
                    f"Positions of the consumer groups of Kafka cluster {data.cluster_name}: each "
                    "materialization is one snapshot, taken at the start of a capture."
                ),
                kinds=kinds,
            )
        if data.topic is None:
            patterns = ", ".join(f"`{text}`" for text in data.filters)
            return dg.AssetSpec(
                key=["kafka_backup", data.cluster_name, "matching_topics"],
                description=(
                    f"Backup of every topic of Kafka cluster {data.cluster_name} that matches {patterns} and "
                    "has no asset of its own."
                ),
                kinds=kinds,
            )
        return dg.AssetSpec(
            key=["kafka_backup", data.cluster_name, data.topic],
            deps=[source_topic_key(data.cluster_name, data.topic)],
            description=(
                f"Backup of topic `{data.topic}` of Kafka cluster {data.cluster_name}: each materialization "
                "saves everything from where the last one ended to the last stable offset."
            ),
            kinds=kinds,
        )


def source_topic_key(cluster_name: str, topic: str) -> dg.AssetKey:
    """Return the key of the external asset that stands for the topic itself."""
    return dg.AssetKey(["kafka", cluster_name, topic])


def cluster_key(cluster_name: str) -> dg.AssetKey:
    """Return the key of the external asset that stands for the cluster itself."""
    return dg.AssetKey(["kafka", cluster_name])


def restored_topic_key(cluster_name: str, topic: str) -> dg.AssetKey:
    """Return the key of the external asset that stands for what was restored of a topic."""
    return dg.AssetKey(["kafka_restored", cluster_name, topic])


def drill_key(cluster_name: str) -> dg.AssetKey:
    """Return the key of the external asset that stands for the evidence of restore drills."""
    return dg.AssetKey(["kafka_restore_drill", cluster_name, "restore_drill"])
