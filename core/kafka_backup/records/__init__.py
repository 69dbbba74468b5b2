"""Bytes of record batches: pure functions, buffer in, buffer or numbers out.

A *record batch* is Kafka's v2 ``RecordBatch``: a 61-byte header, then records, compressed as one
where the producer asked for it. Nothing here knows a broker or a store.

* ``batch``: walks over headers and checks checksums, and ``rewrite`` changes headers in place:
  the fast path, that never looks at a record.
* ``aborted``: which batches belong to aborted transactions.
* ``convert``: turns stored batches into batches that a broker accepts from a producer.
* ``codec``: reads and writes single records, exactly and slowly.
* ``compression``, ``varint``, ``time_filter``, ``headers``: what the others stand on.

Layout: https://kafka.apache.org/documentation/#recordbatch and
``org.apache.kafka.common.record.DefaultRecordBatch``.
"""

Buffer = bytes | bytearray | memoryview
