"""What makes a commit impossible at its place in a commit log.

Whoever appends to a log, opens one, or verifies one asks the same questions, here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from kafka_backup.repository.documents import Commit, PartitionRange


@dataclass(frozen=True, slots=True)
class CommitFlaw:
    """What is wrong with a commit: with its place in the ``chain``, or ``foreign``, of another log."""

    kind: Literal["chain", "foreign"]
    detail: str


def commit_flaws(
    commit: Commit,
    *,
    topic: str,
    topic_id: str,
    number: int,
    previous_sha256: str | None,
    ends: Mapping[int, int],
) -> Iterator[CommitFlaw]:
    """Yield every reason why a commit cannot be commit `number` of a log.

    Args:
        commit: as it was read.
        topic: of the place where it was found.
        topic_id: the same.
        number: the same.
        previous_sha256: of commit `number` - 1, None for commit 0.
        ends: where each partition ended before this commit; a missing one was never captured.
    """
    named = commit.incarnation
    if (named.topic, named.topic_id) != (topic, topic_id):
        yield CommitFlaw("foreign", f"it belongs to {named.topic} ({named.topic_id})")
    if commit.number != number:
        yield CommitFlaw("foreign", f"it says that it is commit {commit.number}")
    if commit.previous_sha256 != previous_sha256:
        yield CommitFlaw(
            "chain", f"it follows a commit with SHA-256 {commit.previous_sha256}, not {previous_sha256}"
        )
    seen: set[int] = set()
    for part in commit.partitions:
        name = f"partition {part.partition}"
        if part.partition in seen or part.partition >= named.partition_count:
            yield CommitFlaw("chain", f"{name} is named twice, or the topic has no such partition")
        seen.add(part.partition)
        end = ends.get(part.partition)
        if not _begins_in_place(part, end):
            before = "nothing comes before it" if end is None else f"the commits before it end at {end}"
            yield CommitFlaw("chain", f"{name} begins at offset {part.start}, but {before}")
        previous = -1
        for entry in part.segments:
            in_order = previous < entry.first_offset <= entry.last_offset
            if not in_order or not part.start <= entry.last_offset < part.end:
                yield CommitFlaw(
                    "chain",
                    f"{name}: the segment of offsets [{entry.first_offset}, {entry.last_offset + 1}) is out of "
                    f"place in the range [{part.start}, {part.end})",
                )
            previous = entry.last_offset


def _begins_in_place(part: PartitionRange, end: int | None) -> bool:
    """Whether a range begins where the last one ended, or says why it does not."""
    if part.truncated_to is not None:
        return end is not None and part.truncated_to == part.start < end
    skipped = part.not_captured
    if skipped is not None:
        return skipped.start < skipped.end == part.start and end in (None, skipped.start)
    return end in (None, part.start)
