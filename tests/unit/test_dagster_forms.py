"""The forms of the jobs: what a person fills in on a bad day."""

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import dagster as dg
import pytest
import yaml

from kafka_backup import RestoreLimits
from kafka_backup.repository.group_documents import ResetRequest
from kafka_backup.repository.restore_documents import RenameRule
from kafka_backup_dagster import (
    DrillConfig,
    ExpireConfig,
    ResetOffsetsConfig,
    RestoreConfig,
    RollbackOffsetsConfig,
    VerifyConfig,
    expire_job,
    reset_offsets_job,
    restore_drill_job,
    restore_job,
    rollback_offsets_job,
    verify_job,
)
from kafka_backup_dagster.errors import in_words_of_forms
from kafka_backup_dagster.metadata import Launchpad, reset_link, restore_link
from tests.support.forms import fields, launch, refusal

TO = {"groups": ["billing"], "to": "latest"}


@pytest.mark.parametrize(
    ("job", "form", "message"),
    [
        (restore_job, {"restore_id": "x/y"}, "restore_id: not an identifier"),
        (restore_job, {"restore_id": "x", "from_time": "yesterday"}, "from_time: not a time"),
        (
            restore_job,
            {"restore_id": "x", "until_time": "2026-01-01T00:00:00"},
            "until_time: .*offset from UTC",
        ),
        (
            restore_job,
            {"restore_id": "x", "from_time": "2026-01-02T00:00:00Z", "until_time": "2026-01-01T00:00:00Z"},
            "from_time .* is after until_time",
        ),
        (restore_job, {"restore_id": "x", "topics": ["/(/"]}, "topics: .*not a valid regular expression"),
        (
            restore_job,
            {"restore_id": "x", "rename": [{"pattern": "(", "replacement": "y"}]},
            "rename: .*not a regular expression",
        ),
        (restore_job, {"restore_id": "x", "partitions": [-1]}, "partitions: .*negative"),
        (restore_job, {"restore_id": "x", "groups": ["/(/"]}, "groups: .*not a valid regular expression"),
        (
            restore_job,
            {"restore_id": "x", "groups": ["a"], "rename_groups": [{"pattern": "(", "replacement": "y"}]},
            "rename_groups: .*not a regular expression",
        ),
        (
            restore_job,
            {"restore_id": "x", "rename_groups": [{"pattern": "a", "replacement": "b"}]},
            "rename_groups: .*no groups",
        ),
        (
            restore_job,
            {"restore_id": "x", "replication_factor": 0},
            "replication_factor: .*greater than or equal to 1",
        ),
        (
            restore_job,
            {"restore_id": "x", "replace": True, "skip_damaged": True},
            "skip_damaged does not go with replace",
        ),
        (
            restore_job,
            {"restore_id": "x", "max_bytes_per_second": 0},
            "max_bytes_per_second\\s+Input should be greater than or equal to 1",
        ),
        (
            restore_job,
            {"restore_id": "x", "max_records_per_second": -1},
            "max_records_per_second\\s+Input should be greater than or equal to 1",
        ),
        (restore_job, {"restore_id": "x", "mode": "now"}, "dry_run"),
        (restore_job, {"restore_id": "x", "topic": ["orders"]}, "topic"),
        (restore_job, {}, "restore_id"),
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
        (reset_offsets_job, {"groups": ["a"], "snapshot": "a/b"}, "snapshot: not an identifier"),
        (
            reset_offsets_job,
            {"groups": ["a"], "snapshot": "s", "restore_id": "a/b"},
            "restore_id: not an identifier",
        ),
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
        (verify_job, {"level": "all"}, "structure"),
        (verify_job, {"topics": ["/(/"]}, "topics: .*not a valid regular expression"),
        (verify_job, {"restore_id": "x/y"}, "restore_id: not an identifier"),
        (verify_job, {"restore_id": "x", "topics": ["orders"]}, "topics: a restore is verified as a whole"),
        (expire_job, {"keep_days": -1}, "captures cannot be kept for -1 days"),
        (expire_job, {"keep_captures": 0}, "keep at least 1 capture"),
        (expire_job, {"keep": 3}, "keep"),
        (restore_drill_job, {"topics": ["/(/"]}, "topics: .*not a valid regular expression"),
        (restore_drill_job, {"max_size": "much"}, "max_size: not a size"),
        (restore_drill_job, {"max_size": "0"}, "max_size: must be more than nothing"),
    ],
)
def test_bad_input_is_refused_at_launch(
    job: dg.JobDefinition, form: dict[str, object], message: str, tmp_path: Path
) -> None:
    """Tests every field of every form with a wrong value.

    On a bad day nobody wants to wait for a run that can only fail, or for one that does something else.
    Could go wrong: a run is created all the same, or the message does not name the field.
    """
    assert re.search(message, refusal(job, form, tmp_path))


