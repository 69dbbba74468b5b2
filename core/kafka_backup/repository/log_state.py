"""What the commits of a log come to: the little that a writer must know of any number of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from kafka_backup.repository.documents import Commit, Incarnation, LeaderEpoch


@dataclass(slots=True, kw_only=True)
class PartitionState:
    """One partition after some commits.

    Attributes:
        end: the offset where the next range begins.
        log_start_offset: as the broker said at the last capture that could ask.
        leader_epoch: of the leader whose log then held everything below `end`.
        leader_epochs: of what the partition holds, ascending; those that a truncation took away are gone.
    """

    end: int
    log_start_offset: int
    leader_epoch: int
    leader_epochs: list[LeaderEpoch]


@dataclass(slots=True, kw_only=True)
class LogState:
    """A log after commit `number`; -1 and no SHA-256 stand for an empty one.

    Attributes:
        number: of the newest commit, and `sha256` of its object.
        began_at: when commit 0 was made, ms.
        incarnation: the topic as the newest commit knows it.
        compacts: the topic's cleanup policy holds, or held at some commit, ``compact``.
        partitions: by number; one that was never captured is missing.
    """

    number: int = -1
    sha256: str | None = None
    began_at: int = 0
    incarnation: Incarnation | None = None
    compacts: bool = False
    partitions: dict[int, PartitionState] = field(default_factory=dict)

    def take(self, commit: Commit, sha256: str) -> None:
        """Go on by one commit, the one after `number`."""
        if commit.number == 0:
            self.began_at = commit.committed_at
        self.number = commit.number
        self.sha256 = sha256
        if commit.incarnation is not self.incarnation:
            self.incarnation = commit.incarnation
            self.compacts = self.compacts or commit.incarnation.compacts
        for part in commit.partitions:
            known = self.partitions.get(part.partition)
            if known is None:
                known = PartitionState(end=0, log_start_offset=0, leader_epoch=0, leader_epochs=[])
                self.partitions[part.partition] = known
            known.end = part.end
            known.log_start_offset = part.log_start_offset
            known.leader_epoch = part.leader_epoch
            cut = part.truncated_to
            if cut is not None:
                known.leader_epochs = [epoch for epoch in known.leader_epochs if epoch.start_offset < cut]
            known.leader_epochs += part.leader_epochs

    @property
    def ends(self) -> dict[int, int]:
        """Where the next range of each captured partition begins."""
        return {number: partition.end for number, partition in self.partitions.items()}
