"""Segments: consecutive record batches of one partition, exactly as in a Kafka ``.log`` file.

A segment is stored as it is or as one zstd frame. Reading proves it before it is used: size and
SHA-256 come first, then each batch's place, and in the end the counts of the commit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import IO, Literal, NoReturn, cast

import crc32c
import zstandard

from kafka_backup.errors import DamagedError
from kafka_backup.records import Buffer
from kafka_backup.records.batch import (
    CODEC_MASK,
    CONTROL_BIT,
    CRC_START,
    HEADER_SIZE,
    LOG_OVERHEAD,
    BatchHeader,
    UnsupportedMagicError,
    read_header,
    walk,
)
from kafka_backup.records.compression import Codec
from kafka_backup.records.rewrite import REENCODED_BITS
from kafka_backup.repository.buffers import Buffers
from kafka_backup.repository.documents import SegmentEntry
from kafka_backup.repository.layout import segment_key
from kafka_backup.repository.proven_object import PIECE_BYTES, ProvenObject, digest
from kafka_backup.repository.store import ObjectNotFoundError, ObjectReader, Store, commit_once

Compression = Literal["none", "zstd"]

SEGMENT_ZSTD_LEVEL = 1
"""Measured on JSON in segments: level 3 takes 1.8 times as long and does not come out smaller."""

SegmentProofs = dict[str, Sequence[int]]
"""By key of a segment whose SHA-256 was proved: the checksums of its pieces (`proven_object`)."""

SegmentFlaw = Literal["missing", "size", "sha256", "unreadable", "crc", "offsets", "count"]


class DamagedSegmentError(DamagedError):
    """A segment object is not what its commit says.

    Attributes:
        flaw: what is wrong: ``missing``, ``size`` or ``sha256`` of the object, ``unreadable`` as zstd
            or as record batches, a batch's ``crc``, ``offsets``, or a ``count`` of the commit.
        key: of the object.
        detail: what differs.
    """

    def __init__(self, flaw: SegmentFlaw, key: str, detail: str) -> None:
        super().__init__(
            f"segment {key} is damaged ({flaw}): {detail}. Put the object back from a copy of the repository"
        )
        self.flaw = flaw
        self.key = key
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSegment:
    """A segment that a commit names.

    Attributes:
        key: of the object.
        commit: number of the commit that names it, and the capture that wrote both.
        start: of its offsets, only those in ``[start, end)`` belong to the partition: it may begin
            below its commit's range, and an unclean election may have cut off its end later.
    """

    key: str
    partition: int
    entry: SegmentEntry
    capture_id: str
    commit: int
    start: int
    end: int


def choose_compression(setting: str, header: BatchHeader) -> Compression:
    """Return how to store a segment whose first batch has this header.

    Args:
        setting: ``none``, ``zstd``, or ``auto``: zstd where the producer did not compress.
        header: of the first batch; producers seldom change their mind.
    """
    if setting == "auto":
        return "zstd" if header.codec is Codec.NONE else "none"
    return "zstd" if setting == "zstd" else "none"


class SegmentWriter:
    """Writes one segment as a stream: no byte is kept in memory, no record is looked at."""

    def __init__(
        self,
        store: Store,
        *,
        topic: str,
        topic_id: str,
        partition: int,
        capture_id: str,
        index: int,
        first_offset: int,
        compression: Compression,
    ) -> None:
        """Start a segment.

        Args:
            store: the repository's store.
            topic: whose batches these are.
            topic_id: the incarnation.
            partition: the partition.
            capture_id: the running capture.
            index: a counter, unique within capture and partition.
            first_offset: base offset of the first batch.
            compression: how the object is stored.
        """
        self.key = segment_key(
            topic=topic,
            topic_id=topic_id,
            partition=partition,
            first_offset=first_offset,
            capture_id=capture_id,
            index=index,
            compression=compression,
        )
        self.raw_size = 0
        self.stored_size = 0
        self._store = store
        self._index = index
        self._first_offset = first_offset
        self._last_offset = first_offset - 1
        self._compression = compression
        self._compressor = (
            zstandard.ZstdCompressor(level=SEGMENT_ZSTD_LEVEL, write_checksum=True).compressobj()
            if compression == "zstd"
            else None
        )
        self._sha256 = hashlib.sha256()
        self._batches = 0
        self._records = 0
        self._max_timestamp = -(2**63)
        self._largest_batch = 0
        self._reencoded_batches = 0
        self._codecs: dict[int, Codec] = {}
        self._writer = store.create(self.key)

    def add(self, data: Buffer, headers: Sequence[BatchHeader]) -> None:
        """Append whole batches.

        Args:
            data: the batches, one after the other; free to be changed once this returns.
            headers: theirs, in the same order.

        Raises:
            DamagedError: the offsets do not ascend.
        """
        # One loop over plain numbers: topics of small batches have a million of them per GB.
        size = records = 0
        last_offset, largest = self._last_offset, self._largest_batch
        max_timestamp, codecs = self._max_timestamp, self._codecs
        for header in headers:
            base_offset, length, _, _, _, attributes, last_delta, _, newest, _, _, _, count = header
            if base_offset <= last_offset:
                raise DamagedError(
                    f"segment {self.key}: a batch at offset {base_offset} cannot follow offset {last_offset}; "
                    "nothing of it was committed, run again"
                )
            last_offset = base_offset + last_delta
            length += LOG_OVERHEAD
            size += length
            if not attributes & CONTROL_BIT:
                records += count
            if newest > max_timestamp:
                max_timestamp = newest
            if length > largest:
                largest = length
            if attributes & CODEC_MASK not in codecs:
                codecs[attributes & CODEC_MASK] = header.codec
            if count != last_delta + 1 or attributes & REENCODED_BITS:
                self._reencoded_batches += 1
        if size != len(data):
            raise ValueError(f"{len(headers)} headers stand for {size} bytes, not for {len(data)}")
        self._last_offset, self._largest_batch = last_offset, largest
        self._max_timestamp = max_timestamp
        self._records += records
        self._batches += len(headers)
        self.raw_size += size
        if self._compressor is None:
            self._store_bytes(data)
        else:
            # Piece by piece: what comes out is new memory, as much as goes in where nothing can be gained.
            for start in range(0, size, PIECE_BYTES):
                self._store_bytes(self._compressor.compress(data[start : start + PIECE_BYTES]))

    def finish(self) -> SegmentEntry:
        """Make the object durable and return what the commit will say of it.

        Raises:
            WriterConflictError: another writer's bytes have this key.
        """
        if self._compressor is not None:
            self._store_bytes(self._compressor.flush())
        sha256 = self._sha256.hexdigest()
        commit_once(self._store, self.key, self._writer, sha256=sha256)
        self._writer.abort()
        return SegmentEntry(
            first_offset=self._first_offset,
            last_offset=self._last_offset,
            index=self._index,
            compression=self._compression,
            stored_size=self.stored_size,
            sha256=sha256,
            raw_size=self.raw_size,
            batches=self._batches,
            records=self._records,
            max_timestamp=self._max_timestamp,
            largest_batch=self._largest_batch,
            reencoded_batches=self._reencoded_batches,
            codecs=tuple(sorted(codec.name.lower() for codec in self._codecs.values())),
        )

    def abort(self) -> None:
        """Forget the segment; does nothing after `finish`."""
        self._writer.abort()

    def _store_bytes(self, data: Buffer) -> None:
        if len(data):
            self._sha256.update(data)
            self._writer.write(data)
            self.stored_size += len(data)


def following(windows: Generator[memoryview, int, None], whole: int) -> memoryview | None:
    """The window after one whose first `whole` bytes are whole batches; it begins with the rest."""
    try:
        return windows.send(whole)
    except StopIteration:
        return None


class SegmentReader:
    """Reads one segment piece by piece and proves it on the way; however large it is, in little memory."""

    def __init__(
        self,
        store: Store,
        segment: StoredSegment,
        *,
        proofs: SegmentProofs | None = None,
        buffers: Buffers | None = None,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            store: where the segment is.
            segment: as its commit names it.
            proofs: of segments that were read before; this one's is added. A segment with a proof is not
                hashed again: its pieces must only be those that were hashed.
            buffers: to read into, shared with other readers of this thread.
        """
        self._store = store
        self._segment = segment
        self._proofs = {} if proofs is None else proofs
        self._buffers = Buffers() if buffers is None else buffers

    def batches(self, *, check_crc: bool = False) -> Iterator[tuple[memoryview, BatchHeader]]:
        """Yield each batch as a writable view of the whole batch, with its header.

        Nothing is yielded before the object's size and SHA-256 are proved: it is read twice. A view
        stays valid for as long as it is referenced, and keeps the batches around it in memory.

        Args:
            check_crc: check the CRC of each batch too. The SHA-256 already proves that the bytes
                are those that were stored; their CRCs were checked when they were fetched.

        Raises:
            DamagedSegmentError: the object is not what the commit says. Offsets, counts, and what a
                zstd frame holds are only known to be wrong when they are reached.
        """
        newest = self._segment.entry.last_offset
        batches = records = size = 0
        last_offset = self._segment.entry.first_offset - 1
        windows = self.windows()
        try:
            window = next(windows, None)
            while window is not None:
                end = 0
                for start, header in walk(window):
                    base_offset, length, _, _, checksum, attributes, last_delta, *_, count = header
                    if base_offset <= last_offset or base_offset + last_delta > newest or not batches:
                        self._check_offsets(header, last_offset, is_first=not batches)
                    end = start + LOG_OVERHEAD + length
                    if check_crc and crc32c.crc32c(window[start + CRC_START : end]) != checksum:
                        self._damaged("crc", f"the batch at offset {base_offset} fails its CRC check")
                    batches += 1
                    if not attributes & CONTROL_BIT:
                        records += count
                    last_offset = base_offset + last_delta
                    yield window[start:end], header
                size += end
                window = following(windows, end)
        except UnsupportedMagicError as error:
            self._damaged("unreadable", str(error))
        except DamagedSegmentError:
            raise
        except DamagedError as error:
            self._damaged("unreadable", str(error))
        finally:
            windows.close()
        self.check_totals(size=size, batches=batches, records=records, last_offset=last_offset)

    def windows(self) -> Generator[memoryview, int, None]:
        """Yield the batches as they lie in the segment, as many at a time as a piece holds; see `following`.

        The size and SHA-256 are proved, and a view stays valid, as with `batches`. Nothing else is checked:
        the caller compares what it saw in all of them by `check_totals`.

        Raises:
            DamagedSegmentError: the object is not what the commit says, or ends inside a batch.
        """
        left, wanted = self._segment.entry.raw_size, PIECE_BYTES
        begun = memoryview(b"")  # a batch whose rest is not read yet
        try:
            with closing(self._open()) as reader:
                fill = self._filler(reader)
                while left:
                    window = self._buffers.view(len(begun) + min(left, wanted))
                    window[: len(begun)] = begun
                    fill(window[len(begun) :])
                    left -= len(window) - len(begun)
                    whole = yield window
                    begun = window[whole:]
                    wanted = self._wanted(begun, left)
        except DamagedSegmentError:
            raise
        except DamagedError as error:
            self._damaged("unreadable", str(error))

    def check_totals(self, *, size: int, batches: int, records: int, last_offset: int) -> None:
        """Compare what walking over the whole segment showed with what the commit says.

        Args:
            size: bytes of whole batches.
            batches: their number.
            records: in them.
            last_offset: of the last one (inclusive).

        Raises:
            DamagedSegmentError: they differ.
        """
        entry = self._segment.entry
        if size != entry.raw_size:
            self._damaged("unreadable", f"the last {entry.raw_size - size} bytes are no whole batch")
        if last_offset != entry.last_offset:
            self._damaged("offsets", f"it ends at offset {last_offset}, not {entry.last_offset}")
        for what, found, expected in (
            ("batches", batches, entry.batches),
            ("records", records, entry.records),
        ):
            if found != expected:
                self._damaged("count", f"{found} {what} instead of {expected}")

    def _open(self) -> ObjectReader:
        try:
            return self._store.open(self._segment.key)
        except ObjectNotFoundError:
            self._damaged("missing", f"commit {self._segment.commit} names it and it does not exist")

    def _filler(self, reader: ObjectReader) -> Callable[[memoryview], None]:
        """Prove the object, and return what fills a buffer with the next bytes of its batches."""
        entry, key = self._segment.entry, self._segment.key
        if reader.size != entry.stored_size:
            self._damaged("size", f"{reader.size} bytes instead of {entry.stored_size}")
        checksums = self._proofs.get(key)
        if checksums is None:
            found, checksums = digest(reader)
            if found != entry.sha256:
                self._damaged("sha256", f"SHA-256 {found} instead of {entry.sha256}")
            self._proofs[key] = checksums
        stored = ProvenObject(reader, checksums)
        if entry.compression == "zstd":
            return self._decompressor(stored)
        if entry.stored_size != entry.raw_size:
            self._damaged("size", f"{entry.stored_size} bytes of batches instead of {entry.raw_size}")
        return stored.fill

    def _decompressor(self, stored: ProvenObject) -> Callable[[memoryview], None]:
        """Give exactly the size that the commit says, never more, whatever the frame claims."""
        frame = zstandard.ZstdDecompressor().stream_reader(cast("IO[bytes]", stored), read_size=PIECE_BYTES)
        raw_size = left = self._segment.entry.raw_size

        def fill(buffer: memoryview) -> None:
            nonlocal left
            position = 0
            try:
                while position < len(buffer) and (count := frame.readinto(buffer[position:])):
                    position += count
                left -= position
                # Reading on also makes the library check the frame's own checksum.
                if position < len(buffer) or (not left and frame.readinto(bytearray(1))):
                    self._damaged("size", f"the zstd frame does not hold {raw_size} bytes of batches")
            except zstandard.ZstdError as error:
                self._damaged("unreadable", f"not a whole zstd frame ({error})")

        return fill

    def _check_offsets(self, header: BatchHeader, last_offset: int, *, is_first: bool) -> None:
        entry = self._segment.entry
        if is_first and header.base_offset != entry.first_offset:
            self._damaged("offsets", f"it begins at offset {header.base_offset}, not {entry.first_offset}")
        if header.base_offset <= last_offset or header.last_offset > entry.last_offset:
            self._damaged(
                "offsets",
                f"a batch [{header.base_offset}, {header.next_offset}) follows offset {last_offset} in a segment of "
                f"[{entry.first_offset}, {entry.last_offset + 1})",
            )

    def _wanted(self, begun: memoryview, left: int) -> int:
        """How many more bytes to read so that a batch that has begun is whole, in whole pieces."""
        missing = read_header(begun).size - len(begun) if len(begun) >= HEADER_SIZE else 1
        if begun and missing > left:
            self._damaged("unreadable", f"its last {len(begun) + left} bytes are no whole batch")
        return -(-missing // PIECE_BYTES) * PIECE_BYTES

    def _damaged(self, flaw: SegmentFlaw, detail: str) -> NoReturn:
        raise DamagedSegmentError(flaw, self._segment.key, detail)
