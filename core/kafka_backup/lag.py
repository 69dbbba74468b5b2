"""Lag: what is not captured yet, and when the brokers' retention will delete it.

A capture that comes too late loses records for good, so the question is not how many offsets wait,
but how long they are still there. Both kinds of retention delete whole segments from the oldest on,
so what is said here is the earliest time at which it can happen; the brokers may take longer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from kafka_backup.errors import KafkaBackupError
from kafka_backup.kafka.cluster import EARLIEST, LATEST, Cluster, Partition
from kafka_backup.kafka.log_sizes import log_sizes
from kafka_backup.kafka.topics import ConfigValue, TopicAdmin
from kafka_backup.progress import StopToken
from kafka_backup.recovery_point import recovery_points
from kafka_backup.repository.repository import Repository
from kafka_backup.selection import TopicSelection

HORIZON_SECONDS = 86_400.0
"""How far ahead a time-based loss is looked for."""
_RESOLUTION_MS = 5_000
_SIZE_SECONDS = 5.0
"""How long to ask for the sizes of logs: brokers before Kafka 3.2 do not answer at all."""

Cause = Literal["retention.ms", "retention.bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionLag:
    """What one partition still has that the repository has not.

    Attributes:
        captured: offsets below this are in the repository, or known to be lost; where nothing was
            captured yet, the log start.
        log_start: first offset that the broker still has; `end`: its last stable offset (exclusive).
        loss_at: earliest time (ms) at which retention may delete the first offset that is not
            captured; not later than `now_ms` if it may happen any moment. None: not within the horizon.
        cause: the retention that does it; ``retention.bytes`` is an estimate at the rate since the
            last capture.
        unknown: why nothing could be said of one of them, if so.
    """

    topic: str
    topic_id: str
    partition: int
    captured: int
    log_start: int
    end: int
    loss_at: int | None = None
    cause: Cause | None = None
    unknown: str | None = None

    @property
    def waiting(self) -> int:
        """Offsets that the next capture can take."""
        return max(0, self.end - max(self.captured, self.log_start))

    @property
    def lost(self) -> int:
        """Offsets that were deleted before a capture could take them; the next one records them as lost."""
        return max(0, self.log_start - self.captured)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Retention:
    milliseconds: int
    bytes: int

    @classmethod
    def of(cls, configuration: Mapping[str, ConfigValue]) -> _Retention:
        """What a topic's settings say; -1 where nothing is deleted so."""
        policy = _setting(configuration, "cleanup.policy", "delete")
        if "delete" not in policy.split(","):
            return cls(milliseconds=-1, bytes=-1)
        return cls(
            milliseconds=int(_setting(configuration, "retention.ms", "-1")),
            bytes=int(_setting(configuration, "retention.bytes", "-1")),
        )


def _setting(configuration: Mapping[str, ConfigValue], name: str, default: str) -> str:
    found = configuration.get(name)
    return default if found is None or found.value is None else found.value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loss:
    """When one kind of retention may delete something, or why that is unknown."""

    at: int | None = None
    cause: Cause
    unknown: str | None = None


def partition_lags(
    *,
    cluster: Cluster,
    admin: TopicAdmin,
    repository: Repository | None,
    selection: TopicSelection,
    retry_seconds: float,
    horizon_seconds: float = HORIZON_SECONDS,
    stop: StopToken | None = None,
) -> Sequence[PartitionLag]:
    """Look at every partition of the selected topics that the cluster has; sorted.

    Args:
        cluster: the source.
        admin: of the same.
        repository: None while there is none: then nothing is captured.
        selection: which topics; names that the cluster does not have are no error here.
        retry_seconds: how long one question is retried.
        horizon_seconds: how far ahead to look for losses by ``retention.ms``.
        stop: ends it with CancelledError.

    Raises:
        KafkaBackupError: the cluster or the repository did not answer, a partition has no leader.
    """
    asker = _Asker(cluster.stoppable((stop or StopToken()).check), retry_seconds)
    now = time.time_ns() // 1_000_000
    lags = {(lag.topic, lag.partition): lag for lag in _positions(asker, repository, selection)}
    waiting = [lag for lag in lags.values() if lag.waiting]
    described = admin.describe_configs(
        sorted({lag.topic for lag in waiting}), check_stop=stop.check if stop is not None else None
    )
    retention = {name: _Retention.of(values) for name, values in described.items()}
    timed = [lag for lag in waiting if retention[lag.topic].milliseconds >= 0]
    sized = [lag for lag in waiting if retention[lag.topic].bytes >= 0]
    losses = [
        _losses_by_time(asker, timed, retention, now=now, horizon=round(horizon_seconds * 1000)),
        _losses_by_size(asker, sized, retention, repository, now=now),
    ]
    return [_with_losses(lag, [found[key] for found in losses if key in found]) for key, lag in lags.items()]


class _Asker:
    """One cluster, asked for last stable offsets."""

    def __init__(self, cluster: Cluster, retry_seconds: float) -> None:
        self.cluster = cluster
        self.retry_seconds = retry_seconds

    def offsets(self, positions: Mapping[Partition, int]) -> Mapping[Partition, int]:
        """Offsets at EARLIEST, LATEST or a time in ms; -1 where no record is as young."""
        answers = self.cluster.list_offsets(
            positions, isolation="read_committed", deadline=self.retry_seconds
        )
        offsets = {}
        for key, answer in answers.items():
            if isinstance(answer, KafkaBackupError):
                raise answer
            offsets[key] = answer.offset
        return offsets


