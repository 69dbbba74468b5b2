"""`@kafka_backup_assets`: topics as one multi-asset; `build_kafka_backup_assets`: as many as it takes."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, TypeAlias

import dagster as dg

from kafka_backup_dagster.assets.specs import build_kafka_backup_asset_specs, is_one_topic
from kafka_backup_dagster.assets.translator import KafkaBackupTranslator
from kafka_backup_dagster.assets.windows import HOURLY, check_windows

if TYPE_CHECKING:
    from kafka_backup_dagster.resources.resource import KafkaBackupResource

Execute: TypeAlias = Callable[[dg.AssetExecutionContext, Any], Iterator[dg.MaterializeResult[None]]]
"""The body of a multi-asset, given the `KafkaBackupResource`."""
MAX_TOPICS = 100
"""Assets of one op: the time that Dagster itself needs for a run grows with their square (4 s for 100)."""


def kafka_backup_assets(
    *,
    topics: Sequence[str],
    consumer_groups: Sequence[str] = ("*",),
    cluster_name: str = "default",
    name: str | None = None,
    group_name: str | None = None,
    partitions_def: dg.PartitionsDefinition | None = HOURLY,
    backfill_policy: dg.BackfillPolicy | None = None,
    kafka_backup_translator: KafkaBackupTranslator | None = None,
    storage_kind: str | None = None,
    retry_policy: dg.RetryPolicy | None = None,
    op_tags: Mapping[str, Any] | None = None,
    pool: str | None = None,
    hooks: Set[dg.HookDefinition] | None = None,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Make a multi-asset of topics, an asset for each exact name, for all patterns, and for the groups.

    Any part of it can be materialized. All assets share the windows; a window is a label: each run
    captures from where the last one ended, so a run over many windows costs no more than one.

    Args:
        topics: filters as in ``backup.topics`` of the configuration, at most 100 of them exact names;
            for more see `build_kafka_backup_assets`.
        consumer_groups: filters of groups whose positions are saved, as one more asset; none: no groups.
        cluster_name: how the people here call the cluster; part of the asset keys.
        name: of the op; by default the function's.
        group_name: of the assets to which the translator gives none.
        partitions_def: the windows, not shorter than 5 minutes; by default those of `HOURLY`, and
            `hourly_windows` makes some that begin when the backups do. None: no partitions.
        backfill_policy: by default one run for each contiguous range of windows.
        kafka_backup_translator: makes the asset specs.
        storage_kind: asset kind of the repository's store, such as ``s3``.
        retry_policy: of the op. A retry repeats no work: what is committed stays.
        op_tags: of the op.
        pool: the concurrency pool of the op.
        hooks: of the op.

    Raises:
        DagsterInvalidDefinitionError: no topic, too many, a malformed filter, two topics that would
            be one asset, or windows that are too short.

    Example:
        @kafka_backup_assets(topics=["orders", "payments"])
        def backups(context: dg.AssetExecutionContext, kafka_backup: KafkaBackupResource):
            yield from kafka_backup.run(context)
    """
    specs = build_kafka_backup_asset_specs(
        topics,
        consumer_groups=consumer_groups,
        cluster_name=cluster_name,
        kafka_backup_translator=kafka_backup_translator,
        storage_kind=storage_kind,
    )
    if (count := sum(map(is_one_topic, specs))) > MAX_TOPICS:
        raise dg.DagsterInvalidDefinitionError(
            f"{count} topics are too many for one multi-asset; use build_kafka_backup_assets, which "
            f"makes several of {MAX_TOPICS}"
        )
    return _multi_asset(
        specs,
        name=name,
        group_name=group_name,
        partitions_def=partitions_def,
        backfill_policy=backfill_policy,
        retry_policy=retry_policy,
        op_tags=op_tags,
        pool=pool,
        hooks=hooks,
    )


