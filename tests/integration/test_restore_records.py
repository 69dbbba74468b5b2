"""What a restore does to records: merged batches and added headers, compared by an independent client."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kafka_backup import RenameRule
from tests.support.engine import capture, open_engine, restore, restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import CODECS, Codec, NewRecord, Record
from tests.support.topics import new_topic, produce, produce_raw, read_topic, read_topic_raw

NOW = int(time.time() * 1000)
SINGLE = {"batch.num.messages": 1, "linger.ms": 0}


@pytest.mark.parametrize("codec", CODECS)
def test_single_record_batches_are_merged(kafka: KafkaCluster, tmp_path: Path, codec: Codec) -> None:
    """Tests 1,000 batches of one record: restored in few batches that the broker takes, records and offsets exact.

    It matters because many services send one record at a time, and a request for each would take days.
    A broker takes batches apart that it must compress anew, and refuses those whose numbers do not fit.
    """
    topic = new_topic(kafka)
    records = [
        NewRecord(f"{i}".encode() * 20, f"k{i}".encode(), [(b"h", b"%d" % i)], NOW + i * 997 % 5000)
        for i in range(1000)
    ]
    produce(kafka.bootstrap_servers, topic, records, codec=codec, config=SINGLE)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        (part,) = restore(engine, "r", topic).topics[0].partitions
        offsets = engine.offset_map("r", topic, 0)
    assert (part.records, part.fast_batches) == (1000, 0)
    assert part.slow_batches <= 2
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == restored_as(kafka, topic)
    assert offsets.runs == [(0, 0, 1000)]


def test_single_record_batches_of_a_log_append_time_topic(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests single-record batches with broker times, old producer times inside: merged with the broker's times.

    It matters because each of these batches has a time of its own, in its header alone.
    Merged under one header, all records of a group would show the same time.
    """
    topic = new_topic(kafka, config={"message.timestamp.type": "LogAppendTime"})
    records = [NewRecord(b"v%d" % i, timestamp=NOW - 10**9 + i) for i in range(300)]
    produce(kafka.bootstrap_servers, topic, records, config=SINGLE)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        (part,) = restore(engine, "r", topic).topics[0].partitions
    assert part.slow_batches < 5
    source = read_topic(kafka.bootstrap_servers, topic)[0]
    assert len({record.timestamp for record in source}) > 1
    restored = read_topic(kafka.bootstrap_servers, f"restored-{topic}")[0]
    assert [(r.timestamp, r.value) for r in restored] == [(r.timestamp, r.value) for r in source]


def _stamped(records: list[Record], *, base: int = 0) -> list[Record]:
    names = (b"x-original-offset", b"x-original-timestamp")
    return [
        record._replace(
            offset=place,
            headers=[
                *[header for header in record.headers if header[0] not in names],
                (names[0], b"%d" % (base + record.offset)),
                (names[1], b"%d" % record.timestamp),
            ],
        )
        for place, record in enumerate(records)
    ]


@pytest.mark.parametrize("codec", CODECS)
def test_original_headers_are_added_and_replaced(kafka: KafkaCluster, tmp_path: Path, codec: Codec) -> None:
    """Tests the headers on large, small, single and odd records, and once more on the restored topic.

    It matters because people look up records of the old topic by these headers.
    They must not displace other headers, nor pile up when a restored topic is restored.
    """
    topic = new_topic(kafka)
    odd = [
        NewRecord(None, None, [], NOW),
        NewRecord(b"", b"", [(b"", None), (b"\xff", b""), (b"a", b"1"), (b"a", b"1")], NOW - 7),
    ]
    for i in range(30):
        produce_raw(kafka.bootstrap_servers, topic, odd[i % 2 : i % 2 + 1], codec=codec)
    plenty = [NewRecord(b"v" * 50, b"k%d" % i, [(b"h", b"x")], NOW + i) for i in range(3000)]
    produce(kafka.bootstrap_servers, topic, plenty, codec=codec)
    produce_raw(kafka.bootstrap_servers, topic, [NewRecord(bytes(500_000), timestamp=-1)], codec=codec)
    asked = {"original_offset_header": True, "original_timestamp_header": True}
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        (part,) = restore(engine, "r", topic, **asked).topics[0].partitions
        assert part.fast_batches == 0
        assert engine.verify_restore("r").status == "verified"
        once = read_topic_raw(kafka.bootstrap_servers, f"restored-{topic}")[0]
        assert once == _stamped(read_topic_raw(kafka.bootstrap_servers, topic)[0])
        capture(engine, f"restored-{topic}")
        rule = RenameRule(pattern=".*", replacement=f"again-{topic}")
        restore(engine, "again", f"restored-{topic}", prefix="", rename=(rule,), from_ms=NOW, **asked)
    again = read_topic_raw(kafka.bootstrap_servers, f"again-{topic}")[0]
    assert again == _stamped([record for record in once if record.timestamp >= NOW])
