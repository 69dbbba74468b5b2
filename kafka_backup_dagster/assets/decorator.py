"""`@kafka_backup_assets`: topics as one multi-asset."""

from collections.abc import Callable, Mapping, Sequence, Set
from datetime import timedelta
from typing import Any

import dagster as dg

from kafka_backup_dagster.assets.specs import build_kafka_backup_asset_specs
from kafka_backup_dagster.assets.translator import KafkaBackupTranslator

HOURLY = dg.HourlyPartitionsDefinition(start_date="2026-01-01-00:00")
"""The default windows. Older ones than the first capture are no-ops that say which capture holds them."""
SHORTEST_WINDOW = timedelta(minutes=5)
_WINDOWS_LOOKED_AT = 100


def kafka_backup_assets(
    *,
    topics: Sequence[str],
    cluster_name: str = "default",
    name: str | None = None,
    group_name: str | None = None,
    partitions_def: dg.TimeWindowPartitionsDefinition | None = HOURLY,
    backfill_policy: dg.BackfillPolicy | None = None,
    kafka_backup_translator: KafkaBackupTranslator | None = None,
    storage_kind: str | None = None,
    retry_policy: dg.RetryPolicy | None = None,
    op_tags: Mapping[str, Any] | None = None,
    pool: str | None = None,
    hooks: Set[dg.HookDefinition] | None = None,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Make a multi-asset of topics, one asset for each exact name and one for all patterns.

    Any part of it can be materialized. All assets share the windows; a window is a label: each run
    captures from where the last one ended, so a run over many windows costs no more than one.

    Args:
        topics: filters as in ``backup.topics`` of the configuration. Up to about 100 exact names:
            the time that Dagster itself needs grows with their square.
        cluster_name: how the people here call the cluster; part of the asset keys.
        name: of the op; by default the function's.
        group_name: of all the assets, instead of the translator's.
        partitions_def: the windows, hourly by default, not shorter than 5 minutes; None for assets
            without partitions.
        backfill_policy: by default one run for each contiguous range of windows.
        kafka_backup_translator: makes the asset specs.
        storage_kind: asset kind of the repository's store, such as ``s3``.
        retry_policy: of the op. A retry repeats no work: what is committed stays.
        op_tags: of the op.
        pool: the concurrency pool of the op.
        hooks: of the op.

    Raises:
        DagsterInvalidDefinitionError: no topic, a malformed filter, two topics that would be one
            asset, or windows that are too short.

    Example:
        @kafka_backup_assets(topics=["orders", "payments"])
        def backups(context: dg.AssetExecutionContext, kafka_backup: KafkaBackupResource):
            yield from kafka_backup.run(context)
    """
    if partitions_def is not None:
        _check_windows(partitions_def)
        backfill_policy = backfill_policy or dg.BackfillPolicy.single_run()
    specs = build_kafka_backup_asset_specs(
        topics,
        cluster_name=cluster_name,
        kafka_backup_translator=kafka_backup_translator,
        storage_kind=storage_kind,
    )
    if group_name is not None:
        specs = [spec.replace_attributes(group_name=group_name) for spec in specs]
    # Outputs and inputs are numbered: names made of the keys would be equal for t.a, t-a and t_a.
    upstream = {dep.asset_key: dep for spec in specs for dep in spec.deps}
    return dg.multi_asset(
        name=name,
        outs={
            f"topic_{index}": dg.AssetOut.from_spec(
                spec.replace_attributes(deps=[]), dagster_type=dg.Nothing, is_required=False
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
        retry_policy=retry_policy,
        op_tags=op_tags,
        pool=pool,
        hooks=hooks,
    )


def _check_windows(partitions_def: dg.TimeWindowPartitionsDefinition) -> None:
    """Refuse windows so short that starting the runs costs more than the captures."""
    window = partitions_def.get_first_partition_window()
    for _ in range(_WINDOWS_LOOKED_AT):
        if window is None:
            return
        if window.end - window.start < SHORTEST_WINDOW:
            raise dg.DagsterInvalidDefinitionError(
                f"the windows of {partitions_def} are shorter than 5 minutes; choose longer ones (a run of "
                "Dagster takes about 5 seconds to start, and assets bear about 100,000 partitions)"
            )
        window = partitions_def.get_next_partition_window(window.end)
