"""Asset checks: whether the backups are whole, complete, and young enough."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from time import time
from typing import TYPE_CHECKING, Literal, get_args

import dagster as dg

from kafka_backup_dagster.assets.specs import AssetTopics, group_filters_of
from kafka_backup_dagster.assets.translator import cluster_key, drill_key
from kafka_backup_dagster.errors import as_failure
from kafka_backup_dagster.interrupts import run_interruptibly
from kafka_backup_dagster.metadata import MAX_ROWS, Metadata, red_lines, table, timestamp

if TYPE_CHECKING:
    from kafka_backup import DrillReport, Engine, Loss, PartitionLag, StopToken
    from kafka_backup.verify import Problem
    from kafka_backup_dagster.resources.resource import KafkaBackupResource

CheckName = Literal["integrity", "ledger", "recovery_point", "time_to_loss"]
CHECK_NAMES: tuple[CheckName, ...] = get_args(CheckName)
EVERY_TOPIC = "every_topic_is_backed_up"
DRILL_AGE = "drill_age"
_ELSEWHERE = "Every topic that matches has an asset of its own."
_DESCRIPTIONS: Mapping[CheckName, str] = {
    "integrity": (
        "Every commit follows from the one before, its ledger adds up, and every object that it names is there "
        "with its size. Reads the repository only."
    ),
    "ledger": "No offset was lost, but for losses that somebody accepted. Reads the repository only.",
    "recovery_point": (
        "The newest capture of all partitions is young enough: what a disaster would cost now. Reads the "
        "repository only."
    ),
    "time_to_loss": "What is not captured yet stays in Kafka long enough. Asks the brokers, too.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckLimits:
    """What the checks allow.

    Attributes:
        recovery_point_age: how old the recovery point of a topic may be.
        time_to_loss: how long everything that is not captured must still be in Kafka.
        drill_age: how old the newest restore drill that passed may be.
    """

    recovery_point_age: timedelta = timedelta(hours=2)
    time_to_loss: timedelta = timedelta(hours=4)
    drill_age: timedelta = timedelta(days=31)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome of one check of one asset."""

    asset_key: dg.AssetKey
    check: str
    passed: bool
    description: str
    metadata: Metadata = field(default_factory=dict)

    def result(self) -> dg.AssetCheckResult:
        """Return it as the result of a check that runs."""
        return dg.AssetCheckResult(
            asset_key=self.asset_key,
            check_name=self.check,
            passed=self.passed,
            description=self.description,
            metadata=self.metadata,
        )

    def evaluation(self) -> dg.AssetCheckEvaluation:
        """Return it as an event of a sensor."""
        return dg.AssetCheckEvaluation(
            asset_key=self.asset_key,
            check_name=self.check,
            passed=self.passed,
            description=self.description,
            metadata=self.metadata,
        )


def build_kafka_backup_checks(
    backups: dg.AssetsDefinition,
    *,
    limits: CheckLimits | None = None,
    resource_key: str = "kafka_backup",
) -> dg.AssetChecksDefinition:
    """Make the checks of the assets of one multi-asset: four of each, which can be run apart.

    Args:
        backups: assets of `kafka_backup_assets`, or one of those of `build_kafka_backup_assets`.
        limits: what they allow; by default what fits hourly windows.
        resource_key: of the `KafkaBackupResource`.
    """
    allowed = limits or CheckLimits()
    assets = topics_of(backups.specs)

    @dg.multi_asset_check(
        name=f"{backups.node_def.name}_checks",
        specs=[
            dg.AssetCheckSpec(name=check, asset=key, description=_DESCRIPTIONS[check])
            for key in assets
            for check in CHECK_NAMES
        ],
        can_subset=True,
        required_resource_keys={resource_key},
    )
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        resource: KafkaBackupResource = getattr(context.resources, resource_key)
        wanted: dict[CheckName, dict[dg.AssetKey, AssetTopics]] = {}
        for check_key in context.selected_asset_check_keys:
            for check in CHECK_NAMES:
                if check == check_key.name:
                    wanted.setdefault(check, {})[check_key.asset_key] = assets[check_key.asset_key]
        with as_failure(), resource.engine() as engine:
            for check, selected in wanted.items():
                verdicts = run_interruptibly(
                    lambda stop, check=check, selected=selected: judge(
                        check, engine, selected, allowed, stop=stop
                    )
                )
                for verdict in verdicts:
                    yield verdict.result()

    return checks


