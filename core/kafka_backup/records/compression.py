"""The five compressions of record batches, and zstd for whole segments.

Every decompression is capped and strict: a cut-off, garbled or oversized input is an error, never a
short or partial result. The heavy calls run outside the GIL.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NoReturn

import cramjam
import lz4.frame
import zstandard

from kafka_backup.errors import DamagedError
from kafka_backup.records import Buffer

MAX_DECOMPRESSED_BYTES = 1 << 30
"""Cap for the records of one batch. Kafka itself sets none; its clients cannot hold more than 2 GiB."""

ZSTD_LEVEL = 3

_GZIP_WBITS = 31

_XERIAL_MAGIC = b"\x82SNAPPY\x00"
_XERIAL_MAGIC_START = _XERIAL_MAGIC[:4]
_XERIAL_HEADER = _XERIAL_MAGIC + struct.pack(">ii", 1, 1)
_XERIAL_LENGTH = struct.Struct(">i")
_XERIAL_BLOCK = 32 * 1024

_LZ4_SMALLEST_STEP = 1 << 20
_LZ4_USUAL_RATIO = 8

# Four bytes of zstd (a block header and a byte to repeat) can make 128 KiB: one call on one slice never makes
# more than 64 MiB. The size that a frame states is not used: it would be allocated on the frame's word.
_ZSTD_SLICE = 2048


class Codec(IntEnum):
    """Compression of a batch's records, by the number in its attributes (``CompressionType``)."""

    NONE = 0
    GZIP = 1
    SNAPPY = 2
    LZ4 = 3
    ZSTD = 4

    @classmethod
    def of(cls, number: int) -> Codec:
        """Returns the codec with this number.

        Raises:
            DamagedError: Kafka knows none with this number.
        """
        codec = _CODECS.get(number)
        if codec is None:
            raise DamagedError(
                f"compression codec {number} is unknown (known: 0 to 4): "
                "the batch is damaged, or newer than this program"
            )
        return codec


_CODECS = {codec.value: codec for codec in Codec}


class _Contexts(threading.local):
    """One zstd context per thread: they are costly to make and must not be shared."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        found = self.compressors.get(level)
        if found is None:
            found = zstandard.ZstdCompressor(level=level, write_checksum=True)
            self.compressors[level] = found
        return found


_contexts = _Contexts()


def decompress(codec: Codec, data: Buffer, *, limit: int = MAX_DECOMPRESSED_BYTES) -> bytes:
    """Decompresses the records of one batch.

    Takes what Kafka's clients write: gzip with several members, snappy raw or in xerial's framing,
    lz4 frames with linked or independent blocks, zstd with several frames.

    Args:
        codec: from the batch header.
        data: everything after the 61-byte header.
        limit: most bytes the result may have.

    Raises:
        DamagedError: cut off, garbled, followed by something else, or larger than ``limit``.
    """
    if codec is Codec.NONE:
        if len(data) > limit:
            _too_large("uncompressed", limit)
        return bytes(data)
    if codec is Codec.GZIP:
        return _decompress_gzip(data, limit)
    if codec is Codec.SNAPPY:
        return _decompress_snappy(data, limit)
    if codec is Codec.LZ4:
        return _decompress_lz4(data, limit)
    return b"".join(_zstd_chunks(_contexts.decompressor, [data], limit, several_frames=True))


def compress(codec: Codec, data: Buffer, *, level: int | None = None) -> bytes:
    """Compresses the records of one batch as Kafka's own producer does.

    lz4 frames have independent blocks (a broker refuses linked ones: "Dependent block stream is
    unsupported") and snappy is in xerial's framing.

    Args:
        codec: the compression to use.
        data: the records.
        level: for gzip (1-9) and zstd (default 3); the other codecs have none.
    """
    if codec is Codec.NONE:
        return bytes(data)
    if codec is Codec.GZIP:
        compressor = zlib.compressobj(
            zlib.Z_DEFAULT_COMPRESSION if level is None else level, wbits=_GZIP_WBITS
        )
        return compressor.compress(data) + compressor.flush()
    if codec is Codec.SNAPPY:
        return _compress_snappy(data)
    if codec is Codec.LZ4:
        compressed: bytes = lz4.frame.compress(
            data, block_size=lz4.frame.BLOCKSIZE_MAX64KB, block_linked=False, store_size=False
        )
        return compressed
    return compress_zstd(data, level=ZSTD_LEVEL if level is None else level)


def compress_zstd(data: Buffer, *, level: int = ZSTD_LEVEL) -> bytes:
    """Compresses into one zstd frame that states its content's size and checksum."""
    return _contexts.compressor(level).compress(data)


def decompress_zstd(data: Buffer, *, limit: int | None = None) -> bytes:
    """Decompresses exactly one zstd frame.

    Args:
        data: the frame, nothing before or after it.
        limit: most bytes the result may have; give it wherever the size is known.

    Raises:
        DamagedError: not zstd, cut off, garbled, followed by something else, or larger than ``limit``.
    """
    return b"".join(_zstd_chunks(_contexts.decompressor, [data], limit, several_frames=False))


def zstd_chunks(source: Iterable[Buffer], *, limit: int | None = None) -> Iterator[bytes]:
    """Decompresses exactly one zstd frame that arrives in pieces, in bounded memory.

    Args:
        source: consecutive pieces of the frame, of any size.
        limit: most bytes the result may have in total.

    Yields:
        Non-empty pieces of the content, each at most 64 MiB, 128 KiB as a rule.

    Raises:
        DamagedError: as ``decompress_zstd``; pieces yielded before the error are not to be trusted.
    """
    # Its own context: the caller may hold several of these open at once in one thread.
    return _zstd_chunks(zstandard.ZstdDecompressor(), source, limit, several_frames=False)


def _zstd_chunks(
    context: zstandard.ZstdDecompressor, source: Iterable[Buffer], limit: int | None, *, several_frames: bool
) -> Iterator[bytes]:
    frame = context.decompressobj()
    total = 0
    for piece in source:
        view = memoryview(piece)
        position = 0
        while position < len(view):
            if frame.eof:
                if not several_frames:
                    _garbled("zstd", "there is more data after the end of the frame")
                frame = context.decompressobj()
            part = view[position : position + _ZSTD_SLICE]
            try:
                content = frame.decompress(part)
            except zstandard.ZstdError as error:
                _garbled("zstd", str(error), error)
            position += len(part) - len(frame.unused_data)
            if content:
                total += len(content)
                if limit is not None and total > limit:
                    _too_large("zstd", limit)
                yield content
    if not frame.eof:
        _garbled("zstd", "the data ends before the frame does")


def _garbled(name: str, reason: str, cause: BaseException | None = None) -> NoReturn:
    raise DamagedError(f"{name} data cannot be decompressed: {reason}") from cause


def _too_large(name: str, limit: int) -> NoReturn:
    raise DamagedError(f"{name} data holds more than the {limit} bytes allowed here")


def _decompress_gzip(data: Buffer, limit: int) -> bytes:
    members: list[bytes] = []
    rest: Buffer = data
    room = limit
    while True:
        member = zlib.decompressobj(wbits=_GZIP_WBITS)
        try:
            content = member.decompress(rest, room + 1)
        except zlib.error as error:
            _garbled("gzip", str(error), error)
        if len(content) > room:
            _too_large("gzip", limit)
        if not member.eof:
            _garbled("gzip", "the data ends before the member does")
        members.append(content)
        room -= len(content)
        rest = member.unused_data
        if not rest:
            return b"".join(members) if len(members) > 1 else content


def _decompress_lz4(data: Buffer, limit: int) -> bytes:
    frame = lz4.frame.LZ4FrameDecompressor()
    blocks: list[bytes] = []
    room = limit
    rest: Buffer = data
    # In steps, because the result is allocated at the full length that is asked for.
    step = max(_LZ4_SMALLEST_STEP, _LZ4_USUAL_RATIO * len(data))
    while not frame.eof:
        try:
            block: bytes = frame.decompress(rest, max_length=step)
        except RuntimeError as error:
            _garbled("lz4", str(error), error)
        room -= len(block)
        if room < 0:
            _too_large("lz4", limit)
        if not block and not frame.eof:
            _garbled("lz4", "the data ends before the frame does")
        blocks.append(block)
        rest = b""
    if frame.unused_data:
        _garbled("lz4", "there is more data after the end of the frame")
    return b"".join(blocks)


def _decompress_snappy(data: Buffer, limit: int) -> bytes:
    view = memoryview(data)
    if view[: len(_XERIAL_MAGIC)] != _XERIAL_MAGIC:
        return _decompress_snappy_block(view, limit, limit)
    blocks: list[bytes] = []
    room = limit
    position = 0
    end = len(view)
    while position < end:
        # Streams may be joined: a header can stand wherever a block's length can (SnappyInputStream).
        if view[position : position + len(_XERIAL_MAGIC_START)] == _XERIAL_MAGIC_START:
            if view[position : position + len(_XERIAL_MAGIC)] != _XERIAL_MAGIC:
                _garbled("snappy", f"no xerial header at byte {position}")
            position += len(_XERIAL_HEADER)
            if position > end:
                _garbled("snappy", "the data ends inside the xerial header")
            continue
        if end - position < _XERIAL_LENGTH.size:
            _garbled("snappy", "the data ends inside a block's length")
        (length,) = _XERIAL_LENGTH.unpack_from(view, position)
        position += _XERIAL_LENGTH.size
        if not 0 < length <= end - position:
            _garbled("snappy", f"a block of {length} bytes where {end - position} are left")
        block = _decompress_snappy_block(view[position : position + length], room, limit)
        blocks.append(block)
        room -= len(block)
        position += length
    return b"".join(blocks)


def _decompress_snappy_block(block: memoryview, room: int, limit: int) -> bytes:
    try:
        # The size is in front of the block; asked first, because the next call allocates it.
        if cramjam.snappy.decompress_raw_len(block) > room:
            _too_large("snappy", limit)
        return bytes(cramjam.snappy.decompress_raw(block))
    except cramjam.DecompressionError as error:
        _garbled("snappy", str(error), error)


def _compress_snappy(data: Buffer) -> bytes:
    view = memoryview(data)
    parts: list[bytes] = [_XERIAL_HEADER]
    for start in range(0, len(view), _XERIAL_BLOCK):
        block = bytes(cramjam.snappy.compress_raw(view[start : start + _XERIAL_BLOCK]))
        parts.append(_XERIAL_LENGTH.pack(len(block)))
        parts.append(block)
    return b"".join(parts)
