"""A small repository with one or more objects of every kind, and where they are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from kafka_backup.repository.acceptances import (
    AcceptedAbsence,
    AcceptedCommit,
    AcceptedLosses,
    put_acceptance,
)
from kafka_backup.repository.documents import Capture, Commit, Document, Expiry, RepositoryDocument, sha256_of
from kafka_backup.repository.drills import DrillReport, DrillStore
from kafka_backup.repository.group_documents import (
    GroupBefore,
    GroupSnapshot,
    MovedPosition,
    PlannedGroup,
    PlannedPosition,
    Position,
    PositionBefore,
    PositionsBefore,
    ResetPlan,
    ResetRequest,
    ResetStep,
    SavedGroup,
)
from kafka_backup.repository.group_store import GroupStore, ResetFolder
from kafka_backup.repository.layout import (
    REPOSITORY,
    accepted_absence_key,
    accepted_losses_key,
    attempt_key,
    capture_key,
    commit_key,
    drill_key,
    expiry_key,
    offset_map_key,
    report_key,
    reset_before_key,
    reset_plan_key,
    reset_step_key,
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
from kafka_backup.repository.store import Store, put_once
from tests.unit.plain_store import PlainStore
from tests.unit.repositories import CLUSTER, TOPIC, TOPIC_ID, batch, capture, copy_of, memory_store

DOCUMENTS: Mapping[str, tuple[str, type[Document]]] = {
    "repository": (REPOSITORY, RepositoryDocument),
    "commit in the middle": (commit_key(TOPIC, TOPIC_ID, 1), Commit),
    "newest commit": (commit_key(TOPIC, TOPIC_ID, 2), Commit),
    "capture": (capture_key("c2"), Capture),
    "plan": (restore_plan_key("r1", 1), RestorePlan),
    "attempt": (attempt_key("r1", 2), RestoreAttempt),
    "report": (report_key("r1", 2), RestoreReport),
    "offset map": (offset_map_key("r1", TOPIC, 0), OffsetMapDocument),
    "reset plan": (reset_plan_key("t1"), ResetPlan),
    "positions before": (reset_before_key("t1"), PositionsBefore),
    "reset step": (reset_step_key("t1", 1, "applying"), ResetStep),
    "expiry": (expiry_key("e1"), Expiry),
    "drill": (drill_key("d1"), DrillReport),
    "accepted losses": (accepted_losses_key("c1", 0), AcceptedLosses),
    "accepted absence": (accepted_absence_key(TOPIC, TOPIC_ID, 2), AcceptedAbsence),
}
"""One object of each kind that is JSON as it stands: its key and its class."""

RESTORES = ("r1", "r2")
RESETS = ("t1", "t2")
SNAPSHOTS = ("20260102T030405006Z-s1", "20260102T030405006Z-s2")


def restorable() -> Store:
    """A repository of one's own, to be damaged."""
    return copy_of(_restorable())


@cache
def _restorable() -> PlainStore:
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
    for reset_id in RESETS:
        _put_reset(GroupStore(store).reset(reset_id))
    for name in ("1", "2"):
        expiry = Expiry(
            expiry_id=f"e{name}", nonce="n", decided_at=1, keep_days=None, keep_captures=9, captures=(),
            group_snapshots=(f"gone-{name}",),
        )  # fmt: skip
        put_once(store, expiry_key(expiry.expiry_id), expiry.to_bytes())
        DrillStore(store).put(
            DrillReport(
                drill_id=f"d{name}", nonce="n", started_at=1, ended_at=2, target_cluster_id=CLUSTER, status="passed",
                captures=(),
            )
        )  # fmt: skip
    accepted = AcceptedCommit(topic=TOPIC, topic_id=TOPIC_ID, number=0, sha256=log.sha256_of(0))
    for number in (0, 1):
        put_acceptance(
            store,
            AcceptedLosses(
                capture_id="c1", number=number, nonce="n", accepted_at=1, reason="known", commits=(accepted,)
            ),
        )
    put_acceptance(
        store,
        AcceptedAbsence(
            topic=TOPIC, topic_id=TOPIC_ID, head=2, head_sha256=log.sha256_of(2), nonce="n", accepted_at=1, capture_id="c1"
        ),
    )  # fmt: skip
    return store


def _put_reset(folder: ResetFolder) -> None:
    """Plan, positions before, and the steps to the proof."""
    planned = PlannedPosition(
        topic=TOPIC, topic_id=TOPIC_ID, partition=0, offset=5, log_start=0, high_watermark=8, before=3
    )
    folder.put_plan(
        ResetPlan(
            reset_id=folder.reset_id, request=ResetRequest(groups=("g",), to="offset", to_offset=5), nonce="n",
            planned_at=1, cluster_id=CLUSTER, groups=(PlannedGroup(group="g", positions=(planned,)),),
        )
    )  # fmt: skip
    before = PositionBefore(topic=TOPIC, topic_id=TOPIC_ID, partition=0, offset=3)
    folder.put_before(
        PositionsBefore(
            reset_id=folder.reset_id, nonce="n", taken_at=1,
            groups=(GroupBefore(group="g", state="Empty", positions=(before,)),),
        )
    )  # fmt: skip
    moved = MovedPosition(group="g", topic=TOPIC, partition=0, before=3, after=5, was_touched=True)
    for number, state in enumerate(("applying", "applied", "verified"), start=1):
        folder.put_step(
            ResetStep.model_validate(
                {"reset_id": folder.reset_id, "number": number, "state": state, "nonce": "n", "at": 2,
                 "positions": (moved,) if state == "verified" else ()}
            )
        )  # fmt: skip
