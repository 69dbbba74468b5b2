"""Connections that are lent again: which, how many, and which not."""

import struct
from collections.abc import Iterator

import pytest

from kafka_backup.errors import UnreachableError
from kafka_backup.kafka import connection_pool
from kafka_backup.kafka.connection_pool import ConnectionPool
from kafka_backup.kafka.settings import Address, ConnectionSettings
from tests.support.scripted_broker import ScriptedBroker
from tests.support.waiting import wait_for


@pytest.fixture
def broker() -> Iterator[ScriptedBroker]:
    with ScriptedBroker() as serving:
        yield serving


def pool_of(broker: ScriptedBroker) -> tuple[ConnectionPool, Address]:
    settings = ConnectionSettings.from_properties(broker.address, {"socket.timeout.ms": "5000"})
    return ConnectionPool(settings), settings.bootstrap[0]


def test_a_quiet_connection_is_lent_again_and_one_in_use_is_not(broker: ScriptedBroker) -> None:
    """What: two at the same time, given back, taken again; the one used last first.

    Why: a handshake by TLS and SASL costs more than most questions.
    Risk: a connection for each of thousands of partitions, or one that two threads share.
    """
    pool, address = pool_of(broker)
    first, second = pool.take(address), pool.take(address)
    assert first is not second
    pool.give_back(second)
    pool.give_back(first)
    assert pool.take(address) is first
    assert pool.take(address) is second
    assert (pool.opened, broker.connections) == (2, 2)


def test_a_connection_with_an_outstanding_response_is_not_lent_again(broker: ScriptedBroker) -> None:
    """What: a request whose response nobody waited for.

    Why: the next user would be given the answer to somebody else's question.
    Risk: the end offset of one partition believed of another.
    """
    broker.script[3] = lambda _: None
    pool, address = pool_of(broker)
    connection = pool.take(address)
    connection.send(3, 12, b"\1\0\0\0")
    pool.give_back(connection)
    assert connection.closed
    assert pool.take(address) is not connection


def test_what_the_broker_says_unasked_makes_a_connection_unusable(broker: ScriptedBroker) -> None:
    """What: bytes that arrive while the connection is idle.

    Why: they are no answer to anything.
    Risk: as above.
    """
    pool, address = pool_of(broker)
    connection = pool.take(address)
    pool.give_back(connection)
    broker.send_to_last(b"hello")
    wait_for(lambda: not connection.is_reusable)
    assert pool.take(address) is not connection
    assert connection.closed


def test_a_broker_that_hung_up_meanwhile_is_connected_to_again(broker: ScriptedBroker) -> None:
    """What: the broker closes idle connections, as it does after connections.max.idle.ms and at a restart.

    Why: nothing is wrong; the next question must not fail.
    Risk: a failed partition after each quiet ten minutes.
    """
    pool, address = pool_of(broker)
    connection = pool.take(address)
    pool.give_back(connection)
    broker.drop_all()
    wait_for(lambda: not connection.is_reusable)
    assert not pool.take(address).closed
    assert broker.connections == 2


def test_where_one_connection_broke_its_idle_siblings_are_given_up(broker: ScriptedBroker) -> None:
    """What: three idle connections to a broker that is silent from now on; one of them times out.

    Why: a firewall that forgot them tells nobody; each would cost its user a whole socket.timeout.ms.
    Risk: the retries of a minute all spent on dead connections.
    """
    settings = ConnectionSettings.from_properties(broker.address, {"socket.timeout.ms": "300"})
    pool, address = ConnectionPool(settings), settings.bootstrap[0]
    with ScriptedBroker() as other:
        elsewhere = pool.take(Address("127.0.0.1", other.port))
        connections = [pool.take(address) for _ in range(3)]
        for connection in (elsewhere, *connections):
            pool.give_back(connection)
        broker.script[3] = lambda _: None
        with pytest.raises(UnreachableError), pool.lent(address) as lent:
            lent.send(3, 12, b"\1\0\0\0")
            lent.receive()
        assert all(connection.closed for connection in connections)
        assert pool.take(elsewhere.address) is elsewhere


def test_an_error_of_ones_own_closes_only_the_connection_at_hand(broker: ScriptedBroker) -> None:
    """What: an exception in the block that has a connection, which itself is fine.

    Why: nobody knows what was sent and what was read; the others have nothing to do with it.
    Risk: all connections opened anew after each retriable error code.
    """
    broker.script[3] = lambda _: struct.pack(">i", 0)
    pool, address = pool_of(broker)
    idle, used = pool.take(address), pool.take(address)
    pool.give_back(idle)
    pool.give_back(used)
    with pytest.raises(RuntimeError), pool.lent(address):
        raise RuntimeError("of our own")
    assert used.closed
    assert pool.take(address) is idle


def test_what_is_kept_idle_is_bounded(broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What: more idle connections than are kept; some that are idle for too long.

    Why: each costs a descriptor and a receive buffer, here and at the broker.
    Risk: "too many open files" on a cluster of a hundred brokers.
    """
    monkeypatch.setattr(connection_pool, "MOST_IDLE", 3)
    pool, address = pool_of(broker)
    connections = [pool.take(address) for _ in range(5)]
    for connection in connections:
        pool.give_back(connection)
    assert [connection.closed for connection in connections] == [True, True, False, False, False]
    monkeypatch.setattr(connection_pool, "LONGEST_IDLE_SECONDS", -1.0)
    last = pool.take(address)
    pool.give_back(last)
    assert all(connection.closed for connection in connections)
    pool.close()
    assert pool.take(address) not in connections