def build_kafka_backup_assets(
    *,
    topics: Sequence[str],
    consumer_groups: Sequence[str] = ("*",),
    cluster_name: str = "default",
    name: str = "kafka_backup",
    group_name: str | None = None,
    partitions_def: dg.PartitionsDefinition | None = HOURLY,
    backfill_policy: dg.BackfillPolicy | None = None,
    kafka_backup_translator: KafkaBackupTranslator | None = None,
    storage_kind: str | None = None,
    retry_policy: dg.RetryPolicy | None = None,
    op_tags: Mapping[str, Any] | None = None,
    pool: str | None = None,
    hooks: Set[dg.HookDefinition] | None = None,
    resource_key: str = "kafka_backup",
    execute: Execute | None = None,
    max_topics: int = MAX_TOPICS,
) -> Sequence[dg.AssetsDefinition]:
    """Make the assets of any number of topics: as few multi-assets (shards) as it takes.

    Each shard is a step of its own, so that Dagster can run it in a container of its own, and a
    capture of its own; the commit logs keep captures that run at the same time apart.

    Args:
        topics: filters; how many exact names there are decides how many shards.
        consumer_groups: filters of groups; their asset is in the last shard.
        cluster_name: as for `kafka_backup_assets`, like everything else that is not named here.
        name: of the op; with several shards its beginning (``kafka_backup_1`` and so on).
        group_name: of the assets to which the translator gives none.
        partitions_def: the windows.
        backfill_policy: by default one run for each contiguous range of windows.
        kafka_backup_translator: makes the asset specs.
        storage_kind: asset kind of the repository's store.
        retry_policy: of each op.
        op_tags: of each op.
        pool: the concurrency pool of each op.
        hooks: of each op.
        resource_key: of the `KafkaBackupResource`.
        execute: the body; by default `KafkaBackupResource.run`.
        max_topics: assets in one shard.

    Raises:
        DagsterInvalidDefinitionError: as `kafka_backup_assets`.
    """
    specs = build_kafka_backup_asset_specs(
        topics,
        consumer_groups=consumer_groups,
        cluster_name=cluster_name,
        kafka_backup_translator=kafka_backup_translator,
        storage_kind=storage_kind,
    )
    shards = _shards(specs, max_topics)

    def body(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        resource: KafkaBackupResource = getattr(context.resources, resource_key)
        yield from resource.run(context) if execute is None else execute(context, resource)

    return [
        _multi_asset(
            shard,
            name=name if len(shards) == 1 else f"{name}_{number}",
            group_name=group_name,
            partitions_def=partitions_def,
            backfill_policy=backfill_policy,
            retry_policy=retry_policy,
            op_tags=op_tags,
            pool=pool,
            hooks=hooks,
            required_resource_keys={resource_key},
        )(body)
        for number, shard in enumerate(shards, 1)
    ]


def _shards(specs: Sequence[dg.AssetSpec], most: int) -> Sequence[Sequence[dg.AssetSpec]]:
    """Cut the topics into runs of nearly equal length, `most` at the longest; the last takes all else."""
    topics = [spec for spec in specs if is_one_topic(spec)]
    rest = [spec for spec in specs if not is_one_topic(spec)]
    count = max(1, -(-len(topics) // most))
    cuts = [len(topics) * number // count for number in range(count + 1)]
    shards = [topics[start:end] for start, end in itertools.pairwise(cuts)]
    return [*shards[:-1], [*shards[-1], *rest]]


def _multi_asset(
    specs: Sequence[dg.AssetSpec],
    *,
    name: str | None,
    group_name: str | None,
    partitions_def: dg.PartitionsDefinition | None,
    backfill_policy: dg.BackfillPolicy | None,
    **rest: Any,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    # A translator may have chosen the windows.
    chosen = {spec.partitions_def for spec in specs if spec.partitions_def is not None}
    if len(chosen) > 1:
        raise dg.DagsterInvalidDefinitionError(
            "the assets of one capture share their windows; the translator gives different ones"
        )
    partitions_def = chosen.pop() if chosen else partitions_def
    check_windows(partitions_def)
    if partitions_def is not None:
        backfill_policy = backfill_policy or dg.BackfillPolicy.single_run()
    if group_name is not None:
        specs = [spec.replace_attributes(group_name=spec.group_name or group_name) for spec in specs]
    # Outputs and inputs are numbered: names made of the keys would be equal for t.a, t-a and t_a.
    upstream = {dep.asset_key: dep for spec in specs for dep in spec.deps}
    return dg.multi_asset(
        name=name,
        outs={
            f"topic_{index}": dg.AssetOut.from_spec(
                spec.replace_attributes(deps=[], partitions_def=None),
                dagster_type=dg.Nothing,
                is_required=False,
            )
            for index, spec in enumerate(specs)
        },
        ins={
            f"source_{index}": dg.AssetIn(
                key=dep.asset_key, dagster_type=dg.Nothing, partition_mapping=dep.partition_mapping
            )
            for index, dep in enumerate(upstream.values())
        },
        internal_asset_deps={
            f"topic_{index}": {dep.asset_key for dep in spec.deps} for index, spec in enumerate(specs)
        },
        can_subset=True,
        partitions_def=partitions_def,
        backfill_policy=backfill_policy,
        **rest,
    )
