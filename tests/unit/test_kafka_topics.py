"""The settings of topics, asked of brokers that come and go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from kafka_backup.errors import AuthorizationError, KafkaBackupError, UnreachableError
from kafka_backup.kafka.topics import TopicAdmin

LOST, DENIED = KafkaError(KafkaError._DESTROY_BROKER), KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)


class Client:
    """An admin client; each request about a topic comes to the next of its ends, the last one for ever."""

    def __init__(self, *ends: KafkaError | None) -> None:
        self.ends = list(ends)
        self.requests = 0

    def _answers(self, resources: Sequence[Any], value: object) -> dict[Any, Future[Any]]:
        self.requests += 1
        end = self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]
        future: Future[Any] = Future()
        if end is None:
            future.set_result(value)
        else:
            future.set_exception(KafkaException(end))
        return dict.fromkeys(resources, future)

    def describe_configs(self, resources: Sequence[Any], **_: object) -> dict[Any, Future[Any]]:
        entry = SimpleNamespace(value="delete", is_sensitive=False, source=1)
        return self._answers(resources, {"cleanup.policy": entry})

    def incremental_alter_configs(self, resources: Sequence[Any], **_: object) -> dict[Any, Future[Any]]:
        return self._answers(resources, None)


def admin(client: Client, *, retry_seconds: float) -> TopicAdmin:
    cluster = SimpleNamespace(settings=None, retry_seconds=retry_seconds, pause=lambda _attempt: None)
    made = TopicAdmin(cluster)  # type: ignore[arg-type]
    made._client = client  # type: ignore[assignment]
    return made


def describe(topics: TopicAdmin) -> None:
    topics.describe_configs(["orders"])


def alter(topics: TopicAdmin) -> None:
    topics.alter_configs("orders", set={"retention.ms": "-1"}, delete=())


@pytest.mark.parametrize("ask", [describe, alter])
def test_a_lost_broker_is_asked_again(ask: Callable[[TopicAdmin], None]) -> None:
    """What: a connection of librdkafka's admin client that goes away twice, for good, or is refused something.

    Why: a broker that was cut off comes back, and librdkafka drops the connection by which it knew it.
    Risk: a topic that fails although every broker is there; or one that is asked about without an end.
    """
    client = Client(LOST, LOST, None)
    ask(admin(client, retry_seconds=60))
    assert client.requests == 3
    for end, seconds, expected in ((LOST, 0, UnreachableError), (DENIED, 60, AuthorizationError)):
        client = Client(end)
        with pytest.raises(KafkaBackupError, match="orders") as raised:
            ask(admin(client, retry_seconds=seconds))
        assert type(raised.value) is expected
        assert client.requests == 1
