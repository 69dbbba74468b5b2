import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import dagster as dg
import pytest
import yaml

from kafka_backup.repository.group_documents import ResetRequest
from kafka_backup.repository.restore_documents import RenameRule
from kafka_backup_dagster import (
    KafkaBackupResource,
    ResetOffsetsConfig,
    RollbackOffsetsConfig,
    reset_offsets_job,
    rollback_offsets_job,
)
from kafka_backup_dagster.metadata import Launchpad, reset_link

TO = {"groups": ["billing"], "to": "latest"}


def launch(
    job: dg.JobDefinition, form: dict[str, object], folder: Path, instance: dg.DagsterInstance
) -> dg.ExecuteInProcessResult:
    """Launches a job on a cluster and a repository that are not there."""
    return job.execute_in_process(
        run_config=form,
        instance=instance,
        raise_on_error=False,
        resources={
            "kafka_backup": KafkaBackupResource(
                bootstrap_servers="127.0.0.1:1", retry_seconds=1, repository_url=f"file://{folder}/repository"
            )
        },
    )


def root_message(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)


@pytest.mark.parametrize(
    ("job", "form", "message"),
    [
        (reset_offsets_job, {"to": "latest"}, "groups"),
        (reset_offsets_job, TO | {"groups": []}, "groups: name at least one"),
        (reset_offsets_job, TO | {"groups": ["/(/"]}, "groups: .*not a valid regular expression"),
        (reset_offsets_job, TO | {"topics": ["/(/"]}, "topics: .*not a valid regular expression"),
        (reset_offsets_job, {"groups": ["a"]}, "give one of snapshot, at_time and to, not none"),
        (reset_offsets_job, TO | {"snapshot": "s"}, "give one of .*, not snapshot and to"),
        (reset_offsets_job, TO | {"to": "yesterday"}, "to: neither earliest, latest nor an offset"),
        (reset_offsets_job, TO | {"to": "2026-01-01T00:00:00"}, "to: .*offset from UTC"),
        (reset_offsets_job, TO | {"to": str(2**63)}, "to: the offset .* does not fit"),
        (reset_offsets_job, TO | {"to": 7}, "to"),
        (reset_offsets_job, {"groups": ["a"], "at_time": "noon"}, "at_time: not a time"),
        (reset_offsets_job, {"groups": ["a"], "snapshot": "a/b"}, "snapshot_id: not an identifier"),
        (reset_offsets_job, TO | {"restore_id": "r"}, "restore_id translates saved positions"),
        (
            reset_offsets_job,
            TO | {"rename": [{"pattern": "(", "replacement": "y"}]},
            "rename: .*not a regular expression",
        ),
        (reset_offsets_job, TO | {"mode": "now"}, "dry_run"),
        (reset_offsets_job, TO | {"group": "a"}, "group"),
        (rollback_offsets_job, {}, "reset_id"),
        (rollback_offsets_job, {"reset_id": "../x"}, "reset_id: not an identifier"),
        (rollback_offsets_job, {"reset_id": "x", "mode": "now"}, "dry_run"),
        (rollback_offsets_job, {"reset_id": "x", "forced": True}, "forced"),
    ],
)
def test_bad_input_is_refused_at_launch(
    job: dg.JobDefinition, form: dict[str, object], message: str, tmp_path: Path
) -> None:
    """Tests every field of both forms with a wrong value.

    Positions are moved under pressure; a form that means something else must not become a run.
    Could go wrong: a run is created all the same, or the message does not name the field.
    """
    with dg.DagsterInstance.ephemeral() as instance:
        with pytest.raises((dg.DagsterConfigMappingFunctionError, dg.DagsterInvalidConfigError)) as caught:
            launch(job, form, tmp_path, instance)
        assert not instance.get_runs()

    assert re.search(message, root_message(caught.value))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("form", "request_"),
    [
        ({"to": "earliest"}, {"to": "earliest"}),
        ({"to": "4711"}, {"to": "offset", "to_offset": 4711}),
        ({"to": "1970-01-01T00:00:01Z"}, {"to": "time", "to_ms": 1000}),
        ({"snapshot": "s", "atomic": True}, {"snapshot_id": "s", "atomic": True}),
        ({"at_time": "2000", "clamp": True}, {"at_ms": 2000, "clamp": True}),
        (
            {"snapshot": "s", "restore_id": "r", "rename": [{"pattern": "(.*)", "replacement": r"\1-x"}]},
            {
                "snapshot_id": "s",
                "restore_id": "r",
                "rename": (RenameRule(pattern="(.*)", replacement=r"\1-x"),),
            },
        ),
    ],
)
def test_form_becomes_the_engines_request(form: dict[str, object], request_: dict[str, object]) -> None:
    """Tests that each field of the form arrives in the request.

    What the person reads in the Launchpad must be what the engine does.
    Could go wrong: a filter of topics is dropped, and more positions move than were asked for.
    """
    config = ResetOffsetsConfig.model_validate({"groups": ["a", "b*"], "topics": ["orders"]} | form)
    asked = ResetRequest.model_validate({"groups": ("a", "b*"), "topics": ("orders",)} | request_)

    assert config.request() == asked


@pytest.mark.parametrize(
    ("job", "form", "required"),
    [
        (reset_offsets_job, ResetOffsetsConfig, ["groups"]),
        (rollback_offsets_job, RollbackOffsetsConfig, ["reset_id"]),
    ],
)
def test_forms_are_flat_explained_and_dry_by_default(
    job: dg.JobDefinition, form: type[dg.Config], required: list[str]
) -> None:
    """Tests the jobs' schemas: fields at the root, each with a description, mode dry_run.

    The Launchpad shows exactly this to somebody in a hurry.
    Could go wrong: secrets of the resource beside it, `ops:` around it, or an execute by default.
    """
    fields = job.config_mapping.config_schema.config_type.fields

    assert set(fields) == set(form.model_fields)
    assert all(field.description for field in fields.values())
    assert fields["mode"].default_value == "dry_run"
    assert [name for name, field in fields.items() if field.is_required] == required


def test_reset_link_fills_in_a_form_that_the_job_accepts() -> None:
    """Tests the link on the asset of consumer groups.

    It is the way from "this is the moment I want" to the groups that are back there.
    Could go wrong: the form is refused, or launching it at once changes something.
    """
    link = reset_link(Launchpad(location_name="here", job_name="prod_reset_offsets"), snapshot="s-1")
    url = urlsplit(link.value.removeprefix("[Reset groups to this point](").removesuffix(")"))
    form = yaml.safe_load(parse_qs(url.query)["config"][0])

    assert url.path == "/locations/here/jobs/prod_reset_offsets/playground/setup"
    assert ResetOffsetsConfig(**form).request().snapshot_id == "s-1"
    assert form["mode"] == "dry_run"
