"""Checks and sensors: what notices that a backup is late, broken, lossy or incomplete."""

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from confluent_kafka import TopicPartition

from kafka_backup import Engine, EngineConfig
from kafka_backup_dagster import CheckLimits, build_definitions, hourly_windows
from tests.support.damage import damage
from tests.support.engine import capture, engine_config
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import delete_topic, ends, new_topic, produce

HOUR = 3_600_000


MADE: list["Watched"] = []


@pytest.fixture(autouse=True)
def dispose() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().instance.dispose()


class Watched:
    """The definitions of some topics, and an instance that remembers checks."""

    def __init__(self, config: EngineConfig, folder: Path, **options: object) -> None:
        self.config = config
        self.repository = folder
        self.defs = build_definitions(config, start_date="2026-01-01", **options)
        self.instance = dg.DagsterInstance.ephemeral()
        MADE.append(self)

    def capture(self, *topics: str) -> None:
        with Engine.open(self.config) as engine:
            capture(engine, *topics)

    def checks(self, *names: str) -> Mapping[tuple[str, str], dg.AssetCheckEvaluation]:
        """Runs some checks of all assets; by asset and check."""
        graph = self.defs.resolve_asset_graph()
        wanted = [key for key in graph.asset_check_keys if key.name in names]
        job = dg.define_asset_job("watch", selection=dg.AssetSelection.checks(*wanted))
        result = (
            dg.Definitions.merge(self.defs, dg.Definitions(jobs=[job]))
            .resolve_job_def("watch")
            .execute_in_process(instance=self.instance)
        )
        return {
            (each.asset_key.path[-1], each.check_name): each for each in result.get_asset_check_evaluations()
        }

    def tick(self, sensor: str, cursor: str | None = None) -> dg.SensorResult:
        definition = self.defs.resolve_sensor_def(sensor)
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=cursor,
            definitions=self.defs,
            resources=dict(self.defs.resources or {}),
        )
        return definition.evaluate_tick(context)


def watch(
    kafka: KafkaCluster,
    folder: Path,
    topics: list[str],
    *,
    exclude: Sequence[str] = (),
    limits: CheckLimits | None = None,
) -> Watched:
    repository = folder / "repository"
    config = engine_config(kafka, repository, topics=topics, exclude=list(exclude), consumer_groups=[])
    return Watched(config, repository, limits=limits)


def write(kafka: KafkaCluster, topic: str, *, count: int = 10, age_ms: int = 0) -> None:
    at = int(time.time() * 1000) - age_ms
    produce(kafka.bootstrap_servers, topic, [NewRecord(b"x", None, [], at)] * count)


