"""Consumer groups: which there are, and their committed offsets read, written and deleted.

A committed offset is the next record that a group wants to read of a partition. Brokers store whatever
number they are given (``OffsetMetadataManager.validateOffsetCommit``); checks of bounds are the caller's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from kio.schema.consumer_group_describe.v0.request import ConsumerGroupDescribeRequest
from kio.schema.consumer_group_describe.v0.response import ConsumerGroupDescribeResponse
from kio.schema.delete_groups.v2.request import DeleteGroupsRequest
from kio.schema.delete_groups.v2.response import DeleteGroupsResponse
from kio.schema.describe_groups.v5.request import DescribeGroupsRequest
from kio.schema.describe_groups.v5.response import DescribeGroupsResponse
from kio.schema.errors import ErrorCode
from kio.schema.list_groups.v4.request import ListGroupsRequest as ListGroupsRequestV4
from kio.schema.list_groups.v4.response import ListGroupsResponse as ListGroupsResponseV4
from kio.schema.list_groups.v5.request import ListGroupsRequest
from kio.schema.list_groups.v5.response import ListGroupsResponse
from kio.schema.offset_commit.v8.request import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from kio.schema.offset_commit.v8.response import OffsetCommitResponse
from kio.schema.offset_delete.v0.request import (
    OffsetDeleteRequest,
    OffsetDeleteRequestPartition,
    OffsetDeleteRequestTopic,
)
from kio.schema.offset_delete.v0.response import OffsetDeleteResponse
from kio.schema.offset_fetch.v8.request import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopics,
)
from kio.schema.offset_fetch.v8.response import OffsetFetchResponse, OffsetFetchResponseGroup

from kafka_backup.errors import (
    AuthorizationError,
    BrokerError,
    ConfigurationError,
    KafkaBackupError,
    UnreachableError,
)
from kafka_backup.kafka.cluster import Cluster, Partition, broker_error, by_topic
from kafka_backup.kafka.coordinators import (
    THREADS,
    Coordinators,
    OffsetsTopic,
    may_succeed_later,
    probe_groups,
)
from kafka_backup.kafka.last_commits import OFFSETS_TOPIC, LastCommits
from kafka_backup.kafka.rights import operations_named
from kafka_backup.kafka.settings import Address

_LIST_GROUPS = 16
_GROUPS = 50
"""Groups in one OffsetFetch request: small enough that an answer takes a broker milliseconds."""
_OFFSETS = 1000
"""Offsets in one OffsetCommit request, which becomes one batch of at most 1 MiB."""
_NO_COMMIT = -1
_UNKNOWN = "Unknown"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedGroup:
    """One group as its coordinator lists it.

    Attributes:
        type: ``classic``, ``consumer`` (KIP-848), ``share`` or ``streams``; brokers before 3.8 know
            only the first.
        state: Kafka's name: ``Empty``, ``Stable``, ``PreparingRebalance``, ``Assigning``...; ``Unknown`` where
            its coordinator does not show it yet.
        protocol_type: ``consumer``, ``connect``...; empty for a simple group, which only commits.
    """

    group: str
    type: str
    state: str
    protocol_type: str

    @property
    def has_members(self) -> bool:
        """Whether somebody is in it, so that nobody else can move its positions."""
        return self.state not in ("Empty", "Dead")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedOffset:
    """A position: the next offset to read, the epoch of the last record read (-1: none), free text."""

    offset: int
    leader_epoch: int = -1
    metadata: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupListing:
    """The groups that we may describe, by name.

    Attributes:
        is_proved: no coordinator was on the move while it was asked, which takes the right DESCRIBE on
            the topic ``__consumer_offsets`` to know; without it, groups may be missing.
        unread: why the last commits before a coordinator took over could not be read, by partition of that
            topic: where nothing was written since, coordinators may not show them.
    """

    groups: Mapping[str, ListedGroup]
    is_proved: bool
    unread: Mapping[int, KafkaBackupError]


GroupOffsets = Mapping[Partition, CommittedOffset]
PartitionErrors = Mapping[Partition, KafkaBackupError]


class GroupClient:
    """Asks and tells the group coordinators of one cluster. Safe for many threads."""

    def __init__(self, cluster: Cluster) -> None:
        """Prepare; nothing is contacted yet."""
        self.cluster = cluster
        self.coordinators = Coordinators(cluster)

    # --- which groups there are

    def list_groups(self) -> GroupListing:
        """Return every group that we may describe.

        While a coordinator moves to another broker, neither may list its groups, and neither says so.
        So each partition of the offsets topic is proved to be served, by a question about a group that
        does not exist, before and after the listing, and its leader must be the same throughout. What the
        new one may not show even then is read from its log.

        Raises:
            UnreachableError: not all coordinators answered for themselves in time.
        """
        return self.cluster.retry("listing the consumer groups", self._list_once)

    def _list_once(self) -> GroupListing:
        before = self.coordinators.offsets_topic()
        probes = probe_groups(len(before.leaders)) if before is not None and before.leaders else {}
        by_broker: dict[Address, list[str]] = defaultdict(list)
        if before is None:
            by_broker |= {address: [] for address in self.cluster.metadata([]).brokers.values()}
        else:
            for partition, leader in before.leaders.items():
                if leader.address is None:
                    raise broker_error(ErrorCode.coordinator_not_available, f"{OFFSETS_TOPIC} [{partition}]")
                by_broker[leader.address].append(probes[partition])

        def ask(pair: tuple[Address, Sequence[str]]) -> Sequence[ListedGroup]:
            address, names = pair
            self._prove_served(address, names)
            listed = self._list_at(address)
            self._prove_served(address, names)
            return listed

        groups: dict[str, ListedGroup] = {}
        with ThreadPoolExecutor(max_workers=max(1, len(by_broker)), thread_name_prefix="groups") as pool:
            for found in pool.map(ask, by_broker.items()):
                groups.update({group.group: group for group in found})
        last = {} if before is None else self.coordinators.last_commits(before, before.leaders)
        for each in last.values():
            if isinstance(each, KafkaBackupError) and each.retriable:
                raise each
        unseen = {
            group.group: group
            for commits in last.values()
            if isinstance(commits, LastCommits)
            for group in _unseen_groups(commits)
            if group.group not in groups
        }
        self._refuse_moved(before, unseen)
        return GroupListing(
            groups=groups | unseen,
            is_proved=before is not None,
            unread={number: found for number, found in last.items() if isinstance(found, KafkaBackupError)},
        )

    def _refuse_moved(self, before: OffsetsTopic | None, unseen: Collection[str]) -> None:
        """Refuse to believe an answer while a coordinator moved, or wrote where its log was to say the rest."""
        after = self.coordinators.offsets_topic()
        if before is None or after is None:
            moved = before is not after
        else:
            quiet = {before.partition_of(group) for group in unseen}
            moved = _places(before) != _places(after) or any(
                not after.leaders[number].is_untouched for number in quiet
            )
        if moved:
            raise broker_error(ErrorCode.not_coordinator, "a group coordinator moved meanwhile")

    def _prove_served(self, address: Address, names: Sequence[str]) -> None:
        if not names:
            return
        for group in self._offset_fetch(address, dict.fromkeys(names), require_stable=False):
            # Without the right to ask, the leaders' epochs alone must do.
            if group.error_code not in (ErrorCode.none, ErrorCode.group_authorization_failed):
                raise broker_error(group.error_code, f"coordinator {address}")

    def _list_at(self, address: Address) -> Sequence[ListedGroup]:
        answer: ListGroupsResponse | ListGroupsResponseV4
        if self.cluster.speaks(address, _LIST_GROUPS, 5):
            answer = self.cluster.ask(address, ListGroupsRequest(), ListGroupsResponse)
        else:
            answer = self.cluster.ask(address, ListGroupsRequestV4(), ListGroupsResponseV4)
        if answer.error_code:
            raise broker_error(answer.error_code, f"listing the groups of coordinator {address}")
        return [
            ListedGroup(
                group=str(group.group_id),
                type=getattr(group, "group_type", "classic").lower(),
                state=group.group_state,
                protocol_type=group.protocol_type,
            )
            for group in answer.groups
        ]

    def may_describe(self, group: str) -> bool:
        """Whether we hold the right DESCRIBE on a group, which need not exist."""
        return not isinstance(self.fetch([group])[group], AuthorizationError)

    def rights(self, groups: Sequence[str]) -> Mapping[str, frozenset[str] | KafkaBackupError]:
        """Return the operations that we may do with each group, existing or not (KIP-430)."""

        def ask(address: Address, names: Sequence[str]) -> Mapping[str, frozenset[str] | KafkaBackupError]:
            request = DescribeGroupsRequest(groups=tuple(names), include_authorized_operations=True)  # type: ignore[arg-type]
            held: dict[str, frozenset[str] | KafkaBackupError] = {}
            for group in self.cluster.ask(address, request, DescribeGroupsResponse).groups:
                name = str(group.group_id)
                if group.error_code == ErrorCode.group_authorization_failed:
                    held[name] = frozenset()
                elif group.error_code:
                    held[name] = broker_error(group.error_code, f"asking for our rights on {name!r}")
                else:
                    held[name] = operations_named(int(group.authorized_operations))
            return held

        return self._by_coordinator(list(groups), ask)

    def members(self, groups: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
        """Return who is in each group, for messages: ``client id (host)``; empty where nobody knows.

        Args:
            groups: names with the groups' types.
        """
        described: dict[str, Sequence[str]] = {}
        found = self._each(list(groups), lambda address, group: self._members(address, group, groups[group]))
        for group, answer in found.items():
            described[group] = () if isinstance(answer, KafkaBackupError) else answer
        return described

    def _members(self, address: Address, group: str, kind: str) -> Sequence[str]:
        answer: ConsumerGroupDescribeResponse | DescribeGroupsResponse
        if kind == "consumer":
            answer = self.cluster.ask(
                address,
                ConsumerGroupDescribeRequest(group_ids=(group,), include_authorized_operations=False),  # type: ignore[arg-type]
                ConsumerGroupDescribeResponse,
            )
        elif kind == "classic":
            answer = self.cluster.ask(
                address,
                DescribeGroupsRequest(groups=(group,), include_authorized_operations=False),  # type: ignore[arg-type]
                DescribeGroupsResponse,
            )
        else:
            return ()
        return sorted(
            f"{member.client_id} ({member.client_host.lstrip('/')})"
            for described in answer.groups
            for member in described.members
        )

    # --- committed offsets

    def fetch(
        self, groups: Sequence[str] | Mapping[str, Sequence[Partition]], *, stable: bool = True
    ) -> Mapping[str, GroupOffsets | KafkaBackupError]:
        """Read the committed offsets of many groups, by default stable ones only (KIP-447).

        A group with a transactional commit under way is asked again until that has ended. A group that
        does not exist has no offsets.

        Args:
            groups: names, for all of their offsets: a topic that we may not describe is silently left
                out by the brokers. Or names with partitions: then such a topic is an error.
            stable: False gives the offsets as they were before a transactional commit under way.
        """
        wanted: dict[str, Sequence[Partition] | None] = (
            dict(groups) if isinstance(groups, Mapping) else dict.fromkeys(groups)
        )

        def ask(address: Address, names: Sequence[str]) -> Mapping[str, GroupOffsets | KafkaBackupError]:
            question = {name: wanted[name] for name in names}
            return {
                str(group.group_id): _offsets_of(group)
                for group in self._offset_fetch(address, question, require_stable=stable)
            }

        return self._by_coordinator(
            list(wanted), ask, lambda topic, found: self._completed(topic, found, wanted, stable=stable)
        )

    def _completed(
        self,
        topic: OffsetsTopic,
        found: Mapping[str, GroupOffsets | KafkaBackupError],
        wanted: Mapping[str, Sequence[Partition] | None],
        *,
        stable: bool,
    ) -> Mapping[str, GroupOffsets | KafkaBackupError]:
        """Put in what was committed right before a coordinator took over, where it does not show that."""
        places = {group: topic.partition_of(group) for group in found}
        last = self.coordinators.last_commits(topic, set(places.values()))
        completed: dict[str, GroupOffsets | KafkaBackupError] = {}
        for group, shown in found.items():
            commits = last.get(places[group])
            if isinstance(shown, KafkaBackupError):
                continue
            if isinstance(commits, KafkaBackupError) and commits.retriable:
                completed[group] = commits
            elif isinstance(commits, LastCommits):
                completed[group] = _with_last_commits(group, shown, commits, wanted[group], stable=stable)
        changed = {group for group, offsets in completed.items() if offsets != found[group]}
        if changed:
            now = self.coordinators.offsets_topic()
            for group in changed:
                if now is None or now.leaders.get(places[group]) != topic.leaders[places[group]]:
                    completed[group] = broker_error(
                        ErrorCode.not_coordinator, f"the coordinator of group {group!r} went on meanwhile"
                    )
        return {**found, **completed}

    def _offset_fetch(
        self, address: Address, groups: Mapping[str, Sequence[Partition] | None], *, require_stable: bool
    ) -> Sequence[OffsetFetchResponseGroup]:
        def topics(partitions: Sequence[Partition] | None) -> tuple[OffsetFetchRequestTopics, ...] | None:
            if partitions is None:
                return None
            return tuple(
                OffsetFetchRequestTopics(name=topic, partition_indexes=tuple(numbers))  # type: ignore[arg-type]
                for topic, numbers in by_topic(partitions).items()
            )

        request = OffsetFetchRequest(
            groups=tuple(
                OffsetFetchRequestGroup(group_id=name, topics=topics(partitions))  # type: ignore[arg-type]
                for name, partitions in groups.items()
            ),
            require_stable=require_stable,
        )
        return self.cluster.ask(address, request, OffsetFetchResponse).groups

    def commit(self, groups: Mapping[str, GroupOffsets]) -> Mapping[str, PartitionErrors]:
        """Commit offsets for groups without members, as a consumer outside of any group does. One try.

        Brokers refuse a group that has members (UNKNOWN_MEMBER_ID), and then change nothing of it.

        Returns:
            For each group the partitions that failed. After a retriable error it is unknown whether the
            offset was written; read it.
        """

        def one(address: Address, group: str) -> PartitionErrors:
            errors: dict[Partition, KafkaBackupError] = {}
            for part in chunks(groups[group]):
                answer = self.cluster.ask(address, _commit_request(group, part), OffsetCommitResponse)
                errors |= errors_of(answer.topics, f"committing for group {group!r}")
            return errors

        return self._try_each(groups, one)

    def delete_offsets(self, groups: Mapping[str, Sequence[Partition]]) -> Mapping[str, PartitionErrors]:
        """Delete committed offsets (KIP-496). One try; a group that does not exist has none, so that is fine.

        Returns:
            As `commit`.
        """

        def one(address: Address, group: str) -> PartitionErrors:
            request = OffsetDeleteRequest(
                group_id=group,  # type: ignore[arg-type]
                topics=tuple(
                    OffsetDeleteRequestTopic(
                        name=topic,  # type: ignore[arg-type]
                        partitions=tuple(OffsetDeleteRequestPartition(partition_index=n) for n in numbers),  # type: ignore[arg-type]
                    )
                    for topic, numbers in by_topic(groups[group]).items()
                ),
            )
            answer = self.cluster.ask(address, request, OffsetDeleteResponse)
            if answer.error_code == ErrorCode.group_id_not_found:
                return {}
            if answer.error_code:
                raise broker_error(answer.error_code, f"deleting offsets of group {group!r}")
            return errors_of(answer.topics, f"deleting offsets of group {group!r}")

        return self._try_each(groups, one)

    def delete_groups(self, groups: Sequence[str]) -> Mapping[str, KafkaBackupError | None]:
        """Delete empty groups; one that does not exist is deleted already. One try."""

        def one(address: Address, group: str) -> None:
            request = DeleteGroupsRequest(groups_names=(group,))  # type: ignore[arg-type]
            for result in self.cluster.ask(address, request, DeleteGroupsResponse).results:
                if result.error_code not in (ErrorCode.none, ErrorCode.group_id_not_found):
                    raise broker_error(result.error_code, f"deleting group {group!r}")

        return self._each(groups, one)

    # --- at their coordinators

    def _by_coordinator(
        self,
        groups: Sequence[str],
        ask: Callable[[Address, Sequence[str]], Mapping[str, T | KafkaBackupError]],
        complete: Callable[
            [OffsetsTopic, Mapping[str, T | KafkaBackupError]], Mapping[str, T | KafkaBackupError]
        ] = lambda _topic, found: found,
    ) -> Mapping[str, T | KafkaBackupError]:
        """Ask all coordinators at once, each for its groups in batches, until every group has an answer.

        Groups whose coordinator moved, is silent or is not ready are asked for again, at whoever it is
        then, until the retry time is over. `complete` gets the answers, and who led the offsets topic.
        """
        answers: dict[str, T | KafkaBackupError] = {}

        def attempt() -> None:
            waiting = [group for group in groups if may_succeed_later(answers.get(group, _UNASKED))]
            topic, places = self.coordinators.of_groups(waiting)
            batches: list[tuple[Address, Sequence[str]]] = []
            by_address: dict[Address, list[str]] = defaultdict(list)
            for group in waiting:
                place = places[group]
                if isinstance(place, KafkaBackupError):
                    answers[group] = place
                else:
                    by_address[place].append(group)
            for address, names in by_address.items():
                batches += [(address, names[i : i + _GROUPS]) for i in range(0, len(names), _GROUPS)]

            def one(batch: tuple[Address, Sequence[str]]) -> Mapping[str, T | KafkaBackupError]:
                try:
                    found = ask(*batch)
                except (UnreachableError, ConfigurationError) as error:
                    return dict.fromkeys(batch[1], error)
                return {group: found.get(group, _UNASKED) for group in batch[1]}

            fresh: dict[str, T | KafkaBackupError] = {}
            with ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="groups") as pool:
                for found in pool.map(one, batches):
                    fresh.update(found)
            answers.update(fresh if topic is None else complete(topic, fresh))
            for answer in answers.values():
                if isinstance(answer, KafkaBackupError) and answer.retriable:
                    raise answer

        try:
            self.cluster.retry("asking the group coordinators", attempt)
        except UnreachableError as error:
            for group in groups:
                if may_succeed_later(answers.get(group, _UNASKED)):
                    last = answers.get(group, error)
                    answers[group] = UnreachableError(
                        f"group {group!r}: no answer within {self.cluster.retry_seconds:g} s: {last}"
                    )
        return answers

    def _each(
        self, groups: Sequence[str], ask: Callable[[Address, str], T]
    ) -> dict[str, T | KafkaBackupError]:
        """Ask the coordinator of each group, once, many at the same time."""
        _, places = self.coordinators.of_groups(groups)

        def one(group: str) -> T | KafkaBackupError:
            place = places[group]
            if isinstance(place, KafkaBackupError):
                return place
            try:
                return ask(place, group)
            except (BrokerError, ConfigurationError, UnreachableError) as error:
                return error

        with ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="groups") as pool:
            return dict(zip(groups, pool.map(one, groups), strict=True))

    def _try_each(
        self,
        groups: Mapping[str, Sequence[Partition]] | Mapping[str, GroupOffsets],
        ask: Callable[[Address, str], PartitionErrors],
    ) -> Mapping[str, PartitionErrors]:
        """As `_each`; an error of the whole group is that of each of its partitions."""
        return {
            group: dict.fromkeys(groups[group], answer) if isinstance(answer, KafkaBackupError) else answer
            for group, answer in self._each(list(groups), ask).items()
        }


_UNASKED = UnreachableError("the coordinator left it out of its answer")


def _places(topic: OffsetsTopic) -> tuple[str, Mapping[int, tuple[Address | None, int]]]:
    return topic.topic_id, {number: (each.address, each.epoch) for number, each in topic.leaders.items()}


def _unseen_groups(commits: LastCommits) -> Iterator[ListedGroup]:
    """Yield the groups that the end of a log has positions of.

    Of a group that is not shown, all records are there; without one of its members it has none.
    """
    for group, positions in commits.positions.items():
        if any(value is not None for value in positions.values()):
            has_more = group in commits.types
            yield ListedGroup(
                group=group,
                type=commits.types.get(group, "classic"),
                state=_UNKNOWN if has_more else "Empty",
                protocol_type="",
            )


def _with_last_commits(
    group: str,
    shown: GroupOffsets,
    commits: LastCommits,
    wanted: Sequence[Partition] | None,
    *,
    stable: bool,
) -> GroupOffsets | KafkaBackupError:
    """What a coordinator shows, as of the end of the log that it took over."""
    last, pending = commits.positions.get(group, {}), commits.pending.get(group, frozenset())
    parts = last.keys() | pending if wanted is None else (last.keys() | pending).intersection(wanted)
    if stable and pending & parts:
        return broker_error(ErrorCode.unstable_offset_commit, f"group {group!r}: a transaction is under way")
    offsets = dict(shown)
    for part in parts & last.keys():
        value = last[part]
        offsets.pop(part, None)
        if value is not None and value.offset != _NO_COMMIT:
            if value.offset < 0:
                return _no_position(f"group {group!r}, {part[0]} [{part[1]}]", value.offset)
            offsets[part] = CommittedOffset(
                offset=value.offset, leader_epoch=value.leader_epoch, metadata=value.metadata
            )
    return offsets


def _offsets_of(group: OffsetFetchResponseGroup) -> GroupOffsets | KafkaBackupError:
    name = str(group.group_id)
    if group.error_code:
        return broker_error(group.error_code, f"reading the offsets of group {name!r}")
    offsets = {}
    for topic in group.topics:
        for part in topic.partitions:
            key = str(topic.name), int(part.partition_index)
            where = f"group {name!r}, {key[0]} [{key[1]}]"
            if part.error_code:
                return broker_error(part.error_code, f"reading the offset of {where}")
            offset = int(part.committed_offset)
            if offset < _NO_COMMIT:
                return _no_position(where, offset)
            if offset != _NO_COMMIT:
                offsets[key] = CommittedOffset(
                    offset=offset,
                    leader_epoch=int(part.committed_leader_epoch),
                    metadata=part.metadata or "",
                )
    return offsets


def _no_position(where: str, offset: int) -> BrokerError:
    return BrokerError(
        f"{where}: the committed offset {offset} is no position; reset it",
        code=int(ErrorCode.offset_out_of_range),
        name="OFFSET_OUT_OF_RANGE",
        retriable=False,
    )


def _commit_request(group: str, offsets: GroupOffsets) -> OffsetCommitRequest:
    return OffsetCommitRequest(
        group_id=group,  # type: ignore[arg-type]
        member_id="",
        topics=tuple(
            OffsetCommitRequestTopic(
                name=topic,  # type: ignore[arg-type]
                partitions=tuple(
                    OffsetCommitRequestPartition(
                        partition_index=number,  # type: ignore[arg-type]
                        committed_offset=offsets[topic, number].offset,  # type: ignore[arg-type]
                        committed_leader_epoch=offsets[topic, number].leader_epoch,  # type: ignore[arg-type]
                        committed_metadata=offsets[topic, number].metadata,
                    )
                    for number in numbers
                ),
            )
            for topic, numbers in by_topic(list(offsets)).items()
        ),
    )


def chunks(offsets: GroupOffsets) -> Iterator[GroupOffsets]:
    """Cut offsets into parts that one request may hold."""
    items = sorted(offsets.items())
    for start in range(0, len(items), _OFFSETS):
        yield dict(items[start : start + _OFFSETS])


def errors_of(topics: Sequence[Any], what: str) -> PartitionErrors:
    """Return the errors of an answer by topic and partition."""
    return {
        (str(topic.name), int(part.partition_index)): broker_error(
            part.error_code, f"{what}: {topic.name} [{part.partition_index}]"
        )
        for topic in topics
        for part in topic.partitions
        if part.error_code
    }
