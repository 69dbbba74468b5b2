"""Damage of every kind to every object: found by verify, and by a restore before it produces any of it.

What a restore reads is asked of the restore's own reader (`expected_batches`), without a broker: whatever it
yields would be produced.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace

import pytest

from kafka_backup import verify as verification
from kafka_backup.errors import DamagedError, KafkaBackupError
from kafka_backup.expected_batches import expected_batches, partition_targets
from kafka_backup.repository import documents, proven_object, restore_folder, segments
from kafka_backup.repository.acceptances import accepted_absences, accepted_losses
from kafka_backup.repository.documents import PartitionRange
from kafka_backup.repository.drills import DrillStore
from kafka_backup.repository.group_store import GroupStore
from kafka_backup.repository.layout import (
    REPOSITORY,
    capture_key,
    group_snapshot_key,
    report_key,
    reset_before_key,
    reset_plan_key,
    reset_step_key,
)
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.store import Store
from kafka_backup.selection import TopicSelection
from tests.unit.repositories import (
    CLUSTER,
    TOPIC,
    TOPIC_ID,
    append,
    batch,
    capture,
    part,
    replace_object,
    write_segment,
)
from tests.unit.scheduler import in_one_thread
from tests.unit.whole_repository import DOCUMENTS, SNAPSHOTS, restorable


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with in_one_thread():
        yield


def _produced(store: Store) -> Iterator[bytes]:
    """What a restore of r1 would produce, batch by batch, up to the error that ends it."""
    repository = Repository.open(store, cluster_id=None, create=False)
    plan = repository.restore_folder("r1").plan()
    assert plan is not None
    for topic in plan.topics:
        for target in partition_targets(plan, topic, TOPIC_ID, repository):
            for found in expected_batches(target, store, before_segment=lambda: None):
                yield bytes(found.data)


def _restored(store: Store) -> tuple[list[bytes], bool]:
    """What a restore would produce, and whether it came to its end."""
    produced: list[bytes] = []
    try:
        produced.extend(_produced(store))
    except KafkaBackupError:
        return produced, False
    return produced, True


def _problems(store: Store, *, selection: TopicSelection | None = None) -> set[str]:
    """The objects that verify complains about."""
    try:
        report = verification.verify(
            Repository.open(store, cluster_id=CLUSTER, create=False),
            selection=selection,
            level="data",
            stop=None,
        )
    except KafkaBackupError as error:
        assert REPOSITORY in str(error)
        return {REPOSITORY}
    assert (report.status == "ok") == (not report.problems)
    return {problem.object for problem in report.problems}


def _objects(store: Store) -> dict[str, bytes]:
    return {info.key: store.get(info.key) for info in store.list("")}


def _segments(store: Store) -> list[str]:
    return [key for key in _objects(store) if ".log" in key]


SEGMENTS = _segments(restorable())
EVERY_TOPIC = TopicSelection.parse(["*"])
"""For a verification that reads nothing but topics and captures."""


def test_an_undamaged_repository_is_whole() -> None:
    """Tests that verify finds nothing in the repository that the other tests damage, and all can be restored.

    It matters because each of the other tests compares with this.
    A test repository that is damaged from the start would let every check pass.
    """
    store = restorable()
    assert _problems(store) == set()
    produced, ended = _restored(store)
    assert ended
    assert len(produced) == len(SEGMENTS) == 4
    assert {len(store.get(key)) for key in SEGMENTS[:3]} == {len(store.get(SEGMENTS[0]))}


def _flips(data: bytes) -> Iterator[bytes]:
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            yield bytes(damaged)


def _truncations(data: bytes) -> Iterator[bytes]:
    return (data[:size] for size in range(len(data)))


def _appended(data: bytes) -> Iterator[bytes]:
    yield from (data + more for more in (b"\0", b"\n", b"}", data, bytes(61)))


EVERY_DAMAGE = {"flipped": _flips, "truncated": _truncations, "appended": _appended}


@pytest.mark.parametrize("damage", EVERY_DAMAGE)
@pytest.mark.parametrize("number", [2, 3], ids=["plain", "zstd"])
def test_every_damage_to_a_segment_is_found(number: int, damage: str) -> None:
    """Tests each single flipped bit, each truncation and appended bytes of a segment, plain and compressed.

    It matters because disks, buckets and copies damage objects in exactly these ways.
    One bit that goes unseen becomes a wrong record in a live topic, under a restore that says "verified".
    """
    store = restorable()
    key = SEGMENTS[number]
    before = _restored(store)[0][:number]
    original = store.get(key)
    for damaged in EVERY_DAMAGE[damage](original):
        replace_object(store, key, damaged)
        assert _restored(store) == (before, False)
        assert _problems(store, selection=EVERY_TOPIC) == {key}
    assert _problems(store) == {key}


def _raise(found: Iterator[tuple[str, object]]) -> None:
    for _, document in found:
        if isinstance(document, DamagedError):
            raise document


def _read(store: Store, kind: str) -> object:
    """Read one of DOCUMENTS as whoever needs it does."""
    repository = Repository.open(store, cluster_id=None, create=False)
    folder = repository.restore_folder("r1")
    readers: Mapping[str, Callable[[], object]] = {
        "repository": lambda: repository,
        "commit in the middle": lambda: repository.commit_log(TOPIC, TOPIC_ID).commits,
        "newest commit": lambda: repository.commit_log(TOPIC, TOPIC_ID).commits,
        "capture": lambda: repository.capture("c2"),
        "plan": folder.plan,
        "attempt": folder.newest_attempt,
        "report": folder.report,
        "offset map": lambda: folder.offset_map(TOPIC, 0),
        "reset plan": GroupStore(store).reset("t1").plan,
        "positions before": GroupStore(store).reset("t1").before,
        "reset step": GroupStore(store).reset("t1").steps,
        "expiry": repository.expiries,
        "drill": lambda: DrillStore(store).report("d1"),
        "accepted losses": lambda: _raise(accepted_losses(store)),
        "accepted absence": lambda: _raise(accepted_absences(store)),
    }
    return readers[kind]()


@pytest.mark.parametrize("damage", EVERY_DAMAGE)
@pytest.mark.parametrize("kind", DOCUMENTS)
def test_every_damage_to_a_document_is_found(kind: str, damage: str) -> None:
    """Tests each single flipped bit, each truncation and appended bytes of one document of each kind.

    It matters because documents say which records there are, and where positions go.
    A flipped bit in an offset or a time leaves a document that reads well, and says something else.
    """
    store = restorable()
    key, document = DOCUMENTS[kind]
    original = store.get(key)
    for number, damaged in enumerate(EVERY_DAMAGE[damage](original)):
        with pytest.raises(DamagedError, match=key):
            document.from_bytes(damaged, key=key)
        # Neither is a multiple of 8: another bit of another byte each time.
        if number % 31 == 0:
            replace_object(store, key, damaged)
            with pytest.raises(DamagedError, match=key.rpartition("/")[2]):
                _read(store, kind)
            if kind in ("newest commit", "plan"):
                assert _restored(store) == ([], False)
        if number % 93 == 0:
            assert key in _problems(store)


@pytest.mark.parametrize("damage", EVERY_DAMAGE)
def test_every_damage_to_a_group_snapshot_is_found(damage: str) -> None:
    """Tests each flipped bit, each truncation and appended bytes of a compressed group snapshot.

    It matters because consumers start where a snapshot says.
    A wrong offset skips records, or handles them twice, and nothing else shows it.
    """
    store = restorable()
    key = group_snapshot_key(SNAPSHOTS[0])
    groups = GroupStore(store)
    right = groups.snapshot(SNAPSHOTS[0])
    original = store.get(key)
    harmless = 0
    for damaged in EVERY_DAMAGE[damage](original):
        replace_object(store, key, damaged)
        try:
            # A bit of the zstd frame that its reader does not need changes nothing of what it says.
            assert groups.snapshot(SNAPSHOTS[0]) == right
            harmless += 1
        except DamagedError:
            continue
    assert harmless <= (16 if damage == "flipped" else 0)
    replace_object(store, key, next(EVERY_DAMAGE[damage](original)))
    assert _problems(store) == {key}


def _swapped(one: bytes, other: bytes) -> tuple[bytes, bytes]:
    return other, one


def _copied(one: bytes, _other: bytes) -> tuple[bytes, bytes]:
    return one, one


@pytest.mark.parametrize("change", [_swapped, _copied])
def test_objects_in_the_place_of_others_are_found(
    change: Callable[[bytes, bytes], tuple[bytes, bytes]],
) -> None:
    """Tests every two objects of a kind, and some of other kinds, swapped, and one put in the place of the other.

    It matters because a copy tool, or a half-finished copy back, puts whole, valid objects in wrong places.
    An older commit or plan in the place of a newer one is readable, sealed, and wrong.
    """
    store = restorable()
    right = _restored(store)[0]
    objects = _objects(store)
    pairs = itertools.combinations if change is _swapped else itertools.permutations
    for number, (one, other) in enumerate(pairs(objects, 2)):
        # Objects of different kinds are never read as each other: some of these pairs will do.
        if one.partition("/")[0] != other.partition("/")[0] and number % 11:
            continue
        changed = dict(zip((one, other), change(objects[one], objects[other]), strict=True))
        if all(objects[key] == data for key, data in changed.items()):
            continue
        for key, data in changed.items():
            replace_object(store, key, data)
        found = _problems(store)
        assert found & {key for key, data in changed.items() if objects[key] != data} or REPOSITORY in found
        produced, ended = _restored(store)
        assert produced == right if ended else produced == right[: len(produced)]
        for key in changed:
            replace_object(store, key, objects[key])
    assert _problems(store) == set()


def test_an_object_that_moved_away_is_found() -> None:
    """Tests each object renamed to a free key: it is missing where it was, or is of no use where it is.

    It matters because a sync tool that changes case or a prefix does this to many objects at once.
    An empty place must never be read as "there was nothing".
    """
    store = restorable()
    right = _restored(store)[0]
    objects = _objects(store)
    for key, data in objects.items():
        store.delete(key)
        folder, _, name = key.rpartition("/")
        moved = f"{folder}/0{name}" if folder else f"x{name}"
        replace_object(store, moved, data)
        if key == REPOSITORY:
            with pytest.raises(KafkaBackupError, match="no repository"):
                Repository.open(store, cluster_id=None, create=False)
        else:
            assert _problems(store)
            produced, ended = _restored(store)
            assert produced == right if ended else produced == right[: len(produced)]
        store.delete(moved)
        replace_object(store, key, data)


@pytest.mark.parametrize(
    "key", [reset_plan_key("t1"), reset_before_key("t1"), reset_step_key("t1", 2, "applied")]
)
def test_a_document_of_a_reset_that_is_gone_is_found(key: str) -> None:
    """Tests the plan, the positions before, and a step in the middle of a reset, each deleted.

    It matters because they are the way back.
    A rollback would refuse, or begin in the middle, on the day when it is needed.
    """
    store = restorable()
    store.delete(key)
    (found,) = _problems(store)
    assert found.rpartition("-")[0] == key.rpartition("-")[0]
    assert found == key or "steps" in key


class _Equal:
    """Equal to anything: a comparison that was taken out."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


