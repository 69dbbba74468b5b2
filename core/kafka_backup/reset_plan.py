"""Plan a bulk reset of consumer groups: where each will be, and everything that forbids it.

Brokers store any number as a position. So the plan checks each against the log's bounds and the topic's
incarnation, and refuses, by name, what a consumer could not read on from.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from kafka_backup.errors import (
    AuthorizationError,
    ConfigurationError,
    KafkaBackupError,
    RefusedError,
    UnreachableError,
)
from kafka_backup.group_snapshot import doubts_of, missing_rights, unproved
from kafka_backup.kafka.cluster import EARLIEST, LATEST, Cluster, OffsetAnswer, Partition
from kafka_backup.kafka.groups import CommittedOffset, GroupClient, GroupOffsets, ListedGroup
from kafka_backup.kafka.metadata import ClusterMetadata
from kafka_backup.kafka.rights import may_write_transactions, topic_rights
from kafka_backup.offset_mapping import OffsetState, group_by_group_id, translate
from kafka_backup.renaming import renamed
from kafka_backup.repository.group_documents import (
    GroupProblem,
    PlannedGroup,
    PlannedPosition,
    ResetPlan,
    ResetRequest,
)
from kafka_backup.restore_findings import NOT_AUTHORIZED
from kafka_backup.saved_positions import Restored, SavedPositions
from kafka_backup.selection import FilterKind, GroupSelection, TopicSelection
from kafka_backup.times import parse_time

Destination = dict[str, Any]
TRANSACTIONAL_IDS = "kafka-backup-"
"""What the transactional ids of all resets begin with: a right is given on that prefix."""
NO_TRANSACTIONS = (
    f"the right WRITE on transactional ids that begin with {TRANSACTIONAL_IDS!r} is missing; without it positions "
    "cannot be moved in one transaction"
)
CANNOT_DELETE_ATOMICALLY = "cannot_delete_atomically"
"""The kind of the problem that a position is to be removed in one transaction, which none can do."""
_NOT_FOUND = -1
"""What ListOffsets answers for a time after the last record."""


@dataclass(slots=True)
class _Goal:
    """Where one position shall go, before the bounds are known."""

    offset: int | None
    metadata: str = ""
    source: Partition | None = None
    source_offset: int | None = None
    is_beyond: bool = False
    time: int | None = None
    place: Literal["earliest", "latest"] | None = None

    @property
    def removes(self) -> bool:
        """Whether there is to be no position."""
        return self.offset is None and self.time is None and self.place is None


def make_plan(request: ResetRequest, *, cluster: Cluster, saved: SavedPositions | None) -> ResetPlan:
    """Plan a reset; changes nothing.

    Args:
        request: what is asked for.
        cluster: where the groups are.
        saved: the positions of the request's snapshot or time; None for earliest, latest and the like.

    Raises:
        ConfigurationError: a named group or topic is in none of the places where it should be.
        UnreachableError: the cluster does not answer.
    """
    return _Planner(request, cluster=cluster, saved=saved).plan()


def parse_destination(text: str) -> Destination:
    """Read a place in the log: ``earliest``, ``latest``, an offset, or an RFC 3339 time.

    Returns:
        The fields of a `ResetRequest` that say so.

    Raises:
        ConfigurationError: it is none of these.
    """
    if text in ("earliest", "latest"):
        return {"to": text}
    if text.isascii() and text.isdecimal():
        if int(text) >= 2**63:
            raise ConfigurationError(f"the offset {text} does not fit 64 bits")
        return {"to": "offset", "to_offset": int(text)}
    try:
        return {"to": "time", "to_ms": parse_time(text)}
    except ConfigurationError as error:
        raise ConfigurationError(f"neither earliest, latest nor an offset, and {error}") from error


def digest_of(request: ResetRequest, cluster_id: str) -> str:
    """Return what the ids of resets with this request on this cluster end with."""
    text = json.dumps([request.model_dump(mode="json"), cluster_id], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def new_reset_id(request: ResetRequest, cluster_id: str) -> str:
    """Make an id that sorts by time and names the request, so that the same command finds it again."""
    now = time.time_ns() // 1_000_000
    moment = datetime.fromtimestamp(now / 1000, UTC)
    return f"{moment:%Y%m%dT%H%M%S}{now % 1000:03d}Z-{digest_of(request, cluster_id)}"


class _Planner:
    def __init__(self, request: ResetRequest, *, cluster: Cluster, saved: SavedPositions | None) -> None:
        self._request = request
        self._cluster = cluster
        self._saved = saved
        self._client = GroupClient(cluster)
        self._selection = GroupSelection.parse(request.groups)
        self._topics = TopicSelection.parse(request.topics or ("*",))
        self._metadata: ClusterMetadata = cluster.survey(None)
        self._listing = self._client.list_groups()
        doubts_of(self._listing)
        self._listed: Mapping[str, ListedGroup] = self._listing.groups
        self._current: Mapping[str, GroupOffsets | KafkaBackupError] = {}
        self._problems: list[GroupProblem] = []

    def plan(self) -> ResetPlan:
        if self._saved is None:
            names = self._names_on_the_cluster()
            goals = self._goals_by_rule(names)
        else:
            goals = self._goals_by_state(self._saved)
        self._refuse_groups(goals)
        planned = self._bounded(goals)
        cluster_id = self._metadata.cluster_id
        return ResetPlan(
            reset_id=new_reset_id(self._request, cluster_id),
            request=self._request,
            nonce=secrets.token_hex(16),
            planned_at=time.time_ns() // 1_000_000,
            cluster_id=cluster_id,
            groups=tuple(
                PlannedGroup(group=group, positions=tuple(positions))
                for group, positions in sorted(planned.items())
            ),
            problems=tuple(self._problems),
        )

    def _problem(
        self, kind: str, detail: str, group: str | None = None, part: Partition | None = None
    ) -> None:
        topic, partition = part if part is not None else (None, None)
        self._problems.append(
            GroupProblem(kind=kind, group=group, topic=topic, partition=partition, detail=detail)
        )

    def _read(self, groups: Sequence[str]) -> None:
        """Read where the groups are now; one that cannot be read cannot be put back either."""
        self._current = self._client.fetch(groups)
        for group, current in self._current.items():
            if isinstance(current, UnreachableError):
                raise current
            if isinstance(current, KafkaBackupError):
                kind = NOT_AUTHORIZED if isinstance(current, AuthorizationError) else "unreadable_group"
                self._problem(kind, str(current), group)

    # --- to earliest, latest, an offset or a time

    def _names_on_the_cluster(self) -> Sequence[str]:
        exact_topics = [f.text for f in self._topics.include if f.kind is FilterKind.EXACT]
        missing = self._selection.missing(self._listed)
        if missing and not exact_topics:
            raise ConfigurationError(
                f"group {missing[0]!r} does not exist on the cluster, or may not be described; to make it, name its "
                "topics exactly"
            )
        share = {name for name, group in self._listed.items() if group.type == "share"}
        names = [*self._without_share(self._selection.select(self._listed), share), *missing]
        if not names and not self._problems:
            raise ConfigurationError("no group of the cluster matches the selection; nothing to reset")
        return names

    def _without_share(self, names: Sequence[str], share: Iterable[str]) -> list[str]:
        """Leave out share groups, which have no positions; one that is named exactly is refused."""
        exact = {f.text for f in self._selection.include if f.kind is FilterKind.EXACT}
        for name in sorted(exact.intersection(share)):
            self._problem(
                "share_group", f"{name!r} is a share group: it has no committed offsets to reset", name
            )
        return [name for name in names if name not in share]

    def _goals_by_rule(self, names: Sequence[str]) -> dict[str, dict[Partition, _Goal]]:
        """All partitions of each topic that is named exactly, or on which the group has a position."""
        named = [f.text for f in self._topics.include if f.kind is FilterKind.EXACT]
        for topic in named:
            if topic not in self._metadata.topics:
                raise ConfigurationError(f"topic {topic!r} was named but does not exist on the cluster")
        self._read(names)
        request = self._request
        for reason in missing_rights(
            self._cluster, self._client, self._selection, self._topics, self._listing
        ):
            self._problem(NOT_AUTHORIZED, f"{reason}; grant it, or name groups and topics exactly")
        goals: dict[str, dict[Partition, _Goal]] = {}
        for group in names:
            current = self._current[group]
            topics = set(named)
            if isinstance(current, KafkaBackupError):
                continue
            for topic, _ in current:
                if self._topics.includes(topic, internal=topic.startswith("__")):
                    topics.add(topic)
            goals[group] = {}
            for topic in sorted(topics):
                found = self._metadata.topics.get(topic)
                if found is None:
                    self._problem(
                        "no_such_topic", f"topic {topic} does not exist any more", group, (topic, 0)
                    )
                    continue
                for partition in sorted(found.partitions):
                    goals[group][topic, partition] = _Goal(
                        request.to_offset,
                        time=request.to_ms,
                        place="earliest"
                        if request.to == "earliest"
                        else "latest"
                        if request.to == "latest"
                        else None,
                    )
        if not any(goals.values()) and not self._problems:
            raise ConfigurationError(
                "the groups have no positions on the topics that are selected; name the topics exactly"
            )
        return goals

    # --- to a snapshot or a time of the history, through a restore or not

    def _goals_by_state(self, saved: SavedPositions) -> dict[str, dict[Partition, _Goal]]:
        names = self._without_share(self._selection.select(saved.groups), saved.share)
        if missing := self._selection.missing(saved.groups):
            raise ConfigurationError(f"group {missing[0]!r} is not in {saved.where}")
        if not names and not self._problems:
            raise ConfigurationError(f"no group of {saved.where} matches the selection; nothing to reset")
        if any(f.kind is not FilterKind.EXACT for f in self._selection.include):
            for reason in saved.incomplete:
                self._problem(
                    "incomplete_snapshot",
                    f"{saved.where} may lack groups or positions ({reason}); name the groups exactly to go on with those",
                )
        for reason in unproved(self._listing):
            self._problem(NOT_AUTHORIZED, reason)
        self._check_named_topics(saved)
        new_names = self._renamed(names)
        self._read(list(new_names.values()))
        by_group = group_by_group_id(saved.states)
        goals: dict[str, dict[Partition, _Goal]] = {}
        for name in names:
            if name in saved.unreadable:
                self._problem(
                    "unreadable_group", f"{saved.where} does not hold it: {saved.unreadable[name]}", name
                )
                continue
            states = [
                state
                for state in by_group.get(name, ())
                if self._topics.includes(state.topic, internal=state.topic.startswith("__"))
            ]
            group = new_names[name]
            if saved.restored is None:
                goals[group] = self._goals_on_source(group, states)
                self._remove_later_ones(group, goals[group], self._visible(saved))
            else:
                goals[group] = self._goals_on_target(group, states, saved.restored)
                self._remove_later_ones(group, goals[group], self._visible(saved))
        return goals

    def _check_named_topics(self, saved: SavedPositions) -> None:
        known = saved.topics if saved.restored is None else saved.restored.sources
        where = saved.where if saved.restored is None else f"restore {saved.restored.restore_id}"
        for wanted in self._topics.include:
            if wanted.kind is FilterKind.EXACT and wanted.text not in known:
                raise ConfigurationError(f"topic {wanted.text!r} was named but is not in {where}")

    def _renamed(self, names: Sequence[str]) -> dict[str, str]:
        new_names: dict[str, str] = {}
        taken: dict[str, str] = {}
        for name in names:
            new = renamed(self._request.rename, name)
            if new in taken:
                self._problem(
                    "same_group", f"groups {taken[new]!r} and {name!r} would both become {new!r}", name
                )
                continue
            taken[new] = name
            new_names[name] = new
        return new_names

    def _goals_on_source(self, group: str, states: Iterable[OffsetState]) -> dict[Partition, _Goal]:
        goals: dict[Partition, _Goal] = {}
        for state in states:
            part = state.topic, state.partition
            found = self._metadata.topics.get(state.topic)
            if found is None:
                self._problem("no_such_topic", f"topic {state.topic} does not exist any more", group, part)
            elif state.topic_id != found.topic_id:
                self._problem("another_incarnation", _another(state, found.topic_id), group, part)
            else:
                goals[part] = _Goal(state.committed_offset, state.metadata)
        return goals

    def _goals_on_target(
        self, group: str, states: Iterable[OffsetState], restored: Restored
    ) -> dict[Partition, _Goal]:
        fitting = []
        for state in states:
            read = restored.sources.get(state.topic)
            if read is None:
                continue  # the restore was not asked for this topic
            if read != state.topic_id:
                self._problem(
                    "another_incarnation", _another(state, read), group, (state.topic, state.partition)
                )
                continue
            fitting.append(state)
        moves, _left = translate(fitting, restored.partitions)
        goals = {}
        for move in moves:
            part = move.target, move.state.partition
            topic_id = restored.targets[move.state.topic][1]
            found = self._metadata.topics.get(move.target)
            if found is None or found.topic_id != topic_id:
                self._problem(
                    "another_incarnation",
                    f"{move.target} is not the topic ({topic_id}) that restore {restored.restore_id} wrote any more",
                    group,
                    part,
                )
                continue
            goals[part] = _Goal(
                move.target_offset,
                move.state.metadata,
                source=(move.state.topic, move.state.partition),
                source_offset=move.state.committed_offset,
                is_beyond=move.is_beyond,
            )
        return goals

    def _visible(self, saved: SavedPositions) -> set[Partition]:
        """The partitions, as they are named on the cluster now, on which no saved position means none."""
        topics = {
            name for name in saved.topics if self._topics.includes(name, internal=name.startswith("__"))
        }
        if saved.restored is None:
            return {
                (name, partition)
                for name in topics
                if name in self._metadata.topics
                and self._metadata.topics[name].topic_id == saved.topics[name]
                for partition in self._metadata.topics[name].partitions
            }
        return {
            (restored.target, partition)
            for (name, partition), restored in saved.restored.partitions.items()
            if name in topics
            and saved.topics[name] == saved.restored.sources[name]
            and restored.target in self._metadata.topics
        }

    def _remove_later_ones(
        self, group: str, goals: dict[Partition, _Goal], visible: Iterable[Partition]
    ) -> None:
        """A position that is there now and was not then, goes.

        Left where it is, it would make the group skip what it had not read then.
        """
        current = self._current[group]
        if isinstance(current, KafkaBackupError):
            return
        for part in sorted(set(visible).intersection(current) - set(goals)):
            goals[part] = _Goal(None)
            if self._request.atomic:
                self._problem(
                    CANNOT_DELETE_ATOMICALLY,
                    f"group {group!r}, {part[0]} [{part[1]}]: it had no position then, so the one that it has now is "
                    "to be removed, which no transaction can do; leave out --atomic, or the topic",
                    group,
                    part,
                )

    # --- what forbids it

    def _refuse_groups(self, goals: Mapping[str, Mapping[Partition, _Goal]]) -> None:
        wanted = {group for group, positions in goals.items() if positions}
        self._refuse_rights(goals)
        active = [
            self._listed[g] for g in sorted(wanted) if g in self._listed and self._listed[g].has_members
        ]
        if active:
            members = self._client.members({each.group: each.type for each in active})
            for each in active:
                who = ", ".join(members.get(each.group, ()))
                self._problem(
                    "group_active",
                    f"group {each.group!r} is {each.state}"
                    + (f" with {who}" if who else "")
                    + "; stop its consumers",
                    each.group,
                )

    def _refuse_rights(self, goals: Mapping[str, Mapping[Partition, _Goal]]) -> None:
        """Name the rights that are missing to do this, before any of it is done."""
        groups = [group for group, positions in goals.items() if positions]
        for group, held in self._client.rights(groups).items():
            needed = {"DELETE" if goal.removes else "READ" for goal in goals[group].values()}
            if isinstance(held, KafkaBackupError):
                self._problem(NOT_AUTHORIZED, str(held), group)
                continue
            for right in sorted(needed - held):
                self._problem(NOT_AUTHORIZED, f"the right {right} on group {group!r} is missing", group)
        topics = sorted({topic for positions in goals.values() for topic, _ in positions})
        for topic, rights in sorted(topic_rights(self._cluster, topics).items()):
            if "READ" not in rights:
                self._problem(
                    NOT_AUTHORIZED, f"the right READ on topic {topic!r} is missing", part=(topic, 0)
                )
        if self._request.atomic and not may_write_transactions(self._cluster, TRANSACTIONAL_IDS):
            self._problem(NOT_AUTHORIZED, NO_TRANSACTIONS)

    def _bounded(self, goals: Mapping[str, Mapping[Partition, _Goal]]) -> dict[str, list[PlannedPosition]]:
        """Put bounds to every goal; what lies beyond them is refused, or clamped."""
        parts = sorted({part for positions in goals.values() for part in positions})
        existing = [part for part in parts if part[1] in self._metadata.topics[part[0]].partitions]
        starts, ends = self._ask(existing, EARLIEST), self._ask(existing, LATEST)
        timed = sorted(
            {p for positions in goals.values() for p, goal in positions.items() if goal.time is not None}
        )
        found = self._ask(timed, self._request.to_ms) if self._request.to_ms is not None else {}
        planned: dict[str, list[PlannedPosition]] = defaultdict(list)
        for group, positions in goals.items():
            current = self._current[group]
            for part, goal in sorted(positions.items()):
                if part not in starts:
                    self._problem(
                        "no_such_partition",
                        f"{part[0]} has {len(self._metadata.topics[part[0]].partitions)} partitions, not partition {part[1]}",
                        group,
                        part,
                    )
                    continue
                before = None if isinstance(current, KafkaBackupError) else current.get(part)
                bounds = starts[part], ends[part]
                wanted = _resolved(goal, bounds, found.get(part))
                position = self._position(group, part, goal, wanted, bounds, before)
                planned[group].append(position)
        return planned

    def _position(
        self,
        group: str,
        part: Partition,
        goal: _Goal,
        wanted: int | None,
        bounds: tuple[int, int],
        before: CommittedOffset | None,
    ) -> PlannedPosition:
        start, end = bounds
        offset = wanted
        if wanted is not None and not start <= wanted <= end:
            offset = min(max(wanted, start), end)
            if not self._request.clamp:
                self._problem(
                    "offset_out_of_range",
                    f"group {group!r}, {part[0]} [{part[1]}]: offset {wanted} is "
                    + (
                        f"beyond the high watermark {end}"
                        if wanted > end
                        else f"below the log start {start}: those records are gone"
                    )
                    + "; --clamp takes the nearest that exists"
                    + (" (an integer is an offset; write a time as RFC 3339)" if goal.source is None else ""),
                    group,
                    part,
                )
        clamped_from = wanted if offset != wanted else None
        if goal.is_beyond:
            clamped_from = goal.source_offset
        return PlannedPosition(
            topic=part[0],
            topic_id=self._metadata.topics[part[0]].topic_id,
            partition=part[1],
            offset=offset,
            metadata=goal.metadata,
            source_topic=None if goal.source is None else goal.source[0],
            source_offset=goal.source_offset,
            clamped_from=clamped_from,
            log_start=start,
            high_watermark=end,
            before=None if before is None else before.offset,
        )

    def _ask(self, parts: Sequence[Partition], position: int | None) -> dict[Partition, int]:
        assert position is not None
        answers = self._cluster.list_offsets(dict.fromkeys(parts, position), isolation="read_uncommitted")
        offsets = {}
        for part, answer in answers.items():
            if not isinstance(answer, OffsetAnswer):
                raise UnreachableError(
                    f"{part[0]} [{part[1]}]: the offsets could not be asked: {answer}"
                ) from answer
            offsets[part] = answer.offset
        return offsets


def _another(state: OffsetState, topic_id: str) -> str:
    return (
        f"{state.topic} [{state.partition}]: the position {state.committed_offset} is of "
        + (f"topic id {state.topic_id}" if state.topic_id else "a topic that was not visible then")
        + f", not of {topic_id}: the topic was deleted and created again, and means other records"
    )


def _resolved(goal: _Goal, bounds: tuple[int, int], at_time: int | None) -> int | None:
    start, end = bounds
    if goal.place is not None:
        return start if goal.place == "earliest" else end
    if goal.time is not None:
        return end if at_time is None or at_time == _NOT_FOUND else at_time
    return goal.offset


def error_of(plan: ResetPlan) -> KafkaBackupError | None:
    """Return the error that a plan's problems are, None if there are none."""
    if not plan.problems:
        return None
    message = f"the reset cannot be carried out: {'; '.join(problem.detail for problem in plan.problems)}"
    kinds = {problem.kind for problem in plan.problems}
    return AuthorizationError(message) if kinds == {NOT_AUTHORIZED} else RefusedError(message)
