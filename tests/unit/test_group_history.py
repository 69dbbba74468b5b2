"""Positions at any time in the past, against a coordinator that remembers everything.

The model writes commits, tombstones and transactions into a log, cleans it as Kafka's log cleaner may,
and captures it now and then. What the history says without a doubt must be the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.errors import ConfigurationError
from kafka_backup.group_history import GroupHistory, history_at
from kafka_backup.kafka.last_commits import OFFSETS_TOPIC
from kafka_backup.progress import StopToken
from kafka_backup.records.codec import Record, encode_batch
from kafka_backup.repository.documents import (
    Capture,
    CapturedTopic,
    ConfigurationValue,
    Ledger,
    LostSpan,
    PartitionRange,
)
from kafka_backup.repository.group_documents import GroupSnapshot, Position, SavedGroup
from kafka_backup.repository.group_store import GroupStore
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.store import Store
from kafka_backup.selection import GroupSelection
from tests.unit.offset_commits import commit_key, commit_value
from tests.unit.repositories import CLUSTER, NONCE, TOPIC_ID, incarnation, memory_store, write_segment

TOMBSTONES_MS = 100
GROUPS = ("a", "b")
ALL = GroupSelection.parse(["*"])


@dataclass(slots=True)
class Entry:
    """One batch of the log; `group` None: a marker, or a record that is no position."""

    offset: int
    time: int
    group: str | None = None
    position: int | None = None
    producer: int | None = None
    marker: int | None = None
    is_aborted: bool = False
    is_gone: bool = False


@dataclass(slots=True)
class Coordinator:
    """A partition of the offsets topic, everything that ever was in it, and its captures."""

    store: Store = field(default_factory=memory_store)
    log: list[Entry] = field(default_factory=list)
    now: int = 1000
    captured: int = 0
    captures: list[int] = field(default_factory=list)
    cleaned: bool = False

    def write(self, **entry: object) -> Entry:
        made = Entry(offset=len(self.log), time=self.now, **entry)  # type: ignore[arg-type]
        self.log.append(made)
        return made

    def end(self, producer: int, *, committed: bool) -> None:
        mine = [e for e in self._open() if e.producer == producer]
        if not mine:
            return
        for entry in mine:
            entry.is_aborted = not committed
        self.write(producer=producer, marker=int(committed))

    def _open(self) -> list[Entry]:
        """What transactions have written that are not at their end."""
        ended: dict[int, int] = {}
        for entry in self.log:
            if entry.marker is not None and entry.producer is not None:
                ended[entry.producer] = entry.offset
        return [
            e
            for e in self.log
            if e.producer is not None and e.marker is None and e.offset > ended.get(e.producer, -1)
        ]

    @property
    def last_stable(self) -> int:
        return min((entry.offset for entry in self._open()), default=len(self.log))

    def clean(self) -> None:
        """Keep the last record of each key; then forget old tombstones, aborted records and idle markers."""
        self.cleaned = True
        stable = self.log[: self.last_stable]
        newest: dict[str, Entry] = {}
        for entry in stable:
            if entry.group is not None and not entry.is_aborted:
                newest[entry.group] = entry
        for entry in stable:
            if entry.group is None:
                continue
            is_old_tombstone = entry.position is None and entry.time + TOMBSTONES_MS < self.now
            if entry.is_aborted or newest[entry.group] is not entry or is_old_tombstone:
                entry.is_gone = True
        for entry in stable:
            if entry.marker is not None and not any(
                e.producer == entry.producer and not e.is_gone
                for e in stable[: entry.offset]
                if e.marker is None
            ):
                entry.is_gone = True

    def capture(self) -> None:
        end = self.last_stable
        present = [e for e in self.log[self.captured : end] if not e.is_gone]
        stored = [e for e in present if not e.is_aborted]
        repository = Repository.open(self.store, cluster_id=CLUSTER, create=True)
        log = repository.commit_log(OFFSETS_TOPIC, TOPIC_ID)
        capture_id = f"capture-{len(self.captures):03}"
        data = b"".join(self._batch(entry) for entry in stored)
        segments = (
            [write_segment(self.store, data, topic=OFFSETS_TOPIC, capture_id=capture_id)] if stored else []
        )
        control = sum(e.marker is not None for e in present)
        aborted = sum(e.is_aborted for e in present)
        part = PartitionRange(
            partition=0,
            start=self.captured,
            end=end,
            log_start_offset=0,
            leader_epoch=0,
            last_stable_offset=end,
            high_watermark=len(self.log),
            ledger=Ledger(
                records=len(stored) - control,
                control=control,
                aborted=aborted,
                compacted=end - self.captured - len(present),
            ),
            segments=tuple(segments),
        )
        settings_ = {
            "delete.retention.ms": ConfigurationValue(
                value=str(TOMBSTONES_MS), source="DYNAMIC_TOPIC_CONFIG"
            ),
            "cleanup.policy": ConfigurationValue(value="compact", source="DYNAMIC_TOPIC_CONFIG"),
        }
        log.append(
            nonce=NONCE,
            capture_id=capture_id,
            window=None,
            committed_at=self.now,
            incarnation=incarnation(topic=OFFSETS_TOPIC, partitions=1).model_copy(
                update={"configuration": settings_}
            ),
            partitions=(part,),
        )
        assert log.head is not None
        repository.put_capture(
            Capture(
                capture_id=capture_id,
                nonce=NONCE,
                started_at=self.now,
                ended_at=self.now,
                window=None,
                status="complete",
                topics=(
                    CapturedTopic(
                        topic=OFFSETS_TOPIC,
                        topic_id=TOPIC_ID,
                        head=log.head,
                        head_sha256=str(log.head_sha256),
                        changed=True,
                    ),
                ),
            )
        )
        self.captured = end
        self.captures.append(self.now)

    def _batch(self, entry: Entry) -> bytes:
        producer = -1 if entry.producer is None else entry.producer
        if entry.marker is not None:
            record = Record(
                offset=entry.offset,
                timestamp=entry.time,
                key=b"\0\0\0" + bytes([entry.marker]),
                value=b"\0" * 6,
            )
            return encode_batch([record], transactional=True, control=True, producer_id=producer)
        if entry.group is None:
            record = Record(offset=entry.offset, timestamp=entry.time, key=b"\0\2\0\1x", value=b"a member")
            return encode_batch([record])
        value = None if entry.position is None else commit_value(3, entry.position, -1, f"m{entry.position}")
        key = commit_key(entry.group, "orders", 0)
        record = Record(offset=entry.offset, timestamp=entry.time, key=key, value=value)
        return encode_batch([record], transactional=producer >= 0, producer_id=producer)

    def truth(self, at: int) -> dict[str, int]:
        """What the coordinator knew at a time: OffsetMetadataManager.replay, literally."""
        offsets: dict[str, Entry] = {}
        pending: dict[int, dict[str, Entry]] = {}
        for entry in self.log:
            if entry.time > at:
                break
            if entry.marker is not None:
                assert entry.producer is not None
                for group, commit in pending.pop(entry.producer, {}).items():
                    if entry.marker and (group not in offsets or offsets[group].offset < commit.offset):
                        offsets[group] = commit
            elif entry.group is None:
                continue
            elif entry.producer is not None:
                pending.setdefault(entry.producer, {})[entry.group] = entry
            else:
                offsets[entry.group] = entry
                if entry.position is None:
                    for each in pending.values():
                        each.pop(entry.group, None)
        return {group: e.position for group, e in offsets.items() if e.position is not None}

    def history(self, at: int, selection: GroupSelection = ALL) -> GroupHistory:
        repository = Repository.open(self.store, cluster_id=None, create=False)
        return history_at(at, selection, repository=repository, stop=StopToken())


def positions(history: GroupHistory) -> dict[str, int]:
    return {group: p.state.committed_offset for group, found in history.groups.items() for p in found}


STEP = st.one_of(
    st.tuples(st.just("commit"), st.sampled_from(GROUPS), st.integers(0, 9)),
    st.tuples(st.just("commit"), st.sampled_from(GROUPS), st.integers(0, 9)),
    st.tuples(st.just("delete"), st.sampled_from(GROUPS), st.just(0)),
    st.tuples(st.just("add"), st.sampled_from(GROUPS), st.integers(0, 1)),
    st.tuples(st.sampled_from(["commit transaction", "abort"]), st.just("a"), st.integers(0, 1)),
    st.tuples(st.sampled_from(["member", "clean", "capture"]), st.just("a"), st.just(0)),
    st.tuples(st.just("sleep"), st.just("a"), st.sampled_from([1, 40, 150])),
)


def play(steps: Sequence[tuple[str, str, int]]) -> Coordinator:
    coordinator = Coordinator()
    for number, (what, group, argument) in enumerate(steps):
        match what:
            case "commit":
                coordinator.write(group=group, position=argument)
            case "delete":
                coordinator.write(group=group)
            case "add":
                coordinator.write(group=group, position=100 + number, producer=argument)
            case "commit transaction":
                coordinator.end(argument, committed=True)
            case "abort":
                coordinator.end(argument, committed=False)
            case "member":
                coordinator.write()
            case "clean":
                coordinator.clean()
            case "capture":
                coordinator.capture()
            case "sleep":
                coordinator.now += argument
        coordinator.now += number % 2  # some events share a millisecond
    coordinator.now += 1
    coordinator.capture()
    return coordinator


@given(st.lists(STEP, max_size=30))
def test_what_is_said_without_a_doubt_is_the_truth(steps: list[tuple[str, str, int]]) -> None:
    """What: any commits, transactions, deletions, cleanings and captures; the positions at every moment.

    Why: "where was this group at 14:29:00.000" decides where it reads on.
    Risk: a transaction counted from its commits instead of its marker; a commit that was compacted away unnoticed.
    """
    coordinator = play(steps)
    for at in sorted(
        {0, *(e.time + d for e in coordinator.log for d in (-1, 0, 1)), coordinator.captures[-1] - 1}
    ):
        if at >= coordinator.captures[-1]:
            continue
        try:
            history = coordinator.history(at)
        except ConfigurationError as error:
            assert "a transaction was open" in str(error)
            continue
        truth = coordinator.truth(at)
        said = {group: p for group, found in history.groups.items() for p in found}
        for group in GROUPS:
            position = said.get(group)
            doubtful = any(
                repr(group) in doubt or ("not shown" in doubt and position is None)
                for doubt in history.doubts
            )
            if position is None:
                assert group not in truth or doubtful, (at, group)
            elif position.doubt is None and not doubtful:
                assert truth.get(group) == position.state.committed_offset, (at, group)
                assert position.state.metadata == f"m{position.state.committed_offset}"
        if not coordinator.cleaned:
            assert history.doubts == []
            assert positions(history) == truth


def test_a_transaction_counts_from_its_marker_on() -> None:
    """What: a plain commit, a transactional one, another plain one below it in time, and the marker later.

    Why: consumers with exactly-once see the old position until the marker is written.
    Risk: the later of two records taken for the truth at a time when it was not yet committed.
    """
    coordinator = Coordinator()
    coordinator.write(group="a", position=1)
    coordinator.now = 2000
    coordinator.write(group="a", position=5, producer=7)
    coordinator.write(group="b", position=6, producer=7)
    coordinator.now = 3000
    coordinator.write(group="b", position=4)
    coordinator.now = 4000
    coordinator.end(7, committed=True)
    coordinator.now = 5000
    coordinator.capture()
    assert positions(coordinator.history(2500)) == {"a": 1}
    assert positions(coordinator.history(3999)) == {"a": 1, "b": 4}
    # The later record wins, not the later marker: so does the coordinator.
    assert positions(coordinator.history(4000)) == {"a": 5, "b": 4}


def test_what_the_cleaner_took_is_a_doubt() -> None:
    """What: two commits of one group between two captures, the first of them compacted away before the second.

    Why: the position between them is not in the repository.
    Risk: the one before it given as the truth: a minute of records is done twice.
    """
    coordinator = Coordinator()
    coordinator.write(group="a", position=1)
    coordinator.write(group="b", position=1)
    coordinator.now = 2000
    coordinator.capture()
    coordinator.now = 2010
    coordinator.write(group="a", position=2)
    coordinator.now = 2030
    coordinator.write(group="a", position=3)
    coordinator.clean()
    coordinator.now = 2050
    coordinator.capture()
    (a,), (b,) = coordinator.history(2020).groups["a"], coordinator.history(2020).groups["b"]
    assert a.doubt is not None
    assert "compacted away" in a.doubt
    assert (b.state.committed_offset, b.doubt) == (1, None)
    (a,) = coordinator.history(2040).groups["a"]
    assert (a.state.committed_offset, a.doubt) == (3, None)
    (a,) = coordinator.history(1500).groups["a"]
    assert (a.state.committed_offset, a.doubt) == (1, None)


def test_how_far_the_history_reaches_is_said() -> None:
    """What: a time after the last capture, a repository without the offsets topic, captures that failed.

    Why: what was committed after the last capture is not there.
    Risk: the last captured position given for any later time.
    """
    coordinator = Coordinator()
    coordinator.write(group="a", position=1)
    coordinator.now = 2000
    coordinator.capture()
    with pytest.raises(ConfigurationError, match=r"reaches to 1970-01-01T00:00:02.000Z"):
        coordinator.history(2000)  # something may have been committed in that very millisecond
    assert positions(coordinator.history(1999)) == {"a": 1}
    empty = Coordinator()
    Repository.open(empty.store, cluster_id=CLUSTER, create=True)
    with pytest.raises(ConfigurationError, match=f"{OFFSETS_TOPIC} is not in the repository"):
        empty.history(5)


def test_an_open_transaction_ends_the_history() -> None:
    """What: a transaction that is open while the log is captured: what follows it was not captured.

    Why: a capture ends at the last stable offset, and commits go on behind it.
    Risk: an hour of commits missing behind one that hangs, and nobody is told.
    """
    coordinator = Coordinator()
    coordinator.write(group="a", position=1)
    coordinator.now = 2000
    coordinator.write(group="b", position=9, producer=1)
    coordinator.now = 3000
    coordinator.write(group="a", position=2)
    coordinator.now = 4000
    coordinator.capture()
    with pytest.raises(ConfigurationError, match="a transaction was open"):
        coordinator.history(3500)


def test_losses_are_doubts() -> None:
    """What: a span of the offsets topic that was lost.

    Why: any group may have committed in it.
    Risk: an answer that is right but for the part that nobody has.
    """
    store = memory_store()
    repository = Repository.open(store, cluster_id=CLUSTER, create=True)
    log = repository.commit_log(OFFSETS_TOPIC, TOPIC_ID)
    log.append(
        nonce=NONCE,
        capture_id="c",
        window=None,
        committed_at=9,
        incarnation=incarnation(topic=OFFSETS_TOPIC, partitions=1),
        partitions=(
            PartitionRange(
                partition=0,
                start=0,
                end=5,
                log_start_offset=0,
                leader_epoch=0,
                last_stable_offset=5,
                high_watermark=5,
                ledger=Ledger(lost=5),
                lost=(LostSpan(start=0, end=5, reason="unexplained"),),
            ),
        ),
    )
    captured = CapturedTopic(
        topic=OFFSETS_TOPIC, topic_id=TOPIC_ID, head=0, head_sha256=str(log.head_sha256), changed=True
    )
    repository.put_capture(
        Capture(
            capture_id="c",
            nonce=NONCE,
            started_at=9,
            ended_at=9,
            window=None,
            status="lossy",
            topics=(captured,),
        )
    )
    (doubt,) = history_at(5, ALL, repository=repository, stop=StopToken()).doubts
    assert "[0, 5) are lost" in doubt


def test_positions_whose_commits_have_expired_come_from_a_group_snapshot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What: the beginning of the log has expired; a group snapshot holds what an idle group had committed there.

    Why: a group that commits once a month has its position all the time.
    Risk: a group that is missing from the history although its position was never touched.
    """
    coordinator = Coordinator()
    coordinator.write(group="a", position=1)
    coordinator.write(group="b", position=2)
    coordinator.now = 2000
    coordinator.capture()
    coordinator.now = 3000
    coordinator.write(group="a", position=3)
    coordinator.now = 5000
    coordinator.capture()
    monkeypatch.setattr("kafka_backup.repository.commit_log.CommitLog.whole_from", lambda *_args, **_more: 2)
    (doubt,) = coordinator.history(4000).doubts
    assert "has expired" in doubt
    for taken_at, is_sure in ((3500, True), (2500, False)):
        GroupStore(coordinator.store).put_snapshot(_snapshot(taken_at))
        history = coordinator.history(4000)
        assert positions(history) == {"a": 3, "b": 2}
        assert [p.doubt is None for p in history.groups["b"]] == [is_sure]
        assert history.doubts == []
        coordinator.store.delete(f"groups/{taken_at}.json.zst")


def _snapshot(taken_at: int) -> GroupSnapshot:
    def saved(group: str, offset: int) -> SavedGroup:
        position = Position(topic="orders", topic_id=None, partition=0, offset=offset)
        return SavedGroup(
            group=group, type="classic", state="Empty", protocol_type="", status="read", positions=(position,)
        )

    return GroupSnapshot(
        snapshot_id=str(taken_at),
        nonce=NONCE,
        capture_id=None,
        cluster_id=CLUSTER,
        taken_at=taken_at,
        ended_at=taken_at,
        include=("*",),
        exclude=(),
        incomplete=(),
        topics={},
        groups=(saved("a", 1), saved("b", 2)),
    )


def test_named_groups_are_read_from_their_partitions_only() -> None:
    """What: the history of one group by name, and of none.

    Why: the offsets topic has fifty partitions.
    Risk: a group looked for in another partition than its own, and not found.
    """
    coordinator = play([("commit", "a", 3), ("commit", "b", 4)])
    at = coordinator.captures[-1] - 1
    assert positions(coordinator.history(at, GroupSelection.parse(["b"]))) == {"b": 4}
    assert positions(coordinator.history(at, GroupSelection.parse(["c"]))) == {}
