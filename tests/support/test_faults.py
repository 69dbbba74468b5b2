"""The faults that chaos tests use do what their names say, and can be undone."""

import pytest
from confluent_kafka import KafkaException

from tests.support import kafka_wire
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import new_topic, produce, read_topic
from tests.support.waiting import wait_for

pytestmark = pytest.mark.chaos

TUNED = {"socket.timeout.ms": 5000, "request.timeout.ms": 4000}
RECORDS = [NewRecord(b"%d" % number) for number in range(100)]


@pytest.mark.parametrize("fault", ["kill", "pause", "disconnect"])
def test_a_leader_that_fails_is_replaced_and_comes_back(kafka3: KafkaCluster, fault: str) -> None:
    """What: the leader is killed, frozen or cut off from its peers; a new one takes over; then it heals.

    Why: every chaos test of the engine rests on these three.
    Risk: a fault that does nothing makes a chaos test pass for the wrong reason.
    """
    topic = new_topic(kafka3)
    produce(kafka3.bootstrap_servers, topic, RECORDS, config=TUNED)
    leader = kafka3.leader_of(topic)
    other = next(each for each in kafka3.ids if each != leader)
    hurt = {"kill": kafka3.kill, "pause": kafka3.pause, "disconnect": kafka3.disconnect}[fault]
    heal = {"kill": kafka3.start, "pause": kafka3.unpause, "disconnect": kafka3.connect}[fault]
    hurt(leader)
    try:
        wait_for(lambda: kafka3.leader_of(topic, via=other) not in (leader, -1), 60, "a new leader")
        produce(kafka3.bootstrap_servers_without(leader), topic, RECORDS, config=TUNED)
    finally:
        heal(leader)
    wait_for(lambda: kafka3.in_sync(topic) == 3, 60, "the healed broker to be in sync")
    values = [record.value for record in read_topic(kafka3.bootstrap_servers, topic)[0]]
    assert values == [record.value for record in RECORDS * 2]


@pytest.mark.parametrize("fault", ["silent", "reset"])
def test_a_client_that_is_cut_off_gets_nothing_and_the_cluster_notices_nothing(
    kafka3: KafkaCluster, fault: str
) -> None:
    """What: the proxy of the leader swallows everything, or cuts every connection; then it opens again.

    Why: a backup tool meets broken networks between itself and a healthy cluster.
    Risk: the broker notices and fails over, and the test is about something else.
    """
    topic = new_topic(kafka3)
    leader = kafka3.leader_of(topic)
    other = next(each for each in kafka3.ids if each != leader)
    proxy = kafka3.proxies[leader]
    (proxy.silent if fault == "silent" else proxy.reset)()
    try:
        with pytest.raises(OSError):
            kafka_wire.metadata(kafka3.ports[leader], topic)
        with pytest.raises((KafkaException, TimeoutError)):
            produce(kafka3.bootstrap_servers, topic, RECORDS, config={**TUNED, "delivery.timeout.ms": 5000})
        assert kafka3.leader_of(topic, via=other) == leader
    finally:
        proxy.open()
    topic = new_topic(kafka3)
    produce(kafka3.bootstrap_servers, topic, RECORDS)
    assert len(read_topic(kafka3.bootstrap_servers, topic)[0]) == 100


def test_a_lone_broker_keeps_its_data_when_it_is_killed(kafka: KafkaCluster) -> None:
    """What: kill -9 and a new start of a single broker.

    Why: the same port, address and data are what makes it the same broker to clients.
    Risk: an empty broker at another port would look like data loss by the engine.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, RECORDS)
    kafka.kill(1)
    kafka.start(1)
    assert len(read_topic(kafka.bootstrap_servers, topic)[0]) == 100