def test_sound_backup_passes_every_check(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests all checks of a topic and of a pattern after a capture, and before there is any.

    Checks that fail for nothing are not looked at any more.
    Could go wrong: a check that cannot pass, or that is green before anything was saved.
    """
    prefix = new_topic(kafka)
    named, matched = (new_topic(kafka, name=f"{prefix}-{i}") for i in range(2))
    for topic in (named, matched):
        write(kafka, topic)
    watched = watch(kafka, tmp_path, [named, f"{prefix}-?"])
    watched.capture(named, matched)

    found = watched.checks("integrity", "ledger", "recovery_point", "time_to_loss")
    assert {key[0] for key in found} == {named, "matching_topics"}
    assert len(found) == 8
    assert [f"{key}: {each.description}" for key, each in found.items() if not each.passed] == []
    age = found[named, "recovery_point"].metadata["kafka_backup/recovery_point_age_seconds"].value
    assert 0 <= age < 600

    # As with topics that were discovered: nothing is left for the patterns.
    found = watch(kafka, tmp_path, [named, matched, f"{prefix}-?"]).checks("integrity", "recovery_point")
    said = [(each.passed, each.description) for key, each in found.items() if key[0] == "matching_topics"]
    assert said == [(True, "Every topic that matches has an asset of its own.")] * 2

    fresh = watch(kafka, tmp_path, [named, new_topic(kafka)])
    never = fresh.checks("integrity", "recovery_point")
    (other,) = {key[0] for key in never} - {named}
    assert never[named, "integrity"].passed
    assert not never[other, "integrity"].passed
    assert never[other, "recovery_point"].description == f"never captured whole: {other}"


def test_damage_and_loss_fail_their_own_check_only(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a repository in which one topic lacks an object and another lost offsets, which are then accepted.

    Each check names one thing, so that it is clear what to do.
    Could go wrong: damage of one topic makes all red, a loss is hidden, an accepted loss stays red.
    """
    sound, damaged, lossy = (new_topic(kafka) for _ in range(3))
    for topic in (sound, damaged, lossy):
        write(kafka, topic)
    watched = watch(kafka, tmp_path, [sound, damaged, lossy])
    watched.capture(sound, damaged, lossy)
    next((watched.repository / "topics" / damaged).rglob("*.log*")).unlink()
    write(kafka, lossy)
    admin, place = kafka.admin(), TopicPartition(lossy, 0, 15)
    admin.delete_records([place])[place].result(30)
    watched.capture(lossy)

    found = watched.checks("integrity", "ledger")
    assert {key for key, each in found.items() if not each.passed} == {
        (damaged, "integrity"),
        (lossy, "ledger"),
    }
    assert "missing" in found[damaged, "integrity"].description
    assert "5 offsets were lost" in found[lossy, "ledger"].description
    assert f"{lossy} [0]: offsets 10 to 15" in found[lossy, "ledger"].metadata["kafka_backup/LOST"].value

    with Engine.open(watched.config) as engine:
        engine.accept_losses(engine.losses()[0].capture, reason="a test")
    assert watched.checks("ledger")[lossy, "ledger"].passed


def test_old_recovery_point_fails(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests limits that the newest capture does not keep.

    Backups that quietly stop are found out on the bad day.
    Could go wrong: the age of the newest commit counts, which an idle topic never renews.
    """
    topic = new_topic(kafka)
    write(kafka, topic)
    watched = watch(kafka, tmp_path, [topic], limits=CheckLimits(recovery_point_age=timedelta(seconds=0)))
    watched.capture(topic)
    late = watched.checks("recovery_point")[topic, "recovery_point"]
    assert not late.passed
    assert "A disaster now would cost the last" in late.description


def test_time_to_loss_is_told_and_a_capture_asked_for(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests the sensor on a topic that loses data in some minutes, again at once, and after a capture.

    "Partition 0 loses data in 43 minutes" is of use 43 minutes before.
    Could go wrong: no capture is asked for, one at every tick, or the alarm never ends.
    """
    topic = new_topic(kafka, config={"retention.ms": HOUR})
    write(kafka, topic, age_ms=17 * 60_000)
    watched = watch(kafka, tmp_path, [topic])

    first = watched.tick("kafka_backup_time_to_loss")
    (request,) = first.run_requests
    assert request.asset_selection == [dg.AssetKey(["kafka_backup", "default", topic])]
    assert request.partition_key == hourly_windows("2026-01-01").get_partition_keys()[-1]
    told = {each.check_name: each for each in first.asset_events}
    assert f"{topic}: partition 0 loses data in 43 minutes (retention.ms)" in told["time_to_loss"].description
    assert not told["time_to_loss"].passed

    again = watched.tick("kafka_backup_time_to_loss", first.cursor)
    assert not again.asset_events
    assert again.run_requests[0].run_key == request.run_key

    watched.capture(topic)
    after = watched.tick("kafka_backup_time_to_loss", again.cursor)
    assert not after.run_requests
    assert {each.check_name: each.passed for each in after.asset_events} == {
        "time_to_loss": True,
        "recovery_point": True,
    }


def test_new_topics_are_captured_at_once_and_forgotten_ones_reported(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    """Tests topics that appear between two looks: one that a pattern matches, and one that nothing matches.

    A topic is new for an hour until its first window ends, and somebody else's for ever.
    Could go wrong: all topics are new at the first look, or the same one at every look.
    """
    prefix = new_topic(kafka)
    others = [name for name in kafka.admin().list_topics(timeout=60).topics if name != prefix]
    watched = watch(kafka, tmp_path, [f"{prefix}*"], exclude=others)

    first = watched.tick("kafka_backup_new_topics")
    assert not first.run_requests
    assert [each.passed for each in first.asset_events] == [True]

    matched, forgotten = new_topic(kafka, name=f"{prefix}-new"), new_topic(kafka)
    second = watched.tick("kafka_backup_new_topics", first.cursor)
    (request,) = second.run_requests
    assert request.asset_selection == [dg.AssetKey(["kafka_backup", "default", "matching_topics"])]
    (event,) = second.asset_events
    assert event.asset_key == dg.AssetKey(["kafka", "default"])
    assert event.description == f"1 topics are not backed up: {forgotten}"
    assert matched not in event.description

    third = watched.tick("kafka_backup_new_topics", second.cursor)
    assert not third.run_requests
    assert not third.asset_events
    delete_topic(kafka, forgotten)
    assert watched.checks("every_topic_is_backed_up")["default", "every_topic_is_backed_up"].passed


def test_restore_requests_are_launched_once(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests requests that somebody dropped in the repository: a good one, a broken one, one that may not be.

    Another team, or a machine, can ask for a restore without access to Dagster.
    Could go wrong: one is launched twice, a broken one blocks the others, or everybody may write to Kafka.
    """
    topic = new_topic(kafka)
    write(kafka, topic)
    watched = watch(kafka, tmp_path, [topic])
    watched.capture(topic)
    folder = watched.repository / "restore-requests"
    folder.mkdir()
    (folder / "good.yaml").write_text(f"restore_id: r1\ntopics: [{topic}]\nprefix: asked-\n")
    (folder / "broken.json").write_text('{"restore_id": "x/y"}')
    (folder / "forbidden.yaml").write_text("restore_id: r2\nmode: execute\n")

    first = watched.tick("restore_requests")
    (request,) = first.run_requests
    assert request.run_config == {"restore_id": "r1", "topics": [topic], "prefix": "asked-"}
    done = watched.defs.resolve_job_def("restore").execute_in_process(
        run_config=request.run_config, instance=watched.instance
    )
    assert done.success
    with pytest.raises(dg.Failure) as caught:
        watched.tick("restore_requests", first.cursor)
    assert "broken.json: " in str(caught.value.description)
    assert "mode execute is not allowed" in str(caught.value.description)
    (folder / "broken.json").unlink()
    (folder / "forbidden.yaml").unlink()
    assert not watched.tick("restore_requests", first.cursor).run_requests


def test_sensor_that_gets_no_answer_fails_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests a sensor while no broker answers, with two seconds instead of 35.

    Dagster kills a sensor after 60 seconds and shows only that.
    Could go wrong: the tick hangs, or looks as if nothing were wrong.
    """
    monkeypatch.setattr("kafka_backup_dagster.sensors.looking.SECONDS", 2.0)
    config = EngineConfig.model_validate(
        {
            "cluster": {"bootstrap_servers": "127.0.0.1:1"},
            "repository": {"url": f"file://{tmp_path}/repository"},
            "backup": {"topics": ["orders"]},
        }
    )
    watched = Watched(config, tmp_path)
    with pytest.raises(dg.Failure, match=r"did not answer|127\.0\.0\.1:1"):
        watched.tick("kafka_backup_new_topics")


@pytest.mark.parametrize("level", ["structure", "data"])
def test_verify_job_proves_and_fails(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """Tests the verify job on a sound repository, on a restore, and after an object is gone, and what both tell meanwhile.

    Somebody wants proof before a risky change, and reading it all can take hours.
    Could go wrong: a green run that looked at nothing, a silent one, or a failure that does not name the object.
    """
    monkeypatch.setattr("kafka_backup_dagster.jobs.progress.LOG_SECONDS", 0.0)
    topic = new_topic(kafka)
    write(kafka, topic)
    watched = watch(kafka, tmp_path, [topic])
    watched.capture(topic)

    def run(job: str, **form: object) -> dg.ExecuteInProcessResult:
        return watched.defs.resolve_job_def(job).execute_in_process(
            run_config=form, instance=watched.instance, raise_on_error=False
        )

    def told(result: dg.ExecuteInProcessResult) -> str:
        return "\n".join(entry.user_message for entry in watched.instance.all_logs(result.run_id))

    sound = run("verify", level=level, topics=[topic])
    assert sound.success
    assert f"{topic}: 1 of 1 topics are done, 1 segments" in told(sound)
    (output,) = [event for event in sound.all_events if event.is_successful_output]
    assert output.step_output_data.metadata["kafka_backup/records"].value == 10
    restored = run("restore", restore_id="v", prefix="verified-", mode="execute")
    assert restored.success
    assert f"{topic} -> verified-{topic}: " in told(restored)
    assert "10 of 10 records" in told(restored)
    assert run("verify", restore_id="v").success
    write(kafka, f"verified-{topic}")
    assert ends(kafka.bootstrap_servers, f"verified-{topic}")[0] == (0, 20)
    assert not run("verify", restore_id="v").success

    segment = next((watched.repository / "topics" / topic).rglob("*.log*"))
    segment.unlink()
    broken = run("verify", level=level)
    (failed,) = [event for event in broken.all_events if event.is_step_failure]
    assert segment.name in failed.step_failure_data.user_failure_data.description


def test_drill_job_leaves_evidence_and_its_age_is_watched(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests the drill before there is any backup, on a sound one, on a damaged one, and the check of its age.

    Somebody must notice when nobody has tried a restore for a month.
    Could go wrong: a failed drill counts, the evidence is only in a log, the alarm needs the cluster.
    """
    topic = new_topic(kafka)
    write(kafka, topic)
    watched = watch(kafka, tmp_path, [topic], limits=CheckLimits(drill_age=timedelta(hours=1)))
    asset = dg.AssetKey(["kafka_restore_drill", "default", "restore_drill"])

    def drill(**form: object) -> dg.ExecuteInProcessResult:
        return watched.defs.resolve_job_def("restore_drill").execute_in_process(
            run_config=form, instance=watched.instance, raise_on_error=False
        )

    never = watched.tick("restore_drill_age")
    assert [(each.asset_key, each.passed) for each in never.asset_events] == [(asset, False)]
    assert not drill().success

    watched.capture(topic)
    good = drill(max_size="1MiB")
    (event,) = good.get_asset_materialization_events()
    assert event.asset_key == asset
    assert event.materialization.metadata["kafka_backup/records"].value == 10
    assert event.materialization.metadata["kafka_backup/recovery_seconds"].value > 0
    after = watched.tick("restore_drill_age", never.cursor)
    assert [each.passed for each in after.asset_events] == [True]
    assert watched.checks("drill_age")["restore_drill", "drill_age"].passed

    segment = next((watched.repository / "topics" / topic).rglob("*.log*"))
    damage(segment)
    bad = drill()
    assert not bad.success
    assert not bad.get_asset_materialization_events()
    (failed,) = [each for each in bad.all_events if each.is_step_failure]
    assert segment.name in failed.step_failure_data.user_failure_data.description
    with pytest.raises(dg.DagsterConfigMappingFunctionError):
        drill(max_size="much")


def test_expire_job_plans_and_deletes(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests the expire job: dry by default, then for real, and with a setting that makes no sense.

    It is the only job that deletes anything of a backup.
    Could go wrong: it deletes in a dry run, or the newest capture goes.
    """
    topic = new_topic(kafka)
    watched = watch(kafka, tmp_path, [topic])
    for _ in range(3):
        write(kafka, topic)
        watched.capture(topic)

    def expire(**form: object) -> dict[str, dg.MetadataValue]:
        done = watched.defs.resolve_job_def("expire").execute_in_process(
            run_config=form, instance=watched.instance
        )
        (output,) = [event for event in done.all_events if event.is_successful_output]
        return dict(output.step_output_data.metadata)

    objects = sorted(watched.repository.rglob("*"))
    planned = expire(keep_captures=1)
    assert planned["kafka_backup/captures_let_go"].value == 2
    assert sorted(watched.repository.rglob("*")) == objects
    done = expire(keep_captures=1, mode="execute")
    assert done["kafka_backup/captures_let_go"].value == 2
    with pytest.raises(dg.DagsterConfigMappingFunctionError):
        expire(keep_captures=0)
    with Engine.open(watched.config) as engine:
        assert engine.verify(level="data").status == "ok"
