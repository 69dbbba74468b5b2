"""The commands about what captures could not save."""

from __future__ import annotations

import click

from kafka_backup.cli import answers, tables
from kafka_backup.cli.commands import main
from kafka_backup.cli.options import as_json
from kafka_backup.cli.session import EXIT_OK, Session


@main.group()
def losses() -> None:
    """List what captures could not save, and accept it."""


@losses.command("list")
@as_json
@click.pass_obj
def list_losses(session: Session) -> int:
    """List all offsets that are lost, and whether somebody accepted that."""
    session.document = {"losses": []}
    document = session.run(lambda engine, _stop: answers.losses(engine.losses()))
    session.answer(document, tables.losses(document))
    return EXIT_OK


@losses.command()
@click.argument("capture")
@click.option("--reason", required=True, metavar="R", help="Why that is all right; kept for ever.")
@as_json
@click.pass_obj
def accept(session: Session, capture: str, reason: str) -> int:
    """Accept what a capture lost, so that verify does not fail for it any more.

    The commits go on saying what was lost, and what is lost later must be accepted anew.
    """
    session.document = {"losses": []}
    document = session.run(lambda engine, _stop: answers.losses(engine.accept_losses(capture, reason=reason)))
    session.answer(document, tables.losses(document))
    return EXIT_OK
