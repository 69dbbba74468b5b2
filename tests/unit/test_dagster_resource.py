import json
import re
import subprocess
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster_aws.s3 import S3Resource
from pydantic import ValidationError

from kafka_backup import (
    BackupEvent,
    CancelledError,
    CaptureFinished,
    ClusterConfig,
    ConfigurationError,
    DamagedError,
    Engine,
    EngineConfig,
    GroupFailed,
    GroupSnapshotTaken,
    PartitionResult,
    RecoveryPoint,
    RepositoryConfig,
    StopToken,
    TopicCommitted,
    TopicFailed,
    TopicMissing,
    TopicRecreated,
    TopicUnchanged,
    TransactionOpen,
    UnreachableError,
    Window,
    parse_config,
)
from kafka_backup.errors import TopicMissingError
from kafka_backup.repository.documents import LostSpan, OffsetSpan
from kafka_backup_dagster import KafkaBackupResource, build_definitions, kafka_backup_assets
from kafka_backup_dagster.interrupts import run_interruptibly
from kafka_backup_dagster.metadata import red_lines
from kafka_backup_dagster.resources.s3 import with_s3

CAPTURE = "20261124T000000000Z-0a0b0c0d"
SHA = "ab" * 32


def committed(topic: str, *, commit: int = 0, start: int = 0, end: int = 10, lost: int = 0) -> TopicCommitted:
    spans = (LostSpan(start=start, end=start + lost, reason="retention"),) if lost else ()
    part = PartitionResult(
        partition=0,
        start=start,
        end=end,
        records=end - start - lost,
        control=0,
        aborted=0,
        compacted=0,
        lost=lost,
        lost_spans=spans,
    )
    return TopicCommitted(
        capture=CAPTURE,
        topic=topic,
        topic_id="A" * 22,
        commit=commit,
        commit_sha256=SHA,
        records=part.records,
        stored_bytes=500,
        raw_bytes=1_000_000,
        segments=1,
        partitions=(part,),
        object_uri=f"file:///repository/{topic}/{commit}",
        seconds=2.0 * (commit + 1),
    )


def finished(status: str = "complete") -> CaptureFinished:
    return CaptureFinished(capture=CAPTURE, status=status, window=None, recovery_point=1_000, seconds=1.0)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """Lets a test say what the engine's capture yields, and see what it was asked for."""
    asked: dict[str, object] = {"events": (), "points": {}}

    def backup(
        self: Engine, topics: Sequence[str], *, window: Window | None = None, stop: StopToken | None = None
    ) -> Iterator[BackupEvent]:
        backup = self.config.backup
        asked.update(topics=list(topics), exclude=list(backup.exclude), window=window)
        asked["groups"] = list(backup.consumer_groups)
        for event in asked["events"]:
            if isinstance(event, Exception):
                raise event
            yield event

    def recovery_points(self: Engine, topics: Collection[str], *, before: str) -> Mapping[str, RecoveryPoint]:
        points: dict[str, int] = asked["points"]
        return {
            name: RecoveryPoint(capture="earlier", time=points[name]) for name in topics if name in points
        }

    monkeypatch.setattr(Engine, "backup", backup)
    monkeypatch.setattr(Engine, "recovery_points", recovery_points)
    yield asked


def run(
    topics: list[str],
    *,
    select: Iterable[str] | None = None,
    partitions_def: dg.TimeWindowPartitionsDefinition | None = None,
    tags: dict[str, str] | None = None,
    exclude: list[str] | None = None,
    retry_policy: dg.RetryPolicy | None = None,
    groups: Sequence[str] = (),
) -> dg.ExecuteInProcessResult:
    @kafka_backup_assets(
        topics=topics, consumer_groups=groups, partitions_def=partitions_def, retry_policy=retry_policy
    )
    def backups(context: dg.AssetExecutionContext, kafka_backup: KafkaBackupResource):
        yield from kafka_backup.run(context)

    return dg.materialize(
        [backups],
        selection=None
        if select is None
        else [dg.AssetKey(["kafka_backup", "default", name]) for name in select],
        resources={
            "kafka_backup": KafkaBackupResource(
                bootstrap_servers="127.0.0.1:1", repository_url="file:///not/there", exclude=exclude or []
            )
        },
        tags=tags,
        raise_on_error=False,
        instance=dg.DagsterInstance.ephemeral(),
    )


