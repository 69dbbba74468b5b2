"""What `make demo` and `make dev` share: a broker that is always cleaned up, and errors in one line."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import docker
from confluent_kafka import KafkaException
from docker.errors import DockerException, NotFound
from rich.console import Console

from kafka_backup.errors import KafkaBackupError
from tests.support.kafka_cluster import BrokerNotReadyError, KafkaCluster
from tests.support.kafka_image import NoKafkaImageError
from tests.support.waiting import wait_for

INTERRUPTED = 130


interrupts: list[int] = []
"""Signals that asked us to stop. Dagster makes a failed run of the exception, so it must be known here too."""


class SessionError(RuntimeError):
    """Something that the person at the terminal should know; no bug."""


_EXPECTED = (
    SessionError,
    KafkaBackupError,
    KafkaException,
    OSError,  # TimeoutError and ConnectionError are among them
    DockerException,
    BrokerNotReadyError,
    NoKafkaImageError,
)

console = Console(highlight=False, soft_wrap=True)


def run(main: Callable[[], None]) -> int:
    """Runs it, and returns an exit code: 0, 1 after one line about an error, 130 after Ctrl-C or SIGTERM."""
    # In a script's background job, SIGINT is ignored; the children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        main()
    except _EXPECTED as error:
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {_one_line(error)}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; everything is cleaned up")
        return INTERRUPTED
    return 0


@contextlib.contextmanager
def broker(config: dict[str, str | int]) -> Iterator[KafkaCluster]:
    """A broker in a container. If it dies, what runs in the `with` block ends with a SessionError."""
    with KafkaCluster(1, config=config) as kafka:
        watch = _Watch(kafka)
        try:
            yield kafka
        except Exception:
            # Whatever it was, it came of that. `from None`: the symptoms of a dead broker are many.
            if (cause := watch.cause()) is not None:
                raise SessionError(cause) from None
            raise
        finally:
            no_more_interrupts()
            watch.stop()


def _interrupted(_number: int, _frame: FrameType | None) -> NoReturn:
    interrupts.append(_number)
    raise KeyboardInterrupt


def no_more_interrupts() -> None:
    """The rest is cleaning up, and a second Ctrl-C must not end that half-way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(0)


@contextlib.contextmanager
def folder(purpose: str) -> Iterator[Path]:
    """A temporary folder, gone afterwards, even if a thread that was interrupted still writes into it."""
    path = Path(tempfile.mkdtemp(prefix=f"kafka-backup-{purpose}-"))
    try:
        yield path
    finally:
        no_more_interrupts()

        def gone() -> bool:
            shutil.rmtree(path, ignore_errors=True)
            return not path.exists()

        wait_for(gone, 20, f"{path} to be empty", interval=0.2)


class _Watch:
    """Looks twice a second whether the broker lives, and interrupts the main thread if it does not."""

    def __init__(self, kafka: KafkaCluster) -> None:
        self._container_id = str(kafka.node(1).id)
        self._stopped = threading.Event()
        self._client = docker.from_env(timeout=10)
        signal.signal(signal.SIGUSR1, self._interrupt)
        self._thread = threading.Thread(target=self._look, name="broker-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(15)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self._client.close()

    def cause(self) -> str | None:
        """Why the broker is not there, or None if it is."""
        try:
            container = self._client.containers.get(self._container_id)
        except NotFound:
            return "the Kafka broker has died: somebody removed its container"
        except (DockerException, OSError) as error:
            return f"the Docker engine does not answer any more: {_one_line(error)}"
        if container.status in ("running", "paused", "created"):
            return None
        code = container.attrs["State"]["ExitCode"]
        return f"the Kafka broker has died (its container ended with exit code {code})"

    def _look(self) -> None:
        while not self._stopped.wait(0.5):
            if self.cause() is not None and not self._stopped.is_set():
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                return

    def _interrupt(self, _number: int, _frame: FrameType | None) -> NoReturn:
        raise SessionError(self.cause() or "the Kafka broker was away for a moment")


@contextlib.contextmanager
def stderr_to(path: Path) -> Iterator[None]:
    """Sends what is written to stderr, by libraries in C too, into a file while the `with` block lasts."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with path.open("ab") as file:
            os.dup2(file.fileno(), 2)
            yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def _one_line(error: BaseException) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return text or type(error).__name__
