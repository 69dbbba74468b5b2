"""The sensor that launches restores which somebody dropped in the repository as files."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import dagster as dg
import yaml
from pydantic import ValidationError

from kafka_backup_dagster.jobs.restore import RestoreConfig
from kafka_backup_dagster.sensors.looking import Told, look

if TYPE_CHECKING:
    from kafka_backup_dagster.resources.resource import KafkaBackupResource


def build_restore_request_sensor(
    job: dg.JobDefinition,
    *,
    allow_execute: bool = False,
    name: str | None = None,
    resource_key: str = "kafka_backup",
    minimum_interval_seconds: int = 60,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.STOPPED,
) -> dg.SensorDefinition:
    """Make the sensor that launches the restores in ``restore-requests/`` of the repository.

    Each file holds the form of the restore job, as YAML or JSON. The same file is launched once; a
    file with other content is another request. A file that cannot be a form makes the sensor fail
    until it is corrected or removed; the others are launched all the same.

    Args:
        job: of `build_restore_job`.
        allow_execute: launch requests with mode execute, too. Who may write into the repository may
            then write into the target cluster.
        name: of the sensor.
        resource_key: of the `KafkaBackupResource`.
        minimum_interval_seconds: between two looks.
        default_status: STOPPED: switch it on where it is wanted.
    """

    @dg.sensor(
        name=name or f"{job.name}_requests",
        job=job,
        required_resource_keys={resource_key},
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description="Launches the restores that are dropped in the repository, in restore-requests/.",
    )
    def restore_requests(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        resource: KafkaBackupResource = getattr(context.resources, resource_key)
        found = look(resource, lambda engine, _: engine.restore_requests())
        names = {key: f"{key}:{hashlib.sha256(data).hexdigest()[:16]}" for key, data in found.items()}
        told = set(Told.of(context).known)
        requests, problems = [], []
        for key, data in found.items():
            if names[key] in told:
                continue
            try:
                form = _form(data, allow_execute=allow_execute)
            except ValueError as error:
                problems.append(f"{key}: {error}")
                continue
            requests.append(
                dg.RunRequest(
                    run_key=names[key], run_config=form, tags={"kafka_backup/restore_request": key[-63:]}
                )
            )
            told.add(names[key])
        if problems and not requests:
            raise dg.Failure(description="\n".join(problems))
        for problem in problems:
            context.log.error(problem)
        return dg.SensorResult(
            run_requests=requests or None,
            skip_reason=None if requests else "no new request in restore-requests/",
            cursor=Told.cursor({}, told & set(names.values())),
        )

    return restore_requests


def _form(data: bytes, *, allow_execute: bool) -> Mapping[str, object]:
    """Read a request.

    Raises:
        ValueError: it is no form, or it asks for more than is allowed.
    """
    try:
        form = yaml.safe_load(data)
        if not isinstance(form, dict):
            raise ValueError("not the form of the restore job: expected its fields, such as restore_id")
        config = RestoreConfig(**form)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"neither YAML nor JSON: {error}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'form'}: {item['msg']}"
            for item in error.errors(include_url=False)
        )
        raise ValueError(problems) from error
    if config.mode == "execute" and not allow_execute:
        raise ValueError("mode execute is not allowed for requests; launch it by hand, or set allow_execute")
    return form