def build_coverage_check(
    backups: Sequence[dg.AssetsDefinition],
    *,
    exclude: Sequence[str] = (),
    cluster_name: str = "default",
    resource_key: str = "kafka_backup",
) -> dg.AssetChecksDefinition:
    """Make the check of the cluster's asset: there is no topic that no filter takes and none leaves out.

    Args:
        backups: the multi-assets of the cluster.
        exclude: filters of topics that are left out on purpose.
        cluster_name: as in the assets.
        resource_key: of the `KafkaBackupResource`.
    """
    assets = topics_of([spec for shard in backups for spec in shard.specs])

    @dg.asset_check(
        asset=cluster_key(cluster_name),
        name=EVERY_TOPIC,
        description="There is no topic that no filter takes and none leaves out. Asks the brokers.",
        required_resource_keys={resource_key},
    )
    def every_topic_is_backed_up(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        resource: KafkaBackupResource = getattr(context.resources, resource_key)
        with as_failure(), resource.engine() as engine:
            names = run_interruptibly(lambda _: engine.cluster_topics())
        return coverage(names, assets, exclude, cluster_name=cluster_name).result()

    return every_topic_is_backed_up


def coverage(
    names: Sequence[str],
    assets: Mapping[dg.AssetKey, AssetTopics],
    exclude: Sequence[str],
    *,
    cluster_name: str,
) -> Verdict:
    """Judge whether every topic is backed up or left out on purpose."""
    taken = {name for topics in assets.values() for name in topics.among(names)}
    left_out = set(AssetTopics(filters=tuple(exclude)).among(names))
    forgotten = [name for name in names if name not in taken and name not in left_out]
    return Verdict(
        asset_key=cluster_key(cluster_name),
        check=EVERY_TOPIC,
        passed=not forgotten,
        description=(
            f"{len(forgotten)} topics are not backed up: {', '.join(forgotten[:10])}"
            if forgotten
            else f"All {len(names)} topics are backed up, or left out on purpose."
        ),
        metadata=_red("kafka_backup/not_backed_up", "In no backup", forgotten)
        | {"kafka_backup/topic_count": dg.MetadataValue.int(len(names))},
    )


def build_drill_check(
    *, limits: CheckLimits | None = None, cluster_name: str = "default", resource_key: str = "kafka_backup"
) -> dg.AssetChecksDefinition:
    """Make the check of the asset of restore drills: the newest one that passed is young enough.

    Args:
        limits: what it allows; by default 31 days.
        cluster_name: as in the assets.
        resource_key: of the `KafkaBackupResource`.
    """
    allowed = limits or CheckLimits()

    @dg.asset_check(
        asset=drill_key(cluster_name),
        name=DRILL_AGE,
        description="The newest restore drill that passed is young enough. Reads the repository only.",
        required_resource_keys={resource_key},
    )
    def drill_age(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        resource: KafkaBackupResource = getattr(context.resources, resource_key)
        with as_failure(), resource.engine() as engine:
            newest = run_interruptibly(lambda _: engine.last_good_drill())
        return judge_drill(newest, allowed, cluster_name=cluster_name).result()

    return drill_age


def judge_drill(newest: "DrillReport | None", limits: CheckLimits, *, cluster_name: str) -> Verdict:
    """Judge whether the newest drill that passed is young enough."""
    most = limits.drill_age.total_seconds()
    if newest is None:
        return Verdict(
            asset_key=drill_key(cluster_name),
            check=DRILL_AGE,
            passed=False,
            description="No restore drill has ever passed: nobody knows whether these backups can be restored.",
        )
    age = max(0.0, time() - newest.ended_at / 1000)
    return Verdict(
        asset_key=drill_key(cluster_name),
        check=DRILL_AGE,
        passed=age <= most,
        description=f"The newest drill that passed is {_duration(age)} old; {_duration(most)} are allowed.",
        metadata={
            "kafka_backup/drill": dg.MetadataValue.text(newest.drill_id),
            "kafka_backup/drill_age_seconds": dg.MetadataValue.float(round(age, 3)),
            "kafka_backup/recovery_seconds": dg.MetadataValue.float(
                max((each.seconds for each in newest.captures), default=0.0)
            ),
        },
    )


def topics_of(specs: Collection[dg.AssetSpec]) -> Mapping[dg.AssetKey, AssetTopics]:
    """Return the topics behind each asset; that of consumer groups is left out."""
    return {
        spec.key: AssetTopics.of(spec.metadata, asset_key=spec.key)
        for spec in specs
        if group_filters_of(spec.metadata) is None
    }


def judge(
    check: CheckName,
    engine: "Engine",
    assets: Mapping[dg.AssetKey, AssetTopics],
    limits: CheckLimits,
    *,
    stop: "StopToken",
) -> Sequence[Verdict]:
    """Run one check over some assets.

    Raises:
        KafkaBackupError: the repository, or the cluster for ``time_to_loss``, could not be asked.
    """
    match check:
        case "integrity":
            return _integrity(engine, assets, stop)
        case "ledger":
            return _ledger(engine, assets)
        case "recovery_point":
            return _recovery_point(engine, assets, limits.recovery_point_age)
        case "time_to_loss":
            return _time_to_loss(engine, assets, limits.time_to_loss, stop)


def _integrity(
    engine: "Engine", assets: Mapping[dg.AssetKey, AssetTopics], stop: "StopToken"
) -> Sequence[Verdict]:
    names = [name for name, _ in engine.repository().topics()]
    mine = {key: topics.among(names) for key, topics in assets.items()}
    wanted = sorted({name for found in mine.values() for name in found})
    problems: Sequence[Problem] = engine.verify(wanted, stop=stop).problems if wanted else ()
    damages = [problem for problem in problems if problem.kind not in ("lost", "truncated")]
    verdicts = []
    for key, topics in mine.items():
        lines = [f"{each.kind}: {each.object}: {each.detail}" for each in damages if _concerns(each, topics)]
        sound = "The repository holds what its commits say."
        if not topics and assets[key].are_elsewhere(names):
            sound = _ELSEWHERE
        elif not topics:
            lines = ["nothing of it is in the repository yet"]
        verdicts.append(
            Verdict(
                asset_key=key,
                check="integrity",
                passed=not lines,
                description=lines[0] if lines else sound,
                metadata=_red("kafka_backup/problems", "What is wrong", lines)
                | {"kafka_backup/topic_count": dg.MetadataValue.int(len(topics))},
            )
        )
    return verdicts


def _concerns(problem: "Problem", topics: Collection[str]) -> bool:
    """Whether a problem is one of these topics, or one of the whole repository."""
    if not problem.object.startswith("topics/"):
        return True
    return problem.object.split("/")[1] in topics


def _ledger(engine: "Engine", assets: Mapping[dg.AssetKey, AssetTopics]) -> Sequence[Verdict]:
    losses = engine.losses()
    names = {loss.topic for loss in losses}
    verdicts = []
    for key, topics in assets.items():
        mine = [loss for loss in losses if loss.topic in topics.among(names)]
        open_ones = [loss for loss in mine if not loss.accepted]
        lost = sum(loss.end - loss.start for loss in open_ones)
        verdicts.append(
            Verdict(
                asset_key=key,
                check="ledger",
                passed=not open_ones,
                description=(
                    f"{lost:,} offsets were lost. If that cannot be helped: kafka-backup losses accept "
                    f"{open_ones[0].capture} --reason ..."
                    if open_ones
                    else "No offset was lost that nobody accepted."
                ),
                metadata=_red(
                    "kafka_backup/LOST", f"{lost:,} offsets", [_loss_line(each) for each in open_ones]
                )
                | {
                    "kafka_backup/lost": dg.MetadataValue.int(lost),
                    "kafka_backup/accepted": dg.MetadataValue.int(
                        sum(loss.end - loss.start for loss in mine if loss.accepted)
                    ),
                },
            )
        )
    return verdicts


def _loss_line(loss: "Loss") -> str:
    return (
        f"{loss.topic} [{loss.partition}]: offsets {loss.start} to {loss.end} (exclusive), {loss.reason}, "
        f"found by capture {loss.capture}"
    )


def _recovery_point(
    engine: "Engine", assets: Mapping[dg.AssetKey, AssetTopics], most: timedelta
) -> Sequence[Verdict]:
    exact = {topics.exact for topics in assets.values() if topics.exact is not None}
    newest = engine.captured_topics([text for topics in assets.values() for text in topics.filters])
    points = engine.recovery_points(exact | set(newest))
    now = time()
    verdicts = []
    for key, topics in assets.items():
        mine = [topics.exact] if topics.exact is not None else topics.among(newest)
        never = [name for name in mine if name not in points]
        oldest = min((points[name].time / 1000 for name in mine if name in points), default=None)
        age = None if oldest is None else max(0.0, now - oldest)
        if topics.are_elsewhere(newest):
            passed, description = True, _ELSEWHERE
        elif never or age is None:
            passed, description = False, f"never captured whole: {', '.join(never) or 'any topic'}"
        else:
            passed = age <= most.total_seconds()
            description = f"A disaster now would cost the last {_duration(age)}; {_duration(most.total_seconds())} are allowed."
        shown: Metadata = {}
        if oldest is not None and age is not None:
            shown = {
                "kafka_backup/recovery_point": timestamp(round(oldest * 1000)),
                "kafka_backup/recovery_point_age_seconds": dg.MetadataValue.float(round(age, 3)),
            }
        verdicts.append(
            Verdict(
                asset_key=key,
                check="recovery_point",
                passed=passed,
                description=description,
                metadata=shown,
            )
        )
    return verdicts


def _time_to_loss(
    engine: "Engine", assets: Mapping[dg.AssetKey, AssetTopics], least: timedelta, stop: "StopToken"
) -> Sequence[Verdict]:
    filters = [text for topics in assets.values() for text in topics.filters]
    lags = engine.lags(filters, horizon_seconds=max(86_400.0, least.total_seconds()), stop=stop)
    names = {lag.topic for lag in lags}
    now = time()
    return [
        _time_verdict(
            key,
            [lag for lag in lags if lag.topic in topics.among(names)],
            now=now,
            least=least.total_seconds(),
        )
        for key, topics in assets.items()
    ]


def _time_verdict(key: dg.AssetKey, lags: Sequence["PartitionLag"], *, now: float, least: float) -> Verdict:
    left = {lag: lag.loss_at / 1000 - now for lag in lags if lag.loss_at is not None}
    soon = sorted((lag for lag in left if left[lag] < least), key=lambda lag: left[lag])
    gone = [lag for lag in lags if lag.lost]
    unknown = [lag for lag in lags if lag.unknown is not None]
    lines = [
        *(f"{_place(lag)} has lost {lag.lost:,} offsets already" for lag in gone),
        *(f"{_place(lag)} {_loses(left[lag])} ({lag.cause})" for lag in soon),
        *(f"{_place(lag)}: it cannot be told when it loses data: {lag.unknown}" for lag in unknown),
    ]
    shown: Metadata = {
        "kafka_backup/waiting": dg.MetadataValue.int(sum(lag.waiting for lag in lags)),
        "kafka_backup/partitions": table(
            [
                {
                    "topic": lag.topic,
                    "partition": lag.partition,
                    "captured": lag.captured,
                    "log_start": lag.log_start,
                    "end": lag.end,
                    "waiting": lag.waiting,
                }
                for lag in sorted(lags, key=lambda lag: (left.get(lag, float("inf")), -lag.waiting))[
                    :MAX_ROWS
                ]
            ],
            dict.fromkeys(("topic", "partition", "captured", "log_start", "end", "waiting"), "integer")
            | {"topic": "string"},
        ),
    }
    if left:
        shown["kafka_backup/time_to_loss_seconds"] = dg.MetadataValue.float(
            round(max(0.0, min(left.values())), 3)
        )
    return Verdict(
        asset_key=key,
        check="time_to_loss",
        passed=not lines,
        description=lines[0] if lines else "Nothing that is not captured is about to be deleted.",
        metadata=_red("kafka_backup/problems", "Not captured, and soon deleted", lines) | shown,
    )


def _place(lag: "PartitionLag") -> str:
    return f"{lag.topic}: partition {lag.partition}"


def _loses(seconds: float) -> str:
    return f"loses data in {_duration(seconds)}" if seconds > 0 else "may lose data any moment"


def _duration(seconds: float) -> str:
    for length, name in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}s"
    return f"{seconds:.0f} seconds"


def _red(key: str, heading: str, lines: Sequence[str]) -> Metadata:
    return {key: red_lines(heading, lines[:MAX_ROWS])} if lines else {}
