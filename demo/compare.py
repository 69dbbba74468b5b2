"""Are two topics the same? Read by confluent-kafka, an independent client, and compared record by record."""

from dataclasses import dataclass

from tests.support.records import Record
from tests.support.topics import read_topic


@dataclass(frozen=True)
class Comparison:
    """What a topic held, and the first difference, if there is one."""

    records: int
    bytes: int
    difference: str | None

    @property
    def identical(self) -> bool:
        """Every record the same, in the same order."""
        return self.difference is None


def compare(bootstrap_servers: str, source: str, target: str) -> Comparison:
    """Compares keys, values, headers, timestamps and order; offsets may differ: a restore closes gaps."""
    theirs, ours = read_topic(bootstrap_servers, source), read_topic(bootstrap_servers, target)
    return Comparison(
        records=sum(map(len, theirs.values())),
        bytes=sum(_size(record) for records in theirs.values() for record in records),
        difference=_first_difference(theirs, ours),
    )


def _first_difference(source: dict[int, list[Record]], target: dict[int, list[Record]]) -> str | None:
    if source.keys() != target.keys():
        return f"{len(source)} partitions became {len(target)}"
    for partition, records in source.items():
        restored = target[partition]
        if len(records) != len(restored):
            return f"partition {partition}: {len(records)} records became {len(restored)}"
        for record, copy in zip(records, restored, strict=True):
            if record[1:] != copy[1:]:
                return f"partition {partition}: {record} became {copy}"
    return None


def _size(record: Record) -> int:
    headers = sum(len(key) + len(value or b"") for key, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers
