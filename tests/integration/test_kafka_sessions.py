"""Sessions that the broker ends after two seconds (KIP-368), with work that takes longer."""

import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kio.schema.metadata.v12.request import MetadataRequest
from kio.schema.metadata.v12.response import MetadataResponse

from kafka_backup import BackupConfig, ClusterConfig, Engine, EngineConfig, RepositoryConfig
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.connection import Connection
from kafka_backup.kafka.connection_pool import ConnectionPool
from kafka_backup.kafka.fetch import PartitionFetcher
from kafka_backup.kafka.produce import TopicProducer
from kafka_backup.kafka.settings import Address, ConnectionSettings
from kafka_backup.kafka.topics import TopicAdmin
from tests.support.engine import capture, restore, restored_as
from tests.support.quotas import set_quota
from tests.support.records import NewRecord, encode_batch
from tests.support.secure_cluster import SESSION_MS, USER, SecureCluster
from tests.support.topics import new_topic, produce, read_topic
from tests.support.waiting import wait_for

RENEWALS = 2


class Watched(ConnectionPool):
    """Remembers the connections that were taken to move records."""

    def __init__(self, settings: ConnectionSettings) -> None:
        super().__init__(settings)
        self.taken: list[Connection] = []

    def take(self, address: Address) -> Connection:
        self.taken.append(super().take(address))
        return self.taken[-1]


def settings(secure: SecureCluster, mechanism: str = "SCRAM-SHA-512") -> ConnectionSettings:
    """Of a client at the listener whose sessions are short; tokens are good for a few of them."""
    properties = secure.properties("SHORT", mechanism)
    if mechanism != "OAUTHBEARER":
        return ConnectionSettings.from_properties(secure.servers("SHORT"), properties)
    return ConnectionSettings.from_properties(
        secure.servers("SHORT"),
        properties,
        oauth_cb=token_of(secure),
    )


def token_of(secure: SecureCluster) -> Callable[[str], tuple[str, float]]:
    """Gives tokens that are good for a few sessions."""
    return lambda _: (secure.signer.token(USER, lifetime=8), time.time() + 8)


@pytest.fixture
def cluster(secure: SecureCluster) -> Iterator[Cluster]:
    asking = Cluster(settings(secure), retry_seconds=30)
    yield asking
    asking.close()


def watched(cluster: Cluster) -> Watched:
    """From now on, the cluster's connections are these."""
    cluster.connections.close()
    cluster.connections = pool = Watched(cluster.settings)
    return pool


def test_a_connection_outlives_its_sessions(secure: SecureCluster) -> None:
    """What: connections that are asked again and again, for several sessions, one by each mechanism.

    Why: a broker hangs up on the first request after a session's end; tokens end too.
    Risk: a capture of an hour breaks each few minutes; or the second session shows the first one's token.
    """
    connections = []
    for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"):
        known = settings(secure, mechanism)
        connections.append(Connection(known.bootstrap[0], known))
    question = MetadataRequest(topics=(), include_topic_authorized_operations=False)

    def renewed() -> bool:
        for connection in connections:
            assert connection.request(question, MetadataResponse).cluster_id == secure.cluster_id
        return all(connection.authentications > RENEWALS for connection in connections)

    wait_for(renewed, interval=0.1)
    for connection in connections:
        connection.close()


def test_both_clients_survive_a_long_silence(secure: SecureCluster) -> None:
    """What: nothing is asked until the sessions are over; then our client and the admin client go on.

    Why: a capture may be busy with the store for minutes.
    Risk: the first question afterwards fails, and the topic with it.
    """
    known = settings(secure)
    cluster = Cluster(known, retry_seconds=30)
    admin = TopicAdmin(cluster)
    topic = new_topic(secure)
    began = time.monotonic()
    assert cluster.metadata([topic]).topics.keys() == admin.describe_configs([topic]).keys()
    wait_for(lambda: time.monotonic() - began > SESSION_MS / 1000 + 1, interval=0.1)
    assert cluster.metadata([topic]).topics.keys() == admin.describe_configs([topic]).keys()
    cluster.close()
    admin.close()


