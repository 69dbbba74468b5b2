"""A real S3 server behind a network that fails at any request, in every way: a run ends right, or with a clear error."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator

import pytest

from kafka_backup import (
    DamagedError,
    Engine,
    RestoreRequest,
    parse_config,
)
from kafka_backup.errors import AuthorizationError, UnreachableError
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.settings import ConnectionSettings
from kafka_backup.progress import CaptureFinished, TopicFailed
from kafka_backup.repository.stores import open_store
from kafka_backup.retention import RetentionPolicy
from tests.support.engine import NEAR, restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.object_stores import S3Server, versitygw
from tests.support.records import NewRecord
from tests.support.s3_faults import S3Fault, S3FaultProxy
from tests.support.scripted_cluster import ScriptedCluster
from tests.support.together import try_all
from tests.support.topics import new_topic, produce, read_topic
from tests.unit.repositories import batch
from tests.unit.scripted_captures import TOPIC, VALUE, capture, check, scripted_topic

QUICK = {"timeout": "1s", "connect_timeout": "1s"}
"""So that silence is noticed soon."""
EXPECTED = (AuthorizationError, UnreachableError, DamagedError)
"""A run that fails says: rights, try again, or damage. Never another writer, and nothing that is not ours."""


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with versitygw(tmp_path_factory.mktemp("s3") / "buckets") as server:
        yield server


@pytest.fixture(scope="module")
def url(s3: S3Server) -> str:
    return s3.bucket(f"faults-{os.getpid()}").url


def _through(s3: S3Server, proxy: S3FaultProxy) -> dict[str, str]:
    return {**s3.options, **QUICK, "endpoint": proxy.endpoint}


def _failed(events: list[object]) -> list[TopicFailed]:
    assert isinstance(events[-1], CaptureFinished)
    failed = [event for event in events if isinstance(event, TopicFailed)]
    assert (events[-1].status == "complete") == (not failed)
    for event in failed:
        assert isinstance(event.error, EXPECTED)
    return failed


@pytest.mark.parametrize("fault", S3Fault)
def test_a_capture_meets_a_fault_at_any_request(s3: S3Server, url: str, fault: S3Fault) -> None:
    """Tests a capture whose first, second, ... last request meets the fault, once; then a healthy one.

    It matters because a network fails at any moment, before or after the server did the work.
    An object could be thought to be stored, or to be another writer's, and the capture be called complete.
    """

    def attempt(at: int) -> int:
        topic = scripted_topic()
        place = f"{url}/{fault.name}-{at}"
        direct = open_store(place, s3.options)
        with S3FaultProxy(s3.options["endpoint"]) as proxy, ScriptedCluster({TOPIC: topic}) as scripted:
            settings = ConnectionSettings.from_properties(scripted.broker.address, {})
            faulty = open_store(place, _through(s3, proxy), retry_seconds=10)
            cluster = Cluster(settings, retry_seconds=10)
            proxy.choose(lambda number: fault if number == at else None)
            failed = True
            with contextlib.suppress(*EXPECTED):
                failed = bool(_failed(capture(cluster, faulty)))
            requests, met = proxy.requests, proxy.met
            proxy.heal()
            check(direct, topic, whole=not failed)
            for partition in topic.partitions:
                end = topic.end(partition)
                topic.partitions[partition].append((end, end, batch(end, 1, value=VALUE)))
            assert not _failed(capture(cluster, faulty))
            check(direct, topic, whole=True)
            cluster.close()
        assert met == (at > 0)
        return requests

    requests = attempt(0)
    assert requests > 10
    try_all(range(1, requests + 1), attempt, at_once=12)


def _engine(kafka: KafkaCluster, url: str, options: dict[str, str]) -> Engine:
    return Engine.open(
        parse_config(
            {
                "cluster": {
                    "bootstrap_servers": kafka.bootstrap_servers,
                    "retry_seconds": 30,
                    "properties": NEAR,
                },
                "repository": {"url": url, "options": options},
                "backup": {"segment_bytes": "64KiB"},
            },
            source="test",
        )
    )


def test_faults_all_the_time(kafka: KafkaCluster, s3: S3Server, url: str) -> None:
    """Tests a capture, a verification, a restore and an expiry of which up to one request in eight meets the fault.

    It matters because a store under load fails again and again, in the middle of retries too.
    A restore could go on with half a segment, or an expiry with half a listing.
    """

    def attempt(fault: S3Fault) -> None:
        with S3FaultProxy(s3.options["endpoint"]) as proxy:
            _round(kafka, s3, url, proxy, fault)

    try_all(list(S3Fault), attempt, at_once=len(S3Fault))


def _round(kafka: KafkaCluster, s3: S3Server, url: str, proxy: S3FaultProxy, fault: S3Fault) -> None:
    chances = random.Random(fault.name)
    topic = new_topic(kafka, 2)
    for partition in range(2):
        more = [NewRecord(os.urandom(1000), b"%d" % n) for n in range(200)]
        produce(kafka.bootstrap_servers, topic, more, partition=partition, config={"batch.size": 12_000})
    place = f"{url}/{fault.name}-all-the-time"
    met = 0

    def ends(run: object) -> bool:
        """Whether a run under faults ended well; if not, its error is one of those expected."""
        nonlocal met
        first = chances.randrange(1, 9)
        # Silence costs a second each time.
        often = 1 / 20 if fault in (S3Fault.SILENT_BEFORE, S3Fault.SILENT_AFTER) else 1 / 8
        proxy.choose(lambda number: fault if number == first or chances.random() < often else None)
        try:
            run()  # type: ignore[operator]
        except EXPECTED:
            return False
        finally:
            met += proxy.met
            proxy.heal()
        return True

    with _engine(kafka, place, _through(s3, proxy)) as faulty, _engine(kafka, place, s3.options) as direct:

        def backup(engine: Engine) -> None:
            for event in engine.backup([topic]):
                if isinstance(event, TopicFailed):
                    raise event.error

        def restore(engine: Engine) -> None:
            request = RestoreRequest(restore_id="r", topics=(topic,), prefix="restored-")
            assert engine.restore(engine.plan_restore(request)).status == "verified"

        def expire(engine: Engine) -> None:
            engine.expire(engine.plan_expire(RetentionPolicy(keep_captures=1)))

        for _ in range(3):
            if ends(lambda: backup(faulty)):
                break
        backup(direct)
        assert direct.verify(level="data").status == "ok"
        report = None

        def verify() -> None:
            nonlocal report
            report = faulty.verify(level="data")

        if ends(verify):
            assert report is not None
            # What arrives wrong looks damaged; what does not arrive never looks right.
            assert report.status == "ok" or fault in (S3Fault.WRONG_BYTES, S3Fault.STALE_LISTING)
        if not ends(lambda: restore(faulty)):
            restore(direct)
        assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == restored_as(kafka, topic)
        if not ends(lambda: expire(faulty)):
            expire(direct)
        assert direct.verify(level="data").status == "ok"
    assert met
