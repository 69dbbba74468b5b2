"""The stored documents: what each object of the repository says.

Every document is canonical JSON (sorted keys, no spaces, UTF-8), so that equal content has equal
bytes and one SHA-256, and begins with a checksum of itself, so that one flipped bit is always seen.
Offsets are 64-bit, ranges half-open, times milliseconds since the epoch,
sizes bytes. Unknown fields and unknown format versions are refused: a reader never guesses.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from kafka_backup.errors import DamagedError

FORMAT_VERSION: Literal[1] = 1

_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_TOPIC_ID = re.compile(r"[a-zA-Z0-9_-]{22}")
_IDENTIFIER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,119}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SEGMENT_NAME = re.compile(
    r"(0|[1-9][0-9]{0,9})/[0-9]{20}-[a-zA-Z0-9][a-zA-Z0-9._-]{0,119}-(0|[1-9][0-9]*)\.log(\.zst)?"
)


def _topic_name(value: str) -> str:
    if not _TOPIC_NAME.fullmatch(value) or value in (".", ".."):
        raise ValueError(f"not a Kafka topic name: {value!r}")
    return value


def _pattern(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(f"not {what}: {value!r}")
        return value

    return AfterValidator(check)


TopicName = Annotated[str, AfterValidator(_topic_name)]
TopicId = Annotated[str, _pattern(_TOPIC_ID, "a topic id (22 characters of URL-safe base64)")]
Identifier = Annotated[str, _pattern(_IDENTIFIER, "an identifier (letters, digits, '.', '_', '-')")]
SegmentName = Annotated[str, _pattern(_SEGMENT_NAME, "the name of a segment below its incarnation's folder")]
Sha256 = Annotated[str, _pattern(_SHA256, "a SHA-256 in hexadecimal")]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
SegmentSize = Annotated[int, Field(ge=0, le=2**31)]
"""Bytes of a segment, which a reader allocates on a commit's word: more than any capture makes is refused."""
Milliseconds = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class Part(BaseModel):
    """A piece of a document. Immutable and strict: no coercion, no unknown field."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


_SEAL = b'{"document_sha256":"'
_SEAL_END = b'",'
_SEAL_SIZE = len(_SEAL) + 64 + len(_SEAL_END)


def seal_document(text: bytes) -> bytes:
    """Put a checksum in front of a JSON object: its SHA-256, as the first field."""
    return _SEAL + sha256_of(text).encode() + _SEAL_END + text[1:]


def open_document(data: bytes, *, key: str, kind: str) -> bytes:
    """Return the JSON object that `seal_document` was given.

    Raises:
        DamagedError: the checksum is not there, or is of other bytes.
    """
    text = b"{" + data[_SEAL_SIZE:]
    if data != seal_document(text):
        raise DamagedError(
            f"{key} is not a readable {kind} document (its checksum is missing or wrong): it is damaged; put it back "
            "from a copy of the repository"
        )
    return text


class Document(Part):
    """A whole object of the repository, as canonical JSON with a checksum of itself."""

    kind: ClassVar[str]

    format_version: Literal[1] = FORMAT_VERSION

    def to_bytes(self) -> bytes:
        """Return the sealed canonical JSON of this document."""
        text = json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        return seal_document(text.encode())

    @classmethod
    def from_bytes(cls, data: bytes, *, key: str) -> Self:
        """Parse a stored document.

        Args:
            data: the object's bytes.
            key: the object's key, for the error message only.

        Raises:
            DamagedError: the bytes are not those of a document of this kind and format version.
        """
        text = open_document(data, key=key, kind=cls.kind)
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(step) for step in first["loc"]) or "document"
            raise DamagedError(
                f"{key} is not a readable {cls.kind} document ({place}: {first['msg']}); it was "
                "written by a newer release or another program"
            ) from error


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of `data` in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


class RepositoryDocument(Document):
    """``repository.json``: whose backups these are."""

    kind: ClassVar[str] = "repository"

    repository_id: Identifier
    cluster_id: str
    created_at: Milliseconds


class Window(Part):
    """A half-open span of time ``[start, end)`` in ms: the label of a scheduled capture."""

    start: Milliseconds
    end: Milliseconds

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.start >= self.end:
            raise ValueError("a window must end after it starts")
        return self


class ConfigurationValue(Part):
    """One topic configuration value and where the broker took it from.

    `source` is Kafka's ConfigSource name: ``DYNAMIC_TOPIC_CONFIG``, ``STATIC_BROKER_CONFIG``,
    ``DEFAULT_CONFIG`` and so on. `value` is None where the broker hides a sensitive one.
    """

    value: str | None
    source: str


class Incarnation(Part):
    """A topic under one topic id, as the brokers described it."""

    topic: TopicName
    topic_id: TopicId
    partition_count: Annotated[int, Field(ge=1)]
    replication_factor: Annotated[int, Field(ge=1)]
    configuration: dict[str, ConfigurationValue]

    @property
    def compacts(self) -> bool:
        """Whether the topic's cleanup policy holds ``compact``."""
        policy = self.configuration.get("cleanup.policy")
        return policy is not None and "compact" in (policy.value or "").split(",")


