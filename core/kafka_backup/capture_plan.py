"""From where to where each partition is captured, as its leader says before fetching begins.

A capture goes on where the last one ended, if the leader's log is still the one that was captured. That
is not a matter of offsets: after an unclean election a log can have grown past our end again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kafka_backup.errors import BrokerError, DamagedError, KafkaBackupError, UnreachableError
from kafka_backup.kafka.cluster import EARLIEST, LATEST, Cluster, OffsetAnswer, Partition
from kafka_backup.kafka.epochs import CommonEnd, History, common_ends
from kafka_backup.repository.documents import LeaderEpoch, OffsetSpan


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """What the leader of `leader_epoch` said of a partition: its range and its ends."""

    log_start_offset: int
    last_stable_offset: int
    high_watermark: int
    leader_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is captured of a partition already, committed or not.

    Attributes:
        end: the offset where it goes on.
        epochs: the leader epochs in it, ascending.
        leader_epoch: of the leader whose log last held all of it.
    """

    end: int
    epochs: Sequence[LeaderEpoch]
    leader_epoch: int

    @property
    def history(self) -> History:
        """The same for a comparison with a leader's log."""
        epochs = [(entry.epoch, entry.start_offset) for entry in self.epochs]
        if not epochs or epochs[-1][0] < self.leader_epoch:
            epochs.append((self.leader_epoch, self.end))
        return History(end=self.end, epochs=epochs)

    def until(self, offset: int, *, leader_epoch: int) -> Known:
        """The part of it below an offset, which another leader has."""
        epochs = [entry for entry in self.epochs if entry.start_offset < offset]
        return Known(end=min(self.end, offset), epochs=epochs, leader_epoch=leader_epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionPlan:
    """What to capture of a partition: from `start` to the last stable offset.

    Attributes:
        truncated: what is captured already, but is not in the log any more.
        not_captured: what was never captured and is left out on purpose.
    """

    ends: Ends
    start: int
    truncated: OffsetSpan | None = None
    not_captured: OffsetSpan | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A partition to be planned.

    Attributes:
        topic_id: the incarnation that is meant.
        known: what is captured of it; None: nothing yet.
        suspected: an earlier answer, by which its log was cut back; the same answer again is believed.
    """

    topic_id: str
    known: Known | None
    suspected: CommonEnd | None = None


Verdict = PartitionPlan | CommonEnd | KafkaBackupError
"""A CommonEnd says that the log seems to be cut back: ask again before it is believed."""


def plan_partitions(
    cluster: Cluster,
    questions: Mapping[Partition, Question],
    *,
    start_at: int | None,
    deadline: float,
) -> Mapping[Partition, Verdict]:
    """Plan partitions; some requests per broker, however many there are.

    Args:
        cluster: whose leaders are asked.
        questions: of each (topic, partition).
        start_at: time (ms) at which partitions begin that were never captured; None: at their log start.
        deadline: seconds for each step; partitions without an answer by then carry their last error.
    """
    planner = _Planner(cluster, questions, deadline)
    planner.ask_ends()
    planner.find_starts(start_at)
    planner.check_histories()
    planner.confirm_ids()
    return planner.verdicts


class _Planner:
    def __init__(self, cluster: Cluster, questions: Mapping[Partition, Question], deadline: float) -> None:
        self._cluster = cluster
        self._questions = questions
        self._deadline = deadline
        self._ends: dict[Partition, Ends] = {}
        self.verdicts: dict[Partition, Verdict] = {}

    def ask_ends(self) -> None:
        """Ask log starts, last stable offsets and high watermarks: one request per broker each.

        The log start is asked first: whatever it is, the end that is asked later cannot be below it.
        """
        starts = self._ask(self._questions, EARLIEST, "read_uncommitted")
        stable = self._ask(starts, LATEST, "read_committed")
        high = self._ask(stable, LATEST, "read_uncommitted")
        for key, end in high.items():
            if len({end.leader_epoch, starts[key].leader_epoch, stable[key].leader_epoch}) > 1:
                self.verdicts[key] = _leader_changed(key)
                continue
            self._ends[key] = Ends(
                log_start_offset=starts[key].offset,
                last_stable_offset=stable[key].offset,
                high_watermark=end.offset,
                leader_epoch=end.leader_epoch,
            )

    def find_starts(self, start_at: int | None) -> None:
        """Plan the partitions that were never captured."""
        new = [key for key in self._ends if self._questions[key].known is None]
        found = {} if start_at is None else self._ask(new, start_at, "read_committed")
        for key in new:
            ends = self._ends.pop(key)
            start = first = ends.log_start_offset
            if start_at is not None:
                if key not in found:
                    continue
                # Offset -1: no record at or after that time.
                offset = found[key].offset if found[key].offset >= 0 else ends.last_stable_offset
                start = max(first, min(offset, ends.last_stable_offset))
            self.verdicts[key] = PartitionPlan(
                ends=ends,
                start=start,
                not_captured=OffsetSpan(start=first, end=start) if start > first else None,
            )

    def check_histories(self) -> None:
        """Plan the partitions that were captured before: where their logs are still those captured.

        While the leader is the same its log cannot have been cut back.
        """
        doubtful: dict[Partition, History] = {}
        for key, ends in self._ends.items():
            known = self._known(key)
            if known.leader_epoch == ends.leader_epoch and known.end <= ends.last_stable_offset:
                self.verdicts[key] = self._plan(key)
            else:
                doubtful[key] = known.history
        if not doubtful:
            return
        for key, found in common_ends(self._cluster, doubtful, deadline=self._deadline).items():
            ends = self._ends[key]
            if isinstance(found, KafkaBackupError):
                self.verdicts[key] = found
            elif found.leader_epoch != ends.leader_epoch:
                self.verdicts[key] = _leader_changed(key)
            elif min(found.offset, ends.last_stable_offset) >= self._known(key).end:
                self.verdicts[key] = self._plan(key)
            elif found != self._questions[key].suspected:
                self.verdicts[key] = found
            else:
                self.verdicts[key] = self._cut_back(key, found)

    def _cut_back(self, key: Partition, found: CommonEnd) -> Verdict:
        known, ends = self._known(key), self._ends[key]
        if found.offset >= known.end:
            return DamagedError(
                f"{key[0]} [{key[1]}]: its last stable offset is {ends.last_stable_offset}, but offsets up to "
                f"{known.end} were stable before, and the log was not cut back; a transaction marker may be lost. "
                "Look at the partition with kafka-transactions.sh find-hanging"
            )
        # Where a marker was cut off, records below the cut are open again: they are captured anew.
        return self._plan(key, truncated_to=min(found.offset, ends.last_stable_offset))

    def confirm_ids(self) -> None:
        """Whatever is believed without a fetch must be said of the topic that is meant.

        Offsets and epochs are asked by name, only fetches by id. So a log that was cut back, and a partition that has
        nothing to fetch, could be another topic's under the same name.
        """
        unproved = [
            key
            for key, verdict in self.verdicts.items()
            if isinstance(verdict, PartitionPlan)
            and (verdict.truncated is not None or verdict.start >= verdict.ends.last_stable_offset)
        ]
        if not unproved:
            return
        try:
            now = self._cluster.survey(sorted({topic for topic, _ in unproved}))
        except UnreachableError as error:
            self.verdicts |= dict.fromkeys(unproved, error)
            return
        for topic, number in unproved:
            wanted = self._questions[topic, number].topic_id
            found = now.topics.get(topic)
            if topic in now.disputed:
                self.verdicts[topic, number] = UnreachableError(
                    f"topic {topic} ({wanted}): the brokers do not agree whether it exists, or under which id"
                )
            elif found is None or found.topic_id != wanted:
                self.verdicts[topic, number] = BrokerError(
                    f"topic {topic} ({wanted}) was deleted, or deleted and re-created, meanwhile; run again",
                    code=100,
                    name="UNKNOWN_TOPIC_ID",
                    retriable=False,
                )

    def _known(self, key: Partition) -> Known:
        known = self._questions[key].known
        assert known is not None
        return known

    def _plan(self, key: Partition, *, truncated_to: int | None = None) -> PartitionPlan:
        end = self._known(key).end
        return PartitionPlan(
            ends=self._ends[key],
            start=end if truncated_to is None else truncated_to,
            truncated=None if truncated_to is None else OffsetSpan(start=truncated_to, end=end),
        )

    def _ask(
        self, partitions: Iterable[Partition], position: int, isolation: str
    ) -> dict[Partition, OffsetAnswer]:
        """Ask for an offset of each partition; those without an answer get their verdict instead."""
        answers = self._cluster.list_offsets(
            dict.fromkeys(partitions, position), isolation=isolation, deadline=self._deadline
        )
        good = {}
        for key, answer in answers.items():
            if isinstance(answer, OffsetAnswer):
                good[key] = answer
            else:
                self.verdicts[key] = answer
        return good


def _leader_changed(key: Partition) -> UnreachableError:
    return UnreachableError(f"{key[0]} [{key[1]}]: its leader changed while it was asked")
