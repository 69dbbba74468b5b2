"""What the code location loads: everything for the cluster that kafka-backup.yaml names."""

import os

from kafka_backup_dagster import build_definitions

defs = build_definitions(
    "kafka-backup.yaml", cluster_name="prod", start_date=os.environ["KAFKA_BACKUP_START_DATE"]
)
