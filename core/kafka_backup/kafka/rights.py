"""What we may do, as the brokers' authorizer says (KIP-430), and what they hide from us."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from kio.schema.describe_cluster.v0.request import DescribeClusterRequest
from kio.schema.describe_cluster.v0.response import DescribeClusterResponse
from kio.schema.describe_log_dirs.v2.request import DescribeLogDirsRequest
from kio.schema.describe_log_dirs.v2.response import DescribeLogDirsResponse
from kio.schema.end_txn.v3.request import EndTxnRequest
from kio.schema.end_txn.v3.response import EndTxnResponse
from kio.schema.errors import ErrorCode
from kio.schema.metadata.v12.request import MetadataRequest, MetadataRequestTopic
from kio.schema.metadata.v12.response import MetadataResponse

from kafka_backup.errors import UnreachableError
from kafka_backup.kafka.cluster import Cluster, broker_error
from kafka_backup.kafka.settings import Address

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
_LOG_DIRS, _LOG_DIRS_VERSION = 35, 2


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
                rights[str(topic.name)] = operations_named(bits)
    return rights


def cluster_rights(cluster: Cluster) -> frozenset[str]:
    """Return the operations that we may do with the cluster itself.

    Raises:
        UnreachableError: no broker answers in time.
    """
    request = DescribeClusterRequest(include_cluster_authorized_operations=True)
    answer = cluster.ask_any("asking for our rights", request, DescribeClusterResponse)
    if answer.error_code:
        raise broker_error(answer.error_code, "asking for our rights")
    return operations_named(int(answer.cluster_authorized_operations))


def may_write_transactions(cluster: Cluster, transactional_id: str) -> bool:
    """Whether we hold the right WRITE on a transactional id. Changes nothing.

    No request asks for that right, so any broker is asked to end a transaction of a producer that does not
    exist: it looks at the right first, and then finds nothing to end (``KafkaApis.handleEndTxnRequest``).

    Raises:
        UnreachableError: no broker answers in time.
    """
    request = EndTxnRequest(
        transactional_id=transactional_id,  # type: ignore[arg-type]
        producer_id=-1,  # type: ignore[arg-type]
        producer_epoch=-1,  # type: ignore[arg-type]
        committed=False,
    )
    answer = cluster.ask_any("asking for our rights", request, EndTxnResponse)
    return bool(answer.error_code != ErrorCode.transactional_id_authorization_failed)


def operations_named(bits: int) -> frozenset[str]:
    """Return the operations of a bit field."""
    return frozenset(name for bit, name in _OPERATIONS.items() if bits >> bit & 1)


def topics_on_disk(cluster: Cluster, brokers: Iterable[Address]) -> frozenset[str] | None:
    """Return the topics that the brokers have in their log folders: all there are, whatever we may describe.

    One request per broker (DescribeLogDirs). It takes the right DESCRIBE on the cluster: without it, or
    where not every broker answers, None.
    """

    def ask(address: Address) -> frozenset[str] | None:
        try:
            if not cluster.speaks(address, _LOG_DIRS, _LOG_DIRS_VERSION):
                return None
            answer = cluster.ask(address, DescribeLogDirsRequest(topics=None), DescribeLogDirsResponse)
        except UnreachableError:
            return None
        # Whoever lacks the right gets an empty list and, in this version, no error code.
        names = {str(topic.name) for folder in answer.results for topic in folder.topics}
        return frozenset(names) if answer.results else None

    addresses = list(brokers)
    with ThreadPoolExecutor(max_workers=max(1, len(addresses)), thread_name_prefix="rights") as pool:
        found = list(pool.map(ask, addresses))
    known = [names for names in found if names is not None]
    return frozenset().union(*known) if found and len(known) == len(found) else None
