"""A capture and a restore at the same time, on three brokers that are struck again and again: exact, both of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kafka_backup import RestoreRequest, TopicCommitted
from kafka_backup.kafka.produce import TopicProducer
from kafka_backup.partition_capture import PartitionCapture
from tests.support.engine import capture, open_engine
from tests.support.kafka_cluster import KafkaCluster
from tests.support.reassignments import reassign, wait_reassigned
from tests.support.records import NewRecord, Record, renumbered
from tests.support.topics import new_topic, produce, read_topic
from tests.support.waiting import wait_for

COUNT = 2500
PARTITIONS = 3
UNITS = 6
"""Responses of the capture, and requests of the restore, between two strikes."""
CLIENT = {"properties": {"socket.timeout.ms": 5000}, "retry_seconds": 90}


class Storm:
    """Strikes while several runs are in the middle of their work: each waits for the next strike after some steps."""

    def __init__(self, *runs: str) -> None:
        self._changed = threading.Condition()
        self._steps = dict.fromkeys(runs, UNITS)
        self._ended: set[str] = set()
        self._is_over = False

    def step(self, run: str) -> None:
        """Called by a run before each of its steps."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self._steps[run] > 0, 300)
            self._steps[run] -= 1
            self._changed.notify_all()

    def ended(self, run: str) -> None:
        """Called when a run has ended, in whatever way."""
        with self._changed:
            self._ended.add(run)
            self._changed.notify_all()

    def strike(self, blow: Callable[[], None]) -> None:
        """Waits until all runs stand still, strikes, and lets them go on."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._ended or all(left <= 0 for left in self._steps.values()), 200
            )
            assert not self._ended, f"{self._ended} ended before the storm"
        blow()
        with self._changed:
            self._steps = dict.fromkeys(self._steps, UNITS)
            self._changed.notify_all()

    def pass_by(self) -> None:
        """Nobody waits any more."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


@dataclass(frozen=True)
class Scene:
    """Two topics on three brokers: one is captured, the other is restored."""

    kafka: KafkaCluster
    source: str
    target: str
    places: Sequence[Sequence[int]]

    @property
    def topics(self) -> tuple[str, str]:
        return self.source, self.target

    def heal(self) -> None:
        """Waits until every partition has all of its replicas again."""
        wait_for(
            lambda: all(
                self.kafka.in_sync(topic, number) == len(brokers)
                for topic in self.topics
                for number, brokers in enumerate(self.places)
            ),
            90,
            "all replicas to be in sync again",
        )


def _others(kafka: KafkaCluster, broker: int) -> list[int]:
    return [each for each in kafka.ids if each != broker]


def _is_deposed(scene: Scene, broker: int) -> bool:
    """Whether nothing is led by it any more, in the eyes of another one."""
    witness = _others(scene.kafka, broker)[0]
    return all(
        scene.kafka.leader_of(topic, number, via=witness) not in (broker, -1)
        for topic in scene.topics
        for number in range(PARTITIONS)
    )


def _chase(scene: Scene, storm: Storm) -> None:
    """The active controller is killed, then four times whoever leads a partition by then."""
    kafka = scene.kafka
    for number in range(5):
        topic = scene.topics[number % 2]
        victim = kafka.active_controller() if number == 0 else kafka.leader_of(topic, number % PARTITIONS)
        storm.strike(partial(kafka.kill, victim))
        try:
            wait_for(partial(_is_deposed, scene, victim), 60, "new leaders")
        finally:
            kafka.start(victim)
        scene.heal()


def _restart(scene: Scene, storm: Storm) -> None:
    """All brokers are restarted one after the other, cleanly."""
    for broker in scene.kafka.ids:
        storm.strike(partial(scene.kafka.kill, broker, "SIGTERM"))
        scene.kafka.start(broker)
        scene.heal()


def _move(scene: Scene, storm: Storm) -> None:
    """All partitions are moved to other brokers, each time away from their leaders."""
    places = scene.places
    for _ in range(3):
        places = [
            [second, next(b for b in scene.kafka.ids if b not in (first, second))] for first, second in places
        ]
        wanted = dict.fromkeys(scene.topics, places)
        storm.strike(partial(reassign, scene.kafka, wanted))
        wait_reassigned(scene.kafka, wanted)


def _freeze(scene: Scene, storm: Storm) -> None:
    """A leader is frozen for 3 seconds, and another one for 15."""
    for number, seconds in enumerate((3, 15)):
        broker = scene.kafka.leader_of(scene.topics[number], number)
        storm.strike(partial(scene.kafka.pause, broker))
        began = time.monotonic()
        try:
            wait_for(lambda: time.monotonic() - began > seconds, 60, "the time of the pause")  # noqa: B023
        finally:
            scene.kafka.unpause(broker)
        scene.heal()


def _cut_off(scene: Scene, storm: Storm) -> None:
    """A leader is cut off from its peers; then all brokers fall silent for clients, and drop their connections."""
    broker = scene.kafka.leader_of(scene.target)
    storm.strike(partial(scene.kafka.disconnect, broker))
    try:
        wait_for(partial(_is_deposed, scene, broker), 60, "new leaders")
    finally:
        scene.kafka.connect(broker)
    scene.heal()
    proxies = list(scene.kafka.proxies.values())
    answered = sum(proxy.connections for proxy in proxies)

    def silence() -> None:
        for proxy in proxies:
            proxy.silent()

    storm.strike(silence)
    try:
        # Whoever has waited for as long as it wants to connects anew.
        wait_for(lambda: sum(proxy.connections for proxy in proxies) > answered + 1, 60, "both to try again")
    finally:
        for proxy in proxies:
            proxy.reset()
            proxy.open()


