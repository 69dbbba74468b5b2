"""The commands about consumer groups: their positions saved, shown and moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from kafka_backup.cli.answers import Document, worst_of
from kafka_backup.cli.commands import main
from kafka_backup.cli.options import TIME, Parsed, as_json, groups_option, topics_option
from kafka_backup.cli.session import EXIT_OK, Session
from kafka_backup.cli.tables import group_snapshots, history_table, moves, positions
from kafka_backup.engine import Engine
from kafka_backup.errors import (
    AuthorizationError,
    ConfigurationError,
    DamagedError,
    KafkaBackupError,
)
from kafka_backup.groups import PlannedReset
from kafka_backup.offset_automation import ResetReport
from kafka_backup.offset_rollback import RollbackPlan
from kafka_backup.position_mover import MoveResult
from kafka_backup.progress import StopToken
from kafka_backup.repository.group_documents import (
    GroupSnapshot,
    PlannedPosition,
    ResetPlan,
    ResetRequest,
    SavedGroup,
)
from kafka_backup.reset_plan import Destination, error_of, parse_destination
from kafka_backup.selection import GroupSelection
from kafka_backup.times import format_time

DESTINATION = Parsed("where", parse_destination)


@main.group()
def groups() -> None:
    """Save, show and move the positions of consumer groups."""


@groups.command()
@groups_option
@as_json
@click.pass_obj
def snapshot(session: Session, groups: tuple[str, ...]) -> int:
    """Save the positions of groups now.

    They are those of the configuration, unless some are named. Each capture does this by itself.
    """
    session.document = {"snapshot": None, "groups": []}
    taken = session.run(lambda engine, stop: engine.groups.snapshot(groups or None, stop=stop))
    document = _snapshot(taken.snapshot)
    session.answer(document, positions(document))
    errors: list[KafkaBackupError] = [error for _, error in sorted(taken.errors.items())]
    errors += [AuthorizationError(reason) for reason in taken.snapshot.incomplete]
    return _complain(session, errors)


@groups.command("list")
@as_json
@click.pass_obj
def list_snapshots(session: Session) -> int:
    """List the group snapshots, newest last, and the groups of the newest."""
    session.document = {"snapshots": [], "snapshot": None, "groups": []}

    def work(engine: Any, _stop: object) -> tuple[Sequence[str], GroupSnapshot | None]:
        ids = engine.groups.snapshot_ids()
        return ids, engine.groups.saved(ids[-1]) if ids else None

    ids, newest = session.run(work)
    document: Document = {
        "status": "ok",
        "snapshots": [{"snapshot": snapshot_id} for snapshot_id in ids],
        "snapshot": newest and newest.snapshot_id,
        "groups": [
            {**_group(group), "positions": len(group.positions)}
            for group in (newest.groups if newest else ())
        ],
    }
    session.answer(document, *group_snapshots(document))
    return EXIT_OK


@groups.command()
@groups_option
@click.option("--snapshot", "snapshot_id", metavar="ID", help="This snapshot instead of the newest.")
@click.option(
    "--at",
    "at_ms",
    type=TIME,
    metavar="T",
    help="Where the groups were at this time, from the captured history (__consumer_offsets).",
)
@as_json
@click.pass_obj
def show(session: Session, groups: tuple[str, ...], snapshot_id: str | None, at_ms: int | None) -> int:
    """Show the positions that a group snapshot holds, or those of any moment in the captured history."""
    session.document = {"snapshot": snapshot_id, "groups": []}
    if at_ms is not None:
        if snapshot_id is not None:
            raise click.UsageError("name either --snapshot or --at")
        return _show_history(session, groups, at_ms)
    found = session.run(lambda engine, _stop: engine.groups.saved(snapshot_id))
    chosen = found
    if groups:
        selection = GroupSelection.parse(groups)
        if missing := selection.missing(group.group for group in found.groups):
            raise ConfigurationError(f"group {missing[0]!r} is not in group snapshot {found.snapshot_id}")
        chosen = found.model_copy(
            update={"groups": tuple(group for group in found.groups if selection.includes(group.group))}
        )
    document = _snapshot(chosen)
    session.answer(document, positions(document))
    return EXIT_OK


@groups.command()
@groups_option
@topics_option
@click.option("--snapshot", "snapshot_id", metavar="ID", help="To the positions in this group snapshot.")
@click.option(
    "--at",
    "at_ms",
    type=TIME,
    metavar="T",
    help="To where the groups were at this time, from the captured history (__consumer_offsets).",
)
@click.option(
    "--restore",
    "restore_id",
    metavar="ID",
    help="Translate them to where this restore put the records; the groups are on its target.",
)
@click.option(
    "--to",
    "to",
    type=DESTINATION,
    metavar="WHERE",
    help="To earliest, latest, an OFFSET, or the first record at or after a TIME (RFC 3339).",
)
@click.option("--atomic", is_flag=True, help="All groups in one transaction, or none.")
@click.option("--clamp", is_flag=True, help="Where an offset is out of bounds, take the nearest that exists.")
@click.option("--execute", is_flag=True, help="Do it. Without this the plan is shown and nothing is changed.")
@as_json
@click.pass_obj
def reset(
    session: Session, /, groups: tuple[str, ...], to: Destination | None, execute: bool, **options: Any
) -> int:
    """Move consumer groups to saved positions, a time, an offset, the beginning or the end.

    What is there now is stored first: 'groups rollback ID' puts it back.
    """
    session.document = {"status": None, "rollback": None, "groups": [], "problems": []}
    if not groups:
        raise click.UsageError("Missing option '--group' (write --group '*' for all).")
    if sum(given is not None for given in (options["snapshot_id"], options["at_ms"], to)) != 1:
        raise click.UsageError("name one of --snapshot, --at and --to")
    if to is not None and options["restore_id"] is not None:
        raise click.UsageError(
            "--restore translates saved positions: it goes with --snapshot or --at, not with --to"
        )
    request = ResetRequest(groups=groups, **options, **(to or {}))

    def work(engine: Engine, stop: StopToken) -> tuple[PlannedReset, ResetReport | None]:
        planned = engine.groups.plan_reset(request, stop=stop)
        session.document = _planned(planned)
        if planned.plan.problems or not execute:
            return planned, None
        return planned, engine.groups.reset(planned.plan, stop=stop)

    planned, report = session.run(work)
    plan = planned.plan
    document = _planned(planned) if report is None else _done(plan, report)
    session.answer(document, *moves(document))
    if planned.is_continued:
        session.say(f"this is reset {plan.reset_id}, planned {format_time(plan.planned_at)} and interrupted")
    if report is not None:
        return _complain(session, [result.error for result in report.results])
    error = error_of(plan)
    if error is None:
        session.say("nothing was changed; add --execute to do it")
        return EXIT_OK
    return _complain(session, [error])


@groups.command()
@click.argument("reset_id", metavar="ID")
@click.option("--force", is_flag=True, help="Also put back what a consumer has moved on since.")
@click.option(
    "--execute", is_flag=True, help="Do it. Without this it is shown what would be done; nothing is changed."
)
@as_json
@click.pass_obj
def rollback(session: Session, reset_id: str, force: bool, execute: bool) -> int:
    """Put the positions back that a reset has changed, and verify it.

    Commits that were not there before are removed, and so are groups.
    """
    session.document = {"status": None, "rollback": reset_id, "groups": []}

    def work(engine: Engine, stop: StopToken) -> tuple[RollbackPlan, Sequence[MoveResult] | None]:
        plan = engine.groups.plan_rollback(reset_id, force=force)
        session.document = _planned_rollback(plan)
        if plan.errors or not execute:
            return plan, None
        return plan, engine.groups.rollback(plan, stop=stop)

    plan, results = session.run(work)
    document = _planned_rollback(plan)
    if results is not None:
        errors = [result.error for result in results]
        document = {
            **document,
            "status": "failed" if any(errors) else "rolled_back",
            "groups": [_moved(result) for result in results],
        }
        session.answer(document, *moves(document))
        return _complain(session, errors)
    session.answer(document, *moves(document))
    if not plan.errors:
        session.say("nothing was changed; add --execute to do it")
    return _complain(session, list(plan.errors.values()))


def _complain(session: Session, errors: Sequence[KafkaBackupError | None]) -> int:
    found = [error for error in errors if error is not None]
    for message in dict.fromkeys(map(str, found)):
        session.complain(message)
    return worst_of(error.exit_code for error in found)


def _planned(planned: PlannedReset) -> Document:
    plan = planned.plan
    return {
        "status": "refused" if plan.problems else "planned",
        "reset": plan.reset_id,
        "continued": planned.is_continued,
        "rollback": plan.reset_id if planned.is_continued else None,
        "atomic": plan.request.atomic,
        "groups": [
            {
                "group": group.group,
                "topic": position.topic,
                "partition": position.partition,
                "before": position.before,
                "after": position.offset,
                "error": None,
                **_circumstances(position),
            }
            for group in plan.groups
            for position in group.positions
        ],
        "problems": [problem.model_dump() for problem in plan.problems],
    }


def _circumstances(position: PlannedPosition) -> Document:
    return {
        "source_topic": position.source_topic,
        "source_offset": position.source_offset,
        "clamped_from": position.clamped_from,
        "remaining": position.remaining,
    }


def _done(plan: ResetPlan, report: ResetReport) -> Document:
    about = {
        (group.group, position.topic, position.partition): position
        for group in plan.groups
        for position in group.positions
    }
    return {
        "status": report.status,
        "reset": report.reset_id,
        "rollback": report.reset_id,
        "atomic": plan.request.atomic,
        "groups": [
            {
                **_moved(result),
                **_circumstances(about[result.move.group, result.move.topic, result.move.partition]),
            }
            for result in report.results
        ],
        "problems": [],
    }


def _moved(result: MoveResult) -> Document:
    move = result.move
    return {
        "group": move.group,
        "topic": move.topic,
        "partition": move.partition,
        "before": None if move.start is None else move.start.offset,
        "after": None if result.current is None else result.current.offset,
        "error": None if result.error is None else str(result.error),
    }


def _planned_rollback(plan: RollbackPlan) -> Document:
    return {
        "status": "refused" if plan.errors else "planned",
        "rollback": plan.reset_id,
        "groups": [
            {
                "group": move.group,
                "topic": move.topic,
                "partition": move.partition,
                "before": None if move.start is None else move.start.offset,
                "after": None if move.goal is None else move.goal.offset,
                "error": None if move.key not in plan.errors else str(plan.errors[move.key]),
            }
            for move in plan.moves
        ],
        "removed_groups": list(plan.deletes),
        "problems": [],
    }


def _show_history(session: Session, groups: tuple[str, ...], at_ms: int) -> int:
    history = session.run(lambda engine, stop: engine.groups.history(at_ms, groups or None, stop=stop))
    if missing := GroupSelection.parse(groups).missing(history.groups):
        raise ConfigurationError(f"group {missing[0]!r} had no position at {format_time(at_ms)}")
    document: Document = {
        "snapshot": None,
        "at": format_time(history.at_ms),
        "capture": history.capture_id,
        "status": "exact",
        "doubts": list(history.doubts),
        "groups": [
            {
                "group": group,
                "offsets": [
                    {
                        "topic": position.state.topic,
                        "topic_id": position.state.topic_id,
                        "partition": position.state.partition,
                        "offset": position.state.committed_offset,
                        "leader_epoch": position.state.leader_epoch,
                        "metadata": position.state.metadata,
                        "committed_at": format_time(position.state.timestamp),
                        "doubt": position.doubt,
                    }
                    for position in found
                ],
            }
            for group, found in history.groups.items()
        ],
    }
    doubts = [p.doubt for found in history.groups.values() for p in found if p.doubt is not None]
    doubts += history.doubts
    if doubts:
        document["status"] = "doubtful"
    session.answer(document, history_table(document))
    return _complain(session, [DamagedError(doubt) for doubt in doubts])


def _snapshot(found: GroupSnapshot) -> Document:
    return {
        "snapshot": found.snapshot_id,
        "status": "partial" if found.failed else "incomplete" if found.incomplete else "complete",
        "capture": found.capture_id,
        "taken_at": format_time(found.taken_at),
        "ended_at": format_time(found.ended_at),
        "incomplete": list(found.incomplete),
        "doubts": list(found.doubts),
        "groups": [
            {**_group(group), "offsets": [position.model_dump() for position in group.positions]}
            for group in found.groups
        ],
    }


def _group(group: SavedGroup) -> Document:
    return {
        "group": group.group,
        "type": group.type,
        "state": group.state,
        "protocol_type": group.protocol_type,
        "status": group.status,
        "error": group.detail if group.status == "failed" else None,
        "note": group.detail if group.status == "unsupported" else None,
    }