def test_a_slow_fetch_goes_on_through_its_sessions(secure: SecureCluster, cluster: Cluster) -> None:
    """What: one partition read so slowly that the session ends several times, on one connection.

    Why: a capture is as slow as its store, its cap or the broker's quota.
    Risk: a batch that is skipped or doubled where the session was renewed.
    """
    topic = new_topic(secure)
    count = 1500
    produce(
        secure.bootstrap_servers,
        topic,
        [NewRecord(b"%d" % n) for n in range(count)],
        config={"batch.num.messages": 1, "linger.ms": 0},
    )
    topic_id = cluster.metadata([topic]).topics[topic].topic_id
    pool = watched(cluster)
    fetcher = PartitionFetcher(
        cluster,
        topic,
        topic_id,
        0,
        start=0,
        end=count,
        isolation="read_committed",
        retry_seconds=30,
        check_stop=lambda: None,
        max_bytes=1,
    )
    offsets = []
    with fetcher:
        for fetched in fetcher:
            offsets += [header.base_offset for _, header in fetched.batches]
            if pool.taken[0].authentications <= RENEWALS:
                time.sleep(0.02)  # a slow reader
    assert offsets == list(range(count))
    assert len(pool.taken) == 1
    assert pool.taken[0].authentications > RENEWALS


def test_a_pipeline_of_writes_goes_on_through_its_sessions(secure: SecureCluster, cluster: Cluster) -> None:
    """What: batches with five in flight all the time, while the session is renewed several times.

    Why: the answers that are on their way come before the broker's answer to the renewal.
    Risk: an acknowledgement taken for another batch's, or lost: the restore's tripwire would fire.
    """
    topic = new_topic(secure)
    topic_id = cluster.metadata([topic]).topics[topic].topic_id
    leader, _ = cluster.leader(topic, topic_id, 0)
    pool = watched(cluster)
    producer = TopicProducer(cluster, topic, leader)
    connection = pool.taken[-1]
    renewed = connection.authentications + RENEWALS
    sent = acknowledged = 0
    while connection.authentications < renewed or acknowledged < sent:
        while sent - acknowledged < 5 and connection.authentications < renewed:
            batch = encode_batch([NewRecord(b"%d" % sent, timestamp=1_700_000_000_000)])
            producer.send([(0, bytearray(batch))])
            sent += 1
        result = producer.receive()[0]
        assert (result.error_code, result.base_offset) == (0, acknowledged)
        acknowledged += 1
    producer.close()
    assert pool.taken[-1] is connection
    assert not connection.closed
    records = read_topic(secure.bootstrap_servers, topic)[0]
    assert [record.value for record in records] == [b"%d" % n for n in range(sent)]


def test_a_throttled_capture_outlives_its_sessions(
    secure: SecureCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: a capture slowed by a quota to several sessions, each with a token; then restored, and compared.

    Why: a broker that throttles a client reads its next request late: it hangs up if the session is over by
    then, and it refuses to renew a session twice within a second.
    Risk: connections that are given up and opened again for hours; or "does not offer OAUTHBEARER".
    """
    topic = new_topic(secure, 2)
    for partition in range(2):
        values = [NewRecord(b"%d-%d" % (partition, n) + bytes(10_000)) for n in range(120)]
        produce(secure.bootstrap_servers, topic, values, partition=partition, config={"batch.size": 50_000})
    client_id = f"slow-{secrets.token_hex(4)}"
    set_quota(secure, client_id, 200_000)
    connections: set[Connection] = set()
    authenticate = Connection._authenticate

    def watched(connection: Connection) -> None:
        connections.add(connection)
        authenticate(connection)

    monkeypatch.setattr(Connection, "_authenticate", watched)
    config = EngineConfig(
        cluster=ClusterConfig(
            bootstrap_servers=secure.servers("SHORT"),
            properties=secure.properties("SHORT", "OAUTHBEARER", client_id=client_id),
            oauth_cb=token_of(secure),
            retry_seconds=30,
        ),
        repository=RepositoryConfig(url=f"file://{tmp_path}"),
        backup=BackupConfig(consumer_groups=(), segment_bytes=1 << 16),
    )
    with Engine.open(config) as engine:
        capture(engine, topic)
        assert max(connection.authentications for connection in connections) > RENEWALS
        assert len(connections) <= 4
        set_quota(secure, client_id, 100_000_000)
        restore(engine, "r1", topic)
    assert read_topic(secure.bootstrap_servers, f"restored-{topic}") == restored_as(secure, topic)
