"""What is believed of a cluster whose brokers do not say the same."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.schema.errors import ErrorCode
from kio.schema.list_offsets.v7.request import ListOffsetsRequest
from kio.schema.list_offsets.v7.response import (
    ListOffsetsPartitionResponse,
    ListOffsetsResponse,
    ListOffsetsTopicResponse,
)

from kafka_backup.capture_plan import Known, PartitionPlan, Question, plan_partitions
from kafka_backup.errors import BrokerError, KafkaBackupError, UnreachableError
from kafka_backup.kafka.cluster import LATEST, Cluster, OffsetAnswer
from kafka_backup.kafka.metadata import (
    ClusterMetadata,
    PartitionMetadata,
    TopicMetadata,
    agreed,
    topic_id_text,
)
from kafka_backup.kafka.settings import Address, ConnectionSettings
from tests.support.scripted_broker import ScriptedBroker, metadata

TOPIC = "orders"
IDS = [uuid.UUID(int=n) for n in (1, 2)]
TEXTS = [topic_id_text(each) for each in IDS]


class Brokers:
    """Brokers 1..n; each tells its own view of the only partition: (leader, epoch), and the topic's id."""

    def __init__(self, count: int, stack: ExitStack) -> None:
        self.all = {n: stack.enter_context(ScriptedBroker()) for n in range(1, count + 1)}
        self.views: dict[int, tuple[int, int]] = dict.fromkeys(self.all, (1, 0))
        self.topic_ids: dict[int, uuid.UUID | None] = dict.fromkeys(self.all, IDS[0])
        self.listed: dict[int, Sequence[int]] = dict.fromkeys(self.all, tuple(self.all))
        self.ends = dict.fromkeys(self.all, 0)
        self.offset_questions: list[int] = []
        for number, broker in self.all.items():
            broker.script[3] = lambda _request, number=number: self.metadata(number)
            broker.script[2] = lambda request, number=number: self.list_offsets(number, request)

    def metadata(self, number: int) -> Any:
        """What one broker believes."""
        topic_id = self.topic_ids[number]
        return metadata(
            {each: self.all[each] for each in self.listed[number]},
            TOPIC,
            topic_id or IDS[0],
            [self.views[number]],
            error=ErrorCode.none if topic_id else ErrorCode.unknown_topic_or_partition,
        )

    def list_offsets(self, number: int, request: ListOffsetsRequest) -> ListOffsetsResponse:
        """As a leader answers: only under its own epoch."""
        self.offset_questions.append(number)
        leader, epoch = self.views[number]
        asked = request.topics[0].partitions[0].current_leader_epoch
        error = ErrorCode.none
        if leader != number:
            error = ErrorCode.not_leader_or_follower
        elif asked < epoch:
            error = ErrorCode.fenced_leader_epoch
        elif asked > epoch:
            error = ErrorCode.unknown_leader_epoch
        part = ListOffsetsPartitionResponse(
            partition_index=0,  # type: ignore[arg-type]
            error_code=error,
            offset=self.ends[number],  # type: ignore[arg-type]
            leader_epoch=epoch,  # type: ignore[arg-type]
        )
        topic = ListOffsetsTopicResponse(name=TOPIC, partitions=(part,))  # type: ignore[arg-type]
        return ListOffsetsResponse(throttle_time=timedelta(0), topics=(topic,))  # type: ignore[arg-type]

    def cluster(self, bootstrap: int = 1, *, retry_seconds: float = 20, **properties: str) -> Cluster:
        """A client that knows one of them."""
        settings = ConnectionSettings.from_properties(self.all[bootstrap].address, properties)
        return Cluster(settings, retry_seconds=retry_seconds)


@pytest.fixture
def brokers() -> Iterator[Brokers]:
    """Three of them."""
    with ExitStack() as stack:
        yield Brokers(3, stack)


def end_of(cluster: Cluster, deadline: float = 20) -> object:
    return cluster.list_offsets({(TOPIC, 0): LATEST}, isolation="read_committed", deadline=deadline)[TOPIC, 0]


