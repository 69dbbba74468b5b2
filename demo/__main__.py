"""`make demo`: back up and restore three real topics through Dagster, and compare every record."""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.table import Table

from demo import session
from demo.compare import Comparison, compare
from demo.pipeline import Pipeline, Rate
from demo.topics import BROKER_CONFIG, NAMES, Size, write_all

LOG = Path(".demo") / "dagster.log"
LIMIT_SECONDS = 900
PREFIX = "restored-"


def main() -> None:
    """The demo; raises SessionError unless every record came back identical.

    Raises:
        SessionError: something went wrong, or a record is not as it was.
    """
    started = time.monotonic()
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_bytes(b"")
    with (
        _time_limit(),
        session.folder("demo") as folder,
        session.broker(BROKER_CONFIG) as kafka,
    ):
        say = session.console.print
        say(f"Apache Kafka ({kafka.image}) at {kafka.bootstrap_servers}")
        write_all(kafka, Size(), say)
        # Dagster, the engine and librdkafka tell their story into a file: here is the short one.
        with session.stderr_to(LOG):
            pipeline = Pipeline(folder, kafka.bootstrap_servers)
            say("backing up: materializing the topics' assets in Dagster")
            backups = pipeline.backup()
            say(f"restoring as {PREFIX}...: running Dagster's restore job")
            restores = pipeline.restore(PREFIX)
        say("reading both sides with confluent-kafka, comparing every record")
        compared = {name: compare(kafka.bootstrap_servers, name, PREFIX + name) for name in NAMES}
    session.console.print(_table(compared, backups, restores))
    session.console.print(f"{time.monotonic() - started:.0f} s; what Dagster said is in {LOG}")
    for name, comparison in compared.items():
        if not comparison.identical:
            raise session.SessionError(f"{name} did not come back as it was: {comparison.difference}")


def _table(compared: dict[str, Comparison], backups: dict[str, Rate], restores: dict[str, Rate]) -> Table:
    table = Table(title="Kafka topics, backed up and restored by Dagster")
    table.add_column("topic")
    for column in ("records", "MB", "backup MB/s", "restore MB/s"):
        table.add_column(column, justify="right")
    table.add_column("identical?")
    for name, comparison in compared.items():
        megabytes = comparison.bytes / 1e6
        table.add_row(
            name,
            f"{comparison.records:,}",
            f"{megabytes:.1f}",
            f"{megabytes / backups[name].seconds:.0f}",
            f"{megabytes / restores[name].seconds:.0f}",
            "[green]yes[/]" if comparison.identical else "[bold red]NO[/]",
        )
    return table


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def too_long(_number: int, _frame: FrameType | None) -> NoReturn:
        raise session.SessionError(f"the demo was not done after {LIMIT_SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


if __name__ == "__main__":
    sys.exit(session.run(main))
