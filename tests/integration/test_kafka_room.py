"""Our client on a real broker, against confluent-kafka and the tests' own plain decoder."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewTopic

from kafka_backup.errors import BrokerError, ConfigurationError, KafkaBackupError, UnreachableError
from kafka_backup.kafka.cluster import EARLIEST, LATEST, Cluster, OffsetAnswer
from kafka_backup.kafka.connection import Connection
from kafka_backup.kafka.fetch import FetchedPartition, OffsetOutOfRangeError, PartitionFetcher
from kafka_backup.kafka.produce import TopicProducer
from kafka_backup.kafka.settings import ConnectionSettings
from kafka_backup.kafka.topics import TopicAdmin, delete_topic, validate_topic, wait_for_leaders
from kafka_backup.records.batch import crc_is_valid
from kafka_backup.records.rewrite import seal
from tests.support.kafka_cluster import KafkaCluster
from tests.support.quotas import set_quota
from tests.support.records import CODECS, NewRecord, encode_batch
from tests.support.topics import delete_topic as delete_topic_by_name
from tests.support.topics import ends, fetch_log, new_topic, produce, read_topic
from tests.support.waiting import wait_for


def settings(kafka: KafkaCluster, **properties: str) -> ConnectionSettings:
    """For our client and for the admin client."""
    given = {name.replace("_", "."): value for name, value in properties.items()}
    return ConnectionSettings.from_properties(kafka.bootstrap_servers, given)


@pytest.fixture
def cluster(kafka: KafkaCluster) -> Iterator[Cluster]:
    """Our client."""
    client = Cluster(settings(kafka), retry_seconds=30)
    yield client
    client.close()


@pytest.fixture
def admin(cluster: Cluster) -> Iterator[TopicAdmin]:
    """Our admin client."""
    client = TopicAdmin(cluster)
    yield client
    client.close()


def topic_id(cluster: Cluster, topic: str) -> str:
    """The id under which the brokers know it now."""
    return cluster.metadata([topic]).topics[topic].topic_id


def fetcher(
    cluster: Cluster,
    topic: str,
    end: int,
    *,
    start: int = 0,
    partition: int = 0,
    isolation: str = "read_committed",
    max_bytes: int = 8 << 20,
    retry_seconds: float = 30,
    check_stop: Callable[[], None] = lambda: None,
) -> PartitionFetcher:
    """As the engine makes one."""
    return PartitionFetcher(
        cluster,
        topic,
        topic_id(cluster, topic),
        partition,
        start=start,
        end=end,
        isolation=isolation,
        retry_seconds=retry_seconds,
        check_stop=check_stop,
        max_bytes=max_bytes,
    )


def raw(responses: Iterator[FetchedPartition]) -> bytes:
    """All whole batches, one after the other; every CRC is checked."""
    log = bytearray()
    for response in responses:
        for place, header in response.batches:
            assert crc_is_valid(response.records, place, header)
            log += response.records[place : place + header.size]
    return bytes(log)


def values(count: int, size: int = 100) -> list[NewRecord]:
    """Records of random bytes."""
    return [NewRecord(secrets.token_bytes(size), None, [], 1_700_000_000_000 + n) for n in range(count)]


def answer_of(
    cluster: Cluster, topic: str, timestamp: int, isolation: str = "read_committed"
) -> OffsetAnswer:
    """The answer for partition 0."""
    answer = cluster.list_offsets({(topic, 0): timestamp}, isolation=isolation)[topic, 0]
    assert isinstance(answer, OffsetAnswer), answer
    return answer


def test_metadata_says_what_the_brokers_know(kafka: KafkaCluster, cluster: Cluster) -> None:
    """What: cluster id, topic ids, leaders, partitions; a topic that does not exist, and all topics.

    Why: topic ids tell a topic from its namesake; a question must never create a topic.
    Risk: two incarnations in one backup, or a backup that fills a cluster with topics.
    """
    topic = new_topic(kafka, 3)
    found = cluster.metadata([topic, "never-created"])
    assert found.cluster_id == kafka.cluster_id
    assert set(found.topics) == {topic}
    described = found.topics[topic]
    assert len(described.topic_id) == 22
    assert sorted(described.partitions) == [0, 1, 2]
    assert all(part.leader == 1 and part.leader_epoch >= 0 for part in described.partitions.values())
    everything = cluster.metadata(None).topics
    assert everything[topic] == described
    assert "never-created" not in everything
    delete_topic_by_name(kafka, topic)
    new_topic(kafka, name=topic)
    assert topic_id(cluster, topic) != described.topic_id


def test_ends_know_open_transactions(kafka: KafkaCluster, cluster: Cluster) -> None:
    """What: log start, last stable offset, high watermark and log end, with a transaction open, then committed.

    Why: a capture ends at the last stable offset; a restore compares high watermark and log end.
    Risk: half a transaction in a backup.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, values(10))
    producer = Producer(
        {"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": topic, "log_level": 0}
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    for _ in range(5):
        producer.produce(topic, b"open", partition=0)
    producer.flush(30)
    assert answer_of(cluster, topic, EARLIEST).offset == 0
    assert answer_of(cluster, topic, LATEST).offset == 10
    assert answer_of(cluster, topic, LATEST, "read_uncommitted").offset == 15
    assert cluster.log_ends([(topic, 0)])[topic, 0] == OffsetAnswer(offset=15, leader_epoch=0)
    producer.commit_transaction(30)
    wait_for(lambda: answer_of(cluster, topic, LATEST).offset == 16)
    assert answer_of(cluster, topic, 1_700_000_000_004).offset == 4


def test_offsets_of_many_partitions_come_with_one_question(
    kafka: KafkaCluster, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: ends of 60 partitions, one of them missing, one topic unknown; the requests are counted.

    Why: a capture of 10,000 idle partitions must take seconds.
    Risk: a request for each partition; or one bad partition that spoils all the others.
    """
    topics = [new_topic(kafka, 20) for _ in range(3)]
    keys = [(topic, n) for topic in topics for n in range(20)] + [(topics[0], 20), ("unknown", 0)]
    # Right after its creation a partition may be known before its leader serves it.
    cluster.list_offsets(dict.fromkeys(keys[:60], LATEST), isolation="read_committed")
    asked: list[str] = []
    original = Connection.request

    def counted(self: Connection, payload: object, *args: object, **more: object) -> object:
        asked.append(type(payload).__name__)
        return original(self, payload, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Connection, "request", counted)
    answers = cluster.list_offsets(dict.fromkeys(keys, LATEST), isolation="read_committed", deadline=1)
    assert set(answers) == set(keys)
    bad = {key for key, answer in answers.items() if isinstance(answer, KafkaBackupError)}
    assert bad == {(topics[0], 20), ("unknown", 0)}
    assert "unknown" in str(answers["unknown", 0])
    assert asked.count("ListOffsetsRequest") == 1


@pytest.mark.parametrize("codec", CODECS)
def test_what_was_produced_is_fetched_byte_for_byte(
    codec: str, kafka: KafkaCluster, cluster: Cluster
) -> None:
    """What: 30,000 records by confluent-kafka, fetched by us and by the tests' own decoder.

    Why: zero-decode means that a backup holds exactly what the broker holds.
    Risk: any bug here is a bug in every backup.
    """
    topic = new_topic(kafka)
    records = values(30_000)
    produce(kafka.bootstrap_servers, topic, records, codec=codec)  # type: ignore[arg-type]
    with fetcher(cluster, topic, 30_000, max_bytes=300_000) as reader:
        log = raw(iter(reader))
    assert log == fetch_log(kafka.bootstrap_servers, topic)
    with fetcher(cluster, topic, 20_001, start=17_777, max_bytes=300_000) as reader:
        part = raw(iter(reader))
    assert part in log


def test_aborted_transactions_are_named(kafka: KafkaCluster, cluster: Cluster) -> None:
    """What: a committed and an aborted transaction, fetched read_committed and read_uncommitted.

    Why: the list in the response is the only evidence of what was aborted.
    Risk: aborted records in a backup.
    """
    topic = new_topic(kafka)
    producer = Producer(
        {"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": topic, "log_level": 0}
    )
    producer.init_transactions(30)
    for finish in (producer.commit_transaction, producer.abort_transaction):
        producer.begin_transaction()
        for _ in range(3):
            producer.produce(topic, b"x", partition=0)
        producer.flush(30)
        finish(30)
    wait_for(lambda: answer_of(cluster, topic, LATEST).offset == 8)
    with fetcher(cluster, topic, 8) as reader:
        (response,) = list(reader)
    ((producer_id, first),) = response.aborted
    assert first == 4
    assert {header.producer_id for _, header in response.batches} == {producer_id}
    assert [header.is_control for _, header in response.batches] == [False, True, False, True]
    assert (response.last_stable_offset, response.high_watermark, response.log_start_offset) == (8, 8, 0)
    with fetcher(cluster, topic, 8, isolation="read_uncommitted") as reader:
        (response,) = list(reader)
    assert not response.aborted


def test_a_batch_larger_than_the_fetch_size_comes_whole(kafka: KafkaCluster, cluster: Cluster) -> None:
    """What: batches of 1 B and 3 MB in turn, fetched with a limit of 64 KiB.

    Why: brokers send the first batch whole, however large (KIP-74).
    Risk: a partition with one large record that can never be backed up.
    """
    topic = new_topic(kafka, config={"max.message.bytes": 8 << 20})
    for size in (1, 3_000_000, 1, 2_999_999, 1):
        records = [NewRecord(secrets.token_bytes(size), None, [], 1_700_000_000_000)]
        produce(kafka.bootstrap_servers, topic, records, config={"message.max.bytes": 8 << 20})
    with fetcher(cluster, topic, 5, max_bytes=1 << 16) as reader:
        log = raw(iter(reader))
    assert log == fetch_log(kafka.bootstrap_servers, topic)
    assert len(log) > 5_999_999


def test_a_client_quota_slows_a_fetch_and_loses_nothing(kafka: KafkaCluster) -> None:
    """What: 3 MB under a quota of 500 KB/s for our client id, read again and again until the quota shows.

    Why: a throttled answer is empty; one tool took it for the end and lost more than half of the records.
    Risk: a truncated backup that reports success.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, values(3_000, 1_000))
    expected = fetch_log(kafka.bootstrap_servers, topic)
    client_id = f"throttled-{secrets.token_hex(4)}"
    limited = Cluster(settings(kafka, client_id=client_id), retry_seconds=5)
    set_quota(kafka, client_id, 500_000)

    def is_throttled() -> bool:
        began = time.monotonic()
        with fetcher(limited, topic, 3_000, max_bytes=500_000, retry_seconds=1) as reader:
            assert raw(iter(reader)) == expected
        return time.monotonic() - began > 1

    wait_for(is_throttled, 60, "the quota")  # brokers forgive a burst of ten seconds' worth
    limited.close()


def test_offsets_outside_the_log_are_told_at_once(kafka: KafkaCluster, cluster: Cluster) -> None:
    """What: an offset above the end, fetched.

    Why: the engine must judge: lost by retention, or cut back.
    Risk: an endless wait.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, values(3))
    with fetcher(cluster, topic, 100, start=50) as reader, pytest.raises(OffsetOutOfRangeError, match="50"):
        list(reader)


def test_a_topic_created_anew_is_not_read_under_its_old_id(kafka: KafkaCluster, cluster: Cluster) -> None:
    """What: a topic deleted and created again between finding its id and fetching.

    Why: same name, other records, offsets from 0 again.
    Risk: two topics' records in one backup.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, values(5))
    reader = fetcher(cluster, topic, 5)
    delete_topic_by_name(kafka, topic)
    new_topic(kafka, name=topic)
    produce(kafka.bootstrap_servers, topic, values(5))
    with reader, pytest.raises(BrokerError, match="deleted and re-created"):
        list(reader)


def test_a_broker_killed_in_the_middle_of_a_read(kafka: KafkaCluster, cluster: Cluster) -> None:
    """What: kill -9 after the first response, restart, and the rest read; then all bytes compared.

    Why: brokers are restarted during every long backup.
    Risk: a hole or a double at the place of the break, or a backup that must begin again.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, values(20_000))
    log = bytearray()
    with fetcher(cluster, topic, 20_000, max_bytes=200_000, retry_seconds=90) as reader:
        responses = iter(reader)
        log += raw(iter([next(responses)]))
        kafka.kill(1)
        starter = threading.Thread(target=kafka.start, args=(1,))
        starter.start()
        log += raw(responses)
        starter.join()
    assert log == fetch_log(kafka.bootstrap_servers, topic)


def test_nobody_answers(kafka: KafkaCluster) -> None:
    """What: a cluster and an admin client whose only server is a port without a broker.

    Why: exit 3 in bounded time, with the address.
    Risk: a job that hangs until somebody looks.
    """
    nowhere = Cluster(ConnectionSettings.from_properties("127.0.0.1:1", {}), retry_seconds=1)
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1"):
        nowhere.metadata(None)
    admin = TopicAdmin(nowhere)
    with pytest.raises(UnreachableError, match="describing the settings of topic x"):
        admin.describe_configs(["x"])
    assert time.monotonic() - began < 60


def test_batches_are_produced_and_acknowledged_with_their_offsets(
    kafka: KafkaCluster, cluster: Cluster
) -> None:
    """What: idempotent batches in all codecs, five in flight; read back by confluent-kafka.

    Why: the base offset in each acknowledgement is the tripwire of a restore.
    Risk: a duplicate or a foreign writer that nobody notices.
    """
    topic = new_topic(kafka)
    identity = topic_id(cluster, topic)
    producer_id, epoch = cluster.init_producer_id()
    assert cluster.init_producer_id()[0] != producer_id
    producer = TopicProducer(cluster, topic, cluster.leader(topic, identity, 0)[0])
    written, sent = [], 0
    for codec in CODECS:
        records = values(10)
        batch = bytearray(encode_batch(records, codec=codec))
        seal(batch, producer_id=producer_id, producer_epoch=epoch, base_sequence=sent)
        producer.send([(0, batch)])
        written += records
        sent += 10
    assert [producer.receive()[0].base_offset for _ in CODECS] == [0, 10, 20, 30, 40]
    producer.send([(0, batch)])
    assert producer.receive()[0].base_offset == 40, "a repeated batch is acknowledged with its first offset"
    producer.close()
    got = read_topic(kafka.bootstrap_servers, topic)[0]
    assert [(r.value, r.timestamp) for r in got] == [(r.value, r.timestamp) for r in written]
    assert ends(kafka.bootstrap_servers, topic) == {0: (0, 50)}


def test_one_request_writes_to_several_partitions(kafka: KafkaCluster, cluster: Cluster) -> None:
    """What: requests that carry a batch for some of four partitions, one of them refused, several in flight.

    Why: a restore of small batches sends them together; each has its own result.
    Risk: a result that is taken for another partition's, or one refused batch that takes the others with it.
    """
    topic = new_topic(kafka, 4)
    # Right after its creation a partition may be known before its leader serves it.
    cluster.list_offsets({(topic, n): LATEST for n in range(4)}, isolation="read_uncommitted")
    producer = TopicProducer(cluster, topic, cluster.leader(topic, topic_id(cluster, topic), 0)[0])
    broken = bytearray(encode_batch(values(1)))
    broken[-1] ^= 1
    good = [bytearray(encode_batch(values(n))) for n in (3, 2, 1)]
    producer.send([(2, good[0]), (0, good[1]), (3, broken)])
    producer.send([(0, good[2]), (1, good[0])])
    first, second = producer.receive(), producer.receive()
    producer.close()
    assert {number: (r.error_code, r.base_offset) for number, r in first.items()} == {
        2: (0, 0),
        0: (0, 0),
        3: (2, -1),
    }
    assert {number: (r.error_code, r.base_offset) for number, r in second.items()} == {0: (0, 2), 1: (0, 0)}
    counts = {number: len(found) for number, found in read_topic(kafka.bootstrap_servers, topic).items()}
    assert counts == {0: 3, 1: 3, 2: 3, 3: 0}


def test_a_refused_batch_says_why(kafka: KafkaCluster, cluster: Cluster) -> None:
    """What: a batch with a broken CRC, one out of sequence, and one that is too large.

    Why: each needs another answer: a bug, a resume, a setting.
    Risk: a restore that retries for ever what the broker will never take.
    """
    topic = new_topic(kafka, config={"max.message.bytes": 1000})
    producer = TopicProducer(cluster, topic, cluster.leader(topic, topic_id(cluster, topic), 0)[0])
    broken = bytearray(encode_batch(values(1)))
    broken[-1] ^= 1
    gap = bytearray(encode_batch(values(1)))
    producer_id, epoch = cluster.init_producer_id()
    seal(gap, producer_id=producer_id, producer_epoch=epoch, base_sequence=0)
    later = bytearray(encode_batch(values(1)))
    seal(later, producer_id=producer_id, producer_epoch=epoch, base_sequence=7)
    names = []
    for batch in (broken, gap, later, bytearray(encode_batch(values(1, 5000)))):
        producer.send([(0, batch)])
        result = producer.receive()[0]
        names.append(getattr(result.to_error("t"), "name", "") if result.error_code else "ok")
    producer.close()
    assert names == ["CORRUPT_MESSAGE", "ok", "OUT_OF_ORDER_SEQUENCE_NUMBER", "MESSAGE_TOO_LARGE"]


def test_topics_are_made_described_changed_and_deleted(
    kafka: KafkaCluster, cluster: Cluster, admin: TopicAdmin
) -> None:
    """What: a topic's life through our admin client, settings with their sources included.

    Why: a restore makes topics safe first and gives them their saved settings last.
    Risk: a setting that is taken for a default, and lost; retention that deletes what is being restored.
    """
    topic = f"made-{secrets.token_hex(4)}"
    would_be = validate_topic(cluster, topic, partitions=3, replication_factor=1)
    assert would_be["cleanup.policy"] == "delete"
    assert topic not in cluster.metadata(None).topics
    admin.create_topic(topic, partitions=3, replication_factor=1, configs={"retention.ms": "-1"})
    assert len(wait_for_leaders(cluster, topic, partitions=3)) == 22
    described = admin.describe_configs([topic])[topic]
    assert (described["retention.ms"].value, described["retention.ms"].source) == (
        "-1",
        "DYNAMIC_TOPIC_CONFIG",
    )
    assert described["cleanup.policy"].source == "DEFAULT_CONFIG"
    admin.alter_configs(topic, set={"cleanup.policy": "compact"}, delete=["retention.ms"])

    def changed() -> bool:
        now = admin.describe_configs([topic])[topic]
        return (
            now["cleanup.policy"].value == "compact" and now["retention.ms"].source != "DYNAMIC_TOPIC_CONFIG"
        )

    wait_for(changed)
    delete_topic(cluster, topic, topic_id(cluster, topic))
    wait_for(lambda: topic not in cluster.metadata(None).topics)
    with pytest.raises(BrokerError, match=topic):
        admin.describe_configs([topic])


@pytest.mark.parametrize("change", [False, True], ids=["describe", "alter"])
def test_a_topic_that_a_broker_does_not_know_yet_is_waited_for(
    cluster: Cluster, admin: TopicAdmin, monkeypatch: pytest.MonkeyPatch, change: bool
) -> None:
    """What: settings asked of a broker before it knows the topic, which exists a moment later; and of one that never does.

    Why: news of a topic that was just made reach one broker before the other, and any of them may be asked.
    Risk: a restore that fails on the topic that it has just made; or one that waits for a topic that nobody has.
    """
    topic, tries = f"t{secrets.token_hex(4)}", 0
    real = TopicAdmin._result

    def late(self: TopicAdmin, future: Any, what: str) -> Any:
        nonlocal tries
        tries += 1
        try:
            return real(self, future, what)
        except BrokerError:
            if topic not in what:
                raise
            monkeypatch.setattr(TopicAdmin, "_result", real)
            admin.create_topic(topic, partitions=1, replication_factor=1, configs={})
            wait_for_leaders(cluster, topic, partitions=1)
            monkeypatch.setattr(TopicAdmin, "_result", late)
            raise

    def ask(name: str) -> None:
        if change:
            admin.alter_configs(name, set={"retention.ms": "-1"}, delete=())
        else:
            admin.describe_configs([name])

    monkeypatch.setattr(TopicAdmin, "_result", late)
    ask(topic)
    assert tries == 2
    with pytest.raises(BrokerError, match=r"settings of topic nobodys: .*UNKNOWN_TOPIC_OR_PARTITION"):
        ask("nobodys")
    assert tries == 3


def test_impossible_topics_are_refused_with_the_brokers_reason(cluster: Cluster, admin: TopicAdmin) -> None:
    """What: more replicas than brokers, an unknown setting, an illegal name; validated and created.

    Why: preflight finds it all before a byte is written.
    Risk: a restore that fails half way.
    """
    name = f"never-{secrets.token_hex(4)}"
    with pytest.raises(BrokerError, match=r"(?i)replication"):
        validate_topic(cluster, name, partitions=1, replication_factor=7)
    with pytest.raises(BrokerError, match=r"no\.such\.setting"):
        validate_topic(
            cluster, name, partitions=1, replication_factor=1, configuration={"no.such.setting": "1"}
        )
    with pytest.raises(KafkaBackupError, match=name):
        admin.create_topic(name, partitions=1, replication_factor=7, configs={})
    assert name not in cluster.metadata(None).topics


def test_settings_of_many_topics_are_described_quickly(
    kafka: KafkaCluster, cluster: Cluster, admin: TopicAdmin
) -> None:
    """What: the settings of 1,000 topics in one call.

    Why: every capture asks for all of them.
    Risk: a question for each topic, and minutes before the first byte.
    """
    topics = [f"many-{secrets.token_hex(6)}" for _ in range(1000)]
    librdkafka = kafka.admin()
    made = librdkafka.create_topics([NewTopic(topic, 1, 1) for topic in topics])
    for future in made.values():
        future.result(60)
    wait_for(lambda: set(topics) <= set(cluster.metadata(None).topics), 60)
    described = admin.describe_configs(topics)
    assert set(described) == set(topics)
    for future in librdkafka.delete_topics(topics).values():
        future.result(60)


def test_a_bootstrap_server_that_is_gone(kafka: KafkaCluster) -> None:
    """What: connection settings with one server that is there and one that is not.

    Why: bootstrap lists outlive brokers.
    Risk: a backup that fails because the first server of three is gone.
    """
    both = ConnectionSettings.from_properties(f"127.0.0.1:1,{kafka.bootstrap_servers}", {})
    for _ in range(5):
        client = Cluster(both, retry_seconds=10)
        assert client.metadata([]).cluster_id == kafka.cluster_id
        client.close()


def test_a_tls_listener_that_is_none(kafka: KafkaCluster) -> None:
    """What: security.protocol SSL against a plain-text listener.

    Why: the most common mistake in a first configuration.
    Risk: an error that does not hint at it.
    """
    wrong = settings(kafka, security_protocol="SSL", socket_timeout_ms="2000")
    with pytest.raises((UnreachableError, ConfigurationError), match=r"security\.protocol"):
        Cluster(wrong, retry_seconds=1).metadata(None)
