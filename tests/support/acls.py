"""Rights of users on a broker with an authorizer, in force when these functions return."""

from dataclasses import dataclass

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from tests.support.kafka_cluster import KafkaCluster
from tests.support.waiting import wait_for


@dataclass(frozen=True)
class Right:
    """One operation on one resource of Kafka's ACLs, or on all whose names begin so.

    Attributes:
        operation: Kafka's name, such as READ.
        name: of the resource; ``*`` for all.
        kind: TOPIC, GROUP or BROKER (the cluster, whose name is ``kafka-cluster``).
    """

    operation: str
    name: str
    kind: str = "TOPIC"
    prefixed: bool = False

    def rule(self, user: str, *, deny: bool = False) -> AclBinding:
        """As the admin client wants it."""
        return AclBinding(
            ResourceType[self.kind],
            self.name,
            ResourcePatternType.PREFIXED if self.prefixed else ResourcePatternType.LITERAL,
            f"User:{user}",
            "*",
            AclOperation[self.operation],
            AclPermissionType.DENY if deny else AclPermissionType.ALLOW,
        )


def allow(kafka: KafkaCluster, user: str, *rights: Right, deny: bool = False) -> None:
    """Gives a user rights; with `deny`, forbids them."""
    rules = {each.rule(user, deny=deny) for each in rights}
    admin = kafka.admin()
    for done in admin.create_acls(list(rules)).values():
        done.result(30)
    wait_for(lambda: rules <= _rules(kafka), what=f"the rights of {user}")


def take(kafka: KafkaCluster, user: str, *rights: Right) -> None:
    """Takes rights away again."""
    rules = {each.rule(user) for each in rights}
    admin = kafka.admin()
    for done in admin.delete_acls([_exactly(rule) for rule in rules]).values():
        assert len(done.result(30)) == 1
    wait_for(lambda: not rules & _rules(kafka), what=f"fewer rights of {user}")


def _exactly(rule: AclBinding) -> AclBindingFilter:
    return AclBindingFilter(
        rule.restype,
        rule.name,
        rule.resource_pattern_type,
        rule.principal,
        rule.host,
        rule.operation,
        rule.permission_type,
    )


def _rules(kafka: KafkaCluster) -> set[AclBinding]:
    """All rules, as the authorizer tells: brokers learn them a moment after they are made."""
    anything = AclBindingFilter(
        ResourceType.ANY,
        None,
        ResourcePatternType.ANY,
        None,
        None,
        AclOperation.ANY,
        AclPermissionType.ANY,
    )
    admin = kafka.admin()
    return set(admin.describe_acls(anything).result(30))