def _no_checksum(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(documents, "open_document", lambda data, **_: b"{" + data[documents._SEAL_SIZE :])


def _no_chain(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verification, "commit_flaws", lambda *_, **__: ())


def _no_heads(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verification, "_captures", lambda *_: ())


def _no_sha256(patch: pytest.MonkeyPatch) -> None:
    digest = SimpleNamespace(hexdigest=_Equal, update=lambda _: None)
    patch.setattr(proven_object, "hashlib", SimpleNamespace(sha256=lambda *_: digest))


def _no_crc(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(segments, "crc32c", SimpleNamespace(crc32c=lambda _: _Equal()))


def _no_ledger(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verification, "_ledgers", lambda *_: ())
    left: dict[int, int] = {}

    def as_the_ledger_says(part: PartitionRange, *_: object) -> int:
        count, left[part.start] = left.get(part.start, part.ledger.records), 0
        return count

    patch.setattr(verification, "_records_inside", as_the_ledger_says)


def _no_places(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(restore_folder, "key_of", lambda _: _Equal())


def _change_document(store: Store, kind: str, **changes: object) -> None:
    """Rewrite a document, checksum and all, as a program that is not ours could."""
    key, document = DOCUMENTS[kind]
    changed = document.from_bytes(store.get(key), key=key).model_copy(update=changes)
    replace_object(store, key, changed.to_bytes())


def _rewritten_commit_without_a_witness(store: Store) -> None:
    store.delete(capture_key("c2"))
    _change_document(store, "commit in the middle", committed_at=99)


def _flipped_leader_epoch(store: Store) -> None:
    data = bytearray(store.get(SEGMENTS[0]))
    data[15] ^= 1
    replace_object(store, SEGMENTS[0], bytes(data))


def _captured_with_a_wrong_crc(store: Store) -> None:
    data = bytearray(batch(8, 1))
    data[-1] ^= 1
    capture(store, {0: [bytes(data)]}, capture_id="c4", started_at=4)


def _counted_what_is_not_there(store: Store) -> None:
    log = Repository.open(store, cluster_id=CLUSTER, create=False).commit_log(TOPIC, TOPIC_ID)
    append(log, part(8, 12, segments=[write_segment(store, batch(8, 2), capture_id="c4")]), capture_id="c4")


def _report_of_another_restore(store: Store) -> None:
    replace_object(store, report_key("r1", 2), store.get(report_key("r2", 2)))


@pytest.mark.parametrize(
    ("take_out", "damage"),
    [
        (_no_checksum, lambda store: _flip_text(store, "report", b'"ended_at":2', b'"ended_at":3')),
        (_no_chain, _rewritten_commit_without_a_witness),
        (_no_heads, lambda store: _change_document(store, "newest commit", committed_at=99)),
        (_no_sha256, _flipped_leader_epoch),
        (_no_crc, _captured_with_a_wrong_crc),
        (_no_ledger, _counted_what_is_not_there),
        (_no_places, _report_of_another_restore),
    ],
)
def test_each_step_of_the_proof_is_needed(
    monkeypatch: pytest.MonkeyPatch,
    take_out: Callable[[pytest.MonkeyPatch], None],
    damage: Callable[[Store], None],
) -> None:
    """Tests for each step of the verification a damage that it alone finds: with the step taken out, "ok".

    It matters because steps that overlap hide that one of them does nothing.
    A step that was broken by a later change would not be missed until the bad day.
    """
    store = restorable()
    damage(store)
    assert _problems(store)
    with monkeypatch.context() as patch:
        take_out(patch)
        assert not _problems(store)
    assert _problems(store)


def _flip_text(store: Store, kind: str, old: bytes, new: bytes) -> None:
    key, _ = DOCUMENTS[kind]
    replace_object(store, key, store.get(key).replace(old, new))
