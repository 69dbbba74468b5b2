"""Real Apache Kafka clusters (KRaft, 1 to 3 nodes, each broker and controller) in containers, with faults.

The image is apache/kafka, or our local stand-in that obeys the same environment variables. Everything listens
on 127.0.0.1 only. Containers and networks carry the process that owns them as a label: `close()` removes
ours, and
`sweep()`, at the start of the next cluster, those of processes that were killed.
"""

import atexit
import base64
import contextlib
import ipaddress
import os
import secrets
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import docker
from confluent_kafka.admin import AdminClient
from docker.errors import APIError, NotFound
from docker.models.containers import Container
from docker.models.networks import Network
from docker.types import IPAMConfig, IPAMPool
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from tests.support.kafka_image import image as default_image
from tests.support.kafka_wire import Partition, metadata, quorum_leader
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import wait_for

OWNER = "kafka-backup-tests.owner"
CLUSTER = "kafka-backup-tests.cluster"

# Failures noticed in about 3 s, healed ones too; 160 MB of memory per node; few internal partitions.
FAST: Mapping[str, str | int] = {
    # dead or frozen: new leaders
    "broker.heartbeat.interval.ms": 500,
    "broker.session.timeout.ms": 3000,
    # silent follower: out of the ISR
    "replica.lag.time.max.ms": 3000,
    # else the requests that a partition swallowed keep a replica out of the ISR for 10 to 30 s after it
    # healed
    "request.timeout.ms": 3000,
    "replica.socket.timeout.ms": 3000,
    "controller.socket.timeout.ms": 3000,
    "socket.connection.setup.timeout.ms": 1000,
    "socket.connection.setup.timeout.max.ms": 2000,
    "controller.quorum.fetch.timeout.ms": 1500,
    "controller.quorum.request.timeout.ms": 1000,
    "controller.quorum.election.timeout.ms": 500,
    "controller.quorum.election.backoff.max.ms": 300,
    "group.initial.rebalance.delay.ms": 0,
    "auto.create.topics.enable": "false",
    "log.retention.ms": -1,  # tests write old records; the broker would delete them under the reader's eyes
    # by default 128 MiB, all of it touched at the start
    "log.cleaner.dedupe.buffer.size": 2 << 20,
    "log.cleaner.backoff.ms": 500,  # by default it looks for work every 15 s, and tests wait for it
    "num.network.threads": 2,
    "num.io.threads": 4,
    "offsets.topic.num.partitions": 3,
    "transaction.state.log.num.partitions": 3,
    "share.coordinator.state.topic.num.partitions": 3,
}


@dataclass(frozen=True)
class Listener:
    """One more listener for clients.

    Attributes:
        name: Kafka's name for it, in capitals.
        protocol: Kafka's security protocol.
        config: settings of this listener only, without their prefix; PEM text may have line ends.
        host: what clients call the broker: a name or address of this machine's loopback.
    """

    name: str
    protocol: str
    config: Mapping[str, str | int] = field(default_factory=dict)
    host: str = "127.0.0.1"


class BrokerNotReadyError(RuntimeError):
    """A broker ended, or did not answer in time; with its last words."""


