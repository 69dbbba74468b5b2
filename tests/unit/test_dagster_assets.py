from collections.abc import Iterator

import dagster as dg
import pytest

from kafka_backup_dagster import (
    KafkaBackupResource,
    KafkaBackupTranslator,
    KafkaBackupTranslatorData,
    build_kafka_backup_asset_specs,
    build_kafka_backup_assets,
    build_kafka_restored_specs,
    build_kafka_topic_specs,
    hourly_windows,
    kafka_backup_assets,
)


def paths(specs: object) -> list[str]:
    return [spec.key.to_user_string() for spec in specs]


def test_each_exact_name_is_an_asset_and_all_patterns_are_one() -> None:
    """Tests which assets a list of filters becomes, in which order.

    Without contacting a broker nobody knows what a pattern matches, so it cannot be one asset per topic.
    Could go wrong: a pattern taken for a name, a name lost, a duplicate made twice.
    """
    specs = build_kafka_backup_asset_specs(
        ["orders", "app_*", "payments", "/^events\\./", "orders"], cluster_name="prod", storage_kind="s3"
    )

    assert paths(specs) == [
        "kafka_backup/prod/orders",
        "kafka_backup/prod/payments",
        "kafka_backup/prod/matching_topics",
        "kafka_backup/prod/consumer_groups",
    ]
    assert specs[0].kinds == {"kafka", "s3"}
    assert [dep.asset_key.to_user_string() for dep in specs[0].deps] == ["kafka/prod/orders"]
    assert specs[2].metadata["kafka_backup/topics"] == ["app_*", "/^events\\./"]
    assert specs[2].metadata["kafka_backup/exclude"] == ["orders", "payments"]
    assert list(specs[2].deps) == []
    assert specs[3].metadata["kafka_backup/consumer_groups"] == ["*"]
    assert "kafka_backup/topics" not in specs[3].metadata


def test_source_topics_are_external_assets_of_the_exact_names() -> None:
    """Tests the assets upstream of the backups.

    Lineage in the user interface begins at the topic itself.
    Could go wrong: the keys differ from those that the backups depend on, so the graph falls apart.
    """
    sources = build_kafka_topic_specs(["a.b", "x*"], cluster_name="prod")
    (backup, *_) = build_kafka_backup_asset_specs(["a.b", "x*"], cluster_name="prod")

    assert [spec.key for spec in sources] == [dep.asset_key for dep in backup.deps]


@pytest.mark.parametrize("topics", [[], ["a b"], ["/(/"], ["."]])
def test_wrong_topics_are_refused_at_definition(topics: list[str]) -> None:
    """Tests an empty list and malformed filters.

    A mistake must show when the code loads, not in the first night's run.
    Could go wrong: an empty selection that backs up nothing and is green.
    """
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="topic"):
        build_kafka_backup_asset_specs(topics)


def test_topics_whose_names_differ_only_in_punctuation_live_together() -> None:
    """Tests a.b, a-b and a_b in one multi-asset, with their own sources, and a part of it.

    Kafka allows all three; Dagster's own output names are equal for them and break with a KeyError.
    Could go wrong: one shadows another, and its topic is never saved.
    """

    @kafka_backup_assets(topics=["a.b", "a-b", "a_b"], consumer_groups=[], partitions_def=None)
    def backups(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        for key in sorted(context.selected_asset_keys):
            yield dg.MaterializeResult(asset_key=key)

    assert {spec.key.path[-1]: [dep.asset_key.path[-1] for dep in spec.deps] for spec in backups.specs} == {
        "a.b": ["a.b"],
        "a-b": ["a-b"],
        "a_b": ["a_b"],
    }
    wanted = dg.AssetKey(["kafka_backup", "default", "a-b"])
    result = dg.materialize([backups], selection=[wanted], instance=dg.DagsterInstance.ephemeral())
    assert [event.asset_key for event in result.get_asset_materialization_events()] == [wanted]


def test_two_topics_that_map_to_one_asset_are_refused() -> None:
    """Tests a translator that gives two topics one key, and a topic called like the patterns' asset.

    Two topics behind one asset would hide the failure of one behind the success of the other.
    Could go wrong: Dagster keeps the last spec silently.
    """

    class Lowercase(KafkaBackupTranslator):
        def get_asset_spec(self, data: KafkaBackupTranslatorData) -> dg.AssetSpec:
            spec = super().get_asset_spec(data)
            return spec.replace_attributes(key=[part.lower() for part in spec.key.path])

    with pytest.raises(
        dg.DagsterInvalidDefinitionError,
        match=r"topic Orders and of the topic orders.*kafka_backup/default/orders",
    ):
        build_kafka_backup_asset_specs(["Orders", "orders"], kafka_backup_translator=Lowercase())
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="matching_topics"):
        build_kafka_backup_asset_specs(["matching_topics", "*"])
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="consumer_groups"):
        build_kafka_backup_asset_specs(["consumer_groups"])
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="filter"):
        build_kafka_backup_asset_specs(["orders"], consumer_groups=["/(/"])


