"""The way back: durable, complete, verified, and picked up after a kill between any two steps."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kafka_backup import (
    ConfigurationError,
    DamagedError,
    Engine,
    RefusedError,
    UnreachableError,
    WriterConflictError,
    offset_rollback,
)
from kafka_backup.cli import main
from kafka_backup.kafka.groups import GroupClient
from kafka_backup.offset_rollback import ResetLog
from kafka_backup.repository.group_store import ResetFolder
from tests.support.engine import engine_config, open_engine
from tests.support.groups import (
    Positions,
    commit,
    filled_topic,
    positions,
    positions_of,
    read_and_commit,
    read_on,
    reading,
    reset,
    set_positions,
    states,
)
from tests.support.kafka_cluster import KafkaCluster
from tests.support.topics import delete_topic, new_topic
from tests.support.waiting import wait_for


class Killed(BaseException):
    """The process died here."""


def new_group() -> str:
    return f"group-{secrets.token_hex(4)}"


def rollback(engine: Engine, reset_id: str | None, *, force: bool = False) -> list[tuple[str, int | None]]:
    """Plans and carries out a rollback; returns group and position of each result."""
    assert reset_id is not None
    results = engine.groups.rollback(engine.groups.plan_rollback(reset_id, force=force))
    for result in results:
        if result.error is not None:
            raise result.error
    return [(r.move.group, None if r.current is None else r.current.offset) for r in results]


def test_rollback_is_complete(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: a reset that moves, adds and makes: after the rollback all of it is as before, the groups too.

    Why: a wrong reset must leave no trace; a commit that was not there would end a consumer's policy.
    Risk: only what had been there is put back, and what the reset has added stays.
    """
    topic, other = filled_topic(kafka, 3), filled_topic(kafka)
    some, none = new_group(), new_group()
    before: Positions = {(topic, 0): 5, (topic, 2): 30, (other, 0): 1}
    commit(kafka.bootstrap_servers, some, before)
    with open_engine(kafka, tmp_path) as engine:
        report = reset(engine, some, none, to="offset", to_offset=17, topics=(topic,))
        everywhere = {(topic, partition): 17 for partition in range(3)}
        assert positions_of(kafka, [some, none]) == {some: everywhere | {(other, 0): 1}, none: everywhere}
        plan = engine.groups.plan_rollback(str(report.reset_id))
        assert (plan.errors, plan.deletes) == ({}, (none,))
        rollback(engine, report.reset_id)
        assert positions(kafka, some) == before
        wait_for(lambda: none not in states(kafka), 30, "the group to be gone")
        again = rollback(engine, report.reset_id)
        assert (none, None) in again
    assert positions(kafka, some) == before
    assert sum(map(len, read_on(kafka.bootstrap_servers, some, topic).values())) == 25 + 30 + 0


