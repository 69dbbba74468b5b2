"""Many groups at once: one after the other or in parallel, plainly or in one transaction, also when brokers fail."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kafka_backup import BrokerError, RefusedError, UnreachableError
from kafka_backup.kafka import groups as kafka_groups
from kafka_backup.kafka.group_transaction import GroupTransaction
from kafka_backup.kafka.groups import CommittedOffset, GroupClient, GroupOffsets, PartitionErrors
from kafka_backup.repository.group_store import GroupStore
from tests.support.engine import capture, open_engine, restore
from tests.support.groups import (
    Positions,
    filled_topic,
    group_client,
    plan_reset,
    positions,
    positions_of,
    reading,
    reset,
    set_positions,
    states,
)
from tests.support.kafka_cluster import KafkaCluster
from tests.support.waiting import wait_for


def new_groups(kafka: KafkaCluster, topic: str, count: int, partitions: int = 2) -> dict[str, Positions]:
    """Groups with positions, each its own."""
    prefix = f"bulk-{secrets.token_hex(4)}"
    made = {f"{prefix}-{i}": {(topic, p): 3 * p + i % 20 for p in range(partitions)} for i in range(count)}
    set_positions(kafka, made)
    return made


def test_parallel_equals_sequential(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: the same reset of the same 60 groups with one request at a time, with many, and in one transaction.

    Why: threads are there to be faster, and for nothing else.
    Risk: a position that lands with another group, a group that is forgotten, results in another order.
    """
    topic = filled_topic(kafka, 2)
    outcomes = []
    for threads, atomic in ((1, False), (8, False), (8, True)):
        monkeypatch.setattr(kafka_groups, "THREADS", threads)
        before = new_groups(kafka, topic, 60)
        with open_engine(kafka, tmp_path) as engine:
            report = reset(engine, *before, to="offset", to_offset=11, atomic=atomic)
        after = positions_of(kafka, before)
        outcomes.append(
            [(r.move.partition, r.move.start, r.current, r.error) for r in report.results],
        )
        assert after == {group: dict.fromkeys(offsets, 11) for group, offsets in before.items()}
    assert all(outcome[0][0] == 0 for outcome in outcomes)
    assert len({len(outcome) for outcome in outcomes}) == 1


