"""Object stores of the kinds that people use, each a process (or a container) on 127.0.0.1."""

import base64
import contextlib
import datetime
import hashlib
import hmac
import http.client
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

_SCRIPT = Path(__file__).parents[2] / "scripts" / "object-stores.sh"
_VERSITYGW = "versitygw-1.8.0"
_AZURITE = "azurite-3.35.0"
_AZURITE_IMAGE = "mcr.microsoft.com/azure-storage/azurite:3.35.0"
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Public: every installation of the emulator has this key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectStore:
    """A running store.

    Attributes:
        url: of a bucket or container that exists and is empty.
        options: for `open_store`.
    """

    url: str
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """A running S3 server.

    Attributes:
        options: for `open_store`.
        client: for everything that our stores do not do, as an administrator.
        scheme: of the URLs of its buckets.
    """

    options: Mapping[str, str]
    client: Any
    scheme: str = "s3"

    def bucket(self, name: str, *, locked: bool = False) -> ObjectStore:
        """Make a bucket; a locked one keeps every object for a day, whoever deletes it (Object Lock)."""
        self.client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=locked)
        if locked:
            rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}
            self.client.put_object_lock_configuration(
                Bucket=name, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
            )
        return ObjectStore(url=f"{self.scheme}://{name}", options=self.options)


@contextlib.contextmanager
def versitygw(folder: Path) -> Iterator[S3Server]:
    """A real S3 server over a folder. It keeps all conditions of writes, also when many race."""
    folder.mkdir()
    port = _free_port()
    command = [str(_made() / _VERSITYGW), "--port", f"127.0.0.1:{port}", "--quiet"]
    command += ["--access", "test", "--secret", "testtest", "posix", str(folder)]
    options = {
        "access_key_id": "test",
        "secret_access_key": "testtest",
        "region": "us-east-1",
        "endpoint": f"http://127.0.0.1:{port}",
        "allow_http": "true",
    }
    with _running(command, port):
        client = boto3.client(
            "s3",
            endpoint_url=options["endpoint"],
            aws_access_key_id="test",
            aws_secret_access_key="testtest",
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )
        yield S3Server(options=options, client=client)


@contextlib.contextmanager
def azurite() -> Iterator[ObjectStore]:
    """Microsoft's emulator of Azure's blob storage, with an empty container."""
    port = _free_port()
    installed = _made() / _AZURITE / "node_modules" / ".bin" / "azurite-blob"
    if installed.exists() and shutil.which("node"):
        arguments = ["--silent", "--inMemoryPersistence", "--blobPort", str(port)]
        command = ["node", str(installed), *arguments, "--disableTelemetry"]
    else:
        publish = f"127.0.0.1:{port}:10000"
        command = ["docker", "run", "--rm", "--init", "-p", publish, _AZURITE_IMAGE]
        command += ["azurite-blob", "--silent", "--inMemoryPersistence", "--blobHost", "0.0.0.0"]
    with _running(command, port):
        _make_container(port, "backups")
        yield ObjectStore(
            url="az://backups",
            options={
                "account_name": _ACCOUNT,
                "account_key": _KEY,
                "endpoint": f"http://127.0.0.1:{port}/{_ACCOUNT}",
                "allow_http": "true",
            },
        )


def _make_container(port: int, name: str) -> None:
    """Create a container by a request signed as Azure wants it (Shared Key)."""
    now = datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    headers = f"x-ms-date:{now}\nx-ms-version:2021-08-06\n"
    resource = f"/{_ACCOUNT}/{_ACCOUNT}/{name}\nrestype:container"
    text = "PUT" + "\n" * 12 + headers + resource
    signature = hmac.new(base64.b64decode(_KEY), text.encode(), hashlib.sha256).digest()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request(
            "PUT",
            f"/{_ACCOUNT}/{name}?restype=container",
            headers={
                "x-ms-date": now,
                "x-ms-version": "2021-08-06",
                "Content-Length": "0",
                "Authorization": f"SharedKey {_ACCOUNT}:{base64.b64encode(signature).decode()}",
            },
        )
        answer = connection.getresponse()
        assert answer.status == 201, answer.read()


def _made() -> Path:
    """Where the servers are; makes them if they are missing, which `make test` has done before."""
    done = subprocess.run(["bash", str(_SCRIPT)], check=True, stdout=subprocess.PIPE, text=True, timeout=280)
    return Path(done.stdout.strip())


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def _running(command: Sequence[str], port: int) -> Iterator[None]:
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "NODE_NO_WARNINGS": "1"}
    ) as process:
        try:
            _wait_for(process, port)
            yield
        finally:
            process.terminate()
            process.communicate(timeout=30)


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + 60
    while True:
        if process.poll() is not None:
            said = process.stdout.read().decode(errors="replace") if process.stdout else ""
            raise RuntimeError(f"{process.args} ended: {said[-2000:]}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
