"""What is stored of a restore, who owns it, and what it keeps from expiry."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kafka_backup.errors import ConfigurationError, RefusedError, WriterConflictError
from kafka_backup.offset_mapping import OffsetMap
from kafka_backup.progress import StopToken
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import (
    AttemptTarget,
    RestoreAttempt,
    RestoredTopic,
    RestorePlan,
    RestoreReport,
    RestoreRequest,
)
from kafka_backup.repository.restore_folder import RestoreFolder
from kafka_backup.restore import abandon, offset_map
from kafka_backup.restore_attempt import Attempt
from kafka_backup.restore_context import RestoreLimits
from kafka_backup.restore_plan import refuse_if_abandoned
from tests.unit.repositories import CLUSTER, TOPIC_ID, memory_store

TARGET = AttemptTarget(topic="restored-orders", topic_id=TOPIC_ID)


def _repository() -> Repository:
    return Repository.open(memory_store(), cluster_id=CLUSTER, create=True)


def _plan(restore_id: str = "r1", **changes: object) -> RestorePlan:
    plan = RestorePlan(
        request=RestoreRequest(restore_id=restore_id),
        nonce="n",
        planned_at=1,
        repository_id="x",
        target_cluster_id="t",
        topics=(),
    )
    return plan.model_copy(update=changes)


def _attempt(number: int, restore_id: str = "r1", **changes: object) -> RestoreAttempt:
    attempt = RestoreAttempt(
        restore_id=restore_id,
        attempt=number,
        nonce="n",
        started_at=1,
        plan_sha256="0" * 64,
        targets=(TARGET,),
    )
    return attempt.model_copy(update=changes)


def _finish(folder: RestoreFolder, *topics: RestoredTopic) -> None:
    folder.put_report(
        RestoreReport(
            restore_id=folder.restore_id,
            attempt=1,
            status="verified",
            started_at=1,
            verified_at=2,
            ended_at=2,
            target_cluster_id="t",
            topics=topics,
            seconds=1.0,
        )
    )


def test_plans_and_attempts_are_stored_once() -> None:
    """Plans and attempts are stored once, read back the same, and the highest number counts.

    It matters because the plan is the idempotency key and the highest attempt owns the restore.
    Attempt 10 could come before attempt 9, or a second plan replace the first.
    """
    folder = _repository().restore_folder("r1")
    assert (folder.plan(), folder.newest_attempt(), folder.report()) == (None, None, None)
    folder.put_plan(_plan())
    folder.put_plan(_plan())
    assert folder.plan() == _plan()
    with pytest.raises(WriterConflictError):
        folder.put_plan(_plan(nonce="another"))
    folder.put_plan(_plan(number=2))
    assert folder.plan() == _plan(number=2)
    for number in range(1, 12):
        assert folder.attempt(number) is None
        folder.put_attempt(_attempt(number))
        assert folder.attempt(number) == folder.newest_attempt() == _attempt(number)
        with pytest.raises(WriterConflictError):
            folder.put_attempt(_attempt(number, nonce="another"))
    assert [attempt.attempt for attempt in folder.attempts()] == list(range(1, 12))
    assert _repository().restore_folder("r2").attempts() == []


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "x" * 121])
def test_a_restore_id_that_cannot_be_one_is_a_wrong_request(name: str) -> None:
    """An id that could leave its folder is refused as a wrong request, not as a bug.

    It matters because ids are typed by people and read from files.
    "../" could make somebody else's objects part of a restore.
    """
    with pytest.raises(ConfigurationError, match="not a restore id"):
        _repository().restore_folder(name)


def test_open_restores_are_pins() -> None:
    """A restore keeps what its plan reads until it is finished or abandoned, never for a time only.

    It matters because expiry would delete a segment under a restore that runs for days.
    A pin that ended by age, or one that never ended, would lose data or keep it for ever.
    """
    repository = _repository()
    folders = {name: repository.restore_folder(name) for name in ("planned", "running", "done", "given-up")}
    for name, folder in folders.items():
        folder.put_plan(_plan(name))
        if name != "planned":
            folder.put_attempt(_attempt(1, name))
    folders["running"].put_plan(_plan("running", number=2))
    assert len(repository.pins()) == 4
    _finish(folders["done"])
    abandon("given-up", repository=repository)
    assert [(plan.request.restore_id, plan.number) for plan in repository.pins()] == [
        ("planned", 1),
        ("running", 2),
    ]


def test_an_abandoned_restore_cannot_go_on() -> None:
    """Abandoning takes the ownership for good: twice is once, and no run may start or go on after it.

    It matters because expiry may delete what the restore needs from then on.
    A run that went on would find its segments gone half-way through a topic.
    """
    repository = _repository()
    folder = repository.restore_folder("r1")
    with pytest.raises(ConfigurationError, match="restore r1 does not exist"):
        abandon("r1", repository=repository)
    folder.put_plan(_plan())
    folder.put_attempt(_attempt(1))
    refuse_if_abandoned(folder)
    for _ in range(2):
        done = abandon("r1", repository=repository)
        assert (done.status, done.targets) == ("abandoned", (TARGET,))
        assert [attempt.action for attempt in folder.attempts()] == ["run", "abandon"]
    with pytest.raises(RefusedError, match="restore r1 was abandoned"):
        refuse_if_abandoned(folder)


def test_abandoning_loses_no_race_against_a_new_attempt() -> None:
    """A run that takes the next attempt number first is outnumbered: the abandonment is above it.

    It matters because somebody abandons a restore that a scheduler is about to start again.
    Giving up after the lost number would leave the pin in force, and say so to nobody.
    """
    repository = _repository()
    folder = repository.restore_folder("r1")
    folder.put_plan(_plan())

    class Late(RestoreFolder):
        def put_attempt(self, attempt: RestoreAttempt) -> None:
            if folder.newest_attempt() is None:
                folder.put_attempt(_attempt(1))
            super().put_attempt(attempt)

    class Racing(Repository):
        def restore_folder(self, restore_id: str) -> RestoreFolder:
            return Late(self.store, restore_id)

    done = abandon("r1", repository=Racing(repository.store, repository.document))
    assert done.status == "abandoned"
    newest = folder.newest_attempt()
    assert newest is not None
    assert (newest.attempt, newest.action) == (2, "abandon")


def test_a_run_that_begins_while_it_is_abandoned_does_not_begin() -> None:
    """A run that finds an abandonment where it would make its attempt stops, and makes none above it.

    It matters because nothing keeps its segments any more, and expiry may be deleting them.
    With an attempt above the abandonment it would own the restore again, and find holes on the way.
    """
    repository = _repository()
    folder = repository.restore_folder("r1")
    plan = _plan()
    folder.put_plan(plan)
    abandon("r1", repository=repository)
    cluster: Any = SimpleNamespace(metadata=lambda _topics: SimpleNamespace(cluster_id="t", topics={}))
    attempt = Attempt(
        plan,
        repository=repository,
        folder=folder,
        cluster=cluster,
        admin=cluster,
        retry_seconds=1,
        threads=1,
        limits=RestoreLimits(),
        skip_damaged=False,
        stop=StopToken(),
        on_progress=None,
    )
    with pytest.raises(RefusedError, match="restore r1 was abandoned"):
        attempt.run()
    assert [each.action for each in folder.attempts()] == ["abandon"]


def test_a_finished_restore_needs_no_abandoning() -> None:
    """A finished restore is reported as finished, and nothing is written.

    It matters because cleaning-up scripts abandon whatever they find.
    An attempt after the report would make a verified restore look given up.
    """
    repository = _repository()
    folder = repository.restore_folder("r1")
    folder.put_plan(_plan())
    folder.put_attempt(_attempt(1))
    _finish(folder)
    assert abandon("r1", repository=repository).status == "finished"
    assert len(folder.attempts()) == 1


def test_an_offset_map_is_that_of_the_side_that_is_asked() -> None:
    """Two topics that got each other's names: a name means the source, or the restored topic if offsets are of that.

    It matters because swapped names are how somebody repairs a mix-up.
    The other topic's map would answer every question, and wrongly.
    """
    repository = _repository()
    folder = repository.restore_folder("r1")
    topics = {"a": "b", "b": "a"}
    for number, (source, target) in enumerate(topics.items()):
        made = OffsetMap()
        made.add(100 * (number + 1), 10)
        folder.put_offset_map(made.to_document(restore_id="r1", source=source, target=target, partition=0))
    _finish(
        folder,
        *(
            RestoredTopic(
                source=source, target=target, target_topic_id=TOPIC_ID, partitions=(), configuration={},
                not_applied={}, retention_held=False,
            )
            for source, target in topics.items()
        ),
    )  # fmt: skip

    def first(topic: str, *, of_target: bool) -> int:
        return offset_map("r1", topic, 0, of_target=of_target, repository=repository).runs[0][0]

    assert [first(topic, of_target=False) for topic in "ab"] == [100, 200]
    assert [first(topic, of_target=True) for topic in "ab"] == [200, 100]
