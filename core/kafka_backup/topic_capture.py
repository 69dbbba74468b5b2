"""A topic of a running capture: where each of its partitions is, and what is not committed yet."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from kafka_backup.capture_plan import Ends, Known, PartitionPlan, Question
from kafka_backup.kafka.cluster import Partition
from kafka_backup.kafka.epochs import CommonEnd
from kafka_backup.partition_capture import CapturedRange, PartitionWork
from kafka_backup.progress import PartitionResult
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import Incarnation, OffsetSpan, PartitionRange


class Stage(Enum):
    """What a partition waits for: an answer to its question, being fetched, nothing any more."""

    ASKING = "asking"
    FETCHING = "fetching"
    DONE = "done"
    FAILED = "failed"


@dataclass(slots=True, kw_only=True)
class PartitionState:
    """A partition of a running capture.

    Attributes:
        known: what is captured of it, committed or not; None: nothing was ever.
        ends: the leader's last word, once it was asked.
        pending: the range that the next commit will hold.
        truncated, not_captured: what the next commit must say of offsets outside of that range.
        suspected: an answer by which its log was cut back; believed when it comes again.
        next_index: counter ``k`` of its next segment.
        trouble_since: when its first failure was that was not followed by progress (monotonic seconds).
        attempts: failures since then, and `ask_at`, when to try again.
        first, position: where this capture began, and how far it has read; `records` and `raw_bytes`, what
            it kept of that.
    """

    number: int
    known: Known | None
    stage: Stage = Stage.ASKING
    ends: Ends | None = None
    pending: CapturedRange | None = None
    truncated: OffsetSpan | None = None
    not_captured: OffsetSpan | None = None
    suspected: CommonEnd | None = None
    next_index: int = 0
    trouble_since: float | None = None
    attempts: int = 0
    ask_at: float = 0.0
    first: int = 0
    position: int = 0
    records: int = 0
    raw_bytes: int = 0

    @property
    def has_news(self) -> bool:
        """Whether there is something that must be committed."""
        pending = self.pending
        return self.truncated is not None or (pending is not None and pending.end > pending.start)

    def accept(self, plan: PartitionPlan) -> None:
        """Take a plan; what is pending must be committed first if the log was cut back."""
        ends = plan.ends
        if self.pending is None or plan.truncated is not None:
            self.pending = CapturedRange(start=plan.start, end=plan.start, leader_epoch=ends.leader_epoch)
        if self.ends is None or plan.truncated is not None:
            self.first = plan.start
        self.position = plan.start
        if self.known is None:
            self.known = Known(end=plan.start, epochs=(), leader_epoch=ends.leader_epoch)
        self.known = self.known.until(plan.start, leader_epoch=ends.leader_epoch)
        self.pending.leader_epoch = ends.leader_epoch
        self.ends = ends
        self.suspected = None
        self.truncated = plan.truncated or self.truncated
        self.not_captured = plan.not_captured or self.not_captured
        self.stage = Stage.FETCHING if self.known.end < ends.last_stable_offset else Stage.DONE

    def take(self, piece: CapturedRange) -> None:
        """Take a piece whose segments are durable."""
        assert self.known is not None
        assert self.pending is not None
        self.pending.extend(piece)
        epochs = [*self.known.epochs, *piece.epochs]
        self.known = Known(end=piece.end, epochs=epochs, leader_epoch=piece.leader_epoch)
        self.trouble_since = None
        self.attempts = 0

    def postpone(self) -> float:
        """Note a failure and when to try again; returns the seconds since the first one."""
        now = time.monotonic()
        if self.trouble_since is None:
            self.trouble_since = now
        pause = min(5.0, 0.25 * 2 ** min(self.attempts, 5)) * random.uniform(0.5, 1.0)
        self.attempts += 1
        self.ask_at = now + pause
        self.stage = Stage.ASKING
        return now - self.trouble_since

    def to_range(self) -> PartitionRange:
        """What the next commit says of the partition."""
        assert self.ends is not None
        assert self.pending is not None
        return PartitionRange(
            partition=self.number,
            start=self.pending.start,
            end=self.pending.end,
            log_start_offset=self.ends.log_start_offset,
            last_stable_offset=self.ends.last_stable_offset,
            high_watermark=self.ends.high_watermark,
            leader_epoch=self.pending.leader_epoch,
            leader_epochs=tuple(self.pending.epochs),
            ledger=self.pending.ledger,
            lost=tuple(self.pending.lost),
            not_captured=self.not_captured,
            truncated_to=None if self.truncated is None else self.truncated.start,
            segments=tuple(self.pending.segments),
        )

    def to_result(self) -> PartitionResult:
        """The same for the caller."""
        assert self.pending is not None
        ledger = self.pending.ledger
        return PartitionResult(
            partition=self.number,
            start=self.pending.start,
            end=self.pending.end,
            records=ledger.records,
            control=ledger.control,
            aborted=ledger.aborted,
            compacted=ledger.compacted,
            lost=ledger.lost,
            lost_spans=tuple(self.pending.lost),
            truncated=self.truncated,
            not_captured=self.not_captured,
        )

    def committed(self) -> None:
        """Begin anew behind what was committed."""
        assert self.pending is not None
        end = self.pending.end
        self.pending = CapturedRange(start=end, end=end, leader_epoch=self.pending.leader_epoch)
        self.truncated = self.not_captured = None


@dataclass(slots=True, kw_only=True)
class TopicState:
    """A topic of a running capture.

    Attributes:
        was_gone: somebody accepted that the topic is gone; now it is back, and gets a commit in any case.
        head_is_ours: this capture has committed something of it already.
        last_commit: when that was, or when the capture began (monotonic seconds).
    """

    name: str
    incarnation: Incarnation
    log: CommitLog
    partitions: Mapping[int, PartitionState]
    was_gone: bool = False
    head_is_ours: bool = False
    began: float = field(default_factory=time.monotonic)
    last_commit: float = field(default_factory=time.monotonic)

    @classmethod
    def open(
        cls, incarnation: Incarnation, log: CommitLog, partitions: Sequence[int], *, was_gone: bool
    ) -> TopicState:
        """Begin where the commit log ends."""
        states = {}
        for number in sorted(partitions):
            found = log.state_of(number)
            known = None
            if found is not None:
                epochs = tuple(found.leader_epochs)
                known = Known(end=found.end, epochs=epochs, leader_epoch=found.leader_epoch)
            states[number] = PartitionState(number=number, known=known)
        return cls(
            name=incarnation.topic, incarnation=incarnation, log=log, partitions=states, was_gone=was_gone
        )

    def at(self, *stages: Stage) -> Iterator[PartitionState]:
        """The partitions at these stages."""
        return (state for state in self.partitions.values() if state.stage in stages)

    @property
    def offsets_done(self) -> int:
        """Offsets read by now, over all partitions."""
        return sum(state.position - state.first for state in self.partitions.values())

    @property
    def offsets_total(self) -> int:
        """Offsets that this capture is to read, as far as is known."""
        return sum(
            max(state.ends.last_stable_offset, state.position) - state.first
            for state in self.partitions.values()
            if state.ends is not None
        )

    @property
    def records(self) -> int:
        """Records kept by now."""
        return sum(state.records for state in self.partitions.values())

    @property
    def raw_bytes(self) -> int:
        """Bytes of record batches kept by now."""
        return sum(state.raw_bytes for state in self.partitions.values())

    @property
    def is_finished(self) -> bool:
        """Whether every partition is done or has failed."""
        return not any(self.at(Stage.ASKING, Stage.FETCHING))

    @property
    def has_failed(self) -> bool:
        """Whether a partition has failed."""
        return any(self.at(Stage.FAILED))

    @property
    def pending_bytes(self) -> int:
        """Raw bytes of segments that no commit names yet."""
        return sum(
            segment.raw_size
            for state in self.partitions.values()
            if state.pending is not None
            for segment in state.pending.segments
        )

    @property
    def is_unchanged(self) -> bool:
        """Whether the newest commit already says everything there is to say of the topic."""
        return (
            (self.head_is_ours or not self.was_gone)
            and self.log.incarnation == self.incarnation
            and all(not state.has_news and self._is_known(state) for state in self.partitions.values())
        )

    def _is_known(self, state: PartitionState) -> bool:
        found, ends, pending = self.log.state_of(state.number), state.ends, state.pending
        if found is None or ends is None or pending is None:
            return False
        saved = (found.end, found.log_start_offset, found.leader_epoch)
        return saved == (ends.last_stable_offset, ends.log_start_offset, pending.leader_epoch)

    def questions(self, states: Sequence[PartitionState]) -> dict[Partition, Question]:
        """What to ask the leaders of some partitions."""
        topic_id = self.incarnation.topic_id
        return {
            (self.name, state.number): Question(
                topic_id=topic_id, known=state.known, suspected=state.suspected
            )
            for state in states
        }

    def work(self, state: PartitionState) -> PartitionWork:
        """What to fetch of a partition that was planned."""
        assert state.known is not None
        assert state.ends is not None
        return PartitionWork(
            topic=self.name,
            topic_id=self.incarnation.topic_id,
            partition=state.number,
            end=state.ends.last_stable_offset,
            compacts=self.incarnation.compacts or self.log.compacts,
            known=state.known,
            first_index=state.next_index,
        )

    def due(self, *, final: bool) -> list[PartitionState]:
        """The partitions that a commit now must hold.

        The last commit of a capture says of all what they are like now; others only what is new.
        """
        news = [state for state in self.partitions.values() if state.has_news]
        if not final or (self.has_failed and not news):
            return news
        return [state for state in self.partitions.values() if state.has_news or state.stage is Stage.DONE]
