"""The component: from YAML to definitions, as Dagster's own conformance tests and a user try it."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster.components.core.component_tree import ComponentTreeException
from dagster.components.testing.test_cases import TestOpCustomization, TestTranslation
from dagster.components.testing.utils import create_defs_folder_sandbox

from kafka_backup import UnreachableError
from kafka_backup.config import BackupConfig, ClusterConfig, RepositoryConfig
from kafka_backup_dagster import KafkaBackupComponent, KafkaBackupResource
from kafka_backup_dagster.components.models import (
    BackupSection,
    ClusterSection,
    LimitsSection,
    RepositorySection,
)

ATTRIBUTES: dict[str, Any] = {
    "start_date": "2026-11-24",
    "cluster": {"bootstrap_servers": "127.0.0.1:1"},
    "repository": {"url": "s3://backups/kafka", "options": {"region": "x", "skip_signature": True}},
    "backup": {"topics": ["orders"]},
}
ORDERS = dg.AssetKey(["kafka_backup", "default", "orders"])


@contextmanager
def loaded(
    component: type = KafkaBackupComponent, state: Mapping[str, object] | None = None, **attributes: object
) -> Iterator[tuple[KafkaBackupComponent, dg.Definitions]]:
    """A component as `dg` loads it from a file, with a state as a refresh would have left it."""
    contents = {
        "type": f"{component.__module__}.{component.__qualname__}",
        "attributes": {key: value for key, value in (ATTRIBUTES | attributes).items() if value is not None},
    }
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.scaffold_component(component_cls=component, defs_yaml_contents=contents)
        with sandbox.build_component_tree() as tree:
            made = tree.load_component(folder)
            assert isinstance(made, KafkaBackupComponent)
            if state is not None:
                from dagster.components.utils.project_paths import get_local_state_path

                path = get_local_state_path(made.defs_state_config.key, sandbox.project_root)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(state))
            yield made, tree.build_defs(folder)


def refusal(**attributes: Any) -> str:
    """Everything that a user reads of why a component does not load."""
    with pytest.raises(ComponentTreeException) as caught, loaded(**attributes) as _:
        pass
    lines: list[str] = []
    error: BaseException | None = caught.value
    while error is not None:
        lines.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(lines)


def keys(defs: dg.Definitions) -> set[str]:
    return {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}


class TestKafkaBackupTranslation(TestTranslation):
    def test_translation(
        self,
        attributes: dict[str, Any],
        assertion: Callable[[dg.AssetSpec], bool],
        key_modifier: Callable[[dg.AssetKey], dg.AssetKey] | None,
    ) -> None:
        """Tests every attribute of an asset that a component's YAML may change: Dagster's own cases.

        Someone who knows one integration should know all of them.
        Could go wrong: an attribute is ignored without a word.
        """
        with loaded(translation=attributes) as (_, defs):
            key = key_modifier(ORDERS) if key_modifier else ORDERS
            assert assertion(defs.resolve_assets_def(key).get_asset_spec(key))


class TestKafkaBackupOp(TestOpCustomization):
    def test_op(self, attributes: dict[str, Any], assertion: Callable[[Any], bool]) -> None:
        """Tests name, tags and backfill policy of the step: Dagster's own cases.

        Limits on concurrent runs hang on them.
        Could go wrong: they are read and then dropped.
        """
        with loaded(op=attributes) as (component, defs):
            assert assertion(component.op)
            backups = defs.resolve_assets_def(ORDERS)
            if "backfill_policy" not in attributes:
                assert assertion(backups.op)
            assert backups.backfill_policy == dg.BackfillPolicy.single_run()


def test_yaml_alone_makes_everything_for_a_cluster() -> None:
    """Tests what one file becomes: assets, checks, jobs, the schedule and sensors, named after the cluster.

    Someone who never wrote Python should get scheduled backups from one YAML file.
    Could go wrong: something needs Python after all, or two clusters in one project collide.
    """
    with loaded(cluster_name="prod-1", backup={"topics": ["orders", "app_*"]}) as (_, defs):
        assert {key for key in keys(defs) if key.startswith("kafka_backup")} == {
            "kafka_backup/prod-1/orders",
            "kafka_backup/prod-1/matching_topics",
            "kafka_backup/prod-1/consumer_groups",
        }
        backups = defs.resolve_assets_def(dg.AssetKey(["kafka_backup", "prod-1", "orders"]))
        jobs = {job.name for job in defs.resolve_all_job_defs()}
        schedule = defs.resolve_schedule_def("prod_1_kafka_backup_schedule")

        assert backups.specs_by_key[dg.AssetKey(["kafka_backup", "prod-1", "orders"])].kinds == {
            "kafka",
            "s3",
        }
        assert backups.partitions_def == dg.HourlyPartitionsDefinition(start_date="2026-11-24-00:00")
        assert {"prod_1_kafka_backup", "prod_1_restore", "prod_1_verify", "prod_1_restore_drill"} <= jobs
        assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    with loaded(automation=False) as (_, defs):
        schedule = defs.resolve_schedule_def("kafka_backup_schedule")
        assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED


def test_topics_that_were_found_have_assets_of_their_own() -> None:
    """Tests a state with topics, without one, and with discovery switched off.

    Loading must not ask a broker, and a topic that came after the state must be captured all the same.
    Could go wrong: the patterns are gone once there is a state; an excluded topic comes back by it.
    """
    backup = {"topics": ["orders", "app_*"], "exclude": ["app_secret"]}
    state = {"version": 1, "topics": ["app_1", "app_2", "app_secret"]}
    common = {"kafka_backup/default/orders", "kafka_backup/default/matching_topics"}
    found = {"kafka_backup/default/app_1", "kafka_backup/default/app_2"}

    def topics(defs: dg.Definitions) -> set[str]:
        groups = "kafka_backup/default/consumer_groups"
        return {key for key in keys(defs) if key.startswith("kafka_backup/")} - {groups}

    with loaded(backup=backup, state=state) as (_, defs):
        assert topics(defs) == common | found
        rest = defs.resolve_assets_def(dg.AssetKey(["kafka_backup", "default", "matching_topics"]))
        (metadata,) = [spec.metadata for spec in rest.specs if spec.key.path[-1] == "matching_topics"]
        assert metadata["kafka_backup/exclude"] == ["orders", "app_1", "app_2"]
    with loaded(backup=backup) as (_, defs):
        assert topics(defs) == common
    with loaded(backup=backup, state=state, discover_topics=False) as (_, defs):
        assert topics(defs) == common
    assert "dg utils refresh-defs-state" in refusal(backup=backup, state={"version": 0, "topics": []})


def test_state_of_listed_topics_asks_nobody(tmp_path: Path) -> None:
    """Tests the refresh of a component whose topics are all named, with brokers that do not exist.

    `dg dev` refreshes at each start; a laptop without a network must still show the assets.
    Could go wrong: it hangs until the brokers are given up.
    """
    with loaded() as (component, _):
        component.write_state_to_path(tmp_path / "state")
    assert json.loads((tmp_path / "state").read_text()) == {"version": 1, "topics": []}


def test_unreachable_cluster_hides_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests the refresh of patterns without a broker: while definitions load, and on its own.

    On the day when the cluster is gone, the restore must be there; but no image is built on a guess.
    Could go wrong: the code location does not load, or `dg utils refresh-defs-state` succeeds with nothing.
    """
    cluster = {"bootstrap_servers": "127.0.0.1:1", "retry_seconds": 0.5}
    with loaded(backup={"topics": ["app_*"]}, cluster=cluster) as (component, _):
        fresh = component.model_copy()
        fresh._is_loading = False
        with pytest.raises(UnreachableError):
            fresh.write_state_to_path(tmp_path / "state")
    monkeypatch.setenv("DAGSTER_IS_DEV_CLI", "1")
    with loaded(backup={"topics": ["app_*"]}, cluster=cluster) as (_, defs):
        assert "kafka_backup/default/matching_topics" in keys(defs)


