"""Restores from a damaged repository: stopped before the damage, or going on without it, by the command line."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kafka_backup import DamagedError, RestoreRequest, WriterConflictError
from kafka_backup.repository.restore_folder import RestoreFolder
from kafka_backup.restore_attempt import Attempt
from kafka_backup.segment_skips import SegmentSkips
from tests.support.engine import capture, open_engine
from tests.support.groups import positions_of, set_positions
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord, Record, renumbered
from tests.support.shell import Shell
from tests.support.topics import new_topic, produce, read_topic

NOW = int(time.time() * 1000)
COUNT = 4000


@dataclass(frozen=True)
class Origin:
    """A captured topic of two partitions with several segments each, and groups all over the first one."""

    topic: str
    group: str
    repository: Path
    records: dict[int, list[Record]]

    @property
    def groups(self) -> dict[str, int]:
        """The groups and their positions."""
        return {f"{self.group}-{offset}": offset for offset in range(0, COUNT + 1, 400)}

    def segments(self, repository: Path, partition: int) -> list[tuple[Path, range]]:
        """The segments of a partition and the offsets in them."""
        paths = sorted((repository / "topics" / self.topic).glob(f"*/{partition}/*.log*"))
        starts = [int(path.name.partition("-")[0]) for path in paths]
        return [
            (path, range(start, end))
            for path, start, end in zip(paths, starts, [*starts[1:], COUNT], strict=True)
        ]


@pytest.fixture(scope="module")
def origin(kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Origin:
    """Captured once; every test damages a copy of its own."""
    topic = new_topic(kafka, 2)
    for partition in range(2):
        records = [
            NewRecord(b"%d-%05d" % (partition, i) * 12, b"k%d" % (i % 7), timestamp=NOW + i)
            for i in range(COUNT)
        ]
        produce(kafka.bootstrap_servers, topic, records, partition=partition, config={"batch.size": 8_000})
    origin = Origin(
        topic,
        f"group-{secrets.token_hex(4)}",
        tmp_path_factory.mktemp("origin") / "repository",
        read_topic(kafka.bootstrap_servers, topic),
    )
    set_positions(kafka, {name: {(topic, 0): offset} for name, offset in origin.groups.items()})
    with open_engine(kafka, origin.repository, segment_bytes=1 << 16, compression="none") as engine:
        capture(engine, topic)
    return origin


@pytest.fixture
def shell(kafka: KafkaCluster, origin: Origin, tmp_path: Path) -> Shell:
    """The command line with a copy of the repository."""
    shell = Shell(tmp_path, kafka.bootstrap_servers)
    shutil.copytree(origin.repository, shell.repository)
    for path in shell.files():
        path.chmod(0o600)
    return shell


def _missing(path: Path, _: Path) -> None:
    path.unlink()


def _truncated(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


def _flipped(path: Path, _: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


def _zeros(path: Path, _: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _swapped(path: Path, neighbour: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(neighbour.read_bytes())
    neighbour.write_bytes(data)


def _foreign(path: Path, neighbour: Path) -> None:
    path.write_bytes(neighbour.read_bytes())


DAMAGES = [_missing, _truncated, _empty, _flipped, _zeros, _swapped, _foreign]


def _command(origin: Origin, prefix: str) -> Sequence[str]:
    return ("restore", "--id", "r", "--topic", origin.topic, "--prefix", prefix, "--execute")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_what_is_damaged_is_left_out_only_when_told(
    kafka: KafkaCluster, origin: Origin, shell: Shell, damage: Callable[[Path, Path], None]
) -> None:
    """Tests a damaged segment: exit 4 by name; with --skip-damaged all the rest, groups too, and exactly what is missing.

    It matters because a bucket rots, and most of a topic is better than nothing, if everybody knows which part.
    A restore that skips on its own, ends green after it, or plans numbers that do not come true, deceives its user.
    """
    prefix = f"{damage.__name__.strip('_')}-"
    target = prefix + origin.topic
    segments = origin.segments(shell.repository, 0)
    assert len(segments) > 3  # so that the two are no neighbours
    (path, lost), (neighbour, also_lost) = segments[1], segments[-1]
    damage(path, neighbour)
    gone = {*lost, *(also_lost if damage is _swapped else ())}

    command = (*_command(origin, prefix), "--groups", f"{origin.group}-*")
    refused = shell.json(*command, code=4)
    assert path.name in str(refused)
    before_it = [record for record in origin.records[0] if record.offset < lost.start]
    if target in kafka.admin().list_topics(timeout=10).topics:  # else the plan saw it
        written = read_topic(kafka.bootstrap_servers, target)
        assert written == {0: before_it, 1: origin.records[1]}

    planned = shell.json(*(word for word in command if word != "--execute"), "--skip-damaged")
    assert {row["after"] for row in planned["groups"]} == {0, None}  # nobody knows before the data is read
    done = shell.json(*command, "--skip-damaged", code=4)
    assert done["status"] == "incomplete"
    assert [
        (part["partition"], span["start"], span["end"])
        for part in done["topics"][0]["partitions"]
        for span in part["missing"]
    ] == [(0, each.start, each.stop) for each in (lost, also_lost) if each.start in gone]
    assert all(path.name in str(done) for path, each in segments if each.start in gone)
    expected = [record for record in origin.records[0] if record.offset not in gone]
    assert read_topic(kafka.bootstrap_servers, target) == {0: renumbered(expected), 1: origin.records[1]}
    moved = positions_of(kafka, origin.groups)
    assert {name: moved[name][target, 0] for name in origin.groups} == {
        name: sum(record.offset < offset for record in expected) for name, offset in origin.groups.items()
    }
    at_most = {row["group"]: row["remaining"] for row in planned["groups"]}
    assert all(row["remaining"] <= at_most[row["group"]] for row in done["groups"])

    found = shell.json(
        *("offset-map", "--restore", "r", "--topic", origin.topic, "--partition", "0"),
        *map(str, (lost.start - 1, lost.start, lost.stop - 1, lost.stop)),
    )["offsets"]
    assert [each["target"] for each in found[:3]] == [lost.start - 1, lost.start, lost.start]
    assert [each["missing"] for each in found] == [False, True, True, False]

    # The same command says the same again, and so does its verification.
    assert shell.json(*command, code=4) == done
    answer = shell.run("verify", "--restore", "r", code=4)
    assert f"{target} [0] lacks source offsets [{lost.start}, {lost.stop})" in answer.stderr
    page = (shell.repository / done["page"]).read_text()
    assert page.startswith("# Restore r: incomplete")
    assert f"[{lost.start}, {lost.stop})" in page


def test_a_decision_to_leave_a_segment_out_holds(
    kafka: KafkaCluster, origin: Origin, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests a run that dies right after it left a segment out, and the object put back before the next run.

    It matters because what follows may have been written already: the segment has no place in the target any more.
    Written after all, it would be out of order; taken for written, it would be lost without a word.
    """
    path, lost = origin.segments(shell.repository, 0)[1]
    data = path.read_bytes()
    _flipped(path, path)
    target = f"held-{origin.topic}"
    with open_engine(kafka, shell.repository) as engine:
        request = RestoreRequest(restore_id="r", topics=(origin.topic,), prefix="held-")
        real = RestoreFolder.put_verification

        def dying(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(RestoreFolder, "put_verification", dying)
        with pytest.raises(KeyboardInterrupt):
            engine.restore(engine.plan_restore(request, skip_damaged=True), skip_damaged=True)
        monkeypatch.setattr(RestoreFolder, "put_verification", real)
    path.write_bytes(data)
    done = shell.json(*_command(origin, "held-"), code=4)
    assert (done["status"], done["attempt"]) == ("incomplete", 2)
    (span,) = done["topics"][0]["partitions"][0]["missing"]
    assert (span["start"], span["end"], span["records"]) == (lost.start, lost.stop, len(lost))
    expected = [record for record in origin.records[0] if record.offset not in lost]
    assert read_topic(kafka.bootstrap_servers, target)[0] == renumbered(expected)


def test_what_was_written_before_it_was_damaged_is_not_left_out(
    kafka: KafkaCluster, origin: Origin, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests a segment that is damaged after it was written: --skip-damaged does not help, the object does.

    It matters because the target cannot be compared with what cannot be read.
    Left out now, its records would count as somebody else's, or the report would call them missing.
    """
    path, _ = origin.segments(shell.repository, 0)[0]
    data = path.read_bytes()
    with open_engine(kafka, shell.repository) as engine:
        plan = engine.plan_restore(RestoreRequest(restore_id="r", topics=(origin.topic,), prefix="late-"))
        verified = Attempt._verified

        def damaged_meanwhile(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Attempt, "_verified", damaged_meanwhile)
        with pytest.raises(KeyboardInterrupt):
            engine.restore(plan)
        monkeypatch.setattr(Attempt, "_verified", verified)
        _flipped(path, path)
        with pytest.raises(DamagedError, match=f"{path.name}.*cannot be left out any more"):
            engine.restore(plan, skip_damaged=True)
        path.write_bytes(data)
        assert engine.restore(plan, skip_damaged=True).status == "verified"
    assert read_topic(kafka.bootstrap_servers, f"late-{origin.topic}") == origin.records


def test_a_run_that_was_overtaken_leaves_nothing_out(
    kafka: KafkaCluster, origin: Origin, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests a newer run that begins while the older one decides to leave a segment out: no decision is stored.

    It matters because the newer run may read the object, or may not have been told to skip.
    A decision behind its back would make its verified target look damaged to every later verification.
    """
    path, _ = origin.segments(shell.repository, 0)[1]
    _flipped(path, path)
    with open_engine(kafka, shell.repository) as engine:
        plan = engine.plan_restore(RestoreRequest(restore_id="r", topics=(origin.topic,), prefix="taken-"))
        add = SegmentSkips.add

        def overtaken(*decision: Any) -> None:
            engine.abandon_restore("r")  # counts as a newer run
            add(*decision)

        monkeypatch.setattr(SegmentSkips, "add", overtaken)
        with pytest.raises(WriterConflictError, match="abandoned"):
            engine.restore(plan, skip_damaged=True)
        assert not (shell.repository / "restores" / "r" / "skipped").exists()


def test_a_replacement_leaves_nothing_out(kafka: KafkaCluster, origin: Origin, shell: Shell) -> None:
    """Tests --skip-damaged with --replace: refused before anything happens.

    It matters because what is damaged in the repository may be sound in the topic that would be deleted.
    The last sound copy would be gone, by two options that are harmless alone.
    """
    answer = shell.run("restore", "--id", "r", "--topic", origin.topic, "--replace", "--skip-damaged", code=2)
    assert "does not go with --replace" in answer.stderr
    assert read_topic(kafka.bootstrap_servers, origin.topic) == origin.records