def materialized(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetMaterialization]:
    return {
        event.asset_key.path[-1]: event.materialization for event in result.get_asset_materialization_events()
    }


def failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return event.step_failure_data.user_failure_data.description


def test_pieces_of_a_large_topic_are_one_materialization(script: dict[str, object]) -> None:
    """Tests a topic that was committed twice during one capture.

    A large topic is committed in pieces; what people plot is the whole capture.
    Could go wrong: only the last piece is counted, or the ranges overlap in the table.
    """
    script["events"] = [
        committed("orders", end=10),
        committed("orders", commit=1, start=10, end=30),
        finished(),
    ]
    shown = materialized(run(["orders"]))["orders"]

    assert shown.metadata["dagster/row_count"].value == 30
    assert shown.metadata["kafka_backup/raw_bytes"].value == 2_000_000
    assert shown.metadata["kafka_backup/mb_per_second"].value == 0.5
    assert shown.metadata["kafka_backup/commit"].value == 1
    assert shown.metadata["dagster/uri"].value == "file:///repository/orders/1"
    (row,) = shown.metadata["kafka_backup/partitions"].records
    assert (row.data["start"], row.data["end"], row.data["records"]) == (0, 30, 30)
    assert shown.tags["dagster/data_version"] == SHA


def test_failed_topics_are_all_named_and_the_others_stay_materialized(script: dict[str, object]) -> None:
    """Tests a capture in which two of four topics fail, one of them after a piece was committed.

    Green must mean saved; and one broken topic must not hide that the others are safe.
    Could go wrong: a half-saved topic turns green, or only the first failure is reported.
    """
    script["events"] = [
        committed("a"),
        committed("b"),
        TopicFailed(capture=CAPTURE, topic="b", partition=3, error=UnreachableError("broker 7 is silent")),
        TopicFailed(capture=CAPTURE, topic="c", partition=None, error=DamagedError("c: batch 5 is corrupt")),
        TopicUnchanged(capture=CAPTURE, topic="d", topic_id="A" * 22, commit=4, commit_sha256=SHA),
        finished("partial"),
    ]
    result = run(["a", "b", "c", "d"])

    assert set(materialized(result)) == {"a", "d"}
    assert materialized(result)["d"].metadata["kafka_backup/status"].value == "unchanged"
    assert not result.success
    assert "b [3]: broker 7 is silent" in failure(result)
    assert "c: batch 5 is corrupt" in failure(result)


@pytest.mark.parametrize(
    ("error", "retries"),
    [(UnreachableError("no broker"), 1), (DamagedError("batch 5"), 0), (ConfigurationError("no topic"), 0)],
)
@pytest.mark.parametrize("whole", [True, False])
def test_only_errors_that_may_go_away_are_retried(
    script: dict[str, object], error: Exception, retries: int, whole: bool
) -> None:
    """Tests Dagster's retry policy against errors of the whole capture and of one topic.

    An unreachable broker is worth another try; a damaged batch or a wrong name never is.
    Could go wrong: hours of useless retries before somebody is called, or none where one would do.
    """
    one = TopicFailed(capture=CAPTURE, topic="a", partition=0, error=error)
    script["events"] = [error] if whole else [one, finished("partial")]
    result = run(["a"], retry_policy=dg.RetryPolicy(max_retries=1))

    assert (
        len([event for event in result.all_events if event.event_type_value == "STEP_RESTARTED"]) == retries
    )
    assert str(error) in failure(result)


def test_lost_offsets_are_shown_and_fail_the_run(script: dict[str, object]) -> None:
    """Tests a capture in which retention was faster than the backup.

    What the brokers had left is saved, but nobody may overlook that something is gone for ever.
    Could go wrong: a green run, or a retry that finds nothing new and makes it green.
    """
    script["events"] = [committed("orders", lost=4), finished("lossy")]
    result = run(["orders"], retry_policy=dg.RetryPolicy(max_retries=1))
    shown = materialized(result)["orders"]

    assert next(iter(shown.metadata)) == "kafka_backup/LOST"
    assert "orders [0]: offsets 0 to 4 (exclusive), retention" in shown.metadata["kafka_backup/LOST"].value
    assert "lost: orders [0]: offsets 0 to 4" in failure(result)
    assert not [event for event in result.all_events if event.event_type_value == "STEP_RESTARTED"]


