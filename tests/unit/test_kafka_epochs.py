"""How much of a log that we know is still the leader's, whatever elections it went through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from hypothesis import example, given
from hypothesis import strategies as st

from kafka_backup.kafka.cluster import Cluster, EpochEnd, Partition
from kafka_backup.kafka.epochs import CommonEnd, History, common_ends

KEY = ("orders", 0)


class Leader:
    """A leader as Kafka's LeaderEpochFileCache has it answer: its log, as the epoch of each offset."""

    def __init__(self, log: Sequence[tuple[int, int]], epoch: int) -> None:
        self.log = log
        self.epoch = epoch
        self.questions = 0
        starts: dict[int, int] = {}
        for offset, (written_in, _) in enumerate(log):
            starts.setdefault(written_in, offset)
        starts.setdefault(epoch, len(log))
        self.starts = sorted(starts.items())

    def epoch_ends(self, wanted: Mapping[Partition, int], *, deadline: float) -> Mapping[Partition, EpochEnd]:
        """`LeaderEpochFileCache.endOffsetFor`."""
        del deadline
        self.questions += 1
        asked = wanted[KEY]
        if asked == self.epoch:
            end = EpochEnd(epoch=asked, end_offset=len(self.log), leader_epoch=self.epoch)
        else:
            higher = next(start for epoch, start in self.starts if epoch > asked)
            found = max((epoch for epoch, _ in self.starts if epoch <= asked), default=asked)
            end = EpochEnd(epoch=found, end_offset=higher, leader_epoch=self.epoch)
        return {KEY: end}


# An election: which of three replicas leads, how many records it writes, which replicas follow it.
ELECTIONS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 6), st.sets(st.integers(0, 2))), min_size=1, max_size=6
)
ALL = {0, 1, 2}


@given(ELECTIONS, ELECTIONS, st.integers(0, 8))
@example([(0, 3, ALL), (0, 3, {0})], [(1, 3, {1})], 0)  # grown again to exactly our end
@example([(0, 3, ALL), (0, 3, {0})], [(1, 5, {1})], 0)  # to more
@example([(0, 3, ALL), (0, 3, {0})], [(1, 0, {1})], 0)  # not at all
@example([(0, 3, ALL), (1, 2, {1}), (0, 3, {0})], [(1, 3, {1})], 0)  # an epoch below ours that we never saw
@example([(0, 2, ALL), (1, 2, {1}), (1, 2, {1})], [(0, 5, {0})], 0)  # behind two epochs
def test_any_elections(
    before: list[tuple[int, int, set[int]]], after: list[tuple[int, int, set[int]]], behind: int
) -> None:
    """What: any elections, clean and unclean, before and after we read the log; against both logs compared.

    Why: the ends alone do not tell that a log was cut back and has grown again.
    Risk: records that replaced ours are never captured, or every clean election is an alarm.
    """
    replicas: list[list[tuple[int, int]]] = [[], [], []]
    epoch = -1
    written = 0
    leader = 0

    def elect(elections: list[tuple[int, int, set[int]]]) -> None:
        nonlocal epoch, written, leader
        for leader, count, followers in elections:
            epoch += 1
            for _ in range(count):
                replicas[leader].append((epoch, written))
                written += 1
            for follower in followers:
                replicas[follower] = list(replicas[leader])

    elect(before)
    log = replicas[leader]
    ours = log[: max(0, len(log) - behind)]
    elect(after)
    log = replicas[leader]
    epochs: dict[int, int] = {}
    for offset, (each, _) in enumerate(ours):
        epochs.setdefault(each, offset)
    if not epochs:
        return
    pairs = enumerate(zip(ours, log, strict=False))
    common = next((n for n, (mine, theirs) in pairs if mine != theirs), min(len(ours), len(log)))
    asked = Leader(log, epoch)
    history = History(end=len(ours), epochs=sorted(epochs.items()))
    found = common_ends(cast(Cluster, asked), {KEY: history}, deadline=1)
    assert found == {KEY: CommonEnd(offset=common, leader_epoch=epoch)}
    assert asked.questions <= len(epochs)