def test_translator_changes_everything_but_the_topics_behind_an_asset() -> None:
    """Tests a translator that replaces key, group, tags, deps and all metadata.

    It is the one place to fit the assets into somebody's own graph.
    Could go wrong: the metadata that says which topics to capture is lost, and runs fail.
    """

    class Mine(KafkaBackupTranslator):
        def get_asset_spec(self, data: KafkaBackupTranslatorData) -> dg.AssetSpec:
            return (
                super()
                .get_asset_spec(data)
                .replace_attributes(
                    key=["safe", data.topic or data.content],
                    group_name="mine",
                    tags={"team": "data"},
                    metadata={"note": "x"},
                    deps=["upstream"],
                )
            )

    @kafka_backup_assets(topics=["orders", "x*"], kafka_backup_translator=Mine())
    def backups(): ...

    spec = backups.specs_by_key[dg.AssetKey(["safe", "orders"])]
    assert spec.group_name == "mine"
    assert spec.tags["team"] == "data"
    assert spec.metadata["note"] == "x"
    assert spec.metadata["kafka_backup/topics"] == ["orders"]
    assert [dep.asset_key for dep in spec.deps] == [dg.AssetKey("upstream")]


def test_windows_are_hourly_and_one_run_takes_a_whole_range() -> None:
    """Tests the default partitions, their absence, and the backfill policy that goes with them.

    A capture always runs to the end, so many runs for many windows would be pure overhead.
    Could go wrong: a backfill of a year starts 8,760 runs.
    """

    @kafka_backup_assets(topics=["orders", "payments"])
    def hourly(): ...

    @kafka_backup_assets(topics=["orders"], partitions_def=None, group_name="g")
    def plain(): ...

    assert isinstance(hourly.partitions_def, dg.TimeWindowPartitionsDefinition)
    assert hourly.partitions_def.get_cron_schedule() == "0 * * * *"
    assert hourly.backfill_policy == dg.BackfillPolicy.single_run()
    assert hourly.can_subset
    assert plain.partitions_def is None
    assert {spec.group_name for spec in plain.specs} == {"g"}


@pytest.mark.parametrize(
    ("cron", "refused"), [("* * * * *", True), ("0,2 * * * *", True), ("*/5 * * * *", False)]
)
def test_windows_shorter_than_five_minutes_are_refused(cron: str, refused: bool) -> None:
    """Tests the shortest window, for regular and irregular schedules.

    Minutely windows make half a million partitions a year, and runs that start slower than they come.
    Could go wrong: only the first window is looked at, and an irregular schedule slips through.
    """
    windows = dg.TimeWindowPartitionsDefinition(
        cron_schedule=cron, fmt="%Y-%m-%dT%H:%M", start="2026-01-01T00:00"
    )
    if refused:
        with pytest.raises(dg.DagsterInvalidDefinitionError, match="5 minutes"):
            kafka_backup_assets(topics=["orders"], partitions_def=windows)
    else:
        kafka_backup_assets(topics=["orders"], partitions_def=windows)


def test_windows_of_another_kind_come_from_the_translator() -> None:
    """Tests a translator that chooses the partitions, once for all assets, once for one of them only.

    Everything about an asset is the translator's to say; but one capture has one window.
    Could go wrong: its choice is dropped silently, or two assets of one run disagree about the window.
    """

    class Daily(KafkaBackupTranslator):
        def __init__(self, only: str | None) -> None:
            self.only = only

        def get_asset_spec(self, data: KafkaBackupTranslatorData) -> dg.AssetSpec:
            spec = super().get_asset_spec(data)
            start = "2026-01-02" if data.topic and data.topic == self.only else "2026-01-01"
            return spec.replace_attributes(partitions_def=dg.DailyPartitionsDefinition(start_date=start))

    @kafka_backup_assets(topics=["a", "b"], kafka_backup_translator=Daily(None))
    def daily(): ...

    assert isinstance(daily.partitions_def, dg.DailyPartitionsDefinition)
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="share their windows"):
        kafka_backup_assets(topics=["a", "b"], kafka_backup_translator=Daily("b"))


