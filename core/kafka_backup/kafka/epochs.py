"""Up to where a leader's log is the one that we know (KIP-101, KIP-279).

An unclean leader election cuts a log back, and the log grows again over the same offsets with other
records. Ends tell nothing then; leader epochs do: each is written by one leader only, so two logs are equal
up to where the last epoch that they share ends in the one where it ends first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kafka_backup.errors import KafkaBackupError, UnreachableError
from kafka_backup.kafka.cluster import Cluster, EpochEnd, Partition


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What we know of a log: its end, and (epoch, first offset) of each leader epoch, ascending in both."""

    end: int
    epochs: Sequence[tuple[int, int]]

    def floor(self, epoch: int) -> int:
        """The place of the largest epoch that is not above `epoch`, -1 if there is none."""
        return sum(known <= epoch for known, _ in self.epochs) - 1

    def end_of(self, place: int) -> int:
        """Where the epoch at a place of `epochs` ends."""
        return self.epochs[place + 1][1] if place + 1 < len(self.epochs) else self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonEnd:
    """Below `offset` the leader of `leader_epoch` has the log that we know; at `History.end` it has all of it."""

    offset: int
    leader_epoch: int


def compare(history: History, found: EpochEnd) -> int | None:
    """Judge where the leader says that the largest epoch it has, up to the one asked for, ends.

    Returns:
        The end of what both logs have in common; None if our next lower epoch must be asked for.
    """
    place = history.floor(found.epoch)
    if place < 0:  # of all our epochs the leader has none
        return min(found.end_offset, history.epochs[0][1])
    if history.epochs[place][0] == found.epoch:
        return min(found.end_offset, history.end_of(place))
    return None


def common_ends(
    cluster: Cluster, histories: Mapping[Partition, History], *, deadline: float
) -> Mapping[Partition, CommonEnd | KafkaBackupError]:
    """Ask the leaders how much of what we know of each log is theirs; one request per broker and round.

    Args:
        cluster: whose leaders.
        histories: of each (topic, partition), with one epoch at least.
        deadline: seconds for each round; partitions without an answer by then carry their last error.
    """
    results: dict[Partition, CommonEnd | KafkaBackupError] = {}
    wanted = {key: history.epochs[-1][0] for key, history in histories.items()}
    while wanted:
        answers = cluster.epoch_ends(wanted, deadline=deadline)
        asked, wanted = wanted, {}
        for key, found in answers.items():
            if isinstance(found, KafkaBackupError):
                results[key] = found
            elif found.end_offset < 0 or not 0 <= found.epoch <= asked[key]:
                results[key] = UnreachableError(
                    f"{key[0]} [{key[1]}]: its leader cannot say where leader epoch {asked[key]} ends"
                )
            elif (offset := compare(histories[key], found)) is not None:
                results[key] = CommonEnd(offset=offset, leader_epoch=found.leader_epoch)
            else:
                wanted[key] = histories[key].epochs[histories[key].floor(found.epoch)][0]
    return results
