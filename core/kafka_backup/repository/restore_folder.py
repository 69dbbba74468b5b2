"""What is stored of one restore: its plans, attempts, verification, report and offset maps.

All of it is create-only, as everything in a repository. The highest plan is in force; a later one is
only ever made before the first attempt. The highest attempt owns the restore: whoever created it
may write to the target, or has abandoned the restore for good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from kafka_backup.errors import DamagedError
from kafka_backup.repository import layout
from kafka_backup.repository.documents import sha256_of
from kafka_backup.repository.restore_documents import (
    OffsetMapDocument,
    RestoreAttempt,
    RestorePlan,
    RestoreReport,
    RestoreVerification,
    SkippedSegment,
)
from kafka_backup.repository.store import Store, put_once, read_document

RestoreDocument = (
    RestorePlan | RestoreAttempt | SkippedSegment | RestoreVerification | RestoreReport | OffsetMapDocument
)
_D = TypeVar("_D", bound=RestoreDocument)
_PAGE = ".md"
_KINDS: Mapping[str, type[RestoreDocument]] = {
    "plans": RestorePlan,
    "attempts": RestoreAttempt,
    "skipped": SkippedSegment,
    "verified.json": RestoreVerification,
    "reports": RestoreReport,
    "offset-map": OffsetMapDocument,
}


class RestoreFolder:
    """The stored documents of one restore; see `Repository.restore_folder`. Safe for many threads.

    Attributes:
        restore_id: whose folder it is.
    """

    def __init__(self, store: Store, restore_id: str) -> None:
        """Nothing is read yet."""
        self.restore_id = restore_id
        self._store = store

    def plan(self) -> RestorePlan | None:
        """Return the plan in force, the one with the highest number; None if there is none."""
        return self._newest(layout.restore_plans_folder(self.restore_id), RestorePlan)

    def put_plan(self, plan: RestorePlan) -> None:
        """Store a plan; storing the same plan again does nothing.

        Raises:
            WriterConflictError: another run stored another plan with this number.
        """
        put_once(self._store, key_of(plan), plan.to_bytes())

    def attempts(self) -> Sequence[RestoreAttempt]:
        """Return the attempts, oldest first."""
        keys = [info.key for info in self._store.list(layout.attempts_folder(self.restore_id))]
        return [attempt for key in keys if (attempt := self._read(key, RestoreAttempt))]

    def newest_attempt(self) -> RestoreAttempt | None:
        """Return the attempt that owns the restore; None before the first one."""
        return self._newest(layout.attempts_folder(self.restore_id), RestoreAttempt)

    def attempt(self, number: int) -> RestoreAttempt | None:
        """Return one attempt, None if there is none; asked by name, so never stale."""
        return self._read(layout.attempt_key(self.restore_id, number), RestoreAttempt)

    def put_attempt(self, attempt: RestoreAttempt) -> None:
        """Store an attempt.

        Raises:
            WriterConflictError: another run took the number.
        """
        put_once(self._store, key_of(attempt), attempt.to_bytes())

    def skipped(self) -> Sequence[SkippedSegment]:
        """Return the damaged segments that the restore leaves out."""
        keys = [info.key for info in self._store.list(layout.skipped_folder(self.restore_id))]
        return [skip for key in keys if (skip := self._read(key, SkippedSegment))]

    def put_skipped(self, skip: SkippedSegment) -> None:
        """Store the decision to leave a segment out.

        Raises:
            WriterConflictError: it was stored before, in other words.
        """
        put_once(self._store, key_of(skip), skip.to_bytes())

    def verification(self) -> RestoreVerification | None:
        """Return the proof that all targets were compared; None before that. Asked by name, never stale."""
        return self._read(layout.restore_verification_key(self.restore_id), RestoreVerification)

    def put_verification(self, verification: RestoreVerification) -> None:
        """Store the proof that all targets were compared.

        Raises:
            WriterConflictError: another run stored one.
        """
        put_once(self._store, key_of(verification), verification.to_bytes())

    def report(self) -> RestoreReport | None:
        """Return the report of the newest finished attempt, None if none is finished."""
        return self._newest(layout.reports_folder(self.restore_id), RestoreReport)

    def put_report(self, report: RestoreReport) -> None:
        """Store the report of an attempt.

        Raises:
            WriterConflictError: the attempt has another report.
        """
        put_once(self._store, key_of(report), report.to_bytes())

    def put_page(self, attempt: int, page: bytes) -> None:
        """Store the page of a report, before the report that names its SHA-256.

        Raises:
            WriterConflictError: the attempt has another page.
        """
        put_once(self._store, layout.report_page_key(self.restore_id, attempt), page)

    def page(self, report: RestoreReport) -> str:
        """Return the page of a report.

        Raises:
            DamagedError: it is missing, or not the one that the report names.
        """
        key = layout.report_page_key(self.restore_id, report.attempt)
        data = self._store.get(key)
        if sha256_of(data) != report.page_sha256:
            raise DamagedError(
                f"{self._store.url}/{key} is not the page of its report; put the right one back from a copy of the "
                "repository"
            )
        return data.decode()

    def offset_map(self, topic: str, partition: int) -> OffsetMapDocument | None:
        """Return the offset map of one source partition, None if there is none."""
        return self._read(layout.offset_map_key(self.restore_id, topic, partition), OffsetMapDocument)

    def put_offset_map(self, document: OffsetMapDocument) -> None:
        """Store the offset map of one source partition; the same map again does nothing.

        Raises:
            WriterConflictError: the restore has another map of it.
        """
        put_once(self._store, key_of(document), document.to_bytes())

    @property
    def is_open(self) -> bool:
        """Whether the plan still needs what it names: it is neither finished nor abandoned."""
        newest = self.newest_attempt()
        return self.report() is None and (newest is None or newest.action != "abandon")

    def _newest(self, folder: str, kind: type[_D]) -> _D | None:
        keys = [info.key for info in self._store.list(folder) if info.key.endswith(".json")]
        return self._read(keys[-1], kind) if keys else None

    def _read(self, key: str, kind: type[_D]) -> _D | None:
        return _read(self._store, key, kind)


def read_restore_document(store: Store, key: str) -> RestoreDocument | None:
    """Read whatever a restore stored under a key; None if there is no such object.

    Raises:
        DamagedError: it is unreadable, belongs to another key, or nothing of a restore has such a key.
    """
    if key.endswith(_PAGE):
        report = _read(store, key.removesuffix(_PAGE) + ".json", RestoreReport)
        if report is not None:  # a run that died between the two has a page alone
            RestoreFolder(store, report.restore_id).page(report)
        return report
    kind = _KINDS.get(key.removeprefix(layout.RESTORES).partition("/")[2].partition("/")[0])
    if kind is None:
        raise DamagedError(f"{store.url}/{key} is nothing that a restore stores; remove it")
    return _read(store, key, kind)


def _read(store: Store, key: str, kind: type[_D]) -> _D | None:
    document = read_document(store, key, kind)
    if document is not None and (own := key_of(document)) != key:
        raise DamagedError(
            f"{store.url}/{key} is the object of {own}; put the right one back from a copy of the repository"
        )
    return document


def key_of(document: RestoreDocument) -> str:
    """The one key under which a document of a restore may be stored."""
    match document:
        case RestorePlan():
            return layout.restore_plan_key(document.request.restore_id, document.number)
        case RestoreAttempt():
            return layout.attempt_key(document.restore_id, document.attempt)
        case SkippedSegment():
            return layout.skipped_key(
                document.restore_id, document.source, document.partition, document.commit, document.index
            )
        case RestoreVerification():
            return layout.restore_verification_key(document.restore_id)
        case RestoreReport():
            return layout.report_key(document.restore_id, document.attempt)
        case OffsetMapDocument():
            return layout.offset_map_key(document.restore_id, document.source, document.partition)
