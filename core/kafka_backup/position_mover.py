"""Move committed offsets from where they are expected to where they shall be, and see that they are there.

Nothing is believed that was not read back. Each round reads the positions of all groups that are not
done, sorts them by where they are, and commits only where a position is still at its start; so a
retry can never overwrite what a consumer has committed meanwhile, and a second run changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kafka_backup.errors import (
    BrokerError,
    ConfigurationError,
    DamagedError,
    KafkaBackupError,
    RefusedError,
    UnreachableError,
    WriterConflictError,
)
from kafka_backup.kafka.cluster import Partition
from kafka_backup.kafka.group_transaction import FencedError, GroupTransaction
from kafka_backup.kafka.groups import (
    CommittedOffset,
    GroupClient,
    GroupListing,
    GroupOffsets,
    ListedGroup,
)
from kafka_backup.progress import Deadline, StopToken

_HAS_MEMBERS = frozenset({"UNKNOWN_MEMBER_ID", "GROUP_SUBSCRIBED_TO_TOPIC", "NON_EMPTY_GROUP"})
"""What brokers answer to those who are not in a group that has members."""
_TRANSACTION_SECONDS = 120.0
Key = tuple[str, Partition]
Place = Literal["start", "goal", "elsewhere"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionMove:
    """One position to move; a place of None is "no commit".

    Attributes:
        start: where it is expected to be.
        goal: where it shall be.
    """

    group: str
    topic: str
    partition: int
    start: CommittedOffset | None
    goal: CommittedOffset | None

    @property
    def key(self) -> Key:
        """Which position this is about."""
        return self.group, (self.topic, self.partition)

    @property
    def changes_nothing(self) -> bool:
        """Whether it is there already."""
        return is_same(self.start, self.goal)

    def place_of(self, current: CommittedOffset | None) -> Place:
        """Say where a position is on this way."""
        if is_same(current, self.goal):
            return "goal"
        return "start" if is_same(current, self.start) else "elsewhere"


@dataclass(slots=True, kw_only=True)
class MoveResult:
    """What became of a move.

    Attributes:
        current: where the position was when it was read last.
        error: why it is not at its goal.
        was_touched: a broker may have changed it on our behalf at some time.
    """

    move: PositionMove
    current: CommittedOffset | None
    error: KafkaBackupError | None = None
    was_touched: bool = False


def is_same(one: CommittedOffset | None, other: CommittedOffset | None) -> bool:
    """Whether two positions mean the same to a consumer: offset and metadata, but not the epoch.

    Epochs are not compared because we commit none: a foreign one makes consumers reset.
    """
    if one is None or other is None:
        return one is other
    return (one.offset, one.metadata) == (other.offset, other.metadata)


def describe(position: CommittedOffset | None) -> str:
    """Say a position in a message."""
    return "no commit" if position is None else str(position.offset)


def active_groups(client: GroupClient, groups: Iterable[str]) -> Sequence[ListedGroup]:
    """Return those of the groups that have members now, whose positions nobody else can move."""
    return active_in(client.list_groups(), groups)


def active_in(listing: GroupListing, groups: Iterable[str]) -> Sequence[ListedGroup]:
    """Return those of the groups that have members in a listing."""
    listed = listing.groups
    return [listed[name] for name in sorted(set(groups)) if name in listed and listed[name].has_members]


def active_error(client: GroupClient, active: Sequence[ListedGroup]) -> RefusedError:
    """Make the error that names active groups and who is in them."""
    members = client.members({group.group: group.type for group in active[:10]})
    named = "; ".join(
        f"group {group.group!r} is {group.state}"
        + (f" with {', '.join(members[group.group])}" if members.get(group.group) else "")
        for group in active[:10]
    )
    more = f" and {len(active) - 10} more groups" if len(active) > 10 else ""
    return RefusedError(f"{named}{more}: stop the consumers, then run again")


class PositionMover:
    """Moves positions group by group, each group at once, many groups at the same time."""

    def __init__(
        self, client: GroupClient, moves: Sequence[PositionMove], *, force: bool, stop: StopToken
    ) -> None:
        """Prepare; nothing is contacted yet.

        Args:
            client: the group coordinators.
            moves: at most one for each position.
            force: also move a position that is neither at its start nor at its goal.
            stop: ends it between two rounds with CancelledError.
        """
        self._client = client
        self._moves: dict[str, dict[Partition, PositionMove]] = defaultdict(dict)
        for move in moves:
            self._moves[move.group][move.topic, move.partition] = move
        self._force = force
        self._stop = stop
        self._results: dict[Key, MoveResult] = {
            move.key: MoveResult(move=move, current=move.start) for move in moves
        }

    def run(self) -> Sequence[MoveResult]:
        """Move everything that can be moved; returns what became of each, in the order given.

        An UnreachableError in a result means that it is unknown whether the position was changed.
        """
        waiting = list(self._moves)
        deadline = Deadline(self._client.cluster.retry_seconds)
        attempt = 0
        last: dict[str, KafkaBackupError] = {}
        while waiting:
            self._stop.check()
            to_do = self.look(waiting)
            waiting = [group for group in waiting if group in to_do]
            if waiting and attempt and deadline.passed:
                for group in waiting:
                    self.fail(group, _unreachable(group, last.get(group), deadline.seconds))
                break
            before = len(waiting)
            last = self._tell({group: to_do[group] for group in waiting})
            waiting = [group for group in waiting if not self._has_failed(group)]
            if any(group in last for group in waiting):
                self._client.cluster.pause(attempt)
            if len(waiting) < before:
                deadline = Deadline(deadline.seconds)
            attempt += 1
        self._look_at_the_failed()
        return self.results

    def _look_at_the_failed(self) -> None:
        """Of a group that failed, each position is where it is, or has an error of its own."""
        known: dict[str, KafkaBackupError] = {}
        for result in self._results.values():
            if result.error is not None:
                known.setdefault(result.move.group, result.error)
        failed = [group for group, error in known.items() if not isinstance(error, UnreachableError)]
        for group, current in self._read(failed).items():
            for partition, move in self._moves[group].items():
                result = self._results[group, partition]
                result.current = current.get(partition)
                if result.error is None and move.place_of(result.current) != "goal":
                    result.error = RefusedError(
                        f"group {group!r}, {move.topic} [{move.partition}]: it was left at {describe(result.current)}, "
                        f"because another position of the group failed: {known[group]}"
                    )

    def compare(self) -> None:
        """Read everything again: what was at its goal must still be there."""
        groups = [group for group in self._moves if not self._has_failed(group)]
        for group, current in self._read(groups).items():
            for partition, move in self._moves[group].items():
                found = current.get(partition)
                self._results[group, partition].current = found
                if move.place_of(found) == "goal":
                    continue
                where = f"group {group!r}, {move.topic} [{move.partition}]"
                if found is None or move.place_of(found) == "start":
                    error: KafkaBackupError = DamagedError(
                        f"{where}: the position was set to {describe(move.goal)} and is {describe(found)} again; was "
                        "the topic just deleted and created again? Run the same command again"
                    )
                else:
                    error = RefusedError(
                        f"{where}: the position was set to {describe(move.goal)}, and somebody has moved it to "
                        f"{describe(found)} since"
                    )
                self._results[group, partition].error = error

    @property
    def results(self) -> Sequence[MoveResult]:
        """What is known of each move."""
        return list(self._results.values())

    def _has_failed(self, group: str) -> bool:
        return any(self._results[group, partition].error is not None for partition in self._moves[group])

    def touch(self, group: str, partition: Partition) -> None:
        """Note that a broker may have changed this position on our behalf."""
        self._results[group, partition].was_touched = True

    def fail(self, group: str, error: KafkaBackupError) -> None:
        """Note an error of a whole group."""
        for partition in self._moves[group]:
            self._results[group, partition].error = error

    def _read(self, groups: Sequence[str], *, stable: bool = True) -> Mapping[str, GroupOffsets]:
        """Read the positions of groups; those that cannot be read fail."""
        found = {}
        answers = self._client.fetch({group: list(self._moves[group]) for group in groups}, stable=stable)
        for group, answer in answers.items():
            if isinstance(answer, KafkaBackupError):
                self.fail(group, answer)
            else:
                found[group] = answer
        return found

    def look(
        self, groups: Sequence[str], *, stable: bool = True
    ) -> Mapping[str, Mapping[Partition, CommittedOffset | None]]:
        """See where the positions are; returns what is to be changed of each group that is not done.

        Args:
            groups: which of them to look at.
            stable: wait for transactional commits under way; otherwise what they will change is not seen.
        """
        to_do: dict[str, dict[Partition, CommittedOffset | None]] = {}
        for group, current in self._read(groups, stable=stable).items():
            for partition, move in list(self._moves[group].items()):
                found = current.get(partition)
                result = self._results[group, partition]
                result.current = found
                place = move.place_of(found)
                if place == "elsewhere" and self._force and not result.was_touched:
                    place = "start"
                    self._moves[group][partition] = _from(move, found)
                if place == "elsewhere":
                    result.error = RefusedError(
                        f"group {group!r}, {move.topic} [{move.partition}]: the position is {describe(found)}, neither "
                        f"{describe(move.start)} as before nor {describe(move.goal)} as planned; a consumer has moved on"
                    )
                elif place == "start":
                    to_do.setdefault(group, {})[partition] = move.goal
            if self._has_failed(group):
                to_do.pop(group, None)
        return to_do

    def _tell(
        self, to_do: Mapping[str, Mapping[Partition, CommittedOffset | None]]
    ) -> dict[str, KafkaBackupError]:
        """Commit and delete; returns a retriable error of each group that had one."""
        commits = {
            group: {p: goal for p, goal in goals.items() if goal is not None}
            for group, goals in to_do.items()
        }
        deletions = {
            group: [p for p, goal in goals.items() if goal is None] for group, goals in to_do.items()
        }
        problems = defaultdict(dict, self._client.commit({g: o for g, o in commits.items() if o}))
        # Not for a group whose commit failed: whatever is half done now is looked at in the next round.
        deleted = self._client.delete_offsets(
            {group: parts for group, parts in deletions.items() if parts and not problems.get(group)}
        )
        last = {}
        for group in to_do:
            errors = {**problems.get(group, {}), **deleted.get(group, {})}
            for partition in to_do[group]:
                error = errors.get(partition)
                if error is None or error.retriable:
                    self.touch(group, partition)
            final = [error for error in errors.values() if not error.retriable]
            if final:
                for partition, error in errors.items():
                    if not error.retriable:
                        self._results[group, partition].error = _explained(group, error)
            elif errors:
                last[group] = next(iter(errors.values()))
        return last


def _from(move: PositionMove, start: CommittedOffset | None) -> PositionMove:
    return PositionMove(
        group=move.group, topic=move.topic, partition=move.partition, start=start, goal=move.goal
    )


def _explained(group: str, error: KafkaBackupError) -> KafkaBackupError:
    """Say what a broker's final refusal means for a position."""
    if isinstance(error, BrokerError):
        if error.name in _HAS_MEMBERS:
            return RefusedError(f"{error}: group {group!r} has members; stop its consumers, then run again")
        return ConfigurationError(f"{error}; nothing was changed there")
    return error


