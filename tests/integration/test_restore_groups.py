"""Data and positions restored as one act: consumers see the old world or the new one, and read on exactly."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kafka_backup import (
    ConfigurationError,
    DamagedError,
    Engine,
    RefusedError,
    RestorePlan,
    RestoreRequest,
    WriterConflictError,
    offset_automation,
)
from kafka_backup.kafka.group_transaction import GroupTransaction
from kafka_backup.kafka.groups import GroupClient, GroupOffsets
from kafka_backup.partition_restore import PartitionRestore
from kafka_backup.repository.group_store import GroupStore, ResetFolder
from kafka_backup.repository.restore_folder import RestoreFolder
from kafka_backup.restore_topics import RestoreTopics
from tests.integration.test_group_translation import compacted_topic, mixed_topic, unread
from tests.support.engine import capture, open_engine, restore
from tests.support.groups import (
    Positions,
    commit,
    filled_topic,
    group_client,
    positions,
    positions_of,
    read_and_commit,
    read_on,
    reading,
    set_positions,
    states,
)
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.shell import Shell
from tests.support.topics import ends, new_topic, produce, read_topic
from tests.support.waiting import wait_for


class Killed(BaseException):
    """What SIGKILL is to a process: nothing behind it is done."""


def new_group() -> str:
    return f"group-{secrets.token_hex(4)}"


def plan_of(engine: Engine, restore_id: str, topic: str, *groups: str, **request: Any) -> RestorePlan:
    """Plans a restore of a topic with groups, under the prefix ``restored-``, unless told otherwise."""
    wanted = {"prefix": "restored-", **request}
    return engine.plan_restore(
        RestoreRequest(restore_id=restore_id, topics=(topic,), groups=groups, **wanted)
    )


@pytest.mark.parametrize("make", [mixed_topic, compacted_topic], ids=["transactions", "compacted"])
def test_groups_read_on_exactly_after_one_command(
    kafka: KafkaCluster, tmp_path: Path, make: Callable[[KafkaCluster], str]
) -> None:
    """What: a group at every offset of a topic with gaps; dry run, restore, the same again, and the way back.

    Why: this is the bad day: one command, and every consumer goes on with what it had not seen.
    Risk: a dry run that moves a group, or tells other numbers than come true; a second run that moves again.
    """
    topic, shell = make(kafka), Shell(tmp_path, kafka.bootstrap_servers, retry_seconds=30)
    start, end = ends(kafka.bootstrap_servers, topic)[0]
    prefix = new_group()
    at = {f"{prefix}-{offset}": offset for offset in range(start, end + 1)}
    set_positions(kafka, {group: {(topic, 0): offset} for group, offset in at.items()})
    source = read_topic(kafka.bootstrap_servers, topic)[0]
    shell.run("backup", "--topic", topic)
    target = f"restored-{topic}"
    asked = ("restore", "--id", "r1", "--topic", topic, "--prefix", "restored-", "--groups", f"{prefix}-*")
    assert "positions of group snapshot" in shell.run(*asked).stdout
    planned = shell.json(*asked)
    assert positions_of(kafka, at) == {group: {(topic, 0): offset} for group, offset in at.items()}
    assert not (shell.repository / "resets").exists()

    done = shell.json(*asked, "--execute")
    assert (done["status"], done["group_snapshot"]) == ("verified", planned["group_snapshot"])
    restored = read_topic(kafka.bootstrap_servers, target)[0]
    now = positions_of(kafka, at)
    for group, offset in at.items():
        assert now[group][topic, 0] == offset
        assert unread(restored, now[group][target, 0]) == unread(source, offset), offset
    told = {row["group"]: row for row in done["groups"]}
    assert {group: row["after"] for group, row in told.items()} == {
        group: now[group][target, 0] for group in at
    }
    for row in planned["groups"]:
        if row["after"] is not None:
            assert row["after"] == told[row["group"]]["after"]
            assert row["remaining"] == told[row["group"]]["remaining"]
        assert row["remaining"] >= told[row["group"]]["remaining"]
    for group in list(at)[3 :: max(1, len(at) // 2)]:
        assert read_on(kafka.bootstrap_servers, group, target)[0] == unread(source, at[group])

    again = shell.json(*asked, "--execute")
    assert (again["groups"], again["rollback"]) == (done["groups"], done["rollback"])
    shell.run("groups", "rollback", done["rollback"], "--execute")
    assert positions_of(kafka, at) == {group: {(topic, 0): offset} for group, offset in at.items()}
    assert shell.json(*asked, "--execute")["groups"] == done["groups"]  # it is finished: nothing moves again
    assert positions_of(kafka, at) == {group: {(topic, 0): offset} for group, offset in at.items()}


def test_the_snapshot_is_the_captures_own_or_not_later_than_until(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    """What: four snapshots, one of them of other groups; a restore of a capture, of a moment, and of the newest.

    Why: a position from after the moment makes a consumer skip what it will have to do again.
    Risk: the newest snapshot that there is; or one that was never asked for this group, read as "no position".
    """
    topic = new_topic(kafka, config={"retention.ms": -1})
    produce(kafka.bootstrap_servers, topic, [NewRecord(b"%d" % i) for i in range(30)])
    group, other = new_group(), new_group()
    taken: list[str] = []
    commit(kafka.bootstrap_servers, other, {(topic, 0): 1})
    with open_engine(kafka, tmp_path) as engine:
        for position in (5, 10):
            commit(kafka.bootstrap_servers, group, {(topic, 0): position})
            capture(engine, topic)
            saved = engine.captures()[-1].groups
            assert saved is not None
            taken.append(saved.snapshot_id)
        then = int(time.time() * 1000)
        wait_for(lambda: time.time() * 1000 > then + 1, 5)
        commit(kafka.bootstrap_servers, group, {(topic, 0): 20})
        taken += [engine.groups.snapshot([name]).snapshot.snapshot_id for name in (group, other)]

        def chosen(*groups: str, **request: Any) -> tuple[str, dict[str, int]]:
            plan = plan_of(engine, new_group(), topic, *groups, **request)
            assert plan.problems == ()
            assert plan.groups is not None
            return plan.groups.snapshot_id, {move.group: move.source_offset for move in plan.groups.moves}

        first, second = (each.capture_id for each in engine.captures()[-2:])
        assert chosen(group, capture=first) == (taken[0], {group: 5})
        assert chosen(group, capture=second) == (taken[1], {group: 10})
        assert chosen(group, until_ms=then) == (taken[1], {group: 10})
        assert chosen(group, until_ms=then, capture=first) == (taken[0], {group: 5})
        assert chosen(group) == (taken[2], {group: 20})
        assert chosen(other) == (taken[3], {other: 1})
        assert chosen(group, other) == (taken[1], {group: 10, other: 1})
        assert chosen(f"{group[:-1]}*")[0] == taken[1]
        early = plan_of(engine, "early", topic, group, until_ms=1000)
        assert [problem.kind for problem in early.problems] == ["no_group_snapshot"]
        with pytest.raises(ConfigurationError, match="no-such"):
            plan_of(engine, "r", topic, group, "no-such", capture=first)
    with open_engine(kafka, tmp_path, consumer_groups=[]) as engine:
        produce(kafka.bootstrap_servers, topic, [NewRecord(b"more")])
        capture(engine, topic)
        bare = plan_of(engine, "r", topic, group, capture=engine.captures()[-1].capture_id)
        assert [problem.kind for problem in bare.problems] == ["no_group_snapshot"]


def test_bounds_partitions_and_new_names(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: an hour of one of two partitions, for groups before, in, after and beyond it, under new names.

    Why: a restore of a part has only that part; and the old groups may still be at work beside it.
    Risk: a group that begins after what it has not seen; a position on a partition that was not restored.
    """
    topic = new_topic(kafka, 2, config={"retention.ms": -1})
    base = int(time.time() * 1000) - 3_600_000
    for partition in range(2):
        produce(
            kafka.bootstrap_servers,
            topic,
            [NewRecord(b"%d" % i, timestamp=base + 1000 * i) for i in range(30)],
            partition=partition,
        )
    prefix = new_group()
    at = {f"{prefix}-{offset}": offset for offset in (0, 9, 10, 15, 20, 21, 30)}
    set_positions(kafka, {group: {(topic, 0): offset, (topic, 1): 3} for group, offset in at.items()})
    rule = {"pattern": f"({prefix}-.*)", "replacement": r"new-\1"}
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        with reading(kafka.bootstrap_servers, f"{prefix}-0", topic):
            plan = plan_of(
                engine,
                "r1",
                topic,
                f"{prefix}-*",
                rename_groups=(rule,),
                partitions=(0,),
                from_ms=base + 10_000,
                until_ms=base + 20_000,
            )
        assert [problem.kind for problem in plan.problems] == ["no_group_snapshot"]  # none is an hour old
        with reading(kafka.bootstrap_servers, f"{prefix}-0", topic):
            named = {"rename_groups": (rule,), "partitions": (0,), "from_ms": base + 10_000}
            plan = plan_of(engine, "r1", topic, f"{prefix}-*", **named)
            report = engine.restore(plan)
    assert report.groups is not None
    assert {p.group for p in report.groups.positions} == {f"new-{group}" for group in at}
    for group, offset in at.items():
        assert set(positions(kafka, group)) == {(topic, 0), (topic, 1)}
        assert set(positions(kafka, f"new-{group}")) == {(f"restored-{topic}", 0)}
        restored = read_topic(kafka.bootstrap_servers, f"restored-{topic}")[0]
        rest = unread(restored, positions(kafka, f"new-{group}")[f"restored-{topic}", 0])
        assert rest == [b"%d" % i for i in range(10, 30) if i >= offset]


