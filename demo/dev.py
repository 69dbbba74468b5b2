"""`make dev`: a broker with the demo's topics, and Dagster's user interface on it, until Ctrl-C."""

import contextlib
import os
import shutil
import sys
import webbrowser
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml

from demo import session
from demo.topics import BROKER_CONFIG, NAMES, Size, write_all
from tests.support.dagster_dev import DagsterNotReadyError, DagsterServer, dagster_dev

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
        with _dagster(home, config) as dagster:
            url = dagster.url
            session.console.print(
                f"\nbroker     {kafka.bootstrap_servers}   topics: {', '.join(NAMES)}\nconfig     {config}\n"
                f"[bold]Dagster    {url}[/]\n\nPress Ctrl-C to stop; then all of this is removed."
            )
            if sys.stdout.isatty() and (os.environ.get("DISPLAY") or sys.platform == "darwin"):
                webbrowser.open(url)
            if dagster.process.wait() != 0:
                raise session.SessionError(f"Dagster ended with exit code {dagster.process.returncode}")


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
def _dagster(home: Path, config: Path) -> Iterator[DagsterServer]:
    yesterday = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
    environment = {
        "KAFKA_BACKUP_CONFIG": str(config),
        "KAFKA_BACKUP_START_DATE": yesterday,
        "PYTHONWARNINGS": "ignore",
    }
    command = ["dg", "dev", "-w", str(ROOT / "workspace.yaml"), "--log-level", "error"]
    try:
        with dagster_dev(command, folder=home, environment=environment, port=3000) as server:
            try:
                yield server
            finally:
                session.no_more_interrupts()
    except DagsterNotReadyError as error:
        raise session.SessionError(str(error)) from error


if __name__ == "__main__":
    sys.exit(session.run(main))