def snapshot_taken() -> GroupSnapshotTaken:
    return GroupSnapshotTaken(
        capture=CAPTURE, snapshot="s1", groups=3, positions=12, object_uri="file:///r/groups/s1", seconds=0.5
    )


def test_consumer_groups_are_an_asset(script: dict[str, object]) -> None:
    """Tests a capture that saves the positions of groups, as it goes well and as it does not.

    Topics without positions are half a backup: consumers would start anywhere.
    Could go wrong: the asset is green without a snapshot, or a group that failed makes nothing fail.
    """
    failed = GroupFailed(capture=CAPTURE, group="billing", error=UnreachableError("coordinator is away"))
    script["events"] = [snapshot_taken(), committed("orders"), finished()]
    shown = materialized(run(["orders"], groups=["*"]))["consumer_groups"]
    assert shown.metadata["kafka_backup/groups"].value == 3
    assert shown.metadata["dagster/row_count"].value == 12
    assert shown.tags["dagster/data_version"] == "s1"
    assert script["groups"] == ["*"]

    script["events"] = [snapshot_taken(), failed, committed("orders"), finished("partial")]
    result = run(["orders"], groups=["*"])
    assert set(materialized(result)) == {"orders"}
    assert "consumer group billing: coordinator is away" in failure(result)

    script["events"] = [committed("orders"), finished()]
    assert "no result: kafka_backup/default/consumer_groups" in failure(run(["orders"], groups=["*"]))


def test_topic_that_is_gone_for_good_is_no_failure(script: dict[str, object]) -> None:
    """Tests a topic whose absence was accepted, and one whose absence was not.

    Somebody deletes topics on purpose, somebody else by mistake.
    Could go wrong: an accepted absence fails for ever, or an accident is green.
    """
    script["events"] = [
        TopicMissing(capture=CAPTURE, topic="old", topic_id="B" * 22),
        committed("orders"),
        finished(),
    ]
    result = run(["old", "orders"])
    assert result.success
    shown = materialized(result)["old"].metadata
    assert "gone" in shown["kafka_backup/status"].value
    assert "kafka_backup/restore" not in shown

    script["events"] = [
        TopicFailed(capture=CAPTURE, topic="old", partition=None, error=TopicMissingError("old is gone")),
        committed("orders"),
        finished("partial"),
    ]
    result = run(["old", "orders"])
    assert set(materialized(result)) == {"orders"}
    assert "not saved: old is gone" in failure(result)


def test_what_a_capture_could_not_take_is_shown(script: dict[str, object]) -> None:
    """Tests a topic that was made again, one with an open transaction, one that was cut back.

    All three mean that a reader of the backup gets something else than he might think.
    Could go wrong: the run is green and says nothing.
    """
    cut = committed("c", start=5)
    script["events"] = [
        TopicRecreated(capture=CAPTURE, topic="a", topic_id="A" * 22, previous_topic_id="Z" * 22),
        TransactionOpen(
            capture=CAPTURE,
            topic="b",
            partition=2,
            producer_id=7,
            producer_epoch=0,
            first_offset=10,
            opened_at=1,
            held_back=40,
        ),
        committed("a"),
        committed("b"),
        replace(cut, partitions=(replace(cut.partitions[0], truncated=OffsetSpan(start=5, end=9)),)),
        finished("lossy"),
    ]
    result = run(["a", "b", "c"])
    shown = materialized(result)

    assert "Z" * 22 in shown["a"].metadata["kafka_backup/recreated"].value
    assert shown["b"].metadata["kafka_backup/held_back"].value == 40
    assert "c [0]: offsets 5 to 9 (exclusive), cut off" in shown["c"].metadata["kafka_backup/LOST"].value
    assert "lost: c [0]: offsets 5 to 9" in failure(result)


