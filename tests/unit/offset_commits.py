"""Records of the offsets topic, encoded field by field after Kafka's schemas."""

import struct
import uuid


def text(value: str) -> bytes:
    return struct.pack(">h", len(value.encode())) + value.encode()


def unsigned(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def compact_text(value: str) -> bytes:
    return unsigned(len(value.encode()) + 1) + value.encode()


def commit_key(group: str, topic: str, partition: int, version: int = 1) -> bytes:
    return struct.pack(">h", version) + text(group) + text(topic) + struct.pack(">i", partition)


def commit_value(
    version: int, offset: int, epoch: int, metadata: str, topic_id: uuid.UUID | None = None, unknown: int = 0
) -> bytes:
    """OffsetCommitValue.json; version 4 is flexible, with the topic id as tagged field 0."""
    parts = [struct.pack(">hq", version, offset)]
    if version >= 3:
        parts.append(struct.pack(">i", epoch))
    parts.append(compact_text(metadata) if version >= 4 else text(metadata))
    parts.append(struct.pack(">q", 1_700_000_000_000))
    if version == 1:
        parts.append(struct.pack(">q", -1))
    if version >= 4:
        tags = [(0, topic_id.bytes)] if topic_id is not None else []
        tags += [(number, b"x" * number) for number in range(1, unknown + 1)]
        parts.append(unsigned(len(tags)))
        parts += [unsigned(tag) + unsigned(len(data)) + data for tag, data in tags]
    return b"".join(parts)
