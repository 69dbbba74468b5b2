"""Compression: every codec, every size, and everything that is not what it says."""

from __future__ import annotations

import gzip
import random
import struct
import threading
from collections.abc import Iterator

import cramjam
import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.errors import DamagedError
from kafka_backup.records.compression import (
    Codec,
    compress,
    compress_zstd,
    decompress,
    decompress_zstd,
    zstd_chunks,
)
from tests.unit.strategies import codecs

LIMIT = 16 << 20
COMPRESSED = [codec for codec in Codec if codec is not Codec.NONE]
JSON = b"".join(b'{"id":%d,"amount":%d.99,"text":"hello"}' % (i, i * 7 % 1000) for i in range(60_000))
NOISE = random.Random(5).randbytes(3 << 20)


@given(codec=codecs, data=st.binary(max_size=5000) | st.binary(max_size=9).map(lambda b: b * 9000))
def test_round_trip(codec: Codec, data: bytes) -> None:
    """Tests that any bytes come back from any codec, at the tightest limit, from any kind of buffer.

    It matters because the slow path packs records again with their own codec.
    One byte changed would change a record, under a checksum that fits.
    """
    packed = compress(codec, memoryview(data))
    assert decompress(codec, packed, limit=len(data)) == data
    assert decompress(codec, bytearray(packed)) == decompress(codec, memoryview(packed)) == data


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize(
    "data",
    [b"", b"x", JSON[:32768], JSON[:32769], JSON, NOISE, bytes(5 << 20)],
    ids=lambda data: f"{len(data)} B",
)
def test_roundtrip_compression_all_sizes(codec: Codec, data: bytes) -> None:
    """Tests sizes from nothing to some MiB, around snappy's block size, well and badly compressible.

    It matters because codecs work in blocks, and faults sit where one ends.
    A message on such an edge would come back cut off or not at all.
    """
    assert decompress(codec, compress(codec, data), limit=len(data)) == data


@pytest.mark.parametrize(
    "data", [b"", b"a", JSON[:100], JSON[:4096], JSON, NOISE], ids=lambda data: f"{len(data)} B"
)
@pytest.mark.parametrize("level", [1, 3, 19])
def test_roundtrip_compression_zstd_all_sizes(data: bytes, level: int) -> None:
    """Tests zstd at several levels and sizes, at once and as a stream in small pieces.

    It matters because stored segments are zstd.
    A segment that does not come back is a backup that is lost.
    """
    if level == 19:
        data = data[:100_000]
    packed = compress_zstd(data, level=level)
    assert decompress_zstd(packed, limit=len(data)) == data
    pieces = (packed[at : at + 777] for at in range(0, len(packed), 777))
    assert b"".join(zstd_chunks(pieces, limit=len(data))) == data


def test_segment_frames_state_their_size_and_carry_a_checksum() -> None:
    """Tests the frame's own header, and that a flipped bit in the content is noticed.

    It matters because anyone may open a segment with the zstd tool, without our commit.
    Without checksum, damage in literals would come out as data.
    """
    packed = compress_zstd(NOISE)
    frame = zstandard.get_frame_parameters(packed)
    assert (frame.content_size, frame.has_checksum) == (len(NOISE), True)
    with pytest.raises(DamagedError, match=r"[Cc]hecksum"):
        decompress_zstd(packed[:500] + bytes([packed[500] ^ 1]) + packed[501:])