@pytest.mark.parametrize(
    ("job", "form", "required"),
    [
        (restore_job, RestoreConfig, ["restore_id"]),
        (reset_offsets_job, ResetOffsetsConfig, ["groups"]),
        (rollback_offsets_job, RollbackOffsetsConfig, ["reset_id"]),
        (verify_job, VerifyConfig, []),
        (expire_job, ExpireConfig, []),
        (restore_drill_job, DrillConfig, []),
    ],
)
def test_forms_are_flat_explained_and_dry_by_default(
    job: dg.JobDefinition, form: type[dg.Config], required: list[str]
) -> None:
    """Tests the jobs' schemas: fields at the root, each with a description; what changes something is dry.

    The Launchpad shows exactly this to somebody in a hurry.
    Could go wrong: secrets of the resource beside it, `ops:` around it, or an execute by default.
    """
    found = fields(job)

    assert set(found) == set(form.model_fields)
    assert all(field.description for field in found.values())
    assert [name for name, field in found.items() if field.is_required] == required
    if job not in (verify_job, restore_drill_job):
        assert found["mode"].default_value == "dry_run"


def test_restore_form_becomes_the_engines_request() -> None:
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
def test_reset_form_becomes_the_engines_request(form: dict[str, object], request_: dict[str, object]) -> None:
    """Tests that each field of the form arrives in the request.

    What the person reads in the Launchpad must be what the engine does.
    Could go wrong: a filter of topics is dropped, and more positions move than were asked for.
    """
    config = ResetOffsetsConfig.model_validate({"groups": ["a", "b*"], "topics": ["orders"]} | form)
    asked = ResetRequest.model_validate({"groups": ("a", "b*"), "topics": ("orders",)} | request_)

    assert config.request() == asked


def test_a_failure_of_the_engine_is_a_failure_that_says_what_to_do(tmp_path: Path) -> None:
    """Tests a launch without a repository.

    The person needs the engine's sentence, not a stack trace.
    Could go wrong: the run fails with a generic message, and the cause is in a log on another machine.
    """
    with dg.DagsterInstance.ephemeral() as instance:
        result = launch(restore_job, {"restore_id": "x"}, tmp_path, instance)
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]

    assert not result.success
    assert "there is no repository at" in failure.user_failure_data.description


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (
            "use a new --id, or --until T (--rename-groups)",
            "use a new restore_id, or until_time T (rename_groups)",
        ),
        ("first: 'groups rollback 7 --force --execute'", "first: 'groups rollback 7 --force --execute'"),
        ("run once with --accept-missing", "run once with --accept-missing"),
        ("a topic--id", "a topic--id"),
    ],
)
def test_advice_names_the_fields_of_the_forms(sentence: str, expected: str) -> None:
    """Tests sentences of the engine that name options, and whole commands, of the command line.

    Who stands before a form must not have to translate the advice first.
    Could go wrong: a command that is to be typed into a terminal is changed, too.
    """
    assert in_words_of_forms(sentence) == expected


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