class KafkaCluster:
    """A cluster while a `with` block lasts.

    Args:
        brokers: 1 to 3; their ids start at 1.
        image: None: see `kafka_image.image`.
        config: Broker settings by Kafka's names, on top of those for speed; `{id}` in one is the broker's id.
        heap: Java heap of each node.
        proxied: Puts a `TcpProxy` between the clients and each broker (`proxies[id]`).
        cluster_id: None: a new one, as each real cluster has.
        listeners: More listeners for clients, beside the one that wants no security.
        java_options: For the brokers' JVM.
        files: Folders of this machine that the brokers can read, by the path that they have there.
    """

    def __init__(
        self,
        brokers: int = 1,
        *,
        image: str | None = None,
        config: Mapping[str, str | int] | None = None,
        heap: str = "256m",
        proxied: bool = False,
        cluster_id: str | None = None,
        listeners: Sequence[Listener] = (),
        java_options: str = "",
        files: Mapping[str, Path] | None = None,
    ) -> None:
        self.ids = list(range(1, brokers + 1))
        self.proxied = proxied
        self.cluster_id = cluster_id or base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        self.image = image
        self._config = dict(config or {})
        self._heap = heap
        self._listeners = {each.name: each for each in listeners}
        self._java_options = java_options
        self._files = dict(files or {})
        self._labels = {OWNER: _this_process(), CLUSTER: secrets.token_hex(8)}
        self.proxies: dict[int, TcpProxy] = {}
        self.ports: dict[int, int] = {}
        self.listener_ports: dict[tuple[int, str], int] = {}
        self.containers: dict[int, DockerContainer] = {}
        self.addresses: dict[int, str] = {}
        self._network: Network | None = None

    @property
    def bootstrap_servers(self) -> str:
        """For clients on this machine."""
        return self.bootstrap_servers_without()

    def bootstrap_servers_without(self, *cut_off: int) -> str:
        """The same without some brokers.

        A broker that is cut off from its peers goes on naming itself leader. librdkafka asks for metadata on
        the connections that it has, so a client that met this broker first may believe it for minutes.
        """
        return ",".join(f"127.0.0.1:{port}" for each, port in self.ports.items() if each not in cut_off)

    def servers(self, listener: str) -> str:
        """For clients on this machine, of one of the `listeners`."""
        return ",".join(self._advertised(each, listener) for each in self.ids)

    def _advertised(self, broker_id: int, listener: str) -> str:
        host = self._listeners[listener].host
        return f"{f'[{host}]' if ':' in host else host}:{self.listener_ports[broker_id, listener]}"

    def __enter__(self) -> Self:
        atexit.register(self.close)
        try:
            sweep()
            self._prepare()
            for broker_id, container in self.containers.items():
                container.start()
                self.connect(broker_id)
            self.wait_ready(self.ids)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes all that is ours, also what an interrupted start left behind. May be called again."""
        atexit.unregister(self.close)
        client = docker.from_env()
        ours = {"label": f"{CLUSTER}={self._labels[CLUSTER]}"}
        _remove(
            client.containers.list(all=True, filters=ours, ignore_removed=True),
            client.networks.list(filters=ours),
        )
        client.close()
        for container in self.containers.values():
            container.get_docker_client().client.close()
        for proxy in self.proxies.values():
            proxy.close()

    def _prepare(self) -> None:
        # Ryuk, testcontainers' own cleaner, is one more image to pull; close() and sweep() do its work.
        testcontainers_config.ryuk_disabled = True
        image = self.image = self.image or default_image()
        extra = [(each, name) for each in self.ids for name in self._listeners]
        ports = free_ports(len(self.ids) + len(extra))
        published = dict(zip(self.ids, ports, strict=False))
        self.listener_ports = dict(zip(extra, ports[len(self.ids) :], strict=True))
        if self.proxied:
            self.proxies = {broker_id: TcpProxy(port) for broker_id, port in published.items()}
            self.ports = {broker_id: proxy.port for broker_id, proxy in self.proxies.items()}
        else:
            self.ports = published
        # Nodes talk by fixed addresses: the JVM remembers for 10 s that a name did not resolve.
        self._network, subnet = _inner_network(self._labels)
        self.addresses = {broker_id: str(subnet[10 + broker_id]) for broker_id in self.ids}
        for broker_id in self.ids:
            environment = {
                f"KAFKA_{_env_name(name)}": str(value).replace("{id}", str(broker_id))
                for name, value in self._settings(broker_id).items()
            }
            environment |= {
                "CLUSTER_ID": self.cluster_id,
                "KAFKA_HEAP_OPTS": f"-Xms{self._heap} -Xmx{self._heap}",
                "KAFKA_OPTS": self._java_options,
                "KAFKA_JVM_PERFORMANCE_OPTS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",  # a third less CPU
            }
            container = DockerContainer(image, env=environment, labels=self._labels)
            # Fixed: it must survive a restart. On the loopback only, which with_bind_ports cannot say.
            ports_of: dict[str, Any] = container.ports
            ports_of["9094/tcp"] = ("127.0.0.1", published[broker_id])
            for number, listener in enumerate(self._listeners.values(), 9095):
                address = "::1" if ":" in listener.host else "127.0.0.1"
                ports_of[f"{number}/tcp"] = (address, self.listener_ports[broker_id, listener.name])
            for path, folder in self._files.items():
                container.with_volume_mapping(str(folder), path, "ro")
            self.containers[broker_id] = container

    def _settings(self, broker_id: int) -> dict[str, str | int]:
        copies, acks = min(3, len(self.ids)), min(2, len(self.ids))
        settings: dict[str, str | int] = {
            **FAST,
            "node.id": broker_id,
            "process.roles": "broker,controller",
            "listeners": ",".join(
                [
                    "INTERNAL://:9092,CONTROLLER://:9093,EXTERNAL://:9094",
                    *(f"{name}://:{number}" for number, name in enumerate(self._listeners, 9095)),
                ]
            ),
            "advertised.listeners": ",".join(
                [
                    f"INTERNAL://{self.addresses[broker_id]}:9092",
                    f"EXTERNAL://127.0.0.1:{self.ports[broker_id]}",
                    *(f"{name}://{self._advertised(broker_id, name)}" for name in self._listeners),
                ]
            ),
            "listener.security.protocol.map": ",".join(
                [
                    "INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT,EXTERNAL:PLAINTEXT",
                    *(f"{each.name}:{each.protocol}" for each in self._listeners.values()),
                ]
            ),
            "inter.broker.listener.name": "INTERNAL",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": ",".join(
                f"{each}@{host}:9093" for each, host in self.addresses.items()
            ),
            "log.dirs": "/var/lib/kafka/data",
            "default.replication.factor": copies,
            "min.insync.replicas": acks,
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": acks,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": acks,
        }
        if len(self.ids) == 1:  # after a kill a broker waits until its old session is over
            settings |= {"broker.session.timeout.ms": 1000, "broker.heartbeat.interval.ms": 200}
        for listener in self._listeners.values():
            for name, value in listener.config.items():
                # The wrapper writes a properties file, in which \n means a line end.
                settings[f"listener.name.{listener.name.lower()}.{name}"] = str(value).replace("\n", "\\n")
        return settings | self._config

    def node(self, broker_id: int) -> Container:
        """The container, as Docker's SDK has it."""
        return self.containers[broker_id].get_wrapped_container()

    def kill(self, broker_id: int, signal: str = "SIGKILL") -> None:
        """Kills the broker and waits until it is dead."""
        self.node(broker_id).kill(signal)
        self.node(broker_id).wait(timeout=60)

    def start(self, broker_id: int, *, wait: bool = True) -> None:
        """Starts it again: same data, same port, same address."""
        self.node(broker_id).start()
        if wait:
            self.wait_ready([broker_id])

    def pause(self, broker_id: int) -> None:
        """Freezes it: connects succeed, nothing answers."""

        def frozen() -> bool:
            try:
                self.node(broker_id).pause()
            except APIError as error:
                # Of a busy process the kernel's freezer may not get hold at once.
                if "unable to freeze" not in str(error):
                    raise
                return False
            return True

        wait_for(frozen, 30, f"broker {broker_id} to be frozen", interval=0.1)

    def unpause(self, broker_id: int) -> None:
        """Ends `pause`."""
        self.node(broker_id).unpause()

    def disconnect(self, broker_id: int) -> None:
        """Cuts it off from the other nodes; clients still reach it. The reverse: `proxies[id].silent()`."""
        assert self._network
        self._network.disconnect(self.node(broker_id))

    def connect(self, broker_id: int) -> None:
        """Ends `disconnect`."""
        assert self._network
        self._network.connect(self.node(broker_id), ipv4_address=self.addresses[broker_id])

    def admin(self) -> AdminClient:
        """An admin client. Keep it until its futures are done: they die with it."""
        return AdminClient(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "socket.timeout.ms": 10_000,
                "log_level": 0,
                "reconnect.backoff.ms": 20,
                "reconnect.backoff.max.ms": 100,
            }
        )

    def wait_ready(self, ids: Sequence[int], timeout: float = 90) -> None:
        """Waits until each of these brokers answers clients and sees all of them alive."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with contextlib.suppress(OSError, struct.error):
                if all(set(ids) <= set(metadata(self.ports[each]).brokers) for each in ids):
                    return
            for each in ids:
                self.node(each).reload()
                if self.node(each).status in ("exited", "dead"):
                    raise BrokerNotReadyError(f"broker {each} did not start:\n{self.logs(each)}")
            time.sleep(0.02)
        raise BrokerNotReadyError(
            "\n".join(f"broker {each} not ready after {timeout} s:\n{self.logs(each)}" for each in ids)
        )

    def logs(self, broker_id: int, lines: int = 30) -> str:
        """The broker's last words."""
        return self.node(broker_id).logs(tail=lines).decode(errors="replace")

    def partition(
        self, topic: str, partition: int = 0, via: int | None = None, timeout: float = 30
    ) -> Partition:
        """As broker `via` sees it, or as the best informed one does (highest leader epoch).

        A broker that is cut off goes on telling what it knew, itself as leader included.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            known = []
            for each in [via] if via else self.ids:
                with contextlib.suppress(OSError, struct.error, KeyError):
                    known.append(metadata(self.ports[each], topic).partitions[partition])
            if known:
                return max(known, key=lambda seen: seen.epoch)
            time.sleep(0.02)
        raise TimeoutError(f"no broker tells about {topic} [{partition}]")

    def leader_of(self, topic: str, partition: int = 0, via: int | None = None) -> int:
        """Node id of the leader."""
        return self.partition(topic, partition, via).leader

    def in_sync(self, topic: str, partition: int = 0) -> int:
        """Size of the ISR, in the eyes of the broker that sees the smallest one."""
        return min(len(self.partition(topic, partition, each).isr) for each in self.ids)

    def active_controller(self) -> int:
        """Node id of the metadata quorum's leader; brokers name a random one in metadata."""
        for port in self.ports.values():
            with contextlib.suppress(OSError, struct.error):
                if (leader := quorum_leader(port)) > 0:
                    return leader
        raise TimeoutError("no broker knows the active controller")


