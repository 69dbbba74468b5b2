import json
import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import dagster as dg
import pytest
import yaml
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.test_utils import instance_for_test
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._daemon.backfill import execute_backfill_iteration
from dagster_webserver.webserver import DagsterWebserver
from starlette.testclient import TestClient

from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import ends, new_topic, produce

WORKSPACE = Path(__file__).parents[2] / "workspace.yaml"
LAUNCH = """
mutation($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message causes { message } }
  }
}"""
LAUNCH_BACKFILL = """
mutation($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }
  }
}"""
SCHEMA = """
query($selector: PipelineSelector!) {
  runConfigSchemaOrError(selector: $selector) { ... on RunConfigSchema { rootDefaultYaml } }
}"""
IN_PROCESS = {
    "run_coordinator": {"module": "dagster._core.run_coordinator", "class": "DefaultRunCoordinator"},
    "run_launcher": {
        "module": "dagster._core.launcher.sync_in_memory_run_launcher",
        "class": "SyncInMemoryRunLauncher",
    },
}


class Webserver:
    """Dagster's webserver on this repository's workspace, without a port."""

    def __init__(self, process: WorkspaceProcessContext) -> None:
        self.instance = process.instance
        self._process = process
        self._client = TestClient(DagsterWebserver(process).create_asgi_app())

    def query(self, text: str, **variables: object) -> Mapping[str, object]:
        answer = self._client.post("/graphql", json={"query": text, "variables": variables}).json()
        assert "errors" not in answer, answer
        return answer["data"]

    def launch(
        self,
        job: str,
        config: object,
        *,
        assets: list[list[str]] | None = None,
        tags: dict[str, str] | None = None,
    ) -> Mapping[str, object]:
        selector: dict[str, object] = {
            "repositoryName": "__repository__",
            "repositoryLocationName": "kafka_backup",
            "jobName": job,
        }
        if assets:
            selector["assetSelection"] = [{"path": path} for path in assets]
        metadata = {"tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]}
        params = {"selector": selector, "runConfigData": config, "executionMetadata": metadata}
        return self.query(LAUNCH, params=params)["launchRun"]

    def backfill(self, assets: list[list[str]], windows: list[str]) -> list[dg.DagsterRun]:
        """Launches a backfill and does the daemon's part until it has succeeded; returns its runs."""
        params = {"assetSelection": [{"path": path} for path in assets], "partitionNames": windows}
        launched = self.query(LAUNCH_BACKFILL, params=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        backfill_id, log = launched["backfillId"], logging.getLogger("backfill")
        # One tick submits the runs, which are executed at once; the next ones find that they have ended.
        for _ in range(5):
            assert not [error for error in execute_backfill_iteration(self._process, log) if error]
            if self.instance.get_backfill(backfill_id).status == BulkActionStatus.COMPLETED_SUCCESS:
                break
        else:
            raise AssertionError(self.instance.get_backfill(backfill_id))
        return list(self.instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill_id})))

    def status(self, launched: Mapping[str, object]) -> dg.DagsterRunStatus:
        assert launched["__typename"] == "LaunchRunSuccess", launched
        run = self.instance.get_run_by_id(launched["run"]["runId"])
        assert run is not None
        return run.status


@pytest.fixture
def topic(kafka: KafkaCluster) -> str:
    name = new_topic(kafka)
    produce(kafka.bootstrap_servers, name, [NewRecord(b"x", None, [], None)] * 10)
    return name


@pytest.fixture
def webserver(
    kafka: KafkaCluster, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Webserver]:
    config = tmp_path / "kafka-backup.yaml"
    content = {
        "cluster": {"bootstrap_servers": kafka.bootstrap_servers, "properties": {"client.id": "${SECRET}"}},
        "repository": {"url": f"file://{tmp_path}/repository"},
        "backup": {"topics": [topic]},
    }
    config.write_text(json.dumps(content))
    monkeypatch.setenv("KAFKA_BACKUP_CONFIG", str(config))
    monkeypatch.setenv("SECRET", "hunter2")
    with (
        instance_for_test(overrides=IN_PROCESS) as instance,
        WorkspaceProcessContext(instance, WorkspaceFileTarget(paths=[str(WORKSPACE)])) as process,
    ):
        yield Webserver(process)


def test_from_the_asset_page_to_a_restored_topic(
    kafka: KafkaCluster, topic: str, webserver: Webserver
) -> None:
    """Tests a backup, its link, a refused form, and the linked form executed, as the user interface does it.

    This is the way of somebody who knows only the user interface; it crosses Dagster's process boundary.
    Could go wrong: the link names another location, a bad form makes a run, a secret shows in the Launchpad.
    """
    key = ["kafka_backup", "default", topic]
    partition = {"dagster/partition": "2026-01-02-03:00"}
    backup = webserver.launch("__ASSET_JOB", {}, assets=[key], tags=partition)
    assert webserver.status(backup) == dg.DagsterRunStatus.SUCCESS

    newest = webserver.instance.get_latest_materialization_event(dg.AssetKey(key))
    assert newest is not None and newest.asset_materialization is not None
    shown = newest.asset_materialization.metadata
    link = shown["kafka_backup/restore"].value.removeprefix("[Restore to this point](").removesuffix(")")
    form = yaml.safe_load(parse_qs(urlsplit(link).query)["config"][0])
    assert urlsplit(link).path == "/locations/kafka_backup/jobs/restore/playground/setup"

    refused = webserver.launch("restore", form | {"until_time": "yesterday"})
    assert refused["__typename"] == "PythonError"
    assert "until_time: not a time: 'yesterday'" in refused["causes"][0]["message"]
    assert [run.job_name for run in webserver.instance.get_runs()] == ["__ASSET_JOB"]

    restored = webserver.launch("restore", form | {"mode": "execute"})
    assert webserver.status(restored) == dg.DagsterRunStatus.SUCCESS
    assert ends(kafka.bootstrap_servers, f"restored-{topic}")[0] == (0, 10)

    selector = {
        "repositoryName": "__repository__",
        "repositoryLocationName": "kafka_backup",
        "pipelineName": "__ASSET_JOB",
    }
    assert "hunter2" not in str(webserver.query(SCHEMA, selector=selector))


def test_backfill_is_one_run_for_each_range_of_windows(topic: str, webserver: Webserver) -> None:
    """Tests a backfill of three windows in a row and of one apart, from the mutation of the page to the daemon's last tick.

    Somebody adds a year of old windows; by default a backfill is a run for each of them.
    Could go wrong: 8,760 runs, windows that stay grey, records that are counted in each window.
    """
    assets = [["kafka_backup", "default", name] for name in (topic, "consumer_groups")]
    windows = [(datetime.now(UTC) - timedelta(hours=ago)).strftime("%Y-%m-%d-%H:00") for ago in (9, 3, 2, 1)]
    runs = webserver.backfill(assets, windows)

    assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
    ranges = {
        tuple(run.tags[f"dagster/asset_partition_range_{end}"] for end in ("start", "end")) for run in runs
    }
    assert ranges == {(windows[0], windows[0]), (windows[1], windows[3])}
    assert len(runs) == 2
    for path in assets:
        assert webserver.instance.get_materialized_partitions(dg.AssetKey(path)) == set(windows)
    events = webserver.instance.fetch_materializations(dg.AssetKey(assets[0]), limit=10).records
    counted = [each.asset_materialization.metadata["dagster/partition_row_count"].value for each in events]
    assert sorted(counted) == [0, 0, 0, 10]
