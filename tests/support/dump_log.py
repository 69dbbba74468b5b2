"""Runs Kafka's own `kafka-dump-log.sh` in a broker's container, over a file of ours."""

import io
import re
import secrets
import tarfile
from dataclasses import dataclass, field

from tests.support.kafka_cluster import KafkaCluster

_TOOL = "/opt/kafka/bin/kafka-dump-log.sh"
_FIELD = re.compile(r"(\w+): (\S+)")
_RECORD = re.compile(
    r"\| offset: (?P<offset>\d+) \w+: (?P<time>-?\d+) keySize: (?P<key>-?\d+) valueSize: (?P<value>-?\d+)"
)


@dataclass(frozen=True)
class DumpedRecord:
    """A record as Kafka's tool lists it. A size of -1 is null. `line` is all that the tool says."""

    offset: int
    timestamp: int
    key_size: int
    value_size: int
    line: str = field(repr=False)


@dataclass(frozen=True)
class DumpedBatch:
    """A record batch as Kafka's tool lists it. `position` and `size` in bytes; `crc` as stored."""

    base_offset: int
    last_offset: int
    count: int
    position: int
    size: int
    magic: int
    codec: str
    crc: int
    is_valid: bool
    is_transactional: bool
    is_control: bool
    max_timestamp: int
    producer_id: int
    partition_leader_epoch: int
    records: list[DumpedRecord]


def dump_log(kafka: KafkaCluster, log: bytes, first_offset: int = 0) -> list[DumpedBatch]:
    """What Kafka's own tool finds in a log file.

    Args:
        kafka: Its first broker's container runs the tool.
        log: Contents of the file, not compressed as a whole.
        first_offset: The tool wants a file that is named as Kafka names it, after its first offset.

    Raises:
        RuntimeError: The tool failed, or found something in the file that is no batch; with its words.
    """
    node = kafka.node(kafka.ids[0])
    folder, name = f"dump-{secrets.token_hex(8)}", f"{first_offset:020d}.log"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo(f"{folder}/{name}")
        entry.size, entry.mode = len(log), 0o644
        tar.addfile(entry, io.BytesIO(log))
    node.put_archive("/tmp", archive.getvalue())
    command = [_TOOL, "--files", f"/tmp/{folder}/{name}", "--deep-iteration", "--print-data-log"]
    # The tool's own limit of 5 MB per batch would end the listing early.
    command += ["--max-message-size", str(1 << 30)]
    code, output = node.exec_run(["timeout", "120", *command])
    node.exec_run(["rm", "-rf", f"/tmp/{folder}"], user="root")
    text = output.decode(errors="replace")
    if code:
        raise RuntimeError(f"kafka-dump-log.sh ended with {code}:\n{text[-2000:]}")
    batches = _parse(text)
    if sum(batch.size for batch in batches) != len(log):
        raise RuntimeError(f"kafka-dump-log.sh did not read all {len(log)} bytes:\n{text[-2000:]}")
    return batches


def _parse(text: str) -> list[DumpedBatch]:
    batches: list[DumpedBatch] = []
    for line in text.splitlines():
        if line.startswith("baseOffset: "):
            says = dict(_FIELD.findall(line))
            batches.append(
                DumpedBatch(
                    base_offset=int(says["baseOffset"]),
                    last_offset=int(says["lastOffset"]),
                    count=int(says["count"]),
                    position=int(says["position"]),
                    size=int(says["size"]),
                    magic=int(says["magic"]),
                    codec=says["compresscodec"],
                    crc=int(says["crc"]),
                    is_valid=says["isvalid"] == "true",
                    is_transactional=says["isTransactional"] == "true",
                    is_control=says["isControl"] == "true",
                    max_timestamp=int(says.get("CreateTime") or says.get("LogAppendTime") or -1),
                    producer_id=int(says["producerId"]),
                    partition_leader_epoch=int(says["partitionLeaderEpoch"]),
                    records=[],
                )
            )
        elif found := _RECORD.match(line):
            numbers = (int(found[name]) for name in ("offset", "time", "key", "value"))
            batches[-1].records.append(DumpedRecord(*numbers, line=line))
    return batches