@pytest.mark.parametrize("codec", COMPRESSED)
def test_every_truncation_is_refused(codec: Codec) -> None:
    """Tests small data cut at every byte, and large data cut at some.

    It matters because zstandard and lz4 return what they have, without a complaint, when bytes are missing.
    A short result taken for whole loses the rest of a batch in silence.
    """
    small = compress(codec, JSON[:300])
    whole_but_empty = 16 if codec is Codec.SNAPPY else -1
    for size in range(len(small)):
        if size != whole_but_empty:
            with pytest.raises(DamagedError):
                decompress(codec, small[:size])
    large = compress(codec, JSON)
    for size in (1, len(large) // 3, len(large) - 5, len(large) - 1):
        with pytest.raises(DamagedError):
            decompress(codec, large[:size])


@pytest.mark.parametrize("codec", COMPRESSED)
@pytest.mark.parametrize("garbage", [b"", b"not valid compressed data", b"\xff" * 40, NOISE[:1000]])
def test_garbage_is_refused(codec: Codec, garbage: bytes) -> None:
    """Tests bytes that were never compressed.

    It matters because a wrong codec number in a header must not make records.
    Any other exception would reach the user as a bug of ours instead of damage of his data.
    """
    with pytest.raises(DamagedError):
        decompress(codec, garbage)


@pytest.mark.parametrize("codec", COMPRESSED)
def test_wrong_codec_is_refused(codec: Codec) -> None:
    """Tests each codec's output on every other codec.

    It matters because this is how a damaged attributes byte shows.
    Data that happened to pass would be garbage in records.
    """
    packed = compress(codec, JSON[:1000])
    for other in COMPRESSED:
        if other is not codec:
            with pytest.raises(DamagedError):
                decompress(other, packed)


@pytest.mark.parametrize("codec", COMPRESSED)
def test_data_after_the_end_is_refused(codec: Codec) -> None:
    """Tests one byte, and many, after a whole compressed block.

    It matters because zstandard's one-shot call drops what follows, and that may be records.
    Lengths that disagree mean damage: the reader must say so.
    """
    for more in (b"x", b"\0" * 50):
        with pytest.raises(DamagedError):
            decompress(codec, compress(codec, JSON[:1000]) + more)


@pytest.mark.parametrize("codec", Codec)
def test_limit_is_exact(codec: Codec) -> None:
    """Tests a limit of exactly the size, and of one byte less.

    It matters because the limit comes from the commit, which knows the true size.
    An error of one would refuse good segments, or let a wrong one through.
    """
    packed = compress(codec, JSON)
    assert decompress(codec, packed, limit=len(JSON)) == JSON
    with pytest.raises(DamagedError, match=f"more than the {len(JSON) - 1} bytes"):
        decompress(codec, packed, limit=len(JSON) - 1)


def _bombs() -> Iterator[tuple[str, Codec, bytes]]:
    zeros = bytes(64 << 20)
    for codec in COMPRESSED:
        yield codec.name, codec, compress(codec, zeros)
    yield (
        "zstd that claims 100 GiB",
        Codec.ZSTD,
        b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 100 << 30) + b"\1\0\0",
    )
    yield "snappy that claims 4 GiB", Codec.SNAPPY, b"\xff\xff\xff\xff\x0fabc"


@pytest.mark.parametrize(("codec", "bomb"), [pytest.param(c, b, id=name) for name, c, b in _bombs()])
def test_bombs_are_refused_in_little_memory(codec: Codec, bomb: bytes) -> None:
    """Tests data that grows, or claims to grow, far beyond the limit.

    It matters because whoever can write to a topic or the store could bring the restore down.
    One-shot zstd allocates what the frame claims before it looks at the data.
    """
    with pytest.raises(DamagedError):
        decompress(codec, bomb, limit=1 << 20)


def test_gzip_of_several_members() -> None:
    """Tests gzip streams joined end to end, as Java's reader takes them.

    It matters because a producer may flush a stream in members.
    All but the first would be lost.
    """
    packed = gzip.compress(JSON[:500]) + gzip.compress(b"") + gzip.compress(JSON[500:900])
    assert decompress(Codec.GZIP, packed, limit=900) == JSON[:900]
    with pytest.raises(DamagedError, match="more than"):
        decompress(Codec.GZIP, packed, limit=899)


def test_zstd_of_several_frames() -> None:
    """Tests zstd frames joined in a batch, skippable ones too, and their refusal in a segment.

    It matters because Kafka's clients read on into the next frame; a segment is one frame by definition.
    In a batch the second half would be lost; in a segment it would be foreign data.
    """
    stream = zstandard.ZstdCompressor().compressobj()
    unsized = stream.compress(JSON[500:]) + stream.flush()
    skippable = b"\x50\x2a\x4d\x18" + struct.pack("<I", 3) + b"abc"
    packed = compress_zstd(JSON[:500]) + skippable + unsized + compress_zstd(b"")
    assert decompress(Codec.ZSTD, packed, limit=len(JSON)) == JSON
    with pytest.raises(DamagedError, match="more data after the end"):
        decompress_zstd(packed)
    with pytest.raises(DamagedError, match="more data after the end"):
        list(zstd_chunks([compress_zstd(b"a"), compress_zstd(b"b")]))


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("block_size", [lz4.frame.BLOCKSIZE_MAX64KB, lz4.frame.BLOCKSIZE_MAX4MB])
def test_lz4_frames_of_other_writers(linked: bool, checksum: bool, block_size: int) -> None:
    """Tests frames with linked blocks, checksums, sizes and large blocks.

    It matters because the topics hold what all kinds of clients wrote.
    A frame that a broker once took must never be called damaged.
    """
    packed = lz4.frame.compress(
        JSON, block_linked=linked, content_checksum=checksum, block_checksum=checksum, block_size=block_size
    )
    assert decompress(Codec.LZ4, packed, limit=len(JSON)) == JSON
    if checksum:
        with pytest.raises(DamagedError):
            decompress(Codec.LZ4, packed[:-1] + bytes([packed[-1] ^ 1]))


