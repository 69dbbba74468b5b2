"""Repositories that releases wrote, kept as files: every later release must open them.

`python -m tests.support.kept_repository` (`make kept-repository`) writes one with this release, on a real broker, and
with it what this release says of it: `tests/kept/<release>.tar.zst`. Once released it is never written again.
"""

import base64
import hashlib
import io
import json
import shutil
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import zstandard
from confluent_kafka import Producer, TopicPartition

from tests.support.damage import damage
from tests.support.forked import Forked
from tests.support.groups import set_positions
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import CODECS, NewRecord, Record, renumbered
from tests.support.shell import Shell
from tests.support.topics import (
    alter_config,
    compacted_topic,
    delete_topic,
    ends,
    new_topic,
    produce,
    read_topic,
)
from tests.support.waiting import wait_for

KEPT = Path(__file__).parents[1] / "kept"
_EXPECTATIONS = "expectations.json"
CLUSTER_ID = base64.urlsafe_b64encode(b"kept-by-releases").decode().rstrip("=")
"""Of the cluster that all of them are of, so that a test's cluster can go on with them."""
THEN = 1_700_000_000_000
"""Timestamp of the first record, ms."""
QUESTIONS: Mapping[str, Sequence[str]] = {
    "captures": ("list",),
    "commits of orders": ("show", "orders"),
    "commits of returning": ("show", "returning"),
    "commits of cut": ("show", "cut"),
    "verification": ("verify", "--level", "data"),
    "losses": ("losses", "list"),
    "group snapshots": ("groups", "list"),
    "positions": ("groups", "show"),
    "offset map": (
        "offset-map",
        "--restore",
        "whole",
        "--topic",
        "orders",
        "--partition",
        "0",
        "0",
        "77",
        "130",
    ),
    "offset map with a hole": (
        "offset-map",
        "--restore",
        "torn",
        "--topic",
        "orders",
        "--partition",
        "1",
        "0",
        "60",
    ),
    "records": ("records", "orders", "--partition", "1", "--limit", "5"),
}
"""Commands that need no cluster."""


def releases() -> Sequence[str]:
    """Those of which a repository is kept."""
    return [path.name.removesuffix(".tar.zst") for path in sorted(KEPT.glob("*.tar.zst"))]


def unpack(release: str, folder: Path) -> Any:
    """Puts a kept repository into `folder`/repository, and returns what its release expects: see `_History`."""
    packed = (KEPT / f"{release}.tar.zst").read_bytes()
    content = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(folder, filter="data")
    return json.loads((folder / _EXPECTATIONS).read_text())