class Ledger(Part):
    """The account of every offset in a range, each term counted from its own evidence."""

    records: Count = 0
    control: Count = 0
    aborted: Count = 0
    compacted: Count = 0
    lost: Count = 0

    @property
    def total(self) -> int:
        """Offsets accounted for: the length of the range."""
        return self.records + self.control + self.aborted + self.compacted + self.lost

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(
            records=self.records + other.records,
            control=self.control + other.control,
            aborted=self.aborted + other.aborted,
            compacted=self.compacted + other.compacted,
            lost=self.lost + other.lost,
        )


class LostSpan(Part):
    """Offsets ``[start, end)`` that no reader can get any more, and why."""

    start: Count
    end: Count
    reason: Literal["retention", "truncation", "unexplained"]


class OffsetSpan(Part):
    """Offsets ``[start, end)``."""

    start: Count
    end: Count


class LeaderEpoch(Part):
    """A leader epoch and the first offset that it wrote (Kafka's LeaderEpochFileCache)."""

    epoch: Annotated[int, Field(ge=0)]
    start_offset: Count


class SegmentEntry(Part):
    """One segment object of a partition. Its key is computed from these fields and the commit's.

    Attributes:
        first_offset: base offset of the first batch (may lie below the range's start, where log
            start was inside that batch), and the number in the key.
        index: the counter ``k`` in the key, unique within capture and partition.
        compression: how the object is stored: as it is, or as one zstd frame.
        stored_size: bytes of the object; `sha256` is over exactly these.
        raw_size: bytes of the record batches.
        last_offset: last offset of the last batch (inclusive).
        max_timestamp: the largest max timestamp of its batches, ms.
        largest_batch: bytes of its largest batch.
        reencoded_batches: batches that no target takes as they are (an offset gap inside, broker
            timestamps, a delete horizon), so that a restore re-encodes them.
        codecs: producer-side codecs that occur in it, sorted.
    """

    first_offset: Count
    last_offset: Count
    index: Count
    compression: Literal["none", "zstd"]
    stored_size: SegmentSize
    sha256: Sha256
    raw_size: SegmentSize
    batches: Count
    records: Count
    max_timestamp: Milliseconds
    largest_batch: Count
    reencoded_batches: Count
    codecs: tuple[str, ...]


class PartitionRange(Part):
    """What a commit covers of one partition: ``[start, end)`` and its segments.

    Attributes:
        not_captured: offsets skipped on purpose, by an explicit `start` setting.
        truncated_to: the log was cut back to this offset by an unclean election; segments of
            earlier commits at or above it no longer belong to the partition.
        log_start_offset: first offset that the broker still had, as last_stable_offset and
            high_watermark at the instant when the capture asked for the ends.
        leader_epoch: of the leader whose log held everything below `end` as it was captured. While
            the partition keeps this leader, its log cannot have been cut back.
        leader_epochs: the epochs that first occur in this range, and from which offset on.
    """

    partition: Count
    start: Count
    end: Count
    log_start_offset: Count
    last_stable_offset: Count
    high_watermark: Count
    leader_epoch: Count
    leader_epochs: tuple[LeaderEpoch, ...] = ()
    ledger: Ledger
    lost: tuple[LostSpan, ...] = ()
    not_captured: OffsetSpan | None = None
    truncated_to: Count | None = None
    segments: tuple[SegmentEntry, ...] = ()

    @model_validator(mode="after")
    def _accounts_for_every_offset(self) -> Self:
        if self.end < self.start:
            raise ValueError(f"range [{self.start}, {self.end}) ends before it starts")
        if self.ledger.total != self.end - self.start:
            raise ValueError(
                f"the ledger accounts for {self.ledger.total} offsets of [{self.start}, {self.end})"
            )
        if self.ledger.lost != sum(span.end - span.start for span in self.lost):
            raise ValueError("the lost spans do not add up to the ledger's lost offsets")
        return self