def _positions(
    asker: _Asker, repository: Repository | None, selection: TopicSelection
) -> Iterator[PartitionLag]:
    topics = {
        name: topic
        for name, topic in asker.cluster.metadata(None).topics.items()
        if selection.includes(name, internal=topic.is_internal)
    }
    keys = [(name, number) for name in sorted(topics) for number in sorted(topics[name].partitions)]
    starts = asker.offsets(dict.fromkeys(keys, EARLIEST))
    ends = asker.offsets(dict.fromkeys(keys, LATEST))
    for name, group in groupby(keys, key=lambda key: key[0]):
        topic_id = topics[name].topic_id
        log = None if repository is None else repository.commit_log(name, topic_id)
        for key in group:
            captured = None if log is None else log.end_of(key[1])
            yield PartitionLag(
                topic=name,
                topic_id=topic_id,
                partition=key[1],
                captured=starts[key] if captured is None else captured,
                log_start=starts[key],
                end=ends[key],
            )


def _losses_by_time(
    asker: _Asker,
    lags: Sequence[PartitionLag],
    retention: Mapping[str, _Retention],
    *,
    now: int,
    horizon: int,
) -> Mapping[Partition, _Loss]:
    """When ``retention.ms`` may delete the first waiting offset, by asking for offsets at times.

    The first record as young as T lies behind the first waiting offset exactly if everything up to
    there is older than T. A captured record from the future keeps its segment, and all behind it.
    """
    first = {(lag.topic, lag.partition): max(lag.captured, lag.log_start) for lag in lags}
    kept = {key: retention[key[0]].milliseconds for key in first}

    def older(times: Mapping[Partition, int]) -> set[Partition]:
        # Kafka takes negative times for questions of another kind; nothing is older than 0.
        found = asker.offsets({key: at for key, at in times.items() if at >= 0})
        return {key for key, offset in found.items() if offset == -1 or offset > first[key]}

    due = older({key: now - kept[key] for key in first})
    losses = {key: _Loss(at=now, cause="retention.ms") for key in due}
    coming = older({key: now - kept[key] + horizon for key in first if key not in due})
    low = {key: now - kept[key] for key in coming}
    high = {key: low[key] + horizon for key in coming}
    while unsure := [key for key in coming if high[key] - low[key] > _RESOLUTION_MS]:
        middle = {key: (low[key] + high[key]) // 2 for key in unsure}
        is_older = older(middle)
        for key in unsure:
            (high if key in is_older else low)[key] = middle[key]
    return losses | {key: _Loss(at=low[key] + kept[key], cause="retention.ms") for key in coming}


def _losses_by_size(
    asker: _Asker,
    lags: Sequence[PartitionLag],
    retention: Mapping[str, _Retention],
    repository: Repository | None,
    *,
    now: int,
) -> Mapping[Partition, _Loss]:
    if not lags:
        return {}
    points = {} if repository is None else recovery_points(repository, {lag.topic for lag in lags})
    sizes = log_sizes(
        asker.cluster,
        [(lag.topic, lag.partition) for lag in lags],
        deadline=min(asker.retry_seconds, _SIZE_SECONDS),
    )
    losses = {}
    for lag in lags:
        size = sizes[lag.topic, lag.partition]
        if isinstance(size, KafkaBackupError):
            loss = _Loss(cause="retention.bytes", unknown=f"retention.bytes: {size}")
        else:
            point = points.get(lag.topic)
            at = loss_by_size(
                lag,
                size=size.bytes,
                limit=retention[lag.topic].bytes,
                since=None if point is None else point.time,
                now=now,
            )
            loss = _Loss(at=at, cause="retention.bytes")
        losses[lag.topic, lag.partition] = loss
    return losses


def loss_by_size(lag: PartitionLag, *, size: int, limit: int, since: int | None, now: int) -> int | None:
    """Estimate when ``retention.bytes`` may delete the first waiting offset, in ms; None: it does not grow.

    All offsets count as equally large, and the log as growing as it did since the last capture.

    Args:
        lag: with something waiting.
        size: of the log, bytes.
        limit: bytes that the brokers keep.
        since: the recovery point; None: never captured, so that nothing is known of the growth.
        now: the time, ms.
    """
    each = size / (lag.end - lag.log_start)
    spare = limit - lag.waiting * each
    if spare <= 0:
        return now
    if since is None or since >= now:
        return None
    growth = (lag.end - lag.captured) * each / (now - since)
    return now + int(spare / growth)


def _with_losses(lag: PartitionLag, losses: Sequence[_Loss]) -> PartitionLag:
    coming = [(loss.at, loss.cause) for loss in losses if loss.at is not None]
    unknown = next((loss.unknown for loss in losses if loss.unknown is not None), None)
    if not coming:
        return replace(lag, unknown=unknown)
    at, cause = min(coming)
    return replace(lag, loss_at=at, cause=cause, unknown=unknown)
