"""Positions of real consumer groups, saved: against what the brokers tell an independent client."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kafka_backup import Engine, GroupFailed, GroupSnapshotTaken, SavedGroup, UnreachableError
from kafka_backup.cli import main
from kafka_backup.errors import ConfigurationError
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.groups import CommittedOffset, GroupClient
from kafka_backup.kafka.settings import ConnectionSettings
from kafka_backup.repository.documents import sha256_of
from tests.support.engine import engine_config, open_engine
from tests.support.groups import (
    commit,
    consumer,
    filled_topic,
    open_offsets_transaction,
    poll,
    positions,
    read_and_commit,
    reading,
    states,
)
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import delete_topic, new_topic, produce
from tests.support.waiting import wait_for


def saved_positions(group: SavedGroup) -> dict[tuple[str, int], int]:
    return {(each.topic, each.partition): each.offset for each in group.positions}


def run(folder: Path, kafka: KafkaCluster, *arguments: str) -> Result:
    """Runs the command line with this broker and a repository in the folder."""
    config = folder / "kafka-backup.yaml"
    config.write_text(
        json.dumps(
            {
                "cluster": {"bootstrap_servers": kafka.bootstrap_servers, "retry_seconds": 30},
                "repository": {"url": f"file://{folder}/repository"},
            }
        )
    )
    return CliRunner().invoke(main, ["--config", str(config), *arguments])


def test_a_snapshot_holds_every_kind_of_group(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: classic and KIP-848 groups, with members and without, and groups that only commit.

    Why: the brokers keep them in different ways, and all of them have positions to lose.
    Risk: a group of a kind that the listing leaves out, or whose offsets are asked for in vain.
    """
    topic, prefix = filled_topic(kafka, 3), f"kinds-{secrets.token_hex(4)}"
    servers = kafka.bootstrap_servers
    for protocol in ("classic", "consumer"):
        read_and_commit(servers, f"{prefix}-{protocol}-empty", topic, 40, protocol=protocol)
    commit(servers, f"{prefix}-simple", {(topic, 0): 7, (topic, 2): 30})
    with (
        reading(servers, f"{prefix}-classic-active", topic) as classic,
        reading(servers, f"{prefix}-consumer-active", topic, protocol="consumer") as modern,
        open_engine(kafka, tmp_path) as engine,
    ):
        for member in (classic, modern):
            poll(member, 11)
            member.commit(asynchronous=False)
        taken = engine.groups.snapshot([f"{prefix}-*"])
        assert engine.groups.saved(taken.snapshot.snapshot_id) == taken.snapshot
        assert (taken.errors, taken.snapshot.incomplete) == ({}, ())
        groups = {group.group.removeprefix(f"{prefix}-"): group for group in taken.snapshot.groups}
        assert {name: (group.type, group.state) for name, group in groups.items()} == {
            "classic-active": ("classic", "Stable"),
            "classic-empty": ("classic", "Empty"),
            "consumer-active": ("consumer", "Stable"),
            "consumer-empty": ("consumer", "Empty"),
            "simple": ("classic", "Empty"),
        }
        for name, group in groups.items():
            assert group.status == "read"
            assert saved_positions(group) == positions(kafka, f"{prefix}-{name}"), name
            (topic_id,) = {position.topic_id for position in group.positions}
            assert topic_id == taken.snapshot.topics[topic]
    assert sum(saved_positions(groups["classic-empty"]).values()) == 40


@pytest.mark.parametrize("name", ["../../etc", "a/b\0c\n", "ключ ☃ \"'", "x" * 30_000, " ", "[a]*?", ""])
def test_any_name_of_a_group_is_data(kafka: KafkaCluster, tmp_path: Path, name: str) -> None:
    """What: groups whose names are no file names, no words, very long, or empty.

    Why: Kafka takes any text, and whoever may commit may choose it.
    Risk: a key made from a name would write outside of the repository.
    """
    topic = filled_topic(kafka)
    settings = ConnectionSettings.from_properties(kafka.bootstrap_servers, {})
    client = GroupClient(Cluster(settings, retry_seconds=30))
    offsets = {(topic, 0): CommittedOffset(offset=5, metadata="where \0 was I")}
    wait_for(lambda: not client.commit({name: offsets})[name], 30, "a commit")
    with open_engine(kafka, tmp_path) as engine:
        snapshot = engine.groups.snapshot(["*"]).snapshot
        (group,) = [group for group in engine.groups.saved().groups if group.group == name]
    assert [(p.offset, p.metadata) for p in group.positions] == [(5, "where \0 was I")]
    stored = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(stored) == [f"groups/{snapshot.snapshot_id}.json.zst", "repository.json"]
    client.delete_groups([name])
    client.cluster.close()


