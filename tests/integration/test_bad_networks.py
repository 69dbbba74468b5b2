"""Captures and restores over quotas, caps, slow and broken links: late, but whole."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kafka_backup import TopicCommitted
from tests.support.engine import capture, committed, open_engine, restore, restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.quotas import set_quota
from tests.support.records import NewRecord
from tests.support.tcp_proxy import TcpProxy
from tests.support.topics import new_topic, produce, read_topic
from tests.support.waiting import wait_for


@pytest.fixture
def proxies(kafka3: KafkaCluster) -> Iterator[list[TcpProxy]]:
    """Those of three brokers, as they were again afterwards."""
    yield list(kafka3.proxies.values())
    for proxy in kafka3.proxies.values():
        proxy.bytes_per_second = proxy.cut_after = None
        proxy.open()


def _write(
    kafka: KafkaCluster, topic: str, count: int, *, partition: int = 0, batch_size: int = 1_000_000
) -> None:
    """Records of 1 KB that do not compress."""
    records = [NewRecord(secrets.token_bytes(1000)) for _ in range(count)]
    config = {"batch.size": batch_size}
    produce(kafka.bootstrap_servers, topic, records, partition=partition, config=config)


def test_quotas_delay_a_capture_and_a_restore_and_end_them_nowhere(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    """What: a consumer quota and then a producer quota, far below the size of the topic, and retries of two seconds only.

    Why: a throttled answer is empty; one tool took it for the end, stored half, and reported success.
    Risk: a truncated capture with exit code 0, one that fails because it is patient, or a batch that is sent twice.
    """
    topic = new_topic(kafka)
    _write(kafka, topic, 3000)
    client_id = f"throttled-{secrets.token_hex(4)}"
    set_quota(kafka, client_id, 300_000)
    cluster = {"properties": {"client.id": client_id}, "retry_seconds": 2}
    folder = tmp_path

    def is_throttled() -> bool:
        nonlocal folder
        began = time.monotonic()
        folder = tmp_path / secrets.token_hex(4)
        with open_engine(kafka, folder, cluster=cluster, segment_bytes=1 << 18, consumer_groups=[]) as engine:
            assert committed(capture(engine, topic), topic).records == 3000
        return time.monotonic() - began > 3

    wait_for(is_throttled, 60, "the quota")  # brokers forgive a burst of ten seconds' worth
    set_quota(kafka, client_id, 100_000_000)
    set_quota(kafka, client_id, 300_000, key="producer_byte_rate")
    expected = restored_as(kafka, topic)

    def is_throttled_again() -> bool:
        restore_id = f"r-{secrets.token_hex(4)}"
        with open_engine(kafka, folder, cluster=cluster) as engine:
            report = restore(engine, restore_id, topic, prefix=f"{restore_id}-")
        assert read_topic(kafka.bootstrap_servers, f"{restore_id}-{topic}") == expected
        return report.topics[0].partitions[0].produce_seconds > 3

    wait_for(is_throttled_again, 60, "the quota of producers")


def test_a_cap_is_kept_by_all_partitions_together(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: 2 MB in four partitions with `max_bytes_per_second: 500KB`.

    Why: a first capture of terabytes must leave the brokers to the producers.
    Risk: the cap holds for each partition, or not for the first responses.
    """
    topic = new_topic(kafka, 4)
    for partition in range(4):
        _write(kafka, topic, 500, partition=partition)
    with open_engine(kafka, tmp_path, max_bytes_per_second="500KB") as engine:
        began = time.monotonic()
        assert committed(capture(engine, topic), topic).records == 2000
        # The last response of each partition is not waited for.
        assert time.monotonic() - began > 2


def test_connections_that_break_in_the_middle_of_an_answer(
    kafka3: KafkaCluster, tmp_path: Path, proxies: list[TcpProxy]
) -> None:
    """What: every connection is cut after 300 KB of answers, wherever that is.

    Why: load balancers, wireless links and restarts do that, and a batch may arrive by half.
    Risk: half a batch in a segment, one twice, or one left out where the reading went on.
    """
    topic = new_topic(kafka3)
    _write(kafka3, topic, 3000, batch_size=20_000)
    for proxy in proxies:
        proxy.cut_after = 300_000
    with open_engine(kafka3, tmp_path, segment_bytes=1 << 16) as engine:
        assert committed(capture(engine, topic), topic).records == 3000
        for proxy in proxies:
            proxy.cut_after = None
        restore(engine, "r", topic)
    assert read_topic(kafka3.bootstrap_servers, f"restored-{topic}") == restored_as(kafka3, topic)


