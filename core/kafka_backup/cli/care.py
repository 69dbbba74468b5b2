"""The commands about the repository itself: let old captures go, and look into it."""

from __future__ import annotations

from base64 import b64encode
from itertools import islice
from typing import Any

import click

from kafka_backup.cli import tables
from kafka_backup.cli.answers import Document
from kafka_backup.cli.commands import main
from kafka_backup.cli.options import OFFSET, PARTITION, as_json
from kafka_backup.cli.session import EXIT_OK, Session
from kafka_backup.engine import Engine
from kafka_backup.progress import StopToken
from kafka_backup.retention import ExpirePlan, ExpireReport, LogExpiry, RetentionPolicy
from kafka_backup.stored_records import StoredPartition, StoredRecord
from kafka_backup.times import format_time


@main.command()
@click.option(
    "--keep-days",
    type=click.IntRange(min=0),
    metavar="N",
    help="Keep the captures of the N days up to the newest one.",
)
@click.option(
    "--keep-captures",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep of each topic the newest N captures that hold it.",
)
@click.option(
    "--unfinished",
    is_flag=True,
    help="Also delete what captures stored that neither ended nor were followed by another. "
    "If one of them still runs, it stops with exit code 5.",
)
@click.option("--execute", is_flag=True, help="Do it. Without this the plan is shown and nothing is changed.")
@as_json
@click.pass_obj
def expire(
    session: Session, keep_days: int | None, keep_captures: int | None, unfinished: bool, execute: bool
) -> int:
    """Let old captures go and delete what nothing needs any more.

    A capture stays that one of the settings keeps; without any, all stay. The newest capture of each topic always
    stays, and so does what an unfinished restore reads. What Kafka itself still held when a kept
    capture began is never deleted.
    """
    session.document = {"expired": 0, "deleted_objects": 0, "freed_bytes": 0, "captures": [], "topics": []}
    policy = RetentionPolicy(keep_days=keep_days, keep_captures=keep_captures)

    def work(engine: Engine, stop: StopToken) -> tuple[ExpirePlan, ExpireReport | None]:
        plan = engine.plan_expire(policy, unfinished=unfinished, stop=stop)
        return plan, engine.expire(plan, stop=stop) if execute else None

    plan, report = session.run(work)
    document = _expiry(plan, report)
    session.answer(document, *tables.expiry(document))
    if left := sum(topic["unfinished"] for topic in document["topics"]):
        session.say(
            f"{left} objects may belong to a capture that still runs and stay; they go after the topic's next "
            "capture, or with --unfinished"
        )
    if report is None:
        session.say("nothing was changed; add --execute to do it")
    return EXIT_OK


def _expiry(plan: ExpirePlan, report: ExpireReport | None) -> Document:
    deletes = plan.deletes
    return {
        "status": "planned" if report is None else "done",
        "expired": len(plan.captures),
        "deleted_objects": len(deletes) if report is None else report.deleted,
        "freed_bytes": sum(info.size for info in deletes) if report is None else report.freed_bytes,
        "captures": list(plan.captures),
        "group_snapshots": list(plan.group_snapshots),
        "restores": list(plan.pins),
        "topics": [_log_expiry(log) for log in plan.logs],
    }


def _log_expiry(log: LogExpiry) -> Document:
    return {
        "topic": log.topic,
        "topic_id": log.topic_id,
        "expires": len(log.expires),
        "deletes": len(log.deletes),
        "freed_bytes": sum(info.size for info in log.deletes),
        "kept_for_restores": len(log.pinned),
        "unfinished": len(log.unfinished),
    }


@main.command()
@click.argument("topic")
@click.option("--partition", required=True, type=PARTITION, metavar="N", help="The partition.")
@click.option(
    "--offset", type=OFFSET, default=0, metavar="O", help="Begin with this offset, or the next one there is."
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    metavar="N",
    help="Print at most so many records.",
)
@click.option(
    "--incarnation", metavar="ID", help="The topic id to read, where a topic was deleted and re-created."
)
@as_json
@click.pass_obj
def records(
    session: Session, topic: str, partition: int, offset: int, limit: int, incarnation: str | None
) -> int:
    """Print records from the repository; no cluster is needed.

    In JSON, keys, values and headers are text where they are UTF-8 and base64 where they are not; the
    field beside each, ending with _encoding, says which, and is null where there is none.
    """
    session.document = {"topic": topic, "partition": partition, "records": []}

    def work(engine: Engine, stop: StopToken) -> tuple[StoredPartition, list[StoredRecord]]:
        found = engine.stored_partition(topic, partition, incarnation=incarnation)
        chosen = []
        for record in islice(found.records(offset), limit + 1):
            stop.check()
            chosen.append(record)
        return found, chosen

    held, found = session.run(work)
    following = found[limit].record.offset if len(found) > limit else None
    document = {
        "status": "ok",
        "topic": held.topic,
        "topic_id": held.topic_id,
        "partition": held.partition,
        "start": held.start,
        "end": held.end,
        "records": [_record(each) for each in found[:limit]],
        "next_offset": following,
    }
    session.answer(document, tables.records(document))
    if following is not None:
        session.say(f"there are more records, from offset {following} on")
    return EXIT_OK


def _record(stored: StoredRecord) -> Document:
    record = stored.record
    return {
        "offset": record.offset,
        "timestamp": record.timestamp,
        "timestamp_type": stored.timestamp_type,
        "time": None if record.timestamp == -1 else format_time(record.timestamp),
        **_text("key", record.key),
        **_text("value", record.value),
        "headers": [{**_text("key", key), **_text("value", value)} for key, value in record.headers],
    }


def _text(name: str, data: bytes | None) -> dict[str, Any]:
    """Bytes as a JSON string from which they can be told exactly, and how."""
    if data is None:
        return {name: None, f"{name}_encoding": None}
    try:
        return {name: data.decode("utf-8"), f"{name}_encoding": "utf-8"}
    except UnicodeDecodeError:
        return {name: b64encode(data).decode("ascii"), f"{name}_encoding": "base64"}
