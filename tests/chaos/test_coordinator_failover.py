"""Group coordinators that die and come back, again and again, while positions are read."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from kio.schema.offset_fetch.v8.response import OffsetFetchResponseGroup

from kafka_backup import AuthorizationError, Engine, UnreachableError
from kafka_backup.kafka import coordinators
from kafka_backup.kafka.coordinators import partition_for
from kafka_backup.kafka.groups import GroupClient
from tests.support.engine import engine_config, open_engine
from tests.support.groups import (
    Positions,
    commit,
    filled_topic,
    group_client,
    open_offsets_transaction,
    positions_of,
    read_and_commit,
    set_positions,
)
from tests.support.kafka_cluster import KafkaCluster
from tests.support.waiting import wait_for

ROUNDS = 4


def is_whole(engine: Engine, pattern: str, acknowledged: Mapping[str, Positions]) -> bool:
    """Takes a snapshot that has every group as it is, or an error that names it; whether it has them all.

    A broker whose coordinator failed to load a partition refuses its groups (NOT_COORDINATOR) until that has
    another leader, which may be never: nobody can read these then, and the snapshot must say so.
    """
    taken = engine.groups.snapshot([pattern])
    assert (taken.snapshot.incomplete, taken.snapshot.doubts) == ((), ())
    assert all(
        isinstance(error, UnreachableError) and group in str(error) for group, error in taken.errors.items()
    )
    assert {group.group: group.status for group in taken.snapshot.groups} == {
        group: "failed" if group in taken.errors else "read" for group in acknowledged
    }
    for group in taken.snapshot.groups:
        if group.status == "read":
            found = {(p.topic, p.partition): p.offset for p in group.positions}
            assert found == acknowledged[group.group]
    return not taken.errors


def test_no_group_is_ever_missing_while_coordinators_move(kafka3: KafkaCluster, tmp_path: Path) -> None:
    """What: groups are made, moved on, and at once their coordinator is killed; snapshots by wildcard all the while.

    Why: brokers leave groups out of a listing, and show older positions, while a coordinator moves; without an error.
    Risk: a capture during a rolling restart that lacks half of the groups, or an hour of their work.
    """
    topic = filled_topic(kafka3, 2, records=200)
    prefix = f"failover-{secrets.token_hex(4)}"
    acknowledged: dict[str, Positions] = {}
    config = engine_config(kafka3, tmp_path)
    patient = config.model_copy(update={"cluster": config.cluster.model_copy(update={"retry_seconds": 60})})
    with Engine.open(patient) as engine:
        for round_ in range(ROUNDS):
            new = {f"{prefix}-{round_}-{i}": {(topic, 0): 0, (topic, 1): i} for i in range(12)}
            moved = {group: {(topic, 0): round_, (topic, 1): 100 + round_} for group in acknowledged}
            set_positions(kafka3, moved | new)
            acknowledged |= moved | new
            victim = kafka3.leader_of("__consumer_offsets", round_ % 3)
            back = threading.Event()

            def restart(victim: int = victim, back: threading.Event = back) -> None:
                kafka3.kill(victim)
                kafka3.start(victim)
                back.set()

            thread = threading.Thread(target=restart)
            thread.start()
            try:
                while not back.is_set():
                    is_whole(engine, f"{prefix}-*", acknowledged)
            finally:
                thread.join(120)
            is_whole(engine, f"{prefix}-*", acknowledged)
            wait_for(
                lambda: all(kafka3.in_sync("__consumer_offsets", n) == 3 for n in range(3)), 60, "in sync"
            )
    with open_engine(kafka3, tmp_path) as engine:
        if not is_whole(engine, f"{prefix}-*", acknowledged):
            for victim in kafka3.ids:
                kafka3.kill(victim)
                kafka3.start(victim)
                wait_for(
                    lambda: all(kafka3.in_sync("__consumer_offsets", n) == 3 for n in range(3)), 60, "in sync"
                )
            assert is_whole(engine, f"{prefix}-*", acknowledged)


def _in_first_partition(name: str) -> str:
    """A group of the first of three partitions of the offsets topic."""
    return next(each for each in (f"{name}-{n}" for n in count()) if partition_for(each, 3) == 0)


def test_a_coordinator_that_shows_nothing_yet_leaves_nothing_out(
    kafka3: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: groups of all kinds whose coordinator is killed, and a successor that shows none of what was committed.

    Why: how much it hides is a matter of milliseconds; its log is real here. Who may not read that is told so.
    Risk: records that only some kind of consumer writes, read wrongly or not at all.
    """
    topic, prefix = filled_topic(kafka3), f"unseen-{secrets.token_hex(4)}"
    kinds = ("simple", "classic", "consumer", "transactional", "aborted", "deleted", "below")
    groups = {kind: _in_first_partition(f"{prefix}-{kind}") for kind in kinds}
    servers = kafka3.bootstrap_servers
    for kind in ("simple", "aborted", "deleted", "below"):
        commit(servers, groups[kind], {(topic, 0): 5})
    for kind in ("classic", "consumer"):
        read_and_commit(servers, groups[kind], topic, 6, protocol=kind)
    for kind in ("transactional", "aborted"):
        with open_offsets_transaction(servers, groups[kind], {(topic, 0): 7}) as producer:
            if kind == "transactional":
                producer.commit_transaction(60)
    with group_client(kafka3) as client:
        assert not any(client.delete_groups([groups["deleted"]]).values())
    commit(servers, groups["below"], {(topic, 0): 1})
    truth = positions_of(kafka3, groups.values())
    assert [list(truth[groups[kind]].values()) for kind in kinds] == [[5], [6], [6], [7], [5], [], [1]]

    def may_not_be_read(*_: object, **__: object) -> Any:
        raise AuthorizationError("TOPIC_AUTHORIZATION_FAILED")

    def shows_nothing(_client: GroupClient, _address: object, asked: Any, **_: object) -> Any:
        return [OffsetFetchResponseGroup(group_id=name, topics=()) for name in asked]

    victim = kafka3.leader_of("__consumer_offsets", 0)
    kafka3.kill(victim)
    try:
        with monkeypatch.context() as denied, open_engine(kafka3, tmp_path / "denied") as engine:
            denied.setattr(coordinators, "read_last_commits", may_not_be_read)
            unsure = engine.groups.snapshot([groups["simple"]])
            assert (unsure.errors, unsure.snapshot.incomplete) == ({}, ())
            assert "the right READ on __consumer_offsets is missing" in engine.groups.saved().doubts[0]
        monkeypatch.setattr(GroupClient, "_list_at", lambda *_: [])
        monkeypatch.setattr(GroupClient, "_offset_fetch", shows_nothing)
        with open_engine(kafka3, tmp_path) as engine:
            taken = engine.groups.snapshot([f"{prefix}-*"])
        with group_client(kafka3) as client:
            assert client.fetch([groups["deleted"]]) == {groups["deleted"]: {}}
    finally:
        kafka3.start(victim)
        wait_for(lambda: kafka3.in_sync("__consumer_offsets", 0) == 3, 60, "in sync")
    assert (taken.errors, taken.snapshot.incomplete, taken.snapshot.doubts) == ({}, (), ())
    found = {
        each.group: {(p.topic, p.partition): p.offset for p in each.positions}
        for each in taken.snapshot.groups
    }
    assert found == {group: offsets for group, offsets in truth.items() if offsets}
    types = {each.group: (each.type, each.state) for each in taken.snapshot.groups}
    assert types[groups["simple"]] == ("classic", "Empty")
    assert (types[groups["classic"]], types[groups["consumer"]]) == (
        ("classic", "Unknown"),
        ("consumer", "Unknown"),
    )
