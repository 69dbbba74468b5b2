"""A restore without the rights that it needs says which, before a byte is written."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kafka_backup import AuthorizationError, RestoreRequest
from tests.support.acls import Right, allow
from tests.support.engine import capture, open_engine, restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import new_topic, produce, read_topic

RIGHTS = ("DESCRIBE", "WRITE", "READ", "DESCRIBE_CONFIGS", "ALTER_CONFIGS", "CREATE")
IMPLYING = {"DESCRIBE": ("READ", "WRITE"), "DESCRIBE_CONFIGS": ("ALTER_CONFIGS",)}
"""Who holds one of these holds the other as well (AclAuthorizer)."""


@pytest.fixture(scope="module")
def guarded() -> Iterator[KafkaCluster]:
    """A broker whose authorizer allows whatever no rule speaks of, except to create any topic."""
    rules = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with KafkaCluster(1, config=rules) as cluster:
        held = ["CLUSTER_ACTION", "DESCRIBE", "ALTER", "DESCRIBE_CONFIGS", "ALTER_CONFIGS"]
        _allow(cluster, "kafka-cluster", held, "BROKER")
        yield cluster


def _allow(kafka: KafkaCluster, name: str, operations: Sequence[str], kind: str = "TOPIC") -> None:
    allow(kafka, "ANONYMOUS", *(Right(each, name, kind) for each in operations))


@pytest.mark.parametrize("exists", [False, True], ids=["new", "existing"])
def test_each_missing_right_is_named_before_a_write(
    guarded: KafkaCluster, tmp_path: Path, exists: bool
) -> None:
    """Tests a plan with one right after the other taken away: each is named; with all of them it runs.

    It matters because a right that is found missing half-way leaves a topic half written.
    Rights on a topic that does not exist yet cannot be found out by trying.
    """
    topic = f"source-{secrets.token_hex(4)}"
    _allow(guarded, topic, ["ALL"])
    new_topic(guarded, name=topic)
    produce(guarded.bootstrap_servers, topic, [NewRecord(b"v")] * 3)
    needed = [right for right in RIGHTS if not (exists and right == "CREATE")]
    targets = {right: f"r-{right.lower().replace('_', '-')}-{topic}" for right in [*needed, "NONE"]}
    if exists:
        for target in targets.values():
            new_topic(guarded, name=target)
    for lacking, target in targets.items():
        without = {lacking, *IMPLYING.get(lacking, ())}
        _allow(guarded, target, [each for each in needed if each not in without])
    with open_engine(guarded, tmp_path) as engine:
        capture(engine, topic)
        for lacking, target in targets.items():
            rule = {"pattern": ".*", "replacement": target}
            plan = engine.plan_restore(
                RestoreRequest(restore_id=f"r-{lacking}", topics=(topic,), rename=(rule,))
            )
            if lacking == "NONE":
                assert plan.problems == ()
                engine.restore(plan)
                assert read_topic(guarded.bootstrap_servers, target) == restored_as(guarded, topic)
                continue
            told = " ".join(problem.detail for problem in plan.problems)
            assert lacking in told, told
            assert target in told
            with pytest.raises(AuthorizationError, match=lacking):
                engine.restore(plan)
