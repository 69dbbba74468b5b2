"""The commands about restores: plan, carry out, give up, and look offsets up."""

from __future__ import annotations

import re
from typing import Any

import click
from pydantic import ValidationError

from kafka_backup.cli import answers, tables
from kafka_backup.cli.answers import Document
from kafka_backup.cli.commands import main
from kafka_backup.cli.options import GROUP_FILTER, OFFSET, PARTITION, TIME, Parsed, as_json, topics_option
from kafka_backup.cli.session import EXIT_DAMAGED, EXIT_OK, Session
from kafka_backup.cli.tables import ProgressBars
from kafka_backup.config import parse_size
from kafka_backup.engine import Engine
from kafka_backup.errors import ConfigurationError
from kafka_backup.progress import StopToken
from kafka_backup.repository.restore_documents import (
    RenameRule,
    RestorePlan,
    RestoreReport,
    RestoreRequest,
)
from kafka_backup.restore_context import RestoreLimits
from kafka_backup.restore_findings import refusal


def _rename_rule(text: str) -> RenameRule:
    # A replacement makes topic names, which hold no "="; a pattern may hold one.
    pattern, sign, replacement = text.rpartition("=")
    if not sign or not pattern:
        raise ConfigurationError(f"not a rename rule: {text!r} (write 'PATTERN=REPLACEMENT')")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigurationError(f"rename {text!r}: not a valid regular expression ({error})") from error
    return RenameRule(pattern=pattern, replacement=replacement)


def _rate(text: str) -> int:
    try:
        rate = parse_size(text)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    if not isinstance(rate, int) or rate < 1:
        raise ConfigurationError(f"{text!r} is no rate above 0")
    return rate


RENAME = Parsed("pattern=replacement", _rename_rule)
RATE = Parsed("size", _rate)


@main.command()
@click.option("--id", "restore_id", metavar="ID", help="Names the restore; the same ID continues it.")
@topics_option
@click.option(
    "--rename",
    multiple=True,
    type=RENAME,
    metavar="'PATTERN=REPLACEMENT'",
    help="New name for topics whose whole name matches. The first rule that matches counts.",
)
@click.option("--prefix", default="", metavar="P", help="Put before the names of the targets.")
@click.option(
    "--partition", "partitions", multiple=True, type=PARTITION, metavar="N", help="Only these partitions."
)
@click.option("--from", "from_ms", type=TIME, metavar="T", help="Only records from this time on.")
@click.option("--until", "until_ms", type=TIME, metavar="T", help="Only records up to this time (inclusive).")
@click.option("--capture", metavar="C", help="The state as of this capture.")
@click.option(
    "--incarnation", metavar="ID", help="The topic id to restore, where a topic was deleted and re-created."
)
@click.option(
    "--groups",
    multiple=True,
    type=GROUP_FILTER,
    metavar="F",
    help="Put the positions of these consumer groups where their records went, once all is verified: those of the "
    "capture, or the newest not later than --until. A name, a wildcard (app_*) or a /regular expression/.",
)
@click.option(
    "--rename-groups",
    multiple=True,
    type=RENAME,
    metavar="'PATTERN=REPLACEMENT'",
    help="New name for groups whose whole name matches. The first rule that matches counts.",
)
@click.option(
    "--replace",
    is_flag=True,
    help="In place: a target that holds records is captured to its end, deleted, and made anew.",
)
@click.option(
    "--original-offset-header",
    is_flag=True,
    help="Give each record its source offset in the header x-original-offset.",
)
@click.option(
    "--original-timestamp-header",
    is_flag=True,
    help="Give each record its time in the header x-original-timestamp.",
)
@click.option(
    "--replication-factor",
    type=click.IntRange(1, 2**15 - 1),
    metavar="N",
    help="Copies of the topics that are created; by default as many as the source had.",
)
@click.option(
    "--skip-damaged",
    is_flag=True,
    help="Leave damaged segments out, say which source offsets are missing, and end with 4.",
)
@click.option(
    "--max-bytes-per-second",
    type=RATE,
    metavar="N",
    help="Write no faster than this (with a unit: 10MiB), nor read back.",
)
@click.option(
    "--max-records-per-second", type=click.IntRange(1), metavar="N", help="Write no faster than this."
)
@click.option("--execute", is_flag=True, help="Do it. Without this the plan is shown and nothing is changed.")
@click.option(
    "--release-retention",
    "released_id",
    metavar="ID",
    help="Put the saved retention in force that a finished restore held back.",
)
@click.option(
    "--abandon",
    "abandoned_id",
    metavar="ID",
    help="Give an unfinished restore up for good, so that expiry may remove what it needs.",
)
@as_json
@click.pass_context
def restore(
    ctx: click.Context, /, released_id: str | None, abandoned_id: str | None, execute: bool, **options: Any
) -> int:
    """Plan a restore, or do it and verify it."""
    session: Session = ctx.obj
    session.document = {
        "restore_id": released_id or abandoned_id or options["restore_id"],
        "topics": [],
        "groups": [],
        "problems": [],
    }
    for name, finished_id, act in (
        ("--release-retention", released_id, _release_retention),
        ("--abandon", abandoned_id, _abandon),
    ):
        if finished_id is not None:
            if execute or any(options.values()) or (released_id and abandoned_id):
                raise click.UsageError(f"{name} goes with no other option")
            return act(session, finished_id)
    if options["restore_id"] is None:
        raise click.UsageError("Missing option '--id'.")
    limits = RestoreLimits(
        max_bytes_per_second=options.pop("max_bytes_per_second"),
        max_records_per_second=options.pop("max_records_per_second"),
    )
    skip_damaged = options.pop("skip_damaged")
    if skip_damaged and options["replace"]:
        raise click.UsageError("--skip-damaged does not go with --replace")
    try:
        request = RestoreRequest(**options)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        problem = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"{'.'.join(map(str, first['loc']))}: {problem}") from error
    return _restore(session, request, limits, skip_damaged=skip_damaged, execute=execute)


