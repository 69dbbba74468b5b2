"""A repository: the backups of one cluster, in one place of a store."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from kafka_backup.errors import ConfigurationError, DamagedError, RefusedError, WriterConflictError
from kafka_backup.repository import layout
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import Capture, Expiry, RepositoryDocument
from kafka_backup.repository.expiry import read_expiries
from kafka_backup.repository.restore_documents import RestorePlan
from kafka_backup.repository.restore_folder import RestoreFolder
from kafka_backup.repository.store import Store, put_once, read_document

_READERS = 8
_LARGEST_REQUEST = 1 << 20
_WITNESSES = 3
"""Newest captures against which heads are checked: one alone may not have taken every topic."""


class Repository:
    """Finds and stores documents and opens commit logs. Safe for many threads.

    Attributes:
        store: where everything is.
        document: the repository's id, and the cluster that it belongs to.
    """

    def __init__(self, store: Store, document: RepositoryDocument) -> None:
        """Use `open`."""
        self.store = store
        self.document = document
        self._captures: dict[str, Capture] = {}
        self._heads: dict[tuple[str, str], tuple[int, str, str]] | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, store: Store, *, cluster_id: str | None, create: bool) -> Self:
        """Open the repository in a store.

        Args:
            store: where it is.
            cluster_id: the cluster that it must belong to; None where no cluster is at hand.
            create: make one for `cluster_id` if there is none.

        Raises:
            ConfigurationError: there is none, and none is to be made.
            RefusedError: it belongs to another cluster.
            DamagedError: its document is unreadable, or of a newer format.
        """
        document = read_document(store, layout.REPOSITORY, RepositoryDocument)
        if document is None:
            if not create or cluster_id is None:
                raise ConfigurationError(
                    f"there is no repository at {store.url}; check the repository's URL, or run a backup, which "
                    "makes one"
                )
            document = _make(store, cluster_id)
        if cluster_id is not None and document.cluster_id != cluster_id:
            raise RefusedError(
                f"the repository at {store.url} holds backups of cluster {document.cluster_id}, not of "
                f"{cluster_id}; use one repository for each cluster"
            )
        return cls(store, document)

    @classmethod
    def find(cls, store: Store, *, cluster_id: str | None) -> Self | None:
        """Open the repository in a store, None if there is none; errors as `open`."""
        if store.size(layout.REPOSITORY) is None:
            return None
        return cls.open(store, cluster_id=cluster_id, create=False)

    def topics(self) -> Sequence[tuple[str, str]]:
        """Return topic and topic id of every incarnation that has objects, sorted by name."""
        names = self.topic_names()
        with ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix="topics") as pool:
            incarnations = pool.map(self._topic_ids, names)
            return [
                (name, topic_id) for name, ids in zip(names, incarnations, strict=True) for topic_id in ids
            ]

    def topic_names(self) -> Sequence[str]:
        """Return the names of all topics that have objects, sorted."""
        return [name for name in self.store.folders(layout.TOPICS) if layout.is_topic_name(name)]

    def incarnations(self, topic: str) -> Sequence[str]:
        """Return the topic ids under which a topic has objects, sorted; a ValueError for a bad name."""
        return self._topic_ids(topic)

    def _topic_ids(self, topic: str) -> Sequence[str]:
        return [name for name in self.store.folders(layout.topic_folder(topic)) if layout.is_topic_id(name)]

    def commit_log(self, topic: str, topic_id: str) -> CommitLog:
        """Open the commit log of an incarnation; an unknown one has an empty log.

        Raises:
            DamagedError: the log is damaged, or lacks a commit that one of the newest captures names.
        """
        witness = self._witnessed_heads().get((topic, topic_id))
        known_head = -1 if witness is None else witness[0]
        log = CommitLog.open(self.store, topic, topic_id, known_head=known_head)
        if witness is not None:
            head, sha256, capture_id = witness
            if log.head is None or log.head < head or log.sha256_of(head) != sha256:
                raise DamagedError(
                    f"capture {capture_id} names commit {head} of {topic} ({topic_id}) with SHA-256 {sha256}, but "
                    f"{log.uri(head)} is missing or another one; put it back from a copy of the repository"
                )
        return log

    def logs_to_append(self, incarnations: Sequence[tuple[str, str]]) -> Sequence[CommitLog | DamagedError]:
        """Open the commit logs of some topics and topic ids, in this order, as their writer.

        In the place of a log that is damaged comes what `commit_log` raises for it.
        """

        def open_one(incarnation: tuple[str, str]) -> CommitLog | DamagedError:
            try:
                log = self.commit_log(*incarnation)
            except DamagedError as error:
                return error
            log.renew_checkpoint()
            return log

        with ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix="logs") as pool:
            return list(pool.map(open_one, incarnations))

    def commit_logs(self, topic: str) -> Sequence[CommitLog]:
        """Open the commit logs of all incarnations of a topic, in the order of their first commits.

        An incarnation without any commit, of a first capture that was interrupted, comes last.

        Raises:
            ConfigurationError: the repository holds no such topic.
            DamagedError: as `commit_log`.
        """
        ids = self._topic_ids(topic) if layout.is_topic_name(topic) else ()
        if not ids:
            raise ConfigurationError(f"the repository at {self.store.url} holds no topic {topic!r}")
        logs = [self.commit_log(topic, topic_id) for topic_id in ids]
        return sorted(logs, key=lambda log: 2**63 if log.head is None else log.began_at)

    def captures(self) -> Sequence[Capture]:
        """Return all captures, by the time when they began.

        Raises:
            DamagedError: one is unreadable, or stored under another id.
        """
        return sorted(self._read_captures(self.capture_ids()), key=lambda c: (c.started_at, c.capture_id))

    def capture_ids(self) -> Sequence[str]:
        """Return the ids of all captures; they begin with the time when each began, so the last is the newest."""
        return [
            capture_id
            for info in self.store.list(layout.CAPTURES)
            if (capture_id := layout.parse_capture_key(info.key)) is not None
        ]

    def newest_capture(self) -> Capture | None:
        """Return the newest capture, None if there is none."""
        ids = self.capture_ids()
        return self._listed_capture(ids[-1]) if ids else None

    def restore_requests(self) -> Iterator[tuple[str, bytes]]:
        """Yield key and content of every file that somebody dropped to ask for a restore.

        Raises:
            DamagedError: one is larger than any request can be.
        """
        for info in self.store.list(layout.RESTORE_REQUESTS):
            if info.size > _LARGEST_REQUEST:
                raise DamagedError(
                    f"{self.store.url}/{info.key} has {info.size} bytes and cannot be the request of a restore; "
                    "remove it"
                )
            yield info.key, self.store.get(info.key)

    def newest_captures(self, *, before: str | None = None) -> Iterator[Capture]:
        """Yield captures from the newest back, each read when it is asked for.

        Args:
            before: a capture id; only captures with smaller ids, which began earlier.
        """
        for capture_id in reversed(self.capture_ids()):
            if before is None or capture_id < before:
                yield self._listed_capture(capture_id)

    def capture(self, capture_id: str) -> Capture:
        """Return one capture.

        Raises:
            ConfigurationError: there is none with this id.
            DamagedError: it is unreadable, or stored under another id.
        """
        if not layout.is_capture_id(capture_id) or (found := self._known_capture(capture_id)) is None:
            raise ConfigurationError(f"the repository at {self.store.url} holds no capture {capture_id!r}")
        return found

    def read_capture(self, capture_id: str) -> Capture:
        """Read a capture that was listed, and do not keep it: for those who read very many.

        Raises:
            DamagedError: it is unreadable, stored under another id, or not there although it was listed.
        """
        return self._there(capture_id, self._find_capture(capture_id))

    def _listed_capture(self, capture_id: str) -> Capture:
        return self._there(capture_id, self._known_capture(capture_id))

    def _there(self, capture_id: str, found: Capture | None) -> Capture:
        if found is None:
            raise DamagedError(
                f"{self.store.url}/{layout.capture_key(capture_id)} is listed and cannot be read: it does not exist. Run "
                "again; if it stays so, put it back from a copy of the repository"
            )
        return found

    def _known_capture(self, capture_id: str) -> Capture | None:
        with self._lock:
            known = self._captures.get(capture_id)
        if known is None and (known := self._find_capture(capture_id)) is not None:
            with self._lock:
                self._captures[capture_id] = known
        return known

    def _find_capture(self, capture_id: str) -> Capture | None:
        key = layout.capture_key(capture_id)
        capture = read_document(self.store, key, Capture)
        if capture is not None and capture.capture_id != capture_id:
            raise DamagedError(
                f"{self.store.url}/{key} is capture {capture.capture_id}; put the right object back from a copy"
            )
        return capture

    def put_capture(self, capture: Capture) -> None:
        """Store a finished capture; every commit that it names must exist.

        Raises:
            WriterConflictError: another one has the same id.
        """
        put_once(self.store, layout.capture_key(capture.capture_id), capture.to_bytes())

    def expiries(self) -> Sequence[Expiry]:
        """Return what each run of expiry decided, oldest first; never from memory.

        Raises:
            DamagedError: one is unreadable.
        """
        return read_expiries(self.store)

    def put_expiry(self, expiry: Expiry) -> None:
        """Store what a run of expiry decided.

        Raises:
            WriterConflictError: another one has the same id.
        """
        put_once(self.store, layout.expiry_key(expiry.expiry_id), expiry.to_bytes())

    def restore_folder(self, restore_id: str) -> RestoreFolder:
        """What is stored of one restore, existing or not.

        Raises:
            ConfigurationError: no restore can have this id.
        """
        if not layout.is_restore_id(restore_id):
            raise ConfigurationError(
                f"not a restore id: {restore_id!r} (letters, digits, '.', '_', '-', beginning with a letter or digit)"
            )
        return RestoreFolder(self.store, restore_id)

    def pins(self) -> Sequence[RestorePlan]:
        """Return the plan in force of every restore that is neither finished nor abandoned.

        Whatever these plans read must stay: each names, per topic, the commit whose state it
        restores. A restore stores its plan before it looks at the heads a last time, so of an
        expiry that commits first and a restore one always sees the other.
        """
        ids = [name for name in self.store.folders(layout.RESTORES) if layout.is_restore_id(name)]

        def pin(restore_id: str) -> RestorePlan | None:
            folder = self.restore_folder(restore_id)
            return folder.plan() if folder.is_open else None

        with ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix="pins") as pool:
            return [plan for plan in pool.map(pin, ids) if plan is not None]

    def _read_captures(self, ids: Sequence[str]) -> Sequence[Capture]:
        with ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix="captures") as pool:
            return list(pool.map(self._listed_capture, ids))

    def _witnessed_heads(self) -> dict[tuple[str, str], tuple[int, str, str]]:
        """Head, SHA-256 and capture id that the newest captures name for each incarnation; read once."""
        with self._lock:
            if self._heads is not None:
                return self._heads
        heads: dict[tuple[str, str], tuple[int, str, str]] = {}
        for capture in self._read_captures(self.capture_ids()[-_WITNESSES:]):
            for entry in capture.topics:
                known = heads.get((entry.topic, entry.topic_id))
                if known is None or known[0] < entry.head:
                    heads[entry.topic, entry.topic_id] = (entry.head, entry.head_sha256, capture.capture_id)
        with self._lock:
            self._heads = heads
        return heads


def _make(store: Store, cluster_id: str) -> RepositoryDocument:
    document = RepositoryDocument(
        repository_id=secrets.token_hex(16),
        cluster_id=cluster_id,
        created_at=time.time_ns() // 1_000_000,
    )
    try:
        put_once(store, layout.REPOSITORY, document.to_bytes())
    except WriterConflictError:
        made = read_document(store, layout.REPOSITORY, RepositoryDocument)
        if made is None:
            raise
        return made
    return document
