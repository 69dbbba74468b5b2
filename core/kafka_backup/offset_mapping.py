"""Where a source offset went in a restored topic, and back.

The map is built from runs of consecutive source offsets that landed on consecutive target offsets,
so it needs no headers in the data and stays small: a topic without gaps is one run.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence

from kafka_backup.errors import DamagedError
from kafka_backup.repository.restore_documents import OffsetMapDocument


class OffsetMap:
    """Source offsets of one partition to target offsets: total, monotonic, and invertible on records.

    A committed position is "the next record to read", so a source offset that was not restored (a
    gap, an aborted record, a record outside the time bounds) maps to the next restored record, and
    one at or past the last restored record's successor maps to the target's end.
    """

    def __init__(self, *, target_start: int = 0) -> None:
        """Start an empty map whose first record will be at `target_start` of the target."""
        self._sources = array("q")
        self._targets = array("q")
        self._lengths = array("q")
        self._target_end = target_start

    @property
    def records(self) -> int:
        """Number of restored records."""
        return sum(self._lengths)

    @property
    def target_end(self) -> int:
        """Exclusive end of the target range."""
        return self._target_end

    @property
    def source_end(self) -> int:
        """One past the last restored source offset; 0 if nothing was restored."""
        return self._sources[-1] + self._lengths[-1] if self._sources else 0

    @property
    def runs(self) -> Sequence[tuple[int, int, int]]:
        """The runs as (first source offset, first target offset, length)."""
        return list(zip(self._sources, self._targets, self._lengths, strict=True))

    def add(self, source_offset: int, count: int) -> None:
        """Append `count` records that begin at `source_offset` and follow the last ones in the target.

        Raises:
            DamagedError: the offsets do not ascend, so the records are out of order or doubled.
        """
        if source_offset < self.source_end or count <= 0:
            raise DamagedError(
                f"source offset {source_offset} ({count} records) does not follow {self.source_end - 1}"
            )
        if self._sources and source_offset == self.source_end:
            self._lengths[-1] += count
        else:
            self._sources.append(source_offset)
            self._targets.append(self._target_end)
            self._lengths.append(count)
        self._target_end += count

    def to_target(self, source_offset: int) -> int:
        """Return the target position that reads on where `source_offset` would have."""
        i = bisect_right(self._sources, source_offset) - 1
        if i >= 0 and source_offset - self._sources[i] < self._lengths[i]:
            return self._targets[i] + source_offset - self._sources[i]
        return self._targets[i + 1] if i + 1 < len(self._targets) else self._target_end

    def to_source(self, target_offset: int) -> int | None:
        """Return the source offset of the record at `target_offset`, None if no record is there."""
        i = bisect_right(self._targets, target_offset) - 1
        if i >= 0 and target_offset - self._targets[i] < self._lengths[i]:
            return self._sources[i] + target_offset - self._targets[i]
        return None

    def to_document(self, *, restore_id: str, source: str, target: str, partition: int) -> OffsetMapDocument:
        """Return the map as it is stored."""
        return OffsetMapDocument(
            restore_id=restore_id,
            source=source,
            target=target,
            partition=partition,
            source_end=self.source_end,
            target_end=self._target_end,
            source_runs=tuple(self._sources),
            target_runs=tuple(self._targets),
            lengths=tuple(self._lengths),
        )

    @classmethod
    def from_document(cls, document: OffsetMapDocument) -> OffsetMap:
        """Read a stored map.

        Raises:
            DamagedError: the runs contradict each other.
        """
        start = document.target_runs[0] if document.target_runs else document.target_end
        result = cls(target_start=start)
        try:
            for source, target, length in zip(
                document.source_runs, document.target_runs, document.lengths, strict=True
            ):
                if target != result.target_end:
                    raise DamagedError(f"target offset {target} does not follow {result.target_end - 1}")
                result.add(source, length)
        except ValueError as error:
            raise DamagedError("the lists of runs have different lengths") from error
        if (result.source_end, result.target_end) != (document.source_end, document.target_end):
            raise DamagedError("the ends do not match the runs")
        return result
