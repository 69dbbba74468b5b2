"""Back up Kafka topics as raw record batches, and restore them exactly.

The vocabulary: a *capture* is one run of backup; it appends a *commit* to the *commit log* of each
*topic incarnation* that changed; a commit names immutable *segments*, each exactly a Kafka ``.log``
file, and accounts in its *ledger* for every offset of its *offset ranges*. A *restore* turns a
*restore plan* into topics, proves it in a *restore report*, and leaves an *offset map*.
"""
# ruff: noqa: E402 - for the imports

import gc

# What is loaded here stays. Looking for garbage in it again and again is a tenth of the time of a start.
_collects_garbage = gc.isenabled()
gc.disable()

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kafka_backup.config import (
        BackupConfig,
        ClusterConfig,
        EngineConfig,
        RepositoryConfig,
        load_config,
        parse_config,
    )
    from kafka_backup.engine import Engine
    from kafka_backup.errors import (
        AuthorizationError,
        BrokerError,
        CancelledError,
        ConfigurationError,
        DamagedError,
        KafkaBackupError,
        RefusedError,
        TopicMissingError,
        UnreachableError,
        WriterConflictError,
    )
    from kafka_backup.groups import Groups
    from kafka_backup.lag import PartitionLag
    from kafka_backup.losses import Loss
    from kafka_backup.offset_mapping import OffsetMap
    from kafka_backup.progress import (
        BackupEvent,
        BackupProgress,
        CaptureFinished,
        GroupFailed,
        GroupSnapshotTaken,
        PartitionResult,
        RestoreProgress,
        StopToken,
        TopicCommitted,
        TopicFailed,
        TopicMissing,
        TopicRecreated,
        TopicUnchanged,
        TransactionOpen,
        VerifyProgress,
    )
    from kafka_backup.recovery_point import RecoveryPoint
    from kafka_backup.repository.documents import Capture, Commit, Window
    from kafka_backup.repository.drills import DrilledCapture, DrillReport
    from kafka_backup.repository.group_documents import GroupSnapshot, Position, SavedGroup
    from kafka_backup.repository.restore_documents import (
        RenameRule,
        RestorePlan,
        RestoreReport,
        RestoreRequest,
    )
    from kafka_backup.restore_context import RestoreLimits
    from kafka_backup.retention import ExpirePlan, ExpireReport, RetentionPolicy
    from kafka_backup.selection import GroupFilter, GroupSelection, TopicFilter, TopicSelection
    from kafka_backup.verify import VerifyReport

if _collects_garbage:
    gc.enable()

__all__ = [
    "AuthorizationError",
    "BackupConfig",
    "BackupEvent",
    "BackupProgress",
    "BrokerError",
    "CancelledError",
    "Capture",
    "CaptureFinished",
    "ClusterConfig",
    "Commit",
    "ConfigurationError",
    "DamagedError",
    "DrillReport",
    "DrilledCapture",
    "Engine",
    "EngineConfig",
    "ExpirePlan",
    "ExpireReport",
    "GroupFailed",
    "GroupFilter",
    "GroupSelection",
    "GroupSnapshot",
    "GroupSnapshotTaken",
    "Groups",
    "KafkaBackupError",
    "Loss",
    "OffsetMap",
    "PartitionLag",
    "PartitionResult",
    "Position",
    "RecoveryPoint",
    "RefusedError",
    "RenameRule",
    "RepositoryConfig",
    "RestoreLimits",
    "RestorePlan",
    "RestoreProgress",
    "RestoreReport",
    "RestoreRequest",
    "RetentionPolicy",
    "SavedGroup",
    "StopToken",
    "TopicCommitted",
    "TopicFailed",
    "TopicFilter",
    "TopicMissing",
    "TopicMissingError",
    "TopicRecreated",
    "TopicSelection",
    "TopicUnchanged",
    "TransactionOpen",
    "UnreachableError",
    "VerifyProgress",
    "VerifyReport",
    "Window",
    "WriterConflictError",
    "load_config",
    "parse_config",
]

_HOMES = {
    "BackupConfig": "kafka_backup.config",
    "ClusterConfig": "kafka_backup.config",
    "EngineConfig": "kafka_backup.config",
    "RepositoryConfig": "kafka_backup.config",
    "load_config": "kafka_backup.config",
    "parse_config": "kafka_backup.config",
    "Engine": "kafka_backup.engine",
    "AuthorizationError": "kafka_backup.errors",
    "BrokerError": "kafka_backup.errors",
    "CancelledError": "kafka_backup.errors",
    "ConfigurationError": "kafka_backup.errors",
    "DamagedError": "kafka_backup.errors",
    "KafkaBackupError": "kafka_backup.errors",
    "RefusedError": "kafka_backup.errors",
    "TopicMissingError": "kafka_backup.errors",
    "UnreachableError": "kafka_backup.errors",
    "WriterConflictError": "kafka_backup.errors",
    "Groups": "kafka_backup.groups",
    "PartitionLag": "kafka_backup.lag",
    "Loss": "kafka_backup.losses",
    "OffsetMap": "kafka_backup.offset_mapping",
    "BackupEvent": "kafka_backup.progress",
    "BackupProgress": "kafka_backup.progress",
    "CaptureFinished": "kafka_backup.progress",
    "GroupFailed": "kafka_backup.progress",
    "GroupSnapshotTaken": "kafka_backup.progress",
    "PartitionResult": "kafka_backup.progress",
    "RestoreProgress": "kafka_backup.progress",
    "StopToken": "kafka_backup.progress",
    "TopicCommitted": "kafka_backup.progress",
    "TopicFailed": "kafka_backup.progress",
    "TopicMissing": "kafka_backup.progress",
    "TopicRecreated": "kafka_backup.progress",
    "TopicUnchanged": "kafka_backup.progress",
    "TransactionOpen": "kafka_backup.progress",
    "RecoveryPoint": "kafka_backup.recovery_point",
    "Capture": "kafka_backup.repository.documents",
    "Commit": "kafka_backup.repository.documents",
    "Window": "kafka_backup.repository.documents",
    "DrilledCapture": "kafka_backup.repository.drills",
    "DrillReport": "kafka_backup.repository.drills",
    "GroupSnapshot": "kafka_backup.repository.group_documents",
    "Position": "kafka_backup.repository.group_documents",
    "SavedGroup": "kafka_backup.repository.group_documents",
    "RenameRule": "kafka_backup.repository.restore_documents",
    "RestorePlan": "kafka_backup.repository.restore_documents",
    "RestoreReport": "kafka_backup.repository.restore_documents",
    "RestoreRequest": "kafka_backup.repository.restore_documents",
    "RestoreLimits": "kafka_backup.restore_context",
    "ExpirePlan": "kafka_backup.retention",
    "ExpireReport": "kafka_backup.retention",
    "RetentionPolicy": "kafka_backup.retention",
    "GroupFilter": "kafka_backup.selection",
    "GroupSelection": "kafka_backup.selection",
    "TopicFilter": "kafka_backup.selection",
    "TopicSelection": "kafka_backup.selection",
    "VerifyProgress": "kafka_backup.progress",
    "VerifyReport": "kafka_backup.verify",
}


def __getattr__(name: str) -> object:
    """Load what is asked for, and nothing else: a program that reads a configuration needs no codec."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return list(__all__)
