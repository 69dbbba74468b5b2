"""Commit offsets for many groups in one transaction: all of them, or none (KIP-98).

A coordinator takes a transactional commit even for a group that has members, unlike a plain one; to
look before the end is the caller's business.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from kio.schema.add_offsets_to_txn.v3.request import AddOffsetsToTxnRequest
from kio.schema.add_offsets_to_txn.v3.response import AddOffsetsToTxnResponse
from kio.schema.end_txn.v3.request import EndTxnRequest
from kio.schema.end_txn.v3.response import EndTxnResponse
from kio.schema.errors import ErrorCode
from kio.schema.init_producer_id.v4.request import InitProducerIdRequest
from kio.schema.init_producer_id.v4.response import InitProducerIdResponse
from kio.schema.txn_offset_commit.v3.request import (
    TxnOffsetCommitRequest,
    TxnOffsetCommitRequestPartition,
    TxnOffsetCommitRequestTopic,
)
from kio.schema.txn_offset_commit.v3.response import TxnOffsetCommitResponse

from kafka_backup.errors import BrokerError, KafkaBackupError
from kafka_backup.kafka.cluster import broker_error, by_topic
from kafka_backup.kafka.coordinators import THREADS
from kafka_backup.kafka.groups import GroupClient, GroupOffsets, chunks, errors_of
from kafka_backup.kafka.settings import Address

_T = TypeVar("_T")
_FENCED = frozenset({int(ErrorCode.producer_fenced), int(ErrorCode.invalid_producer_epoch)})


class FencedError(BrokerError):
    """Another run has begun a transaction under the same id, which ended this one."""


class GroupTransaction:
    """One transaction under a transactional id. To begin ends what an earlier run left open under it.

    Nobody sees its offsets before `commit`; who asks for stable ones waits for the end.
    """

    def __init__(self, groups: GroupClient, transactional_id: str, *, timeout_seconds: float) -> None:
        """Begin.

        Args:
            groups: knows the coordinators.
            transactional_id: of its owner.
            timeout_seconds: after which the brokers abort it by themselves.

        Raises:
            UnreachableError: no coordinator, or an earlier transaction that does not come to its end.
            AuthorizationError: the right WRITE on the transactional id is missing.
        """
        self._groups = groups
        self._id = transactional_id
        self._coordinator: Address | None = None
        request = InitProducerIdRequest(
            transactional_id=transactional_id,  # type: ignore[arg-type]
            transaction_timeout=datetime.timedelta(seconds=timeout_seconds),  # type: ignore[arg-type]
        )

        def begin(coordinator: Address) -> tuple[int, int]:
            answer = groups.cluster.ask(coordinator, request, InitProducerIdResponse)
            self._check(answer.error_code, "beginning it")
            return int(answer.producer_id), int(answer.producer_epoch)

        self._producer_id, self._epoch = self._at_coordinator("beginning", begin)

    def add(self, offsets: Mapping[str, GroupOffsets]) -> None:
        """Commit offsets of some groups within the transaction.

        Raises:
            KafkaBackupError: of the first group that failed; abort then.
        """
        for group in offsets:
            self._announce(group)
        coordinators = dict(self._groups.coordinators.of_groups(list(offsets))[1])
        with ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="groups") as pool:
            list(pool.map(partial(self._write, coordinators=coordinators), offsets, offsets.values()))

    def commit(self) -> None:
        """Make all of it real. After an error it is unknown whether it is."""
        self._end(committed=True)

    def abort(self) -> None:
        """Undo all of it; where no broker has heard of any group yet, there is nothing to undo."""
        try:
            self._end(committed=False)
        except BrokerError as error:
            if error.code != int(ErrorCode.invalid_txn_state):
                raise

    def _announce(self, group: str) -> None:
        request = AddOffsetsToTxnRequest(
            transactional_id=self._id,  # type: ignore[arg-type]
            producer_id=self._producer_id,  # type: ignore[arg-type]
            producer_epoch=self._epoch,  # type: ignore[arg-type]
            group_id=group,  # type: ignore[arg-type]
        )

        def announce(coordinator: Address) -> None:
            answer = self._groups.cluster.ask(coordinator, request, AddOffsetsToTxnResponse)
            self._check(answer.error_code, f"adding group {group!r}")

        self._at_coordinator(f"adding group {group!r}", announce)

    def _write(
        self, group: str, offsets: GroupOffsets, coordinators: dict[str, Address | KafkaBackupError]
    ) -> None:
        """Commit for one group; whoever fails as its coordinator is forgotten, and looked for again."""
        what = f"transaction {self._id}: committing for group {group!r}"
        for part in chunks(offsets):
            request = self._request(group, part)

            def write(request: TxnOffsetCommitRequest = request) -> None:
                coordinator = (
                    coordinators.pop(group, None) or self._groups.coordinators.of_groups([group])[1][group]
                )
                if isinstance(coordinator, KafkaBackupError):
                    raise coordinator
                answer = self._groups.cluster.ask(coordinator, request, TxnOffsetCommitResponse)
                for error in errors_of(answer.topics, what).values():
                    raise error
                coordinators[group] = coordinator

            self._groups.cluster.retry(what, write)

    def _request(self, group: str, offsets: GroupOffsets) -> TxnOffsetCommitRequest:
        return TxnOffsetCommitRequest(
            transactional_id=self._id,  # type: ignore[arg-type]
            group_id=group,  # type: ignore[arg-type]
            producer_id=self._producer_id,  # type: ignore[arg-type]
            producer_epoch=self._epoch,  # type: ignore[arg-type]
            topics=tuple(
                TxnOffsetCommitRequestTopic(
                    name=topic,  # type: ignore[arg-type]
                    partitions=tuple(
                        TxnOffsetCommitRequestPartition(
                            partition_index=number,  # type: ignore[arg-type]
                            committed_offset=offsets[topic, number].offset,  # type: ignore[arg-type]
                            committed_leader_epoch=offsets[topic, number].leader_epoch,  # type: ignore[arg-type]
                            committed_metadata=offsets[topic, number].metadata,
                        )
                        for number in numbers
                    ),
                )
                for topic, numbers in by_topic(list(offsets)).items()
            ),
        )

    def _end(self, *, committed: bool) -> None:
        # Begun, it must come to an end, also when somebody asks to stop.
        self._groups = GroupClient(self._groups.cluster.stoppable(lambda: None))
        request = EndTxnRequest(
            transactional_id=self._id,  # type: ignore[arg-type]
            producer_id=self._producer_id,  # type: ignore[arg-type]
            producer_epoch=self._epoch,  # type: ignore[arg-type]
            committed=committed,
        )
        what = "committing it" if committed else "aborting it"

        def end(coordinator: Address) -> None:
            answer = self._groups.cluster.ask(coordinator, request, EndTxnResponse)
            self._check(answer.error_code, what)

        self._at_coordinator(what, end)

    def _at_coordinator(self, what: str, ask: Callable[[Address], _T]) -> _T:
        """Ask the coordinator of the transaction, with retries, wherever it is then."""

        def attempt() -> _T:
            coordinator: Address | KafkaBackupError | None
            # Whoever fails is forgotten, and looked for again.
            coordinator, self._coordinator = self._coordinator, None
            if coordinator is None:
                coordinator = self._groups.coordinators.of_transaction(self._id)
            if isinstance(coordinator, KafkaBackupError):
                raise coordinator
            answer = ask(coordinator)
            self._coordinator = coordinator
            return answer

        return self._groups.cluster.retry(f"transaction {self._id}: {what}", attempt)

    def _check(self, code: int, what: str) -> None:
        if int(code) in _FENCED:
            raise FencedError(
                f"transaction {self._id}: {what}: {ErrorCode(code).name.upper()}; another run took over, or it took too long",
                code=int(code),
                name=ErrorCode(code).name.upper(),
                retriable=False,
            )
        if code:
            raise broker_error(code, f"transaction {self._id}: {what}")