def test_positions_that_were_not_there_then_are_removed(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: the target exists, empty, and a group has a position on it that the snapshot does not know.

    Why: left there, the group would skip all that is restored below it.
    Risk: a transaction cannot remove a position, so that this way is another one: it has to be undone, too.
    """
    topic = filled_topic(kafka, 2)
    target = new_topic(kafka, 2, name=f"restored-{topic}")
    groups = [new_group(), new_group()]
    set_positions(kafka, {groups[0]: {(topic, 0): 7}, groups[1]: {(topic, 0): 8, (topic, 1): 9}})
    before: dict[str, Positions] = {
        groups[0]: {(topic, 0): 7, (target, 0): 0, (target, 1): 0},
        groups[1]: {(topic, 0): 8, (topic, 1): 9},
    }
    after: dict[str, Positions] = {
        groups[0]: {(topic, 0): 7, (target, 0): 7},
        groups[1]: {(topic, 0): 8, (topic, 1): 9, (target, 0): 8, (target, 1): 9},
    }
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        commit(kafka.bootstrap_servers, groups[0], {(target, 0): 0, (target, 1): 0})
        report = engine.restore(plan_of(engine, "r1", topic, *groups))
        assert positions_of(kafka, groups) == after
        assert report.groups is not None
        assert report.groups.reset_id is not None
        engine.groups.rollback(engine.groups.plan_rollback(report.groups.reset_id))
    assert positions_of(kafka, groups) == before


def test_verify_atomicity_restore_and_offset_reset(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: each step fails once: the check of the data, the topics' settings, a group in use, half of the commits.

    Why: data without positions is half a recovery, and positions without data are a lie.
    Risk: a group that was moved although the restore failed; then its consumer starts on records that are not there.
    """
    topic = filled_topic(kafka, 2)
    groups = [new_group() for _ in range(4)]
    before: dict[str, Positions] = {g: {(topic, 0): i, (topic, 1): i + 9} for i, g in enumerate(groups)}
    set_positions(kafka, before)
    target = f"restored-{topic}"

    def fails_once(owner: type, name: str, error: Exception) -> None:
        really = getattr(owner, name)

        def fail(*_: Any, **__: Any) -> Any:
            monkeypatch.setattr(owner, name, really)
            raise error

        monkeypatch.setattr(owner, name, fail)

    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        plan = plan_of(engine, "r1", topic, *groups)
        for owner, name in (
            (PartitionRestore, "verify"),
            (RestoreTopics, "configure"),
            (GroupClient, "fetch"),
        ):
            fails_once(owner, name, DamagedError(f"{name} failed"))
            with pytest.raises(DamagedError, match=f"{name} failed"):
                engine.restore(plan)
            assert positions_of(kafka, groups) == before, name
        add_really = GroupTransaction.add

        def half(transaction: GroupTransaction, offsets: Mapping[str, GroupOffsets]) -> None:
            add_really(transaction, {group: offsets[group] for group in groups[:2]})
            raise RefusedError("half of them are sent")

        monkeypatch.setattr(GroupTransaction, "add", half)
        with pytest.raises(RefusedError, match=r"r1: the data is restored.*half of them"):
            engine.restore(plan)
        assert positions_of(kafka, groups) == before
        monkeypatch.setattr(GroupTransaction, "add", add_really)
        with (
            reading(kafka.bootstrap_servers, groups[2], topic),
            pytest.raises(RefusedError, match=rf"{groups[2]}.*Run the same restore again"),
        ):
            engine.restore(plan)
        assert positions_of(kafka, groups) == before
        wait_for(lambda: states(kafka)[groups[2]] == "EMPTY", 60, "the consumer to leave")
        assert engine.restore(plan).status == "verified"
    moved = {g: {**o, (target, 0): o[topic, 0], (target, 1): o[topic, 1]} for g, o in before.items()}
    assert positions_of(kafka, groups) == moved


def test_a_consumer_that_joins_at_the_wrong_moment_is_named(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: where commits must be removed, half of the groups are moved when a consumer joins: all are put back.

    Why: without a transaction, all or none has to be made by hand.
    Risk: groups of one application at two times.
    """
    topic = filled_topic(kafka)
    target = new_topic(kafka, name=f"restored-{topic}")
    groups = sorted(new_group() for _ in range(3))
    set_positions(kafka, {g: {(topic, 0): 7} for g in groups[1:]})
    set_positions(kafka, {groups[0]: {(topic, 0): 7}})
    lingering = new_group()
    commit(kafka.bootstrap_servers, lingering, {(filled_topic(kafka), 0): 1})
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        commit(kafka.bootstrap_servers, lingering, {(target, 0): 0})
        before = positions_of(kafka, [*groups, lingering])
        plan = plan_of(engine, "r1", topic, *groups, lingering)
        commit_really = GroupClient.commit
        joined = reading(kafka.bootstrap_servers, groups[2], topic)

        def join_first(client: GroupClient, offsets: Mapping[str, GroupOffsets]) -> Any:
            monkeypatch.setattr(GroupClient, "commit", commit_really)
            joined.__enter__()
            return commit_really(client, offsets)

        monkeypatch.setattr(GroupClient, "commit", join_first)
        with pytest.raises(RefusedError, match=rf"{groups[2]}.*Nothing stays moved"):
            engine.restore(plan)
        assert positions_of(kafka, [*groups, lingering]) == before
        joined.__exit__(None, None, None)
        wait_for(lambda: states(kafka)[groups[2]] == "EMPTY", 60, "the consumer to leave")
        engine.restore(plan)
    assert {positions(kafka, g)[target, 0] for g in groups} == {7}
    assert (target, 0) not in positions(kafka, lingering)


def test_what_forbids_to_move_groups_is_said_before_the_data_is_written(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    """What: an active group, two groups of one new name, a reset that is half done, a position of another incarnation.

    Why: a restore takes hours, and in the end the groups cannot be moved.
    Risk: a plan without a problem, and a morning without consumers.
    """
    topic, group, other = filled_topic(kafka), new_group(), new_group()
    set_positions(kafka, {group: {(topic, 0): 7}, other: {(topic, 0): 8}})
    shell = Shell(tmp_path, kafka.bootstrap_servers, retry_seconds=30)
    shell.run("backup", "--topic", topic)
    asked = ("restore", "--id", "r1", "--topic", topic, "--prefix", "restored-", "--groups", group)
    with reading(kafka.bootstrap_servers, group, topic):
        refused = shell.json(*asked, "--execute", code=5)
        assert [problem["kind"] for problem in refused["problems"]] == ["group_active"]
        assert group in refused["problems"][0]["detail"]
    wait_for(lambda: states(kafka)[group] == "EMPTY", 60, "the consumer to leave")
    same = ("--groups", other, "--rename-groups", "group-.*=one")
    assert [p["kind"] for p in shell.json(*asked, *same, code=5)["problems"]] == ["same_group"]
    assert "no-such" in shell.run(*asked, "--groups", "no-such", code=2).stderr
    assert "no-such-*" in shell.run(*asked, "--groups", "no-such-*", code=2).stderr
    assert "--groups" in shell.run(*asked, "--groups", "/[/", code=2).stderr
    assert "group filter" in shell.run(*asked, "--groups", "", code=2).stderr
    assert "rename" in shell.run(*asked, "--rename-groups", "(=x", code=2).stderr
    assert "groups" in shell.run(*asked[:7], "--rename-groups", "a=b", code=2).stderr
    assert not (shell.repository / "restores").exists()
    planned = shell.json(*asked)
    assert (planned["status"], [row["after"] for row in planned["groups"]]) == ("planned", [7])


POINTS = (
    (RestoreFolder, "put_verification"),
    (RestoreTopics, "configure"),
    (ResetFolder, "put_plan"),
    (ResetFolder, "put_before"),
    (ResetFolder, "put_step"),
    (GroupTransaction, "add"),
    (GroupTransaction, "commit"),
    (RestoreFolder, "put_report"),
)


class Killer:
    """Counts the steps from the proof of the data on, and dies before or after the n-th of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        for owner, name in POINTS:
            monkeypatch.setattr(owner, name, self._wrapped(getattr(owner, name)))

    def _wrapped(self, really: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self._pass()
            answer = really(*arguments, **named)
            self._pass()
            return answer

        return call

    def _pass(self) -> None:
        if self.left == 0:
            self.left = -1
            raise Killed
        self.left -= 1

    def kills(self, work: Callable[[], object]) -> Iterator[int]:
        """Runs `work` again and again, killing it one step later each time, until it lives."""
        point = 0
        while True:
            self.left = point
            try:
                work()
            except Killed:
                self.left = -1
                yield point
                point += 1
                continue
            assert self.left >= 0
            self.left = -1
            return


def is_verified(folder: Path) -> bool:
    """Whether the newest reset is done and says so."""
    newest = max((folder / "resets").iterdir())
    return any("verified" in path.name for path in (newest / "steps").iterdir())


def stable_positions(kafka: KafkaCluster, topic: str, *groups: str) -> dict[str, int | None]:
    """The offsets on the first partition of a topic, when no transaction is under way any more."""
    with group_client(kafka) as client:
        found = client.fetch(groups)
    offsets: dict[str, int | None] = {}
    for group, each in found.items():
        assert isinstance(each, Mapping), each
        offsets[group] = each[topic, 0].offset if (topic, 0) in each else None
    return offsets


def test_a_restore_that_dies_between_data_and_positions_is_completed(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: it dies at each step from the proof of the data to the report; the same again completes it, once.

    Why: the machine that restores is often the one that fails next.
    Risk: positions that nobody sets any more, or that are set again after the consumers have gone on.
    """
    topic, group, other = filled_topic(kafka), new_group(), new_group()
    set_positions(kafka, {group: {(topic, 0): 7}, other: {(topic, 0): 11}})
    everything = [b"0-%d" % i for i in range(30)]
    killer = Killer(monkeypatch)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        number = 0

        def run() -> None:
            nonlocal number
            number += 1
            resume()

        def resume() -> Any:
            return engine.restore(plan_of(engine, f"r{number}", topic, group, other, prefix=f"r{number}-"))

        for point in killer.kills(run):
            target = f"r{number}-{topic}"
            found = stable_positions(kafka, target, group, other)
            assert found in ({group: None, other: None}, {group: 7, other: 11}), point
            is_moved = found[group] is not None
            if is_moved:  # a consumer starts before anybody runs the command again
                assert read_and_commit(kafka.bootstrap_servers, group, target, 5) == everything[7:12]
            if is_moved and not is_verified(tmp_path):  # nobody can tell whether it began where it should
                with pytest.raises(
                    RefusedError, match=r"a consumer has moved on.*--force.*'groups roll"
                ) as told:
                    resume()
                with pytest.raises(RefusedError, match="a consumer has moved on"):
                    resume()
                assert positions(kafka, group)[target, 0] == 12
                reset_id = str(told.value).partition("groups rollback ")[2].partition(" ")[0]
                engine.groups.rollback(engine.groups.plan_rollback(reset_id, force=True))
                assert (target, 0) not in positions(kafka, group)
                is_moved = False
            report = resume()
            assert report.groups is not None
            assert {(p.group, p.after) for p in report.groups.positions} == {(group, 7), (other, 11)}, point
            expected = {group: 12 if is_moved else 7, other: 11}
            assert stable_positions(kafka, target, group, other) == expected, point
        assert number > 2 * len(POINTS)


def test_a_run_that_was_overtaken_moves_nothing(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: a run stands still just before it moves the groups; another one finishes, and a consumer goes on.

    Why: a machine that was frozen wakes up, and does not know that it was given up.
    Risk: a consumer that is taken back to where the restore had put it, and does everything again.
    """
    topic, group = filled_topic(kafka), new_group()
    commit(kafka.bootstrap_servers, group, {(topic, 0): 7})
    target = f"restored-{topic}"
    put_really = ResetFolder.put_plan
    with open_engine(kafka, tmp_path) as engine, open_engine(kafka, tmp_path) as other:
        capture(engine, topic)

        def freeze(folder: ResetFolder, plan: Any) -> None:
            monkeypatch.setattr(ResetFolder, "put_plan", put_really)
            assert other.restore(plan_of(other, "r1", topic, group)).status == "verified"
            read_and_commit(kafka.bootstrap_servers, group, target, 5)
            put_really(folder, plan)

        plan = plan_of(engine, "r1", topic, group)
        monkeypatch.setattr(ResetFolder, "put_plan", freeze)
        with pytest.raises(WriterConflictError, match="newer attempt"):
            engine.restore(plan)
        assert positions(kafka, group)[target, 0] == 12
        assert set(GroupStore(engine.repository().store).resets().values()) == {"verified", "failed"}


def test_a_run_that_finds_an_older_one_in_its_reset_waits_for_it(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: the older of two runs begins its reset after the newer one has looked for one, and stops in the middle.

    Why: a scheduler starts a run again that it believes lost; the newer one is to complete the restore.
    Risk: both refuse because of the other, and nobody has moved the groups.
    """
    topic, group = filled_topic(kafka), new_group()
    commit(kafka.bootstrap_servers, group, {(topic, 0): 7})
    put_really, refuse_really = ResetFolder.put_plan, offset_automation.refuse_open_resets
    planned, looked, begun = threading.Event(), threading.Event(), threading.Event()
    ended: list[BaseException] = []
    with open_engine(kafka, tmp_path) as engine, open_engine(kafka, tmp_path) as other:
        capture(engine, topic)

        def put_plan(folder: ResetFolder, plan: Any) -> None:
            monkeypatch.setattr(ResetFolder, "put_plan", put_really)
            planned.set()
            looked.wait(60)
            put_really(folder, plan)

        def run_older() -> None:
            try:
                engine.restore(plan_of(engine, "r1", topic, group))
            except WriterConflictError as error:
                ended.append(error)

        monkeypatch.setattr(ResetFolder, "put_plan", put_plan)
        older = threading.Thread(target=run_older)
        older.start()
        assert planned.wait(60)

        nothing_moved = offset_automation._Reset._nothing_moved

        def stopping(reset: Any, error: RefusedError, *, is_resumed: bool) -> None:
            begun.set()  # its step says that it is applying
            refused.wait(60)
            nothing_moved(reset, error, is_resumed=is_resumed)

        refused = threading.Event()

        def refuse_open_resets(*arguments: Any, **named: Any) -> None:
            looked.set()
            begun.wait(60)
            try:
                refuse_really(*arguments, **named)
            finally:
                refused.set()
                older.join(60)

        monkeypatch.setattr(offset_automation._Reset, "_nothing_moved", stopping)
        monkeypatch.setattr(offset_automation, "refuse_open_resets", refuse_open_resets)
        report = other.restore(plan_of(other, "r1", topic, group))
        assert (report.attempt, len(ended)) == (2, 1)
        assert positions(kafka, group)[f"restored-{topic}", 0] == 7


def test_groups_move_to_another_cluster(kafka: KafkaCluster, kafka3: KafkaCluster, tmp_path: Path) -> None:
    """What: a repository of one cluster is restored to another one, groups included, and real consumers read on there.

    Why: when the cluster is lost, this is what is left.
    Risk: a group that is looked for, or moved, on the wrong cluster.
    """
    topic, group = filled_topic(kafka, 2), new_group()
    seen = read_and_commit(kafka.bootstrap_servers, group, topic, 37)
    before = positions(kafka, group)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
    with open_engine(kafka3, tmp_path) as engine:
        report = engine.restore(plan_of(engine, "r1", topic, group, prefix=""))
        assert report.groups is not None
    rest = read_on(kafka3.bootstrap_servers, group, topic)
    assert sorted([*seen, *rest[0], *rest[1]]) == sorted(
        b"%d-%d" % (p, i) for p in range(2) for i in range(30)
    )
    assert positions(kafka, group) == before
    with pytest.raises(RefusedError), open_engine(kafka, tmp_path) as engine:
        restore(engine, "r1", topic, prefix="", groups=(group,))
