"""Runs of one restore: who owns it, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kafka_backup import DamagedError, RefusedError, RestoreRequest, WriterConflictError
from kafka_backup.kafka.topics import TopicAdmin
from kafka_backup.records import compression, convert
from kafka_backup.records.compression import Codec
from kafka_backup.repository.restore_folder import RestoreFolder
from kafka_backup.restore_topics import RestoreTopics
from tests.support.engine import capture, open_engine, restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import delete_topic, ends, new_topic, produce, read_topic, topic_config
from tests.support.waiting import wait_for

NOW = int(time.time() * 1000)


def test_abandoning_stops_a_run_that_is_at_work(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests that a restore given up while it writes stops at its next segment, and never goes on.

    It matters because expiry may delete its segments from that moment on.
    A run that did not look would end in the middle of a topic, with an error that names damage.
    """
    topic = new_topic(kafka)
    records = [NewRecord(f"{i:06d}".encode() * 20, timestamp=NOW + i) for i in range(20_000)]
    produce(kafka.bootstrap_servers, topic, records, config={"batch.size": 4_000})
    with open_engine(kafka, tmp_path, segment_bytes=1 << 18) as engine:
        capture(engine, topic)
        plan = engine.plan_restore(RestoreRequest(restore_id="r", topics=(topic,), prefix="restored-"))
        with pytest.raises(WriterConflictError, match="restore r was abandoned"):
            engine.restore(plan, on_progress=lambda _: engine.abandon_restore("r"))
        for again in (lambda: engine.restore(plan), lambda: engine.plan_restore(plan.request)):
            with pytest.raises(RefusedError, match="restore r was abandoned; use a new --id"):
                again()
        done = engine.abandon_restore("r")
        assert [target.topic for target in done.targets] == [f"restored-{topic}"]


class Killed(BaseException):
    """The process ends here; nothing in the engine may catch it."""


def _dies(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, when: str) -> Callable[[], None]:
    """Make a method end the process before or after its work; the returned function ends that."""
    real = getattr(owner, name)

    def dying(*args: object, **kwargs: object) -> object:
        if when == "after":
            real(*args, **kwargs)
        raise Killed

    monkeypatch.setattr(owner, name, dying)
    return lambda: monkeypatch.setattr(owner, name, real)


STEPS = [
    (RestoreFolder, "put_plan", "after"),
    (TopicAdmin, "create_topic", "after"),
    (TopicAdmin, "alter_configs", "after"),
    (RestoreFolder, "put_attempt", "after"),
    (RestoreFolder, "put_offset_map", "after"),
    (RestoreFolder, "put_verification", "before"),
    (RestoreFolder, "put_verification", "after"),
    (RestoreFolder, "put_report", "before"),
    (RestoreFolder, "put_report", "after"),
]


