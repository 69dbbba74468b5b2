"""Where everything is: the key of every object, computed and never taken from a document.

Numbers of 20 digits sort as they count. Each function validates the names that it puts into a key,
so no name, wherever it came from, can point out of its folder; a bad one is a ValueError.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from pydantic import TypeAdapter

from kafka_backup.repository.documents import Identifier, SegmentName, TopicId, TopicName

REPOSITORY = "repository.json"
TOPICS = "topics/"
CAPTURES = "captures/"
RESTORES = "restores/"
RESTORE_REQUESTS = "restore-requests/"
DRILLS = "drills/"
GROUPS = "groups/"
RESETS = "resets/"
ACCEPTED_LOSSES = "accepted/losses/"
ACCEPTED_ABSENCES = "accepted/absences/"
EXPIRIES = "expiries/"

_DRILL_RESTORE = re.compile(r"drill-[0-9]{8}T[0-9]{9}Z-[0-9a-f]{8}-[1-9][0-9]*")
_COMMIT = re.compile(r"([0-9]{20})\.json")
_CHECKPOINT = re.compile(r"([0-9]{20})\.json")
_ABSENCE = re.compile(r"([a-zA-Z0-9._-]+)/([a-zA-Z0-9_-]{22})/([0-9]{20})\.json")
_PACK = re.compile(r"([0-9]{20})-([1-9][0-9]{0,8})\.jsonl\.zst")
_STEP = re.compile(r"([0-9]{20})-([a-z_]+)\.json")
_SEGMENT = re.compile(r"(0|[1-9][0-9]{0,9})/([0-9]{20})-([a-zA-Z0-9._-]+)-(0|[1-9][0-9]*)\.log(\.zst)?")
_identifier = TypeAdapter[str](Identifier).validate_python
_segment_name = TypeAdapter[str](SegmentName).validate_python

_topic_name = TypeAdapter[str](TopicName).validate_python
_topic_id = TypeAdapter[str](TopicId).validate_python


def is_topic_name(name: str) -> bool:
    """Whether Kafka allows a topic of this name."""
    return _accepts(_topic_name, name)


def is_topic_id(text: str) -> bool:
    """Whether this is a topic id as Kafka writes it: 16 bytes in URL-safe base64."""
    return _accepts(_topic_id, text)


def topic_folder(topic: str) -> str:
    """Folder of all incarnations of a topic."""
    return f"{TOPICS}{_topic_name(topic)}/"


@lru_cache(maxsize=1024)
def incarnation_folder(topic: str, topic_id: str) -> str:
    """Folder of one incarnation: its commits, and a folder of segments for each partition."""
    return f"{topic_folder(topic)}{_topic_id(topic_id)}/"


def segment_key(
    *,
    topic: str,
    topic_id: str,
    partition: int,
    first_offset: int,
    capture_id: str,
    index: int,
    compression: Literal["none", "zstd"],
) -> str:
    """Key of a segment; `index` is the counter ``k``, `first_offset` its first batch's base offset."""
    suffix = ".log.zst" if compression == "zstd" else ".log"
    return (
        f"{incarnation_folder(topic, topic_id)}{_natural(partition)}/"
        f"{_digits(first_offset)}-{_identifier(capture_id)}-{_natural(index)}{suffix}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentPlace:
    """What a segment's key says.

    Attributes:
        name: the key below the incarnation's folder.
        first_offset: base offset of its first batch.
    """

    name: str
    partition: int
    first_offset: int
    capture_id: str


def parse_segment_key(key: str, *, topic: str, topic_id: str) -> SegmentPlace | None:
    """Return what a listed segment's key says, None if the key is no segment's of this incarnation."""
    folder = incarnation_folder(topic, topic_id)
    name = key[len(folder) :]
    match = _SEGMENT.fullmatch(name) if key.startswith(folder) else None
    if match is None or not _accepts(_segment_name, name):
        return None
    return SegmentPlace(name=name, partition=int(match[1]), first_offset=int(match[2]), capture_id=match[3])


def named_segment_key(topic: str, topic_id: str, name: str) -> str:
    """Key of the segment with this name below its incarnation's folder."""
    return f"{incarnation_folder(topic, topic_id)}{_segment_name(name)}"


def commits_folder(topic: str, topic_id: str) -> str:
    """Folder of an incarnation's commits."""
    return f"{incarnation_folder(topic, topic_id)}commits/"


def commit_key(topic: str, topic_id: str, number: int) -> str:
    """Key of commit `number`."""
    return f"{commits_folder(topic, topic_id)}{_digits(number)}.json"


def parse_commit_key(key: str, *, topic: str, topic_id: str) -> int | None:
    """Return the number in a listed commit's key, None if the key is no commit's."""
    folder = commits_folder(topic, topic_id)
    match = _COMMIT.fullmatch(key[len(folder) :]) if key.startswith(folder) else None
    return int(match[1]) if match else None


def checkpoints_folder(topic: str, topic_id: str) -> str:
    """Folder of what can be made anew from the commits at any time: checkpoints and packs."""
    return f"{incarnation_folder(topic, topic_id)}checkpoints/"


def checkpoint_key(topic: str, topic_id: str, number: int) -> str:
    """Key of the checkpoint after commit `number`."""
    return f"{checkpoints_folder(topic, topic_id)}{_digits(number)}.json"


def parse_checkpoint_key(key: str, *, topic: str, topic_id: str) -> int | None:
    """Return the commit's number in a listed checkpoint's key, None if the key is no checkpoint's."""
    folder = checkpoints_folder(topic, topic_id)
    match = _CHECKPOINT.fullmatch(key[len(folder) :]) if key.startswith(folder) else None
    return int(match[1]) if match else None


def pack_key(topic: str, topic_id: str, *, last: int, count: int) -> str:
    """Key of the pack of the `count` commits up to number `last`."""
    return f"{checkpoints_folder(topic, topic_id)}{_digits(last)}-{_natural(count)}.jsonl.zst"


def parse_pack_key(key: str, *, topic: str, topic_id: str) -> tuple[int, int] | None:
    """Return last number and count in a listed pack's key, None if the key is no pack's."""
    folder = checkpoints_folder(topic, topic_id)
    match = _PACK.fullmatch(key[len(folder) :]) if key.startswith(folder) else None
    return (int(match[1]), int(match[2])) if match else None


def capture_key(capture_id: str) -> str:
    """Key of a capture. Capture ids begin with their time, so the last key is the newest capture."""
    return f"{CAPTURES}{_identifier(capture_id)}.json"


def is_capture_id(text: str) -> bool:
    """Whether a capture can have this id."""
    return _accepts(_identifier, text)


def parse_capture_key(key: str) -> str | None:
    """Return the capture id in a listed key, None if the key is no capture's."""
    name = key.removeprefix(CAPTURES).removesuffix(".json")
    return name if _accepts(_identifier, name) and key == f"{CAPTURES}{name}.json" else None


def group_snapshot_key(snapshot_id: str) -> str:
    """Key of a group snapshot. Their ids begin with their time, so the last key is the newest."""
    return f"{GROUPS}{_identifier(snapshot_id)}.json.zst"


def parse_group_snapshot_key(key: str) -> str | None:
    """Return the snapshot id in a listed key, None if the key is no group snapshot's."""
    name = key.removeprefix(GROUPS).removesuffix(".json.zst")
    return name if _accepts(_identifier, name) and key == f"{GROUPS}{name}.json.zst" else None


def expiry_key(expiry_id: str) -> str:
    """Key of what a run of expiry decided."""
    return f"{EXPIRIES}{_identifier(expiry_id)}.json"


def parse_expiry_key(key: str) -> str | None:
    """Return the id in a listed expiry's key, None if the key is no expiry's."""
    name = key.removeprefix(EXPIRIES).removesuffix(".json")
    return name if _accepts(_identifier, name) and key == f"{EXPIRIES}{name}.json" else None


def restore_folder(restore_id: str) -> str:
    """Folder of everything that is stored of one restore."""
    return f"{RESTORES}{_identifier(restore_id)}/"


def is_restore_id(name: str) -> bool:
    """Whether a restore can have this id."""
    return _accepts(_identifier, name)


def is_drill_restore(name: str) -> bool:
    """Whether a restore id is one that a drill gave."""
    return is_restore_id(name) and _DRILL_RESTORE.fullmatch(name) is not None


def drill_key(drill_id: str) -> str:
    """Key of a drill's report. Drill ids begin alike and then with their time, so the last is the newest."""
    return f"{DRILLS}{_identifier(drill_id)}.json"


def parse_drill_key(key: str) -> str | None:
    """Return the drill id in a listed key, None if the key is no drill report's."""
    name = key.removeprefix(DRILLS).removesuffix(".json")
    return name if _accepts(_identifier, name) and key == f"{DRILLS}{name}.json" else None


def restore_plans_folder(restore_id: str) -> str:
    """Folder of a restore's plans."""
    return f"{restore_folder(restore_id)}plans/"


def restore_plan_key(restore_id: str, number: int) -> str:
    """Key of plan number `number` (from 1) of a restore."""
    return f"{restore_plans_folder(restore_id)}{_digits(number)}.json"


def is_reset_id(name: str) -> bool:
    """Whether a reset of consumer groups can have this id."""
    return _accepts(_identifier, name)


def reset_folder(reset_id: str) -> str:
    """Folder of everything that is stored of one reset."""
    return f"{RESETS}{_identifier(reset_id)}/"


def reset_plan_key(reset_id: str) -> str:
    """Key of a reset's plan."""
    return f"{reset_folder(reset_id)}plan.json"


def reset_before_key(reset_id: str) -> str:
    """Key of the positions before a reset."""
    return f"{reset_folder(reset_id)}before.json"


def reset_step_key(reset_id: str, number: int, state: str) -> str:
    """Key of step number `number` (from 1) of a reset."""
    return f"{reset_folder(reset_id)}steps/{_digits(number)}-{state}.json"


def parse_reset_step_key(key: str) -> tuple[str, int, str] | None:
    """Return reset id, number and state in the listed key of a step, None if the key is no step's."""
    reset_id, _, name = key.removeprefix(RESETS).partition("/steps/")
    match = _STEP.fullmatch(name)
    if not key.startswith(RESETS) or match is None or not is_reset_id(reset_id):
        return None
    return reset_id, int(match[1]), match[2]


def attempts_folder(restore_id: str) -> str:
    """Folder of a restore's attempts."""
    return f"{restore_folder(restore_id)}attempts/"


def attempt_key(restore_id: str, attempt: int) -> str:
    """Key of attempt number `attempt` (from 1)."""
    return f"{attempts_folder(restore_id)}{_digits(attempt)}.json"


def skipped_folder(restore_id: str) -> str:
    """Folder of the segments that a restore leaves out."""
    return f"{restore_folder(restore_id)}skipped/"


def skipped_key(restore_id: str, topic: str, partition: int, commit: int, index: int) -> str:
    """Key of the decision to leave out segment ``k`` = `index` of commit `commit`."""
    folder = f"{skipped_folder(restore_id)}{_topic_name(topic)}/{_natural(partition)}/"
    return f"{folder}{_digits(commit)}-{_natural(index)}.json"


def restore_verification_key(restore_id: str) -> str:
    """Key of the proof that all targets of a restore were compared."""
    return f"{restore_folder(restore_id)}verified.json"


def reports_folder(restore_id: str) -> str:
    """Folder of a restore's reports."""
    return f"{restore_folder(restore_id)}reports/"


def report_key(restore_id: str, attempt: int) -> str:
    """Key of the report of attempt number `attempt`."""
    return f"{reports_folder(restore_id)}{_digits(attempt)}.json"


def report_page_key(restore_id: str, attempt: int) -> str:
    """Key of the page, for people, of the report of attempt number `attempt`."""
    return f"{reports_folder(restore_id)}{_digits(attempt)}.md"


def offset_map_key(restore_id: str, topic: str, partition: int) -> str:
    """Key of the offset map of one source partition."""
    return f"{restore_folder(restore_id)}offset-map/{_topic_name(topic)}/{_natural(partition)}.json"


def accepted_losses_key(capture_id: str, number: int) -> str:
    """Key of an acceptance of what a capture lost; `number` counts those of one capture."""
    return f"{ACCEPTED_LOSSES}{_identifier(capture_id)}/{_digits(number)}.json"


def accepted_absence_key(topic: str, topic_id: str, head: int) -> str:
    """Key of the acceptance that a topic is gone since commit `head`."""
    return f"{ACCEPTED_ABSENCES}{_topic_name(topic)}/{_topic_id(topic_id)}/{_digits(head)}.json"


def parse_accepted_absence_key(key: str) -> tuple[str, str, int] | None:
    """Return topic, topic id and head in a listed key, None if the key is no acceptance's."""
    match = _ABSENCE.fullmatch(key.removeprefix(ACCEPTED_ABSENCES))
    if match is None or not key.startswith(ACCEPTED_ABSENCES) or not is_topic_name(match[1]):
        return None
    return match[1], match[2], int(match[3])


def _accepts(validate: object, value: str) -> bool:
    try:
        validate(value)  # type: ignore[operator]
    except ValueError:
        return False
    return True


def _natural(number: int) -> str:
    if number < 0:
        raise ValueError(f"a number below zero cannot be part of a key: {number}")
    return str(number)


def _digits(number: int) -> str:
    return f"{_natural(number):0>20}"
