"""The bulk mover against a coordinator that loses answers, moves, and lets others commit in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kafka_backup.errors import BrokerError, KafkaBackupError, RefusedError, UnreachableError
from kafka_backup.kafka import groups as kafka_groups
from kafka_backup.kafka.cluster import Partition
from kafka_backup.kafka.groups import CommittedOffset, GroupClient, GroupOffsets, PartitionErrors, chunks
from kafka_backup.kafka.settings import Address
from kafka_backup.position_mover import MoveResult, PositionMove, PositionMover
from kafka_backup.progress import StopToken
from kafka_backup.repository.group_documents import ResetRequest
from kafka_backup.reset_plan import digest_of, new_reset_id
from kafka_backup.selection import GroupSelection

GROUPS = ("a", "b", "c")
LOST = UnreachableError("no answer")
MOVED = BrokerError("x", code=16, name="NOT_COORDINATOR", retriable=True)
MEMBER = BrokerError("x", code=25, name="UNKNOWN_MEMBER_ID", retriable=False)
TOO_LONG = BrokerError("x", code=12, name="OFFSET_METADATA_TOO_LARGE", retriable=False)

FAULTS = st.sampled_from(["fine", "lost", "refused", "moved", "foreign", "foreign_after", "too_long"])


class Coordinators:
    """Committed offsets in a dictionary, with one fault for each commit; it is no broker, only their bad luck."""

    def __init__(
        self, offsets: Mapping[str, dict[Partition, CommittedOffset]], faults: Iterator[str]
    ) -> None:
        self.offsets = {group: dict(found) for group, found in offsets.items()}
        self.faults = faults
        self.foreign: dict[tuple[str, Partition], CommittedOffset] = {}
        self.retry_seconds = 0.2
        self.cluster = self

    def pause(self, _attempt: int) -> None:
        """The mover waits here."""

    def fetch(
        self, groups: Mapping[str, Sequence[Partition]], *, stable: bool = True
    ) -> Mapping[str, GroupOffsets | KafkaBackupError]:
        return {
            group: {p: self.offsets[group][p] for p in parts if p in self.offsets[group]}
            for group, parts in groups.items()
        }

    def commit(self, groups: Mapping[str, GroupOffsets]) -> Mapping[str, PartitionErrors]:
        return {group: self._change(group, offsets) for group, offsets in groups.items()}

    def delete_offsets(self, groups: Mapping[str, Sequence[Partition]]) -> Mapping[str, PartitionErrors]:
        return {group: self._change(group, dict.fromkeys(parts)) for group, parts in groups.items()}

    def _change(self, group: str, offsets: Mapping[Partition, CommittedOffset | None]) -> PartitionErrors:
        fault = next(self.faults, "fine")
        if fault == "refused":
            return dict.fromkeys(offsets, MEMBER)
        if fault == "moved":
            return dict.fromkeys(offsets, MOVED)
        victim = min(offsets)
        if fault == "foreign":  # a consumer came, committed and left: the broker takes ours after it
            return self._somebody_else(group, victim, dict.fromkeys(offsets, MOVED))
        for partition, offset in offsets.items():
            if fault == "too_long" and partition == victim:
                continue
            if offset is None:
                self.offsets[group].pop(partition, None)
            else:
                self.offsets[group][partition] = offset
        if fault == "foreign_after":
            return self._somebody_else(group, victim, {})
        if fault == "too_long":
            return {victim: TOO_LONG}
        return dict.fromkeys(offsets, LOST) if fault == "lost" else {}

    def _somebody_else(self, group: str, part: Partition, answer: PartitionErrors) -> PartitionErrors:
        self.foreign[group, part] = self.offsets[group][part] = CommittedOffset(offset=1000)
        return answer


def mover(coordinators: Coordinators, moves: Sequence[PositionMove], *, force: bool = False) -> PositionMover:
    return PositionMover(cast(GroupClient, coordinators), moves, force=force, stop=StopToken())


POSITION = st.none() | st.builds(CommittedOffset, offset=st.integers(0, 3))


@given(
    st.lists(st.tuples(st.sampled_from(GROUPS), st.integers(0, 2)), unique=True, min_size=1),
    st.lists(FAULTS, max_size=8),
    st.data(),
)
def test_concurrency_safety(keys: list[tuple[str, int]], faults: list[str], data: st.DataObject) -> None:
    """What: any moves, any faults: what others committed is never overwritten, and no result is a lie.

    Why: between our look and our commit anything can happen.
    Risk: a retry that lands on top of a consumer's own commit: the records between are done twice, or lost.
    """
    moves = [
        PositionMove(
            group=group, topic="t", partition=number, start=data.draw(POSITION), goal=data.draw(POSITION)
        )
        for group, number in keys
    ]
    offsets: dict[str, dict[Partition, CommittedOffset]] = {group: {} for group in GROUPS}
    for move in moves:
        if move.start is not None:
            offsets[move.group][move.topic, move.partition] = move.start
    coordinators = Coordinators(offsets, iter(faults))
    results = mover(coordinators, moves).run()
    assert [result.move for result in results] == moves
    for result in results:
        group, part = result.move.key
        now = coordinators.offsets[group].get(part)
        if (group, part) in coordinators.foreign:
            assert now == coordinators.foreign[group, part]
            assert result.error is not None
        if result.error is None:
            assert now == result.move.goal == result.current
        elif not result.was_touched:
            assert now in (result.move.start, result.move.goal, CommittedOffset(offset=1000))


def move(group: str, start: int | None, goal: int | None, partition: int = 0) -> PositionMove:
    def position(offset: int | None) -> CommittedOffset | None:
        return None if offset is None else CommittedOffset(offset=offset)

    return PositionMove(
        group=group, topic="t", partition=partition, start=position(start), goal=position(goal)
    )


def outcome(results: Sequence[MoveResult]) -> dict[str, str | None]:
    return {
        f"{r.move.group}{r.move.partition}": None if r.error is None else type(r.error).__name__
        for r in results
    }


def test_error_handling_per_partition() -> None:
    """What: one partition refused for good, one group refused as a whole, one group fine.

    Why: the result of each position decides what is told, stored and rolled back.
    Risk: the error of one group's partition on another's.
    """
    moves = [move("a", 1, 5, 0), move("a", 1, 5, 1), move("b", 1, 5), move("c", 1, 5)]
    start = {("t", n): CommittedOffset(offset=1) for n in (0, 1)}
    coordinators = Coordinators({"a": start, "b": start, "c": start}, iter(["too_long", "refused", "fine"]))
    results = mover(coordinators, moves).run()
    assert outcome(results) == {"a0": "ConfigurationError", "a1": None, "b0": "RefusedError", "c0": None}
    assert [r.was_touched for r in results] == [False, True, False, True]


def test_a_lost_answer_is_looked_up_and_not_repeated() -> None:
    """What: a commit that was written and whose answer got lost; then one that was not written.

    Why: the second try of a commit may come after a consumer's own.
    Risk: two commits where one was asked for.
    """
    start = {("t", 0): CommittedOffset(offset=1)}
    coordinators = Coordinators({"a": start, "b": start}, iter(["lost", "moved"]))
    results = mover(coordinators, [move("a", 1, 5), move("b", 1, 5)]).run()
    assert outcome(results) == {"a0": None, "b0": None}
    assert next(coordinators.faults, "none left") == "none left"


def test_nothing_is_given_up_in_silence() -> None:
    """What: a coordinator that never answers: after the retry time each position is said to be unknown.

    Why: the caller has to know that it must look again.
    Risk: an endless loop, or a failure that sounds final.
    """
    start = {("t", 0): CommittedOffset(offset=1)}
    coordinators = Coordinators({"a": start}, iter(["moved"] * 1_000_000))
    (result,) = mover(coordinators, [move("a", 1, 5)]).run()
    assert isinstance(result.error, UnreachableError)
    assert "'a'" in str(result.error)


def test_force_takes_what_is_there_as_the_start() -> None:
    """What: a position that is neither before nor after: refused; with force it goes, unless it moves again.

    Why: a forced rollback is somebody's decision about the position that they saw.
    Risk: force that fights with a consumer that is at work.
    """
    somewhere = {("t", 0): CommittedOffset(offset=7)}
    (refused,) = mover(Coordinators({"a": somewhere}, iter([])), [move("a", 1, 5)]).run()
    assert isinstance(refused.error, RefusedError)
    assert not refused.was_touched
    (forced,) = mover(Coordinators({"a": somewhere}, iter([])), [move("a", 1, 5)], force=True).run()
    assert (forced.error, forced.current) == (None, CommittedOffset(offset=5))
    fought = Coordinators({"a": somewhere}, iter(["foreign_after", "fine", "fine"]))
    (result,) = mover(fought, [move("a", 1, 5)], force=True).run()
    assert isinstance(result.error, RefusedError)
    assert fought.offsets["a"]["t", 0] == CommittedOffset(offset=1000)


def test_compare_tells_lost_from_moved() -> None:
    """What: after the move one position is gone again, one is where it was, one was moved on by somebody.

    Why: a topic's deletion removes commits a while later; a consumer that starts at once is no fault.
    Risk: a check that only looks whether anything is there.
    """
    moves = [move(group, 1, 5) for group in GROUPS]
    goal = CommittedOffset(offset=5)
    coordinators = Coordinators({group: {("t", 0): goal} for group in GROUPS}, iter([]))
    check = mover(coordinators, moves)
    check.compare()
    assert outcome(check.results) == {"a0": None, "b0": None, "c0": None}
    coordinators.offsets = {
        "a": {},
        "b": {("t", 0): CommittedOffset(offset=1)},
        "c": {("t", 0): CommittedOffset(offset=6)},
    }
    check.compare()
    assert outcome(check.results) == {"a0": "DamagedError", "b0": "DamagedError", "c0": "RefusedError"}


@given(st.integers(0, 2500), st.integers(1, 4))
def test_batching_algorithm(count: int, topics: int) -> None:
    """What: any number of offsets cut into requests: every one once, none larger than a batch may be.

    Why: a commit becomes one record batch, and brokers limit its size.
    Risk: the last request, or the offset at a border, that is never sent.
    """
    offsets = {(f"t{i % topics}", i): CommittedOffset(offset=i) for i in range(count)}
    parts = list(chunks(offsets))
    assert {key: value for part in parts for key, value in part.items()} == offsets
    assert sum(map(len, parts)) == count
    assert all(0 < len(part) <= 1000 for part in parts)


@given(
    st.dictionaries(st.text(max_size=5), st.integers(0, 2), max_size=200),
    st.integers(1, 60),
)
def test_groups_are_asked_for_in_batches_per_coordinator(places: dict[str, int], size: int) -> None:
    """What: any groups on three coordinators: each is asked for once, at its own, in batches of the right size.

    Why: a thousand groups are a thousand questions, or twenty.
    Risk: a group that is asked for at another coordinator, which answers that it has no offsets.
    """
    asked: list[tuple[Address, tuple[str, ...]]] = []
    lock = threading.Lock()

    class Places:
        def of_groups(self, groups: Sequence[str]) -> Any:
            return None, {group: Address("broker", 1 + places[group]) for group in groups}

    def ask(address: Address, names: Sequence[str]) -> Mapping[str, str]:
        with lock:
            asked.append((address, tuple(names)))
        return {name: f"{name} at {address}" for name in names}

    class Retrying:
        def retry(self, _what: str, attempt: Callable[[], None]) -> None:
            attempt()

    client = GroupClient(cast(Any, Retrying()))
    client.coordinators = cast(Any, Places())
    before, kafka_groups._GROUPS = kafka_groups._GROUPS, size
    try:
        answers = client._by_coordinator(list(places), ask)
    finally:
        kafka_groups._GROUPS = before
    assert answers == {name: f"{name} at broker:{1 + place}" for name, place in places.items()}
    assert sorted(name for _, names in asked for name in names) == sorted(places)
    assert all(0 < len(names) <= size for _, names in asked)
    assert len(asked) == sum(-(-sum(place == each for place in places.values()) // size) for each in range(3))


def test_group_filtering() -> None:
    """What: which groups a reset is about, by exact names, wildcards, regular expressions.

    Why: one command moves a hundred groups.
    Risk: a group too many: its consumers jump without anybody knowing why.
    """
    groups = ["app_a", "app_b", "APP_A", "other", "app_", "xapp_a"]
    assert GroupSelection.parse(["app_*"]).select(groups) == ["app_", "app_a", "app_b"]
    assert GroupSelection.parse(["app_?", "other"]).select(groups) == ["app_a", "app_b", "other"]
    assert GroupSelection.parse(["/^app_a$/"]).select(groups) == ["app_a"]
    assert GroupSelection.parse(["app_a"]).select(groups) == ["app_a"]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"to": "earliest", "snapshot_id": "x"},
        {"to": "offset"},
        {"to": "earliest", "to_offset": 5},
        {"to": "time", "to_offset": 5},
        {"to": "latest", "restore_id": "r"},
        {"to": "offset", "to_offset": -1},
    ],
)
def test_a_request_says_one_thing(wrong: dict[str, Any]) -> None:
    """What: requests that say nothing, or two things at once.

    Why: a reset that guesses is worse than none.
    Risk: one of two destinations taken, and the other forgotten.
    """
    with pytest.raises(ValidationError):
        ResetRequest(groups=("a",), **wrong)


def test_the_same_command_finds_its_reset() -> None:
    """What: ids of resets end with a digest of the request: the same for the same, another for another.

    Why: the same command after a crash must find what it began.
    Risk: an interrupted reset that is taken for another one's.
    """
    request = ResetRequest(groups=("a",), to="latest")
    assert new_reset_id(request, "c").endswith(f"-{digest_of(request, 'c')}")
    others = [
        digest_of(request, "other cluster"),
        digest_of(ResetRequest(groups=("a", "b"), to="latest"), "c"),
        digest_of(ResetRequest(groups=("a",), to="earliest"), "c"),
        digest_of(ResetRequest(groups=("a",), to="latest", clamp=True), "c"),
    ]
    assert len({digest_of(request, "c"), *others}) == 5
    assert digest_of(ResetRequest(groups=("a",), to="latest"), "c") == digest_of(request, "c")
