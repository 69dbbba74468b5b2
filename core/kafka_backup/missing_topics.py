"""Topics that were captured before and that the cluster does not show any more."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kafka_backup.errors import DamagedError, KafkaBackupError, TopicMissingError
from kafka_backup.repository.acceptances import AcceptedAbsence, put_acceptance
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.repository import Repository


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingTopic:
    """A topic that is gone, under the id that it had last; without an error somebody accepted that."""

    topic: str
    topic_id: str | None
    error: KafkaBackupError | None


def missing_topics(
    repository: Repository,
    names: Sequence[str],
    *,
    accepted: Mapping[tuple[str, str], set[int]],
    accept: bool,
    capture_id: str,
    nonce: str,
) -> Iterator[MissingTopic]:
    """Tell what is to be said of topics that only the repository knows.

    Args:
        repository: where they are.
        names: theirs; those of which nothing was ever committed are passed over.
        accepted: the commits as of which topics and their ids were accepted as gone before.
        accept: accept the others now, for ever.
        capture_id: of the capture that asks, for the acceptance.
        nonce: its own.
    """
    for name in names:
        try:
            live = [log for log in repository.commit_logs(name) if log.head is not None]
        except DamagedError as error:
            yield MissingTopic(topic=name, topic_id=None, error=error)
            continue
        if not live:
            continue
        log = live[-1]
        problem = None
        if not _is_accepted(log, accepted):
            if accept:
                put_acceptance(repository.store, _absence(log, capture_id=capture_id, nonce=nonce))
            else:
                problem = TopicMissingError(
                    f"topic {name} ({log.topic_id}) was captured before and the cluster does not show it any more. What "
                    "is captured stays. If it was deleted on purpose, run once with --accept-missing; else look for who "
                    "deleted it"
                )
        yield MissingTopic(topic=name, topic_id=log.topic_id, error=problem)


def _is_accepted(log: CommitLog, accepted: Mapping[tuple[str, str], set[int]]) -> bool:
    """Whether somebody accepted that a topic is gone, and no capture has seen it since."""
    heads = accepted.get((log.topic, log.topic_id))
    if not heads:
        return False
    return not any(commit.action == "capture" for commit in log.commits[max(heads) + 1 :])


def _absence(log: CommitLog, *, capture_id: str, nonce: str) -> AcceptedAbsence:
    assert log.head is not None
    return AcceptedAbsence(
        topic=log.topic,
        topic_id=log.topic_id,
        head=log.head,
        head_sha256=log.sha256_of(log.head),
        nonce=nonce,
        accepted_at=time.time_ns() // 1_000_000,
        capture_id=capture_id,
    )
