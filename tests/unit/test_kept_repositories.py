"""Repositories that earlier releases wrote, this one included: they open, whole, and say what they said then."""

from __future__ import annotations

import fnmatch
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import zstandard

import kafka_backup.repository
from kafka_backup.repository.acceptances import AcceptedAbsence, AcceptedLosses
from kafka_backup.repository.checkpoints import Checkpoint
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import Capture, Commit, Document, Expiry, RepositoryDocument
from kafka_backup.repository.drills import DrillReport
from kafka_backup.repository.group_documents import GroupSnapshot, PositionsBefore, ResetPlan, ResetStep
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import (
    OffsetMapDocument,
    RestoreAttempt,
    RestorePlan,
    RestoreReport,
    RestoreVerification,
    SkippedSegment,
)
from kafka_backup.repository.store import Store
from kafka_backup.repository.stores import open_store
from tests.support.kept_repository import CLUSTER_ID, QUESTIONS, digest, releases, unpack
from tests.support.records import Record, decode_records
from tests.support.shell import Shell

PLACES: Mapping[str, type[Document]] = {
    "repository.json": RepositoryDocument,
    "topics/*/commits/*.json": Commit,
    "topics/*/checkpoints/*.json": Checkpoint,
    "captures/*.json": Capture,
    "groups/*.json.zst": GroupSnapshot,
    "expiries/*.json": Expiry,
    "accepted/losses/*.json": AcceptedLosses,
    "accepted/absences/*.json": AcceptedAbsence,
    "drills/*.json": DrillReport,
    "restores/*/plans/*.json": RestorePlan,
    "restores/*/attempts/*.json": RestoreAttempt,
    "restores/*/skipped/*.json": SkippedSegment,
    "restores/*/verified.json": RestoreVerification,
    "restores/*/reports/*.json": RestoreReport,
    "restores/*/offset-map/*.json": OffsetMapDocument,
    "resets/*/plan.json": ResetPlan,
    "resets/*/before.json": PositionsBefore,
    "resets/*/steps/*.json": ResetStep,
}
OTHERS = ("topics/*.log", "topics/*.log.zst", "topics/*/checkpoints/*.jsonl.zst", "restores/*/reports/*.md")


class Kept:
    """A kept repository, unpacked."""

    def __init__(self, release: str, folder: Path) -> None:
        self.expected: Mapping[str, Any] = unpack(release, folder)
        self.shell = Shell(folder, "127.0.0.1:1")
        self.store: Store = open_store(f"file://{self.shell.repository}")

    def objects(self) -> Iterator[tuple[str, bytes]]:
        for info in self.store.list(""):
            yield info.key, self.store.get(info.key)

    def kind(self, key: str) -> type[Document] | None:
        """Of the document with this key; None if it is none."""
        found = {kind for place, kind in PLACES.items() if fnmatch.fnmatchcase(key, place)}
        if any(fnmatch.fnmatchcase(key, place) for place in OTHERS):
            return None
        (kind,) = found
        return kind


@pytest.fixture(params=releases())
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    return Kept(request.param, tmp_path)


def _unpacked(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


@cache
def _kinds() -> frozenset[type[Document]]:
    """Every kind of document that this release can write."""
    for module in pkgutil.iter_modules(kafka_backup.repository.__path__):
        importlib.import_module(f"kafka_backup.repository.{module.name}")
    return frozenset(kind for kind in Document.__subclasses__() if not kind.__name__.startswith("_"))


def test_every_document_opens(kept: Kept) -> None:
    """Tests that each object of a kept repository is of a known kind and is read.

    It matters because a backup of this year is restored in another one, by whatever is installed then.
    A field that was renamed, or is demanded now, makes every older repository unreadable.
    """
    for key, data in kept.objects():
        if (kind := kept.kind(key)) is not None:
            text = _unpacked(data) if key.endswith(".zst") else data
            kind.from_bytes(text, key=key)


def test_the_newest_kept_repository_holds_every_kind_of_document(tmp_path: Path) -> None:
    """Tests that the repository kept of the newest release has all kinds of documents that there are.

    It matters because what is not kept is not tested by the releases after.
    A new kind of document would be free to change without anybody noticing.
    """
    kept = Kept(releases()[-1], tmp_path)
    assert {kept.kind(key) for key, _ in kept.objects()} - {None} == _kinds()


def _holds(answer: object, expected: object) -> bool:
    """Whether an answer says what was expected, and possibly more; how long it took is nothing to hold."""
    if isinstance(expected, dict):
        return isinstance(answer, dict) and all(
            key == "seconds" or (key in answer and _holds(answer[key], value))
            for key, value in expected.items()
        )
    if isinstance(expected, list):
        return (
            isinstance(answer, list)
            and len(answer) == len(expected)
            and all(_holds(*pair) for pair in zip(answer, expected, strict=True))
        )
    return answer == expected


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_answers_are_those_of_then(kept: Kept, question: str) -> None:
    """Tests that each command that needs no cluster answers as the release that wrote the repository.

    It matters because scripts and people compare what a repository says today with what it said.
    A loss could be forgotten, a capture not be listed, an offset be mapped to another place.
    """
    expected = kept.expected["answers"][question]
    answer = kept.shell.json(*QUESTIONS[question], code=expected["code"])
    assert _holds(answer, expected["answer"]), answer


def _records(store: Store, log: CommitLog, partition: int, head: int) -> Iterator[Record]:
    """By the tests' own decoder."""
    for segment in log.segments(partition, until_commit=head):
        data = store.get(segment.key)
        data = _unpacked(data) if segment.key.endswith(".zst") else data
        yield from (record for record in decode_records(data) if segment.start <= record.offset < segment.end)


def test_every_capture_gives_back_what_consumers_saw(kept: Kept) -> None:
    """Tests that each capture that has not expired holds the records that an independent client read at that time.

    It matters because this is what a repository is for.
    A range that is cut elsewhere, or an expiry that is read otherwise, changes what comes back without any damage.
    """
    repository = Repository.open(kept.store, cluster_id=CLUSTER_ID, create=False)
    gone = {capture_id for expiry in repository.expiries() for capture_id in expiry.captures}
    checked = set()
    for capture_id, topics in kept.expected["captures"].items():
        if capture_id in gone:
            continue
        for entry in repository.capture(capture_id).topics:
            log = repository.commit_log(entry.topic, entry.topic_id)
            for partition, expected in topics.get(entry.topic, {}).items():
                found = [
                    record
                    for record in _records(kept.store, log, int(partition), entry.head)
                    if record.offset >= expected["log_start"]
                ]
                assert (len(found), digest(found)) == (expected["records"], expected["digest"])
                checked.add((entry.topic, partition))
    assert len(checked) >= 6


def test_a_kept_repository_can_be_cared_for(kept: Kept) -> None:
    """Tests an expiry of everything that may go, in a repository of an earlier release; then it is verified again.

    It matters because repositories outlive releases, and the next one goes on with them.
    An expiry that misreads an older promise deletes what somebody still has a right to.
    """
    before = kept.shell.json("verify", "--level", "data", code=4)["problems"]
    for _ in range(2):
        kept.shell.json("restore", "--abandon", "pinned")
        kept.shell.json("expire", "--keep-captures", "1", "--unfinished", "--execute")
        assert kept.shell.json("verify", "--level", "data", code=4)["problems"] == before
