"""`make dev`: a broker with the demo's topics, and Dagster's user interface on it, until Ctrl-C."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml

from demo import session
from demo.topics import BROKER_CONFIG, NAMES, Size, write_all
from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parent.parent
SMALL = Size(orders=30_000, events=10_000, customers=5_000, updates=3)


def main() -> None:
    """Everything is new, and everything is gone afterwards: broker, backups, Dagster's history."""
    with (
        session.folder("dev") as home,
        session.broker(BROKER_CONFIG) as kafka,
    ):
        write_all(kafka, SMALL, session.console.print)
        config = home / "kafka-backup.yaml"
        write_config(config, kafka.bootstrap_servers, home / "backups")
        # Dagster looks for dagster.yaml where it is started, and keeps its history beside it.
        shutil.copy(ROOT / "dagster.yaml", home)
        with _dagster(home, config) as (process, url):
            session.console.print(
                f"\nbroker     {kafka.bootstrap_servers}   topics: {', '.join(NAMES)}\nconfig     {config}\n"
                f"[bold]Dagster    {url}[/]\n\nPress Ctrl-C to stop; then all of this is removed."
            )
            if sys.stdout.isatty() and (os.environ.get("DISPLAY") or sys.platform == "darwin"):
                webbrowser.open(url)
            if process.wait() != 0:
                raise session.SessionError(f"Dagster ended with exit code {process.returncode}")


def write_config(path: Path, bootstrap_servers: str, repository: Path) -> None:
    """A `kafka-backup.yaml` for the demo's topics."""
    settings = {
        # The broker is on this machine: what does not answer at once will not answer later.
        "cluster": {"bootstrap_servers": bootstrap_servers, "retry_seconds": 10},
        "repository": {"url": repository.as_uri()},
        "backup": {"topics": list(NAMES)},
    }
    path.write_text(yaml.safe_dump(settings, sort_keys=False))


@contextlib.contextmanager
def _dagster(home: Path, config: Path) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    port = _port(3000)
    environment = {key: value for key, value in os.environ.items() if key != "DAGSTER_HOME"}
    yesterday = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
    environment |= {
        "KAFKA_BACKUP_CONFIG": str(config),
        "KAFKA_BACKUP_START_DATE": yesterday,
        "DAGSTER_DISABLE_TELEMETRY": "1",
    }
    # It says that `dg dev` is the newer command; that one wants a project of its own kind.
    environment["PYTHONWARNINGS"] = "ignore"
    dagster = Path(sys.executable).with_name("dagster")
    command = [
        str(dagster),
        "dev",
        "-w",
        str(ROOT / "workspace.yaml"),
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        "--log-level",
        "error",
    ]
    # A process group of its own: Ctrl-C reaches us alone, and whatever it starts can be ended with it.
    process = subprocess.Popen(command, cwd=home, env=environment, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:

        def ready() -> bool:
            if process.poll() is not None:
                raise session.SessionError(f"Dagster did not start (exit code {process.returncode})")
            with (
                contextlib.suppress(urllib.error.URLError, OSError),
                urllib.request.urlopen(f"{url}/server_info", timeout=2) as answer,
            ):
                return bool(answer.status == 200)
            return False

        wait_for(ready, 120, "Dagster's user interface", interval=0.3)
        yield process, url
    finally:
        session.no_more_interrupts()
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise session.SessionError("no free port")


if __name__ == "__main__":
    sys.exit(session.run(main))