def test_a_link_slower_than_every_timeout(
    kafka3: KafkaCluster, tmp_path: Path, proxies: list[TcpProxy]
) -> None:
    """What: one answer of 2 MB takes longer than socket timeout and retry time.

    Why: slow is not broken: as long as bytes come, nothing is lost by waiting.
    Risk: the answer is asked for again and again, and never comes whole.
    """
    topic = new_topic(kafka3)
    _write(kafka3, topic, 2000)
    for proxy in proxies:
        proxy.bytes_per_second = 400_000
    cluster = {"properties": {"socket.timeout.ms": 1000}, "retry_seconds": 3}
    with open_engine(kafka3, tmp_path, cluster=cluster, consumer_groups=[]) as engine:
        assert committed(capture(engine, topic), topic).records == 2000


def test_a_rack_reads_from_its_own_replica(tmp_path: Path) -> None:
    """What: brokers in two racks, and a capture that names the follower's.

    Why: traffic between zones is what a backup costs in a cloud (KIP-392).
    Risk: `client.rack` is taken and has no effect; or a follower that is behind ends the capture early.
    """
    racks = {
        "broker.rack": "rack-{id}",
        "replica.selector.class": "org.apache.kafka.common.replica.RackAwareReplicaSelector",
    }
    with KafkaCluster(2, proxied=True, config=racks) as kafka:
        topic = new_topic(kafka, assignment=[[1, 2]])
        _write(kafka, topic, 3000)
        before = {each: proxy.answered for each, proxy in kafka.proxies.items()}
        cluster = {"properties": {"client.rack": "rack-2"}}
        with open_engine(kafka, tmp_path, cluster=cluster) as engine:
            events = capture(engine, topic)
        assert sum(event.records for event in events if isinstance(event, TopicCommitted)) == 3000
        read = {each: proxy.answered - before[each] for each, proxy in kafka.proxies.items()}
        assert read[2] > 3_000_000
        assert read[1] < 300_000


def test_a_start_leaves_out_what_is_older_and_says_so(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: `start` in the middle of a partition, after its end, and before its beginning; then more records.

    Why: a first capture may leave out the years before, if the repository says which offsets those are.
    Risk: records left out without a trace, or a second capture that leaves out more.
    """
    topic = new_topic(kafka, 4, config={"retention.ms": -1})
    base = 1_700_000_000_000
    for partition, hours in enumerate((range(10), range(3), range(7, 12), ())):
        records = [NewRecord(b"%d" % hour, timestamp=base + hour * 3_600_000) for hour in hours]
        produce(kafka.bootstrap_servers, topic, records, partition=partition)
    with open_engine(kafka, tmp_path, start=base + 5 * 3_600_000) as engine:
        parts = committed(capture(engine, topic), topic).partitions
        spans = [part.not_captured and (part.not_captured.start, part.not_captured.end) for part in parts]
        assert spans == [(0, 5), (0, 3), None, None]
        assert [(part.start, part.end, part.records) for part in parts] == [
            (5, 10, 5),
            (3, 3, 0),
            (0, 5, 5),
            (0, 0, 0),
        ]
        for partition in range(4):
            produce(kafka.bootstrap_servers, topic, [NewRecord(b"old", timestamp=base)], partition=partition)
        parts = committed(capture(engine, topic), topic).partitions
        assert [(part.start, part.records, part.not_captured) for part in parts] == [
            (10, 1, None),
            (3, 1, None),
            (5, 1, None),
            (0, 1, None),
        ]
        assert engine.verify(level="data").status == "ok"
        restore(engine, "r", topic)
    restored = read_topic(kafka.bootstrap_servers, f"restored-{topic}")
    assert [record.value for record in restored[0]] == [b"5", b"6", b"7", b"8", b"9", b"old"]
    assert [record.value for record in restored[1]] == [b"old"]