def _restore(
    session: Session, request: RestoreRequest, limits: RestoreLimits, *, skip_damaged: bool, execute: bool
) -> int:
    def work(engine: Engine, stop: StopToken) -> tuple[RestorePlan, RestoreReport | None]:
        plan = engine.plan_restore(request, skip_damaged=skip_damaged)
        session.document = answers.planned(plan, skip_damaged=skip_damaged)
        if plan.problems or not execute:
            return plan, None
        with ProgressBars(visible=session.shows_progress) as bars:
            return plan, engine.restore(
                plan, limits=limits, skip_damaged=skip_damaged, stop=stop, on_progress=bars.restore
            )

    plan, report = session.run(work)
    if report is not None:
        return restored(session, report, answers.restored(report))
    document = answers.planned(plan, skip_damaged=skip_damaged)
    bounded = skip_damaged or request.from_ms is not None or request.until_ms is not None
    session.answer(document, *tables.plan(document, bounded=bounded))
    if (refused := refusal(plan)) is None:
        session.say("nothing was changed; add --execute to do it")
        return EXIT_OK
    session.complain(str(refused))
    return refused.exit_code


def restored(session: Session, report: RestoreReport, document: Document) -> int:
    """Show what a restore did; what is missing is said in so many words, and is never exit code 0."""
    session.answer(document, lambda: tables.restoration(document), *tables.restored_groups(document))
    for line in report.missing():
        session.complain(line)
    return EXIT_OK if report.status == "verified" else EXIT_DAMAGED


def _release_retention(session: Session, restore_id: str) -> int:
    changed = session.run(lambda engine, _stop: engine.release_retention(restore_id))
    document = {
        **session.document,
        "status": "released",
        "topics": [{"target": target} for target in changed],
    }
    session.answer(document, tables.released(document))
    return EXIT_OK


def _abandon(session: Session, restore_id: str) -> int:
    done = session.run(lambda engine, _stop: engine.abandon_restore(restore_id))
    document = {
        **session.document,
        "status": done.status,
        "topics": [{"target": target.topic, "target_topic_id": target.topic_id} for target in done.targets],
    }
    session.answer(document, tables.abandoned(document))
    return EXIT_OK


@main.command("offset-map")
@click.option("--restore", "restore_id", required=True, metavar="ID", help="A finished restore.")
@click.option("--topic", required=True, metavar="T", help="The source topic, or the restored one.")
@click.option("--partition", required=True, type=PARTITION, metavar="N", help="The partition.")
@click.option("--to-source", is_flag=True, help="The offsets are of the restored topic: where are they from?")
@click.argument("offsets", nargs=-1, required=True, type=OFFSET, metavar="OFFSET...")
@as_json
@click.pass_obj
def offset_map(
    session: Session,
    restore_id: str,
    topic: str,
    partition: int,
    to_source: bool,
    offsets: tuple[int, ...],
) -> int:
    """Look up where source offsets went in a restore, or where restored ones are from."""
    request: Document = {"restore_id": restore_id, "topic": topic, "partition": partition}
    session.document = {**request, "offsets": []}
    found = session.run(
        lambda engine, _stop: engine.offset_map(restore_id, topic, partition, of_target=to_source)
    )
    document = answers.offsets(request, found, offsets, to_source=to_source)
    session.answer(document, tables.offsets(document))
    return EXIT_OK
