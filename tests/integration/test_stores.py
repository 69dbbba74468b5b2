"""The store on S3, against a local S3 server."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from urllib.request import Request, urlopen

import pytest
from moto.server import ThreadedMotoServer

from kafka_backup.errors import ConfigurationError, UnreachableError
from kafka_backup.repository.store import Store, open_store
from tests.unit.store_contract import StoreContract

_prefixes = itertools.count()
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


class TestS3Store(StoreContract):
    @pytest.fixture
    def store(self, endpoint: str) -> Store:
        return open_store(f"s3://backups/cluster/{next(_prefixes)}", {**_OPTIONS, "endpoint": endpoint})


def test_a_missing_bucket_is_named(endpoint: str) -> None:
    """Writing to and listing a bucket that does not exist is an error of the configuration.

    It matters because bucket names are typed by people.
    A listing of nothing would pass for an empty repository.
    """
    store = open_store("s3://no-such-bucket/x", {**_OPTIONS, "endpoint": endpoint})
    with pytest.raises(ConfigurationError, match=r"no-such-bucket.*does not exist"):
        list(store.list(""))
    with (
        pytest.raises(ConfigurationError, match=r"no-such-bucket.*does not exist"),
        store.create("1.json") as writer,
    ):
        writer.write(b"{}")
        writer.commit()


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