def test_secrets_are_read_in_the_run_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests a password from the environment: not needed to load, in no snapshot, and there in the run.

    The Launchpad and the snapshots are open to everybody who may look at Dagster.
    Could go wrong: Dagster's own {{ env.X }} in a resource's configuration, or an empty password.
    """
    cluster = {"bootstrap_servers": "127.0.0.1:1", "properties": {"sasl.password": "${MY_PASSWORD}"}}
    monkeypatch.delenv("MY_PASSWORD", raising=False)
    with loaded(cluster=cluster) as (component, defs):
        shown = dg.serialize_value(RepositorySnap.from_def(defs.get_repository_def()))
        monkeypatch.setenv("MY_PASSWORD", "hunter2")
        resource = component.kafka_backup_resource()
        assert resource.engine_config().cluster.properties == {"sasl.password": "hunter2"}
    with loaded(cluster=cluster | {"properties": {"sasl.password": "{{ env.MY_PASSWORD }}"}}) as (_, defs):
        shown += dg.serialize_value(RepositorySnap.from_def(defs.get_repository_def()))
        config = defs.resolve_job_def("restore").run_config_schema.config_type
        shown += json.dumps(dg.serialize_value(str(config)))
    assert "hunter2" not in shown
    assert "127.0.0.1:1" not in shown


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"start_date": None}, "say once when"),
        ({"cron_schedule": "@hourly"}, "say once when"),
        ({"start_date": "24.11."}, "is not a day"),
        ({"cluster": None}, "config_file"),
        ({"config_file": "kafka-backup.yaml"}, "not both"),
        ({"backup": {"topics": ["/(/"]}}, "topics"),
        ({"backup": {"topic": ["orders"]}}, "topic"),
        ({"clustr": {}}, "clustr"),
        (
            {
                "start_date": None,
                "partitions_def": {
                    "type": "time_window",
                    "start_date": "2026-11-24T00:00",
                    "cron_schedule": "* * * * *",
                    "fmt": "%Y-%m-%dT%H:%M",
                },
            },
            "shorter than 5 minutes",
        ),
    ],
)
def test_wrong_yaml_is_refused_with_the_reason(attributes: dict[str, object], message: str) -> None:
    """Tests files that cannot be meant: a missing or doubled choice, a bad value, an unknown key.

    The file is all that many people will ever see of this project.
    Could go wrong: a stack trace about something else, or a guess.
    """
    assert message in refusal(**attributes)


def test_configuration_file_stands_in_for_the_sections(tmp_path: Path) -> None:
    """Tests a kafka-backup.yaml beside the component: the one that the command line uses.

    On a bad day without Dagster, the configuration should be there already.
    Could go wrong: the path is taken from wherever Dagster was started.
    """
    attributes = {"start_date": "2026-11-24", "config_file": "kafka-backup.yaml"}
    contents = {"type": "kafka_backup_dagster.KafkaBackupComponent", "attributes": attributes}
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.scaffold_component(component_cls=KafkaBackupComponent, defs_yaml_contents=contents)
        (folder / "kafka-backup.yaml").write_text(
            yaml.safe_dump({key: ATTRIBUTES[key] for key in ("cluster", "repository", "backup")})
        )
        with sandbox.load_component_and_build_defs(folder) as (component, defs):
            assert ORDERS.to_user_string() in keys(defs)
            assert isinstance(component, KafkaBackupComponent)
            assert component.kafka_backup_resource().repository_url == "s3://backups/kafka"


def test_scaffolded_file_loads_as_it_is() -> None:
    """Tests what `dg scaffold defs` writes, with and without options.

    It is the first thing that a new user sees; it must work and explain itself.
    Could go wrong: a file that does not load, or in which there is no window yet to be materialized.
    """
    with create_defs_folder_sandbox() as sandbox:
        plain = sandbox.scaffold_component(component_cls=KafkaBackupComponent, defs_path="plain")
        with sandbox.load_component_and_build_defs(plain) as (_, defs):
            assert "kafka_backup/default/matching_topics" in keys(defs)
            backups = defs.resolve_assets_def(dg.AssetKey(["kafka_backup", "default", "matching_topics"]))
            assert backups.partitions_def is not None
            assert 24 <= len(backups.partitions_def.get_partition_keys()) <= 48
        text = (plain / "defs.yaml").read_text()
        assert "# " in text
    with create_defs_folder_sandbox() as sandbox:
        full = sandbox.scaffold_component(
            component_cls=KafkaBackupComponent,
            defs_path="full",
            scaffold_params={
                "cluster_name": "prod",
                "bootstrap_servers": "kafka:9092",
                "repository_url": "s3://b/k",
                "topics": "orders, app_*",
            },
        )
        content = yaml.safe_load((full / "defs.yaml").read_text())["attributes"]
        assert content["backup"]["topics"] == ["orders", "app_*"]
        assert content["cluster"]["bootstrap_servers"] == "kafka:9092"


def test_python_and_yaml_know_every_setting_of_the_engine() -> None:
    """Tests that component and resource have a field for each setting of the engine's configuration.

    The engine learns new settings; here they would be missing without anybody noticing.
    Could go wrong: exactly that.
    """
    assert set(ClusterSection.model_fields) == set(ClusterConfig.model_fields)
    assert set(RepositorySection.model_fields) == set(RepositoryConfig.model_fields)
    assert set(BackupSection.model_fields) == set(BackupConfig.model_fields)
    resource = set(KafkaBackupResource.model_fields)
    assert set(BackupConfig.model_fields) <= resource
    assert set(ClusterConfig.model_fields) <= resource
    assert {f"target_{name}" for name in ClusterConfig.model_fields} <= resource


def test_schema_explains_each_attribute() -> None:
    """Tests the JSON schema that editors and `dg` show.

    Somebody fills in the YAML with nothing but completion.
    Could go wrong: a bare list of names.
    """
    model = KafkaBackupComponent.model()
    schema = model.model_json_schema()
    undescribed = [
        name
        for name, attribute in schema["properties"].items()
        if "description" not in attribute and name not in ("defs_state", "translation")
    ]
    assert undescribed == []
    for section in (ClusterSection, RepositorySection, BackupSection, LimitsSection):
        for name, attribute in section.model().model_json_schema()["properties"].items():
            assert "description" in attribute, name


class Mine(KafkaBackupComponent):
    """A subclass as users write it."""

    def get_asset_spec(self, data: Any) -> dg.AssetSpec:
        return super().get_asset_spec(data).replace_attributes(group_name="mine")

    def execute(
        self, context: dg.AssetExecutionContext, kafka_backup: KafkaBackupResource
    ) -> Iterator[dg.MaterializeResult[None]]:
        context.log.info("before")
        for key in context.selected_asset_keys:
            yield dg.MaterializeResult(asset_key=key, metadata={"mine": kafka_backup.repository_url or ""})


def test_subclass_changes_specs_and_the_run() -> None:
    """Tests a subclass that overrides both hooks.

    What YAML cannot say, ten lines of Python can.
    Could go wrong: a hook that is never called.
    """
    with loaded(Mine) as (_, defs):
        assert defs.resolve_assets_def(ORDERS).specs_by_key[ORDERS].group_name == "mine"
        result = defs.resolve_job_def("kafka_backup").execute_in_process(
            partition_key="2026-11-24-00:00",
            instance=dg.DagsterInstance.ephemeral(),
        )
        events = {event.asset_key: event for event in result.get_asset_materialization_events()}
        assert events[ORDERS].materialization.metadata["mine"].value == "s3://backups/kafka"
