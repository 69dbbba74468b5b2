"""Every error that leaves the engine, by what the caller can do about it.

The class alone decides the exit code of the command line and whether Dagster retries; the message
names the thing, the place (topic, partition, offset, object) and the next step.
"""

from __future__ import annotations


class KafkaBackupError(Exception):
    """Root of all errors of this package; raised itself only for a bug in it."""

    exit_code = 1
    retriable = False


class ConfigurationError(KafkaBackupError):
    """The request or the configuration is wrong; nothing was done."""

    exit_code = 2


class AuthorizationError(ConfigurationError):
    """The broker or the store denies a right that the work needs."""


class UnreachableError(KafkaBackupError):
    """A broker or the store could not be reached in time; the same call may succeed later."""

    exit_code = 3
    retriable = True


class DamagedError(KafkaBackupError):
    """Stored or restored data is not what it must be, or data is lost."""

    exit_code = 4


class TopicMissingError(DamagedError):
    """A topic that was captured before is not in the cluster any more."""


class RefusedError(KafkaBackupError):
    """The request is valid, but carrying it out could destroy or mix up data."""

    exit_code = 5


class WriterConflictError(RefusedError):
    """Another writer took the place in a commit log, or a newer attempt owns the restore."""


class CancelledError(KafkaBackupError):
    """The caller asked to stop; everything committed so far stays."""

    exit_code = 130


class BrokerError(KafkaBackupError):
    """A broker answered with a protocol error code.

    Attributes:
        code: Kafka's numeric error code (see org.apache.kafka.common.protocol.Errors).
        name: its name, for example ``OFFSET_OUT_OF_RANGE``.
    """

    exit_code = 3

    def __init__(self, message: str, *, code: int, name: str, retriable: bool) -> None:
        super().__init__(message)
        self.code = code
        self.name = name
        self.retriable = retriable
