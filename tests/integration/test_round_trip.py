"""Captured and restored: the same records, read by clients that are not ours."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from confluent_kafka import Producer

from kafka_backup import DamagedError, RefusedError, RenameRule, RestoreRequest, StopToken
from kafka_backup.errors import CancelledError
from kafka_backup.kafka.produce import TopicProducer
from kafka_backup.records import Buffer
from kafka_backup.records.compression import decompress_zstd
from tests.support.dump_log import dump_log
from tests.support.engine import capture, committed, open_engine, restore, restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import CODECS, Codec, NewRecord, decode_batches, encode_batch, renumbered
from tests.support.topics import (
    compacted_topic,
    delete_topic,
    fetch_log,
    new_topic,
    produce,
    produce_batch,
    produce_raw,
    read_topic,
    read_topic_raw,
    topic_config,
)

NOW = int(time.time() * 1000)
DAY = 86_400_000

AWKWARD = [
    NewRecord(b"plain", b"key", timestamp=NOW),
    NewRecord(b"null key", None, timestamp=NOW - 5),
    NewRecord(b"empty key", b"", timestamp=NOW + 3),
    NewRecord(None, b"null value", timestamp=NOW - 7),
    NewRecord(b"", b"empty value", timestamp=NOW + 1),
    NewRecord(None, None, timestamp=NOW - DAY),
    NewRecord(b"headers", b"k", [(b"twice", b"1"), (b"twice", b"2"), (b"null", None), (b"empty", b"")], NOW),
    NewRecord(b"large header", b"k", [(b"big", bytes(100_000))], NOW),
    NewRecord(bytes(range(256)) * 10, bytes(range(256)), [(b"", b"empty name")], NOW - 1),
]


@pytest.mark.parametrize("codec", CODECS)
def test_backup_restore_preserves_message_headers(kafka: KafkaCluster, tmp_path: Path, codec: Codec) -> None:
    """Tests that null, empty, doubled and large keys, values and headers survive with every codec.

    It matters because schema ids, trace ids and tombstones live in exactly these places.
    A tool that decodes records turns null into empty or drops the second header of a name.
    """
    topic = new_topic(kafka, 2)
    produce(kafka.bootstrap_servers, topic, AWKWARD * 20, partition=0, codec=codec)
    produce(kafka.bootstrap_servers, topic, AWKWARD, partition=1, codec=codec)
    with open_engine(kafka, tmp_path) as engine:
        event = committed(capture(engine, topic), topic)
        assert event.records == len(AWKWARD) * 21
        report = restore(engine, "r", topic)
    assert sum(part.records for part in report.topics[0].partitions) == event.records
    assert all(part.verified for part in report.topics[0].partitions)
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == restored_as(kafka, topic)


def test_header_keys_that_are_not_text_survive(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests header keys that are not UTF-8, and records with timestamp -1 and 0.

    It matters because Kafka stores header keys as bytes and promises nothing about them.
    A client library that decodes them crashes or replaces bytes, silently.
    """
    topic = new_topic(kafka)
    records = [
        NewRecord(b"v", b"k", [(b"\xff\xfe", b"\x00"), (b"\xc3", None)], NOW),
        NewRecord(b"no time", None, timestamp=-1),
        NewRecord(b"epoch", None, timestamp=0),
    ]
    for record in records:
        produce_raw(kafka.bootstrap_servers, topic, [record])
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        restore(engine, "r", topic)
    source = read_topic_raw(kafka.bootstrap_servers, topic)
    assert [record.headers for record in source[0]] == [list(record.headers) for record in records]
    assert read_topic_raw(kafka.bootstrap_servers, f"restored-{topic}") == source


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_kafka_dump_log_reads_a_segment(kafka: KafkaCluster, tmp_path: Path, compression: str) -> None:
    """Tests that Kafka's own DumpLogSegments finds in a stored segment the broker's offsets and CRCs.

    It matters because we promise that a backup opens without us.
    A segment that only our own reader understands would be worthless on the day we are gone.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, AWKWARD * 50, codec="lz4", config={"batch.size": 20_000})
    with open_engine(kafka, tmp_path, compression=compression) as engine:
        capture(engine, topic)
    (path,) = (tmp_path / "topics" / topic).glob("*/0/*.log*")
    data = path.read_bytes()
    if compression == "zstd":
        assert path.suffix == ".zst"
        data = decompress_zstd(data)
    on_broker = list(decode_batches(fetch_log(kafka.bootstrap_servers, topic)))
    dumped = dump_log(kafka, data)
    assert len(dumped) > 1
    assert all(batch.is_valid for batch in dumped)
    assert [(batch.base_offset, batch.last_offset, batch.crc) for batch in dumped] == [
        (batch.base_offset, batch.last_offset, batch.crc) for batch in on_broker
    ]


def test_transactions_restore_only_what_was_committed(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests commit 10, abort 10, commit 10, leave 5 open: 20 records now, the 5 with the next capture.

    It matters because restoring aborted records as data is how incumbents corrupt topics.
    The ledger must also account for each aborted record and marker, or offsets could vanish unseen.
    """
    topic = new_topic(kafka)
    producer = Producer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "transactional.id": secrets.token_hex(4),
            "log_level": 0,
        }
    )
    producer.init_transactions(60)
    for number, commit in enumerate((True, False, True)):
        producer.begin_transaction()
        for i in range(10):
            producer.produce(topic, f"{number}-{i}".encode())
        producer.flush(30)
        if commit:
            producer.commit_transaction(60)
        else:
            producer.abort_transaction(60)
    producer.begin_transaction()
    for i in range(5):
        producer.produce(topic, f"open-{i}".encode())
    producer.flush(30)
    with open_engine(kafka, tmp_path) as engine:
        (part,) = committed(capture(engine, topic), topic).partitions
        assert (part.start, part.end) == (0, 33)
        assert (part.records, part.aborted, part.control) == (20, 10, 3)
        producer.commit_transaction(60)
        (part,) = committed(capture(engine, topic), topic).partitions
        assert (part.start, part.end, part.records, part.control) == (33, 39, 5, 1)
        restore(engine, "r", topic)
    values = [record.value for record in read_topic(kafka.bootstrap_servers, f"restored-{topic}")[0]]
    assert values == [f"{n}-{i}".encode() for n in (0, 2) for i in range(10)] + [
        f"open-{i}".encode() for i in range(5)
    ]