@pytest.mark.parametrize("status", ["partial", "lossy"])
def test_capture_that_calls_itself_incomplete_is_never_green(script: dict[str, object], status: str) -> None:
    """Tests a status without any event that explains it.

    Green means that everything is safe, and the engine has the last word.
    Could go wrong: a later engine tells of a new kind of failure that is not known here.
    """
    script["events"] = [committed("orders"), finished(status)]
    assert f"the capture is {status}" in failure(run(["orders"]))


def test_losses_are_red_words() -> None:
    """Tests the text of lost spans.

    Dagster drops colours from metadata; only removed lines of a diff are red.
    Could go wrong: the words are there, in the same black as everything else.
    """
    text = red_lines("4 offsets", ["orders [0]: offsets 0 to 4", "orders [1]: offsets 7 to 9"]).value

    assert text.startswith("**4 offsets**\n")
    assert "```diff\n- orders [0]: offsets 0 to 4\n- orders [1]: offsets 7 to 9\n```" in text


def test_recovery_point_is_a_number_to_plot(script: dict[str, object]) -> None:
    """Tests the seconds between a recovery point and the one before, for one topic and for patterns.

    That is what a disaster just before would have cost; people watch it over weeks.
    Could go wrong: milliseconds, the best instead of the worst topic, a zero where nothing is known.
    """
    script["events"] = [committed("orders"), committed("app_1"), committed("app_2"), finished()]
    script["points"] = {"orders": 400, "app_1": -1_000, "app_2": 900}
    key = "kafka_backup/recovery_point_seconds"

    shown = materialized(run(["orders", "app_*"]))
    assert shown["orders"].metadata[key].value == 0.6
    assert shown["matching_topics"].metadata[key].value == 2.0
    script["points"] = {}
    assert key not in materialized(run(["orders"]))["orders"].metadata


def test_hidden_resource_reads_the_environment_in_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests a hidden resource with an EnvVar: what Dagster stores of it, and what the run sees.

    Whoever may look at Dagster must not learn passwords, and not only those in EnvVar.
    Could go wrong: fields in the configuration schema, or an EnvVar that is never read.
    """
    hidden = KafkaBackupResource(
        bootstrap_servers="secret-host:1",
        properties={"client.id": dg.EnvVar("MY_CLIENT")},
        repository_url="file:///not/there",
    ).hidden()
    seen: list[str] = []

    @dg.op
    def mine(kafka_backup: KafkaBackupResource) -> None:
        seen.append(kafka_backup.engine_config().cluster.properties["client.id"])

    @dg.job(resource_defs={"kafka_backup": hidden})
    def own_job() -> None:
        mine()

    defs = dg.Definitions(jobs=[own_job])
    shown = dg.serialize_value(RepositorySnap.from_def(defs.get_repository_def()))
    monkeypatch.setenv("MY_CLIENT", "from-the-environment")
    own_job.execute_in_process(instance=dg.DagsterInstance.ephemeral())

    assert "secret-host" not in shown
    assert seen == ["from-the-environment"]


def test_s3_resource_says_how_to_reach_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests dagster_aws's S3Resource inside the resource: what the engine gets of it, and what the repository says itself.

    Whoever uses S3 in Dagster has one already, with the endpoint, the region and the keys.
    Could go wrong: a key is dropped, the variable's name is the password, certificates are not checked.
    """
    monkeypatch.setenv("MY_KEY", "from-the-environment")
    s3 = S3Resource(
        region_name="eu-central-1",
        endpoint_url="http://store:9000",
        aws_access_key_id="id",
        aws_secret_access_key=dg.EnvVar("MY_KEY"),
        aws_session_token="token",
    )
    resource = KafkaBackupResource(
        bootstrap_servers="a:1", repository_url="s3://b/p", repository_options={"region": "own"}, s3=s3
    )
    keys = {
        "endpoint": "http://store:9000",
        "access_key_id": "id",
        "secret_access_key": "from-the-environment",
        "session_token": "token",
        "allow_http": "true",
    }
    with resource.process_config_and_initialize_cm() as initialized:
        assert initialized.engine_config().repository.options == keys | {"region": "own"}

    def options(url: str = "s3://b/p", **fields: object) -> dict[str, str]:
        config = EngineConfig.model_validate(
            {"cluster": {"bootstrap_servers": "a:1"}, "repository": {"url": url}}
        )
        return with_s3(config, S3Resource(**fields)).repository.options

    assert options() == {}
    assert options(use_unsigned_session=True) == {"skip_signature": "true"}
    assert options(verify=False, endpoint_url="https://store") == {
        "endpoint": "https://store",
        "allow_invalid_certificates": "true",
    }
    with pytest.raises(ConfigurationError, match=r"s3\.profile_name"):
        options(profile_name="me")
    with pytest.raises(ConfigurationError, match="not in S3: file:///r"):
        options("file:///r")


