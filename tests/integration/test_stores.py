"""The stores in the cloud: a real S3 server, an emulator of S3, one of Azure's blob storage, and Google's front."""

import base64
import contextlib
import itertools
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.request import Request, urlopen

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster_aws.s3 import S3Resource
from moto.server import ThreadedMotoServer

from kafka_backup import Engine, parse_config
from kafka_backup.errors import AuthorizationError, ConfigurationError, UnreachableError, WriterConflictError
from kafka_backup.repository.store import ObjectExistsError, Store, put_once
from kafka_backup.repository.stores import open_store
from kafka_backup.retention import RetentionPolicy
from kafka_backup_dagster import KafkaBackupResource, kafka_backup_assets
from tests.support.engine import capture, restore, restored_as
from tests.support.google_front import google_front
from tests.support.kafka_cluster import KafkaCluster
from tests.support.object_stores import ObjectStore, S3Server, azurite, versitygw
from tests.support.records import NewRecord
from tests.support.topics import new_topic, produce, read_topic
from tests.unit.store_contract import StoreContract

_numbers = itertools.count()
_OPTIONS = {
    "access_key_id": "test",
    "secret_access_key": "test",
    "region": "us-east-1",
    "allow_http": "true",
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with urlopen(Request(f"{url}/backups", method="PUT")):
        yield url
    server.stop()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with versitygw(tmp_path_factory.mktemp("s3") / "buckets") as server:
        yield server


@pytest.fixture(scope="module")
def google(s3: S3Server) -> Iterator[S3Server]:
    """The same server, as clients of Google's storage see it."""
    with google_front(s3.options) as options:
        yield replace(s3, scheme="gs", options=options)


@pytest.fixture(scope="module")
def azure() -> Iterator[ObjectStore]:
    with azurite() as store:
        yield store


def bucket(s3: S3Server, *, locked: bool = False) -> ObjectStore:
    """A new one."""
    return s3.bucket(f"bucket-{os.getpid()}-{next(_numbers)}", locked=locked)


def opened(where: ObjectStore, prefix: str = "cluster") -> Store:
    """A store in a folder of its own."""
    return open_store(f"{where.url}/{prefix}/{next(_numbers)}", where.options)


class TestS3Server(StoreContract):
    @pytest.fixture
    def store(self, s3: S3Server) -> Store:
        return opened(bucket(s3))


class TestS3Emulator(StoreContract):
    @pytest.fixture
    def store(self, endpoint: str) -> Store:
        return opened(ObjectStore(url="s3://backups", options={**_OPTIONS, "endpoint": endpoint}))


class TestGoogle(StoreContract):
    @pytest.fixture
    def store(self, google: S3Server) -> Store:
        return opened(bucket(google))


class TestAzureEmulator(StoreContract):
    @pytest.fixture
    def store(self, azure: ObjectStore) -> Store:
        return opened(azure)


@pytest.mark.parametrize("kind", ["s3", "azure"])
def test_of_racing_writers_exactly_one_wins(kind: str, request: pytest.FixtureRequest) -> None:
    """Sixteen writers commit the same key at the same moment, forty times.

    It matters because a conditional write is the whole lock of a repository.
    With two winners one run's commit would vanish, with none nobody could ever commit.
    """
    where = bucket(request.getfixturevalue("s3")) if kind == "s3" else request.getfixturevalue("azure")
    stores = [opened(where, prefix="race")] * 16
    barrier = threading.Barrier(len(stores))

    def race(number: int, round_: int) -> bool:
        with stores[number].create(f"{round_}/1.json") as writer:
            writer.write(b"%d" % number)
            barrier.wait()
            try:
                writer.commit()
            except ObjectExistsError:
                return False
            return True

    with ThreadPoolExecutor(len(stores)) as pool:
        for round_ in range(40):
            won = list(pool.map(race, range(len(stores)), [round_] * len(stores)))
            assert won.count(True) == 1
            assert stores[0].get(f"{round_}/1.json") == b"%d" % won.index(True)


class _Forgetful:
    """Passes requests on to a server, and loses the answer to each PUT of a key that is asked for the first time."""

    def __init__(self, port: int) -> None:
        self.lost = 0
        self._port = port
        self._seen: set[bytes] = set()
        self._loses: set[socket.socket] = set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with peer, socket.create_connection(("127.0.0.1", self._port)) as server:
            threading.Thread(target=self._answers, args=(server, peer), daemon=True).start()
            with contextlib.suppress(OSError):
                while data := peer.recv(1 << 16):
                    line = data.split(b"\r\n", 1)[0]
                    if line.startswith(b"PUT ") and line not in self._seen:
                        self._seen.add(line)
                        self._loses.add(server)
                    server.sendall(data)

    def _answers(self, server: socket.socket, peer: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                if server in self._loses:
                    self._loses.discard(server)
                    self.lost += 1
                    peer.shutdown(socket.SHUT_RDWR)
                    return
                peer.sendall(data)


def test_a_lost_answer_is_no_conflict(s3: S3Server) -> None:
    """An object whose answer is lost on the wire is found to be our own, another's bytes are left alone.

    It matters because obstore asks again by itself, and is then told that its own object exists.
    A capture would stop with "another writer" at its own commit, or take another's commit for its own.
    """
    where = bucket(s3)
    real = int(where.options["endpoint"].rsplit(":", 1)[1])
    proxy = _Forgetful(real)
    with contextlib.closing(proxy):
        options = {**where.options, "endpoint": f"http://127.0.0.1:{proxy.port}"}
        store = open_store(f"{where.url}/x", options, retry_seconds=30)
        assert put_once(store, "1.json", b"ours") == "ours"
        assert proxy.lost == 1
        direct = open_store(f"{where.url}/x", where.options)
        assert direct.get("1.json") == b"ours"
        put_once(direct, "2.json", b"theirs")
        with pytest.raises(WriterConflictError):
            put_once(store, "2.json", b"ours")
        assert direct.get("2.json") == b"theirs"


def _engine(kafka: KafkaCluster, where: ObjectStore) -> Engine:
    repository = {"url": f"{where.url}/kafka", "options": dict(where.options)}
    cluster = {"bootstrap_servers": kafka.bootstrap_servers, "retry_seconds": 30}
    return Engine.open(
        parse_config(
            {"cluster": cluster, "repository": repository, "backup": {"segment_bytes": "64KiB"}},
            source="test",
        )
    )


def _records(first: int, count: int) -> list[NewRecord]:
    return [NewRecord(os.urandom(1000), b"%d" % number) for number in range(first, first + count)]


@pytest.mark.parametrize("kind", ["s3", "google", "azure"])
def test_a_topic_goes_round(kind: str, kafka: KafkaCluster, request: pytest.FixtureRequest) -> None:
    """A topic is captured into the store, verified, expired and restored from it, by the engine.

    It matters because each store has limits and errors of its own.
    What works on a local disk could fail on the first large object, or the first listing.
    """
    place = request.getfixturevalue(kind)
    where = place if isinstance(place, ObjectStore) else bucket(place)
    topic = new_topic(kafka, 2)
    with _engine(kafka, where) as engine:
        for number in range(3):
            produce(kafka.bootstrap_servers, topic, _records(number * 100, 100), partition=number % 2)
            capture(engine, topic)
        assert engine.verify(level="data").status == "ok"
        report = engine.expire(engine.plan_expire(RetentionPolicy(keep_captures=1)))
        assert len(report.captures) == 2
        restore(engine, f"r-{kind}", topic, prefix=f"{kind}-")
        assert read_topic(kafka.bootstrap_servers, f"{kind}-{topic}") == restored_as(kafka, topic)
        assert engine.verify(level="data").status == "ok"


@pytest.mark.parametrize("is_hidden", [False, True])
def test_an_s3_resource_of_dagster_leads_to_the_store(
    kafka: KafkaCluster, s3: S3Server, monkeypatch: pytest.MonkeyPatch, is_hidden: bool
) -> None:
    """A backup runs in Dagster with an S3Resource that other assets use, too; its keys come from the environment.

    It matters because whoever has S3 in Dagster has this resource, with everything in it.
    A nested resource that nobody initializes would hand out the name of a variable for a key.
    """
    where = bucket(s3)
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, _records(0, 10))
    for name in ("access_key_id", "secret_access_key"):
        monkeypatch.setenv(f"MY_{name.upper()}", where.options[name])
    shared = S3Resource(
        endpoint_url=where.options["endpoint"],
        region_name=where.options["region"],
        aws_access_key_id=dg.EnvVar("MY_ACCESS_KEY_ID"),
        aws_secret_access_key=dg.EnvVar("MY_SECRET_ACCESS_KEY"),
    )
    resource = KafkaBackupResource(
        bootstrap_servers=kafka.bootstrap_servers, repository_url=f"{where.url}/dagster", s3=shared
    )

    @kafka_backup_assets(topics=[topic], consumer_groups=[], partitions_def=None)
    def backups(
        context: dg.AssetExecutionContext, kafka_backup: KafkaBackupResource
    ) -> Iterator[dg.MaterializeResult[None]]:
        yield from kafka_backup.run(context)

    @dg.asset(deps=[dg.AssetKey(["kafka_backup", "default", topic])])
    def listed(s3: S3Resource) -> dg.MaterializeResult[None]:
        found = s3.get_client().list_objects_v2(Bucket=where.url.removeprefix("s3://"))
        return dg.MaterializeResult(metadata={"objects": found["KeyCount"]})

    defs = dg.Definitions(
        assets=[backups, listed],
        resources={"s3": shared, "kafka_backup": resource.hidden() if is_hidden else resource},
    )
    assert where.options["secret_access_key"] not in dg.serialize_value(
        RepositorySnap.from_def(defs.get_repository_def())
    )
    done = defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=dg.DagsterInstance.ephemeral()
    )
    saved = {
        each.asset_key.path[-1]: each.metadata for each in done.asset_materializations_for_node("backups")
    }
    assert saved[topic]["dagster/row_count"].value == 10
    (seen,) = done.asset_materializations_for_node("listed")
    assert seen.metadata["objects"].value > 3


