"""One attempt at a planned restore, step by step."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from kafka_backup.errors import DamagedError, RefusedError, WriterConflictError
from kafka_backup.expected_batches import DamagedSourceError, PartitionTarget, partition_targets
from kafka_backup.kafka.cluster import Cluster, OffsetAnswer
from kafka_backup.kafka.fetch import FETCH_BYTES
from kafka_backup.kafka.producer_ids import ProducerIds
from kafka_backup.kafka.topics import TopicAdmin
from kafka_backup.parallel import Work, in_parallel
from kafka_backup.partition_restore import Outcome, PartitionRestore, produce
from kafka_backup.produce_pipeline import lanes
from kafka_backup.progress import RestoreProgress, StopToken
from kafka_backup.repository.documents import sha256_of
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import (
    AttemptTarget,
    MissingSpan,
    PlannedTopic,
    RestoreAttempt,
    RestoredGroups,
    RestoredPartition,
    RestoredTopic,
    RestorePlan,
    RestoreReport,
    RestoreVerification,
    VerifiedTopic,
)
from kafka_backup.repository.restore_folder import RestoreFolder
from kafka_backup.restore_context import LogEnds, RestoreContext, RestoreLimits
from kafka_backup.restore_groups import move_groups
from kafka_backup.restore_in_place import prove
from kafka_backup.restore_page import command_of, page_of
from kafka_backup.restore_progress import ProgressTally
from kafka_backup.restore_topics import RestoreTopics
from kafka_backup.segment_skips import SegmentSkips

_SMALLEST_FETCH = 64 << 10
_FIRST_LOOK_SECONDS = 5.0
"""A partition whose leader does not answer within it is asked again when its turn comes."""


def is_incomplete(topics: Sequence[VerifiedTopic | RestoredTopic]) -> bool:
    """Whether damaged segments were left out."""
    return any(part.missing for topic in topics for part in topic.partitions)


class Attempt:
    """Carries out a plan from wherever earlier attempts left it."""

    def __init__(
        self,
        plan: RestorePlan,
        *,
        repository: Repository,
        folder: RestoreFolder,
        cluster: Cluster,
        admin: TopicAdmin,
        retry_seconds: float,
        threads: int,
        limits: RestoreLimits,
        skip_damaged: bool,
        stop: StopToken,
        on_progress: Callable[[RestoreProgress], None] | None,
    ) -> None:
        self._plan = plan
        self._repository = repository
        self._folder = folder
        self._cluster = cluster
        self._topics = RestoreTopics(plan, cluster=cluster, admin=admin, stop=stop)
        self._retry_seconds = retry_seconds
        self._threads = threads
        self._limits = limits
        self._skip_damaged = skip_damaged
        self._stop = stop
        self._began = time.monotonic()
        self._started_at = time.time_ns() // 1_000_000
        self._attempt = 0
        self._owned_at = 0.0
        self._lock = threading.Lock()
        self._progress = ProgressTally(plan, on_progress)
        self._outcomes: dict[tuple[str, int], Outcome] = {}
        self._damage: list[DamagedSourceError] = []

    def run(self) -> RestoreReport:
        """Carry out the attempt.

        Once the verification is stored, the targets are never compared again: their saved configuration
        may compact them or delete from them. Whoever stores it looks for a newer attempt after that,
        and whoever makes an attempt looks for a verification after that; so while one configures, no
        other compares.
        """
        self._topics.check_cluster()
        previous = self._folder.attempts()
        self._check_plan(previous)
        if previous and previous[-1].action == "abandon":  # a moment ago: nothing keeps our segments now
            raise RefusedError(
                f"restore {self._folder.restore_id} was abandoned; use a new --id to restore again"
            )
        verification = self._folder.verification()
        if verification is None:
            if self._plan.request.replace:
                prove(
                    self._plan,
                    repository=self._repository,
                    cluster=self._cluster,
                    threads=self._threads,
                    stop=self._stop,
                )
            topic_ids = self._topics.prepare(previous)
        else:
            topic_ids = {topic.target: topic.target_topic_id for topic in verification.topics}
            self._topics.check(topic_ids)
        self._claim(previous, topic_ids)
        verification = self._folder.verification() or self._restore(topic_ids)
        self._still_ours()
        topics = [
            self._topics.configure(topic, verified)
            for topic, verified in zip(self._plan.topics, verification.topics, strict=True)
        ]
        return self._report(verification, topics, self._move_groups(verification))

    def _move_groups(self, verification: RestoreVerification) -> RestoredGroups | None:
        """Move the consumer groups last: whatever failed before this, their positions are as they were."""
        if self._plan.groups is None:
            return None
        return move_groups(
            self._plan,
            verification.topics,
            repository=self._repository,
            cluster=self._cluster,
            still_ours=self._still_ours,
            stop=self._stop,
        )

    def _check_plan(self, previous: Sequence[RestoreAttempt]) -> None:
        for attempt in previous:
            if attempt.plan_sha256 != sha256_of(self._plan.to_bytes()):
                raise DamagedError(
                    f"attempt {attempt.attempt} of restore {self._folder.restore_id} was begun with another plan than "
                    "the stored one; put the right plan back from a copy of the repository, or plan a new restore"
                )

    def _claim(self, previous: Sequence[RestoreAttempt], topic_ids: Mapping[str, str]) -> None:
        """Become the owner: whoever has the highest attempt, writes."""
        self._attempt = previous[-1].attempt + 1 if previous else 1
        self._folder.put_attempt(
            RestoreAttempt(
                restore_id=self._folder.restore_id,
                attempt=self._attempt,
                nonce=secrets.token_hex(16),
                started_at=self._started_at,
                plan_sha256=sha256_of(self._plan.to_bytes()),
                targets=tuple(
                    AttemptTarget(topic=topic, topic_id=topic_id)
                    for topic, topic_id in sorted(topic_ids.items())
                ),
            ),
        )

    def _still_ours(self) -> None:
        """Stop when a newer attempt exists: two writers would break each other's offsets."""
        self._stop.check()
        restore_id = self._folder.restore_id
        asked_at = time.monotonic()
        if (newer := self._folder.attempt(self._attempt + 1)) is None:
            self._owned_at = asked_at
            return
        if newer.action == "abandon":
            raise WriterConflictError(f"restore {restore_id} was abandoned; this run stops where it is")
        raise WriterConflictError(
            f"a newer attempt took over restore {restore_id}; this one stops. Wait for the other to end"
        )

    def _still_ours_lately(self) -> None:
        """As `_still_ours`, but ask only if that is some seconds ago: it was frozen, or sent very slowly.

        Half of the time for which a newer run waits before it believes that nothing is on its way.
        """
        if time.monotonic() - self._owned_at > self._cluster.settings.request_timeout / 2:
            self._still_ours()

    def _restore(self, topic_ids: Mapping[str, str]) -> RestoreVerification:
        """Write what the targets do not hold yet, read all of it back, and store the proof."""
        targets = [
            target
            for topic in self._plan.topics
            for target in partition_targets(self._plan, topic, topic_ids[topic.target], self._repository)
        ]
        skips = SegmentSkips(self._folder, allowed=self._skip_damaged, before_decision=self._still_ours)
        context = self._context(skips)
        works = [partial(self._produce, context, lane) for lane in lanes(targets, self._leaders())]
        in_parallel(works, threads=self._threads, stop=self._stop, tick=self._progress.tell)
        self._progress.tell(final=True)
        self._refuse_damage()
        self._still_ours()
        self._store_offset_maps(skips)
        verification = RestoreVerification(
            restore_id=self._folder.restore_id,
            attempt=self._attempt,
            nonce=secrets.token_hex(16),
            verified_at=time.time_ns() // 1_000_000,
            topics=tuple(
                self._verified(topic, topic_ids[topic.target], skips) for topic in self._plan.topics
            ),
        )
        self._folder.put_verification(verification)
        return verification

    def _leaders(self) -> Mapping[tuple[str, int], int]:
        """Node id of the leader of each target partition, as one broker knows it."""
        found = self._cluster.metadata([topic.target for topic in self._plan.topics]).topics
        return {
            (name, number): part.leader
            for name, topic in found.items()
            for number, part in topic.partitions.items()
        }

    def _log_ends(self) -> LogEnds:
        """All at once: else each partition in turn would wait until the attempt before is surely silent."""
        answers = self._cluster.log_ends(
            [(topic.target, part.partition) for topic in self._plan.topics for part in topic.partitions],
            deadline=_FIRST_LOOK_SECONDS,
        )
        ends = {key: answer.offset for key, answer in answers.items() if isinstance(answer, OffsetAnswer)}
        return LogEnds(ends=ends, read_at=time.monotonic())

    def _context(self, skips: SegmentSkips) -> RestoreContext:
        limits = self._limits
        share = (limits.max_bytes_per_second or 0) // self._threads
        return RestoreContext(
            cluster=self._cluster,
            store=self._repository.store,
            retry_seconds=self._retry_seconds,
            before_segment=self._still_ours,
            before_send=self._still_ours_lately,
            producer_ids=ProducerIds(
                self._cluster, f"kafka-backup-restore-{self._folder.restore_id}", wait=self._stop.wait
            ),
            byte_pace=limits.pace("max_bytes_per_second", stop=self._stop),
            record_pace=limits.pace("max_records_per_second", stop=self._stop),
            read_pace=limits.pace("max_bytes_per_second", stop=self._stop),
            fetch_bytes=max(_SMALLEST_FETCH, min(FETCH_BYTES, share)) if share else FETCH_BYTES,
            skips=skips,
            earlier_ends=self._log_ends() if self._attempt > 1 else None,
        )

    def _produce(
        self, context: RestoreContext, lane: Sequence[PartitionTarget], stop: StopToken
    ) -> Sequence[Work]:
        began = time.monotonic()
        restores = [self._partition_restore(context, target, stop) for target in lane]
        damage = produce(restores, context, stop=stop)
        with self._lock:
            self._damage += damage.values()
        seconds = time.monotonic() - began
        return [partial(self._verify, restore, seconds) for restore in restores if restore not in damage]

    def _verify(self, restore: PartitionRestore, produce_seconds: float, _stop: StopToken) -> Sequence[Work]:
        began = time.monotonic()
        try:
            outcome = restore.verify()
        except DamagedSourceError as error:
            with self._lock:
                self._damage.append(error)
            return ()
        outcome.produce_seconds = produce_seconds
        outcome.verify_seconds = time.monotonic() - began
        target = restore.target
        with self._lock:
            self._outcomes[target.topic.target, target.partition.partition] = outcome
        return ()

    def _partition_restore(
        self, context: RestoreContext, target: PartitionTarget, stop: StopToken
    ) -> PartitionRestore:
        counter = self._progress.counter(target.topic.target)
        return PartitionRestore(target, replace(context, on_records=counter), stop=stop)

    def _refuse_damage(self) -> None:
        """After all other partitions are done: name every damaged object at once."""
        if self._damage:
            listed = "; ".join(sorted(map(str, self._damage)))
            if self._skip_damaged:
                remark = "; what is in the target already cannot be left out any more"
            else:
                remark = "" if self._plan.request.replace else ", or say --skip-damaged to go on without them"
            raise DamagedError(
                f"{len(self._damage)} partitions of restore {self._folder.restore_id} stopped before damaged data, "
                f"the others are written: {listed}. When the objects are back, run the same restore again{remark}"
            )

    def _verified(self, topic: PlannedTopic, topic_id: str, skips: SegmentSkips) -> VerifiedTopic:
        outcomes = [(part, self._outcomes[topic.target, part.partition]) for part in topic.partitions]
        return VerifiedTopic(
            source=topic.source,
            target=topic.target,
            target_topic_id=topic_id,
            partitions=tuple(
                RestoredPartition(
                    partition=part.partition,
                    records=outcome.records,
                    fast_batches=outcome.fast_batches,
                    slow_batches=outcome.slow_batches,
                    raw_bytes=outcome.raw_bytes,
                    source_start=part.source_start,
                    source_end=part.source_end,
                    target_start=part.initial_end,
                    target_end=outcome.offset_map.target_end,
                    oldest=outcome.oldest,
                    newest=outcome.newest,
                    digest=outcome.digest,
                    produce_seconds=round(outcome.produce_seconds, 3),
                    verify_seconds=round(outcome.verify_seconds, 3),
                    verified=True,
                    missing=tuple(
                        MissingSpan(
                            start=skip.start,
                            end=skip.end,
                            records=skip.records,
                            segment=skip.segment,
                            damage=skip.damage,
                        )
                        for skip in skips.of(topic.source, part.partition)
                    ),
                )
                for part, outcome in outcomes
            ),
        )

    def _store_offset_maps(self, skips: SegmentSkips) -> None:
        for topic in self._plan.topics:
            for part in topic.partitions:
                offsets = self._outcomes[topic.target, part.partition].offset_map
                offsets.missing = [(skip.start, skip.end) for skip in skips.of(topic.source, part.partition)]
                self._folder.put_offset_map(
                    offsets.to_document(
                        restore_id=self._folder.restore_id,
                        source=topic.source,
                        target=topic.target,
                        partition=part.partition,
                    )
                )

    def _report(
        self,
        verification: RestoreVerification,
        topics: Sequence[RestoredTopic],
        groups: RestoredGroups | None,
    ) -> RestoreReport:
        report = RestoreReport(
            restore_id=self._plan.request.restore_id,
            attempt=self._attempt,
            status="incomplete" if is_incomplete(topics) else "verified",
            started_at=self._started_at,
            verified_at=verification.verified_at,
            ended_at=time.time_ns() // 1_000_000,
            target_cluster_id=self._plan.target_cluster_id,
            topics=tuple(topics),
            groups=groups,
            seconds=time.monotonic() - self._began,
            command=command_of(self._plan.request, limits=self._limits, skip_damaged=self._skip_damaged),
        )
        page = page_of(report, self._plan).encode()
        self._folder.put_page(self._attempt, page)
        report = report.model_copy(update={"page_sha256": sha256_of(page)})
        self._folder.put_report(report)
        return report