def test_topic_without_result_fails(script: dict[str, object]) -> None:
    """Tests an asset whose topic the configuration excludes.

    Dagster lets a multi-asset end happily without having yielded what was asked for.
    Could go wrong: a run that saved nothing is green.
    """
    script["events"] = [committed("a"), finished()]
    result = run(["a", "b"], exclude=["b"])

    assert set(materialized(result)) == {"a"}
    assert "no result: kafka_backup/default/b" in failure(result)


@pytest.mark.parametrize(
    ("select", "include", "exclude"),
    [
        (["orders"], ["orders"], ["x"]),
        (["matching_topics"], ["app_*"], ["x", "orders", "app_1"]),
        (["app_1", "matching_topics"], ["app_1", "app_*"], ["x", "orders"]),
        (None, ["app_1", "app_*", "orders"], ["x"]),
    ],
)
def test_only_selected_topics_are_captured(
    script: dict[str, object], select: list[str] | None, include: list[str], exclude: list[str]
) -> None:
    """Tests which filters the engine gets for parts of the assets.

    A topic belongs to its own asset first; the patterns' asset takes the rest.
    Could go wrong: a topic is captured without its asset knowing, and its next run shows nothing new.
    """
    events = [committed(name) for name in ("orders", "app_1", "app_2")]
    script["events"] = [*events, finished()]
    result = run(["orders", "app_1", "app_*"], select=select, exclude=["x"])

    assert (script["topics"], script["exclude"]) == (include, exclude)
    assert set(materialized(result)) == set(select or ["orders", "app_1", "matching_topics"])
    if "matching_topics" in materialized(result):
        rows = materialized(result)["matching_topics"].metadata["kafka_backup/topics"].records
        assert [row.data["topic"] for row in rows] == ["app_2"]


def test_a_range_of_windows_is_one_capture_counted_once(script: dict[str, object]) -> None:
    """Tests three windows in one run.

    Every window is safe after it, but the records were saved once.
    Could go wrong: the plot of records shows three times too many, or the engine gets a wrong window.
    """
    script["events"] = [committed("orders"), finished()]
    result = run(
        ["orders"],
        partitions_def=dg.HourlyPartitionsDefinition(start_date="2026-01-01-00:00"),
        tags={
            "dagster/asset_partition_range_start": "2026-01-02-00:00",
            "dagster/asset_partition_range_end": "2026-01-02-02:00",
        },
    )
    shown = {event.partition: event.materialization for event in result.get_asset_materialization_events()}

    assert script["window"] == Window(start=1767312000000, end=1767322800000)
    assert [shown[key].metadata["dagster/partition_row_count"].value for key in sorted(shown)] == [0, 0, 10]
    for name, each in (("raw_bytes", 1_000_000), ("stored_bytes", 500), ("seconds", 2.0)):
        values = [shown[key].metadata[f"kafka_backup/{name}"].value for key in sorted(shown)]
        assert values == [0, 0, each]
    assert "2026-01-02-02:00" in shown["2026-01-02-00:00"].metadata["kafka_backup/status"].value
    assert shown["2026-01-02-02:00"].metadata["kafka_backup/status"].value == "committed"


def test_resource_needs_one_way_to_find_its_cluster() -> None:
    """Tests a resource with neither, half or both of its two forms.

    The mistake must show when the code loads.
    Could go wrong: a file's values and given fields are mixed, and a backup goes to the wrong place.
    """
    for fields in (
        {},
        {"bootstrap_servers": "b:9092"},
        {"config_path": "x.yaml", "bootstrap_servers": "b:9092"},
        {"config_path": "x.yaml", "repository_url": "memory://x"},
    ):
        with pytest.raises(ValidationError, match="config_path"):
            KafkaBackupResource(**fields)


