import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import dagster as dg
import pytest
import yaml

from kafka_backup import RestoreLimits
from kafka_backup.repository.restore_documents import RenameRule
from kafka_backup_dagster import KafkaBackupResource, RestoreConfig, restore_job
from kafka_backup_dagster.metadata import Launchpad, restore_link


def launch(form: dict[str, object], folder: Path, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    """Launches the restore job on a cluster and a repository that are not there."""
    return restore_job.execute_in_process(
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
    ("form", "message"),
    [
        ({"restore_id": "x/y"}, "restore_id: not an identifier"),
        ({"restore_id": "x", "from_time": "yesterday"}, "from_time: not a time"),
        ({"restore_id": "x", "until_time": "2026-01-01T00:00:00"}, "until_time: .*offset from UTC"),
        (
            {"restore_id": "x", "from_time": "2026-01-02T00:00:00Z", "until_time": "2026-01-01T00:00:00Z"},
            "from_time .* is after until_time",
        ),
        ({"restore_id": "x", "topics": ["/(/"]}, "topics: .*not a valid regular expression"),
        (
            {"restore_id": "x", "rename": [{"pattern": "(", "replacement": "y"}]},
            "rename: .*not a regular expression",
        ),
        ({"restore_id": "x", "partitions": [-1]}, "partitions: .*negative"),
        ({"restore_id": "x", "groups": ["/(/"]}, "groups: .*not a valid regular expression"),
        (
            {"restore_id": "x", "groups": ["a"], "rename_groups": [{"pattern": "(", "replacement": "y"}]},
            "rename_groups: .*not a regular expression",
        ),
        (
            {"restore_id": "x", "rename_groups": [{"pattern": "a", "replacement": "b"}]},
            "rename_groups: .*no groups",
        ),
        ({"restore_id": "x", "replication_factor": 0}, "replication_factor: .*greater than or equal to 1"),
        ({"restore_id": "x", "replace": True, "skip_damaged": True}, "skip_damaged does not go with replace"),
        (
            {"restore_id": "x", "max_bytes_per_second": 0},
            "max_bytes_per_second\\s+Input should be greater than or equal to 1",
        ),
        (
            {"restore_id": "x", "max_records_per_second": -1},
            "max_records_per_second\\s+Input should be greater than or equal to 1",
        ),
        ({"restore_id": "x", "mode": "now"}, "dry_run"),
        ({"restore_id": "x", "topic": ["orders"]}, "topic"),
        ({}, "restore_id"),
    ],
)
def test_bad_input_is_refused_at_launch(form: dict[str, object], message: str, tmp_path: Path) -> None:
    """Tests every field of the form with a wrong value.

    On a bad day nobody wants to wait for a run that can only fail, or for one that does something else.
    Could go wrong: a run is created all the same, or the message does not name the field.
    """
    with dg.DagsterInstance.ephemeral() as instance:
        with pytest.raises((dg.DagsterConfigMappingFunctionError, dg.DagsterInvalidConfigError)) as caught:
            launch(form, tmp_path, instance)
        assert not instance.get_runs()

    assert re.search(message, root_message(caught.value))
    assert list(tmp_path.iterdir()) == []


def test_form_becomes_the_engines_request() -> None:
    """Tests that each field of the form arrives in the request, in ms and as filters.

    What the person reads in the Launchpad must be what the engine does.
    Could go wrong: a bound or a partition list is dropped, and more is restored than was asked for.
    """
    form = RestoreConfig(
        restore_id="r-1",
        topics=["orders", "app_*"],
        partitions=[0, 2],
        rename=[{"pattern": "(.*)", "replacement": r"copy.\1"}],
        prefix="p-",
        from_time="1970-01-01T00:00:01+00:00",
        until_time="2000",
        capture="c",
        incarnation="AAAAAAAAAAAAAAAAAAAAAA",
        groups=["billing", "app_*"],
        rename_groups=[{"pattern": "app_(.*)", "replacement": r"new_\1"}],
        replication_factor=2,
        original_offset_header=True,
        replace=True,
        max_bytes_per_second=1000,
        max_records_per_second=10,
    )
    request = form.request()

    assert form.limits() == RestoreLimits(max_bytes_per_second=1000, max_records_per_second=10)
    assert request.replace
    assert request.restore_id == "r-1"
    assert request.topics == ("orders", "app_*")
    assert request.partitions == (0, 2)
    assert request.rename == (RenameRule(pattern="(.*)", replacement=r"copy.\1"),)
    assert (request.prefix, request.from_ms, request.until_ms) == ("p-", 1000, 2000)
    assert request.replication_factor == 2
    assert (request.original_offset_header, request.original_timestamp_header) == (True, False)
    assert (request.capture, request.incarnation) == ("c", "AAAAAAAAAAAAAAAAAAAAAA")
    assert request.groups == ("billing", "app_*")
    assert request.rename_groups == (RenameRule(pattern="app_(.*)", replacement=r"new_\1"),)


def test_form_is_flat_explained_and_dry_by_default() -> None:
    """Tests the job's schema: fields at the root, each with a description, mode dry_run.

    The Launchpad shows exactly this to somebody in a hurry.
    Could go wrong: secrets of the resource beside it, `ops:` around it, or an execute by default.
    """
    fields = restore_job.config_mapping.config_schema.config_type.fields

    assert set(fields) == {
        "restore_id",
        "mode",
        "topics",
        "partitions",
        "rename",
        "prefix",
        "from_time",
        "until_time",
        "capture",
        "incarnation",
        "groups",
        "rename_groups",
        "replication_factor",
        "original_offset_header",
        "original_timestamp_header",
        "replace",
        "skip_damaged",
        "max_bytes_per_second",
        "max_records_per_second",
    }
    assert all(field.description for field in fields.values())
    assert fields["mode"].default_value == "dry_run"
    assert [name for name, field in fields.items() if field.is_required] == ["restore_id"]


def test_a_failure_of_the_engine_is_a_failure_that_says_what_to_do(tmp_path: Path) -> None:
    """Tests a launch without a repository.

    The person needs the engine's sentence, not a stack trace.
    Could go wrong: the run fails with a generic message, and the cause is in a log on another machine.
    """
    with dg.DagsterInstance.ephemeral() as instance:
        result = launch({"restore_id": "x"}, tmp_path, instance)
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]

    assert not result.success
    assert "there is no repository at" in failure.user_failure_data.description


def test_restore_link_fills_in_a_form_that_the_job_accepts() -> None:
    """Tests the link of a materialization, for strange names and for many topics.

    It is the way from "this is the moment I want" to the restore.
    Could go wrong: the form is refused, the id too long, or launching it at once changes something.
    """
    for name, topics in (("__consumer.offsets-1", ["__consumer.offsets-1"]), ("x" * 249, ["t"] * 51)):
        link = restore_link(
            Launchpad(location_name="my location"),
            capture="20261124T000000000Z-0a0b0c0d",
            name=name,
            topics=topics,
        )
        url = urlsplit(link.value.removeprefix("[Restore to this point](").removesuffix(")"))
        form = yaml.safe_load(parse_qs(url.query)["config"][0])

        assert url.path == "/locations/my%20location/jobs/restore/playground/setup"
        assert restore_job.name == "restore"
        assert RestoreConfig(**form).request().capture == "20261124T000000000Z-0a0b0c0d"
        assert form["mode"] == "dry_run"
        assert form["prefix"]
        assert form["topics"] == (topics if len(topics) == 1 else [])
