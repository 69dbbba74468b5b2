"""What expiry has decided, and the questions that it, and those who check it, ask of a commit log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kafka_backup.errors import DamagedError
from kafka_backup.repository import layout
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import Expiry
from kafka_backup.repository.restore_documents import RestorePlan
from kafka_backup.repository.store import Store, read_in_place


def committed(log: CommitLog) -> frozenset[str]:
    """Return the keys of all segments that commits of the log name."""
    return frozenset(
        log.segment_key(commit, part.partition, entry)
        for commit in log.commits
        for part in commit.partitions
        for entry in part.segments
    )


def needed(log: CommitLog, *, since: int) -> frozenset[str]:
    """Return the keys of all segments that any state from commit `since` on needs.

    The state as of a commit needs what the broker had when it was captured: everything live that
    reaches above its log start. A later truncation takes nothing away from an earlier state.
    """
    keys = set()
    for partition in log.partitions:
        before = log.segments(partition, until_commit=since, start=0)
        ranges = log.ranges_with_commits(partition)
        known = [part for commit, part in ranges if commit.number <= since]
        later = [(commit, part) for commit, part in ranges if commit.number > since]
        log_start = min(part.log_start_offset for part in [*known[-1:], *(part for _, part in later)])
        after = [log.stored_segment(commit, part, entry) for commit, part in later for entry in part.segments]
        keys |= {segment.key for segment in [*before, *after] if segment.end > log_start}
    return frozenset(keys)


def pinned(log: CommitLog, plans: Iterable[RestorePlan]) -> frozenset[str]:
    """Return the keys of all segments of the log that some restore plans read."""
    return frozenset(
        segment.key
        for plan in plans
        for topic in plan.topics
        if (topic.source, topic.source_topic_id) == (log.topic, log.topic_id)
        for part in topic.partitions
        for segment in log.segments(part.partition, until_commit=topic.head, start=part.source_start)
    )


def find_expiries(store: Store) -> Iterator[tuple[str, Expiry | DamagedError]]:
    """Yield key and document of what each run of expiry decided, oldest first, or what is wrong with the object."""
    for info in store.list(layout.EXPIRIES):
        if layout.parse_expiry_key(info.key) is not None:
            try:
                expiry = read_in_place(
                    store, info.key, Expiry, lambda found: layout.expiry_key(found.expiry_id)
                )
            except DamagedError as error:
                yield info.key, error
                continue
            assert expiry is not None  # they are never deleted
            yield info.key, expiry


def read_expiries(store: Store) -> Sequence[Expiry]:
    """Return what each run of expiry decided, oldest first; never from memory.

    Raises:
        DamagedError: one is unreadable, or stands in another's place.
    """
    found = []
    for _, expiry in find_expiries(store):
        if isinstance(expiry, DamagedError):
            raise expiry
        found.append(expiry)
    return found


def expired_group_snapshots(store: Store) -> frozenset[str]:
    """Return the ids of the group snapshots that are promised no more, stored still or not."""
    return frozenset(name for expiry in read_expiries(store) for name in expiry.group_snapshots)
