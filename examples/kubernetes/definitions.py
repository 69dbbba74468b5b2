"""Shards: several steps that capture at the same time, each in a pod of its own.

One run is one pod and enough for most clusters: the engine brings its own threads. Where one machine's network is the
limit, this gives each shard a pod; the commit logs keep captures that run at the same time apart.
"""

import os
from pathlib import Path

import dagster as dg
from dagster_k8s import k8s_job_executor

from kafka_backup import load_config
from kafka_backup_dagster import (
    KafkaBackupResource,
    build_kafka_backup_assets,
    build_kafka_backup_checks,
    build_kafka_backup_job,
    build_kafka_backup_schedule,
    hourly_windows,
    reset_offsets_job,
    restore_job,
    rollback_offsets_job,
    verify_job,
)

CONFIG = Path(os.environ.get("KAFKA_BACKUP_CONFIG", "/etc/kafka-backup/kafka-backup.yaml"))
TOPICS_IN_A_SHARD = 25

config = load_config(CONFIG)
shards = build_kafka_backup_assets(
    topics=config.backup.topics,
    consumer_groups=config.backup.consumer_groups,
    max_topics=TOPICS_IN_A_SHARD,
    partitions_def=hourly_windows(os.environ["KAFKA_BACKUP_START_DATE"]),
    storage_kind="s3",
    op_tags={
        "dagster-k8s/config": {
            "container_config": {"resources": {"requests": {"cpu": "1", "memory": "700Mi"}}},
            "pod_spec_config": {"termination_grace_period_seconds": 60},
        }
    },
)
job = build_kafka_backup_job(shards, executor_def=k8s_job_executor)

defs = dg.Definitions(
    assets=shards,
    asset_checks=[build_kafka_backup_checks(shard) for shard in shards],
    jobs=[job, restore_job, reset_offsets_job, rollback_offsets_job, verify_job],
    schedules=[build_kafka_backup_schedule(shards, job=job)],
    resources={"kafka_backup": KafkaBackupResource.from_yaml(CONFIG)},
    executor=dg.in_process_executor,
)
