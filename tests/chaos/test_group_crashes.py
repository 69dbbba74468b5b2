"""kill -9 at every named point of a reset of consumer groups and of the way back."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from kafka_backup.kafka.groups import GroupClient
from tests.support.engine import open_engine
from tests.support.forked import Forked
from tests.support.groups import Positions, filled_topic, group_client, set_positions
from tests.support.kafka_cluster import KafkaCluster
from tests.support.mortal import POINTS
from tests.support.shell import Shell
from tests.support.together import try_all

NOWHERE: Positions = {}


class Case:
    """One group that has positions and one that does not exist, and a repository of their own."""

    def __init__(self, kafka: KafkaCluster, topic: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.kafka = kafka
        self.shell = Shell(folder, kafka.bootstrap_servers, retry_seconds=60)
        name = f"crash-{secrets.token_hex(4)}"
        self.old, self.new = f"{name}-old", f"{name}-new"
        self.before = {self.old: {(topic, 0): 3, (topic, 1): 20}, self.new: NOWHERE}
        self.goal = {group: {(topic, 0): 7, (topic, 1): 7} for group in self.before}
        set_positions(kafka, {self.old: self.before[self.old]})
        named = [text for group in self.before for text in ("--group", group)]
        self.reset = ["groups", "reset", *named, "--topic", topic, "--to", "7", "--execute"]

    def there(self) -> dict[str, Positions]:
        """Where both groups are."""
        with group_client(self.kafka) as client:
            return _positions(client, list(self.before))

    def run(self, arguments: Sequence[str], *, point: str | None = None) -> None:
        """Run a command to its end, or to a point at which it dies."""
        config = str(self.shell.folder / "kafka-backup.yaml")
        with Forked("--config", config, *arguments, point=point) as process:
            code = process.wait(240)
            assert code == (0 if point is None else -9), f"{arguments} ended with {code}: {process.output}"

    def rollback(self) -> list[str]:
        """The command for the way back; there is one reset only."""
        (plan,) = (self.shell.repository / "resets").glob("*/plan.json")
        return ["groups", "rollback", plan.parent.name, "--execute"]

    def check(self, expected: dict[str, Positions]) -> None:
        """Both groups are where they should be, and what is stored is sound."""
        assert self.there() == expected
        with open_engine(self.kafka, self.shell.repository) as engine:
            assert engine.verify(level="data").problems == ()


def _positions(client: GroupClient, groups: Sequence[str]) -> dict[str, Positions]:
    found = {}
    for group, offsets in client.fetch(list(groups)).items():
        assert not isinstance(offsets, Exception), offsets
        found[group] = {part: at.offset for part, at in offsets.items()}
    return found


def _points(command: str) -> list[str]:
    return [point for point in POINTS if point.startswith(f"{command}:")]


def _one_or_other(
    found: dict[str, Positions], one: dict[str, Positions], other: dict[str, Positions]
) -> bool:
    return all(
        found[group].get(part) in (one[group].get(part), other[group].get(part))
        for group in found
        for part in {*one[group], *other[group], *found[group]}
    )


def test_a_reset_killed_at_any_point_is_completed_and_taken_back(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests kill -9 around each object that a reset stores, and around its commit; then the same command, and the way back.

    It matters because a reset moves many groups, and its way back must know where they were.
    A second run could take half-moved positions for those before, and roll back to them.
    """
    topic = filled_topic(kafka, 2)

    def attempt(point: str) -> None:
        case = Case(kafka, topic, tmp_path / re.sub(r"\W+", "-", point))
        case.run(case.reset, point=point)
        assert _one_or_other(case.there(), case.before, case.goal)
        case.run(case.reset)
        case.check(case.goal)
        case.run(case.rollback())
        case.check(case.before)

    try_all(_points("reset"), attempt)


def test_a_rollback_killed_at_any_point_is_completed(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests kill -9 around each object that a rollback stores, its commit, and the deletion of a group that was not there.

    It matters because somebody rolls back when something is wrong already.
    A group could be left in between, and the next run refuse to touch it.
    """
    topic = filled_topic(kafka, 2)

    def attempt(point: str) -> None:
        case = Case(kafka, topic, tmp_path / re.sub(r"\W+", "-", point))
        case.run(case.reset)
        case.run(case.rollback(), point=point)
        assert _one_or_other(case.there(), case.before, case.goal)
        case.run(case.rollback())
        case.check(case.before)

    try_all(_points("rollback"), attempt)
