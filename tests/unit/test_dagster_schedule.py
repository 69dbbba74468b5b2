"""Which windows a tick of the schedule asks for, and the recipe for automation conditions."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from kafka_backup import parse_config
from kafka_backup_dagster import (
    build_definitions,
    build_kafka_backup_assets,
    build_kafka_backup_job,
    build_kafka_backup_schedule,
    hourly_windows,
)
from kafka_backup_dagster.schedules import MAX_WINDOWS

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def key(topic: str) -> dg.AssetKey:
    return dg.AssetKey(["kafka_backup", "default", topic])


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:
        yield made


def done(instance: dg.DagsterInstance, topic: str, *windows: str) -> None:
    for window in windows:
        instance.report_runless_asset_event(dg.AssetMaterialization(key(topic), partition=window))


def tick(
    instance: dg.DagsterInstance,
    *,
    topics: Sequence[str] = ("a", "b"),
    partitions_def: dg.TimeWindowPartitionsDefinition | None = hourly_windows("2026-11-01"),  # noqa: B008
    at: datetime = NOON,
) -> dg.RunRequest | str | None:
    """What a tick asks for, or why it asks for nothing."""
    backups = build_kafka_backup_assets(topics=topics, consumer_groups=[], partitions_def=partitions_def)
    job = build_kafka_backup_job(backups)
    schedule = build_kafka_backup_schedule(backups, job=job)
    defs = dg.Definitions(
        assets=backups, jobs=[job], schedules=[schedule], resources={"kafka_backup": object()}
    )
    context = dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=at,
        repository_def=defs.get_repository_def(),
    )
    result = schedule.evaluate_tick(context)
    if result.run_requests:
        (request,) = result.run_requests
        return request
    return result.skip_message


def test_first_tick_takes_the_newest_window(instance: dg.DagsterInstance) -> None:
    """Tests a tick before anything was captured, and one before the first window has ended.

    What was before the first backup is nobody's gap.
    Could go wrong: three weeks of windows are claimed by the first run, or the tick fails.
    """
    request = tick(instance)
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == "2026-11-24-11:00"
    assert tick(instance, partitions_def=hourly_windows("2026-11-25")) == "no window has ended yet"


def test_missed_windows_are_made_up_for_in_one_run(instance: dg.DagsterInstance) -> None:
    """Tests a tick after windows that were missed, and after ones that one of two topics missed.

    Dagster was down, or a run failed: a window that stays red or grey for ever hides the next real gap.
    Could go wrong: only the newest window is taken, as Dagster's own schedule does; or the better topic counts.
    """
    done(instance, "a", "2026-11-24-08:00", "2026-11-24-09:00", "2026-11-24-10:00")
    done(instance, "b", "2026-11-24-08:00")
    request = tick(instance)
    assert isinstance(request, dg.RunRequest)
    assert request.tags["dagster/asset_partition_range_start"] == "2026-11-24-09:00"
    assert request.tags["dagster/asset_partition_range_end"] == "2026-11-24-11:00"

    done(instance, "b", "2026-11-24-10:00")
    request = tick(instance)
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == "2026-11-24-11:00"


def test_a_long_gap_is_bounded(instance: dg.DagsterInstance) -> None:
    """Tests a tick weeks after the last capture.

    Each window is an event of each asset: the run after a long pause must not take hours for that.
    Could go wrong: hundreds of windows times a hundred topics in one step.
    """
    done(instance, "a", "2026-11-02-00:00")
    done(instance, "b", "2026-11-02-00:00")
    request = tick(instance)
    assert isinstance(request, dg.RunRequest)
    first = NOON - timedelta(hours=MAX_WINDOWS)
    assert request.tags["dagster/asset_partition_range_start"] == first.strftime("%Y-%m-%d-%H:00")


def test_run_that_is_at_work_is_left_alone(instance: dg.DagsterInstance) -> None:
    """Tests a tick while the run of the tick before has not ended.

    Two captures at once would stop one another at the commit log.
    Could go wrong: runs pile up while the first capture of a large cluster takes hours.
    """
    run = instance.create_run_for_job(_job(), status=dg.DagsterRunStatus.STARTED)
    assert tick(instance) == f"run {run.run_id} is still at work; the next tick makes up for this one"
    instance.report_run_failed(run)
    assert isinstance(tick(instance), dg.RunRequest)


def _job() -> dg.JobDefinition:
    @dg.job(name="kafka_backup")
    def empty() -> None: ...

    return empty


def test_assets_without_windows_are_captured_by_the_clock(instance: dg.DagsterInstance) -> None:
    """Tests the schedule of assets without partitions, and a cron schedule beside windows.

    Not everybody wants windows.
    Could go wrong: a run for a window that does not exist, or two answers to the question when.
    """
    request = tick(instance, partitions_def=None)
    assert isinstance(request, dg.RunRequest)
    assert (request.partition_key, dict(request.tags)) == (
        None,
        {"dagster/schedule_name": "kafka_backup_schedule"},
    )

    plain = build_kafka_backup_assets(topics=["a"], partitions_def=None)
    job = build_kafka_backup_job(plain)
    assert (
        build_kafka_backup_schedule(plain, job=job, cron_schedule="*/15 * * * *").cron_schedule
        == "*/15 * * * *"
    )
    windowed = build_kafka_backup_assets(topics=["a"])
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="cron_schedule"):
        build_kafka_backup_schedule(windowed, job=build_kafka_backup_job(windowed), cron_schedule="@hourly")


def test_recipe_for_automation_conditions_leaves_no_gap(instance: dg.DagsterInstance) -> None:
    """Tests the automation condition of the documentation over five windows without a tick.

    Who prefers declarative automation must not lose windows by it: the usual conditions take the newest only.
    Could go wrong: missed windows are never asked for, or failed ones at every tick for ever.
    """
    condition = (
        dg.AutomationCondition.in_latest_time_window(timedelta(hours=6))
        & dg.AutomationCondition.missing().newly_true().since_last_handled()
    )
    (backups,) = build_kafka_backup_assets(
        topics=["a"], consumer_groups=[], partitions_def=hourly_windows("2026-11-24")
    )
    backups = backups.map_asset_specs(lambda spec: spec.replace_attributes(automation_condition=condition))
    defs = dg.Definitions(assets=[backups], resources={"kafka_backup": object()})

    def asked(at: datetime, cursor: object) -> tuple[set[str], object]:
        result = dg.evaluate_automation_conditions(
            defs=defs, instance=instance, cursor=cursor, evaluation_time=at
        )
        return result.get_requested_partitions(key("a")), result.cursor

    requested, cursor = asked(NOON, None)
    assert requested == set()
    done(instance, "a", "2026-11-24-11:00")
    requested, cursor = asked(NOON + timedelta(hours=5), cursor)
    assert requested == {f"2026-11-24-{hour}:00" for hour in range(12, 17)}
    assert asked(NOON + timedelta(hours=5, minutes=1), cursor)[0] == set()


def test_several_clusters_live_in_one_code_location() -> None:
    """Tests the definitions of two clusters and of one that has no name, together.

    A team has more than one cluster, and one code location.
    Could go wrong: two jobs or resources of one name, so that a restore goes to the wrong cluster.
    """

    def defs(name: str) -> dg.Definitions:
        content = {
            "cluster": {"bootstrap_servers": "127.0.0.1:1"},
            "repository": {"url": f"file:///backups/{name}"},
            "backup": {"topics": ["orders", "app_*"]},
        }
        return build_definitions(parse_config(content, source="test"), cluster_name=name)

    both = dg.Definitions.merge(defs("prod-1"), defs("test"), defs("default"))
    jobs = {job.name for job in both.resolve_all_job_defs() if not job.name.startswith("__")}
    assert {"prod_1_restore", "test_restore", "restore"} <= jobs
    assert {"prod_1_kafka_backup", "test_kafka_backup", "kafka_backup"} <= jobs
    assert set(both.resources or {}) >= {"prod_1_kafka_backup", "test_kafka_backup", "kafka_backup"}
