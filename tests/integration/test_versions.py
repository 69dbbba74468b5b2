"""The oldest and the newest Kafka that we are tested on, and the way from one to the other.

`KAFKA_VERSION=3.9.2 make integration` runs all integration tests on the oldest one.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from kafka_backup import ClusterConfig, Engine, EngineConfig
from tests.support import kept_repository
from tests.support.dump_log import dump_log
from tests.support.engine import capture, committed, engine_config, restore, restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.kafka_image import OLDEST, image
from tests.support.records import CODECS, NewRecord
from tests.support.topics import new_topic, produce, read_topic, topic_config


@pytest.fixture(scope="module")
def oldest() -> Iterator[KafkaCluster]:
    """The cluster of the kept repositories, as far as its id says."""
    with KafkaCluster(1, image=image(OLDEST), cluster_id=kept_repository.CLUSTER_ID) as cluster:
        yield cluster


def _topic_with_everything(kafka: KafkaCluster) -> str:
    """Two partitions: every codec, then a committed and an aborted transaction."""
    topic = new_topic(kafka, 2, config={"retention.ms": 10**12, "compression.type": "producer"})
    for partition in range(2):
        for codec in CODECS:
            records = [
                NewRecord(
                    b"%s-%d" % (codec.encode(), i), b"key-%d" % i, [(b"h", None), (b"h", b"")], 10**12 + i
                )
                for i in range(100)
            ]
            produce(kafka.bootstrap_servers, topic, records, partition=partition, codec=codec)
    producer = Producer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "transactional.id": secrets.token_hex(4),
            "log_level": 0,
        }
    )
    producer.init_transactions(60)
    for end in (producer.commit_transaction, producer.abort_transaction):
        producer.begin_transaction()
        for i in range(10):
            producer.produce(topic, b"%d" % i, b"transaction", partition=0)
        producer.flush(60)
        end(60)
    return topic


def _engine(source: KafkaCluster, target: KafkaCluster, repository: Path) -> Engine:
    config = engine_config(source, repository, compression="none").model_dump()
    config["target"] = ClusterConfig(bootstrap_servers=target.bootstrap_servers).model_dump()
    return Engine.open(EngineConfig.model_validate(config))


@pytest.mark.parametrize("way", ["oldest to oldest", "oldest to newest", "newest to oldest"])
def test_captured_on_one_version_and_restored_on_another(
    kafka: KafkaCluster, oldest: KafkaCluster, tmp_path: Path, way: str
) -> None:
    """Tests capture, verify, restore and Kafka's own reader with Kafka 3.9 as source, as target and as both.

    It matters because an upgrade that goes wrong is a reason to restore, and then the versions differ.
    A request version that only one of them knows, or a setting that only one has, fails on that day.
    """
    clusters = {"oldest": oldest, "newest": kafka}
    source, target = (clusters[name] for name in way.split(" to "))
    topic = _topic_with_everything(source)
    with _engine(source, target, tmp_path) as engine:
        event = committed(capture(engine, topic), topic)
        assert event.records == 2 * 100 * len(CODECS) + 10
        assert [(part.aborted, part.control, part.lost) for part in event.partitions] == [
            (10, 2, 0),
            (0, 0, 0),
        ]
        assert engine.verify(level="data").status == "ok"
        report = restore(engine, "r", topic)
        assert engine.verify_restore("r") == report
    assert read_topic(target.bootstrap_servers, f"restored-{topic}") == restored_as(source, topic)
    restored = topic_config(target.admin(), f"restored-{topic}")
    assert restored == topic_config(source.admin(), topic)
    segments = list((tmp_path / "topics" / topic).glob("*/[01]/*.log"))
    assert segments
    for segment in segments:
        assert all(batch.is_valid for batch in dump_log(source, segment.read_bytes()))


@pytest.mark.parametrize("release", kept_repository.releases())
def test_a_repository_of_an_earlier_release_is_restored_and_goes_on(
    kafka: KafkaCluster, oldest: KafkaCluster, tmp_path: Path, release: str
) -> None:
    """Tests that each topic of a kept repository is restored as it was, and that captures go on in it.

    It matters because nobody makes all backups anew after an upgrade.
    A repository that opens could still give back other records, or end with the old release.
    """
    captures = kept_repository.unpack(release, tmp_path)["captures"]
    newest = {topic: capture_id for capture_id in sorted(captures) for topic in captures[capture_id]}
    prefix = f"kept-{secrets.token_hex(4)}-"
    with _engine(oldest, kafka, tmp_path / "repository") as engine:
        for number, (topic, capture_id) in enumerate(newest.items()):
            report = restore(engine, f"again-{number}", topic, prefix=prefix, capture=capture_id)
            assert report.status == "verified"
            restored = read_topic(kafka.bootstrap_servers, prefix + topic)
            for partition, expected in captures[capture_id][topic].items():
                assert kept_repository.digest(restored[int(partition)]) == expected["restored"]
        new_topic(oldest, name="orders")
        produce(oldest.bootstrap_servers, "orders", [NewRecord(b"after the upgrade")])
        assert committed(capture(engine, "orders"), "orders").records == 1
        assert {problem.kind for problem in engine.verify(level="data").problems} == {"truncated"}
