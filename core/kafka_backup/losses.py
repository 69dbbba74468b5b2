"""What captures could not save, and what of it somebody accepted."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from kafka_backup.errors import ConfigurationError, DamagedError
from kafka_backup.repository.acceptances import (
    AcceptedCommit,
    AcceptedLosses,
    accepted_losses,
    put_acceptance,
)
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Offsets ``[start, end)`` of a partition that are lost, as one commit says.

    Attributes:
        capture: the capture that found out.
        commit: its commit in the topic's log, and that object's SHA-256.
        kind: ``lost``: no capture could save them. ``truncated``: earlier captures hold them, but an
            unclean leader election took them out of the topic.
        reason: of what is ``lost``; for ``truncated`` it is ``unclean election``.
        accepted: whether somebody accepted it.
    """

    capture: str
    topic: str
    topic_id: str
    commit: int
    commit_sha256: str
    partition: int
    kind: Literal["lost", "truncated"]
    start: int
    end: int
    reason: str
    accepted: bool


def accepted_commits(store: Store) -> set[AcceptedCommit]:
    """Return all commits whose losses are accepted.

    Raises:
        DamagedError: an acceptance is unreadable.
    """
    accepted: set[AcceptedCommit] = set()
    for _, document in accepted_losses(store):
        if isinstance(document, DamagedError):
            raise document
        accepted.update(document.commits)
    return accepted


def find_losses(repository: Repository, *, capture: str | None = None) -> Sequence[Loss]:
    """Return all losses that the commits tell of, by topic, incarnation and commit. Reads all commits.

    Args:
        repository: where.
        capture: only those that this capture found.

    Raises:
        DamagedError: a commit log or an acceptance is damaged.
    """
    accepted = accepted_commits(repository.store)
    losses: list[Loss] = []
    for topic, topic_id in repository.topics():
        log = repository.commit_log(topic, topic_id)
        losses += (loss for loss in _losses_of(log, accepted) if capture in (None, loss.capture))
    return losses


def _losses_of(log: CommitLog, accepted: set[AcceptedCommit]) -> Iterator[Loss]:
    ends: dict[int, int] = {}
    for commit in log.commits:
        for part in commit.partitions:
            spans = [("lost", span.start, span.end, str(span.reason)) for span in part.lost]
            if part.truncated_to is not None:
                end = ends.get(part.partition, part.truncated_to)
                spans.append(("truncated", part.truncated_to, end, "unclean election"))
            ends[part.partition] = part.end
            for kind, start, end, reason in spans:
                named = AcceptedCommit(
                    topic=log.topic,
                    topic_id=log.topic_id,
                    number=commit.number,
                    sha256=log.sha256_of(commit.number),
                )
                yield Loss(
                    capture=commit.capture_id,
                    topic=log.topic,
                    topic_id=log.topic_id,
                    commit=commit.number,
                    commit_sha256=named.sha256,
                    partition=part.partition,
                    kind="truncated" if kind == "truncated" else "lost",
                    start=start,
                    end=end,
                    reason=reason,
                    accepted=named in accepted,
                )


def accept_losses(repository: Repository, capture: str, *, reason: str) -> Sequence[Loss]:
    """Accept what a capture lost up to now; see `Engine.accept_losses`.

    Raises:
        ConfigurationError: there is no such capture, it lost nothing, or no reason is given.
    """
    if not reason.strip() or len(reason) > 1000:
        raise ConfigurationError("losses are accepted for a reason (--reason), of at most 1,000 characters")
    losses = find_losses(repository, capture=capture)
    if not losses:
        raise ConfigurationError(
            f"no commit of a capture {capture!r} tells of a loss in the repository at {repository.store.url}; "
            "see `losses list`"
        )
    fresh = {
        (loss.topic, loss.topic_id, loss.commit, loss.commit_sha256) for loss in losses if not loss.accepted
    }
    if fresh:
        folder = [document for _, document in accepted_losses(repository.store)]
        number = sum(isinstance(each, AcceptedLosses) and each.capture_id == capture for each in folder)
        put_acceptance(
            repository.store,
            AcceptedLosses(
                capture_id=capture,
                number=number,
                nonce=secrets.token_hex(16),
                accepted_at=time.time_ns() // 1_000_000,
                reason=reason,
                commits=tuple(
                    AcceptedCommit(topic=topic, topic_id=topic_id, number=commit, sha256=sha256)
                    for topic, topic_id, commit, sha256 in sorted(fresh)
                ),
            ),
        )
    return find_losses(repository, capture=capture)
