"""A Kafka broker as a plain process of this machine, so that no proxy and no container is measured."""

import base64
import contextlib
import secrets
import shutil
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic

from tests.support import kafka_wire
from tests.support.kafka_cluster import free_ports

KAFKA_VERSION = "4.4.0"
LIBRARIES = Path(__file__).with_name("build") / "libs"
_READY_SECONDS = 60
# Kafka's own defaults (bin/kafka-run-class.sh, bin/kafka-server-start.sh).
_JVM = ("-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35")
_HEAP = ("-Xms1g", "-Xmx1g")
_TOOL_HEAP = ("-Xmx512m",)
_LOG4J = """\
Configuration:
  Appenders:
    Console: {name: console, target: SYSTEM_ERR, PatternLayout: {pattern: "%p %m (%c)%n"}}
  Loggers:
    Root: {level: WARN, AppenderRef: {ref: console}}
"""


class NoKafkaError(RuntimeError):
    """Kafka's jars or Java are missing, or the broker did not start."""


def prepare_jars() -> None:
    """Fetch Kafka's jars from Maven Central, once.

    Raises:
        NoKafkaError: Maven or Java is missing, or the download failed.
    """
    for command, package in (("java", "default-jre-headless, 17 or newer"), ("mvn", "maven")):
        if shutil.which(command) is None:
            raise NoKafkaError(f"{command} is missing: install it (Debian: {package})")
    if LIBRARIES.is_dir():
        return
    unfinished = LIBRARIES.with_name("unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={unfinished}"]
    command_line = ["mvn", "-q", "-B", "-ntp", f"-Dkafka.version={KAFKA_VERSION}", *goal]
    done = subprocess.run(
        command_line, cwd=LIBRARIES.parent.parent, capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        raise NoKafkaError(f"Maven could not fetch Kafka's jars: {done.stdout[-2000:]}")
    unfinished.rename(LIBRARIES)


def java_command(main_class: str, *arguments: str, heap: Sequence[str] = _TOOL_HEAP) -> list[str]:
    """The command line of a class in Kafka's jars, under the settings of Kafka's own scripts."""
    log4j = f"-Dlog4j2.configurationFile={LIBRARIES.with_name('log4j2.yaml')}"
    return ["java", *heap, *_JVM, log4j, "-cp", f"{LIBRARIES}/*", main_class, *arguments]


class Broker:
    """A single-node cluster while a `with` block lasts; its log is in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._port, self._controller_port = free_ports(2)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """For clients on this machine."""
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        prepare_jars()
        LIBRARIES.with_name("log4j2.yaml").write_text(_LOG4J)
        self._folder.mkdir(parents=True)
        properties = self._folder / "server.properties"
        properties.write_text("".join(f"{name}={value}\n" for name, value in self._settings().items()))
        cluster_id = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        subprocess.run(
            java_command("kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(properties)),
            check=True,
            capture_output=True,
            timeout=_READY_SECONDS,
        )
        with (self._folder / "broker.log").open("wb") as log:
            self._process = subprocess.Popen(
                java_command("kafka.Kafka", str(properties), heap=_HEAP), stdout=log, stderr=log
            )
        try:
            self._wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the broker and remove its data."""
        if self._process is not None:
            self._process.kill()  # its data are thrown away
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _settings(self) -> Mapping[str, str | int]:
        return {
            "node.id": 1,
            "process.roles": "broker,controller",
            "listeners": f"PLAINTEXT://127.0.0.1:{self._port},CONTROLLER://127.0.0.1:{self._controller_port}",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "log.dirs": str(self._data),
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "offsets.topic.num.partitions": 1,
            "group.initial.rebalance.delay.ms": 0,
            "auto.create.topics.enable": "false",
            "log.retention.ms": -1,
            "log.segment.delete.delay.ms": 0,
            "log.cleaner.backoff.ms": 200,
        }

    def _wait_ready(self) -> None:
        assert self._process is not None
        end = time.monotonic() + _READY_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                if kafka_wire.metadata(self._port).brokers:
                    return
            except (OSError, struct.error):
                time.sleep(0.1)
        log = (self._folder / "broker.log").read_text(errors="replace")
        raise NoKafkaError(f"the broker did not start:\n{log[-2000:]}")

    @property
    def cpu_seconds(self) -> float:
        """Processor time that the broker has used so far."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def create_topic(self, name: str, partitions: int, **config: str | int) -> None:
        """Create a topic with one replica and wait until each partition has its leader."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        settings = {key: str(value) for key, value in config.items()}
        admin.create_topics([NewTopic(name, partitions, 1, config=settings)])[name].result(60)
        end = time.monotonic() + _READY_SECONDS
        while time.monotonic() < end:
            found = kafka_wire.metadata(self._port, name).partitions
            if len(found) == partitions and all(each.leader == 1 for each in found.values()):
                return
            time.sleep(0.05)
        raise TimeoutError(f"topic {name} has no leaders")

    def alter_topic(self, name: str, config: Mapping[str, str]) -> None:
        """Change some of a topic's settings."""
        entries = [
            ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
            for key, value in config.items()
        ]
        resource = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=entries)
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        admin.incremental_alter_configs([resource])[resource].result(60)

    def delete_topic(self, name: str) -> None:
        """Delete a topic and wait until its files are gone too."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        admin.delete_topics([name])[name].result(60)
        end = time.monotonic() + _READY_SECONDS
        # A folder "name-0" becomes "name-0.<id>-delete" before it goes.
        while any(self._data.glob(f"{name}-[0-9]*")):
            if time.monotonic() > end:
                raise TimeoutError(f"the files of topic {name} are still there")
            time.sleep(0.05)

    def stored_bytes(self, name: str) -> int:
        """Bytes of a topic's record batches in the broker's log."""
        total = 0
        for file in self._data.glob(f"{name}-[0-9]*/*.log"):
            with contextlib.suppress(FileNotFoundError):  # the cleaner took it
                total += file.stat().st_size
        return total
