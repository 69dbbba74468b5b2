"""Let old captures go, and delete what nothing needs any more.

Four steps, in this order, and the order is the safety (`run`):

1. It is written down which captures go. The newest one never does.
2. In each commit log that they leave something behind, an *expire* commit says what is promised no
   more. A capture that runs meanwhile finds its place in the log taken and stops.
3. Only then is asked what restores need. A restore stores its plan and then reads the logs again: it
   sees the expire commit, or we see its plan.
4. A *sweep* commit names what will be deleted, and then it is deleted: what expired and no restore
   needs, and what interrupted captures left behind. No writer that began before the sweep can commit
   any of that any more, and writers that begin after it use other keys.

Whatever interrupts this, the next run completes it. Commits and captures are never deleted.
"""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Self, TypeVar

from kafka_backup.errors import ConfigurationError, RefusedError, WriterConflictError
from kafka_backup.progress import StopToken
from kafka_backup.repository import layout
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import Expiry
from kafka_backup.repository.expiry import committed, needed, pinned
from kafka_backup.repository.group_store import GroupStore
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import RestorePlan
from kafka_backup.repository.store import ObjectInfo
from kafka_backup.times import format_time, time_in_id

_T = TypeVar("_T")
_DAY_MS = 86_400_000
_NAMES_PER_COMMIT = 10_000
_TRIES = 10
"""A busy capture may take the next place in a log several times before we do."""
_DELETERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """Which captures to keep: those that either setting keeps. Without any setting, all of them.

    Attributes:
        keep_days: captures that began in the last so many days up to the newest one. Backups that stand still,
            or a clock that is ahead, age nothing.
        keep_captures: of each topic, the newest so many captures that hold it.

    Raises:
        ConfigurationError: a setting makes no sense.
    """

    keep_days: int | None = None
    keep_captures: int | None = None

    def __post_init__(self) -> None:
        if self.keep_days is not None and self.keep_days < 0:
            raise ConfigurationError(f"captures cannot be kept for {self.keep_days} days")
        if self.keep_captures is not None and self.keep_captures < 1:
            raise ConfigurationError("the newest capture always stays: keep at least 1 capture")

    def keeps(self, *, rank: int, age_ms: int) -> bool:
        """Whether a capture stays.

        Args:
            rank: how many newer captures hold the topic of which it is the newest, of all that it holds.
            age_ms: how much earlier than the newest one it began.
        """
        if rank == 0 or (self.keep_days is None and self.keep_captures is None):
            return True
        return (self.keep_captures is not None and rank < self.keep_captures) or (
            self.keep_days is not None and age_ms <= self.keep_days * _DAY_MS
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogExpiry:
    """What is to be done in the commit log of one incarnation, as far as it is known when planning.

    Attributes:
        kept_head: the oldest state that a capture names which is kept; None if none names any.
        is_last_copy: the newest incarnation of its topic, or the newest that holds records: its
            newest state stays, whichever captures go.
        expires: names of segments that are promised no more from now on.
        deletes: objects that can be deleted now.
        pinned: objects that expired and that restores still read.
        unfinished: objects of captures that may still be running.
    """

    topic: str
    topic_id: str
    kept_head: int | None
    is_last_copy: bool
    expires: Sequence[str]
    deletes: Sequence[ObjectInfo]
    pinned: Sequence[ObjectInfo]
    unfinished: Sequence[ObjectInfo]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpirePlan:
    """What an expiry would do; `Engine.expire` does it.

    Attributes:
        captures: those that are not kept any more, oldest first.
        kept_since: when the oldest capture that is kept began, ms; None while none was ever let go.
        group_snapshots: those that are promised no more, `deletes_groups` those that can be deleted now.
        leftovers: what the store keeps of writers that died.
        unfinished: whether to delete also what captures that may still be running have stored.
        logs: what is to be done where; logs without anything to do are left out.
        pins: the restores that are neither finished nor abandoned.
    """

    policy: RetentionPolicy
    planned_at: int
    captures: Sequence[str]
    kept_since: int | None
    group_snapshots: Sequence[str]
    deletes_groups: Sequence[ObjectInfo]
    leftovers: Sequence[ObjectInfo]
    unfinished: bool
    logs: Sequence[LogExpiry]
    pins: Sequence[str]

    @property
    def deletes(self) -> Sequence[ObjectInfo]:
        """Everything that can be deleted now."""
        return [
            *(info for log in self.logs for info in log.deletes),
            *self.deletes_groups,
            *self.leftovers,
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpireReport:
    """What an expiry did.

    Attributes:
        captures: those that are not kept any more.
        deleted: the objects that were deleted, `freed_bytes` their size.
        pinned: objects that expired and stay as long as restores need them.
    """

    captures: Sequence[str]
    deleted: int
    freed_bytes: int
    pinned: int


def plan(repository: Repository, policy: RetentionPolicy, *, unfinished: bool, stop: StopToken) -> ExpirePlan:
    """Say what an expiry would do; changes nothing. See `Engine.plan_expire`.

    Raises:
        RefusedError: a capture is from the future: a clock is wrong.
        DamagedError: the repository must be whole before anything is deleted from it.
    """
    now = _now()
    captures = _judge_captures(repository, policy, now)
    plans = repository.pins()
    finished = frozenset(repository.capture_ids())
    logs = []
    for topic in sorted({topic for topic, _ in repository.topics()}):
        stop.check()
        found = repository.commit_logs(topic)
        last_copies = _last_copies(found)
        for log in found:
            if log.head is None:
                continue
            place = (log.topic, log.topic_id)
            expires = _Expiring.of(
                log,
                kept_head=captures.heads.get(place),
                is_last_copy=place in last_copies,
                kept_since=captures.kept_since,
            ).names
            sweep = _Sweep.of(
                log, repository, plans=plans, finished=finished, unfinished=unfinished, expiring=expires
            )
            if expires or sweep.deletes or sweep.pinned or sweep.unfinished:
                logs.append(
                    LogExpiry(
                        topic=log.topic,
                        topic_id=log.topic_id,
                        kept_head=captures.heads.get(place),
                        is_last_copy=place in last_copies,
                        expires=expires,
                        deletes=sweep.deletes,
                        pinned=sweep.pinned,
                        unfinished=sweep.unfinished,
                    )
                )
    expired_groups = _expiring_groups(repository, captures)
    return ExpirePlan(
        policy=policy,
        planned_at=now,
        captures=captures.expired,
        kept_since=captures.kept_since,
        group_snapshots=expired_groups,
        deletes_groups=() if plans else _stored_groups(repository, {*captures.gone_groups, *expired_groups}),
        leftovers=repository.store.leftovers(remove=False),
        unfinished=unfinished,
        logs=logs,
        pins=[plan.request.restore_id for plan in plans],
    )


def run(plan: ExpirePlan, *, repository: Repository, stop: StopToken) -> ExpireReport:
    """Carry out a plan; see `Engine.expire`. What changed since it was made is looked at again."""
    run = _Run(plan, repository=repository, stop=stop)
    run.write_down()
    for log in plan.logs:
        stop.check()
        run.expire(log)
    plans = repository.pins()
    for log in plan.logs:
        stop.check()
        run.sweep(log, plans)
    if not plans:
        run.delete_groups()
    run.clean_up()
    return ExpireReport(
        captures=plan.captures, deleted=run.deleted, freed_bytes=run.freed_bytes, pinned=run.pinned
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Captures:
    """Which captures stay.

    Attributes:
        expired: those that go now, oldest first.
        heads: for each incarnation the oldest state that a capture names which stays.
        kept_since: when the oldest of them began; None if no capture ever went or goes now.
        groups: group snapshots of captures that stay, `gone_groups` those that expired before.
    """

    expired: Sequence[str]
    heads: Mapping[tuple[str, str], int]
    kept_since: int | None
    groups: Collection[str]
    gone_groups: Collection[str]


def _judge_captures(repository: Repository, policy: RetentionPolicy, now: int) -> _Captures:
    expiries = repository.expiries()
    gone = {capture_id for expiry in expiries for capture_id in expiry.captures}
    expired: list[str] = []
    heads: dict[tuple[str, str], int] = {}
    groups = set()
    oldest = now
    newest = None
    newer: dict[str, int] = defaultdict(int)
    ids = repository.capture_ids()
    standing = [capture_id for capture_id in ids if capture_id not in gone]
    for place_in_time, capture_id in enumerate(reversed(standing)):
        capture = repository.read_capture(capture_id)
        if capture.started_at > now + _DAY_MS:
            raise RefusedError(
                f"capture {capture_id} began at {format_time(capture.started_at)}, which has not come yet: the clock "
                "of the machine that made it was wrong, or that of this one is. Which captures are old cannot be "
                "told; nothing was changed"
            )
        if newest is None:
            newest = min(now, capture.started_at)
        rank = min((newer[entry.topic] for entry in capture.topics), default=place_in_time)
        for entry in capture.topics:
            newer[entry.topic] += 1
        if not policy.keeps(rank=rank, age_ms=newest - capture.started_at):
            expired.append(capture_id)
            continue
        oldest = min(oldest, capture.started_at)
        for entry in capture.topics:
            place = (entry.topic, entry.topic_id)
            heads[place] = min(heads.get(place, entry.head), entry.head)
        if capture.groups is not None:
            groups.add(capture.groups.snapshot_id)
    return _Captures(
        expired=expired[::-1],
        heads=heads,
        kept_since=oldest if gone or expired else None,
        groups=groups,
        gone_groups={snapshot_id for expiry in expiries for snapshot_id in expiry.group_snapshots},
    )


def _last_copies(logs: Sequence[CommitLog]) -> Collection[tuple[str, str]]:
    """Of the incarnations of a topic, oldest first, those whose newest state always stays.

    The newest is not enough: somebody may have deleted a topic, and a client created it again, empty.
    """
    with_commits = [log for log in logs if log.head is not None]
    chosen = with_commits[-1:]
    if len(with_commits) > 1:
        chosen += [log for log in with_commits if _holds_records(log)][-1:]
    return {(log.topic, log.topic_id) for log in chosen}


def _holds_records(log: CommitLog) -> bool:
    return any(log.records(partition) > 0 for partition in log.partitions)


def _first_kept(log: CommitLog, *, kept_head: int | None, is_last_copy: bool, kept_since: int) -> int | None:
    """The oldest state that must stay whole, and all after it with it; None if there is none.

    Commits that no capture names count by their own time: their capture may not have ended yet.
    """
    recent = (
        commit.number
        for commit in log.commits
        if commit.action == "capture" and commit.committed_at >= kept_since
    )
    candidates = [kept_head, next(recent, None), log.head if is_last_copy else None]
    return min((number for number in candidates if number is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expiring:
    """Names of the segments of a log that are promised no more, and the oldest state that stays whole."""

    names: Sequence[str]
    first_kept: int | None

    @classmethod
    def of(cls, log: CommitLog, *, kept_head: int | None, is_last_copy: bool, kept_since: int | None) -> Self:
        """Find them, without those that expired before; nothing while no capture was ever let go."""
        if kept_since is None:
            return cls(names=(), first_kept=0)
        first_kept = _first_kept(log, kept_head=kept_head, is_last_copy=is_last_copy, kept_since=kept_since)
        kept = needed(log, since=first_kept) if first_kept is not None else frozenset()
        return cls(names=_names(log, committed(log) - kept - log.expired), first_kept=first_kept)


def _names(log: CommitLog, keys: Collection[str]) -> Sequence[str]:
    folder = layout.incarnation_folder(log.topic, log.topic_id)
    return sorted(key.removeprefix(folder) for key in keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sweep:
    """What can be deleted in one log.

    Attributes:
        names: to be named by a sweep commit first.
        deletes: the objects that exist of these, and of what earlier sweeps named.
        pinned: objects that expired and that restores read.
        unfinished: objects of captures that may still be running.
    """

    names: Sequence[str]
    deletes: Sequence[ObjectInfo]
    pinned: Sequence[ObjectInfo]
    unfinished: Sequence[ObjectInfo]

    @classmethod
    def of(
        cls,
        log: CommitLog,
        repository: Repository,
        *,
        plans: Sequence[RestorePlan],
        finished: Collection[str],
        unfinished: bool,
        expiring: Collection[str] = (),
    ) -> Self:
        """Look what is there.

        The log must have been opened before: what it does not name when the sweep commit takes the
        place after its head, and was there before that, nobody can commit any more.

        Args:
            log: whose objects.
            repository: where they are.
            plans: of the restores that still read.
            finished: ids of the captures that have ended.
            unfinished: whether to delete also what may belong to a capture that runs.
            expiring: names of segments that are about to expire.
        """
        folder = layout.incarnation_folder(log.topic, log.topic_id)
        expired = log.expired | {folder + name for name in expiring}
        known, swept = committed(log), log.swept
        pins = pinned(log, plans)
        sweepable = expired - swept - pins
        orphans, deletes, kept, running = set(), [], [], []
        for info in repository.store.list(folder):
            place = layout.parse_segment_key(info.key, topic=log.topic, topic_id=log.topic_id)
            if place is None:
                continue
            if info.key in swept or info.key in sweepable:
                deletes.append(info)
            elif info.key in expired:
                kept.append(info)
            elif info.key not in known:
                # Its capture has ended, or the log has moved on past it: it will never be committed.
                end = log.end_of(place.partition)
                is_dead = place.capture_id in finished or (end is not None and place.first_offset < end)
                if is_dead or unfinished:
                    orphans.add(info.key)
                    deletes.append(info)
                else:
                    running.append(info)
        return cls(names=_names(log, sweepable | orphans), deletes=deletes, pinned=kept, unfinished=running)


def _expiring_groups(repository: Repository, captures: _Captures) -> Sequence[str]:
    """Group snapshots from before the oldest capture that is kept; the newest one always stays."""
    if captures.kept_since is None:
        return ()
    until = time_in_id(captures.kept_since)
    return [
        snapshot_id
        for snapshot_id in GroupStore(repository.store).snapshot_ids()[:-1]
        if snapshot_id < until and snapshot_id not in captures.groups
    ]


def _stored_groups(repository: Repository, ids: Collection[str]) -> Sequence[ObjectInfo]:
    return [
        info
        for info in repository.store.list(layout.GROUPS)
        if layout.parse_group_snapshot_key(info.key) in ids
    ]


class _Run:
    """One run of a planned expiry."""

    def __init__(self, plan: ExpirePlan, *, repository: Repository, stop: StopToken) -> None:
        self.id = f"{time_in_id(_now())}-{secrets.token_hex(4)}"
        self.deleted = 0
        self.freed_bytes = 0
        self.pinned = 0
        self._plan = plan
        self._repository = repository
        self._stop = stop
        self._nonce = secrets.token_hex(16)

    def write_down(self) -> None:
        """Say which captures and group snapshots are promised no more."""
        plan = self._plan
        if plan.captures or plan.group_snapshots:
            self._repository.put_expiry(
                Expiry(
                    expiry_id=self.id,
                    nonce=self._nonce,
                    decided_at=_now(),
                    keep_days=plan.policy.keep_days,
                    keep_captures=plan.policy.keep_captures,
                    captures=tuple(plan.captures),
                    group_snapshots=tuple(plan.group_snapshots),
                )
            )

    def expire(self, planned: LogExpiry) -> None:
        """Write the expire commits of one log."""

        def once() -> None:
            log = self._repository.commit_log(planned.topic, planned.topic_id)
            expiring = _Expiring.of(
                log,
                kept_head=planned.kept_head,
                is_last_copy=planned.is_last_copy,
                kept_since=self._plan.kept_since,
            )
            for names in _chunks(expiring.names):
                log.append_expiry(
                    nonce=self._nonce,
                    expiry_id=self.id,
                    committed_at=_now(),
                    names=names,
                    kept_from=expiring.first_kept,
                )

        self._until_ours(once)

    def sweep(self, planned: LogExpiry, plans: Sequence[RestorePlan]) -> None:
        """Write the sweep commits of one log, and delete what they name."""

        def once() -> _Sweep:
            finished = frozenset(self._repository.capture_ids())
            log = self._repository.commit_log(planned.topic, planned.topic_id)
            sweep = _Sweep.of(
                log, self._repository, plans=plans, finished=finished, unfinished=self._plan.unfinished
            )
            for names in _chunks(sweep.names):
                log.append_sweep(nonce=self._nonce, expiry_id=self.id, committed_at=_now(), names=names)
            return sweep

        done = self._until_ours(once)
        self.pinned += len(done.pinned)
        self._delete(done.deletes)

    def delete_groups(self) -> None:
        """Delete all group snapshots that are promised no more."""
        gone = {
            snapshot_id for expiry in self._repository.expiries() for snapshot_id in expiry.group_snapshots
        }
        self._delete(_stored_groups(self._repository, gone))

    def clean_up(self) -> None:
        """Remove what writers that died left behind in the store."""
        for info in self._repository.store.leftovers(remove=True):
            self.deleted += 1
            self.freed_bytes += info.size

    def _until_ours(self, work: Callable[[], _T]) -> _T:
        for _ in range(_TRIES - 1):
            self._stop.check()
            try:
                return work()
            except WriterConflictError:
                # A capture committed meanwhile, or another expiry: look again at what there is now.
                continue
        return work()

    def _delete(self, objects: Sequence[ObjectInfo]) -> None:
        def delete(info: ObjectInfo) -> int:
            self._stop.check()
            self._repository.store.delete(info.key)
            return info.size

        with ThreadPoolExecutor(max_workers=_DELETERS, thread_name_prefix="delete") as pool:
            for size in pool.map(delete, objects):
                self.deleted += 1
                self.freed_bytes += size


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    rest = iter(names)
    while chunk := list(islice(rest, _NAMES_PER_COMMIT)):
        yield chunk


def _now() -> int:
    return time.time_ns() // 1_000_000
