"""The assets of a list of topic filters."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from kafka_backup_dagster.assets.translator import (
    AssetContent,
    KafkaBackupTranslator,
    KafkaBackupTranslatorData,
    cluster_key,
    drill_key,
    restored_topic_key,
    source_topic_key,
)

FILTERS_KEY = "kafka_backup/topics"
EXCLUDE_KEY = "kafka_backup/exclude"
GROUPS_KEY = "kafka_backup/consumer_groups"


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetTopics:
    """The topics behind one asset: filters to take and to leave out."""

    filters: tuple[str, ...]
    exclude: tuple[str, ...] = ()

    @property
    def exact(self) -> str | None:
        """The one topic that is named exactly, None for patterns."""
        from kafka_backup.selection import FilterKind, TopicFilter

        filters = [TopicFilter.parse(text) for text in self.filters]
        return filters[0].text if len(filters) == 1 and filters[0].kind is FilterKind.EXACT else None

    def among(self, names: Iterable[str]) -> Sequence[str]:
        """Return those of some topics that are behind this asset, sorted."""
        from kafka_backup.selection import TopicSelection

        selection = TopicSelection.parse(self.filters, self.exclude)
        return sorted(name for name in names if selection.includes(name))

    def are_elsewhere(self, names: Iterable[str]) -> bool:
        """Whether patterns match some topics, and all of those have assets of their own."""
        names = list(names)
        return not self.among(names) and bool(AssetTopics(filters=self.filters).among(names))

    @classmethod
    def of(cls, metadata: Mapping[str, object], *, asset_key: dg.AssetKey) -> "AssetTopics":
        """Read them back from an asset's metadata.

        Raises:
            DagsterInvariantViolationError: the asset was not made by this package.
        """
        if FILTERS_KEY not in metadata:
            raise dg.DagsterInvariantViolationError(
                f"asset {asset_key.to_user_string()} does not say which topics it backs up; make it with "
                "@kafka_backup_assets or build_kafka_backup_asset_specs"
            )
        return cls(
            filters=_texts(metadata[FILTERS_KEY]),
            exclude=_texts(metadata.get(EXCLUDE_KEY, ())),
        )


def group_filters_of(metadata: Mapping[str, object]) -> tuple[str, ...] | None:
    """Return the filters of the asset of consumer groups; None for every other asset."""
    return _texts(metadata[GROUPS_KEY]) if GROUPS_KEY in metadata else None


def is_one_topic(spec: dg.AssetSpec) -> bool:
    """Whether a backup is that of one topic: not of patterns, not of consumer groups."""
    if group_filters_of(spec.metadata) is not None:
        return False
    return AssetTopics.of(spec.metadata, asset_key=spec.key).exact is not None


def _texts(value: object) -> tuple[str, ...]:
    content = value.value if isinstance(value, dg.JsonMetadataValue) else value
    if not isinstance(content, list | tuple):
        raise dg.DagsterInvariantViolationError(f"expected a list of filters, found {content!r}")
    return tuple(str(item) for item in content)


def build_kafka_backup_asset_specs(
    topics: Sequence[str],
    *,
    consumer_groups: Sequence[str] = ("*",),
    cluster_name: str = "default",
    kafka_backup_translator: KafkaBackupTranslator | None = None,
    storage_kind: str | None = None,
) -> Sequence[dg.AssetSpec]:
    """Return the asset specs of a cluster's backups; contacts nothing.

    Each exact name becomes an asset. All patterns together become one more, which captures what
    they match beyond the exact names: which topics these are only a run can know. The positions of
    consumer groups are the last one.

    Args:
        topics: filters as in ``backup.topics`` of the configuration.
        consumer_groups: filters of groups, as in ``backup.consumer_groups``; none: no such asset.
        cluster_name: how the people here call the cluster; part of the asset keys.
        kafka_backup_translator: makes the specs.
        storage_kind: asset kind of the repository's store, such as ``s3``.

    Raises:
        DagsterInvalidDefinitionError: no topic, a malformed filter, or two assets with one key.
    """
    from kafka_backup.errors import ConfigurationError
    from kafka_backup.selection import GroupSelection

    translator = kafka_backup_translator or KafkaBackupTranslator()
    exact, patterns = split_filters(topics)
    try:
        GroupSelection.parse(consumer_groups)
    except ConfigurationError as error:
        raise dg.DagsterInvalidDefinitionError(str(error)) from error
    wanted: list[tuple[KafkaBackupTranslatorData, dict[str, list[str]]]] = []

    def want(content: AssetContent, filters: Sequence[str], metadata: dict[str, list[str]]) -> None:
        data = KafkaBackupTranslatorData(
            cluster_name=cluster_name,
            content=content,
            topic=filters[0] if content == "topic" else None,
            filters=tuple(filters),
            storage_kind=storage_kind,
        )
        wanted.append((data, metadata))

    for topic in exact:
        want("topic", [topic], {FILTERS_KEY: [topic]})
    if patterns:
        metadata = {FILTERS_KEY: list(patterns)} | ({EXCLUDE_KEY: list(exact)} if exact else {})
        want("matching_topics", patterns, metadata)
    if consumer_groups:
        want("consumer_groups", consumer_groups, {GROUPS_KEY: list(consumer_groups)})
    made: dict[dg.AssetKey, str] = {}
    specs = []
    for data, metadata in wanted:
        spec = translator.get_asset_spec(data).merge_attributes(metadata=metadata)
        what = f"the {data.content.replace('_', ' ')} {', '.join(data.filters)}"
        if spec.key in made:
            raise dg.DagsterInvalidDefinitionError(
                f"the backups of {made[spec.key]} and of {what} would be the same asset "
                f"{spec.key.to_user_string()}; give them different keys in the translator's get_asset_spec"
            )
        made[spec.key] = what
        specs.append(spec)
    return specs


def build_kafka_topic_specs(
    topics: Sequence[str], *, cluster_name: str = "default", group_name: str | None = None
) -> Sequence[dg.AssetSpec]:
    """Return the external assets that stand for the topics themselves, upstream of their backups.

    Patterns have none: which topics they match only a run can know.
    """
    exact, _ = split_filters(topics)
    return [
        dg.AssetSpec(
            key=source_topic_key(cluster_name, topic),
            description=f"Topic `{topic}` of Kafka cluster {cluster_name}.",
            group_name=group_name,
            kinds={"kafka"},
        )
        for topic in exact
    ]


def build_kafka_cluster_spec(*, cluster_name: str = "default", group_name: str | None = None) -> dg.AssetSpec:
    """Return the external asset that stands for the cluster: the place for checks of all of it."""
    return dg.AssetSpec(
        key=cluster_key(cluster_name),
        description=(
            f"Kafka cluster {cluster_name}. Its check says whether every topic is backed up, or left out on purpose."
        ),
        group_name=group_name,
        kinds={"kafka"},
    )


def build_kafka_restored_specs(
    backups: Sequence[dg.AssetSpec], *, cluster_name: str = "default", group_name: str | None = None
) -> Sequence[dg.AssetSpec]:
    """Return the external assets that stand for restored topics, downstream of their backups.

    The restore job materializes them: each materialization names the target topic and cluster.

    Args:
        backups: specs of `build_kafka_backup_asset_specs`; those of patterns and of groups have none.
        cluster_name: as there, and as in `build_restore_job`.
        group_name: of all of them.
    """
    specs = []
    for backup in backups:
        if is_one_topic(backup):
            topic = AssetTopics.of(backup.metadata, asset_key=backup.key).filters[0]
            specs.append(
                dg.AssetSpec(
                    key=restored_topic_key(cluster_name, topic),
                    deps=[backup.key],
                    description=(
                        f"What was restored of topic `{topic}` of Kafka cluster {cluster_name}: each "
                        "materialization is one verified restore, and names the topic that it made."
                    ),
                    group_name=group_name,
                    kinds={"kafka"},
                )
            )
    return specs


def build_restore_drill_spec(
    backups: Sequence[dg.AssetSpec], *, cluster_name: str = "default", group_name: str | None = None
) -> dg.AssetSpec:
    """Return the external asset that stands for restore drills, downstream of all backups.

    The restore drill materializes it: each materialization is the evidence of one drill.
    """
    return dg.AssetSpec(
        key=drill_key(cluster_name),
        deps=[backup.key for backup in backups if group_filters_of(backup.metadata) is None],
        description=(
            f"Evidence that backups of Kafka cluster {cluster_name} can be restored, and how long it takes: each "
            "materialization is a drill that restored some, verified every record and cleaned up."
        ),
        group_name=group_name,
        kinds={"kafka"},
    )


def split_filters(topics: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the exact names and the patterns among some filters, in order, each once.

    Raises:
        DagsterInvalidDefinitionError: there is no filter, or a malformed one.
    """
    from kafka_backup.errors import ConfigurationError
    from kafka_backup.selection import FilterKind, TopicFilter

    try:
        filters = [TopicFilter.parse(text) for text in dict.fromkeys(topics)]
    except ConfigurationError as error:
        raise dg.DagsterInvalidDefinitionError(str(error)) from error
    if not filters:
        raise dg.DagsterInvalidDefinitionError("no topics: name at least one topic or pattern to back up")
    exact = tuple(item.text for item in filters if item.kind is FilterKind.EXACT)
    patterns = tuple(item.text for item in filters if item.kind is not FilterKind.EXACT)
    return exact, patterns
