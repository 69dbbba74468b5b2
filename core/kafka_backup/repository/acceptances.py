"""What people accepted as lost: offsets that captures could not save, topics that are gone.

An acceptance is an object of its own, created once: commits and captures stay as they are, and go on
saying what was lost. It covers exactly what it names, never what is lost later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, TypeVar

from pydantic import Field

from kafka_backup.errors import DamagedError
from kafka_backup.repository import layout
from kafka_backup.repository.documents import (
    Count,
    Document,
    Identifier,
    Milliseconds,
    Part,
    Sha256,
    TopicId,
    TopicName,
)
from kafka_backup.repository.store import Store, put_once, read_document


class AcceptedCommit(Part):
    """A commit whose losses are accepted."""

    topic: TopicName
    topic_id: TopicId
    number: Count
    sha256: Sha256


class AcceptedLosses(Document):
    """``accepted/losses/<capture id>/<n>.json``: the losses of some commits of a capture are accepted."""

    kind: ClassVar[str] = "accepted losses"

    capture_id: Identifier
    number: Count
    nonce: Identifier
    accepted_at: Milliseconds
    reason: Annotated[str, Field(min_length=1, max_length=1000)]
    commits: Annotated[tuple[AcceptedCommit, ...], Field(min_length=1)]

    @property
    def key(self) -> str:
        """Where it belongs."""
        return layout.accepted_losses_key(self.capture_id, self.number)


class AcceptedAbsence(Document):
    """``accepted/absences/<topic>/<topic id>/<n>.json``: the topic is gone since commit n, and that is meant.

    Once the topic has a commit after n, it was seen again, and this says nothing any more.
    """

    kind: ClassVar[str] = "accepted absence"

    topic: TopicName
    topic_id: TopicId
    head: Count
    head_sha256: Sha256
    nonce: Identifier
    accepted_at: Milliseconds
    capture_id: Identifier

    @property
    def key(self) -> str:
        """Where it belongs."""
        return layout.accepted_absence_key(self.topic, self.topic_id, self.head)


Acceptance = AcceptedLosses | AcceptedAbsence
_A = TypeVar("_A", AcceptedLosses, AcceptedAbsence)


def put_acceptance(store: Store, acceptance: Acceptance) -> None:
    """Store an acceptance.

    Raises:
        WriterConflictError: somebody else stored another one in its place.
    """
    put_once(store, acceptance.key, acceptance.to_bytes())


def accepted_losses(store: Store) -> Iterator[tuple[str, AcceptedLosses | DamagedError]]:
    """Yield key and document of all accepted losses, or what is wrong with the object."""
    yield from _read(store, layout.ACCEPTED_LOSSES, AcceptedLosses)


def accepted_absences(store: Store) -> Iterator[tuple[str, AcceptedAbsence | DamagedError]]:
    """Yield key and document of all accepted absences, or what is wrong with the object."""
    yield from _read(store, layout.ACCEPTED_ABSENCES, AcceptedAbsence)


def accepted_heads(store: Store) -> Mapping[tuple[str, str], set[int]]:
    """Return the commits as of which topics (name, topic id) are accepted as gone; one listing."""
    heads: dict[tuple[str, str], set[int]] = defaultdict(set)
    for info in store.list(layout.ACCEPTED_ABSENCES):
        parsed = layout.parse_accepted_absence_key(info.key)
        if parsed is not None:
            topic, topic_id, head = parsed
            heads[topic, topic_id].add(head)
    return heads


def _read(store: Store, folder: str, kind: type[_A]) -> Iterator[tuple[str, _A | DamagedError]]:
    for info in store.list(folder):
        try:
            document = read_document(store, info.key, kind)
            if document is not None and document.key != info.key:
                raise DamagedError(
                    f"{store.url}/{info.key} is the object of {document.key}; put the right one back from a copy"
                )
        except DamagedError as error:
            yield info.key, error
            continue
        if document is not None:
            yield info.key, document