def test_resource_holds_an_engine_configuration_completely() -> None:
    """Tests that a configuration survives the way through the resource's fields, literally.

    Somebody may hand over a configuration made in Python.
    Could go wrong: a setting is dropped, or a password with ${...} in it is filled in a second time.
    """
    config = EngineConfig.model_validate(
        {
            "cluster": {
                "bootstrap_servers": "a:1",
                "properties": {"sasl.password": "${x}"},
                "oauth_cb": "a:b",
                "retry_seconds": 3,
            },
            "target": {
                "bootstrap_servers": "b:2",
                "properties": {"client.id": "c"},
                "oauth_cb": "c:d",
                "retry_seconds": 4,
            },
            "repository": {"url": "s3://b/p", "options": {"region": "r"}},
            "backup": {
                "topics": ["a", "b*"],
                "exclude": ["bb"],
                "compression": "none",
                "segment_bytes": 1 << 20,
                "max_concurrent_partitions": 3,
            },
        }
    )

    assert KafkaBackupResource.from_config(config).engine_config() == config


def test_a_token_function_of_a_configuration_is_named_by_its_path() -> None:
    """Tests a configuration made in Python that holds a function, in a resource whose fields hold text.

    Tokens of a company's own come from such functions.
    Could go wrong: the function is dropped, and the run has no token.
    """
    cluster = ClusterConfig(bootstrap_servers="a:1", oauth_cb=json.dumps)
    config = EngineConfig(cluster=cluster, repository=RepositoryConfig(url="memory://x"))
    assert KafkaBackupResource.from_config(config).oauth_cb == "json:dumps"


def test_wrong_value_in_a_resource_is_named_without_showing_secrets() -> None:
    """Tests a value that only the engine's configuration can judge.

    The message goes to the event log, which many people can read.
    Could go wrong: pydantic prints the whole input, passwords included.
    """
    resource = KafkaBackupResource(
        bootstrap_servers="a:1",
        properties={"sasl.password": "hunter2"},
        repository_url="memory://x",
        max_concurrent_partitions=0,
    )
    with pytest.raises(ConfigurationError, match=r"backup\.max_concurrent_partitions") as caught:
        resource.engine_config()
    assert "hunter2" not in str(caught.value)


