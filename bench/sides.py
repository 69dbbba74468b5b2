"""The sides of each comparison: how each is started, and how it is known that it did the whole work."""

import json
import os
import re
import secrets
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from bench.broker import Broker, java_command
from bench.measure import Run, SideFailedError, run
from bench.payloads import ValuesFiles
from bench.topics import PARTITIONS, Topic, produce_command

ENGINE = Path(sys.executable).with_name("kafka-backup")
# More room than librdkafka's defaults give: with them the loop stands still between two fetches.
_CONSUMER = {"fetch.message.max.bytes": str(8 << 20), "queued.min.messages": "1000000"}


class Side:
    """Something that moves a topic; `name` is for people."""

    name: str

    def measure(self) -> Run:
        """Do the work once.

        Raises:
            SideFailedError: it was not done, or not whole.
        """
        raise SideFailedError(f"{self.name} has no work")

    def clean(self) -> None:
        """Remove what the last run left behind."""


def _check(side: Side, what: str, found: int, expected: int) -> None:
    if found != expected:
        raise SideFailedError(f"{side.name} moved {found} {what} instead of {expected}")


class Repository:
    """The engine's configuration for one repository of one topic."""

    def __init__(self, broker: Broker, folder: Path, *, compression: str) -> None:
        self.folder = folder
        self._config = folder.with_suffix(".yaml")
        cluster = {"bootstrap_servers": broker.bootstrap_servers}
        config = {
            "cluster": cluster,
            "repository": {"url": f"file://{folder}"},
            "backup": {"topics": ["*"], "compression": compression},
        }
        self._config.write_text(json.dumps(config))  # JSON is YAML

    def command(self, *arguments: str) -> list[str]:
        """A command line of the engine's."""
        return [str(ENGINE), "--config", str(self._config), *arguments, "--json"]

    def stored_bytes(self) -> int:
        """Bytes of everything in it."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    def remove(self) -> None:
        """Delete it."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Backup(Side):
    """Our capture of a topic into a new repository."""

    name = "kafka-backup backup"

    def __init__(self, topic: Topic, repository: Repository) -> None:
        self._topic = topic
        self._repository = repository

    def measure(self) -> Run:
        """See `Side`."""
        measures, printed = run(self._repository.command("backup", "--topic", self._topic.name))
        (found,) = json.loads(printed)["topics"]
        _check(self, "records", found["records"], self._topic.records)
        return replace(measures, stored=self._repository.stored_bytes())

    def clean(self) -> None:
        """See `Side`."""
        self._repository.remove()


class Consume(Side):
    """A bare confluent-kafka consume loop, which stores nothing."""

    name = "confluent-kafka consume loop"

    def __init__(self, broker: Broker, topic: Topic) -> None:
        self._broker = broker
        self._topic = topic

    def measure(self) -> Run:
        """See `Side`."""
        command = [sys.executable, "-m", "bench.clients", "consume"]
        command += ["--bootstrap-servers", self._broker.bootstrap_servers, "--topic", self._topic.name]
        command += ["--records", str(self._topic.records)]
        for name, value in _CONSUMER.items():
            command += ["--config", f"{name}={value}"]
        measures, printed = run(command)
        _check(self, "bytes", int(printed), self._topic.logical_bytes)
        return measures


class ConsumerPerformance(Side):
    """Kafka's own tool, which stores nothing either."""

    name = "kafka-consumer-perf-test"

    def __init__(self, broker: Broker, topic: Topic) -> None:
        self._broker = broker
        self._topic = topic

    def measure(self) -> Run:
        """See `Side`."""
        arguments = ["--bootstrap-server", self._broker.bootstrap_servers, "--topic", self._topic.name]
        arguments += [
            "--num-records",
            str(self._topic.records),
            "--hide-header",
            "--fetch-size",
            str(8 << 20),
        ]
        measures, printed = run(java_command("org.apache.kafka.tools.ConsumerPerformance", *arguments))
        # start, end, MB, MB/s, records, ...
        _check(self, "records", int(printed.splitlines()[-1].split(",")[4]), self._topic.records)
        return measures


class Fetch(Side):
    """The floor: the bytes received on plain sockets and thrown away."""

    name = "plain sockets, bytes discarded"

    def __init__(self, broker: Broker, topic: Topic) -> None:
        self._broker = broker
        self._topic = topic

    def measure(self) -> Run:
        """See `Side`."""
        command = [sys.executable, "-m", "bench.clients", "fetch"]
        command += ["--bootstrap-servers", self._broker.bootstrap_servers, "--topic", self._topic.name]
        measures, printed = run(command)
        if int(printed) < self._topic.stored_bytes:
            raise SideFailedError(f"{self.name}: {int(printed)} of {self._topic.stored_bytes} bytes")
        return measures


