"""The records of ``__consumer_offsets``: which group committed which offset.

Written by hand after Kafka's schemas ``OffsetCommitKey.json`` (versions 0 and 1) and
``OffsetCommitValue.json`` (versions 0 to 4). Other kinds of records in that topic have other key versions; of
those only the ones that say that there is a group with members, or was, are looked at, and only their keys
(``GroupMetadataKey.json``, ``ConsumerGroupMetadataKey.json``, ``StreamsGroupMetadataKey.json``).
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass

from kafka_backup.errors import DamagedError
from kafka_backup.records.varint import read_unsigned_varint

_KEY_VERSIONS = frozenset({0, 1})
_GROUP_TYPES = {2: "classic", 3: "consumer", 17: "streams"}
"""By key version (``CoordinatorRecordType``); share groups commit no offsets."""
_LAST_VALUE_VERSION = 4
_SHORT = struct.Struct(">h")
_INT = struct.Struct(">i")
_LONG = struct.Struct(">q")
_TOPIC_ID_TAG = 0
_NO_TOPIC_ID = bytes(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetCommitKey:
    """Whose position a record is about."""

    group: str
    topic: str
    partition: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetCommitValue:
    """A committed offset.

    Attributes:
        offset: the next one to read.
        leader_epoch: of the last record read; -1 if none was named.
        metadata: free text.
        topic_id: as Kafka prints it; None where the consumer did not name it (before Kafka 4.1).
    """

    offset: int
    leader_epoch: int
    metadata: str
    topic_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupKey:
    """Which group a record is about, that is not about a position.

    Attributes:
        type: ``classic``, ``consumer`` (KIP-848) or ``streams``.
    """

    group: str
    type: str


def parse_group_key(key: bytes | None) -> GroupKey | None:
    """Read a record's key; None if the record is not about a group as a whole.

    Raises:
        DamagedError: it is, and cannot be read.
    """
    kind = _GROUP_TYPES.get(_version_of(key))
    if key is None or kind is None:
        return None
    try:
        group, position = _text(key, _SHORT.size)
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise DamagedError(f"the key of a group cannot be read: {error}") from error
    if position != len(key):
        raise DamagedError(f"the key of a group has {len(key) - position} bytes too many")
    return GroupKey(group=group, type=kind)


def parse_offset_commit_key(key: bytes | None) -> OffsetCommitKey | None:
    """Read a record's key; None if the record is not about a position.

    Raises:
        DamagedError: it is, and cannot be read.
    """
    if key is None or _version_of(key) not in _KEY_VERSIONS:
        return None
    try:
        group, position = _text(key, _SHORT.size)
        topic, position = _text(key, position)
        (partition,) = _INT.unpack_from(key, position)
        position += _INT.size
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise DamagedError(f"the key of an offset commit cannot be read: {error}") from error
    if position != len(key):
        raise DamagedError(f"the key of an offset commit has {len(key) - position} bytes too many")
    return OffsetCommitKey(group=group, topic=topic, partition=partition)


def parse_offset_commit_value(value: bytes) -> OffsetCommitValue:
    """Read a record's value, which is not a tombstone.

    Raises:
        DamagedError: it is of a version that is not known here, or cannot be read.
    """
    try:
        (version,) = _SHORT.unpack_from(value)
        if not 0 <= version <= _LAST_VALUE_VERSION:
            raise DamagedError(
                f"the value of an offset commit has version {version}; versions 0 to {_LAST_VALUE_VERSION} are known"
            )
        (offset,) = _LONG.unpack_from(value, _SHORT.size)
        position = _SHORT.size + _LONG.size
        leader_epoch = -1
        if version >= 3:
            (leader_epoch,) = _INT.unpack_from(value, position)
            position += _INT.size
        metadata, position = (_compact_text if version >= 4 else _text)(value, position)
        position += _LONG.size * (2 if version == 1 else 1)  # when it was committed, and when it expires
        topic_id = None
        if version >= 4:
            topic_id, position = _topic_id(value, position)
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise DamagedError(f"the value of an offset commit cannot be read: {error}") from error
    if position != len(value):
        raise DamagedError(
            f"the value of an offset commit (version {version}) has {len(value)} bytes instead of {position}"
        )
    return OffsetCommitValue(offset=offset, leader_epoch=leader_epoch, metadata=metadata, topic_id=topic_id)


def _version_of(key: bytes | None) -> int:
    return -1 if key is None or len(key) < _SHORT.size else int(_SHORT.unpack_from(key)[0])


def _text(data: bytes, position: int) -> tuple[str, int]:
    (size,) = _SHORT.unpack_from(data, position)
    return _decoded(data, position + _SHORT.size, size)


def _compact_text(data: bytes, position: int) -> tuple[str, int]:
    size, position = read_unsigned_varint(data, position)
    return _decoded(data, position, size - 1)


def _decoded(data: bytes, start: int, size: int) -> tuple[str, int]:
    if size < 0 or start + size > len(data):
        raise IndexError(f"a text of {size} bytes at byte {start} of {len(data)}")
    return data[start : start + size].decode(), start + size


def _topic_id(data: bytes, position: int) -> tuple[str | None, int]:
    """Read the tagged fields (KIP-482), of which the topic id is the only known one."""
    topic_id = None
    count, position = read_unsigned_varint(data, position)
    for _ in range(count):
        tag, position = read_unsigned_varint(data, position)
        size, position = read_unsigned_varint(data, position)
        field = data[position : position + size]
        if len(field) != size:
            raise IndexError(f"a tagged field of {size} bytes at byte {position} of {len(data)}")
        if tag == _TOPIC_ID_TAG and field != _NO_TOPIC_ID:
            topic_id = base64.urlsafe_b64encode(field).rstrip(b"=").decode()
        position += size
    return topic_id, position