class Commit(Document):
    """``commits/<n>.json``: makes one topic's part of a capture real, or takes data away again.

    `previous_sha256` chains it to commit n-1 (None for commit 0). `nonce` is made once per
    process: equal bytes at the same key prove that the object is our own earlier try.

    Attributes:
        action: ``capture``; ``expire``: nothing is promised of the segments in `expired` any more;
            ``sweep``: the objects in `swept` are about to be deleted. The last two also stop every
            writer that began before them, so nothing that they name can become part of a commit.
        capture_id: the capture, or the expiry.
        incarnation: as the capture found it; in the other actions that of the commit before.
        expired: segments that commits before this one name.
        kept_from: of an expiry: the states as of this commit and later ones need none of them; None:
            no state before this commit is kept.
        swept: segments that expired before, or that no commit names.
    """

    kind: ClassVar[str] = "commit"

    action: Literal["capture", "expire", "sweep"] = "capture"
    number: Count
    previous_sha256: Sha256 | None
    nonce: Identifier
    capture_id: Identifier
    window: Window | None
    committed_at: Milliseconds
    incarnation: Incarnation
    partitions: tuple[PartitionRange, ...]
    expired: tuple[SegmentName, ...] = ()
    kept_from: Count | None = None
    swept: tuple[SegmentName, ...] = ()

    @model_validator(mode="after")
    def _does_one_thing(self) -> Self:
        if self.action != "capture" and (self.partitions or self.window is not None):
            raise ValueError(f"a commit that does {self.action} captures nothing")
        if self.action != "expire" and (self.expired or self.kept_from is not None):
            raise ValueError(f"a commit that does {self.action} lets nothing expire")
        if self.action != "sweep" and self.swept:
            raise ValueError(f"a commit that does {self.action} deletes nothing")
        return self


class CapturedTopic(Part):
    """A topic of a capture: the commit that holds its state, new or from an earlier capture."""

    topic: TopicName
    topic_id: TopicId
    head: Count
    head_sha256: Sha256
    changed: bool


class CaptureFailure(Part):
    """What a capture could not save, and why: a topic, one of its partitions, or a group's positions.

    With neither a topic nor a group, it is the positions of groups that may be hidden from us.
    """

    topic: str | None = None
    group: str | None = None
    partition: int | None = None
    message: str


class CapturedGroups(Part):
    """The group snapshot of a capture, taken before its first end was asked for."""

    snapshot_id: Identifier
    sha256: Sha256


class Capture(Document):
    """``captures/<capture id>.json``: written last; which topics, which window, how it ended.

    `groups` is its group snapshot; None if no groups were wanted, or none could be read.
    """

    kind: ClassVar[str] = "capture"

    capture_id: Identifier
    nonce: Identifier
    started_at: Milliseconds
    ended_at: Milliseconds
    window: Window | None
    status: Literal["complete", "partial", "lossy"]
    topics: tuple[CapturedTopic, ...]
    groups: CapturedGroups | None = None
    failures: tuple[CaptureFailure, ...] = ()


class Expiry(Document):
    """``expiries/<id>.json``: what a run of expiry decided, written before anything else it does.

    Attributes:
        keep_days: captures that began so many days before are kept; None: not asked for.
        keep_captures: so many newest captures are kept; None: not asked for.
        captures: those that are not kept any more since this run.
        group_snapshots: those that are promised no more.
    """

    kind: ClassVar[str] = "expiry"

    expiry_id: Identifier
    nonce: Identifier
    decided_at: Milliseconds
    keep_days: Count | None
    keep_captures: Count | None
    captures: tuple[Identifier, ...]
    group_snapshots: tuple[Identifier, ...]
