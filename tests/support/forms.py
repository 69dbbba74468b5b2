"""Forms of Dagster's Launchpad, launched where neither a cluster nor a repository is."""

from collections.abc import Mapping
from pathlib import Path

import dagster as dg
import pytest

from kafka_backup_dagster import KafkaBackupResource


def launch(
    job: dg.JobDefinition, form: Mapping[str, object], folder: Path, instance: dg.DagsterInstance
) -> dg.ExecuteInProcessResult:
    """Launches a job with a form."""
    resource = KafkaBackupResource(
        bootstrap_servers="127.0.0.1:1", retry_seconds=1, repository_url=f"file://{folder}/repository"
    )
    return job.execute_in_process(
        run_config=dict(form),
        instance=instance,
        raise_on_error=False,
        resources={"kafka_backup": resource},
    )


def refusal(job: dg.JobDefinition, form: Mapping[str, object], folder: Path) -> str:
    """What the Launchpad says of a wrong form; there must be no run, and nothing written."""
    with dg.DagsterInstance.ephemeral() as instance:
        with pytest.raises((dg.DagsterConfigMappingFunctionError, dg.DagsterInvalidConfigError)) as caught:
            launch(job, form, folder, instance)
        assert not instance.get_runs()
    assert list(folder.iterdir()) == []
    error: BaseException = caught.value
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)


def fields(job: dg.JobDefinition) -> Mapping[str, dg.Field]:
    """The fields at the root of a job's form."""
    return job.config_mapping.config_schema.config_type.fields
