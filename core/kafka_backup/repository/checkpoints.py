"""What makes a long commit log quick to open: checkpoints and packs, caches of what the commits say.

A *checkpoint* is the state after a commit, enough for a writer to go on. A *pack* holds the commits
themselves, byte for byte, many in one object, for those who need all of them. Neither is ever the
truth: a checkpoint counts only if it names the SHA-256 of its commit's object, and every commit in
a pack must have the SHA-256 that the commit after it names. Whatever does not is passed over, and
the commits are read instead; all of them may be deleted at any time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import ValidationError

from kafka_backup.errors import DamagedError
from kafka_backup.records.compression import compress_zstd, decompress_zstd
from kafka_backup.repository import layout
from kafka_backup.repository.documents import (
    Commit,
    Count,
    Document,
    Incarnation,
    LeaderEpoch,
    Milliseconds,
    Part,
    Sha256,
    TopicId,
    TopicName,
    open_document,
    sha256_of,
)
from kafka_backup.repository.log_state import LogState, PartitionState
from kafka_backup.repository.store import ObjectExistsError, ObjectNotFoundError, Store

CHECKPOINT_COMMITS = 10
"""A checkpoint comes after each commit whose number ends in 9, so that opening reads nine commits at most."""
PACK_COMMITS = (1000, 100, 10)
"""Sizes of packs, largest first: the largest that divides the number of commits so far is written."""
_MAX_PACK_BYTES = 1 << 30
_READERS = 8


class CheckpointPartition(Part):
    """One partition of a checkpoint; see `PartitionState`."""

    partition: Count
    end: Count
    log_start_offset: Count
    leader_epoch: Count
    leader_epochs: tuple[LeaderEpoch, ...]


class Checkpoint(Document):
    """``checkpoints/<n>.json``: the state of a log after commit n.

    Attributes:
        commit_sha256: of commit n's object; the checkpoint counts only while it is that.
    """

    kind: ClassVar[str] = "checkpoint"

    topic: TopicName
    topic_id: TopicId
    number: Count
    commit_sha256: Sha256
    began_at: Milliseconds
    incarnation: Incarnation
    compacts: bool
    partitions: tuple[CheckpointPartition, ...]

    @classmethod
    def of(cls, state: LogState, *, topic: str, topic_id: str) -> Self:
        """Write a state down; it must not be that of an empty log."""
        assert state.incarnation is not None
        assert state.sha256 is not None
        return cls(
            topic=topic,
            topic_id=topic_id,
            number=state.number,
            commit_sha256=state.sha256,
            began_at=state.began_at,
            incarnation=state.incarnation,
            compacts=state.compacts,
            partitions=tuple(
                CheckpointPartition(
                    partition=number,
                    end=partition.end,
                    log_start_offset=partition.log_start_offset,
                    leader_epoch=partition.leader_epoch,
                    leader_epochs=tuple(partition.leader_epochs),
                )
                for number, partition in sorted(state.partitions.items())
            ),
        )

    def to_state(self) -> LogState:
        """Return the state that was written down."""
        return LogState(
            number=self.number,
            sha256=self.commit_sha256,
            began_at=self.began_at,
            incarnation=self.incarnation,
            compacts=self.compacts,
            partitions={
                part.partition: PartitionState(
                    end=part.end,
                    log_start_offset=part.log_start_offset,
                    leader_epoch=part.leader_epoch,
                    leader_epochs=list(part.leader_epochs),
                )
                for part in self.partitions
            },
        )


def newest_state(store: Store, topic: str, topic_id: str, *, known_head: int = -1) -> LogState:
    """Return the state of the newest checkpoint that counts; an empty log's if there is none.

    Args:
        store: where the log is.
        topic: whose log it is.
        topic_id: the incarnation.
        known_head: a commit that is known to exist, which spares listing old checkpoints.

    Raises:
        DamagedError: a checkpoint names a commit that is missing: the log was cut short.
    """
    recent = known_head - 2 * CHECKPOINT_COMMITS
    places = [layout.checkpoint_key(topic, topic_id, recent)] if recent > 0 else []
    for start_after in (*places, ""):
        for number in reversed(checkpoint_numbers(store, topic, topic_id, start_after)):
            state = _state(store, topic, topic_id, number)
            if state is not None:
                return state
    return LogState()


def checkpoint_numbers(store: Store, topic: str, topic_id: str, start_after: str = "") -> Sequence[int]:
    """Return the numbers of all checkpoints whose key is greater than `start_after`, ascending."""
    return [
        number
        for info in store.list(layout.checkpoints_folder(topic, topic_id), start_after)
        if (number := layout.parse_checkpoint_key(info.key, topic=topic, topic_id=topic_id)) is not None
    ]


def _state(store: Store, topic: str, topic_id: str, number: int) -> LogState | None:
    """The state of one checkpoint, None if it does not count."""
    key = layout.checkpoint_key(topic, topic_id, number)
    try:
        checkpoint = Checkpoint.from_bytes(store.get(key), key=key)
    except DamagedError:
        # Deleted meanwhile, unreadable, or of another release: it is only a cache.
        return None
    if (checkpoint.topic, checkpoint.topic_id, checkpoint.number) != (topic, topic_id, number):
        return None
    commit_key = layout.commit_key(topic, topic_id, number)
    try:
        commit = store.get(commit_key)
    except ObjectNotFoundError as error:
        raise DamagedError(
            f"{store.url}/{commit_key} is missing although {key} was made after it; put it back from a copy of "
            "the repository"
        ) from error
    return checkpoint.to_state() if sha256_of(commit) == checkpoint.commit_sha256 else None


def put_checkpoint(store: Store, topic: str, topic_id: str, state: LogState) -> None:
    """Store the checkpoint of a state; one that is there already is left alone, right or wrong."""
    checkpoint = Checkpoint.of(state, topic=topic, topic_id=topic_id)
    _put(store, layout.checkpoint_key(topic, topic_id, state.number), checkpoint.to_bytes())


def put_pack(store: Store, topic: str, topic_id: str, *, last: int, commits: Sequence[bytes]) -> None:
    """Store the pack of some consecutive commits; one that is there already is left alone.

    Args:
        store: where the log is.
        topic: whose log it is.
        topic_id: the incarnation.
        last: number of the last of them.
        commits: the bytes of their objects, in order.
    """
    key = layout.pack_key(topic, topic_id, last=last, count=len(commits))
    _put(store, key, compress_zstd(b"".join(commit + b"\n" for commit in commits)))


def check_checkpoint(data: bytes, state: LogState, *, topic: str, topic_id: str) -> bool | None:
    """Whether a checkpoint object says what it should; None if nobody would believe it anyway.

    Args:
        data: of the object.
        state: after the commit in the object's key, as the commits themselves say.
        topic: of the place where it was found.
        topic_id: the same.
    """
    right = Checkpoint.of(state, topic=topic, topic_id=topic_id)
    if data == right.to_bytes():
        return True
    try:
        found = Checkpoint.from_bytes(data, key="")
    except DamagedError:
        return None
    place = (found.topic, found.topic_id, found.number, found.commit_sha256)
    return False if place == (topic, topic_id, state.number, state.sha256) else None


def _put(store: Store, key: str, data: bytes) -> None:
    with store.create(key) as writer:
        writer.write(data)
        try:
            writer.commit()
        except ObjectExistsError:
            return


@dataclass(frozen=True, slots=True)
class ReadCommit:
    """A commit and the bytes of its object."""

    commit: Commit
    data: bytes


def read_back(
    store: Store, topic: str, topic_id: str, *, last: int, sha256: str, first: int = 0
) -> Iterator[ReadCommit]:
    """Yield the commits `last`, ``last - 1``, ..., `first`, each proved by the one before it in this order.

    Args:
        store: where the log is.
        topic: whose log it is.
        topic_id: the incarnation.
        last: number of the newest commit wanted.
        sha256: of its object, as the commit after it or a checkpoint that counts names it.
        first: number of the oldest commit wanted.

    Raises:
        DamagedError: a commit is missing, unreadable, or not the one that the next one follows.
    """
    sources = _sources(store, topic, topic_id, first=first, last=last)
    reader = CommitReader()

    def fetch(source: _Source) -> Sequence[bytes] | None:
        if source.count > 1:
            return _read_pack(store, topic, topic_id, source)
        return [store.get(layout.commit_key(topic, topic_id, source.last))]

    expected: str | None = sha256
    with ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix="commits") as pool:
        for source, fetched in zip(sources, pool.map(fetch, sources), strict=True):
            proved = None if fetched is None else _proved(reader, source.last, fetched, expected)
            if proved is None:
                proved = []
                for number in range(source.last, source.last - source.count, -1):
                    one = _read_one(store, topic, topic_id, number, expected)
                    proved.append(one)
                    expected = one.commit.previous_sha256
            expected = proved[-1].commit.previous_sha256
            yield from proved


def _read_one(store: Store, topic: str, topic_id: str, number: int, expected: str | None) -> ReadCommit:
    key = layout.commit_key(topic, topic_id, number)
    data = store.get(key)
    commit = Commit.from_bytes(data, key=f"{store.url}/{key}")
    if (found := sha256_of(data)) != expected:
        raise DamagedError(
            f"{store.url}/{key} breaks the commit log: it has SHA-256 {found}, the commit after it follows one with "
            f"{expected}; run verify to see everything that is wrong, and put it back from a copy of the repository"
        )
    return ReadCommit(commit, data)


@dataclass(frozen=True, slots=True)
class _Source:
    """The `count` commits up to number `last`: one commit, or a pack."""

    last: int
    count: int


def _sources(store: Store, topic: str, topic_id: str, *, first: int, last: int) -> Sequence[_Source]:
    """What to read, newest first, so that each commit from `last` down to `first` comes once."""
    packs: dict[int, list[int]] = {}
    if last - first >= PACK_COMMITS[-1]:
        for info in store.list(layout.checkpoints_folder(topic, topic_id)):
            found = layout.parse_pack_key(info.key, topic=topic, topic_id=topic_id)
            if found is not None:
                packs.setdefault(found[0], []).append(found[1])
    sources = []
    while last >= first:
        fitting = [count for count in packs.get(last, ()) if last - count + 1 >= first]
        sources.append(_Source(last, max(fitting, default=1)))
        last -= sources[-1].count
    return sources


def _read_pack(store: Store, topic: str, topic_id: str, pack: _Source) -> Sequence[bytes] | None:
    """The commits in a pack, newest first; None if it cannot be read."""
    key = layout.pack_key(topic, topic_id, last=pack.last, count=pack.count)
    try:
        commits = decompress_zstd(store.get(key), limit=_MAX_PACK_BYTES).split(b"\n")
    except DamagedError:
        # Deleted meanwhile, or damaged: it is only a cache.
        return None
    return commits[-2::-1] if len(commits) == pack.count + 1 else None


def _proved(
    reader: CommitReader, last: int, commits: Sequence[bytes], expected: str | None
) -> list[ReadCommit] | None:
    """Consecutive commits, newest first, each with the SHA-256 that it must have; None if one has not."""
    proved = []
    for number, data in zip(range(last, last - len(commits), -1), commits, strict=True):
        if sha256_of(data) != expected:
            return None
        commit = reader.read(data, key=f"commit {number}")
        expected = commit.previous_sha256
        proved.append(ReadCommit(commit, data))
    return proved


class _AnonymousCommit(Commit):
    """A commit whose incarnation was taken out."""

    incarnation: None  # type: ignore[assignment]


class CommitReader:
    """Reads commits of one log fast and into little memory.

    Most of a commit is the topic's configuration, and that is nearly always the same as in the
    commit read before: then it is neither read nor kept again.
    """

    def __init__(self) -> None:
        self._incarnation: Incarnation | None = None
        self._as_bytes = b""

    def read(self, data: bytes, *, key: str) -> Commit:
        """Parse a commit; as `Commit.from_bytes`."""
        head, _, tail = open_document(data, key=key, kind=Commit.kind).partition(b'"incarnation":')
        if self._incarnation is not None and tail.startswith(self._as_bytes):
            rest = tail[len(self._as_bytes) :]
            try:
                anonymous = _AnonymousCommit.model_validate_json(head + b'"incarnation":null' + rest)
            except ValidationError:
                # The whole one says better what is wrong.
                return Commit.from_bytes(data, key=key)
            fields: dict[str, Any] = {**anonymous.__dict__, "incarnation": self._incarnation}
            return _slim(Commit.model_construct(_fields_set=anonymous.model_fields_set, **fields))
        commit = _slim(Commit.from_bytes(data, key=key))
        self._incarnation = commit.incarnation
        self._as_bytes = json.dumps(
            commit.incarnation.model_dump(mode="json"),
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
        ).encode()
        return commit


_fields_of: dict[type[Part], set[str]] = {}


def _slim(commit: Commit) -> Commit:
    """Let all parts of a commit share the set of fields that pydantic gives each: most of their memory."""
    for part in commit.partitions:
        for each in (part, part.ledger, *part.segments):
            kind = type(each)
            if kind not in _fields_of:
                _fields_of[kind] = set(kind.model_fields)
            object.__setattr__(each, "__pydantic_fields_set__", _fields_of[kind])
    return commit
