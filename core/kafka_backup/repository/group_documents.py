"""The stored documents of consumer positions: group snapshots, and what was done to groups.

A position is the next offset that a group wants to read of a partition. Names of groups are any
UTF-8 text: they stand in documents only, never in a key.
"""

from __future__ import annotations

import io
from typing import Annotated, ClassVar, Literal, Self

import zstandard
from pydantic import Field, model_validator

from kafka_backup.errors import DamagedError
from kafka_backup.repository.documents import (
    Count,
    Document,
    Identifier,
    Milliseconds,
    Part,
    TopicId,
    TopicName,
)
from kafka_backup.repository.restore_documents import RenameRule

_ZSTD_LEVEL = 3
_LARGEST = 1 << 30
"""Bytes of JSON beyond which a compressed document is taken for damage: it could fill the memory."""

LeaderEpochOrNone = Annotated[int, Field(ge=-1, le=2**31 - 1)]


class Position(Part):
    """A committed offset of one group.

    Attributes:
        topic_id: the incarnation that it is a position of; None where the brokers did not show the
            topic, because it is gone or we may not describe it.
        offset: the next offset to read.
        leader_epoch: of the last record that was read; -1 if the consumer named none.
        metadata: free text of the consumer.
    """

    topic: TopicName
    topic_id: TopicId | None
    partition: Count
    offset: Count
    leader_epoch: LeaderEpochOrNone = -1
    metadata: str = ""


class SavedGroup(Part):
    """One group of a snapshot.

    Attributes:
        type: ``classic``, ``consumer`` (KIP-848), ``streams`` or ``share``.
        state: as its coordinator named it: ``Empty``, ``Stable``...
        protocol_type: ``consumer``, ``connect``...; empty for a group that only commits.
        status: ``read``: `positions` are all that the brokers show. ``failed``: they could not be
            read, and `detail` says why; that is not the same as having none. ``unsupported``: a share
            group, whose brokers keep no committed offsets but a state of each record.
    """

    group: str
    type: str
    state: str
    protocol_type: str
    status: Literal["read", "failed", "unsupported"]
    detail: str | None = None
    positions: tuple[Position, ...] = ()


class GroupSnapshot(Document):
    """``groups/<taken at>-<capture id>.json.zst``: the positions of consumer groups at one instant.

    Each position was true at some moment in ``[taken_at, ended_at]``.

    Attributes:
        capture_id: the capture that took it first of all; None if it was taken on its own.
        include, exclude: filters of groups, as they were written.
        incomplete: why there may be groups or positions that we were not shown; empty if there are none.
        doubts: why the last commits before a coordinator took over may be missing, for want of a right that is not
            required; nearly always they are not.
        topics: every topic that the brokers showed, with its id, before and after the positions were read.
    """

    kind: ClassVar[str] = "group snapshot"

    snapshot_id: Identifier
    nonce: Identifier
    capture_id: Identifier | None
    cluster_id: str
    taken_at: Milliseconds
    ended_at: Milliseconds
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    incomplete: tuple[str, ...]
    doubts: tuple[str, ...] = ()
    topics: dict[TopicName, TopicId]
    groups: tuple[SavedGroup, ...]

    @property
    def failed(self) -> tuple[SavedGroup, ...]:
        """The groups that could not be read."""
        return tuple(group for group in self.groups if group.status == "failed")

    def to_stored(self) -> bytes:
        """Return the object's bytes: the canonical JSON as one zstd frame."""
        return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compress(self.to_bytes())

    @classmethod
    def from_stored(cls, data: bytes, *, key: str) -> Self:
        """Parse a stored snapshot.

        Raises:
            DamagedError: the bytes are not one whole zstd frame with a snapshot in it.
        """
        return cls.from_bytes(_decompressed(data, key), key=key)


def _decompressed(data: bytes, key: str) -> bytes:
    frame = zstandard.ZstdDecompressor().decompressobj()
    text = io.BytesIO()
    view = memoryview(data)
    try:
        for start in range(0, len(data), 1 << 12):
            text.write(frame.decompress(view[start : start + (1 << 12)]))
            if text.tell() > _LARGEST:
                raise DamagedError(f"{key} unpacks to more than {_LARGEST} bytes; it is damaged")
    except zstandard.ZstdError as error:
        raise DamagedError(f"{key} is not a zstd frame ({error}); it is damaged") from error
    if not frame.eof or frame.unused_data:
        raise DamagedError(f"{key} is cut off, or something follows its zstd frame; it is damaged")
    return text.getvalue()


class ResetRequest(Part):
    """Where somebody wants consumer groups to be.

    Exactly one of `snapshot_id`, `at_ms` and `to` says where to.

    Attributes:
        groups: filters of groups.
        topics: filters of topics, by their names in the source; empty means all.
        snapshot_id: to the positions in this group snapshot.
        at_ms: to the positions that the groups had at this time, from the captured history.
        restore_id: the positions are of what this restore read, and go to where it put that.
        to: ``earliest``, ``latest``, ``offset`` or ``time``.
        to_offset: with ``offset``: this one, in each partition.
        to_ms: with ``time``: the first record that is not older, in each partition.
        atomic: all groups in one transaction, or none.
        clamp: take the nearest existing offset for one that is out of the log's bounds.
        rename: new names of groups; the first rule that matches a whole name counts.
    """

    groups: tuple[str, ...]
    topics: tuple[str, ...] = ()
    snapshot_id: Identifier | None = None
    at_ms: Milliseconds | None = None
    restore_id: Identifier | None = None
    to: Literal["earliest", "latest", "offset", "time"] | None = None
    to_offset: Count | None = None
    to_ms: Milliseconds | None = None
    atomic: bool = False
    clamp: bool = False
    rename: tuple[RenameRule, ...] = ()

    @model_validator(mode="after")
    def _says_where_to(self) -> Self:
        if sum(given is not None for given in (self.snapshot_id, self.at_ms, self.to)) != 1:
            raise ValueError("name one of a snapshot, a time of the history, and an offset or time to go to")
        if (self.to == "offset") != (self.to_offset is not None) or (self.to == "time") != (
            self.to_ms is not None
        ):
            raise ValueError("to an offset or a time, and which one: both or neither")
        if self.to is not None and self.restore_id is not None:
            raise ValueError("a restore translates saved positions; earliest, latest and the like need none")
        return self


class PlannedPosition(Part):
    """Where one partition of one group is to go.

    Attributes:
        topic: on which the group will be, and its topic id.
        offset: the next record to read then; None: there is to be no commit.
        metadata: the free text to commit with it.
        source_topic, source_offset: what a restore's offset map translated; None without a restore.
        clamped_from: the offset that was asked for, where it is out of bounds and was clamped.
        log_start, high_watermark: the bounds of the log as they were then, half-open.
        before: the position as it was then; None: there was no commit.
    """

    topic: TopicName
    topic_id: TopicId
    partition: Count
    offset: Count | None
    metadata: str = ""
    source_topic: TopicName | None = None
    source_offset: Count | None = None
    clamped_from: Count | None = None
    log_start: Count
    high_watermark: Count
    before: Count | None

    @property
    def remaining(self) -> int:
        """Offsets from the new position to the end: what is still to be read, gaps included."""
        return self.high_watermark - (self.log_start if self.offset is None else self.offset)


class PlannedGroup(Part):
    """One group of a plan and where its partitions go."""

    group: str
    positions: tuple[PlannedPosition, ...]


class GroupProblem(Part):
    """Something that forbids to carry out a plan.

    `kind` is one short word for programs (``group_active``), `detail` a sentence for people.
    """

    kind: str
    group: str | None = None
    topic: str | None = None
    partition: int | None = None
    detail: str


class ResetPlan(Document):
    """``resets/<id>/plan.json``: where consumer groups will be; stored before anything is changed.

    A plan with problems is never stored and never carried out.
    """

    kind: ClassVar[str] = "reset plan"

    reset_id: Identifier
    request: ResetRequest
    nonce: Identifier
    planned_at: Milliseconds
    cluster_id: str
    groups: tuple[PlannedGroup, ...]
    problems: tuple[GroupProblem, ...] = ()


class PositionBefore(Part):
    """One position as it was before a reset; `offset` None: there was no commit."""

    topic: TopicName
    topic_id: TopicId
    partition: Count
    offset: Count | None
    leader_epoch: LeaderEpochOrNone = -1
    metadata: str = ""


class GroupBefore(Part):
    """One group as it was before a reset.

    `state` is None if the group did not exist. `positions` are those that the plan names.
    """

    group: str
    state: str | None
    positions: tuple[PositionBefore, ...]


class PositionsBefore(Document):
    """``resets/<id>/before.json``: what a rollback puts back. Taken once, before the first change."""

    kind: ClassVar[str] = "positions before a reset"

    reset_id: Identifier
    nonce: Identifier
    taken_at: Milliseconds
    groups: tuple[GroupBefore, ...]


class MovedPosition(Part):
    """What became of one partition of one group: where it was, where it is, and what went wrong.

    `was_touched` says whether a broker may have changed it on our behalf: a rollback leaves alone what
    was certainly not.
    """

    group: str
    topic: TopicName
    partition: Count
    before: Count | None
    after: Count | None
    error: str | None = None
    was_touched: bool = False


ResetState = Literal["applying", "applied", "verified", "failed", "rolling_back", "rolled_back"]


class ResetStep(Document):
    """``resets/<id>/steps/<n>-<state>.json``: how far a reset is. Its plan and before.json come first.

    Attributes:
        number: from 1, without gaps.
        state: ``applying``: the brokers may have been told something from now on. ``applied``: all
            positions were seen at their places once. ``verified``: they were compared at the end.
            ``failed``: what could be moved was moved, `positions` say what could not.
            ``rolling_back`` and ``rolled_back``: the way back.
        positions: every position of the plan, in ``verified``, ``failed`` and ``rolled_back``.
    """

    kind: ClassVar[str] = "reset step"

    reset_id: Identifier
    number: Count
    state: ResetState
    nonce: Identifier
    at: Milliseconds
    positions: tuple[MovedPosition, ...] = ()
