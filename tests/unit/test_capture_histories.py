"""Captures through random elections: what they hold is the leader's log, or they say what is not."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from kafka_backup import backup
from kafka_backup.config import BackupConfig
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.metadata import topic_id_text
from kafka_backup.kafka.settings import ConnectionSettings
from kafka_backup.kafka.topics import ConfigValue
from kafka_backup.progress import CaptureFinished, StopToken
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.store import Store
from kafka_backup.selection import TopicSelection
from kafka_backup.verify import verify
from tests.support.replicated_partition import ReplicatedPartition
from tests.unit.repositories import live_records, memory_store


class _Admin:
    """Describes every topic as one without settings of its own."""

    def describe_each(self, topics: Sequence[str], **_: object) -> Mapping[str, Mapping[str, ConfigValue]]:
        return {name: {} for name in topics}


def capture(cluster: Cluster, store: Store) -> str:
    """One capture; returns its status."""
    events: list[Any] = list(
        backup.run(
            cluster=cluster,
            admin=_Admin(),  # type: ignore[arg-type]
            store=store,
            selection=TopicSelection.parse([ReplicatedPartition.topic]),
            settings=BackupConfig(consumer_groups=(), segment_bytes="64KiB", max_concurrent_partitions=1),
            retry_seconds=10,
            window=None,
            accept_missing=False,
            stop=StopToken(),
        )
    )
    assert isinstance(events[-1], CaptureFinished)
    return events[-1].status


def held(store: Store) -> dict[int, bytes]:
    """What a restore of the newest state would bring back."""
    repository = Repository.open(store, cluster_id=None, create=False)
    log = repository.commit_log(ReplicatedPartition.topic, topic_id_text(ReplicatedPartition.topic_id))
    return {record.offset: record.value or b"" for record in live_records(store, log)}


class Storm:
    """Things that happen to a partition, by chance."""

    def __init__(self, partition: ReplicatedPartition, dice: random.Random) -> None:
        self.partition = partition
        self.dice = dice
        self.likely = 0.0
        partition.on_fetch = self.strike

    def strike(self) -> None:
        """Perhaps something, perhaps not."""
        if self.dice.random() < self.likely:
            self.happen()

    def happen(self) -> None:
        """An election, clean or not; records written, replicated or not; retention; a broker that is back."""
        partition, dice = self.partition, self.dice
        others = {each for each in (1, 2, 3) if dice.random() < 0.5}
        kind = dice.random()
        if kind < 0.45:
            partition.append(dice.randint(1, 25), others)
        elif kind < 0.8:
            chosen = dice.choice((1, 2, 3))
            partition.elect(chosen, {dice.choice((1, 2, 3))} if dice.random() < 0.4 else set())
            partition.append(dice.choice((0, 0, 5, 25)), others - {dice.choice((1, 2, 3))})
        elif kind < 0.9:
            partition.follow(dice.choice((1, 2, 3)))
        elif kind < 0.95:
            partition.heal()
        else:
            partition.remove(dice.randint(0, max(1, len(partition.replicas[partition.leader].log) // 2)))


def same(found: Mapping[int, bytes], partition: ReplicatedPartition) -> bool:
    """Whether the repository holds what the leader has; below its log start it may hold more."""
    start = partition.replicas[partition.leader].log_start
    return {offset: value for offset, value in found.items() if offset >= start} == partition.holds()


def live_through(seed: int, *, rack: str) -> None:
    """Captures between and during storms, then a quiet one, held against the leader's log."""
    dice = random.Random(seed)
    store = memory_store()
    with ReplicatedPartition() as partition:
        storm = Storm(partition, dice)
        settings = ConnectionSettings.from_properties(
            partition.servers, {"client.rack": rack} if rack else {}
        )
        cluster = Cluster(settings, retry_seconds=10)
        partition.append(dice.randint(0, 40), {1, 2, 3})
        before: dict[int, bytes] = {}
        for _ in range(3):
            for _ in range(dice.randint(0, 4)):
                storm.happen()
            storm.likely = dice.choice((0.0, 0.2, 0.5))
            status = capture(cluster, store)
            after = held(store)
            if not storm.likely and status != "partial":
                assert same(after, partition), f"seed {seed}: not all that was there"
            storm.likely = 0.0
            if any(after.get(offset, value) != value for offset, value in before.items()):
                assert status in ("lossy", "partial"), f"seed {seed}: records replaced without a word"
            before = after
        partition.heal()
        while (status := capture(cluster, store)) == "partial":
            continue
        assert same(held(store), partition), f"seed {seed}"
        kinds = {
            each.kind
            for each in verify(
                Repository.open(store, cluster_id=None, create=False), selection=None, level="data", stop=None
            ).problems
        }
        assert kinds <= {"lost", "truncated"}
        cluster.close()


@pytest.mark.parametrize("rack", ["", "near"])
@pytest.mark.parametrize("seed", [12, 24, 28, 31, 64, 97])
def test_whatever_is_elected_nothing_is_lost_silently(seed: int, rack: str) -> None:
    """What: captures between and during random elections, clean and unclean, with brokers that lie.

    Why: the rules for each case alone are easy; what they miss is between them.
    Risk: records of two histories in one range, or records that no capture ever takes, and all is green.
    """
    live_through(seed, rack=rack)


@pytest.mark.parametrize("grown", [0, 10, 30, 40, 41, 100])
def test_a_log_that_is_cut_back_under_a_capture(grown: int) -> None:
    """What: at the sixth of ten answers a broker with a third of the log takes over, and writes on.

    Why: to less than what was read, to exactly that, to the promised end, and past it.
    Risk: the capture goes on where it was, in another history.
    """
    store = memory_store()
    with ReplicatedPartition() as partition:
        fetches = 0

        def cut() -> None:
            nonlocal fetches
            fetches += 1
            if fetches == 6:
                partition.elect(2, set())
                partition.append(grown, set())

        partition.append(20, {1, 2, 3})
        partition.append(40, {3})
        partition.on_fetch = cut
        cluster = Cluster(ConnectionSettings.from_properties(partition.servers, {}), retry_seconds=10)
        assert capture(cluster, store) == "lossy"
        assert fetches >= 6
        assert same(held(store), partition)
        cluster.close()
