"""Record batches as property tests need them: everything a broker may hold, and nothing it may not."""

from __future__ import annotations

from hypothesis import strategies as st

from kafka_backup.records.codec import Record, encode_batch
from kafka_backup.records.compression import Codec
from tests.support import records as plain

INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)

codecs = st.sampled_from(Codec)
maybe_bytes = st.none() | st.binary(max_size=80)
headers = st.lists(st.tuples(st.binary(max_size=8), maybe_bytes), max_size=3).map(tuple)
base_offsets = st.sampled_from([0, 1, 100, 2**31 - 2, 2**40])
# Steps around the places where a varint takes another byte, and far ones.
steps = st.sampled_from([1, 1, 1, 2, 3, 63, 64, 8191, 8192, 100_000])
timestamps = st.one_of(
    st.integers(1_700_000_000_000, 1_700_000_000_100),
    st.integers(1_690_000_000_000, 1_710_000_000_000),
    st.sampled_from([-1, 0, 4_102_444_800_000, INT64_MAX, INT64_MAX - 1, INT64_MIN, INT64_MIN + 1]),
)


@st.composite
def record_lists(draw: st.DrawFn, *, min_size: int = 1, max_size: int = 20) -> list[Record]:
    """Records of one batch: rising offsets with gaps, any timestamps, nulls and empties."""
    offset = draw(base_offsets)
    records = []
    for _ in range(draw(st.integers(min_size, max_size))):
        records.append(
            Record(
                offset=offset,
                timestamp=draw(timestamps),
                key=draw(maybe_bytes),
                value=draw(maybe_bytes),
                headers=draw(headers),
            )
        )
        offset += draw(steps)
    return records


@st.composite
def stored_batches(draw: st.DrawFn) -> tuple[bytes, list[Record]]:
    """A batch as a broker may store it, and its records as a consumer sees them."""
    records = draw(record_lists())
    log_append_time = draw(st.none() | st.integers(-1, 2_000_000_000_000))
    batch = encode_batch(
        records,
        codec=draw(codecs),
        base_offset=max(0, records[0].offset - draw(st.integers(0, 2))),
        last_offset=records[-1].offset + draw(st.integers(0, 2)),
        log_append_time=log_append_time,
        delete_horizon=draw(st.none() | st.just(1_700_000_500_000)),
        transactional=draw(st.booleans()),
        producer_id=7,
        producer_epoch=2,
        base_sequence=41,
        partition_leader_epoch=draw(st.integers(0, 9)),
    )
    if log_append_time is not None:
        records = [
            Record(offset=r.offset, timestamp=log_append_time, key=r.key, value=r.value, headers=r.headers)
            for r in records
        ]
    return batch, records


def seen_by_plain_decoder(data: bytes) -> list[Record]:
    """What the tests' independent decoder reads in whole batches."""
    return [
        Record(offset=r.offset, timestamp=r.timestamp, key=r.key, value=r.value, headers=tuple(r.headers))
        for r in plain.decode_records(data)
    ]
