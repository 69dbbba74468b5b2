"""What we may do with topics, existing or not, as the brokers' authorizer says (KIP-430)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kio.schema.errors import ErrorCode
from kio.schema.metadata.v12.request import MetadataRequest, MetadataRequestTopic
from kio.schema.metadata.v12.response import MetadataResponse

from kafka_backup.kafka.cluster import Cluster

_OPERATIONS = {
    3: "READ",
    4: "WRITE",
    5: "CREATE",
    6: "DELETE",
    7: "ALTER",
    8: "DESCRIBE",
    10: "DESCRIBE_CONFIGS",
    11: "ALTER_CONFIGS",
}
"""org.apache.kafka.common.acl.AclOperation, by its code: the bit of the answer."""
_NOT_SAID = -(2**31)
_BATCH = 500


def topic_rights(cluster: Cluster, topics: Sequence[str]) -> Mapping[str, frozenset[str]]:
    """Return the operations that we may do with each topic; all of them where nobody is asked.

    A topic that does not exist is answered for as well: rights are given to names. CREATE and DELETE
    may also come from rights on the cluster, which are not in the answer.

    Raises:
        UnreachableError: no broker answers in time.
    """
    everything = frozenset(_OPERATIONS.values())
    rights: dict[str, frozenset[str]] = {}
    for start in range(0, len(topics), _BATCH):
        request = MetadataRequest(
            topics=tuple(
                MetadataRequestTopic(topic_id=None, name=name)  # type: ignore[arg-type]
                for name in topics[start : start + _BATCH]
            ),
            allow_auto_topic_creation=False,
            include_topic_authorized_operations=True,
        )
        for topic in cluster.ask_any("asking for our rights", request, MetadataResponse).topics:
            bits = int(topic.topic_authorized_operations)
            if topic.error_code == ErrorCode.topic_authorization_failed:
                rights[str(topic.name)] = frozenset()
            elif bits == _NOT_SAID:
                rights[str(topic.name)] = everything
            else:
                rights[str(topic.name)] = frozenset(
                    name for bit, name in _OPERATIONS.items() if bits >> bit & 1
                )
    return rights
