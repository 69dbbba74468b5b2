"""Aborted transactions, against the tests' plain decoder."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.records.aborted import AbortedFilter
from kafka_backup.records.batch import walk
from kafka_backup.records.codec import ABORT, COMMIT, Record, encode_batch


def _data(offset: int, producer_id: int, *, transactional: bool = True) -> bytes:
    records = [Record(offset=offset + i, timestamp=1, key=None, value=b"v") for i in range(2)]
    return encode_batch(
        records, transactional=transactional, producer_id=producer_id, producer_epoch=0, base_sequence=0
    )


def _marker(offset: int, producer_id: int, kind: int) -> bytes:
    record = Record(offset=offset, timestamp=1, key=struct.pack(">hh", 0, kind), value=b"\0" * 6)
    return encode_batch([record], control=True, transactional=True, producer_id=producer_id, producer_epoch=0)


def _judge(log: bytes, aborted: list[tuple[int, int]]) -> list[bool]:
    judge = AbortedFilter(aborted)
    return [judge.is_aborted(position, header, log) for position, header in walk(log)]


def test_a_committed_transaction_after_an_aborted_one_is_kept() -> None:
    """Tests one producer: aborted, marker, committed, marker.

    It matters because producers go on after an abort, with the same id.
    Without the marker's meaning all their later records would be left out: lost.
    """
    log = _data(0, 5) + _marker(2, 5, ABORT) + _data(3, 5) + _marker(5, 5, COMMIT)
    assert _judge(log, [(5, 0)]) == [True, False, False, False]


def test_other_producers_and_plain_batches_are_kept() -> None:
    """Tests that within an aborted span other ids, and batches without a transaction, stay.

    It matters because transactions of many producers are interleaved in one partition.
    A span taken by offsets alone would drop what others committed.
    """
    log = _data(0, 5) + _data(2, 6) + _data(4, 5, transactional=False) + _data(6, -1, transactional=False)
    log += _data(8, 5) + _marker(10, 6, COMMIT) + _data(11, 5) + _marker(13, 5, ABORT)
    assert _judge(log, [(5, 0)]) == [True, False, False, False, True, False, True, False]


def test_two_aborted_transactions_of_one_producer() -> None:
    """Tests that a list with the same id twice aborts both spans and nothing between them.

    It matters because a producer that retries fails more than once in one response.
    A set instead of a list by first offset would forget the second.
    """
    log = _data(0, 5) + _marker(2, 5, ABORT) + _data(3, 5) + _marker(5, 5, COMMIT)
    log += _data(6, 5) + _marker(8, 5, ABORT)
    assert _judge(log, [(5, 6), (5, 0)]) == [True, False, False, False, True, False]


def test_a_transaction_that_began_before_this_response() -> None:
    """Tests that a first offset below the response's first batch aborts from that batch on.

    It matters because a response can begin in the middle of a transaction.
    Waiting for the exact first offset would let its rest through.
    """
    log = _data(100, 5) + _marker(102, 5, ABORT) + _data(103, 5)
    assert _judge(log, [(5, 3)]) == [True, False, False]


def test_an_abort_marker_emptied_by_compaction_ends_nothing() -> None:
    """Tests that a control batch without its record is not read as a marker, as the consumer does.

    It matters because compaction leaves such batches.
    An error there would stop the backup of a healthy topic.
    """
    empty = encode_batch([], base_offset=2, last_offset=2, control=True, transactional=True, producer_id=5)
    assert _judge(_data(0, 5) + empty + _data(3, 5), [(5, 0)]) == [True, False, True]


@st.composite
def _histories(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, int]], list[bool]]:
    """A log of interleaved transactions, the broker's list of aborted ones, and the truth per batch."""
    log = b""
    offset = 0
    open_since: dict[int, tuple[int, list[int]]] = {}
    truth: list[bool] = []
    aborted: list[tuple[int, int]] = []
    ends = iter(draw(st.lists(st.tuples(st.integers(1, 3), st.sampled_from("dddpac")), max_size=25)))
    for producer_id, action in ends:
        if action == "p":
            log += _data(offset, producer_id if producer_id not in open_since else -1, transactional=False)
            truth.append(False)
            offset += 2
        elif action == "d":
            first, batches = open_since.setdefault(producer_id, (offset, []))
            batches.append(len(truth))
            log += _data(offset, producer_id)
            truth.append(False)
            offset += 2
        elif producer_id in open_since:
            first, batches = open_since.pop(producer_id)
            if action == "a":
                aborted.append((producer_id, first))
                for index in batches:
                    truth[index] = True
            log += _marker(offset, producer_id, ABORT if action == "a" else COMMIT)
            truth.append(False)
            offset += 1
    return log, draw(st.permutations(aborted)), truth


@given(history=_histories())
def test_aborted_filter_equals_the_history(
    history: tuple[bytes, list[tuple[int, int]], list[bool]],
) -> None:
    """Tests random interleavings of three producers against what each transaction really did.

    It matters because read_committed is what a restore must give back.
    A batch judged wrong is a record lost, or one that never was.
    """
    log, aborted, truth = history
    assert _judge(log, aborted) == truth
