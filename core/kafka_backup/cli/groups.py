"""The commands about consumer groups: their positions saved, shown and moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from kafka_backup.cli.answers import Document, worst_of
from kafka_backup.cli.commands import main
from kafka_backup.cli.options import as_json, groups_option
from kafka_backup.cli.session import EXIT_OK, Session
from kafka_backup.cli.tables import group_snapshots, positions
from kafka_backup.errors import AuthorizationError, ConfigurationError, KafkaBackupError
from kafka_backup.repository.group_documents import GroupSnapshot, SavedGroup
from kafka_backup.selection import GroupSelection
from kafka_backup.times import format_time


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
    for error in errors:
        session.complain(str(error))
    return worst_of(error.exit_code for error in errors)


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
@as_json
@click.pass_obj
def show(session: Session, groups: tuple[str, ...], snapshot_id: str | None) -> int:
    """Show the positions that a group snapshot holds."""
    session.document = {"snapshot": snapshot_id, "groups": []}
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


def _snapshot(found: GroupSnapshot) -> Document:
    return {
        "snapshot": found.snapshot_id,
        "status": "partial" if found.failed else "incomplete" if found.incomplete else "complete",
        "capture": found.capture_id,
        "taken_at": format_time(found.taken_at),
        "ended_at": format_time(found.ended_at),
        "incomplete": list(found.incomplete),
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
