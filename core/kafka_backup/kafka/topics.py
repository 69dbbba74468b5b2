"""Topics and their settings: described, created, changed, deleted."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource, ConfigSource
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewTopic
from kio.schema.create_topics.v7.request import (
    CreatableTopic,
    CreatableTopicConfig,
    CreateTopicsRequest,
)
from kio.schema.create_topics.v7.response import CreateTopicsResponse
from kio.schema.delete_topics.v6.request import DeleteTopicsRequest, DeleteTopicState
from kio.schema.delete_topics.v6.response import DeleteTopicsResponse
from kio.schema.errors import ErrorCode

from kafka_backup.errors import BrokerError, ConfigurationError, KafkaBackupError, UnreachableError
from kafka_backup.kafka.cluster import Cluster, broker_error
from kafka_backup.kafka.metadata import topic_uuid

_BATCH = 500


class TopicExistsError(BrokerError):
    """A topic cannot be created because there is one of its name."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"topic {name} exists already",
            code=int(ErrorCode.topic_already_exists),
            name="TOPIC_ALREADY_EXISTS",
            retriable=False,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigValue:
    """One setting in force and where it comes from (Kafka's ConfigSource name); None where it is hidden."""

    value: str | None
    source: str


class TopicAdmin:
    """An admin client for the topics of one cluster.

    News of a topic reach one broker before the other. Where a broker does not know a topic, and most of the
    brokers do, it is asked again until the retry time is over; and so it is where its connection is lost, which
    librdkafka does not try again for an admin client.
    """

    def __init__(self, cluster: Cluster) -> None:
        """Prepare; nothing is contacted yet."""
        self._cluster = cluster
        self._settings = cluster.settings
        self._retry_seconds = cluster.retry_seconds
        self._client: AdminClient | None = None

    def close(self) -> None:
        """Let go of the client."""
        self._client = None

    def _admin(self) -> AdminClient:
        if self._client is None:
            if self._settings.tokens is not None:
                self._settings.tokens.token()  # its errors say more than librdkafka's
            try:
                self._client = AdminClient({**self._settings.for_librdkafka(), "log_level": 0})
            except KafkaException as error:
                raise ConfigurationError(
                    f"confluent-kafka does not take the cluster's properties: {error.args[0].str()}"
                ) from error
        return self._client

    def _result(self, future: Future[Any], what: str) -> Any:
        try:
            return future.result(self._retry_seconds + 10)
        except KafkaException as error:
            raise _error(error.args[0], what) from error
        except TimeoutError as error:
            raise UnreachableError(f"{what}: no answer within {self._retry_seconds:g} s") from error

    def describe_configs(
        self, topics: Sequence[str], *, check_stop: Callable[[], None] | None = None
    ) -> Mapping[str, Mapping[str, ConfigValue]]:
        """Return every setting of each topic by name; as `describe_each`.

        Raises:
            KafkaBackupError: naming the first topic that cannot be described.
        """
        described = {}
        for name, found in self.describe_each(topics, check_stop=check_stop).items():
            if isinstance(found, KafkaBackupError):
                raise found
            described[name] = found
        return described

    def describe_each(
        self, topics: Sequence[str], *, check_stop: Callable[[], None] | None = None
    ) -> Mapping[str, Mapping[str, ConfigValue] | KafkaBackupError]:
        """Return every setting of each topic by name, or why that topic cannot be described.

        Args:
            topics: names.
            check_stop: called while a broker is waited for; raises to stop.
        """
        patience = _Patience(self._cluster, check_stop)
        described = self._describe(topics, patience.left)
        while again := patience.ask_again(
            {name: found for name, found in described.items() if isinstance(found, KafkaBackupError)}
        ):
            described |= self._describe(again, patience.left)
        return described

    def _describe(
        self, topics: Sequence[str], seconds: float
    ) -> dict[str, Mapping[str, ConfigValue] | KafkaBackupError]:
        described: dict[str, Mapping[str, ConfigValue] | KafkaBackupError] = {}
        for start in range(0, len(topics), _BATCH):
            resources = [ConfigResource(ResourceType.TOPIC, name) for name in topics[start : start + _BATCH]]
            futures = self._admin().describe_configs(resources, request_timeout=seconds)
            for resource, future in futures.items():
                try:
                    entries = self._result(future, f"describing the settings of topic {resource.name}")
                except KafkaBackupError as error:
                    described[resource.name] = error
                    continue
                described[resource.name] = {
                    name: ConfigValue(
                        value=None if entry.is_sensitive else entry.value,
                        source=ConfigSource(entry.source).name,
                    )
                    for name, entry in entries.items()
                }
        return described

    def create_topic(
        self, name: str, *, partitions: int, replication_factor: int, configs: Mapping[str, str]
    ) -> None:
        """Create a topic. The caller waits until its leaders are known (`wait_for_leaders`).

        Raises:
            TopicExistsError: there is one: somebody else's, or our own, of a request whose answer was lost.
        """
        topic = NewTopic(
            name, num_partitions=partitions, replication_factor=replication_factor, config=dict(configs)
        )
        futures = self._admin().create_topics([topic], request_timeout=self._retry_seconds)
        try:
            self._result(futures[name], f"creating topic {name}")
        except BrokerError as error:
            if error.code == ErrorCode.topic_already_exists:
                raise TopicExistsError(name) from error
            raise

    def alter_configs(
        self,
        topic: str,
        *,
        set: Mapping[str, str],
        delete: Collection[str],
        validate_only: bool = False,
        check_stop: Callable[[], None] | None = None,
    ) -> None:
        """Set some settings and put others back to the broker's default, in one step (KIP-339).

        With `validate_only` the brokers say whether they would take it, and nothing is changed.
        """
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
            for name, value in sorted(set.items())
        ]
        entries += [
            ConfigEntry(name, None, incremental_operation=AlterConfigOpType.DELETE) for name in sorted(delete)
        ]
        if not entries:
            return
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        patience = _Patience(self._cluster, check_stop)
        while True:
            futures = self._admin().incremental_alter_configs(
                [resource], request_timeout=patience.left, validate_only=validate_only
            )
            try:
                self._result(futures[resource], f"changing the settings of topic {topic}")
            except KafkaBackupError as error:
                if not patience.ask_again({topic: error}):
                    raise
            else:
                return

    def broker_setting(self, name: str, brokers: Sequence[int]) -> Sequence[str]:
        """Return a setting of each of these brokers; one that does not know it is left out."""
        resources = [ConfigResource(ResourceType.BROKER, str(broker)) for broker in brokers]
        futures: dict[ConfigResource, Future[Any]] = {}
        for resource in resources:  # a broker describes itself alone: one call for each
            futures |= self._admin().describe_configs([resource], request_timeout=self._retry_seconds)
        found = (
            self._result(future, f"describing the settings of broker {resource.name}")
            for resource, future in futures.items()
        )
        return [entries[name].value for entries in found if name in entries]


