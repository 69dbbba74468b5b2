"""The stored documents of consumer positions: group snapshots, and what was done to groups.

A position is the next offset that a group wants to read of a partition. Names of groups are any
UTF-8 text: they stand in documents only, never in a key.
"""

from __future__ import annotations

import io
from typing import Annotated, ClassVar, Literal, Self

import zstandard
from pydantic import Field

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
