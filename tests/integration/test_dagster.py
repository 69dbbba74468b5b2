import os
import signal
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from kafka_backup import Engine, StopToken, parse_config
from kafka_backup.errors import UnreachableError
from kafka_backup.kafka.fetch import FetchedPartition
from kafka_backup.kafka.produce import TopicProducer
from kafka_backup.partition_capture import PartitionCapture
from kafka_backup_dagster import (
    KafkaBackupResource,
    build_definitions,
    build_kafka_backup_assets,
    kafka_backup_assets,
)
from tests.support.damage import damage
from tests.support.engine import NEAR, engine_config
from tests.support.groups import commit, positions
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord, Record
from tests.support.topics import delete_topic, ends, new_topic, produce, read_topic


def records(count: int) -> list[NewRecord]:
    return [
        NewRecord(
            b"value %d" % i,
            None if i % 7 == 0 else b"key %d" % i,
            [(b"h", None), (b"h", b"x")],
            1_700_000_000_000 + i,
        )
        for i in range(count)
    ]


def without_offsets(found: dict[int, list[Record]]) -> dict[int, list[tuple[object, ...]]]:
    return {partition: [each[1:] for each in rows] for partition, rows in found.items()}


def hours() -> dg.TimeWindowPartitionsDefinition:
    return dg.HourlyPartitionsDefinition(start_date="2026-01-01-00:00")


def last_hour(ago: int = 1) -> str:
    return (datetime.now(UTC) - timedelta(hours=ago)).strftime("%Y-%m-%d-%H:00")


class Dagster:
    """The definitions of one configuration, with an instance of their own."""

    def __init__(
        self,
        kafka: KafkaCluster,
        folder: Path,
        topics: Sequence[str],
        partitions_def: dg.TimeWindowPartitionsDefinition | None = None,
        *,
        consumer_groups: Sequence[str] = (),
        **backup: object,
    ) -> None:
        content = {
            "cluster": {
                "bootstrap_servers": kafka.bootstrap_servers,
                "retry_seconds": 20,
                "properties": NEAR,
            },
            "repository": {"url": f"file://{folder}/repository"},
            "backup": {"topics": list(topics), "consumer_groups": list(consumer_groups), **backup},
        }
        self.config = parse_config(content, source="test")
        self.defs = build_definitions(self.config, partitions_def=partitions_def)
        self.instance = dg.DagsterInstance.ephemeral()

    def backup(
        self,
        select: Sequence[str] | None = None,
        *,
        partition: str | None = None,
        tags: dict[str, str] | None = None,
    ) -> dg.ExecuteInProcessResult:
        return self.defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=None
            if select is None
            else [dg.AssetKey(["kafka_backup", "default", name]) for name in select],
            partition_key=partition,
            tags=tags,
            raise_on_error=False,
        )

    def restore(self, **form: object) -> dg.ExecuteInProcessResult:
        return self.defs.resolve_job_def("restore").execute_in_process(
            run_config=form, instance=self.instance, raise_on_error=False
        )


def materialized(result: dg.ExecuteInProcessResult) -> dict[tuple[str, str | None], dg.AssetMaterialization]:
    return {
        (event.asset_key.path[-1], event.partition): event.materialization
        for event in result.get_asset_materialization_events()
    }


def failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return event.step_failure_data.user_failure_data.description


def output_metadata(result: dg.ExecuteInProcessResult) -> dict[str, dg.MetadataValue]:
    (event,) = [event for event in result.all_events if event.is_successful_output]
    return dict(event.step_output_data.metadata)