def free_ports(count: int) -> list[int]:
    """Free ports below the ephemeral range.

    While its broker is down, no client can be given such a port as a source port (a client that reconnects to
    it could even connect to itself), after which the broker could not start.
    """
    with contextlib.ExitStack() as held:
        taken: list[int] = []
        while len(taken) < count:
            with contextlib.suppress(OSError):
                held.enter_context(probe := socket.socket()).bind(
                    ("127.0.0.1", 20000 + secrets.randbelow(12000))
                )
                taken.append(probe.getsockname()[1])
        return taken


def sweep() -> None:
    """Removes what killed processes on this machine left behind."""
    client = docker.from_env()

    def orphaned(labels: Mapping[str, str]) -> bool:
        return not _is_alive(labels.get(OWNER, ""))

    _remove(
        [
            each
            for each in client.containers.list(all=True, filters={"label": OWNER}, ignore_removed=True)
            if orphaned(each.labels)
        ],
        [
            each
            for each in client.networks.list(filters={"label": OWNER})
            if orphaned(each.attrs["Labels"] or {})
        ],
    )
    client.close()


def _remove(containers: Sequence[Container], networks: Sequence[Network]) -> None:
    for container in containers:
        with contextlib.suppress(NotFound):
            try:
                container.remove(force=True, v=True)
            except APIError as error:
                if error.status_code != 409:  # somebody else is removing it already
                    raise
    for network in networks:
        with contextlib.suppress(NotFound):
            network.remove()