@pytest.mark.parametrize(
    ("owner", "name", "when"), STEPS, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_restore_that_dies_at_a_step_is_completed(
    kafka: KafkaCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    when: str,
) -> None:
    """Tests that a restore which dies at each of its steps is completed by the same command, exactly.

    It matters because machines die in the middle of restores, that is on bad days.
    A step that cannot be taken twice, or is thought to be done, leaves a topic that nobody can complete.
    """
    topic = new_topic(kafka, 2, config={"cleanup.policy": "compact", "segment.bytes": 2 << 20})
    for partition in range(2):
        records = [NewRecord(b"v%d" % i, b"k%d" % (i % 9), timestamp=NOW + i) for i in range(100)]
        produce(kafka.bootstrap_servers, topic, records, partition=partition)
    before = restored_as(kafka, topic)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        request = RestoreRequest(restore_id="r", topics=(topic,), prefix="restored-")
        # The settings of a live topic are changed at the end as well; the first change is what dies here.
        revive = _dies(monkeypatch, owner, name, when)
        with pytest.raises(Killed):
            engine.restore(engine.plan_restore(request))
        revive()
        report = engine.restore(engine.plan_restore(request))
        assert report.status == "verified"
        assert engine.restore(engine.plan_restore(request)) == report
        assert engine.offset_map("r", topic, 1).runs == [(0, 0, 100)]
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == before
    assert topic_config(kafka.admin(), f"restored-{topic}") == topic_config(kafka.admin(), topic)


def test_a_target_of_which_brokers_tell_late(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests a run that dies just after it made its target, and the next one, which does not see it yet; empty, and filled.

    It matters because the same command is given again at once, and news of a topic reach one broker before the other.
    A restore that cannot make what is there already fails; one that takes whatever is there writes behind foreign records.
    """
    topic = new_topic(kafka, 2)
    produce(kafka.bootstrap_servers, topic, [NewRecord(b"v", timestamp=NOW)])
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        for name, is_filled in (("empty", False), ("filled", True)):
            request = RestoreRequest(restore_id=name, topics=(topic,), prefix=f"{name}-")
            revive = _dies(monkeypatch, TopicAdmin, "create_topic", "after")
            with pytest.raises(Killed):
                engine.restore(engine.plan_restore(request))
            revive()
            if is_filled:
                produce(kafka.bootstrap_servers, f"{name}-{topic}", [NewRecord(b"foreign")])
            with monkeypatch.context() as patched:
                patched.setattr(RestoreTopics, "_existing", lambda *_: {})
                if is_filled:
                    with pytest.raises(RefusedError, match=rf"records appeared in {name}-{topic} \[0\]"):
                        engine.restore(engine.plan_restore(request))
                else:
                    assert engine.restore(engine.plan_restore(request)).status == "verified"
    assert read_topic(kafka.bootstrap_servers, f"empty-{topic}") == restored_as(kafka, topic)


def test_compaction_that_began_does_not_stop_the_last_step(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests a restore that dies after its settings are in force, and a target that is compacted by then.

    It matters because from that moment on the target is no longer, byte for byte, what the plan says.
    A run that compared it again would call a good restore damaged, and tell people to delete it.
    """
    settings = {
        "cleanup.policy": "compact",
        "segment.ms": 100,
        "min.cleanable.dirty.ratio": "0.01",
        "max.compaction.lag.ms": 100,
    }
    topic = new_topic(kafka, config=settings)
    records = [NewRecord(b"v%d" % i, b"k%d" % (i % 5), timestamp=NOW + i) for i in range(200)]
    produce(kafka.bootstrap_servers, topic, records)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        request = RestoreRequest(restore_id="r", topics=(topic,), prefix="restored-")
        revive = _dies(monkeypatch, RestoreFolder, "put_report", "before")
        with pytest.raises(Killed):
            engine.restore(engine.plan_restore(request))
        revive()

        def compacted() -> bool:
            # The cleaner leaves the active segment alone: give it a new one each time.
            produce(kafka.bootstrap_servers, f"restored-{topic}", [NewRecord(b"roll", b"roll")])
            return len(read_topic(kafka.bootstrap_servers, f"restored-{topic}")[0]) < 100

        wait_for(compacted, 90, "the cleaner to compact the target", interval=0.3)
        report = engine.restore(engine.plan_restore(request))
    assert (report.attempt, report.topics[0].partitions[0].records) == (2, 200)


def test_a_target_replaced_after_verification_is_refused(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests a target that is deleted and made again between verification and the saved settings.

    It matters because the verification speaks of a topic, not of a name.
    The report would vouch for an empty topic.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, [NewRecord(b"v", timestamp=NOW)])
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        request = RestoreRequest(restore_id="r", topics=(topic,), prefix="restored-")
        revive = _dies(monkeypatch, RestoreFolder, "put_verification", "after")
        with pytest.raises(Killed):
            engine.restore(engine.plan_restore(request))
        revive()
        delete_topic(kafka, f"restored-{topic}")
        new_topic(kafka, name=f"restored-{topic}")
        with pytest.raises(RefusedError, match=f"restored-{topic} was deleted and re-created"):
            engine.restore(engine.plan_restore(request))


@pytest.mark.parametrize("verified_elsewhere", [False, True])
def test_a_resume_with_another_compression_library_goes_on(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verified_elsewhere: bool
) -> None:
    """Tests a restore begun with one compressor and continued with another: the records count, not the bytes.

    It matters because a restore of days outlives an upgrade, or moves to another machine.
    Comparing bytes alone would call what the first one wrote damaged.
    """
    topic = new_topic(kafka)
    records = [NewRecord(b"value %d " % i * 20, timestamp=NOW + i) for i in range(3000)]
    produce(kafka.bootstrap_servers, topic, records, codec="zstd", config={"batch.size": 20_000})
    asked = {"original_offset_header": True}
    with open_engine(kafka, tmp_path, segment_bytes=1 << 16) as engine:
        capture(engine, topic)
        request = RestoreRequest(restore_id="r", topics=(topic,), prefix="restored-", **asked)
        revive = _dies(
            monkeypatch,
            RestoreFolder,
            "put_verification",
            "after" if verified_elsewhere else "before",
        )
        with pytest.raises(Killed):
            engine.restore(engine.plan_restore(request))
        revive()

        def other(codec: Codec, data: bytes, *, level: int | None = None) -> bytes:
            return compression.compress(codec, data, level=15)

        monkeypatch.setattr(convert, "compress", other)
        report = engine.restore(engine.plan_restore(request))
        assert (report.status, report.attempt) == ("verified", 2)
        assert engine.verify_restore("r").status == "verified"
        assert engine.offset_map("r", topic, 0).runs == [(0, 0, 3000)]
    found = read_topic(kafka.bootstrap_servers, f"restored-{topic}")[0]
    assert [record.value for record in found] == [record.value for record in records]


def test_damage_in_one_partition_does_not_stop_the_others(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests two partitions of four with a flipped byte: the sound ones are written, both objects are named.

    It matters because one round should show everything that must be put back.
    After the objects are put back, the same command completes the restore.
    """
    topic = new_topic(kafka, 4)
    for partition in range(4):
        records = [NewRecord(b"v%d" % i, timestamp=NOW + i) for i in range(50)]
        produce(kafka.bootstrap_servers, topic, records, partition=partition)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        paths = [next((tmp_path / "topics" / topic).glob(f"*/{p}/*.log*")) for p in (1, 3)]
        sound = [path.read_bytes() for path in paths]
        for path, data in zip(paths, sound, strict=True):
            path.chmod(0o600)
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        plan = engine.plan_restore(RestoreRequest(restore_id="r", topics=(topic,), prefix="restored-"))
        with pytest.raises(DamagedError, match="2 partitions") as damage:
            engine.restore(plan)
        assert all(f"/{p}/{path.name}" in str(damage.value) for p, path in zip((1, 3), paths, strict=True))
        assert [end for _, end in ends(kafka.bootstrap_servers, f"restored-{topic}").values()] == [
            50,
            0,
            50,
            0,
        ]
        for path, data in zip(paths, sound, strict=True):
            path.write_bytes(data)
        assert engine.restore(plan).attempt == 2
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == restored_as(kafka, topic)
