"""Producer ids that leave a run's predecessors behind.

A producer id that belongs to a transactional id gets a higher epoch each time somebody asks for it.
Once a partition has seen a batch of the higher epoch, its leader refuses those of lower ones
(INVALID_PRODUCER_EPOCH): a request that was on its way for minutes, or a process that was frozen while
it sent, can add nothing any more. No transaction is ever begun, so no marker takes an offset.

A leader forgets a producer by the times of its records (`producer.id.expiration.ms`), so this fence
does not stand for ever in front of old records; it is a second one, behind the check of who owns the
restore, and before the check of each acknowledged offset.
"""

from __future__ import annotations

import datetime
import random
import threading
import time
from collections.abc import Callable

from kio.schema.find_coordinator.v4.request import FindCoordinatorRequest
from kio.schema.find_coordinator.v4.response import FindCoordinatorResponse
from kio.schema.init_producer_id.v4.request import InitProducerIdRequest
from kio.schema.init_producer_id.v4.response import InitProducerIdResponse

from kafka_backup.errors import AuthorizationError, BrokerError, UnreachableError
from kafka_backup.kafka.cluster import Cluster, broker_error
from kafka_backup.kafka.coordinators import TRANSACTION_KEY
from kafka_backup.kafka.settings import Address

_FIRST_SECONDS = 15.0
"""How long a cluster may take to make its transaction log; some are set up so that they never can."""


class ProducerIds:
    """Gives a run producer ids of one transactional id; plain ones where the cluster gives none.

    Safe for many threads.
    """

    def __init__(self, cluster: Cluster, transactional_id: str, *, wait: Callable[[float], None]) -> None:
        """Prepare; nothing is contacted yet.

        Args:
            cluster: whose partitions are written.
            transactional_id: the same for all runs that must fence each other.
            wait: sleeps for some seconds; raises to stop.
        """
        self._cluster = cluster
        self._transactional_id = transactional_id
        self._wait = wait
        self._lock = threading.Lock()
        self._patience = _FIRST_SECONDS
        self._refused = False

    @property
    def fenced(self) -> bool:
        """Whether all ids given so far fence those of earlier runs."""
        return not self._refused

    def next(self) -> tuple[int, int]:
        """Return a producer id and an epoch higher than any that was given for the transactional id before.

        Where we may not use it, or the cluster cannot keep a transaction log, the id is a plain one.

        Raises:
            UnreachableError: no broker gives any.
        """
        with self._lock:
            if not self._refused:
                try:
                    given = self._of_transactional_id()
                except (AuthorizationError, BrokerError, UnreachableError):
                    self._refused = True
                else:
                    self._patience = self._cluster.retry_seconds
                    return given
        return self._cluster.init_producer_id()

    def _of_transactional_id(self) -> tuple[int, int]:
        end = time.monotonic() + self._patience
        while True:
            try:
                return self._ask(self._coordinator())
            except (BrokerError, UnreachableError) as error:
                if not error.retriable or time.monotonic() > end:
                    raise
            self._wait(random.uniform(0.05, 0.2))

    def _coordinator(self) -> Address:
        request = FindCoordinatorRequest(
            key_type=TRANSACTION_KEY,  # type: ignore[arg-type]
            coordinator_keys=(self._transactional_id,),
        )
        answer = self._cluster.ask_any("finding a coordinator", request, FindCoordinatorResponse)
        (found,) = answer.coordinators
        if found.error_code:
            raise broker_error(found.error_code, f"finding the coordinator of {self._transactional_id!r}")
        return Address(found.host, int(found.port))

    def _ask(self, coordinator: Address) -> tuple[int, int]:
        request = InitProducerIdRequest(
            transactional_id=self._transactional_id,  # type: ignore[arg-type]
            transaction_timeout=datetime.timedelta(seconds=60),  # type: ignore[arg-type]
        )
        answer = self._cluster.ask(coordinator, request, InitProducerIdResponse)
        if answer.error_code:
            raise broker_error(answer.error_code, f"asking for a producer id of {self._transactional_id!r}")
        return int(answer.producer_id), int(answer.producer_epoch)
