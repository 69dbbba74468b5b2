"""The stored documents of a restore: what was asked, what is planned, who does it, what was done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kafka_backup.repository.documents import (
    Count,
    Document,
    Identifier,
    Milliseconds,
    OffsetSpan,
    Part,
    Sha256,
    TopicId,
    TopicName,
)


class RenameRule(Part):
    """A Python regular expression that must match the whole name of a topic or group, and its replacement."""

    pattern: str
    replacement: str


class RestoreRequest(Part):
    """What somebody asks a restore to do.

    Attributes:
        restore_id: the idempotency key: the same id with the same request continues, with another
            request it is refused.
        topics: filters as in the configuration; empty means every topic of the repository.
        partitions: only these; empty means all.
        rename: the first rule that matches a topic's whole name gives the target's name.
        prefix: put before the (renamed) name.
        from_ms: take records whose own timestamp is at or after this, ms.
        until_ms: take records whose own timestamp is at or before this, ms (inclusive).
        capture: restore the state as of this capture.
        incarnation: the topic id to restore, where a name stands for several.
        replication_factor: of created topics; None means that of the source.
        groups: filters of consumer groups whose positions are put where the records went; empty means none.
        rename_groups: the first rule that matches a group's whole name gives its name on the target.
        original_offset_header: each record gets the header ``x-original-offset``.
        original_timestamp_header: each record gets the header ``x-original-timestamp``.
        replace: a target that holds data is captured to its end, deleted and made anew.
    """

    restore_id: Identifier
    topics: tuple[str, ...] = ()
    partitions: tuple[int, ...] = ()
    rename: tuple[RenameRule, ...] = ()
    prefix: str = ""
    from_ms: Milliseconds | None = None
    until_ms: Milliseconds | None = None
    capture: str | None = None
    incarnation: str | None = None
    replication_factor: Annotated[int, Field(ge=1, le=2**15 - 1)] | None = None
    groups: tuple[str, ...] = ()
    rename_groups: tuple[RenameRule, ...] = ()
    original_offset_header: bool = False
    original_timestamp_header: bool = False
    replace: bool = False


class Finding(Part):
    """Something that planning found: a problem forbids to carry out the plan, a note does not.

    `kind` is one short word for programs (``target_not_empty``), `detail` a sentence for people.
    """

    kind: str
    topic: str | None = None
    partition: int | None = None
    detail: str


class PlannedPartition(Part):
    """What will be read for one partition, from the commits alone.

    Attributes:
        source_start: first source offset covered (inclusive); `source_end`: exclusive.
        records: exact without time bounds, otherwise the most that it can be.
        reencoded_batches: batches that cannot pass as they are, time bounds aside.
        newest: the largest record time in the segments, ms; None without a segment.
        initial_end: end offset of the target partition when the plan was made.
    """

    partition: Count
    source_start: Count
    source_end: Count
    segments: Count
    raw_bytes: Count
    batches: Count
    reencoded_batches: Count
    records: Count
    newest: Milliseconds | None = None
    initial_end: Count = 0


class PlannedReplacement(Part):
    """A topic that is deleted so that the target can be made under its name.

    Attributes:
        topic_id: of the topic that is deleted, and of no other.
        ends: end offset of each of its partitions, in their order.
        captured: captures hold all of it up to these ends. Before the final capture, in a dry run,
            they need not.
    """

    topic_id: TopicId
    ends: tuple[Count, ...]
    captured: bool


class PlannedStep(Part):
    """One step that changes something, in the order in which it is taken.

    `capture` saves all of a topic, `prove` reads everything back that would be needed of it, `delete` removes
    it, `create` makes it, `write` restores and verifies its records, `configure` applies its settings.
    """

    action: Literal["capture", "prove", "delete", "create", "write", "configure"]
    topic: TopicName


class PlannedTopic(Part):
    """One topic of a plan.

    Attributes:
        head: the commit whose state is restored, and its SHA-256.
        configured_by: the commit whose topic configuration is restored.
        target_topic_id: of an existing empty target; None where the restore creates it.
        replaces: the topic of the target's name that is deleted first, if any.
        target_configuration: the values set on an existing target before, for the record.
        configuration: applied after verification: the saved values that were set on the topic.
        not_applied: saved values that name brokers, that the target does not know or refuses, or that
            would need more copies than it has.
        retention_ms: what will be in force on the target in the end; -1 is unlimited.
        retention_bytes: the same, bytes per partition.
        max_batch_bytes: batches larger than this are split.
        merge_bytes: tiny batches are merged up to this many bytes of records, uncompressed.
    """

    source: TopicName
    source_topic_id: TopicId
    target: TopicName
    target_topic_id: TopicId | None
    replaces: PlannedReplacement | None = None
    target_configuration: dict[str, str]
    head: Count
    head_sha256: Sha256
    configured_by: Count = 0
    partition_count: Count
    replication_factor: Count
    configuration: dict[str, str]
    not_applied: dict[str, str]
    retention_ms: int
    retention_bytes: int
    max_batch_bytes: Count
    merge_bytes: Count = 0
    partitions: tuple[PlannedPartition, ...]


class PlannedMove(Part):
    """Where one position of a consumer group goes once its records are restored.

    Attributes:
        group: its name on the target; `source_group` in the group snapshot.
        topic: the target topic.
        source_topic, source_offset: the position in the group snapshot.
        offset: the target offset; None where only reading the records can tell it.
        remaining: restored records that are still to be read from there; the most that it can be
            where `offset` is None, or the restore has time bounds.
        is_beyond: the position lies beyond what was captured, and goes to the end.
    """

    group: str
    source_group: str
    topic: TopicName
    partition: Count
    source_topic: TopicName
    source_offset: Count
    offset: Count | None
    remaining: Count
    is_beyond: bool


class PlannedGroups(Part):
    """The consumer groups of a restore: whose positions they get, and where these go.

    Attributes:
        snapshot_id: the group snapshot, and when it was taken, ms.
    """

    snapshot_id: Identifier
    taken_at: Milliseconds
    moves: tuple[PlannedMove, ...]


class RestorePlan(Document):
    """``restores/<id>/plans/<n>.json``: stored before anything is written; also the dry run's answer.

    A plan with problems is never stored and never carried out.

    Attributes:
        number: from 1; a higher one replaces it, which happens only before the first attempt, when
            an expiry took away what the plan had counted on.
    """

    kind: ClassVar[str] = "restore plan"

    number: Annotated[int, Field(ge=1)] = 1
    request: RestoreRequest
    nonce: Identifier
    planned_at: Milliseconds
    repository_id: Identifier
    target_cluster_id: str
    topics: tuple[PlannedTopic, ...]
    groups: PlannedGroups | None = None
    steps: tuple[PlannedStep, ...] = ()
    problems: tuple[Finding, ...] = ()
    notes: tuple[Finding, ...] = ()

    def moves(self, *, skip_damaged: bool) -> Sequence[PlannedMove]:
        """Return where the positions of its groups go, as far as that can be told before the data is read.

        Which segments are damaged is known only then. If they are left out, every target offset may
        become lower, except the first one.
        """
        moves = () if self.groups is None else self.groups.moves
        if not skip_damaged:
            return moves
        first = {
            (topic.target, part.partition): part.initial_end
            for topic in self.topics
            for part in topic.partitions
        }
        return [
            move
            if move.offset == first.get((move.topic, move.partition))
            else move.model_copy(update={"offset": None})
            for move in moves
        ]


class AttemptTarget(Part):
    """A target topic as the attempt found or made it."""

    topic: TopicName
    topic_id: TopicId


class RestoreAttempt(Document):
    """``restores/<id>/attempts/<n>.json``: the highest attempt owns the restore.

    An attempt with the action ``abandon`` is the last one: nobody may write any more.
    """

    kind: ClassVar[str] = "restore attempt"

    action: Literal["run", "abandon"] = "run"
    restore_id: Identifier
    attempt: Count
    nonce: Identifier
    started_at: Milliseconds
    plan_sha256: Sha256
    targets: tuple[AttemptTarget, ...]


class SkippedSegment(Document):
    """``restores/<id>/skipped/<topic>/<partition>/<commit>-<k>.json``: a damaged segment that is left out.

    Stored before anything beyond it is written; it holds for every later run of the restore.

    Attributes:
        commit: number of the commit that names the segment, `index` the counter ``k`` in its key.
        start: source offsets ``[start, end)`` are missing in the target.
        records: in them at most; time bounds would have left out some.
        segment: its key, for people.
        damage: what is wrong with it.
    """

    kind: ClassVar[str] = "skipped segment"

    restore_id: Identifier
    source: TopicName
    partition: Count
    commit: Count
    index: Count
    start: Count
    end: Count
    records: Count
    segment: str
    damage: str


class MissingSpan(Part):
    """Source offsets ``[start, end)`` that are not in the target, because their segment is damaged."""

    start: Count
    end: Count
    records: Count
    segment: str
    damage: str


class RestoredPartition(Part):
    """What was done for one partition: target offsets ``[target_start, target_end)``.

    Attributes:
        source_start: first source offset covered; `source_end`: exclusive.
        oldest: the smallest max timestamp of its batches in the target, ms; `newest`: the largest.
        digest: SHA-256 over the batches in the target: for each one base offset (int64), attributes
            (int16), base and max timestamp (int64), number of records (int32), all big-endian, and the
            CRC-32C of its records as they stand, compressed or not (uint32).
        produce_seconds: of the attempt that verified it; `verify_seconds` as well.
        missing: what was left out because it is damaged.
    """

    partition: Count
    records: Count
    fast_batches: Count
    slow_batches: Count
    raw_bytes: Count
    source_start: Count
    source_end: Count
    target_start: Count
    target_end: Count
    oldest: Milliseconds | None
    newest: Milliseconds | None
    digest: Sha256
    produce_seconds: float = Field(ge=0)
    verify_seconds: float = Field(ge=0)
    verified: bool
    missing: tuple[MissingSpan, ...] = ()


class VerifiedTopic(Part):
    """A target topic that was compared with the repository from its first to its last record."""

    source: TopicName
    target: TopicName
    target_topic_id: TopicId
    partitions: tuple[RestoredPartition, ...]


class RestoreVerification(Document):
    """``restores/<id>/verified.json``: all targets hold what the plan says.

    Stored before the saved configuration is put in force, which may compact or delete: from then on
    nothing is compared any more, and whoever goes on begins with the configuration. Its topics are
    those of the plan, in its order.
    """

    kind: ClassVar[str] = "restore verification"

    restore_id: Identifier
    attempt: Count
    nonce: Identifier
    verified_at: Milliseconds
    topics: tuple[VerifiedTopic, ...]


class RestoredTopic(Part):
    """What was done for one topic.

    `retention_held` says that records are older than the saved retention allows, so the target
    keeps everything until ``restore --release-retention``. `replaced_topic_id` is that of the topic that
    was deleted for it.
    """

    source: TopicName
    target: TopicName
    target_topic_id: TopicId
    partitions: tuple[RestoredPartition, ...]
    configuration: dict[str, str]
    not_applied: dict[str, str]
    retention_held: bool
    replaced_topic_id: TopicId | None = None


class RestoredPosition(Part):
    """What was done with one position of a consumer group.

    Attributes:
        topic: the target topic.
        source_topic, source_offset: the position in the group snapshot; None where it holds none.
        before: the position on the target before; None: there was no commit. `after` as well.
        remaining: offsets from there to the end.
        clamped_from: the offset that it would have been, where that does not exist.
    """

    group: str
    topic: TopicName
    partition: Count
    source_topic: TopicName | None
    source_offset: Count | None
    before: Count | None
    after: Count | None
    remaining: Count
    clamped_from: Count | None


class RestoredGroups(Part):
    """The consumer groups of a finished restore; every position was read back.

    Attributes:
        reset_id: what ``groups rollback`` takes; None if every position was there already.
    """

    snapshot_id: Identifier
    reset_id: Identifier | None
    positions: tuple[RestoredPosition, ...]


class RestoreReport(Document):
    """``restores/<id>/reports/<attempt>.json``: proof of what a restore did.

    The status is ``incomplete`` where damaged segments were left out: all the rest is verified.

    Attributes:
        command: asks for the same again.
        page_sha256: of ``reports/<attempt>.md``, the same for people.
    """

    kind: ClassVar[str] = "restore report"

    restore_id: Identifier
    attempt: Count
    status: Literal["verified", "incomplete"]
    started_at: Milliseconds
    verified_at: Milliseconds
    ended_at: Milliseconds
    target_cluster_id: str
    topics: tuple[RestoredTopic, ...]
    groups: RestoredGroups | None = None
    seconds: float = Field(ge=0)
    command: str = ""
    page_sha256: Sha256 | None = None

    def missing(self) -> list[str]:
        """Return a sentence for each span of source offsets that was left out because it is damaged."""
        return [
            f"{topic.target} [{part.partition}] lacks source offsets [{span.start}, {span.end}), up to {span.records} records: "
            f"{span.damage}"
            for topic in self.topics
            for part in topic.partitions
            for span in part.missing
        ]


class OffsetMapDocument(Document):
    """``offset-map/<topic>/<partition>.json``: source offsets to target offsets, as runs.

    Run i maps source offsets ``[source[i], source[i] + length[i])`` to target offsets from
    ``target[i]``; runs are in order and do not overlap. `source_end` and `target_end` are the
    exclusive ends of both sides. `missing` are source offsets that were left out because they are damaged.
    """

    kind: ClassVar[str] = "offset map"

    restore_id: Identifier
    source: TopicName
    target: TopicName
    partition: Count
    source_end: Count
    target_end: Count
    source_runs: tuple[Count, ...]
    target_runs: tuple[Count, ...]
    lengths: tuple[Count, ...]
    missing: tuple[OffsetSpan, ...] = ()
