"""What somebody sees who opens Dagster in a browser: a project from YAML, a backup, a bad day, a restore."""

import os
import re
import secrets
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Page, expect

from tests.support.browser import WATCHED, browser_page, pictures_folder
from tests.support.dagster_dev import DagsterServer, dagster_dev
from tests.support.groups import commit
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord, renumbered
from tests.support.topics import delete_topic, new_topic, produce, read_topic
from tests.support.waiting import wait_for

LAUNCHPAD = re.compile(r"/jobs/restore/playground")
"""From where a link leads, the page moves on by itself."""
EXAMPLE = Path(__file__).parents[2] / "examples" / "minimal"
LAUNCH = """
mutation($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  }
}"""
LAUNCH_AGAIN = """
mutation($params: ReexecutionParams!) {
  launchRunReexecution(reexecutionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  }
}"""
TERMINATE = """
mutation($id: String!) { terminateRun(runId: $id, terminatePolicy: SAFE_TERMINATE) { __typename } }"""
SAID = """
query($id: ID!) {
  logsForRun(runId: $id) { ... on EventConnection { events { ... on MessageEvent { message } } } }
}"""
RUN = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
RUNS = "{ runsOrError(limit: 20) { ... on Runs { results { id jobName status tags { key value } } } } }"
MATERIALIZATIONS = """
query($key: AssetKeyInput!) {
  assetOrError(assetKey: $key) {
    ... on Asset { assetMaterializations { partition runId metadataEntries { label ... on IntMetadataEntry { intValue } } } }
  }
}"""


