"""The connections to a cluster, shared by all who talk to it: a quiet one is lent again, not closed.

TLS and SASL handshakes cost more than most questions, and a cluster of thousands of partitions would see
as many of them. A connection is used by one thread at a time, so there are never more in use than threads
work; how many are kept besides is bounded here.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from kafka_backup.kafka.connection import Connection
from kafka_backup.kafka.settings import Address, ConnectionSettings

MOST_IDLE = 64
"""Idle connections that are kept, over all brokers; the one unused for longest is closed first."""
LONGEST_IDLE_SECONDS = 120.0
"""Load balancers forget a silent connection after some minutes, and tell nobody."""


class ConnectionPool:
    """Lends connections. Safe to use from many threads.

    Attributes:
        opened: connections opened so far.
    """

    def __init__(self, settings: ConnectionSettings) -> None:
        """Prepare; nothing is contacted yet."""
        self._settings = settings
        self._lock = threading.Lock()
        self._idle: deque[tuple[float, Connection]] = deque()
        self.opened = 0

    def take(self, address: Address) -> Connection:
        """Return a connection to a broker, which the caller gives back or closes.

        Raises:
            UnreachableError, ConfigurationError: as `Connection` does.
        """
        while (connection := self._idle_one(address)) is not None:
            if connection.is_reusable:
                return connection
            connection.close()
        connection = Connection(address, self._settings)
        with self._lock:
            self.opened += 1
        return connection

    def _idle_one(self, address: Address) -> Connection | None:
        """The idle connection to a broker that was used last."""
        with self._lock:
            for index in range(len(self._idle) - 1, -1, -1):
                connection = self._idle[index][1]
                if connection.address == address:
                    del self._idle[index]
                    return connection
        return None

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next who wants one, if it is open and no response is outstanding."""
        if not connection.is_reusable:
            self.discard(connection)
            return
        now = time.monotonic()
        unwanted = []
        with self._lock:
            self._idle.append((now, connection))
            while self._idle and (
                len(self._idle) > MOST_IDLE or now - self._idle[0][0] > LONGEST_IDLE_SECONDS
            ):
                unwanted.append(self._idle.popleft()[1])
        for each in unwanted:
            each.close()

    def discard(self, connection: Connection) -> None:
        """Close a connection; if it had broken, also the idle ones to that broker, which may be dead too.

        Each of them would cost who takes it a whole socket.timeout.ms.
        """
        unwanted = [connection]
        if connection.closed:
            with self._lock:
                unwanted += [each for _, each in self._idle if each.address == connection.address]
                self._idle = deque(entry for entry in self._idle if entry[1].address != connection.address)
        for each in unwanted:
            each.close()

    @contextmanager
    def lent(self, address: Address) -> Iterator[Connection]:
        """A connection for the time of the block; after an error in it, it is closed."""
        connection = self.take(address)
        try:
            yield connection
        except BaseException:
            self.discard(connection)
            raise
        self.give_back(connection)

    def close(self) -> None:
        """Close the idle connections; the pool can be used again."""
        with self._lock:
            idle = [connection for _, connection in self._idle]
            self._idle.clear()
        for connection in idle:
            connection.close()
