"""A repository with a long past: 1,000 topics, captured 100 times each, made by the engine's own commit log.

`python -m bench.long_repository make FOLDER TOPICS COMMITS` makes it; `open FOLDER` opens every commit log as a
capture does, and prints how many commits that were and the seconds it took.
"""

import base64
import secrets
import sys
import time

from kafka_backup.repository.documents import (
    Capture,
    CapturedTopic,
    ConfigurationValue,
    Incarnation,
    LeaderEpoch,
    Ledger,
    PartitionRange,
    SegmentEntry,
)
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.stores import open_store

_PARTITIONS = 4
_SETTINGS = 36
"""As many as a broker names for each topic."""


def make(folder: str, topics: int, commits: int) -> None:
    """Make the repository; its segments are only named."""
    repository = Repository.open(open_store(f"file://{folder}"), cluster_id="bench", create=True)
    settings = {
        f"some.setting.of.a.topic.{number:02d}": ConfigurationValue(
            value="604800000", source="DEFAULT_CONFIG"
        )
        for number in range(_SETTINGS)
    }
    heads = []
    for number in range(topics):
        topic_id = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        incarnation = Incarnation(
            topic=f"topic-{number:04d}",
            topic_id=topic_id,
            partition_count=_PARTITIONS,
            replication_factor=3,
            configuration=settings,
        )
        log = repository.commit_log(incarnation.topic, topic_id)
        for count in range(commits):
            log.append(
                nonce=secrets.token_hex(16),
                capture_id=_capture_id(count),
                window=None,
                committed_at=1_767_225_600_000 + count,
                incarnation=incarnation,
                partitions=[_range(partition, count) for partition in range(_PARTITIONS)],
            )
        assert log.head is not None
        assert log.head_sha256 is not None
        heads.append(
            CapturedTopic(
                topic=incarnation.topic,
                topic_id=topic_id,
                head=log.head,
                head_sha256=log.head_sha256,
                changed=True,
            )
        )
    repository.put_capture(
        Capture(
            capture_id=_capture_id(commits - 1),
            nonce=secrets.token_hex(16),
            started_at=1_767_225_600_000,
            ended_at=1_767_225_700_000,
            window=None,
            status="complete",
            topics=tuple(heads),
            failures=(),
        )
    )


def _capture_id(count: int) -> str:
    return f"20260101T{count // 3600:02d}{count // 60 % 60:02d}{count % 60:02d}000Z-0123abcd"


def _range(partition: int, count: int) -> PartitionRange:
    start, end = count * 1000, (count + 1) * 1000
    segment = SegmentEntry(
        first_offset=start,
        last_offset=end - 1,
        index=0,
        compression="none",
        stored_size=1 << 20,
        sha256=secrets.token_hex(32),
        raw_size=1 << 20,
        batches=10,
        records=1000,
        max_timestamp=1_767_225_600_000,
        largest_batch=1 << 17,
        reencoded_batches=0,
        codecs=("lz4",),
    )
    return PartitionRange(
        partition=partition,
        start=start,
        end=end,
        log_start_offset=0,
        leader_epoch=0,
        last_stable_offset=end,
        high_watermark=end,
        leader_epochs=(LeaderEpoch(epoch=0, start_offset=0),) if not count else (),
        ledger=Ledger(records=1000),
        segments=(segment,),
    )


def open_all(folder: str) -> tuple[int, float]:
    """Open the repository and all its commit logs; returns the commits, and seconds."""
    began = time.perf_counter()
    repository = Repository.open(open_store(f"file://{folder}"), cluster_id="bench", create=False)
    logs = repository.logs_to_append(repository.topics())
    heads = []
    for log in logs:
        if isinstance(log, Exception):
            raise log
        assert log.head is not None
        heads.append(log.head)
    return sum(heads) + len(heads), time.perf_counter() - began


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        print(*open_all(sys.argv[2]))
