"""Errors of the engine, as Dagster's."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

_FIELDS = {
    "--from": "from_time",
    "--id": "restore_id",
    "--partition": "partitions",
    "--restore": "restore_id",
    "--topic": "topics",
    "--until": "until_time",
} | {
    f"--{name.replace('_', '-')}": name
    for name in (
        "atomic",
        "capture",
        "clamp",
        "force",
        "groups",
        "incarnation",
        "prefix",
        "rename",
        "rename_groups",
        "replace",
        "replication_factor",
        "skip_damaged",
    )
}
# A whole command stays as it is: it is typed into a terminal.
_OPTIONS = re.compile(r"'[^']*'|(?<![\w-])--[a-z][a-z-]*")


def in_words_of_forms(sentence: str) -> str:
    """Return a sentence of the engine, which names options of the command line, with the fields of the forms."""
    return _OPTIONS.sub(lambda found: _FIELDS.get(found[0], found[0]), sentence)


def at_place(place: str, sentence: str) -> str:
    """Return a sentence with the place that it is about, which it may name itself."""
    return sentence if not place or sentence.startswith(place) else f"{place}: {sentence}"


@contextmanager
def as_failure() -> Iterator[None]:
    """Turn an error of the engine into a Failure that says whether a retry can help.

    Raises:
        Failure: instead of any KafkaBackupError; everything else goes through.
    """
    from kafka_backup.errors import KafkaBackupError

    try:
        yield
    except KafkaBackupError as error:
        raise dg.Failure(
            description=in_words_of_forms(str(error)),
            metadata={"kafka_backup/error": type(error).__name__},
            allow_retries=error.retriable,
        ) from error
