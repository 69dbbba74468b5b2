"""What a real broker, Kafka's own log reader and librdkafka say to the bytes that we write."""

from __future__ import annotations

import pytest

from kafka_backup.records.batch import read_header, walk
from kafka_backup.records.codec import Record, decode_batch, encode_batch
from kafka_backup.records.compression import Codec
from kafka_backup.records.convert import Bounds, convert
from kafka_backup.records.rewrite import seal
from tests.support.dump_log import dump_log
from tests.support.kafka_cluster import KafkaCluster
from tests.support.topics import fetch_log, new_topic, produce_batch, read_topic

EVERYTHING = Bounds(first_offset=0, end_offset=2**63 - 1)
START = 1_700_000_000_000


def _records() -> list[Record]:
    """Gaps of many sizes, times out of order, nulls and empties, values of up to 200 KB."""
    sizes = [0, 1, 90, 8190, 200_000]
    return [
        Record(
            offset=1000 + i + i * i,
            timestamp=START + (i * 7919) % 1009 - 500,
            key=[None, b"", b"key-%d" % i][i % 3],
            value=None if i % 7 == 0 else bytes([i % 251]) * sizes[i % 5 if i % 50 == 4 else i % 4],
            headers=((b"h", b"1"), (b"h", None), (b"", b"")) if i % 4 == 0 else (),
        )
        for i in range(300)
    ]


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize(
    "stored",
    [{}, {"log_append_time": START + 5}, {"delete_horizon": START + 9}],
    ids=["gaps", "append time", "horizon"],
)
def test_a_broker_and_other_readers_take_converted_batches(
    kafka: KafkaCluster, codec: Codec, stored: dict[str, int]
) -> None:
    """Tests that batches built anew are accepted, kept byte for byte, and read alike by Kafka and librdkafka.

    It matters because the slow path writes compression frames and numbers of its own making.
    The broker refuses some wrong batches, and takes others without a word: both must never happen.
    """
    source = encode_batch(_records(), codec=codec, **stored)  # type: ignore[arg-type]
    expected = decode_batch(source)
    memory = memoryview(bytearray(source))
    topic = new_topic(kafka, config={"compression.type": "producer", "message.timestamp.type": "CreateTime"})
    sent = b""
    for target in convert([(memory, read_header(memory))], EVERYTHING, max_batch_bytes=600_000):
        seal(target.data, producer_id=-1, producer_epoch=-1, base_sequence=-1)
        assert produce_batch(kafka.bootstrap_servers, topic, bytes(target.data)) == len(_decoded(sent))
        sent += bytes(target.data)
    log = fetch_log(kafka.bootstrap_servers, topic)
    # The broker sets the base offset and the leader epoch, both in front of the magic byte, and no more.
    assert [log[at + 16 : at + h.size] for at, h in walk(log)] == [
        sent[at + 16 : at + h.size] for at, h in walk(sent)
    ]
    assert _fields(_decoded(log)) == _fields(expected)
    dumped = dump_log(kafka, log)
    assert all(batch.is_valid for batch in dumped)
    listed = [record for batch in dumped for record in batch.records]
    assert [(r.offset, r.timestamp) for r in listed] == [(i, r.timestamp) for i, r in enumerate(expected)]
    read = read_topic(kafka.bootstrap_servers, topic)[0]
    assert [(r.timestamp, r.key, r.value, tuple(r.headers)) for r in read] == _fields(expected)


def _decoded(log: bytes) -> list[Record]:
    return [record for position, _ in walk(log) for record in decode_batch(log, position)]


def _fields(records: list[Record]) -> list[tuple[int, bytes | None, bytes | None, tuple[object, ...]]]:
    return [(r.timestamp, r.key, r.value, r.headers) for r in records]
