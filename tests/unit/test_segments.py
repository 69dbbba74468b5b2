"""Segments: what is written reads back, and nothing damaged is ever believed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.errors import DamagedError, WriterConflictError
from kafka_backup.records.batch import BatchHeader, read_header, walk
from kafka_backup.records.codec import Record, encode_batch
from kafka_backup.records.compression import Codec
from kafka_backup.repository import proven_object, segments
from kafka_backup.repository.buffers import Buffers
from kafka_backup.repository.documents import SegmentEntry
from kafka_backup.repository.segments import (
    Compression,
    DamagedSegmentError,
    SegmentProofs,
    SegmentReader,
    SegmentWriter,
    StoredSegment,
    choose_compression,
)
from kafka_backup.repository.store import Store
from tests.unit.faults import Fault, FaultyStore
from tests.unit.repositories import (
    CAPTURE,
    TOPIC,
    TOPIC_ID,
    batch,
    memory_store,
    replace_object,
    write_segment,
)

DATA = batch(10, 5) + batch(15, 1, codec=Codec.LZ4) + batch(20, 7, codec=Codec.ZSTD)


def stored(entry: SegmentEntry, *, key: str | None = None) -> StoredSegment:
    suffix = ".zst" if entry.compression == "zstd" else ""
    return StoredSegment(
        key=key
        or f"topics/{TOPIC}/{TOPIC_ID}/0/{entry.first_offset:020}-{CAPTURE}-{entry.index}.log{suffix}",
        partition=0,
        entry=entry,
        capture_id=CAPTURE,
        commit=0,
        start=entry.first_offset,
        end=entry.last_offset + 1,
    )


def read(store: Store, segment: StoredSegment, *, check_crc: bool = False) -> bytes:
    return b"".join(data for data, _ in SegmentReader(store, segment).batches(check_crc=check_crc))


def open_writer(store: Store, *, compression: Compression = "none", first_offset: int = 0) -> SegmentWriter:
    return SegmentWriter(
        store,
        topic=TOPIC,
        topic_id=TOPIC_ID,
        partition=0,
        capture_id=CAPTURE,
        index=0,
        first_offset=first_offset,
        compression=compression,
    )


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_segment_reads_back(compression: Compression) -> None:
    """The batches of a segment come back byte for byte, and its entry says what is in it.

    It matters because a segment is the only copy of the records once Kafka has forgotten them.
    A byte could change on the way, or a count be wrong and a good segment be refused.
    """
    store = memory_store()
    entry = write_segment(store, DATA, compression=compression)
    segment = stored(entry)
    content = store.get(segment.key)
    assert read(store, segment, check_crc=True) == DATA
    sizes = [header.size for _, header in walk(DATA)]
    assert entry == SegmentEntry(
        first_offset=10,
        last_offset=26,
        index=0,
        compression=compression,
        stored_size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        raw_size=len(DATA),
        batches=3,
        records=13,
        max_timestamp=1026,
        largest_batch=max(sizes),
        reencoded_batches=0,
        codecs=("lz4", "none", "zstd"),
    )
    if compression == "none":
        assert content == DATA
    else:
        assert zstandard.ZstdDecompressor().stream_reader(content).read() == DATA


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(0, 3), st.sampled_from(Codec)), min_size=1, max_size=8
    ),
    st.integers(1, 4),
    st.sampled_from(["none", "zstd"]),
)
def test_segments_of_any_batches(
    shape: list[tuple[int, int, Codec]], per_call: int, compression: Compression
) -> None:
    """Any batches, handed over in any runs, are the same segment.

    It matters because fetch responses cut the log wherever they end.
    A run boundary could lose or double a batch, or leave it out of the counts.
    """
    store = memory_store()
    batches = []
    offset = 5
    for count, gap, codec in shape:
        batches.append(batch(offset, count, codec=codec))
        offset += count + gap
    writer = open_writer(store, compression=compression, first_offset=5)
    for start in range(0, len(batches), per_call):
        run = batches[start : start + per_call]
        writer.add(memoryview(b"".join(run)), [read_header(data) for data in run])
    entry = writer.finish()
    assert read(store, stored(entry), check_crc=True) == b"".join(batches)
    assert (entry.batches, entry.records) == (len(shape), sum(count for count, _, _ in shape))
    assert entry.raw_size == writer.raw_size == sum(map(len, batches))


def test_batches_are_writable_and_stay() -> None:
    """A reader's batches are views that may be written, and that outlive the reader.

    It matters because a restore rewrites headers in place and has several batches in flight.
    Re-used memory would send one batch with the bytes of another.
    """
    store = memory_store()
    for compression in ("none", "zstd"):
        entry = write_segment(store, DATA, compression=compression, index=len(compression))
        batches = [data for data, _ in SegmentReader(store, stored(entry)).batches()]
        assert b"".join(batches) == DATA
        batches[0][0:8] = bytes(8)
        assert read_header(batches[0]).base_offset == 0
        assert b"".join(batches[1:]) == DATA[len(batches[0]) :]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=12),
    st.integers(61, 700),
    st.sampled_from(["none", "zstd"]),
)
def test_pieces_of_any_size(counts: list[int], piece: int, compression: Compression) -> None:
    """However the pieces cut the batches, they come back whole, the second time by the proof of the first.

    It matters because batches of any size lie across the pieces that a segment is read in.
    A batch across two pieces could be lost, doubled, or come back with the bytes of its neighbour.
    """
    store = memory_store()
    batches, offset = [], 0
    for count in counts:
        batches.append(batch(offset, count))
        offset += count
    data = b"".join(batches)
    segment = stored(write_segment(store, data, compression=compression))
    proofs: SegmentProofs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proven_object, "PIECE_BYTES", piece)
        patch.setattr(segments, "PIECE_BYTES", piece)
        for _ in range(2):
            found = list(SegmentReader(store, segment, proofs=proofs).batches(check_crc=True))
            assert [bytes(view) for view, _ in found] == batches
            assert [header.size for _, header in found] == [len(each) for each in batches]
    assert len(proofs[segment.key]) == -(-segment.entry.stored_size // piece)


def test_buffers_are_lent_again_only_when_nothing_of_them_is_in_use() -> None:
    """A buffer comes again once no view of it, or of a part of it, is left; until then others are lent.

    It matters because batches in flight lie in the buffers that segments were read into.
    A buffer lent too early would send one batch with the bytes of another.
    """
    buffers = Buffers()
    first = buffers.view(100)
    first[:5] = b"first"
    part = first[1:5]
    del first
    for _ in range(10):
        other = buffers.view(1 << 20)
        other[:] = bytes(len(other))
        assert bytes(part) == b"irst"
    memory = id(other.obj)
    del part, other
    assert id(buffers.view(5).obj) == memory
    assert len(buffers.view((3 << 20) + 1)) == (3 << 20) + 1
    assert len(buffers.view(0)) == 0


@given(keep=st.lists(st.booleans(), min_size=30, max_size=30))
def test_batches_in_use_stay_while_others_are_read(keep: list[bool]) -> None:
    """Batches that are held on to keep their bytes while the rest is read through few buffers, twice.

    It matters because a restore holds any number of batches until they are acknowledged.
    Memory used again would change a batch between its checksum and its sending.
    """
    store = memory_store()
    batches = [batch(offset, 1) for offset in range(30)]
    segment = stored(write_segment(store, b"".join(batches)))
    proofs: SegmentProofs = {}
    buffers = Buffers()
    held: list[tuple[int, memoryview]] = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (proven_object, segments):
            patch.setattr(module, "PIECE_BYTES", 2 * len(batches[0]))
        for _ in range(2):
            reader = SegmentReader(store, segment, proofs=proofs, buffers=buffers)
            for number, (view, _header) in enumerate(reader.batches()):
                assert view == batches[number]
                if keep[number]:
                    held.append((number, view))
    assert all(view == batches[number] for number, view in held)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_an_object_that_changes_after_its_proof(compression: Compression) -> None:
    """Bytes that are not those whose SHA-256 was proved are refused, whether they have a CRC or not.

    It matters because a segment is read twice, and a restore reads it again to verify.
    Storage that fails between the two readings would put other records into the target.
    """
    store = memory_store()
    segment = stored(write_segment(store, DATA, compression=compression))
    proofs: SegmentProofs = {}
    assert len(list(SegmentReader(store, segment, proofs=proofs).batches())) == 3
    content = store.get(segment.key)
    for position in (15, len(content) - 1):  # the leader epoch, which the batch's CRC does not cover
        changed = bytearray(content)
        changed[position] ^= 1
        replace_object(store, segment.key, bytes(changed))
        with pytest.raises(DamagedSegmentError, match="not those that were read a moment ago"):
            next(SegmentReader(store, segment, proofs=proofs).batches())


def test_a_batch_that_claims_to_be_larger_than_the_segment() -> None:
    """A length that reaches beyond the segment is damage, and no memory is taken for it.

    It matters because a length of 2 GiB is one flipped bit away.
    A restore could die for want of memory instead of naming the damaged segment.
    """
    store = memory_store()
    content = bytearray(batch(10, 5) + batch(15, 5))
    content[len(batch(10, 5)) + 8 : len(batch(10, 5)) + 12] = (2**31 - 1).to_bytes(4, "big")
    segment = _entry_of(store, bytes(content), raw_size=len(content))
    with pytest.raises(DamagedSegmentError, match="no whole batch") as caught:
        read(store, segment)
    assert caught.value.flaw == "unreadable"


@pytest.mark.parametrize(
    ("setting", "codec", "expected"),
    [
        ("auto", Codec.NONE, "zstd"),
        ("auto", Codec.LZ4, "none"),
        ("auto", Codec.ZSTD, "none"),
        ("zstd", Codec.LZ4, "zstd"),
        ("none", Codec.NONE, "none"),
    ],
)
def test_choose_compression(setting: str, codec: Codec, expected: Compression) -> None:
    """ "auto" compresses where the producer did not; the other settings mean what they say.

    It matters because compressing what is compressed costs time and saves nothing.
    A topic of plain JSON would be stored five times as large as it need be.
    """
    assert choose_compression(setting, read_header(batch(0, 1, codec=codec))) == expected


def _cut(data: bytes) -> bytes:
    return data[:-1]


def _longer(data: bytes) -> bytes:
    return data + b"\0"


def _flipped_in_the_middle(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _last_record_bit_flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _zeroed(data: bytes) -> bytes:
    return bytes(len(data))


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize(
    ("damage", "flaw"),
    [
        (_cut, "size"),
        (_longer, "size"),
        (_flipped_in_the_middle, "sha256"),
        (_last_record_bit_flipped, "sha256"),
        (_zeroed, "sha256"),
    ],
)
def test_damaged_objects_yield_nothing(
    compression: Compression, damage: Callable[[bytes], bytes], flaw: str
) -> None:
    """An object that differs in one bit is refused by name before its first batch is yielded.

    It matters because what is yielded is produced to Kafka, where it cannot be taken back.
    Half of a damaged segment could be restored before the damage shows.
    """
    store = memory_store()
    segment = stored(write_segment(store, DATA, compression=compression))
    replace_object(store, segment.key, damage(store.get(segment.key)))
    batches = SegmentReader(store, segment).batches()
    with pytest.raises(DamagedSegmentError, match=segment.key) as caught:
        next(batches)
    assert caught.value.flaw == flaw


def test_a_missing_segment_is_damage() -> None:
    """An object that a commit names and that is not there is damage, named by its key.

    It matters because exit code 4 says "data is lost", not "try again".
    A missing segment could pass for an empty one.
    """
    store = memory_store()
    segment = stored(write_segment(store, DATA))
    store.delete(segment.key)
    with pytest.raises(DamagedSegmentError, match="commit 0 names it") as caught:
        read(store, segment)
    assert caught.value.flaw == "missing"


def _entry_of(store: Store, content: bytes, **changes: object) -> StoredSegment:
    """A segment whose object is `content`, with an entry that fits it but for `changes`."""
    entry = write_segment(store, DATA, compression="none")
    segment = stored(entry)
    replace_object(store, segment.key, content)
    fitting = {"stored_size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return stored(entry.model_copy(update={**fitting, **changes}), key=segment.key)


def _bad_crc(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("content", "changes", "flaw"),
    [
        (DATA, {"records": 14}, "count"),
        (DATA, {"batches": 2}, "count"),
        (DATA, {"last_offset": 27}, "offsets"),
        (DATA, {"last_offset": 25}, "offsets"),
        (DATA, {"first_offset": 9}, "offsets"),
        (DATA, {"first_offset": 11}, "offsets"),
        (batch(10, 5) + batch(14, 13), {"raw_size": len(batch(10, 5) + batch(14, 13))}, "offsets"),
        (DATA[:-1], {"raw_size": len(DATA) - 1}, "unreadable"),
        (DATA[:30], {"raw_size": 30}, "unreadable"),
        (b"", {"raw_size": 0}, "offsets"),
        (bytes(len(DATA)), {}, "unreadable"),
        (_bad_crc(DATA), {}, "crc"),
        (DATA, {"raw_size": len(DATA) + 1}, "size"),
        (DATA, {"compression": "zstd"}, "unreadable"),
        (zstandard.compress(DATA), {"compression": "zstd", "raw_size": len(DATA) - 1}, "size"),
        (zstandard.compress(DATA), {"compression": "zstd", "raw_size": len(DATA) + 1}, "size"),
        (zstandard.compress(DATA)[:-1], {"compression": "zstd"}, "size"),
        (zstandard.compress(bytes(1 << 26)), {"compression": "zstd"}, "size"),
    ],
)
def test_contents_that_contradict_the_commit(content: bytes, changes: dict[str, object], flaw: str) -> None:
    """Contents with the right SHA-256 that are not what the commit says are refused, each for its reason.

    It matters because a bug in a writer would have the SHA-256 of its own mistake.
    Records could be missing, doubled or of other offsets, or a small frame fill the memory.
    """
    store = memory_store()
    segment = _entry_of(store, content, **changes)
    with pytest.raises(DamagedSegmentError) as caught:
        read(store, segment, check_crc=True)
    assert caught.value.flaw == flaw


def test_writer_refuses_batches_out_of_order() -> None:
    """A batch that does not follow the last one, or bytes that are not the headers', are refused.

    It matters because order is what Kafka promises, and a retried fetch may bring a batch again.
    A doubled batch would be committed, and restored twice.
    """
    store = memory_store()
    writer = open_writer(store)
    headers: list[BatchHeader] = [read_header(batch(0, 5))]
    writer.add(batch(0, 5), headers)
    with pytest.raises(DamagedError, match="cannot follow offset 4"):
        writer.add(batch(4, 2), [read_header(batch(4, 2))])
    writer.abort()
    writer = open_writer(store)
    with pytest.raises(ValueError, match="1 headers stand for"):
        writer.add(batch(0, 5) + batch(5, 1), headers)
    writer.abort()
    assert list(store.list("")) == []


def test_reencoded_batches_are_counted() -> None:
    """Batches that no broker takes as they are, are counted: a gap inside, or broker timestamps.

    It matters because a plan says how much of a restore takes the slow way.
    A restore would take longer than it said.
    """
    store = memory_store()
    gapped = encode_batch([Record(offset=o, timestamp=1, key=None, value=b"") for o in (0, 2)])
    stamped = encode_batch([Record(offset=3, timestamp=1, key=None, value=b"")], log_append_time=9)
    entry = write_segment(store, gapped + stamped + batch(4, 2))
    assert (entry.reencoded_batches, entry.batches, entry.records) == (2, 3, 5)


@pytest.mark.parametrize("fault", list(Fault))
def test_every_failure_while_writing_a_segment(fault: Fault) -> None:
    """A segment whose store fails at any call is whole or not there, and a lost answer is no conflict.

    It matters because uploads fail all the time.
    A piece of a segment could be stored under its key, or our own segment taken for another writer's.
    """
    calls = FaultyStore(memory_store())
    write_segment(calls, DATA, compression="zstd")
    for at in range(1, calls.calls + 1):
        store = memory_store()
        faulty = FaultyStore(store, fault, at)
        try:
            entry = write_segment(faulty, DATA, compression="zstd")
        except BaseException as error:  # noqa: BLE001 - a dying process raises what nobody may catch
            assert not isinstance(error, WriterConflictError)
            for info in store.list(""):
                assert zstandard.ZstdDecompressor().stream_reader(store.get(info.key)).read() == DATA
        else:
            assert read(store, stored(entry)) == DATA


def test_another_writers_segment_is_left_alone() -> None:
    """A key that holds another writer's bytes stops the writer.

    It matters because what lies there may be named by a commit.
    It could be taken for ours, and the commit name bytes that are not there.
    """
    store = memory_store()
    first = write_segment(store, batch(0, 3))
    with pytest.raises(WriterConflictError):
        write_segment(store, batch(0, 4))
    assert read(store, stored(first)) == batch(0, 3)