def test_object_lock_is_no_obstacle(kafka: KafkaCluster, s3: S3Server) -> None:
    """In a bucket that keeps every object for a day captures, verification and restores work; expiry says why it cannot.

    It matters because Object Lock is what saves a backup from whoever stole its credentials.
    A capture that cleans up behind itself would fail there, or a lost race look like a missing right.
    """
    where = bucket(s3, locked=True)
    topic = new_topic(kafka)
    with _engine(kafka, where) as engine:
        for number in range(11):
            produce(kafka.bootstrap_servers, topic, _records(number * 10, 10))
            capture(engine, topic)
        capture(engine, topic)
        restore(engine, "r", topic, prefix="locked-")
        assert read_topic(kafka.bootstrap_servers, f"locked-{topic}") == restored_as(kafka, topic)
        assert engine.verify(level="data").status == "ok"
    store = open_store(f"{where.url}/x", where.options)
    assert put_once(store, "1.json", b"ours") == "created"
    assert put_once(store, "1.json", b"ours") == "ours"
    with pytest.raises(WriterConflictError):
        put_once(store, "1.json", b"theirs")
    with pytest.raises(AuthorizationError, match=r"1\.json: the store denies it"):
        store.delete("1.json")


@pytest.mark.parametrize("kind", ["s3", "google"])
def test_a_missing_bucket_is_named(kind: str, request: pytest.FixtureRequest) -> None:
    """Writing to and listing a bucket that does not exist is an error of the configuration.

    It matters because bucket names are typed by people.
    A listing of nothing would pass for an empty repository.
    """
    server: S3Server = request.getfixturevalue(kind)
    store = open_store(f"{server.scheme}://no-such-bucket/x", server.options)
    with pytest.raises(ConfigurationError, match=r"no-such-bucket.*does not exist"):
        list(store.list(""))
    with (
        pytest.raises(ConfigurationError, match=r"no-such-bucket.*does not exist"),
        store.create("1.json") as writer,
    ):
        writer.write(b"{}")
        writer.commit()


