"""Finds and stores the documents of consumer positions in a repository."""

from __future__ import annotations

from collections.abc import Sequence

from kafka_backup.errors import ConfigurationError, DamagedError
from kafka_backup.repository import layout
from kafka_backup.repository.documents import sha256_of
from kafka_backup.repository.group_documents import GroupSnapshot
from kafka_backup.repository.store import ObjectNotFoundError, Store, put_once


class GroupStore:
    """The group snapshots of one repository. Safe for many threads."""

    def __init__(self, store: Store) -> None:
        """Prepare; nothing is read yet."""
        self._store = store

    def snapshot_ids(self) -> Sequence[str]:
        """Return the ids of all group snapshots, oldest first."""
        return [
            snapshot_id
            for info in self._store.list(layout.GROUPS)
            if (snapshot_id := layout.parse_group_snapshot_key(info.key)) is not None
        ]

    def snapshot(self, snapshot_id: str) -> GroupSnapshot:
        """Return one group snapshot.

        Raises:
            ConfigurationError: there is none with this id.
            DamagedError: it is unreadable, or stored under another id.
        """
        try:
            key = layout.group_snapshot_key(snapshot_id)
            data = self._store.get(key)
        except (ValueError, ObjectNotFoundError):
            raise ConfigurationError(
                f"the repository at {self._store.url} holds no group snapshot {snapshot_id!r}"
            ) from None
        snapshot = GroupSnapshot.from_stored(data, key=f"{self._store.url}/{key}")
        if snapshot.snapshot_id != snapshot_id:
            raise DamagedError(
                f"{self._store.url}/{key} is group snapshot {snapshot.snapshot_id}; put the right object back "
                "from a copy"
            )
        return snapshot

    def put_snapshot(self, snapshot: GroupSnapshot) -> tuple[str, str]:
        """Store a group snapshot and return where it is, and the object's SHA-256.

        Raises:
            WriterConflictError: another one has the same id.
        """
        key = layout.group_snapshot_key(snapshot.snapshot_id)
        data = snapshot.to_stored()
        put_once(self._store, key, data)
        return f"{self._store.url}/{key}", sha256_of(data)
