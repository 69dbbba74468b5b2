"""What a restore finds at its target, and everything there that forbids it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from kafka_backup.errors import AuthorizationError, BrokerError
from kafka_backup.kafka.cluster import EARLIEST, LATEST, Cluster, OffsetAnswer, Partition
from kafka_backup.kafka.metadata import ClusterMetadata, TopicMetadata
from kafka_backup.kafka.rights import cluster_rights, topic_rights
from kafka_backup.kafka.topics import ConfigValue, TopicAdmin, TopicExistsError, validate_topic
from kafka_backup.restore_findings import NOT_AUTHORIZED, Findings

MAX_LONG = str(2**63 - 1)
SAFE_CONFIGURATION: Mapping[str, str] = {
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "cleanup.policy": "delete",
    "message.timestamp.type": "CreateTime",
    "compression.type": "producer",
    "segment.bytes": str(1 << 30),
    "unclean.leader.election.enable": "false",
}
"""What keeps every record as it is written, whatever its age, and takes every batch."""
SAFE_TIMESTAMPS = (
    "message.timestamp.before.max.ms",
    "message.timestamp.after.max.ms",
    "message.timestamp.difference.max.ms",
)
"""Bounds on timestamps; which of them exist depends on the broker (KIP-937)."""
_NAMES_BROKERS = frozenset(
    {"leader.replication.throttled.replicas", "follower.replication.throttled.replicas"}
)
"""Topic settings whose values are broker ids of the old cluster."""
_LARGEST_REQUEST = 100 * 1024 * 1024
"""Default of the brokers' ``socket.request.max.bytes``, where we may not ask for it."""
_RIGHTS = ("DESCRIBE", "WRITE", "READ", "DESCRIBE_CONFIGS", "ALTER_CONFIGS")
"""On each target: to see it, to write it, to verify it, to make it safe. CREATE is asked for by trying."""
_DYNAMIC = "DYNAMIC_TOPIC_CONFIG"


def safe_configuration(known: Mapping[str, object], *, max_batch_bytes: int) -> dict[str, str]:
    """The settings under which a target is written.

    Args:
        known: the names of the settings that the target's brokers know.
        max_batch_bytes: the largest batch that will be written.
    """
    return {
        **SAFE_CONFIGURATION,
        **{name: MAX_LONG for name in SAFE_TIMESTAMPS if name in known},
        "max.message.bytes": str(max_batch_bytes),
    }


def offset_bounds(
    cluster: Cluster, partitions: Collection[Partition], *, isolation: str = "read_uncommitted"
) -> dict[Partition, tuple[int, int]]:
    """Ask for the first offset and the end of each partition.

    Args:
        cluster: where.
        partitions: of which.
        isolation: ``read_committed`` gives the last stable offset as the end.

    Raises:
        KafkaBackupError: the first answer that does not come.
    """
    starts = cluster.list_offsets(dict.fromkeys(partitions, EARLIEST), isolation="read_uncommitted")
    ends = cluster.list_offsets(dict.fromkeys(partitions, LATEST), isolation=isolation)
    bounds = {}
    for key in partitions:
        start, end = starts[key], ends[key]
        if not isinstance(start, OffsetAnswer):
            raise start
        if not isinstance(end, OffsetAnswer):
            raise end
        bounds[key] = (start.offset, end.offset)
    return bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetTopic:
    """A target as it was found.

    Attributes:
        topic_id: None where it does not exist yet.
        replaces: the topic of its name that holds data and is to be deleted.
        bounds: first offset and end of each partition of what exists.
        own: the settings that were set on it.
        defaults: every setting that is in force there for a topic without any of its own; empty
            after a problem.
    """

    topic_id: str | None = None
    replaces: str | None = None
    bounds: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    own: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)