@dataclass(frozen=True)
class Project:
    """A project under `dg dev`, with two components: a topic that is looked at, and one that is captured slowly."""

    dagster: DagsterServer
    pictures: Path
    topic: str
    slow_topic: str
    folder: Path

    def wait_for_run(self, run_id: str) -> str:
        """Waits for a run's end; returns its status."""

        def ended() -> str | None:
            status = str(self.dagster.query(RUN, id=run_id)["runOrError"]["status"])
            return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None

        return str(wait_for(ended, 180, f"run {run_id}", interval=0.3))

    def said(self, run_id: str) -> list[str]:
        """All messages of a run."""
        events = self.dagster.query(SAID, id=run_id)["logsForRun"]["events"]
        return [event["message"] for event in events if event.get("message")]

    def launch(self, job: str, tags: Mapping[str, str] | None = None) -> str:
        """Launches a job without a form; returns the run's id."""
        selector = {
            "repositoryName": "__repository__",
            "repositoryLocationName": "kafka_backups",
            "jobName": job,
        }
        metadata = {"tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]}
        params = {"selector": selector, "runConfigData": {}, "executionMetadata": metadata}
        launched = self.dagster.query(LAUNCH, params=params)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    def launch_slow(self) -> str:
        """Launches a backup of the second component, and waits until it is in the middle; returns the run's id."""
        known = set((self.folder / "slow").rglob("*.log*"))
        run_id = self.launch("slow_kafka_backup")
        wait_for(
            lambda: set((self.folder / "slow").rglob("*.log*")) - known,
            120,
            "its first segment",
            interval=0.1,
        )
        return run_id

    def materializations(self, cluster_name: str, topic: str) -> list[dict[str, Any]]:
        """Those of a topic's backup."""
        key = {"path": ["kafka_backup", cluster_name, topic]}
        return list(self.dagster.query(MATERIALIZATIONS, key=key)["assetOrError"]["assetMaterializations"])


@dataclass(frozen=True)
class Shown:
    """A browser on the project, and a way to keep what it shows."""

    project: Project
    page: Page

    def open(self, path: str) -> None:
        self.page.goto(f"{self.project.dagster.url}{path}")

    def take(self, name: str) -> None:
        """Keeps a picture; where somebody wants to look at them, of a page that has come to rest."""
        if WATCHED in os.environ:
            self.page.wait_for_timeout(1500)
        self.page.screenshot(path=self.project.pictures / f"{name}.png", animations="disabled")

    def launch(self) -> str:
        """Presses Launch Run, and waits for the run's page; returns the run's id."""
        self.page.get_by_role("button", name="Launch Run").click()
        self.page.wait_for_url("**/runs/**")
        return self.page.url.rpartition("/")[2].partition("?")[0]


def configure_slow(kafka: KafkaCluster, folder: Path, topic: str, **backup: object) -> None:
    """Writes the configuration of the second component, which each run reads again."""
    content = {
        "cluster": {"bootstrap_servers": kafka.bootstrap_servers},
        "repository": {"url": f"file://{folder}/slow"},
        "backup": {
            "topics": [topic],
            "consumer_groups": [],
            "segment_bytes": "1MiB",
            "compression": "none",
            **backup,
        },
    }
    path = folder / "project" / "src" / "kafka_backups" / "defs" / "slow" / "kafka-backup.yaml"
    path.write_text(yaml.safe_dump(content))


def importable(folder: Path) -> str:
    """A path for Python: this folder first."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


@pytest.fixture(scope="module")
def project(kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("e2e")
    topic, slow_topic = new_topic(kafka, 2, name=f"orders-{secrets.token_hex(3)}"), new_topic(kafka)
    for partition in range(2):
        produce(
            kafka.bootstrap_servers,
            topic,
            [NewRecord(b"order %d" % i, b"%d" % i, [], 1_700_000_000_000 + i) for i in range(50)],
            partition=partition,
        )
    commit(kafka.bootstrap_servers, f"billing-{topic}", {(topic, 0): 20})
    shutil.copytree(EXAMPLE, folder / "project")
    defs = folder / "project" / "src" / "kafka_backups" / "defs"
    content: dict[str, Any] = yaml.safe_load((defs / "backups" / "defs.yaml").read_text())
    content["attributes"] |= {
        "start_date": (datetime.now(UTC) - timedelta(days=1)).date().isoformat(),
        "cluster": {"bootstrap_servers": kafka.bootstrap_servers},
        "repository": {"url": f"file://{folder}/repository"},
        "backup": {"topics": [f"{topic}*"], "consumer_groups": ["billing-*"]},
        "automation": False,
    }
    (defs / "backups" / "defs.yaml").write_text(yaml.safe_dump(content))
    (defs / "slow").mkdir()
    slow = {
        "cluster_name": "slow",
        "config_file": "kafka-backup.yaml",
        "cron_schedule": "0 0 1 1 *",
        "automation": False,
    }
    (defs / "slow" / "defs.yaml").write_text(yaml.safe_dump({"type": content["type"], "attributes": slow}))
    pictures = pictures_folder(folder / "pictures")
    configure_slow(kafka, folder, slow_topic)
    with (folder / "project" / "dagster.yaml").open("a") as settings:
        # Runs start at once; the queue looks every five seconds only.
        settings.write(
            "run_coordinator: {module: dagster._core.run_coordinator, class: DefaultRunCoordinator}\n"
        )
    with dagster_dev(
        ["dg", "dev"],
        folder=folder / "project",
        environment={"PYTHONPATH": importable(folder / "project" / "src"), "PYTHONWARNINGS": "ignore"},
        output=folder / "dagster.log",
    ) as dagster:
        yield Project(dagster, pictures, topic, slow_topic, folder)


@pytest.fixture
def shown(project: Project) -> Iterator[Shown]:
    with browser_page(project.pictures) as page:
        shown = Shown(project, page)
        yield shown
        shown.take("9-end")


def test_from_a_yaml_file_to_a_restored_topic(kafka: KafkaCluster, shown: Shown) -> None:
    """Tests the whole way of somebody who knows only a YAML file and a browser.

    It is how the product is met, and how it is used on the bad day.
    Could go wrong: whatever no other test sees: pages, links, forms, processes, the daemon.
    """
    project, page, topic = shown.project, shown.page, shown.project.topic
    dagster = project.dagster
    expect.set_options(timeout=60_000)
    written = read_topic(kafka.bootstrap_servers, topic)
    backup = ["kafka_backup", "default", topic]

    # Three windows in one run, as a backfill starts them.
    windows = [(datetime.now(UTC) - timedelta(hours=ago)).strftime("%Y-%m-%d-%H:00") for ago in (3, 2, 1)]
    backed_up = project.launch(
        "kafka_backup",
        {
            "dagster/asset_partition_range_start": windows[0],
            "dagster/asset_partition_range_end": windows[-1],
        },
    )

    # The graph: the topic, its backup, what will be restored of it.
    shown.open("/asset-groups")
    for group in ("kafka_topics", "kafka_backup", "kafka_restored"):
        expect(page.get_by_text(group, exact=True).first).to_be_visible()
    shown.take("1-groups")
    shown.open(f"/assets/{'/'.join(backup)}?view=lineage")
    # In the title, and as topic, backup and restored topic.
    wait_for(lambda: page.get_by_text(topic, exact=True).count() >= 4, 60, "the lineage")
    shown.take("2-lineage")

    assert project.wait_for_run(backed_up) == "SUCCESS"
    saved = project.materializations("default", topic)
    assert {each["partition"] for each in saved} == set(windows)
    assert len(saved) == 3

    # The bad day.
    delete_topic(kafka, topic)

    # The asset's page, and its link into a form that is filled in.
    shown.open(f"/assets/{'/'.join(backup)}")
    link = page.get_by_text("Restore to this point", exact=True).first
    expect(link).to_be_visible()
    shown.take("3-asset")
    link.click()
    page.wait_for_url(LAUNCHPAD)
    editor = page.locator(".CodeMirror").first
    expect(editor).to_contain_text("dry_run")
    expect(editor).to_contain_text(topic)
    shown.take("4-launchpad")

    # Launched as it is, it changes nothing.
    assert project.wait_for_run(shown.launch()) == "SUCCESS"
    expect(page.get_by_text("dry run: nothing was changed").first).to_be_visible()
    shown.take("5-dry-run")
    assert f"restored-{topic}" not in kafka.admin().list_topics(timeout=20).topics

    # And then for real.
    page.go_back()
    page.wait_for_url(LAUNCHPAD)
    expect(editor).to_contain_text("dry_run")
    page.evaluate(
        """() => {
          const editor = document.querySelector('.CodeMirror').CodeMirror;
          editor.setValue(editor.getValue().replace('dry_run', 'execute'));
        }"""
    )
    assert project.wait_for_run(shown.launch()) == "SUCCESS"
    expect(page.get_by_text("verified").first).to_be_visible()
    shown.take("6-restored")
    restored = read_topic(kafka.bootstrap_servers, f"restored-{topic}")
    assert restored == {partition: renumbered(records) for partition, records in written.items()}

    # What was restored hangs below its backup, and a wrong form never becomes a run.
    shown.open(f"/assets/kafka_restored/default/{topic}")
    expect(page.get_by_text(f"restored-{topic}").first).to_be_visible()
    shown.take("7-restored-asset")
    runs = len(dagster.query(RUNS)["runsOrError"]["results"])
    shown.open("/locations/kafka_backups/jobs/restore/playground/setup?config=restore_id%3A%20x%2Fy")
    expect(editor).to_contain_text("x/y")
    page.get_by_role("button", name="Launch Run").click()
    expect(page.get_by_text("not an identifier").first).to_be_visible()
    shown.take("8-refused")
    assert len(dagster.query(RUNS)["runsOrError"]["results"]) == runs


def test_terminated_and_killed_runs_go_on(kafka: KafkaCluster, project: Project) -> None:
    """Tests Terminate and SIGKILL in the middle of a backup, in real run workers, and a re-execution.

    People press Terminate, and kernels kill; Dagster must notice, and the next run must go on.
    Could go wrong: a run stays green or for ever under way, what was stored is lost, or taken twice.
    """
    # 24 MB at 1 MB/s: whatever comes after the first segment comes in the middle.
    value = os.urandom(100_000)
    produce(kafka.bootstrap_servers, project.slow_topic, (NewRecord(value, None) for _ in range(240)))
    configure_slow(kafka, project.folder, project.slow_topic, max_bytes_per_second="1MB")

    terminated = project.launch_slow()
    assert project.dagster.query(TERMINATE, id=terminated)["terminateRun"]["__typename"] == (
        "TerminateRunSuccess"
    )
    assert project.wait_for_run(terminated) == "CANCELED"
    assert not list((project.folder / "slow").rglob("captures/*.json"))

    killed = project.launch_slow()
    (pid,) = {
        found for text in project.said(killed) for found in re.findall(r"in process \(pid: (\d+)\)", text)
    }
    os.kill(int(pid), signal.SIGKILL)
    assert project.wait_for_run(killed) == "FAILURE"
    assert not list((project.folder / "slow").rglob("captures/*.json"))

    configure_slow(kafka, project.folder, project.slow_topic)
    again = project.dagster.query(LAUNCH_AGAIN, params={"parentRunId": killed, "strategy": "ALL_STEPS"})
    assert again["launchRunReexecution"]["__typename"] == "LaunchRunSuccess", again
    assert project.wait_for_run(again["launchRunReexecution"]["run"]["runId"]) == "SUCCESS"
    (saved,) = project.materializations("slow", project.slow_topic)
    rows = {entry["label"]: entry.get("intValue") for entry in saved["metadataEntries"]}
    assert rows["dagster/row_count"] == 240
