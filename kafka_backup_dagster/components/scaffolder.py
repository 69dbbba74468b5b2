"""What `dg scaffold defs kafka_backup_dagster.KafkaBackupComponent backups` writes."""

from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster.components.component.component_scaffolder import Scaffolder
from dagster.components.scaffold.scaffold import ScaffoldRequest
from pydantic import BaseModel, Field

_TEMPLATE = """\
type: {type_name}

attributes:
  # How you call the cluster: part of the asset keys, and before the names of jobs (prod_restore).
  cluster_name: {cluster_name}
  # Hourly windows from this day on (UTC). Leave it as it is.
  start_date: "{start_date}"

  # These sections are those of a kafka-backup.yaml: with a copy of them the command `kafka-backup` restores without Dagster.
  cluster:
    bootstrap_servers: {bootstrap_servers}
    # librdkafka's names. Write secrets as "${{KAFKA_PASSWORD}}": the variable is read in each run, and not shown.
    properties: {{}}
  repository:
    # file:///path, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix
    url: {repository_url}
    options: {{}}
  backup:
    # Exact names, wildcards, or /regular expressions/
    topics: {topics}
    exclude: []
    consumer_groups: ["*"]
"""


class KafkaBackupScaffolderParams(BaseModel):
    """What can be said when scaffolding; all of it can be changed in the file."""

    cluster_name: str = Field(default="default", description="How the people here call the cluster.")
    bootstrap_servers: str = Field(default="127.0.0.1:9092", description="host:port of some brokers.")
    repository_url: str = Field(
        default="file:///var/backups/kafka", description="Where the backups are to be."
    )
    topics: str = Field(default="*", description="Comma-separated filters of topics.")


class KafkaBackupScaffolder(Scaffolder[KafkaBackupScaffolderParams]):
    """Writes a ``defs.yaml`` that explains itself."""

    @classmethod
    def get_scaffold_params(cls) -> type[KafkaBackupScaffolderParams]:
        """The options of `dg scaffold defs`."""
        return KafkaBackupScaffolderParams

    def scaffold(self, request: ScaffoldRequest[KafkaBackupScaffolderParams]) -> None:
        """Write the file; the day before today begins the windows, so that some have ended already."""
        params = request.params or KafkaBackupScaffolderParams()
        yesterday = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
        topics = [text.strip() for text in params.topics.split(",")]
        dg.scaffold_component(
            request,
            {
                "cluster_name": params.cluster_name,
                "start_date": yesterday,
                "cluster": {"bootstrap_servers": params.bootstrap_servers},
                "repository": {"url": params.repository_url},
                "backup": {"topics": topics},
            },
        )
        if request.scaffold_format == "yaml":
            text = _TEMPLATE.format(
                type_name=request.type_name,
                cluster_name=params.cluster_name,
                start_date=yesterday,
                bootstrap_servers=params.bootstrap_servers,
                repository_url=params.repository_url,
                topics="[" + ", ".join(f'"{topic}"' for topic in topics) + "]",
            )
            (request.target_path / "defs.yaml").write_text(text, encoding="utf-8")
