"""Records of the offsets topic, against an encoder that follows Kafka's schemas field by field."""

from __future__ import annotations

import base64
import struct
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.errors import DamagedError
from kafka_backup.records.offset_commits import (
    GroupKey,
    OffsetCommitKey,
    OffsetCommitValue,
    parse_group_key,
    parse_offset_commit_key,
    parse_offset_commit_value,
)
from tests.unit.offset_commits import commit_key, commit_value, text

TEXT = st.text(st.characters(codec="utf-8"), max_size=200)
OFFSET = st.integers(-(2**63), 2**63 - 1)
EPOCH = st.integers(-(2**31), 2**31 - 1)


@given(TEXT, TEXT, EPOCH, st.sampled_from([0, 1]))
def test_a_key_says_whose_position_it_is(group: str, topic: str, partition: int, version: int) -> None:
    """What: keys of both versions with any text.

    Why: a group's name may be any UTF-8.
    Risk: lengths counted in characters instead of bytes.
    """
    found = parse_offset_commit_key(commit_key(group, topic, partition, version))
    assert found == OffsetCommitKey(group=group, topic=topic, partition=partition)


@given(st.integers(-(2**15), 2**15 - 1).filter(lambda version: version not in (0, 1)), st.binary(max_size=30))
def test_other_records_are_left_alone(version: int, rest: bytes) -> None:
    """What: keys of all other versions: members of groups, share groups, what is yet to come.

    Why: they stand in the same topic.
    Risk: a member's record read as a position.
    """
    assert parse_offset_commit_key(struct.pack(">h", version) + rest) is None
    assert parse_offset_commit_key(None) is None
    assert parse_offset_commit_key(b"") is None


@given(TEXT, st.integers(0, 40))
def test_a_key_says_which_group_has_members(group: str, version: int) -> None:
    """What: keys of all kinds of records, each about a group.

    Why: a group with members is more than its commits.
    Risk: a consumer's group taken for one that nobody is in.
    """
    types = {2: "classic", 3: "consumer", 17: "streams"}
    found = parse_group_key(struct.pack(">h", version) + text(group))
    assert found == (GroupKey(group=group, type=types[version]) if version in types else None)


@given(st.integers(0, 4), OFFSET, EPOCH, TEXT, st.none() | st.uuids(), st.integers(0, 3))
def test_a_value_of_every_version(
    version: int, offset: int, epoch: int, metadata: str, topic_id: uuid.UUID | None, unknown: int
) -> None:
    """What: values of versions 0 to 4, the last with and without a topic id and unknown tagged fields.

    Why: a repository holds what several releases of brokers wrote.
    Risk: a field that only one version has, read or skipped in another: every number after it is wrong.
    """
    found = parse_offset_commit_value(commit_value(version, offset, epoch, metadata, topic_id, unknown))
    zero = topic_id is None or topic_id.int == 0
    assert found == OffsetCommitValue(
        offset=offset,
        leader_epoch=epoch if version >= 3 else -1,
        metadata=metadata,
        topic_id=None
        if version < 4 or zero
        else base64.urlsafe_b64encode(topic_id.bytes).decode().rstrip("="),  # type: ignore[union-attr]
    )


@given(st.integers(0, 4), TEXT, st.data())
def test_a_damaged_record_is_no_position(version: int, metadata: str, data: st.DataObject) -> None:
    """What: keys and values that are cut off anywhere, or go on.

    Why: a wrong position is worse than none.
    Risk: the rest of a record taken for a number.
    """
    for whole, parse in (
        (commit_value(version, 5, 6, metadata, uuid.UUID(int=7)), parse_offset_commit_value),
        (commit_key("group", "topic", 3), parse_offset_commit_key),
        (b"\0\2" + text("group"), parse_group_key),
    ):
        cut = data.draw(st.integers(2, len(whole) - 1))
        with pytest.raises(DamagedError):
            parse(whole[:cut])
        with pytest.raises(DamagedError):
            parse(whole + b"\0")


@pytest.mark.parametrize("version", [-1, 5, 100])
def test_a_version_that_is_not_known_is_refused(version: int) -> None:
    """What: a value of a version that does not exist yet.

    Why: what a newer broker writes must be an error here, not a guess.
    Risk: the fields of the newest known version read from it.
    """
    with pytest.raises(DamagedError, match=f"version {version}"):
        parse_offset_commit_value(struct.pack(">h", version) + bytes(40))
