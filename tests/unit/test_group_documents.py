"""Group snapshots as they are stored: canonical, strict, and any group's name in them, none in a key."""

from __future__ import annotations

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.errors import ConfigurationError, DamagedError, WriterConflictError
from kafka_backup.repository import layout
from kafka_backup.repository.group_documents import GroupSnapshot, Position, SavedGroup
from kafka_backup.repository.group_store import GroupStore
from tests.unit.repositories import CAPTURE, TOPIC, TOPIC_ID, memory_store

SNAPSHOT_ID = f"20260102T030405123Z-{CAPTURE}"
NAMES = st.text(st.characters(codec="utf-8"), max_size=40)


def snapshot(*groups: SavedGroup, snapshot_id: str = SNAPSHOT_ID, nonce: str = "n") -> GroupSnapshot:
    return GroupSnapshot(
        snapshot_id=snapshot_id,
        nonce=nonce,
        capture_id=CAPTURE,
        cluster_id="cluster-1",
        taken_at=1000,
        ended_at=1001,
        include=("*",),
        exclude=(),
        incomplete=(),
        topics={TOPIC: TOPIC_ID},
        groups=groups,
    )


def saved(name: str, offset: int = 7, metadata: str = "") -> SavedGroup:
    return SavedGroup(
        group=name,
        type="classic",
        state="Empty",
        protocol_type="consumer",
        status="read",
        positions=(
            Position(topic=TOPIC, topic_id=TOPIC_ID, partition=0, offset=offset, metadata=metadata),
            Position(topic=TOPIC, topic_id=None, partition=2**31 - 1, offset=2**63 - 1, leader_epoch=4),
        ),
    )


@given(NAMES, NAMES, st.integers(0, 2**63 - 1))
def test_snapshot_serialization_keeps_every_field(name: str, metadata: str, offset: int) -> None:
    """What: a snapshot stored and read again, with any text as group name and metadata.

    Why: names of groups are arbitrary UTF-8, and Kafka Streams keeps its clock in the metadata.
    Risk: an offset through a float, an escaped name, an empty text that became null.
    """
    store = GroupStore(memory_store())
    document = snapshot(saved(name, offset, metadata), saved(name + "x"))
    store.put_snapshot(document)
    assert store.snapshot(SNAPSHOT_ID) == document
    assert store.snapshot_ids() == [SNAPSHOT_ID]


def test_snapshots_are_listed_by_time() -> None:
    """What: the ids of stored snapshots, in the order of their times, whatever else lies beside them.

    Why: a restore takes the newest one that is not later than its bound.
    Risk: an order by name of capture, or a crash at an object that is none of ours.
    """
    memory = memory_store()
    store = GroupStore(memory)
    later, earlier = f"20260202T000000000Z-{CAPTURE}", "20260102T030405123Z-0a1b2c3d"
    for snapshot_id in (later, earlier):
        store.put_snapshot(snapshot(snapshot_id=snapshot_id))
    with memory.create("groups/notes.txt") as writer:
        writer.commit()
    assert store.snapshot_ids() == [earlier, later]


def test_a_snapshot_is_never_replaced() -> None:
    """What: a second snapshot under the same id is refused; storing the same bytes again is fine.

    Why: a lost acknowledgement makes a store say "exists" to the writer itself.
    Risk: either half would lose a snapshot, or a capture.
    """
    store = GroupStore(memory_store())
    assert store.put_snapshot(snapshot(saved("a"))) == store.put_snapshot(snapshot(saved("a")))
    with pytest.raises(WriterConflictError):
        store.put_snapshot(snapshot(saved("a"), nonce="m"))
    assert [group.group for group in store.snapshot(SNAPSHOT_ID).groups] == ["a"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data + data,
        lambda data: bytes(b ^ 1 if i == len(data) // 2 else b for i, b in enumerate(data)),
        lambda _: b"",
        lambda _: zstandard.compress(b'{"format_version":1}'),
        lambda data: zstandard.compress(
            zstandard.decompress(data).replace(b'"format_version":1', b'"format_version":2')
        ),
        lambda data: zstandard.compress(zstandard.decompress(data).replace(b'"read"', b'"reed"')),
    ],
    ids=["cut", "tail", "twice", "bit_flipped", "empty", "fields_missing", "newer_format", "unknown_status"],
)
def test_a_damaged_snapshot_is_named(spoil: object) -> None:
    """What: a snapshot object that was cut, lengthened, flipped, or is of another release.

    Why: positions that are guessed from half a document make consumers skip records.
    Risk: zstandard gives what it can of a cut frame, and drops what follows one, without a word.
    """
    memory = memory_store()
    key = layout.group_snapshot_key(SNAPSHOT_ID)
    with memory.create(key) as writer:
        writer.write(spoil(snapshot(saved("a")).to_stored()))  # type: ignore[operator]
        writer.commit()
    with pytest.raises(DamagedError, match=SNAPSHOT_ID):
        GroupStore(memory).snapshot(SNAPSHOT_ID)


def test_a_snapshot_under_another_name_is_damage() -> None:
    """What: a snapshot copied to another snapshot's key.

    Why: the id says of which moment the positions are.
    Risk: a restore to another moment than the one that it prints.
    """
    memory = memory_store()
    with memory.create(layout.group_snapshot_key("20270101T000000000Z-x")) as writer:
        writer.write(snapshot().to_stored())
        writer.commit()
    with pytest.raises(DamagedError, match=SNAPSHOT_ID):
        GroupStore(memory).snapshot("20270101T000000000Z-x")


@pytest.mark.parametrize("name", ["no-such", "../x", "", "a/b"])
def test_a_snapshot_that_does_not_exist_is_a_wrong_request(name: str) -> None:
    """What: ids that name nothing, or are no ids at all.

    Why: ids are typed by hand.
    Risk: a path out of the repository, or "damaged" for a slip of the finger.
    """
    with pytest.raises(ConfigurationError, match="no group snapshot"):
        GroupStore(memory_store()).snapshot(name)
