"""What was accepted as lost, and that it covers nothing else."""

from __future__ import annotations

import pytest

from kafka_backup.errors import ConfigurationError, DamagedError
from kafka_backup.losses import accept_losses, find_losses
from kafka_backup.repository.acceptances import AcceptedAbsence, accepted_heads, put_acceptance
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import LostSpan
from kafka_backup.repository.repository import Repository
from kafka_backup.topic_capture import TopicState
from kafka_backup.verify import verify
from tests.unit.repositories import (
    CLUSTER,
    TOPIC,
    TOPIC_ID,
    append,
    incarnation,
    memory_store,
    part,
    replace_object,
)


def lossy_repository() -> tuple[Repository, CommitLog]:
    """Capture "a" lost [0, 5) and was cut back from 20 to 12; capture "b" lost [30, 31)."""
    store = memory_store()
    repository = Repository.open(store, cluster_id=CLUSTER, create=True)
    log = CommitLog.open(store, TOPIC, TOPIC_ID)
    append(log, part(0, 5, lost=[LostSpan(start=0, end=5, reason="retention")]), capture_id="a")
    append(log, part(5, 5), capture_id="a")
    append(log, part(2, 2, truncated_to=2), capture_id="a")
    append(log, part(2, 3, lost=[LostSpan(start=2, end=3, reason="unexplained")]), capture_id="b")
    return repository, log


def problems(repository: Repository) -> list[str]:
    return [each.kind for each in verify(repository, selection=None, level="structure", stop=None).problems]


def test_every_loss_is_found_with_its_span() -> None:
    """What: lost spans and truncations of several commits and captures.

    Why: an operator must know which offsets are gone, and which capture still has what was cut off.
    Risk: a loss that only verify knows, without its place.
    """
    repository, _ = lossy_repository()
    found = [(each.capture, each.kind, each.start, each.end, each.reason) for each in find_losses(repository)]
    assert found == [
        ("a", "lost", 0, 5, "retention"),
        ("a", "truncated", 2, 5, "unclean election"),
        ("b", "lost", 2, 3, "unexplained"),
    ]


def test_an_acceptance_covers_what_it_names_and_no_more() -> None:
    """What: capture "a" is accepted, then it goes on and loses more.

    Why: somebody may accept the losses of a capture that still runs.
    Risk: everything that it loses later is silent.
    """
    repository, log = lossy_repository()
    assert problems(repository).count("lost") == 2
    assert all(each.accepted for each in accept_losses(repository, "a", reason="known"))
    assert [each.capture for each in find_losses(repository) if not each.accepted] == ["b"]
    assert [kind for kind in problems(repository) if kind in ("lost", "truncated")] == ["lost"]
    append(log, part(3, 4, lost=[LostSpan(start=3, end=4, reason="retention")]), capture_id="a")
    assert problems(repository).count("lost") == 2
    accept_losses(repository, "a", reason="that too")
    accept_losses(repository, "b", reason="and that")
    assert not {"lost", "truncated"} & set(problems(repository))


@pytest.mark.parametrize("reason", ["", "  ", "x" * 1001])
def test_a_reason_is_needed(reason: str) -> None:
    """What: no reason, a blank one, one that is too long.

    Why: the reason is all that the next person has.
    Risk: losses accepted by a script that passes an empty variable.
    """
    repository, _ = lossy_repository()
    with pytest.raises(ConfigurationError, match="reason"):
        accept_losses(repository, "a", reason=reason)


def test_a_damaged_acceptance_accepts_nothing() -> None:
    """What: a flipped bit in an acceptance.

    Why: what is accepted is decided by an object in the store like any other.
    Risk: a loss that is hidden by bytes that nobody wrote.
    """
    repository, _ = lossy_repository()
    accept_losses(repository, "a", reason="known")
    (info,) = repository.store.list("accepted/")
    data = bytearray(repository.store.get(info.key))
    data[len(data) // 2] ^= 1
    replace_object(repository.store, info.key, bytes(data))
    assert {"lost", "truncated", "unreadable"} <= set(problems(repository))
    with pytest.raises(DamagedError, match=info.key):
        find_losses(repository)


def test_a_topic_that_is_back_gets_a_commit() -> None:
    """What: a topic that was accepted as gone is seen again under its old id, and nothing has changed.

    Why: the acceptance counts until the next commit of the topic.
    Risk: the second time that the topic vanishes counts as accepted.
    """
    repository, log = lossy_repository()
    absence = AcceptedAbsence(
        topic=TOPIC,
        topic_id=TOPIC_ID,
        head=3,
        head_sha256=log.sha256_of(3),
        nonce="n",
        accepted_at=1,
        capture_id="c",
    )
    put_acceptance(repository.store, absence)
    assert accepted_heads(repository.store) == {(TOPIC, TOPIC_ID): {3}}
    assert TopicState.open(incarnation(), log, [], was_gone=False).is_unchanged
    assert not TopicState.open(incarnation(), log, [], was_gone=True).is_unchanged