def test_a_pending_transactional_commit_is_waited_for(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: a snapshot while a transaction that commits offsets is open: an error, and no empty group.

    Why: the old position is wrong as soon as the transaction commits, and nobody knows whether it will.
    Risk: without require_stable the broker shows the old one; consumers would do the transaction twice.
    """
    topic, group = filled_topic(kafka), f"tx-{secrets.token_hex(4)}"
    commit(kafka.bootstrap_servers, group, {(topic, 0): 3})
    config = engine_config(kafka, tmp_path)
    impatient = config.model_copy(update={"cluster": config.cluster.model_copy(update={"retry_seconds": 1})})
    with open_offsets_transaction(kafka.bootstrap_servers, group, {(topic, 0): 20}) as producer:
        with Engine.open(impatient) as engine:
            taken = engine.groups.snapshot([group])
            assert isinstance(taken.errors[group], UnreachableError)
            assert "UNSTABLE" in str(taken.errors[group])
            (saved,) = engine.groups.saved().groups
            assert (saved.status, saved.positions) == ("failed", ())
        producer.commit_transaction(60)
    with open_engine(kafka, tmp_path) as engine:
        (saved,) = engine.groups.snapshot([group]).snapshot.groups
    assert saved_positions(saved) == {(topic, 0): 20}


def test_a_position_belongs_to_an_incarnation(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: the topic id in a position, before and after the topic was deleted and made again.

    Why: offset 20 of the old topic and offset 20 of the new one are different records.
    Risk: a snapshot by name alone, that puts a consumer into the middle of other data.
    """
    topic, group = filled_topic(kafka), f"again-{secrets.token_hex(4)}"
    with open_engine(kafka, tmp_path) as engine:
        commit(kafka.bootstrap_servers, group, {(topic, 0): 20})
        (before,) = engine.groups.snapshot([group]).snapshot.groups[0].positions
        delete_topic(kafka, topic)
        wait_for(lambda: group not in states(kafka) or not positions(kafka, group), 30, "offsets gone")
        new_topic(kafka, name=topic)
        commit(kafka.bootstrap_servers, group, {(topic, 0): 0})
        (after,) = engine.groups.snapshot([group]).snapshot.groups[0].positions
    assert (before.topic, before.offset, after.offset) == (after.topic, 20, 0)
    assert before.topic_id != after.topic_id


def test_each_capture_saves_positions_before_it_asks_for_ends(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: captures of a topic that a consumer follows: each names its snapshot, taken before the ends.

    Why: data without positions is half a recovery, and a position past the data would skip records later.
    Risk: a snapshot taken after the ends, or none at all when the topic did not change.
    """
    topic, group = filled_topic(kafka, records=0), f"follow-{secrets.token_hex(4)}"
    member = consumer(kafka.bootstrap_servers, group)
    member.subscribe([topic])
    with open_engine(kafka, tmp_path, consumer_groups=[group]) as engine:
        for round_ in range(3):
            produce(kafka.bootstrap_servers, topic, [NewRecord(b"x") for _ in range(100)])
            poll(member, 100)
            member.commit(asynchronous=False)
            events = list(engine.backup([topic]))
            (taken,) = [event for event in events if isinstance(event, GroupSnapshotTaken)]
            assert events[0] is taken
            assert (taken.groups, taken.positions) == (1, 1)
            capture = engine.captures()[-1]
            assert capture.groups is not None
            assert (capture.groups.snapshot_id, capture.status) == (taken.snapshot, "complete")
            assert taken.snapshot.endswith(f"-{capture.capture_id}")
            stored = (tmp_path / "groups" / f"{taken.snapshot}.json.zst").read_bytes()
            assert sha256_of(stored) == capture.groups.sha256
            snapshot = engine.groups.saved(taken.snapshot)
            assert snapshot.capture_id == capture.capture_id
            assert capture.started_at <= snapshot.taken_at <= snapshot.ended_at <= capture.ended_at
            (position,) = snapshot.groups[0].positions
            assert position.offset == 100 * (round_ + 1)
        list(engine.backup([topic]))
        assert len(engine.groups.snapshot_ids()) == 4
    member.close()


def test_a_group_that_cannot_be_read_fails_the_capture_by_name(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: a configured group that does not exist: the topics are saved, the run is not green.

    Why: a typing error in the configuration would be found on the bad day.
    Risk: a capture that says complete without the group, or that saves nothing because of it.
    """
    topic = filled_topic(kafka)
    with open_engine(kafka, tmp_path, consumer_groups=["no-such-group"]) as engine:
        events = list(engine.backup([topic]))
        (failed,) = [event for event in events if isinstance(event, GroupFailed)]
        assert (failed.group, failed.error.exit_code) == ("no-such-group", 2)
        capture = engine.captures()[-1]
        assert capture.status == "partial"
        assert [(f.group, f.topic) for f in capture.failures] == [("no-such-group", None)]
        assert [t.topic for t in capture.topics] == [topic]
    with open_engine(kafka, tmp_path, consumer_groups=[]) as engine:
        assert not any(isinstance(event, GroupSnapshotTaken) for event in engine.backup([topic]))
        assert engine.captures()[-1].status == "complete"


def test_a_thousand_groups_are_saved_at_once(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: a thousand groups with three positions each, every one with its own offset.

    Why: groups are read in batches, and a batch is where one gets another's answer.
    Risk: an answer that is put to the wrong group, or a batch that is forgotten.
    """
    topic, prefix = filled_topic(kafka, 3, records=1), f"many-{secrets.token_hex(4)}"
    settings = ConnectionSettings.from_properties(kafka.bootstrap_servers, {})
    client = GroupClient(Cluster(settings, retry_seconds=30))
    wanted = {
        f"{prefix}-{i}": {(topic, p): CommittedOffset(offset=3 * i + p) for p in range(3)}
        for i in range(1000)
    }
    wait_for(lambda: not client.commit({f"{prefix}-0": wanted[f"{prefix}-0"]})[f"{prefix}-0"], 30, "a commit")
    assert not any(client.commit(wanted).values())
    with open_engine(kafka, tmp_path) as engine:
        taken = engine.groups.snapshot([f"{prefix}-*"])
    assert taken.errors == {}
    assert {group.group: saved_positions(group) for group in taken.snapshot.groups} == {
        group: {key: committed.offset for key, committed in offsets.items()}
        for group, offsets in wanted.items()
    }
    assert not any(client.delete_groups(list(wanted)).values())
    client.cluster.close()


def test_snapshots_by_the_command_line(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: groups snapshot, list and show: JSON for programs, a table for people, exit codes.

    Why: it is how positions are looked up when Dagster is down.
    Risk: a slip in a name that ends with 0, or a table without the number that matters.
    """
    topic, group = filled_topic(kafka), f"cli-{secrets.token_hex(4)}"
    commit(kafka.bootstrap_servers, group, {(topic, 0): 17})
    missing = run(tmp_path, kafka, "groups", "snapshot", "--group", "no-such", "--json")
    assert (missing.exit_code, json.loads(missing.stdout)["error"]["kind"]) == (2, "configuration")
    taken = run(tmp_path, kafka, "groups", "snapshot", "--group", group, "--json")
    document = json.loads(taken.stdout)
    assert (taken.exit_code, document["status"], len(document["groups"])) == (0, "complete", 1)
    offset = document["groups"][0]["offsets"][0]
    assert (offset["topic"], offset["partition"], offset["offset"]) == (topic, 0, 17)
    listed = json.loads(run(tmp_path, kafka, "groups", "list", "--json").stdout)
    assert [entry["snapshot"] for entry in listed["snapshots"]] == [document["snapshot"]]
    assert [(g["group"], g["positions"]) for g in listed["groups"]] == [(group, 1)]
    for arguments in (("--group", group), ("--snapshot", document["snapshot"]), ()):
        shown = run(tmp_path, kafka, "groups", "show", *arguments, "--json")
        assert json.loads(shown.stdout)["groups"] == document["groups"]
    assert "17" in run(tmp_path, kafka, "groups", "show").stdout
    for arguments in (("--group", "no-such"), ("--snapshot", "no-such"), ("--group", "/(/")):
        wrong = run(tmp_path, kafka, "groups", "show", *arguments)
        assert (wrong.exit_code, wrong.stdout) == (2, "")
        assert wrong.stderr.startswith("error: ")


def test_a_coordinator_that_is_killed_delays_a_snapshot(kafka3: KafkaCluster, tmp_path: Path) -> None:
    """What: the broker that coordinates a group is killed while snapshots are taken again and again.

    Why: rolling restarts happen every week, and captures every hour.
    Risk: a snapshot that lacks the groups of the broker that was just away, without saying so.
    """
    topic = filled_topic(kafka3, 3)
    names = [f"killed-{secrets.token_hex(4)}-{i}" for i in range(12)]
    for i, name in enumerate(names):
        commit(kafka3.bootstrap_servers, name, {(topic, i % 3): i})
    victim = kafka3.leader_of("__consumer_offsets", 0)
    with open_engine(kafka3, tmp_path) as engine:
        kafka3.kill(victim)
        try:
            for _ in range(3):
                taken = engine.groups.snapshot(names)
                assert taken.errors == {}
                assert {g.group: saved_positions(g) for g in taken.snapshot.groups} == {
                    name: {(topic, i % 3): i} for i, name in enumerate(names)
                }
        finally:
            kafka3.start(victim)
            wait_for(lambda: kafka3.in_sync("__consumer_offsets", 0) == 3, 60, "in sync")


def test_no_group_may_be_missing_from_an_empty_answer(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: a request for no groups at all, and for groups where nothing is configured.

    Why: "nothing to save" and "nothing saved" look the same in a repository.
    Risk: an empty snapshot that passes for one of everything.
    """
    with (
        open_engine(kafka, tmp_path, consumer_groups=[]) as engine,
        pytest.raises(ConfigurationError, match="consumer_groups"),
    ):
        engine.groups.snapshot()
