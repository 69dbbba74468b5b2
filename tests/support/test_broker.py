"""The tests' own view of a broker: two independent readers and Kafka's own tool must agree."""

import pytest

from tests.support.dump_log import dump_log
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import CODECS, NewRecord, Record, decode_batches
from tests.support.topics import (
    ends,
    fetch_log,
    new_topic,
    produce,
    produce_raw,
    read_topic,
    read_topic_raw,
)

pytestmark = pytest.mark.integration

RECORDS = [
    NewRecord(b"value", b"key", [(b"h", b"1"), (b"h", None), (b"", b"")], 1_700_000_000_123),
    NewRecord(None, None, [], 1_600_000_000_001),
    NewRecord(b"", b"", [(b"h", b"")], 1),
]


def expected(times: int) -> list[Record]:
    """The records as they must come back."""
    return [
        Record(offset, 1, each.timestamp or 0, each.key, each.value, list(each.headers))
        for offset, each in enumerate(RECORDS * times)
    ]


def test_two_readers_and_two_writers_agree(kafka: KafkaCluster) -> None:
    """What: confluent-kafka and our own encoder write, confluent-kafka and our own decoder read, all codecs.

    Why: round trips of the engine are judged by these helpers.
    Risk: a helper that loses a null or a millisecond accuses the engine, or acquits it.
    """
    topic = new_topic(kafka, 2)
    for codec in CODECS:
        produce(kafka.bootstrap_servers, topic, RECORDS, codec=codec)
        produce_raw(kafka.bootstrap_servers, topic, RECORDS, codec=codec, partition=1)
    assert ends(kafka.bootstrap_servers, topic) == {0: (0, 15), 1: (0, 15)}
    assert read_topic(kafka.bootstrap_servers, topic) == {0: expected(5), 1: expected(5)}
    assert read_topic_raw(kafka.bootstrap_servers, topic) == {0: expected(5), 1: expected(5)}


def test_header_keys_of_any_bytes_are_written_and_read(kafka: KafkaCluster) -> None:
    """What: a header key that is not UTF-8, and timestamps 0 and -1, through a real broker.

    Why: Kafka allows them, confluent-kafka for Python does not (it crashes at the key, and writes now for 0).
    Risk: the engine's promise to keep such records could not be tested.
    """
    topic = new_topic(kafka)
    odd = [NewRecord(b"a", None, [(b"\xff\xfe", b"\0")], 0), NewRecord(b"b", None, [], -1)]
    produce_raw(kafka.bootstrap_servers, topic, odd, codec="zstd")
    assert read_topic_raw(kafka.bootstrap_servers, topic)[0] == [
        Record(0, 1, 0, None, b"a", [(b"\xff\xfe", b"\0")]),
        Record(1, 1, -1, None, b"b", []),
    ]


def test_kafkas_own_tool_sees_the_same_batches(kafka: KafkaCluster) -> None:
    """What: a partition's raw bytes, read by our decoder and by kafka-dump-log.sh; then with one bit flipped.

    Why: that tool is the last word on what a log file holds.
    Risk: a parser that reads its output wrongly would approve anything.
    """
    topic = new_topic(kafka)
    for codec in CODECS:
        produce(kafka.bootstrap_servers, topic, RECORDS, codec=codec)
    log = fetch_log(kafka.bootstrap_servers, topic)
    batches = list(decode_batches(log, partial_end=False))
    dumped = dump_log(kafka, log)
    assert [(each.base_offset, each.crc, each.codec, each.is_valid) for each in dumped] == [
        (each.base_offset, each.crc, each.codec, True) for each in batches
    ]
    assert [record.offset for each in dumped for record in each.records] == list(range(15))
    assert [record.value_size for record in dumped[0].records] == [5, -1, 0]
    value = log.index(b"value")
    flipped = log[:value] + b"V" + log[value + 1 :]
    assert [each.is_valid for each in dump_log(kafka, flipped)] == [False, True, True, True, True]