def test_backup_and_restore_through_dagster(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests the main way: materialize two topics, dry run, execute, and compare every record.

    It is what the product is for, as a person does it in the user interface.
    Could go wrong: anything between the Launchpad and the broker.
    """
    first, second = new_topic(kafka, 2), new_topic(kafka)
    produce(kafka.bootstrap_servers, first, records(500), codec="zstd")
    produce(kafka.bootstrap_servers, first, records(30), partition=1)
    produce(kafka.bootstrap_servers, second, records(20))
    dagster = Dagster(kafka, tmp_path, [first, second])

    saved = materialized(dagster.backup())
    assert saved[first, None].metadata["dagster/row_count"].value == 530
    assert saved[second, None].metadata["dagster/row_count"].value == 20
    rows = saved[first, None].metadata["kafka_backup/partitions"].records
    assert [(row.data["partition"], row.data["start"], row.data["end"]) for row in rows] == [
        (0, 0, 500),
        (1, 0, 30),
    ]
    assert saved[first, None].metadata["dagster/uri"].value.startswith("file://")
    assert (
        "/jobs/restore/playground/setup?config=" in saved[first, None].metadata["kafka_backup/restore"].value
    )

    form = {"restore_id": "r1", "prefix": "back-"}
    dry = dagster.restore(**form)
    assert dry.success
    assert output_metadata(dry)["kafka_backup/records"].value == 550
    assert not {f"back-{first}", f"back-{second}"} & set(kafka.admin().list_topics(timeout=60).topics)

    done = dagster.restore(**form, mode="execute")
    assert done.success
    assert output_metadata(done)["kafka_backup/status"].value == "verified"
    restored = materialized(done)
    assert {path: found.asset_key.path for path, found in restored.items()} == {
        (first, None): ["kafka_restored", "default", first],
        (second, None): ["kafka_restored", "default", second],
    }
    assert restored[first, None].metadata["kafka_backup/target_topic"].value == f"back-{first}"
    for topic in (first, second):
        assert without_offsets(read_topic(kafka.bootstrap_servers, f"back-{topic}")) == without_offsets(
            read_topic(kafka.bootstrap_servers, topic)
        )


def test_restore_that_is_forbidden_lists_every_problem(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a restore over two topics that still hold records, dry and for real.

    The commonest mistake of a bad day is to restore on top of what is there.
    Could go wrong: records are doubled; or only the first problem is named, and the next comes an hour later.
    """
    topics = [new_topic(kafka), new_topic(kafka)]
    for topic in topics:
        produce(kafka.bootstrap_servers, topic, records(5))
    dagster = Dagster(kafka, tmp_path, topics)
    assert dagster.backup().success

    for mode in ("dry_run", "execute"):
        refused = dagster.restore(restore_id="r1", mode=mode)
        assert not refused.success
        lines = failure(refused).splitlines()[1:]
        said = "holds offsets [0, 5); restore under another name (rename, prefix), or in its place (replace)"
        assert sorted(lines) == sorted(f"{topic} [0] {said}" for topic in topics)
    assert [ends(kafka.bootstrap_servers, topic)[0] for topic in topics] == [(0, 5), (0, 5)]


def test_windows_are_labels_and_old_ones_are_held(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests the newest window, then an older one, then a range of both.

    A backfill of old windows must be quick, green, and say where the data is.
    Could go wrong: it captures again, fails, or claims records that another window has.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, records(10))
    dagster = Dagster(kafka, tmp_path, [topic], hours())
    newest, older = last_hour(), last_hour(3)

    first = materialized(dagster.backup(partition=newest))[topic, newest]
    produce(kafka.bootstrap_servers, topic, records(4))
    held = materialized(dagster.backup(partition=older))[topic, older]
    both = materialized(
        dagster.backup(
            tags={"dagster/asset_partition_range_start": older, "dagster/asset_partition_range_end": newest}
        )
    )

    assert first.metadata["dagster/partition_row_count"].value == 10
    assert held.metadata["dagster/partition_row_count"].value == 0
    capture = first.metadata["kafka_backup/capture"].value
    assert f"held by capture {capture}" in held.metadata["kafka_backup/status"].value
    assert held.tags["dagster/data_version"] == first.tags["dagster/data_version"]
    assert len(both) == 3
    assert both[topic, newest].metadata["dagster/partition_row_count"].value == 4
    assert both[topic, older].metadata["dagster/partition_row_count"].value == 0


def test_backfill_of_one_run_per_window(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests three windows as a backfill with one partition per run starts them, in both orders.

    Some limit the windows of a run, so that a failure costs one of them only.
    Could go wrong: a run takes what belongs to a later one's count, or repeats the work of an earlier one.
    """
    topic = new_topic(kafka)
    (shard,) = build_kafka_backup_assets(
        topics=[topic],
        consumer_groups=[],
        partitions_def=hours(),
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=1),
    )
    assert shard.backfill_policy == dg.BackfillPolicy.multi_run(max_partitions_per_run=1)
    resources = {"kafka_backup": KafkaBackupResource.from_config(engine_config(kafka, tmp_path / "r"))}
    instance = dg.DagsterInstance.ephemeral()
    windows = [last_hour(ago) for ago in (3, 2, 1)]

    def run(window: str) -> dg.AssetMaterialization:
        done = dg.materialize([shard], resources=resources, partition_key=window, instance=instance)
        return materialized(done)[topic, window]

    counts, captures = [], []
    for window in windows:
        produce(kafka.bootstrap_servers, topic, records(5))
        saved = run(window)
        counts.append(saved.metadata["dagster/partition_row_count"].value)
        captures.append(saved.metadata["kafka_backup/capture"].value)
    assert counts == [5, 5, 5]
    assert len(set(captures)) == 3

    produce(kafka.bootstrap_servers, topic, records(5))
    again = [run(window) for window in reversed(windows)]
    assert [each.metadata["dagster/partition_row_count"].value for each in again] == [5, 0, 0]


def test_only_the_selected_topic_is_captured(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests one of two assets, then both.

    Somebody backs up one topic before a risky change.
    Could go wrong: the other is captured without a materialization, or the first one twice.
    """
    wanted, other = new_topic(kafka), new_topic(kafka)
    for topic in (wanted, other):
        produce(kafka.bootstrap_servers, topic, records(3))
    dagster = Dagster(kafka, tmp_path, [wanted, other])

    assert set(materialized(dagster.backup([wanted]))) == {(wanted, None)}
    with Engine.open(dagster.config) as engine:
        assert [topic for topic, _ in engine.repository().topics()] == [wanted]
    saved = materialized(dagster.backup())
    assert saved[wanted, None].metadata["kafka_backup/status"].value == "unchanged"
    assert saved[other, None].metadata["dagster/row_count"].value == 3


def test_shards_are_captures_of_their_own(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests three topics in shards of two, all in one run, twice.

    Large clusters are cut into several steps that may run in different places at the same time.
    Could go wrong: a shard takes the topics of another, or the second one finds its window held.
    """
    topics = [new_topic(kafka) for _ in range(3)]
    for topic in topics:
        produce(kafka.bootstrap_servers, topic, records(3))
    shards = build_kafka_backup_assets(
        topics=topics, consumer_groups=[], max_topics=2, partitions_def=hours()
    )
    resources = {"kafka_backup": KafkaBackupResource.from_config(engine_config(kafka, tmp_path / "r"))}
    instance = dg.DagsterInstance.ephemeral()

    for expected in (3, 0):
        window = last_hour()
        done = dg.materialize(shards, resources=resources, partition_key=window, instance=instance)
        saved = materialized(done)
        assert {key: saved[key].metadata["dagster/partition_row_count"].value for key in saved} == {
            (topic, window): expected for topic in topics
        }
        assert len({found.metadata["kafka_backup/capture"].value for found in saved.values()}) == 2
    assert saved[topics[0], window].metadata["kafka_backup/recovery_point_seconds"].value > 0


def test_positions_of_consumer_groups_are_saved(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests the asset of consumer groups in the same run as a topic, alone, and in a window that is held.

    On the bad day topics and positions come back together.
    Could go wrong: the snapshot of another moment, or none at all where only the groups are selected.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, records(10))
    group = f"group-{topic}"
    commit(kafka.bootstrap_servers, group, {(topic, 0): 7})
    dagster = Dagster(kafka, tmp_path, [topic], hours(), consumer_groups=[group])
    newest, older = last_hour(), last_hour(3)

    both = materialized(dagster.backup(partition=newest))["consumer_groups", newest]
    held = materialized(dagster.backup(partition=older))["consumer_groups", older]
    commit(kafka.bootstrap_servers, group, {(topic, 0): 9})
    alone = materialized(dagster.backup(["consumer_groups"], partition=newest))["consumer_groups", newest]

    assert both.metadata["kafka_backup/groups"].value == 1
    assert both.metadata["dagster/partition_row_count"].value == 1
    assert "held by capture" in held.metadata["kafka_backup/status"].value
    with Engine.open(dagster.config) as engine:
        for found, offset in ((both, 7), (alone, 9)):
            (saved,) = engine.groups.saved(found.metadata["kafka_backup/snapshot"].value).groups
            assert [(at.topic, at.offset) for at in saved.positions] == [(topic, offset)]


def test_positions_are_restored_with_the_data(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests the restore job with groups: a dry run that shows each move, then the move, under a new name.

    It is the bad day from the Launchpad: topics and consumers in one run.
    Could go wrong: a dry run that moves a group, or a run that is green and left the groups where they were.
    """
    topic = new_topic(kafka)
    group = f"group-{topic}"
    produce(kafka.bootstrap_servers, topic, records(20))
    commit(kafka.bootstrap_servers, group, {(topic, 0): 7})
    dagster = Dagster(kafka, tmp_path, [topic], consumer_groups=[group])
    assert dagster.backup().success
    form = {
        "restore_id": "r1",
        "prefix": "back-",
        "groups": [group],
        "rename_groups": [{"pattern": "group-(.*)", "replacement": r"new-\1"}],
    }
    renamed = group.replace("group-", "new-")
    dry = dagster.restore(**form)
    (row,) = output_metadata(dry)["kafka_backup/positions"].records
    assert (row.data["group"], row.data["source_offset"], row.data["target_offset"]) == (renamed, 7, "7")
    assert positions(kafka, renamed) == {}
    done = dagster.restore(**form, mode="execute")
    (row,) = output_metadata(done)["kafka_backup/positions"].records
    assert (row.data["group"], row.data["before"], row.data["after"]) == (renamed, "no commit", "7")
    assert positions(kafka, renamed) == {(f"back-{topic}", 0): 7}
    assert positions(kafka, group) == {(topic, 0): 7}


def test_patterns_take_what_has_no_asset_of_its_own(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests an exact name and a pattern that matches it and two more topics.

    Topics that nobody listed are saved too, and shown in one table.
    Could go wrong: the exact topic is captured by both, or a new topic by none.
    """
    prefix = new_topic(kafka)
    named, *rest = (new_topic(kafka, name=f"{prefix}-{i}") for i in range(3))
    for topic in (named, *rest):
        produce(kafka.bootstrap_servers, topic, records(2))
    dagster = Dagster(kafka, tmp_path, [named, f"{prefix}-*"])

    saved = materialized(dagster.backup(["matching_topics"]))
    rows = saved["matching_topics", None].metadata["kafka_backup/topics"].records
    assert sorted(row.data["topic"] for row in rows) == rest
    assert materialized(dagster.backup())[named, None].metadata["dagster/row_count"].value == 2


def test_missing_topic_fails_by_name(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests an asset whose topic was deleted.

    A topic that silently is no longer backed up is found out on the bad day.
    Could go wrong: the run is green because nothing was to be done.
    """
    topic, gone = new_topic(kafka), new_topic(kafka)
    dagster = Dagster(kafka, tmp_path, [topic, gone])
    assert dagster.backup().success
    delete_topic(kafka, gone)

    result = dagster.backup()
    assert not result.success
    assert gone in failure(result)


def test_restore_goes_on_when_it_is_executed_again(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests the same restore id twice, and then with another request.

    Dagster's re-execution sends the same form; it must not double anything.
    Could go wrong: the target is refused as not empty, or another request takes over the id.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, records(50))
    dagster = Dagster(kafka, tmp_path, [topic])
    assert dagster.backup().success
    form = {
        "restore_id": "again",
        "rename": [{"pattern": "(.*)", "replacement": r"\1-copy"}],
        "mode": "execute",
    }

    assert dagster.restore(**form).success
    assert dagster.restore(**form).success
    assert ends(kafka.bootstrap_servers, f"{topic}-copy")[0] == (0, 50)
    other = dagster.restore(**form | {"prefix": "x"})
    assert "another request" in failure(other)


def test_a_topic_is_restored_in_its_place(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a topic put back to a moment, in its place and no faster than told, by the form.

    That is what a bad release asks for: the same topic, without what came after.
    Could go wrong: a field of the form never reaches the engine, and the restore is refused or runs at full speed.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, records(50))
    dagster = Dagster(kafka, tmp_path, [topic])
    assert dagster.backup().success
    before = read_topic(kafka.bootstrap_servers, topic)
    produce(kafka.bootstrap_servers, topic, [NewRecord(b"bad", None, (), 1_700_000_000_050)])
    form = {"restore_id": "place", "until_time": "1700000000049", "mode": "execute"}

    assert f"{topic}" in failure(dagster.restore(**form))
    done = dagster.restore(
        **form
        | {
            "restore_id": "place-2",
            "replace": True,
            "max_records_per_second": 25,
            "max_bytes_per_second": 10**9,
        }
    )
    assert done.success
    assert read_topic(kafka.bootstrap_servers, topic) == before
    # A lower bound alone: a busy machine makes it slower, never faster.
    assert output_metadata(done)["kafka_backup/seconds"].value >= 2


def test_damaged_data_is_left_out_when_told_to(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a damaged segment without and with skip_damaged: both runs fail, the second one with all the rest in place.

    Half a topic is better than none, as long as nobody takes it for the whole.
    Could go wrong: a green run that left records out, or a red one that does not say which.
    """
    topic = new_topic(kafka, 2)
    for partition in range(2):
        produce(kafka.bootstrap_servers, topic, records(50), partition=partition)
    dagster = Dagster(kafka, tmp_path, [topic])
    assert dagster.backup().success
    (segment,) = (tmp_path / "repository" / "topics" / topic).glob("*/0/*.log*")
    damage(segment)
    form = {"prefix": "around-", "mode": "execute"}

    assert segment.name in failure(dagster.restore(**form, restore_id="whole"))
    found = failure(dagster.restore(**form | {"prefix": "skip-"}, restore_id="rest", skip_damaged=True))
    assert "incomplete" in found
    assert f"{topic} [0]" in found
    restored = read_topic(kafka.bootstrap_servers, f"skip-{topic}")
    assert not restored.get(0)
    assert without_offsets({1: restored[1]}) == without_offsets(
        {1: read_topic(kafka.bootstrap_servers, topic)[1]}
    )


def test_users_own_op_uses_the_engine_in_three_lines(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests the engine inside somebody's own asset, beside our assets, with a file as configuration.

    Not everything that people need is an asset or a job of ours.
    Could go wrong: the engine is usable only through our jobs.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, records(5))
    path = tmp_path / "kafka-backup.yaml"
    path.write_text(
        f"cluster: {{bootstrap_servers: '{kafka.bootstrap_servers}'}}\n"
        f"repository: {{url: 'file://{tmp_path}/repository'}}\n"
    )

    @kafka_backup_assets(topics=[topic], consumer_groups=[], partitions_def=None)
    def backups(context: dg.AssetExecutionContext, kafka_backup: KafkaBackupResource):
        yield from kafka_backup.run(context)

    @dg.asset(deps=[dg.AssetKey(["kafka_backup", "default", topic])])
    def audit(kafka_backup: KafkaBackupResource) -> dg.MaterializeResult[None]:
        with kafka_backup.engine() as engine:
            report = engine.verify(level="data")
        return dg.MaterializeResult(metadata={"problems": len(report.problems)})

    result = dg.materialize(
        [backups, audit],
        resources={"kafka_backup": KafkaBackupResource.from_yaml(path)},
        instance=dg.DagsterInstance.ephemeral(),
    )
    assert materialized(result)["audit", None].metadata["problems"].value == 0


def test_unreachable_cluster_fails_in_time_and_may_be_retried(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a backup while no broker answers.

    The run must end by itself, and Dagster may try it again later.
    Could go wrong: it hangs for ever, or a stack trace hides the sentence that names the broker.
    """

    @kafka_backup_assets(topics=["orders"], partitions_def=None, retry_policy=dg.RetryPolicy(max_retries=1))
    def backups(context: dg.AssetExecutionContext, kafka_backup: KafkaBackupResource):
        yield from kafka_backup.run(context)

    resource = KafkaBackupResource(
        bootstrap_servers="127.0.0.1:1", retry_seconds=1, repository_url=f"file://{tmp_path}/repository"
    )
    result = dg.materialize(
        [backups],
        resources={"kafka_backup": resource},
        instance=dg.DagsterInstance.ephemeral(),
        raise_on_error=False,
    )
    assert "127.0.0.1:1" in failure(result)
    assert [event.event_type_value for event in result.all_events].count("STEP_RESTARTED") == 1


def test_retry_repeats_no_work(kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests a capture in which the second of two topics fails once, under a retry policy, with an asset behind the first.

    What was saved is saved, and its page must go on saying how much that was.
    Could go wrong: the retry captures all again, shows 0 records for what the first attempt took, or skips what comes after.
    """
    whole, failing = new_topic(kafka), new_topic(kafka)
    for topic in (whole, failing):
        produce(kafka.bootstrap_servers, topic, records(5))
    failures: list[str] = []
    take = PartitionCapture._take

    def fail_once(self: PartitionCapture, fetched: FetchedPartition) -> None:
        if self._work.topic == failing and not failures:
            failures.append(failing)
            raise UnreachableError("the network is gone")
        take(self, fetched)

    monkeypatch.setattr(PartitionCapture, "_take", fail_once)

    @kafka_backup_assets(
        topics=[whole, failing],
        consumer_groups=[],
        partitions_def=None,
        retry_policy=dg.RetryPolicy(max_retries=1),
    )
    def backups(context: dg.AssetExecutionContext, kafka_backup: KafkaBackupResource):
        yield from kafka_backup.run(context)

    @dg.asset(deps=[dg.AssetKey(["kafka_backup", "default", whole])])
    def after() -> None: ...

    result = dg.materialize(
        [backups, after],
        resources={"kafka_backup": KafkaBackupResource.from_config(engine_config(kafka, tmp_path / "r"))},
        instance=dg.DagsterInstance.ephemeral(),
    )
    assert failures == [failing]
    events = result.get_asset_materialization_events()
    assert sorted(event.asset_key.path[-1] for event in events) == sorted([whole, failing, "after"])
    saved = materialized(result)
    for topic in (whole, failing):
        assert saved[topic, None].metadata["dagster/row_count"].value == 5
        assert len(list((tmp_path / "r" / "topics" / topic).glob("*/commits/*.json"))) == 1


class Terminate:
    """Does what Terminate does to a run's process, in the middle of a method of the engine.

    The engine's thread waits there until it was asked to stop, so that it cannot have been faster.
    """

    def __init__(
        self, instance: dg.DagsterInstance, patch: pytest.MonkeyPatch, at: type, method: str
    ) -> None:
        reached, asked = threading.Event(), threading.Event()
        original, stop = getattr(at, method), StopToken.stop

        def held(self: object, *args: object, **kwargs: object) -> object:
            done = original(self, *args, **kwargs)
            reached.set()
            assert asked.wait(60)
            return done

        def noted(self: StopToken) -> None:
            stop(self)
            if reached.is_set():  # before, it was the end of something else, such as the planning
                asked.set()

        def terminate() -> None:
            if reached.wait(60):
                instance.report_run_canceling(instance.get_runs(limit=1)[0])
                os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(at, method, held)
        patch.setattr(StopToken, "stop", noted)
        self._thread = threading.Thread(target=terminate)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()


def test_terminated_backup_and_restore_go_on_where_they_stopped(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests an interrupt in the middle of a backup and of a restore, and both again.

    People press Terminate; what is committed must stay, and nothing must be half done.
    Could go wrong: the run hangs until it is killed, threads go on writing, records are doubled.
    """
    topic = new_topic(kafka)
    count = 4000
    value = os.urandom(1000)
    produce(
        kafka.bootstrap_servers, topic, (NewRecord(value, None, [], 1_700_000_000_000) for _ in range(count))
    )
    dagster = Dagster(kafka, tmp_path, [topic], segment_bytes=1 << 16)

    def status(result: dg.ExecuteInProcessResult) -> dg.DagsterRunStatus:
        run = dagster.instance.get_run_by_id(result.run_id)
        assert run is not None
        return run.status

    repository = tmp_path / "repository"
    with pytest.MonkeyPatch.context() as patch, Terminate(dagster.instance, patch, PartitionCapture, "_take"):
        stopped = dagster.backup()
    assert status(stopped) == dg.DagsterRunStatus.CANCELED
    assert not list(repository.rglob("captures/*.json"))
    assert not [each for each in threading.enumerate() if each.name.startswith("capture-")]
    assert materialized(dagster.backup())[topic, None].metadata["dagster/row_count"].value == count

    form = {"restore_id": "r", "prefix": "p-", "mode": "execute"}
    with pytest.MonkeyPatch.context() as patch, Terminate(dagster.instance, patch, TopicProducer, "send"):
        stopped = dagster.restore(**form)
    assert status(stopped) == dg.DagsterRunStatus.CANCELED
    assert not list(repository.rglob("restores/r/reports/*.json"))
    assert dagster.restore(**form).success
    assert ends(kafka.bootstrap_servers, f"p-{topic}")[0] == (0, count)
