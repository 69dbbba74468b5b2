"""Restores while brokers die, freeze and stall, and while the restore itself is killed: each record once, in order."""

from __future__ import annotations

import random
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import pytest

from kafka_backup import (
    DamagedError,
    Engine,
    RefusedError,
    RestoreLimits,
    RestoreReport,
    RestoreRequest,
    WriterConflictError,
)
from kafka_backup.kafka.produce import TopicProducer
from kafka_backup.repository.restore_folder import RestoreFolder
from kafka_backup.repository.stores import open_store
from tests.support import kafka_wire
from tests.support.engine import capture, open_engine, restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord, Record
from tests.support.shell import Shell
from tests.support.topics import ends, new_topic, produce, read_topic
from tests.support.waiting import wait_for

NOW = int(time.time() * 1000)
MONTH = 30 * 86_400_000
COUNT = 4000
RATE = 1_500_000
"""Bytes per second: slow enough that a fault finds the restore in the middle."""
SLOW = RATE // 4
"""For runs that are stopped: however late the fault comes, they are not done."""
PRODUCER = {"batch.size": 20_000, "linger.ms": 50}
CLIENT = {"properties": {"socket.timeout.ms": 5000, "request.timeout.ms": 2000}, "retry_seconds": 90}
"""What was on its way when a run ended has landed two seconds later, however busy these brokers are."""


def _records(partition: int, *, at: int = NOW) -> list[NewRecord]:
    return [
        NewRecord(b"%d-%06d" % (partition, i) * 60, b"k%d" % (i % 97), [(b"h", b"%d" % i)], at + i)
        for i in range(COUNT)
    ]


@dataclass(frozen=True)
class Origin:
    """A captured topic: where its repository is, and what a restore of it must hold."""

    topic: str
    repository: Path
    expected: dict[int, list[Record]]


def _origin(kafka: KafkaCluster, folder: Path, *, partitions: int, at: int = NOW) -> Origin:
    topic = new_topic(kafka, partitions, config={"retention.ms": -1})
    for partition in range(partitions):
        produce(
            kafka.bootstrap_servers, topic, _records(partition, at=at), partition=partition, config=PRODUCER
        )
    with open_engine(kafka, folder / "repository", segment_bytes=1 << 20) as engine:
        capture(engine, topic)
    return Origin(topic, folder / "repository", restored_as(kafka, topic))


