"""The repository: whose it is, what it holds, and that its heads are witnessed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kafka_backup.errors import ConfigurationError, DamagedError, RefusedError
from kafka_backup.repository.documents import Capture, RepositoryDocument
from kafka_backup.repository.layout import REPOSITORY, capture_key, commit_key
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.store import ObjectInfo, Store
from tests.unit.faults import Fault, FaultyStore
from tests.unit.repositories import (
    CLUSTER,
    TOPIC,
    TOPIC_ID,
    batch,
    capture,
    memory_store,
    replace_object,
    write_segment,
)

OTHER_ID = "BbCdEfGhIjKlMnOpQrStUv"


def opened(store: Store) -> Repository:
    return Repository.open(store, cluster_id=None, create=False)


def test_a_repository_is_made_once() -> None:
    """The first backup makes the repository, and whoever opens it later finds the same one.

    It matters because the repository's id is what restores name.
    Two runs that start together could each make their own.
    """
    store = memory_store()
    with pytest.raises(ConfigurationError, match="there is no repository at memory://"):
        opened(store)
    first = Repository.open(store, cluster_id=CLUSTER, create=True)
    assert Repository.open(store, cluster_id=CLUSTER, create=True).document == first.document
    assert opened(store).document == first.document


def test_two_runs_make_one_repository() -> None:
    """A run that loses the race for making the repository uses the winner's.

    It matters because the first schedule may start several runs at once.
    The loser would stop with "another writer" although nothing is wrong.
    """
    store = memory_store()

    class Late(FaultyStore):
        def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
            if self.calls == 0:
                self.calls = 1
                try:
                    return store.get(key)
                finally:
                    Repository.open(store, cluster_id=CLUSTER, create=True)
            return super().get(key, start, end)

    late = Repository.open(Late(store), cluster_id=CLUSTER, create=True)
    assert late.document == opened(store).document


def test_another_clusters_repository_is_refused() -> None:
    """A repository of another cluster is refused, with both ids.

    It matters because topics of two clusters have the same names.
    One cluster's records would continue the other's log.
    """
    store = memory_store()
    Repository.open(store, cluster_id=CLUSTER, create=True)
    with pytest.raises(RefusedError, match=f"{CLUSTER}, not of cluster-2"):
        Repository.open(store, cluster_id="cluster-2", create=True)


@pytest.mark.parametrize("data", [b"", b'{"format_version":2}', b"not JSON"])
def test_an_unknown_format_is_refused(data: bytes) -> None:
    """A repository document that cannot be read, or is of a newer format, stops everything.

    It matters because an old program must not write into a new format.
    It would be overwritten, or its rules broken.
    """
    store = memory_store()
    replace_object(store, REPOSITORY, data)
    with pytest.raises(DamagedError, match=r"repository\.json"):
        Repository.open(store, cluster_id=CLUSTER, create=True)


def test_topics_and_incarnations() -> None:
    """Topics are found by listing folders, each with its incarnations in the order of their first commits.

    It matters because a re-created topic is another topic with the same name.
    Strange folders could stop the listing, or an incarnation be taken for the newest by its id.
    """
    store = memory_store()
    capture(store, {0: [batch(0, 3)]}, capture_id="c1", topic_id=TOPIC_ID, started_at=200)
    capture(store, {0: [batch(0, 4)]}, capture_id="c2", topic_id=OTHER_ID, started_at=100)
    capture(store, {0: []}, capture_id="c3", topic=".dots", started_at=300)
    interrupted = "CcCdEfGhIjKlMnOpQrStUv"
    write_segment(store, batch(0, 1), topic_id=interrupted)
    for key in ("topics/no topic".replace(" ", "/"), f"topics/{TOPIC}/no-id/x", "topics/README"):
        replace_object(store, key, b"x")
    repository = opened(store)
    assert repository.topics() == [
        (".dots", TOPIC_ID),
        (TOPIC, TOPIC_ID),
        (TOPIC, OTHER_ID),
        (TOPIC, interrupted),
    ]
    assert repository.incarnations(TOPIC) == [TOPIC_ID, OTHER_ID, interrupted]
    logs = repository.commit_logs(TOPIC)
    assert [(log.topic_id, log.head) for log in logs] == [(OTHER_ID, 0), (TOPIC_ID, 0), (interrupted, None)]
    for unknown in ("payments", "../orders", ""):
        with pytest.raises(ConfigurationError, match="holds no topic"):
            repository.commit_logs(unknown)


def test_captures_by_time() -> None:
    """Captures come by the time when they began, and one is found by its id.

    It matters because "the newest capture" is what people restore.
    The order of ids is not the order of time where clocks or zones differ.
    """
    store = memory_store()
    for name, time in (("b", 10), ("a", 30), ("c", 20)):
        capture(store, {0: []}, capture_id=name, started_at=time)
    replace_object(store, "captures/.DS_Store", b"x")
    repository = opened(store)
    assert [c.capture_id for c in repository.captures()] == ["b", "c", "a"]
    newest = repository.newest_capture()
    assert newest is not None
    assert newest.capture_id == "c"
    assert repository.capture("b").started_at == 10
    for unknown in ("x", "../a", ""):
        with pytest.raises(ConfigurationError, match="holds no capture"):
            repository.capture(unknown)


def test_a_capture_that_is_listed_and_not_there_is_damage() -> None:
    """A capture that the store lists and cannot give is damage, not a wrong request.

    It matters because captures are never deleted: a store that lies about one may lie about others.
    A backup would stop with "the request is wrong" although nobody requested anything.
    """

    class Lying(FaultyStore):
        def list(self, folder: str, start_after: str = "") -> Iterator[ObjectInfo]:
            yield from super().list(folder, start_after)
            yield ObjectInfo(key=capture_key("never"), size=9)

    store = memory_store()
    capture(store, {0: []}, capture_id="known")
    repository = opened(Lying(store))
    for read in (repository.captures, repository.newest_capture, lambda: list(repository.newest_captures())):
        with pytest.raises(DamagedError, match=r"captures/never\.json is listed"):
            read()


def test_a_capture_under_another_id_is_damage() -> None:
    """A capture object that was copied to another id is not believed.

    It matters because a restore names a capture.
    It would restore another moment than the one that was asked for.
    """
    store = memory_store()
    capture(store, {0: []}, capture_id="one")
    replace_object(store, capture_key("two"), store.get(capture_key("one")))
    with pytest.raises(DamagedError, match="is capture one"):
        opened(store).captures()


def test_a_log_below_its_witness_is_damage() -> None:
    """A log whose newest commit was removed, or replaced, contradicts the captures and is damage.

    It matters because without its newest commit a log still looks whole.
    Its records would be missing from a restore, and the next capture would fork the log.
    """
    store = memory_store()
    capture(store, {0: [batch(0, 3)]}, capture_id="c1")
    log = capture(store, {0: [batch(3, 3)]}, capture_id="c2")
    capture(store, {0: [batch(0, 3)]}, capture_id="c3", topic="payments")
    key = commit_key(TOPIC, TOPIC_ID, 1)
    store.delete(key)
    with pytest.raises(DamagedError, match="capture c2 names commit 1 of orders"):
        opened(store).commit_log(TOPIC, TOPIC_ID)
    replace_object(store, key, log.commits[1].model_copy(update={"committed_at": 99}).to_bytes())
    with pytest.raises(DamagedError, match="capture c2 names commit 1 of orders"):
        opened(store).commit_log(TOPIC, TOPIC_ID)
    assert opened(store).commit_log("payments", TOPIC_ID).head == 0


def test_a_capture_whose_answer_is_lost_is_stored_once() -> None:
    """Storing a capture again after a lost answer is no conflict.

    It matters because it is the last step of a capture that took hours.
    The run would fail although everything is saved.
    """
    store = memory_store()
    repository = Repository.open(store, cluster_id=CLUSTER, create=True)
    document = Capture(
        capture_id="c", nonce="n", started_at=1, ended_at=2, window=None, status="complete", topics=()
    )
    Repository(FaultyStore(store, Fault.TOLD_TWICE, at=3), repository.document).put_capture(document)
    assert opened(store).captures() == [document]
    assert isinstance(opened(store).document, RepositoryDocument)