def test_retriable_errors_are_retried(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: the first two tries of each commit are answered with NOT_COORDINATOR, once after it was written.

    Why: coordinators move at every rolling restart, and answers get lost.
    Risk: a group given up, or written again over what a consumer has committed since.
    """
    topic = filled_topic(kafka, 2)
    before = new_groups(kafka, topic, 20)
    tries: dict[str, int] = {}
    commit_really = GroupClient.commit

    def unlucky(client: GroupClient, groups: Mapping[str, GroupOffsets]) -> Mapping[str, PartitionErrors]:
        error = BrokerError("x: NOT_COORDINATOR", code=16, name="NOT_COORDINATOR", retriable=True)
        for group in groups:
            tries[group] = tries.get(group, 0) + 1
        through = {g: o for g, o in groups.items() if tries[g] == 3 or (tries[g] == 2 and g.endswith("7"))}
        done = commit_really(client, through) if through else {}
        return {
            group: done[group] if tries[group] == 3 else dict.fromkeys(offsets, error)
            for group, offsets in groups.items()
        }

    monkeypatch.setattr(GroupClient, "commit", unlucky)
    with open_engine(kafka, tmp_path) as engine:
        report = reset(engine, *before, to="earliest")
    assert report.status == "verified"
    assert {tries[group] for group in before if group.endswith("7")} == {2}  # read back, so not written again
    assert {tries[group] for group in before if not group.endswith("7")} == {3}
    assert positions_of(kafka, before) == {g: dict.fromkeys(o, 0) for g, o in before.items()}


def test_a_failed_group_does_not_keep_the_others(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: a consumer joins one of ten groups after the check; nine are reset, one is named; later it is, too.

    Why: of a hundred groups one is always awake.
    Risk: all or nothing where plain resets were asked for; or an exit of 0 with one group left out.
    """
    topic = filled_topic(kafka, 2)
    before = new_groups(kafka, topic, 10)
    awake = sorted(before)[4]
    commit_really = GroupClient.commit
    with open_engine(kafka, tmp_path) as engine:
        joined = reading(kafka.bootstrap_servers, awake, topic)

        def join_first(client: GroupClient, groups: Any) -> Any:
            monkeypatch.setattr(GroupClient, "commit", commit_really)
            joined.__enter__()
            return commit_really(client, groups)

        monkeypatch.setattr(GroupClient, "commit", join_first)
        report = engine.groups.reset(plan_reset(engine, *before, to="latest").plan)
        assert report.status == "failed"
        failed = [result for result in report.results if result.error is not None]
        assert {result.move.group for result in failed} == {awake}
        assert all(isinstance(result.error, RefusedError) and awake in str(result.error) for result in failed)
        joined.__exit__(None, None, None)
        expected = {group: dict.fromkeys(offsets, 30) for group, offsets in before.items()}
        assert positions_of(kafka, before) == expected | {awake: before[awake]}
        wait_for(lambda: states(kafka)[awake] == "EMPTY", 60, "the consumer to leave")
        again = reset(engine, *before, to="latest")
        assert positions_of(kafka, before) == expected
        for each in (again.reset_id, report.reset_id):
            assert each is not None
            results = engine.groups.rollback(engine.groups.plan_rollback(each))
            assert not any(result.error for result in results)
    assert positions_of(kafka, before) == before


def test_a_partition_that_fails_is_named_and_mended(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: one partition of one group is refused for good; the result names it; the same command mends it.

    Why: the answer to a commit has an error for each partition.
    Risk: the error of one partition read as that of all, or of none.
    """
    topic = filled_topic(kafka, 3)
    before = new_groups(kafka, topic, 4, partitions=3)
    bad = sorted(before)[1], (topic, 2)
    commit_really = GroupClient.commit

    def refuse_one(client: GroupClient, groups: Mapping[str, GroupOffsets]) -> Mapping[str, PartitionErrors]:
        error = BrokerError("too long", code=12, name="OFFSET_METADATA_TOO_LARGE", retriable=False)
        answers = dict(
            commit_really(
                client, {g: {p: c for p, c in o.items() if (g, p) != bad} for g, o in groups.items()}
            )
        )
        answers[bad[0]] = {bad[1]: error}
        return answers

    with open_engine(kafka, tmp_path) as engine:
        monkeypatch.setattr(GroupClient, "commit", refuse_one)
        report = engine.groups.reset(plan_reset(engine, *before, to="offset", to_offset=29).plan)
        assert [result.move.key for result in report.results if result.error] == [bad]
        monkeypatch.setattr(GroupClient, "commit", commit_really)
        expected: dict[str, Positions] = {g: dict.fromkeys(o, 29) for g, o in before.items()}
        expected[bad[0]][bad[1]] = before[bad[0]][bad[1]]
        assert positions_of(kafka, before) == expected
        assert reset(engine, *before, to="offset", to_offset=29).status == "verified"
    assert {o for offsets in positions_of(kafka, before).values() for o in offsets.values()} == {29}


def test_atomic_means_all_or_none(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: 20 groups in one transaction; a consumer joins one of them before its end; nothing is moved.

    Why: applications that depend on each other must not be at different times.
    Risk: brokers take a transactional commit for an active group, and move it under its consumers.
    """
    topic = filled_topic(kafka, 2)
    before = new_groups(kafka, topic, 20)
    awake = sorted(before)[7]
    add_really = GroupTransaction.add
    with open_engine(kafka, tmp_path) as engine:
        joined = reading(kafka.bootstrap_servers, awake, topic)

        def join_after(transaction: GroupTransaction, offsets: Mapping[str, GroupOffsets]) -> None:
            monkeypatch.setattr(GroupTransaction, "add", add_really)
            add_really(transaction, offsets)
            joined.__enter__()

        monkeypatch.setattr(GroupTransaction, "add", join_after)
        plan = plan_reset(engine, *before, to="latest", atomic=True).plan
        with pytest.raises(RefusedError, match=awake):
            engine.groups.reset(plan)
        joined.__exit__(None, None, None)
        assert positions_of(kafka, before) == before
        wait_for(lambda: states(kafka)[awake] == "EMPTY", 60, "the consumer to leave")
        report = reset(engine, *before, to="latest", atomic=True)
        assert positions_of(kafka, before) == {g: dict.fromkeys(o, 30) for g, o in before.items()}
        assert reset(engine, *before, to="latest", atomic=True).status == "unchanged"
        assert report.reset_id is not None
        engine.groups.rollback(engine.groups.plan_rollback(report.reset_id))
    assert positions_of(kafka, before) == before


def test_a_consumer_that_joins_before_the_transaction_is_refused(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: a consumer joins after the transaction was opened, and before anything is in it.

    Why: there is nothing to abort then, and brokers answer the attempt with an error.
    Risk: "try again" where a consumer has to be stopped first.
    """
    topic = filled_topic(kafka, 2)
    before = new_groups(kafka, topic, 2)
    awake = sorted(before)[1]
    begin_really = GroupTransaction.__init__
    with open_engine(kafka, tmp_path) as engine:
        joined = reading(kafka.bootstrap_servers, awake, topic)

        def join_after(transaction: GroupTransaction, *arguments: Any, **named: Any) -> None:
            begin_really(transaction, *arguments, **named)
            joined.__enter__()

        monkeypatch.setattr(GroupTransaction, "__init__", join_after)
        plan = plan_reset(engine, *before, to="latest", atomic=True).plan
        with pytest.raises(RefusedError, match=awake):
            engine.groups.reset(plan)
        joined.__exit__(None, None, None)
    assert positions_of(kafka, before) == before


@pytest.mark.parametrize("moment", ["before the end", "after the end"])
def test_an_atomic_reset_that_was_killed_is_finished_by_the_same_command(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """What: the process dies with the transaction open, or just after it was committed; then the same again.

    Why: an open transaction keeps every reader of these positions waiting, until it is ended.
    Risk: a second transaction beside the first, or a wait for the broker's timeout.
    """
    topic = filled_topic(kafka, 2)
    before = new_groups(kafka, topic, 5)
    end_really = GroupTransaction.commit

    def die(transaction: GroupTransaction) -> None:
        if moment == "after the end":
            end_really(transaction)
        raise SystemExit

    with open_engine(kafka, tmp_path) as engine:
        monkeypatch.setattr(GroupTransaction, "commit", die)
        first = plan_reset(engine, *before, to="latest", atomic=True)
        with pytest.raises(SystemExit):
            engine.groups.reset(first.plan)
        monkeypatch.setattr(GroupTransaction, "commit", end_really)
    with open_engine(kafka, tmp_path) as engine:
        again = plan_reset(engine, *before, to="latest", atomic=True)
        assert again.is_continued
        assert again.plan == first.plan
        assert engine.groups.reset(again.plan).status == "verified"
    assert positions_of(kafka, before) == {g: dict.fromkeys(o, 30) for g, o in before.items()}


@contextmanager
def coordinator_killed_in(
    monkeypatch: pytest.MonkeyPatch, kafka3: KafkaCluster, owner: type, name: str
) -> Iterator[None]:
    """Kills a coordinator when a method of `owner` has told half of the groups; it is back at the end."""
    victim = kafka3.leader_of("__consumer_offsets", 0)
    really: Any = getattr(owner, name)
    killed = []

    def kill_first(self: Any, offsets: Mapping[str, GroupOffsets]) -> Any:
        monkeypatch.setattr(owner, name, really)
        half = sorted(offsets)[: len(offsets) // 2]
        answers = dict(really(self, {group: offsets[group] for group in half}) or {})
        kafka3.kill(victim)
        killed.append(victim)
        return answers | dict(really(self, {g: o for g, o in offsets.items() if g not in half}) or {})

    monkeypatch.setattr(owner, name, kill_first)
    try:
        yield
        assert killed
    finally:
        kafka3.start(victim)
        wait_for(lambda: kafka3.in_sync("__consumer_offsets", 0) == 3, 60, "in sync")


def test_a_coordinator_killed_in_the_middle_of_a_reset_and_of_its_way_back(
    kafka3: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: the coordinator of some of 28 groups is killed between two commits of a reset, and of its rollback.

    Why: it takes seconds until another broker has loaded the groups; until then nobody answers for them.
    Risk: groups of that broker left at their old positions, set twice, or not deleted that did not exist.
    """
    topic = filled_topic(kafka3, 2)
    there = new_groups(kafka3, topic, 24)
    before: dict[str, Positions] = there | {f"{group}-new": {} for group in sorted(there)[::6]}
    with open_engine(kafka3, tmp_path) as engine:
        with coordinator_killed_in(monkeypatch, kafka3, GroupClient, "commit"):
            report = reset(engine, *before, to="latest", topics=(topic,))
        assert positions_of(kafka3, before) == {g: {(topic, 0): 30, (topic, 1): 30} for g in before}
        back = engine.groups.plan_rollback(str(report.reset_id))
        with coordinator_killed_in(monkeypatch, kafka3, GroupClient, "commit"):
            results = engine.groups.rollback(back)
    assert not any(result.error for result in results)
    assert positions_of(kafka3, before) == before
    assert not {group for group in before if group not in there} & set(states(kafka3))


def test_a_coordinator_killed_in_the_middle_of_a_transaction(
    kafka3: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: the coordinator of some of 24 groups is killed within the transaction of a reset, and of a restore.

    Why: what it was told is pending at its successor, or lost; the rest is told to others.
    Risk: half of the groups moved; or a transaction that nobody can end.
    """
    topic = filled_topic(kafka3, 2)
    before = new_groups(kafka3, topic, 24)
    with open_engine(kafka3, tmp_path) as engine:
        with coordinator_killed_in(monkeypatch, kafka3, GroupTransaction, "add"):
            assert reset(engine, *before, to="latest", atomic=True).status == "verified"
        after = {g: dict.fromkeys(o, 30) for g, o in before.items()}
        assert positions_of(kafka3, before) == after
        capture(engine, topic)
        with coordinator_killed_in(monkeypatch, kafka3, GroupTransaction, "add"):
            restored = restore(engine, "r1", topic, prefix="restored-", groups=tuple(before))
        assert restored.status == "verified"
    for offsets in after.values():
        offsets |= {(f"restored-{name}", partition): at for (name, partition), at in offsets.items()}
    assert positions_of(kafka3, before) == after


def test_nobody_answers_for_a_group(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: every commit is answered with a timeout for longer than is waited: unknown, and so said; then mended.

    Why: "try again" is only right if the next try begins where this one ended.
    Risk: a reset that calls itself failed while its commits arrive later.
    """
    topic = filled_topic(kafka, 2)
    before = new_groups(kafka, topic, 3)
    commit_really = GroupClient.commit
    lost = UnreachableError("no answer")
    config_seconds = 2.0

    def unheard(client: GroupClient, groups: Mapping[str, GroupOffsets]) -> Mapping[str, PartitionErrors]:
        return {group: dict.fromkeys(offsets, lost) for group, offsets in groups.items()}

    with open_engine(kafka, tmp_path) as engine:
        engine.groups.snapshot(list(before))  # so that the connections are there
        monkeypatch.setattr(engine._source.cluster, "retry_seconds", config_seconds)
        monkeypatch.setattr(GroupClient, "commit", unheard)
        plan = plan_reset(engine, *before, to="latest").plan
        with pytest.raises(UnreachableError, match="run the same command again"):
            engine.groups.reset(plan)
        monkeypatch.setattr(GroupClient, "commit", commit_really)
        other = plan_reset(engine, *before, to="earliest").plan
        with pytest.raises(RefusedError, match=f"groups rollback {plan.reset_id}"):
            engine.groups.reset(other)
        again = plan_reset(engine, *before, to="latest")
        assert (again.is_continued, again.plan) == (True, plan)
        assert engine.groups.reset(again.plan).status == "verified"
    assert positions_of(kafka, before) == {g: dict.fromkeys(o, 30) for g, o in before.items()}


def test_group_filters_take_what_they_say(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: a wildcard over groups and one over topics; everything else stays where it is.

    Why: a filter is how a hundred groups are named at once.
    Risk: one group, or one topic, too many.
    """
    one, other = filled_topic(kafka), filled_topic(kafka)
    prefix = f"filter-{secrets.token_hex(4)}"
    before = {f"{prefix}-{name}": {(one, 0): 5, (other, 0): 6} for name in ("a1", "a2", "b1")}
    set_positions(kafka, before)
    with open_engine(kafka, tmp_path) as engine:
        reset(engine, f"{prefix}-a*", to="earliest", topics=(f"{one[:-1]}?",))
    moved = {
        group: {**offsets, (one, 0): 0}
        for group, offsets in before.items()
        if group.startswith(f"{prefix}-a")
    }
    assert positions_of(kafka, before) == before | moved


def test_a_wildcard_over_an_incomplete_snapshot_is_refused(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: a snapshot that may lack groups, asked for by a wildcard, and by the names that it holds.

    Why: brokers leave out what we may not see, without a word.
    Risk: "all groups" are moved but those that nobody sees, and the rest reads on where it was.
    """
    topic, group = filled_topic(kafka), f"hidden-{secrets.token_hex(4)}"
    set_positions(kafka, {group: {(topic, 0): 5}})
    with open_engine(kafka, tmp_path) as engine:
        whole = engine.groups.snapshot([group]).snapshot
        lacking = whole.model_copy(
            update={"snapshot_id": f"{whole.snapshot_id}-x", "incomplete": ("no DESCRIBE on the cluster",)}
        )
        GroupStore(engine.repository().store).put_snapshot(lacking)
        plan = plan_reset(engine, f"{group[:-1]}*", snapshot_id=lacking.snapshot_id).plan
        assert [problem.kind for problem in plan.problems] == ["incomplete_snapshot"]
        assert "no DESCRIBE on the cluster" in plan.problems[0].detail
        with pytest.raises(RefusedError, match="may lack groups or positions"):
            engine.groups.reset(plan)
        assert plan_reset(engine, f"{group[:-1]}*", snapshot_id=whole.snapshot_id).plan.problems == ()
        assert plan_reset(engine, group, snapshot_id=lacking.snapshot_id).plan.problems == ()
    assert positions(kafka, group) == {(topic, 0): 5}


def test_positions_keep_their_metadata(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: the free text of a position, through a snapshot, a reset, and a rollback; and no leader epoch.

    Why: Kafka Streams keeps its clock in it; a foreign epoch makes a consumer take the log for cut back.
    Risk: a text that is lost, or an epoch that resets the consumer by its policy.
    """
    topic, group = filled_topic(kafka), f"meta-{secrets.token_hex(4)}"
    with open_engine(kafka, tmp_path) as engine, group_client(kafka) as client:
        client.commit({group: {(topic, 0): CommittedOffset(offset=4, metadata="AgAAAZ", leader_epoch=0)}})
        snapshot = engine.groups.snapshot([group]).snapshot
        (saved,) = snapshot.groups[0].positions
        assert (saved.offset, saved.metadata, saved.leader_epoch) == (4, "AgAAAZ", 0)
        reset(engine, group, to="latest")
        found = client.fetch([group])[group]
        assert isinstance(found, Mapping)
        assert (found[topic, 0].metadata, found[topic, 0].leader_epoch) == ("", -1)
        reset(engine, group, snapshot_id=snapshot.snapshot_id)
        found = client.fetch([group])[group]
        assert isinstance(found, Mapping)
        assert (found[topic, 0].offset, found[topic, 0].metadata, found[topic, 0].leader_epoch) == (
            4,
            "AgAAAZ",
            -1,
        )
    assert positions(kafka, group) == {(topic, 0): 4}
