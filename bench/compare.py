"""Comparisons: the sides of one kind of work, run in turn."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from bench.broker import Broker
from bench.measure import Run
from bench.sides import Side, settle


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What the sides of one kind of work took; the engine's own side comes first.

    Attributes:
        name: of the work, for file names and the command line.
        title: for people.
        logical_bytes: bytes that each side moved: of record values, or of a repository.
        of: which of the two, for people.
        records: that each side moved.
        runs: of each side, in the order in which they ran.
    """

    name: str
    title: str
    logical_bytes: int
    of: str
    records: int
    runs: dict[str, list[Run]]

    def to_document(self) -> dict[str, Any]:
        """As JSON keeps it: every run, and what is made of them."""
        return {
            "title": self.title,
            "logical_bytes": self.logical_bytes,
            "of": self.of,
            "records": self.records,
            "sides": {
                name: {"runs": [asdict(each) for each in runs], **self._summary(runs)}
                for name, runs in self.runs.items()
            },
        }

    def _summary(self, runs: Sequence[Run]) -> dict[str, Any]:
        ours = next(iter(self.runs.values()))
        wall, cpu = median(each.wall for each in runs), median(each.cpu for each in runs)
        return {
            "wall_min": min(each.wall for each in runs),
            "wall_median": wall,
            "megabytes_per_second": self.logical_bytes / wall / 1e6,
            "records_per_second": self.records / wall,
            "cpu_median": cpu,
            "cpu_seconds_per_gigabyte": cpu / self.logical_bytes * 1e9 if self.logical_bytes else None,
            "broker_cpu_median": median(each.broker_cpu for each in runs),
            "peak_memory": max(each.peak_memory for each in runs),
            "stored": runs[-1].stored,
            "wall_ratio": wall / median(each.wall for each in ours),
            "cpu_ratio": cpu / median(each.cpu for each in ours),
        }


def compare(
    broker: Broker,
    sides: Sequence[Side],
    *,
    name: str,
    title: str,
    logical_bytes: int,
    of: str,
    records: int,
    runs: int,
) -> Comparison:
    """Run all sides in turn, `runs` times each, after a round that warms everything up if there are several."""
    found: dict[str, list[Run]] = {side.name: [] for side in sides}
    for number in range(0 if runs > 1 else 1, runs + 1):
        for side in sides:
            settle()
            before = broker.cpu_seconds
            try:
                measures = side.measure()
            finally:
                used = broker.cpu_seconds - before
                side.clean()
            if number:
                found[side.name].append(replace(measures, broker_cpu=used))
            print(f"{name} {number}/{runs}: {side.name}: {measures.wall:.2f} s", file=sys.stderr)
    return Comparison(name=name, title=title, logical_bytes=logical_bytes, of=of, records=records, runs=found)