def _error(error: KafkaError, what: str) -> KafkaBackupError:
    if error.code() < 0:  # librdkafka's own: no connection, timed out
        return UnreachableError(f"{what}: {error.str()}")
    return broker_error(error.code(), f"{what}: {error.str()}")


def _is_unknown(found: object) -> bool:
    return isinstance(found, BrokerError) and found.code == ErrorCode.unknown_topic_or_partition


class _Patience:
    """With brokers that do not know a topic yet, or were lost, as long as the cluster's retry time lasts."""

    def __init__(self, cluster: Cluster, check_stop: Callable[[], None] | None) -> None:
        self._cluster = cluster if check_stop is None else cluster.stoppable(check_stop)
        self._end = time.monotonic() + cluster.retry_seconds
        self._attempt = 0

    @property
    def left(self) -> float:
        """Seconds for the next request; one second at the least."""
        return max(1.0, self._end - time.monotonic())

    def ask_again(self, failed: Mapping[str, KafkaBackupError]) -> Sequence[str]:
        """Wait a little; return the topics whose error may pass: those unknown must exist, as most brokers say."""
        unknown = [name for name, error in failed.items() if _is_unknown(error)]
        again = [name for name, error in failed.items() if error.retriable and name not in unknown]
        if not (unknown or again) or time.monotonic() > self._end:
            return ()
        if unknown:
            found = self._cluster.survey(unknown)
            again += [name for name in unknown if name in found.topics or name in found.disputed]
        if again:
            self._cluster.pause(self._attempt)
            self._attempt += 1
        return again