@pytest.mark.parametrize("bootstrap", [1, 2, 3])
def test_a_leader_that_was_cut_off_is_not_believed(brokers: Brokers, bootstrap: int) -> None:
    """What: broker 1 still names itself leader of epoch 5 with 206 records; the others know epoch 6.

    Why: measured on a real cluster: right after a heal a client was told 206 of 1,894 acknowledged records.
    Risk: a capture that ends at 206 and says that it is complete.
    """
    brokers.views = {1: (1, 5), 2: (2, 6), 3: (2, 6)}
    brokers.ends = {1: 206, 2: 1894, 3: 0}
    cluster = brokers.cluster(bootstrap)
    found = cluster.survey(None).topics[TOPIC].partitions[0]
    assert (found.leader, found.leader_epoch) == (2, 6)
    assert end_of(cluster) == OffsetAnswer(offset=1894, leader_epoch=6)
    assert brokers.offset_questions == [2]


def test_a_leader_that_changes_after_the_survey_refuses(brokers: Brokers) -> None:
    """What: the leader moves between the survey and the question for the end.

    Why: a question names the epoch that it believes in, so that an old leader refuses to answer.
    Risk: an answer of a leader that is none any more.
    """
    brokers.ends = {1: 10, 2: 20, 3: 0}
    cluster = brokers.cluster()
    cluster.survey(None)
    brokers.views = dict.fromkeys(brokers.all, (2, 1))
    assert end_of(cluster) == OffsetAnswer(offset=20, leader_epoch=1)
    assert brokers.offset_questions[0] == 1


def test_a_minority_that_answers_alone_is_not_believed(brokers: Brokers) -> None:
    """What: only one of three brokers can be reached, and it calls itself leader.

    Why: that is how a broker looks that was cut off together with the machine that makes the backup.
    Risk: an old end taken for the whole topic, with exit code 0.
    """
    for number in (2, 3):
        brokers.all[number].close()
    with pytest.raises(UnreachableError, match=r"1 of 3 brokers answered.*out of date"):
        brokers.cluster(retry_seconds=1).survey(None)
    brokers.listed[1] = (1,)  # the others are gone for good, and it is told so
    assert brokers.cluster().survey(None).topics[TOPIC].topic_id == TEXTS[0]


def test_a_silent_broker_does_not_hold_up_a_survey(brokers: Brokers) -> None:
    """What: one of three brokers accepts connections and says nothing.

    Why: a frozen broker is no reason to stop a backup of what the others lead.
    Risk: each question to the cluster takes the whole socket timeout.
    """
    brokers.all[3].script[3] = lambda _request: None
    cluster = brokers.cluster(retry_seconds=120, **{"socket.timeout.ms": "120000"})
    began = time.monotonic()
    assert cluster.survey(None).topics[TOPIC].topic_id == TEXTS[0]
    assert time.monotonic() - began < 60


def test_topics_are_what_most_brokers_say(brokers: Brokers, monkeypatch: pytest.MonkeyPatch) -> None:
    """What: a topic that two of three brokers do not know any more, then one that two know anew.

    Why: a broker that was cut off shows deleted topics, and old ids of those that were made again.
    Risk: a deleted topic counts as captured, or the records of two incarnations get into one log.
    """
    monkeypatch.setattr("kafka_backup.kafka.cluster._UNANIMITY_SECONDS", 0.1)
    cluster = brokers.cluster()
    assert cluster.leader(TOPIC, TEXTS[0], 0)[1] == 0
    brokers.topic_ids |= {2: None, 3: None}
    assert TOPIC not in cluster.survey(None).topics
    brokers.topic_ids |= {2: IDS[1], 3: IDS[1]}
    assert cluster.survey(None).topics[TOPIC].topic_id == TEXTS[1]
    with pytest.raises(BrokerError, match="deleted and re-created"):
        cluster.leader(TOPIC, TEXTS[0], 0)


def test_a_topic_that_one_broker_learns_late_is_waited_for(brokers: Brokers) -> None:
    """What: a topic that only one of three brokers knows at first.

    Why: news of a new topic take a moment to reach all brokers.
    Risk: a backup right after the creation says that the topic does not exist.
    """
    brokers.topic_ids |= {2: None, 3: None}
    asked = 0

    def learn(_request: object) -> Any:
        nonlocal asked
        asked += 1
        if asked > 2:
            brokers.topic_ids |= {2: IDS[0], 3: IDS[0]}
        return brokers.metadata(3)

    brokers.all[3].script[3] = learn
    assert brokers.cluster().survey([TOPIC]).topics[TOPIC].topic_id == TEXTS[0]