def _scene(kafka: KafkaCluster, *, copies: int) -> Scene:
    ring = [*kafka.ids, *kafka.ids]
    places = [ring[number : number + copies] for number in range(PARTITIONS)]
    settings = {"min.insync.replicas": copies - 1, "retention.ms": -1}
    source = new_topic(kafka, PARTITIONS, assignment=places, config=settings)
    target = new_topic(kafka, PARTITIONS, name=f"stormy-{source}", assignment=places, config=settings)
    for partition in range(PARTITIONS):
        records = [
            NewRecord(b"%d-%06d" % (partition, number) * 60, b"k%d" % number) for number in range(COUNT)
        ]
        produce(kafka.bootstrap_servers, source, records, partition=partition, config={"batch.size": 20_000})
    return Scene(kafka, source, target, places)


def _begin(storm: Storm, run: str, work: Callable[[], Any]) -> Future[Any]:
    done: Future[Any] = Future()

    def begin() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits for it
            done.set_exception(error)
        finally:
            storm.ended(run)

    threading.Thread(target=begin, daemon=True).start()
    return done


def _capture(scene: Scene, repository: Path) -> int:
    """Capture the source; how many records the commits hold."""
    with open_engine(
        scene.kafka, repository, cluster=CLIENT, segment_bytes=1 << 16, consumer_groups=[]
    ) as engine:
        events = capture(engine, scene.source)
    return sum(event.records for event in events if isinstance(event, TopicCommitted))


def _restore(scene: Scene, repository: Path) -> str:
    with open_engine(scene.kafka, repository, cluster=CLIENT) as engine:
        request = RestoreRequest(restore_id="r", topics=(scene.source,), prefix="stormy-")
        return engine.restore(engine.plan_restore(request)).status


def _stored(
    scene: Scene, repository: Path, partition: int
) -> Iterator[tuple[int, bytes | None, bytes | None]]:
    with open_engine(scene.kafka, repository) as engine:
        for stored in engine.stored_partition(scene.source, partition).records():
            yield stored.record.offset, stored.record.key, stored.record.value


def _plain(records: Sequence[Record]) -> list[tuple[int, bytes | None, bytes | None]]:
    return [(record.offset, record.key, record.value) for record in records]


def _weather(
    kafka: KafkaCluster,
    folder: Path,
    patch: pytest.MonkeyPatch,
    strikes: Callable[[Scene, Storm], None],
    *,
    copies: int,
) -> None:
    """Captures and restores in a storm; both are exact in the end, and the repository is sound."""
    scene = _scene(kafka, copies=copies)
    assert _capture(scene, folder / "calm") == PARTITIONS * COUNT
    expected = read_topic(kafka.bootstrap_servers, scene.source)
    storm = Storm("capture", "restore")
    take, send = PartitionCapture._take, TopicProducer.send

    def taking(self: PartitionCapture, *fetched: Any) -> None:
        storm.step("capture")
        take(self, *fetched)

    def sending(self: TopicProducer, *batches: Any) -> None:
        storm.step("restore")
        send(self, *batches)

    patch.setattr(PartitionCapture, "_take", taking)
    patch.setattr(TopicProducer, "send", sending)
    captured = _begin(storm, "capture", lambda: _capture(scene, folder / "stormy"))
    restored = _begin(storm, "restore", lambda: _restore(scene, folder / "calm"))
    try:
        strikes(scene, storm)
    finally:
        storm.pass_by()
        results = [captured.exception(200), restored.exception(200)]
    assert results == [None, None]
    assert (captured.result(), restored.result()) == (PARTITIONS * COUNT, "verified")
    for partition, records in expected.items():
        assert list(_stored(scene, folder / "stormy", partition)) == _plain(records)
    assert read_topic(kafka.bootstrap_servers, scene.target) == {
        p: renumbered(r) for p, r in expected.items()
    }
    with open_engine(kafka, folder / "stormy") as engine:
        assert engine.verify(level="data").status == "ok"


def test_chaos_broker_failure_mid_restore(
    kafka3: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests five brokers killed one after the other, the controller first, then leaders, during a restore and a capture.

    It matters because half of a restore may be acknowledged by brokers that are gone, and clusters fail more than once.
    Each death leaves requests of which nobody knows whether they were written: once too often, or not at all.
    """
    _weather(kafka3, tmp_path, monkeypatch, _chase, copies=3)


@pytest.mark.parametrize(
    ("strikes", "copies"),
    [(_restart, 3), (_move, 2), (_freeze, 3), (_cut_off, 3)],
    ids=lambda it: getattr(it, "__name__", ""),
)
def test_a_storm_over_a_capture_and_a_restore(
    kafka3: KafkaCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    strikes: Callable[[Scene, Storm], None],
    copies: int,
) -> None:
    """Tests a rolling restart, partitions on the move, frozen leaders, and cut networks, during a capture and a restore.

    It matters because clusters are upgraded, balanced and repaired while backups run, and on bad days restores.
    A leader that has changed, or says so too late, is asked for what it has not, or told what it has already.
    """
    _weather(kafka3, tmp_path, monkeypatch, strikes, copies=copies)