def delete_topic(cluster: Cluster, topic: str, topic_id: str) -> None:
    """Delete the topic with this id, and no other that has its name; gone already is as good.

    Raises:
        AuthorizationError: we may not.
        BrokerError: deleting topics is disabled, or another final error.
        UnreachableError: no broker did it in time.
    """
    request = DeleteTopicsRequest(
        topics=(DeleteTopicState(name=None, topic_id=topic_uuid(topic_id)),),
        timeout=datetime.timedelta(seconds=30),  # type: ignore[arg-type]
    )

    def ask() -> None:
        answer = cluster.ask_any(f"deleting topic {topic}", request, DeleteTopicsResponse)
        (result,) = answer.responses
        if result.error_code and result.error_code != ErrorCode.unknown_topic_id:
            raise broker_error(result.error_code, f"deleting topic {topic} ({topic_id})")

    cluster.retry(f"deleting topic {topic}", ask)


def wait_for_leaders(cluster: Cluster, topic: str, *, partitions: int, other_than: str | None = None) -> str:
    """Wait until a new topic is known with a leader for each partition; returns its topic id.

    Args:
        cluster: where.
        topic: its name.
        partitions: how many it has.
        other_than: the id of a deleted topic of this name, which some brokers may still know.

    Raises:
        UnreachableError: it was not within the cluster's retry time.
    """
    end = time.monotonic() + cluster.retry_seconds
    while True:
        # Most brokers must know it, and have forgotten the deleted one: its id would be taken for the new one's.
        found = cluster.survey([topic]).topics.get(topic)
        if found is not None and found.topic_id == other_than:
            found = None
        if found is not None and sum(part.leader >= 0 for part in found.partitions.values()) == partitions:
            return found.topic_id
        if time.monotonic() > end:
            raise UnreachableError(
                f"topic {topic} has not got all its leaders within {cluster.retry_seconds:g} s of its creation"
            )
        time.sleep(0.05)


def validate_topic(
    cluster: Cluster,
    name: str,
    *,
    partitions: int,
    replication_factor: int,
    configuration: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Ask the brokers whether a topic could be created so; creates nothing (CreateTopics, validateOnly).

    Returns:
        Every setting that would be in force.

    Raises:
        TopicExistsError: a topic of this name exists, even if we may not see it.
        BrokerError: it could not; with the broker's reason.
        AuthorizationError: we may not create it.
    """
    payload = CreateTopicsRequest(
        topics=(
            CreatableTopic(
                name=name,  # type: ignore[arg-type]
                num_partitions=partitions,  # type: ignore[arg-type]
                replication_factor=replication_factor,  # type: ignore[arg-type]
                assignments=(),
                configs=tuple(
                    CreatableTopicConfig(name=key, value=value)
                    for key, value in sorted((configuration or {}).items())
                ),
            ),
        ),
        timeout=datetime.timedelta(seconds=10),  # type: ignore[arg-type]
        validate_only=True,
    )
    answer = cluster.ask_any(f"validating topic {name}", payload, CreateTopicsResponse)
    (result,) = answer.topics
    if result.error_code == ErrorCode.topic_already_exists:
        raise TopicExistsError(name)
    if result.error_code:
        raise broker_error(result.error_code, result.error_message or name)
    return {entry.name: entry.value or "" for entry in result.configs or ()}