@pytest.fixture(scope="module")
def origin(kafka3: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Origin:
    """Three partitions on three brokers, captured once for all tests."""
    return _origin(kafka3, tmp_path_factory.mktemp("origin"), partitions=3)


def _engine(kafka: KafkaCluster, origin: Origin) -> Engine:
    return open_engine(kafka, origin.repository, cluster=CLIENT)


def _written(
    kafka: KafkaCluster, target: str, *, cut_off: int = 0, partitions: Sequence[int] = (0, 1, 2)
) -> int:
    """Records that the target holds so far; 0 while nobody tells."""
    try:
        found = ends(kafka.bootstrap_servers_without(cut_off), target)
        return sum(end for partition, (_, end) in found.items() if partition in partitions)
    except (OSError, ValueError, KeyError):
        return 0


class Running:
    """A restore in a thread, at a limited rate, under a new name."""

    def __init__(self, kafka: KafkaCluster, origin: Origin, *, restore_id: str | None = None) -> None:
        self.kafka = kafka
        self.origin = origin
        self.restore_id = restore_id or f"r-{secrets.token_hex(3)}"
        self.target = f"{self.restore_id}-{origin.topic}"
        self.request = RestoreRequest(
            restore_id=self.restore_id, topics=(origin.topic,), prefix=f"{self.restore_id}-"
        )
        self.done: Future[RestoreReport] = Future()

    def start(self, *, rate: int | None = RATE) -> Running:
        def work() -> None:
            try:
                with _engine(self.kafka, self.origin) as engine:
                    plan = engine.plan_restore(self.request)
                    self.done.set_result(
                        engine.restore(plan, limits=RestoreLimits(max_bytes_per_second=rate))
                    )
            except BaseException as error:  # noqa: BLE001 - raised by whoever waits for it
                self.done.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        return self

    def wait_written(self, count: int) -> None:
        """Until at least so many records are in the target, or the restore ended."""
        wait_for(
            lambda: _written(self.kafka, self.target) >= count or self.done.done(), 60, f"{count} records"
        )
        assert not self.done.done(), "it was over before the fault"

    def check(self) -> RestoreReport:
        """Wait for its end; every record is there once, in order, as an independent client reads it."""
        report = self.done.result(200)
        assert report.status == "verified"
        assert read_topic(self.kafka.bootstrap_servers, self.target) == self.origin.expected
        return report


def _heal(kafka: KafkaCluster, target: str) -> None:
    wait_for(
        lambda: all(kafka.in_sync(target, p) == 3 for p in range(3)), 90, "all replicas to be in sync again"
    )


def test_chaos_partition_leader_election_during_restore(kafka3: KafkaCluster, origin: Origin) -> None:
    """Tests a leader that is killed while a restore writes to it, and started again later.

    It matters because leaders change whenever a broker is restarted.
    What was on its way is lost or was written, and only the log tells which: resending doubles it.
    """
    running = Running(kafka3, origin).start()
    running.wait_written(COUNT // 2)
    leader = kafka3.leader_of(running.target, 0)
    kafka3.kill(leader)
    try:
        survivor = next(each for each in kafka3.ids if each != leader)
        wait_for(lambda: kafka3.leader_of(running.target, 0, via=survivor) not in (leader, -1), 60)
    finally:
        kafka3.start(leader)
    running.check()
    _heal(kafka3, running.target)


def test_a_leader_that_freezes_during_a_restore(kafka3: KafkaCluster, origin: Origin) -> None:
    """Tests a leader that answers nothing until the restore has gone on with the next one, with requests in its hands.

    It matters because a frozen broker comes back with what it was given, and believes that it still leads.
    Its late answers, and its log, are both to be mistrusted.
    """
    running = Running(kafka3, origin).start()
    running.wait_written(COUNT // 2)
    leader = kafka3.leader_of(running.target, 1)
    kafka3.pause(leader)
    try:
        survivor = next(each for each in kafka3.ids if each != leader)
        wait_for(lambda: kafka3.leader_of(running.target, 1, via=survivor) not in (leader, -1), 60)
        before = wait_for(lambda: _written(kafka3, running.target, cut_off=leader, partitions=[1]), 60)
        wait_for(
            lambda: _written(kafka3, running.target, cut_off=leader, partitions=[1]) > before,
            60,
            "the restore to go on with the next leader",
        )
    finally:
        kafka3.unpause(leader)
    running.check()
    _heal(kafka3, running.target)


def test_too_few_replicas_for_a_while(kafka3: KafkaCluster, origin: Origin) -> None:
    """Tests a target that demands all three replicas while one of them is away: the restore waits, and goes on.

    It matters because NOT_ENOUGH_REPLICAS_AFTER_APPEND means that the batch is in the log.
    Sent again as the error suggests, it would be there twice.
    """
    running = Running(kafka3, origin)
    new_topic(kafka3, 3, name=running.target, config={"min.insync.replicas": 3})
    running.start()
    running.wait_written(COUNT // 2)
    follower = next(each for each in kafka3.ids if each != kafka3.leader_of(running.target, 0))
    kafka3.kill(follower)
    try:
        wait_for(lambda: len(kafka3.partition(running.target, 0).isr) < 3, 60, "the ISR to shrink")
        before = _written(kafka3, running.target, cut_off=follower)
        with pytest.raises(TimeoutError):  # nothing is acknowledged meanwhile
            wait_for(
                lambda: (
                    _written(kafka3, running.target, cut_off=follower) > before + COUNT or running.done.done()
                ),
                3,
            )
    finally:
        kafka3.start(follower)
    running.check()
    _heal(kafka3, running.target)


def test_a_lagging_follower_when_the_restore_is_killed(
    kafka3: KafkaCluster, origin: Origin, tmp_path: Path
) -> None:
    """Tests a restore killed while a follower is frozen, so that the log's end is above the high watermark.

    It matters because batches between the two are written and invisible: they appear later, or vanish.
    A run that read only what is visible would write them again.
    """
    shell = _shell(kafka3, origin, tmp_path)
    restore_id = f"lag-{secrets.token_hex(3)}"
    target = f"{restore_id}-{origin.topic}"
    command = _command(restore_id, origin, rate=SLOW)
    with shell.start(*command) as process:
        wait_for(lambda: _written(kafka3, target) > COUNT // 4 or process.poll() is not None, 60)
        follower = next(each for each in kafka3.ids if each != kafka3.leader_of(target, 0))
        kafka3.pause(follower)
        try:
            began = time.monotonic()
            wait_for(lambda: time.monotonic() - began > 1, 10, "batches that are not replicated")
            process.kill()
            process.communicate(timeout=30)
        finally:
            kafka3.unpause(follower)
    done = shell.json(*_command(restore_id, origin), spawn=True)
    assert (done["status"], done["attempt"]) == ("verified", 2)
    assert read_topic(kafka3.bootstrap_servers, target) == origin.expected
    _heal(kafka3, target)


def _shell(kafka: KafkaCluster, origin: Origin, folder: Path) -> Shell:
    shell = Shell(folder, kafka.bootstrap_servers, retry_seconds=60)
    shell.repository = origin.repository
    shell.configure(kafka.bootstrap_servers, retry_seconds=60)
    return shell


def _command(restore_id: str, origin: Origin, *, rate: int | None = None) -> list[str]:
    limit = [] if rate is None else ["--max-bytes-per-second", str(rate)]
    return [
        *("restore", "--id", restore_id, "--topic", origin.topic, "--prefix", f"{restore_id}-"),
        *("--execute", *limit),
    ]


def test_killed_at_random_moments_and_run_again(kafka3: KafkaCluster, origin: Origin, tmp_path: Path) -> None:
    """Tests SIGKILL at two random moments, each followed by the same command, and an undisturbed one at last.

    It matters because kill -9, an evicted container and a power cut all look like this.
    Whatever the process knew is gone; what it had sent may still arrive.
    """
    shell = _shell(kafka3, origin, tmp_path)
    restore_id = f"kill-{secrets.token_hex(3)}"
    target = f"{restore_id}-{origin.topic}"
    for _ in range(2):
        goal = _written(kafka3, target) + random.randint(1, COUNT // 2)
        with shell.start(*_command(restore_id, origin, rate=RATE // 2)) as process:
            wait_for(lambda g=goal: _written(kafka3, target) >= g or process.poll() is not None, 90)
            process.kill()
            process.communicate(timeout=30)
    done = shell.json(*_command(restore_id, origin), spawn=True)
    assert (done["status"], done["attempt"]) == ("verified", 3)
    assert read_topic(kafka3.bootstrap_servers, target) == origin.expected


def test_sigterm_stops_a_restore_with_130(kafka3: KafkaCluster, origin: Origin, tmp_path: Path) -> None:
    """Tests SIGTERM in the middle: exit code 130 within seconds, nothing but whole batches, and completable.

    It matters because orchestrators send SIGTERM, and SIGKILL some seconds later.
    A stop that waits for the whole topic, or calls a part of it a success, is worse than none.
    """
    shell = _shell(kafka3, origin, tmp_path)
    restore_id = f"term-{secrets.token_hex(3)}"
    target = f"{restore_id}-{origin.topic}"
    with shell.start(*_command(restore_id, origin, rate=SLOW), "--json") as process:
        wait_for(lambda: _written(kafka3, target) > COUNT // 4 or process.poll() is not None, 60)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert '"interrupted"' in out
    assert "Traceback" not in err
    assert 0 < _written(kafka3, target) < 3 * COUNT
    assert shell.json(*_command(restore_id, origin), spawn=True)["status"] == "verified"
    assert read_topic(kafka3.bootstrap_servers, target) == origin.expected


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KafkaCluster, Origin]]:
    """A broker behind a proxy that forgets producers after a second, and a topic of month-old records on it."""
    settings = {"producer.id.expiration.ms": 1000, "producer.id.expiration.check.interval.ms": 200}
    with KafkaCluster(1, proxied=True, config=settings) as kafka:
        yield kafka, _origin(kafka, tmp_path_factory.mktemp("old"), partitions=1, at=NOW - MONTH)


@pytest.mark.parametrize("send", [1, 2, 40])
def test_a_lost_response_doubles_nothing(
    forgetful: tuple[KafkaCluster, Origin], monkeypatch: pytest.MonkeyPatch, send: int
) -> None:
    """Tests a connection cut between append and answer, for month-old records and a broker that forgets producers.

    It matters because brokers judge producers by their records' times: old ones are forgotten within minutes.
    A repeated batch then passes every check of the broker and is in the log twice.
    """
    kafka, origin = forgetful
    running = Running(kafka, origin)
    proxy, broker = kafka.proxies[1], ("127.0.0.1", kafka.proxies[1].target_port)
    real, sends = TopicProducer.send, 0

    def sending(self: TopicProducer, batches: Sequence[tuple[int, bytearray]]) -> None:
        nonlocal sends
        sends += 1
        if sends != send:
            real(self, batches)
            return
        before = kafka_wire.list_offset(broker, running.target, 0)
        proxy.cut_after = 0  # no answer passes any more
        real(self, batches)
        wait_for(lambda: kafka_wire.list_offset(broker, running.target, 0) > before, 30, "the append")
        # Longer than the broker remembers a producer of such records.
        began = time.monotonic()
        wait_for(lambda: time.monotonic() - began > 2, 10, "the broker to forget the producer")
        proxy.reset()
        proxy.cut_after = None
        proxy.open()

    monkeypatch.setattr(TopicProducer, "send", sending)
    running.start(rate=None).check()
    assert sends > send


def test_a_second_writer_trips_the_wire(kafka3: KafkaCluster, origin: Origin) -> None:
    """Tests one foreign record in the middle of a restore: it stops within one batch and names the topic to delete.

    It matters because an application that is still running writes into the topic that is being restored.
    All offsets behind the record are off by one, and so is every position that is translated.
    """
    running = Running(kafka3, origin).start(rate=SLOW)
    running.wait_written(COUNT // 4)
    produce(kafka3.bootstrap_servers, running.target, [NewRecord(b"foreign")], partition=2)
    with pytest.raises(RefusedError, match=rf"somebody else writes into the topic.*delete {running.target}"):
        running.done.result(60)
    found = read_topic(kafka3.bootstrap_servers, running.target)[2]
    place = next(place for place, record in enumerate(found) if record.value == b"foreign")
    # At most what was in flight, five batches of about forty records, came behind it.
    assert len(found) - place <= 5 * 60
    with pytest.raises(DamagedError, match=rf"{running.target} \[2\]"):
        Running(kafka3, origin, restore_id=running.restore_id).start().done.result(90)


@pytest.mark.parametrize(
    "wait_for_end", [False, True], ids=["while the other writes", "when the other has ended"]
)
def test_a_frozen_run_that_wakes_up_stops(
    kafka3: KafkaCluster, origin: Origin, tmp_path: Path, wait_for_end: bool
) -> None:
    """Tests a process that is frozen in the middle, another run of the same restore, and the first one waking up.

    It matters because a container that is paused, or a machine that swaps, looks dead to whoever starts it again.
    Both would write; the newer one must win, and the older one add nothing.
    """
    shell = _shell(kafka3, origin, tmp_path)
    running = Running(kafka3, origin)
    with shell.start(*_command(running.restore_id, origin, rate=SLOW), "--json") as older:
        wait_for(lambda: _written(kafka3, running.target) > COUNT // 4 or older.poll() is not None, 60)
        older.send_signal(signal.SIGSTOP)
        try:
            running.start(rate=RATE)
            folder = RestoreFolder(open_store(f"file://{origin.repository}"), running.restore_id)
            wait_for(lambda: folder.attempt(2) is not None, 60, "the newer attempt")
            if wait_for_end:
                running.check()
            else:
                before = _written(kafka3, running.target)
                wait_for(
                    lambda: _written(kafka3, running.target) > before + 500, 90, "the newer run to write"
                )
        finally:
            older.send_signal(signal.SIGCONT)
        _, err = older.communicate(timeout=60)
    assert older.returncode == 5, err
    assert "took over" in err or "writes into" in err
    running.check()


def test_two_runs_at_once_end_with_one_winner(kafka3: KafkaCluster, origin: Origin) -> None:
    """Tests the same restore started again while it runs: the newer one completes it, the older one stops.

    It matters because a scheduler starts a run again that it believes lost.
    Two writers that both go on would each trip the other's wire, and the topic would be lost.
    """
    older = Running(kafka3, origin).start(rate=SLOW)
    older.wait_written(COUNT // 4)
    newer = Running(kafka3, origin, restore_id=older.restore_id).start(rate=None)
    with pytest.raises(WriterConflictError, match="a newer attempt took over"):
        older.done.result(60)
    assert newer.check().attempt == 2


def test_a_batch_of_a_run_that_is_gone_is_fenced(
    kafka3: KafkaCluster, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests a batch that leaves an older run after the newer one has ended: the broker refuses it.

    It matters because bytes in a socket, or in a frozen system call, arrive whenever they like.
    The check of who owns the restore is over by then, and the verified topic would get a batch more.
    """
    frozen, thaw = threading.Event(), threading.Event()
    real = TopicProducer.send

    def send(self: TopicProducer, batches: Sequence[tuple[int, bytearray]]) -> None:
        # After all checks, before the bytes are with the kernel.
        if not frozen.is_set() and _written(kafka3, older.target) > COUNT:
            frozen.set()
            thaw.wait(200)
        real(self, batches)

    monkeypatch.setattr(TopicProducer, "send", send)
    older = Running(kafka3, origin).start()
    wait_for(lambda: frozen.is_set() or older.done.done(), 90, "the older run to be frozen")
    newer = Running(kafka3, origin, restore_id=older.restore_id).start(rate=None)
    newer.check()
    thaw.set()
    with pytest.raises(RefusedError, match=r"took over|writes into"):
        older.done.result(60)
    assert read_topic(kafka3.bootstrap_servers, newer.target) == origin.expected
    with _engine(kafka3, origin) as engine:
        assert engine.verify_restore(newer.restore_id).status == "verified"


def test_a_frozen_run_of_old_records_stops_by_itself(
    forgetful: tuple[KafkaCluster, Origin], tmp_path: Path
) -> None:
    """Tests a frozen run that wakes up where the broker has forgotten all producers: it looks before it sends.

    It matters because old records leave no fence: the broker takes whatever comes.
    Here only the run itself can know that it is no longer the one.
    """
    kafka, origin = forgetful
    shell = _shell(kafka, origin, tmp_path)
    running = Running(kafka, origin)
    with shell.start(*_command(running.restore_id, origin, rate=RATE // 2), "--json") as older:
        wait_for(lambda: _written(kafka, running.target) > 100 or older.poll() is not None, 60)
        older.send_signal(signal.SIGSTOP)
        try:
            running.start(rate=None).check()
        finally:
            older.send_signal(signal.SIGCONT)
        _, err = older.communicate(timeout=60)
    assert older.returncode == 5, err
    assert "took over" in err
    running.check()