@pytest.mark.parametrize("kind", ["s3", "google", "azure"])
def test_wrong_credentials_are_denied(kind: str, request: pytest.FixtureRequest) -> None:
    """A store does not take our key or token: a missing right, named with the place, whatever was asked.

    It matters because keys are changed and tokens end, and who reads the message must know that it is not the network.
    It could pass for an object that is not there, be tried again for minutes, or print the secret.
    """
    place = request.getfixturevalue(kind)
    where = place if isinstance(place, ObjectStore) else bucket(place)
    wrong = base64.b64encode(b"very-secret").decode()
    secret = {"s3": "secret_access_key", "google": "bearer_token", "azure": "account_key"}[kind]
    store = open_store(f"{where.url}/x", {**where.options, secret: wrong}, retry_seconds=5)
    for call in (
        lambda: store.get("1.json"),
        lambda: store.size("1.json"),
        lambda: list(store.list("")),
        lambda: store.folders(""),
        lambda: put_once(store, "1.json", b""),
        lambda: store.delete("1.json"),
    ):
        with pytest.raises(AuthorizationError, match=f"{where.url}/x/.*the store denies it") as caught:
            call()
        assert wrong not in str(caught.value)


def test_an_unreachable_store_is_retriable() -> None:
    """A store that does not answer is an UnreachableError, after a bounded time.

    It matters because that class alone says "try again" to Dagster and to scripts (exit code 3).
    A missing answer could pass for a missing object, and a commit log for an empty one.
    """
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        options = {**_OPTIONS, "endpoint": f"http://127.0.0.1:{closed.getsockname()[1]}"}
        store = open_store("s3://backups/x", options, retry_seconds=0.5)
        for call in (
            lambda: store.get("1.json"),
            lambda: store.size("1.json"),
            lambda: list(store.list("")),
            lambda: store.folders(""),
        ):
            with pytest.raises(UnreachableError, match=r"s3://backups/x"):
                call()
