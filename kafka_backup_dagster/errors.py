"""Errors of the engine, as Dagster's."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg


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
            description=str(error),
            metadata={"kafka_backup/error": type(error).__name__},
            allow_retries=error.retriable,
        ) from error