def test_our_lz4_frames_have_independent_blocks() -> None:
    """Tests the flags of the frame that we write.

    It matters because a broker answers linked blocks with UNKNOWN_SERVER_ERROR (measured).
    The restore of every lz4 topic with gaps would fail.
    """
    packed = compress(Codec.LZ4, JSON)
    info = lz4.frame.get_frame_info(packed)
    assert not info["block_linked"]
    assert not info["content_checksum"]
    assert info["block_size_id"] == lz4.frame.BLOCKSIZE_MAX64KB


def test_snappy_raw_and_xerial() -> None:
    """Tests both framings, and xerial streams joined with a second header in the middle.

    It matters because librdkafka writes raw snappy and Java's client xerial's framing.
    A reader of one kind alone could not restore the other half of the world.
    """
    raw = bytes(cramjam.snappy.compress_raw(JSON))
    xerial = compress(Codec.SNAPPY, JSON[:100_000])
    assert xerial.startswith(b"\x82SNAPPY\0" + struct.pack(">ii", 1, 1))
    assert decompress(Codec.SNAPPY, raw, limit=len(JSON)) == JSON
    assert decompress(Codec.SNAPPY, xerial + compress(Codec.SNAPPY, JSON[100_000:])) == JSON


@pytest.mark.parametrize(
    "tail",
    [
        b"\0\0\0",
        struct.pack(">i", 0),
        struct.pack(">i", -7),
        struct.pack(">i", 99) + b"abc",
        b"\x82SNA\0\0\0\0",
        b"\x82SNAPPY\0\0",
    ],
)
def test_snappy_blocks_with_impossible_lengths_are_refused(tail: bytes) -> None:
    """Tests xerial streams whose next block has no sound length, or a broken header.

    It matters because the framing is ours to read: no library checks it.
    A negative length believed would read the same block for ever.
    """
    with pytest.raises(DamagedError):
        decompress(Codec.SNAPPY, compress(Codec.SNAPPY, b"data") + tail)


def test_zstd_stream_refuses_what_is_cut_off_or_too_large() -> None:
    """Tests the streaming reader with missing bytes, none at all, damage in the middle, and a limit.

    It matters because segments are read through it, and decompressobj itself is silent about truncation.
    A restore would end early and report success.
    """
    packed = compress_zstd(JSON)
    for pieces in ([packed[:-1]], [packed[:1000], packed[1000:-3]], [], [b""]):
        with pytest.raises(DamagedError, match="ends before the frame does"):
            list(zstd_chunks(pieces))
    with pytest.raises(DamagedError):
        list(zstd_chunks([packed[:1000], b"garbage", packed[1007:]]))
    with pytest.raises(DamagedError, match="more than"):
        list(zstd_chunks([packed], limit=len(JSON) - 1))
    with pytest.raises(DamagedError, match="after the end"):
        list(zstd_chunks([packed, b"", b"x"]))


def test_zstd_stream_stays_in_bounded_memory() -> None:
    """Tests that no piece of a bomb's content is larger than 64 MiB, and that the limit stops it at once.

    It matters because a segment reader holds one piece at a time.
    A piece as large as the content would make the limit worthless.
    """
    packed = compress_zstd(bytes(200 << 20))
    largest = 0
    for content in zstd_chunks([packed]):
        largest = max(largest, len(content))
    assert largest <= 64 << 20


def test_unknown_codec_numbers_are_damage() -> None:
    """Tests the numbers around the known ones.

    It matters because a codec newer than this program must be named, not guessed.
    A KeyError would look like a bug.
    """
    assert [Codec.of(number) for number in range(5)] == list(Codec)
    for number in (-1, 5, 7):
        with pytest.raises(DamagedError, match=f"codec {number} is unknown"):
            Codec.of(number)


def test_threads_share_nothing() -> None:
    """Tests zstd in several threads at once, and two open streams in one thread.

    It matters because partitions are handled in parallel, and zstd contexts are not thread-safe.
    A shared context mixes the content of two segments.
    """
    contents = [bytes([i]) * 50_000 + JSON[: 100_000 + i] for i in range(4)]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            if decompress_zstd(compress_zstd(contents[index])) != contents[index]:
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    streams = [zstd_chunks([compress_zstd(content)]) for content in contents[:2]]
    together = [list(pair) for pair in zip(*streams, strict=True)]
    assert [b"".join(part) for part in zip(*together, strict=True)] == contents[:2]
