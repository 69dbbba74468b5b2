"""Stored documents: canonical, strict, and never guessed at."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.errors import DamagedError
from kafka_backup.repository.documents import (
    Capture,
    Commit,
    ConfigurationValue,
    Incarnation,
    LeaderEpoch,
    Ledger,
    LostSpan,
    PartitionRange,
    SegmentEntry,
    Window,
    seal_document,
)

INT64_MAX = 2**63 - 1
ENTRY = SegmentEntry(
    first_offset=INT64_MAX - 9,
    last_offset=INT64_MAX - 1,
    index=0,
    compression="zstd",
    stored_size=100,
    sha256="0" * 64,
    raw_size=1000,
    batches=1,
    records=9,
    max_timestamp=-1,
    largest_batch=1000,
    reencoded_batches=0,
    codecs=("lz4",),
)
COMMIT = Commit(
    number=3,
    previous_sha256="f" * 64,
    nonce="n",
    capture_id="c",
    window=Window(start=-(2**63), end=INT64_MAX),
    committed_at=1_700_000_000_000,
    incarnation=Incarnation(
        topic="orders",
        topic_id="A" * 22,
        partition_count=1,
        replication_factor=3,
        configuration={
            "ключ": ConfigurationValue(value='"\u2028', source="X"),
            "a": ConfigurationValue(value=None, source=""),
        },
    ),
    partitions=(
        PartitionRange(
            partition=0,
            start=INT64_MAX - 10,
            end=INT64_MAX,
            log_start_offset=0,
            leader_epoch=0,
            last_stable_offset=INT64_MAX,
            high_watermark=INT64_MAX,
            leader_epochs=(LeaderEpoch(epoch=4, start_offset=0),),
            ledger=Ledger(records=9, lost=1),
            lost=(LostSpan(start=INT64_MAX - 10, end=INT64_MAX - 9, reason="retention"),),
            segments=(ENTRY,),
        ),
    ),
)


def _fields(data: bytes) -> dict[str, object]:
    """What a stored document says, without its checksum."""
    fields: dict[str, object] = json.loads(data)
    del fields["document_sha256"]
    return fields


def test_documents_are_canonical() -> None:
    """Equal documents have equal bytes, however they were made, and read back the same.

    It matters because a document's SHA-256 chains the log, and equal bytes prove authorship.
    The order of a dictionary, or a space, would break the chain.
    """
    data = COMMIT.to_bytes()
    assert Commit.from_bytes(data, key="k") == COMMIT
    assert Commit.from_bytes(data, key="k").to_bytes() == data
    fields = _fields(data)
    shuffled = seal_document(json.dumps(dict(reversed(fields.items())), indent=3).encode())
    assert Commit.from_bytes(shuffled, key="k").to_bytes() == data
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert data == b'{"document_sha256":"' + hashlib.sha256(text).hexdigest().encode() + b'",' + text[1:]


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"format_version": None},
        {"unknown_field": 1},
        {"action": "delete"},
        {"number": "3"},
        {"number": 3.0},
        {"number": -1},
        {"number": 2**63},
        {"number": None},
        {"nonce": "../x"},
        {"capture_id": "a/b"},
        {"previous_sha256": "F" * 64},
        {"window": {"start": 5, "end": 5}},
        {"partitions": None},
    ],
)
def test_nothing_is_guessed(change: dict[str, object]) -> None:
    """Unknown fields, newer formats, wrong types and names that cannot be are damage, named by key.

    It matters because a reader that guesses restores something that was never there.
    A "3" taken for 3 today is another program's bug that goes on unseen.
    """
    document = _fields(COMMIT.to_bytes()) | change
    name, *_ = change
    with pytest.raises(DamagedError, match=rf"commits/3\.json is not a readable commit document \({name}"):
        Commit.from_bytes(seal_document(json.dumps(document).encode()), key="commits/3.json")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"end": INT64_MAX - 1}, "accounts for 10 offsets"),
        ({"start": INT64_MAX - 9}, "accounts for 10 offsets"),
        ({"ledger": Ledger(records=10)}, "lost spans do not add up"),
        ({"ledger": Ledger(records=9)}, "accounts for 9 offsets"),
        ({"lost": ()}, "lost spans do not add up"),
        ({"end": INT64_MAX - 11}, "ends before it starts"),
    ],
)
def test_a_ledger_accounts_for_every_offset(change: dict[str, object], reason: str) -> None:
    """A range whose ledger does not add up, or whose losses are not all named, cannot exist.

    It matters because the ledger is the proof that nothing was left out.
    A record could be missing without anything that says so.
    """
    part = COMMIT.partitions[0]
    fields = {name: getattr(part, name) for name in PartitionRange.model_fields} | change
    with pytest.raises(ValueError, match=reason):
        PartitionRange(**fields)  # type: ignore[arg-type]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Whatever bytes an object holds, reading it gives a document or DamagedError.

    It matters because disks and people damage objects in every way.
    A stack trace instead of an error would hide which object it is.
    """
    for kind in (Commit, Capture):
        for stored in (data, seal_document(data)):
            with pytest.raises(DamagedError, match="some/key"):
                kind.from_bytes(stored, key="some/key")
