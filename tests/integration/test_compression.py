"""Every codec and every size, there and back through the command line, by clients that are not ours."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from kafka_backup.times import format_time
from tests.support.engine import restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import CODECS, Codec, NewRecord, decode_batches, encode_batch, with_raw_snappy
from tests.support.shell import Shell
from tests.support.topics import fetch_log, new_topic, produce, produce_batch, read_topic

NOW = int(time.time() * 1000)
MIB = 1 << 20
LARGE = {"max.message.bytes": 24 * MIB}


def _value(size: int) -> bytes:
    """Half of it compresses, half does not."""
    return random.Random(size).randbytes(size // 2) + b"\0" * (size - size // 2)


@pytest.mark.parametrize("codec", [*CODECS, "snappy-xerial", "snappy-raw"])
def test_compression_edge_cases(kafka: KafkaCluster, tmp_path: Path, codec: str) -> None:
    """What: values from 0 B to 20 MiB under each codec, snappy in both framings, restored whole and in part.

    Why: producers in five languages compress in as many ways, and a backup must take all of them.
    Risk: a frame that only its writer can read, or a re-encoded batch that the broker refuses.
    """
    topic = new_topic(kafka, config=LARGE)
    sizes = [0, 1, 100, 1000, 65_535, 65_536, MIB, 20 * MIB, 3]
    records = [NewRecord(_value(size), b"%d" % n, (), NOW + n) for n, size in enumerate(sizes)]
    if codec in CODECS:
        config = {"message.max.bytes": 24 * MIB, "batch.size": MIB}
        produce(kafka.bootstrap_servers, topic, records, codec=codec, config=config)  # type: ignore[arg-type]
    else:
        for some in (records[:5], records[5:7], records[7:]):
            batch = (
                with_raw_snappy(encode_batch(some))
                if codec == "snappy-raw"
                else encode_batch(some, codec="snappy")
            )
            produce_batch(kafka.bootstrap_servers, topic, batch)
    wanted: Codec = codec if codec in CODECS else "snappy"  # type: ignore[assignment]
    assert wanted in {batch.codec for batch in decode_batches(fetch_log(kafka.bootstrap_servers, topic))}
    shell = Shell(tmp_path, kafka.bootstrap_servers, retry_seconds=30)
    assert shell.json("backup", "--topic", topic)["topics"][0]["records"] == len(sizes)
    assert shell.json("verify", "--level", "data")["status"] == "ok"
    shell.json("restore", "--id", "all", "--topic", topic, "--prefix", "all-", "--execute")
    whole = restored_as(kafka, topic)
    assert read_topic(kafka.bootstrap_servers, f"all-{topic}") == whole
    bounds = ("--from", format_time(NOW + 1), "--until", format_time(NOW + 7))
    shell.json("restore", "--id", "part", "--topic", topic, "--prefix", "part-", *bounds, "--execute")
    part = read_topic(kafka.bootstrap_servers, f"part-{topic}")[0]
    assert [record[2:] for record in part] == [record[2:] for record in whole[0][1:8]]


@pytest.mark.parametrize("compression", ["auto", "zstd", "none"])
def test_roundtrip_compression_zstd_all_sizes(kafka: KafkaCluster, tmp_path: Path, compression: str) -> None:
    """What: zstd records of 0 B to 1 MiB, around each power of two, in segments of each setting.

    Why: zstd frames hold their sizes in 0 to 8 bytes, and blocks end at 128 KiB.
    Risk: a size class that decompresses to less, or to garbage.
    """
    topic = new_topic(kafka, config=LARGE)
    sizes = [0] + [(1 << power) + off for power in range(21) for off in (-1, 0, 1)]
    records = [NewRecord(_value(size), timestamp=NOW + n) for n, size in enumerate(sizes)]
    config = {"message.max.bytes": 24 * MIB, "batch.size": 200_000}
    produce(kafka.bootstrap_servers, topic, records, codec="zstd", config=config)
    shell = Shell(tmp_path, kafka.bootstrap_servers, retry_seconds=30, compression=compression)
    assert shell.json("backup", "--topic", topic)["topics"][0]["records"] == len(sizes)
    assert {path.suffix for path in shell.segments()} == {".zst" if compression == "zstd" else ".log"}
    shell.json("restore", "--id", "r", "--topic", topic, "--prefix", "back-", "--execute")
    assert read_topic(kafka.bootstrap_servers, f"back-{topic}") == restored_as(kafka, topic)


def test_timestamp_filtering_preserves_millisecond_accuracy(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: records one millisecond apart in one batch, out of order; bounds that end on one of them.

    Why: "until 12:00:00.250" is how an operator cuts in front of the mistake.
    Risk: seconds instead of milliseconds, or the record on the boundary left out.
    """
    topic = new_topic(kafka)
    times = [NOW + delta for delta in (3, 0, 1, 2, 9, 8, 5, 4, 7, 6, 999, 1000, 1001)]
    produce(
        kafka.bootstrap_servers, topic, [NewRecord(b"%d" % at, timestamp=at) for at in times], codec="lz4"
    )
    shell = Shell(tmp_path, kafka.bootstrap_servers, retry_seconds=30)
    shell.json("backup", "--topic", topic)
    for number, (first, last) in enumerate([(0, 0), (3, 7), (999, 1000), (10, 998), (1001, 5000)]):
        bounds = ("--from", format_time(NOW + first), "--until", str(NOW + last))
        target = f"r{number}-{topic}"
        shell.json(
            "restore", "--id", f"r{number}", "--topic", topic, "--prefix", f"r{number}-", *bounds, "--execute"
        )
        found = [record.timestamp for record in read_topic(kafka.bootstrap_servers, target)[0]]
        assert found == [at for at in times if NOW + first <= at <= NOW + last]