class TargetPreflight:
    """Looks at the target cluster and changes nothing; every finding is collected."""

    def __init__(
        self, cluster: Cluster, admin: TopicAdmin, metadata: ClusterMetadata, findings: Findings
    ) -> None:
        self._cluster = cluster
        self._admin = admin
        self._metadata = metadata
        self._findings = findings
        self._largest_request: int | None = None

    @property
    def largest_batch(self) -> int:
        """The most bytes that a batch may have for the brokers to take its request."""
        if self._largest_request is None:
            try:
                asked = self._admin.broker_setting("socket.request.max.bytes", list(self._metadata.brokers))
            except (AuthorizationError, BrokerError):
                asked = []
            self._largest_request = min(map(int, asked), default=_LARGEST_REQUEST)
        return self._largest_request - (64 << 10)

    def check_rights(self, targets: Mapping[str, str]) -> None:
        """Find the rights that we lack on the targets (by name, with their sources), all at once."""
        for target, held in topic_rights(self._cluster, sorted(targets)).items():
            lacking = [right for right in _RIGHTS if right not in held]
            if lacking:
                self._findings.problem(
                    NOT_AUTHORIZED,
                    targets[target],
                    f"on topic {target} we lack {', '.join(lacking)}: grant it",
                )

    def replication_factor(self, topic: str, target: str, wanted: int) -> int:
        """How many copies the target can have; fewer than wanted are a problem."""
        brokers = len(self._metadata.brokers)
        if wanted <= brokers:
            return wanted
        if target not in self._metadata.topics:
            self._findings.problem(
                "replication_factor",
                topic,
                f"{target} needs {wanted} copies and the cluster has {brokers} brokers; "
                f"say --replication-factor {brokers} to restore it with fewer",
            )
        return brokers

    def look(
        self, topic: str, target: str, *, partition_count: int, replication_factor: int, replace: bool = False
    ) -> TargetTopic:
        """Look at the topic that is to be written.

        Args:
            topic: the source, for findings.
            target: its name.
            partition_count: that it must have.
            replication_factor: that it will have if it does not exist.
            replace: one that holds data is to be deleted.
        """
        existing = self._metadata.topics.get(target)
        if existing is not None:
            return self._existing(topic, existing, partition_count, replace)
        try:
            defaults = validate_topic(
                self._cluster, target, partitions=partition_count, replication_factor=replication_factor
            )
        except TopicExistsError:
            self._findings.problem(
                "hidden_topic", topic, f"{target} exists and we may not see it: grant DESCRIBE on the topic"
            )
        except AuthorizationError:
            self._findings.problem(
                NOT_AUTHORIZED, topic, f"we may not create {target}: grant CREATE on the topic or the cluster"
            )
        except BrokerError as error:
            self._findings.problem("cannot_create", topic, f"{target} cannot be created: {error}")
        else:
            return TargetTopic(defaults=defaults)
        return TargetTopic()

    def _existing(
        self, topic: str, existing: TopicMetadata, partition_count: int, replace: bool
    ) -> TargetTopic:
        target = existing.name
        asked = offset_bounds(self._cluster, [(target, partition) for partition in existing.partitions])
        bounds = {partition: each for (_, partition), each in asked.items()}
        fits = len(existing.partitions) == partition_count
        replaced = replace and not (fits and all(start == end for start, end in bounds.values()))
        if replaced:
            self._check_deletion(topic, target)
        elif not fits:
            self._findings.problem(
                "partition_count",
                topic,
                f"{target} exists with {len(existing.partitions)} partitions, the source has {partition_count}; "
                "records cannot be spread over another number of partitions and keep their order",
            )
        # Said once for each topic, not once for each of its partitions.
        advice = "; restore under another name (--rename, --prefix), or in its place (--replace)"
        for partition, (start, end) in bounds.items():
            if end > start and not replaced:
                self._findings.problem(
                    "target_not_empty",
                    topic,
                    f"{target} [{partition}] holds offsets [{start}, {end}){advice}",
                    partition,
                )
                advice = ""
        described: Mapping[str, ConfigValue] = {}
        with contextlib.suppress(AuthorizationError):  # `check_rights` says so
            described = self._admin.describe_configs([target])[target]
        own = {name: value.value or "" for name, value in described.items() if value.source == _DYNAMIC}
        defaults = {name: value.value or "" for name, value in described.items() if name not in own}
        if own:
            defaults |= self._defaults_of(target, own)
        return TargetTopic(
            topic_id=None if replaced else existing.topic_id,
            replaces=existing.topic_id if replaced else None,
            bounds=bounds,
            own=own,
            defaults=defaults,
        )

    def _check_deletion(self, topic: str, target: str) -> None:
        """Find what would keep us from deleting a topic and making it anew."""
        held = topic_rights(self._cluster, [target])[target]
        lacking = [
            right for right in ("DELETE", "CREATE") if right not in held | cluster_rights(self._cluster)
        ]
        if lacking:
            self._findings.problem(
                NOT_AUTHORIZED,
                topic,
                f"to replace topic {target} we lack {', '.join(lacking)} on it or on the cluster: grant it",
            )
        with contextlib.suppress(AuthorizationError, BrokerError):  # it is found out when it is deleted
            if "false" in self._admin.broker_setting("delete.topic.enable", list(self._metadata.brokers)):
                self._findings.problem(
                    "cannot_delete",
                    topic,
                    f"{target} cannot be deleted: the brokers have delete.topic.enable=false",
                )

    def _defaults_of(self, target: str, names: Mapping[str, str]) -> dict[str, str]:
        """What would be in force without the topic's own settings; unknown ones are empty."""
        try:
            # Asked of a name that is as likely as the target's own to be covered by our rights.
            defaults = validate_topic(
                self._cluster, f"{target[:200]}.defaults", partitions=1, replication_factor=1
            )
        except (AuthorizationError, BrokerError):
            defaults = {}
        return {name: defaults.get(name, "") for name in names}

    def configuration(
        self,
        topic: str,
        target: str,
        saved: Mapping[str, str],
        found: TargetTopic,
        *,
        partition_count: int,
        replication_factor: int,
    ) -> dict[str, str]:
        """Which of the saved settings the target can have; those that it refuses are noted."""
        known = {**found.defaults, **found.own}
        configuration = {
            name: value
            for name, value in saved.items()
            if name in known
            and name not in _NAMES_BROKERS
            and not (name == "min.insync.replicas" and int(value) > replication_factor)
        }
        if not known:
            return configuration

        def validate(settings: Mapping[str, str]) -> None:
            if found.topic_id is not None or found.replaces is not None:
                self._admin.alter_configs(target, set=settings, delete=(), validate_only=True)
            else:
                validate_topic(
                    self._cluster,
                    target,
                    partitions=partition_count,
                    replication_factor=replication_factor,
                    configuration=settings,
                )

        try:
            validate(safe_configuration(known, max_batch_bytes=self.largest_batch))
        except AuthorizationError:  # `check_rights` says so
            return configuration
        except TopicExistsError:
            self._findings.problem(
                "target_appeared",
                topic,
                f"{target} was created while this was planned, perhaps by another run of this restore; plan it again",
            )
            return configuration
        except BrokerError as error:
            self._findings.problem(
                "configuration",
                topic,
                f"{target} does not take the settings that keep records safe while it is written: {error}",
            )
            return configuration
        try:
            validate(configuration)
        except BrokerError:
            configuration = self._accepted(topic, target, configuration, validate)
            try:
                validate(configuration)
            except BrokerError as error:
                self._findings.problem(
                    "configuration", topic, f"{target} does not take the saved configuration: {error}"
                )
        return configuration

    def _accepted(
        self,
        topic: str,
        target: str,
        configuration: Mapping[str, str],
        validate: Callable[[Mapping[str, str]], None],
    ) -> dict[str, str]:
        """The settings that the target takes one by one: a newer broker may have narrower limits."""
        accepted = {}
        for name, value in configuration.items():
            try:
                validate({name: value})
            except BrokerError as error:
                self._findings.note(
                    "setting_refused",
                    topic,
                    f"{target} does not take {name}={value}, so it is not applied: {error}",
                )
            else:
                accepted[name] = value
        return accepted
