"""The jobs that move consumer groups, in process on a real broker."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import dagster as dg
import pytest
import yaml

from kafka_backup.errors import UnreachableError
from kafka_backup.position_mover import PositionMover
from kafka_backup_dagster import build_definitions
from tests.support.engine import engine_config
from tests.support.groups import commit, filled_topic, positions, reading, states
from tests.support.kafka_cluster import KafkaCluster


class Jobs:
    """The jobs of one configuration, with an instance of their own."""

    def __init__(
        self, kafka: KafkaCluster, folder: Path, topics: Sequence[str], groups: Sequence[str]
    ) -> None:
        config = engine_config(
            kafka, folder / "repository", topics=list(topics), consumer_groups=list(groups)
        )
        self.defs = build_definitions(config, partitions_def=None)
        self.instance = dg.DagsterInstance.ephemeral()

    def backup(self) -> dict[str, dg.MetadataValue]:
        """Backs up; returns what the snapshot of the groups shows."""
        done = self.defs.resolve_implicit_global_asset_job_def().execute_in_process(instance=self.instance)
        (found,) = [
            event.materialization.metadata
            for event in done.get_asset_materialization_events()
            if event.asset_key is not None and event.asset_key.path[-1] == "consumer_groups"
        ]
        return dict(found)

    def run(self, job: str, **form: object) -> dict[str, dg.MetadataValue]:
        """Launches a job that must succeed; returns what it shows."""
        done = self.defs.resolve_job_def(job).execute_in_process(run_config=form, instance=self.instance)
        (event,) = [event for event in done.all_events if event.is_successful_output]
        return dict(event.step_output_data.metadata)

    def failure(self, job: str, **form: object) -> str:
        """Launches a job that must fail; returns the sentence of its failure."""
        done = self.defs.resolve_job_def(job).execute_in_process(
            run_config=form, instance=self.instance, raise_on_error=False
        )
        (event,) = [event for event in done.all_events if event.is_step_failure]
        return str(event.step_failure_data.user_failure_data.description)


def linked(value: dg.MetadataValue) -> tuple[str, dict[str, object]]:
    """The job that a link opens, and the form that it fills in."""
    url = urlsplit(str(value.value).partition("](")[2].removesuffix(")"))
    return url.path.split("/")[4], yaml.safe_load(parse_qs(url.query)["config"][0])


def moves(shown: dict[str, dg.MetadataValue]) -> list[tuple[object, ...]]:
    return [
        tuple(row.data[name] for name in ("group", "partition", "before", "after"))
        for row in shown["kafka_backup/positions"].records
    ]


def test_groups_go_to_a_snapshot_and_back(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests the links from a snapshot to a reset and from there to its rollback, each dry and for real.

    It is how somebody moves consumers who knows only the user interface.
    Could go wrong: a dry run moves something, a link opens another job, a rollback forgets a group.
    """
    topic = filled_topic(kafka, 2)
    old, new = f"old-{topic}", f"new-{topic}"
    commit(kafka.bootstrap_servers, old, {(topic, 0): 5, (topic, 1): 6})
    jobs = Jobs(kafka, tmp_path, [topic], [f"*-{topic}"])
    job, form = linked(jobs.backup()["kafka_backup/reset"])
    assert job == "reset_offsets"
    commit(kafka.bootstrap_servers, old, {(topic, 0): 20, (topic, 1): 6})
    commit(kafka.bootstrap_servers, new, {(topic, 0): 9})

    form["groups"] = [old]
    dry = jobs.run(job, **form)
    assert dry["kafka_backup/to_change"].value == 1
    assert moves(dry) == [(old, 0, "20", "5"), (old, 1, "6", "6")]
    assert positions(kafka, old) == {(topic, 0): 20, (topic, 1): 6}

    done = jobs.run(job, **form | {"mode": "execute"})
    assert done["kafka_backup/status"].value == "verified"
    assert positions(kafka, old) == {(topic, 0): 5, (topic, 1): 6}
    assert positions(kafka, new) == {(topic, 0): 9}

    job, form = linked(done["kafka_backup/rollback"])
    assert job == "rollback_offsets"
    assert moves(jobs.run(job, **form)) == [(old, 0, "5", "20"), (old, 1, "6", "6")]
    assert positions(kafka, old) == {(topic, 0): 5, (topic, 1): 6}
    assert jobs.run(job, **form | {"mode": "execute"})["kafka_backup/status"].value == "rolled_back"
    assert positions(kafka, old) == {(topic, 0): 20, (topic, 1): 6}


