"""When retention deletes what is not captured yet: the search by time and the estimate by size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.kafka.cluster import Partition
from kafka_backup.lag import _RESOLUTION_MS, PartitionLag, _Asker, _losses_by_time, _Retention, loss_by_size

NOW = 1_800_000_000_000
HOUR = 3_600_000
LAG = PartitionLag(topic="t", topic_id="x", partition=0, captured=600, log_start=0, end=1000)


class Broker:
    """Answers as ListOffsets does, from plain lists of record timestamps."""

    def __init__(self, logs: Mapping[Partition, list[int]]) -> None:
        self.logs = logs

    def offsets(self, positions: Mapping[Partition, int]) -> Mapping[Partition, int]:
        return {
            key: next((offset for offset, at in enumerate(self.logs[key]) if at >= wanted), -1)
            for key, wanted in positions.items()
        }


logs = st.lists(st.integers(NOW - 4 * HOUR, NOW + HOUR), min_size=1, max_size=8)


@given(
    st.lists(logs, min_size=1, max_size=3), st.integers(0, 8), st.integers(0, 3 * HOUR), st.integers(0, HOUR)
)
def test_loss_by_time_is_when_everything_up_to_the_first_waiting_record_is_too_old(
    found: list[list[int]], captured: int, kept: int, horizon: int
) -> None:
    """Tests the search for the time of loss against a look at all timestamps, in any order.

    "Loses data in 43 minutes" decides whether somebody is woken up.
    Could go wrong: one partition's answer is another's, a record from the future, an end of the horizon.
    """
    partitions = {("t", number): log for number, log in enumerate(found)}
    lags = [
        replace(LAG, partition=number, captured=min(captured, len(log) - 1), end=len(log))
        for number, log in enumerate(found)
    ]
    losses = _losses_by_time(
        cast(_Asker, Broker(partitions)),
        lags,
        {"t": _Retention(milliseconds=kept, bytes=-1)},
        now=NOW,
        horizon=horizon,
    )

    for lag in lags:
        oldest_allowed = max(partitions["t", lag.partition][: lag.captured + 1]) + kept
        loss = losses.get(("t", lag.partition))
        if oldest_allowed < NOW:
            assert loss is not None
            assert loss.at == NOW
        elif oldest_allowed >= NOW + horizon:
            assert loss is None
        else:
            assert loss is not None
            assert loss.at is not None
            assert oldest_allowed - _RESOLUTION_MS <= loss.at <= oldest_allowed


def test_loss_by_size_is_estimated_from_the_growth_since_the_last_capture() -> None:
    """Tests a log of 1,000 offsets and 100,000 bytes, of which 400 came within the last 100 seconds.

    Topics limited by size lose data fastest when most is written: in a peak.
    Could go wrong: the captured part counts as waiting, seconds for milliseconds, a division by zero.
    """
    since = NOW - 100_000
    # 400 waiting offsets are 40,000 bytes, and 400 bytes more come each second.
    assert loss_by_size(LAG, size=100_000, limit=60_000, since=since, now=NOW) == NOW + 50_000
    assert loss_by_size(LAG, size=100_000, limit=40_000, since=since, now=NOW) == NOW
    assert loss_by_size(LAG, size=100_000, limit=60_000, since=None, now=NOW) is None
    assert loss_by_size(LAG, size=100_000, limit=60_000, since=NOW, now=NOW) is None


def test_offsets_that_are_gone_already_are_not_waiting() -> None:
    """Tests a partition whose log start has passed what was captured.

    The lost ones and the waiting ones need different words.
    Could go wrong: they are counted twice, or a negative number hides a loss.
    """
    assert (LAG.waiting, LAG.lost) == (400, 0)
    behind = replace(LAG, log_start=700)
    assert (behind.waiting, behind.lost) == (300, 100)
    assert replace(LAG, captured=1000).waiting == 0
