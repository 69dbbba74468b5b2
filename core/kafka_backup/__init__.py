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
    "RestorePlan",
    "RestoreProgress",
    "RestoreReport",
    "RestoreRequest",
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
    "VerifyReport",
    "Window",
    "WriterConflictError",
    "load_config",
    "parse_config",
]
