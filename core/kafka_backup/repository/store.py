"""The object store, as small as it can be: objects are created once, read, listed, and never changed.

`Store` is the contract; `FileStore` keeps it on a local disk, `CloudStore` on S3, GCS, Azure and in
memory (`stores` says which a URL means). Everything above relies on these sentences and on nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self, TypeVar

from kafka_backup.errors import DamagedError, RefusedError, UnreachableError, WriterConflictError
from kafka_backup.records import Buffer
from kafka_backup.repository.documents import Document, sha256_of

_PART = re.compile(r"[a-zA-Z0-9._-]+")
_COMMIT_TRIES = 10
_D = TypeVar("_D", bound=Document)


class ObjectExistsError(RefusedError):
    """The key is taken, by our own earlier try or by another writer: read it to know which."""


class ObjectNotFoundError(DamagedError):
    """There is no object with this key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """An object of a listing; `size` in bytes."""

    key: str
    size: int


class ObjectWriter(Protocol):
    """Collects the bytes of one new object. Used by one thread; its memory does not grow with them."""

    def write(self, data: Buffer) -> None:
        """Append bytes. They may be changed or freed as soon as this returns."""

    def commit(self) -> None:
        """Make the object appear, whole and durable: it survives a power cut once this returns.

        Raises:
            ObjectExistsError: the key is taken; nothing was changed. May be called again.
        """

    def abort(self) -> None:
        """Forget what was written; does nothing after a commit. May be called again."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Abort, unless committed."""


class ObjectReader(Protocol):
    """An object that exists. Used by one thread.

    `read_into` raises as the methods of `Store` do.
    """

    @property
    def size(self) -> int:
        """Bytes of the object."""

    def read_into(self, buffer: memoryview, start: int) -> int:
        """Fill `buffer` with the bytes from `start` on; return how many there were."""

    def close(self) -> None:
        """Let go of it; may be called again."""


class Store(Protocol):
    """A place for objects. Safe for many threads, and for many processes at once.

    Keys are paths of names out of ``[a-zA-Z0-9._-]``; a folder is "" or a key that ends with "/".

    Every method raises UnreachableError when the store did not answer in time (its own retries
    included), AuthorizationError when it denies a right, and ConfigurationError when it cannot do
    what is asked of it or does not exist at all.
    """

    @property
    def url(self) -> str:
        """Where the store is, without a slash at the end and without secrets."""

    def create(self, key: str) -> ObjectWriter:
        """Start a new object. Nobody sees anything of it before its commit.

        Of any number of writers that commit one key, exactly one wins. An acknowledgement can get
        lost, so that the winner is told ObjectExistsError too: `commit_once` tells that apart.
        """

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Read bytes ``[start, end)`` of an object; an `end` beyond the object means its end.

        Raises:
            ObjectNotFoundError: no such object.
        """

    def open(self, key: str) -> ObjectReader:
        """Open an object that is read piece by piece, and more than once.

        A local store reads the file each time; a remote one fetches the object once and keeps it in memory.

        Raises:
            ObjectNotFoundError: no such object.
        """

    def size(self, key: str) -> int | None:
        """Return an object's size in bytes, None if there is no such object."""

    def list(self, folder: str, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield all objects whose key begins with `folder` and is greater than `start_after`.

        In the order of their keys' bytes. An object whose commit returned before the call is listed;
        one that is committed meanwhile may be.
        """

    def folders(self, folder: str) -> Sequence[str]:
        """Return the names of the folders directly in `folder`, sorted; some may hold no object."""

    def delete(self, key: str) -> None:
        """Remove an object; removing what is not there is no error."""

    def leftovers(self, *, remove: bool) -> Sequence[ObjectInfo]:
        """Return, and remove if asked to, what writers left behind that died: it is in no listing.

        Of writers that live nothing is touched, however long they take.
        """


def commit_once(store: Store, key: str, writer: ObjectWriter, *, sha256: str) -> Literal["created", "ours"]:
    """Commit an object that holds bytes nobody else can write, and find out whose a taken key is.

    Documents carry a random nonce and segment keys a random capture id, so equal bytes prove that
    the object is our own earlier try, whose acknowledgement got lost.

    Args:
        store: where `writer` is from.
        key: of the object.
        writer: filled, not committed.
        sha256: of the bytes in it.

    Raises:
        WriterConflictError: another writer's bytes are there; they are left alone.
        UnreachableError: the store refuses the key again and again although nothing is there.
    """
    for _ in range(_COMMIT_TRIES):
        try:
            writer.commit()
        except ObjectExistsError:
            try:
                found = store.get(key)
            except ObjectNotFoundError:
                # S3 answers 409 to both of two writers that collide: nothing was stored.
                continue
            if sha256_of(found) == sha256:
                return "ours"
            raise WriterConflictError(
                f"{store.url}/{key} was written by another writer meanwhile; nothing of it was changed. Make "
                "sure that only one run works on this, then run again"
            ) from None
        return "created"
    raise UnreachableError(
        f"{store.url}/{key} cannot be created: the store says {_COMMIT_TRIES} times that it exists, and then "
        "that it does not; run again"
    )


def put_once(store: Store, key: str, data: bytes) -> Literal["created", "ours"]:
    """Create an object from bytes that carry our nonce; see `commit_once`."""
    with store.create(key) as writer:
        writer.write(data)
        return commit_once(store, key, writer, sha256=sha256_of(data))


def read_document(store: Store, key: str, kind: type[_D]) -> _D | None:
    """Read a stored document, None if there is no such object.

    Raises:
        DamagedError: it is unreadable, or of another kind or format.
    """
    try:
        data = store.get(key)
    except ObjectNotFoundError:
        return None
    return kind.from_bytes(data, key=f"{store.url}/{key}")


def read_in_place(store: Store, key: str, kind: type[_D], key_of: Callable[[_D], str]) -> _D | None:
    """Read a stored document that must be the one of this place, None if there is no such object.

    Raises:
        DamagedError: it is unreadable, or a sound document of another place was put here.
    """
    document = read_document(store, key, kind)
    if document is not None and (own := key_of(document)) != key:
        raise DamagedError(
            f"{store.url}/{key} is the object of {own}; put the right one back from a copy of the repository"
        )
    return document


def check_key(key: str) -> str:
    """Return `key` if it can be one: names of safe characters, none of them ``.`` or ``..``.

    Raises:
        ValueError: it cannot, so a caller computed it from something unchecked.
    """
    if not all(_PART.fullmatch(part) and part not in (".", "..") for part in key.split("/")):
        raise ValueError(f"not a key: {key!r}")
    return key


def check_folder(folder: str) -> str:
    """Return `folder` if it is "" or a key that ends with "/".

    Raises:
        ValueError: it is not.
    """
    if folder and not folder.endswith("/"):
        raise ValueError(f"not a folder: {folder!r}")
    if folder:
        check_key(folder[:-1])
    return folder