def test_compacted_topic_with_gaps_round_trips(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a topic with gaps: the ledger counts them as compacted, the restored topic has the same records.

    It matters because brokers refuse batches with gaps, so these records must be re-encoded.
    A gap that is passed over silently looks the same as lost data.
    """
    topic = compacted_topic(kafka)
    with open_engine(kafka, tmp_path) as engine:
        (part,) = committed(capture(engine, topic), topic).partitions
        assert part.lost == 0
        assert part.compacted > 500
        report = restore(engine, "r", topic)
        source = read_topic(kafka.bootstrap_servers, topic)[0]
        captured = [record for record in source if record.offset < part.end]
        restored = read_topic(kafka.bootstrap_servers, f"restored-{topic}")[0]
        assert {record.key: record.value for record in restored} == {
            record.key: record.value for record in captured
        }
        offsets = engine.offset_map("r", topic, 0)
    assert report.topics[0].partitions[0].slow_batches > 0
    assert offsets.to_target(part.end) == len(restored)
    for target, record in enumerate(restored):
        assert offsets.to_target(offsets.to_source(target) or 0) == target
        assert record.offset == target
    config = topic_config(kafka.admin(), f"restored-{topic}")
    assert config == topic_config(kafka.admin(), topic)


def test_log_append_time_topic_keeps_the_brokers_times(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a LogAppendTime topic: the restored records show the times that consumers saw before.

    It matters because such batches carry the producer's times inside, and brokers accept them silently.
    Restored as they are, every record would change its timestamp.
    """
    topic = new_topic(kafka, config={"message.timestamp.type": "LogAppendTime"})
    produce(kafka.bootstrap_servers, topic, [NewRecord(b"v", timestamp=NOW - 30 * DAY)] * 100, codec="gzip")
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        restore(engine, "r", topic)
    source = read_topic(kafka.bootstrap_servers, topic)[0]
    restored = read_topic(kafka.bootstrap_servers, f"restored-{topic}")[0]
    assert [(r.timestamp, r.value) for r in restored] == [(r.timestamp, r.value) for r in source]
    assert topic_config(kafka.admin(), f"restored-{topic}")["message.timestamp.type"] == "LogAppendTime"


def test_old_records_are_not_deleted_by_the_saved_retention(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests month-old records of a topic with one day of retention: restored, and retention held back.

    It matters because a broker deletes by the records' own timestamps, within minutes.
    The restore would be verified and empty.
    """
    topic = new_topic(kafka, config={"retention.ms": 400 * DAY})
    produce(kafka.bootstrap_servers, topic, [NewRecord(b"old", timestamp=NOW - 30 * DAY)] * 10)
    admin = kafka.admin()
    with open_engine(kafka, tmp_path) as engine:
        engine._source.admin.alter_configs(topic, set={"retention.ms": str(DAY)}, delete=())
        capture(engine, topic)
        report = restore(engine, "r", topic)
        assert report.topics[0].retention_held
        assert topic_config(admin, f"restored-{topic}")["retention.ms"] == "-1"
        assert len(read_topic(kafka.bootstrap_servers, f"restored-{topic}")[0]) == 10
        assert engine.release_retention("r") == [f"restored-{topic}"]
        assert topic_config(admin, f"restored-{topic}")["retention.ms"] == str(DAY)


def test_pitr_restore_accuracy_single_partition(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a restore bounded by time: exactly the records within, inclusive on both ends, to the ms.

    It matters because the wrong side of a boundary is the record that broke everything.
    Header timestamps are only upper bounds: a skipped batch could hold wanted records.
    """
    topic = new_topic(kafka)
    times = [NOW, NOW + 100, NOW + 200, NOW + 50, NOW + 300, NOW + 199, NOW + 201, NOW + 49, NOW + 51]
    produce(kafka.bootstrap_servers, topic, [NewRecord(str(t).encode(), timestamp=t) for t in times])
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        restore(engine, "r", topic, from_ms=NOW + 50, until_ms=NOW + 200)
        offsets = engine.offset_map("r", topic, 0)
    restored = read_topic(kafka.bootstrap_servers, f"restored-{topic}")[0]
    expected = [t for t in times if NOW + 50 <= t <= NOW + 200]
    assert [(record.timestamp, record.value) for record in restored] == [
        (t, str(t).encode()) for t in expected
    ]
    assert offsets.to_target(0) == 0
    assert offsets.to_source(0) == 1


def test_pitr_restore_with_multiple_partitions(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests that every partition of a bounded restore has its own records, in order.

    It matters because partitions are restored in parallel.
    A mix-up of partitions would keep all counts right and break every key's order.
    """
    topic = new_topic(kafka, 3)
    for partition in range(3):
        records = [
            NewRecord(f"msg{i}".encode(), f"key-{partition}".encode(), timestamp=NOW + i) for i in range(5)
        ]
        produce(kafka.bootstrap_servers, topic, records, partition=partition)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        restore(engine, "r", topic, from_ms=NOW + 1)
    restored = read_topic(kafka.bootstrap_servers, f"restored-{topic}")
    for partition in range(3):
        assert [(r.key, r.value) for r in restored[partition]] == [
            (f"key-{partition}".encode(), f"msg{i}".encode()) for i in range(1, 5)
        ]


def test_restore_resumes_exactly_where_it_was_stopped(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests that a restore stopped in the middle goes on when it is run again, without loss or doubles.

    It matters because restores are long and machines die.
    A resume from memory or a state file doubles what was written but not yet noted.
    """
    topic = new_topic(kafka, 2)
    for partition in range(2):
        records = [NewRecord(f"{i:06d}".encode() * 20, timestamp=NOW + i) for i in range(20_000)]
        produce(kafka.bootstrap_servers, topic, records, partition=partition, config={"batch.size": 4_000})
    with open_engine(kafka, tmp_path, segment_bytes=1 << 18) as engine:
        capture(engine, topic)
        plan = engine.plan_restore(RestoreRequest(restore_id="r", topics=(topic,), prefix="restored-"))
        stop = StopToken()
        send = TopicProducer.send

        def send_and_stop(producer: TopicProducer, batches: Sequence[tuple[int, Buffer]]) -> None:
            send(producer, batches)
            stop.stop()

        with pytest.MonkeyPatch.context() as patched, pytest.raises(CancelledError):
            patched.setattr(TopicProducer, "send", send_and_stop)
            engine.restore(plan, stop=stop)
        before = sum(map(len, read_topic(kafka.bootstrap_servers, f"restored-{topic}").values()))
        assert before < 40_000  # one request of 1 MB at most
        again = engine.plan_restore(plan.request)
        assert again == plan
        report = engine.restore(again)
        assert report.attempt == 2
        assert engine.restore(again) == report
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == restored_as(kafka, topic)


def test_a_foreign_record_in_the_target_is_found(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests that a record written by somebody else after the restore fails the verification.

    It matters because verification is the proof that people act on.
    A check of counts or of the end alone would accept another record in place of ours.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, AWKWARD)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        restore(engine, "r", topic)
        assert engine.verify_restore("r").status == "verified"
        produce(kafka.bootstrap_servers, f"restored-{topic}", [NewRecord(b"foreign")])
        with pytest.raises(DamagedError, match=rf"restored-{topic} \[0\].*offset {len(AWKWARD)}"):
            engine.verify_restore("r")


def test_restore_never_writes_into_a_topic_that_holds_data(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests that all that forbids a restore is listed at once, and nothing is written.

    It matters because aiming at the wrong topic is the worst mistake of a bad day.
    Writing first and asking later would mix two topics for ever.
    """
    topic, other, narrow = new_topic(kafka), new_topic(kafka), new_topic(kafka, 2)
    produce(kafka.bootstrap_servers, topic, AWKWARD)
    produce(kafka.bootstrap_servers, narrow, AWKWARD)
    new_topic(kafka, 1, name=f"restored-{narrow}")
    produce(kafka.bootstrap_servers, other, [NewRecord(b"mine")])
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic, narrow)
        rules = (
            RenameRule(pattern=topic, replacement=other),
            RenameRule(pattern=narrow, replacement=f"restored-{narrow}"),
        )
        plan = engine.plan_restore(RestoreRequest(restore_id="r", topics=(topic, narrow), rename=rules))
        assert sorted(problem.kind for problem in plan.problems) == ["partition_count", "target_not_empty"]
        with pytest.raises(RefusedError, match=other):
            engine.restore(plan)
    assert len(read_topic(kafka.bootstrap_servers, other)[0]) == 1
    assert read_topic(kafka.bootstrap_servers, f"restored-{narrow}") == {0: []}


def test_a_flipped_byte_in_a_segment_stops_the_restore(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests that a damaged segment is found before its first batch is produced, and named.

    It matters because disks and buckets rot, and a restore is read by nobody but us.
    Producing it would turn one bad byte into wrong data in a live topic.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, AWKWARD * 100)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        (path,) = (tmp_path / "topics" / topic).glob("*/0/*.log*")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)
        assert engine.verify(level="structure").status == "ok"
        damage = engine.verify(level="data")
        assert damage.status == "damaged"
        assert any(path.name in problem.object for problem in damage.problems)
        with pytest.raises(DamagedError, match=path.name):
            restore(engine, "r", topic)
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == {0: []}


def test_a_missing_segment_is_named_by_the_plan(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests that a missing object is a problem of the plan: nothing is created on the target.

    It matters because half a topic restored is worse than a clear refusal.
    Finding out in the middle leaves a topic that looks whole.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, AWKWARD)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        (path,) = (tmp_path / "topics" / topic).glob("*/0/*.log*")
        path.unlink()
        plan = engine.plan_restore(RestoreRequest(restore_id="r", topics=(topic,), prefix="restored-"))
        assert [problem.kind for problem in plan.problems] == ["missing_object"]
        assert path.name in plan.problems[0].detail
        assert engine.verify().status == "damaged"


def test_single_record_batches_and_large_records_round_trip(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests batches of one record and a record of 5 MiB, larger than one fetch of many tools.

    It matters because both ends of the size range break loops that expect ordinary batches.
    A fetch that cannot take a batch whole returns nothing, and a naive loop takes that for the end.
    """
    topic = new_topic(kafka, config={"max.message.bytes": 20 << 20})
    for i in range(50):
        produce_batch(kafka.bootstrap_servers, topic, encode_batch([NewRecord(b"%d" % i, timestamp=NOW)]))
    large = [NewRecord(secrets.token_bytes(9 << 20), b"large", timestamp=NOW)]
    produce(kafka.bootstrap_servers, topic, large, config={"message.max.bytes": 20 << 20})
    produce(kafka.bootstrap_servers, topic, AWKWARD)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        restore(engine, "r", topic)
    found = read_topic(kafka.bootstrap_servers, f"restored-{topic}")
    assert found == restored_as(kafka, topic)
    assert found[0] == renumbered(found[0])


def test_a_finished_restore_vouches_only_for_what_it_wrote(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests the same restore id again: done while its topic is there, refused when it is another one.

    It matters because scheduled restores repeat their id.
    Answering "verified" for a topic that was deleted meanwhile restores nothing, and says so to nobody.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, AWKWARD)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        first = restore(engine, "r", topic, partitions=(0, 0))
        assert [part.records for part in first.topics[0].partitions] == [len(AWKWARD)]
        assert restore(engine, "r", topic, partitions=(0, 0)) == first
        delete_topic(kafka, f"restored-{topic}")
        new_topic(kafka, name=f"restored-{topic}")
        with pytest.raises(RefusedError, match=f"restored-{topic}"):
            restore(engine, "r", topic, partitions=(0, 0))


def test_a_target_made_by_somebody_else_meanwhile_is_refused(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests that a target that appears after planning with another partition count is refused, unwritten.

    It matters because clients create missing topics by themselves, with the broker's default count.
    Keys would then live in other partitions than before, under a verified restore.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, AWKWARD)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        plan = engine.plan_restore(RestoreRequest(restore_id="r", topics=(topic,), prefix="restored-"))
        new_topic(kafka, 3, name=f"restored-{topic}")
        with pytest.raises(RefusedError, match="3 partitions"):
            engine.restore(plan)
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == {0: [], 1: [], 2: []}
