"""The command that proves that a restore works."""

from __future__ import annotations

import click

from kafka_backup.cli import tables
from kafka_backup.cli.answers import Document
from kafka_backup.cli.commands import main
from kafka_backup.cli.options import as_json, topics_option
from kafka_backup.cli.session import EXIT_DAMAGED, EXIT_OK, Session
from kafka_backup.cli.tables import ProgressBars
from kafka_backup.config import parse_size
from kafka_backup.drill import DRILL_BYTES
from kafka_backup.engine import Engine
from kafka_backup.progress import StopToken
from kafka_backup.repository.drills import DrillReport
from kafka_backup.times import format_time


def _size(_context: click.Context, _option: click.Parameter, text: str | None) -> int:
    if text is None:
        return DRILL_BYTES
    try:
        size = parse_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    assert isinstance(size, int)
    return size


@main.command()
@topics_option
@click.option(
    "--max-size", callback=_size, metavar="SIZE", help="Restore so much of each capture at most (10GiB)."
)
@as_json
@click.pass_obj
def drill(session: Session, topics: tuple[str, ...], max_size: int) -> int:
    """Restore into scratch topics, verify, and delete them again: proof that a restore works.

    The newest capture is restored, and an older one; topics take turns from drill to drill. What was
    found is kept in the repository.
    """
    session.document = {"drill": None, "captures": [], "left_behind": []}

    def work(engine: Engine, stop: StopToken) -> DrillReport:
        with ProgressBars(visible=session.shows_progress) as bars:
            return engine.drill(topics or None, max_raw_bytes=max_size, stop=stop, on_progress=bars.restore)

    report = session.run(work)
    document = _answer(report)
    session.answer(document, tables.drill(document))
    for capture in report.captures:
        if capture.problem is not None:
            session.complain(f"capture {capture.capture}: {capture.problem}")
    for line in report.left_behind:
        session.complain(f"not deleted: {line}")
    return EXIT_OK if report.status == "passed" else EXIT_DAMAGED


def _answer(report: DrillReport) -> Document:
    return {
        "status": report.status,
        "drill": report.drill_id,
        "target_cluster": report.target_cluster_id,
        "captures": [
            {
                "capture": each.capture,
                "captured_at": format_time(each.captured_at),
                "restore_id": each.restore_id,
                "topics": list(each.topics),
                "records": each.records,
                "raw_bytes": each.raw_bytes,
                "seconds": each.seconds,
                "problem": each.problem,
            }
            for each in report.captures
        ],
        "left_behind": list(report.left_behind),
    }
