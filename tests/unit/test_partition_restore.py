"""How long a resumed restore waits until nothing of the run before can be on its way any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kafka_backup import partition_restore
from kafka_backup.kafka.cluster import OffsetAnswer
from kafka_backup.partition_restore import PartitionRestore
from kafka_backup.progress import StopToken
from kafka_backup.restore_context import LogEnds, RestoreContext

KEY = ("again", 3)
SETTLE = 10.0


class Log:
    """A cluster, a clock and a stop token in one: the log ends where it is said, at each look or from then on."""

    def __init__(self, *ends: int) -> None:
        self.now = 1000.0
        self.waits: list[float] = []
        self.settings = SimpleNamespace(request_timeout=SETTLE)
        self._ends = list(ends)

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def check(self) -> None:
        """Nobody stops it."""

    def list_offsets(self, wanted: Mapping[tuple[str, int], int], **_: object) -> Mapping[object, object]:
        return {key: OffsetAnswer(offset=self._ends[0], leader_epoch=0) for key in wanted}

    def log_ends(self, wanted: Sequence[tuple[str, int]], **_: object) -> Mapping[object, object]:
        self.now += 0.5
        end = self._ends.pop(0) if len(self._ends) > 1 else self._ends[0]
        return {key: OffsetAnswer(offset=end, leader_epoch=0) for key in wanted}


def _restore(log: Log) -> PartitionRestore:
    partition = SimpleNamespace(partition=KEY[1], initial_end=0)
    target = SimpleNamespace(topic=SimpleNamespace(target=KEY[0]), partition=partition, name="again [3]")
    context = RestoreContext(
        cluster=cast("Any", log), store=cast("Any", None), retry_seconds=60, before_segment=log.check
    )
    return PartitionRestore(cast("Any", target), context, stop=cast(StopToken, log))


@pytest.mark.parametrize(
    ("earlier", "ends", "end", "waits"),
    [
        (None, (7,), 7, [SETTLE]),
        (None, (7, 9), 9, [SETTLE, SETTLE]),
        (LogEnds(ends={KEY: 7}, read_at=1000.0 - SETTLE), (7,), 7, [0.0]),
        (LogEnds(ends={KEY: 7}, read_at=996.0), (7,), 7, [SETTLE - 4]),
        (LogEnds(ends={KEY: 7}, read_at=1000.0 - SETTLE), (9,), 9, [0.0, SETTLE]),
        (LogEnds(ends={}, read_at=1000.0 - SETTLE), (7,), 7, [SETTLE]),
    ],
    ids=["alone", "alone, it grows", "long ago", "lately", "long ago, it grew", "nobody answered then"],
)
def test_an_end_is_believed_after_it_stood_still(
    monkeypatch: pytest.MonkeyPatch,
    earlier: LogEnds | None,
    ends: Sequence[int],
    end: int,
    waits: Sequence[float],
) -> None:
    """What: a partition's end, read when the run began, by itself, or not at all; it stays, or it has grown.

    Why: what a dead run had sent may land for ten seconds, and a restore of many partitions has many ends.
    Risk: a batch that lands after the look is written twice; or each partition waits anew, for hours in all.
    """
    log = Log(*ends)
    monkeypatch.setattr(partition_restore, "time", log)
    assert _restore(log)._quiet_end(earlier) == end
    assert log.waits == list(waits)