def test_restored_topics_get_their_groups(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests positions that go through a restore's offset map, to groups of other names, and back.

    After a disaster the records have other offsets; consumers must go on at the same record.
    Could go wrong: the offsets of the source are committed, or a rollback leaves the new groups behind.
    """
    topic = filled_topic(kafka)
    group = f"g-{topic}"
    commit(kafka.bootstrap_servers, group, {(topic, 0): 12})
    jobs = Jobs(kafka, tmp_path, [topic], [group])
    snapshot = jobs.backup()["kafka_backup/snapshot"].value
    jobs.run("restore", restore_id="r", prefix="restored-", mode="execute")

    done = jobs.run(
        "reset_offsets",
        groups=[group],
        snapshot=snapshot,
        restore_id="r",
        rename=[{"pattern": "(.*)", "replacement": r"\1-restored"}],
        mode="execute",
    )
    assert positions(kafka, f"{group}-restored") == {(f"restored-{topic}", 0): 12}
    assert moves(done) == [(f"{group}-restored", 0, "no commit", "12")]

    back = jobs.run("rollback_offsets", reset_id=done["kafka_backup/reset_id"].value, mode="execute")
    assert back["kafka_backup/removed_groups"].value == [f"{group}-restored"]
    assert f"{group}-restored" not in states(kafka)
    assert positions(kafka, group) == {(topic, 0): 12}


def test_what_forbids_it_is_named_and_nothing_is_changed(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a group with a member, offsets beyond the end, and a reset that does not exist, dry and for real.

    Brokers take any number as a position; the run must be red before it is stored.
    Could go wrong: one problem is shown and the next comes an hour later; a group is moved under its consumers.
    """
    topic = filled_topic(kafka, 2)
    active, idle = f"active-{topic}", f"idle-{topic}"
    commit(kafka.bootstrap_servers, idle, {(topic, 0): 3})
    jobs = Jobs(kafka, tmp_path, [topic], [f"*-{topic}"])

    with reading(kafka.bootstrap_servers, active, topic):
        for mode in ("dry_run", "execute"):
            said = jobs.failure("reset_offsets", groups=[active, idle], topics=[topic], to="31", mode=mode)
            assert f"group '{active}' is Stable" in said
            assert f"group '{idle}', {topic} [0]: offset 31 is beyond the high watermark 30" in said
            assert f"group '{idle}', {topic} [1]: offset 31 is beyond" in said
            assert "; clamp takes the nearest that exists" in said
    assert positions(kafka, idle) == {(topic, 0): 3}
    assert "there is no reset 'x'" in jobs.failure("rollback_offsets", reset_id="x", mode="execute")


def test_moved_on_consumers_are_not_put_back_unless_forced(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a rollback after a consumer has read on, without and with force.

    Putting it back would make it read again what it has done since.
    Could go wrong: the work since then is silently done twice; or force is ignored.
    """
    topic = filled_topic(kafka)
    group = f"g-{topic}"
    commit(kafka.bootstrap_servers, group, {(topic, 0): 3})
    jobs = Jobs(kafka, tmp_path, [topic], [group])
    reset = jobs.run("reset_offsets", groups=[group], to="earliest", mode="execute")
    commit(kafka.bootstrap_servers, group, {(topic, 0): 7})
    form = {"reset_id": reset["kafka_backup/reset_id"].value, "mode": "execute"}

    assert "a consumer has moved on" in jobs.failure("rollback_offsets", **form)
    assert positions(kafka, group) == {(topic, 0): 7}
    jobs.run("rollback_offsets", **form, force=True)
    assert positions(kafka, group) == {(topic, 0): 3}


def test_interrupted_reset_goes_on_when_it_is_launched_again(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests a reset that ends after its first commit, and the same form again.

    Dagster's re-execution sends the same form; what was before must not be taken from the half-done state.
    Could go wrong: the second run stores the new positions as those before, and a rollback goes nowhere.
    """
    topic = filled_topic(kafka)
    group = f"g-{topic}"
    commit(kafka.bootstrap_servers, group, {(topic, 0): 20})
    jobs = Jobs(kafka, tmp_path, [topic], [group])
    form = {"groups": [group], "to": "4", "mode": "execute"}

    def cut_off(self: PositionMover) -> None:
        raise UnreachableError("the network is gone")

    with monkeypatch.context() as patched:
        patched.setattr(PositionMover, "compare", cut_off)
        assert "the network is gone" in jobs.failure("reset_offsets", **form)
    assert positions(kafka, group) == {(topic, 0): 4}

    planned = jobs.run("reset_offsets", **form | {"mode": "dry_run"})
    done = jobs.run("reset_offsets", **form)
    assert done["kafka_backup/reset_id"].value == planned["kafka_backup/continues"].value
    assert moves(done) == [(group, 0, "20", "4")]
    jobs.run("rollback_offsets", reset_id=done["kafka_backup/reset_id"].value, mode="execute")
    assert positions(kafka, group) == {(topic, 0): 20}
