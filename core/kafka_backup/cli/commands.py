"""The commands and their options. What they do is the engine's; how it looks is `tables`' business."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from kafka_backup.cli import answers, logs, tables
from kafka_backup.cli.answers import CaptureAnswer, Document
from kafka_backup.cli.options import Parsed, as_json, topics_option
from kafka_backup.cli.session import EXIT_DAMAGED, EXIT_OK, Session
from kafka_backup.cli.tables import ProgressBars
from kafka_backup.engine import Engine
from kafka_backup.errors import DamagedError
from kafka_backup.progress import BackupProgress, StopToken
from kafka_backup.repository.documents import Window
from kafka_backup.times import parse_window

if TYPE_CHECKING:
    from kafka_backup.verify import VerifyReport

WINDOW = Parsed("start/end", parse_window)
_SHOWN = 10
"""Notes of one kind that are told one by one."""
_ELSEWHERE: Mapping[str, str] = {
    "drill": "drill",
    "expire": "care",
    "groups": "groups",
    "losses": "losses",
    "offset-map": "restores",
    "records": "care",
    "restore": "restores",
}
"""Commands that another module registers once it is loaded: a backup does not wait for what restores need."""


class Program(click.Group):
    """The group of commands; it turns every end of one into an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name all commands, for the help."""
        return sorted({*self.commands, *_ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a command, and load the module that has it."""
        if cmd_name in _ELSEWHERE:
            import_module(f"kafka_backup.cli.{_ELSEWHERE[cmd_name]}")
        return super().get_command(ctx, cmd_name)

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run a command line and exit with its code."""
        if args is None:
            gc.freeze()  # what is loaded stays; at the end, too, nobody looks for garbage in it
        arguments = list(sys.argv[1:] if args is None else args)
        session = Session(as_json="--json" in arguments)

        def run() -> int:
            click_main = super(Program, self).main
            extra["standalone_mode"] = False
            return int(click_main(arguments, prog_name or "kafka-backup", obj=session, **extra) or EXIT_OK)

        sys.exit(session.close(run))


@click.group("kafka-backup", cls=Program)
@click.option(
    "--config",
    envvar="KAFKA_BACKUP_CONFIG",
    default="kafka-backup.yaml",
    show_default=True,
    show_envvar=True,
    metavar="FILE",
    help="The configuration.",
)
@click.option("--debug", is_flag=True, envvar="KAFKA_BACKUP_DEBUG", help="Show stack traces of errors.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
    envvar="KAFKA_BACKUP_LOG_LEVEL",
    help="What is logged on stderr; info: everything that a capture does.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="KAFKA_BACKUP_LOG_FORMAT",
    help="json: one JSON object per line on stderr.",
)
@click.version_option(package_name="kafka-backup-dagster", prog_name="kafka-backup")
@click.pass_obj
def main(
    session: Session, config: str, debug: bool, log_level: str, log_format: Literal["text", "json"]
) -> None:
    """Back up Kafka topics, byte for byte, and restore them with proof.

    Exit codes: 0 done and proved; 1 a bug; 2 the request or the configuration is wrong; 3 a broker
    or the store could not be reached (try again); 4 data is damaged or lost; 5 refused for safety;
    130 interrupted. Times are RFC 3339 with an offset, or milliseconds.
    """
    session.config_path = config
    session.debug = debug
    session.log_format = log_format
    logs.set_up(level=log_level, style=log_format)


@main.command()
@topics_option
@click.option(
    "--window", type=WINDOW, metavar="START/END", help="The window of time that this capture stands for."
)
@click.option(
    "--accept-missing",
    is_flag=True,
    help="Topics that were captured before and are gone are meant to be gone; remember that.",
)
@as_json
@click.pass_obj
def backup(session: Session, topics: tuple[str, ...], window: Window | None, accept_missing: bool) -> int:
    """Capture what is new in the topics.

    They are those of the configuration, unless some are named.
    """
    answer = CaptureAnswer()
    log = logs.EventLog()
    session.document = answer.document

    def work(engine: Engine, stop: StopToken) -> None:
        with ProgressBars(visible=session.shows_progress) as bars:
            for event in engine.backup(
                topics or None, window=window, accept_missing=accept_missing, stop=stop
            ):
                log.add(event)
                if isinstance(event, BackupProgress):
                    bars.backup(event)
                else:
                    answer.add(event)
                    session.document = answer.document

    session.run(work)
    document = answer.document
    session.answer(document, lambda: tables.capture(document))
    for failure in document["failures"]:
        session.complain(answers.failure_line(failure))
    for topic in document["topics"]:
        if topic["previous_topic_id"] is not None:
            session.say(
                f"note: {topic['topic']} was deleted and made again since the last capture; its earlier "
                f"incarnation {topic['previous_topic_id']} stays in the repository"
            )
        for part in topic["partitions"]:
            for span in part["lost_spans"]:
                place = f"{topic['topic']} [{part['partition']}]"
                session.complain(
                    f"{place}: offsets [{span['start']}, {span['end']}) are lost ({span['reason']})"
                )
            if (cut := part["truncated"]) is not None:
                session.complain(
                    f"{topic['topic']} [{part['partition']}]: the log was cut back to offset {cut['start']} by an "
                    f"unclean leader election. What earlier captures hold of [{cut['start']}, {cut['end']}) is not "
                    "part of the topic any more; restore --capture with an older one brings it back"
                )
    _notes(session, [_of_transaction(each) for each in document["open_transactions"]], "open transactions")
    _notes(session, list(_left_out(document)), "partitions that do not begin at their log start")
    if document["status"] == "held":
        session.say(f"nothing to do: capture {document['capture']} holds this window")
    return answer.exit_code


def _notes(session: Session, notes: Sequence[str], noun: str) -> None:
    for note in notes[:_SHOWN]:
        session.say(f"note: {note}")
    if (more := len(notes) - _SHOWN) > 0:
        session.say(f"note: {more} more {noun} (--json tells all)")


def _of_transaction(transaction: Document) -> str:
    return (
        f"{transaction['topic']} [{transaction['partition']}]: producer {transaction['producer_id']} (epoch "
        f"{transaction['producer_epoch']}) has a transaction open since offset {transaction['first_offset']}, "
        f"for {transaction['age_seconds']:,.0f} s; {transaction['held_back']:,} offsets wait for it. If it hangs, "
        "end it with kafka-transactions.sh abort"
    )


def _left_out(document: Document) -> Iterator[str]:
    for topic in document["topics"]:
        for part in topic["partitions"]:
            if (span := part["not_captured"]) is not None:
                place = f"{topic['topic']} [{part['partition']}]"
                yield f"{place}: offsets [{span['start']}, {span['end']}) are left out, as backup.start says"


@main.command("list")
@as_json
@click.pass_obj
def list_captures(session: Session) -> int:
    """List the captures and topics, newest last."""
    session.document = {"captures": [], "topics": []}

    def work(engine: Engine, _stop: StopToken) -> Document:
        repository = engine.repository()
        return answers.captures(repository.captures(), repository.topics(), repository.expiries())

    document = session.run(work)
    session.answer(document, *tables.captures(document))
    return EXIT_OK


@main.command()
@click.argument("topic")
@as_json
@click.pass_obj
def show(session: Session, topic: str) -> int:
    """Show the commits of a topic.

    That is which offsets each one covers, and what became of every single one of them.
    """
    session.document = {"topic": topic, "commits": []}
    document = session.run(lambda engine, _stop: answers.commits(topic, engine.commit_logs(topic)))
    session.answer(document, tables.commits(document))
    return EXIT_OK


@main.command()
@topics_option
@click.option(
    "--level",
    type=click.Choice(["structure", "data"]),
    help="structure (the default): commits, ledgers, objects and their sizes; data: every byte as well.",
)
@click.option("--restore", "restore_id", metavar="ID", help="Compare what this restore wrote instead.")
@as_json
@click.pass_obj
def verify(
    session: Session,
    topics: tuple[str, ...],
    level: Literal["structure", "data"] | None,
    restore_id: str | None,
) -> int:
    """Prove a repository or a restore."""
    session.document = {"problems": []}
    if restore_id is not None:
        if topics or level:
            raise click.UsageError("--restore goes with neither --topic nor --level")
        return _verify_restore(session, restore_id)

    def work(engine: Engine, stop: StopToken) -> VerifyReport:
        with ProgressBars(visible=session.shows_progress) as bars:
            return engine.verify(
                topics or None, level=level or "structure", stop=stop, on_progress=bars.verify
            )

    report = session.run(work)
    document = answers.verified(report)
    session.answer(document, *tables.verification(document))
    if report.status == "ok":
        return EXIT_OK
    session.complain(f"the repository is {report.status}: {len(report.problems)} problems")
    return EXIT_DAMAGED


def _verify_restore(session: Session, restore_id: str) -> int:
    try:
        report = session.run(lambda engine, stop: engine.verify_restore(restore_id, stop=stop))
    except DamagedError as error:
        problem = {"kind": "damaged", "object": restore_id, "detail": str(error)}
        document: Document = {"restore_id": restore_id, "status": "damaged", "problems": [problem]}
        session.answer(document, *tables.verification(document))
        session.complain(str(error))
        return EXIT_DAMAGED
    is_whole = report.status == "verified"
    document = {**answers.restored(report), "status": "ok" if is_whole else report.status}
    session.answer(document, tables.restoration(document))
    for line in report.missing():
        session.complain(line)
    return EXIT_OK if is_whole else EXIT_DAMAGED