def _env_name(setting: str) -> str:
    """`a.b-c_d` as the image wants it in the environment: `A_B___C__D`."""
    return setting.replace("_", "__").replace("-", "___").replace(".", "_").upper()


def _this_process() -> str:
    return f"{os.getpid()}@{_started(os.getpid())}"


def _started(pid: int) -> str:
    """When the process started: a later one may have the same number. Empty: cannot tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def _is_alive(owner: str) -> bool:
    pid, _, started = owner.partition("@")
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return _started(int(pid)) == started


def _inner_network(labels: Mapping[str, str]) -> tuple[Network, ipaddress.IPv4Network]:
    """An internal network and its subnet.

    Docker picks a free subnet; then the network is made again with that subnet named, without which no
    container may choose its address.
    """
    client = docker.from_env()
    for _ in range(20):
        probe = client.networks.create(f"kafka-{secrets.token_hex(8)}", internal=True, labels=dict(labels))
        probe.reload()
        subnet = probe.attrs["IPAM"]["Config"][0]["Subnet"]
        probe.remove()
        # Another process may be given the same subnet in between.
        with contextlib.suppress(APIError):
            network = client.networks.create(
                f"kafka-{secrets.token_hex(8)}",
                internal=True,
                labels=dict(labels),
                ipam=IPAMConfig(pool_configs=[IPAMPool(subnet=subnet)]),
            )
            return network, ipaddress.IPv4Network(subnet)
    raise RuntimeError("Docker gives us no network of our own")
