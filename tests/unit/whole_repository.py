"""A small repository with one or more objects of every kind, and where they are."""

from __future__ import annotations

from collections.abc import Mapping

from kafka_backup.repository.documents import Capture, Commit, Document, RepositoryDocument, sha256_of
from kafka_backup.repository.group_documents import GroupSnapshot, Position, SavedGroup
from kafka_backup.repository.group_store import GroupStore
from kafka_backup.repository.layout import (
    REPOSITORY,
    attempt_key,
    capture_key,
    commit_key,
    offset_map_key,
    report_key,
    restore_plan_key,
)
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import (
    OffsetMapDocument,
    PlannedPartition,
    PlannedTopic,
    RestoreAttempt,
    RestoredPartition,
    RestoredTopic,
    RestorePlan,
    RestoreReport,
    RestoreRequest,
    RestoreVerification,
    VerifiedTopic,
)
from kafka_backup.repository.store import Store
from tests.unit.repositories import CLUSTER, TOPIC, TOPIC_ID, batch, capture, memory_store

DOCUMENTS: Mapping[str, tuple[str, type[Document]]] = {
    "repository": (REPOSITORY, RepositoryDocument),
    "commit in the middle": (commit_key(TOPIC, TOPIC_ID, 1), Commit),
    "newest commit": (commit_key(TOPIC, TOPIC_ID, 2), Commit),
    "capture": (capture_key("c2"), Capture),
    "plan": (restore_plan_key("r1", 1), RestorePlan),
    "attempt": (attempt_key("r1", 2), RestoreAttempt),
    "report": (report_key("r1", 2), RestoreReport),
    "offset map": (offset_map_key("r1", TOPIC, 0), OffsetMapDocument),
}
"""One object of each kind that is JSON as it stands: its key and its class."""

RESTORES = ("r1", "r2")
SNAPSHOTS = ("20260102T030405006Z-s1", "20260102T030405006Z-s2")


def restorable() -> Store:
    """Two captures of one partition, three segments of equal size and one compressed, two restores, two snapshots."""
    store = memory_store()
    capture(store, {0: [batch(0, 2), batch(2, 2)]}, capture_id="c1")
    capture(store, {0: [batch(4, 2)]}, capture_id="c2", started_at=2)
    log = capture(store, {0: [batch(6, 2)]}, capture_id="c3", started_at=3, compression="zstd")
    repository = Repository.open(store, cluster_id=CLUSTER, create=False)
    assert log.head is not None
    partition = PlannedPartition(
        partition=0, source_start=0, source_end=8, segments=4, raw_bytes=1, batches=4, reencoded_batches=0, records=8
    )  # fmt: skip
    topic = PlannedTopic(
        source=TOPIC, source_topic_id=TOPIC_ID, target="again", target_topic_id=None, target_configuration={},
        head=log.head, head_sha256=log.sha256_of(log.head), partition_count=2, replication_factor=1,
        configuration={}, not_applied={}, retention_ms=-1, retention_bytes=-1, max_batch_bytes=1 << 20,
        partitions=(partition,),
    )  # fmt: skip
    verified = VerifiedTopic(
        source=TOPIC, target="again", target_topic_id=TOPIC_ID,
        partitions=(
            RestoredPartition(
                partition=0, records=8, fast_batches=1, slow_batches=1, raw_bytes=9, source_start=0, source_end=8,
                target_start=0, target_end=8, oldest=1, newest=2, digest="0" * 64, produce_seconds=1.0,
                verify_seconds=1.0, verified=True,
            ),
        ),
    )  # fmt: skip
    restored = RestoredTopic(**dict(verified), configuration={}, not_applied={}, retention_held=False)
    for restore_id in RESTORES:
        folder = repository.restore_folder(restore_id)
        plan = RestorePlan(
            request=RestoreRequest(restore_id=restore_id),
            nonce=restore_id,
            planned_at=1,
            repository_id=repository.document.repository_id,
            target_cluster_id=CLUSTER,
            topics=(topic,),
        )
        folder.put_plan(plan)
        for attempt in (1, 2):
            folder.put_attempt(
                RestoreAttempt(
                    restore_id=restore_id,
                    attempt=attempt,
                    nonce="n",
                    started_at=1,
                    plan_sha256=sha256_of(plan.to_bytes()),
                    targets=(),
                )
            )
            folder.put_report(
                RestoreReport(
                    restore_id=restore_id,
                    attempt=attempt,
                    status="verified",
                    started_at=1,
                    verified_at=2,
                    ended_at=2,
                    target_cluster_id=CLUSTER,
                    topics=(restored,),
                    seconds=1.0,
                )
            )  # fmt: skip
        folder.put_verification(
            RestoreVerification(
                restore_id=restore_id, attempt=1, nonce="n", verified_at=2, topics=(verified,)
            )
        )
        folder.put_offset_map(
            OffsetMapDocument(
                restore_id=restore_id,
                source=TOPIC,
                target="again",
                partition=0,
                source_end=8,
                target_end=8,
                source_runs=(0,),
                target_runs=(0,),
                lengths=(8,),
            )
        )  # fmt: skip
    position = Position(topic=TOPIC, topic_id=TOPIC_ID, partition=0, offset=5)
    for snapshot_id in SNAPSHOTS:
        GroupStore(store).put_snapshot(
            GroupSnapshot(
                snapshot_id=snapshot_id,
                nonce="n",
                capture_id=None,
                cluster_id=CLUSTER,
                taken_at=1,
                ended_at=2,
                include=("*",),
                exclude=(),
                incomplete=(),
                topics={TOPIC: TOPIC_ID},
                groups=(
                    SavedGroup(
                        group="g",
                        type="classic",
                        state="Empty",
                        protocol_type="consumer",
                        status="read",
                        positions=(position,),
                    ),
                ),
            )
        )  # fmt: skip
    return store
