"""A capture whose store fails, lies or dies at any call: nothing half-done is seen, and the next run goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kafka_backup import retention
from kafka_backup.errors import KafkaBackupError, WriterConflictError
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.metadata import topic_id_text
from kafka_backup.kafka.settings import ConnectionSettings
from kafka_backup.progress import CaptureFinished, StopToken, TopicCommitted, TopicFailed
from kafka_backup.repository import layout
from kafka_backup.repository.repository import Repository
from kafka_backup.retention import RetentionPolicy
from tests.support.scripted_cluster import ScriptedCluster, ScriptedTopic
from tests.unit.faults import Fault, FaultyStore, ProcessDied
from tests.unit.repositories import batch, memory_store
from tests.unit.scripted_captures import TOPIC, VALUE, capture, check, scripted_topic


@pytest.fixture
def topic() -> ScriptedTopic:
    return scripted_topic()


@pytest.fixture
def cluster(topic: ScriptedTopic) -> Iterator[Cluster]:
    with ScriptedCluster({TOPIC: topic}) as scripted:
        settings = ConnectionSettings.from_properties(scripted.broker.address, {})
        opened = Cluster(settings, retry_seconds=10)
        yield opened
        opened.close()


@pytest.mark.parametrize("fault", list(Fault))
def test_a_store_that_fails_at_any_call(cluster: Cluster, topic: ScriptedTopic, fault: Fault) -> None:
    """The engine's capture meets the fault at its first, second, ... last call to the store; then others follow.

    It matters because a machine can die, and a network fail, at any of these calls.
    A record could be in no commit, in two, or in one that cannot be read.
    """
    counting = FaultyStore(memory_store())
    capture(cluster, counting)
    assert counting.calls > 20
    ends = {partition: topic.end(partition) for partition in topic.partitions}
    for at in range(1, counting.calls + 1):
        store = memory_store()
        for partition, end in ends.items():
            del topic.partitions[partition][end:]
        try:
            events = capture(cluster, FaultyStore(store, fault, at))
        except (KafkaBackupError, ProcessDied) as error:
            assert not isinstance(error, WriterConflictError), (at, error)
        else:
            # It may have gone well, or one partition may have failed: never something else.
            assert isinstance(events[-1], CaptureFinished)
            failed = [event for event in events if isinstance(event, TopicFailed)]
            assert (events[-1].status == "complete") == (not failed)
            check(store, topic, whole=not failed)
        check(store, topic, whole=False)
        for partition in topic.partitions:
            end = topic.end(partition)
            topic.partitions[partition].append((end, end, batch(end, 1, value=VALUE)))
        events = capture(cluster, store)
        assert events[-1].status == "complete"
        check(store, topic, whole=True)
        plan = retention.plan(
            Repository.open(store, cluster_id=None, create=False),
            RetentionPolicy(keep_captures=1),
            unfinished=False,
            stop=StopToken(),
        )
        retention.run(
            plan, repository=Repository.open(store, cluster_id=None, create=False), stop=StopToken()
        )
        check(store, topic, whole=True)
        log = Repository.open(store, cluster_id=None, create=False).commit_log(
            TOPIC, topic_id_text(topic.topic_id)
        )
        named = {segment.key for partition in topic.partitions for segment in log.segments(partition)}
        assert {info.key for info in store.list(layout.TOPICS) if ".log" in info.key} == named


def test_of_two_captures_at_once_one_stops(cluster: Cluster, topic: ScriptedTopic) -> None:
    """A whole capture runs between each two calls of another one: one of them commits, and nothing is doubled.

    It matters because schedules overlap.
    Both could commit the same records, or the one that lost could leave half of its own.
    """
    counting = FaultyStore(memory_store())
    capture(cluster, counting)
    stopped = 0
    for at in range(1, counting.calls + 1):
        store = memory_store()

        class Overtaken(FaultyStore):
            """Lets another capture run to its end before call number `at`."""

            def do(self, call, *, creates=False):  # type: ignore[no-untyped-def]
                self.calls += 1
                if self.calls == at:  # noqa: B023
                    capture(cluster, store)  # noqa: B023
                return call()

        try:
            events = capture(cluster, Overtaken(store))
        except WriterConflictError:
            stopped += 1
        else:
            committed = [event for event in events if isinstance(event, TopicCommitted)]
            log = Repository.open(store, cluster_id=None, create=False).commit_log(
                TOPIC, topic_id_text(topic.topic_id)
            )
            assert len(log.commits) == 1
            assert len(committed) <= 1
        check(store, topic, whole=True)
        assert capture(cluster, store)[-1].status == "complete"
        check(store, topic, whole=True)
    assert stopped > 5