class NoOpBackup(Side):
    """Our capture of topics that have not changed since the last one."""

    name = "kafka-backup backup, nothing new"

    def __init__(self, repository: Repository, *, topics: int) -> None:
        self._repository = repository
        self._topics = topics

    def measure(self) -> Run:
        """See `Side`."""
        measures, printed = run(self._repository.command("backup"))
        statuses = [topic["status"] for topic in json.loads(printed)["topics"]]
        _check(self, "unchanged topics", statuses.count("unchanged"), self._topics)
        return measures


class Verify(Side):
    """Our proof of every byte of a repository."""

    name = "kafka-backup verify --level data"

    def __init__(self, repository: Repository, *, records: int) -> None:
        self._repository = repository
        self._records = records

    def measure(self) -> Run:
        """See `Side`."""
        measures, printed = run(self._repository.command("verify", "--level", "data"))
        answer = json.loads(printed)
        if answer["status"] != "ok":
            raise SideFailedError(f"{self.name}: {answer['status']}")
        _check(self, "records", answer["records"], self._records)
        return replace(measures, stored=self._repository.stored_bytes())


class Sha256Sum(Side):
    """The floor of a proof: the same files through the system's sha256sum, one process."""

    name = "sha256sum of the same files"

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def measure(self) -> Run:
        """See `Side`."""
        files = [str(file) for file in self._repository.folder.rglob("*") if file.is_file()]
        return run(["sha256sum", "--", *files])[0]


class _Writer(Side):
    """A side that writes a topic, which is deleted before the next one runs."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._written: str | None = None

    def clean(self) -> None:
        """See `Side`."""
        if self._written is not None:
            self._broker.delete_topic(self._written)
            self._written = None

    def _new_topic(self) -> str:
        name = f"written-{secrets.token_hex(4)}"
        self._broker.create_topic(name, PARTITIONS)
        self._written = name
        return name


class Restore(_Writer):
    """Our restore of a captured topic, its verification included."""

    name = "kafka-backup restore"

    def __init__(self, broker: Broker, topic: Topic, repository: Repository, *options: str) -> None:
        super().__init__(broker)
        self.name = " ".join((self.name, *options))
        self._topic = topic
        self._repository = repository
        self._options = options

    def measure(self) -> Run:
        """See `Side`."""
        restore_id = f"r{secrets.token_hex(4)}"
        arguments = [
            "--id",
            restore_id,
            "--topic",
            self._topic.name,
            "--prefix",
            f"{restore_id}-",
            *self._options,
        ]
        command = self._repository.command("restore", *arguments, "--execute")
        self._written = f"{restore_id}-{self._topic.name}"
        measures, printed = run(command)
        answer = json.loads(printed)
        parts = answer["topics"][0]["partitions"]
        if answer["status"] != "verified" or not all(part["verified"] for part in parts):
            raise SideFailedError(f"{self.name}: {answer['status']}")
        _check(self, "records", sum(part["records"] for part in parts), self._topic.records)
        return measures


class Produce(_Writer):
    """A confluent-kafka producer loop."""

    name = "confluent-kafka producer loop"

    def __init__(self, broker: Broker, topic: Topic, values: ValuesFiles) -> None:
        super().__init__(broker)
        self._topic = topic
        self._values = values

    def measure(self) -> Run:
        """See `Side`."""
        name = self._new_topic()
        records = self._topic.records
        command = produce_command(self._broker, name, self._topic.kind, self._values, records=records)
        measures, printed = run(command)
        _check(self, "bytes", int(printed), self._topic.logical_bytes)
        return measures


class ProducerPerformance(_Writer):
    """Kafka's own tool."""

    name = "kafka-producer-perf-test"

    def __init__(self, broker: Broker, topic: Topic, values: ValuesFiles) -> None:
        super().__init__(broker)
        self._topic = topic
        self._values = values

    def measure(self) -> Run:
        """See `Side`."""
        arguments = ["--bootstrap-server", self._broker.bootstrap_servers, "--topic", self._new_topic()]
        arguments += ["--num-records", str(self._topic.records), "--throughput", "-1"]
        if self._topic.kind.values == "random":  # bytes, not lines; the tool makes its own
            arguments += ["--record-size", str(self._values.size)]
        else:
            arguments += ["--payload-file", str(self._values.lines)]
        settings = [f"{name}={value}" for name, value in self._topic.kind.java_config().items()]
        command = java_command(
            "org.apache.kafka.tools.ProducerPerformance", *arguments, "--command-property", *settings
        )
        measures, printed = run(command)
        found = re.match(r"(\d+) records sent", printed.splitlines()[-1])
        _check(self, "records", int(found[1]) if found else 0, self._topic.records)
        return measures


def settle() -> None:
    """Let the kernel write out what the last side left, so that the next one does not pay for it."""
    os.sync()