@pytest.mark.parametrize("known_by", [3, 1, 0])
def test_what_needs_no_fetch_must_still_be_the_topic_that_is_meant(
    brokers: Brokers, monkeypatch: pytest.MonkeyPatch, known_by: int
) -> None:
    """What: a partition that has nothing new, and how many of three brokers then show its topic, one of them not at all.

    Why: ends are asked by name, and without a fetch only the topic id tells which topic answered.
    Risk: another topic's end counts as "unchanged"; or a broker that is a moment behind fails the capture for good.
    """
    monkeypatch.setattr("kafka_backup.kafka.cluster._AGREEMENT_SECONDS", 0.1)
    ask = Cluster.survey

    def later(self: Cluster, topics: Sequence[str] | None, **more: float) -> ClusterMetadata:
        if topics is not None:
            told: dict[int, uuid.UUID | None] = {1: IDS[0], 2: IDS[1], 3: None}
            brokers.topic_ids |= {3: dict.fromkeys(told, IDS[0]), 1: told, 0: dict.fromkeys(told, IDS[1])}[
                known_by
            ]
        return ask(self, topics, **more)

    cluster = brokers.cluster()
    brokers.ends = dict.fromkeys(brokers.ends, 10)
    cluster.survey(None)
    monkeypatch.setattr(Cluster, "survey", later)
    question = Question(topic_id=TEXTS[0], known=Known(end=10, epochs=(), leader_epoch=0))
    verdict = plan_partitions(cluster, {(TOPIC, 0): question}, start_at=None, deadline=5)[TOPIC, 0]
    if known_by == 3:
        assert isinstance(verdict, PartitionPlan)
    else:
        assert isinstance(verdict, KafkaBackupError)
        assert verdict.retriable == (known_by == 1)
        assert ("do not agree" if known_by else "re-created") in str(verdict)


def _topic(topic_id: str, epochs: Mapping[int, int]) -> TopicMetadata:
    return TopicMetadata(
        name=TOPIC,
        topic_id=topic_id,
        is_internal=False,
        partitions={
            number: PartitionMetadata(leader=epoch % 3, leader_epoch=epoch, replicas=(), isr=())
            for number, epoch in epochs.items()
        },
    )


VIEWS = st.one_of(
    st.none(),
    st.just(29),
    st.builds(
        _topic, st.sampled_from(TEXTS), st.dictionaries(st.integers(0, 2), st.integers(0, 5), min_size=1)
    ),
)


@given(st.lists(VIEWS, min_size=1, max_size=5))
def test_any_views_are_joined_as_counting_them_says(views: list[TopicMetadata | int | None]) -> None:
    """What: any views of one topic (known, unknown, refused), against a count by hand.

    Why: what a survey says decides what a capture takes.
    Risk: a topic that most brokers know is left out, or an older leader wins.
    """
    answers = [
        ClusterMetadata(
            cluster_id="c",
            brokers={number: Address("h", number)},
            topics={TOPIC: view} if isinstance(view, TopicMetadata) else {},
            errors={TOPIC: view} if isinstance(view, int) else {},
        )
        for number, view in enumerate(views, 1)
    ]
    found, unanimous = agreed(answers)
    verdicts = [view.topic_id if isinstance(view, TopicMetadata) else view for view in views]
    winner = next((v for v in (*TEXTS, 29, None) if 2 * verdicts.count(v) > len(views)), "nobody")
    assert found.brokers.keys() == set(range(1, len(views) + 1))
    assert (TOPIC in found.disputed) == (winner == "nobody")
    assert found.errors == ({TOPIC: 29} if winner == 29 else {})
    assert (TOPIC in found.topics) == (winner in TEXTS)
    assert unanimous == (len(set(verdicts)) == 1)
    if winner in TEXTS:
        same = [v for v in views if isinstance(v, TopicMetadata) and v.topic_id == winner]
        for number in {n for view in same for n in view.partitions}:
            highest = max(view.partitions[number].leader_epoch for view in same if number in view.partitions)
            assert found.topics[TOPIC].partitions[number].leader_epoch == highest