def _unreachable(group: str, last: KafkaBackupError | None, seconds: float) -> UnreachableError:
    return UnreachableError(
        f"group {group!r}: not at its new positions within {seconds:g} s ({last or 'it does not stay there'}); run "
        "the same command again"
    )


def move_at_once(
    client: GroupClient, moves: Sequence[PositionMove], *, transactional_id: str, stop: StopToken
) -> Sequence[MoveResult]:
    """Move all positions in one transaction, or none.

    To begin the transaction ends one that an interrupted run left open, so what is read after that is
    how that one ended. The groups must be without members before, and again before the end: brokers do not
    check that in a transaction.

    Raises:
        RefusedError: a group has members, or a position is elsewhere; nothing was changed.
        UnreachableError: it is unknown whether the transaction was committed; run it again.
        KafkaBackupError: a broker refused something; nothing was changed.
    """
    try:
        transaction = GroupTransaction(client, transactional_id, timeout_seconds=_TRANSACTION_SECONDS)
        mover = PositionMover(client, moves, force=False, stop=stop)
        groups = sorted({move.group for move in moves})
        to_do = mover.look(groups)
        _refuse_errors(mover.results)
        if to_do:
            _commit_at_once(client, transaction, mover, to_do)
    except FencedError as error:
        raise WriterConflictError(
            f"{error}; nothing was changed by this run. Make sure that only one run works on these groups, then "
            "run again"
        ) from error
    return mover.results


