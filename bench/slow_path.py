"""Records a second, on one core, where a restore has to look at each record; compression is left out.

`python -m bench.slow_path` prints a JSON document: records a second of each case.
"""

import json
import random
import time
from collections.abc import Callable, Iterable, Sequence

from kafka_backup.records.batch import read_header
from kafka_backup.records.codec import Record, encode_batch
from kafka_backup.records.convert import Bounds, TargetBatch, convert
from kafka_backup.records.merge import merge

_RECORDS = 300_000
_PER_BATCH = 150
_TIMES = 7
_START_MS = 1_767_225_600_000
_LARGEST = 1 << 20
_ALL = Bounds(first_offset=0, end_offset=2**62)


def _batches(per_batch: int, *, gaps: bool = False) -> Sequence[bytes]:
    """Batches of 100-byte records with keys, one record a millisecond; every other one is gone, with gaps."""
    source = random.Random(0)
    batches, records = [], []
    for number in range(_RECORDS):
        if gaps and source.random() < 0.5:
            continue
        records.append(
            Record(
                offset=number,
                timestamp=_START_MS + number,
                key=b"key-%07d" % source.randrange(10**6),
                value=source.randbytes(100),
            )
        )
        if len(records) == per_batch:
            batches.append(encode_batch(records))
            records = []
    return batches


def _converted(batches: Sequence[bytes], bounds: Bounds) -> Iterable[TargetBatch]:
    pairs = [(bytearray(batch), read_header(batch)) for batch in batches]
    return convert(pairs, bounds, max_batch_bytes=_LARGEST)


def _merged(batches: Sequence[bytes]) -> Iterable[TargetBatch]:
    return merge(bytearray(b"".join(batches)), _ALL, max_batch_bytes=_LARGEST, merge_bytes=256 << 10)


def main() -> None:
    """Measure each case several times, and print the best."""
    plain, gapped, lone = _batches(_PER_BATCH), _batches(_PER_BATCH, gaps=True), _batches(1)
    since = Bounds(first_offset=0, end_offset=2**62, from_ms=_START_MS)
    between = Bounds(
        first_offset=0, end_offset=2**62, from_ms=_START_MS + 50, until_ms=_START_MS + _RECORDS - 50
    )
    halves = Bounds(first_offset=0, end_offset=2**62, until_ms=_START_MS + _RECORDS // 2)
    cases: dict[str, tuple[Sequence[bytes], Callable[[], Iterable[TargetBatch]]]] = {
        "compacted: every second record is gone": (gapped, lambda: _converted(gapped, _ALL)),
        "time bounds: looked at, all kept": (plain, lambda: _converted(plain, since)),
        "time bounds: cut at both ends": (plain, lambda: _converted(plain, between)),
        "time bounds: half of them kept": (plain, lambda: _converted(plain, halves)),
        "lone records merged": (lone, lambda: _merged(lone)),
    }
    rates = {}
    for name, (batches, work) in cases.items():
        records = sum(read_header(batch).record_count for batch in batches)
        seconds = []
        for _ in range(_TIMES):
            targets = work()
            began = time.thread_time()
            for _target in targets:
                pass
            seconds.append(time.thread_time() - began)
        rates[name] = records / min(seconds)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