def test_rollback_snapshot_is_durable_before_any_change(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: at the moment of the first commit, before.json is readable and holds all, "none" included.

    Why: a process may die at the very next instruction.
    Risk: a snapshot in memory, or one that is written when all is done.
    """
    topic, group = filled_topic(kafka, 2), new_group()
    commit(kafka.bootstrap_servers, group, {(topic, 0): 7})
    seen = []

    def die(_client: GroupClient, _groups: Any) -> Any:
        (folder,) = (tmp_path / "resets").iterdir()
        seen.append(json.loads((folder / "before.json").read_bytes()))
        seen.append(sorted(path.name for path in folder.rglob("*.json")))
        raise Killed

    with open_engine(kafka, tmp_path) as engine:
        monkeypatch.setattr(GroupClient, "commit", die)
        with pytest.raises(Killed):
            reset(engine, group, to="latest")
    (saved,) = seen[0]["groups"]
    assert (saved["group"], saved["state"]) == (group, "Empty")
    assert [(p["partition"], p["offset"]) for p in saved["positions"]] == [(0, 7), (1, None)]
    assert seen[1] == ["00000000000000000001-applying.json", "before.json", "plan.json"]


def test_rollback_refuses_what_a_consumer_has_moved(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: consumers read on after a reset; the rollback is refused by name, and done when forced.

    Why: what was read since would be read again, and whoever rolls back should know.
    Risk: a rollback that undoes hours of work, or one that cannot be had at all.
    """
    topic, moved, still = filled_topic(kafka), new_group(), new_group()
    set_positions(kafka, {moved: {(topic, 0): 20}, still: {(topic, 0): 20}})
    with open_engine(kafka, tmp_path) as engine:
        report = reset(engine, moved, still, to="offset", to_offset=3)
        read_and_commit(kafka.bootstrap_servers, moved, topic, 5)
        reset_id = str(report.reset_id)
        plan = engine.groups.plan_rollback(reset_id)
        assert list(plan.errors) == [(moved, (topic, 0))]
        with pytest.raises(RefusedError, match=rf"{moved}.* 8, neither 20 .* nor 3"):
            engine.groups.rollback(plan)
        assert positions_of(kafka, [moved, still]) == {moved: {(topic, 0): 8}, still: {(topic, 0): 3}}
        rollback(engine, reset_id, force=True)
    assert positions_of(kafka, [moved, still]) == {moved: {(topic, 0): 20}, still: {(topic, 0): 20}}


def test_rollback_refuses_active_groups_and_other_topics(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: a rollback while a consumer is there, forced or not; and after the topic was made again.

    Why: a position that is put back under a consumer is overwritten; on another topic it means nothing.
    Risk: "rolled back", with the position elsewhere a second later.
    """
    topic, group = filled_topic(kafka), new_group()
    commit(kafka.bootstrap_servers, group, {(topic, 0): 20})
    with open_engine(kafka, tmp_path) as engine:
        reset_id = reset(engine, group, to="earliest").reset_id
        with reading(kafka.bootstrap_servers, group, topic):
            for force in (False, True):
                with pytest.raises(RefusedError, match=group):
                    rollback(engine, reset_id, force=force)
        assert positions(kafka, group) == {(topic, 0): 0}
        delete_topic(kafka, topic)
        new_topic(kafka, name=topic)
        for force in (False, True):
            with pytest.raises(RefusedError, match="created again"):
                rollback(engine, reset_id, force=force)
        with pytest.raises(ConfigurationError, match="no-such"):
            engine.groups.plan_rollback("no-such")


def test_verification_after_rollback_says_what_differs(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: somebody commits between the rollback's last commit and its verification.

    Why: "rolled back" is only worth something if it was looked at afterwards.
    Risk: a success that was true for a millisecond.
    """
    topic, group = filled_topic(kafka, 2), new_group()
    commit(kafka.bootstrap_servers, group, {(topic, 0): 20})
    with open_engine(kafka, tmp_path) as engine:
        reset_id = str(reset(engine, group, to="earliest").reset_id)
        delete = offset_rollback._delete_groups

        def meddle(client: GroupClient, plan: Any) -> None:
            delete(client, plan)
            set_positions(kafka, {group: {(topic, 0): 6, (topic, 1): 2}})

        monkeypatch.setattr(offset_rollback, "_delete_groups", meddle)
        with pytest.raises(DamagedError) as differs:
            rollback(engine, reset_id)
    assert f"{topic} [0]: 6 instead of 20" in str(differs.value)
    assert f"{topic} [1]: 2 instead of no commit" in str(differs.value)


KILL_POINTS = (
    (ResetFolder, "put_plan"),
    (ResetFolder, "put_before"),
    (ResetFolder, "put_step"),
    (GroupClient, "commit"),
    (GroupClient, "delete_offsets"),
    (GroupClient, "delete_groups"),
)


class Killer:
    """Counts what changes anything, and dies before or after the n-th of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        for owner, name in KILL_POINTS:
            monkeypatch.setattr(owner, name, self._wrapped(getattr(owner, name)))

    def _wrapped(self, really: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._pass()
            answer = really(*arguments)
            self._pass()
            return answer

        return call

    def _pass(self) -> None:
        if self.left == 0:
            self.left = -1
            raise Killed
        self.left -= 1

    def kills(self, work: Callable[[], object]) -> Iterator[int]:
        """Runs `work` again and again, killing it one point later each time, until it lives."""
        point = 0
        while True:
            self.left = point
            try:
                work()
            except Killed:
                yield point
                point += 1
                continue
            assert self.left >= 0
            self.left = -1
            return


def test_a_kill_between_any_two_steps_is_picked_up(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: reset and rollback killed at every point where something was stored or told, then the same again.

    Why: the machine that runs this is the one that has problems today.
    Risk: a before.json that is taken again, after half of the groups were moved: then nobody knows where they were.
    """
    topic = filled_topic(kafka, 2)
    killer = Killer(monkeypatch)
    points = {"reset": 0, "rollback": 0}

    def fresh() -> tuple[dict[str, Positions], dict[str, Positions]]:
        names = [new_group() for _ in range(3)]
        before: dict[str, Positions] = {
            names[0]: {(topic, 0): 5, (topic, 1): 6},
            names[1]: {(topic, 1): 7},
            names[2]: {},
        }
        set_positions(kafka, {group: offsets for group, offsets in before.items() if offsets})
        return before, {name: {(topic, 0): 17, (topic, 1): 17} for name in names}

    before, after = fresh()

    def reset_all() -> str | None:
        with open_engine(kafka, tmp_path) as engine:
            report = reset(engine, *before, to="offset", to_offset=17, topics=(topic,))
            return report.reset_id

    for point in killer.kills(reset_all):
        reset_id = reset_all() or _last_reset(tmp_path)  # "unchanged": it died after the last step
        assert positions_of(kafka, after) == after, point
        with open_engine(kafka, tmp_path) as engine:
            rollback(engine, reset_id)
        assert positions_of(kafka, before) == before, point
        points["reset"] += 1
        before, after = fresh()

    def roll_back() -> None:
        with open_engine(kafka, tmp_path) as engine:
            rollback(engine, reset_id)

    before, after = fresh()
    reset_id = reset_all()
    for point in killer.kills(roll_back):
        roll_back()
        assert positions_of(kafka, before) == before, point
        points["rollback"] += 1
        before, after = fresh()
        reset_id = reset_all()
    assert points["reset"] >= 2 * 6
    assert points["rollback"] >= 2 * 4


def _last_reset(folder: Path) -> str:
    return max(path.name for path in (folder / "resets").iterdir())


def test_a_reset_that_died_before_it_changed_anything_is_not_believed_later(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: a reset dies after before.json; the consumers go on for a day; then the same command again.

    Why: what before.json says is a day old now.
    Risk: a rollback to yesterday: a day's records are done twice.
    """
    topic, group = filled_topic(kafka), new_group()
    commit(kafka.bootstrap_servers, group, {(topic, 0): 5})
    advance_really = ResetLog.advance

    def die(_log: ResetLog, *_arguments: Any) -> None:
        raise Killed

    with open_engine(kafka, tmp_path) as engine:
        monkeypatch.setattr(ResetLog, "advance", die)
        with pytest.raises(Killed):
            reset(engine, group, to="earliest")
        monkeypatch.setattr(ResetLog, "advance", advance_really)
        read_and_commit(kafka.bootstrap_servers, group, topic, 20)
        report = reset(engine, group, to="earliest")
        assert positions(kafka, group) == {(topic, 0): 0}
        rollback(engine, report.reset_id)
    assert positions(kafka, group) == {(topic, 0): 25}
    assert len(list((tmp_path / "resets").iterdir())) == 2


def test_two_runs_of_one_reset_do_not_mix(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: the rollback begins while the reset is still at work: the reset notices, and stops.

    Why: somebody loses patience, or a scheduler starts twice.
    Risk: two processes that undo each other's commits, and both say success.
    """
    topic, group = filled_topic(kafka), new_group()
    commit(kafka.bootstrap_servers, group, {(topic, 0): 5})
    commit_really = GroupClient.commit
    with open_engine(kafka, tmp_path) as engine, open_engine(kafka, tmp_path) as other:

        def overtaken(client: GroupClient, groups: Any) -> Any:
            monkeypatch.setattr(GroupClient, "commit", commit_really)
            answer = commit_really(client, groups)
            rollback(other, _last_reset(tmp_path))
            return answer

        monkeypatch.setattr(GroupClient, "commit", overtaken)
        with pytest.raises((WriterConflictError, RefusedError)):
            reset(engine, group, to="earliest")
    assert positions(kafka, group) in ({(topic, 0): 5}, {(topic, 0): 0})
    with open_engine(kafka, tmp_path) as engine:
        rollback(engine, _last_reset(tmp_path))
    assert positions(kafka, group) == {(topic, 0): 5}


@pytest.mark.parametrize("way", ["reset", "rollback"])
def test_network_partition_during_reset_and_rollback(
    kafka3: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """What: all brokers fall silent in the middle, and come back later: unknown, said so, then picked up.

    Why: a commit on its way is written or not; nobody can tell until somebody looks.
    Risk: a commit that arrives late, over what has happened since.
    """
    topic = filled_topic(kafka3, 2)
    names = [new_group() for _ in range(4)]
    before: dict[str, Positions] = {name: {(topic, 0): i, (topic, 1): i + 9} for i, name in enumerate(names)}
    set_positions(kafka3, before)
    after = {name: {(topic, 0): 0, (topic, 1): 0} for name in names}
    commit_really = GroupClient.commit
    config = engine_config(kafka3, tmp_path)
    impatient = config.cluster.model_copy(update={"properties": {"socket.timeout.ms": "1000"}})

    def go_silent(client: GroupClient, groups: Any) -> Any:
        monkeypatch.setattr(GroupClient, "commit", commit_really)
        first = sorted(groups)[0]
        commit_really(client, {first: groups[first]})
        for proxy in kafka3.proxies.values():
            proxy.silent()
        client.cluster.retry_seconds = 0.5  # there will be no answer, and nothing else is waited for
        return commit_really(client, groups)

    def partitioned(work: Callable[[Engine], object]) -> None:
        monkeypatch.setattr(GroupClient, "commit", go_silent)
        try:
            with (
                Engine.open(config.model_copy(update={"cluster": impatient})) as engine,
                pytest.raises(UnreachableError),
            ):
                work(engine)
        finally:
            for proxy in kafka3.proxies.values():
                proxy.open()
            monkeypatch.setattr(GroupClient, "commit", commit_really)

    if way == "reset":
        partitioned(lambda engine: reset(engine, *names, to="earliest"))
    with open_engine(kafka3, tmp_path) as engine:
        reset_id = str(reset(engine, *names, to="earliest").reset_id)
    assert positions_of(kafka3, names) == after
    if way == "rollback":
        partitioned(lambda engine: rollback(engine, reset_id))
    with open_engine(kafka3, tmp_path) as engine:
        rollback(engine, reset_id)
    assert positions_of(kafka3, names) == before


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(folder / "kafka-backup.yaml"), *arguments])


def test_reset_and_rollback_by_the_command_line(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: dry run, execute, again, rollback, refusals: JSON, tables and exit codes.

    Why: it is how this is done on the bad day, and how programs do it.
    Risk: a dry run that changes something, an exit of 0 for what was refused.
    """
    (tmp_path / "kafka-backup.yaml").write_text(
        json.dumps(
            {
                "cluster": {"bootstrap_servers": kafka.bootstrap_servers, "retry_seconds": 30},
                "repository": {"url": f"file://{tmp_path}/repository"},
            }
        )
    )
    topic, group = filled_topic(kafka), new_group()
    commit(kafka.bootstrap_servers, group, {(topic, 0): 5})
    asked = ("groups", "reset", "--group", group, "--to", "12", "--json")
    planned = run(tmp_path, *asked)
    document = json.loads(planned.stdout)
    assert (planned.exit_code, document["status"], document["rollback"]) == (0, "planned", None)
    (row,) = document["groups"]
    assert (row["group"], row["topic"], row["partition"]) == (group, topic, 0)
    assert (row["before"], row["after"], row["error"], row["remaining"]) == (5, 12, None, 18)
    assert positions(kafka, group) == {(topic, 0): 5}
    assert not (tmp_path / "repository" / "resets").exists()
    assert "add --execute" in planned.stderr

    done = run(tmp_path, *asked, "--execute")
    document = json.loads(done.stdout)
    assert (done.exit_code, document["status"]) == (0, "verified")
    assert [(r["before"], r["after"], r["error"]) for r in document["groups"]] == [(5, 12, None)]
    assert positions(kafka, group) == {(topic, 0): 12}
    again = json.loads(run(tmp_path, *asked, "--execute").stdout)
    assert (again["status"], again["rollback"]) == ("unchanged", None)

    undone = run(tmp_path, "groups", "rollback", document["rollback"], "--json")
    assert (undone.exit_code, json.loads(undone.stdout)["status"]) == (0, "planned")
    assert positions(kafka, group) == {(topic, 0): 12}
    undone = run(tmp_path, "groups", "rollback", document["rollback"], "--execute", "--json")
    assert (undone.exit_code, json.loads(undone.stdout)["status"]) == (0, "rolled_back")
    assert positions(kafka, group) == {(topic, 0): 5}
    assert "rolled_back" in run(tmp_path, "groups", "rollback", document["rollback"], "--execute").stdout

    for arguments, code, words in (
        (("--group", group, "--to", "99", "--execute"), 5, "high watermark 30"),
        (("--group", "no-such", "--to", "earliest", "--execute"), 2, "no-such"),
        (("--group", group, "--snapshot", "no-such", "--execute"), 2, "no-such"),
        (("--group", group, "--to", "yesterday"), 2, "earliest"),
        (("--group", group), 2, "--to"),
        (("--to", "earliest"), 2, "--group"),
        (("--group", group, "--to", "earliest", "--restore", "r"), 2, "--restore"),
        (("--group", group, "--to", "earliest", "--topic", "no-such"), 2, "no-such"),
    ):
        wrong = run(tmp_path, "groups", "reset", *arguments)
        assert (wrong.exit_code, words in wrong.stderr) == (code, True), (arguments, wrong.stderr)
    assert run(tmp_path, "groups", "rollback", "no-such", "--execute").exit_code == 2
    assert positions(kafka, group) == {(topic, 0): 5}
    by_time = run(
        tmp_path, "groups", "reset", "--group", group, "--to", "2001-01-01T00:00:00Z", "--execute", "--json"
    )
    assert (by_time.exit_code, positions(kafka, group)) == (0, {(topic, 0): 0})
    with reading(kafka.bootstrap_servers, group, topic):
        active = run(tmp_path, "groups", "reset", "--group", group, "--to", "latest", "--execute", "--json")
        assert active.exit_code == 5
        assert json.loads(active.stdout)["problems"][0]["kind"] == "group_active"


def test_a_killed_process_is_picked_up_by_the_same_command(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: kill -9 of a real process after its first step; the same command then completes the reset.

    Why: what a test raises runs finally blocks; a kill does not.
    Risk: something that only a tidy end writes.
    """
    topic, group = filled_topic(kafka), new_group()
    commit(kafka.bootstrap_servers, group, {(topic, 0): 5})
    config = tmp_path / "kafka-backup.yaml"
    config.write_text(
        json.dumps(
            {
                "cluster": {"bootstrap_servers": kafka.bootstrap_servers, "retry_seconds": 30},
                "repository": {"url": f"file://{tmp_path}/repository"},
            }
        )
    )
    asked = ["--config", str(config), "groups", "reset", "--group", group, "--to", "latest", "--execute"]
    program = (
        "import os, signal, sys\n"
        "from kafka_backup.kafka.groups import GroupClient\n"
        "GroupClient.commit = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from kafka_backup.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    died = subprocess.run([sys.executable, "-c", program, *asked], check=False, timeout=120)
    assert died.returncode == -9
    again = run(tmp_path, *asked[2:], "--json")
    document = json.loads(again.stdout)
    assert (again.exit_code, document["status"]) == (0, "verified")
    assert "interrupted" in again.stderr
    assert [path.name for path in (tmp_path / "repository" / "resets").iterdir()] == [document["rollback"]]
    assert positions(kafka, group) == {(topic, 0): 30}
    with open_engine(kafka, tmp_path / "repository") as engine:
        rollback(engine, document["rollback"])
    assert positions(kafka, group) == {(topic, 0): 5}
    assert not plan_reset_is_open(tmp_path)


def plan_reset_is_open(folder: Path) -> bool:
    """Whether a reset is half done."""
    (reset_folder,) = (folder / "repository" / "resets").iterdir()
    return "rolled_back" not in max(path.name for path in (reset_folder / "steps").iterdir())
