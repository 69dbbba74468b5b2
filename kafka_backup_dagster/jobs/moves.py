"""Positions of consumer groups that are moved, as tables and failures."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

import dagster as dg

from kafka_backup_dagster.errors import in_words_of_forms
from kafka_backup_dagster.metadata import MAX_ROWS, Metadata, Row, red_lines, table

if TYPE_CHECKING:
    from kafka_backup.kafka.groups import CommittedOffset
    from kafka_backup.position_mover import MoveResult

_COLUMNS = {
    "group": "string",
    "topic": "string",
    "partition": "integer",
    "before": "string",
    "after": "string",
}


def offset_of(position: "CommittedOffset | None") -> int | None:
    """Return the offset of a position; None is no commit."""
    return None if position is None else position.offset


def moves_table(moves: Iterable[tuple[str, str, int, int | None, int | None]]) -> dg.TableMetadataValue:
    """Return moves (group, topic, partition, offset before, offset after) as a table.

    Moves that change something come first, because a table is cut at `MAX_ROWS`. An offset of None is
    shown as no commit.
    """
    rows: list[Row] = [
        {
            "group": group,
            "topic": topic,
            "partition": partition,
            "before": _said(before),
            "after": _said(after),
        }
        for group, topic, partition, before, after in sorted(
            moves, key=lambda move: (move[3] == move[4], move[:3])
        )
    ]
    return table(rows, _COLUMNS)


def _said(offset: int | None) -> str:
    return "no commit" if offset is None else str(offset)


def refuse(what: str, problems: Sequence[str], shown: Metadata) -> NoReturn:
    """Fail a run that must not begin.

    Raises:
        Failure: with every problem, and without a retry: none would help.
    """
    problems = [in_words_of_forms(problem) for problem in problems]
    raise dg.Failure(
        description=f"{what}, nothing was changed:\n" + "\n".join(problems),
        metadata={"kafka_backup/problems": red_lines("Refused: nothing was changed", problems[:MAX_ROWS])}
        | shown,
        allow_retries=False,
    )


def results_metadata(results: Sequence["MoveResult"], complaint: str, shown: Metadata) -> Metadata:
    """Return what became of each position.

    Args:
        results: of the engine.
        complaint: how the failure begins.
        shown: more for the metadata of the failure.

    Raises:
        Failure: a position is not where it should be; all of them are named. It allows retries if one
            of the causes may go away.
    """
    moved: Metadata = {
        "kafka_backup/positions": moves_table(
            (
                result.move.group,
                result.move.topic,
                result.move.partition,
                offset_of(result.move.start),
                offset_of(result.current),
            )
            for result in results
        ),
        "kafka_backup/group_count": dg.MetadataValue.int(len({result.move.group for result in results})),
        "kafka_backup/position_count": dg.MetadataValue.int(len(results)),
    }
    errors = [result.error for result in results if result.error is not None]
    if errors:
        # A position's message names it; one error of a whole group is told once.
        lines = list(dict.fromkeys(in_words_of_forms(str(error)) for error in errors))
        raise dg.Failure(
            description=f"{complaint}:\n" + "\n".join(lines),
            metadata={"kafka_backup/problems": red_lines(complaint.capitalize(), lines[:MAX_ROWS])}
            | shown
            | moved,
            allow_retries=any(error.retriable for error in errors),
        )
    return moved