def _pack(folder: Path, path: Path) -> None:
    """The repository and the expectations, and nothing of when and by whom they were written."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for each in sorted([folder / _EXPECTATIONS, *(folder / "repository").rglob("*")]):
            if each.is_file():
                about = tarfile.TarInfo(str(each.relative_to(folder)))
                about.size, about.mode = each.stat().st_size, 0o644
                with each.open("rb") as data:
                    archive.addfile(about, data)
    path.write_bytes(zstandard.ZstdCompressor(level=19).compress(content.getvalue()))


def digest(records: Sequence[Record]) -> str:
    """A checksum over offsets, times, keys, values and headers."""
    plain = [
        (r.offset, r.timestamp, r.key, r.value, [tuple(header) for header in r.headers]) for r in records
    ]
    return hashlib.sha256(repr(plain).encode()).hexdigest()


class _History:
    """A cluster and a repository that go through everything that a release can write down."""

    def __init__(self, kafka: KafkaCluster, shell: Shell) -> None:
        self._kafka = kafka
        self._shell = shell
        self._states: dict[str, Any] = {}
        self._written = 0
        settings = {"retention.ms": -1, "max.message.bytes": 2_000_000}
        new_topic(kafka, 2, name="orders", config=settings)
        for name in ("returning", "cut", "placed"):
            new_topic(kafka, name=name, config={"retention.ms": -1})

    def _write(self, topic: str, count: int, *, partition: int = 0, **how: Any) -> None:
        records = [
            NewRecord(
                None if number % 11 == 10 else b"%s %d of %d" % (topic.encode(), number, self._written),
                None if number % 5 == 4 else b"key %d" % number,
                [(b"h", None), (b"h", b""), (b"number", b"%d" % number)][: number % 4],
                THEN + self._written + number,
            )
            for number in range(count)
        ]
        self._written += count
        produce(self._kafka.bootstrap_servers, topic, records, partition=partition, **how)

    def _transactions(self) -> None:
        producer = Producer(
            {"bootstrap.servers": self._kafka.bootstrap_servers, "transactional.id": "kept", "log_level": 0}
        )
        producer.init_transactions(60)
        for end in (producer.abort_transaction, producer.commit_transaction):
            producer.begin_transaction()
            for number in range(5):
                producer.produce("orders", b"in a transaction %d" % number, partition=0, timestamp=THEN)
            producer.flush(60)
            end(60)

    def _backup(self, *topics: str, code: int = 0, options: Sequence[str] = ()) -> str:
        """A capture, and what independent clients see of its topics meanwhile."""
        named = [text for topic in topics for text in ("--topic", topic)]
        before = {topic: self._state(topic) for topic in topics}
        answer = self._shell.json("backup", *named, *options, code=code)
        assert before == {topic: self._state(topic) for topic in topics}, "a topic changed meanwhile"
        self._states[answer["capture"]] = before
        return str(answer["capture"])

    def _state(self, topic: str) -> dict[str, Any]:
        starts = ends(self._kafka.bootstrap_servers, topic)
        return {
            str(partition): {
                "log_start": starts[partition][0],
                "records": len(records),
                "digest": digest(records),
                "restored": digest(renumbered(records)),
            }
            for partition, records in read_topic(self._kafka.bootstrap_servers, topic).items()
        }

    def _compacted(self) -> str:
        """A topic with gaps, which the cleaner leaves alone from now on."""
        topic = compacted_topic(self._kafka)
        alter_config(self._kafka, topic, max_compaction_lag_ms=10**14, min_compaction_lag_ms=10**13)
        known = self._state(topic)

        def is_quiet() -> bool:
            nonlocal known
            before, known = known, self._state(topic)
            return before == known

        wait_for(is_quiet, 60, "the cleaner to be done", interval=2)
        return topic

    def _tear(self, topic: str) -> None:
        """A broker that lost the second half of a log in a crash, and then gets new records."""
        log = f"/var/lib/kafka/data/{topic}-0/00000000000000000000.log"
        script = f"truncate -s $(($(stat -c %s {log}) / 2)) {log}"
        epoch = self._kafka.partition(topic).epoch
        assert self._kafka.node(1).exec_run(["sh", "-c", script]).exit_code == 0
        self._kafka.kill(1)
        self._kafka.start(1)
        wait_for(lambda: self._kafka.partition(topic).epoch > epoch, 60, "a new leader epoch")
        self._write(topic, 5)

    def _killed(self, *arguments: str, point: str) -> None:
        with Forked(
            "--config", str(self._shell.folder / "kafka-backup.yaml"), *arguments, point=point
        ) as process:
            assert process.wait(120) == -9, process.output

    def live(self) -> None:
        """All of it."""
        shell, kafka = self._shell, self._kafka
        for codec in CODECS:
            self._write("orders", 20, codec=codec)
        self._write("orders", 40, partition=1)
        self._transactions()
        self._write("returning", 10)
        self._write("cut", 40, config={"batch.num.messages": 1})
        self._write("placed", 20)
        events = self._compacted()
        set_positions(
            kafka,
            {"kept-billing": {("orders", 0): 12, ("orders", 1): 7}, "kept-shipping": {("orders", 0): 90}},
        )
        now = int(time.time() * 1000)
        window = ("--window", f"{now - 3_600_000}/{now - 1}")
        first = self._backup("orders", "returning", "cut", "placed", events, options=window)

        delete_topic(kafka, "returning")
        self._write("orders", 30, partition=1)
        admin = kafka.admin()
        admin.delete_records([TopicPartition("orders", 1, 50)])[TopicPartition("orders", 1)].result(30)
        shell.json("backup", "--topic", "returning*", "--topic", "placed", "--accept-missing")
        lossy = self._backup("orders", "placed", "cut", events, code=4)
        shell.json("losses", "accept", lossy, "--reason", "retention was too short")

        new_topic(kafka, name="returning", config={"retention.ms": -1})
        self._write("returning", 3)
        self._tear("cut")
        self._backup("orders", "returning", "cut", "placed", events, code=4)
        for _ in range(8):
            self._write("orders", 2)
            self._backup("orders")

        orders = ("--topic", "orders", "--execute")
        groups = ("--groups", "kept-*", "--rename-groups", r"kept-(.+)=whole-\1")
        shell.json("restore", "--id", "whole", "--prefix", "whole-", *groups, *orders)
        segment = next(
            path for path in shell.segments() if "orders" in path.parts and path.parent.name == "1"
        )
        sound = segment.read_bytes()
        damage(segment)
        shell.json("restore", "--id", "torn", "--prefix", "torn-", "--skip-damaged", *orders, code=4)
        segment.write_bytes(sound)
        self._write("placed", 10)
        shell.json(
            "restore", "--id", "placed", "--topic", "placed", "--replace", "--capture", first, "--execute"
        )

        reset = ("groups", "reset", "--topic", "orders", "--execute")
        back = shell.json(*reset, "--group", "kept-billing", "--to", "60")["rollback"]
        shell.json("groups", "rollback", back, "--execute")
        shell.json(*reset, "--group", "kept-*", "--to", "earliest", "--atomic")
        shell.json("groups", "snapshot", "--group", "kept-*")
        shell.json("drill", "--topic", "placed", "--max-size", "1MiB")
        shell.json("expire", "--keep-captures", "2", "--execute")
        for name in ("given-up", "pinned"):
            self._killed(
                "restore", "--id", name, "--prefix", f"{name}-", *orders, point="restore: after the attempt"
            )
        shell.json("restore", "--abandon", "given-up")
        shell.json("expire", "--keep-captures", "1", "--execute")

    def expectations(self) -> Mapping[str, Any]:
        """What this release answers, and by capture, topic and partition what consumers saw at that time."""
        answers = {}
        for name, arguments in QUESTIONS.items():
            code = (
                4 if name == "verification" else 0
            )  # nobody has accepted that the log of `cut` was cut back
            answers[name] = {"code": code, "answer": self._shell.json(*arguments, code=code)}
        return {"answers": answers, "captures": self._states}


def main() -> None:
    """See the module."""
    release = version("kafka-backup-dagster")
    # Messages name the repository's place: one that is nobody's.
    folder = Path(tempfile.gettempdir()) / "kept"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with KafkaCluster(1, cluster_id=CLUSTER_ID) as kafka:
        shell = Shell(folder, kafka.bootstrap_servers, retry_seconds=60, consumer_groups=["kept-*"])
        history = _History(kafka, shell)
        history.live()
        KEPT.mkdir(exist_ok=True)
        (folder / _EXPECTATIONS).write_text(json.dumps(history.expectations(), indent=1, sort_keys=True))
        _pack(folder, KEPT / f"{release}.tar.zst")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
