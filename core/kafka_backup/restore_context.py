"""What all partitions of one run of a restore share, and how fast they may go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kafka_backup.errors import ConfigurationError
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.fetch import FETCH_BYTES
from kafka_backup.kafka.producer_ids import ProducerIds
from kafka_backup.pace import Pace
from kafka_backup.progress import StopToken
from kafka_backup.repository.store import Store
from kafka_backup.segment_skips import SegmentSkips


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreLimits:
    """How fast a restore may go at most, all its partitions together; None means as fast as it can.

    Attributes:
        max_bytes_per_second: written to the target; reading back is held to the same rate.
        max_records_per_second: written to the target.
    """

    max_bytes_per_second: int | None = None
    max_records_per_second: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_bytes_per_second", "max_records_per_second"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigurationError(f"{name} must be above 0, not {value}")

    def pace(self, name: str, *, stop: StopToken) -> Pace | None:
        """What holds one of the limits; None where there is none."""
        limit = getattr(self, name)
        return None if limit is None else Pace(limit, stop=stop)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEnds:
    """Where the logs of target partitions ended, all asked at once.

    Attributes:
        ends: by topic and partition; one that nobody answered for is not in it.
        read_at: when the last answer had come, by the monotonic clock.
    """

    ends: Mapping[tuple[str, int], int]
    read_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreContext:
    """What all partitions of one run share.

    Attributes:
        cluster: the target cluster.
        store: the repository's store.
        retry_seconds: how long there may be no progress.
        before_segment: called before each segment; raises when a newer attempt took over.
        before_send: called before each request; raises as `before_segment`, but seldom asks anew.
        on_records: told the records and bytes acknowledged (``produce``) and compared (``verify``).
        producer_ids: where writing gets its producer ids; None for a run that only verifies.
        byte_pace: what holds the rate of bytes written; `record_pace`: of records written;
            `read_pace`: of bytes read back.
        fetch_bytes: read back at a time.
        skips: the damaged segments that are left out.
        earlier_ends: read when this run began, if another attempt came before: its last requests may
            have been on their way. None for the first attempt.
    """

    cluster: Cluster
    store: Store
    retry_seconds: float
    before_segment: Callable[[], None]
    before_send: Callable[[], None] = lambda: None
    on_records: Callable[[str, int, int], None] = lambda _phase, _records, _size: None
    producer_ids: ProducerIds | None = None
    byte_pace: Pace | None = None
    record_pace: Pace | None = None
    read_pace: Pace | None = None
    fetch_bytes: int = FETCH_BYTES
    skips: SegmentSkips | None = None
    earlier_ends: LogEnds | None = None