def test_windows_begin_on_the_day_of_the_first_backup() -> None:
    """Tests windows from a day on, and days that are none.

    A newcomer should see the windows since the first backup, not thousands of empty ones.
    Could go wrong: a day written in another way is read as something else.
    """
    first = hourly_windows("2026-11-24").get_first_partition_window()

    assert first is not None
    assert first.start.isoformat() == "2026-11-24T00:00:00+00:00"
    for wrong in ("24.11.2026", "2026-13-01", "2026-11-24-05:00", "yesterday"):
        with pytest.raises(dg.DagsterInvalidDefinitionError, match="is not a day"):
            hourly_windows(wrong)


def test_many_topics_become_several_multi_assets() -> None:
    """Tests 250 topics and a pattern, in shards and in one multi-asset.

    Dagster's own time for a run grows with the square of the assets in an op: 2 minutes for 2,000.
    Could go wrong: a topic in no shard or in two, a shard without partitions, two ops of one name.
    """
    topics = [f"topic-{number}" for number in range(250)]
    shards = build_kafka_backup_assets(topics=[*topics, "app_*"])

    assert [len(list(shard.specs)) for shard in shards] == [83, 83, 86]
    assert [key.path[-1] for shard in shards for key in shard.keys_by_output_name.values()] == [
        *topics,
        "matching_topics",
        "consumer_groups",
    ]
    assert {shard.node_def.name for shard in shards} == {"kafka_backup_1", "kafka_backup_2", "kafka_backup_3"}
    assert {shard.partitions_def for shard in shards} == {shards[0].partitions_def}
    assert all(shard.backfill_policy == dg.BackfillPolicy.single_run() for shard in shards)
    dg.Definitions(
        assets=shards, resources={"kafka_backup": KafkaBackupResource(config_path="absent.yaml")}
    ).resolve_asset_graph()
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="build_kafka_backup_assets"):
        kafka_backup_assets(topics=topics)


def test_few_topics_stay_one_multi_asset() -> None:
    """Tests the most that one shard holds, with and without a pattern.

    One shard is one capture: one snapshot of all topics at one instant.
    Could go wrong: an empty shard, or the op of a small cluster suddenly has a number.
    """
    topics = [f"topic-{number}" for number in range(100)]

    (shard,) = build_kafka_backup_assets(topics=topics, name="prod")
    assert shard.node_def.name == "prod"
    assert len(build_kafka_backup_assets(topics=[*topics, "*"])) == 1
    assert len(build_kafka_backup_assets(topics=[*topics, "topic-100"])) == 2
    assert len(build_kafka_backup_assets(topics=["*"])) == 1
    kafka_backup_assets(topics=[*topics, "*"])


def test_restored_topics_are_below_their_backups() -> None:
    """Tests the external assets of restores, for a translator that renames the backups.

    Lineage must go on to what was restored: source topic, backup, restored topic.
    Could go wrong: the restore hangs in the air because somebody's backups have other keys.
    """

    class Mine(KafkaBackupTranslator):
        def get_asset_spec(self, data: KafkaBackupTranslatorData) -> dg.AssetSpec:
            spec = super().get_asset_spec(data)
            return spec.replace_attributes(key=["safe", data.topic or data.content])

    backups = build_kafka_backup_asset_specs(["orders", "x*"], kafka_backup_translator=Mine())
    (restored,) = build_kafka_restored_specs(backups, cluster_name="prod", group_name="restored")

    assert restored.key == dg.AssetKey(["kafka_restored", "prod", "orders"])
    assert [dep.asset_key for dep in restored.deps] == [dg.AssetKey(["safe", "orders"])]
    assert restored.group_name == "restored"


def test_run_refuses_assets_that_do_not_say_their_topics() -> None:
    """Tests KafkaBackupResource.run in somebody's own multi-asset without our specs.

    It must not guess which topics are meant.
    Could go wrong: an asset that is green without a capture.
    """

    @dg.multi_asset(specs=[dg.AssetSpec("orders")])
    def own(
        context: dg.AssetExecutionContext, kafka_backup: KafkaBackupResource
    ) -> Iterator[dg.MaterializeResult[None]]:
        yield from kafka_backup.run(context)

    with pytest.raises(dg.DagsterInvariantViolationError, match="does not say which topics"):
        dg.materialize(
            [own],
            resources={
                "kafka_backup": KafkaBackupResource(
                    bootstrap_servers="127.0.0.1:1", repository_url="memory://none"
                )
            },
            instance=dg.DagsterInstance.ephemeral(),
        )