def _commit_at_once(
    client: GroupClient,
    transaction: GroupTransaction,
    mover: PositionMover,
    to_do: Mapping[str, Mapping[Partition, CommittedOffset | None]],
) -> None:
    groups = list(to_do)
    try:
        _refuse_members(client, groups)
        transaction.add(
            {
                group: {partition: goal for partition, goal in goals.items() if goal is not None}
                for group, goals in to_do.items()
            }
        )
        _refuse_members(client, groups)
        # Who came, committed and left in between is seen by what it left; ours is not visible yet.
        mover.look(groups, stable=False)
        _refuse_errors(mover.results)
    except FencedError:
        raise
    except BaseException as error:
        try:
            transaction.abort()
        except KafkaBackupError as failed:
            raise UnreachableError(
                f"{error}; the transaction could not be aborted either ({failed}): the brokers do that within "
                f"{_TRANSACTION_SECONDS:g} s, and then nothing is changed"
            ) from error
        raise
    for group, goals in to_do.items():
        for partition in goals:
            mover.touch(group, partition)
    transaction.commit()
    if mover.look(groups):
        raise DamagedError(
            "the transaction was committed and the old positions are still there; was a topic just deleted and "
            "created again? Run the same command again"
        )
    for active in active_groups(client, groups):
        mover.fail(
            active.group,
            RefusedError(
                f"group {active.group!r} became {active.state} while its positions were set, so its consumers may "
                "have begun at the old ones: restart them"
            ),
        )


def _refuse_members(client: GroupClient, groups: Sequence[str]) -> None:
    if active := active_groups(client, groups):
        raise active_error(client, active)


def _refuse_errors(results: Sequence[MoveResult]) -> None:
    for result in results:
        if result.error is not None:
            raise result.error