def test_secrets_are_read_from_the_environment_at_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests an EnvVar inside the properties, in a user's own op that opens the engine in three lines.

    Passwords must not be in code, nor in the configuration that Dagster stores.
    Could go wrong: the variable's name is used as the password.
    """
    seen: list[str] = []

    @dg.op
    def mine(kafka_backup: KafkaBackupResource) -> None:
        with kafka_backup.engine() as engine:
            seen.append(engine.config.cluster.properties["client.id"])

    @dg.job
    def own_job() -> None:
        mine()

    monkeypatch.setenv("MY_CLIENT", "from-the-environment")
    resource = KafkaBackupResource(
        bootstrap_servers="127.0.0.1:1",
        properties={"client.id": dg.EnvVar("MY_CLIENT")},
        repository_url="file:///not/there",
    )
    own_job.execute_in_process(resources={"kafka_backup": resource}, instance=dg.DagsterInstance.ephemeral())

    assert seen == ["from-the-environment"]


@pytest.mark.parametrize("as_file", [True, False])
def test_definitions_show_no_secret_and_contact_nobody(tmp_path: Path, as_file: bool) -> None:
    """Tests definitions from a file and from a configuration, with a password in both.

    Everything in a definition can be read in the Launchpad and in snapshots.
    Could go wrong: resource fields hold the password; loading hangs because a broker is away.
    """
    content = {
        "cluster": {"bootstrap_servers": "127.0.0.1:1", "properties": {"sasl.password": "hunter2"}},
        "repository": {"url": f"file://{tmp_path}/repository", "options": {}},
        "backup": {"topics": ["orders", "secret", "app_*"], "exclude": ["secret"]},
    }
    path = tmp_path / "kafka-backup.yaml"
    path.write_text(json.dumps(content))
    defs = build_definitions(path if as_file else parse_config(content, source="test"), cluster_name="prod")
    graph = defs.resolve_asset_graph()
    shown = dg.serialize_value(RepositorySnap.from_def(defs.get_repository_def()))

    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {
        "kafka/prod",
        "kafka/prod/orders",
        "kafka_backup/prod/orders",
        "kafka_backup/prod/matching_topics",
        "kafka_backup/prod/consumer_groups",
        "kafka_restored/prod/orders",
        "kafka_restore_drill/prod/restore_drill",
    }
    assert "hunter2" not in shown
    assert list(tmp_path.iterdir()) == [path]


def test_bare_checkout_loads_empty(tmp_path: Path) -> None:
    """Tests the module that `dagster dev` loads, in a folder without kafka-backup.yaml, and with a wrong name.

    The first thing a newcomer types must not be a stack trace; a mistyped file name must be an error.
    Could go wrong: the code location fails to load, or shows nothing although a file was named.
    """
    code = (
        "from kafka_backup_dagster.definitions import defs\n"
        "print(len(list(defs().resolve_asset_graph().get_all_asset_keys())))\n"
    )
    bare = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    named = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin", "KAFKA_BACKUP_CONFIG": "absent.yaml"},
    )

    assert (bare.returncode, bare.stdout.strip()) == (0, "0")
    assert "there is no kafka-backup.yaml" in bare.stderr
    assert named.returncode != 0
    assert "cannot read the configuration absent.yaml" in named.stderr


def test_loading_definitions_loads_no_engine(tmp_path: Path) -> None:
    """Tests which modules the definitions of a cluster pull in beyond Dagster, in a fresh process.

    Dagster loads code often, in several processes, to show a page; the engine's libraries cost a second.
    Could go wrong: one import at the top of a module makes each page slow, and nobody knows which.
    """
    config = tmp_path / "kafka-backup.yaml"
    config.write_text(
        "cluster: {bootstrap_servers: 'a:1'}\nrepository: {url: 's3://b/c'}\n"
        "backup: {topics: [orders, 'app_*'], exclude: [x]}\n"
    )
    code = (
        "import sys, dagster, dagster.components\n"
        "known = set(sys.modules)\n"
        "from kafka_backup_dagster import KafkaBackupComponent, build_definitions\n"
        f"build_definitions({str(config)!r}).get_repository_def()\n"
        "fresh = set(sys.modules) - known\n"
        "print(len(fresh), sorted({name.partition('.')[0] for name in fresh}))\n"
        "print(sorted(name for name in fresh if name.startswith('kafka_backup.')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    summary, ours = done.stdout.splitlines()

    heavy = {"confluent_kafka", "obstore", "kio", "zstandard", "cramjam", "lz4", "crc32c", "boto3", "rich"}
    assert not heavy & set(re.findall(r"'(\w+)'", summary)), summary
    # About 60 when this was written; a page that costs 0.3 s more has some hundred more.
    assert int(summary.split()[0]) < 120, done.stdout
    assert not {"kafka_backup.engine", "kafka_backup.kafka", "kafka_backup.backup"} & set(
        re.findall(r"'([\w.]+)'", ours)
    )


def test_interrupt_stops_the_work_and_goes_on() -> None:
    """Tests a call that is interrupted while it works in its thread.

    Terminate in the user interface raises in the main thread, and only in Python code.
    Could go wrong: the call goes on after the run was cancelled, or the interrupt is swallowed.
    """
    stopped = threading.Event()
    began = threading.Event()

    def work(stop: StopToken) -> None:
        began.set()
        with pytest.raises(CancelledError):
            stop.wait(60)
        stopped.set()

    def interrupt() -> None:
        if began.is_set():
            raise dg.DagsterExecutionInterruptedError

    with pytest.raises(dg.DagsterExecutionInterruptedError):
        run_interruptibly(work, on_slice=interrupt)
    assert stopped.is_set()


def test_results_and_errors_come_back_from_the_thread() -> None:
    """Tests that the waiting thread gets what the work returned or raised.

    The error decides whether Dagster retries.
    Could go wrong: an error dies with its thread, and the run hangs or is green.
    """
    assert run_interruptibly(lambda _stop: 42) == 42

    def fail(_stop: StopToken) -> None:
        raise DamagedError("batch 5")

    with pytest.raises(DamagedError, match="batch 5"):
        run_interruptibly(fail)
